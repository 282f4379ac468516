//! Statements that fail: noted when the error is reported, handed to the worker when the (sub)transaction that it ends
//! is rolled back, recorded as FAILURE events. An error that the statement itself handles is never reported, so none.
//!
//! What the session does here is done in the midst of an error: nothing is looked up, and nothing may fail. Which of the
//! tables meant are audited, and what they are called, is for the worker to find out.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use audit_core::canonical::{self, Operation, Origin, Status};
use audit_core::jsonb::{self, KeyBlock};
use audit_core::message::{Reader, Writer};
use pgrx::pg_sys::Oid;

use crate::error::Error;
use crate::gucs::{self, LogFailures};
use crate::layouts::{self, Table};
use crate::pg::shmem::{self, Counter, Database, Presence, Queue};
use crate::pg::statement::{self, Command, Reported};
use crate::pg::worker::sqlstate_text;
use crate::pg::{parse, process, session};
use crate::queue::{Head, Kind};
use crate::transaction::{self, Event, Image};

/// Failures that a session keeps while there is no room for them in the queue.
const MAX_WAITING: usize = 64;
/// How long a session waits for room as it ends.
const LAST_WAIT_MS: u32 = 1000;

thread_local! {
    /// The error that was reported and whose rollback is to come.
    static NOTED: RefCell<Option<Writer>> = const { RefCell::new(None) };
    static WAITING: RefCell<VecDeque<Writer>> = const { RefCell::new(VecDeque::new()) };
    static WAITS_AT_EXIT: Cell<bool> = const { Cell::new(false) };
}

fn destination() -> Option<(Queue, &'static Database)> {
    let (queue, database) = shmem::own_database()?;
    (database.presence() == Presence::Present).then_some((queue, database))
}

/// The session's database has the extension, as far as the session knows.
pub fn extension_is_here() {
    if let Some(database) = shmem::queue().and_then(|queue| queue.database(session::database()))
        && database.presence() != Presence::Present
    {
        database.set_presence(Presence::Present);
    }
}

/// PostgreSQL reports an error.
pub fn reported(error: &Reported) {
    let log = gucs::log_failures();
    if log == LogFailures::Off || destination().is_none() {
        return;
    }
    let Some(message) = message(error, log) else { return };
    let earlier = NOTED.with_borrow_mut(|noted| noted.replace(message));
    // No rollback came for it: it failed outside of a transaction.
    if let Some(earlier) = earlier {
        hand_over(earlier, 0);
    }
    if !error.is_in_transaction {
        rolled_back(0);
    }
}

/// The transaction ended without a commit: by the error that was noted, or by the session's own ROLLBACK of so many
/// captured events. Nothing here can fail.
pub fn transaction_rolled_back(discarded: i32) {
    let is_own = NOTED.with_borrow(Option::is_none) && discarded > 0;
    if is_own && gucs::log_rollbacks() && destination().is_some() {
        let rollback = Reported {
            sqlstate: 0,
            message: None,
            detail: None,
            hint: None,
            schema: None,
            table: None,
            column: None,
            constraint: None,
            is_in_transaction: true,
        };
        NOTED.set(message(&rollback, LogFailures::Audited));
    }
    rolled_back(discarded);
}

/// The message for the worker; `None` where no table is meant that could be audited, or memory is out.
fn message(error: &Reported, log: LogFailures) -> Option<Writer> {
    let mut tables: Vec<(Oid, Command, bool)> = Vec::new();
    statement::for_each_meant(|meant| tables.push((meant.table, meant.command, meant.is_target)));
    transaction::for_each_table(|table| {
        if !tables.iter().any(|(known, ..)| *known == table) {
            tables.push((table, Command::Other, true));
        }
    });
    // It failed before PostgreSQL knew which tables it means: the worker parses it again.
    let text = if tables.is_empty() && error.table.is_none() && is_worth_parsing(error.sqlstate) {
        session::statement().filter(|text| text.len() <= MAX_STATEMENT)
    } else {
        None
    };
    if tables.is_empty() && error.table.is_none() && text.is_none() && log == LogFailures::Audited {
        return None;
    }
    let mut out = Writer::new();
    let mut put = || -> Result<(), Error> {
        Head::of_failing_session(Kind::Failure, Origin::Failure).put(&mut out)?;
        out.u8(u8::from(log == LogFailures::All))?;
        out.u32(error.sqlstate as u32)?;
        for text in [error.message, error.detail, error.hint, error.schema, error.table, error.column, error.constraint]
        {
            out.optional(text.map(|text| &text[..text.len().min(MAX_TEXT)]))?;
        }
        out.u32(tables.len() as u32)?;
        for (table, command, is_target) in &tables {
            out.u32(table.to_u32())?;
            out.u8(*command as u8)?;
            out.u8(u8::from(*is_target))?;
        }
        out.optional(text.as_deref())?;
        if text.is_some() {
            out.string(&session::search_path())?;
        }
        Ok(())
    };
    put().ok().map(|()| out)
}

/// Longer statements are not parsed again.
const MAX_STATEMENT: usize = 64 * 1024;

fn is_worth_parsing(sqlstate: i32) -> bool {
    // Not a statement that is not looked at since the transaction has failed already.
    !matches!(sqlstate_text(sqlstate).as_str(), "25P02" | "00000")
}

/// Longer texts of an error are cut: a constraint's detail may quote a whole row.
const MAX_TEXT: usize = 8 * 1024;

/// The (sub)transaction was rolled back, and so many captured events with it. Nothing here can fail.
pub fn rolled_back(discarded: i32) {
    if let Some(message) = NOTED.with_borrow_mut(Option::take) {
        hand_over(message, discarded);
    } else {
        retry();
    }
}

fn hand_over(mut message: Writer, discarded: i32) {
    let is_whole = message.u32(discarded as u32).is_ok();
    let waiting = WAITING.with_borrow_mut(|waiting| {
        if is_whole && waiting.len() < MAX_WAITING && waiting.try_reserve(1).is_ok() {
            waiting.push_back(message);
            true
        } else {
            false
        }
    });
    if !waiting && let Some((_, database)) = destination() {
        database.count(Counter::FailuresLost, 1);
    }
    retry();
}

/// Hands over what waits, as far as there is room. Nothing here can fail.
pub fn retry() {
    let is_left = WAITING.with_borrow_mut(|waiting| {
        if waiting.is_empty() {
            return false;
        }
        let Some((queue, database)) = destination() else {
            waiting.clear();
            return false;
        };
        while let Some(message) = waiting.front() {
            let Some(reserved) = queue.reserve(message.bytes(), None) else {
                queue.wake_worker(database);
                return true;
            };
            queue.publish(database, reserved);
            waiting.pop_front();
        }
        false
    });
    if is_left && !WAITS_AT_EXIT.replace(true) {
        process::before_exit(session_ends);
    }
}

/// The last chance of what waits.
#[pgrx::pg_guard]
extern "C-unwind" fn session_ends(_code: i32, _argument: pgrx::pg_sys::Datum) {
    for _ in 0..LAST_WAIT_MS {
        retry();
        if WAITING.with_borrow(VecDeque::is_empty) {
            return;
        }
        process::sleep_ms(1);
    }
    let left = WAITING.with_borrow(VecDeque::len);
    if let Some((_, database)) = destination() {
        database.count(Counter::FailuresLost, left as u64);
    }
}

/// A failure as the worker reads it.
struct Failure<'a> {
    is_any: bool,
    sqlstate: String,
    texts: [Option<&'a [u8]>; 7],
    tables: Vec<(Oid, Command, bool)>,
    discarded: u32,
}

/// Positions among the texts.
mod text {
    pub const MESSAGE: usize = 0;
    pub const DETAIL: usize = 1;
    pub const HINT: usize = 2;
    pub const SCHEMA: usize = 3;
    pub const TABLE: usize = 4;
    pub const COLUMN: usize = 5;
    pub const CONSTRAINT: usize = 6;
}

impl<'a> Failure<'a> {
    fn read(message: &mut Reader<'a>, user: &[u8]) -> Result<Self, Error> {
        let is_any = message.u8()? != 0;
        let sqlstate = sqlstate_text(message.u32()? as i32);
        let mut texts = [None; 7];
        for text in &mut texts {
            *text = message.optional()?;
        }
        let mut tables = Vec::new();
        for _ in 0..message.u32()? {
            let table = Oid::from(message.u32()?);
            let command = Command::ALL.get(usize::from(message.u8()?)).map_or(Command::Other, |(command, _)| *command);
            tables.push((table, command, message.u8()? != 0));
        }
        if let Some(text) = message.optional()? {
            let named = parse::tables_named(text, message.string()?, user);
            tables.extend(named.into_iter().map(|meant| (meant.table, meant.command, meant.is_target)));
        }
        Ok(Failure { is_any, sqlstate, texts, tables, discarded: message.u32()? })
    }

    /// A ROLLBACK that nothing but the session's will called for.
    fn is_rollback(&self) -> bool {
        self.sqlstate == "00000"
    }

    /// Refused by a rule or a right, or an error.
    fn status(&self) -> Status {
        let is_refusal = self.is_rollback()
            || matches!(&self.sqlstate[..2], "23" | "27" | "28" | "44")
            || matches!(self.sqlstate.as_str(), "42501" | "P0001" | "55000" | "25006");
        if is_refusal { Status::Failure } else { Status::Error }
    }

    /// The statement's command: what it does to the table that it means.
    fn command(&self, table: Option<Oid>) -> &'static str {
        let found = self
            .tables
            .iter()
            .find(|(oid, command, _)| *command != Command::Other && table.is_none_or(|table| table == *oid));
        let any = || self.tables.iter().find(|(_, command, _)| *command != Command::Other);
        let command = found.or_else(any).map_or(Command::Other, |(_, command, _)| *command);
        Command::ALL.iter().find(|(known, _)| *known == command).map_or("OTHER", |(_, name)| name)
    }
}

/// Records a failure, if it means an audited table or all are wanted. Returns its SQLSTATE if it does.
pub fn write(head: Head, message: &mut Reader) -> Result<Option<String>, Error> {
    let user = head.author.effective_role.clone().unwrap_or_default();
    let failure = Failure::read(message, &user)?;
    let mut meant: Vec<(layouts::Known, bool)> = Vec::new();
    let named = match (failure.texts[text::SCHEMA], failure.texts[text::TABLE]) {
        (Some(schema), Some(table)) => layouts::find_table(schema, table),
        _ => None,
    };
    // The table that the error names is one that it is about; but what the statement means comes first.
    for (oid, is_target) in
        failure.tables.iter().map(|&(oid, _, is_target)| (oid, is_target)).chain(named.map(|oid| (oid, false)))
    {
        if !meant.iter().any(|(known, _)| known.oid == oid)
            && let Some(known) = layouts::known(oid)?
        {
            meant.push((known, is_target));
        }
    }
    if meant.is_empty() && !failure.is_any {
        return Ok(None);
    }
    let main = meant.iter().find(|(_, is_target)| *is_target).or(meant.first()).map(|(known, _)| known);
    let details = details(&failure, &meant, main)?;
    let mut canonical = Vec::new();
    if let Some(known) = main {
        canonical::layout(known.relation_id, &known.schema, &known.name, &mut canonical)?;
    }
    head.begin()?;
    transaction::record(&Event {
        layout: main.map(|known| Table { oid: known.oid, relation_id: known.relation_id, canonical: &canonical }),
        operation: Operation::Failure,
        status: failure.status(),
        command: 0,
        action: None,
        resource: None,
        resource_id: None,
        row_image: None,
        old_values: None,
        details: Some(Image::of(&details)),
    })?;
    Ok(Some(failure.sqlstate))
}

fn details(
    failure: &Failure,
    meant: &[(layouts::Known, bool)],
    main: Option<&layouts::Known>,
) -> Result<jsonb::Writer, Error> {
    // The detail quotes rows, and so what the policy keeps out of the log.
    let hides = meant.iter().any(|(known, _)| known.hides_columns);
    let tables: Vec<&[u8]> = meant.iter().map(|(known, _)| known.resource.as_slice()).collect();
    let command = if failure.is_rollback() { "ROLLBACK" } else { failure.command(main.map(|known| known.oid)) };
    let detail = failure.texts[text::DETAIL].filter(|_| !hides);
    let mut members: Vec<(&[u8], Option<&[u8]>)> =
        vec![(b"sqlstate", Some(failure.sqlstate.as_bytes()).filter(|_| !failure.is_rollback()))];
    members.push((b"command", Some(command.as_bytes())));
    members.extend([
        (&b"message"[..], failure.texts[text::MESSAGE]),
        (b"detail", detail),
        (b"hint", failure.texts[text::HINT]),
        (b"column", failure.texts[text::COLUMN]),
        (b"constraint", failure.texts[text::CONSTRAINT]),
    ]);
    members.retain(|(_, value)| value.is_some());
    let mut names: Vec<&[u8]> = members.iter().map(|(name, _)| *name).collect();
    names.extend([&b"tables"[..], b"discarded_events"]);
    let (keys, order) = KeyBlock::new(&names)?;
    let mut json = jsonb::Writer::new();
    json.begin_object(&keys)?;
    for position in order {
        match members.get(position) {
            Some((_, value)) => json.string(&session::valid_text(value.unwrap_or_default()))?,
            None if names[position] == b"tables" => {
                json.begin_array(tables.len())?;
                for table in &tables {
                    json.string(table)?;
                }
                json.end_array()?;
            }
            None => json.integer(i64::from(failure.discarded))?,
        }
    }
    json.end_object()?;
    Ok(json)
}
