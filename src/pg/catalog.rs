//! Look-ups of this extension's own objects and rows, in the way the system catalogs are read: by index, with a snapshot
//! that sees what is committed and what this transaction wrote, and without SQL, so that a user's statement takes no
//! predicate locks and plans nothing on their account.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::definition::{Definition, check_columns};
use super::encode::Varlena;
use super::relation::Opened;
use crate::error::Error;

pub const SCHEMA: &CStr = c"audit";
pub const EXTENSION: &CStr = c"audit_ext";

/// Oid of a table or index in schema `audit`.
pub fn relation_oid(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog look-ups by C string.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return None;
        }
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Oid of a table anywhere.
pub fn table_oid(schema: &[u8], name: &[u8]) -> Option<pg_sys::Oid> {
    let (schema, name) = (super::relation::c_string(schema), super::relation::c_string(name));
    // SAFETY: catalog look-ups by C string.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Oid of a type in schema `audit`.
pub fn type_oid(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog look-ups by C string.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
            pg_sys::Anum_pg_type_oid as pg_sys::AttrNumber,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(schema),
            pg_sys::Datum::from(0usize),
            pg_sys::Datum::from(0usize),
        )
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Calls `each` with the labels of one of our enum types and their oids; not at all where there is no such type.
pub fn enum_labels(name: &CStr, mut each: impl FnMut(&[u8], pg_sys::Oid)) {
    let Some(enum_type) = type_oid(name) else { return };
    let none = pg_sys::Datum::from(0usize);
    // SAFETY: a catalog look-up by oid; the list has so many members, rows of pg_enum, and stays until it is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::ENUMTYPOIDNAME as i32;
        let list = pg_sys::SearchSysCacheList(cache, 1, pg_sys::Datum::from(enum_type), none, none);
        for member in (*list).members.as_slice((*list).n_members as usize) {
            let row = &*pg_sys::GETSTRUCT(&raw mut (**member).tuple).cast::<pg_sys::FormData_pg_enum>();
            each(CStr::from_ptr(row.enumlabel.data.as_ptr()).to_bytes(), row.oid);
        }
        pg_sys::ReleaseCatCacheList(list);
    }
}

/// The extension's version as CREATE or ALTER EXTENSION left it.
pub fn extension_version() -> Result<Option<Vec<u8>>, Error> {
    let mut version = None;
    extension_row(|row| version = row.bytes(pg_sys::Anum_pg_extension_extversion as usize))?;
    Ok(version)
}

/// The role that owns the extension.
pub fn extension_owner() -> Result<Option<pg_sys::Oid>, Error> {
    let mut owner = None;
    extension_row(|row| owner = row.oid(pg_sys::Anum_pg_extension_extowner as usize))?;
    Ok(owner)
}

fn extension_row(each: impl FnMut(&Row)) -> Result<(), Error> {
    // SAFETY: a catalog look-up by C string.
    let oid = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
    if oid == pg_sys::InvalidOid {
        return Ok(());
    }
    let source = Source {
        table: pg_sys::ExtensionRelationId,
        index: Some(pg_sys::ExtensionOidIndexId.into()),
        definition: None,
    };
    run_scan(source, Some((pg_sys::Anum_pg_extension_oid as i16, Key::Oid(oid))), each)
}

/// A database of this cluster.
pub struct DatabaseRow {
    pub oid: pg_sys::Oid,
    pub name: Vec<u8>,
    pub is_template: bool,
    pub allows_connections: bool,
}

/// All databases. Works without a database, too.
pub fn databases() -> Result<Vec<DatabaseRow>, Error> {
    let mut found = Vec::new();
    // SAFETY: the catalog is opened with a lock and closed. Not with `Opened`, which looks into a catalog that only a
    // database has.
    unsafe {
        let table = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        read_rows(table, None, std::ptr::null_mut(), None, |row| {
            let flag = |column: u32| row.boolean(column as usize).unwrap_or(false);
            found.extend(row.oid(pg_sys::Anum_pg_database_oid as usize).map(|oid| DatabaseRow {
                oid,
                name: row.name(pg_sys::Anum_pg_database_datname as usize).unwrap_or_default(),
                is_template: flag(pg_sys::Anum_pg_database_datistemplate),
                allows_connections: flag(pg_sys::Anum_pg_database_datallowconn),
            }));
        });
        pg_sys::table_close(table, pg_sys::AccessShareLock as i32);
    }
    Ok(found)
}

struct Source {
    table: pg_sys::Oid,
    index: Option<pg_sys::Oid>,
    /// A table of ours: has exactly these columns, and is read with this transaction's own rows.
    definition: Option<&'static Definition>,
}

/// Schema and name of a table, without a lock on it.
pub fn table_name(table: pg_sys::Oid) -> Option<(Vec<u8>, Vec<u8>)> {
    // SAFETY: catalog look-ups by oid; the name is a C string, null where there is no such table.
    unsafe {
        let name = pg_sys::get_rel_name(table);
        let schema = super::relation::namespace_name(pg_sys::get_rel_namespace(table));
        (!name.is_null()).then(|| (schema, CStr::from_ptr(name).to_bytes().to_vec()))
    }
}

/// Calls `each` for every row of a table of ours whose first column of `index` equals an oid or an integer.
///
/// `each` only copies; it must not call into PostgreSQL beyond detoasting.
pub fn scan(
    definition: &'static Definition,
    index: &CStr,
    column: i16,
    key: impl Into<Key<'static>>,
    each: impl FnMut(&Row),
) -> Result<(), Error> {
    let source = Source {
        table: own_table(definition)?,
        index: Some(relation_oid(index).ok_or_else(|| missing(definition))?),
        definition: Some(definition),
    };
    run_scan(source, Some((column, key.into())), each)
}

/// As [`scan`], for a text column with collation "C".
pub fn scan_text(
    definition: &'static Definition,
    index: &CStr,
    column: i16,
    key: &[u8],
    each: impl FnMut(&Row),
) -> Result<(), Error> {
    let source = Source {
        table: own_table(definition)?,
        index: Some(relation_oid(index).ok_or_else(|| missing(definition))?),
        definition: Some(definition),
    };
    run_scan(source, Some((column, Key::Text(key))), each)
}

/// What a scan looks for.
pub enum Key<'a> {
    Oid(pg_sys::Oid),
    Int4(i32),
    Text(&'a [u8]),
}

impl From<pg_sys::Oid> for Key<'_> {
    fn from(oid: pg_sys::Oid) -> Self {
        Key::Oid(oid)
    }
}

impl From<i32> for Key<'_> {
    fn from(value: i32) -> Self {
        Key::Int4(value)
    }
}

/// catalog/pg_inherits.h; not in pgrx's bindings.
mod inherits {
    use pgrx::pg_sys::Oid;

    pub const TABLE: Oid = Oid::from_u32(2611);
    pub const BY_CHILD: Oid = Oid::from_u32(2680);
    pub const CHILD: i16 = 1;
    pub const PARENT: usize = 2;
}

/// A table, and all that it is a partition or inheritance child of, the nearest first.
pub fn with_ancestors(table: pg_sys::Oid) -> Result<Vec<pg_sys::Oid>, Error> {
    let mut found = vec![table];
    let mut next = 0;
    while let Some(&child) = found.get(next) {
        next += 1;
        let source = Source { table: inherits::TABLE, index: Some(inherits::BY_CHILD), definition: None };
        run_scan(source, Some((inherits::CHILD, Key::Oid(child))), |row| {
            let parent = row.oid(inherits::PARENT);
            found.extend(parent.filter(|parent| !found.contains(parent)));
        })?;
    }
    Ok(found)
}

/// Calls `each` for every row of a small table of ours.
pub fn scan_all(definition: &'static Definition, each: impl FnMut(&Row)) -> Result<(), Error> {
    run_scan(Source { table: own_table(definition)?, index: None, definition: Some(definition) }, None, each)
}

/// Oid of a table of ours that must be there.
pub fn own_table(definition: &Definition) -> Result<pg_sys::Oid, Error> {
    relation_oid(definition.name).ok_or_else(|| missing(definition))
}

fn missing(definition: &Definition) -> Error {
    Error::LogMissing { table: definition.name.to_string_lossy().into_owned() }
}

/// A row while the scan stands on it. Columns count from 1.
pub struct Row<'a> {
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
}

impl<'a> Row<'a> {
    pub(super) fn new(values: &'a [pg_sys::Datum], nulls: &'a [bool]) -> Self {
        Row { values, nulls }
    }

    fn value(&self, column: usize) -> Option<pg_sys::Datum> {
        let is_null = self.nulls.get(column - 1).copied().unwrap_or(true);
        (!is_null).then(|| self.values[column - 1])
    }

    /// The payload of a text, bytea, jsonb or array column.
    pub fn bytes(&self, column: usize) -> Option<Vec<u8>> {
        self.value(column).map(|value| Varlena::of(value).bytes().to_vec())
    }

    /// The bytes of a name column.
    pub fn name(&self, column: usize) -> Option<Vec<u8>> {
        // SAFETY: a name is a C string in place.
        self.value(column).map(|value| unsafe { CStr::from_ptr(value.cast_mut_ptr()) }.to_bytes().to_vec())
    }

    pub fn int4(&self, column: usize) -> Option<i32> {
        self.value(column).map(|value| value.value() as i32)
    }

    /// A bigint, timestamptz, xid8 or pg_lsn column.
    pub fn int8(&self, column: usize) -> Option<i64> {
        self.value(column).map(|value| value.value() as i64)
    }

    pub fn uuid(&self, column: usize) -> Option<[u8; 16]> {
        // SAFETY: a uuid is passed by reference to its 16 bytes.
        self.value(column).map(|value| unsafe { *value.cast_mut_ptr::<[u8; 16]>() })
    }

    /// A bytea column of 32 bytes.
    pub fn hash(&self, column: usize) -> Option<[u8; 32]> {
        self.bytes(column)?.try_into().ok()
    }

    /// A text column as UTF-8.
    pub fn text(&self, column: usize) -> Option<String> {
        self.bytes(column).map(|bytes| String::from_utf8_lossy(&super::session::to_utf8(&bytes)).into_owned())
    }

    pub fn oid(&self, column: usize) -> Option<pg_sys::Oid> {
        self.value(column).map(|value| pg_sys::Oid::from(value.value() as u32))
    }

    pub fn float8(&self, column: usize) -> Option<f64> {
        self.value(column).map(|value| f64::from_bits(value.value() as u64))
    }

    pub fn boolean(&self, column: usize) -> Option<bool> {
        self.value(column).map(|value| value.value() as u8 != 0)
    }

    /// The elements of a text[] column, NULLs left out.
    pub fn texts(&self, column: usize) -> Vec<Vec<u8>> {
        self.value(column).map_or_else(Vec::new, text_array)
    }
}

fn text_array(value: pg_sys::Datum) -> Vec<Vec<u8>> {
    array_elements(value, pg_sys::TEXTOID).into_iter().map(|element| Varlena::of(element).bytes().to_vec()).collect()
}

/// The elements of an array of text or inet, NULLs left out.
pub(super) fn array_elements(value: pg_sys::Datum, element_type: pg_sys::Oid) -> Vec<pg_sys::Datum> {
    const VARIABLE: i32 = -1;
    const ALIGN_INT: std::ffi::c_char = b'i' as std::ffi::c_char;
    // SAFETY: the value is an array of that type, which is of variable length and int alignment; deconstruct_array
    // allocates what it returns in the current memory context.
    unsafe {
        let array = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(array, element_type, VARIABLE, false, ALIGN_INT, &mut values, &mut nulls, &mut count);
        (0..count as usize).filter(|&i| !*nulls.add(i)).map(|i| *values.add(i)).collect()
    }
}

fn run_scan(source: Source, key: Option<(i16, Key)>, each: impl FnMut(&Row)) -> Result<(), Error> {
    // SAFETY: the table is opened by oid with a lock and closed again; an ERROR in between closes it through the resource
    // owner.
    unsafe {
        let opened = Opened::with_lock(source.table, pg_sys::AccessShareLock)
            .ok_or(Error::NoSuchTable { oid: source.table.to_u32() })?;
        let table = opened.relation().0;
        if let Some(definition) = source.definition {
            check_columns(definition, (*table).rd_att)?;
        }
        // Of our own tables: what is committed, and what this transaction wrote, the current command included.
        let snapshot =
            if source.definition.is_some() { &raw mut pg_sys::SnapshotSelfData } else { std::ptr::null_mut() };
        read_rows(table, source.index, snapshot, key, each);
    }
    Ok(())
}

/// # Safety
/// The table is open.
unsafe fn read_rows(
    table: pg_sys::Relation,
    index: Option<pg_sys::Oid>,
    snapshot: pg_sys::Snapshot,
    key: Option<(i16, Key)>,
    mut each: impl FnMut(&Row),
) {
    const BTREE_EQUAL: u16 = 3;
    let mut scan_key = pg_sys::ScanKeyData::default();
    // SAFETY: the index is opened by oid with a lock, it and the scan are closed again; an ERROR in between closes them
    // through the resource owner. The key compares an oid (or regclass) column by oideq, an int column by int4eq, a text column
    // by texteq, with the collation "C" that ScanKeyInit sets.
    unsafe {
        let has_key = key.is_some();
        if let Some((column, key)) = key {
            let (function, value) = match key {
                Key::Oid(oid) => (pg_sys::F_OIDEQ, pg_sys::Datum::from(oid)),
                Key::Int4(value) => (pg_sys::F_INT4EQ, pg_sys::Datum::from(value)),
                Key::Text(text) => (pg_sys::F_TEXTEQ, super::heap::varlena(text)),
            };
            let function = pg_sys::Oid::from(function).to_u32().into();
            pg_sys::ScanKeyInit(&mut scan_key, column, BTREE_EQUAL, function, value);
        }
        let scan = pg_sys::systable_beginscan(
            table,
            index.unwrap_or(pg_sys::InvalidOid),
            index.is_some(),
            snapshot,
            i32::from(has_key),
            &mut scan_key,
        );
        let count = (*(*table).rd_att).natts as usize;
        let mut values = vec![pg_sys::Datum::from(0usize); count];
        let mut nulls = vec![true; count];
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::heap_deform_tuple(tuple, (*table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            each(&Row { values: &values, nulls: &nulls });
        }
        pg_sys::systable_endscan(scan);
    }
}

/// Oid of a function without arguments in schema `audit`.
pub fn function_oid(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog look-ups by C string; the argument vector is empty.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
        let no_arguments = pg_sys::buildoidvector(std::ptr::null(), 0);
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as pg_sys::AttrNumber,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(no_arguments),
            pg_sys::Datum::from(schema),
            pg_sys::Datum::from(0usize),
        )
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}
