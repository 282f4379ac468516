//! Canonical form of events and changesets: the text that is hashed.
//!
//! It is the text of a JSONB array of the record's fields in a fixed order, a version tag first, exactly as
//! `jsonb_build_array(…)::text` prints it: docs/format.md. Times are integer microseconds since the Unix epoch, tables go
//! by layout and name. Nothing is built: the pieces are known, and JSONB's own text of images is embedded as it is.

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

named! {
    /// What the context of a changeset rests on.
    Trust {
        /// There is none.
        None = "none",
        /// The word of the session.
        Claimed = "claimed",
        /// A token that was checked.
        Verified = "verified",
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
    /// What [`layout`] wrote; none for events without a table.
    pub layout: Option<&'a [u8]>,
    pub operation: Operation,
    pub action: Option<&'a [u8]>,
    pub status: Status,
    pub resource: Option<&'a [u8]>,
    pub resource_id: Option<&'a [u8]>,
    pub row_image: Option<&'a [u8]>,
    pub old_values: Option<&'a [u8]>,
    pub details: Option<&'a [u8]>,
}

/// The fields of a changeset that tell of the application's context. Texts are in the server encoding.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the columns of audit.changeset")]
pub struct ContextRecord<'a> {
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
    pub context_trust: Trust,
}

/// The fields of a changeset that tell of the database session. Texts are in the server encoding.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the columns of audit.changeset")]
pub struct SessionRecord<'a> {
    pub session_role: Option<&'a [u8]>,
    pub effective_role: Option<&'a [u8]>,
    pub application_name: Option<&'a [u8]>,
    /// Text of an `inet`.
    pub client_addr: Option<&'a [u8]>,
    pub client_port: Option<i32>,
    pub backend_pid: i32,
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
    /// What [`context`] wrote.
    pub context: &'a [u8],
    /// What [`session`] wrote.
    pub session: &'a [u8],
    pub statement: Option<&'a [u8]>,
    pub origin: Origin,
    pub event_count: i32,
    pub events_root: Hash,
}

const NULL: &[u8] = b"null";

/// The array's members, each after a comma.
///
/// Not inlined: a transaction of one row runs each place once, so what it pays for is the code to be fetched.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
}

impl Fields<'_> {
    #[inline(never)]
    fn raw(&mut self, text: &[u8]) -> Result<()> {
        buf::reserve(self.out, text.len() + 2)?;
        self.out.extend_from_slice(b", ");
        self.out.extend_from_slice(text);
        Ok(())
    }

    /// A name that needs no escaping.
    #[inline(never)]
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

    #[inline(never)]
    fn string(&mut self, text: Option<&[u8]>) -> Result<()> {
        let Some(text) = text else {
            return self.raw(NULL);
        };
        buf::put(self.out, b", ")?;
        put_quoted(self.out, text)
    }

    #[inline(never)]
    fn integer(&mut self, value: i64) -> Result<()> {
        self.raw(itoa::Buffer::new().format(value).as_bytes())
    }
}

/// Writes the fields from `relation_id` to `table_name`, each after a comma, in place of what `out` held. A table has the
/// same for many events.
pub fn layout(relation_id: i32, schema: &[u8], table: &[u8], out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    let mut fields = Fields { out };
    fields.integer(relation_id.into())?;
    fields.string(Some(schema))?;
    fields.string(Some(table))
}

/// Writes the canonical text of an event in place of what `out` held:
/// `jsonb_build_array('audit_ext/event/1', changeset_id, seq, command, occurred_at, relation_id, schema_name, table_name,
/// operation, action, status, resource, resource_id, row_image, old_values, details)::text`.
pub fn event(record: &EventRecord<'_>, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    let image = record.row_image.map_or(0, <[u8]>::len);
    let old = record.old_values.map_or(0, <[u8]>::len);
    buf::reserve(out, 320 + image + old)?;
    buf::put(out, b"[\"audit_ext/event/1\"")?;
    let mut fields = Fields { out };
    fields.plain(&hex::uuid(&record.changeset_id))?;
    fields.integer(record.seq.into())?;
    fields.integer(record.command.into())?;
    fields.integer(record.occurred_at_us)?;
    buf::put(fields.out, record.layout.unwrap_or(b", null, null, null"))?;
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

/// Writes the fields from `user_id` to `context_trust`, each after a comma, in place of what `out` held. A session has the same
/// for many changesets.
pub fn context(record: &ContextRecord<'_>, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    let mut fields = Fields { out };
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
    fields.plain(record.context_trust.as_str().as_bytes())
}

/// Writes the fields from `session_role` to `backend_pid`, each after a comma, in place of what `out` held.
pub fn session(record: &SessionRecord<'_>, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    let mut fields = Fields { out };
    for text in [record.session_role, record.effective_role, record.application_name, record.client_addr] {
        fields.string(text)?;
    }
    match record.client_port {
        Some(port) => fields.integer(port.into())?,
        None => fields.raw(NULL)?,
    }
    fields.integer(record.backend_pid.into())
}

/// Writes the canonical text of a changeset in place of what `out` held:
/// `jsonb_build_array('audit_ext/changeset/1', id, occurred_at, era, position, xid, user_id, tenant_id, request_id,
/// session_id, ip_address, user_agent, reason, context, context_trust, session_role, effective_role, application_name,
/// client_addr, client_port, backend_pid, statement, origin, event_count, events_root)::text`, where `xid` and the addresses are text
/// and `events_root` is hexadecimal.
pub fn changeset(record: &ChangesetRecord<'_>, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    buf::put(out, b"[\"audit_ext/changeset/1\"")?;
    let mut fields = Fields { out };
    fields.plain(&hex::uuid(&record.id))?;
    fields.integer(record.occurred_at_us)?;
    fields.integer(record.era.into())?;
    match record.position {
        Some(position) => fields.raw(itoa::Buffer::new().format(position).as_bytes())?,
        None => fields.raw(NULL)?,
    }
    fields.plain(itoa::Buffer::new().format(record.xid).as_bytes())?;
    buf::put(fields.out, record.context)?;
    buf::put(fields.out, record.session)?;
    fields.string(record.statement)?;
    fields.plain(record.origin.as_str().as_bytes())?;
    fields.integer(record.event_count.into())?;
    buf::put(fields.out, b", \"")?;
    hex::put(fields.out, &record.events_root)?;
    buf::put(fields.out, b"\"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] =
        [0x01, 0x8c, 0x2f, 0x6e, 0x7d, 0x3a, 0x71, 0x23, 0x8a, 0xbc, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab];

    const LAYOUT: &[u8] = b", 17, \"public\", \"Order \\\"x\\\"\"";

    #[test]
    fn layout_is_three_fields() {
        let mut out = b"left over".to_vec();
        layout(17, b"public", b"Order \"x\"", &mut out).unwrap();
        assert_eq!(out, LAYOUT);
    }

    fn an_event() -> EventRecord<'static> {
        EventRecord {
            changeset_id: ID,
            seq: 3,
            command: 7,
            occurred_at_us: 1_701_576_306_123_456,
            layout: Some(LAYOUT),
            operation: Operation::Update,
            action: None,
            status: Status::Success,
            resource: None,
            resource_id: Some(b"4711"),
            row_image: Some("{\"id\": 4711, \"näme\": \"a\\nb\"}".as_bytes()),
            old_values: Some("{\"näme\": \"c\"}".as_bytes()),
            details: Some(b"{\"soft_delete\": true}"),
        }
    }

    /// Printed by PostgreSQL 15: `jsonb_build_array('audit_ext/event/1', …)::text` of the same values.
    #[test]
    fn event_is_what_postgresql_prints() {
        let mut out = b"left over".to_vec();
        event(&an_event(), &mut out).unwrap();
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "[\"audit_ext/event/1\", \"018c2f6e-7d3a-7123-8abc-0123456789ab\", 3, 7, 1701576306123456, 17, \
             \"public\", \"Order \\\"x\\\"\", \"UPDATE\", null, \"success\", null, \"4711\", {\"id\": 4711, \"näme\": \"a\\nb\"}, \
             {\"näme\": \"c\"}, {\"soft_delete\": true}]"
        );
    }

    #[test]
    fn absent_fields_are_null() {
        let record = EventRecord {
            layout: None,
            operation: Operation::Application,
            action: Some(b"user.invited"),
            resource: Some(b"user"),
            resource_id: None,
            row_image: None,
            old_values: None,
            details: None,
            ..an_event()
        };
        let mut out = Vec::new();
        event(&record, &mut out).unwrap();
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "[\"audit_ext/event/1\", \"018c2f6e-7d3a-7123-8abc-0123456789ab\", 3, 7, 1701576306123456, null, null, \
             null, \"APPLICATION\", \"user.invited\", \"success\", \"user\", null, null, null, null]"
        );
    }

    fn a_changeset(position: Option<u64>, client_port: Option<i32>) -> String {
        let (mut context_text, mut session_text, mut out) = (Vec::new(), Vec::new(), b"left over".to_vec());
        context(
            &ContextRecord {
                user_id: Some(b"erika"),
                tenant_id: Some(b"tenant \"1\""),
                request_id: None,
                session_id: Some(b"tab\there"),
                ip_address: Some(b"192.0.2.1/32"),
                user_agent: Some(b"agent"),
                reason: Some("weil's sein muß".as_bytes()),
                context: Some(b"{\"a\": [1, 2], \"b\": 1}"),
                context_trust: Trust::Verified,
            },
            &mut context_text,
        )
        .unwrap();
        session(
            &SessionRecord {
                session_role: Some(b"postgres"),
                effective_role: Some(b"app"),
                application_name: Some(b"psql"),
                client_addr: None,
                client_port,
                backend_pid: 4242,
            },
            &mut session_text,
        )
        .unwrap();
        changeset(
            &ChangesetRecord {
                id: ID,
                occurred_at_us: 1_701_576_306_123_456,
                era: 2,
                position,
                xid: 18_446_744_073_709_551_610,
                context: &context_text,
                session: &session_text,
                statement: Some(b"UPDATE x"),
                origin: Origin::Trigger,
                event_count: 5,
                events_root: crate::checksum::sha256(b"x"),
            },
            &mut out,
        )
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Printed by PostgreSQL 15: `jsonb_build_array('audit_ext/changeset/1', …)::text` of the same values.
    #[test]
    fn changeset_is_what_postgresql_prints() {
        assert_eq!(
            a_changeset(Some(0x16_B374_D848), None),
            "[\"audit_ext/changeset/1\", \"018c2f6e-7d3a-7123-8abc-0123456789ab\", 1701576306123456, 2, 97500059720, \
             \"18446744073709551610\", \"erika\", \"tenant \\\"1\\\"\", null, \"tab\\there\", \"192.0.2.1/32\", \"agent\", \
             \"weil's sein muß\", {\"a\": [1, 2], \"b\": 1}, \"verified\", \"postgres\", \"app\", \"psql\", null, null, \
             4242, \"UPDATE x\", \"trigger\", 5, \"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\"]"
        );
    }

    #[test]
    fn a_changeset_without_position_over_tcp() {
        let text = a_changeset(None, Some(5432));
        assert!(text.contains(", 2, null, \"18446744073709551610\""));
        assert!(text.contains(", null, 5432, 4242, "));
    }

    #[test]
    fn names_come_back() {
        for operation in Operation::ALL {
            assert_eq!(operation.as_str().parse(), Ok(*operation));
        }
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
        }
        for origin in Origin::ALL {
            assert_eq!(origin.as_str().parse(), Ok(*origin));
        }
        for trust in Trust::ALL {
            assert_eq!(trust.as_str().parse(), Ok(*trust));
        }
        assert_eq!("insert".parse::<Operation>(), Err(UnknownName));
        assert_eq!(UnknownName.to_string(), "unknown name");
    }
}
