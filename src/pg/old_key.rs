//! The hash of the old key in an event's details, for the operator class `audit.old_key_bloom`: a BRIN index asks for it
//! once for each range of pages, of which a partition has hundreds, so it is no SQL function.

use pgrx::fcinfo::direct_function_call_as_datum;
use pgrx::{pg_guard, pg_sys};

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_audit_old_key_hash() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// A hash of `details ->> 'old_resource_id'`, 0 without one. STRICT.
///
/// # Safety
/// Called by PostgreSQL's function manager.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn audit_old_key_hash(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    const KEY: &[u8] = b"old_resource_id";
    // SAFETY: declared with one argument, jsonb, and STRICT. What is made here goes with the caller's memory context.
    let hash = unsafe {
        let details = (*fcinfo).args.as_slice(1)[0].value;
        let key = pg_sys::cstring_to_text_with_len(KEY.as_ptr().cast(), KEY.len() as i32);
        direct_function_call_as_datum(pg_sys::jsonb_object_field_text, &[Some(details), Some(pg_sys::Datum::from(key))])
            .map_or(0, |text| fnv1a(pgrx::varlena::varlena_to_byte_slice(text.cast_mut_ptr())))
    };
    pg_sys::Datum::from(hash as i32)
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
