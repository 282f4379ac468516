//! Why a text, a key or a proof is not what it should be.

use std::fmt;

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// No checkpoint, or no signed note around one.
    MalformedCheckpoint,
    /// No key in the encoding of signed notes.
    MalformedKey,
    /// No proof in the format that is meant.
    MalformedProof(&'static str),
    /// A signature by a known key that does not hold.
    BadSignature {
        /// Name of the key.
        key: String,
    },
    /// None of the known keys has signed.
    NotSigned,
    /// The proof does not lead from the record to the root.
    InvalidProof(&'static str),
    /// A tile is missing, or does not belong to the tree.
    BadTile(String),
    /// Beyond the tree.
    OutOfRange,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::MalformedCheckpoint => f.write_str("malformed checkpoint"),
            Error::MalformedKey => f.write_str("malformed key"),
            Error::MalformedProof(what) => write!(f, "malformed proof: {what}"),
            Error::BadSignature { key } => write!(f, "the signature by {key} does not hold"),
            Error::NotSigned => f.write_str("not signed by a known key"),
            Error::InvalidProof(what) => write!(f, "the proof does not hold: {what}"),
            Error::BadTile(what) => write!(f, "tile {what} is missing or not part of the tree"),
            Error::OutOfRange => f.write_str("beyond the tree"),
        }
    }
}

impl std::error::Error for Error {}
