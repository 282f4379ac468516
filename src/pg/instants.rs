//! Many instants in one pass of a BRIN index: the operator `timestamptz <@ timestamptz[]` and the support function of the
//! operator class `audit.instants`, which is PostgreSQL's minmax class and this operator.
//!
//! Queries join events with changesets by their `occurred_at`. A BRIN index answers one instant by reading its whole
//! summary, and knows no `= ANY`; with this operator it answers a page of them for the price of one.

use std::mem::size_of;

use pgrx::{pg_guard, pg_sys};

/// Number of the operator in the operator class; 1 to 5 are those of minmax.
const AMONG: u16 = 6;

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_audit_instant_among() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// `timestamptz <@ timestamptz[]`: whether the array has that instant. STRICT.
///
/// # Safety
/// Called by PostgreSQL's function manager.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn audit_instant_among(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: declared with these two arguments, and STRICT.
    let found = unsafe {
        let arguments = (*fcinfo).args.as_slice(2);
        let instant = arguments[0].value.value() as i64;
        instants(arguments[1].value).contains(&instant)
    };
    pg_sys::Datum::from(found)
}

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_audit_instants_consistent() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// Whether a range of pages can hold rows that meet a condition: BRIN's support function 3.
///
/// # Safety
/// Called by PostgreSQL's BRIN access method.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn audit_instants_consistent(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: BRIN passes its descriptor, the summary of one range and one scan key, neither of them of nulls. The
    // summary's two values are the minimum and the maximum, as minmax keeps them; timestamptz is passed by value.
    unsafe {
        let arguments = (*fcinfo).args.as_slice(3);
        let key = arguments[2].value.cast_mut_ptr::<pg_sys::ScanKeyData>();
        if (*key).sk_strategy != AMONG {
            return pg_sys::brin_minmax_consistent(fcinfo);
        }
        let summary = arguments[1].value.cast_mut_ptr::<BrinValues>();
        let bounds = std::slice::from_raw_parts((*summary).values, 2);
        let range = bounds[0].value() as i64..=bounds[1].value() as i64;
        pg_sys::Datum::from(instants((*key).sk_argument).iter().any(|instant| range.contains(instant)))
    }
}

/// The head of PostgreSQL's `BrinValues` (access/brin_tuple.h), which pgrx does not declare. The same from 15 to 18.
#[repr(C)]
struct BrinValues {
    attno: pg_sys::AttrNumber,
    has_nulls: bool,
    all_nulls: bool,
    values: *const pg_sys::Datum,
}

/// The elements of an array of timestamptz, of any number of dimensions, nulls left out.
///
/// # Safety
/// The datum is such an array, and stays where it is.
unsafe fn instants<'a>(array: pg_sys::Datum) -> &'a [i64] {
    // SAFETY: the header tells where the elements begin; they are 8 bytes each without padding, up to the array's end.
    unsafe {
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let dimensions = usize::try_from((*array).ndim).unwrap_or(0);
        if dimensions == 0 {
            return &[];
        }
        let start = match usize::try_from((*array).dataoffset) {
            Ok(offset) if offset > 0 => offset,
            _ => (size_of::<pg_sys::ArrayType>() + 2 * size_of::<i32>() * dimensions).next_multiple_of(8),
        };
        let length = pgrx::varlena::varsize_4b(array.cast()).saturating_sub(start);
        std::slice::from_raw_parts(array.byte_add(start).cast(), length / size_of::<i64>())
    }
}
