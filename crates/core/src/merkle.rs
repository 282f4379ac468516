//! Merkle tree hash of RFC 6962, section 2.1: leaf = SHA-256(0x00 ‖ data), node = SHA-256(0x01 ‖ left ‖ right).
//!
//! A tree of n leaves splits at the largest power of two below n, so its left part is always complete. What a growing
//! tree needs to remember is therefore one hash for each bit set in n: the frontier.

use crate::buf;
use crate::error::Result;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// SHA-256 (FIPS 180-4) of a message of `length` bytes that begins the blocks; the rest of them is zero. Padded here,
/// which for one or two blocks costs less than a hasher that takes pieces of any length. Never inlined: see checksum.rs.
#[inline(never)]
fn sha256_of<const BLOCKS: usize>(mut blocks: [[u8; BLOCK]; BLOCKS], length: usize) -> Hash {
    const INITIAL: [u32; 8] =
        [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
    let bytes = blocks.as_flattened_mut();
    bytes[length] = 0x80;
    let end = bytes.len();
    bytes[end - 8..].copy_from_slice(&(length as u64 * 8).to_be_bytes());
    let mut state = INITIAL;
    sha2::compress256(&mut state, &blocks.map(Into::into));
    let mut hash = [0; 32];
    for (word, out) in state.iter().zip(hash.chunks_exact_mut(4)) {
        out.copy_from_slice(&word.to_be_bytes());
    }
    hash
}

const BLOCK: usize = 64;

/// Hash of a leaf whose entry is a checksum.
pub fn leaf_hash(data: &Hash) -> Hash {
    let mut blocks = [[0; BLOCK]];
    blocks.as_flattened_mut()[1..33].copy_from_slice(data);
    sha256_of(blocks, 33)
}

/// Hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut blocks = [[0; BLOCK]; 2];
    let bytes = blocks.as_flattened_mut();
    bytes[0] = 0x01;
    bytes[1..33].copy_from_slice(left);
    bytes[33..65].copy_from_slice(right);
    sha256_of(blocks, 65)
}

/// A growing tree: the roots of its complete subtrees, the largest first.
#[derive(Clone, Default)]
pub struct Frontier {
    count: u64,
    /// As many as `count` has bits set.
    complete: Vec<Hash>,
}

impl Frontier {
    /// The empty tree.
    pub const fn new() -> Self {
        Frontier { count: 0, complete: Vec::new() }
    }

    /// Appends a leaf, about two hashes each on average.
    pub fn push(&mut self, leaf_data: &Hash) -> Result<()> {
        buf::reserve(&mut self.complete, 1)?;
        let mut hash = leaf_hash(leaf_data);
        for _ in 0..self.count.trailing_ones() {
            if let Some(left) = self.complete.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.complete.push(hash);
        self.count += 1;
        Ok(())
    }

    /// Root over all leaves so far; SHA-256 of nothing for the empty tree.
    pub fn root(&self) -> Hash {
        match self.complete.split_last() {
            None => crate::checksum::sha256(b""),
            Some((smallest, larger)) => larger.iter().rev().fold(*smallest, |right, left| node_hash(left, &right)),
        }
    }

    /// Number of leaves.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there is no leaf.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Root over leaves that are all at hand.
pub fn root(mut leaves: impl Iterator<Item = Hash>) -> Result<Hash> {
    let mut frontier = Frontier::new();
    leaves.try_for_each(|leaf| frontier.push(&leaf))?;
    Ok(frontier.root())
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::hex;
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use proptest::prelude::*;

    /// The definition, word for word.
    fn naive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest(b"").into(),
            [leaf] => leaf_hash(leaf),
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                node_hash(&naive(&leaves[..split]), &naive(&leaves[split..]))
            }
        }
    }

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count).map(|i| Sha256::digest(i.to_le_bytes()).into()).collect()
    }

    fn text(hash: &Hash) -> String {
        let mut out = Vec::new();
        hex::put(&mut out, hash).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_empty_tree() {
        let frontier = Frontier::default();
        assert!(frontier.is_empty());
        assert_eq!(text(&frontier.root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn every_size_up_to_300() {
        let leaves = leaves(300);
        let mut frontier = Frontier::new();
        for (count, leaf) in leaves.iter().enumerate() {
            assert_eq!(frontier.root(), naive(&leaves[..count]));
            assert_eq!(frontier.len(), count as u64);
            frontier.push(leaf).unwrap();
        }
        assert_eq!(root(leaves.iter().copied()).unwrap(), naive(&leaves));
    }

    const ROOTS: [(u8, &str); 7] = [
        (1, "7f9c9e31ac8256ca2f258583df262dbc7d6f68f2a03043d5c99a4ae5a7396ce9"),
        (2, "28fb81e496897e0ce886f08602392e9239b65c659041e5202163e58ad898f444"),
        (3, "ba8d94b7fbcecae7b81c4c80574fe24734a6917bf9c1ecd66ff3e0c34ead4620"),
        (5, "85e20cac1f02fda7bcdb2fc3f908568c57018c77815f1fa361acad13994f08bf"),
        (8, "f907f23f76aa01b755a614d31ef9832909f44638b4590073301e61e6d01f9a1d"),
        (13, "cebcf8c0a77418c03d4694b0e14ccebed8416ff87d3ad4da873423948f8622fd"),
        (200, "01d65e2c60c4bed83c5931880e64801f2c27f8f2469b51e83483462e4e68d1ca"),
    ];

    /// Recomputed with Python's hashlib over leaves of 32 bytes 0x00, 0x01, … each.
    #[test]
    fn fixed_roots() {
        for (count, expected) in ROOTS {
            assert_eq!(text(&root((0..count).map(|i| [i; 32])).unwrap()), expected, "{count} leaves");
        }
    }

    #[test]
    fn going_back_to_a_copy() {
        let leaves = leaves(40);
        let mut frontier = Frontier::new();
        for count in 0..leaves.len() {
            let saved = frontier.clone();
            for leaf in &leaves[..7] {
                frontier.push(leaf).unwrap();
            }
            frontier = saved;
            assert_eq!(frontier.root(), naive(&leaves[..count]));
            frontier.push(&leaves[count]).unwrap();
        }
    }

    /// The tree of another implementation, over the same leaves.
    fn ct_merkle_root(leaves: &[Hash]) -> Hash {
        let mut tree = MemoryBackedTree::<Sha256, Hash>::new();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        (*tree.root().as_bytes()).into()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn equals_the_definition(leaves in proptest::collection::vec(any::<Hash>(), 0..200)) {
            prop_assert_eq!(root(leaves.iter().copied()).unwrap(), naive(&leaves));
            prop_assert_eq!(root(leaves.iter().copied()).unwrap(), ct_merkle_root(&leaves));
        }
    }
}
