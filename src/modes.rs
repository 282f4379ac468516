//! Modes of audited tables: what is done with a change where it is not simply recorded with it.
//!
//! Sampling is decided once per transaction, by one number that all its tables are measured against: a transaction that
//! is recorded for one table is recorded for all of that rate, so that what is recorded fits together.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys::Oid;

use crate::capture::{self, Change, Route};
use crate::deferred;
use crate::error::Error;
use crate::layouts::Layout;
use crate::pg::session;
use crate::pg::shmem::{self, Counter};
use crate::transaction::{self, End, Event};

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
    capture::row::<ByMode>(layout, change)
}

/// Records as the table's mode has it that all rows went.
pub fn truncate(layout: &Layout) -> Result<(), Error> {
    capture::truncate::<ByMode>(layout)
}

struct ByMode;

impl Route for ByMode {
    fn takes(layout: &Layout) -> Result<bool, Error> {
        match layout.policy.mode {
            Mode::Sync | Mode::Async => Ok(true),
            Mode::Sampled(rate) => {
                let takes = draw()? < rate;
                if !takes {
                    skipped(layout.oid);
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
        match layout.policy.mode {
            Mode::Async => deferred::record(layout, event),
            Mode::Sync | Mode::Sampled(_) => transaction::record(event),
        }
    }
}

/// Changes of a table that a sub-transaction did not record.
struct Skipped {
    subtransaction: u32,
    table: Oid,
    count: u64,
}

thread_local! {
    /// This transaction's number, from 0 to below 1.
    static DRAWN: Cell<Option<f64>> = const { Cell::new(None) };
    static SKIPPED: RefCell<Vec<Skipped>> = const { RefCell::new(Vec::new()) };
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

fn skipped(table: Oid) {
    let subtransaction = session::current_subtransaction();
    SKIPPED.with_borrow_mut(|skipped| match entry(skipped, subtransaction, table) {
        Some(entry) => entry.count += 1,
        None => skipped.push(Skipped { subtransaction, table, count: 1 }),
    });
}

/// The last ones are those of the sub-transaction that is under way.
fn entry(skipped: &mut [Skipped], subtransaction: u32, table: Oid) -> Option<&mut Skipped> {
    let mut own = skipped.iter_mut().rev().take_while(|skipped| skipped.subtransaction == subtransaction);
    own.find(|skipped| skipped.table == table)
}

fn first_of(skipped: &[Skipped], subtransaction: u32) -> usize {
    skipped.iter().rposition(|skipped| skipped.subtransaction != subtransaction).map_or(0, |at| at + 1)
}

/// Nothing here can fail. What a prepared transaction skipped counts now: nobody would count it later.
pub fn transaction_ended(end: End) {
    if DRAWN.take().is_none() {
        return;
    }
    SKIPPED.with_borrow_mut(|skipped| {
        if end != End::Aborted
            && let Some((_, database)) = shmem::own_database()
        {
            database.count(Counter::SampledOut, skipped.iter().map(|skipped| skipped.count).sum());
        }
        skipped.clear();
    });
}

/// Nothing here can fail.
pub fn subtransaction_committed(id: u32, parent: u32) {
    SKIPPED.with_borrow_mut(|skipped| {
        let first = first_of(skipped, id);
        let mut kept = first;
        for at in first..skipped.len() {
            let Skipped { table, count, .. } = skipped[at];
            match entry(&mut skipped[..first], parent, table) {
                Some(entry) => entry.count += count,
                None => {
                    skipped[kept] = Skipped { subtransaction: parent, table, count };
                    kept += 1;
                }
            }
        }
        skipped.truncate(kept);
    });
}

/// Nothing here can fail.
pub fn subtransaction_aborted(id: u32) {
    SKIPPED.with_borrow_mut(|skipped| skipped.truncate(first_of(skipped, id)));
}
