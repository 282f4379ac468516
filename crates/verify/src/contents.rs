//! The content of events and changesets against their checksums.

use anyhow::Result;

use crate::check::{Known, uuid};
use crate::database::Database;
use crate::records::{
    CHANGESET, CHANGESET_COLUMNS, EVENT_COLUMNS, EVENT_HEAD, EVENT_TAIL, begin, canonical, checksum, put_columns,
    put_integer,
};
use crate::report::Report;

const ALTERED: &str = "Its content does not give its checksum.";

pub fn events(database: &Database, known: &Known) -> Result<Report> {
    const LAYOUT: usize = EVENT_HEAD.len();
    const TAIL: usize = LAYOUT + 1;
    const SALT: usize = TAIL + EVENT_TAIL.len();
    const CHECKSUM: usize = SALT + 1;
    let query = format!("SELECT {EVENT_COLUMNS}, e.salt, e.checksum FROM audit.event AS e");
    let mut report = Report::new("db");
    let mut text = Vec::new();
    let mut count = 0;
    database.stream(&query, |row| {
        known.count(&mut count);
        let Some(id) = row.uuid(0) else { return Ok(()) };
        begin("audit_ext/event/1", &mut text);
        put_columns(EVENT_HEAD, row, 0, &mut text);
        match row.integer(LAYOUT).map(|layout| (layout, known.layouts.get(&layout))) {
            None => text.extend_from_slice(b", null, null, null"),
            Some((_, Some(layout))) => text.extend_from_slice(&layout.of_event),
            Some((id, None)) => {
                text.extend_from_slice(b", ");
                put_integer(id, &mut text);
                text.extend_from_slice(b", null, null");
            }
        }
        put_columns(EVENT_TAIL, row, TAIL, &mut text);
        text.push(b']');
        match row.uuid(SALT) {
            Some(salt) if row.hash(CHECKSUM) == Some(checksum(&salt, &text)) => {}
            Some(_) => report.finding("event altered", Some(&uuid(&id)), row.integer(1), ALTERED),
            None => known.erased.check(&id, row.integer(1), &text, &mut report),
        }
        Ok(())
    })?;
    report.fact("events", count);
    Ok(report)
}

pub fn changesets(database: &Database, known: &Known) -> Result<Report> {
    const SALT: usize = CHANGESET.len();
    const CHECKSUM: usize = SALT + 1;
    let query = format!("SELECT {CHANGESET_COLUMNS}, c.salt, c.checksum FROM audit.changeset AS c");
    let mut report = Report::new("db");
    let mut text = Vec::new();
    let mut count = 0;
    database.stream(&query, |row| {
        known.count(&mut count);
        let Some(id) = row.uuid(0) else { return Ok(()) };
        canonical("audit_ext/changeset/1", CHANGESET, row, &mut text);
        match row.uuid(SALT) {
            Some(salt) if row.hash(CHECKSUM) == Some(checksum(&salt, &text)) => {}
            Some(_) => report.finding("changeset altered", Some(&uuid(&id)), None, ALTERED),
            None => known.erased.check(&id, None, &text, &mut report),
        }
        Ok(())
    })?;
    report.fact("changesets", count);
    Ok(report)
}
