//! Inserting single rows into the extension's small tables (audit.relation, audit.ledger), without SQL and with no
//! rights of the current user.

use pgrx::pg_sys;

use super::catalog;
use super::definition::{Definition, check_columns};
use super::relation::Opened;
use crate::error::Error;

/// A column value of a row to insert.
pub enum Value<'a> {
    Null,
    Int4(i32),
    Int8(i64),
    Oid(pg_sys::Oid),
    Uuid(&'a [u8; 16]),
    /// text, jsonb (without its header) or another variable-length value.
    Varlena(&'a [u8]),
    TextArray(&'a [Vec<u8>]),
}

impl Value<'_> {
    fn datum(&self) -> Option<pg_sys::Datum> {
        Some(match self {
            Value::Null => return None,
            Value::Int4(value) => pg_sys::Datum::from(*value),
            Value::Int8(value) => pg_sys::Datum::from(*value),
            Value::Oid(value) => pg_sys::Datum::from(*value),
            Value::Uuid(value) => pg_sys::Datum::from(value.as_ptr()),
            Value::Varlena(payload) => varlena(payload),
            Value::TextArray(elements) => text_array(elements),
        })
    }
}

/// A variable-length value in the current memory context.
pub fn varlena(payload: &[u8]) -> pg_sys::Datum {
    const HEADER: usize = 4;
    // SAFETY: palloc either gives the memory or raises an ERROR; header and payload fill it.
    unsafe {
        let pointer = pg_sys::palloc(HEADER + payload.len()).cast::<pg_sys::varlena>();
        pgrx::set_varsize_4b(pointer, (HEADER + payload.len()) as i32);
        std::ptr::copy_nonoverlapping(payload.as_ptr(), pointer.cast::<u8>().add(HEADER), payload.len());
        pg_sys::Datum::from(pointer)
    }
}

/// A numeric's payload.
pub fn numeric_payload(value: u64) -> Result<Vec<u8>, Error> {
    let mut payload = Vec::new();
    audit_core::numeric::encode_decimal(value.to_string().as_bytes(), &mut payload)?;
    Ok(payload)
}

/// A text[] in the current memory context.
pub fn text_array(elements: &[Vec<u8>]) -> pg_sys::Datum {
    varlena_array(elements, pg_sys::TEXTOID)
}

/// A bytea[] in the current memory context.
pub fn bytea_array(elements: &[Vec<u8>]) -> pg_sys::Datum {
    varlena_array(elements, pg_sys::BYTEAOID)
}

fn varlena_array(elements: &[Vec<u8>], element_type: pg_sys::Oid) -> pg_sys::Datum {
    const VARIABLE: i32 = -1;
    const ALIGN_INT: std::ffi::c_char = b'i' as std::ffi::c_char;
    let mut values: Vec<pg_sys::Datum> = elements.iter().map(|element| varlena(element)).collect();
    // SAFETY: the datums are values of that type; the array is a copy of them.
    unsafe {
        pg_sys::Datum::from(pg_sys::construct_array(
            values.as_mut_ptr(),
            values.len() as i32,
            element_type,
            VARIABLE,
            false,
            ALIGN_INT,
        ))
    }
}

/// An int8[] in the current memory context.
pub fn int8_array(elements: &[i64]) -> pg_sys::Datum {
    const ALIGN_DOUBLE: std::ffi::c_char = b'd' as std::ffi::c_char;
    let mut values: Vec<pg_sys::Datum> = elements.iter().map(|element| pg_sys::Datum::from(*element)).collect();
    // SAFETY: as above; the values are passed by value.
    unsafe {
        pg_sys::Datum::from(pg_sys::construct_array(
            values.as_mut_ptr(),
            values.len() as i32,
            pg_sys::INT8OID,
            8,
            true,
            ALIGN_DOUBLE,
        ))
    }
}

/// The block that a tuple is in.
pub fn block_of(tid: &pg_sys::ItemPointerData) -> pg_sys::BlockNumber {
    u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo)
}

/// Inserts a row with its index entries, and returns where it is. The values match the definition in number and type.
pub fn insert(definition: &'static Definition, row: &[Value]) -> Result<pg_sys::ItemPointerData, Error> {
    let table = catalog::own_table(definition)?;
    let mut values: Vec<pg_sys::Datum> = Vec::with_capacity(row.len());
    let mut nulls: Vec<bool> = Vec::with_capacity(row.len());
    for value in row {
        let datum = value.datum();
        nulls.push(datum.is_none());
        values.push(datum.unwrap_or(pg_sys::Datum::from(0usize)));
    }
    let opened =
        Opened::with_lock(table, pg_sys::RowExclusiveLock).ok_or(Error::NoSuchTable { oid: table.to_u32() })?;
    let relation = opened.relation().0;
    // SAFETY: the table has the definition's columns, and the values too.
    unsafe {
        check_columns(definition, (*relation).rd_att)?;
        let tuple = pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CatalogTupleInsert(relation, tuple);
        Ok((*tuple).t_self)
    }
}

unsafe extern "C-unwind" {
    // commands/sequence.h; not in pgrx's bindings.
    fn nextval_internal(relid: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// The next value of a sequence of ours, whatever the current user may do with it.
pub fn next_value(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: the boundary turns an ERROR into a panic; nothing with a destructor lives inside it.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false)) }
}
