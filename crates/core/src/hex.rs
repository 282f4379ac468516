//! Lower-case hexadecimal, and the text form of UUIDs.

use crate::buf;
use crate::error::Result;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Two lower-case digits for each byte.
#[inline]
fn digits(byte: u8) -> [u8; 2] {
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// Appends `bytes` as lower-case hexadecimal digits, as `encode(…, 'hex')` does.
pub fn put(out: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    buf::reserve(out, bytes.len() * 2)?;
    for &byte in bytes {
        out.extend_from_slice(&digits(byte));
    }
    Ok(())
}

/// Text of a UUID, as `uuid_out` prints it (uuid.c): 8-4-4-4-12 lower-case digits.
pub fn uuid(id: &[u8; 16]) -> [u8; 36] {
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (i, &byte) in id.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at..at + 2].copy_from_slice(&digits(byte));
        at += 2;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_lower_case() {
        let mut out = Vec::new();
        put(&mut out, &[0, 0x9a, 0xff]).unwrap();
        assert_eq!(out, b"009aff");
    }

    #[test]
    fn uuid_has_its_hyphens() {
        let id = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10];
        assert_eq!(&uuid(&id), b"01234567-89ab-cdef-fedc-ba9876543210");
    }
}
