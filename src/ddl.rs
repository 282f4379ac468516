//! What DDL commands mean for auditing: new tables of an enabled schema, partitions and children of audited tables that
//! come, partitions that are detached, tables that are dropped, rows that change without a trigger. And their record.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys::{AccessExclusiveLock, AccessShareLock, NoLock, Oid};

use crate::coverage::{self, Change, Details, action};
use crate::error::Error;
use crate::guard;
use crate::layouts::{self, Named};
use crate::pg::command::Command;
use crate::pg::relation::{capture_function, is_locked_by_us, partition_ancestors, with_descendants};
use crate::pg::session::{self, Place};
use crate::pg::{catalog, command, table_triggers};
use crate::policies::{self, Acting, Altered, Cause};
use crate::store;

thread_local! {
    /// Tables that a command has rewritten, and where that was.
    static REWRITTEN: RefCell<Vec<(Oid, Rewrite, Place)>> = const { RefCell::new(Vec::new()) };
    /// Ends of commands that event triggers have seen.
    static ENDS: Cell<u64> = const { Cell::new(0) };
}

/// Why a table is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// Its rows get other values.
    Values,
    /// They are only stored in another way.
    Storage,
}

/// A table is about to be rewritten.
pub fn rewrites(table: Oid, why: Rewrite) {
    let place = session::place();
    REWRITTEN.with_borrow_mut(|rewritten| {
        // What is left of commands that failed.
        rewritten.retain(|(_, _, other)| *other == place);
        rewritten.push((table, why, place));
    });
}

fn take_rewritten() -> Vec<(Oid, Rewrite)> {
    let rewritten = REWRITTEN.take();
    if rewritten.is_empty() {
        return Vec::new();
    }
    let place = session::place();
    rewritten.into_iter().filter(|(_, _, other)| *other == place).map(|(table, why, _)| (table, why)).collect()
}

/// The command that ends.
#[derive(Clone, Copy)]
pub struct Ending<'a> {
    pub tag: &'a str,
    pub command: Option<Command>,
}

impl Ending<'_> {
    /// Whether it makes or alters tables and schemas: others only alter things of tables.
    fn is_of_tables(&self) -> bool {
        self.tag.ends_with("TABLE")
            || self.tag.ends_with("SCHEMA")
            || matches!(self.tag, "CREATE TABLE AS" | "SELECT INTO")
    }

    fn cause(&self) -> Cause {
        if self.command.is_some_and(Command::is_alter_table) { Cause::Altered } else { Cause::Arrived }
    }
}

/// After a DDL command, in the same command.
///
/// It locks no other tables than the command has, their partitions and children: commands that run side by side, as in a
/// parallel restore, would wait for each other.
pub fn command_end(ending: &Ending) -> Result<(), Error> {
    ENDS.set(ENDS.get() + 1);
    let is_admitted = guard::take_admission();
    let rewritten = take_rewritten();
    let Some(capture) = capture_function().filter(|_| !command::is_being_made()) else { return Ok(()) };
    let mut arrived = Vec::new();
    let mut changes = Vec::new();
    let altered;
    let ours;
    {
        let acting = Acting::begin()?;
        altered = policies::altered_of_audited()?;
        ours = policies::altered_of_ours()?;
        if ending.is_of_tables() {
            policies::follow_renamed_schemas()?;
            let touched = policies::touched_tables()?;
            guard_log_partitions(&touched, ending.cause())?;
            // What an administrator disables stays so until the table is next altered, or audit.enable is called.
            if !is_admitted {
                for table in affected(&touched, capture)? {
                    let followed = policies::follow(table, ending.cause(), &acting)?;
                    arrived.extend(followed.is_new.then_some(table));
                    changes.extend(followed.change.map(|change| (table, change)));
                }
            }
        }
    }
    record(ending, &changes, &altered)?;
    for identity in ours {
        // Partitions that are made ahead are no change of the log.
        if !matches!(ending.tag, "CREATE TABLE" | "CREATE INDEX") {
            coverage::record_own_object(&identity, &Details::of_command(ending.tag))?;
        }
    }
    if is_admitted {
        let tables: Vec<Oid> = altered.iter().map(|altered| altered.table).collect();
        record_disabled(&tables, ending.tag, capture)?;
    }
    let with_new_values = record_rewritten(&rewritten, &arrived)?;
    arrived.extend(with_new_values);
    policies::record_rows(&arrived, capture)
}

/// The tables that a command may have brought into another state than they should be in.
fn affected(touched: &[Oid], capture: Oid) -> Result<Vec<Oid>, Error> {
    // A partition that is detached loses the clone of its parent's trigger, whoever that was.
    let mut affected = if touched.is_empty() { Vec::new() } else { policies::without_trigger(capture)? };
    affected.retain(|&table| is_locked_by_us(table, AccessExclusiveLock));
    for &table in touched {
        // Children that no longer inherit are none of its descendants any more.
        affected.extend(policies::orphans(table)?);
        affected.extend(with_descendants(table, NoLock));
    }
    let mut seen = Vec::new();
    affected.retain(|table| {
        let is_first = !seen.contains(table);
        seen.push(*table);
        is_first
    });
    Ok(affected)
}

/// Records what the command did to audited tables: what it changed of their auditing and layout; else, that it was there.
fn record(ending: &Ending, changes: &[(Oid, Change)], altered: &[Altered]) -> Result<(), Error> {
    if !coverage::is_recorded() {
        return Ok(());
    }
    let mut said = Vec::new();
    for (table, change) in changes {
        let command = coverage::Command { tag: ending.tag, were_in_place: guard::were_in_place(*table) };
        let mut is_said = coverage::record_change(change, &command)?;
        if let (Some(was), Some(is)) = (&change.was.layout, &change.is.layout)
            && was.relation_id != is.relation_id
        {
            record_layout(was, is, ending.tag)?;
            is_said = true;
        }
        if is_said {
            said.push(*table);
        }
    }
    let new_owner = ending.command.and_then(Command::changes_owner);
    for altered in altered {
        let Some(table) = layouts::last_written(altered.table)? else { continue };
        if Some(altered.table) == new_owner {
            let owner = policies::owner_of(altered.table)?;
            coverage::record(&table, action::OWNER_CHANGED, &Details::of_command(ending.tag).text("owner", &owner))?;
        } else if !said.contains(&altered.table) || !altered.is_of_table() {
            let details = Details::of_command(ending.tag)
                .text("object_type", &Some(&altered.object_type))
                .text("object", &Some(&altered.identity));
            coverage::record(&table, action::TABLE_ALTERED, &details)?;
        }
    }
    Ok(())
}

fn record_layout(was: &Named, is: &Named, tag: &str) -> Result<(), Error> {
    let mut details = Details::of_command(tag);
    let change = policies::layout_change(was.relation_id, is.relation_id)?;
    if let Some(change) = change {
        details = details.json("layout", &change);
    }
    let action = if was.resource == is.resource { action::TABLE_ALTERED } else { action::TABLE_RENAMED };
    coverage::record(is, action, &details)
}

/// Records of which tables, and descendants of theirs, an administrator has disabled triggers.
fn record_disabled(tables: &[Oid], tag: &str, capture: Oid) -> Result<(), Error> {
    for &table in tables {
        for table in with_descendants(table, NoLock) {
            let is_captured = table_triggers::are_in_place(table, capture);
            if let Some(table) = layouts::last_written(table)?.filter(|_| !is_captured) {
                coverage::record(&table, action::TRIGGER_DISABLED, &Details::of_command(tag))?;
            }
        }
    }
    Ok(())
}

/// Records which audited tables were rewritten. Returns those whose rows have other values now.
fn record_rewritten(rewritten: &[(Oid, Rewrite)], arrived: &[Oid]) -> Result<Vec<Oid>, Error> {
    let mut with_new_values = Vec::new();
    for &(table, why) in rewritten {
        let is_audited = {
            let _acting = Acting::begin()?;
            policies::is_audited(table)?
        };
        if !is_audited || arrived.contains(&table) {
            continue;
        }
        if let Some(named) = layouts::last_written(table)? {
            let reason = if why == Rewrite::Values { "values" } else { "storage" };
            coverage::record(&named, action::TABLE_REWRITTEN, &Details::default().text("reason", &Some(reason)))?;
        }
        if why == Rewrite::Values {
            with_new_values.push(table);
        }
    }
    Ok(with_new_values)
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
pub fn dropped(tag: &str) -> Result<(), Error> {
    ENDS.set(ENDS.get() + 1);
    if capture_function().is_none() {
        // The extension itself is being dropped.
        return Ok(());
    }
    for object in policies::dropped_of_audited()? {
        let details = || Details::of_command(tag);
        match &object.table {
            Some(table) if object.is_audit_trigger => {
                // However it came to be dropped.
                if !policies::is_administrator()? {
                    return Err(Error::Guarded { what: object.what() });
                }
                coverage::record(table, action::TRIGGER_DROPPED, &details().text("object", &Some(&object.identity)))?;
            }
            Some(table) if object.is_part => {
                let details =
                    details().text("object_type", &Some(&object.object_type)).text("object", &Some(&object.identity));
                coverage::record(table, action::TABLE_ALTERED, &details)?;
            }
            Some(table) => coverage::record(table, action::TABLE_DROPPED, &details())?,
            None if object.is_ours => {
                guard::say(&object.what());
                coverage::record_own_object(&object.identity, &details())?;
            }
            None => {}
        }
    }
    policies::forget_dropped()
}

/// How many ends of commands event triggers have seen.
pub fn ends() -> u64 {
    ENDS.get()
}

/// After a command that event triggers should have seen, and did not: they are switched off. `tables` are those that it
/// named before it ran, `named` those that it names now.
pub fn command_end_unseen(tables: &[Oid], now: &[Oid], ending: &Ending) -> Result<(), Error> {
    let is_admitted = guard::take_admission();
    let Some(capture) = capture_function().filter(|_| !command::is_being_made()) else { return Ok(()) };
    let mut arrived = Vec::new();
    let mut changes = Vec::new();
    let mut gone = Vec::new();
    {
        let acting = Acting::begin()?;
        for table in policies::gone()? {
            gone.extend(layouts::last_written(table)?);
            policies::forget_table(table)?;
        }
        let touched: Vec<Oid> =
            tables.iter().chain(now).copied().filter(|&table| catalog::table_name(table).is_some()).collect();
        if !is_admitted {
            for table in affected(&touched, capture)? {
                let followed = policies::follow(table, ending.cause(), &acting)?;
                arrived.extend(followed.is_new.then_some(table));
                changes.extend(followed.change.map(|change| (table, change)));
            }
        }
    }
    record(ending, &changes, &[])?;
    for table in &gone {
        coverage::record(table, action::TABLE_DROPPED, &Details::of_command(ending.tag))?;
    }
    if is_admitted {
        record_disabled(tables, ending.tag, capture)?;
    }
    policies::record_rows(&arrived, capture)
}
