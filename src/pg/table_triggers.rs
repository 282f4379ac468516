//! Puts the audit triggers on tables, through PostgreSQL's own functions rather than CREATE TRIGGER: event triggers of
//! users do not see it, and nothing depends on the search_path.

use std::ffi::c_char;

use pgrx::pg_sys;

use super::relation::{Opened, Relation, c_string, is_complete};
use super::session;
use crate::error::Error;

/// The triggers on an audited table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// AFTER ROW: captures.
    Row,
    Truncate,
}

impl Wanted {
    const ALL: [Wanted; 2] = [Wanted::Row, Wanted::Truncate];

    /// Names begin with a character below all letters and digits, so that these fire before any other trigger.
    fn name(self, table: pg_sys::Oid) -> String {
        let what = match self {
            Wanted::Row => "row",
            Wanted::Truncate => "truncate",
        };
        unique_name(&format!("!audit_{what}"), table)
    }

    fn events(self) -> u32 {
        match self {
            Wanted::Row => pg_sys::TRIGGER_TYPE_INSERT | pg_sys::TRIGGER_TYPE_UPDATE | pg_sys::TRIGGER_TYPE_DELETE,
            Wanted::Truncate => pg_sys::TRIGGER_TYPE_TRUNCATE,
        }
    }

    fn trigger_type(self) -> i16 {
        let row = if self == Wanted::Row { pg_sys::TRIGGER_TYPE_ROW } else { 0 };
        (row | self.events()) as i16
    }
}

/// A trigger's name that is no other's: not that of a partition's parent, whose clone may come to the partition; and not
/// one that a dump of another database brings, where tables may have the same oids. A restore creates the dump's triggers,
/// and these may be there already, since the table was altered after its policy came.
fn unique_name(purpose: &str, table: pg_sys::Oid) -> String {
    let cluster = session::system_identifier();
    let place = (cluster >> 32) as u32 ^ cluster as u32 ^ session::database().to_u32();
    format!("{purpose}_{}_{place:08x}", table.to_u32())
}

/// Makes sure that the table has its triggers, each once and ENABLE ALWAYS. Repairs what was disabled or replaced, and
/// returns whether there was something to repair or make.
pub fn ensure(table: pg_sys::Oid, function: pg_sys::Oid) -> Result<bool, Error> {
    let mut was_captured = true;
    let open =
        || Opened::with_lock(table, pg_sys::ShareRowExclusiveLock).ok_or(Error::NoSuchTable { oid: table.to_u32() });
    for wanted in Wanted::ALL {
        let opened = open()?;
        let relation = opened.relation();
        if wanted == Wanted::Truncate && relation.kind() == pg_sys::RELKIND_FOREIGN_TABLE {
            // PostgreSQL has no TRUNCATE triggers on foreign tables.
            continue;
        }
        if wanted == Wanted::Row {
            was_captured = relation.is_captured(function);
        }
        let by_clone = wanted == Wanted::Row && relation.has_cloned_row_trigger(function);
        let (good, bad): (Vec<_>, Vec<_>) = relation
            .matching_triggers(function, wanted.trigger_type())
            .into_iter()
            .partition(|(_, is_good)| *is_good && !by_clone);
        drop(opened);
        for (trigger, _) in good.iter().skip(1).chain(&bad) {
            remove(*trigger);
        }
        if good.is_empty() && !by_clone {
            create(table, function, &wanted.name(table), wanted.trigger_type(), false);
        }
    }
    Ok(!was_captured)
}

/// Whether every change of the table is captured.
pub fn are_in_place(table: pg_sys::Oid, function: pg_sys::Oid) -> bool {
    Opened::with_lock(table, pg_sys::AccessShareLock).is_some_and(|opened| opened.relation().is_captured(function))
}

/// Makes sure that a partition of the log refuses UPDATE, DELETE and TRUNCATE as statements. Its rows are guarded by the
/// clone of its parent's trigger.
pub fn ensure_append_only(table: pg_sys::Oid, function: pg_sys::Oid) {
    const REFUSED: u32 = pg_sys::TRIGGER_TYPE_BEFORE
        | pg_sys::TRIGGER_TYPE_UPDATE
        | pg_sys::TRIGGER_TYPE_DELETE
        | pg_sys::TRIGGER_TYPE_TRUNCATE;
    let Some(opened) = Opened::with_lock(table, pg_sys::ShareRowExclusiveLock) else { return };
    let guards = opened.relation().matching_triggers(function, REFUSED as i16);
    drop(opened);
    if !guards.iter().any(|(_, is_good)| *is_good) {
        for (trigger, _) in guards {
            remove(trigger);
        }
        // Internal, so that no dump carries it: where the partition is attached again, it is made again.
        create(table, function, "append_only", REFUSED as i16, true);
    }
}

/// Whether a table has audit triggers of its own.
pub fn any(table: pg_sys::Oid, function: pg_sys::Oid) -> bool {
    Opened::with_lock(table, pg_sys::AccessShareLock)
        .is_some_and(|opened| !opened.relation().own_triggers(function).is_empty())
}

/// Removes the audit triggers of a table, but for clones, which go with their parent's.
/// Returns whether there were any.
pub fn remove_all(table: pg_sys::Oid, function: pg_sys::Oid) -> bool {
    let Some(opened) = Opened::with_lock(table, pg_sys::AccessShareLock) else { return false };
    let triggers = opened.relation().own_triggers(function);
    drop(opened);
    for trigger in &triggers {
        remove(*trigger);
    }
    !triggers.is_empty()
}

/// Has all sessions build the table's layout anew.
pub fn invalidate(table: pg_sys::Oid) {
    // SAFETY: any oid is allowed.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(table) };
}

fn remove(trigger: pg_sys::Oid) {
    // SAFETY: the trigger exists and its table is locked. Through the dependency machinery, so that the clones on
    // partitions go too.
    unsafe {
        let address = pg_sys::ObjectAddress { classId: pg_sys::TriggerRelationId, objectId: trigger, objectSubId: 0 };
        pg_sys::performDeletion(
            &address,
            pg_sys::DropBehavior::DROP_RESTRICT,
            pg_sys::PERFORM_DELETION_INTERNAL as i32,
        );
        pg_sys::CommandCounterIncrement();
    }
}

fn create(table: pg_sys::Oid, function: pg_sys::Oid, name: &str, trigger_type: i16, is_internal: bool) {
    const EVENTS: u32 = pg_sys::TRIGGER_TYPE_INSERT
        | pg_sys::TRIGGER_TYPE_UPDATE
        | pg_sys::TRIGGER_TYPE_DELETE
        | pg_sys::TRIGGER_TYPE_TRUNCATE;
    let name = c_string(name.as_bytes());
    let bits = trigger_type as u32;
    // SAFETY: the node is zeroed memory of its own size with its tag; fields left zero mean "none". The function is a
    // trigger function, the table is locked.
    unsafe {
        let statement = pg_sys::palloc0(size_of::<pg_sys::CreateTrigStmt>()).cast::<pg_sys::CreateTrigStmt>();
        (*statement).type_ = pg_sys::NodeTag::T_CreateTrigStmt;
        (*statement).trigname = pg_sys::pstrdup(name.as_ptr());
        (*statement).row = bits & pg_sys::TRIGGER_TYPE_ROW != 0;
        (*statement).timing = (bits & pg_sys::TRIGGER_TYPE_BEFORE) as i16;
        (*statement).events = (bits & EVENTS) as i16;
        pg_sys::CreateTriggerFiringOn(
            statement,
            std::ptr::null(),
            table,
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            function,
            pg_sys::InvalidOid,
            std::ptr::null_mut(),
            is_internal,
            false,
            pg_sys::TRIGGER_FIRES_ALWAYS as c_char,
        );
        pg_sys::CommandCounterIncrement();
    }
}

impl Relation {
    /// Triggers of a type on a function, clones left out, and whether each fires always and for everything.
    fn matching_triggers(self, function: pg_sys::Oid, trigger_type: i16) -> Vec<(pg_sys::Oid, bool)> {
        self.own_triggers_with(function, |trigger| {
            (trigger.tgtype == trigger_type).then_some((trigger.tgoid, is_complete(trigger)))
        })
    }
}
