//! Text of PostgreSQL's `money` under `lc_monetary = 'C'`.

use crate::buf;
use crate::error::Result;

/// Appends what `cash_out` (cash.c) prints in the C locale, where every monetary symbol is unset and cash.c falls back
/// to `$`, `.`, `,`, `-` and two fractional digits: `-$1,234.56`.
pub fn put(out: &mut Vec<u8>, cents: i64) -> Result<()> {
    // 19 digits, 6 separators, point, sign and currency
    let mut text = [0u8; 32];
    let mut at = text.len();
    let mut left = cents.unsigned_abs();
    let mut position: i32 = 2;
    while left > 0 || position >= 0 {
        if position == 0 {
            at -= 1;
            text[at] = b'.';
        } else if position < 0 && position % 3 == 0 {
            at -= 1;
            text[at] = b',';
        }
        at -= 1;
        text[at] = b'0' + (left % 10) as u8;
        left /= 10;
        position -= 1;
    }
    at -= 1;
    text[at] = b'$';
    if cents < 0 {
        at -= 1;
        text[at] = b'-';
    }
    buf::put(out, &text[at..])
}

#[cfg(test)]
mod tests {
    /// As printed by PostgreSQL 15 with lc_monetary = 'C'.
    #[test]
    fn prints_as_cash_out() {
        for (cents, expected) in [
            (0, "$0.00"),
            (5, "$0.05"),
            (-100, "-$1.00"),
            (123_456, "$1,234.56"),
            (-123_456_789, "-$1,234,567.89"),
            (10_000, "$100.00"),
            (99_999, "$999.99"),
            (100_000, "$1,000.00"),
            (i64::MAX, "$92,233,720,368,547,758.07"),
            (i64::MIN, "-$92,233,720,368,547,758.08"),
        ] {
            let mut text = Vec::new();
            super::put(&mut text, cents).unwrap();
            assert_eq!(std::str::from_utf8(&text).unwrap(), expected);
        }
    }
}
