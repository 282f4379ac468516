//! Which tables the statements under way mean, and the errors that end them.
//!
//! The hooks here are in the path of every statement of the server. They note a few numbers in memory of their own, and
//! are called without pgrx's guard: it would report each error anew and lose the fields that it does not know (the
//! constraint's name, the position). So an ERROR jumps over their frames, which hold nothing that needs to be dropped,
//! and what they noted is taken back when the error is handled: with the (sub)transaction that it ends.

use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pgrx::{pg_guard, pg_sys};

use super::{process, session};
use crate::failures;
use crate::logins::{self, Asked};

/// Statements inside statements that are told apart; the tables of deeper ones count for none.
const DEPTH: usize = 16;
/// Tables of one statement that are noted.
const TABLES: usize = 8;

/// What a statement does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Command {
    Other,
    Select,
    Insert,
    Update,
    Delete,
    Merge,
    Truncate,
    Copy,
    Lock,
    Alter,
    Drop,
}

impl Command {
    pub const ALL: [(Command, &'static str); 11] = [
        (Command::Other, "OTHER"),
        (Command::Select, "SELECT"),
        (Command::Insert, "INSERT"),
        (Command::Update, "UPDATE"),
        (Command::Delete, "DELETE"),
        (Command::Merge, "MERGE"),
        (Command::Truncate, "TRUNCATE"),
        (Command::Copy, "COPY"),
        (Command::Lock, "LOCK"),
        (Command::Alter, "ALTER"),
        (Command::Drop, "DROP"),
    ];

    fn of(command: pg_sys::CmdType::Type) -> Self {
        use pg_sys::CmdType::*;
        match command {
            CMD_SELECT => Command::Select,
            CMD_INSERT => Command::Insert,
            CMD_UPDATE => Command::Update,
            CMD_DELETE => Command::Delete,
            CMD_MERGE => Command::Merge,
            _ => Command::Other,
        }
    }
}

/// A table that a statement means.
#[derive(Clone, Copy)]
pub struct Meant {
    pub table: pg_sys::Oid,
    pub command: Command,
    /// Whether the statement changes it.
    pub is_target: bool,
}

#[derive(Clone, Copy)]
struct Statement {
    level: i32,
    command: Command,
    count: u8,
    targets: u8,
    tables: [pg_sys::Oid; TABLES],
}

impl Statement {
    const NONE: Statement =
        Statement { level: 0, command: Command::Other, count: 0, targets: 0, tables: [pg_sys::Oid::INVALID; TABLES] };

    fn add(&mut self, table: pg_sys::Oid, is_target: bool) {
        let at = usize::from(self.count);
        if at < TABLES && table != pg_sys::Oid::INVALID {
            self.tables[at] = table;
            self.targets |= u8::from(is_target) << at;
            self.count += 1;
        }
    }
}

struct UnderWay {
    statements: [Statement; DEPTH],
    depth: usize,
}

thread_local! {
    static UNDER_WAY: RefCell<UnderWay> =
        const { RefCell::new(UnderWay { statements: [Statement::NONE; DEPTH], depth: 0 }) };
}

/// Notes a statement. Returns the depth to go back to.
fn begin(mut statement: Statement) -> usize {
    // SAFETY: reads a variable.
    statement.level = unsafe { unguarded::GetCurrentTransactionNestLevel() };
    UNDER_WAY.with_borrow_mut(|under_way| {
        let depth = under_way.depth;
        if let Some(place) = under_way.statements.get_mut(depth) {
            *place = statement;
        }
        under_way.depth = depth + 1;
        depth
    })
}

fn end(depth: usize) {
    UNDER_WAY.with_borrow_mut(|under_way| under_way.depth = under_way.depth.min(depth));
}

/// Forgets the statements that a subtransaction's end has ended. Nothing here can fail.
pub fn subtransaction_aborted() {
    // SAFETY: reads a variable. It is still that of the subtransaction.
    let level = unsafe { unguarded::GetCurrentTransactionNestLevel() };
    UNDER_WAY.with_borrow_mut(|under_way| {
        while let Some(last) = under_way.depth.checked_sub(1)
            && under_way.statements.get(last).is_none_or(|statement| statement.level >= level)
        {
            under_way.depth = last;
        }
    });
}

/// Nothing here can fail.
pub fn transaction_aborted() {
    UNDER_WAY.with_borrow_mut(|under_way| under_way.depth = 0);
}

/// Calls `each` for the tables meant by the statements under way, the outermost statement's first, each once.
pub fn for_each_meant(mut each: impl FnMut(Meant)) {
    UNDER_WAY.with_borrow(|under_way| {
        let statements = &under_way.statements[..under_way.depth.min(DEPTH)];
        let tables = |statement: &Statement| statement.tables[..usize::from(statement.count)].to_owned();
        for (position, statement) in statements.iter().enumerate() {
            for (i, table) in tables(statement).into_iter().enumerate() {
                let is_known = statements[..position].iter().any(|outer| tables(outer).contains(&table))
                    || statement.tables[..i].contains(&table);
                if !is_known {
                    let is_target = statement.targets >> i & 1 != 0;
                    each(Meant { table, command: statement.command, is_target });
                }
            }
        }
    });
}

/// Functions of PostgreSQL without pgrx's guard: an ERROR in them jumps over the caller's frame.
mod unguarded {
    use std::ffi::{c_char, c_int};

    use pgrx::pg_sys::*;

    unsafe extern "C-unwind" {
        pub fn GetCurrentTransactionNestLevel() -> c_int;
        pub fn IsTransactionState() -> bool;
        pub fn get_namespace_oid(name: *const c_char, missing_ok: bool) -> Oid;
        pub fn get_relname_relid(name: *const c_char, namespace: Oid) -> Oid;
        pub fn RelnameGetRelid(name: *const c_char) -> Oid;
        pub fn makeRangeVarFromNameList(names: *mut List) -> *mut RangeVar;
        pub fn standard_ExecutorStart(query: *mut QueryDesc, flags: c_int);
        #[cfg(not(feature = "pg18"))]
        pub fn standard_ExecutorRun(query: *mut QueryDesc, direction: ScanDirection::Type, count: uint64, once: bool);
        #[cfg(feature = "pg18")]
        pub fn standard_ExecutorRun(query: *mut QueryDesc, direction: ScanDirection::Type, count: uint64);
        pub fn standard_ExecutorFinish(query: *mut QueryDesc);
        pub fn standard_planner(
            query: *mut Query,
            text: *const c_char,
            options: c_int,
            parameters: ParamListInfo,
        ) -> *mut PlannedStmt;
        #[allow(clippy::too_many_arguments)]
        pub fn standard_ProcessUtility(
            statement: *mut PlannedStmt,
            text: *const c_char,
            read_only_tree: bool,
            context: ProcessUtilityContext::Type,
            parameters: ParamListInfo,
            environment: *mut QueryEnvironment,
            receiver: *mut DestReceiver,
            completion: *mut QueryCompletion,
        );
    }
}

/// The pointers of a PostgreSQL list.
pub(super) unsafe fn elements<T>(list: *mut pg_sys::List) -> impl Iterator<Item = *mut T> {
    // SAFETY: the caller's word that it is a list of pointers, or null.
    let (cells, count) =
        unsafe { if list.is_null() { (std::ptr::null_mut(), 0) } else { ((*list).elements, (*list).length as usize) } };
    // SAFETY: the list has so many cells.
    (0..count).map(move |i| unsafe { (*cells.add(i)).ptr_value.cast() })
}

unsafe fn add_relations(statement: &mut Statement, range_table: *mut pg_sys::List, is_target: impl Fn(i32) -> bool) {
    // SAFETY: the caller's word: a list of range table entries.
    for (entry, index) in unsafe { elements::<pg_sys::RangeTblEntry>(range_table) }.zip(1..) {
        // SAFETY: as above.
        let entry = unsafe { &*entry };
        if entry.rtekind == pg_sys::RTEKind::RTE_RELATION && matches!(entry.relkind as u8, b'r' | b'p' | b'f') {
            statement.add(entry.relid, is_target(index));
        }
        if usize::from(statement.count) == TABLES {
            return;
        }
    }
}

unsafe fn of_plan(plan: *mut pg_sys::PlannedStmt) -> Statement {
    let mut statement = Statement::NONE;
    // SAFETY: the caller's word: a planned statement.
    unsafe {
        statement.command = Command::of((*plan).commandType);
        let targets = (*plan).resultRelations;
        add_relations(&mut statement, (*plan).rtable, |index| {
            !targets.is_null()
                && (0..(*targets).length as usize).any(|i| (*(*targets).elements.add(i)).int_value == index)
        });
    }
    statement
}

static mut PREVIOUS_PLANNER: pg_sys::planner_hook_type = None;
static mut PREVIOUS_START: pg_sys::ExecutorStart_hook_type = None;
static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_AUTHENTICATION: pg_sys::libpq::ClientAuthentication_hook_type = None;
static mut PREVIOUS_LOG: pg_sys::emit_log_hook_type = None;

unsafe extern "C-unwind" fn planner(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: i32,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: PostgreSQL passes a query; a backend has one thread.
    unsafe {
        let mut statement = Statement::NONE;
        statement.command = Command::of((*query).commandType);
        let target = (*query).resultRelation;
        add_relations(&mut statement, (*query).rtable, |index| index == target);
        let depth = begin(statement);
        let plan = match PREVIOUS_PLANNER {
            Some(previous) => previous(query, text, options, parameters),
            None => unguarded::standard_planner(query, text, options, parameters),
        };
        end(depth);
        plan
    }
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    // SAFETY: as above.
    unsafe {
        let depth = begin(of_plan((*query).plannedstmt));
        match PREVIOUS_START {
            Some(previous) => previous(query, flags),
            None => unguarded::standard_ExecutorStart(query, flags),
        }
        end(depth);
    }
}

#[cfg(not(feature = "pg18"))]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: as above.
    unsafe {
        let depth = begin(of_plan((*query).plannedstmt));
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count, once),
            None => unguarded::standard_ExecutorRun(query, direction, count, once),
        }
        end(depth);
    }
}

#[cfg(feature = "pg18")]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
) {
    // SAFETY: as above.
    unsafe {
        let depth = begin(of_plan((*query).plannedstmt));
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count),
            None => unguarded::standard_ExecutorRun(query, direction, count),
        }
        end(depth);
    }
}

unsafe extern "C-unwind" fn executor_finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as above.
    unsafe {
        let depth = begin(of_plan((*query).plannedstmt));
        match PREVIOUS_FINISH {
            Some(previous) => previous(query),
            None => unguarded::standard_ExecutorFinish(query),
        }
        end(depth);
    }
}

#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: as above.
    unsafe {
        let depth = begin(of_utility((*statement).utilityStmt));
        match PREVIOUS_UTILITY {
            Some(previous) => {
                previous(statement, text, read_only_tree, context, parameters, environment, receiver, completion)
            }
            None => unguarded::standard_ProcessUtility(
                statement,
                text,
                read_only_tree,
                context,
                parameters,
                environment,
                receiver,
                completion,
            ),
        }
        end(depth);
    }
}

/// The tables that a command names, looked up as it will look them up, but without locks and without asking for rights:
/// a look-up that the command is refused is refused there.
unsafe fn of_utility(node: *mut pg_sys::Node) -> Statement {
    use pg_sys::NodeTag::*;
    let mut statement = Statement::NONE;
    // SAFETY: the caller's word: a utility statement, whose tag says what it is. The frame holds nothing to be dropped.
    unsafe {
        if node.is_null() || !unguarded::IsTransactionState() {
            return statement;
        }
        let mut names: *mut pg_sys::List = std::ptr::null_mut();
        let mut name: *mut pg_sys::RangeVar = std::ptr::null_mut();
        statement.command = match (*node).type_ {
            T_TruncateStmt => {
                names = (*node.cast::<pg_sys::TruncateStmt>()).relations;
                Command::Truncate
            }
            T_LockStmt => {
                names = (*node.cast::<pg_sys::LockStmt>()).relations;
                Command::Lock
            }
            T_CopyStmt => {
                name = (*node.cast::<pg_sys::CopyStmt>()).relation;
                Command::Copy
            }
            T_AlterTableStmt => {
                name = (*node.cast::<pg_sys::AlterTableStmt>()).relation;
                Command::Alter
            }
            T_RenameStmt => {
                name = (*node.cast::<pg_sys::RenameStmt>()).relation;
                Command::Alter
            }
            T_CreateTrigStmt => {
                name = (*node.cast::<pg_sys::CreateTrigStmt>()).relation;
                Command::Alter
            }
            T_RuleStmt => {
                name = (*node.cast::<pg_sys::RuleStmt>()).relation;
                Command::Alter
            }
            T_IndexStmt => {
                name = (*node.cast::<pg_sys::IndexStmt>()).relation;
                Command::Alter
            }
            T_DropStmt => {
                let drop = node.cast::<pg_sys::DropStmt>();
                if matches!(
                    (*drop).removeType,
                    pg_sys::ObjectType::OBJECT_TABLE | pg_sys::ObjectType::OBJECT_FOREIGN_TABLE
                ) {
                    for object in elements::<pg_sys::List>((*drop).objects) {
                        statement.add(look_up(unguarded::makeRangeVarFromNameList(object)), true);
                    }
                }
                Command::Drop
            }
            _ => return statement,
        };
        for name in elements::<pg_sys::RangeVar>(names) {
            statement.add(look_up(name), true);
        }
        if !name.is_null() {
            statement.add(look_up(name), true);
        }
    }
    statement
}

unsafe fn look_up(name: *mut pg_sys::RangeVar) -> pg_sys::Oid {
    // SAFETY: the caller's word: a name of a relation.
    unsafe {
        let (schema, relation) = ((*name).schemaname, (*name).relname);
        if relation.is_null() {
            return pg_sys::Oid::INVALID;
        }
        if schema.is_null() {
            return unguarded::RelnameGetRelid(relation);
        }
        let schema = unguarded::get_namespace_oid(schema, true);
        if schema == pg_sys::Oid::INVALID { schema } else { unguarded::get_relname_relid(relation, schema) }
    }
}

/// An error as it is reported.
pub struct Reported<'a> {
    pub sqlstate: i32,
    pub message: Option<&'a [u8]>,
    pub detail: Option<&'a [u8]>,
    pub hint: Option<&'a [u8]>,
    pub schema: Option<&'a [u8]>,
    pub table: Option<&'a [u8]>,
    pub column: Option<&'a [u8]>,
    pub constraint: Option<&'a [u8]>,
    pub is_in_transaction: bool,
}

unsafe extern "C-unwind" fn log(error: *mut pg_sys::ErrorData) {
    // SAFETY: PostgreSQL passes the error, whose texts are C strings or null. A panic must not come on top of it.
    unsafe {
        let is_client_s = session::has_client();
        if (*error).elevel >= pgrx::PgLogLevel::FATAL as i32 && is_client_s && !logins::is_logged_in() {
            let reason = (*error).message;
            session::with_login_names(|database, role| {
                let reason = (!reason.is_null()).then(|| CStr::from_ptr(reason).to_bytes());
                let asked = Asked { database, role, sqlstate: (*error).sqlerrcode, reason };
                let _ = catch_unwind(AssertUnwindSafe(|| logins::refused(&asked)));
            });
        } else if (*error).elevel >= pgrx::PgLogLevel::ERROR as i32 && is_session() {
            let text = |text: *const c_char| (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes());
            let reported = Reported {
                sqlstate: (*error).sqlerrcode,
                message: text((*error).message),
                detail: text((*error).detail),
                hint: text((*error).hint),
                schema: text((*error).schema_name),
                table: text((*error).table_name),
                column: text((*error).column_name),
                constraint: text((*error).constraint_name),
                is_in_transaction: unguarded::IsTransactionState(),
            };
            let _ = catch_unwind(AssertUnwindSafe(|| failures::reported(&reported)));
        }
        if let Some(previous) = PREVIOUS_LOG {
            previous(error);
        }
    }
}

/// Whether this process runs statements of somebody's: with a database, and no parallel worker, whose error its leader
/// reports.
fn is_session() -> bool {
    // SAFETY: reads of variables.
    unsafe {
        !pg_sys::MyProc.is_null()
            && pg_sys::MyDatabaseId != pg_sys::InvalidOid
            && pg_sys::ParallelWorkerNumber < 0
            && matches!(pg_sys::MyBackendType, pg_sys::BackendType::B_BACKEND | pg_sys::BackendType::B_BG_WORKER)
    }
}

/// The client is who it says it is; it may still be refused.
#[pg_guard]
unsafe extern "C-unwind" fn authenticated(port: *mut pg_sys::libpq::be::Port, status: i32) {
    const STATUS_OK: i32 = 0;
    if status == STATUS_OK {
        process::before_exit(session_ends);
    }
    // SAFETY: whoever was there before is called as PostgreSQL would.
    unsafe {
        if let Some(previous) = PREVIOUS_AUTHENTICATION {
            previous(port, status);
        }
    }
}

#[pg_guard]
extern "C-unwind" fn session_ends(_code: i32, _argument: pg_sys::Datum) {
    logins::logged_out();
}

/// Puts the hooks in place. Called while the server starts.
pub fn init() {
    // SAFETY: the postmaster has one thread; whoever was there before is called by ours.
    unsafe {
        PREVIOUS_PLANNER = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(planner);
        PREVIOUS_START = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start);
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(executor_run);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(executor_finish);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        PREVIOUS_LOG = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(log);
        PREVIOUS_AUTHENTICATION = pg_sys::libpq::ClientAuthentication_hook;
        pg_sys::libpq::ClientAuthentication_hook = Some(authenticated);
    }
}
