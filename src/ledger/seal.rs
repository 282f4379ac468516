//! Sealing: appends committed changesets to the ledger's tree and publishes a checkpoint.
//!
//! What is sealed is the changesets of all transactions below the snapshot's xmin, in (xid, id) order. No transaction
//! below it is under way any more, so none of its changesets can come later: `sealed_below` of the last checkpoint is all
//! that the next round needs to know. Nothing is locked on the write path, and no sealed row is touched again.
//!
//! Finding them costs the write path nothing either. A transaction's first event is later than its xid, so changesets
//! from `sealed_below` on occurred after any time at which that xid was not yet given out; checkpoints remember both. The
//! log's index on time finds the rest. A clock that is behind the last checkpoint's makes the round look at all
//! changesets, as `audit.seal(true)` does; some seconds are allowed for what happens to the clock between two rounds.
//!
//! All of it is one transaction, whose commit is durable: a kill at any point leaves the ledger as it was. The checkpoint
//! is published when it has committed.

use audit_ledger::checkpoint::{Checkpoint, SignedCheckpoint};

use super::tables::{self, TileWriter, damaged};
use super::{era_begun, signing};
use crate::error::Error;
use crate::pg::env::{self, Env};
use crate::pg::session::AsOwner;
use crate::pg::spi::{self, Arg, Sees};
use crate::pg::{publish, session};

/// Channel of NOTIFY.
const CHANNEL: &str = "audit_checkpoint";

/// Microseconds by which a clock may go back and forth between two rounds.
const CLOCK_SLACK: i64 = 10_000_000;

/// Returns the size of the tree.
pub fn seal(everything: bool) -> Result<i64, Error> {
    if session::is_standby() {
        return Err(Error::InRecovery);
    }
    if session::shares_snapshot() {
        return Err(Error::SharedSnapshot);
    }
    session::commit_durably();
    let _owner = AsOwner::begin()?;
    let _environment = env::enter(Env::Settings);
    // One sealer at a time. A lock of the table, not an advisory one, which anybody could take.
    spi::run("LOCK TABLE audit.checkpoint IN SHARE ROW EXCLUSIVE MODE", &[])?;
    let Some(era) = era_begun()? else { return Ok(0) };
    Round::begin(era, everything)?.finish()
}

/// One checkpoint in the making.
struct Round {
    era: i32,
    everything: bool,
    head: tables::Head,
    /// Clock time before the snapshot.
    clock: i64,
    /// The snapshot's: no transaction below it is under way.
    xmin: u64,
    /// The snapshot's: no transaction from it on had begun.
    xmax: u64,
}

impl Round {
    fn begin(era: i32, everything: bool) -> Result<Self, Error> {
        let head = tables::head(Sees::Now, era)?;
        let clock = session::clock();
        let everything = everything || clock < head.created_at;
        let snapshot = spi::first(
            Sees::Now,
            "SELECT pg_snapshot_xmin(s), pg_snapshot_xmax(s) FROM pg_current_snapshot() AS s",
            &[],
            |row| (row.int8(1).unwrap_or(0) as u64, row.int8(2).unwrap_or(0) as u64),
        )?;
        let (xmin, xmax) = snapshot.unwrap_or((0, 0));
        Ok(Round { era, everything, head, clock, xmin, xmax })
    }

    fn finish(self) -> Result<i64, Error> {
        let size = self.head.tree_size as i64;
        if self.xmin <= self.head.sealed_below && !self.everything {
            return Ok(size);
        }
        let next = spi::first(
            Sees::Now,
            "SELECT coalesce(max(index) + 1, 0) FROM audit.entry WHERE era = $1",
            &[Arg::Int4(self.era)],
            |row| row.int8(1),
        )?;
        if next.flatten() != Some(size) {
            return Err(damaged(format!("The last checkpoint is of {size} entries, but there are others.")));
        }
        let appended = self.append_entries()?;
        if appended == size {
            return Ok(size);
        }
        let key = signing::public_key()?;
        self.append_seal(appended, key.as_deref())?;
        self.publish(appended as u64 + 1, key.as_deref())
    }

    /// Appends entries in the order in which the log has them; returns the number of all.
    fn append_entries(&self) -> Result<i64, Error> {
        let mut size = self.head.tree_size as i64;
        if size == 0 {
            size += self.append(
                "SELECT $1::bigint, $2, NULL::int, NULL::uuid, \
                audit.checksum_of(audit.canonical_ledger(l)) FROM audit.ledger AS l WHERE l.era = $2",
                size,
                &[],
            )?;
            // What the ledgers before this one had not sealed.
            size += self.append(
                "SELECT $1 + row_number() OVER (ORDER BY c.era, c.xid, c.id) - 1, $2, NULL::int, c.id, c.checksum
                   FROM (SELECT DISTINCT ON (era, xid, id) era, xid, id, checksum FROM audit.changeset
                          WHERE era < $2 ORDER BY era, xid, id) AS c
                  WHERE NOT EXISTS (SELECT FROM audit.entry AS e WHERE e.changeset_id = c.id)",
                size,
                &[],
            )?;
        }
        size += self.append(
            "SELECT $1 + row_number() OVER (ORDER BY r.id) - 1, $2, r.id, NULL::uuid, \
                audit.checksum_of(audit.canonical_relation(r))
               FROM audit.relation AS r
              WHERE NOT EXISTS (SELECT FROM audit.entry AS e WHERE e.relation_id = r.id)",
            size,
            &[],
        )?;
        let (from, since) = if self.everything { (0, None) } else { (self.head.sealed_below, self.since()?) };
        // From sealed_below on nothing is sealed yet, and so need not be looked up.
        let is_new =
            if from == 0 { "NOT EXISTS (SELECT FROM audit.entry AS e WHERE e.changeset_id = c.id)" } else { "true" };
        size += self.append(
            &format!(
                "SELECT $1 + row_number() OVER (ORDER BY c.xid, c.id) - 1, $2, NULL::int, c.id, c.checksum
                   FROM (SELECT DISTINCT ON (xid, id) xid, id, checksum FROM audit.changeset
                          WHERE era = $2 AND xid >= $3 AND xid < $4 AND occurred_at >= $5
                          ORDER BY xid, id) AS c
                  WHERE {is_new}"
            ),
            size,
            &[Arg::Xid8(from), Arg::Xid8(self.xmin), Arg::TimestampTz(Some(since.unwrap_or(i64::MIN)))],
        )?;
        Ok(size)
    }

    /// Appends what a query gives: index from $1 on, era ($2), relation, changeset, checksum. Returns the number of rows.
    fn append(&self, query: &str, from: i64, further: &[Arg<'_>]) -> Result<i64, Error> {
        let mut arguments = vec![Arg::Int8(from), Arg::Int4(self.era)];
        arguments.extend_from_slice(further);
        let sql =
            format!("INSERT INTO audit.entry (index, era, relation_id, changeset_id, checksum) {query} ORDER BY 1");
        spi::run(&sql, &arguments).map(|count| count as i64)
    }

    /// A time at which no transaction from `sealed_below` on had begun.
    fn since(&self) -> Result<Option<i64>, Error> {
        let time = spi::first(
            Sees::Now,
            "SELECT created_at FROM audit.checkpoint WHERE era = $1 AND next_xid <= $2 ORDER BY tree_size DESC LIMIT 1",
            &[Arg::Int4(self.era), Arg::Xid8(self.head.sealed_below)],
            |row| row.int8(1),
        )?;
        Ok(time.flatten().map(|time| time.saturating_sub(CLOCK_SLACK)))
    }

    /// The last entry of each round says when it was, and how far it reached.
    fn append_seal(&self, index: i64, key: Option<&str>) -> Result<(), Error> {
        self.append(
            "SELECT $1::bigint, $2, NULL::int, NULL::uuid, audit.checksum_of(audit.canonical_seal(
                 l.origin, $1::bigint + 1, $3, $4, $5, $6))
               FROM audit.ledger AS l WHERE l.era = $2",
            index,
            &[
                Arg::TimestampTz(Some(self.clock)),
                Arg::Xid8(self.sealed_below()),
                Arg::Xid8(self.xmax),
                Arg::Text(key.map(str::as_bytes)),
            ],
        )
        .map(|_| ())
    }

    /// Never less than before, whatever snapshot an odd call was made with.
    fn sealed_below(&self) -> u64 {
        self.xmin.max(self.head.sealed_below)
    }

    /// Grows the tree over the new entries, and writes and publishes its checkpoint.
    fn publish(&self, size: u64, key: Option<&str>) -> Result<i64, Error> {
        let mut tree = tables::resume(self.era, self.head.tree_size)?;
        if self.head.root.is_some_and(|root| root != tree.root()) {
            return Err(damaged(format!(
                "The {} entries sealed so far do not give the last root.",
                self.head.tree_size
            )));
        }
        let mut tiles = TileWriter::new(self.era);
        tables::for_each_entry(self.era, self.head.tree_size, |_, checksum| {
            tree.push(&checksum, |tile| tiles.put(tile))
        })?;
        tiles.flush()?;
        if tree.size() != size {
            return Err(damaged(format!("{} entries were to be sealed, {} are there.", size, tree.size())));
        }
        let root = tree.root();
        let checkpoint = Checkpoint { origin: tables::origin(self.era)?, size, root };
        let mut signed = SignedCheckpoint::new(checkpoint)?;
        signing::sign(&mut signed)?;
        let note = signed.text();
        spi::run(
            "INSERT INTO audit.checkpoint (era, tree_size, root_hash, key, note, created_at, sealed_below, next_xid)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            &[
                Arg::Int4(self.era),
                Arg::Int8(size as i64),
                Arg::Bytea(&root),
                Arg::Text(key.map(str::as_bytes)),
                Arg::Text(Some(note.as_bytes())),
                Arg::TimestampTz(Some(self.clock)),
                Arg::Xid8(self.sealed_below()),
                Arg::Xid8(self.xmax),
            ],
        )?;
        spi::run("SELECT pg_notify($1, $2)", &[Arg::Text(Some(CHANNEL.as_bytes())), Arg::Text(Some(note.as_bytes()))])?;
        publish::at_commit(&signed.log_line());
        Ok(size as i64)
    }
}
