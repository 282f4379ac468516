//! PostgreSQL's functions on the path of each row, declared without pgrx's guard, which for most of them costs more than
//! they do.
//!
//! An ERROR raised in one of them jumps to the nearest guard, over the frames between: so they are called either where
//! they cannot fail, or inside [`guarded`], or from a hook that PostgreSQL itself called; and in each of these places
//! nothing is alive that would have to be dropped. Nothing inside [`guarded`] may panic, so pgrx's own functions, which
//! turn an ERROR into a panic, are not called there.

use pgrx::pg_sys;

pub use pg_sys::ffi::pg_guard_ffi_boundary as guarded;

unsafe extern "C-unwind" {
    // Reads of variables and of the clock, which cannot fail.
    pub fn GetSessionUserId() -> pg_sys::Oid;
    pub fn GetUserId() -> pg_sys::Oid;
    pub fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
    pub fn GetTopFullTransactionIdIfAny() -> pg_sys::FullTransactionId;
    /// With `false`: else it fails in a parallel worker.
    pub fn GetCurrentCommandId(used: bool) -> pg_sys::CommandId;
    pub fn GetCurrentTimestamp() -> pg_sys::TimestampTz;
    pub fn GetXLogInsertRecPtr() -> pg_sys::XLogRecPtr;
    pub fn HeapTupleHeaderGetCmin(tuple: pg_sys::HeapTupleHeader) -> pg_sys::CommandId;
    pub fn HeapTupleHeaderGetCmax(tuple: pg_sys::HeapTupleHeader) -> pg_sys::CommandId;

    // Hooks pass on to these.
    pub fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: i32);
    pub fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const std::ffi::c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        receiver: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );

    // The insert into the log.
    pub fn LockRelationOid(relation: pg_sys::Oid, mode: pg_sys::LOCKMODE);
    pub fn RelationIdGetRelation(relation: pg_sys::Oid) -> pg_sys::Relation;
    pub fn relation_close(relation: pg_sys::Relation, mode: pg_sys::LOCKMODE);
    pub fn heap_insert(
        table: pg_sys::Relation,
        tuple: pg_sys::HeapTuple,
        command: pg_sys::CommandId,
        options: i32,
        state: *mut std::ffi::c_void,
    );
    pub fn heap_multi_insert(
        table: pg_sys::Relation,
        slots: *mut *mut pg_sys::TupleTableSlot,
        count: i32,
        command: pg_sys::CommandId,
        options: i32,
        state: *mut std::ffi::c_void,
    );
    pub fn index_insert(
        index: pg_sys::Relation,
        values: *mut pg_sys::Datum,
        nulls: *mut bool,
        tid: pg_sys::ItemPointer,
        table: pg_sys::Relation,
        check: pg_sys::IndexUniqueCheck::Type,
        unchanged: bool,
        info: *mut pg_sys::IndexInfo,
    ) -> bool;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    pub fn index_insert_cleanup(index: pg_sys::Relation, info: *mut pg_sys::IndexInfo);
    pub fn slot_getsomeattrs_int(slot: *mut pg_sys::TupleTableSlot, last: i32);
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    pub fn AllocSetContextCreateInternal(
        parent: pg_sys::MemoryContext,
        name: *const std::ffi::c_char,
        minimum: pg_sys::Size,
        initial: pg_sys::Size,
        maximum: pg_sys::Size,
    ) -> pg_sys::MemoryContext;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    pub fn MemoryContextDelete(context: pg_sys::MemoryContext);

    // A snapshot for functions of indexes.
    pub fn ActiveSnapshotSet() -> bool;
    pub fn GetTransactionSnapshot() -> pg_sys::Snapshot;
    pub fn PushActiveSnapshot(snapshot: pg_sys::Snapshot);
    pub fn PopActiveSnapshot();

    // A BRIN index's map of page ranges.
    pub fn brinGetStats(index: pg_sys::Relation, stats: *mut super::brin::Stats);
    pub fn ReadBufferExtended(
        relation: pg_sys::Relation,
        fork: pg_sys::ForkNumber::Type,
        block: pg_sys::BlockNumber,
        mode: pg_sys::ReadBufferMode::Type,
        strategy: pg_sys::BufferAccessStrategy,
    ) -> pg_sys::Buffer;
    pub fn LockBuffer(buffer: pg_sys::Buffer, mode: i32);
    pub fn UnlockReleaseBuffer(buffer: pg_sys::Buffer);
}
