//! Reading a log by its tiles, as any tlog client does: what is made of them is checked against the root before it is
//! handed out.

use std::cell::RefCell;
use std::collections::HashMap;

use tlog_tiles::{HashReader, split_stored_hash_index};

use crate::checkpoint::MAX_SIZE;
use crate::proof::{check_consistency, check_inclusion_of_hash};
use crate::tree::{TILE_WIDTH, subtree_root};
use crate::{Error, Hash};

/// Where tiles come from.
pub trait TileSource {
    /// The first `width` hashes of a tile. 256 is the complete one.
    fn tile(&self, level: u8, index: u64, width: usize) -> Result<Vec<Hash>, Error>;
}

/// A log of a known size and root, read through its tiles.
pub struct Log<'a, S> {
    /// Number of entries.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
    /// Where tiles come from.
    pub source: &'a S,
}

impl<S: TileSource> Log<'_, S> {
    /// The path from an entry to the root, the entry's sibling first.
    pub fn prove_inclusion(&self, index: u64) -> Result<Vec<Hash>, Error> {
        if index >= self.size || self.size > MAX_SIZE {
            return Err(Error::OutOfRange);
        }
        let reader = Reader::new(self);
        let path = reader.read(|hashes| tlog_tiles::prove_record(self.size, index, hashes))?;
        let leaf = reader.hash(0, index)?;
        check_inclusion_of_hash(&path, self.size, &self.root, index, &leaf).map_err(|_| inconsistent())?;
        Ok(path)
    }

    /// The proof that the log of `old_size` entries was the beginning of this one.
    pub fn prove_consistency(&self, old_size: u64) -> Result<Vec<Hash>, Error> {
        self.consistency(old_size).map(|(path, _)| path)
    }

    /// Root of the log when it had `size` entries.
    pub fn root_at(&self, size: u64) -> Result<Hash, Error> {
        self.consistency(size).map(|(_, root)| root)
    }

    fn consistency(&self, old_size: u64) -> Result<(Vec<Hash>, Hash), Error> {
        if old_size > self.size || self.size > MAX_SIZE {
            return Err(Error::OutOfRange);
        }
        if old_size == 0 {
            return Ok((Vec::new(), audit_core::checksum::sha256(b"")));
        }
        let reader = Reader::new(self);
        let root = reader.read(|hashes| tlog_tiles::tree_hash(old_size, hashes).map(|hash| vec![hash]))?[0];
        let path = reader.read(|hashes| tlog_tiles::prove_tree(self.size, old_size, hashes))?;
        check_consistency(&path, self.size, &self.root, old_size, &root).map_err(|_| inconsistent())?;
        Ok((path, root))
    }
}

fn inconsistent() -> Error {
    Error::BadTile("of this log".into())
}

/// Reads each tile once. It does not check them: a proof is checked as a whole when it is made, which the reader of the
/// crate tlog_tiles (0.2.0) does not do for every tile.
struct Reader<'a, S> {
    size: u64,
    source: &'a S,
    tiles: RefCell<HashMap<(u8, u64), Vec<Hash>>>,
    failed: RefCell<Option<Error>>,
}

impl<'a, S: TileSource> Reader<'a, S> {
    fn new(log: &Log<'a, S>) -> Self {
        Reader { size: log.size, source: log.source, tiles: RefCell::default(), failed: RefCell::default() }
    }

    fn read(
        &self,
        query: impl FnOnce(&Self) -> Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error>,
    ) -> Result<Vec<Hash>, Error> {
        match (query(self), self.failed.take()) {
            (_, Some(error)) => Err(error),
            (Ok(hashes), None) => Ok(hashes.into_iter().map(|hash| hash.0).collect()),
            (Err(_), None) => Err(inconsistent()),
        }
    }

    /// The `n`-th hash of a level of the tree.
    fn hash(&self, level: u8, n: u64) -> Result<Hash, Error> {
        let (tile_level, below) = (level / 8, level % 8);
        let first = n << below;
        let (index, start) = (first / TILE_WIDTH as u64, (first % TILE_WIDTH as u64) as usize);
        let end = start + (1 << below);
        let mut tiles = self.tiles.borrow_mut();
        let tile = match tiles.entry((tile_level, index)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(vacant) => {
                let hashes = self.size >> (8 * tile_level);
                let width = hashes.saturating_sub(index * TILE_WIDTH as u64).min(TILE_WIDTH as u64) as usize;
                vacant.insert(self.source.tile(tile_level, index, width)?)
            }
        };
        tile.get(start..end).map(subtree_root).ok_or_else(|| Error::BadTile(path(tile_level, index, end)))
    }
}

impl<S: TileSource> HashReader for Reader<'_, S> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error> {
        let hashes: Result<Vec<_>, Error> = indexes
            .iter()
            .map(|&index| {
                let (level, n) = split_stored_hash_index(index);
                self.hash(level, n).map(tlog_tiles::Hash)
            })
            .collect();
        hashes.map_err(|error| {
            self.failed.replace(Some(error));
            tlog_tiles::Error::InvalidTile
        })
    }
}

/// A tile's path in a tlog-tiles directory: `tile/0/x001/234`, incomplete `tile/0/x001/234.p/17`.
pub fn path(level: u8, index: u64, width: usize) -> String {
    format!("tile/{level}/{}", place(index, width))
}

/// The path of a bundle of entries.
pub fn entries_path(index: u64, width: usize) -> String {
    format!("tile/entries/{}", place(index, width))
}

fn place(mut index: u64, width: usize) -> String {
    let mut place = format!("{:03}", index % 1000);
    while index >= 1000 {
        index /= 1000;
        place = format!("x{:03}/{place}", index % 1000);
    }
    if width == TILE_WIDTH { place } else { format!("{place}.p/{width}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::check_inclusion;
    use crate::tree::{Tree, edge_width};
    use audit_core::checksum::sha256;
    use audit_core::merkle::leaf_hash;
    use std::collections::HashMap;
    use std::convert::Infallible;

    /// All tiles of a log, complete and not.
    struct Memory(HashMap<(u8, u64), Vec<Hash>>);

    impl TileSource for Memory {
        fn tile(&self, level: u8, index: u64, width: usize) -> Result<Vec<Hash>, Error> {
            let tile = self.0.get(&(level, index)).filter(|tile| tile.len() >= width);
            tile.map(|tile| tile[..width].to_vec()).ok_or_else(|| Error::BadTile(path(level, index, width)))
        }
    }

    fn entry(i: u64) -> Hash {
        sha256(&i.to_le_bytes())
    }

    fn build(size: u64) -> (Memory, Hash) {
        let mut tree = Tree::new();
        let mut levels: HashMap<(u8, u64), Vec<Hash>> = HashMap::new();
        for i in 0..size {
            levels.entry((0, i / 256)).or_default().push(leaf_hash(&entry(i)));
            tree.push(&entry(i), |tile| {
                levels.entry((tile.level as u8 + 1, tile.index / 256)).or_default().push(tile.root);
                Ok::<(), Infallible>(())
            })
            .unwrap();
        }
        for level in 0..3 {
            let width = edge_width(size, level) as usize;
            let last = levels.get(&(level as u8, (size >> (8 * level)) / 256)).map_or(0, Vec::len);
            assert_eq!(last, width);
        }
        (Memory(levels), tree.root())
    }

    #[test]
    fn proofs_of_all_kinds_hold() {
        for size in [1, 2, 3, 255, 256, 257, 1000, 65_536, 66_049] {
            let (source, root) = build(size);
            let log = Log { size, root, source: &source };
            for index in [0, 1, size / 3, size / 2, size - 1] {
                if index < size {
                    let path = log.prove_inclusion(index).unwrap();
                    check_inclusion(&path, size, &root, index, &entry(index)).unwrap();
                    assert!(check_inclusion(&path, size, &root, index, &entry(index + 1)).is_err());
                }
            }
            assert_eq!(log.prove_inclusion(size), Err(Error::OutOfRange));
            for old_size in [0, 1, size / 2, size - 1, size] {
                let old_root = log.root_at(old_size).unwrap();
                assert_eq!(old_root, build(old_size).1);
                let proof = log.prove_consistency(old_size).unwrap();
                check_consistency(&proof, size, &root, old_size, &old_root).unwrap();
                if old_size > 0 {
                    assert!(check_consistency(&proof, size, &root, old_size, &[1; 32]).is_err());
                }
            }
            assert_eq!(log.prove_consistency(size + 1), Err(Error::OutOfRange));
        }
    }

    #[test]
    fn an_altered_tile_is_refused() {
        let (mut source, root) = build(1000);
        source.0.get_mut(&(0, 1)).unwrap()[7][0] ^= 1;
        let log = Log { size: 1000, root, source: &source };
        assert!(matches!(log.prove_inclusion(300), Err(Error::BadTile(_))));
        source.0.remove(&(0, 1));
        let log = Log { size: 1000, root, source: &source };
        assert_eq!(log.prove_inclusion(300), Err(Error::BadTile("tile/0/001".into())));
    }

    #[test]
    fn paths_are_those_of_tlog_tiles() {
        assert_eq!(path(0, 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(path(1, 0, 17), "tile/1/000.p/17");
        assert_eq!(entries_path(5, 256), "tile/entries/005");
    }
}
