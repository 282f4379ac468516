//! The partitions of audit.event and audit.changeset that records go to, and the insert itself: through the heap and
//! the indexes, without SQL and without rights of the current user on the log.
//!
//! What SQL would have checked is checked here when a partition is first used: that it is a permanent heap table with
//! exactly the columns that the writer lays out. All that is looked up is kept until PostgreSQL says that it changed.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys;

use super::definition::Definition;
use super::log_index::{self, LeafIndex};
use super::tuple::Batch;
use super::unguarded::{self, guarded};
use super::{catalog, expression_index, log_partition};
use crate::error::Error;

/// A partition, ready for inserts.
struct Leaf {
    table: pg_sys::Oid,
    parent: pg_sys::Oid,
    /// Range of occurred_at, in PostgreSQL's microseconds: from (inclusive), to (exclusive).
    range: (i64, i64),
    indexes: Vec<LeafIndex>,
    descriptor: pg_sys::TupleDesc,
    context: pg_sys::MemoryContext,
    rows: Cell<Rows>,
    /// Something that was looked up may have changed.
    stale: Cell<bool>,
    /// An insert is under way, or an ERROR ended one: index access methods keep buffer pins in their cache, which an
    /// ERROR leaves dangling, so such a leaf is never used again.
    busy: Cell<bool>,
}

/// Memory for the rows of an insert: tuples, and a slot for each.
#[derive(Default)]
struct Rows {
    tuples: Vec<pg_sys::HeapTupleData>,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
}

enum Outcome {
    Inserted,
    /// What was looked up is no longer so; nothing was inserted.
    Stale,
    /// The tuples are in the table, but this index is gone: an error.
    IndexMissing(pg_sys::Oid),
}

thread_local! {
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static LEAVES: RefCell<Vec<(&'static CStr, Rc<Leaf>)>> = const { RefCell::new(Vec::new()) };
}

/// Changes whenever a table of the log may have.
pub fn generation() -> u64 {
    GENERATION.get()
}

/// PostgreSQL's word that a relation (or, with `None`, any) may have changed.
pub fn invalidate(relation: Option<pg_sys::Oid>) {
    if relation.is_none() {
        GENERATION.set(GENERATION.get().wrapping_add(1));
    }
    LEAVES.with(|leaves| {
        // The list is borrowed only between calls into PostgreSQL, so it is free here.
        if let Ok(leaves) = leaves.try_borrow() {
            for (_, leaf) in leaves.iter() {
                if relation.is_none_or(|oid| leaf.depends_on(oid)) {
                    leaf.stale.set(true);
                    GENERATION.set(GENERATION.get().wrapping_add(1));
                }
            }
        }
    });
}

/// Inserts the batch's tuples into the partition that holds `occurred_at`, as `command` did it.
pub fn insert(definition: &'static Definition, occurred_at: i64, command: u32, batch: &Batch) -> Result<(), Error> {
    loop {
        let leaf = leaf_for(definition, occurred_at)?;
        if leaf.insert(command, batch)? {
            return Ok(());
        }
    }
}

/// The times whose records go where those of `occurred_at` go, which stays so until the transaction ends: the partition is
/// locked.
pub fn lock_range(definition: &'static Definition, occurred_at: i64) -> Result<(i64, i64), Error> {
    loop {
        let leaf = leaf_for(definition, occurred_at)?;
        // SAFETY: a lock by oid.
        unsafe { pg_sys::LockRelationOid(leaf.table, pg_sys::RowExclusiveLock as i32) };
        if leaf.is_usable() {
            return Ok(leaf.range);
        }
    }
}

/// Whether a query of the relation reads the partition that holds `occurred_at`. Not so where there is none: the insert
/// will say.
pub fn holds(definition: &'static Definition, occurred_at: i64, relation: pg_sys::Oid) -> bool {
    leaf_for(definition, occurred_at).is_ok_and(|leaf| leaf.table == relation || leaf.parent == relation)
}

fn leaf_for(definition: &'static Definition, occurred_at: i64) -> Result<Rc<Leaf>, Error> {
    let cached = LEAVES.with_borrow(|leaves| {
        leaves
            .iter()
            .find(|(name, leaf)| *name == definition.name && leaf.is_usable() && leaf.covers(occurred_at))
            .map(|(_, leaf)| leaf.clone())
    });
    if let Some(leaf) = cached {
        return Ok(leaf);
    }
    let leaf = Rc::new(Leaf::open(definition, occurred_at)?);
    LEAVES.with_borrow_mut(|leaves| {
        leaves.retain(|(_, leaf)| leaf.is_usable());
        leaves.push((definition.name, leaf.clone()));
    });
    Ok(leaf)
}

impl Leaf {
    fn covers(&self, occurred_at: i64) -> bool {
        (self.range.0..self.range.1).contains(&occurred_at)
    }

    fn is_usable(&self) -> bool {
        !self.stale.get() && !self.busy.get()
    }

    fn depends_on(&self, oid: pg_sys::Oid) -> bool {
        oid == self.table || oid == self.parent || self.indexes.iter().any(|index| index.oid == oid)
    }

    fn open(definition: &'static Definition, occurred_at: i64) -> Result<Leaf, Error> {
        super::session::check_version()?;
        let missing = || Error::LogMissing { table: definition.name.to_string_lossy().into_owned() };
        let parent = catalog::relation_oid(definition.name).ok_or_else(missing)?;
        let (table, range) = log_partition::route(definition, parent, occurred_at)?;
        // SAFETY: the context lives until the leaf is dropped; relations are opened with a lock and closed, an ERROR in
        // between closes them through the resource owner.
        unsafe {
            let relation = pg_sys::try_relation_open(table, pg_sys::RowExclusiveLock as i32);
            if relation.is_null() {
                return Err(missing());
            }
            let checked = log_partition::check(definition, relation);
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"audit_ext log partition".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let outer = pg_sys::MemoryContextSwitchTo(context);
            let descriptor = pg_sys::CreateTupleDescCopy((*relation).rd_att);
            let mut leaf = Leaf {
                table,
                parent,
                range,
                indexes: Vec::new(),
                descriptor,
                context,
                rows: Cell::default(),
                stale: Cell::new(false),
                busy: Cell::new(false),
            };
            if checked.is_ok() {
                leaf.indexes = log_index::indexes(relation);
            }
            pg_sys::MemoryContextSwitchTo(outer);
            pg_sys::relation_close(relation, pg_sys::NoLock as i32);
            checked.map(|()| leaf)
        }
    }

    /// False where what was looked up is no longer so, and nothing was inserted.
    fn insert(&self, command: u32, batch: &Batch) -> Result<bool, Error> {
        let mut rows = self.rows.take();
        batch.heap_tuples(self.table, &mut rows.tuples)?;
        let Rows { tuples, slots } = &mut rows;
        // SAFETY: the partition was checked to be a heap with the columns of the tuples. The slots are ours alone while
        // they are out of `self.rows`; they are filled afresh on each use. An ERROR closes relations and releases
        // buffers through the resource owner, and leaves `busy` set, so that nothing kept here is used again.
        unsafe {
            self.fill_slots(slots, tuples);
            let slots = &mut slots[..tuples.len()];
            match guarded(|| self.insert_plain(command, tuples, slots)) {
                Outcome::Inserted => {}
                Outcome::Stale => return Ok(false),
                Outcome::IndexMissing(oid) => return Err(Error::NoSuchTable { oid: oid.to_u32() }),
            }
            expression_index::insert_entries(&self.indexes, self.table, slots)?;
        }
        self.busy.set(false);
        self.rows.set(rows);
        Ok(true)
    }

    /// Inserts the tuples, and their entries into the indexes on plain columns.
    ///
    /// # Safety
    /// To be called inside `guarded`, with a slot for each tuple.
    unsafe fn insert_plain(
        &self,
        command: u32,
        tuples: &mut [pg_sys::HeapTupleData],
        slots: &mut [*mut pg_sys::TupleTableSlot],
    ) -> Outcome {
        // SAFETY: as in `insert`.
        unsafe {
            unguarded::LockRelationOid(self.table, pg_sys::RowExclusiveLock as i32);
            // What was looked up holds only now, under the lock: while it waited, somebody may have altered the partition.
            if !self.is_usable() {
                return Outcome::Stale;
            }
            let relation = unguarded::RelationIdGetRelation(self.table);
            if relation.is_null() {
                self.stale.set(true);
                return Outcome::Stale;
            }
            self.busy.set(true);
            if let ([tuple], [slot]) = (&mut *tuples, &mut *slots) {
                unguarded::heap_insert(relation, tuple, command, 0, std::ptr::null_mut());
                (**slot).tts_tid = tuple.t_self;
            } else {
                let count = slots.len() as i32;
                unguarded::heap_multi_insert(relation, slots.as_mut_ptr(), count, command, 0, std::ptr::null_mut());
            }
            let missing = log_index::insert_entries(&self.indexes, relation, slots);
            unguarded::relation_close(relation, pg_sys::NoLock as i32);
            missing.map_or(Outcome::Inserted, Outcome::IndexMissing)
        }
    }

    /// Points one slot at each tuple, as `ExecStoreHeapTuple` does, but never frees what the slot held before: that was
    /// memory of a batch.
    unsafe fn fill_slots(&self, slots: &mut Vec<*mut pg_sys::TupleTableSlot>, tuples: &mut [pg_sys::HeapTupleData]) {
        // SAFETY: the slots are heap tuple slots made here, in the leaf's own memory context.
        unsafe {
            while slots.len() < tuples.len() {
                let outer = pg_sys::MemoryContextSwitchTo(self.context);
                slots.push(pg_sys::MakeSingleTupleTableSlot(self.descriptor, &raw const pg_sys::TTSOpsHeapTuple));
                pg_sys::MemoryContextSwitchTo(outer);
            }
            for (slot, tuple) in slots.iter().zip(tuples) {
                let heap_slot = slot.cast::<pg_sys::HeapTupleTableSlot>();
                (*heap_slot).tuple = tuple;
                (*heap_slot).off = 0;
                let base = &mut (*heap_slot).base;
                base.tts_nvalid = 0;
                // Without SHOULDFREE, heap_multi_insert would copy each tuple first. Nobody clears these slots.
                base.tts_flags = pg_sys::TTS_FLAG_SHOULDFREE as u16;
                base.tts_tid = tuple.t_self;
                base.tts_tableOid = self.table;
            }
        }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // SAFETY: the context is this leaf's own, and nothing else points into it.
        unsafe { pg_sys::MemoryContextDelete(self.context) };
    }
}
