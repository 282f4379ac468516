//! Reading the log's tables: one snapshot for all connections, SELECT alone.

use std::cell::RefCell;

use anyhow::{Context, Result};
use audit_core::merkle::leaf_hash;
use audit_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use audit_ledger::proof::check_consistency;
use audit_ledger::tiles::{Log, TileSource, path};
use audit_ledger::tree::TILE_WIDTH;
use audit_ledger::{Error, Hash};
use postgres::{Client, CopyOutReader};

use crate::connection;
use crate::copy::{self, Row};

pub struct Database {
    client: RefCell<Client>,
}

/// A ledger.
pub struct Ledger {
    pub era: i32,
    pub origin: String,
}

/// What the other connections need to see the same.
pub struct Snapshot {
    dsn: String,
    id: String,
}

/// The rows of a query.
pub struct Rows<'a> {
    reader: CopyOutReader<'a>,
    row: Row,
    is_begun: bool,
    is_done: bool,
}

impl Rows<'_> {
    /// The next row; `None` at the end.
    pub fn next(&mut self) -> Result<Option<&Row>> {
        if !self.is_begun {
            copy::header(&mut self.reader)?;
            self.is_begun = true;
        }
        self.is_done = self.is_done || !self.row.read(&mut self.reader)?;
        Ok((!self.is_done).then_some(&self.row))
    }
}

const BEGIN: &str = "SET search_path = pg_catalog; SET client_encoding = 'UTF8'; SET work_mem = '64MB'; SET jit = off;
     SET statement_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

impl Database {
    /// Connects, and begins a transaction with one snapshot for all that is read.
    pub fn connect(dsn: &str) -> Result<Self> {
        let mut client = connection::connect(dsn)?;
        client.batch_execute(BEGIN).context("beginning to read")?;
        Ok(Database { client: RefCell::new(client) })
    }

    /// This connection's snapshot, which lasts as long as it.
    pub fn snapshot(&self, dsn: &str) -> Result<Snapshot> {
        let row = self.client.borrow_mut().query_one("SELECT pg_export_snapshot()", &[]);
        Ok(Snapshot { dsn: dsn.to_owned(), id: row.context("beginning to read")?.get(0) })
    }

    /// Another connection that sees the same.
    pub fn beside(snapshot: &Snapshot) -> Result<Self> {
        let database = Self::connect(&snapshot.dsn)?;
        let query = format!("SET TRANSACTION SNAPSHOT '{}'", snapshot.id);
        database.client.borrow_mut().batch_execute(&query).context("beginning to read")?;
        Ok(database)
    }

    /// The rows of a query, one by one.
    pub fn open(&mut self, query: &str) -> Result<Rows<'_>> {
        open(self.client.get_mut(), query)
    }

    /// Calls `each` for every row of a query. It must not run another on the same connection.
    pub fn stream(&self, query: &str, mut each: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        let mut client = self.client.borrow_mut();
        let mut rows = open(&mut client, query)?;
        while let Some(row) = rows.next()? {
            each(row)?;
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

    /// The first row's number.
    pub fn number(&self, query: &str) -> Result<i64> {
        let rows = self.rows(query, |row| row.integer(0))?;
        rows.first().copied().context("a query of the log gave no row")
    }

    /// About how many rows a table has, for the progress bar.
    pub fn estimate(&self, table: &str) -> u64 {
        let query = format!(
            "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class JOIN pg_partition_tree('audit.{table}') ON relid = oid WHERE isleaf"
        );
        self.number(&query).unwrap_or(0).max(0) as u64
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

fn open<'a>(client: &'a mut Client, query: &str) -> Result<Rows<'a>> {
    let reader = client.copy_out(&format!("COPY ({query}) TO STDOUT (FORMAT binary)")).context("reading the log")?;
    Ok(Rows { reader, row: Row::default(), is_begun: false, is_done: false })
}

/// The tiles of a ledger in the database.
pub struct Tiles<'a> {
    pub database: &'a Database,
    pub era: i32,
}

impl TileSource for Tiles<'_> {
    fn tile(&self, level: u8, index: u64, width: usize) -> Result<Vec<Hash>, Error> {
        let era = self.era;
        let complete =
            format!("SELECT hashes FROM audit.tile WHERE era = {era} AND level = {level} AND index = {index}");
        let (first, end) = (index * TILE_WIDTH as u64, index * TILE_WIDTH as u64 + width as u64);
        let parts = match level {
            0 => format!(
                "SELECT checksum FROM audit.entry
                  WHERE era = {era} AND index >= {first} AND index < {end} ORDER BY index"
            ),
            _ => format!(
                "SELECT root FROM audit.tile
                  WHERE era = {era} AND level = {} AND index >= {first} AND index < {end} ORDER BY index",
                level - 1
            ),
        };
        let read = || -> Result<Vec<Hash>> {
            if let Some(bytes) =
                self.database.rows(&complete, |row| row.bytes(0).map(<[u8]>::to_vec))?.into_iter().next()
            {
                return Ok(bytes.chunks_exact(32).take(width).filter_map(|hash| hash.try_into().ok()).collect());
            }
            let hashes = self.database.rows(&parts, |row| row.hash(0))?;
            Ok(if level == 0 { hashes.iter().map(leaf_hash).collect() } else { hashes })
        };
        read().map_err(|_| Error::BadTile(path(level, index, width)))
    }
}
