//! Facts of the session and the transaction.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys;

use super::{catalog, unguarded};
use crate::error::Error;

/// This library's version: the extension in the database must be of the same.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Has no error carry a Rust backtrace, whatever the server's environment says: pgrx would put it into the client's
/// DETAIL, and taking one while memory is out never ends.
pub fn switch_off_backtraces() {
    // SAFETY: called when the library is loaded, by a process with one thread.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
}

/// Who the change is made as: the session's role and the one in effect.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Roles {
    pub session: pg_sys::Oid,
    pub effective: pg_sys::Oid,
}

pub fn roles() -> Roles {
    // SAFETY: reads of backend variables; a transaction is under way.
    unsafe { Roles { session: unguarded::GetSessionUserId(), effective: unguarded::GetUserId() } }
}

/// A role's name; its oid as text where it was dropped meanwhile.
pub fn role_name(role: pg_sys::Oid) -> Rc<[u8]> {
    // SAFETY: a catalog look-up that gives null for an unknown role.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() {
            role.to_u32().to_string().as_bytes().into()
        } else {
            CStr::from_ptr(name).to_bytes().into()
        }
    }
}

/// The application's name until it is next set; empty where there is none.
pub fn application_name() -> &'static [u8] {
    // SAFETY: the variable is a C string, or null before it is set. The caller keeps the text for no longer than until
    // PostgreSQL runs again.
    unsafe {
        let name = pg_sys::application_name;
        if name.is_null() { b"" } else { CStr::from_ptr(name).to_bytes() }
    }
}

/// Text of the statement that the client sent.
pub fn statement() -> Option<Vec<u8>> {
    // SAFETY: the variable is a C string, or null outside a client's command.
    unsafe {
        let text = pg_sys::debug_query_string;
        (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes().to_vec())
    }
}

pub fn backend_pid() -> i32 {
    // SAFETY: a read of a backend variable.
    unsafe { pg_sys::MyProcPid }
}

/// Address and port of the client; `None` over a Unix socket and in background workers.
pub fn client() -> Option<(std::net::IpAddr, u16)> {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    // SAFETY: the port structure, where there is one, holds the peer's socket address: family, then port and address in
    // network order, at the offsets that sockaddr_in and sockaddr_in6 have.
    unsafe {
        let port = pg_sys::libpq::be::MyProcPort;
        if port.is_null() {
            return None;
        }
        let address = (&raw const (*port).raddr.addr).cast::<[u8; 28]>().read_unaligned();
        let number = u16::from_be_bytes([address[2], address[3]]);
        match u16::from_ne_bytes([address[0], address[1]]) {
            AF_INET => {
                let octets: [u8; 4] = address[4..8].try_into().ok()?;
                Some((octets.into(), number))
            }
            AF_INET6 => {
                let octets: [u8; 16] = address[8..24].try_into().ok()?;
                Some((octets.into(), number))
            }
            _ => None,
        }
    }
}

/// Sends a notification when this transaction is committed.
pub fn notify(channel: &CStr, payload: &CStr) {
    unsafe extern "C-unwind" {
        // commands/async.h; not in pgrx's bindings.
        fn Async_Notify(channel: *const std::ffi::c_char, payload: *const std::ffi::c_char);
    }
    // SAFETY: both are C strings. The boundary turns an ERROR into a panic; nothing with a destructor lives inside it.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr())) };
}

/// The setting search_path.
pub fn search_path() -> Vec<u8> {
    // SAFETY: the variable is a C string, or null before it is set.
    unsafe {
        let path = pg_sys::namespace_search_path;
        if path.is_null() { Vec::new() } else { CStr::from_ptr(path).to_bytes().to_vec() }
    }
}

/// Where the port structure (libpq/libpq-be.h) has the names of database and role. pgrx's has a field before them that
/// version 17 has not.
#[cfg(not(feature = "pg17"))]
const NAMES_AT: usize = std::mem::offset_of!(pg_sys::libpq::be::Port, database_name);
#[cfg(feature = "pg17")]
const NAMES_AT: usize = std::mem::offset_of!(pg_sys::libpq::be::Port, canAcceptConnections);

/// Calls `body` with the names of database and role that the client asked for.
pub fn with_login_names(body: impl FnOnce(&[u8], &[u8])) {
    // SAFETY: the port structure, where there is one, holds C strings, or null before the client's first packet is read.
    unsafe {
        let port = pg_sys::libpq::be::MyProcPort;
        if port.is_null() {
            return;
        }
        let [database, role] = port.byte_add(NAMES_AT).cast::<[*const std::ffi::c_char; 2]>().read();
        if !database.is_null() && !role.is_null() {
            let text = |text| CStr::from_ptr(text).to_bytes();
            body(text(database), text(role));
        }
    }
}

/// Whether this process serves a client.
pub fn has_client() -> bool {
    // SAFETY: a read of a backend variable.
    unsafe { !pg_sys::libpq::be::MyProcPort.is_null() }
}

/// When this process started, as `clock` counts.
pub fn started_at() -> i64 {
    // SAFETY: a read of a backend variable.
    unsafe { pg_sys::MyStartTimestamp }
}

/// The clock, in microseconds since 2000-01-01 as PostgreSQL counts.
pub fn clock() -> i64 {
    // SAFETY: reads the clock.
    unsafe { unguarded::GetCurrentTimestamp() }
}

/// PostgreSQL's time in microseconds since the Unix epoch.
pub fn unix_usecs(timestamp: i64) -> i64 {
    const USECS_1970_TO_2000: i64 = 946_684_800_000_000;
    timestamp + USECS_1970_TO_2000
}

/// A transaction and a sub-transaction of it.
pub type Place = (u64, u32);

/// Where we are; the transaction has an id from here on.
pub fn place() -> Place {
    (transaction_id(), current_subtransaction())
}

pub fn current_subtransaction() -> u32 {
    // SAFETY: a read of the transaction state.
    unsafe { unguarded::GetCurrentSubTransactionId() }
}

pub fn current_command() -> u32 {
    // SAFETY: a read of the transaction state; a write of this command is under way anyway.
    unsafe { pg_sys::GetCurrentCommandId(true) }
}

/// The command that what is written at commit belongs to: nothing comes after it that would have to see it.
pub fn last_command() -> u32 {
    // SAFETY: a read of the transaction state; marking the command as used is what could fail.
    unsafe { unguarded::GetCurrentCommandId(false) }
}

/// The top transaction's id, assigned if need be.
pub fn transaction_id() -> u64 {
    // SAFETY: a transaction is under way; reading its id, if it has one, cannot fail.
    unsafe {
        match unguarded::GetTopFullTransactionIdIfAny().value {
            0 => pg_sys::GetTopFullTransactionId().value,
            assigned => assigned,
        }
    }
}

/// The session's database.
pub fn database() -> pg_sys::Oid {
    // SAFETY: a read of a backend variable.
    unsafe { pg_sys::MyDatabaseId }
}

/// Whether the server is loading `shared_preload_libraries`.
pub fn is_preloading() -> bool {
    // SAFETY: a read of a backend variable.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

pub fn wal_position() -> u64 {
    // SAFETY: reads shared memory.
    unsafe { unguarded::GetXLogInsertRecPtr() }
}

pub fn is_standby() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// The next transaction id, if no transaction that has one is under way: while it stays the same, nothing is written.
pub fn next_xid_if_idle() -> Option<u64> {
    // SAFETY: reads shared memory, not during recovery. The next one first: a transaction that begins meanwhile is seen as
    // under way, or changes what the next call returns.
    unsafe {
        let next = pg_sys::ReadNextFullTransactionId().value;
        (pg_sys::GetOldestActiveTransactionId().into_inner() == next as u32).then_some(next)
    }
}

pub fn system_identifier() -> u64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// The WAL timeline that is written: another one after a promotion or a point-in-time recovery.
pub fn timeline() -> u32 {
    // SAFETY: reads shared memory; the server is not in recovery, since something is being written.
    unsafe { pg_sys::GetWALInsertionTimeLine() }
}

pub fn database_name() -> String {
    // SAFETY: a catalog look-up that gives a C string, or null for a database that is gone.
    let name = unsafe {
        let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    };
    String::from_utf8_lossy(&to_utf8(&name)).into_owned()
}

/// Whether all statements of the transaction share one snapshot (REPEATABLE READ, SERIALIZABLE).
pub fn shares_snapshot() -> bool {
    // SAFETY: a read of a backend variable.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// Has this transaction's commit wait until it is on disk, and with synchronous standbys until they have it, whatever
/// the session has set.
pub fn commit_durably() {
    // SAFETY: marks the transaction; names and values are C strings. A stricter setting stays.
    unsafe {
        pg_sys::ForceSyncCommit();
        let now = pg_sys::GetConfigOption(c"synchronous_commit".as_ptr(), false, false);
        if now.is_null() || CStr::from_ptr(now) != c"remote_apply" {
            pg_sys::set_config_option(
                c"synchronous_commit".as_ptr(),
                c"on".as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_LOCAL,
                true,
                0,
                false,
            );
        }
    }
}

/// The text of an address as inet_out prints it.
pub fn inet_text(payload: &[u8]) -> Vec<u8> {
    let value = super::heap::varlena(payload);
    // SAFETY: the value is an inet in the current memory context.
    unsafe { CStr::from_ptr(pg_sys::OidOutputFunctionCall(pg_sys::F_INET_OUT.into(), value)).to_bytes().to_vec() }
}

/// An inet's payload: family, number of bits, address (PostgreSQL, `utils/inet.h`).
pub fn inet_payload(address: std::net::IpAddr, bits: u8) -> Vec<u8> {
    const PGSQL_AF_INET: u8 = 2;
    const PGSQL_AF_INET6: u8 = 3;
    match address {
        std::net::IpAddr::V4(v4) => [&[PGSQL_AF_INET, bits][..], &v4.octets()].concat(),
        std::net::IpAddr::V6(v6) => [&[PGSQL_AF_INET6, bits][..], &v6.octets()].concat(),
    }
}

/// Whether text in this database is bytes of no known encoding.
pub fn is_sql_ascii() -> bool {
    encoding() == pg_sys::pg_enc::PG_SQL_ASCII as i32
}

/// Whether text must be converted before it is hashed.
pub fn needs_conversion() -> bool {
    let encoding = encoding();
    encoding != pg_sys::pg_enc::PG_UTF8 as i32 && encoding != pg_sys::pg_enc::PG_SQL_ASCII as i32
}

fn encoding() -> i32 {
    thread_local! {
        static ENCODING: Cell<i32> = const { Cell::new(-1) };
    }
    let mut encoding = ENCODING.get();
    if encoding < 0 {
        // SAFETY: reads a backend variable, fixed once the session has its database.
        encoding = unsafe { pg_sys::GetDatabaseEncoding() };
        ENCODING.set(encoding);
    }
    encoding
}

/// Text of the database in UTF-8.
pub fn to_utf8(text: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if !needs_conversion() {
        return std::borrow::Cow::Borrowed(text);
    }
    // SAFETY: the result is the input itself or a C string in the current memory context.
    unsafe {
        let converted =
            pg_sys::pg_server_to_any(text.as_ptr().cast(), text.len() as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        if converted.cast_const().cast() == text.as_ptr() {
            return std::borrow::Cow::Borrowed(text);
        }
        std::borrow::Cow::Owned(CStr::from_ptr(converted).to_bytes().to_vec())
    }
}

/// UTF-8 in the database's encoding; an ERROR where that lacks a character.
pub fn of_utf8(text: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    // SAFETY: as in `to_utf8`.
    unsafe {
        let converted =
            pg_sys::pg_any_to_server(text.as_ptr().cast(), text.len() as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        if converted.cast_const().cast() == text.as_ptr() {
            return std::borrow::Cow::Borrowed(text);
        }
        std::borrow::Cow::Owned(CStr::from_ptr(converted).to_bytes().to_vec())
    }
}

/// When the client's statement began, in PostgreSQL's microseconds.
pub fn statement_time() -> i64 {
    // SAFETY: a read of a backend variable.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
}

/// Text in the database's encoding, as it is or, where it is none, with what is not ASCII replaced.
pub fn valid_text(text: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    // SAFETY: looks at so many bytes.
    if unsafe { pg_sys::pg_verifymbstr(text.as_ptr().cast(), text.len() as i32, true) } {
        return std::borrow::Cow::Borrowed(text);
    }
    text.iter().map(|&byte| if byte.is_ascii() && byte != 0 { byte } else { b'?' }).collect()
}

/// Refuses to write with a library of another version than the extension in the database has.
pub fn check_version() -> Result<(), Error> {
    match catalog::extension_version()? {
        Some(version) if version == VERSION.as_bytes() => Ok(()),
        Some(version) => Err(Error::VersionMismatch { extension: String::from_utf8_lossy(&version).into_owned() }),
        None => Err(Error::NotInstalled),
    }
}

/// Has the rest of the command see what it changed so far, relation caches included.
pub fn make_changes_visible() {
    // SAFETY: a transaction is under way.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Acts as the extension's owner until dropped: to create triggers on tables and write policy, whoever the
/// administrator is who asked. As in a SECURITY DEFINER function, SET ROLE is not possible meanwhile.
pub struct AsOwner(#[allow(dead_code, reason = "held for its end")] Switched);

impl AsOwner {
    pub fn begin() -> Result<Self, Error> {
        let owner = catalog::extension_owner()?.ok_or(Error::NotInstalled)?;
        Ok(AsOwner(Switched::to(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE)))
    }
}

/// Acts as a role that has no rights but everybody's until dropped, and can do nothing that outlasts the call: for what an
/// administrator wrote and others evaluate. PostgreSQL has no role of that kind; the predefined one that is used here may
/// do CHECKPOINT, which a restricted operation has no use for.
pub struct AsNobody(#[allow(dead_code, reason = "held for its end")] Switched);

impl AsNobody {
    pub fn begin() -> Self {
        /// pg_checkpoint, in `pg_authid.dat`.
        const NOBODY: pg_sys::Oid = pg_sys::Oid::from_u32(4544);
        let restricted = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        AsNobody(Switched::to(NOBODY, restricted))
    }
}

/// The current user and security context that were, put back when dropped.
struct Switched {
    user: pg_sys::Oid,
    context: std::ffi::c_int,
}

impl Switched {
    fn to(role: pg_sys::Oid, flags: u32) -> Self {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: fills two locals, then sets the same variables as a SECURITY DEFINER function does; an abort puts back
        // the outer ones.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            pg_sys::SetUserIdAndSecContext(role, context | flags as i32);
        }
        Switched { user, context }
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        // SAFETY: puts back what `to` found.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
    }
}
