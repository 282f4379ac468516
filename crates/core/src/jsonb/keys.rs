//! The keys of an object that is written over and over: sorted, laid out and escaped once.

use super::layout::{HAS_OFFSET, LENGTH_MASK, MAX_PAIRS, OBJECT, STRIDE};
use super::text;
use crate::buf;
use crate::error::{Error, Result};

/// Names of an object's members in JSONB's order: by length, then by bytes (`lengthCompareJsonbString` in jsonb_util.c).
#[derive(Debug, Clone)]
pub struct KeyBlock {
    /// Names one after the other, and where each ends.
    names: Vec<u8>,
    name_ends: Vec<u32>,
    /// What an object with all keys begins with: header, the keys' entries, room for the values' entries, names.
    head: Vec<u8>,
    /// `, "name": ` of each name, padding for [`buf::put_padded`], and where each label ends.
    labels: Vec<u8>,
    label_ends: Vec<u32>,
}

fn empty<T>(capacity: usize) -> Result<Vec<T>> {
    let mut items = Vec::new();
    buf::reserve(&mut items, capacity)?;
    Ok(items)
}

/// Entry word of a key (a string) of an object.
fn key_entry(number: usize, end: usize, length: usize) -> u32 {
    if (number as u32).is_multiple_of(STRIDE) { end as u32 | HAS_OFFSET } else { length as u32 }
}

/// Range of the i-th of some pieces that lie one after the other.
#[inline]
fn piece(ends: &[u32], i: usize) -> std::ops::Range<usize> {
    let start = match i {
        0 => 0,
        _ => ends[i - 1],
    };
    start as usize..ends[i] as usize
}

impl KeyBlock {
    /// Sorts `names`, which must be unique. The second result tells where each key came from: the i-th key in JSONB's
    /// order is `names[order[i]]`.
    pub fn new(names: &[&[u8]]) -> Result<(KeyBlock, Vec<usize>)> {
        if names.len() > MAX_PAIRS {
            return Err(Error::TooLarge);
        }
        let mut order = empty(names.len())?;
        order.extend(0..names.len());
        order.sort_unstable_by_key(|&i: &usize| (names[i].len(), names[i]));
        if order.windows(2).any(|pair| names[pair[0]] == names[pair[1]]) {
            return Err(Error::NotJsonb("duplicate member name"));
        }

        let mut block = KeyBlock {
            names: Vec::new(),
            name_ends: empty(names.len())?,
            head: empty(4 + names.len() * 8)?,
            labels: Vec::new(),
            label_ends: empty(names.len())?,
        };
        for &i in &order {
            block.add(names[i])?;
        }
        block.head.extend_from_slice(&(OBJECT | names.len() as u32).to_le_bytes());
        for i in 0..names.len() {
            let range = piece(&block.name_ends, i);
            block.head.extend_from_slice(&key_entry(i, range.end, range.len()).to_le_bytes());
        }
        buf::zeros(&mut block.head, names.len() * 4)?;
        buf::put(&mut block.head, &block.names)?;
        buf::zeros(&mut block.labels, buf::SHORT)?;
        Ok((block, order))
    }

    fn add(&mut self, name: &[u8]) -> Result<()> {
        buf::put(&mut self.names, name)?;
        if self.names.len() > LENGTH_MASK as usize {
            return Err(Error::TooLarge);
        }
        self.name_ends.push(self.names.len() as u32);
        buf::put(&mut self.labels, b", ")?;
        text::put_quoted(&mut self.labels, name)?;
        buf::put(&mut self.labels, b": ")?;
        self.label_ends.push(u32::try_from(self.labels.len()).map_err(|_| Error::TooLarge)?);
        Ok(())
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.name_ends.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.name_ends.is_empty()
    }

    /// The i-th name in JSONB's order; empty when there is none.
    pub fn name(&self, i: usize) -> &[u8] {
        if i < self.len() { &self.names[piece(&self.name_ends, i)] } else { &[] }
    }

    /// Appends the start of an object with all keys.
    #[inline]
    pub(super) fn put_head(&self, jsonb: &mut Vec<u8>) -> Result<()> {
        buf::put(jsonb, &self.head)
    }

    /// Appends the start of an object with some of the keys.
    pub(super) fn put_head_of(&self, selected: &[u16], jsonb: &mut Vec<u8>) -> Result<()> {
        let known = selected.last().is_none_or(|&last| usize::from(last) < self.len());
        if !known || !selected.is_sorted_by(|a, b| a < b) {
            return Err(Error::NotJsonb("member outside of the object"));
        }
        let count = selected.len();
        buf::reserve(jsonb, 4 + count * 8)?;
        jsonb.extend_from_slice(&(OBJECT | count as u32).to_le_bytes());
        let mut end = 0;
        for (i, &key) in selected.iter().enumerate() {
            let length = piece(&self.name_ends, usize::from(key)).len();
            end += length;
            jsonb.extend_from_slice(&key_entry(i, end, length).to_le_bytes());
        }
        buf::zeros(jsonb, count * 4)?;
        for &key in selected {
            buf::put(jsonb, self.name(usize::from(key)))?;
        }
        Ok(())
    }

    /// Appends all labels and their ends.
    #[inline]
    pub(super) fn put_labels(&self, labels: &mut Vec<u8>, ends: &mut Vec<u32>) -> Result<()> {
        buf::put(labels, &self.labels)?;
        buf::extend(ends, &self.label_ends)
    }

    /// Appends the labels of some keys, and their ends counted from the first of them.
    pub(super) fn put_labels_of(&self, selected: &[u16], labels: &mut Vec<u8>, ends: &mut Vec<u32>) -> Result<()> {
        buf::reserve(ends, selected.len())?;
        let mut end = 0;
        for &key in selected {
            let label = &self.labels[piece(&self.label_ends, usize::from(key))];
            buf::put(labels, label)?;
            end += label.len() as u32;
            ends.push(end);
        }
        buf::zeros(labels, buf::SHORT)
    }
}
