//! Writes a column's value into a row image, as `to_jsonb` would under the fixed environment (`env.rs`).
//!
//! [`Encoder::for_type`] follows `json_categorize_type` (PostgreSQL, `utils/adt/jsonfuncs.c`; in 15
//! `jsonb_categorize_type`): numbers, booleans, dates, json, arrays, composites, casts to json, and the output function
//! for all else. The commonest types are written from their binary form without a call into PostgreSQL.

use std::ffi::CStr;

use audit_core::checksum::Digest;
use audit_core::error::Error as CoreError;
use audit_core::jsonb::Writer;
use pgrx::varlena::{varatt_is_1b_e, varatt_is_4b_c, varlena_to_byte_slice};
use pgrx::{PgMemoryContexts, pg_sys};

use super::composite;
use super::env::{self, Env};
use crate::datetime;

/// How values of one type are written.
pub enum Encoder {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    Text,
    Uuid,
    Bytea,
    Money,
    Date,
    Timestamp,
    TimestampTz,
    Json,
    Jsonb,
    Array(Box<ArrayEncoder>),
    Composite,
    CastToJson(Box<Function>),
    Output(Box<Function>),
}

/// An array's element type.
pub struct ArrayEncoder {
    element_type: pg_sys::Oid,
    element: Encoder,
    env: Env,
    length: i16,
    by_value: bool,
    align: std::ffi::c_char,
}

/// An output function or a cast to json, looked up once.
pub struct Function {
    info: pg_sys::FmgrInfo,
    env: Env,
}

unsafe extern "C-unwind" {
    // common/shortest_dec.h; not in pgrx's bindings. They write at most 24 and 16 bytes and cannot fail.
    fn double_to_shortest_decimal_buf(value: f64, result: *mut std::ffi::c_char) -> std::ffi::c_int;
    fn float_to_shortest_decimal_buf(value: f32, result: *mut std::ffi::c_char) -> std::ffi::c_int;
}

impl Encoder {
    /// The writer for a type, and what it needs of the environment. Function lookups live in `context`.
    pub fn for_type(type_id: pg_sys::Oid, context: pg_sys::MemoryContext) -> (Encoder, Env) {
        let base = super::relation::base_type(type_id);
        let encoder = match base {
            pg_sys::BOOLOID => Encoder::Bool,
            pg_sys::INT2OID => Encoder::Int2,
            pg_sys::INT4OID => Encoder::Int4,
            pg_sys::INT8OID => Encoder::Int8,
            pg_sys::FLOAT4OID => Encoder::Float4,
            pg_sys::FLOAT8OID => Encoder::Float8,
            pg_sys::NUMERICOID => Encoder::Numeric,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Encoder::Text,
            pg_sys::UUIDOID => Encoder::Uuid,
            pg_sys::BYTEAOID => Encoder::Bytea,
            pg_sys::MONEYOID => Encoder::Money,
            pg_sys::DATEOID => Encoder::Date,
            pg_sys::TIMESTAMPOID => Encoder::Timestamp,
            pg_sys::TIMESTAMPTZOID => Encoder::TimestampTz,
            pg_sys::JSONOID => Encoder::Json,
            pg_sys::JSONBOID => Encoder::Jsonb,
            other => return Encoder::for_structured(other, context),
        };
        (encoder, Env::Free)
    }

    fn for_structured(base: pg_sys::Oid, context: pg_sys::MemoryContext) -> (Encoder, Env) {
        // SAFETY: catalog look-ups on a type that exists.
        let (element_type, is_row) = unsafe { (pg_sys::get_element_type(base), pg_sys::type_is_rowtype(base)) };
        if element_type != pg_sys::InvalidOid {
            let array = ArrayEncoder::for_element(element_type, context);
            let env = array.env;
            return (Encoder::Array(Box::new(array)), env);
        }
        if is_row {
            return (Encoder::Composite, composite::env_of(base));
        }
        if let Some(cast) = Function::cast_to_json(base, context) {
            return (Encoder::CastToJson(Box::new(cast)), Env::Settings);
        }
        let output = Function::output(base, context);
        if output.is_text_output() {
            return (Encoder::Text, Env::Free);
        }
        let env = output.env;
        (Encoder::Output(Box::new(output)), env)
    }

    /// Appends the value.
    ///
    /// [`CoreError::TooLarge`] and [`CoreError::NotJsonb`] say that JSONB cannot hold it: the caller puts its digest in
    /// its place.
    pub fn write(&self, value: pg_sys::Datum, out: &mut Writer) -> Result<(), CoreError> {
        match self {
            Encoder::Bool => out.boolean(value.value() as u8 != 0),
            Encoder::Int2 => out.integer(i64::from(value.value() as i16)),
            Encoder::Int4 => out.integer(i64::from(value.value() as i32)),
            Encoder::Int8 => out.integer(value.value() as i64),
            Encoder::Float4 => write_float4(f32::from_bits(value.value() as u32), out),
            Encoder::Float8 => write_float8(f64::from_bits(value.value() as u64), out),
            Encoder::Numeric => out.numeric(Varlena::of(value).bytes()),
            Encoder::Text => write_text(Varlena::of(value).bytes(), out),
            Encoder::Uuid => out.string(&uuid_text(fixed_bytes::<16>(value))),
            Encoder::Bytea => write_bytea(Varlena::of(value).bytes(), out),
            Encoder::Money => write_money(value.value() as i64, out),
            Encoder::Date => match datetime::date(value.value() as i32) {
                Some(text) => out.string(text.as_bytes()),
                None => write_datetime(value, pg_sys::DATEOID, out),
            },
            Encoder::Timestamp => match datetime::timestamp(value.value() as i64, false) {
                Some(text) => out.string(text.as_bytes()),
                None => write_datetime(value, pg_sys::TIMESTAMPOID, out),
            },
            Encoder::TimestampTz => match datetime::timestamp(value.value() as i64, true) {
                Some(text) => out.string(text.as_bytes()),
                None => write_datetime(value, pg_sys::TIMESTAMPTZOID, out),
            },
            Encoder::Json => out.json(checked_text(Varlena::of(value).bytes())?),
            Encoder::Jsonb => out.container(Varlena::of(value).bytes()),
            Encoder::Array(array) => array.write(value, out),
            Encoder::Composite => composite::write(value, out),
            Encoder::CastToJson(cast) => {
                let json = cast.call_cast(value);
                out.json(checked_text(Varlena::of(json).bytes())?)
            }
            Encoder::Output(output) => {
                let _env = env::enter(output.env);
                write_text(output.call_output(value).to_bytes(), out)
            }
        }
    }

    /// The value's text, where that is the value itself.
    pub fn plain_text<'a>(&self, value: pg_sys::Datum) -> Option<&'a [u8]> {
        matches!(self, Encoder::Text).then(|| Varlena::of(value).bytes()).filter(|text| checked_text(text).is_ok())
    }

    /// Whether values can be large, or such that JSONB cannot hold them: the caller must be ready to put a digest in their
    /// place.
    pub fn may_be_large(&self) -> bool {
        !matches!(
            self,
            Encoder::Bool
                | Encoder::Int2
                | Encoder::Int4
                | Encoder::Int8
                | Encoder::Float4
                | Encoder::Float8
                | Encoder::Uuid
                | Encoder::Money
                | Encoder::Date
                | Encoder::Timestamp
                | Encoder::TimestampTz
        )
    }

    /// Size of the value's text if that can be had without writing it: lets a value over the limit be refused early.
    pub fn text_size(&self, value: pg_sys::Datum) -> Option<usize> {
        match self {
            Encoder::Text | Encoder::Json => Some(raw_size(value)),
            Encoder::Bytea => Some(2 + 2 * raw_size(value)),
            _ => None,
        }
    }
}

impl ArrayEncoder {
    fn for_element(element_type: pg_sys::Oid, context: pg_sys::MemoryContext) -> Self {
        let (mut length, mut by_value, mut align) = (0i16, false, 0 as std::ffi::c_char);
        // SAFETY: a catalog look-up that fills three locals.
        unsafe { pg_sys::get_typlenbyvalalign(element_type, &mut length, &mut by_value, &mut align) };
        let (element, env) = Encoder::for_type(element_type, context);
        ArrayEncoder { element_type, element, env, length, by_value, align }
    }

    fn write(&self, value: pg_sys::Datum, out: &mut Writer) -> Result<(), CoreError> {
        // SAFETY: the value is an array of the type that this encoder was built for; detoasting yields an aligned,
        // plain ArrayType in the current memory context, and deconstruct_array allocates what it returns there too.
        unsafe {
            let array = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            if (*array).elemtype != self.element_type {
                let own = ArrayEncoder::for_element((*array).elemtype, pg_sys::CurrentMemoryContext);
                return own.write(value, out);
            }
            let dims = std::slice::from_raw_parts(
                array.byte_add(std::mem::size_of::<pg_sys::ArrayType>()).cast::<i32>(),
                (*array).ndim as usize,
            );
            let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
            pg_sys::deconstruct_array(
                array,
                self.element_type,
                i32::from(self.length),
                self.by_value,
                self.align,
                &mut values,
                &mut nulls,
                &mut count,
            );
            if count == 0 {
                out.begin_array(0)?;
                return out.end_array();
            }
            let values = std::slice::from_raw_parts(values, count as usize);
            let nulls = std::slice::from_raw_parts(nulls, count as usize);
            self.write_dimension(dims, &mut values.iter().zip(nulls), out)
        }
    }

    fn write_dimension<'a>(
        &self,
        dims: &[i32],
        elements: &mut impl Iterator<Item = (&'a pg_sys::Datum, &'a bool)>,
        out: &mut Writer,
    ) -> Result<(), CoreError> {
        let Some((&size, inner)) = dims.split_first() else { return Ok(()) };
        out.begin_array(size as usize)?;
        for _ in 0..size {
            if !inner.is_empty() {
                self.write_dimension(inner, elements, out)?;
            } else if let Some((&value, &is_null)) = elements.next() {
                if is_null {
                    out.null()?;
                } else {
                    self.element.write(value, out)?;
                }
            }
        }
        out.end_array()
    }
}

impl Function {
    fn look_up(function: pg_sys::Oid, env: Env, context: pg_sys::MemoryContext) -> Self {
        let mut info = pg_sys::FmgrInfo::default();
        // SAFETY: fills the struct; what the function caches lives in `context`, as long as the layout that owns it.
        unsafe { pg_sys::fmgr_info_cxt(function, &mut info, context) };
        Function { info, env }
    }

    /// The type's output function.
    pub fn output(type_id: pg_sys::Oid, context: pg_sys::MemoryContext) -> Self {
        let (mut function, mut is_varlena) = (pg_sys::InvalidOid, false);
        // SAFETY: a catalog look-up that fills two locals.
        unsafe { pg_sys::getTypeOutputInfo(type_id, &mut function, &mut is_varlena) };
        Function::look_up(function, output_env(type_id), context)
    }

    fn cast_to_json(type_id: pg_sys::Oid, context: pg_sys::MemoryContext) -> Option<Self> {
        if type_id.to_u32() < pg_sys::FirstNormalObjectId {
            return None;
        }
        let mut function = pg_sys::InvalidOid;
        // SAFETY: a catalog look-up that fills one local.
        let path = unsafe {
            pg_sys::find_coercion_pathway(
                pg_sys::JSONOID,
                type_id,
                pg_sys::CoercionContext::COERCION_EXPLICIT,
                &mut function,
            )
        };
        let by_function = path == pg_sys::CoercionPathType::COERCION_PATH_FUNC && function != pg_sys::InvalidOid;
        by_function.then(|| Function::look_up(function, Env::Settings, context))
    }

    /// Whether this is `textout` under whatever name (citext's is): then the value's bytes are its text.
    fn is_text_output(&self) -> bool {
        let mut text = pg_sys::FmgrInfo::default();
        // SAFETY: fills the struct; textout caches nothing.
        unsafe { pg_sys::fmgr_info(pg_sys::Oid::from(pg_sys::F_TEXTOUT), &mut text) };
        self.info.fn_addr.map(|f| f as usize) == text.fn_addr.map(|f| f as usize)
    }

    fn call_output(&self, value: pg_sys::Datum) -> &CStr {
        let _users_code = (self.env == Env::Settings).then(env::leave);
        // SAFETY: the function is the value's output function: it returns a C string in the current memory context,
        // which outlives the row. PostgreSQL takes the struct by mutable pointer to let the function cache in it.
        unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall((&raw const self.info).cast_mut(), value)) }
    }

    fn call_cast(&self, value: pg_sys::Datum) -> pg_sys::Datum {
        let _env = env::enter(self.env);
        let _users_code = env::leave();
        // SAFETY: the function is the cast of the value's type to json, with one argument and no collation.
        unsafe { pg_sys::FunctionCall1Coll((&raw const self.info).cast_mut(), pg_sys::InvalidOid, value) }
    }
}

/// What a type's output function reads of the settings.
fn output_env(type_id: pg_sys::Oid) -> Env {
    match type_id {
        pg_sys::NAMEOID
        | pg_sys::CHAROID
        | pg_sys::BITOID
        | pg_sys::VARBITOID
        | pg_sys::INETOID
        | pg_sys::CIDROID
        | pg_sys::MACADDROID
        | pg_sys::MACADDR8OID
        | pg_sys::OIDOID
        | pg_sys::XIDOID
        | pg_sys::XID8OID
        | pg_sys::CIDOID
        | pg_sys::TIDOID
        | pg_sys::PG_LSNOID
        | pg_sys::TSVECTOROID
        | pg_sys::TSQUERYOID
        | pg_sys::XMLOID
        | pg_sys::JSONPATHOID => Env::Free,
        pg_sys::REGPROCOID
        | pg_sys::REGPROCEDUREOID
        | pg_sys::REGOPEROID
        | pg_sys::REGOPERATOROID
        | pg_sys::REGCLASSOID
        | pg_sys::REGCOLLATIONOID
        | pg_sys::REGTYPEOID
        | pg_sys::REGCONFIGOID
        | pg_sys::REGDICTIONARYOID
        | pg_sys::REGNAMESPACEOID
        | pg_sys::REGROLEOID
        | pg_sys::ACLITEMOID => Env::Settings,
        // SAFETY: a catalog look-up on a type that exists.
        other if unsafe { pg_sys::get_typtype(other) } == pg_sys::TYPTYPE_ENUM as std::ffi::c_char => Env::Free,
        other if other.to_u32() < pg_sys::FirstNormalObjectId => Env::Variables,
        _ => Env::Settings,
    }
}

/// A variable-length value, detoasted where it had to be; plain memory of the tuple or of the current memory context.
#[derive(Clone, Copy)]
pub struct Varlena(*const pg_sys::varlena);

impl Varlena {
    /// Of a non-null value of a type with `typlen = -1`.
    pub fn of(value: pg_sys::Datum) -> Self {
        let pointer = value.cast_mut_ptr::<pg_sys::varlena>();
        // SAFETY: a non-null datum of a variable-length type points to a varlena.
        unsafe {
            if varatt_is_1b_e(pointer) || varatt_is_4b_c(pointer) {
                return Varlena(pg_sys::pg_detoast_datum_packed(pointer));
            }
        }
        Varlena(pointer)
    }

    /// The payload after the header.
    pub fn bytes<'a>(self) -> &'a [u8] {
        // SAFETY: `of` made sure of a plain varlena; tuple and memory context live until the row is done, and the
        // slice is used no longer than that.
        unsafe { varlena_to_byte_slice(self.0) }
    }
}

/// Size of the payload, known without fetching it.
pub fn raw_size(value: pg_sys::Datum) -> usize {
    const HEADER: usize = 4;
    // SAFETY: the value is a varlena; the function reads its header only. It counts a four-byte header always.
    unsafe { pg_sys::toast_raw_datum_size(value) }.saturating_sub(HEADER)
}

/// The bytes of a fixed-length type that is passed by reference.
pub fn fixed_bytes<'a, const N: usize>(value: pg_sys::Datum) -> &'a [u8; N] {
    // SAFETY: the caller names the type's length; such a datum points to that many bytes of the tuple.
    unsafe { &*value.cast_mut_ptr::<[u8; N]>() }
}

pub fn uuid_text(bytes: &[u8; 16]) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    text
}

fn write_float8(value: f64, out: &mut Writer) -> Result<(), CoreError> {
    if value.is_nan() {
        return out.string(b"NaN");
    }
    if value.is_infinite() {
        return out.string(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    let mut text = [0u8; 32];
    // SAFETY: the buffer is larger than the longest result (DOUBLE_SHORTEST_DECIMAL_LEN, 25).
    let length = unsafe { double_to_shortest_decimal_buf(value, text.as_mut_ptr().cast()) };
    out.decimal(&text[..length as usize])
}

fn write_float4(value: f32, out: &mut Writer) -> Result<(), CoreError> {
    if value.is_nan() || value.is_infinite() {
        return write_float8(f64::from(value), out);
    }
    let mut text = [0u8; 32];
    // SAFETY: the buffer is larger than the longest result (FLOAT_SHORTEST_DECIMAL_LEN, 16).
    let length = unsafe { float_to_shortest_decimal_buf(value, text.as_mut_ptr().cast()) };
    out.decimal(&text[..length as usize])
}

fn write_bytea(bytes: &[u8], out: &mut Writer) -> Result<(), CoreError> {
    let mut text = Vec::new();
    text.try_reserve_exact(2 + 2 * bytes.len()).map_err(|_| CoreError::OutOfMemory)?;
    text.resize(2 + 2 * bytes.len(), b'x');
    text[0] = b'\\';
    hex_into(bytes, &mut text[2..]);
    out.string(&text)
}

fn write_money(cents: i64, out: &mut Writer) -> Result<(), CoreError> {
    let mut text = Vec::new();
    audit_core::money::put(&mut text, cents)?;
    out.string(&text)
}

/// Dates and times out of the range of `datetime.rs`: BC, five-digit years, infinities.
fn write_datetime(value: pg_sys::Datum, type_id: pg_sys::Oid, out: &mut Writer) -> Result<(), CoreError> {
    let mut text = [0 as std::ffi::c_char; 256];
    let utc = 0;
    // SAFETY: the buffer is larger than MAXDATELEN (128); the zone is an offset in seconds, read for timestamptz.
    let text = unsafe { CStr::from_ptr(pg_sys::JsonEncodeDateTime(text.as_mut_ptr(), value, type_id, &utc)) };
    out.string(text.to_bytes())
}

fn write_text(bytes: &[u8], out: &mut Writer) -> Result<(), CoreError> {
    out.string(checked_text(bytes)?)
}

/// Text that the canonical form can hold: in a SQL_ASCII database, whose text may be anything, only valid UTF-8.
fn checked_text(bytes: &[u8]) -> Result<&[u8], CoreError> {
    if super::session::is_sql_ascii() && std::str::from_utf8(bytes).is_err() {
        return Err(CoreError::NotJsonb("invalid byte sequence in a SQL_ASCII database"));
    }
    Ok(bytes)
}

/// SHA-256 and length of the value's text, as its output function prints it, in UTF-8.
pub fn digest(type_id: pg_sys::Oid, encoder: &Encoder, value: pg_sys::Datum) -> ([u8; 32], u64) {
    match encoder {
        Encoder::Text | Encoder::Json => digest_text(Varlena::of(value).bytes()),
        // Piece by piece: the text of a large bytea would be larger than PostgreSQL can allocate.
        Encoder::Bytea => {
            let mut digest = Digest::new();
            digest.update(b"\\x");
            for piece in Varlena::of(value).bytes().chunks(4096) {
                let mut hex = [0; 2 * 4096];
                let length = hex_into(piece, &mut hex);
                digest.update(&hex[..length]);
            }
            digest.finish()
        }
        _ => with_text(type_id, value, digest_text),
    }
}

/// Length of the value's text.
pub fn text_length(type_id: pg_sys::Oid, encoder: &Encoder, value: pg_sys::Datum) -> usize {
    encoder.text_size(value).unwrap_or_else(|| with_text(type_id, value, <[u8]>::len))
}

fn digest_text(text: &[u8]) -> ([u8; 32], u64) {
    let mut digest = Digest::new();
    digest.update(&super::session::to_utf8(text));
    digest.finish()
}

fn with_text<R>(type_id: pg_sys::Oid, value: pg_sys::Datum, then: impl FnOnce(&[u8]) -> R) -> R {
    let _env = env::enter(Env::Settings);
    let context = PgMemoryContexts::CurrentMemoryContext.value();
    let output = Function::output(super::relation::base_type(type_id), context);
    then(output.call_output(value).to_bytes())
}

fn hex_into(bytes: &[u8], out: &mut [u8]) -> usize {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for (byte, digits) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        digits[0] = HEX[usize::from(byte >> 4)];
        digits[1] = HEX[usize::from(byte & 15)];
    }
    2 * bytes.len()
}
