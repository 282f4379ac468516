//! The settings: name, static, definition, accessor. Those of the context are in `context.rs`.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static LOG_STATEMENT: GucSetting<bool> = GucSetting::<bool>::new(false);
static LOG_SOFT_DELETES: GucSetting<bool> = GucSetting::<bool>::new(true);
static MAX_VALUE_BYTES: GucSetting<i32> = GucSetting::<i32>::new(0);
static STRICT_ACTIONS: GucSetting<bool> = GucSetting::<bool>::new(false);
static LOG_READS: GucSetting<bool> = GucSetting::<bool>::new(false);

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
