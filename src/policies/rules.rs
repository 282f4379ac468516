//! What can be audited, and with what options: checks that look at one table and change nothing.

use pgrx::pg_sys::{self, Oid};

use crate::context::REQUIRABLE;
use crate::error::Error;
use crate::modes::Mode;
use crate::pg::catalog;
use crate::pg::relation::{self, Relation};

/// How a table is audited.
#[derive(Clone, Default)]
pub struct Options {
    pub mode: Mode,
    pub exclude_columns: Vec<String>,
    pub mask_columns: Vec<String>,
    pub soft_delete_column: Option<String>,
    pub require_context: Vec<String>,
    pub skip_unchanged: bool,
    pub snapshot: bool,
    pub tenant_column: Option<String>,
    pub require_verified_context: bool,
}

pub(super) fn is_auditable_kind(relation: Relation) -> bool {
    matches!(
        relation.kind(),
        pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE | pg_sys::RELKIND_FOREIGN_TABLE
    )
}

pub(super) fn check_auditable(relation: Relation) -> Result<(), Error> {
    let refuse = |what, hint| {
        Err(Error::NotAuditable { table: String::from_utf8_lossy(&relation.resource()).into_owned(), what, hint })
    };
    match relation.kind() {
        pg_sys::RELKIND_VIEW => return refuse("a view", "Audit the tables beneath it."),
        pg_sys::RELKIND_MATVIEW => return refuse("a materialized view", "Audit the tables beneath it."),
        pg_sys::RELKIND_SEQUENCE => return refuse("a sequence", "Audit the tables that use it."),
        _ if !is_auditable_kind(relation) => return refuse("no table", "Name a table."),
        _ => {}
    }
    if relation.is_temporary() {
        return refuse("a temporary table", "Audit permanent tables; a temporary one is gone with its session.");
    }
    if relation.is_system() {
        return refuse("a system catalog", "Changes of catalogs are made by DDL commands; audit ordinary tables.");
    }
    if relation::namespace_name(relation.namespace()) == catalog::SCHEMA.to_bytes() {
        return refuse("part of the audit trail itself", "The log is append-only and needs no audit.");
    }
    Ok(())
}

pub(super) fn check_options(relation: Relation, options: &Options) -> Result<(), Error> {
    check_context_keys(options)?;
    let columns = relation.column_names();
    let named = options
        .exclude_columns
        .iter()
        .chain(&options.mask_columns)
        .chain(&options.soft_delete_column)
        .chain(&options.tenant_column);
    for column in named {
        if !columns.iter().any(|name| name == column.as_bytes()) {
            return Err(Error::NoSuchColumn {
                table: String::from_utf8_lossy(&relation.resource()).into_owned(),
                column: column.clone(),
            });
        }
    }
    if let Some(both) = options.exclude_columns.iter().find(|column| options.mask_columns.contains(column)) {
        return Err(Error::InvalidOption {
            message: format!("column \"{both}\" is both excluded and masked"),
            hint: "An excluded column is left out of the record, a masked one reads \"***\".",
        });
    }
    match &options.tenant_column {
        Some(column) => check_tenant_column(relation, column, options),
        None => Ok(()),
    }
}

fn check_tenant_column(relation: Relation, column: &String, options: &Options) -> Result<(), Error> {
    const TYPES: [Oid; 6] =
        [pg_sys::TEXTOID, pg_sys::VARCHAROID, pg_sys::UUIDOID, pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID];
    let refuse = |why: &str, hint| {
        Err(Error::InvalidOption { message: format!("column \"{column}\" cannot name the tenant: it is {why}"), hint })
    };
    if options.exclude_columns.contains(column) || options.mask_columns.contains(column) {
        return refuse(
            "excluded or masked",
            "The tenant is recorded with each change; leave the column in the record.",
        );
    }
    match relation.stored_type(column.as_bytes()) {
        Some(type_id) if TYPES.contains(&relation::base_type(type_id)) => Ok(()),
        Some(_) => refuse("of another type", "Name a column of type text, varchar, uuid, smallint, integer or bigint."),
        None => refuse("not stored", "Name a column that is no virtual generated column."),
    }
}

pub(super) fn check_context_keys(options: &Options) -> Result<(), Error> {
    for key in &options.require_context {
        if !REQUIRABLE.iter().any(|(name, _)| name == key) {
            return Err(Error::InvalidOption {
                message: format!("unknown context key \"{key}\""),
                hint: "Keys are user_id, tenant_id, request_id, session_id, ip_address, user_agent and reason.",
            });
        }
    }
    Ok(())
}

pub(super) fn check_schema(schema: Oid) -> Result<String, Error> {
    let name = relation::namespace_name(schema);
    let text = String::from_utf8_lossy(&name).into_owned();
    let is_system = name.starts_with(b"pg_") || name == b"information_schema" || name == catalog::SCHEMA.to_bytes();
    if name.is_empty() || is_system {
        return Err(Error::NotAuditable {
            table: format!("schema {text}"),
            what: "no schema of user tables",
            hint: "Name a schema that holds ordinary tables.",
        });
    }
    Ok(text)
}

impl Options {
    /// These options for one table of a schema: only the columns that it has.
    pub(super) fn for_table(&self, relation: Relation) -> Options {
        let columns = relation.column_names();
        let has = |column: &String| columns.iter().any(|name| name == column.as_bytes());
        Options {
            exclude_columns: self.exclude_columns.iter().filter(|column| has(column)).cloned().collect(),
            mask_columns: self.mask_columns.iter().filter(|column| has(column)).cloned().collect(),
            soft_delete_column: self.soft_delete_column.clone().filter(has),
            tenant_column: self.tenant_column.clone().filter(has),
            ..self.clone()
        }
    }
}
