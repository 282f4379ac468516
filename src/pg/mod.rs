//! The one home of `unsafe`: everything that touches PostgreSQL's memory, behind functions that plain Rust can call.
//!
//! Two rules hold throughout.
//!
//! * An ERROR raised by PostgreSQL below one of the `pg_sys` functions arrives as a Rust panic (pgrx guards each
//!   call), so values with a destructor are released on the way up, and pgrx raises the ERROR again at the entry point.
//! * No state of ours is borrowed while PostgreSQL runs code that a user may have written (output functions, casts,
//!   index expressions): such code may change an audited table and so come back here.
#![allow(unsafe_code)]

pub mod args;
pub mod attempt;
pub mod brin;
pub mod catalog;
pub mod command;
pub mod compare;
pub mod composite;
pub mod condition;
pub mod definition;
pub mod encode;
pub mod entry;
pub mod env;
pub mod expression_index;
pub mod generated;
pub mod guc;
pub mod heap;
pub mod hooks;
pub mod in_transit;
pub mod instants;
pub mod log_index;
pub mod log_partition;
pub mod log_table;
pub mod old_key;
pub mod parse;
pub mod process;
pub mod publish;
pub mod readers;
pub mod relation;
pub mod report;
pub mod session;
pub mod shmem;
pub mod spi;
pub mod statement;
pub mod table_triggers;
pub mod trigger;
pub mod tuple;
pub mod unguarded;
pub mod worker;
pub mod xact;
