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
