//! Events of tables in mode async: kept by the session until it commits, then written by the worker.
//!
//! Space in the queue is reserved before the commit and published after it, so a commit always finds room, and what is
//! rolled back is never seen. Where there is no room, and for a transaction that is about to be prepared or changes too
//! much, the events are written in the transaction instead, as in mode sync: all of them, so that their order stays.
//!
//! What is handed over has a row in audit.in_transit that commits with the changes, and goes when the worker writes the
//! events. A row that is there when the server starts tells of events that a crash took.

use std::cell::{Cell, RefCell};

use audit_core::canonical::{Operation, Origin, Status};
use audit_core::jsonb::{self, KeyBlock};
use audit_core::message::{Malformed, Reader, Writer};
use pgrx::pg_sys::Oid;

use crate::datetime;
use crate::error::Error;
use crate::layouts::Layout;
use crate::pg::in_transit::{self, Place};
use crate::pg::session;
use crate::pg::shmem::{self, Counter, Database, Queue, Reserved};
use crate::pg::{catalog, report};
use crate::queue::{self, Head, Kind, Written};
use crate::store;
use crate::transaction::{self, End, Event, Image};

/// Some two thousand row changes. A transaction that changes more costs more than one message could spare it.
const MAX_BYTES: usize = 1024 * 1024;
/// Memory kept between transactions.
const KEEP_BYTES: usize = 64 * 1024;
/// Tables named at most where events were lost.
const MAX_TABLES: usize = 100;
/// Name of the action of the event that tells of lost ones.
const LOST: &[u8] = b"audit.events_lost";

/// A message that is reserved for the transaction that is about to commit.
struct HandedOver {
    queue: Queue,
    database: &'static Database,
    reserved: Reserved,
}

thread_local! {
    static HANDED_OVER: RefCell<Option<HandedOver>> = const { RefCell::new(None) };
    /// Tables of which this transaction keeps, or kept, events.
    static TABLES: RefCell<Vec<(Oid, Vec<u8>)>> = const { RefCell::new(Vec::new()) };
    static MESSAGE: Cell<Writer> = Cell::new(Writer::new());
}

/// Keeps an event for the worker, or has it written now.
pub fn record(layout: &Layout, event: &Event) -> Result<(), Error> {
    let Some(queue) = shmem::queue() else { return transaction::record(event) };
    note_table(layout)?;
    if !transaction::is_deferring() {
        // First what came before it.
        write_kept(false)?;
        return transaction::record(event);
    }
    let kept = transaction::defer(layout.oid, |out| queue::put_event(event, out))?;
    if kept <= MAX_BYTES.min(queue.bytes() / 4) {
        return Ok(());
    }
    transaction::end_deferral();
    write_kept(false)
}

fn note_table(layout: &Layout) -> Result<(), Error> {
    TABLES.with_borrow_mut(|tables| {
        if tables.iter().rev().all(|(oid, _)| *oid != layout.oid) && tables.len() < MAX_TABLES {
            tables.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
            tables.push((layout.oid, layout.resource.clone()));
        }
        Ok(())
    })
}

/// Writes what the current sub-transaction, or with `all` the whole transaction, has kept for the worker.
fn write_kept(all: bool) -> Result<(), Error> {
    let kept = transaction::take_deferred(all);
    let mut events = Reader::new(kept.bytes());
    while !events.is_at_end() {
        let changeset = events.u32()? as usize;
        queue::read_event(&mut events, |event| transaction::record_in(changeset, event))?;
    }
    Ok(())
}

/// Hands over what is kept for the worker, or writes it.
pub fn before_commit(is_prepared: bool) -> Result<(), Error> {
    let is_deferring = transaction::is_deferring();
    if is_deferring && !transaction::has_deferred() {
        return Ok(());
    }
    // A prepared transaction may outlive the queue.
    if is_deferring && !is_prepared && hand_over()? {
        return Ok(());
    }
    if let Some((_, database)) = shmem::own_database() {
        database.count(Counter::Fallbacks, 1);
    }
    write_kept(true)
}

/// False where there is no room.
fn hand_over() -> Result<bool, Error> {
    let Some(queue) = shmem::queue() else { return Ok(false) };
    let Some(database) = queue.database(session::database()) else { return Ok(false) };
    // As the session would when it writes them: that the log is one that this library knows.
    store::labels()?;
    let table = in_transit::table()?;
    let made_at = session::clock();
    let number = queue.number();
    let events = transaction::deferred_count();
    let mut message = MESSAGE.take();
    message.clear(KEEP_BYTES);
    Start { place: Place::default(), table, number, made_at }.put(&mut message)?;
    transaction::put_deferred(&mut message, |changeset, position, out| {
        Head::of_changeset(changeset, position).put(out)
    })?;
    let reserved = queue.reserve(message.bytes(), None);
    MESSAGE.set(message);
    let Some(reserved) = reserved else { return Ok(false) };
    // From here on an error gives the space back: the transaction aborts.
    HANDED_OVER.set(Some(HandedOver { queue, database, reserved }));
    let tables: Vec<Vec<u8>> = TABLES.with_borrow(|tables| tables.iter().map(|(_, name)| name.clone()).collect());
    let row = in_transit::Row { queued_at: made_at, events, tables };
    let place = in_transit::insert(queue.incarnation(), number, &row)?;
    let mut start = Writer::new();
    Start { place, table, number, made_at }.put(&mut start)?;
    HANDED_OVER.with_borrow(|handed_over| {
        if let Some(HandedOver { reserved, .. }) = handed_over {
            queue.overwrite(reserved, start.bytes());
        }
    });
    transaction::forget_deferred();
    Ok(true)
}

/// Nothing here can fail.
pub fn ended(end: End) {
    TABLES.with_borrow_mut(Vec::clear);
    if let Some(HandedOver { queue, database, reserved }) = HANDED_OVER.with_borrow_mut(Option::take) {
        match end {
            End::Committed => queue.publish_deferred(database, reserved),
            End::Prepared | End::Aborted => queue.give_back(reserved),
        }
    }
}

/// What a message begins with.
struct Start {
    place: Place,
    /// Oid of audit.in_transit: another one when the extension was created anew.
    table: Oid,
    number: u64,
    made_at: i64,
}

impl Start {
    fn put(&self, out: &mut Writer) -> Result<(), Error> {
        out.u8(Kind::Deferred as u8)?;
        out.u32(self.place.block)?;
        out.u32(u32::from(self.place.offset))?;
        out.u32(self.table.to_u32())?;
        out.u64(self.number)?;
        Ok(out.u64(self.made_at as u64)?)
    }

    fn read(message: &mut Reader) -> Result<Self, Malformed> {
        message.u8()?;
        let place = Place { block: message.u32()?, offset: message.u32()? as u16 };
        let table = Oid::from(message.u32()?);
        Ok(Start { place, table, number: message.u64()?, made_at: message.u64()? as i64 })
    }
}

/// Writes the events of a message, in the worker.
pub fn write(message: &[u8]) -> Result<Written, Error> {
    let mut message = Reader::new(message);
    let start = Start::read(&mut message)?;
    // Locked first: from here on nobody can put another log into its place.
    if !in_transit::lock(start.table) || start.table != in_transit::table()? {
        // The log that they were for is gone.
        return Ok(Written { is_lost: true, ..Written::at(start.made_at) });
    }
    // Where the session's changesets are among those of this transaction.
    let mut changesets = Vec::new();
    for _ in 0..message.u32()? {
        let of_session = message.u32()?;
        changesets.push((of_session, Head::read(&mut message)?.begin()?));
    }
    while !message.is_at_end() {
        let of_session = message.u32()?;
        let (_, changeset) = changesets.iter().find(|(known, _)| *known == of_session).ok_or(Malformed)?;
        queue::read_event(&mut message, |event| transaction::record_in(*changeset, event))?;
    }
    in_transit::remove(start.place, start.number)?;
    Ok(Written::at(start.made_at))
}

/// Finds what was handed over before this server started, and never written: records it as an event, in the worker.
/// Returns the number of events that are lost.
pub fn record_lost(queue: Queue) -> Result<u64, Error> {
    if catalog::relation_oid(in_transit::TABLE).is_none() {
        return Ok(0);
    }
    let rows = in_transit::take_others(queue.incarnation())?;
    let (Some(since), Some(until)) =
        (rows.iter().map(|row| row.queued_at).min(), rows.iter().map(|row| row.queued_at).max())
    else {
        return Ok(0);
    };
    let events: i64 = rows.iter().map(|row| i64::from(row.events)).sum();
    let mut tables: Vec<&[u8]> = rows.iter().flat_map(|row| &row.tables).map(Vec::as_slice).collect();
    tables.sort_unstable();
    tables.dedup();
    tables.truncate(MAX_TABLES);
    let gap = Gap { transactions: rows.len() as i64, events, since, until, tables };
    report::log(
        format!("audit events of {} transactions were lost when the server went down", gap.transactions),
        "They were changes of tables in mode async; the event audit.events_lost says of which, and when.",
    );
    gap.record()?;
    gap.notify()?;
    Ok(events as u64)
}

/// Changes that were committed and whose events are lost.
struct Gap<'a> {
    transactions: i64,
    events: i64,
    since: i64,
    until: i64,
    tables: Vec<&'a [u8]>,
}

impl Gap<'_> {
    fn record(&self) -> Result<(), Error> {
        let details = self.details(false)?;
        Head::of_nobody(Kind::Events, Origin::Isolated, None).begin()?;
        transaction::record(&Event {
            layout: None,
            operation: Operation::Application,
            status: Status::Error,
            command: 0,
            action: Some(LOST),
            resource: None,
            resource_id: None,
            row_image: None,
            old_values: None,
            details: Some(Image::of(&details)),
        })
    }

    fn notify(&self) -> Result<(), Error> {
        if let Ok(payload) = std::ffi::CString::new(self.details(true)?.text()) {
            session::notify(crate::alerts::CHANNEL, &payload);
        }
        Ok(())
    }

    fn details(&self, is_alert: bool) -> Result<jsonb::Writer, Error> {
        let names: [&[u8]; 6] = [b"since", b"until", b"events", b"transactions", b"tables", b"alert"];
        let (keys, order) = KeyBlock::new(if is_alert { &names } else { &names[..5] })?;
        let mut json = jsonb::Writer::new();
        json.begin_object(&keys)?;
        for position in order {
            match position {
                0 | 1 => match datetime::timestamp(if position == 0 { self.since } else { self.until }, true) {
                    Some(time) => json.string(time.as_bytes())?,
                    None => json.null()?,
                },
                2 => json.integer(self.events)?,
                3 => json.integer(self.transactions)?,
                4 => {
                    json.begin_array(self.tables.len())?;
                    for table in &self.tables {
                        json.string(table)?;
                    }
                    json.end_array()?;
                }
                _ => json.string(b"events_lost")?,
            }
        }
        json.end_object()?;
        Ok(json)
    }
}
