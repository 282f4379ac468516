//! Modes of audited tables: what is done with a change where it is not simply recorded with it.
//!
//! Sampling is decided once per transaction, by one number that all its tables are measured against: a transaction that
//! is recorded for one table is recorded for all of that rate, so that what is recorded fits together.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use pgrx::pg_sys::Oid;

use crate::capture::{self, Change, Route};
use crate::error::Error;
use crate::layouts::Layout;
use crate::pg::session;
use crate::pg::shmem::{self, Counter};
use crate::transaction::{self, End, Event};
use crate::{deferred, gucs};

/// How a table is audited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mode {
    /// The record is written in the transaction of the change.
    #[default]
    Sync,
    /// It is written by the worker, after the commit.
    Async,
    /// As sync, for this share of the transactions.
    Sampled(f64),
}

impl Mode {
    /// As audit.enable is told.
    pub fn of_arguments(name: &str, sample_rate: f64) -> Result<Self, Error> {
        let refuse = |message: String, hint| Err(Error::InvalidOption { message, hint });
        match name {
            "sampled" if (0.0..=1.0).contains(&sample_rate) => Ok(Mode::Sampled(sample_rate)),
            "sampled" => refuse(
                "sample_rate must be between 0 and 1".into(),
                "It is the share of transactions that are recorded: 0.1 for one in ten.",
            ),
            "sync" if sample_rate == 1.0 => Ok(Mode::Sync),
            "async" if sample_rate == 1.0 => match shmem::queue() {
                Some(_) => Ok(Mode::Async),
                None => Err(Error::NotPreloaded { what: "tables in mode async" }),
            },
            "sync" | "async" => refuse(
                format!("sample_rate must be 1 in mode \"{name}\""),
                "This mode records every change; to record a share of them, choose mode sampled.",
            ),
            _ => refuse(format!("unknown audit mode \"{name}\""), "Modes are sync, async and sampled."),
        }
    }

    /// As audit.policy has it. What this version does not know is recorded in full.
    pub fn of_policy(name: &[u8], sample_rate: f64) -> Self {
        match name {
            b"sampled" => Mode::Sampled(sample_rate),
            b"async" => Mode::Async,
            _ => Mode::Sync,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Mode::Sync => "sync",
            Mode::Async => "async",
            Mode::Sampled(_) => "sampled",
        }
    }

    pub fn sample_rate(self) -> f64 {
        match self {
            Mode::Sampled(rate) => rate,
            Mode::Sync | Mode::Async => 1.0,
        }
    }
}

/// Records a row's change as the table's mode has it.
pub fn row(layout: &Layout, change: &Change) -> Result<(), Error> {
    timed(layout, || capture::row::<ByMode>(layout, change))
}

/// Records as the table's mode has it that all rows went.
pub fn truncate(layout: &Layout) -> Result<(), Error> {
    timed(layout, || capture::truncate::<ByMode>(layout))
}

fn timed(layout: &Layout, capture: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    if !gucs::track_timing() {
        return capture();
    }
    let begun_at = Instant::now();
    capture()?;
    let spent = nanoseconds(begun_at);
    tally(layout.oid, |tally| tally.nanoseconds += spent);
    Ok(())
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What is left to do before commit, with its time.
pub fn timed_commit(write: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    if !gucs::track_timing() {
        return write();
    }
    let begun_at = Instant::now();
    write()?;
    COMMIT_TIME.set(nanoseconds(begun_at));
    Ok(())
}

struct ByMode;

impl Route for ByMode {
    fn takes(layout: &Layout) -> Result<bool, Error> {
        match layout.policy.mode {
            Mode::Sync | Mode::Async => Ok(true),
            Mode::Sampled(rate) => {
                let takes = draw()? < rate;
                if !takes {
                    tally(layout.oid, |tally| tally.sampled_out += 1);
                }
                Ok(takes)
            }
        }
    }

    fn sample_rate(layout: &Layout) -> Option<f64> {
        match layout.policy.mode {
            Mode::Sampled(rate) => Some(rate),
            Mode::Sync | Mode::Async => None,
        }
    }

    fn record(layout: &Layout, event: &Event) -> Result<(), Error> {
        if layout.policy.mode != Mode::Sync || gucs::track_timing() {
            tally(layout.oid, |tally| tally.events += 1);
        }
        match layout.policy.mode {
            Mode::Async => deferred::record(layout, event),
            Mode::Sync | Mode::Sampled(_) => transaction::record(event),
        }
    }
}

/// What a sub-transaction did to a table.
#[derive(Clone, Copy)]
struct Tally {
    subtransaction: u32,
    table: Oid,
    events: u64,
    sampled_out: u64,
    nanoseconds: u64,
}

thread_local! {
    /// This transaction's number, from 0 to below 1.
    static DRAWN: Cell<Option<f64>> = const { Cell::new(None) };
    static TALLIES: RefCell<Vec<Tally>> = const { RefCell::new(Vec::new()) };
    static COMMIT_TIME: Cell<u64> = const { Cell::new(0) };
}

fn draw() -> Result<f64, Error> {
    if let Some(drawn) = DRAWN.get() {
        return Ok(drawn);
    }
    const DIGITS: u32 = f64::MANTISSA_DIGITS;
    let [.., a, b, c, d, e, f, g, h] = transaction::random_salt()?;
    let random = u64::from_ne_bytes([a, b, c, d, e, f, g, h]) >> (u64::BITS - DIGITS);
    let drawn = random as f64 / (1_u64 << DIGITS) as f64;
    DRAWN.set(Some(drawn));
    Ok(drawn)
}

fn tally(table: Oid, add: impl FnOnce(&mut Tally)) {
    let subtransaction = session::current_subtransaction();
    TALLIES.with_borrow_mut(|tallies| {
        if let Some(known) = entry(tallies, subtransaction, table) {
            return add(known);
        }
        let mut new = Tally { subtransaction, table, events: 0, sampled_out: 0, nanoseconds: 0 };
        add(&mut new);
        tallies.push(new);
    });
}

/// The last ones are those of the sub-transaction that is under way.
fn entry(tallies: &mut [Tally], subtransaction: u32, table: Oid) -> Option<&mut Tally> {
    let mut own = tallies.iter_mut().rev().take_while(|tally| tally.subtransaction == subtransaction);
    own.find(|tally| tally.table == table)
}

fn first_of(tallies: &[Tally], subtransaction: u32) -> usize {
    tallies.iter().rposition(|tally| tally.subtransaction != subtransaction).map_or(0, |at| at + 1)
}

/// Nothing here can fail. What a prepared transaction did counts now: nobody would count it later.
pub fn transaction_ended(end: End) {
    DRAWN.set(None);
    let commit_time = COMMIT_TIME.take();
    TALLIES.with_borrow_mut(|tallies| {
        if (!tallies.is_empty() || commit_time > 0)
            && end != End::Aborted
            && let Some((queue, database)) = shmem::own_database()
        {
            let nanoseconds = commit_time + tallies.iter().map(|tally| tally.nanoseconds).sum::<u64>();
            database.count(Counter::SessionTime, nanoseconds / 1000);
            database.count(Counter::SampledOut, tallies.iter().map(|tally| tally.sampled_out).sum());
            for tally in tallies.iter() {
                let numbers = [tally.events, tally.sampled_out, tally.nanoseconds];
                queue.count_table(database, tally.table.to_u32(), numbers);
            }
        }
        tallies.clear();
    });
}

/// Nothing here can fail.
pub fn subtransaction_committed(id: u32, parent: u32) {
    TALLIES.with_borrow_mut(|tallies| {
        let first = first_of(tallies, id);
        let mut kept = first;
        for at in first..tallies.len() {
            let own = tallies[at];
            match entry(&mut tallies[..first], parent, own.table) {
                Some(entry) => {
                    entry.events += own.events;
                    entry.sampled_out += own.sampled_out;
                    entry.nanoseconds += own.nanoseconds;
                }
                None => {
                    tallies[kept] = Tally { subtransaction: parent, ..own };
                    kept += 1;
                }
            }
        }
        tallies.truncate(kept);
    });
}

/// Nothing here can fail.
pub fn subtransaction_aborted(id: u32) {
    TALLIES.with_borrow_mut(|tallies| tallies.truncate(first_of(tallies, id)));
}
