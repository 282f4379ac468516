//! The clusters that the log has lived in. WAL positions and transaction ids start again in each, so a record says in
//! which era it was written; a restore into another cluster begins the next one.

use audit_core::uuid7;
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
}

/// The era of this cluster, written to audit.ledger first if it is new.
pub fn current_era() -> Result<i32, Error> {
    let cluster = heap::numeric_payload(session::system_identifier())?;
    if let Some((era, identifier)) = latest()?
        && identifier == cluster
    {
        return Ok(era);
    }
    // One session begins an era; the others wait for it here, and find it.
    let table = catalog::own_table(&store::LEDGER)?;
    let _lock = Opened::with_lock(table, pg_sys::ShareRowExclusiveLock);
    match latest()? {
        Some((era, identifier)) if identifier == cluster => Ok(era),
        other => begin(other.map_or(1, |(era, _)| era + 1), &cluster),
    }
}

/// The highest era and its cluster. The table has a row per restore, so it is read whole.
fn latest() -> Result<Option<(i32, Vec<u8>)>, Error> {
    let mut latest: Option<(i32, Vec<u8>)> = None;
    let read = |row: &Row| {
        if let (Some(era), Some(cluster)) = (row.int4(column::ERA), row.bytes(column::SYSTEM_IDENTIFIER))
            && latest.as_ref().is_none_or(|(latest, _)| era > *latest)
        {
            latest = Some((era, cluster));
        }
    };
    catalog::scan_all(&store::LEDGER, read)?;
    Ok(latest)
}

fn begin(era: i32, cluster: &[u8]) -> Result<i32, Error> {
    let now = session::clock();
    let random = transaction::random_salt()?;
    let mut tail = [0; 10];
    tail.copy_from_slice(&random[..10]);
    let id = uuid7::new(session::unix_usecs(now), tail);
    heap::insert(&store::LEDGER, &[Value::Int4(era), Value::Uuid(&id), Value::Varlena(cluster), Value::Int8(now)])?;
    transaction::wrote_cached_row();
    Ok(era)
}
