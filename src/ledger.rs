//! Ledgers. A ledger is the Merkle log of one history: of one database in one cluster on one WAL timeline. Where any of
//! these is another than the last one's, history may have forked (a restore, a promoted standby, a point-in-time
//! recovery, a copied database), and the first record written there begins a new ledger, and a new era: WAL positions and
//! transaction ids start again in another cluster.

pub mod api;
pub mod erase;
pub mod prove;
pub mod seal;
pub mod signing;
mod tables;
pub mod verify;
pub mod witness;

use audit_core::uuid7;
use audit_ledger::origin::origin;
use pgrx::pg_sys;

use crate::error::Error;
use crate::pg::catalog::{self, Row};
use crate::pg::heap::{self, Value};
use crate::pg::relation::Opened;
use crate::pg::session;
use crate::{store, transaction};

mod column {
    pub const ERA: usize = 1;
    pub const SYSTEM_IDENTIFIER: usize = 3;
    pub const TIMELINE: usize = 5;
    pub const DATABASE_ID: usize = 6;
}

/// What makes a history of its own.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    /// Payload of a numeric.
    cluster: Vec<u8>,
    timeline: i64,
    database: pg_sys::Oid,
}

impl Place {
    fn here() -> Result<Self, Error> {
        Ok(Place {
            cluster: heap::numeric_payload(session::system_identifier())?,
            timeline: i64::from(session::timeline()),
            database: session::database(),
        })
    }

    fn of(row: &Row) -> Option<Self> {
        Some(Place {
            cluster: row.bytes(column::SYSTEM_IDENTIFIER)?,
            timeline: row.int8(column::TIMELINE)?,
            database: row.oid(column::DATABASE_ID)?,
        })
    }
}

/// The era of the records written here, written to audit.ledger first if it is new.
pub fn current_era() -> Result<i32, Error> {
    let here = Place::here()?;
    if let Some((era, place)) = latest()?
        && place == here
    {
        return Ok(era);
    }
    // One session begins an era; the others wait for it here, and find it.
    let table = catalog::own_table(&store::LEDGER)?;
    let _lock = Opened::with_lock(table, pg_sys::ShareRowExclusiveLock);
    match latest()? {
        Some((era, place)) if place == here => Ok(era),
        other => begin(other.map_or(1, |(era, _)| era + 1), &here),
    }
}

/// The era of the records written here, if there are any.
pub fn era_begun() -> Result<Option<i32>, Error> {
    let here = Place::here()?;
    Ok(latest()?.filter(|(_, place)| *place == here).map(|(era, _)| era))
}

/// The highest era and its place. The table has a row per restore, so it is read whole.
fn latest() -> Result<Option<(i32, Place)>, Error> {
    let mut latest: Option<(i32, Place)> = None;
    let read = |row: &Row| {
        if let (Some(era), Some(place)) = (row.int4(column::ERA), Place::of(row))
            && latest.as_ref().is_none_or(|(latest, _)| era > *latest)
        {
            latest = Some((era, place));
        }
    };
    catalog::scan_all(&store::LEDGER, read)?;
    Ok(latest)
}

fn begin(era: i32, here: &Place) -> Result<i32, Error> {
    let now = session::clock();
    let random = transaction::random_salt()?;
    let mut tail = [0; 10];
    tail.copy_from_slice(&random[..10]);
    let id = uuid7::new(session::unix_usecs(now), tail);
    let text = audit_core::hex::uuid(&id);
    let origin = origin(&session::database_name(), session::system_identifier(), &String::from_utf8_lossy(&text));
    let row = [
        Value::Int4(era),
        Value::Uuid(&id),
        Value::Varlena(&here.cluster),
        Value::Int8(now),
        Value::Int8(here.timeline),
        Value::Oid(here.database),
        Value::Varlena(origin.as_bytes()),
    ];
    heap::insert(&store::LEDGER, &row)?;
    transaction::wrote_cached_row();
    Ok(era)
}
