//! What this version takes the extension's own tables to be: names and types of their columns, in order. Whoever reads or
//! writes rows past SQL compares first, so that an altered table is an error and not a wrong row.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::catalog;
use super::relation::{attributes, name_bytes};
use crate::error::Error;

/// A table of the log: its name and the columns that the writer lays out.
pub struct Definition {
    pub name: &'static CStr,
    pub columns: &'static [(&'static str, ColumnType)],
}

#[derive(Clone, Copy)]
pub enum ColumnType {
    Core(pg_sys::BuiltinOid),
    /// An enum of ours, by name.
    Own(&'static CStr),
}

/// Whether a descriptor has exactly the columns that the writer lays out.
///
/// # Safety
/// The descriptor must stay meanwhile.
pub(super) unsafe fn check_columns(definition: &Definition, descriptor: pg_sys::TupleDesc) -> Result<(), Error> {
    let altered =
        |detail: String| Err(Error::LogAltered { table: definition.name.to_string_lossy().into_owned(), detail });
    // SAFETY: the caller's word.
    unsafe {
        if (*descriptor).natts as usize != definition.columns.len() {
            return altered("It has columns that this version does not write, or lacks some.".into());
        }
        let mut found = attributes(descriptor);
        for (name, column_type) in definition.columns {
            let expected = match column_type {
                ColumnType::Core(oid) => Some(oid.value()),
                ColumnType::Own(type_name) => catalog::type_oid(type_name),
            };
            let same = found.next().is_some_and(|(_, attribute)| {
                name_bytes(&attribute.attname) == name.as_bytes() && Some(attribute.atttypid) == expected
            });
            if !same {
                return altered(format!("Column \"{name}\" is not where and what this version writes."));
            }
        }
    }
    Ok(())
}
