//! Who a session speaks for, by the word of others: tokens that an application server has signed, and settings that
//! PostgREST and Hasura make. Nothing here knows of a running PostgreSQL, of files or of the time.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod claims;
pub mod keys;
pub mod preset;
pub mod token;
