//! What queue, worker and sessions count.

use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

use crate::pg::session;
use crate::pg::shmem::{self, Counter, TableCounter};

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The columns of audit.stats, in one row.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn queue_state() -> TableIterator<
    'static,
    (
        name!(is_preloaded, bool),
        name!(worker_running, bool),
        name!(worker_restarts, Option<i64>),
        name!(queue_bytes, Option<i64>),
        name!(queue_used_bytes, Option<i64>),
        name!(queue_used_high_water, Option<i64>),
        name!(queue_depth, Option<i64>),
        name!(queue_high_water, Option<i64>),
        name!(queue_queued, Option<i64>),
        name!(queue_written, Option<i64>),
        name!(queue_lost, Option<i64>),
        name!(queue_fallbacks, Option<i64>),
        name!(queue_lag, Option<Interval>),
        name!(events_written, Option<i64>),
        name!(events_lost, Option<i64>),
        name!(session_time, Option<Interval>),
        name!(worker_time, Option<Interval>),
        name!(failures_recorded, Option<i64>),
        name!(failures_lost, Option<i64>),
        name!(logins_folded, Option<i64>),
        name!(logins_lost, Option<i64>),
        name!(isolated_lost, Option<i64>),
        name!(isolated_late, Option<i64>),
        name!(sampled_out, Option<i64>),
        name!(audit_errors, Option<i64>),
        name!(stats_reset, Option<TimestampWithTimeZone>),
    ),
> {
    let queue = shmem::queue();
    let database = queue.and_then(|queue| queue.database(session::database()));
    let number = |counter| database.map(|database| signed(database.get(counter)));
    let time = |counter| number(counter).map(Interval::from_micros);
    let used = queue.map(|queue| queue.used());
    let depth = database.map(shmem::Database::depth);
    TableIterator::once((
        queue.is_some(),
        database.is_some_and(shmem::Database::has_worker),
        number(Counter::Restarts),
        queue.map(|queue| queue.bytes() as i64),
        used.map(|(now, _)| now as i64),
        used.map(|(_, most)| most as i64),
        depth.map(|(now, _)| i64::from(now)),
        depth.map(|(_, most)| i64::from(most)),
        number(Counter::Messages),
        number(Counter::Written),
        number(Counter::Lost),
        number(Counter::Fallbacks),
        time(Counter::Lag),
        number(Counter::Events),
        number(Counter::EventsLost),
        time(Counter::SessionTime),
        time(Counter::WorkerTime),
        number(Counter::Failures),
        number(Counter::FailuresLost),
        number(Counter::LoginsFolded),
        number(Counter::LoginsLost),
        number(Counter::IsolatedLost),
        number(Counter::IsolatedLate),
        number(Counter::SampledOut),
        number(Counter::Errors),
        database.map(shmem::Database::reset_at).filter(|&at| at != 0).and_then(|at| at.try_into().ok()),
    ))
}

#[pg_extern(volatile, parallel_unsafe)]
fn stats_reset() {
    let Some(queue) = shmem::queue() else { return };
    if let Some(database) = queue.database(session::database()) {
        queue.reset(database, session::clock());
    }
}

/// What was counted for each table of this database.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn table_state() -> TableIterator<
    'static,
    (name!(relid, Oid), name!(events, i64), name!(sampled_out, i64), name!(capture_time, Interval)),
> {
    let tables = shmem::own_database().map(|(queue, database)| queue.tables(database)).unwrap_or_default();
    TableIterator::new(tables.into_iter().map(|(table, counters)| {
        let number = |counter: TableCounter| signed(counters[counter as usize]);
        let time = Interval::from_micros(number(TableCounter::Nanoseconds) / 1000);
        (Oid::from(table), number(TableCounter::Events), number(TableCounter::SampledOut), time)
    }))
}

/// Failed statements recorded, by the class of their SQLSTATE.
#[pg_extern(volatile, parallel_restricted)]
fn failure_classes() -> TableIterator<'static, (name!(class, String), name!(failures, i64))> {
    let classes = shmem::own_database().map(|(_, database)| database.failure_classes()).unwrap_or_default();
    TableIterator::new(classes.into_iter().map(|(class, count)| (class, signed(count))))
}
