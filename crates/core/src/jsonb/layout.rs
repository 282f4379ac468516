//! Bits and limits of JSONB (jsonb.h; limits in jsonb_util.c).
//!
//! A container is a header word (count and kind), one entry word for each member, then the members' data. An object has
//! entries for all keys first, in key order, then for all values; the data likewise. An entry holds the member's type and
//! its length, or, in every 32nd entry, the end of its data within the container. Numerics and containers begin at a
//! multiple of four; the padding before them counts as theirs.

use crate::error::{Error, Result};

/// Members of an entry word.
pub const LENGTH_MASK: u32 = 0x0FFF_FFFF;
pub const TYPE_MASK: u32 = 0x7000_0000;
pub const HAS_OFFSET: u32 = 0x8000_0000;

pub const STRING: u32 = 0x0000_0000;
pub const NUMERIC: u32 = 0x1000_0000;
pub const FALSE: u32 = 0x2000_0000;
pub const TRUE: u32 = 0x3000_0000;
pub const NULL: u32 = 0x4000_0000;
pub const CONTAINER: u32 = 0x5000_0000;

/// Members of a container's header word.
pub const COUNT_MASK: u32 = 0x0FFF_FFFF;
pub const SCALAR: u32 = 0x1000_0000;
pub const OBJECT: u32 = 0x2000_0000;
pub const ARRAY: u32 = 0x4000_0000;

/// Every so many entries, one holds an end instead of a length.
pub const STRIDE: u32 = 32;

/// Most elements of an array. JSONB_MAX_ELEMS is twice that, but its array of 32-byte `JsonbValue`s, which doubles as it
/// grows, passes MaxAllocSize before: more could be stored, but neither made by `to_jsonb` nor restored from a dump.
pub const MAX_ELEMENTS: usize = 1 << 24;
/// Most pairs of an object, for the same reason (a `JsonbPair` has 72 bytes).
pub const MAX_PAIRS: usize = 1 << 23;
/// Longest text: MaxAllocSize less a varlena header. JSONB whose text is longer could not be read.
pub const MAX_TEXT: usize = 0x3FFF_FFFF - 4;
/// Deepest nesting that is written. PostgreSQL's own functions recurse: with max_stack_depth at its default of 2MB,
/// `jsonb_in` and `to_jsonb` of 15 to 18 end between 13,000 and 16,000 levels (measured), a little earlier inside a function.
pub const MAX_DEPTH: usize = 12_000;

/// Where the members of an open container go. Positions are in the JSONB buffer; they fit in 32 bits, since a
/// value is refused as soon as it passes the 256 MB that an entry can say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Members {
    /// Start of the container, padding included.
    pub base: u32,
    /// The first entry word.
    pub entries: u32,
    /// Start of the members' data.
    pub data: u32,
    /// Number of the next entry; an object's values are counted after its keys.
    pub next: u32,
    /// Number of entries.
    pub end: u32,
}

/// Position in a buffer, as [`Members`] holds it.
pub fn position(at: usize) -> Result<u32> {
    u32::try_from(at).map_err(|_| Error::TooLarge)
}

impl Members {
    /// Fills in the entry of the member that was just appended, beginning at `start`.
    #[inline]
    pub fn close(&mut self, jsonb: &mut [u8], start: usize, kind: u32) -> Result<()> {
        let total = jsonb.len().wrapping_sub(self.data as usize);
        if total > LENGTH_MASK as usize {
            return Err(Error::TooLarge);
        }
        let length =
            if self.next.is_multiple_of(STRIDE) { total as u32 | HAS_OFFSET } else { (jsonb.len() - start) as u32 };
        let at = self.entries as usize + self.next as usize * 4;
        if let Some(entry) = jsonb.get_mut(at..at + 4) {
            entry.copy_from_slice(&(kind | length).to_le_bytes());
        }
        self.next += 1;
        Ok(())
    }

    /// Whether every member is there.
    pub fn is_full(&self) -> bool {
        self.next == self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_ends_at_256_megabytes() {
        // zeroed memory that is never touched
        let mut jsonb = vec![0u8; LENGTH_MASK as usize + 1];
        let mut members = Members { base: 0, entries: 0, data: 1, next: 1, end: 2 };
        let length = jsonb.len();
        assert_eq!(members.close(&mut jsonb, 1, STRING), Ok(()));
        assert_eq!(jsonb[4..8], LENGTH_MASK.to_le_bytes());
        assert!(members.is_full());
        members.data = 0;
        assert_eq!(members.close(&mut jsonb, length, NULL), Err(Error::TooLarge));
        assert_eq!(position(usize::MAX), Err(Error::TooLarge));
    }
}
