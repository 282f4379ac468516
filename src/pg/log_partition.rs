//! Which partition of the log a record goes to, and whether it is what the writer takes it for.

use pgrx::pg_sys;

use super::definition::{Definition, check_columns};
use super::relation::name_bytes;
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
