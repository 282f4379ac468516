//! Tables whose rows name their tenant: the policy's tenant column. Where the context names none, the row's own counts, in a
//! changeset for each tenant; where it names another, the record says so.

use audit_core::canonical::Origin;
use audit_core::jsonb::Writer;

use crate::capture::put_scalar_text;
use crate::context::{Context, Key, Keys};
use crate::error::Error;
use crate::layouts::Column;
use crate::pg::relation::Row;
use crate::transaction;

/// Puts the tenant that a row names into `tenant`, which is empty for none. `writer` is for use meanwhile.
pub fn read(column: &Column, row: Row, writer: &mut Writer, tenant: &mut Vec<u8>) -> Result<(), Error> {
    tenant.clear();
    if row.nulls[column.index] {
        return Ok(());
    }
    if let Some(text) = column.encoder.plain_text(row.values[column.index]) {
        tenant.extend_from_slice(text);
        return Ok(());
    }
    writer.clear();
    writer.begin_array(1)?;
    let value = writer.mark();
    column.write(row, None, writer)?;
    put_scalar_text(writer.value_text(&value), tenant)
}

/// Begins the event of a row of that tenant. Also says whether the context names another one.
pub fn begin_event(origin: Origin, tenant: &[u8]) -> Result<(Keys, bool), Error> {
    if tenant.is_empty() {
        return Ok((transaction::begin_event(origin)?, false));
    }
    let context = Context::current()?;
    match context.get(Key::TenantId) {
        Some(of_context) => Ok((transaction::begin_event(origin)?, of_context != tenant)),
        None => {
            let derived = Context::with(Key::TenantId, tenant)?;
            Ok((transaction::begin_event_beside(origin, &derived)?, false))
        }
    }
}
