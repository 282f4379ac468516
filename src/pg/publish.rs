//! Lines of the server log that are written when the transaction has committed: a checkpoint is published once it is
//! durable, and never if it is rolled back. The lines are ready before; writing one allocates nothing of ours.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};

use pgrx::pg_sys;

thread_local! {
    static LINES: RefCell<Vec<(u32, CString)>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C-unwind" {
    // utils/elog.h; not in pgrx's bindings.
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// Writes a line when the transaction has committed.
pub fn at_commit(line: &str) {
    let line = CString::new(line.replace('\0', "")).unwrap_or_default();
    LINES.with_borrow_mut(|lines| lines.push((super::session::current_subtransaction(), line)));
}

/// Nothing here can fail, short of the server log.
pub fn committed() {
    LINES.with_borrow_mut(|lines| {
        for (_, line) in lines.iter() {
            // SAFETY: the strings are C strings; below ERROR these functions return.
            unsafe {
                if errstart(pg_sys::LOG as c_int, std::ptr::null()) {
                    pg_sys::errhidestmt(true);
                    pg_sys::errmsg_internal(c"%s".as_ptr(), line.as_ptr());
                    errfinish(c"publish.rs".as_ptr(), 0, c"committed".as_ptr());
                }
            }
        }
        lines.clear();
    });
}

/// Nothing here can fail.
pub fn aborted() {
    LINES.with_borrow_mut(Vec::clear);
}

/// Nothing here can fail.
pub fn subtransaction_committed(id: u32, parent: u32) {
    LINES.with_borrow_mut(|lines| {
        for (owner, _) in lines.iter_mut().filter(|(owner, _)| *owner == id) {
            *owner = parent;
        }
    });
}

/// Nothing here can fail.
pub fn subtransaction_aborted(id: u32) {
    LINES.with_borrow_mut(|lines| lines.retain(|(owner, _)| *owner < id));
}
