//! Proofs: that a record is in a log, and that one state of a log continues another.
//!
//! A proof of a record is a [tlog-proof](https://c2sp.org/tlog-proof): index, path and checkpoint prove the entry, which is
//! the changeset's checksum. Its `extra` line holds what leads from the record to that entry.

use audit_core::checksum::salted;
use audit_core::merkle::{leaf_hash, node_hash};
use base64::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{MAX_SIZE, SignedCheckpoint};
use crate::{Error, Hash};

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// Longer paths cannot be.
const MAX_PATH: usize = 63;

/// A record and the salt that its checksum is taken with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// 16 bytes, in the text form of a UUID.
    pub salt: String,
    /// The canonical form.
    pub canonical: String,
}

/// What leads from an event to its changeset's checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inner {
    /// The event.
    pub event: Record,
    /// Which of the changeset's events it is, from 0.
    pub index: u64,
    /// From the event to the changeset's `events_root`, base64.
    pub path: Vec<String>,
    /// The changeset.
    pub changeset: Record,
}

/// A proof that an event is in a log.
#[derive(Debug)]
pub struct EventProof {
    /// From the event to the entry.
    pub inner: Inner,
    /// Index of the entry.
    pub index: u64,
    /// From the entry to the root.
    pub path: Vec<Hash>,
    /// The log's state.
    pub checkpoint: SignedCheckpoint,
}

impl EventProof {
    /// The proof as text.
    pub fn text(&self) -> Result<String, Error> {
        let inner = serde_json::to_string(&self.inner).map_err(|_| Error::MalformedProof("inner part"))?;
        let mut text = format!("{HEADER}\nextra {}\nindex {}\n", BASE64_STANDARD.encode(inner), self.index);
        for hash in &self.path {
            text.push_str(&encode(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint.text());
        Ok(text)
    }

    /// Reads what [`EventProof::text`] wrote.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.replace("\r\n", "\n");
        let (head, checkpoint) = text.split_once("\n\n").ok_or(Error::MalformedProof("no checkpoint"))?;
        let mut lines = head.split('\n');
        if lines.next() != Some(HEADER) {
            return Err(Error::MalformedProof("it does not begin with c2sp.org/tlog-proof@v1"));
        }
        let extra = lines.next().and_then(|line| line.strip_prefix("extra "));
        let extra = extra.ok_or(Error::MalformedProof("no extra line: it proves an entry, but no event"))?;
        let inner = BASE64_STANDARD.decode(extra).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let inner: Inner = inner.ok_or(Error::MalformedProof("extra line"))?;
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(decimal);
        let index = index.ok_or(Error::MalformedProof("index line"))?;
        let path: Option<Vec<Hash>> = lines.map(decode).collect();
        let path = path.filter(|path| path.len() <= MAX_PATH).ok_or(Error::MalformedProof("path"))?;
        Ok(EventProof { inner, index, path, checkpoint: SignedCheckpoint::parse(checkpoint)? })
    }

    /// Follows the proof from the event to the root. Whether the checkpoint is signed is another question:
    /// [`SignedCheckpoint::verify`]. Gives back the fields of event and changeset.
    pub fn check(&self) -> Result<(Value, Value), Error> {
        let event = checksum(&self.inner.event)?;
        let changeset = checksum(&self.inner.changeset)?;
        let event_fields = fields(&self.inner.event, "audit_ext/event/1", 16)?;
        let changeset_fields = fields(&self.inner.changeset, "audit_ext/changeset/1", 25)?;
        if event_fields[1] != changeset_fields[1] {
            return Err(Error::InvalidProof("the event names another changeset"));
        }
        let count = changeset_fields[23].as_u64().ok_or(Error::InvalidProof("the changeset's event_count"))?;
        let root = changeset_fields[24].as_str().and_then(from_hex);
        let root = root.ok_or(Error::InvalidProof("the changeset's events_root"))?;
        let path: Option<Vec<Hash>> = self.inner.path.iter().map(|hash| decode(hash)).collect();
        let path = path.ok_or(Error::MalformedProof("path of the event"))?;
        check_inclusion(&path, count, &root, self.inner.index, &event)
            .map_err(|_| Error::InvalidProof("the event is not in the changeset's events_root"))?;
        let checkpoint = &self.checkpoint.checkpoint;
        check_inclusion(&self.path, checkpoint.size, &checkpoint.root, self.index, &changeset)
            .map_err(|_| Error::InvalidProof("the changeset is not in the checkpoint's root"))?;
        Ok((event_fields, changeset_fields))
    }
}

fn checksum(record: &Record) -> Result<Hash, Error> {
    let digits: String = record.salt.chars().filter(|c| *c != '-').collect();
    let salt: Option<[u8; 16]> = hex_bytes(&digits).and_then(|bytes| bytes.try_into().ok());
    Ok(salted(&salt.ok_or(Error::MalformedProof("salt"))?, record.canonical.as_bytes()))
}

fn fields(record: &Record, tag: &str, count: usize) -> Result<Value, Error> {
    let value: Value = serde_json::from_str(&record.canonical).map_err(|_| Error::MalformedProof("canonical form"))?;
    let known = value.as_array().is_some_and(|fields| fields.len() == count && fields[0] == tag);
    known.then_some(value).ok_or(Error::MalformedProof("canonical form of an unknown version"))
}

/// A proof that a log of `old_size` entries was the beginning of the one that the checkpoint tells of, in the form of
/// C2SP's tlog-witness: what a witness is sent.
#[derive(Debug)]
pub struct ConsistencyProof {
    /// Size of the earlier state.
    pub old_size: u64,
    /// The proof of RFC 6962, section 2.1.2.
    pub path: Vec<Hash>,
    /// The later state.
    pub checkpoint: SignedCheckpoint,
}

impl ConsistencyProof {
    /// The proof as text.
    pub fn text(&self) -> String {
        let mut text = format!("old {}\n", self.old_size);
        for hash in &self.path {
            text.push_str(&encode(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint.text());
        text
    }

    /// Reads what [`ConsistencyProof::text`] wrote.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.replace("\r\n", "\n");
        let (head, checkpoint) = text.split_once("\n\n").ok_or(Error::MalformedProof("no checkpoint"))?;
        let mut lines = head.split('\n');
        let old_size = lines.next().and_then(|line| line.strip_prefix("old ")).and_then(decimal);
        let old_size = old_size.ok_or(Error::MalformedProof("old line"))?;
        let path: Option<Vec<Hash>> = lines.map(decode).collect();
        let path = path.filter(|path| path.len() <= MAX_PATH).ok_or(Error::MalformedProof("path"))?;
        Ok(ConsistencyProof { old_size, path, checkpoint: SignedCheckpoint::parse(checkpoint)? })
    }

    /// Whether it leads from the root that the log had to the one it has.
    pub fn check(&self, old_root: &Hash) -> Result<(), Error> {
        let checkpoint = &self.checkpoint.checkpoint;
        check_consistency(&self.path, checkpoint.size, &checkpoint.root, self.old_size, old_root)
    }
}

/// RFC 6962, section 2.1.1: whether `entry` is the one at `index` of the tree.
pub fn check_inclusion(path: &[Hash], size: u64, root: &Hash, index: u64, entry: &Hash) -> Result<(), Error> {
    check_inclusion_of_hash(path, size, root, index, &leaf_hash(entry))
}

/// The same by the entry's leaf hash.
pub fn check_inclusion_of_hash(path: &[Hash], size: u64, root: &Hash, index: u64, leaf: &Hash) -> Result<(), Error> {
    if index >= size || size > MAX_SIZE {
        return Err(Error::OutOfRange);
    }
    let path = path.iter().map(|hash| tlog_tiles::Hash(*hash)).collect();
    tlog_tiles::check_record(&path, size, tlog_tiles::Hash(*root), index, tlog_tiles::Hash(*leaf))
        .map_err(|_| Error::InvalidProof("the entry is not in the tree"))
}

/// RFC 6962, section 2.1.2: whether the tree of `old_size` is the beginning of the other.
pub fn check_consistency(path: &[Hash], size: u64, root: &Hash, old_size: u64, old_root: &Hash) -> Result<(), Error> {
    if old_size > size || size > MAX_SIZE {
        return Err(Error::OutOfRange);
    }
    let invalid = Error::InvalidProof("one log does not continue the other");
    if old_size == 0 {
        return if path.is_empty() { Ok(()) } else { Err(invalid) };
    }
    let path = path.iter().map(|hash| tlog_tiles::Hash(*hash)).collect();
    tlog_tiles::check_tree(&path, size, tlog_tiles::Hash(*root), old_size, tlog_tiles::Hash(*old_root))
        .map_err(|_| invalid)
}

/// The path from one of the leaves to the root over all of them: for the events of a changeset, which are at hand.
pub fn path_in(leaves: &[Hash], index: usize) -> Vec<Hash> {
    let mut path = Vec::new();
    let mut hashes: Vec<Hash> = leaves.iter().map(leaf_hash).collect();
    let mut at = index;
    // A tree split at powers of two is one whose last odd node is carried up.
    while hashes.len() > 1 {
        if let Some(sibling) = hashes.get(at ^ 1) {
            path.push(*sibling);
        }
        hashes = hashes
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => node_hash(left, right),
                pair => pair[0],
            })
            .collect();
        at /= 2;
    }
    path
}

/// A hash as proofs and checkpoints have it.
pub fn encode(hash: &Hash) -> String {
    BASE64_STANDARD.encode(hash)
}

/// Reads what [`encode`] wrote.
pub fn decode(text: &str) -> Option<Hash> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

fn decimal(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|number| number.to_string() == text)
}

fn from_hex(text: &str) -> Option<Hash> {
    hex_bytes(text)?.try_into().ok()
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use audit_core::checksum::sha256;
    use audit_core::merkle;
    use proptest::prelude::*;

    fn entry(i: usize) -> Hash {
        sha256(&i.to_le_bytes())
    }

    #[test]
    fn paths_within_a_changeset() {
        for count in 1..70 {
            let leaves: Vec<Hash> = (0..count).map(entry).collect();
            let root = merkle::root(leaves.iter().copied()).unwrap();
            for index in 0..count {
                let path = path_in(&leaves, index);
                check_inclusion(&path, count as u64, &root, index as u64, &leaves[index]).unwrap();
            }
        }
    }

    fn example() -> EventProof {
        let salt = "00010203-0405-0607-0809-0a0b0c0d0e0f";
        let event = Record {
            salt: salt.into(),
            canonical: r#"["audit_ext/event/1", "id", 1, 0, 5, 3, "public", "t", "INSERT", null, "success", null, "1", {"a": "é"}, null, null]"#.into(),
        };
        let leaves = [entry(0), checksum(&event).unwrap(), entry(2)];
        let root: String =
            merkle::root(leaves.iter().copied()).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        let nulls = "null, ".repeat(17);
        let canonical = format!(r#"["audit_ext/changeset/1", "id", 5, 1, 77, "742", {nulls}3, "{root}"]"#);
        let changeset = Record { salt: salt.into(), canonical };
        let entries = [entry(7), checksum(&changeset).unwrap(), entry(8), entry(9)];
        let root = merkle::root(entries.iter().copied()).unwrap();
        let path = path_in(&entries, 1);
        let inner = Inner { event, index: 1, path: path_in(&leaves, 1).iter().map(encode).collect(), changeset };
        let checkpoint = Checkpoint { origin: "example.com/log".into(), size: 4, root };
        EventProof { inner, index: 1, path, checkpoint: SignedCheckpoint::new(checkpoint).unwrap() }
    }

    #[test]
    fn a_proof_of_an_event() {
        let proof = EventProof::parse(&example().text().unwrap()).unwrap();
        let (event, changeset) = proof.check().unwrap();
        assert_eq!(event[13]["a"], "é");
        assert_eq!(changeset[5], "742");
    }

    #[test]
    fn nothing_in_it_can_be_changed() {
        let altered = |change: &dyn Fn(&mut EventProof)| {
            let mut proof = example();
            change(&mut proof);
            assert!(proof.check().is_err());
        };
        altered(&|proof| proof.inner.event.canonical = proof.inner.event.canonical.replace("INSERT", "DELETE"));
        altered(&|proof| proof.inner.event.canonical = proof.inner.event.canonical.replace("event/1", "event/2"));
        altered(&|proof| proof.inner.event.salt = proof.inner.event.salt.replace("0f", "1f"));
        altered(&|proof| proof.inner.index = 0);
        altered(&|proof| proof.inner.index = 3);
        altered(&|proof| {
            proof.inner.path.pop();
        });
        altered(&|proof| proof.inner.changeset.canonical = proof.inner.changeset.canonical.replace("742", "743"));
        altered(&|proof| proof.inner.changeset.salt = String::new());
        altered(&|proof| proof.index = 2);
        altered(&|proof| proof.path[0][0] ^= 1);
        altered(&|proof| proof.checkpoint.checkpoint.size = 5);
        altered(&|proof| proof.checkpoint.checkpoint.root[0] ^= 1);
    }

    #[test]
    fn a_proof_of_consistency() {
        let checkpoint =
            Checkpoint { origin: "a".into(), size: 2, root: merkle::root([entry(0), entry(1)].into_iter()).unwrap() };
        let checkpoint = SignedCheckpoint::new(checkpoint).unwrap();
        let proof = ConsistencyProof { old_size: 1, path: vec![leaf_hash(&entry(1))], checkpoint };
        let proof = ConsistencyProof::parse(&proof.text()).unwrap();
        proof.check(&merkle::root([entry(0)].into_iter()).unwrap()).unwrap();
        assert!(proof.check(&merkle::root([entry(1)].into_iter()).unwrap()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes in, an error comes out and no panic.
        #[test]
        fn any_text(text in "(c2sp.org/tlog-proof@v1\nextra )?[a-z0-9=\n +/—]{0,80}") {
            let _ = EventProof::parse(&text);
            let _ = ConsistencyProof::parse(&text);
            let _ = SignedCheckpoint::parse(&text);
        }

        #[test]
        fn any_path(path in proptest::collection::vec(any::<Hash>(), 0..70), size in any::<u64>(), index in any::<u64>(),
                    root in any::<Hash>()) {
            prop_assert!(check_inclusion(&path, size, &root, index, &root).is_err());
            let old = index.min(size);
            if old > 0 && old != size {
                prop_assert!(check_consistency(&path, size, &root, old, &[0; 32]).is_err());
            }
        }
    }
}
