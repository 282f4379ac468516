//! Canonical form of events and changesets: the text that is hashed.
//!
//! It is the text of a JSONB array of the record's fields in a fixed order, a version tag first, exactly as
//! `jsonb_build_array(…)::text` prints it: docs/format.md. Times are integer microseconds since the Unix epoch, tables go
//! by name. Nothing is built: the pieces are known, and JSONB's own text of images is embedded as it is.

use std::fmt;
use std::str::FromStr;

use crate::buf;
use crate::error::Result;
use crate::hex;
use crate::jsonb::put_quoted;
use crate::merkle::Hash;

/// A name that the enumeration does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownName;

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown name")
    }
}

impl std::error::Error for UnknownName {}

/// An enumeration whose names are those of an SQL enum.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant),+
        }

        impl $name {
            /// All values, in the order of the SQL enum.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The name in SQL.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text),+
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(name: &str) -> std::result::Result<Self, UnknownName> {
                match name {
                    $($text => Ok($name::$variant),)+
                    _ => Err(UnknownName),
                }
            }
        }
    };
}

named! {
    /// What an event records.
    Operation {
        /// A new row.
        Insert = "INSERT",
        /// A changed row.
        Update = "UPDATE",
        /// A row that went.
        Delete = "DELETE",
        /// A table emptied.
        Truncate = "TRUNCATE",
        /// A row that was there when auditing began.
        Snapshot = "SNAPSHOT",
        /// What an application reports.
        Application = "APPLICATION",
        /// A statement that failed.
        Failure = "FAILURE",
        /// A change of a table's definition.
        Ddl = "DDL",
    }
}

named! {
    /// Outcome of an event.
    Status {
        /// It happened.
        Success = "success",
        /// Refused by a rule or a right.
        Failure = "failure",
        /// Ended in an error.
        Error = "error",
    }
}

named! {
    /// What wrote a changeset.
    Origin {
        /// The triggers of an audited table.
        Trigger = "trigger",
        /// The application.
        Application = "application",
        /// The application, in a transaction of its own.
        Isolated = "isolated",
        /// A failed statement.
        Failure = "failure",
        /// A login.
        Login = "login",
        /// A change of a table's definition.
        Ddl = "ddl",
        /// The start of auditing a table that had rows.
        Snapshot = "snapshot",
    }
}

/// The fields of an event, in their canonical order. Texts are in the server encoding; images are the text of JSONB.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the columns of audit.event")]
pub struct EventRecord<'a> {
    pub changeset_id: [u8; 16],
    pub seq: i32,
    pub command: i32,
    /// Microseconds since the Unix epoch.
    pub occurred_at_us: i64,
    /// Of the table's layout; none for events without a table.
    pub schema: Option<&'a [u8]>,
    /// Of the table's layout; none for events without a table.
    pub table: Option<&'a [u8]>,
    pub operation: Operation,
    pub action: Option<&'a [u8]>,
    pub status: Status,
    pub resource: Option<&'a [u8]>,
    pub resource_id: Option<&'a [u8]>,
    pub row_image: Option<&'a [u8]>,
    pub old_values: Option<&'a [u8]>,
    pub details: Option<&'a [u8]>,
}

/// The fields of a changeset, in their canonical order. Texts are in the server encoding.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the columns of audit.changeset")]
pub struct ChangesetRecord<'a> {
    pub id: [u8; 16],
    /// Microseconds since the Unix epoch.
    pub occurred_at_us: i64,
    pub era: i32,
    /// Bytes since the start of the WAL.
    pub position: Option<u64>,
    pub xid: u64,
    pub user_id: Option<&'a [u8]>,
    pub tenant_id: Option<&'a [u8]>,
    pub request_id: Option<&'a [u8]>,
    pub session_id: Option<&'a [u8]>,
    /// Text of an `inet`.
    pub ip_address: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    pub reason: Option<&'a [u8]>,
    /// Text of JSONB.
    pub context: Option<&'a [u8]>,
    pub session_role: Option<&'a [u8]>,
    pub effective_role: Option<&'a [u8]>,
    pub application_name: Option<&'a [u8]>,
    /// Text of an `inet`.
    pub client_addr: Option<&'a [u8]>,
    pub client_port: Option<i32>,
    pub backend_pid: i32,
    pub statement: Option<&'a [u8]>,
    pub origin: Origin,
    pub event_count: i32,
    pub events_root: Hash,
}

const NULL: &[u8] = b"null";

/// The array's members, each after a comma.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
}

impl Fields<'_> {
    #[inline]
    fn raw(&mut self, text: &[u8]) -> Result<()> {
        buf::reserve(self.out, text.len() + 2)?;
        self.out.extend_from_slice(b", ");
        self.out.extend_from_slice(text);
        Ok(())
    }

    /// A name that needs no escaping.
    #[inline]
    fn plain(&mut self, text: &[u8]) -> Result<()> {
        buf::reserve(self.out, text.len() + 4)?;
        self.out.extend_from_slice(b", \"");
        self.out.extend_from_slice(text);
        self.out.push(b'"');
        Ok(())
    }

    #[inline]
    fn json(&mut self, text: Option<&[u8]>) -> Result<()> {
        self.raw(text.unwrap_or(NULL))
    }

    #[inline]
    fn string(&mut self, text: Option<&[u8]>) -> Result<()> {
        let Some(text) = text else {
            return self.raw(NULL);
        };
        buf::put(self.out, b", ")?;
        put_quoted(self.out, text)
    }

    #[inline]
    fn integer(&mut self, value: impl itoa::Integer) -> Result<()> {
        self.raw(itoa::Buffer::new().format(value).as_bytes())
    }
}

/// Writes the canonical text of an event in place of what `out` held:
/// `jsonb_build_array('audit_ext/event/1', changeset_id, seq, command, occurred_at, schema_name, table_name, operation,
/// action, status, resource, resource_id, row_image, old_values, details)::text`.
pub fn event(record: &EventRecord<'_>, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    let image = record.row_image.map_or(0, <[u8]>::len);
    let old = record.old_values.map_or(0, <[u8]>::len);
    buf::reserve(out, 320 + image + old)?;
    buf::put(out, b"[\"audit_ext/event/1\"")?;
    let mut fields = Fields { out };
    fields.plain(&hex::uuid(&record.changeset_id))?;
    fields.integer(record.seq)?;
    fields.integer(record.command)?;
    fields.integer(record.occurred_at_us)?;
    fields.string(record.schema)?;
    fields.string(record.table)?;
    fields.plain(record.operation.as_str().as_bytes())?;
    fields.string(record.action)?;
    fields.plain(record.status.as_str().as_bytes())?;
    fields.string(record.resource)?;
    fields.string(record.resource_id)?;
    fields.json(record.row_image)?;
    fields.json(record.old_values)?;
    fields.json(record.details)?;
    buf::push(fields.out, b']')
}

/// Writes the canonical text of a changeset in place of what `out` held:
/// `jsonb_build_array('audit_ext/changeset/1', id, occurred_at, era, position, xid, user_id, tenant_id, request_id,
/// session_id, ip_address, user_agent, reason, context, session_role, effective_role, application_name, client_addr,
/// client_port, backend_pid, statement, origin, event_count, events_root)::text`, where `xid` and the addresses are text
/// and `events_root` is hexadecimal.
pub fn changeset(record: &ChangesetRecord<'_>, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    buf::put(out, b"[\"audit_ext/changeset/1\"")?;
    let mut fields = Fields { out };
    fields.plain(&hex::uuid(&record.id))?;
    fields.integer(record.occurred_at_us)?;
    fields.integer(record.era)?;
    match record.position {
        Some(position) => fields.integer(position)?,
        None => fields.raw(NULL)?,
    }
    fields.plain(itoa::Buffer::new().format(record.xid).as_bytes())?;
    for text in [
        record.user_id,
        record.tenant_id,
        record.request_id,
        record.session_id,
        record.ip_address,
        record.user_agent,
        record.reason,
    ] {
        fields.string(text)?;
    }
    fields.json(record.context)?;
    for text in [record.session_role, record.effective_role, record.application_name, record.client_addr] {
        fields.string(text)?;
    }
    match record.client_port {
        Some(port) => fields.integer(port)?,
        None => fields.raw(NULL)?,
    }
    fields.integer(record.backend_pid)?;
    fields.string(record.statement)?;
    fields.plain(record.origin.as_str().as_bytes())?;
    fields.integer(record.event_count)?;
    buf::put(fields.out, b", \"")?;
    hex::put(fields.out, &record.events_root)?;
    buf::put(fields.out, b"\"]")
}
