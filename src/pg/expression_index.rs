//! Indexes that an administrator added to the log on expressions or with a predicate: their functions see a snapshot, as
//! they would in SQL.

use pgrx::pg_sys;

use super::log_index::{Key, LeafIndex};
use super::relation::Opened;
use super::unguarded::{self, guarded};
use crate::error::Error;

/// Inserts the tuples' entries into those of the indexes that are not on plain columns.
///
/// # Safety
/// The table is locked, the indexes are its own, each slot holds a tuple of it, which is in the table, and its tid.
pub(super) unsafe fn insert_entries(
    indexes: &[LeafIndex],
    table: pg_sys::Oid,
    slots: &[*mut pg_sys::TupleTableSlot],
) -> Result<(), Error> {
    if indexes.iter().all(LeafIndex::is_plain) {
        return Ok(());
    }
    let gone = |oid: pg_sys::Oid| Error::NoSuchTable { oid: oid.to_u32() };
    let table = Opened::known(table, pg_sys::RowExclusiveLock).ok_or_else(|| gone(table))?;
    let mut key = Key::new();
    // SAFETY: as above; the executor state lives from here to the end of this function, or until an ERROR frees its
    // memory context.
    unsafe {
        let snapshot = guarded(|| ActiveSnapshot::ensure());
        let state = pg_sys::CreateExecutorState();
        for index in indexes.iter().filter(|index| !index.is_plain()) {
            let opened = Opened::known(index.oid, pg_sys::RowExclusiveLock).ok_or_else(|| gone(index.oid))?;
            let relation = opened.relation().0;
            (*index.info).ii_ExpressionsState = std::ptr::null_mut();
            (*index.info).ii_PredicateState = std::ptr::null_mut();
            guarded(|| index.begin());
            for &slot in slots {
                if !holds(state, index.info, slot) {
                    continue;
                }
                let (values, nulls) = (key.values.as_mut_ptr(), key.nulls.as_mut_ptr());
                pg_sys::FormIndexDatum(index.info, slot, state, values, nulls);
                guarded(|| index.insert(relation, table.relation().0, slot, &mut key));
            }
            guarded(|| index.end(relation));
            // Nothing may point into the state's memory.
            (*index.info).ii_ExpressionsState = std::ptr::null_mut();
            (*index.info).ii_PredicateState = std::ptr::null_mut();
        }
        pg_sys::FreeExecutorState(state);
        guarded(|| snapshot.end());
    }
    Ok(())
}

/// Points the expressions at the slot, and says whether the index's predicate is true of it.
unsafe fn holds(state: *mut pg_sys::EState, info: *mut pg_sys::IndexInfo, slot: *mut pg_sys::TupleTableSlot) -> bool {
    // SAFETY: the state is the caller's; this is the macro GetPerTupleExprContext; the prepared predicate lives in the
    // state's memory.
    unsafe {
        let mut context = (*state).es_per_tuple_exprcontext;
        if context.is_null() {
            context = pg_sys::MakePerTupleExprContext(state);
        }
        (*context).ecxt_scantuple = slot;
        if (*info).ii_Predicate.is_null() {
            return true;
        }
        if (*info).ii_PredicateState.is_null() {
            (*info).ii_PredicateState = pg_sys::ExecPrepareQual((*info).ii_Predicate, state);
        }
        pg_sys::ExecQual((*info).ii_PredicateState, context)
    }
}

/// A snapshot for the code of index expressions and operator classes: at commit that of the portal is gone.
pub(super) struct ActiveSnapshot {
    is_ours: bool,
}

impl ActiveSnapshot {
    /// # Safety
    /// To be called inside `guarded`, in a transaction.
    pub(super) unsafe fn ensure() -> Self {
        // SAFETY: as above; an ERROR drops the snapshot with the transaction.
        unsafe {
            let is_ours = !unguarded::ActiveSnapshotSet();
            if is_ours {
                unguarded::PushActiveSnapshot(unguarded::GetTransactionSnapshot());
            }
            ActiveSnapshot { is_ours }
        }
    }

    /// # Safety
    /// As for `ensure`; what was pushed since is popped.
    pub(super) unsafe fn end(self) {
        if self.is_ours {
            // SAFETY: pushed by `ensure`, and the uppermost again.
            unsafe { unguarded::PopActiveSnapshot() };
        }
    }
}
