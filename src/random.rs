//! Random bytes for salts and ids: a generator of this process, seeded by the operating system, and what it gave in stock,
//! since a few bytes at a time cost the generator more than their share of a block.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::Error;

const STOCK: usize = 1024;

pub struct Random {
    generator: ChaCha12Rng,
    stock: [u8; STOCK],
    used: usize,
}

impl Random {
    pub fn seeded() -> Result<Box<Self>, Error> {
        let generator = ChaCha12Rng::try_from_os_rng().map_err(|_| Error::Internal("no random bytes to be had"))?;
        Ok(Box::new(Random { generator, stock: [0; STOCK], used: STOCK }))
    }

    /// The next bytes: far fewer than the stock holds.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= STOCK) };
        if self.used + N > STOCK {
            self.refill();
        }
        let bytes = &mut self.stock[self.used..self.used + N];
        let mut taken = [0; N];
        taken.copy_from_slice(bytes);
        // Nobody who reads this process's memory later finds the salt of an erased record here.
        bytes.fill(0);
        self.used += N;
        taken
    }

    #[cold]
    fn refill(&mut self) {
        self.generator.fill_bytes(&mut self.stock);
        self.used = 0;
    }
}
