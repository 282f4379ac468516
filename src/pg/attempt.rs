//! Runs what may fail without failing the statement, as a PL/pgSQL block with EXCEPTION does: in a sub-transaction, which
//! goes with the error.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::pg_sys::{self, PgTryBuilder};

/// SQLSTATE, as its five characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// invalid_object_definition
    pub const INVALID_DEFINITION: SqlState = SqlState(*b"42P17");
    /// statement_too_complex
    pub const RECURSION: SqlState = SqlState(*b"54001");

    fn of(code: pg_sys::errcodes::PgSqlErrorCode) -> Self {
        // Six bits a character (PostgreSQL, `utils/elog.h`, PGUNSIXBIT).
        let code = code as isize;
        SqlState(std::array::from_fn(|i| ((code >> (6 * i)) & 0x3f) as u8 + b'0'))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// Class 57, operator intervention: a cancel or a shutdown, which is nobody's to catch.
    fn is_intervention(self) -> bool {
        self.0.starts_with(b"57")
    }
}

/// What went wrong.
#[derive(Debug)]
pub struct Failure {
    pub code: pg_sys::errcodes::PgSqlErrorCode,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Failure {
    pub fn sqlstate(&self) -> SqlState {
        SqlState::of(self.code)
    }
}

/// The body's result, or the ERROR that it ended in, with all that it did undone. `body` leaves nothing half done in memory
/// of ours.
pub fn attempt<T>(body: impl FnOnce() -> T) -> Result<T, Failure> {
    // SAFETY: the steps of PL/pgSQL's blocks with EXCEPTION (PostgreSQL, `pl_exec.c`): memory context and resource owner are
    // put back after the sub-transaction, whichever way it ended.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let outcome =
            PgTryBuilder::new(AssertUnwindSafe(|| Ok(body()))).catch_others(|caught| Err(Box::new(caught))).execute();
        let outcome = match outcome {
            Ok(value) => {
                pg_sys::ReleaseCurrentSubTransaction();
                Ok(value)
            }
            Err(caught) => {
                pg_sys::MemoryContextSwitchTo(context);
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
                Err(caught)
            }
        };
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        outcome.map_err(failure)
    }
}

/// What may be caught; anything else is raised again.
fn failure(caught: Box<CaughtError>) -> Failure {
    let report = match &*caught {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { .. } => caught.rethrow(),
    };
    let failure = Failure {
        code: report.sql_error_code(),
        message: report.message().into(),
        detail: report.detail().map(Into::into),
        hint: report.hint().map(Into::into),
    };
    if failure.sqlstate().is_intervention() {
        caught.rethrow();
    }
    failure
}
