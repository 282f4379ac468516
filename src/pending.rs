//! Events that are captured but not yet in the log, in batches that one multi-insert writes.
//!
//! A batch waits until it is full, until somebody is about to read the log, or until commit. Whoever inserts it for good
//! is the sub-transaction that captured it: inserted by an inner one, it would vanish with that one's rollback. So when an
//! inner one reads the log, what the outer ones captured is stored for its eyes, and kept here until it has ended: if it
//! commits, it was stored for good, if it is rolled back, it is to be stored again.

use std::rc::Rc;

use crate::error::Error;
use crate::pg::tuple::Batch;

/// A full batch: enough for a hundred events in one multi-insert, and small beside what a backend uses anyway.
const BATCH_BYTES: usize = 64 * 1024;
/// Contexts by turns fill as many batches.
const MAX_BATCHES: usize = 16;
/// Memory kept for the next batch.
const KEEP_BYTES: usize = 1024 * 1024;

/// Events of one sub-transaction and one `occurred_at`.
struct Entry {
    subtransaction: u32,
    occurred_at: i64,
    /// Command of the first of them: who reads the log after it sees all of them.
    command: u32,
    batch: Rc<Batch>,
    /// The sub-transaction as part of which they are in the log.
    stored_in: Option<u32>,
}

/// A batch to insert.
pub struct Due {
    pub batch: Rc<Batch>,
    pub occurred_at: i64,
    pub command: u32,
}

/// In the order of capture, so the batches of an inner sub-transaction come after those of the outer ones.
#[derive(Default)]
pub struct Pending {
    entries: Vec<Entry>,
    spare: Option<Rc<Batch>>,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The `occurred_at` of the batches that are not in the log.
    pub fn times(&self) -> impl Iterator<Item = i64> {
        self.entries.iter().filter(|entry| entry.stored_in.is_none()).map(|entry| entry.occurred_at)
    }

    /// The batch that the next event goes to.
    pub fn batch(&mut self, subtransaction: u32, occurred_at: i64, command: u32) -> Result<&mut Batch, Error> {
        let fits = |entry: &Entry| entry.occurred_at == occurred_at && entry.stored_in.is_none();
        let known = self.own(subtransaction).position(fits);
        let index = match known {
            Some(back) => self.entries.len() - 1 - back,
            None => {
                let batch = self.spare.take().unwrap_or_default();
                self.entries.push(Entry { subtransaction, occurred_at, command, batch, stored_in: None });
                self.entries.len() - 1
            }
        };
        Rc::get_mut(&mut self.entries[index].batch).ok_or(Error::Internal("a batch in use was to be continued"))
    }

    /// Whether the sub-transaction's batches are to be inserted now.
    pub fn is_full(&self, subtransaction: u32) -> bool {
        self.own(subtransaction).any(|entry| entry.batch.bytes() >= BATCH_BYTES)
            || self.own(subtransaction).nth(MAX_BATCHES).is_some()
    }

    /// Those of this sub-transaction, the last one first.
    fn own(&self, subtransaction: u32) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev().take_while(move |entry| entry.subtransaction == subtransaction)
    }

    /// The next batch that the sub-transaction has to insert: of its own, or with `all` also of outer ones. It counts as
    /// stored from now on; if it is not, the sub-transaction is rolled back.
    pub fn next_due(&mut self, subtransaction: u32, all: bool) -> Option<Due> {
        let is_due = |entry: &&mut Entry| entry.stored_in.is_none() && (all || entry.subtransaction == subtransaction);
        self.entries.iter_mut().find(is_due).map(|entry| {
            entry.stored_in = Some(subtransaction);
            Due { batch: entry.batch.clone(), occurred_at: entry.occurred_at, command: entry.command }
        })
    }

    /// Forgets what is stored for good.
    pub fn settle(&mut self) {
        for entry in self.entries.extract_if(.., |entry| entry.stored_in == Some(entry.subtransaction)) {
            recycle(&mut self.spare, entry.batch);
        }
    }

    pub fn clear(&mut self) {
        for entry in self.entries.drain(..) {
            recycle(&mut self.spare, entry.batch);
        }
    }

    /// Allocates nothing that it could not do without.
    pub fn subtransaction_committed(&mut self, id: u32, parent: u32) {
        for entry in &mut self.entries {
            if entry.subtransaction == id {
                entry.subtransaction = parent;
            }
            if entry.stored_in == Some(id) {
                entry.stored_in = Some(parent);
            }
        }
        self.settle();
        while self.join_last() {}
    }

    pub fn subtransaction_aborted(&mut self, id: u32) {
        for entry in self.entries.extract_if(.., |entry| entry.subtransaction == id) {
            recycle(&mut self.spare, entry.batch);
        }
        for entry in &mut self.entries {
            if entry.stored_in == Some(id) {
                entry.stored_in = None;
            }
        }
    }

    /// Appends the last batch to the one before, where they could have been one and memory allows.
    fn join_last(&mut self) -> bool {
        let [.., before, last] = self.entries.as_mut_slice() else { return false };
        let belongs = before.subtransaction == last.subtransaction
            && before.occurred_at == last.occurred_at
            && before.stored_in.is_none()
            && last.stored_in.is_none();
        let joined = belongs && Rc::get_mut(&mut before.batch).is_some_and(|batch| batch.append(&last.batch).is_ok());
        if joined && let Some(last) = self.entries.pop() {
            recycle(&mut self.spare, last.batch);
        }
        joined
    }
}

fn recycle(spare: &mut Option<Rc<Batch>>, mut batch: Rc<Batch>) {
    if let Some(free) = Rc::get_mut(&mut batch) {
        free.clear(KEEP_BYTES);
        *spare = Some(batch);
    }
}
