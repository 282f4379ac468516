//! The growing tree, in tiles of 256 hashes.
//!
//! A tile of level 0 holds the leaf hashes of 256 entries, one of level l + 1 the roots of 256 tiles of level l. The
//! right edge of the tree, one incomplete tile for each level, is all that it takes to go on.

use audit_core::checksum::sha256;
use audit_core::merkle::{leaf_hash, node_hash};

use crate::Hash;

/// Hashes in a complete tile.
pub const TILE_WIDTH: usize = 256;

/// Tiles of height 8: more levels than a tree can have.
pub const LEVELS: usize = 8;

/// A complete tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompleteTile {
    /// Level, from 0.
    pub level: usize,
    /// Index within its level.
    pub index: u64,
    /// Its 256 hashes.
    pub hashes: Vec<Hash>,
    /// The root over them: a hash of the level above.
    pub root: Hash,
}

/// The right edge of a tree.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    size: u64,
    /// Of each level the hashes of its incomplete tile.
    edge: Vec<Vec<Hash>>,
}

impl Tree {
    /// The empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tree of `size` entries from the hashes of its incomplete tiles, level by level. `None` if they are not as many
    /// as that size has.
    pub fn resume(size: u64, edge: Vec<Vec<Hash>>) -> Option<Self> {
        let fits = |(level, hashes): (usize, &Vec<Hash>)| hashes.len() as u64 == edge_width(size, level);
        let complete = (edge.len()..LEVELS).all(|level| edge_width(size, level) == 0);
        (edge.len() <= LEVELS && complete && edge.iter().enumerate().all(fits)).then_some(Tree { size, edge })
    }

    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of the incomplete tiles, level by level.
    pub fn edge(&self) -> &[Vec<Hash>] {
        &self.edge
    }

    /// Appends an entry, and hands over the tiles that it completes.
    pub fn push<E>(
        &mut self,
        checksum: &Hash,
        mut completed: impl FnMut(CompleteTile) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut hash = leaf_hash(checksum);
        self.size += 1;
        for level in 0.. {
            if self.edge.len() == level {
                self.edge.push(Vec::with_capacity(TILE_WIDTH));
            }
            self.edge[level].push(hash);
            if self.edge[level].len() < TILE_WIDTH {
                break;
            }
            let hashes = std::mem::replace(&mut self.edge[level], Vec::with_capacity(TILE_WIDTH));
            let root = subtree_root(&hashes);
            let index = (self.size >> (8 * (level + 1))) - 1;
            completed(CompleteTile { level, index, hashes, root })?;
            hash = root;
        }
        Ok(())
    }

    /// Root over all entries so far.
    pub fn root(&self) -> Hash {
        let mut smaller: Option<Hash> = None;
        for hashes in &self.edge {
            // What the levels below leave is one more node here, smaller than the others: it comes last, and the split
            // at the largest power of two stays the same.
            smaller = match (hashes.is_empty(), smaller) {
                (true, smaller) => smaller,
                (false, None) => Some(subtree_root(hashes)),
                (false, Some(smaller)) => Some(subtree_root(&[hashes.as_slice(), &[smaller]].concat())),
            };
        }
        smaller.unwrap_or_else(|| sha256(b""))
    }
}

/// Number of hashes in the incomplete tile of a level.
pub fn edge_width(size: u64, level: usize) -> u64 {
    (size >> (8 * level)) % TILE_WIDTH as u64
}

/// Root over hashes of one level; the last may stand for a smaller subtree.
pub fn subtree_root(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => sha256(b""),
        [hash] => *hash,
        _ => {
            let split = hashes.len().next_power_of_two() / 2;
            node_hash(&subtree_root(&hashes[..split]), &subtree_root(&hashes[split..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use std::convert::Infallible;

    pub fn entries(count: usize) -> Vec<Hash> {
        (0..count).map(|i| sha256(&i.to_le_bytes())).collect()
    }

    /// Against the frontier of the writer, and against another implementation.
    #[test]
    fn roots_of_many_sizes() {
        let entries = entries(70_000);
        let mut tree = Tree::new();
        let mut frontier = audit_core::merkle::Frontier::new();
        let mut other = MemoryBackedTree::<sha2::Sha256, Hash>::new();
        let mut tiles = 0;
        for (i, entry) in entries.iter().enumerate() {
            if i < 1000 || i % 251 == 0 || (65_530..65_540).contains(&i) {
                assert_eq!(tree.root(), frontier.root(), "{i} entries");
            }
            if i == 777 || i == 65_536 {
                assert_eq!(tree.root().as_slice(), other.root().as_bytes().as_slice());
            }
            let count = |_| {
                tiles += 1;
                Ok::<(), Infallible>(())
            };
            tree.push(entry, count).unwrap();
            frontier.push(entry).unwrap();
            other.push(*entry);
        }
        assert_eq!(tree.size(), 70_000);
        assert_eq!(tree.root(), frontier.root());
        assert_eq!(tiles, 273 + 1);
    }

    #[test]
    fn goes_on_from_its_edge() {
        let entries = entries(66_000);
        for size in [0, 1, 255, 256, 257, 65_535, 65_536, 65_793] {
            let mut tree = Tree::new();
            entries[..size].iter().for_each(|e| tree.push(e, |_| Ok::<(), Infallible>(())).unwrap());
            let mut again = Tree::resume(size as u64, tree.edge.clone()).unwrap();
            for entry in &entries[size..] {
                tree.push(entry, |_| Ok::<(), Infallible>(())).unwrap();
                again.push(entry, |_| Ok::<(), Infallible>(())).unwrap();
            }
            assert_eq!(tree.root(), again.root());
        }
        assert!(Tree::resume(3, vec![vec![[0; 32]; 2]]).is_none());
        assert!(Tree::resume(256, vec![vec![]]).is_none());
        assert!(Tree::resume(256, vec![vec![], vec![[0; 32]]]).is_some());
    }
}
