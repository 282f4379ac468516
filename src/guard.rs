//! Who may interfere with auditing. Each DDL command is looked at before it runs: by the event trigger for
//! ddl_command_start, or by the hook on utility statements, which holds where event triggers are switched off.
//!
//! Disabling, dropping, renaming or replacing an audit trigger is for audit administrators: those who may call
//! audit.disable. What else belongs to the extension, PostgreSQL leaves to its owner and to superusers. Nothing keeps a
//! superuser out; what he does is a line of the server log, and a record where one can be written.

use std::cell::Cell;

use pgrx::pg_sys::Oid;

use crate::coverage::{self, Details};
use crate::error::Error;
use crate::pg::command::{Command, Intrusion, is_being_made};
use crate::pg::relation::capture_function;
use crate::pg::{report, session, table_triggers};
use crate::policies;

thread_local! {
    /// The command is one of an administrator's that is meant to disable audit triggers.
    static IS_ADMITTED: Cell<bool> = const { Cell::new(false) };
    /// The table of a command that switches triggers, where the audit triggers were in place before.
    static IN_PLACE: Cell<Option<Oid>> = const { Cell::new(None) };
    /// The hook has looked at the command that the event trigger is about to see.
    static IS_SEEN: Cell<bool> = const { Cell::new(false) };
}

/// Before a command, from the hook.
pub fn before_command(command: Command) -> Result<(), Error> {
    look_at(command)?;
    IS_SEEN.set(true);
    Ok(())
}

/// Before a command, from the event trigger.
pub fn command_start(command: Command) -> Result<(), Error> {
    if IS_SEEN.take() { Ok(()) } else { look_at(command) }
}

fn look_at(command: Command) -> Result<(), Error> {
    IS_ADMITTED.set(false);
    IN_PLACE.set(None);
    let Some(capture) = capture_function().filter(|_| !is_being_made()) else { return Ok(()) };
    if let Some(table) = command.switches_triggers()
        && table_triggers::are_in_place(table, capture)
    {
        IN_PLACE.set(Some(table));
    }
    match command.intrusion(capture) {
        None => Ok(()),
        Some(Intrusion::Trigger { resource, trigger, what }) => {
            if !policies::is_administrator()? {
                return Err(Error::Guarded { what: format!("{what} audit trigger \"{trigger}\" of table {resource}") });
            }
            say(&format!("{what} audit trigger \"{trigger}\" of table {resource}"));
            IS_ADMITTED.set(true);
            Ok(())
        }
        Some(Intrusion::Object { kind, name, what }) => {
            say(&format!("{what} {kind} {name}"));
            // The log goes with the extension; and while that is updated, library and extension may differ.
            if matches!(kind, "extension" | "schema") {
                return Ok(());
            }
            let details = Details::default().text("command", &Some(format!("{what} {kind}")));
            coverage::record_own_object(name.as_bytes(), &details)
        }
    }
}

/// A line of the server log. It says who tries; whether it succeeds, PostgreSQL decides.
pub fn say(what: &str) {
    let roles = session::roles();
    let name = |role| String::from_utf8_lossy(&session::role_name(role)).into_owned();
    let (session, current) = (name(roles.session), name(roles.effective));
    let who = if session == current { session } else { format!("{current} (session of {session})") };
    report::log(format!("audit: {who} goes to {what}"), "");
}

/// Whether the command that ends is one of an administrator's that is meant to disable audit triggers.
pub fn take_admission() -> bool {
    IS_ADMITTED.take()
}

/// Whether the table's triggers were in place when the command began that switches triggers.
pub fn were_in_place(table: Oid) -> bool {
    IN_PLACE.get() == Some(table)
}
