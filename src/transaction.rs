//! What this transaction has recorded so far: its changesets, the next sequence number, the events not yet in the log,
//! and how to go back when a sub-transaction is rolled back.
//!
//! Events wait in `pending.rs` until commit, or until somebody reads the log. The changeset rows are written last, before
//! commit or prepare.
//!
//! The state is borrowed only between calls into PostgreSQL, never across one that may run a user's code.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use audit_core::canonical::{self, EventRecord, Operation, Origin, Status};
use audit_core::checksum;
use audit_core::merkle::Frontier;
use audit_core::message::Writer;
use audit_core::uuid7;
use pgrx::pg_sys::Oid;

use crate::context::{self, Context, Derived, Keys};
use crate::error::Error;
use crate::facts::{Author, Facts};
use crate::layouts::{self, Table};
use crate::pending::Pending;
use crate::pg::log_table;
use crate::pg::session::{self, Roles};
use crate::pg::tuple::Batch;
use crate::random::Random;
use crate::store::Closing;
use crate::{gucs, store};

/// Changesets that are inserted together.
const CLOSING_BYTES: usize = 64 * 1024;
/// Memory kept between statements.
const KEEP_BYTES: usize = 1024 * 1024;

/// A fact to record.
pub struct Event<'a> {
    pub layout: Option<Table<'a>>,
    pub operation: Operation,
    pub status: Status,
    pub command: u32,
    pub action: Option<&'a [u8]>,
    pub resource: Option<&'a [u8]>,
    pub resource_id: Option<&'a [u8]>,
    pub row_image: Option<Image<'a>>,
    pub old_values: Option<Image<'a>>,
    pub details: Option<Image<'a>>,
}

/// A JSONB value and its text.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    pub jsonb: &'a [u8],
    pub text: &'a [u8],
}

impl<'a> Image<'a> {
    pub fn of(writer: &'a audit_core::jsonb::Writer) -> Self {
        Image { jsonb: writer.jsonb(), text: writer.text() }
    }
}

/// The events of this transaction under one context.
pub struct Changeset {
    pub id: [u8; 16],
    /// PostgreSQL's microseconds.
    pub occurred_at: i64,
    pub origin: Origin,
    pub roles: Roles,
    pub facts: Rc<Facts>,
    /// Whether its events are those of another session.
    pub is_foreign: bool,
    /// Inserted together with those of this time, into the same partitions.
    routed_as: i64,
    pub context: Rc<Context>,
    pub statement: Option<Vec<u8>>,
    /// Generation of the context that its own was derived from, where it shares the time of others that were.
    family: Option<u64>,
    pub event_count: i32,
    pub frontier: Frontier,
    /// Whether events of it were kept for the worker.
    has_deferred: bool,
}

/// State to return to when a sub-transaction is rolled back.
struct Savepoint {
    subtransaction: u32,
    next_seq: i32,
    changesets: Vec<(i32, Frontier)>,
    deferred: (usize, i32),
}

#[derive(Default)]
struct State {
    changesets: Vec<Changeset>,
    /// The changeset of the last event, with what must not have changed for it to be the next one's too.
    current: Option<(usize, u64, Roles, Origin)>,
    /// Where the changesets of derived contexts are: there may be many, by turns.
    derived: HashMap<(u64, Roles, Origin), usize>,
    next_seq: i32,
    savepoints: Vec<Savepoint>,
    pending: Pending,
    /// Events for the worker, each after its changeset's place, and their number.
    deferred: Writer,
    deferred_count: i32,
    /// What would be deferred is recorded.
    is_deferral_over: bool,
    /// A time at which another session's events are inserted, and from when to when others are with them.
    route: Option<(i64, (i64, i64))>,
    /// Of this transaction in the WAL, once it was told.
    position: Option<u64>,
    /// Memory for the changesets' tuples.
    closing: Batch,
    /// Sub-transactions that wrote rows which caches rely on.
    cached_rows: Vec<u32>,
    /// Tables of which something was recorded, whether or not it was rolled back since.
    tables: Vec<Oid>,
    is_closed: bool,
    random: Option<Box<Random>>,
    canonical: Vec<u8>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new(State::default());
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Committed,
    Prepared,
    Aborted,
}

/// Makes sure that the changeset for the session's context is the current one, and says which keys of the context it has.
pub fn begin_event(origin: Origin) -> Result<Keys, Error> {
    begin(origin, context::generation(), None, Context::current)
}

/// As [`begin_event`], for a context that differs from the session's.
pub fn begin_event_as(origin: Origin, derived: &Derived) -> Result<Keys, Error> {
    begin(origin, derived.generation, None, || Ok(derived.context.clone()))
}

/// As [`begin_event_as`], for one of many contexts that derive from the session's by turns. Their changesets have one time,
/// so that their events are inserted together.
pub fn begin_event_beside(origin: Origin, derived: &Derived) -> Result<Keys, Error> {
    begin(origin, derived.generation, Some(derived.base), || Ok(derived.context.clone()))
}

#[inline]
fn begin(
    origin: Origin,
    generation: u64,
    family: Option<u64>,
    context: impl FnOnce() -> Result<Rc<Context>, Error>,
) -> Result<Keys, Error> {
    let roles = session::roles();
    let present = STATE.with_borrow(|state| match state.current {
        Some((index, ..)) if state.current == Some((index, generation, roles, origin)) => {
            Some(state.changesets[index].context.present)
        }
        _ => None,
    });
    match present {
        Some(present) => Ok(present),
        None => change_changeset(context()?, generation, family, roles, origin),
    }
}

fn change_changeset(
    context: Rc<Context>,
    generation: u64,
    family: Option<u64>,
    roles: Roles,
    origin: Origin,
) -> Result<Keys, Error> {
    let facts = Facts::current(roles)?;
    let present = context.present;
    let subtransaction = session::current_subtransaction();
    STATE.with_borrow_mut(|state| {
        if state.is_closed {
            return Err(Error::AfterCommit);
        }
        let same = |changeset: &Changeset| {
            !changeset.is_foreign
                && changeset.origin == origin
                && changeset.roles == roles
                && *changeset.context == *context
        };
        let known = family.and_then(|_| state.derived.get(&(generation, roles, origin)).copied());
        let index = match known.or_else(|| state.changesets.iter().position(same)) {
            Some(index) => index,
            None => {
                let relative = |changeset: &&Changeset| {
                    family.is_some()
                        && changeset.family == family
                        && changeset.origin == origin
                        && changeset.roles == roles
                };
                let occurred_at = match state.changesets.iter().find(relative) {
                    Some(relative) => relative.occurred_at,
                    None => session::clock(),
                };
                let statement = if gucs::log_statement() { session::statement() } else { None };
                state.save(subtransaction);
                let random = state.random()?;
                state.changesets.push(Changeset {
                    id: uuid7::new(session::unix_usecs(occurred_at), random),
                    occurred_at,
                    origin,
                    roles,
                    facts,
                    is_foreign: false,
                    routed_as: occurred_at,
                    context,
                    statement,
                    family,
                    event_count: 0,
                    frontier: Frontier::new(),
                    has_deferred: false,
                });
                state.changesets.len() - 1
            }
        };
        if family.is_some() {
            state.derived.insert((generation, roles, origin), index);
        }
        state.current = Some((index, generation, roles, origin));
        Ok(present)
    })
}

/// Begins a changeset for events that another session made, and returns its place.
pub fn begin_for(
    author: Author,
    origin: Origin,
    occurred_at: i64,
    context: Context,
    application_name: Vec<u8>,
    statement: Option<Vec<u8>>,
) -> Result<usize, Error> {
    let roles = session::roles();
    let facts = Rc::new(Facts::of(author, application_name)?);
    let subtransaction = session::current_subtransaction();
    let routed_as = route_foreign(occurred_at)?;
    STATE.with_borrow_mut(|state| {
        state.save(subtransaction);
        let random = state.random()?;
        state.changesets.push(Changeset {
            id: uuid7::new(session::unix_usecs(occurred_at), random),
            occurred_at,
            origin,
            roles,
            facts,
            is_foreign: true,
            routed_as,
            family: None,
            context: Rc::new(context),
            statement,
            event_count: 0,
            frontier: Frontier::new(),
            has_deferred: false,
        });
        // No generation of the settings is this one: whatever the session records next is not of this changeset.
        let index = state.changesets.len() - 1;
        state.current = Some((index, u64::MAX, roles, origin));
        Ok(index)
    })
}

/// A time whose partitions those of `occurred_at` are, too: many small changesets are then inserted together.
fn route_foreign(occurred_at: i64) -> Result<i64, Error> {
    let known = STATE.with_borrow(|state| state.route);
    if let Some((routed_as, _)) = known.filter(|(_, (from, to))| (*from..*to).contains(&occurred_at)) {
        return Ok(routed_as);
    }
    let events = log_table::lock_range(&store::EVENT, occurred_at)?;
    let changesets = log_table::lock_range(&store::CHANGESET, occurred_at)?;
    let range = (events.0.max(changesets.0), events.1.min(changesets.1));
    STATE.with_borrow_mut(|state| state.route = Some((occurred_at, range)));
    Ok(occurred_at)
}

/// Records a fact in the current changeset. [`begin_event`] comes first.
pub fn record(event: &Event) -> Result<(), Error> {
    let subtransaction = session::current_subtransaction();
    let labels = store::labels()?;
    let is_full = STATE.with_borrow_mut(|state| state.append(event, subtransaction, &labels))?;
    if is_full { flush() } else { Ok(()) }
}

/// Records a fact in the changeset at this place.
pub fn record_in(index: usize, event: &Event) -> Result<(), Error> {
    let current = STATE.with_borrow_mut(|state| {
        let changeset = state.changesets.get(index).ok_or(Error::Internal("event of no changeset"))?;
        let there = (index, u64::MAX, changeset.roles, changeset.origin);
        Ok::<_, Error>(state.current.replace(there))
    })?;
    record(event)?;
    STATE.with_borrow_mut(|state| state.current = current);
    Ok(())
}

/// Keeps a fact in the current changeset for the worker. Returns how many bytes are kept.
pub fn defer(table: Oid, put: impl FnOnce(&mut Writer) -> Result<(), Error>) -> Result<usize, Error> {
    let subtransaction = session::current_subtransaction();
    STATE.with_borrow_mut(|state| {
        if state.is_closed {
            return Err(Error::AfterCommit);
        }
        let Some((index, ..)) = state.current else { return Err(Error::Internal("event without a changeset")) };
        let count = state.deferred_count.checked_add(1).ok_or(Error::TooManyEvents)?;
        state.save(subtransaction);
        let length = state.deferred.bytes().len();
        let whole = state.deferred.u32(index as u32).map_err(Error::from).and_then(|()| put(&mut state.deferred));
        if let Err(error) = whole {
            state.deferred.truncate(length);
            return Err(error);
        }
        state.deferred_count = count;
        state.changesets[index].has_deferred = true;
        state.note_table(table);
        Ok(state.deferred.bytes().len())
    })
}

pub fn has_deferred() -> bool {
    STATE.with_borrow(|state| state.deferred_count > 0)
}

pub fn deferred_count() -> i32 {
    STATE.with_borrow(|state| state.deferred_count)
}

pub fn is_deferring() -> bool {
    STATE.with_borrow(|state| !state.is_deferral_over)
}

/// From now on to the end of the transaction.
pub fn end_deferral() {
    STATE.with_borrow_mut(|state| state.is_deferral_over = true);
}

/// Takes what the current sub-transaction has kept for the worker, or with `all` the whole transaction.
pub fn take_deferred(all: bool) -> Writer {
    let subtransaction = session::current_subtransaction();
    STATE.with_borrow_mut(|state| {
        let own = state.savepoints.last().filter(|savepoint| savepoint.subtransaction == subtransaction);
        let (length, count) = match own {
            _ if all || subtransaction == TOP_SUBTRANSACTION => (0, 0),
            Some(savepoint) => savepoint.deferred,
            None => return Writer::new(),
        };
        state.deferred_count = count;
        state.deferred.split_off(length)
    })
}

/// Appends to a message what is kept for the worker: the changesets, as `put` does it, and their events.
pub fn put_deferred(
    out: &mut Writer,
    put: impl Fn(&Changeset, u64, &mut Writer) -> Result<(), Error>,
) -> Result<(), Error> {
    let position = session::wal_position();
    STATE.with_borrow_mut(|state| {
        state.position = Some(position);
        let meant = || (0..).zip(&state.changesets).filter(|(_, changeset)| changeset.has_deferred);
        out.u32(meant().count() as u32)?;
        for (index, changeset) in meant() {
            out.u32(index)?;
            put(changeset, position, out)?;
        }
        Ok(out.append(state.deferred.bytes())?)
    })
}

/// It was handed over.
pub fn forget_deferred() {
    STATE.with_borrow_mut(State::forget_deferred);
}

/// Facts that this transaction has recorded or kept.
pub fn captured() -> i32 {
    STATE.with_borrow(|state| state.next_seq.saturating_add(state.deferred_count))
}

/// Inserts the events that the current sub-transaction captured.
pub fn flush() -> Result<(), Error> {
    insert_pending(false)
}

/// Whether events wait that a query of these relations would have to see.
pub fn waits_for(mut relations: impl Iterator<Item = Oid>) -> bool {
    let times: Vec<i64> = STATE.with_borrow(|state| state.pending.times().collect());
    !times.is_empty()
        && relations.any(|relation| times.iter().any(|&time| log_table::holds(&store::EVENT, time, relation)))
}

/// Whether any event waits.
pub fn has_pending() -> bool {
    STATE.with_borrow(|state| !state.pending.is_empty())
}

/// Has all events of this transaction in the log, to be read there.
pub fn show() -> Result<(), Error> {
    insert_pending(true)
}

fn insert_pending(all: bool) -> Result<(), Error> {
    let subtransaction = session::current_subtransaction();
    while let Some(due) = STATE.with_borrow_mut(|state| state.pending.next_due(subtransaction, all)) {
        log_table::insert(&store::EVENT, due.occurred_at, due.command, &due.batch)?;
        drop(due.batch);
        STATE.with_borrow_mut(|state| state.pending.settle());
    }
    Ok(())
}

/// Writes what is left: the last events, and the changesets.
pub fn before_commit() -> Result<(), Error> {
    let is_idle = STATE.with_borrow(|state| state.changesets.is_empty() && state.pending.is_empty());
    if is_idle {
        return Ok(());
    }
    flush()?;
    let changesets = STATE.with_borrow_mut(|state| {
        state.is_closed = true;
        state.current = None;
        std::mem::take(&mut state.changesets)
    });
    let position = STATE.with_borrow_mut(|state| state.position.take()).unwrap_or_else(session::wal_position);
    let mut batch = STATE.with_borrow_mut(|state| std::mem::take(&mut state.closing));
    let command = session::last_command();
    let mut canonical = STATE.with_borrow_mut(|state| std::mem::take(&mut state.canonical));
    let mut rest = changesets.iter().filter(|changeset| changeset.event_count > 0).peekable();
    while let Some(changeset) = rest.next() {
        let closing = Closing { position, salt: random_salt()?, canonical: &mut canonical };
        store::put_changeset(changeset, Some(closing), &mut batch)?;
        let joins = |next: &&Changeset| next.routed_as == changeset.routed_as && batch.bytes() < CLOSING_BYTES;
        if rest.peek().is_some_and(joins) {
            continue;
        }
        log_table::insert(&store::CHANGESET, changeset.routed_as, command, &batch)?;
        batch.clear(KEEP_BYTES);
    }
    STATE.with_borrow_mut(|state| {
        state.closing = batch;
        keep(&mut state.canonical, canonical);
        // Only for its memory.
        state.changesets = changesets;
        state.changesets.clear();
    });
    Ok(())
}

/// Whether this transaction has recorded anything.
pub fn has_changesets() -> bool {
    STATE.with_borrow(|state| !state.changesets.is_empty())
}

/// Calls `each` with the changesets of this transaction that hold events.
pub fn for_each_changeset(mut each: impl FnMut(&Changeset) -> Result<(), Error>) -> Result<(), Error> {
    STATE.with_borrow(|state| {
        state.changesets.iter().filter(|changeset| changeset.event_count > 0).try_for_each(&mut each)
    })
}

/// Notes that the current sub-transaction wrote a row that a cache relies on, to be forgotten if it is rolled back.
pub fn wrote_cached_row() {
    let subtransaction = session::current_subtransaction();
    STATE.with_borrow_mut(|state| {
        if state.cached_rows.last() != Some(&subtransaction) {
            state.cached_rows.push(subtransaction);
        }
    });
}

/// Nothing here can fail.
pub fn ended(end: End) {
    let forget = STATE.with_borrow_mut(|state| {
        let forget = end != End::Committed && !state.cached_rows.is_empty();
        state.changesets.clear();
        state.current = None;
        if !state.derived.is_empty() {
            state.derived = HashMap::new();
        }
        state.next_seq = 0;
        state.forget_deferred();
        state.is_deferral_over = false;
        state.position = None;
        state.route = None;
        state.savepoints.clear();
        state.pending.clear();
        state.cached_rows.clear();
        state.tables.clear();
        state.is_closed = false;
        forget
    });
    if forget {
        forget_cached_rows();
    }
    crate::context::forget_derived();
    crate::suspension::transaction_ended(end);
}

/// Nothing here can fail.
pub fn subtransaction_committed(id: u32, parent: u32) {
    STATE.with_borrow_mut(|state| state.merge(id, parent));
}

/// Nothing here can fail.
pub fn subtransaction_aborted(id: u32) {
    let (forget, next_seq) = STATE.with_borrow_mut(|state| (state.roll_back(id), state.next_seq));
    if forget {
        forget_cached_rows();
    }
    crate::suspension::rolled_back_to(next_seq);
}

fn forget_cached_rows() {
    layouts::invalidate(None);
    store::forget_era();
}

/// 16 random bytes.
pub fn random_salt() -> Result<[u8; 16], Error> {
    STATE.with_borrow_mut(State::random)
}

/// Id and time of the changeset that the last event went to.
pub fn current_changeset() -> Option<([u8; 16], i64)> {
    STATE.with_borrow(|state| {
        let changeset = &state.changesets[state.current?.0];
        Some((changeset.id, changeset.occurred_at))
    })
}

/// Calls `each` for the tables of which this transaction recorded something.
pub fn for_each_table(each: impl FnMut(Oid)) {
    STATE.with(|state| {
        // An error may have come while it was borrowed.
        if let Ok(state) = state.try_borrow() {
            state.tables.iter().copied().for_each(each);
        }
    });
}

/// The sequence number that the next event gets.
pub fn next_seq() -> i32 {
    STATE.with_borrow(|state| state.next_seq)
}

/// Keeps the memory for the next canonical form.
fn keep(kept: &mut Vec<u8>, canonical: Vec<u8>) {
    if canonical.capacity() <= KEEP_BYTES {
        *kept = canonical;
    }
}

const TOP_SUBTRANSACTION: u32 = 1;

impl State {
    /// Remembers what there is, the first time that a sub-transaction changes it.
    fn save(&mut self, subtransaction: u32) {
        let is_saved = self.savepoints.last().is_some_and(|savepoint| savepoint.subtransaction == subtransaction);
        if subtransaction == TOP_SUBTRANSACTION || is_saved {
            return;
        }
        self.savepoints.push(Savepoint {
            subtransaction,
            next_seq: self.next_seq,
            changesets: self
                .changesets
                .iter()
                .map(|changeset| (changeset.event_count, changeset.frontier.clone()))
                .collect(),
            deferred: (self.deferred.bytes().len(), self.deferred_count),
        });
    }

    fn forget_deferred(&mut self) {
        self.deferred.clear(KEEP_BYTES);
        self.deferred_count = 0;
    }

    fn note_table(&mut self, table: Oid) {
        if self.tables.last() != Some(&table) && !self.tables.contains(&table) {
            self.tables.push(table);
        }
    }

    fn append(&mut self, event: &Event, subtransaction: u32, labels: &store::Labels) -> Result<bool, Error> {
        if self.is_closed {
            return Err(Error::AfterCommit);
        }
        let Some((index, ..)) = self.current else { return Err(Error::Internal("event without a changeset")) };
        let next_seq = self.next_seq.checked_add(1).ok_or(Error::TooManyEvents)?;
        self.save(subtransaction);
        let salt = self.random()?;

        let mut canonical = std::mem::take(&mut self.canonical);
        let changeset = &self.changesets[index];
        canonical::event(
            &EventRecord {
                changeset_id: changeset.id,
                seq: self.next_seq,
                command: event.command as i32,
                occurred_at_us: session::unix_usecs(changeset.occurred_at),
                layout: event.layout.map(|table| table.canonical),
                operation: event.operation,
                action: event.action,
                status: event.status,
                resource: event.resource,
                resource_id: event.resource_id,
                row_image: event.row_image.map(|image| image.text),
                old_values: event.old_values.map(|image| image.text),
                details: event.details.map(|image| image.text),
            },
            &mut canonical,
        )?;
        let checksum = checksum::salted(&salt, &session::to_utf8(&canonical));
        keep(&mut self.canonical, canonical);

        let sealed = store::SealedEvent {
            event,
            seq: self.next_seq,
            changeset_id: changeset.id,
            occurred_at: changeset.occurred_at,
            salt,
            checksum,
        };
        let routed_as = changeset.routed_as;
        let batch = self.pending.batch(subtransaction, routed_as, event.command)?;
        store::put_event(&sealed, labels, batch)?;

        if let Some(table) = event.layout {
            self.note_table(table.oid);
        }
        let changeset = &mut self.changesets[index];
        changeset.frontier.push(&checksum)?;
        changeset.event_count += 1;
        self.next_seq = next_seq;
        Ok(self.pending.is_full(subtransaction))
    }

    fn merge(&mut self, id: u32, parent: u32) {
        self.pending.subtransaction_committed(id, parent);
        for subtransaction in self.cached_rows.iter_mut().rev().take_while(|subtransaction| **subtransaction == id) {
            *subtransaction = parent;
        }
        if self.savepoints.last().is_some_and(|savepoint| savepoint.subtransaction == id) {
            let below = self.savepoints.len().checked_sub(2).map(|at| self.savepoints[at].subtransaction);
            if parent == TOP_SUBTRANSACTION || below == Some(parent) {
                self.savepoints.pop();
            } else if let Some(savepoint) = self.savepoints.last_mut() {
                savepoint.subtransaction = parent;
            }
        }
    }

    /// Whether rows that caches rely on went with it.
    fn roll_back(&mut self, id: u32) -> bool {
        self.pending.subtransaction_aborted(id);
        let mut forget = false;
        while self.cached_rows.last() == Some(&id) {
            self.cached_rows.pop();
            forget = true;
        }
        if self.savepoints.last().is_some_and(|savepoint| savepoint.subtransaction == id)
            && let Some(savepoint) = self.savepoints.pop()
        {
            self.next_seq = savepoint.next_seq;
            self.deferred.truncate(savepoint.deferred.0);
            self.deferred_count = savepoint.deferred.1;
            self.changesets.truncate(savepoint.changesets.len());
            self.derived.retain(|_, index| *index < savepoint.changesets.len());
            for (changeset, (event_count, frontier)) in self.changesets.iter_mut().zip(savepoint.changesets) {
                changeset.event_count = event_count;
                changeset.frontier = frontier;
            }
            self.current = None;
        }
        forget
    }

    /// Bytes from a generator of this process, seeded by the operating system.
    fn random<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let random = match &mut self.random {
            Some(random) => random,
            none => none.insert(Random::seeded()?),
        };
        Ok(random.take())
    }
}
