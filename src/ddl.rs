//! What DDL commands mean for auditing: new tables of an enabled schema, partitions and children of audited tables that
//! come, partitions that are detached, tables that are dropped.

use crate::error::Error;
use crate::pg::relation::{capture_function, with_descendants};
use crate::policies::{self, Acting, Arrival};

/// After a CREATE or ALTER of tables, in the same command.
pub fn command_end() -> Result<(), Error> {
    let Some(capture) = capture_function() else { return Ok(()) };
    let mut arrived = Vec::new();
    {
        let acting = Acting::begin()?;
        policies::follow_renamed_schemas()?;
        for (table, arrival) in policies::touched_tables()? {
            let descendants = with_descendants(table, pgrx::pg_sys::AccessShareLock);
            let mut affected: Vec<_> = policies::orphans(table)?.into_iter().map(|t| (t, Arrival::Known)).collect();
            affected.extend(descendants.into_iter().map(|t| (t, if t == table { arrival } else { Arrival::Known })));
            for (affected, arrival) in affected {
                if policies::follow(affected, &acting, arrival)? {
                    arrived.push(affected);
                }
            }
        }
    }
    policies::record_rows(&arrived, capture)
}

/// After a DROP.
pub fn dropped() -> Result<(), Error> {
    if capture_function().is_none() {
        // The extension itself is being dropped.
        return Ok(());
    }
    policies::forget_dropped()
}
