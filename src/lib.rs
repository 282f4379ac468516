//! Audit trail for PostgreSQL tables: each change writes its record in its own transaction.
//!
//! Imports go one way: `trigger` → `capture` → `transaction` → `store`. Formats and checksums are in the pure crate
//! `audit_core`; everything that touches PostgreSQL's memory is in `pg`, the only place for `unsafe`.
#![deny(unsafe_code)]

mod action_rules;
mod actions;
mod alerts;
mod api;
mod application;
mod capture;
mod context;
mod coverage;
mod datetime;
mod ddl;
mod deferred;
mod error;
mod facts;
mod failures;
mod guard;
mod gucs;
mod identity;
mod isolated;
mod key_file;
mod layouts;
mod ledger;
mod logins;
mod maintenance;
mod modes;
mod pending;
mod pg;
mod policies;
mod queue;
mod random;
mod rounds;
mod sealing;
mod store;
mod suspension;
mod tenants;
mod transaction;
mod trigger;
mod worker;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/10_tables.sql", name = "tables", bootstrap);
pgrx::extension_sql_file!("../sql/12_indexes.sql", name = "indexes", requires = ["tables"]);
pgrx::extension_sql_file!(
    "../sql/15_actions.sql",
    name = "actions",
    requires = [
        "tables",
        api::application::log_event,
        api::application::log_login,
        api::application::log_login_failed,
        api::application::log_logout,
        api::application::note_read
    ]
);
pgrx::extension_sql_file!(
    "../sql/16_tenants.sql",
    name = "tenants",
    requires = [
        "tables",
        pg::readers::tenant_visible,
        pg::readers::simplify_tenant_visible,
        pg::readers::fenced,
        pg::readers::simplify_fenced
    ]
);
pgrx::extension_sql_file!(
    "../sql/17_action_rules.sql",
    name = "action_rules",
    requires = ["tables", api::action_rules::add_action_rule, api::action_rules::drop_action_rule]
);
pgrx::extension_sql_file!(
    "../sql/40_queue.sql",
    name = "queue",
    requires = [
        "tables",
        "ledger",
        api::stats::queue_state,
        api::stats::stats_reset,
        api::stats::table_state,
        api::stats::failure_classes
    ]
);
pgrx::extension_sql_file!("../sql/60_ledger.sql", name = "ledger", requires = ["tables"]);
pgrx::extension_sql_file!(
    "../sql/20_functions.sql",
    name = "functions",
    requires = [
        "indexes",
        "actions",
        "tenants",
        "action_rules",
        "queue",
        "ledger",
        api::enable,
        api::disable,
        api::enable_schema,
        api::disable_schema,
        api::set_context,
        api::set_context_token,
        api::clear_context,
        api::client_ip,
        api::merkle_root,
        ledger::api::seal_ledger,
        ledger::api::add_cosignature,
        ledger::api::erase_row,
        ledger::api::erase_user,
        ledger::api::prove_event,
        ledger::api::prove_consistency,
        ledger::api::verify_changesets,
        ledger::api::verify_tree
    ]
);
pgrx::extension_sql_file!("../sql/30_reading.sql", name = "reading", requires = ["functions", "indexes"]);
pgrx::extension_sql_file!("../sql/32_history.sql", name = "history", requires = ["reading"]);
pgrx::extension_sql_file!("../sql/34_time_travel.sql", name = "time_travel", requires = ["history"]);
pgrx::extension_sql_file!("../sql/36_undo.sql", name = "undo", requires = ["time_travel"]);
pgrx::extension_sql_file!("../sql/45_coverage.sql", name = "coverage", requires = ["history", "queue"]);
pgrx::extension_sql_file!(
    "../sql/50_maintenance.sql",
    name = "maintenance",
    requires = ["reading", api::partitions::expect_own_ddl]
);
pgrx::extension_sql_file!("../sql/90_rights.sql", name = "rights", finalize);

#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::session::switch_off_backtraces();
    gucs::init();
    pg::guc::init();
    pg::xact::init();
    pg::hooks::init();
    if pg::session::is_preloading() {
        pg::shmem::init();
        pg::worker::register_launcher();
        pg::statement::init();
    }
}
