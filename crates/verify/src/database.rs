//! Reading the log's tables: one snapshot, SELECT alone.

use std::cell::RefCell;
use std::io::BufReader;

use anyhow::{Context, Result};
use audit_core::merkle::leaf_hash;
use audit_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use audit_ledger::proof::check_consistency;
use audit_ledger::tiles::{Log, TileSource, path};
use audit_ledger::tree::TILE_WIDTH;
use audit_ledger::{Error, Hash};
use postgres::{Client, NoTls};

use crate::copy::Row;

pub struct Database {
    client: RefCell<Client>,
}

/// A ledger and its last checkpoint.
pub struct Ledger {
    pub era: i32,
    pub origin: String,
}

impl Database {
    /// Connects, and begins a transaction with one snapshot for all that is read.
    pub fn connect(dsn: &str) -> Result<Self> {
        let mut client = Client::connect(dsn, NoTls).context("connecting to the database")?;
        client
            .batch_execute(
                "SET search_path = pg_catalog; SET client_encoding = 'UTF8'; SET TimeZone = 'UTC'; SET DateStyle = 'ISO';
                 SET IntervalStyle = 'postgres'; SET work_mem = '64MB'; SET jit = off; SET statement_timeout = 0;
                 BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            )
            .context("beginning to read")?;
        Ok(Database { client: RefCell::new(client) })
    }

    /// Calls `each` for every row of a query. The query must not be one that `each` runs another on the same connection
    /// in.
    pub fn stream(&self, query: &str, mut each: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        let mut client = self.client.borrow_mut();
        let reader = client.copy_out(&format!("COPY ({query}) TO STDOUT")).context("reading the log")?;
        let mut reader = BufReader::with_capacity(1 << 18, reader);
        let mut row = Row::default();
        while row.read(&mut reader)? {
            each(&row)?;
        }
        Ok(())
    }

    /// The rows that `take` makes something of.
    pub fn rows<T>(&self, query: &str, take: impl Fn(&Row) -> Option<T>) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        self.stream(query, |row| {
            rows.push(take(row).context("a row of the log is not what it should be")?);
            Ok(())
        })?;
        Ok(rows)
    }

    /// About how many rows a table has, for the progress bar.
    pub fn estimate(&self, table: &str) -> u64 {
        let query = format!(
            "SELECT greatest(0, sum(reltuples)::bigint) FROM pg_class JOIN pg_partition_tree('audit.{table}') ON relid = oid WHERE isleaf"
        );
        self.rows(&query, |row| row.integer(0)).ok().and_then(|rows| rows.first().copied()).unwrap_or(0) as u64
    }

    pub fn ledgers(&self) -> Result<Vec<Ledger>> {
        self.rows("SELECT era, origin FROM audit.ledger ORDER BY era", |row| {
            Some(Ledger { era: row.integer(0)? as i32, origin: row.text(1)?.to_owned() })
        })
    }

    /// The last checkpoint of a ledger, with its cosignatures.
    pub fn head(&self, era: i32) -> Result<Option<SignedCheckpoint>> {
        let notes = self.rows(
            &format!("SELECT note, tree_size FROM audit.checkpoint WHERE era = {era} ORDER BY tree_size DESC LIMIT 1"),
            |row| Some((row.text(0)?.to_owned(), row.integer(1)?)),
        )?;
        let Some((note, size)) = notes.into_iter().next() else { return Ok(None) };
        let mut head = SignedCheckpoint::parse(&note)?;
        let lines = self.rows(
            &format!("SELECT line FROM audit.cosignature WHERE era = {era} AND tree_size = {size} ORDER BY key"),
            |row| Some(row.text(0)?.to_owned()),
        )?;
        for line in lines {
            head.merge(&SignedCheckpoint::parse(&format!("{}\n{line}", head.body()))?)?;
        }
        Ok(Some(head))
    }

    /// Whether the ledger that has the later checkpoint was what the earlier one says.
    pub fn continues(&self, old: &Checkpoint, new: &Checkpoint) -> Result<Result<(), String>> {
        let ledger = self.ledgers()?.into_iter().find(|ledger| ledger.origin == new.origin);
        let ledger = ledger.with_context(|| format!("the database has no ledger {}", new.origin))?;
        let source = Tiles { database: self, era: ledger.era };
        let log = Log { size: new.size, root: new.root, source: &source };
        let result = log
            .root_at(new.size)
            .and_then(|_| log.prove_consistency(old.size))
            .and_then(|path| check_consistency(&path, new.size, &new.root, old.size, &old.root));
        Ok(result.map_err(|error| error.to_string()))
    }
}

/// The tiles of a ledger in the database.
pub struct Tiles<'a> {
    pub database: &'a Database,
    pub era: i32,
}

impl TileSource for Tiles<'_> {
    fn tile(&self, level: u8, index: u64, width: usize) -> Result<Vec<Hash>, Error> {
        let era = self.era;
        let complete = format!(
            "SELECT encode(hashes, 'hex') FROM audit.tile WHERE era = {era} AND level = {level} AND index = {index}"
        );
        let (first, end) = (index * TILE_WIDTH as u64, index * TILE_WIDTH as u64 + width as u64);
        let parts = match level {
            0 => format!(
                "SELECT encode(checksum, 'hex') FROM audit.entry
                  WHERE era = {era} AND index >= {first} AND index < {end} ORDER BY index"
            ),
            _ => format!(
                "SELECT encode(root, 'hex') FROM audit.tile
                  WHERE era = {era} AND level = {} AND index >= {first} AND index < {end} ORDER BY index",
                level - 1
            ),
        };
        let read = || -> Result<Vec<Hash>> {
            if let Some(bytes) = self.database.rows(&complete, |row| row.hex(0))?.into_iter().next() {
                return Ok(bytes.chunks_exact(32).take(width).filter_map(|hash| hash.try_into().ok()).collect());
            }
            let hashes = self.database.rows(&parts, |row| row.hash(0))?;
            Ok(if level == 0 { hashes.iter().map(leaf_hash).collect() } else { hashes })
        };
        read().map_err(|_| Error::BadTile(path(level, index, width)))
    }
}
