//! Application events: what an application reports, and what this extension reports of itself. They take the session's
//! context and are part of the transaction's changeset for it.

use audit_core::canonical::{Operation, Origin, Status};
use audit_core::jsonb::{Writer, put_quoted};

use crate::context::{Context, Key, Keys};
use crate::error::Error;
use crate::isolated::Outcome;
use crate::pg::{session, shmem};
use crate::transaction::{self, Event, Image};
use crate::{actions, gucs, isolated, suspension};

/// Longest resource and key, in bytes: they go into an index, whose entries end at 2,700.
const MAX_NAME: usize = 1024;
const MAX_DETAILS: usize = 1024 * 1024;

/// What to record.
pub struct Report<'a> {
    pub action: &'a [u8],
    pub resource: Option<&'a [u8]>,
    pub resource_id: Option<&'a [u8]>,
    /// Text of a JSON value.
    pub details: Option<&'a [u8]>,
    pub status: Status,
}

impl<'a> Report<'a> {
    pub fn of(action: &'a [u8]) -> Self {
        Report { action, resource: None, resource_id: None, details: None, status: Status::Success }
    }
}

/// Records an application's event, visible to the next statement.
pub fn log(report: &Report) -> Result<(), Error> {
    write(report, check(report)?, Subject::Context)
}

/// Records an application's event in a transaction of its own: see `isolated.rs`.
pub fn log_isolated(report: &Report) -> Result<(), Error> {
    let details = check(report)?.jsonb()?;
    if !gucs::enabled() {
        suspension::note_event();
        return Ok(());
    }
    isolated::log(&event(report, details.as_ref()))
}

fn check(report: &Report) -> Result<Details, Error> {
    actions::check(report.action)?;
    check_length("resource", report.resource, MAX_NAME)?;
    check_length("resource_id", report.resource_id, MAX_NAME)?;
    Details::new(report.details)
}

/// Records an event of a user's account: a login, its failure, a logout. The event is that of `user`, whoever the context
/// says; without one, of the context's.
pub fn log_account(report: &Report, user: Option<&[u8]>, reason: Option<&[u8]>) -> Result<(), Error> {
    actions::check(report.action)?;
    let mut details = Details::new(report.details)?;
    if let Some(reason) = reason {
        details.add(b"reason", reason)?;
    }
    let Some(user) = user.filter(|user| !user.is_empty()) else { return write(report, details, Subject::Context) };
    let current = Context::current()?;
    if let Some(other) = current.get(Key::UserId).filter(|other| *other != user) {
        details.add(b"context_user_id", other)?;
    }
    write(report, details, Subject::User(user))
}

/// Whether the context names a user.
pub fn has_user() -> Result<bool, Error> {
    Ok(Context::current()?.get(Key::UserId).is_some())
}

/// Records that the log was read, where `audit.log_reads` asks for it: through the worker, if there is one, so that it stays
/// when the reader rolls back; else at the end of the transaction, so that a read does not find itself.
pub fn note_read(function: &[u8], arguments: Option<&[u8]>) -> Result<(), Error> {
    if !gucs::log_reads() || !gucs::enabled() {
        return Ok(());
    }
    check_length("function_name", Some(function), MAX_NAME)?;
    let arguments = arguments.unwrap_or(b"{}");
    let details = [b"{\"arguments\": ", arguments, b"}"].concat();
    let resource = [b"audit.", function].concat();
    check_length("arguments", Some(&details), MAX_DETAILS)?;
    if session::is_standby() {
        return Err(Error::OnStandby);
    }
    let report = Report { resource: Some(&resource), ..Report::of(b"audit.read") };
    let details = Details::new(Some(&details))?;
    if let Some(queue) = shmem::queue() {
        match isolated::write(queue, &event(&report, details.jsonb()?.as_ref()))? {
            Outcome::Written | Outcome::Late => return Ok(()),
            Outcome::Lost(_) => {}
        }
    }
    // A transaction that has something to record has an id, or a later parallel query could not ask for one.
    session::transaction_id();
    record(&report, details, Subject::Context)
}

/// Whose event it is.
enum Subject<'a> {
    Context,
    User(&'a [u8]),
}

fn write(report: &Report, details: Details, subject: Subject) -> Result<(), Error> {
    if !gucs::enabled() {
        suspension::note_event();
        return Ok(());
    }
    if session::is_standby() {
        return Err(Error::OnStandby);
    }
    record(report, details, subject)
}

fn record(report: &Report, details: Details, subject: Subject) -> Result<(), Error> {
    let _: Keys = match subject {
        Subject::Context => transaction::begin_event(Origin::Application)?,
        Subject::User(user) => transaction::begin_event_as(Origin::Application, &Context::with(Key::UserId, user)?)?,
    };
    suspension::record()?;
    transaction::record(&event(report, details.jsonb()?.as_ref()))
}

fn event<'a>(report: &Report<'a>, details: Option<&'a Writer>) -> Event<'a> {
    let present = |value: Option<&'a [u8]>| value.filter(|value| !value.is_empty());
    Event {
        layout: None,
        operation: Operation::Application,
        status: report.status,
        command: session::current_command(),
        action: Some(report.action),
        resource: present(report.resource),
        resource_id: present(report.resource_id),
        row_image: None,
        old_values: None,
        details: details.map(Image::of),
    }
}

fn check_length(argument: &str, value: Option<&[u8]>, limit: usize) -> Result<(), Error> {
    match value {
        Some(value) if value.len() > limit => Err(Error::InvalidOption {
            message: format!("{argument} of an event is too long: {} bytes, at most {limit} are allowed", value.len()),
            hint: "Nothing is cut; pass a shorter value, and keep large documents elsewhere.",
        }),
        _ => Ok(()),
    }
}

/// Text of a JSON object, or nothing.
struct Details(Option<Vec<u8>>);

impl Details {
    fn new(text: Option<&[u8]>) -> Result<Self, Error> {
        check_length("details", text, MAX_DETAILS)?;
        match text {
            Some(text) if !text.starts_with(b"{") => Err(Error::InvalidOption {
                message: "details of an event must be a JSON object".into(),
                hint: "Pass an object such as {\"amount\": 100}.",
            }),
            text => Ok(Details(text.map(<[u8]>::to_vec))),
        }
    }

    fn jsonb(&self) -> Result<Option<Writer>, Error> {
        let Some(text) = &self.0 else { return Ok(None) };
        let mut writer = Writer::new();
        writer.json(text)?;
        Ok(Some(writer))
    }

    /// Adds a member; it replaces one of the same name, since of duplicate keys the last one counts.
    fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Error> {
        let mut text = self.0.take().unwrap_or_else(|| b"{}".to_vec());
        text.pop();
        if text.last() != Some(&b'{') {
            text.extend_from_slice(b", ");
        }
        put_quoted(&mut text, name)?;
        text.extend_from_slice(b": ");
        put_quoted(&mut text, value)?;
        text.push(b'}');
        self.0 = Some(text);
        Ok(())
    }
}
