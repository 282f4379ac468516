//! `audit-verify db`: everything in the tables, against everything else. Three connections read at a time, all in one snapshot:
//! the content of events; that of changesets, and the ledgers; and events, changesets and entries by changeset. Each goes
//! through what it reads in order, so that memory does not grow with the log.

use std::collections::{BTreeMap, HashMap};
use std::thread;

use anyhow::{Result, anyhow};
use audit_ledger::Hash;
use audit_ledger::checkpoint::SignedCheckpoint;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::database::{Database, Ledger};
use crate::records::{RELATION, RELATION_COLUMNS, canonical, hex, plain_checksum, put_columns};
use crate::report::Report;
use crate::{contents, groups, ledgers};

pub type Id = [u8; 16];

pub fn uuid(id: &Id) -> String {
    String::from_utf8_lossy(&audit_core::hex::uuid(id)).into_owned()
}

/// What all parts need to know; small beside the log.
pub struct Known {
    pub erased: Erased,
    pub layouts: HashMap<i64, Layout>,
    pub ledgers: Vec<Ledger>,
    /// Of each era with a checkpoint: sealed_below of the last.
    pub heads: BTreeMap<i64, u64>,
    pub vkeys: Vec<String>,
    pub bar: ProgressBar,
}

/// What erasures name: the records, and the checksum of what remains of each, with the event that says so.
#[derive(Default)]
pub struct Erased {
    events: HashMap<(String, String), (String, String)>,
    changesets: HashMap<String, (String, String)>,
}

pub struct Layout {
    /// Its id, schema and table, as fields of an event.
    pub of_event: Vec<u8>,
    pub checksum: Hash,
}

pub fn database(dsn: &str, vkeys: &[String], kept: Vec<SignedCheckpoint>) -> Result<Report> {
    let database = Database::connect(dsn)?;
    let snapshot = database.snapshot(dsn)?;
    let estimate = |table| database.estimate(table);
    let total = 2 * (estimate("event") + estimate("changeset")) + 2 * estimate("entry");
    let known = Known {
        erased: Erased::read(&database)?,
        layouts: layouts(&database)?,
        ledgers: database.ledgers()?,
        heads: heads(&database)?,
        vkeys: vkeys.to_vec(),
        bar: bar(total),
    };
    let reports = thread::scope(|scope| {
        let known = &known;
        let parts = [
            scope.spawn(|| contents::events(&Database::beside(&snapshot)?, known)),
            scope.spawn(|| groups::check(&mut Database::beside(&snapshot)?, known)),
            scope.spawn(|| {
                let database = Database::beside(&snapshot)?;
                let mut report = contents::changesets(&database, known)?;
                report.absorb(ledgers::check(&database, &mut Database::beside(&snapshot)?, known, kept)?);
                Ok(report)
            }),
        ];
        parts.map(|part| part.join().unwrap_or_else(|_| Err(anyhow!("a part of the check broke off"))))
    });
    known.bar.finish_and_clear();
    let mut report = Report::new("db");
    for part in reports {
        report.absorb(part?);
    }
    Ok(report)
}

/// Shown on a terminal alone.
fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("checking {wide_bar} {percent} % {elapsed} (still {eta})") {
        bar.set_style(style);
    }
    bar.tick();
    bar
}

impl Known {
    /// Counts a row, and moves the bar now and then.
    pub fn count(&self, count: &mut u64) {
        *count += 1;
        if count.is_multiple_of(4096) {
            self.bar.inc(4096);
        }
    }
}

impl Erased {
    /// Reads what the erasures name. Whether they are what was written is checked with all other events.
    fn read(database: &Database) -> Result<Self> {
        let query = "SELECT e.changeset_id, e.seq, e.details FROM audit.event AS e JOIN audit.erasure AS i
              ON i.changeset_id = e.changeset_id AND i.seq = e.seq AND i.occurred_at = e.occurred_at
            WHERE e.action = 'audit.erased' AND e.salt IS NOT NULL";
        let mut erased = Erased::default();
        database.stream(query, |row| {
            let (Some(id), Some(seq)) = (row.uuid(0), row.integer(1)) else { return Ok(()) };
            let by = format!("{}/{seq}", uuid(&id));
            let Ok(details) = serde_json::from_slice::<Value>(row.json(2).unwrap_or_default()) else { return Ok(()) };
            let remains = |value: &Value| value.as_str().map(|hex| (hex.to_owned(), by.clone()));
            for (id, seqs) in details["events"].as_object().into_iter().flatten() {
                for (seq, hash) in seqs.as_object().into_iter().flatten() {
                    if let Some(found) = remains(hash) {
                        erased.events.insert((id.clone(), seq.clone()), found);
                    }
                }
            }
            for (id, hash) in details["changesets"].as_object().into_iter().flatten() {
                if let Some(found) = remains(hash) {
                    erased.changesets.insert(id.clone(), found);
                }
            }
            Ok(())
        })?;
        Ok(erased)
    }

    /// A record without its salt must be what an erasure says remains of it.
    pub fn check(&self, id: &Id, seq: Option<i64>, remaining: &[u8], report: &mut Report) {
        let id = uuid(id);
        let (what, named) = match seq {
            Some(seq) => ("event", self.events.get(&(id.clone(), seq.to_string()))),
            None => ("changeset", self.changesets.get(&id)),
        };
        let detail = match named {
            Some((expected, by)) if *expected == hex(&plain_checksum(remaining)) => {
                return report.note(&format!("{what} erased"), Some(&id), seq, format!("Erased by event {by}."));
            }
            Some(_) => "What remains of it is not what its erasure says.",
            None => "Its salt is not there, and no erasure names it.",
        };
        report.finding(&format!("{what} altered"), Some(&id), seq, detail);
    }
}

fn layouts(database: &Database) -> Result<HashMap<i64, Layout>> {
    const SCHEMA: usize = 2;
    let mut layouts = HashMap::new();
    let mut text = Vec::new();
    database.stream(&format!("SELECT {RELATION_COLUMNS} FROM audit.relation AS r"), |row| {
        let Some(id) = row.integer(0) else { return Ok(()) };
        canonical("audit_ext/relation/1", RELATION, row, &mut text);
        let mut of_event = Vec::new();
        put_columns(&RELATION[..1], row, 0, &mut of_event);
        put_columns(&RELATION[SCHEMA..SCHEMA + 2], row, SCHEMA, &mut of_event);
        layouts.insert(id, Layout { of_event, checksum: plain_checksum(&text) });
        Ok(())
    })?;
    Ok(layouts)
}

fn heads(database: &Database) -> Result<BTreeMap<i64, u64>> {
    let query = "SELECT DISTINCT ON (era) era, sealed_below FROM audit.checkpoint ORDER BY era, tree_size DESC";
    let heads = database.rows(query, |row| Some((row.integer(0)?, row.unsigned(1)?)))?;
    Ok(heads.into_iter().collect())
}
