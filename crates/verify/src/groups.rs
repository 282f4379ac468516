//! Each changeset with its events and its entry in a ledger: number, order and root of the events, and whether it is sealed
//! as it is. Changesets, entries and events come in one stream, sorted by changeset.

use anyhow::{Context, Result};
use audit_core::merkle::Frontier;
use audit_ledger::Hash;

use crate::check::{Id, Known, uuid};
use crate::copy::Row;
use crate::database::Database;
use crate::report::Report;

/// Of each changeset first its rows, then its entries, then its events.
const QUERY: &str = "
    SELECT id, kind, seq, occurred_at, checksum, era, xid, event_count, events_root, index FROM (
        SELECT c.id, 0::smallint AS kind, NULL::int AS seq, c.occurred_at, c.checksum, c.era, c.xid, c.event_count,
               c.events_root, NULL::bigint AS index
          FROM audit.changeset AS c
        UNION ALL
        SELECT e.changeset_id, 1, NULL, NULL, e.checksum, e.era, NULL, NULL, NULL, e.index
          FROM audit.entry AS e WHERE e.changeset_id IS NOT NULL
        UNION ALL
        SELECT e.changeset_id, 2, e.seq, e.occurred_at, e.checksum, NULL, NULL, NULL, NULL, NULL FROM audit.event AS e
    ) AS record ORDER BY id, kind, seq";

mod column {
    pub const ID: usize = 0;
    pub const KIND: usize = 1;
    pub const SEQ: usize = 2;
    pub const OCCURRED_AT: usize = 3;
    pub const CHECKSUM: usize = 4;
    pub const ERA: usize = 5;
    pub const XID: usize = 6;
    pub const EVENT_COUNT: usize = 7;
    pub const EVENTS_ROOT: usize = 8;
    pub const INDEX: usize = 9;
}

/// The row of a changeset.
struct Changeset {
    occurred_at: Option<i64>,
    checksum: Option<Hash>,
    era: i64,
    xid: u64,
    event_count: i64,
    events_root: Option<Hash>,
}

/// All that has one changeset's id.
struct Group {
    id: Id,
    changeset: Option<Changeset>,
    is_sealed: bool,
    frontier: Frontier,
    last_seq: Option<i64>,
    /// Its events are of other times than it.
    is_scattered: bool,
}

struct Check<'a> {
    known: &'a Known,
    report: Report,
    unsealed: u64,
}

pub fn check(database: &mut Database, known: &Known) -> Result<Report> {
    let mut check = Check { known, report: Report::new("db"), unsealed: 0 };
    let mut group: Option<Group> = None;
    let mut count = 0;
    let mut rows = database.open(QUERY)?;
    while let Some(row) = rows.next()? {
        known.count(&mut count);
        let Some(id) = row.uuid(column::ID) else { continue };
        if group.as_ref().is_none_or(|group| group.id != id)
            && let Some(done) = group.replace(Group::new(id))
        {
            check.finish(done);
        }
        if let Some(group) = &mut group {
            check.take(group, row)?;
        }
    }
    if let Some(done) = group {
        check.finish(done);
    }
    check.report.fact("not sealed yet", check.unsealed);
    Ok(check.report)
}

impl Group {
    fn new(id: Id) -> Self {
        Group { id, changeset: None, is_sealed: false, frontier: Frontier::new(), last_seq: None, is_scattered: false }
    }
}

impl Check<'_> {
    fn altered(&mut self, what: &str, id: &Id, seq: Option<i64>, detail: impl Into<String>) {
        self.report.finding(what, Some(&uuid(id)), seq, detail);
    }

    fn take(&mut self, group: &mut Group, row: &Row) -> Result<()> {
        let checksum = row.hash(column::CHECKSUM);
        match row.integer(column::KIND) {
            Some(0) => {
                let changeset = Changeset {
                    occurred_at: row.integer(column::OCCURRED_AT),
                    checksum,
                    era: row.integer(column::ERA).unwrap_or(0),
                    xid: row.unsigned(column::XID).unwrap_or(0),
                    event_count: row.integer(column::EVENT_COUNT).unwrap_or(-1),
                    events_root: row.hash(column::EVENTS_ROOT),
                };
                if group.changeset.replace(changeset).is_some() {
                    self.altered("changeset added", &group.id, None, "There is another changeset of the same id.");
                }
            }
            Some(1) => {
                if std::mem::replace(&mut group.is_sealed, true) {
                    self.altered("entry added", &group.id, None, "It is sealed twice.");
                }
                let era = row.integer(column::ERA).unwrap_or(0);
                let entry = format!("entry {} of {}", row.integer(column::INDEX).unwrap_or(0), self.ledger(era));
                match &group.changeset {
                    None => self.altered("changeset removed", &group.id, None, format!("It is {entry}.")),
                    Some(changeset) if checksum.is_none() || changeset.checksum != checksum => {
                        self.altered("changeset altered", &group.id, None, format!("{entry} has another checksum."));
                    }
                    Some(_) => {}
                }
            }
            _ => {
                let seq = row.integer(column::SEQ);
                if group.last_seq == seq {
                    self.altered("event added", &group.id, seq, "There is another event of the same number.");
                }
                group.last_seq = seq;
                let own = group.changeset.as_ref().map(|changeset| changeset.occurred_at);
                group.is_scattered |= own.is_some_and(|own| own != row.integer(column::OCCURRED_AT));
                group.frontier.push(&checksum.unwrap_or_default()).context("too many events in one changeset")?;
            }
        }
        Ok(())
    }

    fn ledger(&self, era: i64) -> String {
        match self.known.ledgers.iter().find(|ledger| i64::from(ledger.era) == era) {
            Some(ledger) => format!("ledger {}", ledger.origin),
            None => format!("a ledger of era {era}, which is not there"),
        }
    }

    fn finish(&mut self, group: Group) {
        let (id, count) = (group.id, group.frontier.len() as i64);
        let Some(changeset) = group.changeset else {
            if count > 0 {
                let detail = format!("Its {count} events are there, the changeset is not.");
                self.altered("changeset removed", &id, None, detail);
            }
            return;
        };
        let expected = changeset.event_count;
        if group.is_scattered {
            self.altered("event altered", &id, None, "Its events are of other times than it.");
        }
        if count != expected {
            let what = if count < expected { "event removed" } else { "event added" };
            self.altered(what, &id, None, format!("It has {count} events, its event_count is {expected}."));
        } else if Some(group.frontier.root()) != changeset.events_root {
            let detail = format!("The checksums of its {count} events, in order, do not give its events_root.");
            self.altered("event altered", &id, None, detail);
        }
        if !group.is_sealed {
            self.unsealed(&id, &changeset);
        }
    }

    /// A changeset that is in no ledger must be newer than what is sealed.
    fn unsealed(&mut self, id: &Id, changeset: &Changeset) {
        let newest = self.known.heads.keys().next_back().copied().unwrap_or(0);
        let below = self.known.heads.get(&changeset.era).copied().unwrap_or(0);
        if changeset.era < newest || changeset.xid < below {
            let detail = "It is in no ledger, but its transaction is older than what is sealed.";
            self.altered("changeset added", id, None, detail);
        } else {
            self.unsealed += 1;
        }
    }
}
