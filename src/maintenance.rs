//! Maintenance of the log by background workers: `audit.maintain()` in each database that has the extension, every
//! `audit.maintenance_interval`. The launcher starts one worker at a time. It works in short transactions, since one that
//! is long would hold back sealing, and leaves.
//!
//! Not the workers of the queue: an index that takes an hour to build must not keep records waiting.

use pgrx::pg_sys::Oid;

use crate::pg::worker::{self, Job, Started};
use crate::pg::{catalog, report, session, spi};
use crate::{gucs, worker as queue_worker};

const SECOND: i64 = 1_000_000;
/// Before another try, where no worker could be had.
const RETRY: i64 = 60 * SECOND;
/// Returns rows while there is more to be done.
const STEP: &str = "SELECT FROM audit.maintain(max_indexes => 1) AS m WHERE m.action IN ('index', 'default prepared')";

/// What the launcher knows of it.
pub struct Rounds {
    last: i64,
    to_visit: Vec<Oid>,
    running: Option<Started>,
}

impl Rounds {
    /// The first round is one interval after the start of the server.
    pub fn begin() -> Self {
        Rounds { last: session::clock(), to_visit: Vec::new(), running: None }
    }

    /// Starts what is due. Returns when to look again, if nothing wakes the launcher before.
    pub fn start_next(&mut self) -> Option<i64> {
        let interval = i64::from(gucs::maintenance_interval_s()) * SECOND;
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
            self.to_visit = queue_worker::connectable();
        }
        let Some(&database) = self.to_visit.last() else { return Some(now + interval) };
        self.running = worker::start(Job::Maintenance, database);
        if self.running.is_none() {
            return Some(now + RETRY);
        }
        self.to_visit.pop();
        None
    }
}

/// A worker's life.
pub fn worker(database: Oid) {
    loop {
        worker::reload_if_asked();
        let step = worker::in_transaction(
            c"audit.maintain()",
            || match catalog::extension_version()? {
                None => Ok(0),
                Some(_) => {
                    session::check_version()?;
                    spi::run(STEP, &[])
                }
            },
            |_| {},
        );
        match step {
            Ok(0) => return,
            Ok(_) => {}
            Err(failure) => {
                let number = database.to_u32();
                let message =
                    format!("audit.maintain() failed in database {number}: {} ({})", failure.message, failure.sqlstate);
                report::log(message, "It is tried again after audit.maintenance_interval.");
                return;
            }
        }
    }
}
