//! The log's signing key, in a file that the server's user alone can read.

use std::fs;
use std::os::unix::fs::MetadataExt;

use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::keys;

use crate::error::Error;
use crate::gucs;

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

fn malformed(path: &str) -> Error {
    Error::SigningKey { path: path.into(), problem: "It holds no signing key in the encoding of signed notes.".into() }
}

/// As PostgreSQL does it with the key of TLS: the file is the server user's and closed to others, or root's and at most
/// readable by a group.
fn read(path: &str) -> Result<String, Error> {
    let refused = |problem: String| Error::SigningKey { path: path.into(), problem };
    let file = fs::metadata(path).map_err(|error| refused(format!("{error}.")))?;
    // The owner of our own /proc entry is the effective user.
    let server = fs::metadata("/proc/self").map(|process| process.uid()).unwrap_or(u32::MAX);
    if !file.is_file() {
        return Err(refused("It is no regular file.".into()));
    }
    let open_to_others = match file.uid() {
        0 if server != 0 => file.mode() & 0o027 != 0,
        owner if owner == server => file.mode() & 0o077 != 0,
        _ => return Err(refused("It belongs to another user than the server's, or root.".into())),
    };
    if open_to_others {
        return Err(refused("Group or others have access to it.".into()));
    }
    fs::read_to_string(path).map_err(|error| refused(format!("{error}.")))
}
