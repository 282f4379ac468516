//! Canonical forms, made from columns by the rules of docs/format.md. Nothing here is shared with the writer.

use std::io::Write as _;

use audit_core::checksum::{salted, sha256};
use audit_ledger::Hash;

use crate::copy::{self, Row};

/// How a column goes into a canonical form.
#[derive(Clone, Copy)]
pub enum Field {
    /// A string.
    Text,
    /// The text of a jsonb.
    Json,
    /// A number.
    Integer,
    /// A number from four bytes without a sign.
    Oid,
    /// A number from eight bytes without a sign: a pg_lsn.
    Unsigned,
    /// Its digits as a string: an xid8.
    Digits,
    Uuid,
    /// A timestamptz: microseconds since 1970.
    Time,
    /// A bytea as hexadecimal digits.
    Hex,
}

use Field::{Digits, Hex, Integer, Json, Oid, Text, Time, Unsigned, Uuid};

/// Columns of an event: those before what its layout says of its table, and those after.
pub const EVENT_HEAD: &[Field] = &[Uuid, Integer, Integer, Time];
pub const EVENT_TAIL: &[Field] = &[Text, Text, Text, Text, Text, Json, Json, Json];

pub const EVENT_COLUMNS: &str = "e.changeset_id, e.seq, e.command, e.occurred_at, e.relation_id, e.operation, e.action, \
    e.status, e.resource, e.resource_id, e.row_image, e.old_values, e.details";

/// Columns of a changeset, from id on.
pub const CHANGESET: &[Field] = &[
    Uuid, Time, Integer, Unsigned, Digits, Text, Text, Text, Text, Text, Text, Text, Json, Text, Text, Text, Text,
    Text, Integer, Integer, Text, Text, Integer, Hex,
];

pub const CHANGESET_COLUMNS: &str = "c.id, c.occurred_at, c.era, c.position, c.xid, c.user_id, c.tenant_id, \
    c.request_id, c.session_id, abbrev(c.ip_address), c.user_agent, c.reason, c.context, c.context_trust, c.session_role, \
    c.effective_role, c.application_name, abbrev(c.client_addr), c.client_port, c.backend_pid, c.statement, c.origin, \
    c.event_count, c.events_root";

/// Columns of a layout, from id on.
pub const RELATION: &[Field] = &[Integer, Oid, Text, Text, Text, Text, Text, Json, Json, Time];

pub const RELATION_COLUMNS: &str = "r.id, r.relid, r.schema_name, r.table_name, r.resource, r.root_schema, r.root_table, \
    r.columns, to_jsonb(r.key_columns), r.valid_from";

/// Columns of a ledger, from era on.
pub const LEDGER: &[Field] = &[Integer, Uuid, Text, Integer, Oid, Text, Time];

pub const LEDGER_COLUMNS: &str =
    "l.era, l.id, l.system_identifier::text, l.timeline, l.database_id, l.origin, l.started_at";

/// Columns of a seal, after the ledger's origin.
pub const SEAL: &[Field] = &[Integer, Time, Digits, Digits, Text];

pub const SEAL_COLUMNS: &str = "k.tree_size, k.created_at, k.sealed_below, k.next_xid, k.key";

/// Begins a canonical form.
pub fn begin(tag: &str, out: &mut Vec<u8>) {
    out.clear();
    out.push(b'[');
    quoted(tag.as_bytes(), out);
}

/// Appends fields, which are columns from `first` on.
pub fn put_columns(fields: &[Field], row: &Row, first: usize, out: &mut Vec<u8>) {
    for (i, field) in fields.iter().enumerate() {
        put(*field, row.bytes(first + i), out);
    }
}

/// Writes the form of a record all of whose fields are columns, from the first on.
pub fn canonical(tag: &str, fields: &[Field], row: &Row, out: &mut Vec<u8>) {
    begin(tag, out);
    put_columns(fields, row, 0, out);
    out.push(b']');
}

/// Appends a field. What is no value of its type, which PostgreSQL never sends, is NULL.
pub fn put(field: Field, value: Option<&[u8]>, out: &mut Vec<u8>) {
    const EPOCH: i64 = 946_684_800_000_000;
    out.extend_from_slice(b", ");
    let is_written = value.and_then(|value| {
        match field {
            Text => quoted(value, out),
            Json => out.extend_from_slice(copy::json(value)?),
            Integer => put_integer(copy::integer(value)?, out),
            Time => put_integer(copy::integer(value)?.saturating_add(EPOCH), out),
            Oid => put_integer(u32::from_be_bytes(value.try_into().ok()?).into(), out),
            Unsigned => _ = write!(out, "{}", u64::from_be_bytes(value.try_into().ok()?)),
            Digits => _ = write!(out, "\"{}\"", u64::from_be_bytes(value.try_into().ok()?)),
            Uuid => plain(&audit_core::hex::uuid(value.try_into().ok()?), out),
            Hex => plain(hex(value).as_bytes(), out),
        }
        Some(())
    });
    if is_written.is_none() {
        out.extend_from_slice(b"null");
    }
}

pub fn put_integer(value: i64, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = write!(out, "{value}");
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A string without anything to escape.
fn plain(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

fn quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            8 => out.extend_from_slice(b"\\b"),
            9 => out.extend_from_slice(b"\\t"),
            10 => out.extend_from_slice(b"\\n"),
            12 => out.extend_from_slice(b"\\f"),
            13 => out.extend_from_slice(b"\\r"),
            0..32 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// The checksum of a record with a salt.
pub fn checksum(salt: &[u8; 16], canonical: &[u8]) -> Hash {
    salted(salt, canonical)
}

/// That of a record without one.
pub fn plain_checksum(canonical: &[u8]) -> Hash {
    sha256(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_as_the_format_has_them() {
        let mut out = Vec::new();
        quoted("a\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é😀".as_bytes(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}é😀\"");
    }

    #[test]
    fn fields_as_the_format_has_them() {
        let mut out = Vec::new();
        let fields: [(Field, Option<&[u8]>); 11] = [
            (Text, None),
            (Json, Some(b"\x01{\"a\": 1}")),
            (Integer, Some(&[255, 255, 255, 255])),
            (Integer, Some(&[0, 0, 0, 1, 0, 0, 0, 0])),
            (Oid, Some(&[255, 255, 255, 255])),
            (Unsigned, Some(&[255; 8])),
            (Digits, Some(&[255; 8])),
            (Uuid, Some(&[1; 16])),
            (Time, Some(&[0, 0, 0, 0, 0, 0, 0, 1])),
            (Hex, Some(&[0, 0x9a])),
            (Uuid, Some(&[1])),
        ];
        for (field, value) in fields {
            put(field, value, &mut out);
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            ", null, {\"a\": 1}, -1, 4294967296, 4294967295, 18446744073709551615, \"18446744073709551615\", \
             \"01010101-0101-0101-0101-010101010101\", 946684800000001, \"009a\", null"
        );
    }

    #[test]
    fn numbers_of_fields() {
        let event = EVENT_HEAD.len() + 1 + EVENT_TAIL.len();
        assert_eq!((event, EVENT_COLUMNS.split(", ").count()), (13, 13));
        assert_eq!((CHANGESET.len(), RELATION.len(), LEDGER.len(), SEAL.len()), (24, 10, 7, 5));
    }
}
