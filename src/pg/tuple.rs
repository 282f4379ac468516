//! Heap tuples of the log, built in place: header, null bitmap and columns exactly as `heap_form_tuple` lays them out
//! (PostgreSQL, `access/htup_details.h`), in one buffer per batch.

use std::cell::Cell;

use audit_core::buf;
use audit_core::error::Error as CoreError;
use pgrx::pg_sys;

const HEADER: usize = 23;
const INFOMASK2_AT: usize = 18;
const INFOMASK_AT: usize = 20;
const HOFF_AT: usize = 22;
const WORD: usize = 8;
/// The first allocation: room for a few events.
const MIN_BYTES: usize = 4096;
/// The most that a column takes beside its payload: a uuid, or eight bytes and their padding.
const FIXED_MAX: usize = 16;
/// Longest varlena with a one-byte header, header included.
const SHORT_MAX: usize = 127;

/// Tuples waiting to be inserted into one table.
#[derive(Default)]
pub struct Batch {
    /// Cells, since an insert writes transaction ids into the tuples' headers.
    words: Vec<Cell<u64>>,
    used: usize,
    tuples: Vec<(usize, usize)>,
}

impl Batch {
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// Forgets the tuples, and gives back memory beyond `keep` bytes.
    pub fn clear(&mut self, keep: usize) {
        self.used = 0;
        self.tuples.clear();
        if self.words.capacity() > keep / WORD {
            self.words = Vec::new();
        }
    }

    /// Appends the tuples of another batch.
    pub fn append(&mut self, other: &Batch) -> Result<(), CoreError> {
        let used = other.used.next_multiple_of(WORD);
        buf::reserve(&mut self.tuples, other.tuples.len())?;
        self.reserve(used)?;
        let start = self.used / WORD;
        self.words[start..start + used / WORD].clone_from_slice(&other.words[..used / WORD]);
        self.tuples.extend(other.tuples.iter().map(|&(at, length)| (self.used + at, length)));
        self.used += used;
        Ok(())
    }

    /// Starts a tuple of `columns` columns, whose values of variable length have `payload` bytes in all; then one call per
    /// column in order, and [`TupleWriter::finish`].
    pub fn tuple(&mut self, columns: usize, payload: usize) -> Result<TupleWriter<'_>, CoreError> {
        let data_at = (HEADER + columns.div_ceil(8)).next_multiple_of(WORD);
        let room = (data_at + columns * FIXED_MAX + payload).next_multiple_of(WORD);
        buf::reserve(&mut self.tuples, 1)?;
        self.reserve(room)?;
        let Batch { words, used, tuples } = self;
        // SAFETY: `reserve` made sure of the words; they are borrowed mutably.
        let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>().add(*used), room) };
        bytes.fill(0);
        bytes[INFOMASK2_AT..INFOMASK_AT].copy_from_slice(&(columns as u16).to_le_bytes());
        bytes[INFOMASK_AT..HOFF_AT]
            .copy_from_slice(&((pg_sys::HEAP_HASNULL | pg_sys::HEAP_HASVARWIDTH) as u16).to_le_bytes());
        bytes[HOFF_AT] = data_at as u8;
        Ok(TupleWriter { bytes, at: data_at, column: 0, used, tuples })
    }

    /// Puts the tuples into `tuples` as PostgreSQL's functions take them. They point into the batch.
    pub fn heap_tuples(&self, table: pg_sys::Oid, tuples: &mut Vec<pg_sys::HeapTupleData>) -> Result<(), CoreError> {
        let base = self.words.as_ptr().cast_mut().cast::<u8>();
        tuples.clear();
        buf::reserve(tuples, self.tuples.len())?;
        tuples.extend(self.tuples.iter().map(|&(start, length)| pg_sys::HeapTupleData {
            t_len: length as u32,
            t_self: pg_sys::ItemPointerData {
                ip_blkid: pg_sys::BlockIdData { bi_hi: u16::MAX, bi_lo: u16::MAX },
                ip_posid: 0,
            },
            t_tableOid: table,
            // SAFETY: start is within the buffer, which stays as it is until the tuples are inserted.
            t_data: unsafe { base.add(start) }.cast(),
        }));
        Ok(())
    }

    /// Makes room for `count` more bytes.
    #[inline]
    fn reserve(&mut self, count: usize) -> Result<(), CoreError> {
        if self.used + count > self.words.len() * WORD { self.enlarge(count) } else { Ok(()) }
    }

    #[cold]
    fn enlarge(&mut self, count: usize) -> Result<(), CoreError> {
        let needed = (self.used + count).div_ceil(WORD);
        let words = needed.max(self.words.len() * 2).max(MIN_BYTES / WORD);
        let words = if self.words.try_reserve_exact(words - self.words.len()).is_ok() { words } else { needed };
        self.words.try_reserve_exact(words - self.words.len()).map_err(|_| CoreError::OutOfMemory)?;
        self.words.resize(words, Cell::new(0));
        Ok(())
    }
}

/// One tuple under construction. Dropped before [`TupleWriter::finish`], it leaves no trace.
pub struct TupleWriter<'a> {
    /// Zero where nothing is written yet, so that padding is.
    bytes: &'a mut [u8],
    at: usize,
    column: usize,
    used: &'a mut usize,
    tuples: &'a mut Vec<(usize, usize)>,
}

/// More than was announced: the writer's own mistake.
const OVERFLOW: CoreError = CoreError::TooLarge;

impl TupleWriter<'_> {
    #[inline]
    pub fn i64(&mut self, value: i64) -> Result<(), CoreError> {
        self.fixed(value.to_le_bytes(), 8)
    }

    #[inline]
    pub fn i32(&mut self, value: i32) -> Result<(), CoreError> {
        self.fixed(value.to_le_bytes(), 4)
    }

    #[inline]
    pub fn oid(&mut self, value: pg_sys::Oid) -> Result<(), CoreError> {
        self.fixed(value.to_u32().to_le_bytes(), 4)
    }

    #[inline]
    pub fn uuid(&mut self, value: &[u8; 16]) -> Result<(), CoreError> {
        self.fixed(*value, 1)
    }

    #[inline]
    pub fn null(&mut self) {
        self.column += 1;
    }

    pub fn i64_or_null(&mut self, value: Option<i64>) -> Result<(), CoreError> {
        match value {
            Some(value) => self.i64(value)?,
            None => self.null(),
        }
        Ok(())
    }

    pub fn i32_or_null(&mut self, value: Option<i32>) -> Result<(), CoreError> {
        match value {
            Some(value) => self.i32(value)?,
            None => self.null(),
        }
        Ok(())
    }

    /// A value of variable length: text, bytea, jsonb (without its header) and the like.
    #[inline]
    pub fn varlena(&mut self, payload: Option<&[u8]>) -> Result<(), CoreError> {
        let Some(payload) = payload else {
            self.null();
            return Ok(());
        };
        self.set_present()?;
        if payload.len() < SHORT_MAX {
            self.put(&[((payload.len() + 1) << 1) as u8 | 1])?;
        } else {
            self.at = self.at.next_multiple_of(4);
            let header = ((payload.len() + 4) as u32) << 2;
            self.put(&header.to_le_bytes())?;
        }
        self.put(payload)
    }

    pub fn finish(self) {
        self.tuples.push((*self.used, self.at));
        *self.used += self.at.next_multiple_of(WORD);
    }

    #[inline]
    fn fixed<const N: usize>(&mut self, bytes: [u8; N], alignment: usize) -> Result<(), CoreError> {
        self.set_present()?;
        self.at = self.at.next_multiple_of(alignment);
        self.put(&bytes)
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), CoreError> {
        let end = self.at + bytes.len();
        self.bytes.get_mut(self.at..end).ok_or(OVERFLOW)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    #[inline]
    fn set_present(&mut self) -> Result<(), CoreError> {
        *self.bytes.get_mut(HEADER + self.column / 8).ok_or(OVERFLOW)? |= 1 << (self.column % 8);
        self.column += 1;
        Ok(())
    }
}
