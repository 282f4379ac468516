//! An allocator that has nothing left ends in an error, at whatever allocation that happens.
//!
//! The allocator of this test program counts down and then refuses. Were any growth left to `Vec` itself, the program would
//! be aborted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use audit_core::canonical::{EventRecord, Operation, Status, event, layout};
use audit_core::context::{ContextErrorKind, check_context};
use audit_core::error::{Error, Result};
use audit_core::jsonb::{KeyBlock, Writer};

thread_local! {
    /// Allocations that this thread may still make; none: as many as it likes.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Limited;

fn allowed() -> bool {
    match LEFT.get() {
        None => true,
        Some(0) => false,
        Some(left) => {
            LEFT.set(Some(left - 1));
            true
        }
    }
}

// SAFETY: hands everything to the system's allocator, or returns null, as an allocator may. The thread-local needs neither
// allocation nor destructor.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        if allowed() { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        if allowed() { unsafe { System.realloc(at, layout, size) } } else { std::ptr::null_mut() }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// Everything that grows a buffer.
fn work(json: &[u8], stored: &[u8]) -> Result<usize> {
    let (keys, _) = KeyBlock::new(&[b"first", b"second", b"a third, longer one"])?;
    let mut writer = Writer::new();
    writer.begin_object(&keys)?;
    writer.json(json)?;
    writer.container(stored)?;
    writer.begin_object_of(&keys, &[0, 1])?;
    writer.begin_array(7)?;
    writer.null()?;
    writer.boolean(true)?;
    writer.integer(-1_234_567)?;
    writer.decimal(b"1.5e-300")?;
    writer.numeric(&[0x00, 0x80, 1, 0])?;
    writer.string(b"a string\nof two lines")?;
    writer.digest(&[1; 32], 2)?;
    writer.end_array()?;
    writer.null()?;
    writer.end_object()?;
    writer.end_object()?;
    let mut table = Vec::new();
    layout(1, b"public", b"t", &mut table)?;
    let record = EventRecord {
        changeset_id: [0; 16],
        seq: 0,
        command: 0,
        occurred_at_us: 0,
        layout: Some(&table),
        operation: Operation::Insert,
        action: None,
        status: Status::Success,
        resource: None,
        resource_id: Some(b"1"),
        row_image: Some(writer.text()),
        old_values: None,
        details: None,
    };
    let mut canonical = Vec::new();
    event(&record, &mut canonical)?;
    Ok(canonical.len())
}

#[test]
fn every_allocation_may_fail() {
    let json = format!("[{}{}]", "{\"k\": \"\\n\", \"a\": [1.5]}, ".repeat(100), "[".repeat(50) + &"]".repeat(50));
    let mut writer = Writer::new();
    writer.json(json.as_bytes()).unwrap();
    let stored = writer.jsonb().to_vec();
    let expected = work(json.as_bytes(), &stored).unwrap();

    let mut failures = 0;
    loop {
        LEFT.set(Some(failures));
        let result = work(json.as_bytes(), &stored);
        LEFT.set(None);
        match result {
            Ok(length) => {
                assert_eq!(length, expected);
                break;
            }
            Err(error) => assert_eq!(error, Error::OutOfMemory),
        }
        failures += 1;
    }
    assert!(failures > 20, "{failures}");
}

#[test]
fn a_writer_works_again_after_a_failure() {
    let mut writer = Writer::new();
    writer.begin_array(2).unwrap();
    writer.string(b"kept").unwrap();
    let mark = writer.mark();
    let large = vec![b'x'; 1 << 20];
    LEFT.set(Some(1));
    let result = writer.string(&large);
    LEFT.set(None);
    assert_eq!(result, Err(Error::OutOfMemory));
    writer.rollback(&mark);
    writer.null().unwrap();
    writer.end_array().unwrap();
    assert_eq!(writer.text(), b"[\"kept\", null]");
}

#[test]
fn a_context_that_cannot_be_read_is_not_called_malformed() {
    LEFT.set(Some(0));
    let result = check_context(b"{\"a\": 1}");
    LEFT.set(None);
    assert_eq!(result.unwrap_err().kind, ContextErrorKind::OutOfMemory);
}
