//! The SQL functions of the ledger with a Rust body.
#![allow(clippy::type_complexity, reason = "pgrx reads the columns of a result where the function is declared")]

use pgrx::datum::{TimestampWithTimeZone, Uuid};
use pgrx::prelude::*;

use super::verify::Finding;
use super::{erase, prove, seal, verify, witness};
use crate::api::required;
use crate::pg::args::{RegClass, Text};
use crate::pg::report;

#[pg_extern(volatile, parallel_unsafe, name = "seal")]
fn seal_ledger(everything: default!(Option<bool>, "false")) -> i64 {
    report::ok(seal::seal(everything.unwrap_or(false)))
}

#[pg_extern(volatile, parallel_unsafe)]
fn add_cosignature(note: Option<String>) -> i32 {
    report::ok(witness::add(&required("note", note)))
}

#[pg_extern(volatile, parallel_unsafe, name = "erase")]
fn erase_row(target: Option<RegClass>, resource_id: Option<Text>, reason: Option<Text>) -> i64 {
    let (target, resource_id) = (required("target", target), required("resource_id", resource_id));
    report::ok(erase::row(target.0, &resource_id.0, &required("reason", reason).0))
}

#[pg_extern(volatile, parallel_unsafe)]
fn erase_user(user_id: Option<Text>, reason: Option<Text>) -> i64 {
    report::ok(erase::user(&required("user_id", user_id).0, &required("reason", reason).0))
}

#[pg_extern(stable, parallel_restricted, name = "prove")]
#[search_path(pg_catalog, pg_temp)]
fn prove_event(changeset_id: Option<Uuid>, seq: Option<i32>) -> String {
    let changeset_id = required("changeset_id", changeset_id);
    report::ok(prove::event(changeset_id.as_bytes(), required("seq", seq)))
}

#[pg_extern(stable, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
fn prove_consistency(old_size: Option<i64>) -> String {
    report::ok(prove::consistency(required("old_size", old_size)))
}

#[pg_extern(stable, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, reason = "pgrx reads the columns here")]
fn verify_changesets(
    since: default!(Option<TimestampWithTimeZone>, "NULL"),
    until: default!(Option<TimestampWithTimeZone>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(finding, String),
        name!(occurred_at, Option<TimestampWithTimeZone>),
        name!(changeset_id, Option<Uuid>),
        name!(seq, Option<i32>),
        name!(detail, String),
    ),
> {
    let time = |time: Option<TimestampWithTimeZone>| time.map(Into::into);
    TableIterator::new(report::ok(verify::changesets(time(since), time(until))).into_iter().map(columns))
}

#[pg_extern(stable, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, reason = "pgrx reads the columns here")]
fn verify_tree(
    checkpoint: default!(Option<String>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(finding, String),
        name!(occurred_at, Option<TimestampWithTimeZone>),
        name!(changeset_id, Option<Uuid>),
        name!(seq, Option<i32>),
        name!(detail, String),
    ),
> {
    TableIterator::new(report::ok(verify::tree(checkpoint.as_deref())).into_iter().map(columns))
}

fn columns(finding: Finding) -> (String, Option<TimestampWithTimeZone>, Option<Uuid>, Option<i32>, String) {
    let occurred_at = finding.occurred_at.and_then(|time| TimestampWithTimeZone::try_from(time).ok());
    (finding.finding.to_owned(), occurred_at, finding.changeset_id.map(Uuid::from_bytes), finding.seq, finding.detail)
}
