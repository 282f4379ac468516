//! The entries of each ledger, in order: against its own record, its layouts, its checkpoints and tiles, and against the
//! checkpoints that somebody kept. Whether the entries of changesets are those of changesets is in `groups`.

use anyhow::Result;
use audit_ledger::Hash;
use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::proof::encode;
use audit_ledger::tree::{CompleteTile, Tree};

use crate::check::{Known, uuid};
use crate::copy::Row;
use crate::database::{Database, Ledger, Rows};
use crate::records::{
    Field, LEDGER, LEDGER_COLUMNS, SEAL, SEAL_COLUMNS, begin, canonical, plain_checksum, put, put_columns, put_integer,
};
use crate::report::Report;

/// `beside` reads the tiles while `database` reads the entries.
pub fn check(
    database: &Database,
    beside: &mut Database,
    known: &Known,
    mut kept: Vec<SignedCheckpoint>,
) -> Result<Report> {
    let mut report = Report::new("db");
    let mut previous: Option<Head> = None;
    for ledger in &known.ledgers {
        let (of_this, others) = kept.into_iter().partition(|kept| kept.checkpoint.origin == ledger.origin);
        kept = others;
        let mut check = Check {
            known,
            ledger,
            record: ledger_record(database, ledger, previous.as_ref())?,
            kept: of_this,
            tree: Tree::new(),
            head: None,
            report: &mut report,
        };
        check.entries(database, beside)?;
        check.cosignatures(database)?;
        previous = check.head.or(previous);
    }
    for kept in kept {
        let detail = format!("There is no ledger {} here.", kept.checkpoint.origin);
        report.finding("ledger removed", None, None, detail);
    }
    let orphans = "SELECT era FROM (SELECT DISTINCT era FROM audit.entry UNION SELECT era FROM audit.checkpoint UNION
        SELECT era FROM audit.tile) AS there WHERE era NOT IN (SELECT era FROM audit.ledger)";
    for era in database.rows(orphans, |row| row.integer(0))? {
        let detail = format!("There are entries, tiles or checkpoints of era {era}, but no row in audit.ledger.");
        report.finding("ledger removed", None, None, detail);
    }
    Ok(report)
}

/// A ledger's last checkpoint.
struct Head {
    origin: String,
    size: u64,
    root: Hash,
}

/// Checksum of a ledger's first entry.
fn ledger_record(database: &Database, ledger: &Ledger, previous: Option<&Head>) -> Result<Hash> {
    let mut text = Vec::new();
    let query = format!("SELECT {LEDGER_COLUMNS} FROM audit.ledger AS l WHERE l.era = {}", ledger.era);
    database.stream(&query, |row| {
        canonical("audit_ext/ledger/1", LEDGER, row, &mut text);
        Ok(())
    })?;
    text.pop();
    match previous {
        None => text.extend_from_slice(b", null, null, null"),
        Some(head) => {
            put(Field::Text, Some(head.origin.as_bytes()), &mut text);
            text.extend_from_slice(b", ");
            put_integer(head.size as i64, &mut text);
            put(Field::Text, Some(encode(&head.root).as_bytes()), &mut text);
        }
    }
    text.push(b']');
    Ok(plain_checksum(&text))
}

mod column {
    pub const INDEX: usize = 0;
    pub const RELATION_ID: usize = 1;
    pub const CHANGESET_ID: usize = 2;
    pub const CHECKSUM: usize = 3;
    pub const ROOT_HASH: usize = 4;
    pub const NOTE: usize = 5;
    /// tree_size, created_at, sealed_below, next_xid, key.
    pub const SEAL: usize = 6;
    pub const TREE_SIZE: usize = SEAL;
    pub const KEY: usize = SEAL + 4;
}

struct Check<'a> {
    known: &'a Known,
    ledger: &'a Ledger,
    /// Checksum of the first entry.
    record: Hash,
    kept: Vec<SignedCheckpoint>,
    tree: Tree,
    head: Option<Head>,
    report: &'a mut Report,
}

impl Check<'_> {
    fn finding(&mut self, finding: &str, detail: String) {
        self.report.finding(finding, None, None, detail);
    }

    fn entries(&mut self, database: &Database, beside: &mut Database) -> Result<()> {
        let (era, origin) = (self.ledger.era, &self.ledger.origin);
        let query = format!(
            "SELECT e.index, e.relation_id, e.changeset_id, e.checksum, k.root_hash, k.note, {SEAL_COLUMNS}
               FROM audit.entry AS e LEFT JOIN audit.checkpoint AS k ON k.era = e.era AND k.tree_size = e.index + 1
              WHERE e.era = {era} ORDER BY e.index"
        );
        let mut tiles = Tiles::open(beside, era)?;
        let (mut count, mut is_broken) = (0, false);
        self.keep_up();
        database.stream(&query, |row| {
            self.known.count(&mut count);
            if !is_broken {
                is_broken = !self.entry(row, &mut tiles)?;
            }
            Ok(())
        })?;
        let size = self.tree.size();
        if !is_broken {
            for kept in std::mem::take(&mut self.kept) {
                let kept = kept.checkpoint.size;
                let detail = format!(
                    "A checkpoint that was kept is of {kept} entries, ledger {origin} has {size}: the newest were removed, or an older state was put back."
                );
                self.finding("checkpoint inconsistent", detail);
            }
            if self.head.as_ref().map_or(0, |head| head.size) != size {
                self.finding("entry added", format!("Ledger {origin} has entries beyond its last checkpoint."));
            }
            self.beyond(database)?;
            while let Some(place) = tiles.take_rest()? {
                self.tile("tile added", place);
            }
        }
        self.report.fact(format!("ledger {origin}"), format!("{size} entries"));
        Ok(())
    }

    /// Takes the next entry. Returns whether the tree can go on.
    fn entry(&mut self, row: &Row, tiles: &mut Tiles<'_>) -> Result<bool> {
        let (index, origin) = (self.tree.size(), &self.ledger.origin);
        let Some(entry) = row.hash(column::CHECKSUM).filter(|_| row.integer(column::INDEX) == Some(index as i64))
        else {
            self.finding("entry removed", format!("Entry {index} of ledger {origin} is not there."));
            return Ok(false);
        };
        self.meaning(index, row, &entry);
        let mut complete = Vec::new();
        self.tree.push(&entry, |tile| {
            complete.push(tile);
            Ok::<(), anyhow::Error>(())
        })?;
        for tile in &complete {
            tiles.compare(tile, |problem, place| self.tile(problem, place))?;
        }
        if row.bytes(column::TREE_SIZE).is_some() {
            self.checkpoint(row, &entry);
            self.head = Some(Head { origin: origin.clone(), size: self.tree.size(), root: self.tree.root() });
        }
        self.keep_up();
        Ok(true)
    }

    fn tile(&mut self, problem: &str, (level, index): (i64, i64)) {
        self.finding(problem, format!("Tile {index} of level {level} of ledger {}.", self.ledger.origin));
    }

    /// An entry against what it is one of.
    fn meaning(&mut self, index: u64, row: &Row, entry: &Hash) {
        let origin = &self.ledger.origin;
        let changeset = row.uuid(column::CHANGESET_ID);
        match (row.integer(column::RELATION_ID), changeset) {
            (Some(_), Some(id)) => {
                let detail = format!("Entry {index} of ledger {origin} is said to be both a layout and a changeset.");
                self.report.finding("entry altered", Some(&uuid(&id)), None, detail);
            }
            (None, Some(_)) => {}
            (Some(layout), None) => {
                if self.known.layouts.get(&layout).map(|layout| &layout.checksum) != Some(entry) {
                    let detail = format!("Layout {layout} is not what entry {index} of ledger {origin} says.");
                    self.finding("layout altered", detail);
                }
            }
            (None, None) if index == 0 => {
                if *entry != self.record {
                    let detail = format!(
                        "The row of ledger {origin}, or the last checkpoint before it, is not what its first entry says."
                    );
                    self.finding("ledger altered", detail);
                }
            }
            (None, None) => {
                if row.bytes(column::TREE_SIZE).is_none() {
                    let detail = format!("The checkpoint of {} entries of ledger {origin} is not there.", index + 1);
                    self.finding("checkpoint removed", detail);
                }
            }
        }
    }

    fn checkpoint(&mut self, row: &Row, entry: &Hash) {
        let what = format!("the checkpoint of {} entries of ledger {}", self.tree.size(), self.ledger.origin);
        let mut seal = Vec::new();
        begin("audit_ext/seal/1", &mut seal);
        put(Field::Text, Some(self.ledger.origin.as_bytes()), &mut seal);
        put_columns(SEAL, row, column::SEAL, &mut seal);
        seal.push(b']');
        if plain_checksum(&seal) != *entry {
            self.finding("checkpoint altered", format!("The row of {what} is not what its seal says."));
        }
        let root = self.tree.root();
        if row.hash(column::ROOT_HASH) != Some(root) {
            self.finding("root altered", format!("The entries do not give the root of {what}."));
        }
        let text = row.text(column::NOTE).unwrap_or_default();
        let problem = match SignedCheckpoint::parse(text) {
            Ok(note) if note.text() == text && note.checkpoint.body().as_deref() == Ok(note.body()) => {
                let own = &note.checkpoint;
                if own.origin != self.ledger.origin || own.size != self.tree.size() || own.root != root {
                    Some("says something else".to_owned())
                } else {
                    self.signature(&note, row.text(column::KEY))
                }
            }
            _ => Some("is malformed".to_owned()),
        };
        if let Some(problem) = problem {
            self.finding("checkpoint altered", format!("The note of {what} {problem}."));
        }
    }

    fn signature(&self, note: &SignedCheckpoint, key: Option<&str>) -> Option<String> {
        let own = match key {
            None => note.is_signed().then(|| "is signed, but was not when it was sealed".to_owned()),
            Some(key) => note.verify(&[key.to_owned()]).err().map(|error| format!("is badly signed: {error}")),
        };
        let vkeys = &self.known.vkeys;
        let known = || {
            let error = note.verify(vkeys).err()?;
            Some(format!("is not signed by a key that was given: {error}"))
        };
        own.or_else(|| if vkeys.is_empty() { None } else { known() })
    }

    /// The checkpoints that were kept of this size.
    fn keep_up(&mut self) {
        let (tree, report) = (&self.tree, &mut *self.report);
        self.kept.retain(|kept| {
            if kept.checkpoint.size != tree.size() {
                return true;
            }
            if kept.checkpoint.root != tree.root() {
                let detail = format!(
                    "The first {} entries of ledger {} are not those that a checkpoint that was kept was made of: history was rewritten.",
                    tree.size(),
                    kept.checkpoint.origin
                );
                report.finding("checkpoint inconsistent", None, None, detail);
            }
            false
        });
    }

    /// Checkpoints of sizes that there are not.
    fn beyond(&mut self, database: &Database) -> Result<()> {
        let (era, size) = (self.ledger.era, self.tree.size());
        let query = format!(
            "SELECT tree_size FROM audit.checkpoint WHERE era = {era} AND (tree_size > {size} OR tree_size < 1) ORDER BY 1"
        );
        for checkpoint in database.rows(&query, |row| row.integer(0))? {
            let origin = &self.ledger.origin;
            let detail = format!("Ledger {origin} has a checkpoint of {checkpoint} entries, but {size} entries.");
            self.finding("entry removed", detail);
        }
        Ok(())
    }

    fn cosignatures(&mut self, database: &Database) -> Result<()> {
        let query = format!(
            "SELECT c.tree_size, c.key, c.line, k.note FROM audit.cosignature AS c
               LEFT JOIN audit.checkpoint AS k ON k.era = c.era AND k.tree_size = c.tree_size
              WHERE c.era = {} ORDER BY 1, 2",
            self.ledger.era
        );
        database.stream(&query, |row| {
            let (key, line) = (row.text(1).unwrap_or_default(), row.text(2).unwrap_or_default());
            let holds = row.text(3).and_then(|note| SignedCheckpoint::parse(note).ok()).is_some_and(|note| {
                let cosigned = SignedCheckpoint::parse(&format!("{}\n{line}", note.body()));
                cosigned.is_ok_and(|cosigned| cosigned.verify(&[key.to_owned()]).is_ok())
            });
            if !holds {
                let size = row.integer(0).unwrap_or_default();
                let detail = format!("By {key}, on {size} entries of ledger {}.", self.ledger.origin);
                self.finding("cosignature altered", detail);
            }
            Ok(())
        })
    }
}

/// The stored tiles, in the order in which a growing tree completes them.
struct Tiles<'a> {
    rows: Rows<'a>,
    next: Option<Stored>,
}

struct Stored {
    /// Level and index.
    place: (i64, i64),
    /// Size of the tree that completes it.
    end: i64,
    root: Option<Hash>,
    hashes: Vec<u8>,
}

impl<'a> Tiles<'a> {
    fn open(database: &'a mut Database, era: i32) -> Result<Self> {
        let query = format!(
            "SELECT level, index, (index + 1) << (8 * (level + 1)), root, hashes FROM audit.tile WHERE era = {era} ORDER BY 3, 1"
        );
        let mut tiles = Tiles { rows: database.open(&query)?, next: None };
        tiles.advance()?;
        Ok(tiles)
    }

    /// Takes the next tile off.
    fn advance(&mut self) -> Result<Option<Stored>> {
        let next = self.rows.next()?.map(|row| Stored {
            place: (row.integer(0).unwrap_or(-1), row.integer(1).unwrap_or(-1)),
            end: row.integer(2).unwrap_or(-1),
            root: row.hash(3),
            hashes: row.bytes(4).unwrap_or_default().to_vec(),
        });
        Ok(std::mem::replace(&mut self.next, next))
    }

    /// Compares a tile that the tree completes, and calls `report` with what does not fit up to there.
    fn compare(&mut self, tile: &CompleteTile, mut report: impl FnMut(&str, (i64, i64))) -> Result<()> {
        let place = (tile.level as i64, tile.index as i64);
        let end = ((tile.index + 1) << (8 * (tile.level + 1))) as i64;
        while let Some(added) = self.next.take_if(|next| (next.end, next.place.0) < (end, place.0)) {
            report("tile added", added.place);
            self.advance()?;
        }
        let Some(stored) = self.next.take_if(|next| next.place == place) else {
            report("tile removed", place);
            return Ok(());
        };
        if stored.root != Some(tile.root) || stored.hashes != tile.hashes.concat() {
            report("tile altered", place);
        }
        self.advance()?;
        Ok(())
    }

    fn take_rest(&mut self) -> Result<Option<(i64, i64)>> {
        Ok(self.advance()?.map(|tile| tile.place))
    }
}
