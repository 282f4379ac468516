//! The settings: name, static, definition, accessor. Those of the context are in `context.rs`.

use std::ffi::CString;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static LOG_STATEMENT: GucSetting<bool> = GucSetting::<bool>::new(false);
static LOG_SOFT_DELETES: GucSetting<bool> = GucSetting::<bool>::new(true);
static MAX_VALUE_BYTES: GucSetting<i32> = GucSetting::<i32>::new(0);
static STRICT_ACTIONS: GucSetting<bool> = GucSetting::<bool>::new(false);
static LOG_READS: GucSetting<bool> = GucSetting::<bool>::new(false);
static SIGNING_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static WITNESS_KEYS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

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
}

/// Path of the file, or `None` where checkpoints are not signed.
pub fn signing_key_file() -> Option<String> {
    text(&SIGNING_KEY_FILE)
}

/// The vkeys of the witnesses.
pub fn witness_keys() -> Vec<String> {
    let keys = text(&WITNESS_KEYS).unwrap_or_default();
    keys.split([',', ' ', '\n', '\t']).filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

fn text(setting: &GucSetting<Option<CString>>) -> Option<String> {
    setting.get().map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty())
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
