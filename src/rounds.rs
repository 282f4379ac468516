//! Rounds: a job that is done in each database with the extension from time to time, by a background worker that the launcher
//! starts, which does it once and leaves. One worker at a time for each job.

use std::collections::HashMap;

use pgrx::pg_sys::Oid;

use crate::pg::session;
use crate::pg::shmem::{self, Presence};
use crate::pg::worker::{self, Job, Started};
use crate::{gucs, worker as queue_worker};

const SECOND: i64 = 1_000_000;
/// Before another try, where no worker could be had.
const RETRY: i64 = 60 * SECOND;

/// What the launcher knows of a job.
pub struct Rounds {
    job: Job,
    last: i64,
    /// Where nothing had been written since, when this round began.
    idle_since: Option<u64>,
    to_visit: Vec<Oid>,
    /// `idle_since` of the last round that visited a database.
    visited: HashMap<u32, Option<u64>>,
    running: Option<Started>,
}

impl Rounds {
    /// The first round is one interval after the start of the server.
    pub fn of(job: Job) -> Self {
        Rounds {
            job,
            last: session::clock(),
            idle_since: None,
            to_visit: Vec::new(),
            visited: HashMap::new(),
            running: None,
        }
    }

    /// Microseconds; 0 for never.
    fn interval(&self) -> i64 {
        match self.job {
            Job::Queue => 0,
            Job::Maintenance => i64::from(gucs::maintenance_interval_s()) * SECOND,
            Job::Sealing => gucs::seal_interval(),
        }
    }

    /// Starts what is due. Returns when to look again, if nothing wakes the launcher before.
    pub fn start_next(&mut self) -> Option<i64> {
        let interval = self.interval();
        self.running = self.running.take().filter(|running| !running.has_ended());
        if interval == 0 {
            self.to_visit.clear();
            return None;
        }
        if self.running.is_some() {
            return None; // Its end wakes the launcher.
        }
        let now = session::clock();
        let due = self.last + interval;
        if self.to_visit.is_empty() {
            if now < due {
                return Some(due);
            }
            self.last = now;
            self.to_visit = self.begin(now);
        }
        let Some(&database) = self.to_visit.last() else { return Some(now + interval) };
        self.running = worker::start(self.job, database);
        if self.running.is_none() {
            return Some(now + RETRY.min(interval));
        }
        self.visited.insert(database.to_u32(), self.idle_since);
        self.to_visit.pop();
        None
    }

    /// The databases of a new round.
    fn begin(&mut self, now: i64) -> Vec<Oid> {
        if self.job != Job::Sealing {
            return queue_worker::connectable();
        }
        self.idle_since = session::next_xid_if_idle();
        let Some(queue) = shmem::queue() else { return Vec::new() };
        let is_due = |database: &&shmem::Database| match database.seal_due_at() {
            Some(due) => due <= now,
            None => self.idle_since.is_none() || self.visited.get(&database.oid().to_u32()) != Some(&self.idle_since),
        };
        let present = queue.databases().filter(|database| database.presence() == Presence::Present);
        let due: Vec<Oid> = present.filter(is_due).map(shmem::Database::oid).collect();
        if due.is_empty() {
            return due;
        }
        let there = queue_worker::connectable();
        due.into_iter().filter(|database| there.contains(database)).collect()
    }
}
