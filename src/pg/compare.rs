//! Whether two values of a column are the same: by their bytes, as `datum_image_eq` does, but looking through storage.
//! A value compressed or moved out of line is the value that it was; identical TOAST pointers are equal without a look.

use pgrx::pg_sys;
use pgrx::varlena::{varatt_is_1b_e, varatt_is_4b_c, varsize_any};

use super::encode::{Varlena, raw_size};
use super::relation::Row;

/// Length and passing of a column's type.
#[derive(Clone, Copy)]
pub struct Shape {
    pub length: i16,
    pub by_value: bool,
}

/// Whether a column's value changed from one row to another.
#[inline]
pub fn differs(shape: Shape, index: usize, old: Row, new: Row) -> bool {
    match (old.nulls[index], new.nulls[index]) {
        (true, true) => false,
        (false, false) => !same(shape, old.values[index], new.values[index]),
        _ => true,
    }
}

/// Both values are non-null and of the same column.
#[inline]
fn same(shape: Shape, old: pg_sys::Datum, new: pg_sys::Datum) -> bool {
    if shape.by_value || old.value() == new.value() {
        return old.value() == new.value();
    }
    match shape.length {
        -1 => same_varlena(old, new),
        -2 => {
            // SAFETY: both point to C strings of a tuple.
            unsafe { std::ffi::CStr::from_ptr(old.cast_mut_ptr()) == std::ffi::CStr::from_ptr(new.cast_mut_ptr()) }
        }
        length => {
            // SAFETY: both point to `length` bytes of a tuple.
            unsafe {
                std::slice::from_raw_parts(old.cast_mut_ptr::<u8>(), length as usize)
                    == std::slice::from_raw_parts(new.cast_mut_ptr::<u8>(), length as usize)
            }
        }
    }
}

fn same_varlena(old: pg_sys::Datum, new: pg_sys::Datum) -> bool {
    let (a, b) = (old.cast_mut_ptr::<pg_sys::varlena>(), new.cast_mut_ptr::<pg_sys::varlena>());
    // SAFETY: both are varlenas of a tuple, so their headers and the sizes these give can be read.
    unsafe {
        let stored = |p| varatt_is_1b_e(p) || varatt_is_4b_c(p);
        if stored(a) || stored(b) {
            let (bytes_a, bytes_b) = (
                std::slice::from_raw_parts(a.cast::<u8>(), varsize_any(a)),
                std::slice::from_raw_parts(b.cast::<u8>(), varsize_any(b)),
            );
            if bytes_a == bytes_b {
                return true;
            }
            if raw_size(old) != raw_size(new) {
                return false;
            }
        }
    }
    Varlena::of(old).bytes() == Varlena::of(new).bytes()
}
