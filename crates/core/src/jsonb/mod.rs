//! Writes PostgreSQL's JSONB, byte for byte as `convertToJsonb` (jsonb_util.c), and in the same pass the text that
//! `jsonb_out` (jsonb.c) prints of it.
//!
//! Values are written in their final place, members of objects in JSONB's key order, so that nothing is sorted or moved:
//! a row image costs one pass over the row. What the caller must know before is the number of members.

mod container;
mod json;
mod keys;
mod layout;
mod output;
mod text;

pub use keys::KeyBlock;
pub use layout::MAX_DEPTH;
pub use text::put_quoted;

use crate::buf;
use crate::error::{Error, Result};
use crate::hex;
use layout::{ARRAY, CONTAINER, LENGTH_MASK, MAX_ELEMENTS, Members, SCALAR, position};
use output::Output;

/// What is open at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Kind {
    /// Nothing: the root is still to be written, or done.
    #[default]
    Root,
    Object,
    Array,
    /// The array around a scalar root.
    Scalar,
}

/// An open container.
#[derive(Debug, Clone, Copy, Default)]
struct Frame {
    kind: Kind,
    members: Members,
    /// An object's labels: where they begin among all labels, and how far they are used.
    labels: u32,
    used: u32,
    /// Where the labels' ends begin, and the next one.
    first_end: u32,
    next_end: u32,
}

/// A place to go back to: see [`Writer::rollback`].
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    depth: usize,
    jsonb: usize,
    text: usize,
    labels: usize,
    label_ends: usize,
    frame: Frame,
}

/// Writes one JSONB document at a time into buffers that it keeps.
///
/// After an error the document is unusable until [`Writer::rollback`] to a mark taken before, or [`Writer::clear`].
#[derive(Debug, Default)]
pub struct Writer {
    out: Output,
    /// The innermost open container, and those around it.
    top: Frame,
    outer: Vec<Frame>,
    /// `, "name": ` of the open objects' members, one object after the other.
    labels: Vec<u8>,
    label_ends: Vec<u32>,
    scratch: json::Scratch,
    printing: Vec<container::Cursor>,
}

const TOO_MANY: Error = Error::NotJsonb("more values than the container was begun with");
const TOO_FEW: Error = Error::NotJsonb("fewer values than the container was begun with");
const NOT_OPEN: Error = Error::NotJsonb("no such container is open");

impl Writer {
    /// A writer without a document and without memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the document, keeps the memory.
    pub fn clear(&mut self) {
        self.out.jsonb.clear();
        self.out.text.clear();
        self.top = Frame::default();
        self.outer.clear();
        self.labels.clear();
        self.label_ends.clear();
        self.scratch.clear();
        self.printing.clear();
    }

    /// Forgets the document, and gives back each buffer that holds more than `max_capacity` bytes.
    pub fn shrink(&mut self, max_capacity: usize) {
        self.clear();
        buf::release(&mut self.out.jsonb, max_capacity);
        buf::release(&mut self.out.text, max_capacity);
        buf::release(&mut self.outer, max_capacity / size_of::<Frame>());
        buf::release(&mut self.labels, max_capacity);
        buf::release(&mut self.label_ends, max_capacity / size_of::<u32>());
        buf::release(&mut self.printing, max_capacity / size_of::<container::Cursor>());
        self.scratch.shrink(max_capacity);
    }

    /// The document's bytes, as they follow the varlena header.
    pub fn jsonb(&self) -> &[u8] {
        &self.out.jsonb
    }

    /// The document's text.
    pub fn text(&self) -> &[u8] {
        &self.out.text
    }

    /// Whether a document is written to its end.
    pub fn is_complete(&self) -> bool {
        self.top.kind == Kind::Root && !self.out.jsonb.is_empty()
    }

    /// Begins an object with all keys of the block; as many values follow, in its order, then [`Writer::end_object`].
    pub fn begin_object(&mut self, keys: &KeyBlock) -> Result<()> {
        let base = self.before_value()?;
        self.out.pad()?;
        let header = self.out.jsonb.len();
        keys.put_head(&mut self.out.jsonb)?;
        self.open_labelled(base, header, keys.len(), |labels, ends| keys.put_labels(labels, ends))
    }

    /// Begins an object with some keys of the block, given as ascending positions in its order.
    pub fn begin_object_of(&mut self, keys: &KeyBlock, selected: &[u16]) -> Result<()> {
        let base = self.before_value()?;
        self.out.pad()?;
        let header = self.out.jsonb.len();
        keys.put_head_of(selected, &mut self.out.jsonb)?;
        self.open_labelled(base, header, selected.len(), |labels, ends| keys.put_labels_of(selected, labels, ends))
    }

    /// Ends the innermost object.
    pub fn end_object(&mut self) -> Result<()> {
        if self.top.kind != Kind::Object {
            return Err(NOT_OPEN);
        }
        let object = self.top;
        self.end_container(b'}')?;
        self.labels.truncate(object.labels as usize);
        self.label_ends.truncate(object.first_end as usize);
        Ok(())
    }

    /// Begins an array; `count` values follow, then [`Writer::end_array`].
    pub fn begin_array(&mut self, count: usize) -> Result<()> {
        if count > MAX_ELEMENTS {
            return Err(Error::TooLarge);
        }
        let base = self.before_value()?;
        self.out.pad()?;
        let header = self.out.jsonb.len();
        buf::put(&mut self.out.jsonb, &(ARRAY | count as u32).to_le_bytes())?;
        buf::zeros(&mut self.out.jsonb, count * 4)?;
        buf::push(&mut self.out.text, b'[')?;
        let members = Members {
            base: position(base)?,
            entries: position(header + 4)?,
            data: position(self.out.jsonb.len())?,
            next: 0,
            end: count as u32,
        };
        self.open(Frame { kind: Kind::Array, members, ..Frame::default() })
    }

    /// Ends the innermost array.
    pub fn end_array(&mut self) -> Result<()> {
        if self.top.kind != Kind::Array {
            return Err(NOT_OPEN);
        }
        self.end_container(b']')
    }

    /// JSON `null`.
    #[inline]
    pub fn null(&mut self) -> Result<()> {
        let start = self.before_scalar()?;
        let kind = self.out.null()?;
        self.after_value(start, kind)
    }

    /// `true` or `false`.
    #[inline]
    pub fn boolean(&mut self, value: bool) -> Result<()> {
        let start = self.before_scalar()?;
        let kind = self.out.boolean(value)?;
        self.after_value(start, kind)
    }

    /// A string, in the server encoding.
    #[inline]
    pub fn string(&mut self, value: &[u8]) -> Result<()> {
        if value.len() > LENGTH_MASK as usize {
            return Err(Error::TooLarge);
        }
        let start = self.before_scalar()?;
        let kind = self.out.string(value)?;
        self.after_value(start, kind)
    }

    /// An integer.
    #[inline]
    pub fn integer(&mut self, value: i64) -> Result<()> {
        let start = self.before_scalar()?;
        let kind = self.out.integer(value)?;
        self.after_value(start, kind)
    }

    /// A stored `numeric` (what follows its varlena header). NaN and the infinities become strings, as in `to_jsonb`.
    #[inline]
    pub fn numeric(&mut self, payload: &[u8]) -> Result<()> {
        let start = self.before_scalar()?;
        let kind = self.out.numeric(payload)?;
        self.after_value(start, kind)
    }

    /// A decimal literal such as `1.5e-07`, read as `numeric_in` does; `NaN`, `Infinity` and `-Infinity` become strings.
    #[inline]
    pub fn decimal(&mut self, literal: &[u8]) -> Result<()> {
        let start = self.before_scalar()?;
        let kind = self.out.decimal(literal)?;
        self.after_value(start, kind)
    }

    /// A JSON text, read as `jsonb_in` does: of duplicate keys the last one stays, escapes are resolved. `\u` escapes
    /// become UTF-8.
    pub fn json(&mut self, json: &[u8]) -> Result<()> {
        self.scratch.parse(json, self.outer.len())?;
        let start = if self.scratch.is_container() { self.before_value()? } else { self.before_scalar()? };
        let kind = self.scratch.emit(json, &mut self.out)?;
        self.after_value(start, kind)
    }

    /// A stored `jsonb` value (what follows its varlena header). A scalar loses the array that it is stored in.
    pub fn container(&mut self, root: &[u8]) -> Result<()> {
        if let Some(scalar) = container::scalar(root)? {
            let start = self.before_scalar()?;
            let kind = container::put_scalar(scalar, &mut self.out)?;
            return self.after_value(start, kind);
        }
        let start = self.before_value()?;
        container::put(root, &mut self.out, &mut self.printing, self.outer.len())?;
        self.after_value(start, CONTAINER)
    }

    /// What stands for a value that can't be recorded itself: `{"$bytes": n, "$sha256": "…"}`, in JSONB's key order.
    pub fn digest(&mut self, sha256: &[u8; 32], bytes: u64) -> Result<()> {
        let (keys, _) = KeyBlock::new(&[b"$bytes", b"$sha256"])?;
        let mut digits = Vec::new();
        hex::put(&mut digits, sha256)?;
        self.begin_object(&keys)?;
        self.decimal(itoa::Buffer::new().format(bytes).as_bytes())?;
        self.string(&digits)?;
        self.end_object()
    }

    /// The present place, to come back to.
    #[inline]
    pub fn mark(&self) -> Mark {
        Mark {
            depth: self.outer.len(),
            jsonb: self.out.jsonb.len(),
            text: self.out.text.len(),
            labels: self.labels.len(),
            label_ends: self.label_ends.len(),
            frame: self.top,
        }
    }

    /// Forgets what was written since the mark, whether whole, begun or failed. The container that was open at the mark
    /// must not have been ended.
    pub fn rollback(&mut self, mark: &Mark) {
        self.outer.truncate(mark.depth);
        self.out.jsonb.truncate(mark.jsonb);
        self.out.text.truncate(mark.text);
        self.labels.truncate(mark.labels);
        self.label_ends.truncate(mark.label_ends);
        self.top = mark.frame;
    }

    /// Text of the value written since the mark, without its key or comma.
    pub fn value_text(&self, mark: &Mark) -> &[u8] {
        let label = match mark.frame.kind {
            Kind::Object => self.label_ends.get(mark.frame.next_end as usize).map_or(0, |&end| end - mark.frame.used),
            Kind::Array if mark.frame.members.next > 0 => 2,
            _ => 0,
        };
        self.out.text.get(mark.text + label as usize..).unwrap_or(&[])
    }

    /// Length of [`Writer::value_text`].
    pub fn value_text_len(&self, mark: &Mark) -> usize {
        self.value_text(mark).len()
    }

    /// Writes what goes before a value of any kind. Returns where the value begins in the JSONB buffer.
    #[inline]
    fn before_value(&mut self) -> Result<usize> {
        match self.top.kind {
            Kind::Object => {
                if self.top.members.is_full() {
                    return Err(TOO_MANY);
                }
                let (from, end) = (self.top.used, self.label_ends[self.top.next_end as usize]);
                let first = self.top.labels;
                buf::put_padded(&mut self.out.text, &self.labels, (first + from) as usize, (first + end) as usize)?;
                self.top.used = end;
                self.top.next_end += 1;
            }
            Kind::Array => {
                if self.top.members.is_full() {
                    return Err(TOO_MANY);
                }
                if self.top.members.next > 0 {
                    buf::put(&mut self.out.text, b", ")?;
                }
            }
            Kind::Root | Kind::Scalar => {
                if !self.out.jsonb.is_empty() && self.top.kind == Kind::Root {
                    return Err(TOO_MANY);
                }
            }
        }
        Ok(self.out.jsonb.len())
    }

    /// Writes what goes before a scalar.
    #[inline]
    fn before_scalar(&mut self) -> Result<usize> {
        if self.top.kind == Kind::Root {
            self.open_scalar_root()?;
        }
        self.before_value()
    }

    /// A scalar root is stored in an array of its own (jsonb.h, JB_FSCALAR).
    #[cold]
    fn open_scalar_root(&mut self) -> Result<()> {
        let base = self.before_value()?;
        buf::put(&mut self.out.jsonb, &(ARRAY | SCALAR | 1).to_le_bytes())?;
        buf::put(&mut self.out.jsonb, &[0; 4])?;
        let members = Members { base: position(base)?, entries: 4, data: 8, next: 0, end: 1 };
        self.open(Frame { kind: Kind::Scalar, members, ..Frame::default() })
    }

    /// Accounts for the value that begins at `start`.
    #[inline]
    fn after_value(&mut self, start: usize, kind: u32) -> Result<()> {
        if self.top.kind == Kind::Root {
            return Ok(());
        }
        self.top.members.close(&mut self.out.jsonb, start, kind)?;
        if self.top.kind == Kind::Scalar {
            self.top = self.outer.pop().unwrap_or_default();
        }
        Ok(())
    }

    #[inline]
    fn open(&mut self, frame: Frame) -> Result<()> {
        if self.outer.len() >= MAX_DEPTH {
            return Err(json::TOO_DEEP);
        }
        buf::push(&mut self.outer, self.top)?;
        self.top = frame;
        Ok(())
    }

    #[inline]
    fn open_labelled(
        &mut self,
        base: usize,
        header: usize,
        count: usize,
        put_labels: impl FnOnce(&mut Vec<u8>, &mut Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let frame = Frame {
            kind: Kind::Object,
            members: Members {
                base: position(base)?,
                entries: position(header + 4)?,
                data: position(header + 4 + count * 8)?,
                next: count as u32,
                end: count as u32 * 2,
            },
            labels: position(self.labels.len())?,
            // the first label goes without its comma
            used: 2,
            next_end: position(self.label_ends.len())?,
            first_end: position(self.label_ends.len())?,
        };
        put_labels(&mut self.labels, &mut self.label_ends)?;
        buf::push(&mut self.out.text, b'{')?;
        self.open(frame)
    }

    fn end_container(&mut self, bracket: u8) -> Result<()> {
        let members = self.top.members;
        if !members.is_full() {
            return Err(TOO_FEW);
        }
        let base = members.base as usize;
        if self.out.jsonb.len() - base > LENGTH_MASK as usize {
            return Err(Error::TooLarge);
        }
        buf::push(&mut self.out.text, bracket)?;
        self.top = self.outer.pop().unwrap_or_default();
        self.after_value(base, CONTAINER)
    }
}

/// Whether a JSON text that `jsonb` can hold is an object.
pub fn check_json(json: &[u8]) -> Result<bool> {
    let mut scratch = json::Scratch::default();
    scratch.parse(json, 0)?;
    scratch.emit(json, &mut Output::default())?;
    Ok(scratch.is_object())
}
