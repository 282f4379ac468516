//! Proofs for somebody who does not have the log.

use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::proof::{ConsistencyProof, EventProof, Inner, Record, encode, path_in};
use audit_ledger::tiles::Log;

use super::tables::{self, Head, Tiles, damaged};
use super::{era_begun, latest};
use crate::error::Error;
use crate::pg::session;
use crate::pg::spi::{self, Arg, Sees};

/// The proof that an event is in the log, against the last checkpoint of the ledger that has it.
pub fn event(changeset_id: &[u8; 16], seq: i32) -> Result<String, Error> {
    let name = String::from_utf8_lossy(&audit_core::hex::uuid(changeset_id)).into_owned();
    let not_found = || Error::NoSuchEvent { changeset: name.clone(), seq };

    let changeset = [Arg::Uuid(changeset_id)];
    let (leaves, index) = checksums(changeset_id, seq)?;
    let index = index.ok_or_else(not_found)?;
    let event = record(
        "SELECT salt::text, audit.canonical($1, $2) FROM audit.event
          WHERE changeset_id = $1 AND seq = $2 AND occurred_at = audit.changeset_time($1)",
        &[Arg::Uuid(changeset_id), Arg::Int4(seq)],
    )?;
    let whole = record(
        "SELECT salt::text, audit.canonical($1) FROM audit.changeset
          WHERE id = $1 AND occurred_at = audit.changeset_time($1)",
        &changeset,
    )?;
    let (event, whole) = event.zip(whole).ok_or_else(|| Error::Erased { changeset: name.clone() })?;

    let entry =
        spi::first(Sees::AsCaller, "SELECT era, index FROM audit.entry WHERE changeset_id = $1", &changeset, |row| {
            row.int4(1).zip(row.int8(2))
        })?;
    let (era, entry) = entry.flatten().ok_or_else(|| Error::NotSealed { changeset: name.clone() })?;
    let (checkpoint, path) = with_log(era, |log| log.prove_inclusion(entry as u64))?;
    let path_in_changeset = path_in(&leaves, index).iter().map(encode).collect();
    let inner = Inner { event, index: index as u64, path: path_in_changeset, changeset: whole };
    let proof = EventProof { inner, index: entry as u64, path, checkpoint };
    // A proof that does not hold is none: the record was altered.
    proof.check()?;
    Ok(proof.text()?)
}

/// The checksums of a changeset's events, and which of them is the one meant.
fn checksums(changeset_id: &[u8; 16], seq: i32) -> Result<(Vec<[u8; 32]>, Option<usize>), Error> {
    let (mut leaves, mut index) = (Vec::new(), None);
    spi::for_each(
        Sees::AsCaller,
        "SELECT seq, checksum FROM audit.event
          WHERE changeset_id = $1 AND occurred_at = audit.changeset_time($1) ORDER BY seq",
        &[Arg::Uuid(changeset_id)],
        |row| {
            if row.int4(1) == Some(seq) {
                index = Some(leaves.len());
            }
            leaves.push(row.hash(2).ok_or_else(|| damaged("A checksum has not 32 bytes.".into()))?);
            Ok(())
        },
    )?;
    Ok((leaves, index))
}

/// `None` where the record is not there, or its salt is not: it was erased.
fn record(query: &str, arguments: &[Arg]) -> Result<Option<Record>, Error> {
    let found = spi::first(Sees::AsCaller, query, arguments, |row| {
        row.text(1).zip(row.text(2)).map(|(salt, canonical)| Record { salt, canonical })
    })?;
    Ok(found.flatten())
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
