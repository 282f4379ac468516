//! Reading and writing the Merkle log's tables: entries, tiles, checkpoints.

use audit_core::merkle::leaf_hash;
use audit_ledger::Hash;
use audit_ledger::tiles::TileSource;
use audit_ledger::tree::{CompleteTile, LEVELS, TILE_WIDTH, Tree, edge_width};

use crate::error::Error;
use crate::pg::spi::{self, Arg, Sees};

/// The newest checkpoint of a ledger, or what stands for it before the first.
pub struct Head {
    pub tree_size: u64,
    pub root: Option<Hash>,
    /// Every changeset of a transaction below this id is in the tree.
    pub sealed_below: u64,
    pub created_at: i64,
    pub note: String,
}

pub fn head(sees: Sees, era: i32) -> Result<Head, Error> {
    let head = spi::first(
        sees,
        "SELECT tree_size, root_hash, sealed_below, created_at, note FROM audit.checkpoint WHERE era = $1
          ORDER BY tree_size DESC LIMIT 1",
        &[Arg::Int4(era)],
        |row| Head {
            tree_size: row.int8(1).unwrap_or(0) as u64,
            root: row.hash(2),
            sealed_below: row.int8(3).unwrap_or(0) as u64,
            created_at: row.int8(4).unwrap_or(i64::MIN),
            note: row.text(5).unwrap_or_default(),
        },
    )?;
    Ok(head.unwrap_or(Head { tree_size: 0, root: None, sealed_below: 0, created_at: i64::MIN, note: String::new() }))
}

pub fn origin(era: i32) -> Result<String, Error> {
    spi::first(Sees::Now, "SELECT origin FROM audit.ledger WHERE era = $1", &[Arg::Int4(era)], |row| {
        row.text(1).unwrap_or_default()
    })?
    .ok_or_else(|| damaged(format!("Era {era} has no row in audit.ledger.")))
}

pub fn damaged(detail: String) -> Error {
    Error::LedgerDamaged { detail }
}

/// The tree as it stood at a size, ready to go on.
pub fn resume(era: i32, size: u64) -> Result<Tree, Error> {
    let source = Tiles { era, sees: Sees::Now };
    let mut edge = Vec::new();
    for level in 0..LEVELS {
        let width = edge_width(size, level) as usize;
        let index = (size >> (8 * level)) / TILE_WIDTH as u64;
        edge.push(source.incomplete(level as u8, index, width)?);
    }
    Tree::resume(size, edge).ok_or_else(|| damaged(format!("The ledger has not the tiles of {size} entries.")))
}

/// The entries of a ledger from an index on, in order.
pub fn for_each_entry(era: i32, from: u64, mut each: impl FnMut(u64, Hash) -> Result<(), Error>) -> Result<(), Error> {
    let mut next = from;
    spi::for_each(
        Sees::Now,
        "SELECT index, checksum FROM audit.entry WHERE era = $1 AND index >= $2 ORDER BY index",
        &[Arg::Int4(era), Arg::Int8(from as i64)],
        |row| {
            let found = row.int8(1).zip(row.hash(2));
            let (_, checksum) = found
                .filter(|(index, _)| *index == next as i64)
                .ok_or_else(|| damaged(format!("Entry {next} of era {era} is missing.")))?;
            each(next, checksum)?;
            next += 1;
            Ok(())
        },
    )
}

/// Tiles that wait to be written, some at a time.
pub struct TileWriter {
    era: i32,
    waiting: Vec<CompleteTile>,
}

impl TileWriter {
    const BATCH: usize = 64;

    pub fn new(era: i32) -> Self {
        TileWriter { era, waiting: Vec::new() }
    }

    pub fn put(&mut self, tile: CompleteTile) -> Result<(), Error> {
        self.waiting.push(tile);
        if self.waiting.len() >= Self::BATCH { self.flush() } else { Ok(()) }
    }

    pub fn flush(&mut self) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let levels: Vec<i64> = self.waiting.iter().map(|tile| tile.level as i64).collect();
        let indexes: Vec<i64> = self.waiting.iter().map(|tile| tile.index as i64).collect();
        let roots: Vec<Vec<u8>> = self.waiting.iter().map(|tile| tile.root.to_vec()).collect();
        let hashes: Vec<Vec<u8>> = self.waiting.iter().map(|tile| tile.hashes.concat()).collect();
        self.waiting.clear();
        spi::run(
            "INSERT INTO audit.tile (era, level, index, root, hashes)
             SELECT $1, level::int, index, root, hashes
               FROM unnest($2, $3, $4, $5) AS tile (level, index, root, hashes)",
            &[
                Arg::Int4(self.era),
                Arg::Int8Array(&levels),
                Arg::Int8Array(&indexes),
                Arg::ByteaArray(&roots),
                Arg::ByteaArray(&hashes),
            ],
        )
        .map(|_| ())
    }
}

/// The tiles of a ledger. Complete ones are rows; an incomplete one is made from the entries or tiles below it.
pub struct Tiles {
    pub era: i32,
    pub sees: Sees,
}

impl Tiles {
    fn complete(&self, level: u8, index: u64) -> Result<Option<Vec<Hash>>, Error> {
        let hashes = spi::first(
            self.sees,
            "SELECT hashes FROM audit.tile WHERE era = $1 AND level = $2 AND index = $3",
            &[Arg::Int4(self.era), Arg::Int4(level.into()), Arg::Int8(index as i64)],
            |row| row.bytes(1).unwrap_or_default(),
        )?;
        Ok(hashes.map(|bytes| bytes.chunks_exact(32).filter_map(|hash| hash.try_into().ok()).collect()))
    }

    fn incomplete(&self, level: u8, index: u64, width: usize) -> Result<Vec<Hash>, Error> {
        let mut hashes = Vec::with_capacity(width);
        if width == 0 {
            return Ok(hashes);
        }
        let first = (index * TILE_WIDTH as u64) as i64;
        let (below, arguments) = match level.checked_sub(1) {
            None => (
                "SELECT checksum FROM audit.entry WHERE era = $1 AND $2 >= 0 AND index >= $3 AND index < $4 ORDER BY index",
                0,
            ),
            Some(below) => (
                "SELECT root FROM audit.tile WHERE era = $1 AND level = $2 AND index >= $3 AND index < $4 ORDER BY index",
                below,
            ),
        };
        let range =
            [Arg::Int4(self.era), Arg::Int4(arguments.into()), Arg::Int8(first), Arg::Int8(first + width as i64)];
        spi::for_each(self.sees, below, &range, |row| {
            hashes.extend(row.hash(1).map(|hash| if level == 0 { leaf_hash(&hash) } else { hash }));
            Ok(())
        })?;
        Ok(hashes)
    }
}

impl TileSource for Tiles {
    fn tile(&self, level: u8, index: u64, width: usize) -> Result<Vec<Hash>, audit_ledger::Error> {
        let read = || match self.complete(level, index)? {
            Some(mut hashes) => {
                hashes.truncate(width);
                Ok(hashes)
            }
            None => self.incomplete(level, index, width),
        };
        let path = audit_ledger::tiles::path(level, index, width);
        read().map_err(|_: Error| audit_ledger::Error::BadTile(path))
    }
}
