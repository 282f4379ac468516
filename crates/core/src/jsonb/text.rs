//! JSON strings as PostgreSQL prints them.

use crate::buf;
use crate::error::Result;

/// A byte in each byte of a word.
const fn repeat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

#[inline]
fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Whether no byte of eight needs an escape: all at once, by the carries of a subtraction. What a byte borrows from the next
/// can only follow a byte that is found itself.
#[inline]
fn is_plain_word(bytes: [u8; 8]) -> bool {
    let word = u64::from_ne_bytes(bytes);
    let control = word.wrapping_sub(repeat(0x20)) & !word;
    let quote = word ^ repeat(b'"');
    let backslash = word ^ repeat(b'\\');
    let zero = |word: u64| word.wrapping_sub(repeat(1)) & !word;
    (control | zero(quote) | zero(backslash)) & repeat(0x80) == 0
}

/// Whether every byte stands for itself. The last word overlaps the one before it.
#[inline]
fn is_plain(bytes: &[u8]) -> bool {
    match bytes.last_chunk::<8>() {
        Some(last) => bytes.as_chunks::<8>().0.iter().all(|word| is_plain_word(*word)) && is_plain_word(*last),
        None => !bytes.iter().any(|&byte| needs_escape(byte)),
    }
}

/// Number of leading bytes that stand for themselves.
#[inline]
pub(super) fn plain_prefix(bytes: &[u8]) -> usize {
    let words = bytes.as_chunks::<8>().0;
    let at = words.iter().take_while(|word| is_plain_word(**word)).count() * 8;
    at + bytes[at..].iter().position(|&byte| needs_escape(byte)).unwrap_or(bytes.len() - at)
}

#[cold]
fn put_escape(out: &mut Vec<u8>, byte: u8) -> Result<()> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => buf::put(out, b"\\\""),
        b'\\' => buf::put(out, b"\\\\"),
        0x08 => buf::put(out, b"\\b"),
        0x0c => buf::put(out, b"\\f"),
        b'\n' => buf::put(out, b"\\n"),
        b'\r' => buf::put(out, b"\\r"),
        b'\t' => buf::put(out, b"\\t"),
        _ => {
            let digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
            buf::put(out, b"\\u00")?;
            buf::put(out, &digits)
        }
    }
}

/// Appends a string in quotes, as `escape_json` (json.c) does: short escapes where JSON has them, `\u00xx` for other
/// control characters, everything else as it is. Bytes are those of the server encoding, all of which keep ASCII.
#[inline]
pub fn put_quoted(out: &mut Vec<u8>, string: &[u8]) -> Result<()> {
    buf::reserve(out, string.len() + buf::SHORT + 2)?;
    out.push(b'"');
    if is_plain(string) {
        buf::put_short(out, string)?;
    } else {
        put_escaped(out, string)?;
    }
    buf::push(out, b'"')
}

#[inline(never)]
fn put_escaped(out: &mut Vec<u8>, mut rest: &[u8]) -> Result<()> {
    loop {
        let plain = plain_prefix(rest);
        buf::put(out, &rest[..plain])?;
        let Some((&byte, after)) = rest[plain..].split_first() else {
            return Ok(());
        };
        put_escape(out, byte)?;
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place() {
        for length in 1..40 {
            for place in 0..length {
                for byte in 0..=255u8 {
                    let mut string = vec![0xe4; length];
                    string[place] = byte;
                    let escape = match byte {
                        b'"' => b"\\\"".to_vec(),
                        b'\\' => b"\\\\".to_vec(),
                        8 => b"\\b".to_vec(),
                        9 => b"\\t".to_vec(),
                        10 => b"\\n".to_vec(),
                        12 => b"\\f".to_vec(),
                        13 => b"\\r".to_vec(),
                        0..0x20 => format!("\\u{byte:04x}").into_bytes(),
                        _ => vec![byte],
                    };
                    let mut out = Vec::new();
                    put_quoted(&mut out, &string).unwrap();
                    let expected = [b"\"", &string[..place], &escape, &string[place + 1..], b"\""].concat();
                    assert_eq!(out, expected);
                    assert_eq!(is_plain(&string), escape.len() == 1);
                    assert_eq!(plain_prefix(&string), if escape.len() == 1 { length } else { place });
                }
            }
        }
    }
}
