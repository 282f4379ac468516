//! Who owns which block of a queue in shared memory.
//!
//! The memory is cut into blocks of one size. A message is a chain of blocks, so that it may have any length, and the
//! space of one that is rolled back or read late stands in nobody's way, as it would in a ring. A block is free, or its
//! taker's alone, or in the inbox of a database, or taken out of there by that database's one reader.
//!
//! Nothing here waits or can fail: a step is a compare-and-swap, so a transaction's commit and abort may call it. What
//! the blocks hold is not seen here. The numbers live in memory that all processes share; a process that dies in the
//! midst of a step takes the server down, as PostgreSQL sees to it, and the memory is made afresh.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// No block: the end of a chain or list.
pub const NIL: u32 = u32::MAX;

/// The blocks and the list of free ones.
#[derive(Clone, Copy)]
pub struct Pool<'a> {
    /// Of each block, the next one of its chain.
    pub next: &'a [AtomicU32],
    /// The first free block, and above it a count of takings: a block that left and came back meanwhile is not mistaken
    /// for one that never left.
    pub head: &'a AtomicU64,
    /// Free blocks that nobody has laid claim to.
    pub free: &'a AtomicU32,
}

impl Pool<'_> {
    /// Makes all blocks free.
    pub fn init(&self) {
        let count = self.next.len() as u32;
        for (block, next) in (0..count).zip(self.next) {
            next.store(if block + 1 < count { block + 1 } else { NIL }, Ordering::Relaxed);
        }
        self.head.store(if count == 0 { u64::from(NIL) } else { 0 }, Ordering::Relaxed);
        self.free.store(count, Ordering::Release);
    }

    /// A chain of so many blocks, at least one; `None` where not as many are free.
    pub fn reserve(&self, count: u32) -> Option<u32> {
        let claim = |free: u32| free.checked_sub(count.max(1));
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, claim).ok()?;
        let mut first = NIL;
        for _ in 0..count.max(1) {
            let block = self.pop();
            self.next[block as usize].store(first, Ordering::Relaxed);
            first = block;
        }
        Some(first)
    }

    /// Frees a chain.
    pub fn release(&self, first: u32) {
        let mut count = 1;
        let mut last = first;
        while let Some(block) = self.next(last) {
            last = block;
            count += 1;
        }
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            self.next[last as usize].store(head as u32, Ordering::Relaxed);
            let new = head & TAG | u64::from(first);
            match self.head.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(found) => head = found,
            }
        }
        self.free.fetch_add(count, Ordering::AcqRel);
    }

    /// The next block of a chain.
    pub fn next(&self, block: u32) -> Option<u32> {
        Some(self.next[block as usize].load(Ordering::Relaxed)).filter(|&next| next != NIL)
    }

    /// The caller has laid claim to a block, so there is one.
    fn pop(&self) -> u32 {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let block = head as u32;
            if block == NIL {
                std::hint::spin_loop();
                head = self.head.load(Ordering::Acquire);
                continue;
            }
            let next = self.next[block as usize].load(Ordering::Relaxed);
            let new = (head & TAG).wrapping_add(TAKEN) | u64::from(next);
            match self.head.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return block,
                Err(found) => head = found,
            }
        }
    }
}

const TAG: u64 = 0xFFFF_FFFF_0000_0000;
const TAKEN: u64 = 1 << 32;

/// The messages of one database: an inbox for many writers, and what its one reader took from there, in order.
#[derive(Clone, Copy)]
pub struct Messages<'a> {
    /// Of each message's first block, the first block of another message.
    pub link: &'a [AtomicU32],
    /// The message that came last.
    pub inbox: &'a AtomicU32,
    /// The oldest message that the reader took.
    pub first: &'a AtomicU32,
    /// The youngest one.
    pub last: &'a AtomicU32,
}

impl Messages<'_> {
    /// No messages.
    pub fn init(&self) {
        for end in [self.inbox, self.first, self.last] {
            end.store(NIL, Ordering::Release);
        }
    }

    /// Puts a message into the inbox. Any process may.
    pub fn publish(&self, message: u32) {
        let mut head = self.inbox.load(Ordering::Relaxed);
        loop {
            self.link[message as usize].store(head, Ordering::Relaxed);
            match self.inbox.compare_exchange_weak(head, message, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(found) => head = found,
            }
        }
    }

    /// Takes what the inbox holds, to the end of what was taken before. The reader alone may.
    pub fn collect(&self) {
        let mut message = self.inbox.swap(NIL, Ordering::SeqCst);
        if message == NIL {
            return;
        }
        let youngest = message;
        let mut later = NIL;
        while message != NIL {
            let earlier = self.link[message as usize].swap(later, Ordering::Relaxed);
            later = message;
            message = earlier;
        }
        match self.last.swap(youngest, Ordering::Relaxed) {
            NIL => self.first.store(later, Ordering::Relaxed),
            last => self.link[last as usize].store(later, Ordering::Relaxed),
        }
    }

    /// The oldest message that was taken. The reader alone may ask, here and below.
    pub fn first(&self) -> Option<u32> {
        Some(self.first.load(Ordering::Relaxed)).filter(|&message| message != NIL)
    }

    /// The message that came after.
    pub fn after(&self, message: u32) -> Option<u32> {
        Some(self.link[message as usize].load(Ordering::Relaxed)).filter(|&next| next != NIL)
    }

    /// Removes the oldest message.
    pub fn remove_first(&self) -> Option<u32> {
        let message = self.first()?;
        let next = self.link[message as usize].load(Ordering::Relaxed);
        self.first.store(next, Ordering::Relaxed);
        if next == NIL {
            self.last.store(NIL, Ordering::Relaxed);
        }
        Some(message)
    }

    /// Whether there is anything to read.
    pub fn is_empty(&self) -> bool {
        self.inbox.load(Ordering::SeqCst) == NIL && self.first.load(Ordering::Relaxed) == NIL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    struct Memory {
        next: Vec<AtomicU32>,
        link: Vec<AtomicU32>,
        content: Vec<AtomicU64>,
        head: AtomicU64,
        free: AtomicU32,
        inbox: AtomicU32,
        first: AtomicU32,
        last: AtomicU32,
    }

    impl Memory {
        fn new(blocks: usize) -> Self {
            let numbers = || (0..blocks).map(|_| AtomicU32::new(7)).collect();
            let memory = Memory {
                next: numbers(),
                link: numbers(),
                content: (0..blocks).map(|_| AtomicU64::new(0)).collect(),
                head: AtomicU64::new(0),
                free: AtomicU32::new(0),
                inbox: AtomicU32::new(0),
                first: AtomicU32::new(0),
                last: AtomicU32::new(0),
            };
            memory.pool().init();
            memory.messages().init();
            memory
        }

        fn pool(&self) -> Pool<'_> {
            Pool { next: &self.next, head: &self.head, free: &self.free }
        }

        fn messages(&self) -> Messages<'_> {
            Messages { link: &self.link, inbox: &self.inbox, first: &self.first, last: &self.last }
        }

        fn chain(&self, first: u32) -> Vec<u32> {
            std::iter::successors(Some(first), |&block| self.pool().next(block)).collect()
        }
    }

    #[test]
    fn reserves_what_is_free_and_no_more() {
        let memory = Memory::new(10);
        let pool = memory.pool();
        let a = pool.reserve(4).unwrap();
        let b = pool.reserve(6).unwrap();
        let mut blocks = [memory.chain(a), memory.chain(b)].concat();
        blocks.sort_unstable();
        assert_eq!(blocks, (0..10).collect::<Vec<u32>>());
        assert_eq!(pool.reserve(1), None);
        pool.release(a);
        assert_eq!(pool.reserve(5), None);
        assert_eq!(memory.chain(pool.reserve(4).unwrap()).len(), 4);
        assert_eq!(pool.reserve(0), None, "a message has a block at least");
    }

    #[test]
    fn nothing_to_reserve_in_an_empty_pool() {
        assert_eq!(Memory::new(0).pool().reserve(1), None);
    }

    #[test]
    fn reads_in_the_order_of_publication() {
        let memory = Memory::new(8);
        let (pool, messages) = (memory.pool(), memory.messages());
        let made: Vec<u32> = (0..5).map(|_| pool.reserve(1).unwrap()).collect();
        made[..3].iter().for_each(|&message| messages.publish(message));
        assert_eq!(messages.first(), None);
        messages.collect();
        messages.publish(made[3]);
        messages.publish(made[4]);
        messages.collect();
        messages.collect();
        let read: Vec<u32> = std::iter::successors(messages.first(), |&message| messages.after(message)).collect();
        assert_eq!(read, made);
        let removed: Vec<u32> = std::iter::from_fn(|| messages.remove_first()).collect();
        assert_eq!(removed, made);
        assert!(messages.is_empty());
        messages.publish(made[2]);
        assert!(!messages.is_empty());
        messages.collect();
        assert_eq!(messages.remove_first(), Some(made[2]));
    }

    /// Many writers in a small pool, one reader that is replaced now and then: no block is lost or handed out twice,
    /// each writer's messages arrive whole and in its order.
    #[test]
    fn many_writers_one_reader() {
        const WRITERS: u64 = 8;
        const MESSAGES: u64 = 20_000;
        let memory = Memory::new(24);
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let memory = &memory;
                    scope.spawn(move || {
                        let (pool, messages) = (memory.pool(), memory.messages());
                        for number in 0..MESSAGES {
                            let blocks = 1 + (number + writer) % 3;
                            let first = loop {
                                if let Some(first) = pool.reserve(blocks as u32) {
                                    break first;
                                }
                                thread::yield_now();
                            };
                            let chain = memory.chain(first);
                            assert_eq!(chain.len() as u64, blocks);
                            for &block in &chain {
                                let before = memory.content[block as usize]
                                    .swap(1 + writer * MESSAGES + number, Ordering::Relaxed);
                                assert_eq!(before, 0, "block {block} was somebody's");
                            }
                            if number % 5 == 4 {
                                chain.iter().for_each(|&block| {
                                    memory.content[block as usize].store(0, Ordering::Relaxed);
                                });
                                pool.release(first);
                            } else {
                                messages.publish(first);
                            }
                        }
                    })
                })
                .collect();
            let reader = scope.spawn(|| {
                let mut next = [0_u64; WRITERS as usize];
                loop {
                    let last_round = is_done.load(Ordering::Acquire);
                    // Each round a new reader: all it knows is in the shared numbers.
                    let (pool, messages) = (memory.pool(), memory.messages());
                    messages.collect();
                    for _ in 0..3 {
                        let Some(first) = messages.remove_first() else { break };
                        let mut contents: Vec<u64> = memory
                            .chain(first)
                            .iter()
                            .map(|&block| memory.content[block as usize].swap(0, Ordering::Relaxed))
                            .collect();
                        contents.dedup();
                        let [content] = contents[..] else { panic!("torn message {contents:?}") };
                        let (writer, number) = ((content - 1) / MESSAGES, (content - 1) % MESSAGES);
                        let expected = &mut next[writer as usize];
                        assert!(number >= *expected, "writer {writer}: {number} after {expected}");
                        *expected = number + 1;
                        pool.release(first);
                    }
                    if last_round && messages.is_empty() {
                        return next;
                    }
                }
            });
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            is_done.store(true, Ordering::Release);
            // The last number that is published, not given back.
            assert_eq!(reader.join().unwrap(), [MESSAGES - 1; WRITERS as usize]);
        });
        assert_eq!(memory.free.load(Ordering::Acquire), 24);
        assert_eq!(memory.chain(memory.pool().reserve(24).unwrap()).len(), 24);
    }
}
