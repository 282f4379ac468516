//! Folding of what comes in floods: the first few of an address are told one by one, the rest as one with a count.

/// Told one by one within a window, for each address.
const TOLD: u32 = 5;
/// Microseconds.
const WINDOW: i64 = 10_000_000;
/// Longest name kept of a folded one.
pub const NAME: usize = 64;

/// What is known of an address. All zero is an entry that nobody uses.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// Whose flood it is.
    pub database: u32,
    told: u32,
    window_since: i64,
    /// How many were folded since the last one that was taken.
    pub count: u64,
    /// When the first and the last of them came, in microseconds.
    pub first_at: i64,
    /// See `first_at`.
    pub last_at: i64,
    /// The address: 4 or 16 octets; none for local sockets, and for addresses that found no entry of their own.
    pub address: [u8; 16],
    /// How many octets count.
    pub octets: u8,
    /// The name that the last of them gave.
    pub name: [u8; NAME],
    /// How many bytes of it count.
    pub name_length: u8,
}

impl Entry {
    /// An entry that nobody uses.
    pub const FREE: Entry = Entry {
        database: 0,
        told: 0,
        window_since: 0,
        count: 0,
        first_at: 0,
        last_at: 0,
        address: [0; 16],
        octets: 0,
        name: [0; NAME],
        name_length: 0,
    };

    fn is(&self, database: u32, address: &[u8]) -> bool {
        self.database == database && self.address() == address
    }

    fn is_idle(&self, now: i64) -> bool {
        self.database == 0 || (self.count == 0 && now - self.window_since > WINDOW)
    }

    /// The address's octets.
    pub fn address(&self) -> &[u8] {
        &self.address[..usize::from(self.octets).min(16)]
    }

    /// The last one's name.
    pub fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.name_length).min(NAME)]
    }

    fn fold(&mut self, name: &[u8], now: i64) {
        if self.count == 0 {
            self.first_at = now;
        }
        self.count += 1;
        self.last_at = now;
        let length = name.len().min(NAME);
        self.name[..length].copy_from_slice(&name[..length]);
        self.name_length = length as u8;
    }
}

/// What to do with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Tell it by itself. Should that fail, [`fold`] it.
    Tell,
    /// It was folded; the first one of its entry makes it due some time later.
    Folded,
    /// Nothing is left to note it.
    Lost,
}

/// Decides on one that comes now.
pub fn note(entries: &mut [Entry], database: u32, address: &[u8], name: &[u8], now: i64) -> Decision {
    let Some(entry) = entry(entries, database, address, now) else { return Decision::Lost };
    if !(0..=WINDOW).contains(&(now - entry.window_since)) {
        entry.window_since = now;
        entry.told = 0;
    }
    if entry.told < TOLD && entry.octets as usize == address.len() {
        entry.told += 1;
        return Decision::Tell;
    }
    entry.fold(name, now);
    Decision::Folded
}

/// Folds one that could not be told.
pub fn fold(entries: &mut [Entry], database: u32, address: &[u8], name: &[u8], now: i64) -> Decision {
    match entry(entries, database, address, now) {
        Some(entry) => {
            entry.fold(name, now);
            Decision::Folded
        }
        None => Decision::Lost,
    }
}

/// The address's entry: its own, a new one, or, where all are taken, the one of all others of the database.
fn entry<'a>(entries: &'a mut [Entry], database: u32, address: &[u8], now: i64) -> Option<&'a mut Entry> {
    let address = &address[..address.len().min(16)];
    // One is kept back for all others.
    let own = entries.len().saturating_sub(1);
    let position = entries
        .iter()
        .position(|entry| entry.is(database, address))
        .or_else(|| entries[..own].iter().position(|entry| entry.is_idle(now)))
        .or_else(|| entries.iter().position(|entry| entry.is(database, b"")))
        .or_else(|| entries.iter().position(|entry| entry.is_idle(now)))?;
    let is_new = !entries[position].is(database, address) && entries[position].is_idle(now);
    let entry = &mut entries[position];
    if is_new {
        *entry = Entry::FREE;
        entry.database = database;
        if position < own {
            entry.address[..address.len()].copy_from_slice(address);
            entry.octets = address.len() as u8;
        }
    }
    Some(entry)
}

/// When the first of a database's folded ones are to be told.
pub fn due_at(entries: &[Entry], database: u32) -> Option<i64> {
    let folded = entries.iter().filter(|entry| entry.database == database && entry.count > 0);
    folded.map(|entry| entry.first_at + WINDOW).min()
}

/// Takes folded ones that are due: what they were, with their count.
pub fn take_due(entries: &mut [Entry], database: u32, now: i64) -> Option<Entry> {
    let is_due = |entry: &&mut Entry| {
        entry.database == database && entry.count > 0 && !(0..WINDOW).contains(&(now - entry.first_at))
    };
    let entry = entries.iter_mut().find(is_due)?;
    let taken = *entry;
    entry.count = 0;
    Some(taken)
}

/// Puts back what was taken and could not be told.
pub fn put_back(entries: &mut [Entry], taken: &Entry, now: i64) -> Decision {
    let Some(entry) = entry(entries, taken.database, taken.address(), now) else { return Decision::Lost };
    if entry.count == 0 {
        entry.last_at = taken.last_at;
        entry.name = taken.name;
        entry.name_length = taken.name_length;
    }
    entry.first_at = taken.first_at;
    entry.count += taken.count;
    Decision::Folded
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const START: i64 = 800_000_000 * SECOND;

    #[test]
    fn the_first_are_told_the_rest_is_counted() {
        let mut entries = [Entry::FREE; 4];
        let mut told = 0;
        for i in 0..1000 {
            match note(&mut entries, 7, &[192, 0, 2, 1], b"ann", START + i) {
                Decision::Tell => told += 1,
                Decision::Folded => {}
                Decision::Lost => panic!("lost"),
            }
        }
        assert_eq!(told, 5);
        assert_eq!(due_at(&entries, 7), Some(START + 5 + WINDOW));
        assert_eq!(due_at(&entries, 8), None);
        assert!(take_due(&mut entries, 7, START + SECOND).is_none());
        assert!(take_due(&mut entries, 8, START + 60 * SECOND).is_none());
        let taken = take_due(&mut entries, 7, START + 11 * SECOND).unwrap();
        assert_eq!((taken.count, taken.first_at, taken.last_at), (995, START + 5, START + 999));
        assert_eq!((taken.address(), taken.name()), (&[192, 0, 2, 1][..], &b"ann"[..]));
        assert!(take_due(&mut entries, 7, START + 60 * SECOND).is_none());
        assert_eq!(put_back(&mut entries, &taken, START + 12 * SECOND), Decision::Folded);
        let again = take_due(&mut entries, 7, START + 13 * SECOND).unwrap();
        assert_eq!((again.count, again.first_at, again.name()), (995, START + 5, &b"ann"[..]));
        // In the next window it begins again.
        assert_eq!(note(&mut entries, 7, &[192, 0, 2, 1], b"ann", START + 20 * SECOND), Decision::Tell);
    }

    #[test]
    fn none_is_lost_however_many_addresses_there_are() {
        let mut entries = [Entry::FREE; 4];
        let (mut told, mut folded) = (0, 0);
        for i in 0..100_u8 {
            for _ in 0..10 {
                match note(&mut entries, 7, &[10, 0, 0, i], &[b'x'; 100], START) {
                    Decision::Tell => told += 1,
                    Decision::Folded => folded += 1,
                    Decision::Lost => panic!("lost"),
                }
            }
        }
        let taken: u64 =
            std::iter::from_fn(|| take_due(&mut entries, 7, START + 11 * SECOND)).map(|entry| entry.count).sum();
        assert_eq!((told + folded, taken), (1000, folded));
        assert_eq!(told, 15);
    }

    #[test]
    fn entries_are_used_again() {
        let mut entries = [Entry::FREE; 2];
        for i in 0..50_u8 {
            let now = START + i64::from(i) * 11 * SECOND;
            assert_eq!(note(&mut entries, 7, &[10, 0, 0, i], b"x", now), Decision::Tell);
        }
    }

    #[test]
    fn what_could_not_be_told_is_folded() {
        let mut entries = [Entry::FREE; 2];
        assert_eq!(note(&mut entries, 7, &[], b"x", START), Decision::Tell);
        assert_eq!(fold(&mut entries, 7, &[], b"x", START), Decision::Folded);
        assert_eq!(take_due(&mut entries, 7, START + 11 * SECOND).unwrap().count, 1);
        // Another database's flood has taken all there is.
        for i in 0..10 {
            note(&mut entries, 7, &[1, 1, 1, 1], b"x", START + i);
            note(&mut entries, 7, &[1, 1, 1, 2], b"x", START + i);
        }
        assert_eq!(note(&mut entries, 8, &[1, 1, 1, 1], b"x", START + 20), Decision::Folded);
        assert_eq!(note(&mut entries, 9, &[1, 1, 1, 1], b"x", START + 20), Decision::Lost);
    }

    #[test]
    fn a_clock_set_back_does_not_keep_them() {
        let mut entries = [Entry::FREE; 2];
        for i in 0..10 {
            note(&mut entries, 7, &[1], b"x", START + i);
        }
        assert_eq!(take_due(&mut entries, 7, START - 3600 * SECOND).unwrap().count, 5);
    }
}
