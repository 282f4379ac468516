//! The launcher and the workers: who writes what is in the queue.
//!
//! The launcher runs as long as the server, without a database. When a database has messages it has a worker started
//! for it. A worker writes until nothing is left, lingers for a moment, and leaves: so that an idle database has no
//! connection that would keep it from being dropped, renamed or copied. Told to end, a worker first writes what is
//! there; when the whole server ends, also what the last sessions leave.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

use audit_core::fold::{Decision, Entry};
use pgrx::pg_sys::Oid;

use crate::error::Error;
use crate::pg::catalog::DatabaseRow;
use crate::pg::shmem::{self, Counter, Database, Departure, Message, Presence, Queue};
use crate::pg::worker::{self, Failure, Job, Started};
use crate::pg::{catalog, process, report, session};
use crate::rounds::Rounds;
use crate::{alerts, deferred, gucs, logins, queue, transaction};

const MILLISECOND: i64 = 1000;
const SECOND: i64 = 1000 * MILLISECOND;
/// How long a worker stays with nothing to do. DROP DATABASE waits five seconds for other sessions to leave.
const LINGER_MS: i64 = 1000;
/// A worker that was told to end waits so long for the launcher's word that the whole server ends.
const SHUTDOWN_WORD_MS: i64 = 200;
/// And then so long for the last sessions.
const SHUTDOWN_WAIT: i64 = 10 * SECOND;
const MAX_BACKOFF: i64 = 60 * SECOND;
/// One transaction of a worker: large enough that its commit costs little, small enough that its end is near.
const BATCH_MESSAGES: usize = 500;
const BATCH_BYTES: usize = 1024 * 1024;

/// What the launcher knows of a database's worker.
#[derive(Default)]
struct Attempt {
    started: Option<Started>,
    failures: u32,
    not_before: i64,
}

/// What the launcher knows.
struct Launcher {
    queue: Queue,
    /// Databases not yet looked into.
    to_visit: Vec<Oid>,
    attempts: HashMap<u32, Attempt>,
    /// The last worker that was asked for could not be had.
    is_starved: bool,
}

/// The launcher's life.
pub fn launcher() {
    let (Some(queue), Some(own)) = (shmem::queue(), process::own()) else { return };
    worker::at_exit(launcher_left);
    queue.set_shutting_down(false);
    queue.set_launcher(Some(own));
    let mut launcher = Launcher { queue, to_visit: connectable(), attempts: HashMap::new(), is_starved: false };
    let mut rounds = [Rounds::of(Job::Maintenance), Rounds::of(Job::Sealing)];
    while !worker::is_told_to_end() {
        worker::reload_if_asked();
        let due = rounds.iter_mut().filter_map(Rounds::start_next).min();
        let wait_until = [launcher.start_workers(), due].into_iter().flatten().min();
        let now = session::clock();
        process::wait(wait_until.map(|until| ((until - now) / MILLISECOND + 1).max(1)));
    }
    queue.set_shutting_down(true);
    queue.databases().filter(|database| database.has_worker()).for_each(|database| queue.wake_worker(database));
}

#[pgrx::pg_guard]
extern "C-unwind" fn launcher_left(_code: i32, _argument: pgrx::pg_sys::Datum) {
    if let Some(queue) = shmem::queue() {
        queue.set_launcher(None);
    }
}

/// All databases. What is kept of them learns their names, or that they are gone.
fn list_databases() -> Result<Vec<DatabaseRow>, Failure> {
    worker::in_transaction(c"list databases", catalog::databases, |databases| {
        let Some(queue) = shmem::queue() else { return };
        for kept in queue.databases() {
            match databases.iter().find(|found| found.oid == kept.oid()) {
                Some(found) => queue.set_name(kept, &found.name),
                None => queue.set_name(kept, b""),
            }
        }
    })
}

/// Databases that may have the extension.
pub fn connectable() -> Vec<Oid> {
    let databases = list_databases().unwrap_or_default();
    databases
        .into_iter()
        .filter(|found| found.allows_connections && !found.is_template)
        .map(|found| found.oid)
        .collect()
}

impl Launcher {
    /// Starts what is due. Returns when to look again, if nothing wakes the launcher before.
    fn start_workers(&mut self) -> Option<i64> {
        for attempt in self.attempts.values_mut() {
            attempt.started = attempt.started.take().filter(|started| !started.has_ended());
        }
        // One at a time, and only while nothing else is to be done.
        let is_busy = self.queue.databases().any(|database| database.presence() == Presence::Unknown);
        if !is_busy && let Some(oid) = self.to_visit.pop() {
            self.queue.database(oid);
        }
        let now = session::clock();
        let queue = self.queue;
        queue.databases().filter_map(|database| self.start_worker(database, now)).min()
    }

    /// Starts the database's worker if it is due, or says when to look again.
    fn start_worker(&mut self, database: &'static Database, now: i64) -> Option<i64> {
        let oid = database.oid();
        let later = [self.queue.folded_due_at(database), alerts::due_at(database)].into_iter().flatten().min();
        let is_due = database.presence() == Presence::Unknown
            || !self.queue.is_empty(database)
            || later.is_some_and(|at| at <= now);
        let attempt = self.attempts.entry(oid.to_u32()).or_default();
        if !is_due {
            return later;
        }
        if attempt.started.is_some() || database.has_worker() {
            return None;
        }
        match database.departure() {
            Departure::Early => {
                database.set_departure(Departure::None);
                database.count(Counter::Restarts, 1);
                attempt.failures += 1;
                attempt.not_before = now + (SECOND << attempt.failures.min(6)).min(MAX_BACKOFF) - SECOND;
            }
            Departure::Idle => attempt.failures = 0,
            Departure::None => {}
        }
        if now < attempt.not_before {
            return Some(attempt.not_before);
        }
        match startable(oid) {
            Ok(true) => attempt.started = worker::start(Job::Queue, oid),
            Ok(false) => {
                give_up(self.queue, database);
                self.attempts.remove(&oid.to_u32());
                return None;
            }
            // It allows no connections, or the catalog could not be read.
            Err(()) => {
                attempt.not_before = now + MAX_BACKOFF;
                return Some(attempt.not_before);
            }
        }
        if attempt.started.is_some() {
            self.is_starved = false;
            return None;
        }
        attempt.not_before = now + 5 * SECOND;
        let again = attempt.not_before;
        if !std::mem::replace(&mut self.is_starved, true) {
            let hint = "Raise max_worker_processes.";
            report::log("no background worker is free to write the audit queue".into(), hint);
        }
        Some(again)
    }
}

/// Whether a worker can connect; an error for not now.
fn startable(oid: Oid) -> Result<bool, ()> {
    let databases = list_databases().map_err(|_| ())?;
    match databases.iter().find(|found| found.oid == oid) {
        None => Ok(false),
        Some(found) if found.allows_connections => Ok(true),
        Some(_) => Err(()),
    }
}

/// The database is gone, its messages with it.
fn give_up(queue: Queue, database: &'static Database) {
    loop {
        let messages = queue.read(database, BATCH_MESSAGES, BATCH_BYTES);
        if messages.is_empty() {
            break;
        }
        queue.remove(database, &messages, messages.len());
    }
    queue.reset(database, 0);
    database.forget();
}

thread_local! {
    static ATTACHED: RefCell<Option<&'static Database>> = const { RefCell::new(None) };
}

#[pgrx::pg_guard]
extern "C-unwind" fn worker_left(_code: i32, _argument: pgrx::pg_sys::Datum) {
    if let (Some(queue), Some(database)) = (shmem::queue(), ATTACHED.with_borrow_mut(Option::take)) {
        database.detach_worker();
        // What came between its last look and now.
        queue.wake_launcher();
    }
}

/// A worker's life.
pub fn worker(oid: Oid) {
    let (Some(queue), Some(own)) = (shmem::queue(), process::own()) else { return };
    let Some(database) = queue.database(oid) else { return };
    if !database.attach_worker(own) {
        return;
    }
    ATTACHED.set(Some(database));
    worker::at_exit(worker_left);
    let mut trouble = Trouble::default();
    let mut idle_since = session::clock();
    loop {
        worker::reload_if_asked();
        let pause_ms = match drain(queue, database) {
            Ok(true) => {
                trouble.is_over();
                idle_since = session::clock();
                doze(queue, database);
                continue;
            }
            Ok(false) => {
                trouble.is_over();
                LINGER_MS - (session::clock() - idle_since) / MILLISECOND
            }
            Err(failure) => {
                database.count(Counter::Errors, 1);
                alerts::worker_failed(database, &failure);
                idle_since = session::clock();
                trouble.note(failure)
            }
        };
        if worker::is_told_to_end() {
            return last_pass(queue, database);
        }
        if pause_ms <= 0 {
            database.set_departure(Departure::Idle);
            return;
        }
        process::wait(Some(pause_ms));
    }
}

/// Waits a little for more messages, so that one transaction writes many of them. Somebody who waits for his wakes it.
fn doze(queue: Queue, database: &'static Database) {
    let delay = gucs::queue_delay_ms();
    if delay == 0 || !queue.is_empty(database) || worker::is_told_to_end() {
        return;
    }
    database.set_dozing(true);
    process::wait(Some(delay));
    database.set_dozing(false);
}

/// Told to end: the queue is empty, or can't be written. If the whole server ends, stays until the last session has left.
fn last_pass(queue: Queue, database: &'static Database) {
    let word_until = session::clock() + SHUTDOWN_WORD_MS * MILLISECOND;
    while !queue.is_shutting_down() && session::clock() < word_until {
        process::wait(Some(SHUTDOWN_WORD_MS / 10));
    }
    let until = session::clock() + SHUTDOWN_WAIT;
    while queue.is_shutting_down() && worker::others_connected(database.oid()) && session::clock() < until {
        process::wait(Some(10));
        if drain(queue, database).is_err() {
            break;
        }
    }
    while matches!(drain(queue, database), Ok(true)) {}
    if queue.is_empty(database) {
        database.set_departure(Departure::Idle);
    } else if queue.is_shutting_down() {
        report::log(
            format!("audit queue: {} messages could not be written before shutdown", database.depth().0),
            "They are lost; earlier log lines say why.",
        );
    }
}

/// Writes a batch. Returns whether there was anything to do.
fn drain(queue: Queue, database: &'static Database) -> Result<bool, Failure> {
    if database.presence() != Presence::Present {
        look_for_extension(database)?;
    }
    alerts::write_due(database)?;
    record_lost(queue, database)?;
    let has_folded = write_folded(queue, database)?;
    let messages = queue.read(database, BATCH_MESSAGES, BATCH_BYTES);
    if messages.is_empty() {
        return Ok(has_folded);
    }
    if database.presence() == Presence::Absent {
        queue.remove(database, &messages, messages.len());
        return Ok(true);
    }
    match write(queue, database, &messages) {
        Ok(()) => {}
        // One of them may be to blame.
        Err(failure) if failure.is_of_the_message() => {
            for message in messages.chunks(1) {
                match write(queue, database, message) {
                    Ok(()) => {}
                    Err(failure) if failure.is_of_the_message() => {
                        report::log(
                            format!("audit record cannot be written: {} ({})", failure.message, failure.sqlstate),
                            "It is given up and counted in audit.stats.",
                        );
                        database.count(Counter::Errors, 1);
                        queue.remove(database, message, 1);
                    }
                    Err(failure) => return Err(failure),
                }
            }
        }
        Err(failure) => return Err(failure),
    }
    Ok(true)
}

fn look_for_extension(database: &Database) -> Result<(), Failure> {
    let is_here = worker::in_transaction(c"look for extension", catalog::extension_version, |_| {})?.is_some();
    database.set_presence(if is_here { Presence::Present } else { Presence::Absent });
    Ok(())
}

/// Once after the server has started: what was handed over before and never written.
fn record_lost(queue: Queue, database: &Database) -> Result<(), Failure> {
    if database.is_checked() || database.presence() != Presence::Present {
        return Ok(());
    }
    let look = || {
        session::check_version()?;
        deferred::record_lost(queue)
    };
    let looked = worker::in_transaction(c"look for lost audit records", look, |&lost| {
        database.set_checked();
        database.count(Counter::EventsLost, lost);
        database.count(Counter::Events, u64::from(lost > 0));
    });
    if looked.is_err() {
        look_for_extension(database)?;
    }
    looked.map(|_| ())
}

/// Writes refused logins that were folded and are due. Returns whether there were any.
fn write_folded(queue: Queue, database: &'static Database) -> Result<bool, Failure> {
    let due = queue.folded_due_at(database);
    // In a hurry, what is folded is due at once.
    let now = if worker::is_told_to_end() { i64::MAX } else { session::clock() };
    if due.is_none_or(|due| due > now) {
        return Ok(false);
    }
    let entries: Vec<Entry> = std::iter::from_fn(|| queue.take_folded(database, now)).collect();
    if database.presence() == Presence::Absent {
        return Ok(true);
    }
    let write = || {
        session::check_version()?;
        entries.iter().try_for_each(logins::write_folded)
    };
    let written = worker::in_transaction(c"write audit records", write, |()| {
        database.count(Counter::Events, entries.len() as u64);
    });
    if written.is_err() {
        for entry in &entries {
            if queue.put_back_folded(entry, session::clock()) == Decision::Lost {
                database.count(Counter::LoginsLost, entry.count);
            }
        }
        look_for_extension(database)?;
    }
    written.map(|()| true)
}

fn write(queue: Queue, database: &'static Database, messages: &[Message]) -> Result<(), Failure> {
    let begun_at = Instant::now();
    let written = worker::in_transaction(
        c"write audit records",
        || {
            // The extension may have gone, or changed, since.
            session::check_version()?;
            let (mut oldest, mut failures, mut lost) = (i64::MAX, Vec::new(), 0);
            for message in messages {
                let written = queue::write(&message.bytes)?;
                oldest = oldest.min(written.made_at);
                failures.extend(written.failure);
                lost += usize::from(written.is_lost);
            }
            Ok((transaction::next_seq(), oldest, failures, lost))
        },
        |(events, oldest, failures, lost)| {
            database.count(Counter::Failures, failures.len() as u64);
            failures.iter().for_each(|sqlstate| database.count_failure(sqlstate));
            database.count(Counter::Events, u64::try_from(*events).unwrap_or(0));
            database.set(Counter::Lag, u64::try_from(session::clock() - oldest).unwrap_or(0));
            queue.remove(database, messages, *lost);
        },
    );
    database.count(Counter::WorkerTime, u64::try_from(begun_at.elapsed().as_micros()).unwrap_or(0));
    if written.is_err() {
        // Without the extension nothing can be written, nor need be.
        look_for_extension(database)?;
    }
    written.map(|_| ())
}

impl Failure {
    /// Whether the same message would fail again, however often, while others might not.
    fn is_of_the_message(&self) -> bool {
        matches!(self.sqlstate.get(..2), Some("22" | "23" | "54" | "XX"))
    }
}

/// Failures in a row: said once, tried again ever later.
#[derive(Default)]
struct Trouble {
    said: Option<Failure>,
    count: u32,
    since: i64,
}

impl Trouble {
    /// Returns how long to wait.
    fn note(&mut self, failure: Failure) -> i64 {
        self.count += 1;
        if self.count == 1 {
            self.since = session::clock();
        }
        if self.said.as_ref() != Some(&failure) {
            report::log(
                format!("audit records cannot be written: {} ({})", failure.message, failure.sqlstate),
                "The audit worker goes on trying; the records wait in the audit queue.",
            );
            self.said = Some(failure);
        }
        (100 << self.count.min(10)).min(MAX_BACKOFF / MILLISECOND)
    }

    fn is_over(&mut self) {
        if self.count > 0 {
            let seconds = (session::clock() - self.since) / SECOND;
            report::log(
                format!("audit records can be written again, after {seconds} s and {} attempts", self.count),
                "",
            );
            *self = Trouble::default();
        }
    }
}

impl From<audit_core::message::Malformed> for Error {
    fn from(_: audit_core::message::Malformed) -> Self {
        Error::Internal("malformed message in the audit queue")
    }
}
