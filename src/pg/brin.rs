//! Which tuples of a batch a BRIN index needs to hear of (PostgreSQL, `access/brin/brin.c`, `brin_revmap.c`).
//!
//! A page range without a summary is read by every scan, so its tuples need no entry: `brininsert` finds that out anew for
//! each of them, and reads three pages for it. Here one look at the range map serves the rest of a batch in the same
//! range. That is as safe as what `brininsert` does: the tuples are in the heap already, so whoever summarises the range
//! after that look reads them there.

use std::cell::Cell;

use pgrx::pg_sys;

use super::heap::block_of;
use super::unguarded::{self, guarded};

/// `BrinStatsData`: what the index's first page says.
#[repr(C)]
pub struct Stats {
    pages_per_range: pg_sys::BlockNumber,
    map_pages: pg_sys::BlockNumber,
}

/// Entries of a page of the range map, `REVMAP_PAGE_MAXITEMS` (access/brin_page.h): what page header and special space
/// leave, in item pointers.
const ENTRIES_PER_PAGE: u32 = {
    let header = (std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp) as u32).next_multiple_of(8);
    const SPECIAL: u32 = 8;
    (pg_sys::BLCKSZ - header - SPECIAL) / size_of::<pg_sys::ItemPointerData>() as u32
};
/// The map begins after the index's first page.
const FIRST_MAP_PAGE: u32 = 1;

/// What stays as it is while the index has this file; PostgreSQL tells when it gets another.
pub(super) struct RangeMap {
    pages_per_range: u32,
    /// The map only grows.
    pages: Cell<u32>,
}

impl RangeMap {
    /// # Safety
    /// The index is open, locked and of access method BRIN.
    pub(super) unsafe fn of(index: pg_sys::Relation) -> Self {
        // SAFETY: as above.
        let stats = unsafe { guarded(|| stats(index)) };
        RangeMap { pages_per_range: stats.pages_per_range.max(1), pages: Cell::new(stats.map_pages) }
    }

    /// # Safety
    /// As for `of`, and inside `guarded`.
    unsafe fn has_summary(&self, index: pg_sys::Relation, range: u32) -> bool {
        let (page, entry) = (range / ENTRIES_PER_PAGE, range % ENTRIES_PER_PAGE);
        // SAFETY: as above; the page is pinned and locked while it is read, and is a page of the range map.
        unsafe {
            if page >= self.pages.get() {
                self.pages.set(stats(index).map_pages);
                if page >= self.pages.get() {
                    return false;
                }
            }
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            let normal = pg_sys::ReadBufferMode::RBM_NORMAL;
            let buffer =
                unguarded::ReadBufferExtended(index, main, FIRST_MAP_PAGE + page, normal, std::ptr::null_mut());
            unguarded::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let contents = pg_sys::BufferGetPage(buffer)
                .add(std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp).next_multiple_of(8))
                .cast::<pg_sys::ItemPointerData>();
            let is_set = (*contents.add(entry as usize)).ip_posid != pg_sys::InvalidOffsetNumber;
            unguarded::UnlockReleaseBuffer(buffer);
            is_set
        }
    }
}

unsafe fn stats(index: pg_sys::Relation) -> Stats {
    let mut stats = Stats { pages_per_range: 0, map_pages: 0 };
    // SAFETY: the caller has the index open, and calls this inside `guarded`.
    unsafe { unguarded::brinGetStats(index, &mut stats) };
    // PostgreSQL gives the number of the last page less one, and so 0 where there is one page.
    stats.map_pages = stats.map_pages.wrapping_add(1);
    stats
}

/// The page ranges of one index, for one batch in heap order.
pub(super) struct Ranges<'a> {
    map: &'a RangeMap,
    index: pg_sys::Relation,
    without_summary: Option<u32>,
}

impl<'a> Ranges<'a> {
    /// # Safety
    /// The map is that of the index, which stays open and locked for the life of this value. To be used inside `guarded`.
    pub(super) unsafe fn new(map: &'a RangeMap, index: pg_sys::Relation) -> Self {
        Ranges { map, index, without_summary: None }
    }

    /// Whether the index must be told of the tuple: its range has a summary, or it is the first of its range, at which
    /// `autosummarize` has the range before it summarised.
    pub(super) fn concerns(&mut self, tid: &pg_sys::ItemPointerData) -> bool {
        let block = block_of(tid);
        if block.is_multiple_of(self.map.pages_per_range) && tid.ip_posid == 1 {
            return true;
        }
        let range = block / self.map.pages_per_range;
        if self.without_summary == Some(range) {
            return false;
        }
        // SAFETY: see `new`.
        let has_summary = unsafe { self.map.has_summary(self.index, range) };
        if !has_summary {
            self.without_summary = Some(range);
        }
        has_summary
    }
}
