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
    /// Sequence number of the event that records it, while its transaction is under way.
    recorded_as: Option<i32>,
}

thread_local! {
    static SUSPENSIONS: RefCell<Vec<Suspension>> = const { RefCell::new(Vec::new()) };
    static IS_LOGGED: Cell<bool> = const { Cell::new(false) };
}

/// Notes a change that is not recorded.
pub fn note(relation: Relation) {
    let resource = relation.resource();
    log_once(|| format!("audit capture is off: changes of {} are not recorded", String::from_utf8_lossy(&resource)));
    count(Some(resource));
}

/// Notes an application's event that is not recorded.
pub fn note_event() {
    log_once(|| "audit capture is off: events of the application are not recorded".into());
    count(None);
}

fn log_once(message: impl FnOnce() -> String) {
    if !IS_LOGGED.replace(true) {
        report::log(message(), "Turn audit.enabled on again.");
    }
}

fn count(table: Option<Vec<u8>>) {
    let now = session::clock();
    SUSPENSIONS.with_borrow_mut(|suspensions| {
        if suspensions.last().is_none_or(|last| last.recorded_as.is_some()) {
            suspensions.push(Suspension { since: now, until: now, changes: 0, tables: Vec::new(), recorded_as: None });
        }
        if let Some(last) = suspensions.last_mut() {
            last.until = now;
            last.changes += 1;
            last.tables.extend(table.filter(|table| last.tables.len() < MAX_TABLES && !last.tables.contains(table)));
        }
    });
}

/// Records what is not recorded yet. The caller has begun an event.
pub fn record() -> Result<(), Error> {
    while let Some((position, details)) = next_due()? {
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
            details: Some(Image::of(&details)),
        })?;
        SUSPENSIONS.with_borrow_mut(|suspensions| suspensions[position].recorded_as = Some(seq));
    }
    Ok(())
}

fn next_due() -> Result<Option<(usize, Writer)>, Error> {
    SUSPENSIONS.with_borrow(|suspensions| {
        let position = suspensions.iter().position(|suspension| suspension.recorded_as.is_none());
        position.map(|position| Ok((position, details(&suspensions[position])?))).transpose()
    })
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

/// Nothing here can fail. What a prepared transaction records may still be rolled back, so it is recorded once more.
pub fn transaction_ended(end: End) {
    IS_LOGGED.set(false);
    SUSPENSIONS.with_borrow_mut(|suspensions| {
        if end == End::Committed {
            suspensions.retain(|suspension| suspension.recorded_as.is_none());
        }
        suspensions.iter_mut().for_each(|suspension| suspension.recorded_as = None);
    });
}

/// Nothing here can fail.
pub fn rolled_back_to(next_seq: i32) {
    SUSPENSIONS.with_borrow_mut(|suspensions| {
        for suspension in suspensions.iter_mut() {
            suspension.recorded_as = suspension.recorded_as.filter(|seq| *seq < next_seq);
        }
    });
}
