//! The indexes of a partition of the log: their entries for new tuples.

use pgrx::pg_sys;

use super::brin::{RangeMap, Ranges};
use super::expression_index::ActiveSnapshot;
use super::unguarded::{self, guarded};

pub(super) struct LeafIndex {
    pub(super) oid: pg_sys::Oid,
    pub(super) info: *mut pg_sys::IndexInfo,
    method: Method,
    check: pg_sys::IndexUniqueCheck::Type,
    /// Of an index on plain columns, and on all rows: as ours are.
    columns: Option<Columns>,
}

enum Method {
    Btree,
    Brin(RangeMap),
    Other,
}

struct Columns {
    numbers: Vec<usize>,
    last: i32,
}

/// A tuple's key, with room for as many columns as an index can have.
pub(super) struct Key {
    pub(super) values: [pg_sys::Datum; pg_sys::INDEX_MAX_KEYS as usize],
    pub(super) nulls: [bool; pg_sys::INDEX_MAX_KEYS as usize],
}

impl Key {
    pub(super) fn new() -> Self {
        Key {
            values: [pg_sys::Datum::from(0usize); pg_sys::INDEX_MAX_KEYS as usize],
            nulls: [false; pg_sys::INDEX_MAX_KEYS as usize],
        }
    }
}

/// The table's indexes, their descriptions allocated in the current memory context.
///
/// # Safety
/// The table is open and locked.
pub(super) unsafe fn indexes(relation: pg_sys::Relation) -> Vec<LeafIndex> {
    // SAFETY: the table is open and locked; each index is opened and closed.
    unsafe {
        let snapshot = guarded(|| ActiveSnapshot::ensure());
        let indexes = super::relation::index_oids(relation)
            .into_iter()
            .filter_map(|oid| {
                let index = pg_sys::index_open(oid, pg_sys::RowExclusiveLock as i32);
                let info = pg_sys::BuildIndexInfo(index);
                let unique = (*(*index).rd_index).indisunique;
                let method = match (*(*index).rd_rel).relam {
                    pg_sys::BTREE_AM_OID => Method::Btree,
                    pg_sys::BRIN_AM_OID => Method::Brin(RangeMap::of(index)),
                    _ => Method::Other,
                };
                pg_sys::index_close(index, pg_sys::NoLock as i32);
                (*info).ii_ReadyForInserts.then(|| LeafIndex {
                    oid,
                    info,
                    method,
                    check: if unique {
                        pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
                    } else {
                        pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
                    },
                    columns: plain_columns(info),
                })
            })
            .collect();
        guarded(|| snapshot.end());
        indexes
    }
}

unsafe fn plain_columns(info: *mut pg_sys::IndexInfo) -> Option<Columns> {
    // SAFETY: the array holds as many numbers as the index has columns; 0 stands for an expression.
    unsafe {
        if !(*info).ii_Predicate.is_null() {
            return None;
        }
        let numbers = &(&(*info).ii_IndexAttrNumbers)[..(*info).ii_NumIndexAttrs as usize];
        let last = i32::from(numbers.iter().max().copied().unwrap_or(0));
        let numbers: Option<Vec<usize>> = numbers.iter().map(|&n| usize::try_from(n).ok().filter(|&n| n > 0)).collect();
        numbers.map(|numbers| Columns { numbers, last })
    }
}

/// Inserts the tuples' entries into the indexes on plain columns. Returns the index that is gone, if any.
///
/// # Safety
/// To be called inside `guarded`. The table is open and locked, the indexes are its own, each slot holds a tuple of it,
/// which is in the table, and its tid.
pub(super) unsafe fn insert_entries(
    indexes: &[LeafIndex],
    table: pg_sys::Relation,
    slots: &[*mut pg_sys::TupleTableSlot],
) -> Option<pg_sys::Oid> {
    let mut key = None;
    for index in indexes {
        let Some(columns) = &index.columns else { continue };
        // SAFETY: as above; the index is locked, then opened and closed.
        unsafe {
            unguarded::LockRelationOid(index.oid, pg_sys::RowExclusiveLock as i32);
            let relation = unguarded::RelationIdGetRelation(index.oid);
            if relation.is_null() {
                return Some(index.oid);
            }
            let mut ranges = match &index.method {
                Method::Brin(map) => Some(Ranges::new(map, relation)),
                _ => None,
            };
            let mut begun = false;
            let mut snapshot = None;
            for &slot in slots {
                if ranges.as_mut().is_some_and(|ranges| !ranges.concerns(&(*slot).tts_tid)) {
                    continue;
                }
                if !begun {
                    // Operator classes of BRIN have functions in SQL, which need one; at commit there is none.
                    snapshot = ranges.is_some().then(|| ActiveSnapshot::ensure());
                    index.begin();
                    begun = true;
                }
                let key = key.get_or_insert_with(Key::new);
                columns.read(slot, key);
                index.insert(relation, table, slot, key);
            }
            if begun {
                index.end(relation);
            }
            if let Some(snapshot) = snapshot {
                snapshot.end();
            }
            unguarded::relation_close(relation, pg_sys::NoLock as i32);
        }
    }
    None
}

impl Columns {
    /// `FormIndexDatum` for plain columns.
    unsafe fn read(&self, slot: *mut pg_sys::TupleTableSlot, key: &mut Key) {
        // SAFETY: the slot holds a tuple of the table, which has these columns.
        unsafe {
            if i32::from((*slot).tts_nvalid) < self.last {
                unguarded::slot_getsomeattrs_int(slot, self.last);
            }
            for ((number, value), null) in self.numbers.iter().zip(&mut key.values).zip(&mut key.nulls) {
                *value = *(*slot).tts_values.add(number - 1);
                *null = *(*slot).tts_isnull.add(number - 1);
            }
        }
    }
}

impl LeafIndex {
    pub(super) fn is_plain(&self) -> bool {
        self.columns.is_some()
    }

    /// # Safety
    /// To be called inside `guarded`; the index is open and locked, the slot holds the tuple that the key is of, and its tid.
    pub(super) unsafe fn insert(
        &self,
        relation: pg_sys::Relation,
        table: pg_sys::Relation,
        slot: *mut pg_sys::TupleTableSlot,
        key: &mut Key,
    ) {
        let (values, nulls) = (key.values.as_mut_ptr(), key.nulls.as_mut_ptr());
        // SAFETY: as above; the IndexInfo lives as long as the leaf.
        unsafe {
            let tid = &mut (*slot).tts_tid;
            unguarded::index_insert(relation, values, nulls, tid, table, self.check, false, self.info);
        }
    }

    /// From 17 on the cache of an access method such as BRIN lives for one batch, in memory of its own, which the end of
    /// the batch or an ERROR deletes: it holds buffer pins, and BRIN never frees all of it.
    ///
    /// # Safety
    /// To be called inside `guarded`.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    pub(super) unsafe fn begin(&self) {
        if matches!(self.method, Method::Btree) {
            return;
        }
        // SAFETY: the IndexInfo lives as long as the leaf; the context is a child of the current one.
        unsafe {
            (*self.info).ii_Context = unguarded::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"audit_ext index cache".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
        }
    }

    /// # Safety
    /// After `begin`.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    pub(super) unsafe fn end(&self, relation: pg_sys::Relation) {
        if matches!(self.method, Method::Btree) {
            return;
        }
        // SAFETY: as above; nothing points into the context once the cache is forgotten.
        unsafe {
            unguarded::index_insert_cleanup(relation, self.info);
            (*self.info).ii_AmCache = std::ptr::null_mut();
            unguarded::MemoryContextDelete((*self.info).ii_Context);
        }
    }

    /// Access methods of 15 and 16 keep what they need in the IndexInfo's own memory.
    ///
    /// # Safety
    /// None needed.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    pub(super) unsafe fn begin(&self) {}

    /// # Safety
    /// None needed.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    pub(super) unsafe fn end(&self, _relation: pg_sys::Relation) {}
}
