//! Background workers: how they are registered, connected, told to end, and how they run transactions.

use std::ffi::{CStr, CString};
use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
#[cfg(not(feature = "pg18"))]
use pgrx::pg_sys::pqsignal;
#[cfg(feature = "pg18")]
use pgrx::pg_sys::pqsignal_be as pqsignal;
use pgrx::{PgTryBuilder, pg_guard, pg_sys};

use super::report;
use crate::error::Error;

const LIBRARY: &CStr = c"audit_ext";

/// PostgreSQL's signal handlers (postmaster/interrupt.h), without pgrx's guard: they only set flags.
mod handlers {
    use std::ffi::c_int;

    unsafe extern "C-unwind" {
        pub fn SignalHandlerForConfigReload(signal: c_int);
        pub fn SignalHandlerForShutdownRequest(signal: c_int);
        pub fn die(signal: c_int);
    }
}

/// Has the postmaster start the launcher, and again whenever it ends.
pub fn register_launcher() {
    let mut launcher = describe(c"audit launcher", c"audit launcher", c"audit_launcher_main");
    launcher.bgw_restart_time = 1;
    // SAFETY: called while the postmaster loads libraries; it copies the structure.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut launcher) };
}

fn describe(name: &CStr, kind: &CStr, function: &CStr) -> pg_sys::BackgroundWorker {
    fn put(target: &mut [std::ffi::c_char], text: &CStr) {
        let length = target.len() - 1;
        for (to, from) in target[..length].iter_mut().zip(text.to_bytes()) {
            *to = *from as std::ffi::c_char;
        }
    }
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32,
        // Not on a standby: it writes. After promotion it starts.
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
        ..Default::default()
    };
    put(&mut worker.bgw_name, name);
    put(&mut worker.bgw_type, kind);
    put(&mut worker.bgw_library_name, LIBRARY);
    put(&mut worker.bgw_function_name, function);
    worker
}

/// What a worker does in its database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Writes what is in the queue; told to end, it does so first.
    Queue,
    /// Can be left off at any time.
    Maintenance,
    /// Likewise.
    Sealing,
}

/// A worker that was asked for.
pub struct Started(*mut pg_sys::BackgroundWorkerHandle);

/// Asks for a worker for a database; `None` if `max_worker_processes` are running. This process's latch is set when it
/// has started and when it has ended.
pub fn start(job: Job, database: pg_sys::Oid) -> Option<Started> {
    let (kind, function) = match job {
        Job::Queue => (c"audit worker", c"audit_worker_main"),
        Job::Maintenance => (c"audit maintenance", c"audit_maintenance_main"),
        Job::Sealing => (c"audit sealer", c"audit_sealer_main"),
    };
    let name = format!("{} for database {}", kind.to_string_lossy(), database.to_u32());
    let mut worker = describe(&CString::new(name).unwrap_or_default(), kind, function);
    let mut handle = std::ptr::null_mut();
    // SAFETY: the server copies the structure, and allocates the handle in the memory context that is to live as long as
    // this process.
    unsafe {
        worker.bgw_main_arg = pg_sys::Datum::from(database);
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let outer = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let is_registered = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
        pg_sys::MemoryContextSwitchTo(outer);
        is_registered.then(|| Started(handle))
    }
}

impl Started {
    pub fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle is the one that the server gave.
        unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) == pg_sys::BgwHandleStatus::BGWH_STOPPED }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // SAFETY: the handle is palloc'd and this one's own.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}

#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn audit_launcher_main(_argument: pg_sys::Datum) {
    begin(None);
    crate::worker::launcher();
}

#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn audit_worker_main(argument: pg_sys::Datum) {
    let database = pg_sys::Oid::from(argument.value() as u32);
    begin(Some((Job::Queue, database)));
    crate::worker::worker(database);
}

#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn audit_maintenance_main(argument: pg_sys::Datum) {
    let database = pg_sys::Oid::from(argument.value() as u32);
    begin(Some((Job::Maintenance, database)));
    crate::maintenance::worker(database);
}

#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn audit_sealer_main(argument: pg_sys::Datum) {
    let database = pg_sys::Oid::from(argument.value() as u32);
    begin(Some((Job::Sealing, database)));
    crate::sealing::worker(database);
}

/// Signals, then the connection: without a database only the shared catalogs can be read.
fn begin(job: Option<(Job, pg_sys::Oid)>) {
    const SIGHUP: i32 = 1;
    const SIGTERM: i32 = 15;
    // SAFETY: this is what a background worker does first (PostgreSQL, contrib/pg_prewarm/autoprewarm.c). SIGTERM sets a
    // flag and the latch, so that what is in the queue is written before the process ends; the others end at once, as a
    // session does.
    unsafe {
        pqsignal(SIGHUP, Some(handlers::SignalHandlerForConfigReload));
        if matches!(job, Some((Job::Maintenance | Job::Sealing, _))) {
            pqsignal(SIGTERM, Some(handlers::die));
        } else {
            pqsignal(SIGTERM, Some(handlers::SignalHandlerForShutdownRequest));
        }
        pg_sys::BackgroundWorkerUnblockSignals();
        match job {
            None => pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0),
            Some((_, database)) => {
                pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
                // Whatever the database's settings say: a lock that somebody keeps must not keep the worker for ever,
                // and what it writes is to be durable when it says so.
                for (name, value) in [
                    (c"lock_timeout", c"5s"),
                    // In a deadlock it is the worker who gives way, and tries again.
                    (c"deadlock_timeout", c"100ms"),
                    (c"synchronous_commit", c"on"),
                    (c"default_transaction_read_only", c"off"),
                    (c"default_transaction_isolation", c"read committed"),
                    (c"application_name", c"audit worker"),
                ] {
                    pg_sys::SetConfigOption(
                        name.as_ptr(),
                        value.as_ptr(),
                        pg_sys::GucContext::PGC_SUSET,
                        pg_sys::GucSource::PGC_S_OVERRIDE,
                    );
                }
            }
        }
    }
}

/// Whether this process was told to end.
pub fn is_told_to_end() -> bool {
    // SAFETY: set by a signal handler, so read afresh each time.
    unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 }
}

/// Reads the configuration files again if they were said to have changed.
pub fn reload_if_asked() {
    // SAFETY: set by a signal handler; the main loop of a worker is the place to do this.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Calls `body` when the process ends in an orderly way.
pub fn at_exit(body: unsafe extern "C-unwind" fn(std::ffi::c_int, pg_sys::Datum)) {
    // SAFETY: the function is one of this library's.
    unsafe { pg_sys::on_shmem_exit(Some(body), pg_sys::Datum::from(0usize)) };
}

/// Other processes that are connected to a database.
pub fn others_connected(database: pg_sys::Oid) -> bool {
    // SAFETY: looks through shared memory.
    unsafe { pg_sys::CountDBBackends(database) > 1 }
}

/// An error that ended a transaction.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    pub sqlstate: String,
    pub code: i32,
    pub message: String,
}

/// Runs a transaction of its own, and `after` once it is committed, before anything can end the process.
pub fn in_transaction<T>(
    activity: &CStr,
    body: impl FnOnce() -> Result<T, Error>,
    after: impl FnOnce(&T),
) -> Result<T, Failure> {
    let transaction = AssertUnwindSafe(|| {
        // SAFETY: what each background worker's transaction looks like; an ERROR anywhere ends below.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
        }
        let value = report::ok(body());
        // SAFETY: as above. Nothing looks for interrupts between the commit and the end.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        after(&value);
        Ok(value)
    });
    let result = PgTryBuilder::new(transaction).catch_others(|error| Err(Failure::of(&error))).execute();
    // SAFETY: no transaction is under way after a commit; after an ERROR, which pgrx has taken off PostgreSQL's stack, the
    // abort cleans up.
    unsafe {
        if result.is_err() {
            pg_sys::error_context_stack = std::ptr::null_mut();
            pg_sys::AbortCurrentTransaction();
        }
        pg_sys::pgstat_report_stat(true);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
    result
}

impl Failure {
    fn of(error: &CaughtError) -> Self {
        let report = match error {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
            CaughtError::RustPanic { ereport, .. } => ereport,
        };
        let code = report.sql_error_code() as i32;
        Failure { sqlstate: sqlstate_text(code), code, message: report.message().to_owned() }
    }
}

/// The five characters of a SQLSTATE (PostgreSQL, `MAKE_SQLSTATE`).
pub fn sqlstate_text(code: i32) -> String {
    (0..5).map(|i| char::from(((code >> (6 * i)) & 0x3F) as u8 + b'0')).collect()
}
