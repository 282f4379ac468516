//! The pure core of `audit_ext`: what an auditor will want to read.
//!
//! Nothing here knows of a running PostgreSQL; everything runs under plain `cargo test`. What it knows are
//! PostgreSQL's formats: each module names the source file that defines the bytes it writes.
//!
//! Memory is the one thing that the caller shares: every buffer grows through [`buf`], so that an allocator that
//! has nothing left ends in [`error::Error::OutOfMemory`], never in an abort of the server process.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod buf;
pub mod canonical;
pub mod checksum;
pub mod context;
pub mod error;
pub mod fold;
pub mod hex;
pub mod jsonb;
pub mod merkle;
pub mod message;
pub mod money;
pub mod numeric;
pub mod queue;
pub mod uuid7;
