//! Signatures of witnesses on checkpoints.

use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::keys;

use crate::error::Error;
use crate::gucs;
use crate::pg::env::{self, Env};
use crate::pg::session::AsOwner;
use crate::pg::spi::{self, Arg, Sees};

/// Takes the cosignatures of a note that known witnesses made; returns how many are new.
pub fn add(note: &str) -> Result<i32, Error> {
    let refused = |message: &str, hint| Error::Checkpoint { message: message.into(), hint };
    let note = SignedCheckpoint::parse(note).map_err(|_| {
        refused("malformed checkpoint", "Pass the checkpoint's note with the witness's signature line.")
    })?;
    let _owner = AsOwner::begin()?;
    let _environment = env::enter(Env::Settings);
    let known = spi::first(
        Sees::Now,
        "SELECT k.era, k.note FROM audit.checkpoint AS k JOIN audit.ledger AS l ON l.era = k.era
          WHERE l.origin = $1 AND k.tree_size = $2",
        &[Arg::Text(Some(note.checkpoint.origin.as_bytes())), Arg::Int8(note.checkpoint.size as i64)],
        |row| row.int4(1).zip(row.text(2)),
    )?;
    let unknown = "The note must be of a checkpoint in audit.checkpoint.";
    let (era, ours) = known.flatten().ok_or_else(|| refused("there is no such checkpoint", unknown))?;
    if SignedCheckpoint::parse(&ours)?.body() != note.body() {
        return Err(refused("the checkpoint has another root", unknown));
    }
    let mut added = 0;
    let mut any = false;
    for key in gucs::witness_keys() {
        if !keys::is_witness(&key) {
            let hint = "Each is a vkey as audit-verify keygen --witness prints it.";
            return Err(refused("audit.witness_keys holds something that is no witness's key", hint));
        }
        match note.verify(std::slice::from_ref(&key)) {
            Err(audit_ledger::Error::NotSigned) => continue,
            Err(_) => {
                return Err(refused("the cosignature does not hold", "It is not of this checkpoint, or damaged."));
            }
            Ok(_) => any = true,
        }
        let verifier = keys::verifier(&key)?;
        let line = note.signatures().find(|(name, id, _)| *name == verifier.name() && *id == verifier.key_id());
        let Some((.., line)) = line else { continue };
        let sql =
            "INSERT INTO audit.cosignature (era, tree_size, key, line) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        let size = note.checkpoint.size as i64;
        let arguments =
            [Arg::Int4(era), Arg::Int8(size), Arg::Text(Some(key.as_bytes())), Arg::Text(Some(line.as_bytes()))];
        added += spi::run(sql, &arguments)? as i32;
    }
    if any { Ok(added) } else { Err(refused("no known witness has signed", "audit.witness_keys names the witnesses.")) }
}
