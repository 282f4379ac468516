//! From [`Error`] to PostgreSQL's ERROR, and log lines.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, pg_sys};

use super::attempt::SqlState;
use crate::error::Error;

/// Raises the error. Unwinds to the entry point, where pgrx hands it to PostgreSQL.
#[track_caller]
pub fn raise(error: Error) -> ! {
    crate::alerts::note(&error);
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

/// A line in the server log, with SQLSTATE 00000. An empty hint is none.
pub fn log(message: String, hint: &str) {
    let report =
        ErrorReport::new(pg_sys::errcodes::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, "audit_ext");
    let report = if hint.is_empty() { report } else { report.set_hint(hint) };
    report.report(PgLogLevel::LOG);
}

/// Tells the client, and the server log, what went wrong without an error.
pub fn warn(warning: &Error, detail: &str) {
    ErrorReport::new(warning.sqlstate(), warning.to_string(), "audit_ext")
        .set_detail(detail)
        .report(PgLogLevel::WARNING);
}

/// A NOTICE to the client.
pub fn notice(message: String) {
    ErrorReport::new(pg_sys::errcodes::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, "audit_ext")
        .report(PgLogLevel::NOTICE);
}

/// Tells whoever changes a table that a rule's condition cannot be evaluated any more.
pub fn warn_of_broken_rule(table: &str, rule: i32, sqlstate: SqlState) {
    let message =
        format!("condition of audit action rule {rule} no longer fits table {table}: SQLSTATE {}", sqlstate.as_str());
    ErrorReport::new(pg_sys::errcodes::PgSqlErrorCode::ERRCODE_WARNING, message, "audit_ext")
        .set_hint("Drop the rule and add it anew; until then it names no event.")
        .report(PgLogLevel::WARNING);
}
