//! Adds and drops rules of audit.action_rule.

use audit_core::canonical::Operation;
use pgrx::pg_sys::{self, Oid};

use super::tables::{delete_rule, write_rule};
use super::{Acting, check_auditable};
use crate::action_rules::{self, OPERATIONS};
use crate::actions;
use crate::error::Error;
use crate::pg::condition::Condition;
use crate::pg::relation::{Opened, Relation, with_descendants};
use crate::pg::table_triggers;

/// A rule to add.
pub struct NewRule {
    pub target: Oid,
    pub operation: String,
    pub action: String,
    pub columns: Vec<String>,
    pub condition: Option<String>,
    pub priority: i32,
}

/// Adds a rule, and returns its id.
pub fn add_action_rule(rule: &NewRule) -> Result<i32, Error> {
    let opened = Opened::with_lock(rule.target, pg_sys::AccessShareLock)
        .ok_or(Error::NoSuchTable { oid: rule.target.to_u32() })?;
    check(opened.relation(), rule)?;
    drop(opened);
    let id = {
        let _acting = Acting::begin()?;
        write_rule(rule)?
    };
    invalidate(rule.target);
    Ok(id)
}

/// Drops the rule of that id.
pub fn drop_action_rule(id: i32) -> Result<(), Error> {
    let target = {
        let _acting = Acting::begin()?;
        delete_rule(id)?
    };
    invalidate(target.ok_or(Error::NoSuchRule { id })?);
    Ok(())
}

/// Has all sessions see the rules of a table and of what inherits them anew.
fn invalidate(target: Oid) {
    for table in with_descendants(target, pg_sys::AccessShareLock) {
        table_triggers::invalidate(table);
    }
}

fn check(relation: Relation, rule: &NewRule) -> Result<(), Error> {
    check_auditable(relation)?;
    actions::check(rule.action.as_bytes())?;
    let refuse = |message: String, hint| Err(Error::InvalidOption { message, hint });
    let Some(operation) = OPERATIONS.into_iter().find(|known| known.as_str() == rule.operation) else {
        return refuse(
            format!("unknown operation \"{}\"", rule.operation),
            "Operations are INSERT, UPDATE, DELETE and TRUNCATE.",
        );
    };
    if !rule.columns.is_empty() && operation != Operation::Update {
        return refuse(
            format!("columns of a rule for {} cannot have changed", rule.operation),
            "Name columns in rules for UPDATE.",
        );
    }
    let known = relation.column_names();
    if let Some(column) = rule.columns.iter().find(|column| !known.iter().any(|name| name == column.as_bytes())) {
        return Err(Error::NoSuchColumn {
            table: String::from_utf8_lossy(&relation.resource()).into_owned(),
            column: column.clone(),
        });
    }
    if let Some(column) = rule.columns.iter().find(|column| relation.stored_type(column.as_bytes()).is_none()) {
        return refuse(
            format!("column \"{column}\" is a virtual generated column"),
            "Name the columns that it is computed from.",
        );
    }
    match &rule.condition {
        Some(_) if operation == Operation::Truncate => {
            refuse("a rule for TRUNCATE has no rows for a condition".into(), "Leave out the condition.")
        }
        Some(text) => Condition::check(relation, text.as_bytes(), action_rules::rows_of(operation)),
        None => Ok(()),
    }
}
