//! Growing byte buffers without ever aborting.
//!
//! `Vec`'s own growth ends the process when the allocator fails. Here every growth goes through `try_reserve` first;
//! what follows it then finds the room it needs.

use crate::error::{Error, Result};

#[cold]
#[inline(never)]
fn grow<T>(buf: &mut Vec<T>, additional: usize) -> Result<()> {
    buf.try_reserve(additional).map_err(|_| Error::OutOfMemory)
}

/// Makes room for `additional` more items.
#[inline]
pub fn reserve<T>(buf: &mut Vec<T>, additional: usize) -> Result<()> {
    if buf.capacity() - buf.len() < additional {
        grow(buf, additional)?;
    }
    Ok(())
}

/// Appends bytes.
#[inline]
pub fn put(buf: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    reserve(buf, bytes.len())?;
    buf.extend_from_slice(bytes);
    Ok(())
}

/// Longest piece that [`put_short`] and [`put_padded`] copy without a call.
pub const SHORT: usize = 32;

/// Appends bytes that are usually few: two overlapping moves of a fixed size in place of a call of `memcpy`.
#[inline]
pub fn put_short(buf: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    match bytes.len() {
        16..=SHORT => put_halves::<16>(buf, bytes),
        8..16 => put_halves::<8>(buf, bytes),
        4..8 => put_halves::<4>(buf, bytes),
        _ => put(buf, bytes),
    }
}

/// Appends at least `HALF` and at most twice as many bytes.
#[inline]
fn put_halves<const HALF: usize>(buf: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    let (Some(head), Some(tail)) = (bytes.first_chunk::<HALF>(), bytes.last_chunk::<HALF>()) else {
        return put(buf, bytes);
    };
    let start = buf.len();
    let end = start + bytes.len();
    reserve(buf, HALF * 2)?;
    buf.extend_from_slice(head);
    buf.extend_from_slice(head);
    buf[end - HALF..end].copy_from_slice(tail);
    buf.truncate(end);
    Ok(())
}

/// Appends `pool[start..end]`. Where the pool goes on for [`SHORT`] bytes, a short piece is copied with what follows it,
/// which is then cut off.
#[inline]
pub fn put_padded(buf: &mut Vec<u8>, pool: &[u8], start: usize, end: usize) -> Result<()> {
    let length = end - start;
    match pool.get(start..).and_then(|rest| rest.first_chunk::<SHORT>()) {
        Some(piece) if length <= SHORT => {
            reserve(buf, SHORT)?;
            let at = buf.len();
            buf.extend_from_slice(piece);
            buf.truncate(at + length);
            Ok(())
        }
        _ => put(buf, &pool[start..end]),
    }
}

/// Appends one item.
#[inline]
pub fn push<T>(buf: &mut Vec<T>, item: T) -> Result<()> {
    reserve(buf, 1)?;
    buf.push(item);
    Ok(())
}

/// Appends copies of items.
#[inline]
pub fn extend<T: Copy>(buf: &mut Vec<T>, items: &[T]) -> Result<()> {
    reserve(buf, items.len())?;
    buf.extend_from_slice(items);
    Ok(())
}

/// Appends `count` zero bytes.
#[inline]
pub fn zeros(buf: &mut Vec<u8>, count: usize) -> Result<()> {
    reserve(buf, count)?;
    buf.resize(buf.len() + count, 0);
    Ok(())
}

/// Appends a decimal integer.
#[inline]
pub fn put_integer<I: itoa::Integer>(buf: &mut Vec<u8>, value: I) -> Result<()> {
    put(buf, itoa::Buffer::new().format(value).as_bytes())
}

/// Gives the memory back when the buffer holds more than `max_capacity`; the content goes with it. (Shrinking in
/// place would ask the allocator for memory, and so could fail.)
pub fn release<T>(buf: &mut Vec<T>, max_capacity: usize) {
    if buf.capacity() > max_capacity {
        *buf = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_gives_back() {
        let mut b = Vec::new();
        put(&mut b, b"ab").unwrap();
        push(&mut b, b'c').unwrap();
        zeros(&mut b, 2).unwrap();
        put_integer(&mut b, -42i64).unwrap();
        extend(&mut b, &[1, 2]).unwrap();
        assert_eq!(b, b"abc\0\0-42\x01\x02");
        release(&mut b, 1 << 20);
        assert_eq!(b.len(), 10);
        release(&mut b, 4);
        assert_eq!(b.capacity(), 0);
    }

    #[test]
    fn an_impossible_request_is_an_error() {
        let mut b: Vec<u8> = Vec::new();
        assert_eq!(reserve(&mut b, usize::MAX), Err(Error::OutOfMemory));
    }
}
