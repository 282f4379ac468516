//! The log's signing key.

use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::keys;

use crate::error::Error;
use crate::{gucs, key_file};

/// Signs with the key of `audit.signing_key_file`, if there is one.
pub fn sign(checkpoint: &mut SignedCheckpoint) -> Result<(), Error> {
    let Some(path) = gucs::signing_key_file() else { return Ok(()) };
    let key = read(&path)?;
    let signer = keys::log_signer(&key).map_err(|_| malformed(&path))?;
    checkpoint.sign(&signer).map_err(|_| malformed(&path))
}

/// The public key that belongs to it.
pub fn public_key() -> Result<Option<String>, Error> {
    let Some(path) = gucs::signing_key_file() else { return Ok(None) };
    keys::public_of(&read(&path)?).map(Some).map_err(|_| malformed(&path))
}

fn read(path: &str) -> Result<String, Error> {
    key_file::read(path).map_err(|problem| Error::SigningKey { path: path.into(), problem })
}

fn malformed(path: &str) -> Error {
    Error::SigningKey { path: path.into(), problem: "It holds no signing key in the encoding of signed notes.".into() }
}
