//! Stored JSONB: spliced by copying, printed without building anything.
//!
//! Read with bounds checks throughout: what a damaged page holds ends in an error, not in a panic.

use super::json::TOO_DEEP;
use super::layout::{
    ARRAY, CONTAINER, COUNT_MASK, FALSE, HAS_OFFSET, LENGTH_MASK, MAX_DEPTH, MAX_TEXT, NULL, NUMERIC, OBJECT, SCALAR,
    STRING, TRUE, TYPE_MASK,
};
use super::output::Output;
use super::text;
use crate::buf;
use crate::error::{Error, Result};
use crate::numeric;

const MALFORMED: Error = Error::NotJsonb("malformed jsonb");

/// A container being printed. Positions are counted from the start of the root container, which is aligned.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    is_object: bool,
    /// The next key's or element's entry, and how many are left.
    entry: usize,
    left: usize,
    count: usize,
    /// Where the container ends; nothing of it lies beyond.
    limit: usize,
    /// Start of the members' data, and how far keys (or elements) and values are used.
    data: usize,
    first_used: usize,
    value_used: usize,
}

/// One member as stored: type bits and data, unaligned.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    kind: u32,
    start: usize,
    bytes: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map(|word| u32::from_le_bytes(*word)).ok_or(MALFORMED)
}

/// End of a member that begins at `start`, both counted from the container's data (jsonb.h, JBE_ADVANCE_OFFSET).
fn end_of(entry: u32, start: usize) -> usize {
    let field = (entry & LENGTH_MASK) as usize;
    if entry & HAS_OFFSET != 0 { field } else { start + field }
}

impl Cursor {
    fn open(root: &[u8], at: usize, limit: usize) -> Result<Cursor> {
        let header = word(root, at)?;
        let count = (header & COUNT_MASK) as usize;
        let is_object = match header & (OBJECT | ARRAY) {
            OBJECT => true,
            ARRAY => false,
            _ => return Err(MALFORMED),
        };
        let entries = if is_object { count * 2 } else { count };
        let data = at + 4 + entries * 4;
        if data > limit {
            return Err(MALFORMED);
        }
        let mut cursor =
            Cursor { is_object, entry: at + 4, left: count, count, limit, data, first_used: 0, value_used: 0 };
        if is_object {
            // the values' data begins where the last key ends
            for i in 0..count {
                cursor.value_used = end_of(word(root, at + 4 + i * 4)?, cursor.value_used);
            }
        }
        Ok(cursor)
    }

    fn member<'a>(&self, root: &'a [u8], entry: u32, used: &mut usize) -> Result<Member<'a>> {
        let start = self.data + *used;
        *used = end_of(entry, *used);
        let end = self.data + *used;
        if end > self.limit {
            return Err(MALFORMED);
        }
        let bytes = root.get(start..end).ok_or(MALFORMED)?;
        Ok(Member { kind: entry & TYPE_MASK, start, bytes })
    }

    /// The next element, or the next key with its value.
    fn next<'a>(&mut self, root: &'a [u8]) -> Result<(Member<'a>, Option<Member<'a>>)> {
        let mut used = self.first_used;
        let first = self.member(root, word(root, self.entry)?, &mut used)?;
        self.first_used = used;
        let second = if self.is_object {
            let mut used = self.value_used;
            let value = self.member(root, word(root, self.entry + self.count * 4)?, &mut used)?;
            self.value_used = used;
            Some(value)
        } else {
            None
        };
        self.entry += 4;
        self.left -= 1;
        Ok((first, second))
    }

    fn bracket(&self) -> u8 {
        if self.is_object { b'}' } else { b']' }
    }
}

impl<'a> Member<'a> {
    /// Data from the next multiple of four on.
    fn aligned(&self) -> Result<&'a [u8]> {
        self.bytes.get(self.start.wrapping_neg() & 3..).ok_or(MALFORMED)
    }

    /// What follows the varlena header of a numeric: one byte long if its low bit is set, else four.
    fn numeric(&self) -> Result<&'a [u8]> {
        let varlena = self.aligned()?;
        let header = if varlena.first().is_some_and(|byte| byte & 1 == 1) { 1 } else { 4 };
        varlena.get(header..).ok_or(MALFORMED)
    }

    fn print(&self, out: &mut Vec<u8>) -> Result<()> {
        match self.kind {
            STRING => text::put_quoted(out, self.bytes),
            NUMERIC => numeric::print(self.numeric()?, out),
            FALSE => buf::put(out, b"false"),
            TRUE => buf::put(out, b"true"),
            NULL => buf::put(out, b"null"),
            _ => Err(MALFORMED),
        }
    }
}

/// The scalar that a root container stands for, if it does.
pub fn scalar(root: &[u8]) -> Result<Option<Member<'_>>> {
    if word(root, 0)? & SCALAR == 0 {
        return Ok(None);
    }
    let mut cursor = Cursor::open(root, 0, root.len())?;
    if cursor.left == 0 {
        return Err(MALFORMED);
    }
    cursor.next(root).map(|(scalar, _)| Some(scalar))
}

/// Appends a scalar: its data as stored, and its text.
pub fn put_scalar(scalar: Member<'_>, out: &mut Output) -> Result<u32> {
    if scalar.kind == NUMERIC {
        out.pad()?;
        buf::put(&mut out.jsonb, scalar.aligned()?)?;
    } else {
        buf::put(&mut out.jsonb, scalar.bytes)?;
    }
    scalar.print(&mut out.text)?;
    Ok(scalar.kind)
}

/// Appends a container: its bytes as stored, and its text. `open` is what is kept of the containers around the one being
/// printed; `depth` is how deep the root stands.
pub fn put(root: &[u8], out: &mut Output, open: &mut Vec<Cursor>, depth: usize) -> Result<()> {
    if depth >= MAX_DEPTH {
        return Err(TOO_DEEP);
    }
    out.pad()?;
    buf::put(&mut out.jsonb, root)?;
    print(root, &mut out.text, open, depth)
}

fn print(root: &[u8], out: &mut Vec<u8>, open: &mut Vec<Cursor>, depth: usize) -> Result<()> {
    buf::reserve(out, root.len() * 2)?;
    open.clear();
    let mut cursor = enter(root, 0, root.len(), out)?;
    loop {
        if cursor.left == 0 {
            buf::push(out, cursor.bracket())?;
            match open.pop() {
                Some(parent) => cursor = parent,
                None => return Ok(()),
            }
            continue;
        }
        if cursor.left < cursor.count {
            buf::put(out, b", ")?;
        }
        let (first, second) = cursor.next(root)?;
        let value = match second {
            Some(value) => {
                text::put_quoted(out, first.bytes)?;
                buf::put(out, b": ")?;
                value
            }
            None => first,
        };
        if value.kind != CONTAINER {
            value.print(out)?;
        } else {
            buf::push(open, cursor)?;
            if depth + open.len() >= MAX_DEPTH {
                return Err(TOO_DEEP);
            }
            cursor = enter(root, value.start.next_multiple_of(4), value.start + value.bytes.len(), out)?;
        }
        if out.len() > MAX_TEXT {
            return Err(Error::TooLarge);
        }
    }
}

fn enter(root: &[u8], at: usize, limit: usize, out: &mut Vec<u8>) -> Result<Cursor> {
    let cursor = Cursor::open(root, at, limit)?;
    buf::push(out, if cursor.is_object { b'{' } else { b'[' })?;
    Ok(cursor)
}
