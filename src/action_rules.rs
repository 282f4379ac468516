//! Rules that say what a row's change means: audit.action_rule. The first one that fits, by priority, gives the event its
//! action. What is wrong with a rule never stands in the way of the change: it is recorded with the event.

use std::cell::Cell;

use audit_core::canonical::Operation;
use audit_core::jsonb::{KeyBlock, Writer};

use crate::capture::Change;
use crate::error::Error;
use crate::pg::attempt::SqlState;
use crate::pg::catalog::{self, Row as StoredRow};
use crate::pg::compare::{self, Shape};
use crate::pg::condition::{Condition, Rows};
use crate::pg::relation::{ColumnDescription, LayoutMemory, Relation};
use crate::pg::report;
use crate::store;

/// Operations that rules can be for.
pub const OPERATIONS: [Operation; 4] = [Operation::Insert, Operation::Update, Operation::Delete, Operation::Truncate];

/// Columns of audit.action_rule, counted from 1 as in sql/17_action_rules.sql.
mod column {
    pub const ID: usize = 1;
    pub const TARGET: i16 = 2;
    pub const PRIORITY: usize = 3;
    pub const OPERATION: usize = 4;
    pub const COLUMNS: usize = 5;
    pub const CONDITION: usize = 6;
    pub const ACTION: usize = 7;
}

/// The rules of one table, in the order in which they are tried.
pub struct Rules(Vec<Rule>);

struct Rule {
    id: i32,
    operation: Operation,
    /// One of these must have changed; none are named where any change will do.
    columns: Option<Vec<(usize, Shape)>>,
    condition: Option<Result<Condition, SqlState>>,
    action: Vec<u8>,
    is_reported: Cell<bool>,
}

/// A row of audit.action_rule.
struct Stored {
    id: i32,
    priority: i32,
    operation: Option<Operation>,
    columns: Vec<Vec<u8>>,
    condition: Option<Vec<u8>>,
    action: Vec<u8>,
}

/// What the rules make of a change.
#[derive(Default)]
pub struct Verdict<'a> {
    pub action: Option<&'a [u8]>,
    /// Rules whose condition failed, and how.
    pub errors: Vec<(i32, SqlState)>,
}

/// The rows that an operation has.
pub fn rows_of(operation: Operation) -> Rows {
    Rows {
        old: matches!(operation, Operation::Update | Operation::Delete),
        new: matches!(operation, Operation::Insert | Operation::Update),
    }
}

impl Rules {
    /// The rules of a table, and of those that it is a partition or child of; none where there are none.
    pub fn load(
        relation: Relation,
        columns: &[ColumnDescription],
        memory: &LayoutMemory,
    ) -> Result<Option<Self>, Error> {
        let mut stored = Vec::new();
        for target in catalog::with_ancestors(relation.oid())? {
            catalog::scan(&store::ACTION_RULE, c"action_rule_target_idx", column::TARGET, target, |row| {
                stored.extend(Stored::from_row(row));
            })?;
        }
        stored.sort_by_key(|rule| (rule.priority, rule.id));
        let prepare = |rule: Stored| Rule::prepare(rule, relation, columns, memory);
        let rules: Vec<Rule> = stored.into_iter().filter_map(prepare).collect();
        Ok((!rules.is_empty()).then_some(Rules(rules)))
    }

    /// What a row's change means.
    pub fn decide(&self, change: &Change) -> Verdict<'_> {
        let mut verdict = Verdict::default();
        let fits = |rule: &&Rule| rule.operation == change.operation && rule.has_changed(change);
        for rule in self.0.iter().filter(fits) {
            match rule.holds(change) {
                Ok(false) => {}
                Ok(true) => {
                    verdict.action = Some(&rule.action);
                    break;
                }
                Err(sqlstate) => {
                    rule.report(sqlstate);
                    verdict.errors.push((rule.id, sqlstate));
                }
            }
        }
        verdict
    }

    /// What it means that all rows go.
    pub fn of_truncate(&self) -> Option<&[u8]> {
        self.0.iter().find(|rule| rule.operation == Operation::Truncate).map(|rule| rule.action.as_slice())
    }

    /// Rules whose condition cannot be prepared for the table as it is now.
    pub fn broken(&self) -> impl Iterator<Item = (i32, SqlState)> {
        self.0.iter().filter_map(|rule| match &rule.condition {
            Some(Err(sqlstate)) => Some((rule.id, *sqlstate)),
            _ => None,
        })
    }
}

impl Stored {
    fn from_row(row: &StoredRow) -> Option<Self> {
        let name = row.bytes(column::OPERATION);
        Some(Stored {
            id: row.int4(column::ID)?,
            priority: row.int4(column::PRIORITY)?,
            operation: OPERATIONS.into_iter().find(|known| name.as_deref() == Some(known.as_str().as_bytes())),
            columns: row.texts(column::COLUMNS),
            condition: row.bytes(column::CONDITION),
            action: row.bytes(column::ACTION)?,
        })
    }
}

impl Rule {
    /// `None` for one of an operation that this version does not know.
    fn prepare(
        stored: Stored,
        relation: Relation,
        columns: &[ColumnDescription],
        memory: &LayoutMemory,
    ) -> Option<Self> {
        let operation = stored.operation?;
        let named = |column: &&ColumnDescription| stored.columns.contains(&column.name);
        let watched = columns.iter().filter(named).map(|column| (column.index, column.shape)).collect();
        let condition = stored.condition.map(|text| memory.condition(relation, &text, rows_of(operation)));
        Some(Rule {
            id: stored.id,
            operation,
            columns: (!stored.columns.is_empty()).then_some(watched),
            condition,
            action: stored.action,
            is_reported: Cell::new(false),
        })
    }

    fn has_changed(&self, change: &Change) -> bool {
        let (Some(columns), Some(old)) = (&self.columns, change.old) else { return self.columns.is_none() };
        columns.iter().any(|&(index, shape)| compare::differs(shape, index, old, change.row))
    }

    fn holds(&self, change: &Change) -> Result<bool, SqlState> {
        match &self.condition {
            None => Ok(true),
            Some(Err(sqlstate)) => Err(*sqlstate),
            Some(Ok(condition)) => match change.operation {
                Operation::Delete => condition.holds(Some(change.row), None),
                _ => condition.holds(change.old, Some(change.row)),
            },
        }
    }

    /// Says it in the server log, once per session and layout of the table.
    fn report(&self, sqlstate: SqlState) {
        if !self.is_reported.replace(true) {
            report::log(
                format!("condition of audit action rule {} failed with SQLSTATE {}", self.id, sqlstate.as_str()),
                "audit.action_rule_errors() lists the rules that fail; correct the rule, or drop it.",
            );
        }
    }
}

/// Appends errors as an array of objects.
pub fn write_errors(errors: &[(i32, SqlState)], out: &mut Writer) -> Result<(), Error> {
    // In JSONB's order of keys.
    let (keys, _) = KeyBlock::new(&[b"rule", b"sqlstate"])?;
    out.begin_array(errors.len())?;
    for (rule, sqlstate) in errors {
        out.begin_object(&keys)?;
        out.integer(i64::from(*rule))?;
        out.string(sqlstate.as_bytes())?;
        out.end_object()?;
    }
    Ok(out.end_array()?)
}
