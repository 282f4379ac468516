//! The settings of the context, checked where they are set, whatever way that is: SET, set_config, a role, a database,
//! postgresql.conf, or a placeholder from before the library was loaded.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};

use crate::gucs::ContextPreset;
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

/// What a value is from that a token gave. PostgreSQL keeps it beside the value, and brings both back together when a
/// transaction, a sub-transaction or a function ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Counts the tokens of this session.
    pub serial: u64,
    /// The keys that the token says: a bit for each, the first setting's lowest.
    pub keys: u8,
    /// Seconds since the Unix epoch.
    pub valid_until: i64,
}

thread_local! {
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static TOKENS: Cell<u64> = const { Cell::new(0) };
    /// Of the values in force.
    static STAMPS: Cell<[Option<Stamp>; CONTEXT_SETTINGS.len()]> = const { Cell::new([None; CONTEXT_SETTINGS.len()]) };
    /// Of the values that are being set.
    static STAMPING: Cell<Option<Stamp>> = const { Cell::new(None) };
}

/// A setting of the context.
pub struct ContextSetting {
    pub name: &'static CStr,
    description: &'static CStr,
    value: &'static Text,
    check: pg_sys::GucStringCheckHook,
    assign: pg_sys::GucStringAssignHook,
}

/// The assign hook of a setting, by its place among them.
macro_rules! assigned {
    ($key:literal) => {{
        #[pg_guard]
        unsafe extern "C-unwind" fn assigned(_new: *const c_char, stamp: *mut c_void) {
            // SAFETY: PostgreSQL passes what `check` left, or null.
            unsafe { assign($key, stamp) }
        }
        Some(assigned)
    }};
}

/// All of them, in the order of [`crate::context::Key`].
pub static CONTEXT_SETTINGS: [ContextSetting; 8] = [
    text(c"audit.user_id", c"The application's user.", &USER_ID, assigned!(0)),
    text(c"audit.tenant_id", c"The application's tenant.", &TENANT_ID, assigned!(1)),
    text(c"audit.request_id", c"The application's request.", &REQUEST_ID, assigned!(2)),
    text(c"audit.session_id", c"The application's session.", &SESSION_ID, assigned!(3)),
    ContextSetting {
        name: c"audit.ip_address",
        description: c"Address of the application's client.",
        value: &IP_ADDRESS,
        check: Some(check_address),
        assign: assigned!(4),
    },
    text(c"audit.user_agent", c"User agent of the application's client.", &USER_AGENT, assigned!(5)),
    text(c"audit.reason", c"Why the change is made.", &REASON, assigned!(6)),
    ContextSetting {
        name: c"audit.context",
        description: c"Further context: a JSON object.",
        value: &CONTEXT,
        check: Some(check_object),
        assign: assigned!(7),
    },
];

const fn text(
    name: &'static CStr,
    description: &'static CStr,
    value: &'static Text,
    assign: pg_sys::GucStringAssignHook,
) -> ContextSetting {
    ContextSetting { name, description, value, check: Some(check_text), assign }
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
                setting.assign,
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

/// What says which claims are which keys of the context, with its check.
pub fn define_context_claims(setting: &'static GucSetting<Option<CString>>) {
    // SAFETY: the hooks are guarded, and the strings static.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"audit.context_claims",
            c"Which claim says which key of the context: key=claim, separated by commas; empty: the usual ones.",
            c"A claim is a name, or a JSON pointer where it begins with a slash.",
            setting,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_claims),
            Some(claims_assigned),
            None,
        );
    }
}

/// Whose settings are read, beside our own.
pub fn define_context_preset(setting: &'static GucSetting<ContextPreset>) {
    // SAFETY: the hook is guarded, and the strings static.
    unsafe {
        GucRegistry::define_enum_guc_with_hooks(
            c"audit.context_preset",
            c"Takes the context, where our own settings say nothing, from those of PostgREST or Hasura.",
            c"postgrest, also for Supabase: request.jwt.claims and request.headers; hasura: hasura.user.",
            setting,
            GucContext::Sighup,
            GucFlags::default(),
            None,
            Some(preset_assigned),
            None,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn claims_assigned(_new: *const c_char, _extra: *mut c_void) {
    next_generation();
}

#[pg_guard]
unsafe extern "C-unwind" fn preset_assigned(_new: std::ffi::c_int, _extra: *mut c_void) {
    next_generation();
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

/// Sets those of the settings that a token says, to what it says.
pub fn set_stamped(values: &[Option<Vec<u8>>; CONTEXT_SETTINGS.len()], keys: u8, valid_until: i64, is_local: bool) {
    /// Takes the stamp back, whatever happens.
    struct Stamping;
    impl Drop for Stamping {
        fn drop(&mut self) {
            STAMPING.set(None);
        }
    }
    let serial = TOKENS.get() + 1;
    TOKENS.set(serial);
    let _stamping = Stamping;
    STAMPING.set(Some(Stamp { serial, keys, valid_until }));
    for (i, (setting, value)) in CONTEXT_SETTINGS.iter().zip(values).enumerate() {
        if keys >> i & 1 == 1 {
            setting.set(value.as_deref().unwrap_or_default(), is_local);
        }
    }
}

/// The tokens that the values in force are from.
pub fn stamps() -> [Option<Stamp>; CONTEXT_SETTINGS.len()] {
    STAMPS.get()
}

/// Whether there is a setting of this name, whoever made it.
pub fn has_value(name: &CStr) -> bool {
    // SAFETY: as in `is_option`.
    unsafe { !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() }
}

/// The value of a setting, whoever made it; empty where there is none.
pub fn option(name: &CStr) -> Vec<u8> {
    // SAFETY: as in `is_option`.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if value.is_null() { Vec::new() } else { CStr::from_ptr(value).to_bytes().to_vec() }
    }
}

/// Whether the value of a setting is this one.
pub fn is_option(name: &CStr, expected: &[u8]) -> bool {
    // SAFETY: a look-up by a C string that gives null where there is no such setting, else a C string that stays for now.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if value.is_null() { expected.is_empty() } else { CStr::from_ptr(value).to_bytes() == expected }
    }
}

/// Changes whenever a setting of the context may have.
pub fn generation() -> u64 {
    GENERATION.get()
}

/// What is made of the settings is to be made anew.
pub fn next_generation() {
    GENERATION.set(GENERATION.get().wrapping_add(1));
}

unsafe fn assign(key: usize, stamp: *mut c_void) {
    let mut stamps = STAMPS.get();
    if let Some(place) = stamps.get_mut(key) {
        // SAFETY: the caller passes null or what `put_stamp` made.
        *place = unsafe { stamp.cast::<Stamp>().as_ref() }.copied();
    }
    STAMPS.set(stamps);
    next_generation();
}

/// Leaves the stamp where PostgreSQL keeps it with the value. False without memory.
unsafe fn put_stamp(extra: *mut *mut c_void) -> bool {
    let Some(stamp) = STAMPING.get() else { return true };
    // SAFETY: PostgreSQL frees it when it drops the value, by the counterpart of this allocation.
    unsafe {
        #[cfg(feature = "pg15")]
        let place = malloc(size_of::<Stamp>()).cast::<Stamp>();
        #[cfg(not(feature = "pg15"))]
        let place = pg_sys::guc_malloc(pg_sys::LOG as i32, size_of::<Stamp>()).cast::<Stamp>();
        if place.is_null() {
            return false;
        }
        place.write(stamp);
        *extra = place.cast();
    }
    true
}

#[cfg(feature = "pg15")]
unsafe extern "C" {
    // stdlib.h
    fn malloc(size: usize) -> *mut c_void;
}

#[pg_guard]
unsafe extern "C-unwind" fn check_claims(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    let rule = |value: &[u8]| {
        let text = String::from_utf8_lossy(value);
        audit_identity::claims::Mapping::parse(&text).map(|_| ()).map_err(|error| Refused {
            message: "invalid mapping of claims",
            detail: error.to_string(),
            hint: "Write user_id=sub, tenant_id=/app_metadata/tenant_id and the like.",
        })
    };
    // SAFETY: PostgreSQL passes the proposed value.
    unsafe { check(new, rule) }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_text(
    new: *mut *mut c_char,
    extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: PostgreSQL passes the proposed value, and a place for what it keeps beside it.
    unsafe { check(new, |value| context::check_string(value).map_err(Refused::from)) && put_stamp(extra) }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_address(
    new: *mut *mut c_char,
    extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as above.
    unsafe {
        check(new, |value| context::parse_inet(&String::from_utf8_lossy(value)).map(|_| ()).map_err(Refused::from))
            && put_stamp(extra)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_object(
    new: *mut *mut c_char,
    extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as above.
    unsafe { check(new, |value| context::check_context(value).map_err(Refused::from)) && put_stamp(extra) }
}

unsafe extern "C" {
    // utils/guc.h; what a check hook leaves for the error message.
    static mut GUC_check_errmsg_string: *mut c_char;
    static mut GUC_check_errdetail_string: *mut c_char;
    static mut GUC_check_errhint_string: *mut c_char;
}

/// Why a value is refused.
struct Refused {
    message: &'static str,
    detail: String,
    hint: &'static str,
}

impl From<ContextError> for Refused {
    fn from(error: ContextError) -> Self {
        Refused { message: error.message, detail: error.detail, hint: error.hint }
    }
}

unsafe fn check(new: *mut *mut c_char, rule: impl Fn(&[u8]) -> Result<(), Refused>) -> bool {
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
