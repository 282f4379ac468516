//! The functions that PostgreSQL calls by name: triggers and event triggers. They have no arguments, so that their
//! declarations in sql/20_functions.sql cannot disagree with them; all others are declared by pgrx.

use pgrx::{pg_guard, pg_sys};

use super::command::{self, Command};
use super::definition::{self, Definition};
use super::readers::bound_tenants_array;
use super::report;
use super::trigger::Call;
use super::tuple::Batch;
use crate::ddl::{Ending, Rewrite};
use crate::error::Error;
use crate::{ddl, guard, store, transaction, trigger};

macro_rules! entry {
    ($name:ident, $info:ident, $body:ident) => {
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub extern "C" fn $info() -> &'static pg_sys::Pg_finfo_record {
            const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
            &V1
        }

        /// # Safety
        /// Called by PostgreSQL's function manager.
        #[unsafe(no_mangle)]
        #[pg_guard]
        pub unsafe extern "C-unwind" fn $name(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
            // SAFETY: PostgreSQL passed it.
            report::ok(unsafe { $body(fcinfo) }).into_result()
        }
    };
}

/// What an entry point returns.
trait IntoResult {
    fn into_result(self) -> pg_sys::Datum;
}

impl IntoResult for () {
    fn into_result(self) -> pg_sys::Datum {
        pg_sys::Datum::from(0usize)
    }
}

impl IntoResult for pg_sys::HeapTuple {
    fn into_result(self) -> pg_sys::Datum {
        pg_sys::Datum::from(self)
    }
}

impl IntoResult for pg_sys::Datum {
    fn into_result(self) -> pg_sys::Datum {
        self
    }
}

entry!(audit_bound_tenants, pg_finfo_audit_bound_tenants, bound_tenants_array);

entry!(audit_capture, pg_finfo_audit_capture, capture);

unsafe fn capture(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), Error> {
    // SAFETY: PostgreSQL passed it.
    trigger::capture(&unsafe { Call::from_fcinfo(fcinfo) }?)
}

entry!(audit_append_only, pg_finfo_audit_append_only, append_only);

/// Where the change is let through, the row that it writes; a BEFORE trigger that returns none would skip it.
unsafe fn append_only(fcinfo: pg_sys::FunctionCallInfo) -> Result<pg_sys::HeapTuple, Error> {
    // SAFETY: PostgreSQL passed it; its context is that of a trigger once the relation was found through it.
    unsafe {
        let table = relation_of_trigger(fcinfo)?;
        let data = (*fcinfo).context.cast::<pg_sys::TriggerData>();
        // A parallel restore truncates the tables that it has created before it fills them.
        if !truncates_nothing(data) {
            trigger::refuse_change(table)?;
        }
        Ok((*data).tg_newtuple)
    }
}

/// Whether the trigger was fired by TRUNCATE of a table that has no pages. It is locked against everybody by then.
unsafe fn truncates_nothing(data: *mut pg_sys::TriggerData) -> bool {
    const OPERATION: u32 = pg_sys::TRIGGER_EVENT_OPMASK;
    // SAFETY: the trigger's relation is open.
    unsafe {
        let table = (*data).tg_relation;
        (*data).tg_event & OPERATION == pg_sys::TRIGGER_EVENT_TRUNCATE
            && super::relation::Relation(table).has_storage()
            && pg_sys::RelationGetNumberOfBlocksInFork(table, pg_sys::ForkNumber::MAIN_FORKNUM) == 0
    }
}

entry!(audit_ddl_command_end, pg_finfo_audit_ddl_command_end, ddl_command_end);

unsafe fn ddl_command_end(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), Error> {
    // SAFETY: PostgreSQL passed it; the parse tree lives as long as the command.
    let (tag, command) = unsafe {
        let data = event_trigger_data(fcinfo)?;
        (command::tag_name((*data).tag), Command::of((*data).parsetree))
    };
    ddl::command_end(&Ending { tag, command })
}

entry!(audit_ddl_command_start, pg_finfo_audit_ddl_command_start, ddl_command_start);

unsafe fn ddl_command_start(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), Error> {
    // SAFETY: as above.
    let command = unsafe { Command::of((*event_trigger_data(fcinfo)?).parsetree) };
    command.map_or(Ok(()), guard::command_start)
}

entry!(audit_table_rewrite, pg_finfo_audit_table_rewrite, table_rewrite);

unsafe fn table_rewrite(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), Error> {
    /// AT_REWRITE_DEFAULT_VAL and AT_REWRITE_COLUMN_REWRITE of commands/event_trigger.h.
    const VALUES: i32 = 0x02 | 0x04;
    unsafe extern "C-unwind" {
        // event_trigger.c; not in pgrx's bindings.
        fn pg_event_trigger_table_rewrite_oid(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum;
        fn pg_event_trigger_table_rewrite_reason(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum;
    }
    // SAFETY: PostgreSQL passed it. Both functions read what there is to know of the rewrite under way, and nothing of the
    // call; the boundary turns an ERROR into a panic.
    let (table, reason) = unsafe {
        event_trigger_data(fcinfo)?;
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            (pg_event_trigger_table_rewrite_oid(fcinfo), pg_event_trigger_table_rewrite_reason(fcinfo))
        })
    };
    let (table, reason) = (pg_sys::Oid::from(table.value() as u32), reason.value() as i32);
    ddl::rewrites(table, if reason & VALUES != 0 { Rewrite::Values } else { Rewrite::Storage });
    Ok(())
}

entry!(audit_sql_drop, pg_finfo_audit_sql_drop, sql_drop);

unsafe fn sql_drop(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), Error> {
    // SAFETY: PostgreSQL passed it.
    let tag = unsafe { command::tag_name((*event_trigger_data(fcinfo)?).tag) };
    ddl::dropped(tag)
}

entry!(audit_pending_changesets, pg_finfo_audit_pending_changesets, pending_changesets);

unsafe fn pending_changesets(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), Error> {
    let mut batch = Batch::default();
    // Before the state is borrowed: it may write a row.
    if transaction::has_changesets() {
        store::era()?;
    }
    transaction::for_each_changeset(|changeset| store::put_changeset(changeset, None, &mut batch))?;
    // SAFETY: PostgreSQL passed it, and the function is declared to return rows of audit.changeset.
    unsafe { return_rows(fcinfo, &store::CHANGESET, &mut batch) }
}

/// Returns the batch's tuples as the function's result set.
unsafe fn return_rows(
    fcinfo: pg_sys::FunctionCallInfo,
    definition: &Definition,
    batch: &mut Batch,
) -> Result<(), Error> {
    // SAFETY: InitMaterializedSRF checks the caller's context and makes the tuplestore; the tuples have the columns of
    // the result's descriptor, which is compared first.
    unsafe {
        pg_sys::InitMaterializedSRF(fcinfo, 0);
        let result = (*fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        definition::check_columns(definition, (*result).setDesc)?;
        let mut tuples = Vec::new();
        batch.heap_tuples(pg_sys::InvalidOid, &mut tuples)?;
        for tuple in &mut tuples {
            pg_sys::tuplestore_puttuple((*result).setResult, tuple);
        }
    }
    Ok(())
}

/// Name of the table for a trigger of any kind.
unsafe fn relation_of_trigger(fcinfo: pg_sys::FunctionCallInfo) -> Result<Vec<u8>, Error> {
    // SAFETY: fcinfo is valid; the tag is read before the cast; the relation is open while the trigger runs.
    unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
            return Err(Error::NotATrigger);
        }
        Ok(super::relation::Relation((*context.cast::<pg_sys::TriggerData>()).tg_relation).resource())
    }
}

unsafe fn event_trigger_data(fcinfo: pg_sys::FunctionCallInfo) -> Result<*mut pg_sys::EventTriggerData, Error> {
    // SAFETY: fcinfo is valid; its context, if any, is a node.
    unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_EventTriggerData {
            return Err(Error::NotAnEventTrigger);
        }
        Ok(context.cast())
    }
}
