//! Whoever reads the log finds in it what this transaction captured: the hooks look at each query before it starts, and
//! have what waits inserted if the query reads the log. All else is inserted in one go at commit.
//!
//! The events are inserted as of the command that was recorded, so the query's snapshot, which is taken already, sees them.

use std::cell::Cell;

use pgrx::{pg_guard, pg_sys};

use super::{report, unguarded};
use crate::transaction;

thread_local! {
    static NEXT_START: Cell<pg_sys::ExecutorStart_hook_type> = const { Cell::new(None) };
    static NEXT_UTILITY: Cell<pg_sys::ProcessUtility_hook_type> = const { Cell::new(None) };
}

/// Takes its place before the hooks of other libraries, once per process.
pub fn init() {
    // SAFETY: called when the library is loaded, by a process with one thread; the library is never unloaded.
    unsafe {
        NEXT_START.set(pg_sys::ExecutorStart_hook);
        pg_sys::ExecutorStart_hook = Some(at_executor_start);
        NEXT_UTILITY.set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(at_utility);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_executor_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    if transaction::has_pending() {
        // SAFETY: the plan names the relations that it reads, those below views and in functions that were inlined too.
        let relations = unsafe { oids((*(*query).plannedstmt).relationOids) };
        if transaction::waits_for(relations.iter().map(|relation| unsafe { relation.oid_value })) {
            report::ok(transaction::show());
        }
    }
    // SAFETY: passes on what PostgreSQL passed.
    unsafe {
        match NEXT_START.get() {
            Some(next) => next(query, flags),
            None => unguarded::standard_ExecutorStart(query, flags),
        }
    }
}

/// An oid list's members.
unsafe fn oids<'a>(list: *const pg_sys::List) -> &'a [pg_sys::ListCell] {
    // SAFETY: a list of oids, or null for the empty one.
    unsafe { if list.is_null() { &[] } else { std::slice::from_raw_parts((*list).elements, (*list).length as usize) } }
}

#[pg_guard]
#[allow(clippy::too_many_arguments, reason = "PostgreSQL's")]
unsafe extern "C-unwind" fn at_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the statement is a node.
    if transaction::has_pending() && may_read(unsafe { (*(*statement).utilityStmt).type_ }) {
        report::ok(transaction::show());
    }
    let next = NEXT_UTILITY.get().unwrap_or(unguarded::standard_ProcessUtility);
    // SAFETY: passes on what PostgreSQL passed.
    unsafe { next(statement, query, read_only_tree, context, parameters, environment, receiver, completion) };
}

/// Whether the utility statement may read or change the log itself, not only through the executor.
fn may_read(statement: pg_sys::NodeTag) -> bool {
    use pg_sys::NodeTag::*;
    !matches!(
        statement,
        T_TransactionStmt
            | T_VariableSetStmt
            | T_VariableShowStmt
            | T_ConstraintsSetStmt
            | T_PrepareStmt
            | T_ExecuteStmt
            | T_DeallocateStmt
            | T_DeclareCursorStmt
            | T_FetchStmt
            | T_ClosePortalStmt
            | T_CallStmt
            | T_DoStmt
            | T_ExplainStmt
            | T_NotifyStmt
            | T_ListenStmt
            | T_UnlistenStmt
    )
}
