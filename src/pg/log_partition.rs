//! Which partition of the log a record goes to, and whether it is what the writer takes it for.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::catalog;
use super::definition::{Definition, check_columns};
use super::relation::{Opened, Relation, name_bytes};
use crate::error::Error;

/// The partition that holds `occurred_at`, and the range for which that answer is good.
pub(super) fn route(
    definition: &Definition,
    parent: pg_sys::Oid,
    occurred_at: i64,
) -> Result<(pg_sys::Oid, (i64, i64)), Error> {
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
    // SAFETY: the caller has the parent open; bounds and indexes have the lengths that the descriptor says.
    unsafe {
        if (*descriptor).nparts == 0 {
            return None;
        }
        let bounds = (*descriptor).boundinfo;
        let count = (*bounds).ndatums as usize;
        let above = (0..count).find(|&i| range_below(bounds, i).1 > occurred_at).unwrap_or(count);
        let range = range_below(bounds, above);
        let mut partition = *(*bounds).indexes.add(above);
        if partition < 0 {
            partition = (*bounds).default_index;
        }
        (partition >= 0).then(|| (*(*descriptor).oids.add(partition as usize), range))
    }
}

/// The range that ends at a bound, the first of which has number 0.
unsafe fn range_below(bounds: pg_sys::PartitionBoundInfo, number: usize) -> (i64, i64) {
    use pg_sys::PartitionRangeDatumKind::{PARTITION_RANGE_DATUM_MAXVALUE, PARTITION_RANGE_DATUM_MINVALUE};
    // SAFETY: the caller has the parent open, and the number is at most that of the bounds.
    unsafe {
        let bound = |i: usize| match *(*(*bounds).kind.add(i)) {
            PARTITION_RANGE_DATUM_MINVALUE => i64::MIN,
            PARTITION_RANGE_DATUM_MAXVALUE => i64::MAX,
            _ => (*(*(*bounds).datums.add(i))).value() as i64,
        };
        (
            if number == 0 { i64::MIN } else { bound(number - 1) },
            if number == (*bounds).ndatums as usize { i64::MAX } else { bound(number) },
        )
    }
}

/// Whether the partition is what the writer takes it for.
pub(super) unsafe fn check(definition: &Definition, relation: pg_sys::Relation) -> Result<(), Error> {
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

/// A partition of the log as a reader sees it.
pub struct Listed {
    pub oid: pg_sys::Oid,
    /// From (inclusive), to (exclusive), in PostgreSQL's microseconds; `None` of the default partition.
    pub range: Option<(i64, i64)>,
    pub pages: u32,
    /// Whether a btree index begins with the column asked for.
    pub is_indexed: bool,
}

/// The partitions that can hold rows of a time (from, inclusive; to, exclusive), the default partition first, the others
/// from the oldest to the newest.
pub fn list(definition: &'static Definition, key_column: &CStr, time: (i64, i64)) -> Result<Vec<Listed>, Error> {
    let missing = || Error::LogMissing { table: definition.name.to_string_lossy().into_owned() };
    let parent = catalog::relation_oid(definition.name).ok_or_else(missing)?;
    let opened = Opened::with_lock(parent, pg_sys::AccessShareLock).ok_or_else(missing)?;
    if opened.relation().kind() != pg_sys::RELKIND_PARTITIONED_TABLE {
        let detail = "It is not a partitioned table.".into();
        return Err(Error::LogAltered { table: definition.name.to_string_lossy().into_owned(), detail });
    }
    // SAFETY: the parent stays open; partitions are opened with a lock and closed.
    unsafe {
        let ranges = ranges(pg_sys::RelationGetPartitionDesc(opened.relation().0, true));
        let wanted =
            ranges.into_iter().filter(|(_, range)| range.is_none_or(|(from, to)| from < time.1 && to > time.0));
        Ok(wanted
            .filter_map(|(oid, range)| {
                let partition = Opened::with_lock(oid, pg_sys::AccessShareLock)?;
                let relation = partition.relation();
                let pages = if relation.has_storage() {
                    pg_sys::RelationGetNumberOfBlocksInFork(relation.0, pg_sys::ForkNumber::MAIN_FORKNUM)
                } else {
                    0
                };
                Some(Listed { oid, range, pages, is_indexed: has_btree_on(relation, key_column) })
            })
            .collect())
    }
}

/// The partitions with the range of each, the default partition first.
unsafe fn ranges(descriptor: pg_sys::PartitionDesc) -> Vec<(pg_sys::Oid, Option<(i64, i64)>)> {
    // SAFETY: as in `partition_for`.
    unsafe {
        if (*descriptor).nparts == 0 {
            return Vec::new();
        }
        let bounds = (*descriptor).boundinfo;
        let partition = |index: i32| (index >= 0).then(|| *(*descriptor).oids.add(index as usize));
        let mut found: Vec<_> = partition((*bounds).default_index).map(|oid| (oid, None)).into_iter().collect();
        for above in 0..=(*bounds).ndatums as usize {
            if let Some(oid) = partition(*(*bounds).indexes.add(above)) {
                found.push((oid, Some(range_below(bounds, above))));
            }
        }
        found
    }
}

unsafe fn has_btree_on(relation: Relation, column: &CStr) -> bool {
    // SAFETY: the relation is open; each index is opened with a lock and closed.
    unsafe {
        let number = pg_sys::get_attnum(relation.oid(), column.as_ptr());
        relation.index_oids().into_iter().filter_map(|oid| Opened::with_lock(oid, pg_sys::AccessShareLock)).any(
            |index| {
                let index = index.relation().0;
                let form = (*index).rd_index;
                (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                    && (*form).indisvalid
                    && (*form).indkey.values.as_slice(1)[0] == number
            },
        )
    }
}
