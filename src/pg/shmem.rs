//! The queue's shared memory: one area, made when the server starts with `shared_preload_libraries = 'audit_ext'` and
//! made afresh when it recovers from the crash of a process.
//!
//! It holds atomic numbers and the bytes of messages, and no lock: what may be done with the numbers is in
//! `audit_core::queue`, and the bytes of a block belong to whoever owns the block. So all of it may be used in commit
//! and abort callbacks, and by a process that is refused before it has become a backend.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::mem::size_of;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use audit_core::fold::{self, Decision, Entry};
use audit_core::queue::{Messages, NIL, Pool};
use pgrx::{pg_guard, pg_sys};

use crate::gucs;

/// Databases that can have messages or a worker at one time.
const DATABASES: usize = 128;
/// Addresses whose refused logins are told apart.
const FOLDS: usize = 64;
/// Tables whose numbers are kept at one time, of all databases.
const TABLES: usize = 1024;
/// Places where a table's numbers may be.
const TABLE_PROBES: usize = 32;
/// Classes of SQLSTATEs that are told apart in one database. PostgreSQL has 44.
const CLASSES: usize = 60;
/// Longest message of an alert that is kept.
const ALERT_BYTES: usize = 192;
/// Longest name of a database, with its end.
const NAME_BYTES: usize = 64;
/// A row change with its context takes one or two.
pub const BLOCK: usize = 1024;
const NAME: &std::ffi::CStr = c"audit_ext queue";

static AREA: AtomicPtr<Area> = AtomicPtr::new(std::ptr::null_mut());

/// What is at the start of the area. The arrays follow: acknowledgements, block numbers, links, blocks.
#[repr(C)]
struct Area {
    processes: u32,
    blocks: u32,
    head: AtomicU64,
    free: AtomicU32,
    lowest_free: AtomicU32,
    tickets: AtomicU64,
    /// Numbers handed out by `number`.
    numbers: AtomicU64,
    /// Tells this area from those before it: when it was made.
    incarnation: AtomicI64,
    launcher: AtomicU32,
    is_shutting_down: AtomicU32,
    is_claiming: AtomicU32,
    is_folding: AtomicU32,
    folds: UnsafeCell<[Entry; FOLDS]>,
    tables: [TableState; TABLES],
    databases: [Database; DATABASES],
}

/// Numbers that are counted for each table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TableCounter {
    /// Events recorded, or handed over.
    Events,
    /// Row changes that sampling left out.
    SampledOut,
    /// Time spent capturing.
    Nanoseconds,
}

pub const TABLE_COUNTERS: usize = TableCounter::Nanoseconds as usize + 1;

/// What is kept of a table. All zero is none.
#[repr(C)]
struct TableState {
    /// Database and table.
    key: AtomicU64,
    counters: [AtomicU64; TABLE_COUNTERS],
}

/// Numbers that are counted for each database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Messages put into the queue.
    Messages,
    /// Messages whose records are committed.
    Written,
    /// Messages given up.
    Lost,
    /// Isolated events that did not get into the queue.
    IsolatedLost,
    /// Isolated events whose caller went on before they were committed.
    IsolatedLate,
    /// Events written by the worker.
    Events,
    /// Refused logins that were folded.
    LoginsFolded,
    /// Logins for which there was no room.
    LoginsLost,
    /// Failed statements recorded.
    Failures,
    /// Failed statements for which there was no room.
    FailuresLost,
    /// Transactions whose events of async tables were written by the session.
    Fallbacks,
    /// Events that were handed over and lost.
    EventsLost,
    /// Row changes that sampling left out.
    SampledOut,
    /// Microseconds that sessions spent on auditing, while it was measured.
    SessionTime,
    /// Microseconds that workers spent writing.
    WorkerTime,
    /// Failures of auditing itself: attempts of the worker to write, errors in sessions that are no fault of theirs.
    Errors,
    /// Workers started after one that ended otherwise than idle.
    Restarts,
    /// Microseconds from a message's making to its commit, of the last batch's oldest one.
    Lag,
}

const COUNTERS: usize = Counter::Lag as usize + 1;

/// Whether a database has the extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    Unknown,
    Present,
    Absent,
}

/// How a worker left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// It has not.
    None,
    /// With nothing left to do.
    Idle,
    /// Otherwise.
    Early,
}

/// What is kept of a database.
#[repr(C)]
pub struct Database {
    oid: AtomicU32,
    presence: AtomicU32,
    /// The worker's entry among the server's processes, plus one.
    worker: AtomicU32,
    departure: AtomicU32,
    /// The worker looks soon by itself.
    is_dozing: AtomicU32,
    /// Since the area was made, it was looked for what was lost before.
    is_checked: AtomicU32,
    /// Rounds of sealing in a row that have not succeeded.
    seal_failures: AtomicU32,
    seal_again_at: AtomicI64,
    inbox: AtomicU32,
    first: AtomicU32,
    last: AtomicU32,
    depth: AtomicU32,
    high_water: AtomicU32,
    counters: [AtomicU64; COUNTERS],
    /// The two characters of a class, and how many failures there were.
    classes: [(AtomicU32, AtomicU64); CLASSES],
    reset_at: AtomicI64,
    /// As it was when somebody last looked, with a NUL after it.
    name: [AtomicU8; NAME_BYTES],
    alert: AlertState,
}

/// Auditing itself failed: since when, how often, and why. All zero is no alert.
#[repr(C)]
struct AlertState {
    since: AtomicI64,
    last: AtomicI64,
    count: AtomicU64,
    sqlstate: AtomicU32,
    is_announced: AtomicU32,
    message: [AtomicU8; ALERT_BYTES],
}

/// An alert as it stood when it was read.
pub struct Alert {
    pub since: i64,
    pub last: i64,
    pub count: u64,
    pub sqlstate: i32,
    pub message: Vec<u8>,
    pub is_announced: bool,
}

/// What stands before a message's bytes.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    length: u64,
    /// Who waits for it: a ticket, and the waiting process. Zero for nobody.
    ticket: u64,
    process: u32,
    _padding: u32,
}

/// Somebody who waits until a message is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    number: u64,
    process: u32,
}

/// A message that was read. It stays in the queue until it is removed.
pub struct Message {
    pub bytes: Vec<u8>,
    ticket: Option<Ticket>,
}

/// Space that is reserved and filled, for a message not yet published.
#[derive(Debug)]
pub struct Reserved(u32);

/// Has the area made. Called while the server starts.
pub fn init() {
    static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
    static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

    #[pg_guard]
    unsafe extern "C-unwind" fn request() {
        // SAFETY: the postmaster has one thread; the hook that was there is called first.
        unsafe {
            if let Some(previous) = PREVIOUS_REQUEST {
                previous();
            }
            pg_sys::RequestAddinShmemSpace(Sizes::now().total());
        }
    }

    #[pg_guard]
    unsafe extern "C-unwind" fn startup() {
        // SAFETY: as above.
        unsafe {
            if let Some(previous) = PREVIOUS_STARTUP {
                previous();
            }
            attach();
        }
    }

    // SAFETY: as above.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

/// How large the parts are.
struct Sizes {
    processes: usize,
    blocks: usize,
}

impl Sizes {
    fn now() -> Self {
        // SAFETY: the number is settled before shared memory is asked for. Besides backends there are auxiliary processes
        // (fewer than 64), whose entries follow theirs.
        let backends = unsafe { pg_sys::MaxBackends } as usize;
        Sizes { processes: backends + 64, blocks: gucs::queue_bytes() / BLOCK }
    }

    fn links_at(&self) -> usize {
        (size_of::<Area>() + self.processes * size_of::<AtomicU64>()).next_multiple_of(8)
    }

    fn data_at(&self) -> usize {
        (self.links_at() + 2 * self.blocks * size_of::<AtomicU32>()).next_multiple_of(64)
    }

    fn total(&self) -> usize {
        self.data_at() + self.blocks * BLOCK
    }
}

fn attach() {
    let sizes = Sizes::now();
    let mut found = false;
    // SAFETY: the area has the size that was asked for and is aligned to a cache line. All-zero bytes are a valid Area.
    // Nobody else runs while the postmaster makes it.
    unsafe {
        let area = pg_sys::ShmemInitStruct(NAME.as_ptr(), sizes.total(), &mut found).cast::<Area>();
        if !found {
            area.cast::<u8>().write_bytes(0, sizes.data_at());
            (*area).processes = sizes.processes as u32;
            (*area).blocks = sizes.blocks as u32;
        }
        AREA.store(area, Ordering::Release);
    }
    if let Some(queue) = queue().filter(|_| !found) {
        queue.pool().init();
        queue.area.lowest_free.store(sizes.blocks as u32, Ordering::Release);
        queue.area.incarnation.store(super::session::clock(), Ordering::Release);
        for database in &queue.area.databases {
            database.init(0);
        }
    }
}

/// The queue; `None` without preload.
pub fn queue() -> Option<Queue> {
    // SAFETY: once set, the area is there as long as the process.
    unsafe { AREA.load(Ordering::Acquire).as_ref() }.map(|area| Queue { area })
}

/// The queue, and what is kept of the session's database, as far as there is anything.
pub fn own_database() -> Option<(Queue, &'static Database)> {
    let queue = queue()?;
    let oid = super::session::database();
    Some((queue, queue.databases().find(|database| database.oid() == oid)?))
}

#[derive(Clone, Copy)]
pub struct Queue {
    area: &'static Area,
}

impl Queue {
    fn sizes(&self) -> Sizes {
        Sizes { processes: self.area.processes as usize, blocks: self.area.blocks as usize }
    }

    fn array<T>(&self, at: usize, count: usize) -> &'static [T] {
        // SAFETY: called with the places and lengths of `Sizes` alone, for arrays of atomics.
        unsafe { std::slice::from_raw_parts((&raw const *self.area).cast::<u8>().add(at).cast::<T>(), count) }
    }

    fn acknowledgements(&self) -> &'static [AtomicU64] {
        self.array(size_of::<Area>(), self.sizes().processes)
    }

    fn pool(&self) -> Pool<'static> {
        let sizes = self.sizes();
        Pool { next: self.array(sizes.links_at(), sizes.blocks), head: &self.area.head, free: &self.area.free }
    }

    fn messages(&self, database: &'static Database) -> Messages<'static> {
        let sizes = self.sizes();
        let link = self.array(sizes.links_at() + sizes.blocks * size_of::<AtomicU32>(), sizes.blocks);
        Messages { link, inbox: &database.inbox, first: &database.first, last: &database.last }
    }

    fn block(&self, block: u32) -> *mut u8 {
        let at = self.sizes().data_at() + block as usize * BLOCK;
        // SAFETY: blocks are numbered below their count.
        unsafe { (&raw const *self.area).cast::<u8>().cast_mut().add(at) }
    }

    pub fn bytes(&self) -> usize {
        self.sizes().blocks * BLOCK
    }

    /// Bytes in use now, and the most since the server started.
    pub fn used(&self) -> (usize, usize) {
        let blocks = self.area.blocks;
        let used = |free: u32| (blocks.saturating_sub(free)) as usize * BLOCK;
        (used(self.area.free.load(Ordering::Relaxed)), used(self.area.lowest_free.load(Ordering::Relaxed)))
    }

    /// The longest message that there can be.
    pub fn max_message(&self) -> usize {
        self.bytes().saturating_sub(size_of::<Header>()).min(i32::MAX as usize)
    }

    /// Space for a message, filled with it; `None` while there is not enough.
    pub fn reserve(&self, bytes: &[u8], ticket: Option<Ticket>) -> Option<Reserved> {
        let length = size_of::<Header>() + bytes.len();
        let first = self.pool().reserve(u32::try_from(length.div_ceil(BLOCK)).ok()?)?;
        self.area.lowest_free.fetch_min(self.area.free.load(Ordering::Relaxed), Ordering::Relaxed);
        let header = Header {
            length: bytes.len() as u64,
            ticket: ticket.map_or(0, |ticket| ticket.number),
            process: ticket.map_or(0, |ticket| ticket.process),
            _padding: 0,
        };
        let mut rest = bytes;
        let mut room = BLOCK - size_of::<Header>();
        let mut at = size_of::<Header>();
        let mut block = Some(first);
        // SAFETY: the blocks of the chain are this process's own until they are published or released; each piece ends
        // within its block, and blocks are aligned to 64 bytes.
        unsafe {
            self.block(first).cast::<Header>().write(header);
            while let Some(number) = block {
                let (piece, later) = rest.split_at(rest.len().min(room));
                std::ptr::copy_nonoverlapping(piece.as_ptr(), self.block(number).add(at), piece.len());
                (rest, room, at) = (later, BLOCK, 0);
                block = self.pool().next(number);
            }
        }
        Some(Reserved(first))
    }

    /// Writes over the beginning of a message, at most a block less its header. Nothing here can fail.
    pub fn overwrite(&self, reserved: &Reserved, bytes: &[u8]) {
        let length = bytes.len().min(BLOCK - size_of::<Header>());
        // SAFETY: the block is this process's own until it is published; the bytes end within it.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.block(reserved.0).add(size_of::<Header>()), length);
        }
    }

    /// Gives back what was reserved. Nothing here can fail.
    pub fn give_back(&self, reserved: Reserved) {
        self.pool().release(reserved.0);
    }

    /// Hands a message to the database's worker. Nothing here can fail.
    pub fn publish(&self, database: &'static Database, reserved: Reserved) {
        self.put(database, reserved);
        self.wake_worker(database);
    }

    /// As `publish`, for a message that nobody waits for: a worker that looks soon by itself is not disturbed while there
    /// is room. Nothing here can fail.
    pub fn publish_deferred(&self, database: &'static Database, reserved: Reserved) {
        self.put(database, reserved);
        let is_roomy = self.area.free.load(Ordering::Relaxed) >= self.area.blocks / 2;
        if !(is_roomy && database.is_dozing.load(Ordering::SeqCst) != 0) {
            self.wake_worker(database);
        }
    }

    /// A number that nobody else has, in this incarnation.
    pub fn number(&self) -> u64 {
        self.area.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub fn incarnation(&self) -> i64 {
        self.area.incarnation.load(Ordering::Acquire)
    }

    fn put(&self, database: &'static Database, reserved: Reserved) {
        let depth = database.depth.fetch_add(1, Ordering::Relaxed) + 1;
        database.high_water.fetch_max(depth, Ordering::Relaxed);
        database.count(Counter::Messages, 1);
        self.messages(database).publish(reserved.0);
    }

    /// Wakes the database's worker, or the launcher to start one.
    pub fn wake_worker(&self, database: &Database) {
        match database.worker.load(Ordering::SeqCst) {
            0 => self.wake_launcher(),
            worker => super::process::wake(worker - 1),
        }
    }

    pub fn wake_launcher(&self) {
        if let Some(launcher) = self.area.launcher.load(Ordering::SeqCst).checked_sub(1) {
            super::process::wake(launcher);
        }
    }

    pub fn set_launcher(&self, process: Option<u32>) {
        self.area.launcher.store(process.map_or(0, |process| process + 1), Ordering::SeqCst);
    }

    /// The launcher was told to end: so is, most likely, the whole server.
    pub fn set_shutting_down(&self, yes: bool) {
        self.area.is_shutting_down.store(u32::from(yes), Ordering::SeqCst);
    }

    pub fn is_shutting_down(&self) -> bool {
        self.area.is_shutting_down.load(Ordering::SeqCst) != 0
    }

    /// What is kept of a database; `None` if too many have messages.
    pub fn database(&self, oid: pg_sys::Oid) -> Option<&'static Database> {
        let oid = oid.to_u32();
        let find = || self.databases().find(|database| database.oid().to_u32() == oid);
        find().or_else(|| {
            while self.area.is_claiming.swap(1, Ordering::Acquire) != 0 {
                std::hint::spin_loop();
            }
            let found = find().or_else(|| {
                let free = self.area.databases.iter().find(|database| database.oid.load(Ordering::Acquire) == 0)?;
                free.oid.store(oid, Ordering::Release);
                Some(free)
            });
            self.area.is_claiming.store(0, Ordering::Release);
            found
        })
    }

    pub fn databases(&self) -> impl Iterator<Item = &'static Database> {
        self.area.databases.iter().filter(|database| database.oid.load(Ordering::Acquire) != 0)
    }

    /// Adds to a table's numbers, if there is a place for them. Nothing here can fail.
    pub fn count_table(&self, database: &Database, table: u32, by: [u64; TABLE_COUNTERS]) {
        let key = u64::from(database.oid().to_u32()) << 32 | u64::from(table);
        let first = (key ^ key >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize;
        let places = || (0..TABLE_PROBES).map(|probe| &self.area.tables[first.wrapping_add(probe) % TABLES]);
        let known = places().find(|place| place.key.load(Ordering::Acquire) == key);
        let claim =
            |place: &&TableState| place.key.compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire).is_ok();
        // Two processes that meet a new table may both take a place: who reads adds them up.
        if let Some(place) = known.or_else(|| places().find(claim)) {
            place.counters.iter().zip(by).filter(|(_, by)| *by > 0).for_each(|(counter, by)| {
                counter.fetch_add(by, Ordering::Relaxed);
            });
        }
    }

    /// The tables of a database that have numbers.
    pub fn tables(&self, database: &Database) -> BTreeMap<u32, [u64; TABLE_COUNTERS]> {
        let mut tables = BTreeMap::new();
        for state in self.table_states(database) {
            let table = state.key.load(Ordering::Acquire) as u32;
            let sums: &mut [u64; TABLE_COUNTERS] = tables.entry(table).or_default();
            for (sum, counter) in sums.iter_mut().zip(&state.counters) {
                *sum += counter.load(Ordering::Relaxed);
            }
        }
        tables
    }

    fn table_states(&self, database: &Database) -> impl Iterator<Item = &'static TableState> {
        let oid = u64::from(database.oid().to_u32());
        self.area.tables.iter().filter(move |state| state.key.load(Ordering::Acquire) >> 32 == oid)
    }

    /// Sets a database's numbers to zero.
    pub fn reset(&self, database: &Database, now: i64) {
        for state in self.table_states(database) {
            state.counters.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
            // Dropped tables give up their places so.
            state.key.store(0, Ordering::Release);
        }
        database.reset(now);
    }

    pub fn is_empty(&self, database: &'static Database) -> bool {
        self.messages(database).is_empty()
    }

    /// Reads the oldest messages of a database, up to a number and about so many bytes. The worker alone may.
    pub fn read(&self, database: &'static Database, max_count: usize, max_bytes: usize) -> Vec<Message> {
        let messages = self.messages(database);
        messages.collect();
        let mut read = Vec::new();
        let mut bytes = 0;
        let mut next = messages.first();
        while let Some(first) = next
            && read.len() < max_count
            && bytes < max_bytes
        {
            let message = self.message(first);
            bytes += message.bytes.len();
            read.push(message);
            next = messages.after(first);
        }
        read
    }

    fn message(&self, first: u32) -> Message {
        // SAFETY: a published message is not written again until it is removed, by this process.
        let header = unsafe { self.block(first).cast::<Header>().read() };
        let length = header.length as usize;
        let mut bytes = Vec::with_capacity(length);
        let mut at = size_of::<Header>();
        let mut block = Some(first);
        while let Some(number) = block {
            let count = (BLOCK - at).min(length - bytes.len());
            // SAFETY: as above; the piece ends within its block.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(self.block(number).add(at), count) });
            at = 0;
            block = self.pool().next(number);
        }
        let ticket = (header.ticket != 0).then_some(Ticket { number: header.ticket, process: header.process });
        Message { bytes, ticket }
    }

    /// Removes the oldest messages, which were read before, and tells who waits whether they are written. Some that nobody
    /// waits for may be lost while the rest is written.
    pub fn remove(&self, database: &'static Database, messages: &[Message], lost: usize) {
        let is_written = lost < messages.len();
        database.count(Counter::Written, messages.len().saturating_sub(lost) as u64);
        database.count(Counter::Lost, lost as u64);
        for message in messages {
            let Some(first) = self.messages(database).remove_first() else { break };
            self.pool().release(first);
            database.depth.fetch_sub(1, Ordering::Relaxed);
            if let Some(ticket) = message.ticket {
                self.acknowledge(ticket, is_written);
            }
        }
    }

    /// Notes what a database is called now. Another one had the name before, or is gone.
    pub fn set_name(&self, database: &Database, name: &[u8]) {
        if database.has_name(name) {
            return;
        }
        if !name.is_empty() {
            self.databases().filter(|other| other.has_name(name)).for_each(|other| other.set_name(b""));
        }
        database.set_name(name);
    }

    /// The database of that name, as far as it is known.
    pub fn named(&self, name: &[u8]) -> Option<&'static Database> {
        self.databases().find(|database| database.has_name(name))
    }

    /// Works on the folded logins, alone. It is a matter of a few hundred nanoseconds, in processes that may not have what
    /// PostgreSQL's locks need.
    fn with_folds<T>(&self, body: impl FnOnce(&mut [Entry; FOLDS]) -> T) -> T {
        while self.area.is_folding.swap(1, Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
        // SAFETY: one process at a time comes here, and any bytes are an entry.
        let result = body(unsafe { &mut *self.area.folds.get() });
        self.area.is_folding.store(0, Ordering::Release);
        result
    }

    /// What to do with a refused login.
    pub fn note_login(&self, database: &Database, address: Option<IpAddr>, role: &[u8], now: i64) -> Decision {
        self.fold(database, |folds, oid| fold::note(folds, oid, Octets::of(address).used(), role, now))
    }

    /// Folds a refused login that could not be told.
    pub fn fold_login(&self, database: &Database, address: Option<IpAddr>, role: &[u8], now: i64) -> Decision {
        self.fold(database, |folds, oid| fold::fold(folds, oid, Octets::of(address).used(), role, now))
    }

    fn fold(&self, database: &Database, body: impl FnOnce(&mut [Entry; FOLDS], u32) -> Decision) -> Decision {
        let oid = database.oid().to_u32();
        let (was_due, decision) = self.with_folds(|folds| (fold::due_at(folds, oid), body(folds, oid)));
        if was_due.is_none() && decision == Decision::Folded {
            self.wake_launcher();
        }
        decision
    }

    /// When folded logins of a database are to be written.
    pub fn folded_due_at(&self, database: &Database) -> Option<i64> {
        self.with_folds(|folds| fold::due_at(folds, database.oid().to_u32()))
    }

    /// Takes folded logins that are due.
    pub fn take_folded(&self, database: &Database, now: i64) -> Option<Entry> {
        self.with_folds(|folds| fold::take_due(folds, database.oid().to_u32(), now))
    }

    /// Puts back folded logins that could not be written.
    pub fn put_back_folded(&self, taken: &Entry, now: i64) -> Decision {
        self.with_folds(|folds| fold::put_back(folds, taken, now))
    }

    /// A ticket for this process, which has one at a time.
    pub fn ticket(&self) -> Option<Ticket> {
        let process = super::process::own()?;
        (process < self.area.processes)
            .then(|| Ticket { number: self.area.tickets.fetch_add(1, Ordering::Relaxed) + 1, process })
    }

    fn acknowledge(&self, ticket: Ticket, is_written: bool) {
        // Tickets grow, so the answer to a process that is gone never hides the one to its successor.
        self.acknowledgements()[ticket.process as usize]
            .fetch_max(ticket.number << 1 | u64::from(is_written), Ordering::SeqCst);
        super::process::wake(ticket.process);
    }

    /// Whether the message was written; `None` while it is not settled.
    pub fn answer(&self, ticket: Ticket) -> Option<bool> {
        let answer = self.acknowledgements()[ticket.process as usize].load(Ordering::SeqCst);
        (answer >> 1 == ticket.number).then_some(answer & 1 != 0)
    }
}

/// An address as its octets.
struct Octets([u8; 16], usize);

impl Octets {
    fn of(address: Option<IpAddr>) -> Self {
        let mut octets = Octets([0; 16], 0);
        match address {
            None => {}
            Some(IpAddr::V4(address)) => {
                octets.0[..4].copy_from_slice(&address.octets());
                octets.1 = 4;
            }
            Some(IpAddr::V6(address)) => octets = Octets(address.octets(), 16),
        }
        octets
    }

    fn used(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

impl Database {
    fn init(&self, oid: u32) {
        for end in [&self.inbox, &self.first, &self.last] {
            end.store(NIL, Ordering::Relaxed);
        }
        self.presence.store(0, Ordering::Relaxed);
        self.worker.store(0, Ordering::Relaxed);
        self.departure.store(0, Ordering::Relaxed);
        self.is_dozing.store(0, Ordering::Relaxed);
        self.is_checked.store(0, Ordering::Relaxed);
        self.sealed();
        self.depth.store(0, Ordering::Relaxed);
        self.reset(0);
        self.set_name(b"");
        self.alert.count.store(0, Ordering::Relaxed);
        self.alert.is_announced.store(0, Ordering::Relaxed);
        self.alert.since.store(0, Ordering::Relaxed);
        self.oid.store(oid, Ordering::Release);
    }

    fn has_name(&self, name: &[u8]) -> bool {
        name.len() < NAME_BYTES
            && self.name.iter().zip(name.iter().chain([&0])).all(|(own, asked)| own.load(Ordering::Relaxed) == *asked)
    }

    fn set_name(&self, name: &[u8]) {
        if !self.has_name(name) {
            for (place, byte) in self.name.iter().zip(name.iter().take(NAME_BYTES - 1).chain(std::iter::repeat(&0))) {
                place.store(*byte, Ordering::Relaxed);
            }
        }
    }

    /// Notes that auditing itself failed.
    pub fn raise_alert(&self, sqlstate: i32, message: &[u8], now: i64) {
        let alert = &self.alert;
        alert.sqlstate.store(sqlstate as u32, Ordering::Relaxed);
        for (place, byte) in alert.message.iter().zip(message.iter().take(ALERT_BYTES - 1).chain(std::iter::repeat(&0)))
        {
            place.store(*byte, Ordering::Relaxed);
        }
        alert.last.store(now, Ordering::Relaxed);
        alert.count.fetch_add(1, Ordering::Relaxed);
        let _ = alert.since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed);
    }

    pub fn alert(&self) -> Option<Alert> {
        let alert = &self.alert;
        let since = alert.since.load(Ordering::Acquire);
        (since != 0).then(|| Alert {
            since,
            last: alert.last.load(Ordering::Relaxed),
            count: alert.count.load(Ordering::Relaxed),
            sqlstate: alert.sqlstate.load(Ordering::Relaxed) as i32,
            message: alert
                .message
                .iter()
                .map(|byte| byte.load(Ordering::Relaxed))
                .take_while(|byte| *byte != 0)
                .collect(),
            is_announced: alert.is_announced.load(Ordering::Relaxed) != 0,
        })
    }

    pub fn set_announced(&self) {
        self.alert.is_announced.store(1, Ordering::Relaxed);
    }

    /// The alert is over: it was recorded as it was read. What came since is the next one.
    pub fn clear_alert(&self, recorded: &Alert, now: i64) {
        let later = self.alert.count.fetch_sub(recorded.count, Ordering::Relaxed) - recorded.count;
        self.alert.is_announced.store(0, Ordering::Relaxed);
        self.alert.since.store(if later == 0 { 0 } else { now }, Ordering::Release);
    }

    /// Frees the place of a database that is gone. It has no messages and no worker.
    pub fn forget(&self) {
        self.init(0);
    }

    pub fn oid(&self) -> pg_sys::Oid {
        self.oid.load(Ordering::Acquire).into()
    }

    pub fn presence(&self) -> Presence {
        match self.presence.load(Ordering::Relaxed) {
            1 => Presence::Present,
            2 => Presence::Absent,
            _ => Presence::Unknown,
        }
    }

    pub fn set_presence(&self, presence: Presence) {
        self.presence.store(presence as u32, Ordering::Relaxed);
    }

    /// Makes this process the database's worker; false if there is one.
    pub fn attach_worker(&self, process: u32) -> bool {
        self.departure.store(Departure::Early as u32, Ordering::Relaxed);
        self.worker.compare_exchange(0, process + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    pub fn detach_worker(&self) {
        self.set_dozing(false);
        self.worker.store(0, Ordering::SeqCst);
    }

    /// The worker will look soon, or is looking: messages that came before the latter are found.
    pub fn set_dozing(&self, yes: bool) {
        self.is_dozing.store(u32::from(yes), Ordering::SeqCst);
    }

    pub fn is_checked(&self) -> bool {
        self.is_checked.load(Ordering::Relaxed) != 0
    }

    pub fn set_checked(&self) {
        self.is_checked.store(1, Ordering::Relaxed);
    }

    /// Notes an attempt to seal. Returns how many before it have not succeeded.
    pub fn begin_sealing(&self) -> u32 {
        self.seal_failures.fetch_add(1, Ordering::Relaxed)
    }

    /// The last attempt succeeded.
    pub fn sealed(&self) {
        self.seal_failures.store(0, Ordering::Relaxed);
        self.seal_again_at(0);
    }

    pub fn seal_again_at(&self, time: i64) {
        self.seal_again_at.store(time, Ordering::Relaxed);
    }

    /// When to try again, if the last attempt failed.
    pub fn seal_due_at(&self) -> Option<i64> {
        let has_failed = self.seal_failures.load(Ordering::Relaxed) > 0;
        has_failed.then(|| self.seal_again_at.load(Ordering::Relaxed))
    }

    pub fn has_worker(&self) -> bool {
        self.worker.load(Ordering::SeqCst) != 0
    }

    pub fn departure(&self) -> Departure {
        match self.departure.load(Ordering::Relaxed) {
            0 => Departure::None,
            1 => Departure::Idle,
            _ => Departure::Early,
        }
    }

    pub fn set_departure(&self, departure: Departure) {
        self.departure.store(departure as u32, Ordering::Relaxed);
    }

    pub fn count(&self, counter: Counter, by: u64) {
        self.counters[counter as usize].fetch_add(by, Ordering::Relaxed);
    }

    pub fn set(&self, counter: Counter, value: u64) {
        self.counters[counter as usize].store(value, Ordering::Relaxed);
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Messages in the queue now, and the most since the reset.
    pub fn depth(&self) -> (u32, u32) {
        (self.depth.load(Ordering::Relaxed), self.high_water.load(Ordering::Relaxed))
    }

    /// Counts a failed statement by its SQLSTATE. The worker alone may.
    pub fn count_failure(&self, sqlstate: &str) {
        let Some(&[first, second]) = sqlstate.as_bytes().first_chunk() else { return };
        let class = u32::from(first) << 8 | u32::from(second);
        let holds = |place: &&(AtomicU32, AtomicU64)| matches!(place.0.load(Ordering::Relaxed), known if known == class || known == 0);
        if let Some((known, count)) = self.classes.iter().find(holds) {
            known.store(class, Ordering::Relaxed);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Failed statements by class.
    pub fn failure_classes(&self) -> Vec<(String, u64)> {
        let counts =
            self.classes.iter().map(|(class, count)| (class.load(Ordering::Relaxed), count.load(Ordering::Relaxed)));
        let name = |class: u32| [(class >> 8) as u8, class as u8].map(char::from).iter().collect();
        counts.filter(|(_, count)| *count > 0).map(|(class, count)| (name(class), count)).collect()
    }

    /// Sets the counters to zero.
    fn reset(&self, now: i64) {
        self.classes.iter().for_each(|(_, count)| count.store(0, Ordering::Relaxed));
        self.counters.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
        self.high_water.store(self.depth.load(Ordering::Relaxed), Ordering::Relaxed);
        self.reset_at.store(now, Ordering::Relaxed);
    }

    /// When the counters were last set to zero; 0 if the server did so as it started.
    pub fn reset_at(&self) -> i64 {
        self.reset_at.load(Ordering::Relaxed)
    }
}
