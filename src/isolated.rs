//! Events that stay whatever becomes of the transaction that reports them: written and committed by the worker, in a
//! changeset of their own, before the call returns.
//!
//! Fail-open, this kind alone: what can't be written within `audit.isolated_timeout` is a WARNING to the caller, a line
//! in the server log and a number in audit.stats, never an error.

use audit_core::canonical::Origin;
use audit_core::message::Writer;

use crate::error::Error;
use crate::gucs;
use crate::pg::shmem::{self, Counter, Queue, Reserved, Ticket};
use crate::pg::{process, report, session};
use crate::queue::{self, Head, Kind};
use crate::transaction::Event;

const MILLISECOND: i64 = 1000;
/// How often to look whether there is room again.
const ROOM_WAIT_MS: i64 = 5;

/// What became of an event.
pub enum Outcome {
    Written,
    /// The worker has it, and could not write it yet.
    Late,
    Lost(&'static str),
}

/// Records an event through the worker; returns when it is committed, or after a WARNING.
pub fn log(event: &Event) -> Result<(), Error> {
    let queue = shmem::queue().ok_or(Error::NotPreloaded { what: "isolated events" })?;
    let database = queue.database(session::database());
    let count = |counter| {
        if let Some(database) = database {
            database.count(counter, 1);
        }
    };
    match write(queue, event)? {
        Outcome::Written => {}
        Outcome::Late => {
            count(Counter::IsolatedLate);
            report::warn(
                &Error::IsolatedEvent { what: "is not written yet" },
                "It is in the audit queue and will be written when the audit worker can.",
            );
        }
        Outcome::Lost(why) => {
            count(Counter::IsolatedLost);
            report::warn(&Error::IsolatedEvent { what: "is lost" }, &format!("The event could not be written: {why}."));
        }
    }
    Ok(())
}

/// Has the worker write and commit an event.
pub fn write(queue: Queue, event: &Event) -> Result<Outcome, Error> {
    let lost = |why| Ok(Outcome::Lost(why));
    let Some(database) = queue.database(session::database()) else {
        return lost("too many databases have messages in the audit queue");
    };
    if session::is_standby() {
        return lost("the server is in recovery");
    }
    let mut message = Writer::new();
    Head::of_session(Kind::Events, Origin::Isolated).put(&mut message)?;
    queue::put_event(event, &mut message)?;
    if message.bytes().len() > queue.max_message() {
        return lost("it is larger than audit.queue_size");
    }
    let Some(ticket) = queue.ticket() else { return lost("this process cannot wait for it") };
    let deadline = session::clock() + gucs::isolated_timeout_ms() * MILLISECOND;
    let Some(reserved) = wait_for_room(queue, message.bytes(), ticket, deadline) else {
        queue.wake_worker(database);
        return lost("the audit queue is full");
    };
    queue.publish(database, reserved);
    match wait_for_answer(queue, ticket, deadline) {
        Some(true) => Ok(Outcome::Written),
        Some(false) => lost("the audit worker could not write it"),
        None => Ok(Outcome::Late),
    }
}

fn wait_for_room(queue: Queue, message: &[u8], ticket: Ticket, deadline: i64) -> Option<Reserved> {
    loop {
        if let Some(reserved) = queue.reserve(message, Some(ticket)) {
            return Some(reserved);
        }
        if session::clock() >= deadline {
            return None;
        }
        process::wait(Some(ROOM_WAIT_MS));
    }
}

fn wait_for_answer(queue: Queue, ticket: Ticket, deadline: i64) -> Option<bool> {
    loop {
        if let Some(answer) = queue.answer(ticket) {
            return Some(answer);
        }
        let left = deadline - session::clock();
        if left <= 0 {
            return None;
        }
        process::wait(Some(left / MILLISECOND + 1));
    }
}
