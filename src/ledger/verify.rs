//! The parts of audit.verify that go through the log in order: the events of each changeset against its root, and the
//! entries of each ledger against its tiles and checkpoints. Content against checksums is a matter of SQL, which does it
//! in parallel: sql/60_ledger.sql. All of it sees one snapshot, that of the statement that called.

use std::collections::HashSet;

use audit_core::merkle::Frontier;
use audit_ledger::Hash;
use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::proof::encode;
use audit_ledger::tree::{CompleteTile, Tree};

use crate::error::Error;
use crate::pg::catalog::Row;
use crate::pg::report;
use crate::pg::spi::{self, Arg, Sees};
use crate::transaction;

/// What does not fit.
pub struct Finding {
    pub finding: &'static str,
    pub occurred_at: Option<i64>,
    pub changeset_id: Option<[u8; 16]>,
    pub seq: Option<i32>,
    pub detail: String,
}

/// A finding that concerns no single record.
fn general(finding: &'static str, detail: String) -> Finding {
    Finding { finding, occurred_at: None, changeset_id: None, seq: None, detail }
}

/// Says how far it is after so many records.
const PROGRESS: u64 = 1_000_000;

fn progress(done: u64, what: &str) {
    if done.is_multiple_of(PROGRESS) {
        report::notice(format!("audit.verify: {done} {what} checked so far"));
    }
}

/// The events of each changeset against its event_count and events_root.
pub fn changesets(since: Option<i64>, until: Option<i64>) -> Result<Vec<Finding>, Error> {
    let mut check = Changesets { own: own_changesets()?, ..Changesets::default() };
    spi::for_each(
        Sees::AsCaller,
        "SELECT occurred_at, changeset_id, seq, checksum, NULL::int FROM audit.event
          WHERE ($1 IS NULL OR occurred_at >= $1) AND ($2 IS NULL OR occurred_at < $2)
          UNION ALL
         SELECT occurred_at, id, NULL, events_root, event_count FROM audit.changeset
          WHERE ($1 IS NULL OR occurred_at >= $1) AND ($2 IS NULL OR occurred_at < $2)
          ORDER BY 1, 2, 3 NULLS FIRST",
        &[Arg::TimestampTz(since), Arg::TimestampTz(until)],
        |row| {
            check.take(row);
            Ok(())
        },
    )?;
    check.finish_group();
    report::notice(format!("audit.verify: {} events in {} changesets", check.events, check.changesets));
    Ok(check.findings)
}

/// This transaction's own changesets are not written yet, their events are.
fn own_changesets() -> Result<HashSet<[u8; 16]>, Error> {
    let mut own = HashSet::new();
    transaction::for_each_changeset(|changeset| {
        own.insert(changeset.id);
        Ok(())
    })?;
    Ok(own)
}

#[derive(Default)]
struct Changesets {
    own: HashSet<[u8; 16]>,
    group: Option<Group>,
    events: u64,
    changesets: u64,
    findings: Vec<Finding>,
}

/// A changeset and its events.
struct Group {
    occurred_at: Option<i64>,
    id: [u8; 16],
    /// Its events_root and event_count.
    header: Option<(Vec<u8>, i32)>,
    frontier: Frontier,
    /// Whether each checksum has 32 bytes.
    is_sound: bool,
    last_seq: Option<i32>,
}

impl Changesets {
    fn take(&mut self, row: &Row) {
        let (occurred_at, Some(id)) = (row.int8(1), row.uuid(2)) else { return };
        if self.group.as_ref().is_none_or(|group| group.id != id || group.occurred_at != occurred_at) {
            self.finish_group();
            self.group = Some(Group {
                occurred_at,
                id,
                header: None,
                frontier: Frontier::new(),
                is_sound: true,
                last_seq: None,
            });
        }
        let Some(group) = &mut self.group else { return };
        let Some(seq) = row.int4(3) else {
            self.changesets += 1;
            if group.header.is_some() {
                self.findings.push(Finding {
                    finding: "changeset added",
                    occurred_at,
                    changeset_id: Some(id),
                    seq: None,
                    detail: "There is another changeset of the same id.".into(),
                });
            }
            group.header = Some((row.bytes(4).unwrap_or_default(), row.int4(5).unwrap_or(0)));
            return;
        };
        self.events += 1;
        progress(self.events, "events");
        if group.last_seq == Some(seq) {
            self.findings.push(Finding {
                finding: "event added",
                occurred_at,
                changeset_id: Some(id),
                seq: Some(seq),
                detail: "There is another event of the same number.".into(),
            });
        }
        group.last_seq = Some(seq);
        match row.hash(4) {
            Some(checksum) if group.frontier.push(&checksum).is_ok() => {}
            _ => group.is_sound = false,
        }
    }

    fn finish_group(&mut self) {
        let Some(group) = self.group.take() else { return };
        let count = group.frontier.len();
        let report = |finding, detail| Finding {
            finding,
            occurred_at: group.occurred_at,
            changeset_id: Some(group.id),
            seq: None,
            detail,
        };
        match &group.header {
            None if self.own.contains(&group.id) => {}
            None => self
                .findings
                .push(report("changeset removed", format!("Its {count} events are there, the changeset is not."))),
            Some((root, event_count)) => {
                let expected = u64::try_from(*event_count).unwrap_or(0);
                if group.is_sound && count != expected {
                    let finding = if count < expected { "event removed" } else { "event added" };
                    let detail = format!("The changeset has {count} events, its event_count is {event_count}.");
                    self.findings.push(report(finding, detail));
                } else if !group.is_sound || group.frontier.root().as_slice() != root {
                    let detail = format!(
                        "The checksums of its {count} events, in order, do not give the changeset's events_root."
                    );
                    self.findings.push(report("event altered", detail));
                }
            }
        }
    }
}

/// The entries of each ledger against its tiles and checkpoints, and against a checkpoint that somebody kept.
pub fn tree(kept: Option<&str>) -> Result<Vec<Finding>, Error> {
    let kept = kept.map(parse_kept).transpose()?;
    let mut ledgers = Vec::new();
    spi::for_each(
        Sees::AsCaller,
        "SELECT l.era, l.origin, audit.checksum_of(audit.canonical_ledger(l)) FROM audit.ledger AS l ORDER BY l.era",
        &[],
        |row| {
            ledgers.extend(row.int4(1).zip(row.text(2)).map(|(era, origin)| (era, origin, row.hash(3))));
            Ok(())
        },
    )?;
    let mut findings = Vec::new();
    let mut kept_found = false;
    for (era, origin, record) in &ledgers {
        let of_this = kept.as_ref().filter(|kept| kept.checkpoint.origin == *origin);
        kept_found |= of_this.is_some();
        let mut ledger = Ledger {
            era: *era,
            origin,
            record: *record,
            kept: of_this.map(|kept| (kept.checkpoint.size, kept.checkpoint.root)),
            tree: Tree::new(),
            checkpoints: 0,
            last: None,
            findings: Vec::new(),
        };
        ledger.check()?;
        findings.append(&mut ledger.findings);
    }
    if let Some(kept) = kept.filter(|_| !kept_found) {
        let detail = format!("There is no ledger {} here.", kept.checkpoint.origin);
        findings.push(general("ledger removed", detail));
    }
    spi::for_each(
        Sees::AsCaller,
        "SELECT era, what FROM (SELECT DISTINCT era, 'entries' FROM audit.entry UNION SELECT era, 'checkpoints'
              FROM audit.checkpoint UNION SELECT era, 'tiles' FROM audit.tile) AS there (era, what)
          WHERE NOT EXISTS (SELECT FROM audit.ledger AS l WHERE l.era = there.era) ORDER BY 1, 2",
        &[],
        |row| {
            let detail = format!(
                "There are {} of era {}, but no row in audit.ledger.",
                row.text(2).unwrap_or_default(),
                row.int4(1).unwrap_or(0)
            );
            findings.push(general("ledger removed", detail));
            Ok(())
        },
    )?;
    Ok(findings)
}

fn parse_kept(text: &str) -> Result<SignedCheckpoint, Error> {
    SignedCheckpoint::parse(text).map_err(|_| Error::Checkpoint {
        message: "malformed checkpoint".into(),
        hint: "Pass a note of audit.checkpoint as it is, or a line \"audit checkpoint: …\" of the server log.",
    })
}

struct Ledger<'a> {
    era: i32,
    origin: &'a str,
    /// Checksum of its first entry.
    record: Option<Hash>,
    kept: Option<(u64, Hash)>,
    tree: Tree,
    checkpoints: u64,
    /// Size and time of the last checkpoint.
    last: Option<(u64, String)>,
    findings: Vec<Finding>,
}

mod column {
    pub const INDEX: usize = 1;
    pub const RELATION_ID: usize = 2;
    pub const CHANGESET_ID: usize = 3;
    pub const CHECKSUM: usize = 4;
    pub const TREE_SIZE: usize = 5;
    pub const ROOT_HASH: usize = 6;
    pub const KEY: usize = 7;
    pub const NOTE: usize = 8;
    pub const CREATED_AT: usize = 9;
    pub const SEAL: usize = 10;
}

impl Ledger<'_> {
    fn check(&mut self) -> Result<(), Error> {
        self.check_kept();
        let mut is_broken = false;
        spi::for_each(
            Sees::AsCaller,
            "SELECT e.index, e.relation_id, e.changeset_id, e.checksum, k.tree_size, k.root_hash, k.key, k.note,
                    k.created_at::text,
                    CASE WHEN k.tree_size IS NOT NULL THEN audit.checksum_of(audit.canonical_seal(
                        $2, k.tree_size, k.created_at, k.sealed_below, k.next_xid, k.key)) END
               FROM audit.entry AS e
               LEFT JOIN audit.checkpoint AS k ON k.era = e.era AND k.tree_size = e.index + 1
              WHERE e.era = $1 ORDER BY e.index",
            &[Arg::Int4(self.era), Arg::Text(Some(self.origin.as_bytes()))],
            |row| {
                if !is_broken {
                    is_broken = !self.take(row)?;
                }
                Ok(())
            },
        )?;
        if !is_broken {
            self.check_end()?;
        }
        self.check_cosignatures()?;
        let last = match &self.last {
            None => "no checkpoint".into(),
            Some((size, time)) => format!("{} checkpoints, the last of {size} entries at {time}", self.checkpoints),
        };
        report::notice(format!("audit.verify: ledger {}: {} entries, {last}", self.origin, self.tree.size()));
        Ok(())
    }

    fn report(&mut self, finding: &'static str, row: Option<&Row>, detail: String) {
        let changeset_id = row.and_then(|row| row.uuid(column::CHANGESET_ID));
        let occurred_at = changeset_id.map(|id| audit_core::uuid7::unix_us(&id) - crate::pg::session::unix_usecs(0));
        self.findings.push(Finding { finding, occurred_at, changeset_id, seq: None, detail });
    }

    /// Whether the tree can go on.
    fn take(&mut self, row: &Row) -> Result<bool, Error> {
        let expected = self.tree.size();
        let found = row.int8(column::INDEX).zip(row.hash(column::CHECKSUM));
        let Some((_, checksum)) = found.filter(|(index, _)| u64::try_from(*index) == Ok(expected)) else {
            let detail = format!("Entry {expected} of ledger {} is not there, or not as it should be.", self.origin);
            self.report("entry removed", None, detail);
            return Ok(false);
        };
        let is_own = row.int4(column::RELATION_ID).is_none() && row.uuid(column::CHANGESET_ID).is_none();
        let seals = row.int8(column::TREE_SIZE).is_some();
        if expected == 0 && self.record != Some(checksum) {
            let detail = "The row in audit.ledger, or the last checkpoint of the ledger before, is not what the first entry says.";
            self.report("ledger altered", None, format!("{detail} Ledger {}.", self.origin));
        }
        if expected > 0 && is_own && !seals {
            let detail = format!("The checkpoint of {} entries of ledger {} is not there.", expected + 1, self.origin);
            self.report("checkpoint removed", None, detail);
        }
        if seals && (!is_own || row.hash(column::SEAL) != Some(checksum)) {
            let detail = format!(
                "The row of {} entries of ledger {} is not what its seal, the last entry under it, says.",
                expected + 1,
                self.origin
            );
            self.report("checkpoint altered", None, detail);
        }
        let mut complete = Vec::new();
        self.tree.push(&checksum, |tile| {
            complete.push(tile);
            Ok::<(), Error>(())
        })?;
        for tile in &complete {
            self.check_tile(tile)?;
        }
        progress(self.tree.size(), "entries");
        if seals {
            self.check_checkpoint(row);
        }
        self.check_kept();
        Ok(true)
    }

    fn check_tile(&mut self, tile: &CompleteTile) -> Result<(), Error> {
        let stored = spi::first(
            Sees::AsCaller,
            "SELECT root, hashes FROM audit.tile WHERE era = $1 AND level = $2 AND index = $3",
            &[Arg::Int4(self.era), Arg::Int4(tile.level as i32), Arg::Int8(tile.index as i64)],
            |row| (row.bytes(1).unwrap_or_default(), row.bytes(2).unwrap_or_default()),
        )?;
        let path = audit_ledger::tiles::path(tile.level as u8, tile.index, 256);
        let Some((root, hashes)) = stored else {
            self.report("tile removed", None, format!("{path} of ledger {} is not there.", self.origin));
            return Ok(());
        };
        let differs = hashes.chunks(32).zip(&tile.hashes).position(|(stored, hash)| stored != hash);
        if let Some(place) = differs {
            let first = (tile.index * 256 + place as u64) << (8 * tile.level);
            let detail =
                format!("{path} of ledger {} and the entries from {first} on do not fit together.", self.origin);
            let finding = spi::first(
                Sees::AsCaller,
                "SELECT changeset_id FROM audit.entry WHERE era = $1 AND index = $2",
                &[Arg::Int4(self.era), Arg::Int8(first as i64)],
                |row| row.uuid(1),
            )?;
            self.report("tile altered", None, detail);
            if let (0, Some(Some(id)), Some(last)) = (tile.level, finding, self.findings.last_mut()) {
                last.changeset_id = Some(id);
                last.occurred_at = Some(audit_core::uuid7::unix_us(&id) - crate::pg::session::unix_usecs(0));
            }
        } else if root != tile.root || hashes.len() != 32 * tile.hashes.len() {
            self.report("tile altered", None, format!("{path} of ledger {} is not what it should be.", self.origin));
        }
        Ok(())
    }

    fn check_checkpoint(&mut self, row: &Row) {
        self.checkpoints += 1;
        let (size, root) = (self.tree.size(), self.tree.root());
        self.last = Some((size, row.text(column::CREATED_AT).unwrap_or_default()));
        let what = format!("the checkpoint of {size} entries of ledger {}", self.origin);
        if row.hash(column::ROOT_HASH) != Some(root) {
            let detail = format!("The entries give the root {}, not that of {what}.", encode(&root));
            self.report("root altered", None, detail);
        }
        let text = row.text(column::NOTE).unwrap_or_default();
        let problem = match SignedCheckpoint::parse(&text) {
            Err(_) => Some("is malformed".to_owned()),
            // Nothing but the three lines and signatures, and these as they were written.
            Ok(note) if note.text() != text || note.checkpoint.body().as_deref() != Ok(note.body()) => {
                Some("is malformed".to_owned())
            }
            Ok(note) if note.checkpoint.origin != self.origin || note.checkpoint.size != size => {
                Some("is of another ledger or size".to_owned())
            }
            Ok(note) if note.checkpoint.root != root => Some("has another root than the entries give".to_owned()),
            Ok(note) => match row.text(column::KEY) {
                None => note.is_signed().then(|| "is signed, but was not when it was sealed".to_owned()),
                Some(key) => note.verify(&[key]).err().map(|error| format!("is badly signed: {error}")),
            },
        };
        if let Some(problem) = problem {
            self.report("checkpoint altered", None, format!("The note of {what} {problem}."));
        }
    }

    /// Called at each size of the tree.
    fn check_kept(&mut self) {
        let Some((size, root)) = self.kept.filter(|(size, _)| *size == self.tree.size()) else { return };
        self.kept = None;
        if root != self.tree.root() {
            let detail = format!(
                "The first {size} entries of ledger {} are not those that the checkpoint given was made of: history was rewritten.",
                self.origin
            );
            self.report("checkpoint inconsistent", None, detail);
        }
    }

    fn check_end(&mut self) -> Result<(), Error> {
        let size = self.tree.size();
        if let Some((kept, _)) = self.kept {
            let detail = format!(
                "The checkpoint given is of {kept} entries, ledger {} has {size}: the newest were removed, or an older state was put back.",
                self.origin
            );
            self.report("checkpoint inconsistent", None, detail);
        }
        let sealed = self.last.as_ref().map_or(0, |(size, _)| *size);
        if sealed != size {
            let detail = format!("Ledger {} has {size} entries, its last checkpoint is of {sealed}.", self.origin);
            self.report("entry added", None, detail);
        }
        let mut beyond = Vec::new();
        spi::for_each(
            Sees::AsCaller,
            "SELECT tree_size FROM audit.checkpoint WHERE era = $1 AND (tree_size > $2 OR tree_size < 1) ORDER BY 1",
            &[Arg::Int4(self.era), Arg::Int8(size as i64)],
            |row| {
                beyond.extend(row.int8(1));
                Ok(())
            },
        )?;
        for checkpoint in beyond {
            let detail =
                format!("Ledger {} has a checkpoint of {checkpoint} entries, but {size} entries.", self.origin);
            self.report("entry removed", None, detail);
        }
        let mut added = Vec::new();
        spi::for_each(
            Sees::AsCaller,
            "SELECT level, index FROM audit.tile
              WHERE era = $1 AND (level NOT BETWEEN 0 AND 7 OR index < 0 OR index + 1 > $2 >> (8 * (level + 1))) ORDER BY 1, 2",
            &[Arg::Int4(self.era), Arg::Int8(size as i64)],
            |row| {
                added.extend(row.int4(1).zip(row.int8(2)));
                Ok(())
            },
        )?;
        for (level, index) in added {
            let detail = format!("Ledger {} has no tile {index} of level {level}.", self.origin);
            self.report("tile added", None, detail);
        }
        Ok(())
    }

    fn check_cosignatures(&mut self) -> Result<(), Error> {
        let mut bad = Vec::new();
        spi::for_each(
            Sees::AsCaller,
            "SELECT c.tree_size, c.key, c.line, k.note FROM audit.cosignature AS c
               LEFT JOIN audit.checkpoint AS k ON k.era = c.era AND k.tree_size = c.tree_size
              WHERE c.era = $1 ORDER BY 1, 2",
            &[Arg::Int4(self.era)],
            |row| {
                let (key, line) = (row.text(2).unwrap_or_default(), row.text(3).unwrap_or_default());
                let holds = row.text(4).and_then(|note| SignedCheckpoint::parse(&note).ok()).is_some_and(|note| {
                    let cosigned = SignedCheckpoint::parse(&format!("{}\n{line}", note.body()));
                    cosigned.is_ok_and(|cosigned| cosigned.verify(std::slice::from_ref(&key)).is_ok())
                });
                if !holds {
                    bad.push(format!(
                        "The cosignature by {key} on {} entries of ledger {} does not hold.",
                        row.int8(1).unwrap_or(0),
                        self.origin
                    ));
                }
                Ok(())
            },
        )?;
        for detail in bad {
            self.report("cosignature altered", None, detail);
        }
        Ok(())
    }
}
