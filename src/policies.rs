//! What is audited: audit.policy and audit.schema_policy, and the triggers that go with them.
//!
//! One rule makes all cases come out right: [`follow`] brings a table into the state that its own policy, its audited
//! ancestors and its schema's policy call for. Enabling, disabling, attached, detached and new tables all end there.

use pgrx::pg_sys::{self, Oid};

use crate::action_rules::Rules;
use crate::coverage::{self, Change, Details, Standing, action};
use crate::error::Error;
use crate::pg::env::{self, Env};
use crate::pg::relation::{self, Opened, is_locked_by_us, with_descendants};
use crate::pg::session::{self, AsOwner};
use crate::pg::{report, table_triggers};
use crate::{failures, layouts, store, trigger};

mod actions;
mod rules;
mod standing;
mod tables;

pub use actions::{NewRule, add_action_rule, drop_action_rule};
pub use rules::Options;
use rules::{check_auditable, check_context_keys, check_options, check_schema, is_auditable_kind};
use standing::audited_standing;
pub use standing::{Altered, altered_of_audited, altered_of_ours, dropped_of_audited, layout_change, owner_of};
use tables::{
    copy_policy, detach_policy, except_from_schema, forget_policy, forget_schema, is_as_restored, policy_of,
    rename_columns, schema_options, standing, tables_of, write_inherited, write_policy, write_schema_policy,
};
pub use tables::{
    follow_renamed_schemas, forget_dropped, forget_table, gone, index_log_partition, is_administrator, is_audited,
    orphans, touched_tables, without_trigger,
};

/// Audits a table, its partitions and inheritance children; or changes how.
pub fn enable(target: Oid, options: &Options) -> Result<(), Error> {
    let opened = lock(target)?;
    check_auditable(opened.relation())?;
    check_options(opened.relation(), options)?;
    drop(opened);
    let tables = with_descendants(target, pg_sys::ShareRowExclusiveLock);
    // Here rather than with the first changes, which may come from many sessions at once.
    store::era()?;
    let acting = Acting::begin()?;
    let before = standings(&tables)?;
    write_policy(target, None, options)?;
    except_from_schema(target, false)?;
    for &table in tables.iter().filter(|&&table| table != target) {
        write_inherited(table, target, &tables, options)?;
    }
    // The triggers as the catalog has them, also where somebody wrote to it by hand.
    tables.iter().copied().for_each(table_triggers::invalidate);
    session::make_changes_visible();
    let mut changes = Vec::new();
    for (&table, was) in tables.iter().zip(before) {
        let is_restored = establish(table, &acting)?;
        changes.push(Change { is_restored: is_restored && was.policy.is_some(), was, is: audited_standing(table)? });
    }
    let capture = acting.end();
    record_changes(&changes)?;
    if options.snapshot { record_rows(&tables, capture) } else { Ok(()) }
}

fn standings(tables: &[Oid]) -> Result<Vec<Standing>, Error> {
    tables.iter().map(|&table| audited_standing(table)).collect()
}

/// Records what a function of ours changed.
fn record_changes(changes: &[Change]) -> Result<(), Error> {
    for change in changes {
        coverage::record_change(change, &coverage::Command::default())?;
    }
    Ok(())
}

/// Ends auditing of a table and of what followed it, unless something else calls for it.
pub fn disable(target: Oid) -> Result<(), Error> {
    let opened = lock(target)?;
    let resource = String::from_utf8_lossy(&opened.relation().resource()).into_owned();
    drop(opened);
    let tables = with_descendants(target, pg_sys::ShareRowExclusiveLock);
    let acting = Acting::begin()?;
    match policy_of(target)? {
        // Its triggers alone are left, of a dump without audit.policy.
        None if table_triggers::any(target, acting.capture) => {}
        None => return Err(Error::NotEnabled { table: resource }),
        Some(Some(root)) => {
            let root = Opened::with_lock(root, pg_sys::AccessShareLock)
                .map_or_else(String::new, |root| String::from_utf8_lossy(&root.relation().resource()).into_owned());
            return Err(Error::Inherited { table: resource, root });
        }
        Some(None) => {}
    }
    let before = standings(&tables)?;
    forget_policy(target)?;
    except_from_schema(target, true)?;
    let mut changes = Vec::new();
    for (&table, was) in tables.iter().zip(before) {
        follow(table, Cause::Disabled, &acting)?;
        changes.push(Change { was, is: audited_standing(table)?, is_restored: false });
    }
    drop(acting);
    record_changes(&changes)
}

/// The rights and the function that putting triggers on tables takes.
pub struct Acting {
    _owner: AsOwner,
    _environment: env::Guard,
    capture: Oid,
}

impl Acting {
    pub fn begin() -> Result<Self, Error> {
        let capture = relation::capture_function().ok_or(Error::NotInstalled)?;
        // Failures are reported from now on, if not already.
        failures::extension_is_here();
        Ok(Acting { _owner: AsOwner::begin()?, _environment: env::enter(Env::Settings), capture })
    }

    fn end(self) -> Oid {
        self.capture
    }
}

/// Why a table is brought into the state that it should be in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was created, renamed or moved, so that its schema's policy applies.
    Arrived,
    Altered,
    Disabled,
}

/// What following has come to.
#[derive(Default)]
pub struct Followed {
    /// Auditing of the table begins here, so that rows it has came in without an event.
    pub is_new: bool,
    pub change: Option<Change>,
}

/// Brings a table into the state that its policy, its ancestors and its schema call for.
pub fn follow(table: Oid, cause: Cause, acting: &Acting) -> Result<Followed, Error> {
    // At once what it takes to put triggers on it, and before rows of policies are touched: sessions that do the same for
    // one table wait for each other here, and nowhere else.
    let before = standing(table)?;
    let lock = match before {
        (None, None) => pg_sys::AccessShareLock,
        _ => pg_sys::ShareRowExclusiveLock,
    };
    let Some(opened) = Opened::with_lock(table, lock) else { return Ok(Followed::default()) };
    let relation = opened.relation();
    if !is_auditable_kind(relation) {
        return Ok(Followed::default());
    }
    let was = if before.0.is_some() { audited_standing(table)? } else { Standing::default() };
    rename_columns(table)?;
    let (own, source) = standing(table)?;
    let mut is_new = false;
    match (own, source) {
        (Some(None), _) => {}
        (_, Some(source)) => {
            is_new = own.is_none();
            copy_policy(table, source)?;
        }
        // Detached: it stays audited, by a policy of its own.
        (Some(Some(_)), None) => {
            detach_policy(table)?;
        }
        (None, None) => {
            let applies = cause != Cause::Altered && check_auditable(relation).is_ok();
            let options = if applies { schema_options(relation)? } else { None };
            let Some(options) = options else {
                drop(opened);
                without_policy(table, cause, acting)?;
                return Ok(Followed::default());
            };
            write_policy(table, None, &options)?;
            is_new = true;
        }
    }
    drop(opened);
    let is_restored = put_triggers(table, acting)?;
    if is_new || !is_as_restored(table)? {
        write_layout(table, acting)?;
    }
    let is_restored = is_restored && !is_new;
    Ok(Followed { is_new, change: Some(Change { was, is: audited_standing(table)?, is_restored }) })
}

/// A table that nothing calls to be audited. Triggers that it has nevertheless may come from a dump, whose policies come
/// later, or not at all: they stay, and refuse changes until there is a policy.
fn without_policy(table: Oid, cause: Cause, acting: &Acting) -> Result<(), Error> {
    if cause == Cause::Disabled {
        if table_triggers::remove_all(table, acting.capture) {
            table_triggers::invalidate(table);
        }
    } else if is_locked_by_us(table, pg_sys::ShareRowExclusiveLock) && table_triggers::any(table, acting.capture) {
        put_triggers(table, acting)?;
    }
    Ok(())
}

/// Puts the triggers on a table that has a policy, and writes its layout. Returns whether triggers were missing.
fn establish(table: Oid, acting: &Acting) -> Result<bool, Error> {
    let is_restored = put_triggers(table, acting)?;
    write_layout(table, acting)?;
    Ok(is_restored)
}

fn put_triggers(table: Oid, acting: &Acting) -> Result<bool, Error> {
    let is_restored = table_triggers::ensure(table, acting.capture)?;
    table_triggers::invalidate(table);
    session::make_changes_visible();
    Ok(is_restored)
}

fn write_layout(table: Oid, acting: &Acting) -> Result<(), Error> {
    if let Some(opened) = Opened::with_lock(table, pg_sys::AccessShareLock) {
        let layout = layouts::get(opened.relation(), acting.capture)?;
        for (rule, sqlstate) in layout.rules.iter().flat_map(Rules::broken) {
            report::warn_of_broken_rule(&layout.resource_text(), rule, sqlstate);
        }
    }
    Ok(())
}

/// Records the rows that are in tables now as SNAPSHOT events.
pub fn record_rows(tables: &[Oid], capture: Oid) -> Result<(), Error> {
    for &table in tables {
        let Some(opened) = Opened::with_lock(table, pg_sys::ShareRowExclusiveLock) else { continue };
        if opened.relation().has_storage() {
            trigger::snapshot(opened.relation(), capture)?;
        }
    }
    Ok(())
}

/// Audits the tables of a schema; with `include_future` also those to come. Returns how many it found.
pub fn enable_schema(schema: Oid, include_future: bool, options: &Options) -> Result<i32, Error> {
    let name = check_schema(schema)?;
    check_context_keys(options)?;
    {
        let _acting = Acting::begin()?;
        write_schema_policy(schema, &name, include_future, options)?;
    }
    let details = Details::default().flag("include_future", include_future);
    coverage::record_object(name.as_bytes(), action::SCHEMA_ENABLED, &details)?;
    let mut count = 0;
    for table in tables_of(schema)? {
        let Some(opened) = Opened::with_lock(table, pg_sys::ShareRowExclusiveLock) else { continue };
        let own = options.for_table(opened.relation());
        drop(opened);
        enable(table, &own)?;
        count += 1;
    }
    Ok(count)
}

/// Ends auditing of a schema's tables, present and future. Returns how many there were.
pub fn disable_schema(schema: Oid) -> Result<i32, Error> {
    let name = check_schema(schema)?;
    {
        let _acting = Acting::begin()?;
        forget_schema(&name)?;
    }
    coverage::record_object(name.as_bytes(), action::SCHEMA_DISABLED, &Details::default())?;
    let mut count = 0;
    for table in tables_of(schema)? {
        let is_own = {
            let _acting = Acting::begin()?;
            matches!(policy_of(table)?, Some(None))
        };
        if is_own {
            disable(table)?;
            count += 1;
        }
    }
    Ok(count)
}

fn lock(target: Oid) -> Result<Opened, Error> {
    Opened::with_lock(target, pg_sys::ShareRowExclusiveLock).ok_or(Error::NoSuchTable { oid: target.to_u32() })
}
