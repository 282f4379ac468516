//! `audit-verify db`: everything in the tables, against everything else.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use audit_core::merkle::Frontier;
use audit_ledger::Hash;
use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::proof::encode;
use audit_ledger::tree::Tree;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::copy::Row;
use crate::database::{Database, Ledger};
use crate::records::{
    CHANGESET, CHANGESET_COLUMNS, CHANGESET_EVENT_COUNT, CHANGESET_EVENTS_ROOT, EVENT, EVENT_COLUMNS, Field, LEDGER,
    LEDGER_COLUMNS, RELATION, RELATION_COLUMNS, canonical, checksum, plain_checksum, put,
};
use crate::report::Report;

type Id = [u8; 16];

pub fn database(dsn: &str, vkeys: &[String], kept: Vec<SignedCheckpoint>) -> Result<Report> {
    let database = Database::connect(dsn)?;
    let mut check = Check {
        database: &database,
        vkeys,
        report: Report::new("db"),
        erased: Erased::default(),
        changesets: HashMap::new(),
        layouts: HashMap::new(),
        sealed: HashSet::new(),
        heads: HashMap::new(),
    };
    check.erasures()?;
    check.layouts()?;
    check.changesets()?;
    check.events()?;
    check.roots()?;
    check.ledgers(kept)?;
    check.unsealed();
    Ok(check.report)
}

fn bar(total: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:12} {wide_bar} {human_pos}/{human_len} {eta}");
    let bar = ProgressBar::new(total).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn uuid(id: &Id) -> String {
    String::from_utf8_lossy(&audit_core::hex::uuid(id)).into_owned()
}

/// What is known of a changeset once its row was read.
struct Changeset {
    era: i64,
    xid: u64,
    event_count: i64,
    events_root: Vec<u8>,
    checksum: Hash,
    has_events: bool,
}

/// What erasures name: the records, and the checksum of what remains of each.
#[derive(Default)]
struct Erased {
    events: HashMap<(String, String), (String, String)>,
    changesets: HashMap<String, (String, String)>,
}

struct Check<'a> {
    database: &'a Database,
    vkeys: &'a [String],
    report: Report,
    erased: Erased,
    changesets: HashMap<Id, Changeset>,
    layouts: HashMap<i64, Hash>,
    sealed: HashSet<Id>,
    /// Of each era with a checkpoint: sealed_below of the last.
    heads: HashMap<i64, u64>,
}

impl Check<'_> {
    fn altered(&mut self, what: &str, id: Option<&Id>, seq: Option<i64>, detail: &str) {
        let id = id.map(uuid);
        self.report.finding(what, id.as_deref(), seq, detail);
    }

    /// Reads what the erasures name. Whether they are what was written is checked with all other events.
    fn erasures(&mut self) -> Result<()> {
        let query = "SELECT e.changeset_id, e.seq, e.details FROM audit.event AS e JOIN audit.erasure AS i
              ON i.changeset_id = e.changeset_id AND i.seq = e.seq AND i.occurred_at = e.occurred_at
            WHERE e.action = 'audit.erased' AND e.salt IS NOT NULL";
        let erased = &mut self.erased;
        self.database.stream(query, |row| {
            let by = format!("{}/{}", row.text(0).unwrap_or_default(), row.text(1).unwrap_or_default());
            let Ok(details) = serde_json::from_slice::<Value>(row.bytes(2).unwrap_or_default()) else { return Ok(()) };
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
        })
    }

    fn layouts(&mut self) -> Result<()> {
        let mut text = Vec::new();
        let layouts = &mut self.layouts;
        self.database.stream(&format!("SELECT {RELATION_COLUMNS} FROM audit.relation AS r"), |row| {
            canonical("audit_ext/relation/1", RELATION, row, 0, &mut text);
            if let Some(id) = row.integer(0) {
                layouts.insert(id, plain_checksum(&text));
            }
            Ok(())
        })
    }

    fn changesets(&mut self) -> Result<()> {
        const SALT: usize = CHANGESET.len();
        const CHECKSUM: usize = SALT + 1;
        let query = format!("SELECT {CHANGESET_COLUMNS}, c.salt, encode(c.checksum, 'hex') FROM audit.changeset AS c");
        let bar = bar(self.database.estimate("changeset"), "changesets");
        let database = self.database;
        let mut text = Vec::new();
        let mut count = 0u64;
        database.stream(&query, |row| {
            bar.inc(1);
            count += 1;
            let Some(id) = row.uuid(0) else { return Ok(()) };
            canonical("audit_ext/changeset/1", CHANGESET, row, 0, &mut text);
            let stored = row.hash(CHECKSUM);
            match row.uuid(SALT) {
                Some(salt) if stored == Some(checksum(&salt, &text)) => {}
                Some(_) => {
                    self.altered("changeset altered", Some(&id), None, "Its content does not give its checksum.")
                }
                None => {
                    let named = self.erased.changesets.get(&uuid(&id)).cloned();
                    self.erased_record("changeset", &id, None, named, &text);
                }
            }
            let changeset = Changeset {
                era: row.integer(2).unwrap_or(0),
                xid: row.text(4).and_then(|xid| xid.parse().ok()).unwrap_or(0),
                event_count: row.integer(CHANGESET_EVENT_COUNT).unwrap_or(-1),
                events_root: row.hex(CHANGESET_EVENTS_ROOT).unwrap_or_default(),
                checksum: stored.unwrap_or_default(),
                has_events: false,
            };
            if self.changesets.insert(id, changeset).is_some() {
                self.altered("changeset added", Some(&id), None, "There is another changeset of the same id.");
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        self.report.fact("changesets", count);
        Ok(())
    }

    /// A record without its salt must be what an erasure says remains of it.
    fn erased_record(
        &mut self,
        what: &str,
        id: &Id,
        seq: Option<i64>,
        named: Option<(String, String)>,
        remaining: &[u8],
    ) {
        let hash: String = plain_checksum(remaining).iter().map(|byte| format!("{byte:02x}")).collect();
        match named {
            Some((expected, by)) if expected == hash => {
                let id = uuid(id);
                self.report.note(&format!("{what} erased"), Some(&id), seq, format!("Erased by event {by}."));
            }
            Some(_) => {
                let detail = "What remains of it is not what its erasure says.";
                self.altered(&format!("{what} altered"), Some(id), seq, detail);
            }
            None => {
                let detail = "Its salt is not there, and no erasure names it.";
                self.altered(&format!("{what} altered"), Some(id), seq, detail);
            }
        }
    }

    /// Each event's content against its checksum.
    fn events(&mut self) -> Result<()> {
        const SALT: usize = EVENT.len();
        const CHECKSUM: usize = SALT + 1;
        let query = format!(
            "SELECT {EVENT_COLUMNS}, e.salt, encode(e.checksum, 'hex')
               FROM audit.event AS e LEFT JOIN audit.relation AS r ON r.id = e.relation_id"
        );
        let bar = bar(self.database.estimate("event"), "events");
        let database = self.database;
        let mut text = Vec::new();
        let mut count = 0u64;
        database.stream(&query, |row| {
            count += 1;
            if count.is_multiple_of(1024) {
                bar.inc(1024);
            }
            let Some(id) = row.uuid(0) else { return Ok(()) };
            canonical("audit_ext/event/1", EVENT, row, 0, &mut text);
            match row.uuid(SALT) {
                Some(salt) if row.hash(CHECKSUM) == Some(checksum(&salt, &text)) => {}
                Some(_) => {
                    let detail = "Its content does not give its checksum.";
                    self.altered("event altered", Some(&id), row.integer(1), detail);
                }
                None => {
                    let key = (uuid(&id), row.text(1).unwrap_or_default().to_owned());
                    let named = self.erased.events.get(&key).cloned();
                    self.erased_record("event", &id, row.integer(1), named, &text);
                }
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        self.report.fact("events", count);
        Ok(())
    }

    /// The events of each changeset against its number of events and their root.
    fn roots(&mut self) -> Result<()> {
        let query = "SELECT changeset_id, seq, encode(checksum, 'hex') FROM audit.event ORDER BY occurred_at, changeset_id, seq";
        let database = self.database;
        let mut group: Option<(Id, Frontier, Option<i64>)> = None;
        database.stream(query, |row| {
            let Some(id) = row.uuid(0) else { return Ok(()) };
            if group.as_ref().is_none_or(|(current, ..)| *current != id) {
                if let Some((id, frontier, _)) = group.take() {
                    self.root(&id, &frontier);
                }
                group = Some((id, Frontier::new(), None));
            }
            if let Some((_, frontier, last)) = &mut group {
                let seq = row.integer(1);
                if *last == seq {
                    self.altered("event added", Some(&id), seq, "There is another event of the same number.");
                }
                *last = seq;
                frontier.push(&row.hash(2).unwrap_or_default()).context("too many events in one changeset")?;
            }
            Ok(())
        })?;
        if let Some((id, frontier, _)) = group {
            self.root(&id, &frontier);
        }
        let empty: Vec<Id> = self
            .changesets
            .iter()
            .filter(|(_, changeset)| !changeset.has_events && changeset.event_count != 0)
            .map(|(id, _)| *id)
            .collect();
        for id in empty {
            self.altered("event removed", Some(&id), None, "Its events are not there.");
        }
        Ok(())
    }

    fn root(&mut self, id: &Id, frontier: &Frontier) {
        let count = frontier.len() as i64;
        let Some(changeset) = self.changesets.get_mut(id) else {
            let detail = format!("Its {count} events are there, the changeset is not.");
            self.altered("changeset removed", Some(id), None, &detail);
            return;
        };
        if changeset.has_events {
            self.altered("event altered", Some(id), None, "Its events are of different times.");
            return;
        }
        changeset.has_events = true;
        let (expected, root) = (changeset.event_count, frontier.root() == changeset.events_root.as_slice());
        if count != expected {
            let what = if count < expected { "event removed" } else { "event added" };
            let detail = format!("It has {count} events, its event_count is {expected}.");
            self.altered(what, Some(id), None, &detail);
        } else if !root {
            let detail = format!("The checksums of its {count} events, in order, do not give its events_root.");
            self.altered("event altered", Some(id), None, &detail);
        }
    }

    fn ledgers(&mut self, mut kept: Vec<SignedCheckpoint>) -> Result<()> {
        let mut previous: Option<(String, u64, Hash)> = None;
        for ledger in self.database.ledgers()? {
            let record = self.ledger_record(&ledger, previous.as_ref())?;
            let (of_this, others) = kept.into_iter().partition(|kept| kept.checkpoint.origin == ledger.origin);
            kept = others;
            if let Some(head) = self.entries(&ledger, &record, of_this)? {
                previous = Some(head);
            }
        }
        for kept in kept {
            let detail = format!("There is no ledger {} here.", kept.checkpoint.origin);
            self.report.finding("ledger removed", None, None, detail);
        }
        let orphans =
            "SELECT era FROM (SELECT DISTINCT era FROM audit.entry UNION SELECT era FROM audit.checkpoint UNION
            SELECT era FROM audit.tile) AS there WHERE era NOT IN (SELECT era FROM audit.ledger)";
        for era in self.database.rows(orphans, |row| row.integer(0))? {
            let detail = format!("There are entries, tiles or checkpoints of era {era}, but no row in audit.ledger.");
            self.report.finding("ledger removed", None, None, detail);
        }
        Ok(())
    }

    /// Checksum of a ledger's first entry.
    fn ledger_record(&self, ledger: &Ledger, previous: Option<&(String, u64, Hash)>) -> Result<Hash> {
        let mut text = Vec::new();
        let query = format!("SELECT {LEDGER_COLUMNS} FROM audit.ledger AS l WHERE l.era = {}", ledger.era);
        self.database.stream(&query, |row| {
            canonical("audit_ext/ledger/1", LEDGER, row, 0, &mut text);
            Ok(())
        })?;
        text.pop();
        match previous {
            None => (0..3).for_each(|_| put(Field::Raw, None, &mut text)),
            Some((origin, size, root)) => {
                put(Field::Text, Some(origin.as_bytes()), &mut text);
                put(Field::Raw, Some(size.to_string().as_bytes()), &mut text);
                put(Field::Text, Some(encode(root).as_bytes()), &mut text);
            }
        }
        text.push(b']');
        Ok(plain_checksum(&text))
    }

    /// The entries of a ledger against what they are entries of, its checkpoints and its tiles. Returns its last
    /// checkpoint.
    fn entries(
        &mut self,
        ledger: &Ledger,
        record: &Hash,
        mut kept: Vec<SignedCheckpoint>,
    ) -> Result<Option<(String, u64, Hash)>> {
        let query = format!(
            "SELECT e.index, e.relation_id, e.changeset_id, encode(e.checksum, 'hex'), k.tree_size,
                    (extract(epoch FROM k.created_at) * 1000000)::bigint, k.sealed_below, k.next_xid, k.key,
                    encode(k.root_hash, 'hex'), k.note
               FROM audit.entry AS e
               LEFT JOIN audit.checkpoint AS k ON k.era = e.era AND k.tree_size = e.index + 1
              WHERE e.era = {} ORDER BY e.index",
            ledger.era
        );
        let bar = bar(self.database.estimate("entry"), "entries");
        let database = self.database;
        let (mut tree, mut tiles, mut head, mut is_broken) = (Tree::new(), Vec::new(), None, false);
        self.kept(&tree, &mut kept);
        database.stream(&query, |row| {
            bar.inc(1);
            if is_broken {
                return Ok(());
            }
            let entry = row.hash(3).filter(|_| row.integer(0) == Some(tree.size() as i64));
            let Some(entry) = entry else {
                is_broken = true;
                let detail = format!("Entry {} of ledger {} is not there.", tree.size(), ledger.origin);
                self.report.finding("entry removed", None, None, detail);
                return Ok(());
            };
            self.entry(ledger, record, row, &entry);
            tree.push(&entry, |tile| {
                tiles.push(tile);
                Ok::<(), anyhow::Error>(())
            })?;
            if row.bytes(4).is_some() {
                self.checkpoint(ledger, row, &entry, &tree);
                let below = row.text(6).and_then(|xid| xid.parse().ok()).unwrap_or(0);
                self.heads.insert(ledger.era.into(), below);
                head = Some((ledger.origin.clone(), tree.size(), tree.root()));
            }
            self.kept(&tree, &mut kept);
            Ok(())
        })?;
        bar.finish_and_clear();
        if !is_broken {
            for kept in kept {
                let detail = format!(
                    "A checkpoint that was kept is of {} entries, ledger {} has {}: the newest were removed, or an older state was put back.",
                    kept.checkpoint.size,
                    ledger.origin,
                    tree.size()
                );
                self.report.finding("checkpoint inconsistent", None, None, detail);
            }
            if head.as_ref().map_or(0, |(_, size, _)| *size) != tree.size() {
                let detail = format!("Ledger {} has entries beyond its last checkpoint.", ledger.origin);
                self.report.finding("entry added", None, None, detail);
            }
            self.beyond(ledger, tree.size())?;
        }
        self.tiles(ledger, tiles, is_broken)?;
        self.cosignatures(ledger)?;
        self.report.fact(format!("ledger {}", ledger.origin), format!("{} entries", tree.size()));
        Ok(head)
    }

    fn entry(&mut self, ledger: &Ledger, record: &Hash, row: &Row, entry: &Hash) {
        let index = row.integer(0).unwrap_or(0);
        if row.bytes(1).is_some() && row.bytes(2).is_some() {
            let detail =
                format!("Entry {index} of ledger {} is said to be both a layout and a changeset.", ledger.origin);
            self.altered("entry altered", row.uuid(2).as_ref(), None, &detail);
        }
        if let Some(id) = row.uuid(2) {
            if !self.sealed.insert(id) {
                self.altered("entry added", Some(&id), None, "It is sealed twice.");
            }
            match self.changesets.get(&id).map(|changeset| changeset.checksum) {
                None => {
                    let detail = format!("It is entry {index} of ledger {}.", ledger.origin);
                    self.altered("changeset removed", Some(&id), None, &detail);
                }
                Some(checksum) if checksum != *entry => {
                    let detail = format!("Entry {index} of ledger {} has another checksum.", ledger.origin);
                    self.altered("changeset altered", Some(&id), None, &detail);
                }
                Some(_) => {}
            }
        } else if let Some(layout) = row.integer(1) {
            if self.layouts.get(&layout) != Some(entry) {
                let detail = format!("Layout {layout} is not what entry {index} of ledger {} says.", ledger.origin);
                self.report.finding("layout altered", None, None, detail);
            }
        } else if index == 0 {
            if entry != record {
                let detail = format!(
                    "The row of ledger {}, or the last checkpoint before it, is not what its first entry says.",
                    ledger.origin
                );
                self.report.finding("ledger altered", None, None, detail);
            }
        } else if row.bytes(4).is_none() {
            let detail = format!("The checkpoint of {} entries of ledger {} is not there.", index + 1, ledger.origin);
            self.report.finding("checkpoint removed", None, None, detail);
        }
    }

    fn checkpoint(&mut self, ledger: &Ledger, row: &Row, entry: &Hash, tree: &Tree) {
        let what = format!("the checkpoint of {} entries of ledger {}", tree.size(), ledger.origin);
        let mut seal = b"[\"audit_ext/seal/1\"".to_vec();
        put(Field::Text, Some(ledger.origin.as_bytes()), &mut seal);
        for (column, field) in [(4, Field::Raw), (5, Field::Raw), (6, Field::Text), (7, Field::Text), (8, Field::Text)]
        {
            put(field, row.bytes(column), &mut seal);
        }
        seal.push(b']');
        if plain_checksum(&seal) != *entry {
            self.report.finding(
                "checkpoint altered",
                None,
                None,
                format!("The row of {what} is not what its seal says."),
            );
        }
        if row.hash(9) != Some(tree.root()) {
            let detail = format!("The entries do not give the root of {what}.");
            self.report.finding("root altered", None, None, detail);
        }
        let text = row.text(10).unwrap_or_default();
        let problem = match SignedCheckpoint::parse(text) {
            Ok(note) if note.text() == text && note.checkpoint.body().as_deref() == Ok(note.body()) => {
                let own = &note.checkpoint;
                if own.origin != ledger.origin || own.size != tree.size() || own.root != tree.root() {
                    Some("says something else".to_owned())
                } else {
                    self.signature(&note, row.text(8))
                }
            }
            _ => Some("is malformed".to_owned()),
        };
        if let Some(problem) = problem {
            self.report.finding("checkpoint altered", None, None, format!("The note of {what} {problem}."));
        }
    }

    fn signature(&self, note: &SignedCheckpoint, key: Option<&str>) -> Option<String> {
        let own = match key {
            None => note.is_signed().then(|| "is signed, but was not when it was sealed".to_owned()),
            Some(key) => note.verify(&[key.to_owned()]).err().map(|error| format!("is badly signed: {error}")),
        };
        let known = || {
            let error = note.verify(self.vkeys).err()?;
            Some(format!("is not signed by a key that was given: {error}"))
        };
        own.or_else(|| if self.vkeys.is_empty() { None } else { known() })
    }

    fn kept(&mut self, tree: &Tree, kept: &mut Vec<SignedCheckpoint>) {
        let report = &mut self.report;
        kept.retain(|kept| {
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

    fn beyond(&mut self, ledger: &Ledger, size: u64) -> Result<()> {
        let query = format!(
            "SELECT tree_size FROM audit.checkpoint WHERE era = {} AND (tree_size > {size} OR tree_size < 1) ORDER BY 1",
            ledger.era
        );
        for checkpoint in self.database.rows(&query, |row| row.integer(0))? {
            let detail =
                format!("Ledger {} has a checkpoint of {checkpoint} entries, but {size} entries.", ledger.origin);
            self.report.finding("entry removed", None, None, detail);
        }
        Ok(())
    }

    fn tiles(&mut self, ledger: &Ledger, tiles: Vec<audit_ledger::tree::CompleteTile>, is_broken: bool) -> Result<()> {
        let mut expected: HashMap<(i64, i64), _> = tiles
            .into_iter()
            .map(|tile| ((tile.level as i64, tile.index as i64), (tile.root, tile.hashes.concat())))
            .collect();
        let query = format!(
            "SELECT level, index, encode(root, 'hex'), encode(hashes, 'hex') FROM audit.tile WHERE era = {} ORDER BY 1, 2",
            ledger.era
        );
        let database = self.database;
        database.stream(&query, |row| {
            let place = (row.integer(0).unwrap_or(-1), row.integer(1).unwrap_or(-1));
            let problem = match expected.remove(&place) {
                None if is_broken => None,
                None => Some("tile added"),
                Some((root, hashes)) => {
                    (row.hash(2) != Some(root) || row.hex(3) != Some(hashes)).then_some("tile altered")
                }
            };
            if let Some(problem) = problem {
                let detail = format!("Tile {} of level {} of ledger {}.", place.1, place.0, ledger.origin);
                self.report.finding(problem, None, None, detail);
            }
            Ok(())
        })?;
        for (level, index) in expected.into_keys() {
            let detail = format!("Tile {index} of level {level} of ledger {}.", ledger.origin);
            self.report.finding("tile removed", None, None, detail);
        }
        Ok(())
    }

    fn cosignatures(&mut self, ledger: &Ledger) -> Result<()> {
        let query = format!(
            "SELECT c.tree_size, c.key, c.line, k.note FROM audit.cosignature AS c
               LEFT JOIN audit.checkpoint AS k ON k.era = c.era AND k.tree_size = c.tree_size
              WHERE c.era = {} ORDER BY 1, 2",
            ledger.era
        );
        let database = self.database;
        database.stream(&query, |row| {
            let (key, line) = (row.text(1).unwrap_or_default(), row.text(2).unwrap_or_default());
            let holds = row.text(3).and_then(|note| SignedCheckpoint::parse(note).ok()).is_some_and(|note| {
                let cosigned = SignedCheckpoint::parse(&format!("{}\n{line}", note.body()));
                cosigned.is_ok_and(|cosigned| cosigned.verify(&[key.to_owned()]).is_ok())
            });
            if !holds {
                let detail =
                    format!("By {key}, on {} entries of ledger {}.", row.text(0).unwrap_or_default(), ledger.origin);
                self.report.finding("cosignature altered", None, None, detail);
            }
            Ok(())
        })
    }

    /// A changeset that is in no ledger must be newer than what is sealed.
    fn unsealed(&mut self) {
        let newest = self.heads.keys().copied().max().unwrap_or(0);
        let mut unsealed = 0u64;
        let mut added = Vec::new();
        for (id, changeset) in &self.changesets {
            if self.sealed.contains(id) {
                continue;
            }
            unsealed += 1;
            let below = self.heads.get(&changeset.era).copied().unwrap_or(0);
            if changeset.era < newest || changeset.xid < below {
                added.push(*id);
            }
        }
        added.sort_unstable();
        for id in &added {
            let detail = "It is in no ledger, but its transaction is older than what is sealed.";
            self.altered("changeset added", Some(id), None, detail);
        }
        self.report.fact("not sealed yet", unsealed - added.len() as u64);
    }
}
