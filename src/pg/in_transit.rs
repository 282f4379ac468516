//! The table audit.in_transit: a row for each transaction whose events are on their way to the worker. Written and removed
//! past SQL, by place: a row lives for milliseconds, and an index would cost more than the row.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::catalog::{self, Row as StoredRow};
use super::definition::check_columns;
use super::heap::{self, Value};
use super::relation::Opened;
use crate::error::Error;
use crate::store::IN_TRANSIT;

pub const TABLE: &CStr = IN_TRANSIT.name;

/// Columns, counted from 1 as in sql/40_queue.sql.
mod column {
    pub const INCARNATION: usize = 1;
    pub const NUMBER: usize = 2;
    pub const QUEUED_AT: usize = 3;
    pub const EVENTS: usize = 4;
    pub const TABLES: usize = 5;
}

/// What is kept of a transaction.
pub struct Row {
    pub queued_at: i64,
    pub events: i32,
    pub tables: Vec<Vec<u8>>,
}

/// Where a row is, unless the table was rewritten since.
#[derive(Clone, Copy, Default)]
pub struct Place {
    pub block: u32,
    pub offset: u16,
}

/// Oid of the table.
pub fn table() -> Result<pg_sys::Oid, Error> {
    catalog::own_table(&IN_TRANSIT)
}

/// Locks a table against being dropped until the transaction ends; false where it was.
pub fn lock(table: pg_sys::Oid) -> bool {
    Opened::with_lock(table, pg_sys::RowExclusiveLock).is_some()
}

pub fn insert(incarnation: i64, number: u64, row: &Row) -> Result<Place, Error> {
    let place = heap::insert(
        &IN_TRANSIT,
        &[
            Value::Int8(incarnation),
            Value::Int8(number as i64),
            Value::Int8(row.queued_at),
            Value::Int4(row.events),
            Value::TextArray(&row.tables),
        ],
    )?;
    Ok(Place { block: heap::block_of(&place), offset: place.ip_posid })
}

/// Removes a row.
pub fn remove(place: Place, number: u64) -> Result<(), Error> {
    let opened = open()?;
    let table = opened.relation().0;
    let mut tid = item_pointer(place);
    // SAFETY: the table is open; the tuple is read while its page is pinned.
    let is_there = unsafe {
        let blocks = pg_sys::RelationGetNumberOfBlocksInFork(table, pg_sys::ForkNumber::MAIN_FORKNUM);
        let mut tuple = pg_sys::HeapTupleData { t_self: tid, ..Default::default() };
        let mut buffer = 0;
        place.block < blocks
            && pg_sys::heap_fetch(table, &raw mut pg_sys::SnapshotSelfData, &mut tuple, &mut buffer, false)
            && {
                let is_it = with_row(table, &mut tuple, |row| row.int8(column::NUMBER) == Some(number as i64));
                pg_sys::ReleaseBuffer(buffer);
                is_it
            }
    };
    if is_there {
        // SAFETY: the tuple is there, and nobody else removes it.
        unsafe { pg_sys::simple_heap_delete(table, &mut tid) };
        return Ok(());
    }
    // VACUUM FULL or CLUSTER moved it.
    remove_where(&opened, |row| row.int8(column::NUMBER) == Some(number as i64));
    Ok(())
}

/// Removes the rows of earlier incarnations, and returns them.
pub fn take_others(incarnation: i64) -> Result<Vec<Row>, Error> {
    let mut taken = Vec::new();
    remove_where(&open()?, |row| {
        let is_other = row.int8(column::INCARNATION) != Some(incarnation);
        if is_other {
            taken.push(Row {
                queued_at: row.int8(column::QUEUED_AT).unwrap_or_default(),
                events: row.int4(column::EVENTS).unwrap_or_default(),
                tables: row.texts(column::TABLES),
            });
        }
        is_other
    });
    Ok(taken)
}

fn open() -> Result<Opened, Error> {
    let oid = table()?;
    let opened = Opened::with_lock(oid, pg_sys::RowExclusiveLock).ok_or(Error::NoSuchTable { oid: oid.to_u32() })?;
    // SAFETY: the table is open.
    unsafe { check_columns(&IN_TRANSIT, (*opened.relation().0).rd_att)? };
    Ok(opened)
}

fn item_pointer(place: Place) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData { bi_hi: (place.block >> 16) as u16, bi_lo: place.block as u16 },
        ip_posid: place.offset,
    }
}

/// # Safety
/// The tuple is one of the table's, which has the columns of the definition.
unsafe fn with_row<T>(table: pg_sys::Relation, tuple: pg_sys::HeapTuple, body: impl FnOnce(&StoredRow) -> T) -> T {
    let mut values = [pg_sys::Datum::from(0usize); IN_TRANSIT.columns.len()];
    let mut nulls = [true; IN_TRANSIT.columns.len()];
    // SAFETY: there is room for each column.
    unsafe { pg_sys::heap_deform_tuple(tuple, (*table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr()) };
    body(&StoredRow::new(&values, &nulls))
}

fn remove_where(opened: &Opened, mut is_meant: impl FnMut(&StoredRow) -> bool) {
    let table = opened.relation().0;
    // SAFETY: the table is open and has the definition's columns; the scan is closed again, by the resource owner where an
    // ERROR comes between.
    unsafe {
        let scan = pg_sys::systable_beginscan(
            table,
            pg_sys::InvalidOid,
            false,
            &raw mut pg_sys::SnapshotSelfData,
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            if with_row(table, tuple, &mut is_meant) {
                pg_sys::simple_heap_delete(table, &mut (*tuple).t_self);
            }
        }
        pg_sys::systable_endscan(scan);
    }
}
