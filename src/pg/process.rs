//! Server processes and their latches.

use std::ffi::c_long;

use pgrx::pg_sys;

/// This process's entry in the server's list; `None` before it has one.
pub fn own() -> Option<u32> {
    // SAFETY: both pointers lead into one array in shared memory, MyProc to an element of it.
    unsafe {
        let own = pg_sys::MyProc;
        (!own.is_null()).then(|| own.offset_from((*pg_sys::ProcGlobal).allProcs) as u32)
    }
}

/// Sets a process's latch. Should another process have the entry by now, it wakes for nothing, as it always must expect.
pub fn wake(process: u32) {
    // SAFETY: the entry is one of the array's, in shared memory that is never freed.
    unsafe {
        if process < (*pg_sys::ProcGlobal).allProcCount {
            pg_sys::SetLatch(&raw mut (*(*pg_sys::ProcGlobal).allProcs.add(process as usize)).procLatch);
        }
    }
}

/// Calls `body` when the process ends in an orderly way, while it can still use shared memory.
pub fn before_exit(body: unsafe extern "C-unwind" fn(std::ffi::c_int, pg_sys::Datum)) {
    // SAFETY: the function is one of this library's.
    unsafe { pg_sys::before_shmem_exit(Some(body), pg_sys::Datum::from(0usize)) };
}

/// Sleeps where no latch may be waited for.
pub fn sleep_ms(milliseconds: u64) {
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
}

/// Waits until this process's latch is set, or for so many milliseconds, and lets PostgreSQL do what is pending, cancels
/// and termination included.
pub fn wait(milliseconds: Option<i64>) {
    use pg_sys::{WL_EXIT_ON_PM_DEATH, WL_LATCH_SET, WL_TIMEOUT};
    let timeout = if milliseconds.is_some() { WL_TIMEOUT } else { 0 };
    // SAFETY: the latch is this process's own.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | timeout) as i32,
            milliseconds.unwrap_or(-1) as c_long,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}
