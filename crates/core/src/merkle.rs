//! Merkle tree hash of RFC 6962, section 2.1: leaf = SHA-256(0x00 ‖ data), node = SHA-256(0x01 ‖ left ‖ right).
//!
//! A tree of n leaves splits at the largest power of two below n, so its left part is always complete. What a growing
//! tree needs to remember is therefore one hash for each bit set in n: the frontier.

use sha2::{Digest as _, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// One level for each bit of the number of leaves.
const LEVELS: usize = 64;

fn leaf_hash(data: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0x00]);
    hasher.update(data);
    hasher.finalize().into()
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0x01]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// A growing tree: the roots of its complete subtrees, the largest first. Allocates nothing.
#[derive(Clone)]
pub struct Frontier {
    count: u64,
    /// As many as `count` has bits set; what lies beyond is left over from before.
    complete: [Hash; LEVELS],
}

impl Frontier {
    /// The empty tree.
    pub const fn new() -> Self {
        Frontier { count: 0, complete: [[0; 32]; LEVELS] }
    }

    /// Appends a leaf, about two hashes each on average.
    pub fn push(&mut self, leaf_data: &Hash) {
        let mut hash = leaf_hash(leaf_data);
        let mut depth = self.depth();
        for _ in 0..self.count.trailing_ones() {
            depth -= 1;
            hash = node_hash(&self.complete[depth], &hash);
        }
        self.complete[depth] = hash;
        self.count += 1;
    }

    /// Root over all leaves so far; SHA-256 of nothing for the empty tree.
    pub fn root(&self) -> Hash {
        match self.complete[..self.depth()].split_last() {
            None => Sha256::digest(b"").into(),
            Some((smallest, larger)) => {
                larger.iter().rev().fold(*smallest, |right, left| node_hash(left, &right))
            }
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

    /// Back to the empty tree.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Becomes a copy of another one; copies no more than is in use.
    pub fn copy_from(&mut self, other: &Frontier) {
        self.count = other.count;
        let depth = other.depth();
        self.complete[..depth].copy_from_slice(&other.complete[..depth]);
    }

    fn depth(&self) -> usize {
        self.count.count_ones() as usize
    }
}

impl Default for Frontier {
    fn default() -> Self {
        Self::new()
    }
}

/// Root over leaves that are all at hand.
pub fn root(leaves: impl Iterator<Item = Hash>) -> Hash {
    let mut frontier = Frontier::new();
    leaves.for_each(|leaf| frontier.push(&leaf));
    frontier.root()
}
