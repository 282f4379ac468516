//! Canonical forms, made from the text of columns by the rules of docs/format.md. Nothing here is shared with the writer.

use audit_core::checksum::{salted, sha256};
use audit_ledger::Hash;

use crate::copy::Row;

/// How a column goes into a canonical form.
#[derive(Clone, Copy)]
pub enum Field {
    /// A string.
    Text,
    /// A number, or the text of JSON.
    Raw,
}

use Field::{Raw, Text};

/// Columns of an event, from changeset_id on.
pub const EVENT: &[Field] = &[Text, Raw, Raw, Raw, Raw, Text, Text, Text, Text, Text, Text, Text, Raw, Raw, Raw];

pub const EVENT_COLUMNS: &str = "e.changeset_id, e.seq, e.command, (extract(epoch FROM e.occurred_at) * 1000000)::bigint, \
    e.relation_id, r.schema_name, r.table_name, e.operation, e.action, e.status, e.resource, e.resource_id, e.row_image, \
    e.old_values, e.details";

/// Columns of a changeset, from id on.
pub const CHANGESET: &[Field] = &[
    Text, Raw, Raw, Raw, Text, Text, Text, Text, Text, Text, Text, Text, Raw, Text, Text, Text, Text, Raw, Raw, Text,
    Text, Raw, Text,
];

pub const CHANGESET_COLUMNS: &str = "c.id, (extract(epoch FROM c.occurred_at) * 1000000)::bigint, c.era, \
    c.position - '0/0'::pg_lsn, c.xid, c.user_id, c.tenant_id, c.request_id, c.session_id, abbrev(c.ip_address), \
    c.user_agent, c.reason, c.context, c.session_role, c.effective_role, c.application_name, abbrev(c.client_addr), \
    c.client_port, c.backend_pid, c.statement, c.origin, c.event_count, encode(c.events_root, 'hex')";

/// Columns of a layout, from id on; key_columns comes as the text of a JSON array.
pub const RELATION: &[Field] = &[Raw, Raw, Text, Text, Text, Text, Text, Raw, Raw, Raw];

pub const RELATION_COLUMNS: &str = "r.id, r.relid, r.schema_name, r.table_name, r.resource, r.root_schema, r.root_table, \
    r.columns, to_jsonb(r.key_columns), (extract(epoch FROM r.valid_from) * 1000000)::bigint";

/// Columns of a ledger, from era on.
pub const LEDGER: &[Field] = &[Raw, Text, Text, Raw, Raw, Text, Raw];

pub const LEDGER_COLUMNS: &str = "l.era, l.id, l.system_identifier, l.timeline, l.database_id, l.origin, \
    (extract(epoch FROM l.started_at) * 1000000)::bigint";

/// Writes the form of a record whose fields are columns from `first` on.
pub fn canonical(tag: &str, fields: &[Field], row: &Row, first: usize, out: &mut Vec<u8>) {
    out.clear();
    out.push(b'[');
    quoted(tag.as_bytes(), out);
    for (i, field) in fields.iter().enumerate() {
        put(*field, row.bytes(first + i), out);
    }
    out.push(b']');
}

/// Appends a field.
pub fn put(field: Field, value: Option<&[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(b", ");
    match (value, field) {
        (None, _) => out.extend_from_slice(b"null"),
        (Some(value), Raw) => out.extend_from_slice(value),
        (Some(value), Text) => quoted(value, out),
    }
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
    fn numbers_of_fields() {
        assert_eq!((EVENT.len(), CHANGESET.len(), RELATION.len(), LEDGER.len()), (15, 23, 10, 7));
    }
}
