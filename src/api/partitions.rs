//! The partitions of the log, for functions in SQL.

use pgrx::prelude::*;

use crate::coverage;
use crate::error::Error;
use crate::pg::{log_partition, relation, report};
use crate::store;

#[pg_extern(volatile, parallel_unsafe, strict)]
fn expect_own_ddl(expected: bool) {
    coverage::expect_own_ddl(expected);
}

#[pg_extern(stable, parallel_safe, strict)]
#[allow(clippy::type_complexity)]
fn log_partitions(
    log_table: &str,
    key_column: &str,
    since: TimestampWithTimeZone,
    until: TimestampWithTimeZone,
) -> TableIterator<
    'static,
    (
        name!(partition, pg_sys::Oid),
        name!(since, Option<TimestampWithTimeZone>),
        name!(until, Option<TimestampWithTimeZone>),
        name!(is_default, bool),
        name!(pages, i64),
        name!(is_indexed, bool),
    ),
> {
    let definition = report::ok(match log_table {
        "event" => Ok(&store::EVENT),
        "changeset" => Ok(&store::CHANGESET),
        _ => Err(Error::InvalidOption {
            message: format!("audit.{} is not partitioned", log_table.chars().take(64).collect::<String>()),
            hint: "Name event or changeset.",
        }),
    });
    let column = relation::c_string(key_column.as_bytes());
    let listed = report::ok(log_partition::list(definition, &column, (since.into(), until.into())));
    let time = |value: i64| TimestampWithTimeZone::try_from(value).ok();
    TableIterator::new(listed.into_iter().map(move |partition| {
        let (from, to) = partition.range.unwrap_or((i64::MIN, i64::MAX));
        (
            partition.oid,
            time(from),
            time(to),
            partition.range.is_none(),
            i64::from(partition.pages),
            partition.is_indexed,
        )
    }))
}
