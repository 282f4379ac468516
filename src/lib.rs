//! Audit trail for PostgreSQL tables: each change writes its record in its own transaction.
//!
//! Imports go one way: `trigger` → `capture` → `transaction` → `store`. Formats and checksums are in the pure crate
//! `audit_core`; everything that touches PostgreSQL's memory is in `pg`, the only place for `unsafe`.
#![deny(unsafe_code)]

mod action_rules;
mod actions;
mod api;
mod application;
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
mod tenants;
mod transaction;
mod trigger;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/10_tables.sql", name = "tables", bootstrap);
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
pgrx::extension_sql_file!("../sql/20_functions.sql", name = "functions", finalize);

#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::session::switch_off_backtraces();
    gucs::init();
    pg::guc::init();
    pg::xact::init();
}
