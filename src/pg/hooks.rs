//! The ends of statements: what a statement captured is in the log when it ends.
//!
//! AFTER ROW triggers fire while the executor finishes a query, or while COPY and SET CONSTRAINTS run as utility
//! statements. A hook around each inserts what was captured within it: at a third of what an AFTER STATEMENT trigger on
//! each audited table costs, and also for changes made to a partition directly. Logical replication's apply worker runs
//! neither; there events are inserted when a batch is full and at commit.

use std::cell::Cell;

use pgrx::{pg_guard, pg_sys};

use super::{report, unguarded};
use crate::transaction;

thread_local! {
    static NEXT_FINISH: Cell<pg_sys::ExecutorFinish_hook_type> = const { Cell::new(None) };
    static NEXT_UTILITY: Cell<pg_sys::ProcessUtility_hook_type> = const { Cell::new(None) };
    static UNSEEN_STATEMENT: Cell<bool> = const { Cell::new(false) };
}

/// Takes its place before the hooks of other libraries, once per process.
pub fn init() {
    // SAFETY: called when the library is loaded, by a process with one thread; the library is never unloaded.
    unsafe {
        NEXT_FINISH.set(pg_sys::ExecutorFinish_hook);
        pg_sys::ExecutorFinish_hook = Some(at_executor_finish);
        NEXT_UTILITY.set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(at_utility);
        UNSEEN_STATEMENT.set(pg_sys::IsTransactionState());
    }
}

/// Whether this transaction loaded the library: the statements under way then began before the hooks were there, and
/// will end without them. So each event is inserted at once.
pub fn is_unseen_statement() -> bool {
    UNSEEN_STATEMENT.get()
}

/// Nothing here can fail.
pub fn transaction_ended() {
    UNSEEN_STATEMENT.set(false);
}

/// Inserts what was captured since `before`.
fn flush_since(before: i32) {
    if transaction::next_seq() != before {
        report::ok(transaction::flush());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_executor_finish(query: *mut pg_sys::QueryDesc) {
    let before = transaction::next_seq();
    // SAFETY: passes on what PostgreSQL passed.
    unsafe {
        match NEXT_FINISH.get() {
            Some(next) => next(query),
            None => unguarded::standard_ExecutorFinish(query),
        }
    }
    flush_since(before);
}

#[pg_guard]
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
    let before = transaction::next_seq();
    let next = NEXT_UTILITY.get().unwrap_or(unguarded::standard_ProcessUtility);
    // SAFETY: passes on what PostgreSQL passed.
    unsafe { next(statement, query, read_only_tree, context, parameters, environment, receiver, completion) };
    flush_since(before);
}
