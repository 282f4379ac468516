//! The settings: name, static, definition, accessor. Those of the context are in `context.rs`.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::pg::guc::{define_context_claims, define_context_preset, define_track_timing, has_value};
use crate::pg::session;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static LOG_STATEMENT: GucSetting<bool> = GucSetting::<bool>::new(false);
static LOG_SOFT_DELETES: GucSetting<bool> = GucSetting::<bool>::new(true);
static MAX_VALUE_BYTES: GucSetting<i32> = GucSetting::<i32>::new(0);
static STRICT_ACTIONS: GucSetting<bool> = GucSetting::<bool>::new(false);
static LOG_READS: GucSetting<bool> = GucSetting::<bool>::new(false);
static SIGNING_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static WITNESS_KEYS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CONTEXT_KEYS_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CONTEXT_AUDIENCE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CONTEXT_CLAIMS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static LOST_CLAIMS: AtomicBool = AtomicBool::new(false);
static CONTEXT_PRESET: GucSetting<ContextPreset> = GucSetting::<ContextPreset>::new(ContextPreset::Off);
static LOG_FAILURES: GucSetting<LogFailures> = GucSetting::<LogFailures>::new(LogFailures::Audited);
static LOG_ROLLBACKS: GucSetting<bool> = GucSetting::<bool>::new(false);
static LOG_LOGINS: GucSetting<LogLogins> = GucSetting::<LogLogins>::new(LogLogins::Failed);
static QUEUE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(8 * 1024);
static TRACK_TIMING: GucSetting<bool> = GucSetting::<bool>::new(false);
static QUEUE_DELAY: GucSetting<i32> = GucSetting::<i32>::new(10);
static ISOLATED_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5000);
static SEAL_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static MAINTENANCE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(3600);

/// Whose settings the context is taken from, beside our own.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum ContextPreset {
    #[name = c"off"]
    Off,
    #[name = c"postgrest"]
    Postgrest,
    #[name = c"hasura"]
    Hasura,
}

/// Which failed statements are recorded.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum LogFailures {
    #[name = c"off"]
    Off,
    #[name = c"audited"]
    Audited,
    #[name = c"all"]
    All,
}

/// Which logins are recorded.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum LogLogins {
    #[name = c"off"]
    Off,
    #[name = c"failed"]
    Failed,
    #[name = c"all"]
    All,
}

pub fn init() {
    GucRegistry::define_bool_guc(
        c"audit.enabled",
        c"Records changes of audited tables.",
        c"Off, changes go unrecorded; the time and number of them are recorded with the session's next changeset.",
        &ENABLED,
        GucContext::Suset,
        GucFlags::default(),
    );
    // Off: statements repeat what the row images hold, may hold values that a policy masks, and doubled the log in the
    // trails that store them.
    GucRegistry::define_bool_guc(
        c"audit.log_statement",
        c"Stores the text of the client's statement with each changeset.",
        c"The text is stored as it was sent, with its constants, whatever the policy masks.",
        &LOG_STATEMENT,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"audit.log_soft_deletes",
        c"Records the UPDATEs that set a table's soft-delete column.",
        c"",
        &LOG_SOFT_DELETES,
        GucContext::Suset,
        GucFlags::default(),
    );
    // 0: a record that lacks a value proves less. Only what JSONB cannot hold is left out.
    GucRegistry::define_int_guc(
        c"audit.max_value_bytes",
        c"Values with a longer text are recorded as SHA-256 and length; 0 means only values that JSONB cannot hold.",
        c"",
        &MAX_VALUE_BYTES,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_BYTE,
    );
    // Off: an application that is deployed before its actions are catalogued must not fail for that.
    GucRegistry::define_bool_guc(
        c"audit.strict_actions",
        c"Refuses actions that audit.action does not list.",
        c"Off, they are recorded all the same, and audit.uncatalogued_actions() lists them.",
        &STRICT_ACTIONS,
        GucContext::Suset,
        GucFlags::default(),
    );
    // Off: a dashboard that polls would otherwise fill the log with its own reads.
    GucRegistry::define_bool_guc(
        c"audit.log_reads",
        c"Records calls of the functions that read the log.",
        c"Each call is an event with its arguments. Reads of the view and of the tables are not recorded.",
        &LOG_READS,
        GucContext::Suset,
        GucFlags::default(),
    );
    // In the server's configuration alone: a session that chose the key could sign anything that is a key.
    GucRegistry::define_string_guc(
        c"audit.signing_key_file",
        c"File with the key that signs checkpoints; empty: checkpoints are not signed.",
        c"In the encoding of signed notes, as audit-verify keygen writes it; readable by the server's user alone.",
        &SIGNING_KEY_FILE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"audit.witness_keys",
        c"Public keys (vkeys) of the witnesses whose cosignatures audit.add_cosignature takes.",
        c"Separated by commas or spaces.",
        &WITNESS_KEYS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    // In the server's configuration alone, as all that follows of the context: a session that chose the keys could sign
    // for anybody.
    GucRegistry::define_string_guc(
        c"audit.context_keys_file",
        c"File with the keys that context tokens are checked with, a JWK Set; empty: no tokens are taken.",
        c"Readable by the server's user alone.",
        &CONTEXT_KEYS_FILE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"audit.context_audience",
        c"Names that this database goes by in the claim aud of context tokens, of which a token must have one.",
        c"Separated by commas or spaces.",
        &CONTEXT_AUDIENCE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    let had_value = has_value(c"audit.context_claims");
    define_context_claims(&CONTEXT_CLAIMS);
    // What connection or role gave before the library was here took the place of what the configuration says, and was
    // refused just now. The usual mapping may not be the administrator's.
    if had_value && context_claims().is_none() && !session::is_preloading() {
        LOST_CLAIMS.store(true, Ordering::Relaxed);
    }
    // Off: who has such settings made, and whether others can, is for the administrator to know.
    define_context_preset(&CONTEXT_PRESET);
    // What an investigator looks for first, and what costs nothing while nothing fails.
    GucRegistry::define_enum_guc(
        c"audit.log_failures",
        c"Records statements that fail: those that mean an audited table, or all.",
        c"Needs shared_preload_libraries.",
        &LOG_FAILURES,
        GucContext::Suset,
        GucFlags::default(),
    );
    // Sessions come and go by the thousand behind some applications; refused ones are few, or a flood that is folded.
    GucRegistry::define_enum_guc(
        c"audit.log_logins",
        c"Records logins to this database: refused ones, or all with their end.",
        c"Needs shared_preload_libraries.",
        &LOG_LOGINS,
        GucContext::Suset,
        GucFlags::default(),
    );
    // Off: applications roll back as a matter of course.
    GucRegistry::define_bool_guc(
        c"audit.log_rollbacks",
        c"Records the ROLLBACK of a transaction that changed audited tables.",
        c"Needs shared_preload_libraries.",
        &LOG_ROLLBACKS,
        GucContext::Suset,
        GucFlags::default(),
    );
    // Some 8,000 row changes: a second's work of the worker. Without preload there is no queue, and PostgreSQL allows no
    // such setting.
    GucRegistry::define_int_guc(
        c"audit.queue_size",
        c"Shared memory for records that wait for the audit worker.",
        c"Needs shared_preload_libraries.",
        &QUEUE_SIZE,
        64,
        1024 * 1024,
        if session::is_preloading() { GucContext::Postmaster } else { GucContext::Sighup },
        GucFlags::UNIT_KB,
    );
    // Off: two looks at the clock for each row change.
    define_track_timing(&TRACK_TIMING);
    // Time for many transactions of a busy server, and none for a reader who wants to see them.
    GucRegistry::define_int_guc(
        c"audit.queue_delay",
        c"How long the audit worker waits for more records of async tables before it writes them together.",
        c"0 writes at once. What somebody waits for, such as an isolated event, is written at once in any case.",
        &QUEUE_DELAY,
        0,
        60_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    // Ten times what a slow disk needs for a commit.
    GucRegistry::define_int_guc(
        c"audit.isolated_timeout",
        c"How long the reporter of an isolated event waits until it is written.",
        c"Then it gets a warning and goes on.",
        &ISOLATED_TIMEOUT,
        1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    // Often enough for partitions of a day, and hardly ever anything to do.
    GucRegistry::define_int_guc(
        c"audit.maintenance_interval",
        c"How often a background worker calls audit.maintain() in each database; 0 for never.",
        c"Needs shared_preload_libraries.",
        &MAINTENANCE_INTERVAL,
        0,
        7 * 24 * 3600,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    // What is not sealed can be rewritten without a trace: as soon as costs little. Each round that finds something is a
    // transaction, a checkpoint and a line in the server log.
    GucRegistry::define_int_guc(
        c"audit.seal_interval",
        c"How often a background worker calls audit.seal() in each database where something was written; 0 for never.",
        c"Needs shared_preload_libraries.",
        &SEAL_INTERVAL,
        0,
        24 * 3600 * 1000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
}

/// Microseconds.
pub fn seal_interval() -> i64 {
    i64::from(SEAL_INTERVAL.get()) * 1000
}

pub fn maintenance_interval_s() -> i32 {
    MAINTENANCE_INTERVAL.get()
}

/// Path of the file, or `None` where checkpoints are not signed.
pub fn signing_key_file() -> Option<String> {
    text(&SIGNING_KEY_FILE)
}

/// The vkeys of the witnesses.
pub fn witness_keys() -> Vec<String> {
    list(&WITNESS_KEYS)
}

/// Path of the file, or `None` where no tokens are taken.
pub fn context_keys_file() -> Option<String> {
    text(&CONTEXT_KEYS_FILE)
}

/// The audiences of which a token must name one.
pub fn context_audience() -> Vec<String> {
    list(&CONTEXT_AUDIENCE)
}

/// The mapping of claims, or `None` for the usual one.
pub fn context_claims() -> Option<String> {
    text(&CONTEXT_CLAIMS)
}

/// Whether the configuration may have a mapping that this session does not know.
pub fn lost_context_claims() -> bool {
    LOST_CLAIMS.load(Ordering::Relaxed) && context_claims().is_none()
}

pub fn context_preset() -> ContextPreset {
    CONTEXT_PRESET.get()
}

fn list(setting: &GucSetting<Option<CString>>) -> Vec<String> {
    let names = text(setting).unwrap_or_default();
    names.split([',', ' ', '\n', '\t']).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn text(setting: &GucSetting<Option<CString>>) -> Option<String> {
    setting.get().map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty())
}

pub fn log_failures() -> LogFailures {
    LOG_FAILURES.get()
}

pub fn log_logins() -> LogLogins {
    LOG_LOGINS.get()
}

pub fn log_rollbacks() -> bool {
    LOG_ROLLBACKS.get()
}

pub fn queue_bytes() -> usize {
    usize::try_from(QUEUE_SIZE.get()).unwrap_or(0) * 1024
}

pub fn track_timing() -> bool {
    TRACK_TIMING.get()
}

pub fn queue_delay_ms() -> i64 {
    i64::from(QUEUE_DELAY.get())
}

pub fn isolated_timeout_ms() -> i64 {
    i64::from(ISOLATED_TIMEOUT.get())
}

pub fn enabled() -> bool {
    ENABLED.get()
}

pub fn log_statement() -> bool {
    LOG_STATEMENT.get()
}

pub fn log_soft_deletes() -> bool {
    LOG_SOFT_DELETES.get()
}

pub fn strict_actions() -> bool {
    STRICT_ACTIONS.get()
}

pub fn log_reads() -> bool {
    LOG_READS.get()
}

/// Bytes of JSON text, or `None` without a limit.
pub fn max_value_bytes() -> Option<usize> {
    usize::try_from(MAX_VALUE_BYTES.get()).ok().filter(|&limit| limit > 0)
}
