//! The indexes of a partition of the log: their entries for new tuples. Ours are on plain columns; those that an
//! administrator adds may have expressions and predicates, whose functions see a snapshot as they would in SQL.

use pgrx::pg_sys;

use super::relation::Opened;
use crate::error::Error;

pub(super) struct LeafIndex {
    pub(super) oid: pg_sys::Oid,
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    is_btree: bool,
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

impl LeafIndex {
    /// Gives the access method memory for its cache, to be deleted after the batch, or by an ERROR.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    unsafe fn begin_cache(&self) -> pg_sys::MemoryContext {
        // SAFETY: the IndexInfo lives as long as the leaf; the context is a child of the current one.
        unsafe {
            let cache = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"audit_ext index cache".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            (*self.info).ii_Context = cache;
            cache
        }
    }

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
///
/// # Safety
/// The table is open and locked.
pub(super) unsafe fn indexes(relation: pg_sys::Relation) -> Vec<LeafIndex> {
    let snapshot = ActiveSnapshot::ensure();
    // SAFETY: the table is open and locked; each index is opened and closed.
    let indexes = unsafe {
        super::relation::index_oids(relation)
            .into_iter()
            .filter_map(|oid| {
                let index = pg_sys::index_open(oid, pg_sys::RowExclusiveLock as i32);
                let info = pg_sys::BuildIndexInfo(index);
                let unique = (*(*index).rd_index).indisunique;
                #[cfg(any(feature = "pg17", feature = "pg18"))]
                let is_btree = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID;
                pg_sys::index_close(index, pg_sys::NoLock as i32);
                (*info).ii_ReadyForInserts.then(|| LeafIndex {
                    oid,
                    #[cfg(any(feature = "pg17", feature = "pg18"))]
                    is_btree,
                    info,
                    columns: plain_columns(info),
                    unique,
                    filter: filter_of(info),
                })
            })
            .collect()
    };
    snapshot.end();
    indexes
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

/// Inserts the entries of tuples that are in the table.
///
/// # Safety
/// The table is open and locked, the indexes are its own, each slot holds a tuple of it and its tid.
pub(super) unsafe fn insert_entries(
    indexes: &[LeafIndex],
    table: pg_sys::Relation,
    slots: &[*mut pg_sys::TupleTableSlot],
) -> Result<(), Error> {
    let mut values = [pg_sys::Datum::from(0usize); pg_sys::INDEX_MAX_KEYS as usize];
    let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
    // SAFETY: as in `insert`; the executor state lives from here to the end of this function, or until an ERROR
    // frees its memory context.
    unsafe {
        let expressions = Expressions::for_indexes(indexes);
        for index in indexes {
            let Some(opened) = Opened::known(index.oid, pg_sys::RowExclusiveLock) else {
                return Err(Error::NoSuchTable { oid: index.oid.to_u32() });
            };
            let relation = opened.relation().0;
            let check = if index.unique {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
            } else {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
            };
            // From 17 on the cache of an access method such as BRIN lives for one batch, in memory of its own: it holds
            // buffer pins, and BRIN never frees all of it.
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            let cache = (!index.is_btree).then(|| index.begin_cache());
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
            if let Some(cache) = cache {
                pg_sys::index_insert_cleanup(relation, index.info);
                (*index.info).ii_AmCache = std::ptr::null_mut();
                pg_sys::MemoryContextDelete(cache);
            }
        }
        expressions.end(indexes);
    }
    Ok(())
}
