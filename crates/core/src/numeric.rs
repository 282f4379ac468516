//! PostgreSQL's `numeric` as it is stored, after the varlena header (numeric.c, "The Numeric type as stored on disk").
//!
//! A header word says how the rest reads: the short form keeps sign, display scale and weight in it; the long form has
//! sign and scale there and the weight in a second word; NaN and the infinities are a header word alone. Digits are
//! base 10000, sixteen bits each, without leading and trailing zeros. All words are in the machine's byte order, which
//! this crate takes to be little-endian.

use crate::buf;
use crate::error::{Error, Result};

const SIGN_MASK: u16 = 0xC000;
const NEGATIVE: u16 = 0x4000;
const SHORT: u16 = 0x8000;
const SPECIAL: u16 = 0xC000;
/// Special values are told apart by these bits; the others are reserved.
const SPECIAL_MASK: u16 = 0xF000;
const POSITIVE_INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

const SHORT_SIGN: u16 = 0x2000;
const SHORT_SCALE_SHIFT: u32 = 7;
const SHORT_SCALE_MAX: u32 = 0x3F;
const SHORT_WEIGHT_MASK: u16 = 0x7F;
const SHORT_WEIGHT_MAX: i32 = 0x3F;
const SHORT_WEIGHT_MIN: i32 = -0x40;

/// Largest display scale that the long form holds.
const SCALE_MAX: u32 = 0x3FFF;
/// numeric_in refuses exponents from here on, whatever the digits (numeric.c, `set_var_from_str`).
const EXPONENT_LIMIT: i64 = (i32::MAX / 2) as i64;

const OUT_OF_RANGE: Error = Error::NotJsonb("number out of the range of numeric");
const MALFORMED: Error = Error::NotJsonb("malformed numeric");

/// Longest payload of an integer: header word and five digits.
pub const INTEGER_MAX: usize = 12;

/// What a stored payload says beside its digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    negative: bool,
    scale: u32,
    weight: i32,
}

impl Header {
    fn is_short(self) -> bool {
        self.scale <= SHORT_SCALE_MAX && (SHORT_WEIGHT_MIN..=SHORT_WEIGHT_MAX).contains(&self.weight)
    }

    /// Appends the header as `make_result` builds it: short wherever it can be.
    #[inline]
    fn put(self, out: &mut Vec<u8>) -> Result<()> {
        if self.is_short() {
            let sign = if self.negative { SHORT | SHORT_SIGN } else { SHORT };
            let word = sign | (self.scale << SHORT_SCALE_SHIFT) as u16 | (self.weight as u16 & SHORT_WEIGHT_MASK);
            return buf::put(out, &word.to_le_bytes());
        }
        self.check()?;
        let sign = if self.negative { NEGATIVE } else { 0 };
        buf::put(out, &(sign | self.scale as u16).to_le_bytes())?;
        buf::put(out, &(self.weight as i16).to_le_bytes())
    }

    /// Whether the long form can hold it.
    fn check(self) -> Result<()> {
        if self.scale > SCALE_MAX || i16::try_from(self.weight).is_err() {
            return Err(OUT_OF_RANGE);
        }
        Ok(())
    }
}

/// A stored payload taken apart.
enum Stored<'a> {
    NotFinite(&'static str),
    Finite(Header, &'a [u8]),
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read(payload: &[u8]) -> Result<Stored<'_>> {
    let head = word(payload, 0).ok_or(MALFORMED)?;
    let (header, digits) = match head & SIGN_MASK {
        SPECIAL => {
            return Ok(Stored::NotFinite(match head & SPECIAL_MASK {
                POSITIVE_INFINITY => "Infinity",
                NEGATIVE_INFINITY => "-Infinity",
                _ => "NaN",
            }));
        }
        SHORT => {
            let scale = u32::from(head & !(SIGN_MASK | SHORT_SIGN)) >> SHORT_SCALE_SHIFT;
            // the weight is a seven-bit two's complement
            let weight = i32::from((head as i16) << 9 >> 9);
            (Header { negative: head & SHORT_SIGN != 0, scale, weight }, &payload[2..])
        }
        sign => {
            let weight = word(payload, 2).ok_or(MALFORMED)? as i16;
            let scale = u32::from(head & !SIGN_MASK);
            (Header { negative: sign == NEGATIVE, scale, weight: i32::from(weight) }, &payload[4..])
        }
    };
    if !digits.len().is_multiple_of(2) {
        return Err(MALFORMED);
    }
    Ok(Stored::Finite(header, digits))
}

/// The name of a payload that is no finite number, as `numeric_out` prints it.
pub fn not_finite(payload: &[u8]) -> Result<Option<&'static str>> {
    match word(payload, 0) {
        None => Err(MALFORMED),
        Some(head) if head & SIGN_MASK != SPECIAL => Ok(None),
        Some(_) => match read(payload)? {
            Stored::NotFinite(name) => Ok(Some(name)),
            Stored::Finite(..) => Ok(None),
        },
    }
}

/// Payload of an integer, as `int64_to_numeric` and `numeric_in` build it. Returns its length within `payload`.
#[inline]
pub fn encode_i64(value: i64, payload: &mut [u8; INTEGER_MAX]) -> usize {
    let sign = if value < 0 { SHORT | SHORT_SIGN } else { SHORT };
    let mut left = value.unsigned_abs();
    if left < 10_000 {
        payload[..2].copy_from_slice(&sign.to_le_bytes());
        payload[2..4].copy_from_slice(&(left as u16).to_le_bytes());
        return if left == 0 { 2 } else { 4 };
    }
    let mut weight: u16 = 0;
    let mut digits = [0u16; 5];
    let mut first = 5;
    while left > 0 && first > 0 {
        first -= 1;
        digits[first] = (left % 10_000) as u16;
        left /= 10_000;
        weight += 1;
    }
    let mut last = 5;
    while last > first && digits[last - 1] == 0 {
        last -= 1;
    }
    payload[..2].copy_from_slice(&(sign | (weight - 1)).to_le_bytes());
    let mut length = 2;
    for digit in &digits[first..last] {
        payload[length..length + 2].copy_from_slice(&digit.to_le_bytes());
        length += 2;
    }
    length
}

/// A decimal literal taken apart: sign, digits before and after the point, exponent.
struct Literal<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

fn split_digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// Exponent after `e`, saturating as `strtol` does.
fn exponent(text: &[u8]) -> Result<i64> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (digits, rest) = split_digits(text);
    if digits.is_empty() || !rest.is_empty() {
        return Err(Error::InvalidJson);
    }
    let value =
        digits.iter().fold(0i64, |value, digit| value.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    if value >= EXPONENT_LIMIT {
        return Err(OUT_OF_RANGE);
    }
    Ok(if negative { -value } else { value })
}

fn literal(text: &[u8]) -> Result<Literal<'_>> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = match rest {
        [b'.', rest @ ..] => split_digits(rest),
        _ => (&[][..], rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(Error::InvalidJson);
    }
    let exponent = match rest {
        [] => 0,
        [b'e' | b'E', rest @ ..] => exponent(rest)?,
        _ => return Err(Error::InvalidJson),
    };
    Ok(Literal { negative, whole, fraction, exponent })
}

/// A decimal literal as it will be stored: header, and which of its decimal digits go into which base-10000 digit.
struct Measured {
    header: Header,
    /// Range of decimal digits without zeros around them.
    first: usize,
    end: usize,
    /// Zeros missing at the front of the first base-10000 digit.
    missing: usize,
}

impl Literal<'_> {
    fn digit(&self, i: usize) -> u8 {
        let digit = self.whole.get(i).or_else(|| self.fraction.get(i - self.whole.len()));
        digit.map_or(0, |digit| digit - b'0')
    }

    /// The scale is the number of digits after the point less the exponent; zero has no sign and weight zero.
    fn measure(&self) -> Result<Measured> {
        // a scale beyond 32 bits is out of range in any case
        let scale = (self.fraction.len() as i64 - self.exponent).max(0);
        let scale = u32::try_from(scale).map_err(|_| OUT_OF_RANGE)?;
        let digits = self.whole.len() + self.fraction.len();
        let Some(first) = (0..digits).find(|&i| self.digit(i) != 0) else {
            let header = Header { negative: false, scale, weight: 0 };
            return Ok(Measured { header, first: 0, end: 0, missing: 0 });
        };
        let end = (first..digits).rev().find(|&i| self.digit(i) != 0).map_or(digits, |i| i + 1);
        // power of ten of the first digit, then of its base-10000 digit
        let power = self.whole.len() as i64 - 1 - first as i64 + self.exponent;
        let weight = i32::try_from(power.div_euclid(4)).map_err(|_| OUT_OF_RANGE)?;
        let header = Header { negative: self.negative, scale, weight };
        Ok(Measured { header, first, end, missing: 3 - power.rem_euclid(4) as usize })
    }
}

/// A number of few digits: `mantissa` counts units of the last base-10000 digit.
struct Small {
    negative: bool,
    scale: u32,
    mantissa: u64,
}

impl Literal<'_> {
    /// Nearly every number there is: no exponent, at most 16 digits.
    fn as_small(&self) -> Option<Small> {
        let (whole, fraction) = (self.whole, self.fraction);
        if self.exponent != 0 || whole.len() + fraction.len() > 16 {
            return None;
        }
        let mantissa = whole.iter().chain(fraction).fold(0u64, |value, digit| value * 10 + u64::from(digit - b'0'));
        // up to a whole base-10000 digit; 19 decimal digits fit in 64 bits
        let shift = [1, 1000, 100, 10][fraction.len() % 4];
        Some(Small { negative: self.negative, scale: fraction.len() as u32, mantissa: mantissa * shift })
    }
}

impl Small {
    fn put(self, out: &mut Vec<u8>) -> Result<()> {
        let mut digits = [0u16; 5];
        let mut first = digits.len();
        let mut left = self.mantissa;
        while left > 0 && first > 0 {
            first -= 1;
            digits[first] = (left % 10_000) as u16;
            left /= 10_000;
        }
        if first == digits.len() {
            return Header { negative: false, scale: self.scale, weight: 0 }.put(out);
        }
        let last = digits.iter().rposition(|&digit| digit != 0).unwrap_or(first);
        let weight = (digits.len() - first) as i32 - self.scale.div_ceil(4) as i32 - 1;
        Header { negative: self.negative, scale: self.scale, weight }.put(out)?;
        buf::reserve(out, 2 * digits.len())?;
        for digit in &digits[first..=last] {
            out.extend_from_slice(&digit.to_le_bytes());
        }
        Ok(())
    }
}

/// Refuses a decimal literal that `numeric_in` would refuse.
pub fn check_decimal(text: &[u8]) -> Result<()> {
    literal(text)?.measure()?.header.check()
}

/// Appends the payload of a decimal literal as `numeric_in` reads it (numeric.c, `set_var_from_str`). Beyond the range of
/// `numeric`: [`Error::NotJsonb`]; no decimal literal: [`Error::InvalidJson`].
pub fn encode_decimal(text: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let literal = literal(text)?;
    if let Some(small) = literal.as_small() {
        return small.put(out);
    }
    let Measured { header, first, end, missing } = literal.measure()?;
    let groups = if first == end { 0 } else { (end - first + missing).div_ceil(4) };
    buf::reserve(out, 4 + groups * 2)?;
    header.put(out)?;

    // the first group begins with `missing` zeros, the last is filled up with zeros
    let mut next = first;
    for group in 0..groups {
        let take = if group == 0 { 4 - missing } else { 4 };
        let mut value: u16 = 0;
        for _ in 0..take {
            value = value * 10 + if next < end { u16::from(literal.digit(next)) } else { 0 };
            next += 1;
        }
        out.extend_from_slice(&value.to_le_bytes());
    }
    Ok(())
}

/// Appends a stored payload as `numeric_in` would store it again: short form where it can be, no zeros around the
/// digits. What a current server stored is copied as it is; values kept since before 9.1 through pg_upgrade may not be.
/// The payload must be of a finite number.
#[inline]
pub fn put_normal(payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let is_normal = payload.len() >= 4
        && payload.len().is_multiple_of(2)
        && payload[1] & 0xC0 == 0x80
        && payload[2..4] != [0, 0]
        && payload[payload.len() - 2..] != [0, 0];
    if is_normal { buf::put(out, payload) } else { put_normalized(payload, out) }
}

#[cold]
fn put_normalized(payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let Stored::Finite(mut header, mut digits) = read(payload)? else {
        return Err(MALFORMED);
    };
    while let [0, 0, rest @ ..] = digits {
        digits = rest;
        header.weight -= 1;
    }
    while let [rest @ .., 0, 0] = digits {
        digits = rest;
    }
    if digits.is_empty() {
        header = Header { negative: false, weight: 0, ..header };
    }
    header.put(out)?;
    buf::put(out, digits)
}

/// A base-10000 digit as four decimal ones.
#[inline]
fn group(digit: u16) -> [u8; 4] {
    let (high, low) = (digit / 100, digit % 100);
    [high / 10, high % 10, low / 10, low % 10].map(|d| b'0' + d as u8)
}

/// Appends a stored payload as text, as `numeric_out` prints it: as many digits after the point as the scale says.
pub fn print(payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let (Header { negative, scale, weight }, digits) = match read(payload)? {
        Stored::NotFinite(name) => return buf::put(out, name.as_bytes()),
        Stored::Finite(header, digits) => (header, digits),
    };
    let scale = scale as usize;
    // base-10000 digits before the point
    let whole = usize::try_from(weight + 1).unwrap_or(0);
    buf::reserve(out, 1 + whole.max(1) * 4 + 1 + scale + 4)?;
    let digit = |i: usize| word(digits, i * 2).unwrap_or(0).min(9999);

    if negative {
        out.push(b'-');
    }
    match whole {
        0 => out.push(b'0'),
        _ => {
            let first = digit(0);
            let leading_zeros = usize::from(first < 1000) + usize::from(first < 100) + usize::from(first < 10);
            out.extend_from_slice(&group(first)[leading_zeros..]);
        }
    }
    for i in 1..whole {
        out.extend_from_slice(&group(digit(i)));
    }
    if scale > 0 {
        out.push(b'.');
        let end = out.len() + scale;
        // between the point and the first stored digit
        let absent = usize::try_from(-1 - weight).unwrap_or(0).min(scale.div_ceil(4));
        out.resize(out.len() + absent * 4, b'0');
        let mut next = whole;
        while out.len() < end {
            out.extend_from_slice(&group(digit(next)));
            next += 1;
        }
        out.truncate(end);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        encode_decimal(text.as_bytes(), &mut out).map(|()| out)
    }

    fn printed(payload: &[u8]) -> String {
        let mut out = Vec::new();
        print(payload, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn normal(payload: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        put_normal(payload, &mut out).map(|()| out)
    }

    #[test]
    fn literals_as_numeric_in_reads_them() {
        for (text, expected) in [
            ("+1", "1"),
            (".5", "0.5"),
            ("5.", "5"),
            ("-.5e1", "-5"),
            ("1.20e1", "12.0"),
            ("12e-1", "1.2"),
            ("0e1000000", "0"),
            ("-0.00", "0.00"),
            ("00012.3400", "12.3400"),
            ("12345678901234567890.5", "12345678901234567890.5"),
        ] {
            assert_eq!(printed(&encoded(text).unwrap()), expected, "{text}");
        }
        for text in ["", "-", ".", "1e", "1e+", "1x", "1.2.3", "e5", "1e5x", "1 "] {
            assert_eq!(encoded(text), Err(Error::InvalidJson), "{text:?}");
        }
        assert_eq!(check_decimal(b"1e131072"), Err(OUT_OF_RANGE));
        assert_eq!(check_decimal(b"1e1073741823"), Err(OUT_OF_RANGE));
        assert_eq!(check_decimal(b"0.1e-1073741822"), Err(OUT_OF_RANGE));
        assert_eq!(check_decimal(b"1e1073741822"), Err(OUT_OF_RANGE));
        assert_eq!(check_decimal(b"1e131071"), Ok(()));
    }

    #[test]
    fn old_forms_are_stored_anew() {
        let one = encoded("1").unwrap();
        // the long form of 1, zeros around its digit
        assert_eq!(normal(&[0, 0, 0, 0, 1, 0]).unwrap(), one);
        assert_eq!(normal(&[0, 0, 1, 0, 0, 0, 1, 0, 0, 0]).unwrap(), one);
        // the short form with zeros, negative zero, zero with a weight
        assert_eq!(normal(&[0x01, 0x80, 0, 0, 1, 0]).unwrap(), one);
        assert_eq!(normal(&[0x00, 0x80, 1, 0, 0, 0]).unwrap(), one);
        assert_eq!(normal(&[0x05, 0xa1, 0, 0]).unwrap(), encoded("0.00").unwrap());
        assert_eq!(normal(&[0x00, 0x40, 0, 0, 1, 0]).unwrap(), encoded("-1").unwrap());
        assert_eq!(normal(&encoded("1e300").unwrap()).unwrap(), encoded("1e300").unwrap());
        assert_eq!(normal(&encoded("0.5").unwrap()).unwrap(), encoded("0.5").unwrap());
    }

    #[test]
    fn special_values_have_names() {
        assert_eq!(not_finite(&[0x00, 0xc0]), Ok(Some("NaN")));
        // NaN in the four bytes of before 9.1
        assert_eq!(not_finite(&[0x00, 0xc0, 0, 0]), Ok(Some("NaN")));
        assert_eq!(not_finite(&[0x00, 0xd0]), Ok(Some("Infinity")));
        assert_eq!(not_finite(&[0x00, 0xf0]), Ok(Some("-Infinity")));
        assert_eq!(not_finite(&encoded("1").unwrap()), Ok(None));
        assert_eq!(printed(&[0x00, 0xf0]), "-Infinity");
        assert_eq!(normal(&[0x00, 0xc0]), Err(MALFORMED));
    }

    #[test]
    fn malformed_payloads_are_refused() {
        for payload in [&[][..], &[1], &[0, 0], &[0, 0, 0], &[0, 0x80, 1]] {
            assert_eq!(print(payload, &mut Vec::new()), Err(MALFORMED), "{payload:?}");
            assert!(normal(payload).is_err(), "{payload:?}");
        }
        assert_eq!(not_finite(&[1]), Err(MALFORMED));
        // a digit beyond 9999
        assert_eq!(printed(&[0, 0x80, 0xff, 0xff]), "9999");
    }
}
