//! What one process hands to another through the queue: bytes written by the one and read by the other a moment later,
//! never stored, so there are no versions.
//!
//! A message is a sequence of fields whose order writer and reader agree on. Reading is checked all the same: what does
//! not fit is an error, never a panic.

use crate::buf;
use crate::error::Result;

/// The bytes are not what the reader expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Appends fields.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts anew, keeping the memory up to `keep` bytes.
    pub fn clear(&mut self, keep: usize) {
        self.bytes.clear();
        if self.bytes.capacity() > keep {
            self.bytes = Vec::new();
        }
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends fields that were written before.
    pub fn append(&mut self, fields: &[u8]) -> Result<()> {
        buf::put(&mut self.bytes, fields)
    }

    /// Takes what was written after the first `length` bytes.
    pub fn split_off(&mut self, length: usize) -> Writer {
        match length {
            0 => std::mem::take(self),
            _ if length < self.bytes.len() => Writer { bytes: self.bytes.split_off(length) },
            _ => Writer::new(),
        }
    }

    /// Forgets what was written after the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// A small number.
    pub fn u8(&mut self, value: u8) -> Result<()> {
        buf::put(&mut self.bytes, &[value])
    }

    /// A number.
    pub fn u32(&mut self, value: u32) -> Result<()> {
        buf::put(&mut self.bytes, &value.to_ne_bytes())
    }

    /// A number.
    pub fn u64(&mut self, value: u64) -> Result<()> {
        buf::put(&mut self.bytes, &value.to_ne_bytes())
    }

    /// Bytes or their absence.
    pub fn optional(&mut self, value: Option<&[u8]>) -> Result<()> {
        match value {
            None => self.u32(u32::MAX),
            Some(bytes) => self.string(bytes),
        }
    }

    /// Bytes.
    pub fn string(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).ok().filter(|&length| length < u32::MAX);
        self.u32(length.ok_or(crate::error::Error::TooLarge)?)?;
        buf::put(&mut self.bytes, bytes)
    }
}

/// Reads fields in the order in which they were written.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// Whether all was read.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// A small number.
    pub fn u8(&mut self) -> std::result::Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// A number.
    pub fn u32(&mut self) -> std::result::Result<u32, Malformed> {
        Ok(u32::from_ne_bytes(self.array()?))
    }

    /// A number.
    pub fn u64(&mut self) -> std::result::Result<u64, Malformed> {
        Ok(u64::from_ne_bytes(self.array()?))
    }

    /// Bytes or their absence.
    pub fn optional(&mut self) -> std::result::Result<Option<&'a [u8]>, Malformed> {
        match self.u32()? {
            u32::MAX => Ok(None),
            length => self.take(length as usize).map(Some),
        }
    }

    /// Bytes.
    pub fn string(&mut self) -> std::result::Result<&'a [u8], Malformed> {
        self.optional()?.ok_or(Malformed)
    }

    fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn take(&mut self, length: usize) -> std::result::Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_message() -> Writer {
        let mut writer = Writer::new();
        writer.u8(7).unwrap();
        writer.u32(u32::MAX - 1).unwrap();
        writer.optional(None).unwrap();
        writer.optional(Some(b"")).unwrap();
        writer.string("näme".as_bytes()).unwrap();
        writer.u64(u64::MAX).unwrap();
        writer
    }

    #[test]
    fn reads_what_was_written() {
        let writer = a_message();
        let mut reader = Reader::new(writer.bytes());
        assert_eq!(reader.u8(), Ok(7));
        assert_eq!(reader.u32(), Ok(u32::MAX - 1));
        assert_eq!(reader.optional(), Ok(None));
        assert_eq!(reader.optional(), Ok(Some(&b""[..])));
        assert_eq!(reader.string(), Ok("näme".as_bytes()));
        assert!(!reader.is_at_end());
        assert_eq!(reader.u64(), Ok(u64::MAX));
        assert!(reader.is_at_end());
        assert_eq!(reader.u8(), Err(Malformed));
    }

    #[test]
    fn a_message_cut_short_is_malformed_wherever_it_ends() {
        let writer = a_message();
        for length in 0..writer.bytes().len() {
            let mut reader = Reader::new(&writer.bytes()[..length]);
            let read = reader
                .u8()
                .and_then(|_| reader.u32())
                .and_then(|_| reader.optional())
                .and_then(|_| reader.optional())
                .and_then(|_| reader.string())
                .and_then(|_| reader.u64());
            assert_eq!(read, Err(Malformed), "cut to {length} bytes");
        }
    }

    #[test]
    fn absence_is_not_a_string() {
        let mut writer = Writer::new();
        writer.optional(None).unwrap();
        assert_eq!(Reader::new(writer.bytes()).string(), Err(Malformed));
    }

    #[test]
    fn truncated_and_cleared() {
        let mut writer = a_message();
        writer.truncate(1);
        assert_eq!(writer.bytes(), [7]);
        writer.clear(0);
        assert_eq!(writer.bytes(), []);
    }
}
