//! From [`Error`] to PostgreSQL's ERROR, and log lines.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, pg_sys};

use super::attempt::SqlState;
use crate::error::Error;

/// Raises the error. Unwinds to the entry point, where pgrx hands it to PostgreSQL.
#[track_caller]
pub fn raise(error: Error) -> ! {
    let mut report = ErrorReport::new(error.sqlstate(), error.to_string(), "audit_ext");
    if let Some(detail) = error.detail() {
        report = report.set_detail(detail);
    }
    if let Some(hint) = error.hint() {
        report = report.set_hint(hint);
    }
    report.report(PgLogLevel::ERROR);
    // `report` does not return at this level; the type system does not know.
    std::process::abort()
}

/// The value, or the error raised.
#[track_caller]
pub fn ok<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => raise(error),
    }
}

/// A line in the server log, with SQLSTATE 00000.
pub fn log(message: String, hint: &str) {
    ErrorReport::new(pg_sys::errcodes::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, "audit_ext")
        .set_hint(hint)
        .report(PgLogLevel::LOG);
}

/// Tells whoever changes a table that a rule's condition cannot be evaluated any more.
pub fn warn_of_broken_rule(table: &str, rule: i32, sqlstate: SqlState) {
    let message =
        format!("condition of audit action rule {rule} no longer fits table {table}: SQLSTATE {}", sqlstate.as_str());
    ErrorReport::new(pg_sys::errcodes::PgSqlErrorCode::ERRCODE_WARNING, message, "audit_ext")
        .set_hint("Drop the rule and add it anew; until then it names no event.")
        .report(PgLogLevel::WARNING);
}
