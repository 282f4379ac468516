//! Maintenance of the log by background workers: `audit.maintain()` in each database that has the extension, every
//! `audit.maintenance_interval`. It works in short transactions, since one that is long would hold back sealing, and leaves.
//!
//! Not the workers of the queue: an index that takes an hour to build must not keep records waiting.

use pgrx::pg_sys::Oid;

use crate::pg::worker;
use crate::pg::{catalog, report, session, spi};

/// Returns rows while there is more to be done.
const STEP: &str = "SELECT FROM audit.maintain(max_indexes => 1) AS m WHERE m.action IN ('index', 'default prepared')";

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
