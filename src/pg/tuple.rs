//! Heap tuples of the log, built in place: header, null bitmap and columns exactly as `heap_form_tuple` lays them out
//! (PostgreSQL, `access/htup_details.h`), in one buffer per batch.

use std::cell::Cell;

use audit_core::error::Error as CoreError;
use pgrx::pg_sys;

const HEADER: usize = 23;
const INFOMASK2_AT: usize = 18;
const INFOMASK_AT: usize = 20;
const HOFF_AT: usize = 22;
const WORD: usize = 8;
/// The first allocation: room for a few events.
const MIN_BYTES: usize = 4096;
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
        self.tuples.try_reserve(other.tuples.len()).map_err(|_| CoreError::OutOfMemory)?;
        self.reserve(used)?;
        let start = self.used / WORD;
        self.words[start..start + used / WORD].clone_from_slice(&other.words[..used / WORD]);
        self.tuples.extend(other.tuples.iter().map(|&(at, length)| (self.used + at, length)));
        self.used += used;
        Ok(())
    }

    /// Starts a tuple of `columns` columns; then one call per column in order, and [`TupleWriter::finish`].
    pub fn tuple(&mut self, columns: usize) -> Result<TupleWriter<'_>, CoreError> {
        let start = self.used;
        let data_at = (HEADER + columns.div_ceil(8)).next_multiple_of(WORD);
        self.tuples.try_reserve(1).map_err(|_| CoreError::OutOfMemory)?;
        self.grow(data_at)?;
        let header = &mut self.as_bytes_mut()[start..];
        header[INFOMASK2_AT..INFOMASK_AT].copy_from_slice(&(columns as u16).to_le_bytes());
        header[INFOMASK_AT..HOFF_AT]
            .copy_from_slice(&((pg_sys::HEAP_HASNULL | pg_sys::HEAP_HASVARWIDTH) as u16).to_le_bytes());
        header[HOFF_AT] = data_at as u8;
        Ok(TupleWriter { batch: self, start, column: 0 })
    }

    /// The tuples as PostgreSQL's functions take them. They point into the batch.
    pub fn heap_tuples(&self, table: pg_sys::Oid) -> Result<Vec<pg_sys::HeapTupleData>, CoreError> {
        let base = self.words.as_ptr().cast_mut().cast::<u8>();
        let mut tuples = Vec::new();
        tuples.try_reserve_exact(self.tuples.len()).map_err(|_| CoreError::OutOfMemory)?;
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
        Ok(tuples)
    }

    fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: initialised words read as bytes.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.words.len() * WORD) }
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

    /// `count` more bytes, zero.
    #[inline]
    fn grow(&mut self, count: usize) -> Result<(), CoreError> {
        self.reserve(count)?;
        let used = self.used;
        self.as_bytes_mut()[used..used + count].fill(0);
        self.used += count;
        Ok(())
    }

    #[inline]
    fn align(&mut self, alignment: usize) -> Result<(), CoreError> {
        let padding = self.used.next_multiple_of(alignment) - self.used;
        if padding == 0 { Ok(()) } else { self.grow(padding) }
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), CoreError> {
        self.reserve(bytes.len())?;
        let used = self.used;
        self.as_bytes_mut()[used..used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
        Ok(())
    }
}

/// One tuple under construction. Dropped before [`TupleWriter::finish`], it leaves no trace.
pub struct TupleWriter<'a> {
    batch: &'a mut Batch,
    start: usize,
    column: usize,
}

impl TupleWriter<'_> {
    #[inline]
    pub fn i64(&mut self, value: i64) -> Result<(), CoreError> {
        self.fixed(&value.to_le_bytes(), 8)
    }

    #[inline]
    pub fn i32(&mut self, value: i32) -> Result<(), CoreError> {
        self.fixed(&value.to_le_bytes(), 4)
    }

    #[inline]
    pub fn oid(&mut self, value: pg_sys::Oid) -> Result<(), CoreError> {
        self.fixed(&value.to_u32().to_le_bytes(), 4)
    }

    #[inline]
    pub fn uuid(&mut self, value: &[u8; 16]) -> Result<(), CoreError> {
        self.fixed(value, 1)
    }

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
        self.set_present();
        if payload.len() < SHORT_MAX {
            self.batch.put(&[((payload.len() + 1) << 1) as u8 | 1])?;
        } else {
            self.batch.align(4)?;
            let header = ((payload.len() + 4) as u32) << 2;
            self.batch.put(&header.to_le_bytes())?;
        }
        self.batch.put(payload)
    }

    pub fn finish(mut self) {
        let length = self.batch.used - self.start;
        self.batch.tuples.push((self.start, length));
        // The next tuple starts on a word. Growing by less than a word that is already there cannot fail, and if the
        // word is not there the next tuple's own growth reports it.
        self.batch.used = self.batch.used.next_multiple_of(WORD);
        self.start = self.batch.used;
    }

    #[inline]
    fn fixed(&mut self, bytes: &[u8], alignment: usize) -> Result<(), CoreError> {
        self.set_present();
        self.batch.align(alignment)?;
        self.batch.put(bytes)
    }

    #[inline]
    fn set_present(&mut self) {
        let at = self.start + HEADER + self.column / 8;
        let bit = 1 << (self.column % 8);
        self.batch.as_bytes_mut()[at] |= bit;
        self.column += 1;
    }
}

impl Drop for TupleWriter<'_> {
    fn drop(&mut self) {
        self.batch.used = self.start;
    }
}
