//! The settings of the context, checked where they are set, whatever way that is: SET, set_config, a role, a database,
//! postgresql.conf, or a placeholder from before the library was loaded.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};

use audit_core::context::{self, ContextError};
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_guard, pg_sys};

type Text = GucSetting<Option<CString>>;

static USER_ID: Text = Text::new(Some(c""));
static TENANT_ID: Text = Text::new(Some(c""));
static REQUEST_ID: Text = Text::new(Some(c""));
static SESSION_ID: Text = Text::new(Some(c""));
static IP_ADDRESS: Text = Text::new(Some(c""));
static USER_AGENT: Text = Text::new(Some(c""));
static REASON: Text = Text::new(Some(c""));
static CONTEXT: Text = Text::new(Some(c""));

thread_local! {
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

/// A setting of the context.
pub struct ContextSetting {
    pub name: &'static CStr,
    description: &'static CStr,
    value: &'static Text,
    check: pg_sys::GucStringCheckHook,
}

/// All of them, in the order of [`crate::context::Key`].
pub static CONTEXT_SETTINGS: [ContextSetting; 8] = [
    text(c"audit.user_id", c"The application's user.", &USER_ID),
    text(c"audit.tenant_id", c"The application's tenant.", &TENANT_ID),
    text(c"audit.request_id", c"The application's request.", &REQUEST_ID),
    text(c"audit.session_id", c"The application's session.", &SESSION_ID),
    ContextSetting {
        name: c"audit.ip_address",
        description: c"Address of the application's client.",
        value: &IP_ADDRESS,
        check: Some(check_address),
    },
    text(c"audit.user_agent", c"User agent of the application's client.", &USER_AGENT),
    text(c"audit.reason", c"Why the change is made.", &REASON),
    ContextSetting {
        name: c"audit.context",
        description: c"Further context: a JSON object.",
        value: &CONTEXT,
        check: Some(check_object),
    },
];

const fn text(name: &'static CStr, description: &'static CStr, value: &'static Text) -> ContextSetting {
    ContextSetting { name, description, value, check: Some(check_text) }
}

pub fn init() {
    for setting in &CONTEXT_SETTINGS {
        // SAFETY: the hooks are guarded, and the strings static.
        unsafe {
            GucRegistry::define_string_guc_with_hooks(
                setting.name,
                setting.description,
                c"Recorded with each change; the empty string means none.",
                setting.value,
                GucContext::Userset,
                GucFlags::default(),
                setting.check,
                Some(assigned),
                None,
            );
        }
    }
    // SAFETY: the prefix is a C string. Settings of ours that do not exist are refused from here on.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"audit".as_ptr()) };
}

/// Layouts say whether time is measured, so they are made anew when that changes.
pub fn define_track_timing(setting: &'static GucSetting<bool>) {
    // SAFETY: the hook is guarded, and the strings static.
    unsafe {
        GucRegistry::define_bool_guc_with_hooks(
            c"audit.track_timing",
            c"Counts the events of each table, and measures the time that sessions spend on auditing.",
            c"audit.stats and audit.stats_tables show them. Needs shared_preload_libraries.",
            setting,
            GucContext::Suset,
            GucFlags::default(),
            None,
            Some(timing_assigned),
            None,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn timing_assigned(_new: bool, _extra: *mut c_void) {
    crate::layouts::invalidate(None);
}

impl ContextSetting {
    /// The current value, `None` where it is empty.
    pub fn get(&self) -> Option<Vec<u8>> {
        self.value.get().map(CString::into_bytes).filter(|value| !value.is_empty())
    }

    /// Sets the value as SET (or SET LOCAL) would, with its check.
    pub fn set(&self, value: &[u8], is_local: bool) {
        let value = super::relation::c_string(value);
        // SAFETY: both are C strings; a refused value is an ERROR.
        unsafe {
            pg_sys::set_config_option(
                self.name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                if is_local { pg_sys::GucAction::GUC_ACTION_LOCAL } else { pg_sys::GucAction::GUC_ACTION_SET },
                true,
                0,
                false,
            );
        }
    }
}

/// Changes whenever a setting of the context may have.
pub fn generation() -> u64 {
    GENERATION.get()
}

#[pg_guard]
unsafe extern "C-unwind" fn assigned(_new: *const c_char, _extra: *mut c_void) {
    GENERATION.set(GENERATION.get().wrapping_add(1));
}

#[pg_guard]
unsafe extern "C-unwind" fn check_text(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: PostgreSQL passes the proposed value.
    unsafe { check(new, context::check_string) }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_address(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as above.
    unsafe { check(new, |value| context::parse_inet(&String::from_utf8_lossy(value)).map(|_| ())) }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_object(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as above.
    unsafe { check(new, context::check_context) }
}

unsafe extern "C" {
    // utils/guc.h; what a check hook leaves for the error message.
    static mut GUC_check_errmsg_string: *mut c_char;
    static mut GUC_check_errdetail_string: *mut c_char;
    static mut GUC_check_errhint_string: *mut c_char;
}

unsafe fn check(new: *mut *mut c_char, rule: impl Fn(&[u8]) -> Result<(), ContextError>) -> bool {
    // SAFETY: the value is a C string or null.
    let value = unsafe {
        if (*new).is_null() {
            return true;
        }
        CStr::from_ptr(*new).to_bytes()
    };
    if value.is_empty() {
        return true;
    }
    let Err(error) = rule(value) else { return true };
    let copy = |text: &str| {
        let text = super::relation::c_string(text.as_bytes());
        // SAFETY: copies a C string into the current memory context, where PostgreSQL's own macros put theirs.
        unsafe { pg_sys::pstrdup(text.as_ptr()) }
    };
    // SAFETY: what the macros GUC_check_errmsg, _errdetail and _errhint do; PostgreSQL reads them next.
    unsafe {
        pg_sys::GUC_check_errcode(pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE as i32);
        GUC_check_errmsg_string = copy(error.message);
        GUC_check_errdetail_string = copy(&error.detail);
        GUC_check_errhint_string = copy(error.hint);
    }
    false
}
