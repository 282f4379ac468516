//! Which tables a statement names that failed before PostgreSQL looked them up: its text is parsed again, and the names
//! are looked up as the session would have. Nothing is executed.

use std::ffi::{CStr, c_void};
use std::panic::AssertUnwindSafe;

use pgrx::{PgTryBuilder, pg_sys};

use super::relation::c_string;
use super::statement::{Command, Meant};

/// PostgreSQL's walker, without pgrx's guard: it calls back into Rust, and an ERROR below jumps over that frame to the
/// guard of the outermost call.
mod unguarded {
    use std::ffi::c_void;

    use pgrx::pg_sys::Node;

    pub type Walker = unsafe extern "C-unwind" fn(*mut Node, *mut c_void) -> bool;

    unsafe extern "C-unwind" {
        #[cfg_attr(not(feature = "pg15"), link_name = "raw_expression_tree_walker_impl")]
        pub fn raw_expression_tree_walker(node: *mut Node, walker: Walker, context: *mut c_void) -> bool;
    }
}

/// Tables that the queries in a text name, as far as they exist.
pub fn tables_named(text: &[u8], search_path: &[u8], user: &[u8]) -> Vec<Meant> {
    let text = c_string(text);
    let find = AssertUnwindSafe(|| {
        let schemas = schemas(search_path, user);
        let mut meant = Vec::new();
        // SAFETY: the text is a C string, the tree lives in the current memory context. Parsing takes no locks and no
        // resources, so an ERROR in it leaves nothing behind but memory.
        unsafe {
            for statement in super::statement::elements::<pg_sys::RawStmt>(pg_sys::pg_parse_query(text.as_ptr())) {
                add_tables((*statement).stmt, &schemas, &mut meant);
            }
        }
        meant
    });
    PgTryBuilder::new(find).catch_others(|_| Vec::new()).execute()
}

unsafe fn add_tables(statement: *mut pg_sys::Node, schemas: &[pg_sys::Oid], meant: &mut Vec<Meant>) {
    use pg_sys::NodeTag::*;
    // SAFETY: the tag says what the node is.
    let (command, target) = unsafe {
        match (*statement).type_ {
            T_SelectStmt => (Command::Select, std::ptr::null_mut()),
            T_InsertStmt => (Command::Insert, (*statement.cast::<pg_sys::InsertStmt>()).relation),
            T_UpdateStmt => (Command::Update, (*statement.cast::<pg_sys::UpdateStmt>()).relation),
            T_DeleteStmt => (Command::Delete, (*statement.cast::<pg_sys::DeleteStmt>()).relation),
            T_MergeStmt => (Command::Merge, (*statement.cast::<pg_sys::MergeStmt>()).relation),
            _ => return,
        }
    };
    let mut names: Vec<*mut pg_sys::RangeVar> = Vec::new();
    let context = (&raw mut names).cast::<c_void>();
    // SAFETY: the walker gets the vector that outlives the call; no value with a destructor is in its frames.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| unguarded::raw_expression_tree_walker(statement, collect, context));
    }
    for name in names {
        // SAFETY: the walker met it in the tree.
        let table = unsafe { look_up(name, schemas) };
        if let Some(table) = table
            && !meant.iter().any(|known| known.table == table)
        {
            meant.push(Meant { table, command, is_target: name == target });
        }
    }
}

unsafe extern "C-unwind" fn collect(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: the context is the vector of `add_tables`; the tag is read before the cast.
    unsafe {
        if node.is_null() {
            return false;
        }
        if (*node).type_ == pg_sys::NodeTag::T_RangeVar {
            (*context.cast::<Vec<*mut pg_sys::RangeVar>>()).push(node.cast());
            return false;
        }
        unguarded::raw_expression_tree_walker(node, collect, context)
    }
}

/// The schemas of a search path that exist.
fn schemas(search_path: &[u8], user: &[u8]) -> Vec<pg_sys::Oid> {
    let path = c_string(search_path);
    let user = c_string(user);
    let mut names: *mut pg_sys::List = std::ptr::null_mut();
    // SAFETY: PostgreSQL splits a copy of its own; the names point into it.
    unsafe {
        if !pg_sys::SplitIdentifierString(pg_sys::pstrdup(path.as_ptr()), b',' as i8, &mut names) {
            return Vec::new();
        }
        super::statement::elements::<std::ffi::c_char>(names)
            .map(|name| if CStr::from_ptr(name) == c"$user" { user.as_ptr() } else { name.cast_const() })
            .map(|name| pg_sys::get_namespace_oid(name, true))
            .filter(|schema| *schema != pg_sys::InvalidOid)
            .collect()
    }
}

unsafe fn look_up(name: *mut pg_sys::RangeVar, schemas: &[pg_sys::Oid]) -> Option<pg_sys::Oid> {
    // SAFETY: the caller's word: a name in a parse tree.
    unsafe {
        let find =
            |schema| Some(pg_sys::get_relname_relid((*name).relname, schema)).filter(|oid| *oid != pg_sys::InvalidOid);
        if (*name).schemaname.is_null() {
            return schemas.iter().find_map(|&schema| find(schema));
        }
        let schema = pg_sys::get_namespace_oid((*name).schemaname, true);
        if schema == pg_sys::InvalidOid { None } else { find(schema) }
    }
}
