//! Changes made while `audit.enabled` is off: remembered by the session, said in the server log once per transaction, and
//! recorded as the first event when it next records anything.

use std::cell::{Cell, RefCell};

use audit_core::canonical::{Operation, Status};
use audit_core::jsonb::{KeyBlock, Writer};

use crate::error::Error;
use crate::pg::relation::Relation;
use crate::pg::{report, session};
use crate::transaction::{self, End, Event, Image};

/// Name of the event's action.
pub const ACTION: &[u8] = b"audit.capture_suspended";

/// Tables named at most; the count goes on.
const MAX_TABLES: usize = 100;

struct Suspension {
    since: i64,
    until: i64,
    changes: u64,
    tables: Vec<Vec<u8>>,
}

thread_local! {
    static SUSPENSION: RefCell<Option<Suspension>> = const { RefCell::new(None) };
    static IS_LOGGED: Cell<bool> = const { Cell::new(false) };
    /// Sequence number of the event that records it, while its transaction is under way.
    static RECORDED_AS: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Notes a change that is not recorded.
pub fn note(relation: Relation) {
    let now = session::clock();
    let resource = relation.resource();
    if !IS_LOGGED.replace(true) {
        report::log(
            format!("audit capture is off: changes of {} are not recorded", String::from_utf8_lossy(&resource)),
            "Turn audit.enabled on again.",
        );
    }
    SUSPENSION.with_borrow_mut(|suspension| {
        let suspension =
            suspension.get_or_insert_with(|| Suspension { since: now, until: now, changes: 0, tables: Vec::new() });
        suspension.until = now;
        suspension.changes += 1;
        if suspension.tables.len() < MAX_TABLES && !suspension.tables.contains(&resource) {
            suspension.tables.push(resource);
        }
    });
}

/// Records the suspension, if there was one. The caller has begun an event.
pub fn record() -> Result<(), Error> {
    let is_due = RECORDED_AS.get().is_none() && SUSPENSION.with_borrow(|suspension| suspension.is_some());
    if !is_due {
        return Ok(());
    }
    let details = SUSPENSION.with_borrow(|suspension| suspension.as_ref().map(details)).transpose()?;
    let seq = transaction::next_seq();
    transaction::record(&Event {
        layout: None,
        operation: Operation::Application,
        status: Status::Success,
        command: session::current_command(),
        action: Some(ACTION),
        resource: None,
        resource_id: None,
        row_image: None,
        old_values: None,
        details: details.as_ref().map(Image::of),
    })?;
    RECORDED_AS.set(Some(seq));
    Ok(())
}


fn details(suspension: &Suspension) -> Result<Writer, Error> {
    let (keys, order) = KeyBlock::new(&[b"since", b"until", b"changes", b"tables"])?;
    let mut json = Writer::new();
    json.begin_object(&keys)?;
    for key in order {
        match key {
            0 => put_time(suspension.since, &mut json)?,
            1 => put_time(suspension.until, &mut json)?,
            2 => json.integer(i64::try_from(suspension.changes).unwrap_or(i64::MAX))?,
            _ => {
                json.begin_array(suspension.tables.len())?;
                for table in &suspension.tables {
                    json.string(table)?;
                }
                json.end_array()?;
            }
        }
    }
    json.end_object()?;
    Ok(json)
}

fn put_time(time: i64, json: &mut Writer) -> Result<(), Error> {
    match crate::datetime::timestamp(time, true) {
        Some(text) => json.string(text.as_bytes())?,
        None => json.null()?,
    }
    Ok(())
}

/// Nothing here can fail.
pub fn transaction_ended(end: End) {
    IS_LOGGED.set(false);
    if RECORDED_AS.take().is_some() && end != End::Aborted {
        SUSPENSION.with_borrow_mut(|suspension| *suspension = None);
    }
}

/// Nothing here can fail.
pub fn rolled_back_to(next_seq: i32) {
    if RECORDED_AS.get().is_some_and(|seq| seq >= next_seq) {
        RECORDED_AS.set(None);
    }
}
