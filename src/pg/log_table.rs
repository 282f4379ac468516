//! The partitions of audit.event and audit.changeset that records go to, and the insert itself: through the heap and
//! the indexes, without SQL and without rights of the current user on the log.
//!
//! What SQL would have checked is checked here when a partition is first used: that it is a permanent heap table with
//! exactly the columns that the writer lays out. All that is looked up is kept until PostgreSQL says that it changed.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys;

use super::catalog;
use super::relation::{Opened, attributes, name_bytes};
use super::tuple::Batch;
use crate::error::Error;

/// A table of the log: its name and the columns that the writer lays out.
pub struct Definition {
    pub name: &'static CStr,
    pub columns: &'static [(&'static str, ColumnType)],
}

#[derive(Clone, Copy)]
pub enum ColumnType {
    Core(pg_sys::BuiltinOid),
    /// An enum of ours, by name.
    Own(&'static CStr),
}

/// A partition, ready for inserts.
struct Leaf {
    table: pg_sys::Oid,
    parent: pg_sys::Oid,
    /// Range of occurred_at, in PostgreSQL's microseconds: from (inclusive), to (exclusive).
    range: (i64, i64),
    indexes: Vec<LeafIndex>,
    descriptor: pg_sys::TupleDesc,
    context: pg_sys::MemoryContext,
    slots: RefCell<Vec<*mut pg_sys::TupleTableSlot>>,
    /// Something that was looked up may have changed.
    stale: Cell<bool>,
    /// An insert is under way, or an ERROR ended one: index access methods keep buffer pins in their cache, which an
    /// ERROR leaves dangling, so such a leaf is never used again.
    busy: Cell<bool>,
}

struct LeafIndex {
    oid: pg_sys::Oid,
    info: *mut pg_sys::IndexInfo,
    /// Attribute numbers of an index on plain columns, and the highest of them.
    columns: Option<(Vec<usize>, i32)>,
    unique: bool,
    filter: Filter,
}

/// Which rows an index holds.
enum Filter {
    All,
    /// `WHERE column IS NOT NULL`, the only predicate of our own indexes.
    NotNull(i32),
    Expression,
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

/// Inserts the batch's tuples into the partition that holds `occurred_at`.
pub fn insert(definition: &'static Definition, occurred_at: i64, batch: &mut Batch) -> Result<(), Error> {
    loop {
        let leaf = leaf_for(definition, occurred_at)?;
        let opened = Opened::known(leaf.table, pg_sys::RowExclusiveLock)
            .ok_or_else(|| Error::LogMissing { table: definition.name.to_string_lossy().into_owned() })?;
        // What was looked up holds only now, under the lock: while it waited, somebody may have altered the partition.
        if leaf.is_usable() {
            leaf.busy.set(true);
            leaf.insert(opened.relation().0, batch)?;
            leaf.busy.set(false);
            return Ok(());
        }
    }
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
        let (table, range) = route(definition, parent, occurred_at)?;
        // SAFETY: the context lives until the leaf is dropped; relations are opened with a lock and closed, an ERROR in
        // between closes them through the resource owner.
        unsafe {
            let relation = pg_sys::try_relation_open(table, pg_sys::RowExclusiveLock as i32);
            if relation.is_null() {
                return Err(missing());
            }
            let checked = check(definition, relation);
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
                slots: RefCell::new(Vec::new()),
                stale: Cell::new(false),
                busy: Cell::new(false),
            };
            if checked.is_ok() {
                let snapshot = ActiveSnapshot::ensure();
                leaf.indexes = indexes(relation);
                snapshot.end();
            }
            pg_sys::MemoryContextSwitchTo(outer);
            pg_sys::relation_close(relation, pg_sys::NoLock as i32);
            checked.map(|()| leaf)
        }
    }

    fn insert(&self, relation: pg_sys::Relation, batch: &mut Batch) -> Result<(), Error> {
        let mut tuples = batch.heap_tuples(self.table)?;
        let mut slots = self.slots.take();
        // SAFETY: the partition was checked to be a heap with the columns of the tuples. The slots are ours alone while
        // they are out of `self.slots`; they are filled afresh on each use. An ERROR closes indexes and releases
        // buffers through the resource owner, and leaves `busy` set, so that nothing kept here is used again.
        unsafe {
            self.fill_slots(&mut slots, &mut tuples);
            let command = pg_sys::GetCurrentCommandId(true);
            if let [tuple] = tuples.as_mut_slice() {
                pg_sys::heap_insert(relation, tuple, command, 0, std::ptr::null_mut());
                (*slots[0]).tts_tid = tuple.t_self;
            } else {
                let count = tuples.len() as i32;
                pg_sys::heap_multi_insert(relation, slots.as_mut_ptr(), count, command, 0, std::ptr::null_mut());
            }
            self.insert_index_entries(relation, &slots[..tuples.len()])?;
        }
        self.slots.replace(slots);
        Ok(())
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

    unsafe fn insert_index_entries(
        &self,
        table: pg_sys::Relation,
        slots: &[*mut pg_sys::TupleTableSlot],
    ) -> Result<(), Error> {
        let mut values = [pg_sys::Datum::from(0usize); pg_sys::INDEX_MAX_KEYS as usize];
        let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
        // SAFETY: as in `insert`; the executor state lives from here to the end of this function, or until an ERROR
        // frees its memory context.
        unsafe {
            let expressions = Expressions::for_indexes(&self.indexes);
            for index in &self.indexes {
                let Some(opened) = Opened::known(index.oid, pg_sys::RowExclusiveLock) else {
                    return Err(Error::NoSuchTable { oid: index.oid.to_u32() });
                };
                let relation = opened.relation().0;
                let check = if index.unique {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
                } else {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
                };
                for &slot in slots {
                    if !index.holds(slot, &expressions) {
                        continue;
                    }
                    index.form_key(slot, &expressions, &mut values, &mut nulls);
                    pg_sys::index_insert(
                        relation,
                        values.as_mut_ptr(),
                        nulls.as_mut_ptr(),
                        &mut (*slot).tts_tid,
                        table,
                        check,
                        false,
                        index.info,
                    );
                }
                #[cfg(any(feature = "pg17", feature = "pg18"))]
                pg_sys::index_insert_cleanup(relation, index.info);
            }
            expressions.end(&self.indexes);
        }
        Ok(())
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // SAFETY: the context is this leaf's own, and nothing else points into it.
        unsafe { pg_sys::MemoryContextDelete(self.context) };
    }
}

impl LeafIndex {
    /// `FormIndexDatum`, with a short way for plain columns.
    unsafe fn form_key(
        &self,
        slot: *mut pg_sys::TupleTableSlot,
        expressions: &Expressions,
        values: &mut [pg_sys::Datum],
        nulls: &mut [bool],
    ) {
        // SAFETY: the slot holds a tuple of the table, whose columns the index names; the arrays have room for as many
        // columns as an index can have.
        unsafe {
            if let Some((columns, last)) = &self.columns {
                if i32::from((*slot).tts_nvalid) < *last {
                    pg_sys::slot_getsomeattrs_int(slot, *last);
                }
                for (position, column) in columns.iter().enumerate() {
                    values[position] = *(*slot).tts_values.add(column - 1);
                    nulls[position] = *(*slot).tts_isnull.add(column - 1);
                }
                return;
            }
            if !expressions.state.is_null() {
                expressions.point_at(slot);
            }
            pg_sys::FormIndexDatum(self.info, slot, expressions.state, values.as_mut_ptr(), nulls.as_mut_ptr());
        }
    }

    unsafe fn holds(&self, slot: *mut pg_sys::TupleTableSlot, state: &Expressions) -> bool {
        match self.filter {
            Filter::All => true,
            // SAFETY: the slot holds a tuple of the table, which has that column.
            Filter::NotNull(column) => unsafe { !pg_sys::slot_attisnull(slot, column) },
            // SAFETY: an index with such a filter makes `Expressions` have a state.
            Filter::Expression => unsafe { state.satisfied(self.info, slot) },
        }
    }
}

/// Executor state for the indexes that an administrator added with expressions or predicates; null where none has any.
struct Expressions {
    state: *mut pg_sys::EState,
    snapshot: Option<ActiveSnapshot>,
}

impl Expressions {
    unsafe fn for_indexes(indexes: &[LeafIndex]) -> Self {
        // SAFETY: the IndexInfo structs live as long as the leaf.
        unsafe {
            let needed = indexes
                .iter()
                .any(|index| matches!(index.filter, Filter::Expression) || !(*index.info).ii_Expressions.is_null());
            if !needed {
                return Expressions { state: std::ptr::null_mut(), snapshot: None };
            }
            let snapshot = Some(ActiveSnapshot::ensure());
            for index in indexes {
                (*index.info).ii_ExpressionsState = std::ptr::null_mut();
                (*index.info).ii_PredicateState = std::ptr::null_mut();
            }
            Expressions { state: pg_sys::CreateExecutorState(), snapshot }
        }
    }

    unsafe fn point_at(&self, slot: *mut pg_sys::TupleTableSlot) -> *mut pg_sys::ExprContext {
        // SAFETY: the state exists (see `holds`); this is the macro GetPerTupleExprContext.
        unsafe {
            let mut context = (*self.state).es_per_tuple_exprcontext;
            if context.is_null() {
                context = pg_sys::MakePerTupleExprContext(self.state);
            }
            (*context).ecxt_scantuple = slot;
            context
        }
    }

    unsafe fn satisfied(&self, info: *mut pg_sys::IndexInfo, slot: *mut pg_sys::TupleTableSlot) -> bool {
        // SAFETY: as above; the prepared predicate lives in the executor state's memory.
        unsafe {
            let context = self.point_at(slot);
            if (*info).ii_PredicateState.is_null() {
                (*info).ii_PredicateState = pg_sys::ExecPrepareQual((*info).ii_Predicate, self.state);
            }
            pg_sys::ExecQual((*info).ii_PredicateState, context)
        }
    }

    unsafe fn end(self, indexes: &[LeafIndex]) {
        if self.state.is_null() {
            return;
        }
        // SAFETY: nothing points into the state's memory once the prepared expressions are forgotten.
        unsafe {
            for index in indexes {
                (*index.info).ii_ExpressionsState = std::ptr::null_mut();
                (*index.info).ii_PredicateState = std::ptr::null_mut();
            }
            pg_sys::FreeExecutorState(self.state);
        }
        if let Some(snapshot) = self.snapshot {
            snapshot.end();
        }
    }
}

/// A snapshot for code of an administrator's index expressions: at commit that of the portal is gone.
struct ActiveSnapshot {
    is_ours: bool,
}

impl ActiveSnapshot {
    fn ensure() -> Self {
        // SAFETY: a transaction is under way; an ERROR drops the snapshot with it.
        unsafe {
            let is_ours = !pg_sys::ActiveSnapshotSet();
            if is_ours {
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            }
            ActiveSnapshot { is_ours }
        }
    }

    fn end(self) {
        if self.is_ours {
            // SAFETY: pushed by `ensure`, and the uppermost again.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
    }
}

/// The table's indexes, their descriptions allocated in the current memory context.
unsafe fn indexes(relation: pg_sys::Relation) -> Vec<LeafIndex> {
    // SAFETY: the table is open and locked; each index is opened and closed.
    unsafe {
        super::relation::index_oids(relation)
            .into_iter()
            .filter_map(|oid| {
                let index = pg_sys::index_open(oid, pg_sys::RowExclusiveLock as i32);
                let info = pg_sys::BuildIndexInfo(index);
                let unique = (*(*index).rd_index).indisunique;
                pg_sys::index_close(index, pg_sys::NoLock as i32);
                (*info).ii_ReadyForInserts.then(|| LeafIndex {
                    oid,
                    info,
                    columns: plain_columns(info),
                    unique,
                    filter: filter_of(info),
                })
            })
            .collect()
    }
}

unsafe fn plain_columns(info: *mut pg_sys::IndexInfo) -> Option<(Vec<usize>, i32)> {
    // SAFETY: the array holds as many numbers as the index has columns; 0 stands for an expression.
    let numbers = unsafe { &(&(*info).ii_IndexAttrNumbers)[..(*info).ii_NumIndexAttrs as usize] };
    let columns: Option<Vec<usize>> = numbers.iter().map(|&n| usize::try_from(n).ok().filter(|&n| n > 0)).collect();
    let last = numbers.iter().max().copied().unwrap_or(0);
    columns.map(|columns| (columns, i32::from(last)))
}

unsafe fn filter_of(info: *mut pg_sys::IndexInfo) -> Filter {
    // SAFETY: the predicate is a list of expression nodes, or null; tags are read before any cast.
    unsafe {
        let predicate = (*info).ii_Predicate;
        if predicate.is_null() {
            return Filter::All;
        }
        if (*predicate).length == 1 {
            let node = (*(*predicate).elements).ptr_value.cast::<pg_sys::Node>();
            if (*node).type_ == pg_sys::NodeTag::T_NullTest {
                let test = node.cast::<pg_sys::NullTest>();
                let argument = (*test).arg.cast::<pg_sys::Node>();
                if (*test).nulltesttype == pg_sys::NullTestType::IS_NOT_NULL
                    && (*argument).type_ == pg_sys::NodeTag::T_Var
                {
                    return Filter::NotNull(i32::from((*argument.cast::<pg_sys::Var>()).varattno));
                }
            }
        }
        Filter::Expression
    }
}

/// The partition that holds `occurred_at`, and the range for which that answer is good.
fn route(definition: &Definition, parent: pg_sys::Oid, occurred_at: i64) -> Result<(pg_sys::Oid, (i64, i64)), Error> {
    let table = || definition.name.to_string_lossy().into_owned();
    // SAFETY: the parent is opened with a lock and closed; the partition descriptor belongs to its relcache entry and is
    // read while that is open.
    unsafe {
        let relation = pg_sys::try_relation_open(parent, pg_sys::RowExclusiveLock as i32);
        if relation.is_null() {
            return Err(Error::LogMissing { table: table() });
        }
        let found = if (*(*relation).rd_rel).relkind as u8 != pg_sys::RELKIND_PARTITIONED_TABLE {
            Err(Error::LogAltered { table: table(), detail: "It is not a partitioned table.".into() })
        } else {
            partition_for(pg_sys::RelationGetPartitionDesc(relation, true), occurred_at)
                .ok_or_else(|| Error::LogPartitionMissing { table: table() })
        };
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        found
    }
}

/// `get_partition_for_tuple` (executor/execPartition.c) for a range over one timestamptz.
unsafe fn partition_for(descriptor: pg_sys::PartitionDesc, occurred_at: i64) -> Option<(pg_sys::Oid, (i64, i64))> {
    use pg_sys::PartitionRangeDatumKind::{PARTITION_RANGE_DATUM_MAXVALUE, PARTITION_RANGE_DATUM_MINVALUE};
    // SAFETY: the caller has the parent open; bounds and indexes have the lengths that the descriptor says.
    unsafe {
        if (*descriptor).nparts == 0 {
            return None;
        }
        let bounds = (*descriptor).boundinfo;
        let bound = |i: usize| match *(*(*bounds).kind.add(i)) {
            PARTITION_RANGE_DATUM_MINVALUE => i64::MIN,
            PARTITION_RANGE_DATUM_MAXVALUE => i64::MAX,
            _ => (*(*(*bounds).datums.add(i))).value() as i64,
        };
        let count = (*bounds).ndatums as usize;
        let above = (0..count).find(|&i| bound(i) > occurred_at).unwrap_or(count);
        let range = (
            if above == 0 { i64::MIN } else { bound(above - 1) },
            if above == count { i64::MAX } else { bound(above) },
        );
        let mut partition = *(*bounds).indexes.add(above);
        if partition < 0 {
            partition = (*bounds).default_index;
        }
        (partition >= 0).then(|| (*(*descriptor).oids.add(partition as usize), range))
    }
}

/// Whether the partition is what the writer takes it for.
unsafe fn check(definition: &Definition, relation: pg_sys::Relation) -> Result<(), Error> {
    // SAFETY: the caller has the relation open.
    unsafe {
        let class = (*relation).rd_rel;
        let table = String::from_utf8_lossy(&name_bytes(&(*class).relname)).into_owned();
        let altered = |detail: &str| Err(Error::LogAltered { table: table.clone(), detail: detail.into() });
        if (*class).relkind as u8 != pg_sys::RELKIND_RELATION {
            return altered("It is not an ordinary table.");
        }
        if (*class).relam != pg_sys::HEAP_TABLE_AM_OID {
            return altered("Its access method is not heap.");
        }
        if (*class).relpersistence as u8 != pg_sys::RELPERSISTENCE_PERMANENT {
            return altered("It is not a permanent table, so a crash would empty it.");
        }
        check_columns(definition, (*relation).rd_att)
    }
}

/// Whether a descriptor has exactly the columns that the writer lays out.
///
/// # Safety
/// The descriptor must stay meanwhile.
pub(super) unsafe fn check_columns(definition: &Definition, descriptor: pg_sys::TupleDesc) -> Result<(), Error> {
    let altered =
        |detail: String| Err(Error::LogAltered { table: definition.name.to_string_lossy().into_owned(), detail });
    // SAFETY: the caller's word.
    unsafe {
        if (*descriptor).natts as usize != definition.columns.len() {
            return altered("It has columns that this version does not write, or lacks some.".into());
        }
        let mut found = attributes(descriptor);
        for (name, column_type) in definition.columns {
            let expected = match column_type {
                ColumnType::Core(oid) => Some(oid.value()),
                ColumnType::Own(type_name) => catalog::type_oid(type_name),
            };
            let same = found.next().is_some_and(|(_, attribute)| {
                name_bytes(&attribute.attname) == name.as_bytes() && Some(attribute.atttypid) == expected
            });
            if !same {
                return altered(format!("Column \"{name}\" is not where and what this version writes."));
            }
        }
    }
    Ok(())
}
