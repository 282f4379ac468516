//! Names of actions: what an event means. The catalog is the table audit.action.

use std::cell::Cell;

use crate::error::Error;
use crate::gucs;
use crate::pg::catalog;
use crate::store;

/// Longest name, in bytes.
pub const MAX_BYTES: usize = 128;
/// Names of this extension's own events begin with it.
const RESERVED: &[u8] = b"audit.";

/// Column of audit.action, counted from 1.
const NAME_COLUMN: i16 = 1;

/// Refuses what is no name of an action, is reserved, or with `audit.strict_actions` not in the catalog.
pub fn check(name: &[u8]) -> Result<(), Error> {
    let trimmed = name.trim_ascii();
    if name.is_empty() || name.len() > MAX_BYTES || trimmed != name || name.iter().any(u8::is_ascii_control) {
        return Err(Error::InvalidOption {
            message: format!("invalid action \"{}\"", text(&name[..name.len().min(MAX_BYTES)])),
            hint: "An action is a name of 1 to 128 bytes, such as order.approved, without control characters and without blanks at its ends.",
        });
    }
    if name.starts_with(RESERVED) {
        return Err(Error::ReservedAction { action: text(name) });
    }
    if gucs::strict_actions() && !is_catalogued(name)? {
        return Err(Error::UnknownAction { action: text(name) });
    }
    Ok(())
}

fn is_catalogued(name: &[u8]) -> Result<bool, Error> {
    let found = Cell::new(false);
    catalog::scan_text(&store::ACTION, c"action_pkey", NAME_COLUMN, name, |_| found.set(true))?;
    Ok(found.get())
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
