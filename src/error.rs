//! Every error that this extension raises by itself: SQLSTATE, message, detail and hint in one place.

use std::fmt;

use audit_core::context::ContextError;
use audit_identity::token::TokenError;
use pgrx::pg_sys::errcodes::PgSqlErrorCode::{self, *};

use crate::pg::attempt::Failure;

#[derive(Debug)]
pub enum Error {
    /// 53200
    OutOfMemory,
    /// 54000: not even digests fit.
    RowTooLarge { table: String },
    /// 54000
    TooManyEvents,
    /// 55000
    LogMissing { table: String },
    /// 55000
    LogAltered { table: String, detail: String },
    /// 55000
    LogPartitionMissing { table: String },
    /// 55000
    VersionMismatch { extension: String },
    /// 55000
    NotInstalled,
    /// 55000
    NoPolicy { table: String },
    /// 55000
    MissingContext { table: String, keys: String },
    /// 55000
    UnverifiedContext { table: String },
    /// 55000
    NoTokens { problem: &'static str },
    /// 28000
    Token(TokenError),
    /// 22023
    TokenClaims { problem: String },
    /// F0000
    ContextKeys { problem: String },
    /// 22023
    Preset { setting: String, problem: String },
    /// 55000
    AppendOnly { table: String },
    /// 55000
    AfterCommit,
    /// 39P01
    NotATrigger,
    /// 39P01
    WrongTrigger,
    /// 39P03
    NotAnEventTrigger,
    /// 42809
    NotAuditable { table: String, what: &'static str, hint: &'static str },
    /// 42P01
    NoSuchTable { oid: u32 },
    /// 55000
    NotEnabled { table: String },
    /// 55000
    Inherited { table: String, root: String },
    /// 42703
    NoSuchColumn { table: String, column: String },
    /// 22023
    InvalidOption { message: String, hint: &'static str },
    /// PostgreSQL's own: a condition that is no boolean expression over the rows.
    Condition(Failure),
    /// 42P17
    ConditionUses { what: String },
    /// 42704
    NoSuchRule { id: i32 },
    /// 0A000
    /// 22023
    UnknownAction { action: String },
    /// 42939
    ReservedAction { action: String },
    /// 25006
    OnStandby,
    /// 22004
    NullArgument { argument: &'static str },
    /// 55000
    NotPreloaded { what: &'static str },
    /// 01000: a warning.
    IsolatedEvent { what: &'static str },
    /// 22023
    Context(ContextError),
    /// XX001
    LedgerDamaged { detail: String },
    /// 25006
    InRecovery,
    /// 25001
    SharedSnapshot,
    /// F0000
    SigningKey { path: String, problem: String },
    /// P0002
    NoSuchEvent { changeset: String, seq: i32 },
    /// 55000
    Erased { changeset: String },
    /// 55000
    NotSealed { changeset: String },
    /// 22023
    Checkpoint { message: String, hint: &'static str },
    /// XX000: a bug of ours.
    Internal(&'static str),
}

impl Error {
    pub fn sqlstate(&self) -> PgSqlErrorCode {
        match self {
            Error::OutOfMemory => ERRCODE_OUT_OF_MEMORY,
            Error::RowTooLarge { .. } | Error::TooManyEvents => ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Error::LogMissing { .. }
            | Error::LogAltered { .. }
            | Error::LogPartitionMissing { .. }
            | Error::VersionMismatch { .. }
            | Error::NotInstalled
            | Error::NoPolicy { .. }
            | Error::MissingContext { .. }
            | Error::UnverifiedContext { .. }
            | Error::NoTokens { .. }
            | Error::AppendOnly { .. }
            | Error::AfterCommit
            | Error::NotPreloaded { .. }
            | Error::NotEnabled { .. }
            | Error::NotSealed { .. }
            | Error::Erased { .. }
            | Error::Inherited { .. } => ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Error::NotATrigger | Error::WrongTrigger => ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            Error::NotAnEventTrigger => ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED,
            Error::NotAuditable { .. } => ERRCODE_WRONG_OBJECT_TYPE,
            Error::NoSuchTable { .. } => ERRCODE_UNDEFINED_TABLE,
            Error::NoSuchColumn { .. } => ERRCODE_UNDEFINED_COLUMN,
            Error::InvalidOption { .. }
            | Error::Context(_)
            | Error::TokenClaims { .. }
            | Error::Preset { .. }
            | Error::UnknownAction { .. } => ERRCODE_INVALID_PARAMETER_VALUE,
            Error::Token(_) => ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            Error::Condition(failure) => failure.code,
            Error::ConditionUses { .. } => ERRCODE_INVALID_OBJECT_DEFINITION,
            Error::NoSuchRule { .. } => ERRCODE_UNDEFINED_OBJECT,
            Error::ReservedAction { .. } => ERRCODE_RESERVED_NAME,
            Error::OnStandby => ERRCODE_READ_ONLY_SQL_TRANSACTION,
            Error::NullArgument { .. } => ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Error::LedgerDamaged { .. } => ERRCODE_DATA_CORRUPTED,
            Error::InRecovery => ERRCODE_READ_ONLY_SQL_TRANSACTION,
            Error::SharedSnapshot => ERRCODE_ACTIVE_SQL_TRANSACTION,
            Error::SigningKey { .. } | Error::ContextKeys { .. } => ERRCODE_CONFIG_FILE_ERROR,
            Error::NoSuchEvent { .. } => ERRCODE_NO_DATA_FOUND,
            Error::Checkpoint { .. } => ERRCODE_INVALID_PARAMETER_VALUE,
            Error::IsolatedEvent { .. } => ERRCODE_WARNING,
            Error::Internal(_) => ERRCODE_INTERNAL_ERROR,
        }
    }

    /// Whether auditing itself has failed: not something that the caller did or left out.
    pub fn is_failure_of_auditing(&self) -> bool {
        matches!(
            self,
            Error::OutOfMemory
                | Error::RowTooLarge { .. }
                | Error::TooManyEvents
                | Error::LogMissing { .. }
                | Error::LogAltered { .. }
                | Error::LogPartitionMissing { .. }
                | Error::VersionMismatch { .. }
                | Error::AfterCommit
                | Error::Internal(_)
        )
    }

    pub fn detail(&self) -> Option<String> {
        Some(match self {
            Error::OutOfMemory => "The audit record of the change could not be built, so the change is refused.".into(),
            Error::RowTooLarge { .. } => {
                "JSONB holds at most 256 MB, and the row does not fit even with its large values replaced by digests."
                    .into()
            }
            Error::LogAltered { detail, .. } => detail.clone(),
            Error::LogMissing { .. } | Error::LogPartitionMissing { .. } => {
                "The record of the change has nowhere to go, so the change is refused.".into()
            }
            Error::VersionMismatch { extension } => format!(
                "The library is version {}, the extension in this database is version {extension}.",
                crate::pg::session::VERSION
            ),
            Error::MissingContext { keys, .. } => format!("Not set: {keys}."),
            Error::NoTokens { problem } => (*problem).into(),
            Error::Token(error) => error.to_string(),
            Error::TokenClaims { problem } | Error::ContextKeys { problem } | Error::Preset { problem, .. } => {
                problem.clone()
            }
            Error::Context(error) => error.detail.clone(),
            Error::Condition(failure) => return failure.detail.clone(),
            Error::UnknownAction { .. } => "audit.strict_actions is on.".into(),
            Error::ReservedAction { .. } => {
                "Names that begin with \"audit.\" are those of this extension's own events.".into()
            }
            Error::LedgerDamaged { detail } => detail.clone(),
            Error::SigningKey { problem, .. } => problem.clone(),
            _ => return None,
        })
    }

    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Error::OutOfMemory => {
                "Give the server more memory, or set audit.max_value_bytes to record large values as digests."
            }
            Error::RowTooLarge { .. } => "Set audit.max_value_bytes, or leave columns out with exclude_columns.",
            Error::TooManyEvents => "Change fewer rows in one transaction.",
            Error::LogMissing { .. } | Error::LogAltered { .. } => {
                "Restore the table as CREATE EXTENSION audit_ext made it. A superuser can let changes pass unrecorded meanwhile with audit.enabled = off."
            }
            Error::LogPartitionMissing { .. } => "Create a default partition: CREATE TABLE … PARTITION OF … DEFAULT.",
            Error::VersionMismatch { .. } => "Run ALTER EXTENSION audit_ext UPDATE, and reconnect.",
            Error::NotInstalled => "Run CREATE EXTENSION audit_ext.",
            Error::NoPolicy { .. } => {
                "Call audit.enable for the table, or audit.disable to remove the trigger. If this is a restore, set audit.enabled = off for it."
            }
            Error::MissingContext { .. } => "Call audit.set_context in the transaction, before the change.",
            Error::UnverifiedContext { .. } => {
                "Call audit.set_context_token in the transaction, before the change, and set none of the token's keys by other means."
            }
            Error::NoTokens { .. } => "Set audit.context_keys_file and audit.context_audience in postgresql.conf.",
            Error::Token(_) => {
                "Get a new token from the application server; audit.context_audience names its audience."
            }
            Error::TokenClaims { .. } => "audit.context_claims says which claim is which key of the context.",
            Error::ContextKeys { .. } => {
                "Set audit.context_keys_file to a JWK Set in a file of the server's user, mode 0600."
            }
            Error::Preset { .. } => "It is read because of audit.context_preset.",
            Error::AppendOnly { .. } => "Records are never changed or removed.",
            Error::NotAuditable { hint, .. } => hint,
            Error::NotEnabled { .. } => "audit.policy lists the audited tables.",
            Error::Inherited { .. } => "Call audit.disable for the table it follows.",
            Error::InvalidOption { hint, .. } => hint,
            Error::Condition(failure) => {
                return failure.hint.clone().or_else(|| {
                    Some(
                        "Write a boolean expression over the columns of old and new, such as old.role <> new.role."
                            .into(),
                    )
                });
            }
            Error::ConditionUses { .. } => {
                "Conditions use columns of old and new, types of these columns, and functions and operators that come with PostgreSQL and are not volatile."
            }
            Error::NoSuchRule { .. } => "audit.action_rule lists the rules.",
            Error::UnknownAction { .. } => "Add it to audit.action, or set audit.strict_actions to off.",
            Error::ReservedAction { .. } => "Choose another name.",
            Error::OnStandby => "Do this on the primary; to only read here, set audit.log_reads to off on the standby.",
            Error::NotPreloaded { .. } => {
                "Add audit_ext to shared_preload_libraries in postgresql.conf, and restart the server."
            }
            Error::Context(error) => error.hint,
            Error::LedgerDamaged { .. } => "SELECT * FROM audit.verify() says what does not fit together.",
            Error::InRecovery => "Seal on the primary.",
            Error::SharedSnapshot => "Call it in a transaction of isolation level READ COMMITTED.",
            Error::SigningKey { .. } => {
                "Set audit.signing_key_file to a file of the server's user, mode 0600, as audit-verify keygen makes one."
            }
            Error::NotSealed { .. } => "Call audit.seal() when its transaction, and those older than it, have ended.",
            Error::Checkpoint { hint, .. } => hint,
            Error::NoSuchEvent { .. }
            | Error::Erased { .. }
            | Error::NotATrigger
            | Error::WrongTrigger
            | Error::NoSuchColumn { .. }
            | Error::AfterCommit
            | Error::IsolatedEvent { .. }
            | Error::NotAnEventTrigger
            | Error::NoSuchTable { .. }
            | Error::NullArgument { .. }
            | Error::Internal(_) => return None,
        };
        Some(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::OutOfMemory => write!(f, "out of memory"),
            Error::RowTooLarge { table } => write!(f, "row of table {table} is too large to be recorded"),
            Error::TooManyEvents => write!(f, "too many audit events in one transaction"),
            Error::LogMissing { table } => write!(f, "audit log table {table} is missing"),
            Error::LogAltered { table, .. } => write!(f, "audit log table {table} was altered"),
            Error::LogPartitionMissing { table } => {
                write!(f, "audit log table {table} has no partition for the record")
            }
            Error::VersionMismatch { .. } => write!(f, "library and extension audit_ext differ in version"),
            Error::NotInstalled => write!(f, "extension audit_ext is not installed in this database"),
            Error::NoPolicy { table } => write!(f, "table {table} has an audit trigger but no audit policy"),
            Error::MissingContext { table, .. } => write!(f, "changes of table {table} require an audit context"),
            Error::AppendOnly { table } => write!(f, "{table} is append-only"),
            Error::AfterCommit => write!(f, "audited change after the transaction's audit record was closed"),
            Error::NotATrigger => write!(f, "the function was not called as a trigger"),
            Error::WrongTrigger => {
                write!(f, "audit.capture must be an AFTER trigger, FOR EACH ROW but for TRUNCATE and end of statement")
            }
            Error::NotAnEventTrigger => write!(f, "the function was not called as an event trigger"),
            Error::NotAuditable { table, what, .. } => write!(f, "cannot audit {table}: it is {what}"),
            Error::NoSuchTable { oid } => write!(f, "relation with OID {oid} does not exist"),
            Error::NotEnabled { table } => write!(f, "table {table} is not audited"),
            Error::Inherited { table, root } => write!(f, "table {table} is audited because {root} is"),
            Error::NoSuchColumn { table, column } => write!(f, "column \"{column}\" of table {table} does not exist"),
            Error::InvalidOption { message, .. } => write!(f, "{message}"),
            Error::Condition(failure) => write!(f, "invalid condition: {}", failure.message),
            Error::ConditionUses { what } => write!(f, "a condition cannot use {what}"),
            Error::NoSuchRule { id } => write!(f, "action rule {id} does not exist"),
            Error::UnknownAction { action } => write!(f, "unknown action \"{action}\""),
            Error::ReservedAction { action } => write!(f, "action \"{action}\" is reserved"),
            Error::OnStandby => write!(f, "cannot record an event on a standby"),
            Error::NotPreloaded { what } => write!(f, "{what} need the library audit_ext preloaded"),
            Error::IsolatedEvent { what } => write!(f, "isolated audit event {what}"),
            Error::NullArgument { argument } => write!(f, "argument \"{argument}\" must not be null"),
            Error::UnverifiedContext { table } => {
                write!(f, "changes of table {table} require a verified audit context")
            }
            Error::NoTokens { .. } => write!(f, "context tokens are not taken here"),
            Error::Token(_) => write!(f, "context token is refused"),
            Error::TokenClaims { .. } => write!(f, "context token does not fit the context"),
            Error::ContextKeys { .. } => write!(f, "cannot read the keys of context tokens"),
            Error::Preset { setting, .. } => write!(f, "setting \"{setting}\" does not fit the context"),
            Error::Context(error) => write!(f, "{}", error.message),
            Error::LedgerDamaged { .. } => write!(f, "the audit ledger is damaged"),
            Error::InRecovery => write!(f, "cannot seal during recovery"),
            Error::SharedSnapshot => write!(f, "cannot seal with a snapshot that the whole transaction shares"),
            Error::SigningKey { path, .. } => write!(f, "cannot sign with the key in file \"{path}\""),
            Error::NoSuchEvent { changeset, seq } => write!(f, "changeset {changeset} has no event {seq}"),
            Error::Erased { changeset } => {
                write!(f, "the event or its changeset {changeset} was erased: what it said cannot be proven")
            }
            Error::NotSealed { changeset } => write!(f, "changeset {changeset} is not sealed yet"),
            Error::Checkpoint { message, .. } => write!(f, "{message}"),
            Error::Internal(what) => write!(f, "audit_ext: {what}"),
        }
    }
}

impl From<audit_core::error::Error> for Error {
    fn from(error: audit_core::error::Error) -> Self {
        match error {
            audit_core::error::Error::OutOfMemory => Error::OutOfMemory,
            audit_core::error::Error::TooLarge => Error::RowTooLarge { table: String::new() },
            audit_core::error::Error::NotJsonb(_) => Error::Internal("value that JSONB cannot hold"),
            audit_core::error::Error::InvalidJson => Error::Internal("text that is no JSON"),
        }
    }
}

impl From<audit_ledger::Error> for Error {
    fn from(error: audit_ledger::Error) -> Self {
        Error::LedgerDamaged { detail: format!("{error}.") }
    }
}
