//! Erasure: the content of records goes, with the salt that would let it be guessed; their checksums stay, so every proof
//! of the others holds. What is erased is said by an event of its own, which names each record and the checksum of what
//! remains of it. A record without its salt that no such event names was tampered with.

use std::cell::Cell;
use std::collections::BTreeMap;

use audit_core::canonical::{Operation, Origin, Status};
use audit_core::jsonb::{KeyBlock, Writer};
use pgrx::pg_sys;

use crate::error::Error;
use crate::pg::env::{self, Env};
use crate::pg::session::{self, AsOwner};
use crate::pg::spi::{self, Arg, Sees};
use crate::transaction::{self, Event, Image};

/// Name of the event's action.
const ACTION: &[u8] = b"audit.erased";

thread_local! {
    static UNDER_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Whether the log's tables may be changed: by the statements below, and nothing else.
pub fn is_under_way() -> bool {
    UNDER_WAY.get()
}

/// Lets the statements that run until it is dropped change the log, also on the way out of an error.
struct Permission;

impl Permission {
    fn take() -> Self {
        UNDER_WAY.set(true);
        Permission
    }
}

impl Drop for Permission {
    fn drop(&mut self) {
        UNDER_WAY.set(false);
    }
}

/// The records erased, each with the checksum of what remains, in hexadecimal.
#[derive(Default)]
struct Erased {
    /// By changeset and number.
    events: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>,
    changesets: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What is hashed of an event, as SQL.
const EVENT: &str = "jsonb_build_array('audit_ext/event/1', e.changeset_id, e.seq, e.command,
    (extract(epoch FROM e.occurred_at) * 1000000)::bigint,
    e.relation_id, (SELECT r.schema_name FROM audit.relation AS r WHERE r.id = e.relation_id),
    (SELECT r.table_name FROM audit.relation AS r WHERE r.id = e.relation_id), e.operation, e.action, e.status,
    e.resource, e.resource_id, e.row_image, e.old_values, e.details)::text";

/// What is hashed of a changeset, as SQL.
const CHANGESET: &str = "jsonb_build_array('audit_ext/changeset/1', c.id,
    (extract(epoch FROM c.occurred_at) * 1000000)::bigint, c.era, c.position - '0/0'::pg_lsn, c.xid::text, c.user_id,
    c.tenant_id, c.request_id, c.session_id, c.ip_address, c.user_agent, c.reason, c.context, c.context_trust, c.session_role,
    c.effective_role, c.application_name, c.client_addr, c.client_port, c.backend_pid, c.statement, c.origin,
    c.event_count, encode(c.events_root, 'hex'))::text";

/// The events of a row: under its key, or that gave it another.
const OF_ROW: &str = "e.salt IS NOT NULL AND (e.resource_id = $2 OR e.details ->> 'old_resource_id' = $2)
    AND e.relation_id IN (
        SELECT r.id FROM audit.relation AS r
          LEFT JOIN (SELECT n.nspname::text AS schema_name, t.relname::text AS table_name
                       FROM pg_class AS t JOIN pg_namespace AS n ON n.oid = t.relnamespace WHERE t.oid = $1::oid) AS t
            ON (t.schema_name, t.table_name) IN ((r.schema_name, r.table_name), (r.root_schema, r.root_table))
         WHERE r.id IN (SELECT l.relation_id FROM audit.local_layout AS l WHERE l.relid = $1::oid)
            OR t.table_name IS NOT NULL)";

/// The changesets of a user.
const OF_USER: &str = "c.salt IS NOT NULL AND c.user_id = $1";

/// Erases what the log holds of a row. Returns the number of events.
pub fn row(target: pg_sys::Oid, resource_id: &[u8], reason: &[u8]) -> Result<i64, Error> {
    let mut erased = Erased::default();
    let resource = {
        let _owner = AsOwner::begin()?;
        let _environment = env::enter(Env::Settings);
        let arguments = [Arg::Int8(target.to_u32().into()), Arg::Text(Some(resource_id))];
        erased.erase_events(OF_ROW, &arguments)?;
        spi::first(Sees::Now, "SELECT $1::oid::regclass::text", &arguments[..1], |row| row.bytes(1))?.flatten()
    };
    erased.record(&resource.unwrap_or_default(), reason)
}

/// Erases the context of a user's changesets, and the details of what the application reported under it. Returns the
/// number of changesets.
pub fn user(user_id: &[u8], reason: &[u8]) -> Result<i64, Error> {
    let mut erased = Erased::default();
    {
        let _owner = AsOwner::begin()?;
        let _environment = env::enter(Env::Settings);
        let arguments = [Arg::Text(Some(user_id))];
        let reported = format!(
            "e.salt IS NOT NULL AND e.relation_id IS NULL AND e.action IS DISTINCT FROM 'audit.erased'
               AND (e.occurred_at, e.changeset_id) IN (
                   SELECT c.occurred_at, c.id FROM audit.changeset AS c WHERE {OF_USER})"
        );
        erased.erase_events(&reported, &arguments)?;
        erased.erase_changesets(&arguments)?;
    }
    erased.record(b"user", reason)
}

/// What was altered must not be made to look as if it had been erased.
fn check_intact(query: &str, arguments: &[Arg]) -> Result<(), Error> {
    let altered = spi::first(Sees::Now, query, arguments, |row| row.text(1).unwrap_or_default())?;
    match altered {
        None => Ok(()),
        Some(id) => Err(super::tables::damaged(format!(
            "Changeset {id} or one of its events was altered. It is left as it is, to be looked into."
        ))),
    }
}

impl Erased {
    fn erase_events(&mut self, which: &str, arguments: &[Arg]) -> Result<(), Error> {
        check_intact(
            &format!(
                "SELECT e.changeset_id::text FROM audit.event AS e WHERE {which}
                    AND e.checksum <> sha256(uuid_send(e.salt) || convert_to({EVENT}, 'UTF8')) LIMIT 1"
            ),
            arguments,
        )?;
        let _permission = Permission::take();
        spi::for_each(
            Sees::Now,
            &format!(
                "UPDATE audit.event AS e
                    SET salt = NULL, resource_id = NULL, row_image = NULL, old_values = NULL, details = NULL
                  WHERE {which}
                RETURNING e.changeset_id::text, e.seq::text, encode(sha256(convert_to({EVENT}, 'UTF8')), 'hex')"
            ),
            arguments,
            |row| {
                if let (Some(id), Some(seq), Some(hash)) = (row.bytes(1), row.bytes(2), row.bytes(3)) {
                    self.events.entry(id).or_default().insert(seq, hash);
                }
                Ok(())
            },
        )
    }

    fn erase_changesets(&mut self, arguments: &[Arg]) -> Result<(), Error> {
        check_intact(
            &format!(
                "SELECT c.id::text FROM audit.changeset AS c WHERE {OF_USER}
                    AND c.checksum <> sha256(uuid_send(c.salt) || convert_to({CHANGESET}, 'UTF8')) LIMIT 1"
            ),
            arguments,
        )?;
        let _permission = Permission::take();
        spi::for_each(
            Sees::Now,
            &format!(
                "UPDATE audit.changeset AS c
                    SET salt = NULL, user_id = NULL, request_id = NULL, session_id = NULL, ip_address = NULL,
                        user_agent = NULL, reason = NULL, context = NULL, statement = NULL, application_name = NULL,
                        client_addr = NULL, client_port = NULL
                  WHERE {OF_USER}
                RETURNING c.id::text, encode(sha256(convert_to({CHANGESET}, 'UTF8')), 'hex')"
            ),
            arguments,
            |row| {
                if let (Some(id), Some(hash)) = (row.bytes(1), row.bytes(2)) {
                    self.changesets.insert(id, hash);
                }
                Ok(())
            },
        )
    }

    /// Records the event that says so. Returns the number of records that were asked for.
    fn record(&self, resource: &[u8], reason: &[u8]) -> Result<i64, Error> {
        let events: usize = self.events.values().map(BTreeMap::len).sum();
        if events + self.changesets.len() == 0 {
            return Ok(0);
        }
        let details = self.details(reason)?;
        transaction::begin_event(Origin::Application)?;
        let seq = transaction::next_seq();
        transaction::record(&Event {
            layout: None,
            operation: Operation::Application,
            status: Status::Success,
            command: session::current_command(),
            action: Some(ACTION),
            resource: Some(resource),
            resource_id: None,
            row_image: None,
            old_values: None,
            details: Some(Image::of(&details)),
        })?;
        transaction::flush()?;
        let (changeset, occurred_at) =
            transaction::current_changeset().ok_or(Error::Internal("an event without its changeset"))?;
        let _owner = AsOwner::begin()?;
        let _environment = env::enter(Env::Settings);
        spi::run(
            "INSERT INTO audit.erasure (occurred_at, changeset_id, seq) VALUES ($1, $2, $3)",
            &[Arg::TimestampTz(Some(occurred_at)), Arg::Uuid(&changeset), Arg::Int4(seq)],
        )?;
        Ok(if self.changesets.is_empty() { events } else { self.changesets.len() } as i64)
    }

    fn details(&self, reason: &[u8]) -> Result<Writer, Error> {
        let mut json = Writer::new();
        object(&mut json, [b"reason".as_slice(), b"events", b"changesets"].into_iter(), |json, key| match key {
            b"reason" => Ok(json.string(reason)?),
            b"events" => object(json, self.events.keys().map(Vec::as_slice), |json, id| {
                let seqs = &self.events[id];
                object(json, seqs.keys().map(Vec::as_slice), |json, seq| Ok(json.string(&seqs[seq])?))
            }),
            _ => object(json, self.changesets.keys().map(Vec::as_slice), |json, id| {
                Ok(json.string(&self.changesets[id])?)
            }),
        })?;
        Ok(json)
    }
}

/// Writes an object whose values `value` writes, in the order of JSONB.
fn object<'a>(
    json: &mut Writer,
    names: impl Iterator<Item = &'a [u8]>,
    value: impl Fn(&mut Writer, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let names: Vec<&[u8]> = names.collect();
    let (keys, order) = KeyBlock::new(&names)?;
    json.begin_object(&keys)?;
    for index in order {
        value(json, names[index])?;
    }
    json.end_object()?;
    Ok(())
}
