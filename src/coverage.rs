//! Coverage events: what begins, changes, interrupts or ends the auditing of a table, and DDL on audited tables. They are
//! events like others, with operation and origin DDL, so that `audit.coverage_gaps` can tell from the log alone since when
//! a table was captured without a gap.

use std::cell::Cell;

use audit_core::canonical::{Operation, Origin, Status};
use audit_core::jsonb::{Writer, put_quoted};

use crate::error::Error;
use crate::layouts::{Named, Table};
use crate::pg::session::{self, Place};
use crate::transaction::{self, Event, Image};
use crate::{gucs, ledger, suspension};

/// Names of the events' actions. sql/15_actions.sql says what they mean, sql/45_coverage.sql what they do to coverage.
pub mod action {
    pub const ENABLED: &str = "audit.enabled";
    pub const DISABLED: &str = "audit.disabled";
    pub const OPTIONS_CHANGED: &str = "audit.options_changed";
    pub const TRIGGER_DISABLED: &str = "audit.trigger_disabled";
    pub const TRIGGER_DROPPED: &str = "audit.trigger_dropped";
    pub const TRIGGERS_RESTORED: &str = "audit.triggers_restored";
    pub const PARTITION_ATTACHED: &str = "audit.partition_attached";
    pub const PARTITION_DETACHED: &str = "audit.partition_detached";
    pub const TABLE_ALTERED: &str = "audit.table_altered";
    pub const TABLE_RENAMED: &str = "audit.table_renamed";
    pub const TABLE_REWRITTEN: &str = "audit.table_rewritten";
    pub const TABLE_DROPPED: &str = "audit.table_dropped";
    pub const OWNER_CHANGED: &str = "audit.owner_changed";
    pub const SCHEMA_ENABLED: &str = "audit.schema_enabled";
    pub const SCHEMA_DISABLED: &str = "audit.schema_disabled";
    pub const OBJECT_ALTERED: &str = "audit.object_altered";
}

/// How a table is audited at one moment.
#[derive(Default)]
pub struct Standing {
    /// The options in audit.policy, as the text of a JSON object.
    pub policy: Option<Vec<u8>>,
    /// The table whose options it follows.
    pub follows: Option<Vec<u8>>,
    /// Its last layout that was written in this database. Nothing is recorded of a table without: it came with a restore,
    /// and what the restore brings of the log may be yet to come.
    pub layout: Option<Named>,
}

/// What a command made of a table's auditing.
pub struct Change {
    pub was: Standing,
    pub is: Standing,
    /// Triggers were missing or disabled, and are there again.
    pub is_restored: bool,
}

/// The command that is being recorded.
#[derive(Clone, Copy, Default)]
pub struct Command<'a> {
    /// ALTER TABLE and the like; empty for functions of ours.
    pub tag: &'a str,
    /// Where triggers had to be restored, whether they were in place until this very command.
    pub were_in_place: bool,
}

/// Whether such events are recorded now.
pub fn is_recorded() -> bool {
    gucs::log_ddl() && gucs::enabled() && !session::is_standby()
}

/// Records an event about a table.
pub fn record(table: &Named, action: &str, details: &Details) -> Result<(), Error> {
    write(Some(table.table()), action, None, details)
}

thread_local! {
    /// Where audit.maintain() alters objects of the extension.
    static EXPECTED: Cell<Option<Place>> = const { Cell::new(None) };
}

/// DDL on the extension's own objects is maintenance from now on, in this sub-transaction, or no longer. It is no event, for
/// which there is no place anyway while the default partition is exchanged. The line of the server log stays.
pub fn expect_own_ddl(is_expected: bool) {
    EXPECTED.set(is_expected.then(session::place));
}

fn is_expected() -> bool {
    EXPECTED.get().is_some_and(|place| place == session::place())
}

/// Records an event about an object of the extension's, unless it would be the first one here: before that there is
/// nothing to protect, and a restore that brings the log must find it empty. An update, during which the library may be of
/// another version, is left out too.
pub fn record_own_object(resource: &[u8], details: &Details) -> Result<(), Error> {
    if is_recorded() && !is_expected() && session::check_version().is_ok() && ledger::era_begun()?.is_some() {
        record_object(resource, action::OBJECT_ALTERED, details)?;
    }
    Ok(())
}

/// Records an event about something else.
pub fn record_object(resource: &[u8], action: &str, details: &Details) -> Result<(), Error> {
    write(None, action, Some(resource), details)
}

fn write(table: Option<Table>, action: &str, resource: Option<&[u8]>, details: &Details) -> Result<(), Error> {
    if !is_recorded() {
        return Ok(());
    }
    transaction::begin_event(Origin::Ddl)?;
    suspension::record()?;
    let details = details.jsonb()?;
    transaction::record(&Event {
        layout: table,
        operation: Operation::Ddl,
        status: Status::Success,
        command: session::current_command(),
        action: Some(action.as_bytes()),
        resource,
        resource_id: None,
        row_image: None,
        old_values: None,
        details: details.as_ref().map(Image::of),
    })
}

/// Records what changed in a table's auditing. Returns whether there was something to record.
pub fn record_change(change: &Change, command: &Command) -> Result<bool, Error> {
    let (was, is) = (&change.was, &change.is);
    let Some(layout) = is.layout.as_ref().or(was.layout.as_ref()) else { return Ok(false) };
    let details = || Details::of_command(command.tag);
    let mut is_said = true;
    match (&was.policy, &is.policy) {
        (None, Some(policy)) => {
            record(layout, action::ENABLED, &details().json("options", policy).text("inherited_from", &is.follows))?;
        }
        (Some(policy), None) => {
            record(layout, action::DISABLED, &details().json("options", policy).text("inherited_from", &was.follows))?;
        }
        (Some(before), Some(after)) => {
            let (moved, changed) = (was.follows != is.follows, before != after);
            if moved {
                let (action, parent) = match &is.follows {
                    Some(_) => (action::PARTITION_ATTACHED, &is.follows),
                    None => (action::PARTITION_DETACHED, &was.follows),
                };
                record(layout, action, &details().text("parent", parent))?;
            }
            if changed {
                let both = details().json("before", before).json("after", after);
                record(layout, action::OPTIONS_CHANGED, &both)?;
            }
            if change.is_restored && !moved {
                let details = details().flag("were_in_place", command.were_in_place);
                record(layout, action::TRIGGERS_RESTORED, &details)?;
            }
            is_said = moved || changed || change.is_restored;
        }
        (None, None) => is_said = false,
    }
    Ok(is_said)
}

/// Members of an event's details. Those without a value are left out.
#[derive(Default)]
pub struct Details(Vec<(&'static str, Value)>);

enum Value {
    Json(Vec<u8>),
    Text(Vec<u8>),
}

impl Details {
    pub fn of_command(tag: &str) -> Self {
        Details::default().text("command", &Some(tag).filter(|tag| !tag.is_empty()))
    }

    pub fn text(mut self, name: &'static str, value: &Option<impl AsRef<[u8]>>) -> Self {
        self.0.extend(value.as_ref().map(|value| (name, Value::Text(value.as_ref().to_vec()))));
        self
    }

    /// A value that is JSON text already.
    pub fn json(mut self, name: &'static str, value: &[u8]) -> Self {
        self.0.push((name, Value::Json(value.to_vec())));
        self
    }

    pub fn flag(self, name: &'static str, value: bool) -> Self {
        self.json(name, if value { b"true" } else { b"false" })
    }

    fn jsonb(&self) -> Result<Option<Writer>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut text = vec![b'{'];
        for (name, value) in &self.0 {
            if text.len() > 1 {
                text.push(b',');
            }
            put_quoted(&mut text, name.as_bytes())?;
            text.push(b':');
            match value {
                Value::Json(json) => text.extend_from_slice(json),
                Value::Text(value) => put_quoted(&mut text, value)?,
            }
        }
        text.push(b'}');
        let mut writer = Writer::new();
        writer.json(&text)?;
        Ok(Some(writer))
    }
}
