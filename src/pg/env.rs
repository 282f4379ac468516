//! The fixed environment under which row images are written, whatever the session has set: TimeZone UTC, DateStyle ISO,
//! IntervalStyle postgres, bytea_output hex, extra_float_digits 1, lc_monetary C, xmlbinary base64,
//! quote_all_identifiers off, search_path pg_catalog.
//!
//! PostgreSQL's own output functions read only the C variables behind the date, interval, bytea and float settings:
//! for them it is enough to swap those (a few stores). Code of extensions and users, and the reg types, may look at any
//! setting: for them the settings are changed in a level of their own, as postgres_fdw does, and only those that differ.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys;

/// What a column's writer needs of the environment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Env {
    /// Reads no setting.
    Free,
    /// Reads the C variables of the date, interval, bytea and float settings.
    Variables,
    /// May read any setting.
    Settings,
}

thread_local! {
    static CURRENT: Cell<Env> = const { Cell::new(Env::Free) };
    static UTC: Cell<*mut pg_sys::pg_tz> = const { Cell::new(std::ptr::null_mut()) };
}

unsafe extern "C" {
    // utils/bytea.h; not in pgrx's bindings.
    static mut bytea_output: std::ffi::c_int;
}

const BYTEA_OUTPUT_HEX: std::ffi::c_int = 1;

const SETTINGS: [(&CStr, &CStr); 9] = [
    (c"search_path", c"pg_catalog"),
    (c"TimeZone", c"UTC"),
    (c"DateStyle", c"ISO, MDY"),
    (c"IntervalStyle", c"postgres"),
    (c"bytea_output", c"hex"),
    (c"extra_float_digits", c"1"),
    (c"lc_monetary", c"C"),
    (c"xmlbinary", c"base64"),
    (c"quote_all_identifiers", c"off"),
];

#[derive(Clone, Copy)]
struct Variables {
    date_style: std::ffi::c_int,
    date_order: std::ffi::c_int,
    interval_style: std::ffi::c_int,
    bytea_output: std::ffi::c_int,
    extra_float_digits: std::ffi::c_int,
    time_zone: *mut pg_sys::pg_tz,
}

impl Variables {
    fn current() -> Self {
        // SAFETY: plain reads of the backend's own variables, on its only thread.
        unsafe {
            Variables {
                date_style: pg_sys::DateStyle,
                date_order: pg_sys::DateOrder,
                interval_style: pg_sys::IntervalStyle,
                bytea_output,
                extra_float_digits: pg_sys::extra_float_digits,
                time_zone: pg_sys::session_timezone,
            }
        }
    }

    fn fixed() -> Self {
        let mut utc = UTC.get();
        if utc.is_null() {
            // SAFETY: the name is a C string; the zone lives in PostgreSQL's cache until the process ends.
            utc = unsafe { pg_sys::pg_tzset(c"UTC".as_ptr()) };
            UTC.set(utc);
        }
        Variables {
            date_style: pg_sys::USE_ISO_DATES as _,
            date_order: pg_sys::DATEORDER_MDY as _,
            interval_style: pg_sys::INTSTYLE_POSTGRES as _,
            bytea_output: BYTEA_OUTPUT_HEX,
            extra_float_digits: 1,
            time_zone: utc,
        }
    }

    fn apply(self) {
        // SAFETY: plain stores to the backend's own variables, on its only thread; each value is one that the
        // setting's assign hook would store.
        unsafe {
            pg_sys::DateStyle = self.date_style;
            pg_sys::DateOrder = self.date_order;
            pg_sys::IntervalStyle = self.interval_style;
            bytea_output = self.bytea_output;
            pg_sys::extra_float_digits = self.extra_float_digits;
            pg_sys::session_timezone = self.time_zone;
        }
    }
}

/// Holds the environment; the session's own comes back when it is dropped, also on the way out of an error.
pub struct Guard {
    outer: Env,
    undo: Undo,
}

enum Undo {
    Nothing,
    Variables(Variables),
    Level(std::ffi::c_int),
}

/// Makes sure of at least `env` until the guard is dropped.
pub fn enter(env: Env) -> Guard {
    let outer = CURRENT.get();
    if env <= outer {
        return Guard { outer, undo: Undo::Nothing };
    }
    let undo = match env {
        Env::Free => Undo::Nothing,
        Env::Variables => {
            let saved = Variables::current();
            Variables::fixed().apply();
            Undo::Variables(saved)
        }
        Env::Settings => Undo::Level(change_settings()),
    };
    CURRENT.set(env);
    Guard { outer, undo }
}

/// While code of users runs: a row captured from inside it must not rely on the environment, which that code may have
/// changed by settings of its own.
pub struct Unassured {
    outer: Env,
}

pub fn leave() -> Unassured {
    Unassured { outer: CURRENT.replace(Env::Free) }
}

impl Drop for Unassured {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
    }
}

fn change_settings() -> std::ffi::c_int {
    // SAFETY: names and values are C strings. A failure is an ERROR, which ends the (sub)transaction and with it the
    // level.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        for (name, value) in SETTINGS {
            let now = pg_sys::GetConfigOption(name.as_ptr(), false, false);
            if now.is_null() || CStr::from_ptr(now) != value {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
        }
        level
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        match self.undo {
            Undo::Nothing => return,
            Undo::Variables(saved) => saved.apply(),
            Undo::Level(level) => {
                // On the way out of an ERROR the abort of the (sub)transaction pops the level.
                if !std::thread::panicking() {
                    // SAFETY: the level was opened by `change_settings` and is the innermost one again.
                    unsafe { pg_sys::AtEOXact_GUC(true, level) };
                    if self.outer == Env::Variables {
                        Variables::fixed().apply();
                    }
                }
            }
        }
        CURRENT.set(self.outer);
    }
}
