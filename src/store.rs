//! Lays out records as tuples of the log's tables (sql/10_tables.sql), in their column order.

use std::cell::Cell;
use std::ffi::CStr;

use audit_core::canonical::{self, ChangesetRecord, Operation, Origin, Status, Trust};
use audit_core::checksum;
use pgrx::pg_sys::{BuiltinOid, Oid};

use crate::context::Key;
use crate::error::Error;
use crate::pg::catalog;
use crate::pg::definition::{ColumnType, Definition};
use crate::pg::log_table;
use crate::pg::session;
use crate::pg::tuple::Batch;
use crate::transaction::{Changeset, Event};

const TIMESTAMPTZ: ColumnType = ColumnType::Core(BuiltinOid::TIMESTAMPTZOID);
const INT4: ColumnType = ColumnType::Core(BuiltinOid::INT4OID);
const UUID: ColumnType = ColumnType::Core(BuiltinOid::UUIDOID);
const BYTEA: ColumnType = ColumnType::Core(BuiltinOid::BYTEAOID);
const TEXT: ColumnType = ColumnType::Core(BuiltinOid::TEXTOID);
const JSONB: ColumnType = ColumnType::Core(BuiltinOid::JSONBOID);
const TEXTS: ColumnType = ColumnType::Core(BuiltinOid::TEXTARRAYOID);
const INET: ColumnType = ColumnType::Core(BuiltinOid::INETOID);

pub static EVENT: Definition = Definition {
    name: c"event",
    columns: &[
        ("occurred_at", TIMESTAMPTZ),
        ("seq", INT4),
        ("command", INT4),
        ("relation_id", INT4),
        ("operation", ColumnType::Own(c"operation")),
        ("status", ColumnType::Own(c"status")),
        ("changeset_id", UUID),
        ("salt", UUID),
        ("checksum", BYTEA),
        ("resource_id", TEXT),
        ("row_image", JSONB),
        ("old_values", JSONB),
        ("details", JSONB),
        ("action", TEXT),
        ("resource", TEXT),
    ],
};

pub static CHANGESET: Definition = Definition {
    name: c"changeset",
    columns: &[
        ("occurred_at", TIMESTAMPTZ),
        ("position", ColumnType::Core(BuiltinOid::PG_LSNOID)),
        ("xid", ColumnType::Core(BuiltinOid::XID8OID)),
        ("era", INT4),
        ("event_count", INT4),
        ("backend_pid", INT4),
        ("client_port", INT4),
        ("origin", ColumnType::Own(c"origin")),
        ("context_trust", ColumnType::Own(c"context_trust")),
        ("id", UUID),
        ("salt", UUID),
        ("events_root", BYTEA),
        ("checksum", BYTEA),
        ("user_id", TEXT),
        ("tenant_id", TEXT),
        ("request_id", TEXT),
        ("session_id", TEXT),
        ("ip_address", INET),
        ("client_addr", INET),
        ("user_agent", TEXT),
        ("reason", TEXT),
        ("session_role", TEXT),
        ("effective_role", TEXT),
        ("application_name", TEXT),
        ("statement", TEXT),
        ("context", JSONB),
    ],
};

pub static RELATION: Definition = Definition {
    name: c"relation",
    columns: &[
        ("id", INT4),
        ("relid", ColumnType::Core(BuiltinOid::OIDOID)),
        ("schema_name", TEXT),
        ("table_name", TEXT),
        ("resource", TEXT),
        ("root_schema", TEXT),
        ("root_table", TEXT),
        ("columns", JSONB),
        ("key_columns", TEXTS),
        ("valid_from", TIMESTAMPTZ),
    ],
};

pub static LOCAL_LAYOUT: Definition = Definition {
    name: c"local_layout",
    columns: &[("relid", ColumnType::Core(BuiltinOid::OIDOID)), ("relation_id", INT4)],
};

pub static LEDGER: Definition = Definition {
    name: c"ledger",
    columns: &[
        ("era", INT4),
        ("id", UUID),
        ("system_identifier", ColumnType::Core(BuiltinOid::NUMERICOID)),
        ("started_at", TIMESTAMPTZ),
        ("timeline", ColumnType::Core(BuiltinOid::INT8OID)),
        ("database_id", ColumnType::Core(BuiltinOid::OIDOID)),
        ("origin", TEXT),
    ],
};

pub static POLICY: Definition = Definition {
    name: c"policy",
    columns: &[
        ("target", ColumnType::Core(BuiltinOid::REGCLASSOID)),
        ("inherited_from", ColumnType::Core(BuiltinOid::REGCLASSOID)),
        ("mode", TEXT),
        ("sample_rate", ColumnType::Core(BuiltinOid::FLOAT8OID)),
        ("exclude_columns", TEXTS),
        ("mask_columns", TEXTS),
        ("soft_delete_column", TEXT),
        ("require_context", TEXTS),
        ("skip_unchanged", ColumnType::Core(BuiltinOid::BOOLOID)),
        ("tenant_column", TEXT),
        ("require_verified_context", ColumnType::Core(BuiltinOid::BOOLOID)),
        ("enabled_at", TIMESTAMPTZ),
        ("enabled_by", TEXT),
    ],
};

pub static IN_TRANSIT: Definition = Definition {
    name: c"in_transit",
    columns: &[
        ("incarnation", ColumnType::Core(BuiltinOid::INT8OID)),
        ("number", ColumnType::Core(BuiltinOid::INT8OID)),
        ("queued_at", TIMESTAMPTZ),
        ("events", INT4),
        ("tables", TEXTS),
    ],
};

pub static ACTION: Definition = Definition {
    name: c"action",
    columns: &[
        ("name", TEXT),
        ("category", TEXT),
        ("is_security", ColumnType::Core(BuiltinOid::BOOLOID)),
        ("is_standard", ColumnType::Core(BuiltinOid::BOOLOID)),
        ("description", TEXT),
    ],
};

pub static TENANT_READER: Definition = Definition {
    name: c"tenant_reader",
    columns: &[
        ("role", ColumnType::Core(BuiltinOid::REGROLEOID)),
        ("tenant_id", TEXT),
        ("granted_at", TIMESTAMPTZ),
        ("granted_by", TEXT),
    ],
};

pub static ACTION_RULE: Definition = Definition {
    name: c"action_rule",
    columns: &[
        ("id", INT4),
        ("target", ColumnType::Core(BuiltinOid::REGCLASSOID)),
        ("priority", INT4),
        ("operation", TEXT),
        ("columns", TEXTS),
        ("condition", TEXT),
        ("action", TEXT),
        ("created_at", TIMESTAMPTZ),
        ("created_by", TEXT),
    ],
};

/// An event with all that makes it a record.
pub struct SealedEvent<'a> {
    pub event: &'a Event<'a>,
    pub seq: i32,
    pub changeset_id: [u8; 16],
    pub occurred_at: i64,
    pub salt: [u8; 16],
    pub checksum: [u8; 32],
}

/// Oids of the enum labels that records use.
#[derive(Clone, Copy)]
pub struct Labels {
    generation: u64,
    operations: [Oid; Operation::ALL.len()],
    statuses: [Oid; Status::ALL.len()],
    origins: [Oid; Origin::ALL.len()],
    trusts: [Oid; Trust::ALL.len()],
}

thread_local! {
    static LABELS: Cell<Option<Labels>> = const { Cell::new(None) };
    static ERA: Cell<Option<i32>> = const { Cell::new(None) };
}

/// The labels' oids, looked up when the log is first used and whenever its tables changed.
pub fn labels() -> Result<Labels, Error> {
    let generation = log_table::generation();
    if let Some(labels) = LABELS.get().filter(|labels| labels.generation == generation) {
        return Ok(labels);
    }
    session::check_version()?;
    let labels = Labels {
        generation,
        operations: oids(c"operation", Operation::ALL, Operation::as_str)?,
        statuses: oids(c"status", Status::ALL, Status::as_str)?,
        origins: oids(c"origin", Origin::ALL, Origin::as_str)?,
        trusts: oids(c"context_trust", Trust::ALL, Trust::as_str)?,
    };
    LABELS.set(Some(labels));
    Ok(labels)
}

/// Oids of the labels, in their order.
fn oids<T: Copy, const N: usize>(
    enum_name: &CStr,
    labels: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<[Oid; N], Error> {
    let mut oids = [Oid::INVALID; N];
    catalog::enum_labels(enum_name, |found, oid| {
        if let Some(index) = labels.iter().position(|&label| name(label).as_bytes() == found) {
            oids[index] = oid;
        }
    });
    match labels.iter().zip(oids).find(|(_, oid)| *oid == Oid::INVALID) {
        None => Ok(oids),
        Some((&label, _)) => Err(Error::LogAltered {
            table: "event".into(),
            detail: format!("Enum audit.{} has no label \"{}\".", enum_name.to_string_lossy(), name(label)),
        }),
    }
}

/// Appends the event's tuple to the batch.
pub fn put_event(sealed: &SealedEvent, labels: &Labels, batch: &mut Batch) -> Result<(), Error> {
    let event = sealed.event;
    let texts = [event.resource_id, event.action, event.resource];
    let images = [event.row_image, event.old_values, event.details];
    let payload = texts.iter().flatten().map(|text| text.len()).sum::<usize>()
        + images.iter().flatten().map(|image| image.jsonb.len()).sum::<usize>()
        + sealed.checksum.len();
    let mut tuple = batch.tuple(EVENT.columns.len(), payload)?;
    tuple.i64(sealed.occurred_at)?;
    tuple.i32(sealed.seq)?;
    tuple.i32(event.command as i32)?;
    tuple.i32_or_null(event.layout.map(|layout| layout.relation_id))?;
    tuple.oid(labels.operations[event.operation as usize])?;
    tuple.oid(labels.statuses[event.status as usize])?;
    tuple.uuid(&sealed.changeset_id)?;
    tuple.uuid(&sealed.salt)?;
    tuple.varlena(Some(&sealed.checksum))?;
    tuple.varlena(event.resource_id)?;
    tuple.varlena(event.row_image.map(|image| image.jsonb))?;
    tuple.varlena(event.old_values.map(|image| image.jsonb))?;
    tuple.varlena(event.details.map(|image| image.jsonb))?;
    tuple.varlena(event.action)?;
    tuple.varlena(event.resource)?;
    tuple.finish();
    Ok(())
}

/// What makes a changeset a record, when it is complete.
pub struct Closing<'a> {
    pub position: u64,
    pub salt: [u8; 16],
    /// Memory for the canonical form.
    pub canonical: &'a mut Vec<u8>,
}

/// Appends a changeset's tuple. One still pending has no position, salt and checksum.
pub fn put_changeset(changeset: &Changeset, closing: Option<Closing>, batch: &mut Batch) -> Result<(), Error> {
    let context = &changeset.context;
    let era = era()?;
    let xid = session::transaction_id();
    let labels = labels()?;
    let facts = &changeset.facts;
    let author = &facts.author;
    let further = context.further.as_ref();
    let events_root = changeset.frontier.root();

    let closed = match closing {
        None => None,
        Some(Closing { position, salt, canonical }) => {
            let position = author.position.unwrap_or(position);
            canonical::changeset(
                &ChangesetRecord {
                    id: changeset.id,
                    occurred_at_us: session::unix_usecs(changeset.occurred_at),
                    era,
                    position: Some(position),
                    xid,
                    context: &context.canonical,
                    session: &facts.canonical,
                    statement: changeset.statement.as_deref(),
                    origin: changeset.origin,
                    event_count: changeset.event_count,
                    events_root,
                },
                canonical,
            )?;
            Some((position, salt, checksum::salted(&salt, &session::to_utf8(canonical))))
        }
    };

    let texts = [
        context.get(Key::UserId),
        context.get(Key::TenantId),
        context.get(Key::RequestId),
        context.get(Key::SessionId),
        context.ip_address.as_ref().map(|(payload, _)| payload.as_slice()),
        facts.client_addr.as_deref(),
        context.get(Key::UserAgent),
        context.get(Key::Reason),
        author.session_role.as_deref(),
        author.effective_role.as_deref(),
        facts.application_name(),
        changeset.statement.as_deref(),
        further.map(|further| further.jsonb()),
    ];
    let payload = texts.iter().flatten().map(|text| text.len()).sum::<usize>() + 2 * events_root.len();
    let mut tuple = batch.tuple(CHANGESET.columns.len(), payload)?;
    tuple.i64(changeset.occurred_at)?;
    tuple.i64_or_null(closed.map(|(position, ..)| position as i64))?;
    tuple.i64(xid as i64)?;
    tuple.i32(era)?;
    tuple.i32(changeset.event_count)?;
    tuple.i32(author.backend_pid)?;
    tuple.i32_or_null(facts.client_port())?;
    tuple.oid(labels.origins[changeset.origin as usize])?;
    tuple.oid(labels.trusts[context.trust() as usize])?;
    tuple.uuid(&changeset.id)?;
    match closed {
        Some((_, salt, _)) => tuple.uuid(&salt)?,
        None => tuple.null(),
    }
    tuple.varlena(Some(&events_root))?;
    tuple.varlena(closed.as_ref().map(|(.., checksum)| checksum.as_slice()))?;
    for text in texts {
        tuple.varlena(text)?;
    }
    tuple.finish();
    Ok(())
}

/// The era that this cluster's records belong to: begun here if the log came from another cluster.
pub fn era() -> Result<i32, Error> {
    if let Some(era) = ERA.get() {
        return Ok(era);
    }
    let era = crate::ledger::current_era()?;
    ERA.set(Some(era));
    Ok(era)
}

/// Nothing here can fail.
pub fn forget_era() {
    ERA.set(None);
}
