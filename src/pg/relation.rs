//! Reads what there is to know of a table from its relcache entry.

use std::ffi::CStr;

use audit_core::jsonb::Writer;
use pgrx::pg_sys;

use super::attempt::SqlState;
use super::catalog;
use super::compare::Shape;
use super::condition::{Condition, Rows};
use super::encode::Encoder;
use super::env::{self, Env};
use super::generated::VirtualColumns;
use super::unguarded;

/// A table as it is now.
pub struct Description {
    pub oid: pg_sys::Oid,
    pub schema: Vec<u8>,
    pub table: Vec<u8>,
    /// Qualified, quoted name.
    pub resource: Vec<u8>,
    /// Of a partition: schema and name of the partitioned table at the top.
    pub root: Option<(Vec<u8>, Vec<u8>)>,
    /// Without dropped columns, in attnum order.
    pub columns: Vec<ColumnDescription>,
    /// Attribute indexes of the primary key, else of the replica identity index.
    pub key: Vec<usize>,
    /// The row trigger that records; others on the same function stand by.
    pub row_trigger: Option<pg_sys::Oid>,
    /// The TRUNCATE trigger that records.
    pub truncate_trigger: Option<pg_sys::Oid>,
    /// Whether tuples carry command ids: not those of foreign tables or other access methods.
    pub is_heap: bool,
}

pub struct ColumnDescription {
    /// Position in the tuple, from 0.
    pub index: usize,
    pub name: Vec<u8>,
    pub type_id: pg_sys::Oid,
    pub type_name: Vec<u8>,
    pub shape: Shape,
    /// What rows written before the column was added have in it, as JSONB; `None` where that is null.
    pub missing: Option<Vec<u8>>,
}

/// An open relation. Whoever opened it closes it: the executor for a trigger's, [`Opened`] for ours.
#[derive(Clone, Copy)]
pub struct Relation(pub(super) pg_sys::Relation);

/// A relation that we opened; closed when dropped, with the lock kept to the end of the transaction.
pub struct Opened(Relation);

impl Opened {
    /// `None` where there is no such relation.
    pub fn with_lock(oid: pg_sys::Oid, lock: u32) -> Option<Self> {
        // SAFETY: any oid is allowed; the result is null where there is none.
        let relation = unsafe { pg_sys::try_relation_open(oid, lock as i32) };
        (!relation.is_null()).then(|| Opened(Relation(relation)))
    }

    /// As `with_lock`, without asking the catalog first whether a relation that is not known yet exists.
    pub fn known(oid: pg_sys::Oid, lock: u32) -> Option<Self> {
        // SAFETY: any oid is allowed; the result is null where there is no such relation.
        let relation = unsafe {
            pg_sys::LockRelationOid(oid, lock as i32);
            pg_sys::RelationIdGetRelation(oid)
        };
        (!relation.is_null()).then(|| Opened(Relation(relation)))
    }

    pub fn relation(&self) -> Relation {
        self.0
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // After an ERROR the resource owner closes it.
        if !std::thread::panicking() {
            // SAFETY: opened by `with_lock`, not closed since.
            unsafe { pg_sys::relation_close(self.0.0, pg_sys::NoLock as i32) };
        }
    }
}

impl Relation {
    pub fn oid(self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*self.0).rd_id }
    }

    pub fn kind(self) -> u8 {
        // SAFETY: the relation is open.
        unsafe { (*(*self.0).rd_rel).relkind as u8 }
    }

    pub fn is_temporary(self) -> bool {
        // SAFETY: the relation is open.
        unsafe { (*(*self.0).rd_rel).relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP }
    }

    pub fn namespace(self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*(*self.0).rd_rel).relnamespace }
    }

    /// Whether it has rows of its own that a scan can read.
    pub fn has_storage(self) -> bool {
        self.kind() == pg_sys::RELKIND_RELATION
    }

    /// Made by initdb: a catalog or a table of information_schema.
    pub fn is_system(self) -> bool {
        self.oid().to_u32() < pg_sys::FirstNormalObjectId
    }

    pub fn is_partition(self) -> bool {
        // SAFETY: the relation is open.
        unsafe { (*(*self.0).rd_rel).relispartition }
    }

    /// `schema.table`, quoted where needed.
    pub fn resource(self) -> Vec<u8> {
        qualified_name(self.namespace(), &self.name())
    }

    pub fn name(self) -> Vec<u8> {
        // SAFETY: the relation is open.
        unsafe { name_bytes(&(*(*self.0).rd_rel).relname) }
    }

    pub fn column_names(self) -> Vec<Vec<u8>> {
        // SAFETY: the relation is open.
        unsafe { attributes((*self.0).rd_att).map(|(_, attribute)| name_bytes(&attribute.attname)).collect() }
    }

    /// Type of a column that is stored, not computed when read.
    pub fn stored_type(self, name: &[u8]) -> Option<pg_sys::Oid> {
        const VIRTUAL: u8 = b'v';
        // SAFETY: the relation is open.
        let mut attributes = unsafe { attributes((*self.0).rd_att) };
        let (_, found) = attributes.find(|(_, attribute)| name_bytes(&attribute.attname) == name)?;
        (found.attgenerated as u8 != VIRTUAL).then_some(found.atttypid)
    }

    /// Everything that a layout is made of. `capture` is the trigger function.
    pub fn describe(self, capture: pg_sys::Oid) -> Description {
        let _env = env::enter(Env::Settings);
        // SAFETY: the relation is open; the descriptor is read while it is.
        let columns = unsafe {
            attributes((*self.0).rd_att)
                .map(|(index, attribute)| ColumnDescription {
                    index,
                    name: name_bytes(&attribute.attname),
                    type_id: attribute.atttypid,
                    type_name: CStr::from_ptr(pg_sys::format_type_with_typemod(
                        attribute.atttypid,
                        attribute.atttypmod,
                    ))
                    .to_bytes()
                    .to_vec(),
                    shape: Shape { length: attribute.attlen, by_value: attribute.attbyval },
                    missing: missing_value((*self.0).rd_att, attribute),
                })
                .collect()
        };
        Description {
            oid: self.oid(),
            schema: namespace_name(self.namespace()),
            table: self.name(),
            resource: self.resource(),
            root: self.root(),
            columns,
            key: self.key(),
            row_trigger: self.recording_trigger(capture, is_row),
            truncate_trigger: self.recording_trigger(capture, is_truncate),
            is_heap: self.is_heap(),
        }
    }

    fn is_heap(self) -> bool {
        // SAFETY: the relation is open.
        unsafe { (*(*self.0).rd_rel).relam == pg_sys::HEAP_TABLE_AM_OID }
    }

    fn root(self) -> Option<(Vec<u8>, Vec<u8>)> {
        if !self.is_partition() {
            return None;
        }
        let root = *partition_ancestors(self.oid()).last()?;
        let opened = Opened::with_lock(root, pg_sys::AccessShareLock)?;
        Some((namespace_name(opened.relation().namespace()), opened.relation().name()))
    }

    /// Attribute indexes of the key in key order.
    fn key(self) -> Vec<usize> {
        let mut identity = Vec::new();
        for oid in self.index_oids() {
            // SAFETY: the syscache entry stays pinned while it is read; indkey holds indnatts numbers.
            unsafe {
                let tuple =
                    pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::INDEXRELID as i32, pg_sys::Datum::from(oid));
                if tuple.is_null() {
                    continue;
                }
                let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_index>();
                let columns: Vec<usize> = (*form)
                    .indkey
                    .values
                    .as_slice((*form).indnkeyatts as usize)
                    .iter()
                    .filter(|&&number| number > 0)
                    .map(|&number| number as usize - 1)
                    .collect();
                let (primary, replica) = ((*form).indisprimary, (*form).indisreplident);
                pg_sys::ReleaseSysCache(tuple);
                if primary {
                    return columns;
                }
                if replica {
                    identity = columns;
                }
            }
        }
        identity
    }

    pub fn index_oids(self) -> Vec<pg_sys::Oid> {
        // SAFETY: the relation is open.
        unsafe { index_oids(self.0) }
    }

    /// Whether the table has a clone of its parent's row trigger that fires for every change.
    pub fn has_cloned_row_trigger(self, capture: pg_sys::Oid) -> bool {
        self.triggers()
            .iter()
            .any(|trigger| trigger.tgisclone && trigger.tgfoid == capture && is_row(trigger) && is_complete(trigger))
    }

    /// Whether every change of the table is captured: its triggers are there, and fire always. PostgreSQL has no TRUNCATE
    /// triggers on foreign tables.
    pub fn is_captured(self, capture: pg_sys::Oid) -> bool {
        let has = |is_of_kind: fn(&pg_sys::Trigger) -> bool| {
            self.triggers()
                .iter()
                .any(|trigger| trigger.tgfoid == capture && is_of_kind(trigger) && is_complete(trigger))
        };
        has(is_row) && (self.kind() == pg_sys::RELKIND_FOREIGN_TABLE || has(is_truncate))
    }

    /// A partition attached while audited by itself has two: the clone of its parent's trigger records. One that was
    /// disabled and enabled again otherwise than ALWAYS still records where there is no better.
    fn recording_trigger(
        self,
        capture: pg_sys::Oid,
        is_of_kind: impl Fn(&pg_sys::Trigger) -> bool,
    ) -> Option<pg_sys::Oid> {
        self.triggers()
            .iter()
            .filter(|trigger| trigger.tgfoid == capture && is_of_kind(trigger))
            .max_by_key(|trigger| (is_complete(trigger), trigger.tgisclone, std::cmp::Reverse(trigger.tgoid.to_u32())))
            .map(|trigger| trigger.tgoid)
    }

    /// Whether the trigger of that name is one on `function`.
    pub fn has_trigger_on(self, function: pg_sys::Oid, name: &[u8]) -> bool {
        // SAFETY: a trigger's name is a C string.
        let is_meant = |trigger: &pg_sys::Trigger| unsafe { CStr::from_ptr(trigger.tgname) }.to_bytes() == name;
        self.triggers().iter().any(|trigger| trigger.tgfoid == function && is_meant(trigger))
    }

    /// Each trigger on `function`, clones left out.
    pub fn own_triggers(self, function: pg_sys::Oid) -> Vec<pg_sys::Oid> {
        self.own_triggers_with(function, |trigger| Some(trigger.tgoid))
    }

    pub(super) fn own_triggers_with<T>(
        self,
        function: pg_sys::Oid,
        take: impl Fn(&pg_sys::Trigger) -> Option<T>,
    ) -> Vec<T> {
        self.triggers()
            .iter()
            .filter(|trigger| trigger.tgfoid == function && !trigger.tgisclone)
            .filter_map(take)
            .collect()
    }

    fn triggers(&self) -> &[pg_sys::Trigger] {
        // SAFETY: the relation is open, so its trigger descriptor stays; null means none.
        unsafe {
            let descriptor = (*self.0).trigdesc;
            if descriptor.is_null() {
                return &[];
            }
            std::slice::from_raw_parts((*descriptor).triggers, (*descriptor).numtriggers as usize)
        }
    }

    /// Calls `each` with every row that is there now, also those committed after this statement's snapshot: for the
    /// tables without foreign storage.
    pub fn for_each_row<E>(self, mut each: impl FnMut(Row) -> Result<(), E>) -> Result<(), E> {
        // SAFETY: the relation is open and locked against writers by the caller; slot, scan, snapshot and memory context
        // are released here, or by the transaction after an ERROR.
        unsafe {
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let slot = pg_sys::table_slot_create(self.0, std::ptr::null_mut());
            let scan = pg_sys::table_beginscan(self.0, snapshot, 0, std::ptr::null_mut());
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"audit_ext snapshot row".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let mut result = Ok(());
            while result.is_ok()
                && pg_sys::table_scan_getnextslot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot)
            {
                pg_sys::check_for_interrupts!();
                let outer = pg_sys::MemoryContextSwitchTo(context);
                result = each(Row::of(slot));
                pg_sys::MemoryContextSwitchTo(outer);
                pg_sys::MemoryContextReset(context);
            }
            pg_sys::table_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::UnregisterSnapshot(snapshot);
            pg_sys::MemoryContextDelete(context);
            result
        }
    }
}

fn is_row(trigger: &pg_sys::Trigger) -> bool {
    trigger.tgtype as u32 & pg_sys::TRIGGER_TYPE_ROW != 0
}

fn is_truncate(trigger: &pg_sys::Trigger) -> bool {
    trigger.tgtype as u32 & pg_sys::TRIGGER_TYPE_TRUNCATE != 0
}

/// Fires for every change, whatever session_replication_role: ALWAYS, all three operations, no WHEN, no column list.
pub(super) fn is_complete(trigger: &pg_sys::Trigger) -> bool {
    const CHANGES: u32 = pg_sys::TRIGGER_TYPE_INSERT | pg_sys::TRIGGER_TYPE_UPDATE | pg_sys::TRIGGER_TYPE_DELETE;
    let events = trigger.tgtype as u32;
    (events & CHANGES == CHANGES || events & pg_sys::TRIGGER_TYPE_TRUNCATE != 0)
        && trigger.tgenabled as u8 == pg_sys::TRIGGER_FIRES_ALWAYS
        && trigger.tgqual.is_null()
        && trigger.tgnattr == 0
}

/// A row's values, taken apart once.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub values: &'a [pg_sys::Datum],
    pub nulls: &'a [bool],
    /// Where they come from.
    pub(super) slot: *mut pg_sys::TupleTableSlot,
}

impl<'a> Row<'a> {
    /// All columns of the slot's tuple.
    ///
    /// # Safety
    /// The slot holds a tuple, and neither it nor the slot changes while the row is used.
    pub(super) unsafe fn of(slot: *mut pg_sys::TupleTableSlot) -> Row<'a> {
        // SAFETY: the caller's word; after slot_getallattrs both arrays hold as many entries as the descriptor.
        unsafe {
            let count = (*(*slot).tts_tupleDescriptor).natts;
            if i32::from((*slot).tts_nvalid) < count {
                // Fails for no slot that holds a tuple: it reads the tuple's bytes.
                unguarded::slot_getsomeattrs_int(slot, count);
            }
            Row {
                values: std::slice::from_raw_parts((*slot).tts_values, count as usize),
                nulls: std::slice::from_raw_parts((*slot).tts_isnull, count as usize),
                slot,
            }
        }
    }
}

/// Attributes that are not dropped, with their positions.
///
/// # Safety
/// The descriptor must stay while the iterator is used.
pub(super) unsafe fn attributes<'a>(
    descriptor: pg_sys::TupleDesc,
) -> impl Iterator<Item = (usize, &'a pg_sys::FormData_pg_attribute)> {
    // SAFETY: the caller's word; each index is below natts.
    let count = unsafe { (*descriptor).natts as usize };
    (0..count)
        .map(move |index| (index, unsafe { &*attribute_at(descriptor, index) }))
        .filter(|(_, attribute)| !attribute.attisdropped)
}

unsafe fn attribute_at(descriptor: pg_sys::TupleDesc, index: usize) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: the caller keeps the index below natts.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        (*descriptor).attrs.as_slice((*descriptor).natts as usize).as_ptr().add(index)
    }
    // SAFETY: as above; 18 keeps the full attributes behind the compact ones (TupleDescAttr).
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::TupleDescAttr(descriptor, index as i32)
    }
}

pub(super) fn name_bytes(name: &pg_sys::NameData) -> Vec<u8> {
    name.data.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect()
}

/// # Safety
/// The relation must be open.
pub(super) unsafe fn index_oids(relation: pg_sys::Relation) -> Vec<pg_sys::Oid> {
    // SAFETY: RelationGetIndexList returns a copy of the list.
    unsafe {
        let list = pg_sys::RelationGetIndexList(relation);
        let oids = oid_list(list);
        pg_sys::list_free(list);
        oids
    }
}

unsafe fn oid_list(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller passes a list of oids.
    unsafe { (0..(*list).length as usize).map(|i| (*(*list).elements.add(i)).oid_value).collect() }
}

unsafe extern "C-unwind" {
    // catalog/partition.h, catalog/pg_inherits.h; not in pgrx's bindings.
    fn get_partition_ancestors(relid: pg_sys::Oid) -> *mut pg_sys::List;
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lockmode: pg_sys::LOCKMODE,
        numparents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

/// The partitioned tables above a partition, from its parent to the root.
pub fn partition_ancestors(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: the boundary turns an ERROR into a panic; nothing with a destructor lives inside it.
    unsafe { oid_list(pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(oid))) }
}

/// The table itself, its partitions and inheritance children at any depth, each locked; with `NoLock`, some may be gone.
pub fn with_descendants(oid: pg_sys::Oid, lock: u32) -> Vec<pg_sys::Oid> {
    // SAFETY: as above.
    unsafe {
        oid_list(pg_sys::ffi::pg_guard_ffi_boundary(|| {
            find_all_inheritors(oid, lock as pg_sys::LOCKMODE, std::ptr::null_mut())
        }))
    }
}

/// Whether this transaction holds that lock on a table, or a stronger one.
pub fn is_locked_by_us(oid: pg_sys::Oid, lock: u32) -> bool {
    // SAFETY: looks into this backend's own table of locks; any oid is allowed.
    unsafe { pg_sys::CheckRelationOidLockedByMe(oid, lock as pg_sys::LOCKMODE, true) }
}

/// The value of a column in rows that were written before it was added, as their images have it.
unsafe fn missing_value(descriptor: pg_sys::TupleDesc, attribute: &pg_sys::FormData_pg_attribute) -> Option<Vec<u8>> {
    if !attribute.atthasmissing {
        return None;
    }
    let mut is_null = false;
    // SAFETY: the caller has the relation open; the descriptor has such a value of a column that says so. The context is
    // that of the call, as is the encoder.
    let (value, encoder) = unsafe {
        let value = pg_sys::getmissingattr(descriptor, i32::from(attribute.attnum), &mut is_null);
        (value, Encoder::for_type(attribute.atttypid, pg_sys::CurrentMemoryContext).0)
    };
    let mut json = Writer::new();
    (!is_null && encoder.write(value, &mut json).is_ok()).then(|| json.jsonb().to_vec())
}

/// `schema.name`, each quoted where needed.
fn qualified_name(namespace: pg_sys::Oid, name: &[u8]) -> Vec<u8> {
    let schema = c_string(&namespace_name(namespace));
    let name = c_string(name);
    // SAFETY: both are C strings; the result is one in the current memory context.
    unsafe { CStr::from_ptr(pg_sys::quote_qualified_identifier(schema.as_ptr(), name.as_ptr())).to_bytes().to_vec() }
}

pub fn namespace_name(namespace: pg_sys::Oid) -> Vec<u8> {
    // SAFETY: a catalog look-up; null where there is no such schema.
    unsafe {
        let name = pg_sys::get_namespace_name(namespace);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}

/// Bytes without a NUL, as a C string.
pub fn c_string(bytes: &[u8]) -> std::ffi::CString {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    std::ffi::CString::new(&bytes[..end]).unwrap_or_default()
}

/// Memory for what a layout looks up; freed with it.
pub struct LayoutMemory(pg_sys::MemoryContext);

impl LayoutMemory {
    pub fn new() -> Self {
        // SAFETY: the parent context lives as long as the process.
        LayoutMemory(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CacheMemoryContext,
                c"audit_ext layout".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            )
        })
    }

    pub fn encoder(&self, type_id: pg_sys::Oid) -> (Encoder, Env) {
        Encoder::for_type(type_id, self.0)
    }

    /// A condition on rows of the table, prepared; or how that fails.
    pub fn condition(&self, relation: Relation, text: &[u8], rows: Rows) -> Result<Condition, SqlState> {
        match Condition::prepare(relation, text, rows, self.0) {
            Ok(Ok(condition)) => Ok(condition),
            Ok(Err(_)) => Err(SqlState::INVALID_DEFINITION),
            Err(failure) => Err(failure.sqlstate()),
        }
    }

    pub fn virtual_columns(&self, relation: Relation) -> VirtualColumns {
        VirtualColumns::of(relation, self.0)
    }
}

impl Drop for LayoutMemory {
    fn drop(&mut self) {
        // SAFETY: the context is this layout's own; encoders that point into it go with the layout.
        unsafe { pg_sys::MemoryContextDelete(self.0) };
    }
}

/// The type beneath a domain, else the type itself.
pub fn base_type(type_id: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: a catalog look-up.
    unsafe { pg_sys::getBaseType(type_id) }
}

/// The trigger function's oid.
pub fn capture_function() -> Option<pg_sys::Oid> {
    catalog::function_oid(c"capture")
}
