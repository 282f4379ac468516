//! The Merkle log over changesets, without a database: the tree and its tiles, checkpoints and their signatures,
//! proofs. The extension seals and proves with it; `audit-verify` checks with it.
//!
//! The formats are those of C2SP: [tlog-tiles](https://c2sp.org/tlog-tiles),
//! [tlog-checkpoint](https://c2sp.org/tlog-checkpoint), [signed-note](https://c2sp.org/signed-note),
//! [tlog-cosignature](https://c2sp.org/tlog-cosignature), [tlog-proof](https://c2sp.org/tlog-proof).

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod checkpoint;
pub mod error;
pub mod keys;
pub mod origin;
pub mod proof;
pub mod tiles;
pub mod tree;

/// A SHA-256 hash.
pub use audit_core::merkle::Hash;
pub use error::Error;
