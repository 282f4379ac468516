//! SQL on the ledger's tables, which are read in bulk: rows come in batches, and the memory of a batch is given back
//! before the next. Callers act as the extension's owner, or as the session's user where rights decide, with
//! search_path pg_catalog.

use std::ffi::CString;

use pgrx::pg_sys;

use super::catalog::Row;
use super::heap;
use crate::error::Error;

/// An argument of a statement.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    Int4(i32),
    Int8(i64),
    Xid8(u64),
    TimestampTz(Option<i64>),
    Text(Option<&'a [u8]>),
    Bytea(&'a [u8]),
    Uuid(&'a [u8; 16]),
    ByteaArray(&'a [Vec<u8>]),
    Int8Array(&'a [i64]),
}

impl Arg<'_> {
    fn type_oid(&self) -> pg_sys::Oid {
        match self {
            Arg::Int4(_) => pg_sys::INT4OID,
            Arg::Int8(_) => pg_sys::INT8OID,
            Arg::Xid8(_) => pg_sys::XID8OID,
            Arg::TimestampTz(_) => pg_sys::TIMESTAMPTZOID,
            Arg::Text(_) => pg_sys::TEXTOID,
            Arg::Bytea(_) => pg_sys::BYTEAOID,
            Arg::Uuid(_) => pg_sys::UUIDOID,
            Arg::ByteaArray(_) => pg_sys::BYTEAARRAYOID,
            Arg::Int8Array(_) => pg_sys::INT8ARRAYOID,
        }
    }

    fn datum(&self) -> Option<pg_sys::Datum> {
        Some(match self {
            Arg::Int4(value) => pg_sys::Datum::from(*value),
            Arg::Int8(value) => pg_sys::Datum::from(*value),
            Arg::Xid8(value) => pg_sys::Datum::from(*value),
            Arg::TimestampTz(value) => pg_sys::Datum::from((*value)?),
            Arg::Text(value) => heap::varlena((*value)?),
            Arg::Bytea(value) => heap::varlena(value),
            Arg::Uuid(value) => pg_sys::Datum::from(value.as_ptr()),
            Arg::ByteaArray(values) => heap::bytea_array(values),
            Arg::Int8Array(values) => heap::int8_array(values),
        })
    }
}

struct Arguments {
    types: Vec<pg_sys::Oid>,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<std::ffi::c_char>,
}

impl Arguments {
    fn new(arguments: &[Arg]) -> Self {
        const NULL: std::ffi::c_char = b'n' as std::ffi::c_char;
        const NOT_NULL: std::ffi::c_char = b' ' as std::ffi::c_char;
        let datums: Vec<Option<pg_sys::Datum>> = arguments.iter().map(Arg::datum).collect();
        Arguments {
            types: arguments.iter().map(Arg::type_oid).collect(),
            nulls: datums.iter().map(|datum| if datum.is_some() { NOT_NULL } else { NULL }).collect(),
            values: datums.into_iter().map(|datum| datum.unwrap_or(pg_sys::Datum::from(0usize))).collect(),
        }
    }
}

/// A connection to SPI; closed when dropped, but not on the way out of an ERROR, when PostgreSQL does it.
struct Connection;

impl Connection {
    fn open() -> Result<Self, Error> {
        // SAFETY: a transaction is under way.
        let status = unsafe { pg_sys::SPI_connect() };
        if status == pg_sys::SPI_OK_CONNECT as i32 { Ok(Connection) } else { Err(Error::Internal("no SPI")) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `open`; connections are closed in the reverse order.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

fn c_text(sql: &str) -> Result<CString, Error> {
    CString::new(sql).map_err(|_| Error::Internal("statement with a zero byte"))
}

/// What a query sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// What is committed now: a snapshot of its own.
    Now,
    /// What the statement sees that called us, so that several queries fit together.
    AsCaller,
}

/// Runs a statement with a snapshot of its own; returns the number of rows.
pub fn run(sql: &str, arguments: &[Arg]) -> Result<u64, Error> {
    let mut arguments = Arguments::new(arguments);
    let sql = c_text(sql)?;
    let _connection = Connection::open()?;
    // SAFETY: the three arrays have the same length, and live until the call returns.
    unsafe {
        let status = pg_sys::SPI_execute_with_args(
            sql.as_ptr(),
            arguments.types.len() as i32,
            arguments.types.as_mut_ptr(),
            arguments.values.as_mut_ptr(),
            arguments.nulls.as_ptr(),
            false,
            0,
        );
        if status < 0 { Err(Error::Internal("a statement on the ledger failed")) } else { Ok(pg_sys::SPI_processed) }
    }
}

/// Calls `each` for every row of a query.
pub fn for_each(
    sees: Sees,
    sql: &str,
    arguments: &[Arg],
    mut each: impl FnMut(&Row) -> Result<(), Error>,
) -> Result<(), Error> {
    const BATCH: std::ffi::c_long = 1000;
    let mut arguments = Arguments::new(arguments);
    let sql = c_text(sql)?;
    let _connection = Connection::open()?;
    // SAFETY: as in `run`; the rows of a batch are read before it is freed, and `each` gets no hold of them.
    unsafe {
        let portal = pg_sys::SPI_cursor_open_with_args(
            std::ptr::null(),
            sql.as_ptr(),
            arguments.types.len() as i32,
            arguments.types.as_mut_ptr(),
            arguments.values.as_mut_ptr(),
            arguments.nulls.as_ptr(),
            sees == Sees::AsCaller,
            0,
        );
        let mut values = Vec::new();
        let mut nulls = Vec::new();
        let mut result = Ok(());
        while result.is_ok() {
            pg_sys::SPI_cursor_fetch(portal, true, BATCH);
            let (table, count) = (pg_sys::SPI_tuptable, pg_sys::SPI_processed);
            if count == 0 || table.is_null() {
                break;
            }
            let descriptor = (*table).tupdesc;
            let width = (*descriptor).natts as usize;
            values.resize(width, pg_sys::Datum::from(0usize));
            nulls.resize(width, true);
            // What the rows' values are copied to while they are read goes with the batch.
            let context = pg_sys::MemoryContextSwitchTo((*table).tuptabcxt);
            for i in 0..count as usize {
                let tuple = *(*table).vals.add(i);
                pg_sys::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
                result = each(&Row::new(&values, &nulls));
                if result.is_err() {
                    break;
                }
            }
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::SPI_freetuptable(table);
            pg_sys::check_for_interrupts!();
        }
        pg_sys::SPI_cursor_close(portal);
        result
    }
}

/// The first row of a query.
pub fn first<T>(sees: Sees, sql: &str, arguments: &[Arg], take: impl Fn(&Row) -> T) -> Result<Option<T>, Error> {
    let mut found = None;
    for_each(sees, sql, arguments, |row| {
        if found.is_none() {
            found = Some(take(row));
        }
        Ok(())
    })?;
    Ok(found)
}
