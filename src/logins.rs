//! Logins to a database that has the extension: refused ones, and, if asked for, those that succeed and their end.
//!
//! A refused login fails in a process that is no session yet, and may not even have a place among the server's
//! processes: what it does here takes numbers of shared memory and nothing else. A flood of them is folded: the first few
//! of an address are events, the rest of a while is one event with a count.

use std::cell::Cell;

use audit_core::canonical::{Operation, Origin, Status};
use audit_core::fold::{Decision, Entry};
use audit_core::jsonb::{self, KeyBlock};
use audit_core::message::{Reader, Writer};

use crate::datetime;
use crate::error::Error;
use crate::gucs::{self, LogLogins};
use crate::pg::session;
use crate::pg::shmem::{self, Counter, Database, Presence, Queue};
use crate::pg::worker::sqlstate_text;
use crate::queue::{Head, Kind};
use crate::transaction::{self, Event, Image};

/// What a message tells of.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum What {
    Refused,
    Login,
    Logout,
}

const ACTIONS: [(What, &[u8]); 3] =
    [(What::Refused, b"auth.login_failed"), (What::Login, b"auth.login"), (What::Logout, b"auth.logout")];

/// What a client asked for before it was refused.
pub struct Asked<'a> {
    pub database: &'a [u8],
    pub role: &'a [u8],
    pub sqlstate: i32,
    pub reason: Option<&'a [u8]>,
}

thread_local! {
    static IS_LOGGED_IN: Cell<bool> = const { Cell::new(false) };
    static IS_TOLD: Cell<bool> = const { Cell::new(false) };
}

/// Whether this process's client has been let in.
pub fn is_logged_in() -> bool {
    IS_LOGGED_IN.get()
}

/// The server refuses a client.
pub fn refused(asked: &Asked) {
    // Not refused: the server is not there yet, or no longer.
    const STARTING_OR_STOPPING: &str = "57P03";
    if gucs::log_logins() == LogLogins::Off || sqlstate_text(asked.sqlstate) == STARTING_OR_STOPPING {
        return;
    }
    let Some(queue) = shmem::queue() else { return };
    let Some(database) = queue.named(asked.database).filter(|found| found.presence() == Presence::Present) else {
        return;
    };
    let client = session::client();
    let address = client.map(|(address, _)| address);
    let decision = match queue.note_login(database, address, asked.role, session::clock()) {
        Decision::Tell if tell_refused(queue, database, client, asked) => return,
        Decision::Tell => queue.fold_login(database, address, asked.role, session::clock()),
        decision => decision,
    };
    match decision {
        Decision::Lost => database.count(Counter::LoginsLost, 1),
        _ => database.count(Counter::LoginsFolded, 1),
    }
}

fn tell_refused(
    queue: Queue,
    database: &'static Database,
    client: Option<(std::net::IpAddr, u16)>,
    asked: &Asked,
) -> bool {
    let head = Head::of_nobody(Kind::Login, Origin::Login, client);
    tell(queue, database, &head, What::Refused, |out| {
        out.string(asked.role)?;
        out.u32(asked.sqlstate as u32)?;
        out.optional(asked.reason)
    })
}

fn tell(
    queue: Queue,
    database: &'static Database,
    head: &Head,
    what: What,
    rest: impl FnOnce(&mut Writer) -> audit_core::error::Result<()>,
) -> bool {
    let mut message = Writer::new();
    let is_whole = head.put(&mut message).is_ok() && message.u8(what as u8).is_ok() && rest(&mut message).is_ok();
    if is_whole && let Some(reserved) = queue.reserve(message.bytes(), None) {
        queue.publish(database, reserved);
        return true;
    }
    false
}

/// The first transaction of a session is committed: its client is in. Nothing here can fail.
pub fn logged_in() {
    if IS_LOGGED_IN.replace(true) {
        return;
    }
    let Some((queue, database)) = shmem::own_database() else { return };
    session::with_login_names(|name, _| queue.set_name(database, name));
    if gucs::log_logins() == LogLogins::All && database.presence() == Presence::Present {
        IS_TOLD.set(tell_session(queue, database, What::Login, 0));
        if !IS_TOLD.get() {
            database.count(Counter::LoginsLost, 1);
        }
    }
}

/// The session ends.
pub fn logged_out() {
    let Some((queue, database)) = shmem::own_database().filter(|_| IS_TOLD.replace(false)) else { return };
    let length = session::clock() - session::started_at();
    if !tell_session(queue, database, What::Logout, length) {
        database.count(Counter::LoginsLost, 1);
    }
}

fn tell_session(queue: Queue, database: &'static Database, what: What, length: i64) -> bool {
    let mut head = Head::of_failing_session(Kind::Login, Origin::Login);
    head.statement = None;
    let mut is_told = false;
    session::with_login_names(|_, role| {
        is_told = tell(queue, database, &head, what, |out| {
            out.string(role)?;
            out.u64(length as u64)
        });
    });
    is_told
}

/// Records what a message tells.
pub fn write(head: Head, message: &mut Reader) -> Result<(), Error> {
    let what = message.u8()?;
    let Some((what, action)) = ACTIONS.iter().find(|(known, _)| *known as u8 == what) else {
        return Err(audit_core::message::Malformed.into());
    };
    let role = session::valid_text(message.string()?);
    head.begin()?;
    if *what == What::Refused {
        let sqlstate = sqlstate_text(message.u32()? as i32);
        let reason = session::valid_text(message.optional()?.unwrap_or_default());
        let details = object(&[(b"sqlstate", Some(sqlstate.as_bytes())), (b"reason", Some(&reason))], None)?;
        return record(action, Status::Failure, &role, Some(&details));
    }
    let length = message.u64()? as i64;
    let details = match what {
        What::Logout => Some(object(&[], Some((b"session_ms", length / 1000)))?),
        _ => None,
    };
    record(action, Status::Success, &role, details.as_ref())
}

/// Records folded refusals as one event.
pub fn write_folded(entry: &Entry) -> Result<(), Error> {
    let address = match entry.address() {
        octets if octets.len() == 4 => <[u8; 4]>::try_from(octets).ok().map(Into::into),
        octets => <[u8; 16]>::try_from(octets).ok().map(Into::into),
    };
    Head::of_nobody(Kind::Login, Origin::Login, address.map(|address| (address, 0))).begin()?;
    let (first, last) = (datetime::timestamp(entry.first_at, true), datetime::timestamp(entry.last_at, true));
    let details = object(
        &[
            (b"first_at", first.as_ref().map(datetime::Text::as_bytes)),
            (b"last_at", last.as_ref().map(datetime::Text::as_bytes)),
        ],
        Some((b"count", i64::try_from(entry.count).unwrap_or(i64::MAX))),
    )?;
    record(b"auth.login_failed", Status::Failure, &session::valid_text(entry.name()), Some(&details))
}

fn record(action: &[u8], status: Status, role: &[u8], details: Option<&jsonb::Writer>) -> Result<(), Error> {
    transaction::record(&Event {
        layout: None,
        operation: Operation::Application,
        status,
        command: 0,
        action: Some(action),
        resource: Some(b"role"),
        resource_id: Some(role),
        row_image: None,
        old_values: None,
        details: details.map(Image::of),
    })
}

/// A JSON object of texts and a number.
fn object(texts: &[(&[u8], Option<&[u8]>)], number: Option<(&[u8], i64)>) -> Result<jsonb::Writer, Error> {
    let names: Vec<&[u8]> = texts.iter().map(|(name, _)| *name).chain(number.map(|(name, _)| name)).collect();
    let (keys, order) = KeyBlock::new(&names)?;
    let mut json = jsonb::Writer::new();
    json.begin_object(&keys)?;
    for position in order {
        match texts.get(position) {
            Some((_, Some(text))) => json.string(text)?,
            Some((_, None)) => json.null()?,
            None => json.integer(number.map_or(0, |(_, value)| value))?,
        }
    }
    json.end_object()?;
    Ok(json)
}
