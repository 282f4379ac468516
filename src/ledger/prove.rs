//! Proofs for somebody who does not have the log.

use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::proof::{ConsistencyProof, EventProof, Inner, Record, encode, path_in};
use audit_ledger::tiles::Log;

use super::tables::{self, Head, Tiles, damaged};
use super::{era_begun, latest};
use crate::error::Error;
use crate::pg::catalog::Row;
use crate::pg::session;
use crate::pg::spi::{self, Arg, Sees};

/// The proof that an event is in the log, against the last checkpoint of the ledger that has it.
pub fn event(changeset_id: &[u8; 16], seq: i32) -> Result<String, Error> {
    let name = String::from_utf8_lossy(&audit_core::hex::uuid(changeset_id)).into_owned();
    let not_found = || Error::NoSuchEvent { changeset: name.clone(), seq };

    let changeset = [Arg::Uuid(changeset_id)];
    let found = events(changeset_id, seq)?;
    let index = found.index.ok_or_else(not_found)?;
    let whole = spi::first(
        Sees::AsCaller,
        "SELECT c.salt::text, audit.changeset_text(c) FROM audit.changeset AS c
          WHERE c.id = $1 AND c.occurred_at = audit.changeset_time($1)",
        &changeset,
        |row| record(row, 1),
    )?;
    // Without its salt it was erased.
    let (event, whole) = found.record.zip(whole.flatten()).ok_or_else(|| Error::Erased { changeset: name.clone() })?;

    let entry =
        spi::first(Sees::AsCaller, "SELECT era, index FROM audit.entry WHERE changeset_id = $1", &changeset, |row| {
            row.int4(1).zip(row.int8(2))
        })?;
    let (era, entry) = entry.flatten().ok_or_else(|| Error::NotSealed { changeset: name.clone() })?;
    let (checkpoint, path) = with_log(era, |log| log.prove_inclusion(entry as u64))?;
    let path_in_changeset = path_in(&found.leaves, index).iter().map(encode).collect();
    let inner = Inner { event, index: index as u64, path: path_in_changeset, changeset: whole };
    let proof = EventProof { inner, index: entry as u64, path, checkpoint };
    // A proof that does not hold is none: the record was altered.
    proof.check()?;
    Ok(proof.text()?)
}

/// The events of a changeset.
#[derive(Default)]
struct Events {
    leaves: Vec<[u8; 32]>,
    /// The one meant: its place among the others, and what is hashed of it.
    index: Option<usize>,
    record: Option<Record>,
}

/// Reads them in one go: where the log has no btree, each look-up reads a whole BRIN index.
fn events(changeset_id: &[u8; 16], seq: i32) -> Result<Events, Error> {
    let mut found = Events::default();
    spi::for_each(
        Sees::AsCaller,
        "SELECT e.seq, e.checksum, e.salt::text, CASE WHEN e.seq = $2 THEN audit.event_text(e, coalesce(
                    (SELECT concat(r.id, ', ', to_json(r.schema_name), ', ', to_json(r.table_name))
                       FROM audit.relation AS r WHERE r.id = e.relation_id), 'null, null, null')) END
           FROM audit.event AS e
          WHERE e.changeset_id = $1 AND e.occurred_at = audit.changeset_time($1) ORDER BY e.seq",
        &[Arg::Uuid(changeset_id), Arg::Int4(seq)],
        |row| {
            if row.int4(1) == Some(seq) {
                found.index = Some(found.leaves.len());
                found.record = record(row, 3);
            }
            found.leaves.push(row.hash(2).ok_or_else(|| damaged("A checksum has not 32 bytes.".into()))?);
            Ok(())
        },
    )?;
    Ok(found)
}

/// Salt and text from a column on.
fn record(row: &Row, column: usize) -> Option<Record> {
    row.text(column).zip(row.text(column + 1)).map(|(salt, canonical)| Record { salt, canonical })
}

/// The last checkpoint of a ledger with its cosignatures, and what is asked of the log that it tells of.
fn with_log<T>(
    era: i32,
    ask: impl FnOnce(&Log<Tiles>) -> Result<T, audit_ledger::Error>,
) -> Result<(SignedCheckpoint, T), Error> {
    let Head { tree_size, root, note, .. } = tables::head(Sees::AsCaller, era)?;
    let root = root.ok_or_else(|| Error::Checkpoint {
        message: "there is no checkpoint yet".into(),
        hint: "Call audit.seal().",
    })?;
    let mut checkpoint = SignedCheckpoint::parse(&note)?;
    spi::for_each(
        Sees::AsCaller,
        "SELECT line FROM audit.cosignature WHERE era = $1 AND tree_size = $2 ORDER BY key",
        &[Arg::Int4(era), Arg::Int8(tree_size as i64)],
        |row| {
            let line = row.text(1).unwrap_or_default();
            let cosigned = SignedCheckpoint::parse(&format!("{}\n{line}", checkpoint.body()))?;
            checkpoint.merge(&cosigned)?;
            Ok(())
        },
    )?;
    let answer = ask(&Log { size: tree_size, root, source: &Tiles { era, sees: Sees::AsCaller } })?;
    Ok((checkpoint, answer))
}

/// The proof that the current ledger, when it had `old_size` entries, was the beginning of what it is now.
pub fn consistency(old_size: i64) -> Result<String, Error> {
    let era = if session::is_standby() { latest()?.map(|(era, _)| era) } else { era_begun()? };
    let refused =
        |message: String| Error::Checkpoint { message, hint: "audit.checkpoint lists the states of the ledger." };
    let era = era.ok_or_else(|| refused("there is no checkpoint yet".into()))?;
    let size = tables::head(Sees::AsCaller, era)?.tree_size;
    let old_size = u64::try_from(old_size)
        .ok()
        .filter(|old_size| *old_size <= size)
        .ok_or_else(|| refused(format!("the ledger never had {old_size} entries: it has {size}")))?;
    let (checkpoint, path) = with_log(era, |log| log.prove_consistency(old_size))?;
    Ok(ConsistencyProof { old_size, path, checkpoint }.text())
}
