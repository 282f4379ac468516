//! SHA-256 over a record's salt and canonical text, and over large values.
//!
//! The crate `sha2` chooses the processor's SHA instructions at run time. What hashes is never inlined, so that profiles
//! and bench/instructions, which know it by these names, tell it from the rest.

use sha2::{Digest as _, Sha256};

/// Checksum of a record: SHA-256(salt ‖ canonical). In SQL:
/// `sha256(uuid_send(salt) || convert_to(canonical, 'UTF8'))`.
#[inline(never)]
pub fn salted(salt: &[u8; 16], canonical: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(salt);
    hasher.update(canonical);
    hasher.finalize().into()
}

/// SHA-256 of bytes at hand.
#[inline(never)]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of bytes that come in pieces, and their number: what stands for a value that is too large to record.
#[derive(Clone, Default)]
pub struct Digest {
    hasher: Sha256,
    bytes: u64,
}

impl Digest {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece.
    #[inline(never)]
    pub fn update(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
    }

    /// Hash and number of all bytes taken.
    #[inline(never)]
    pub fn finish(self) -> ([u8; 32], u64) {
        (self.hasher.finalize().into(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex;

    fn hex(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        hex::put(&mut out, bytes).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fips_180_vectors() {
        assert_eq!(hex(&sha256(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hex(&sha256(b"")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn salt_comes_first() {
        let salt = *b"0123456789abcdef";
        assert_eq!(salted(&salt, b"text"), sha256(b"0123456789abcdeftext"));
    }

    #[test]
    fn pieces_equal_the_whole() {
        let mut digest = Digest::new();
        digest.update(b"a");
        digest.update(b"");
        digest.update(b"bc");
        assert_eq!(digest.finish(), (sha256(b"abc"), 3));
    }
}
