//! Application events.

use audit_core::canonical::Status;
use pgrx::prelude::*;

use super::required;
use crate::application::{self, Report};
use crate::error::Error;
use crate::pg::args::{JsonbText, Text};
use crate::pg::report;

#[pg_extern(volatile, parallel_unsafe)]
fn log_event(
    action: Option<Text>,
    resource: default!(Option<Text>, "NULL"),
    resource_id: default!(Option<Text>, "NULL"),
    details: default!(Option<JsonbText>, "NULL"),
    status: default!(Option<String>, "'success'"),
    isolated: default!(Option<bool>, "false"),
) {
    let action = required("action", action);
    let log = if isolated.unwrap_or(false) { application::log_isolated } else { application::log };
    report::ok(log(&Report {
        resource: bytes(&resource),
        resource_id: bytes(&resource_id),
        details: details.as_ref().map(|details| details.0.as_slice()),
        status: report::ok(status_of(&required("status", status))),
        ..Report::of(&action.0)
    }));
}

#[pg_extern(volatile, parallel_unsafe)]
fn log_login(user_id: default!(Option<Text>, "NULL"), details: default!(Option<JsonbText>, "NULL")) {
    report::ok(account(b"auth.login", Status::Success, &user_id, None, &details));
}

#[pg_extern(volatile, parallel_unsafe)]
fn log_login_failed(
    user_id: default!(Option<Text>, "NULL"),
    reason: default!(Option<Text>, "NULL"),
    details: default!(Option<JsonbText>, "NULL"),
) {
    report::ok(account(b"auth.login_failed", Status::Failure, &user_id, bytes(&reason), &details));
}

#[pg_extern(volatile, parallel_unsafe)]
fn log_logout(user_id: default!(Option<Text>, "NULL"), details: default!(Option<JsonbText>, "NULL")) {
    report::ok(account(b"auth.logout", Status::Success, &user_id, None, &details));
}

#[pg_extern(volatile, parallel_unsafe)]
fn note_read(function_name: Option<Text>, arguments: Option<JsonbText>) {
    let function = required("function_name", function_name);
    report::ok(application::note_read(&function.0, arguments.as_ref().map(|arguments| arguments.0.as_slice())));
}

/// A login that fails may be of a user whom nobody knows; one that succeeds is somebody's.
fn account(
    action: &[u8],
    status: Status,
    user: &Option<Text>,
    reason: Option<&[u8]>,
    details: &Option<JsonbText>,
) -> Result<(), Error> {
    let user = bytes(user).filter(|user| !user.is_empty());
    if user.is_none() && status == Status::Success && !application::has_user()? {
        return Err(Error::NullArgument { argument: "user_id" });
    }
    let details = details.as_ref().map(|details| details.0.as_slice());
    application::log_account(&Report { details, status, ..Report::of(action) }, user, reason)
}

fn bytes(text: &Option<Text>) -> Option<&[u8]> {
    text.as_ref().map(|text| text.0.as_slice())
}

fn status_of(name: &str) -> Result<Status, Error> {
    name.parse().map_err(|_| Error::InvalidOption {
        message: format!("unknown status \"{}\"", name.chars().take(64).collect::<String>()),
        hint: "A status is success, failure or error.",
    })
}
