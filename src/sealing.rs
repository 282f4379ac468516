//! Sealing by a background worker: `audit.seal()` in each database that has the extension, every `audit.seal_interval`, unless
//! nothing was written since.

use pgrx::pg_sys::Oid;

use crate::gucs;
use crate::ledger::seal;
use crate::pg::shmem::{self, Presence};
use crate::pg::worker;
use crate::pg::{catalog, report, session};

const SECOND: i64 = 1_000_000;
const MAX_BACKOFF: i64 = 600 * SECOND;

/// A worker's life.
pub fn worker(oid: Oid) {
    let Some(database) = shmem::queue().and_then(|queue| queue.database(oid)) else { return };
    let failures = database.begin_sealing();
    let sealed = worker::in_transaction(
        c"audit.seal()",
        || match catalog::extension_version()? {
            None => Ok(false),
            Some(_) => {
                session::check_version()?;
                seal::seal(false).map(|_| true)
            }
        },
        |_| database.sealed(),
    );
    let number = oid.to_u32();
    match sealed {
        Ok(is_here) => {
            if !is_here {
                database.set_presence(Presence::Absent);
            }
            if failures > 0 {
                report::log(format!("audit.seal() works again in database {number}"), "");
            }
        }
        Err(failure) => {
            let pause = (gucs::seal_interval().max(SECOND) << failures.min(10)).min(MAX_BACKOFF);
            database.seal_again_at(session::clock() + pause);
            let message =
                format!("audit.seal() failed in database {number}: {} ({})", failure.message, failure.sqlstate);
            report::log(message, &format!("It is tried again in {} s.", pause / SECOND));
        }
    }
}
