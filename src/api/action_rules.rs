//! Rules that say what changes of rows mean.

use pgrx::prelude::*;

use super::{names, required};
use crate::pg::args::RegClass;
use crate::pg::report;
use crate::policies::{self, NewRule};

#[pg_extern(volatile, parallel_unsafe)]
fn add_action_rule(
    target: Option<RegClass>,
    operation: Option<String>,
    action: Option<String>,
    columns: default!(Option<Vec<Option<String>>>, "NULL"),
    condition: default!(Option<String>, "NULL"),
    priority: default!(Option<i32>, "0"),
) -> i32 {
    let rule = NewRule {
        target: required("target", target).0,
        operation: required("operation", operation),
        action: required("action", action),
        columns: names("columns", columns),
        condition,
        priority: required("priority", priority),
    };
    report::ok(policies::add_action_rule(&rule))
}

#[pg_extern(volatile, parallel_unsafe)]
fn drop_action_rule(id: Option<i32>) {
    report::ok(policies::drop_action_rule(required("id", id)));
}
