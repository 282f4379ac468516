//! Whoever reads the log finds in it what this transaction captured: the hooks look at each query before it starts, and
//! have what waits inserted if the query reads the log. All else is inserted in one go at commit.
//!
//! DDL is looked at before it runs, and followed where event triggers are switched off: `guard.rs`, `ddl.rs`.
//!
//! The events are inserted as of the command that was recorded, so the query's snapshot, which is taken already, sees them.

use std::cell::Cell;

use pgrx::{pg_guard, pg_sys};

use super::command::Command;
use super::{report, unguarded};
use crate::ddl::{self, Ending};
use crate::{guard, transaction};

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
    // SAFETY: the parse tree lives as long as the call.
    let watched = unsafe { watch((*statement).utilityStmt) };
    let next = NEXT_UTILITY.get().unwrap_or(unguarded::standard_ProcessUtility);
    // SAFETY: passes on what PostgreSQL passed. Nothing is alive here that would have to be dropped, should it fail.
    unsafe { next(statement, query, read_only_tree, context, parameters, environment, receiver, completion) };
    if let Some(watched) = watched {
        watched.end();
    }
}

/// A DDL command under way. It is looked at before it runs; and after it, where the event triggers that should have seen it
/// are switched off.
#[derive(Clone, Copy)]
struct Watched {
    command: Command,
    ends: u64,
    /// The tables that it names, as a list of oids, which PostgreSQL frees.
    tables: *mut pg_sys::List,
}

/// # Safety
/// The node lives until the command has ended.
unsafe fn watch(node: *mut pg_sys::Node) -> Option<Watched> {
    // SAFETY: the caller's word.
    let command = unsafe { Command::of(node) }.filter(|command| command.is_watched())?;
    if !is_under_guard() {
        return None;
    }
    report::ok(guard::before_command(command));
    let mut tables = std::ptr::null_mut();
    for table in command.tables() {
        // SAFETY: a list of oids in the command's memory.
        tables = unsafe { pg_sys::lappend_oid(tables, table) };
    }
    Some(Watched { command, ends: ddl::ends(), tables })
}

/// Whether there is a transaction to look into catalogs, and the extension in this database.
fn is_under_guard() -> bool {
    // SAFETY: reads of backend variables.
    let has_transaction = unsafe { pg_sys::IsTransactionState() && pg_sys::MyDatabaseId != pg_sys::InvalidOid };
    has_transaction && super::relation::capture_function().is_some()
}

impl Watched {
    fn end(self) {
        if ddl::ends() != self.ends || !self.command.has_event_triggers() || !is_under_guard() {
            return;
        }
        // SAFETY: the list was made before the command.
        let tables: Vec<pg_sys::Oid> = unsafe { oids(self.tables).iter().map(|table| table.oid_value).collect() };
        let now = self.command.tables();
        let ending = Ending { tag: self.command.name(), command: Some(self.command) };
        report::ok(ddl::command_end_unseen(&tables, &now, &ending));
    }
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
