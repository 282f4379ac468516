//! Arguments of SQL functions as pgrx lacks them: oid aliases, and text as bytes in whatever encoding the database has.

use std::ffi::CStr;

use pgrx::callconv::{Arg, ArgAbi};
use pgrx::nullable::Nullable;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{FromDatum, pg_sys};

use super::encode::Varlena;

macro_rules! argument {
    ($(#[$doc:meta])* $name:ident($inner:ty), $sql:literal, $from:expr) => {
        $(#[$doc])*
        pub struct $name(pub $inner);

        impl FromDatum for $name {
            unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _type: pg_sys::Oid) -> Option<Self> {
                (!is_null).then(|| $name($from(datum)))
            }
        }

        // SAFETY: the SQL type is the one whose datum `from_polymorphic_datum` reads.
        unsafe impl SqlTranslatable for $name {
            const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!($name);
            const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
            const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal($sql));
            const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::literal($sql)));
        }

        // SAFETY: unboxes by `from_polymorphic_datum`, null or not.
        unsafe impl<'fcx> ArgAbi<'fcx> for $name {
            unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
                // SAFETY: the caller's word. Functions that take this type bare are STRICT, so it is never null.
                match unsafe { arg.unbox_arg_using_from_datum() } {
                    Some(value) => value,
                    None => super::report::raise(crate::error::Error::NullArgument { argument: $sql }),
                }
            }

            unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
                // SAFETY: the caller's word.
                unsafe { arg.unbox_arg_using_from_datum().into() }
            }
        }
    };
}

argument!(
    /// `regclass`
    RegClass(pg_sys::Oid), "regclass", |datum: pg_sys::Datum| pg_sys::Oid::from(datum.value() as u32)
);
argument!(
    /// `regnamespace`
    RegNamespace(pg_sys::Oid), "regnamespace", |datum: pg_sys::Datum| pg_sys::Oid::from(datum.value() as u32)
);
argument!(
    /// `text`, in the encoding of the database
    Text(Vec<u8>), "text", |datum: pg_sys::Datum| Varlena::of(datum).bytes().to_vec()
);
argument!(
    /// `jsonb`, as its text
    JsonbText(Vec<u8>), "jsonb", |datum: pg_sys::Datum| output(pg_sys::F_JSONB_OUT, datum)
);
argument!(
    /// `inet`, as its text
    InetText(Vec<u8>), "inet", |datum: pg_sys::Datum| output(pg_sys::F_INET_OUT, datum)
);

argument!(
    /// `inet[]`, as texts; NULLs left out
    InetArray(Vec<Vec<u8>>), "inet[]", inet_array
);

fn inet_array(datum: pg_sys::Datum) -> Vec<Vec<u8>> {
    super::catalog::array_elements(datum, pg_sys::INETOID)
        .into_iter()
        .map(|element| output(pg_sys::F_INET_OUT, element))
        .collect()
}

fn output(function: u32, datum: pg_sys::Datum) -> Vec<u8> {
    // SAFETY: the function is the output function of the datum's type.
    unsafe { CStr::from_ptr(pg_sys::OidOutputFunctionCall(function.into(), datum)).to_bytes().to_vec() }
}
