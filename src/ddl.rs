//! What DDL commands mean for auditing: new tables of an enabled schema, partitions and children of audited tables that
//! come, partitions that are detached, tables that are dropped.

use pgrx::pg_sys::{AccessExclusiveLock, AccessShareLock, NoLock, Oid};

use crate::error::Error;
use crate::pg::relation::{capture_function, is_locked_by_us, partition_ancestors, with_descendants};
use crate::pg::{catalog, table_triggers};
use crate::policies::{self, Acting, Cause};
use crate::store;

/// After a CREATE or ALTER of tables, in the same command.
///
/// It locks no other tables than the command has, their partitions and children: commands that run side by side, as in a
/// parallel restore, would wait for each other.
pub fn command_end(cause: Cause) -> Result<(), Error> {
    let Some(capture) = capture_function() else { return Ok(()) };
    let mut arrived = Vec::new();
    {
        let acting = Acting::begin()?;
        policies::follow_renamed_schemas()?;
        let touched = policies::touched_tables()?;
        guard_log_partitions(&touched, cause)?;
        // A partition that is detached loses the clone of its parent's trigger, whoever that was.
        let mut affected = if touched.is_empty() { Vec::new() } else { policies::without_trigger(capture)? };
        affected.retain(|&table| is_locked_by_us(table, AccessExclusiveLock));
        for table in touched {
            // Children that no longer inherit are none of its descendants any more.
            affected.extend(policies::orphans(table)?);
            affected.extend(with_descendants(table, NoLock));
        }
        for table in affected {
            if policies::follow(table, cause, &acting)? {
                arrived.push(table);
            }
        }
    }
    policies::record_rows(&arrived, capture)
}

/// New partitions of the log are append-only too, and have its index. One that ALTER TABLE attaches comes with its own: a
/// restore creates it afterwards.
fn guard_log_partitions(touched: &[Oid], cause: Cause) -> Result<(), Error> {
    let Some(guard) = catalog::function_oid(c"append_only") else { return Ok(()) };
    let log: Vec<Oid> =
        [&store::EVENT, &store::CHANGESET].into_iter().filter_map(|table| catalog::relation_oid(table.name)).collect();
    for &table in touched {
        let root = partition_ancestors(table).last().copied().unwrap_or(table);
        if log.contains(&root) {
            for partition in with_descendants(table, AccessShareLock) {
                table_triggers::ensure_append_only(partition, guard);
                if cause == Cause::Arrived {
                    policies::index_log_partition(partition)?;
                }
            }
        }
    }
    Ok(())
}

/// After a DROP.
pub fn dropped() -> Result<(), Error> {
    if capture_function().is_none() {
        // The extension itself is being dropped.
        return Ok(());
    }
    policies::forget_dropped()
}
