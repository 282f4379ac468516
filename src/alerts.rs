//! Failure of auditing itself (PCI DSS 10.7.2, NIST AU-5): noted in shared memory by whoever meets it, announced by the
//! worker with NOTIFY, and recorded as one event when it is over, with how long it lasted and how often it struck.
//!
//! The server log has each of them anyway: the session's as the ERROR that refuses the change, the worker's as a line.

use std::ffi::CString;

use audit_core::canonical::{Operation, Origin, Status};
use audit_core::jsonb::{self, KeyBlock};

use crate::datetime;
use crate::error::Error;
use crate::pg::session;
use crate::pg::shmem::{self, Alert, Counter, Database, Presence};
use crate::pg::worker::{self, Failure, sqlstate_text};
use crate::queue::{Head, Kind};
use crate::transaction::{self, Event, Image};

const SECOND: i64 = 1_000_000;
/// It is over when nothing has failed for so long.
const QUIET: i64 = 2 * SECOND;
/// One that does not end is recorded as often as this.
const LONGEST: i64 = 60 * SECOND;
pub const CHANNEL: &std::ffi::CStr = c"audit_alert";
const ACTION: &[u8] = b"audit.write_failed";

/// An error that this session is about to raise.
pub fn note(error: &Error) {
    if !error.is_failure_of_auditing() || !session::has_client() {
        return;
    }
    if let Some((queue, database)) = shmem::own_database() {
        database.count(Counter::Errors, 1);
        database.raise_alert(error.sqlstate() as i32, error.to_string().as_bytes(), session::clock());
        queue.wake_launcher();
        queue.wake_worker(database);
    }
}

/// An error that kept the worker from writing. It counts itself.
pub fn worker_failed(database: &Database, failure: &Failure) {
    database.raise_alert(failure.code, failure.message.as_bytes(), session::clock());
}

/// When the worker has something to do about a database's alert.
pub fn due_at(database: &Database) -> Option<i64> {
    let alert = database.alert().filter(|_| database.presence() == Presence::Present)?;
    Some(if alert.is_announced { (alert.last + QUIET).min(alert.since + LONGEST) } else { alert.since })
}

/// Announces an alert, and records it once it is over.
pub fn write_due(database: &Database) -> Result<(), Failure> {
    let Some(alert) = database.alert().filter(|_| database.presence() == Presence::Present) else { return Ok(()) };
    if !alert.is_announced {
        // Once: that it fails, too, is no news.
        database.set_announced();
        announce("write_failed", &alert)?;
    }
    let now = session::clock();
    if due_at(database).is_none_or(|due| due > now) {
        return Ok(());
    }
    let write = || {
        session::check_version()?;
        record(&alert)
    };
    worker::in_transaction(c"write audit records", write, |()| {
        database.clear_alert(&alert, now);
        database.count(Counter::Events, 1);
    })?;
    announce("recovered", &alert)
}

fn announce(what: &str, alert: &Alert) -> Result<(), Failure> {
    let notify = || {
        let details = details(alert, Some(what.as_bytes()))?;
        if let Ok(payload) = CString::new(details.text()) {
            session::notify(CHANNEL, &payload);
        }
        Ok(())
    };
    worker::in_transaction(c"notify audit_alert", notify, |()| {})
}

fn record(alert: &Alert) -> Result<(), Error> {
    let details = details(alert, None)?;
    Head::of_nobody(Kind::Events, Origin::Isolated, None).begin()?;
    transaction::record(&Event {
        layout: None,
        operation: Operation::Application,
        status: Status::Error,
        command: 0,
        action: Some(ACTION),
        resource: None,
        resource_id: None,
        row_image: None,
        old_values: None,
        details: Some(Image::of(&details)),
    })
}

fn details(alert: &Alert, what: Option<&[u8]>) -> Result<jsonb::Writer, Error> {
    let sqlstate = sqlstate_text(alert.sqlstate);
    let message = session::valid_text(&alert.message);
    let (since, until) = (datetime::timestamp(alert.since, true), datetime::timestamp(alert.last, true));
    let mut texts: Vec<(&[u8], &[u8])> = vec![(b"sqlstate", sqlstate.as_bytes()), (b"message", &message)];
    texts.extend(what.map(|what| (&b"alert"[..], what)));
    texts.extend(since.as_ref().map(|time| (&b"since"[..], time.as_bytes())));
    texts.extend(until.as_ref().map(|time| (&b"until"[..], time.as_bytes())));
    let names: Vec<&[u8]> = texts.iter().map(|(name, _)| *name).chain([&b"failures"[..]]).collect();
    let (keys, order) = KeyBlock::new(&names)?;
    let mut json = jsonb::Writer::new();
    json.begin_object(&keys)?;
    for position in order {
        match texts.get(position) {
            Some((_, text)) => json.string(text)?,
            None => json.integer(i64::try_from(alert.count).unwrap_or(i64::MAX))?,
        }
    }
    json.end_object()?;
    Ok(json)
}
