//! Audit trail for PostgreSQL tables: each change writes its record in its own transaction.
//!
//! Imports go one way: `trigger` → `capture` → `transaction` → `store`. Formats and checksums are in the pure crate
//! `audit_core`; everything that touches PostgreSQL's memory is in `pg`, the only place for `unsafe`.
#![deny(unsafe_code)]

mod alerts;
mod api;
mod capture;
mod context;
mod datetime;
mod ddl;
mod error;
mod failures;
mod gucs;
mod isolated;
mod layouts;
mod ledger;
mod logins;
mod pg;
mod policies;
mod queue;
mod store;
mod suspension;
mod transaction;
mod trigger;
mod worker;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/10_tables.sql", name = "tables", bootstrap);
pgrx::extension_sql_file!(
    "../sql/40_queue.sql",
    name = "queue",
    requires = ["tables", api::queue_state, api::stats_reset, api::log_isolated]
);
pgrx::extension_sql_file!("../sql/20_functions.sql", name = "functions", finalize);

#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::session::switch_off_backtraces();
    gucs::init();
    pg::guc::init();
    pg::xact::init();
    if pg::session::is_preloading() {
        pg::shmem::init();
        pg::worker::register_launcher();
        pg::statement::init();
    }
}
