//! Audit trail for PostgreSQL tables: each change writes its record in its own transaction.
//!
//! Imports go one way: `trigger` → `capture` → `transaction` → `store`. Formats and checksums are in the pure crate
//! `audit_core`; everything that touches PostgreSQL's memory is in `pg`, the only place for `unsafe`.
#![deny(unsafe_code)]

mod api;
mod capture;
mod context;
mod datetime;
mod ddl;
mod error;
mod gucs;
mod layouts;
mod ledger;
mod pg;
mod policies;
mod store;
mod suspension;
mod transaction;
mod trigger;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/10_tables.sql", name = "tables", bootstrap);
pgrx::extension_sql_file!("../sql/12_indexes.sql", name = "indexes", requires = ["tables"]);
pgrx::extension_sql_file!(
    "../sql/20_functions.sql",
    name = "functions",
    requires = [
        "tables",
        api::enable,
        api::disable,
        api::enable_schema,
        api::disable_schema,
        api::set_context,
        api::clear_context,
        api::client_ip,
        api::merkle_root
    ]
);
pgrx::extension_sql_file!("../sql/30_reading.sql", name = "reading", requires = ["functions", "indexes"]);
pgrx::extension_sql_file!("../sql/40_history.sql", name = "history", requires = ["reading"]);
pgrx::extension_sql_file!("../sql/44_time_travel.sql", name = "time_travel", requires = ["history"]);
pgrx::extension_sql_file!("../sql/48_undo.sql", name = "undo", requires = ["time_travel"]);
pgrx::extension_sql_file!("../sql/50_maintenance.sql", name = "maintenance", requires = ["reading"]);
pgrx::extension_sql_file!("../sql/90_rights.sql", name = "rights", finalize);

#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::session::switch_off_backtraces();
    gucs::init();
    pg::guc::init();
    pg::xact::init();
}
