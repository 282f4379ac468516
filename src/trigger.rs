//! The top of the write path: what each trigger call does.

use audit_core::canonical::{Operation, Origin};

use pgrx::pg_sys::Oid;

use crate::capture::{self, Change, Direct};
use crate::error::Error;
use crate::layouts;
use crate::pg::trigger::{Call, Kind};
use crate::pg::{relation, session};
use crate::{gucs, modes, suspension, transaction};

/// `audit.capture()`: captures the row, or that all rows went.
pub fn capture(call: &Call) -> Result<(), Error> {
    // Before anything that could fail: switched off, changes pass whatever state the log is in.
    if !gucs::enabled() {
        suspension::note(call.relation());
        return Ok(());
    }
    let layout = layouts::get(call.relation(), call.function())?;
    let stands_by = |records: Option<Oid>| records.is_some_and(|records| records != call.trigger());
    match call.kind() {
        Kind::Truncate if stands_by(layout.truncate_trigger) => return Ok(()),
        Kind::Truncate => return modes::truncate(&layout),
        _ if stands_by(layout.row_trigger) => return Ok(()),
        _ => {}
    }
    let (operation, row, old) = match (call.kind(), call.old_row(), call.new_row()) {
        (Kind::Insert, _, Some(new)) => (Operation::Insert, new, None),
        (Kind::Update, Some(old), Some(new)) => (Operation::Update, new, Some(old)),
        (Kind::Delete, Some(old), _) => (Operation::Delete, old, None),
        _ => return Err(Error::WrongTrigger),
    };
    let command = call.command(layout.is_heap);
    let change = Change { operation, origin: Origin::Trigger, command, row, old };
    if layout.is_plain { capture::row::<Direct>(&layout, &change) } else { modes::row(&layout, &change) }
}

/// `audit.append_only()`: refuses whatever fired it, but for an erasure.
pub fn refuse_change(table: Vec<u8>) -> Result<(), Error> {
    if crate::ledger::erase::is_under_way() {
        return Ok(());
    }
    Err(Error::AppendOnly { table: String::from_utf8_lossy(&table).into_owned() })
}

/// Records the rows that are in a table now, in batches.
pub fn snapshot(table: relation::Relation, function: Oid) -> Result<(), Error> {
    let layout = layouts::get(table, function)?;
    let command = session::current_command();
    table.for_each_row(|row| {
        capture::row::<Direct>(
            &layout,
            &Change { operation: Operation::Snapshot, origin: Origin::Snapshot, command, row, old: None },
        )
    })?;
    transaction::flush()
}
