//! From a changed row to its event: which columns changed, the row's image, its key, and what the policy makes of it.

use std::cell::Cell;

use audit_core::canonical::{Operation, Origin, Status};
use audit_core::error::Error as CoreError;
use audit_core::jsonb::{KeyBlock, Mark, Writer};
use pgrx::pg_sys::Datum;

use crate::action_rules::{Rules, Verdict};
use crate::context::Keys;
use crate::error::Error;
use crate::layouts::{Column, Layout};
use crate::pg::attempt::SqlState;
use crate::pg::encode::{digest, text_length};
use crate::pg::env::Env;
use crate::pg::generated::Completed;
use crate::pg::relation::Row;
use crate::pg::{compare, env, session};
use crate::transaction::{self, Event, Image};
use crate::{action_rules, gucs, suspension, tenants};

const MASK: &[u8] = b"***";
const SAMPLE_RATE: &[u8] = b"sample_rate";
/// Memory kept between rows.
const KEEP_BYTES: usize = 256 * 1024;

/// Buffers for one row. A row captured while another is being written (an output function that changes an audited table)
/// has its own.
#[derive(Default)]
struct Scratch {
    image: Writer,
    old_values: Writer,
    details: Writer,
    changed: Vec<u16>,
    key: Vec<u8>,
    old_key: Vec<u8>,
    /// The tenant that the row names, and whether the context names another.
    tenant: Vec<u8>,
    is_other_tenant: bool,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl Scratch {
    fn take() -> Box<Scratch> {
        SCRATCH.take().unwrap_or_default()
    }

    fn give_back(mut self: Box<Self>) {
        self.image.shrink(KEEP_BYTES);
        self.old_values.shrink(KEEP_BYTES);
        self.details.shrink(KEEP_BYTES);
        SCRATCH.set(Some(self));
    }
}

/// A row version to record.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    pub operation: Operation,
    pub origin: Origin,
    pub command: u32,
    /// The row after INSERT, UPDATE and SNAPSHOT, before DELETE.
    pub row: Row<'a>,
    /// The row before UPDATE.
    pub old: Option<Row<'a>>,
}

/// What becomes of a change of an audited table. [`Direct`] costs nothing; `modes.rs` has the other.
pub trait Route {
    /// Whether the change is recorded.
    fn takes(layout: &Layout) -> Result<bool, Error>;
    /// The share of transactions of which this is one, if not all are recorded.
    fn sample_rate(layout: &Layout) -> Option<f64>;
    fn record(layout: &Layout, event: &Event) -> Result<(), Error>;
}

/// Recorded, in the transaction.
pub struct Direct;

impl Route for Direct {
    fn takes(_: &Layout) -> Result<bool, Error> {
        Ok(true)
    }

    fn sample_rate(_: &Layout) -> Option<f64> {
        None
    }

    fn record(_: &Layout, event: &Event) -> Result<(), Error> {
        transaction::record(event)
    }
}

/// Records a row's change.
pub fn row<R: Route>(layout: &Layout, change: &Change) -> Result<(), Error> {
    let mut scratch = Scratch::take();
    let present = begin(layout, change, &mut scratch)?;
    let missing = layout.policy.required.missing_from(present);
    if !missing.is_empty() && change.operation != Operation::Snapshot {
        return Err(missing.refusal(layout.resource_text()));
    }
    suspension::record()?;
    if !R::takes(layout)? {
        scratch.give_back();
        return Ok(());
    }
    let recorded = if layout.virtual_columns.is_empty() {
        write::<R>(layout, change, &mut scratch)
    } else {
        let row = layout.virtual_columns.complete(change.row);
        let old = change.old.map(|old| layout.virtual_columns.complete(old));
        let completed = Change { row: row.row(), old: old.as_ref().map(Completed::row), ..*change };
        write::<R>(layout, &completed, &mut scratch)
    };
    scratch.give_back();
    recorded.map_err(|error| match error {
        Error::RowTooLarge { .. } => Error::RowTooLarge { table: layout.resource_text() },
        other => other,
    })
}

fn begin(layout: &Layout, change: &Change, scratch: &mut Scratch) -> Result<Keys, Error> {
    scratch.is_other_tenant = false;
    let Some(column) = &layout.tenant else { return transaction::begin_event(change.origin) };
    tenants::read(column, change.row, &mut scratch.details, &mut scratch.tenant)?;
    let (present, is_other) = tenants::begin_event(change.origin, &scratch.tenant)?;
    scratch.is_other_tenant = is_other;
    Ok(present)
}

/// Records that all rows went.
pub fn truncate<R: Route>(layout: &Layout) -> Result<(), Error> {
    let present = transaction::begin_event(Origin::Trigger)?;
    let missing = layout.policy.required.missing_from(present);
    if !missing.is_empty() {
        return Err(missing.refusal(layout.resource_text()));
    }
    suspension::record()?;
    if !R::takes(layout)? {
        return Ok(());
    }
    let mut details = Writer::new();
    let has_details = match R::sample_rate(layout) {
        None => false,
        Some(rate) => {
            let (keys, _) = KeyBlock::new(&[SAMPLE_RATE])?;
            details.begin_object(&keys)?;
            details.decimal(rate.to_string().as_bytes())?;
            details.end_object()?;
            true
        }
    };
    let event = Event {
        layout: Some(layout.named()),
        operation: Operation::Truncate,
        status: Status::Success,
        command: session::current_command(),
        action: layout.rules.as_ref().and_then(Rules::of_truncate),
        resource: None,
        resource_id: None,
        row_image: None,
        old_values: None,
        details: has_details.then(|| Image::of(&details)),
    };
    R::record(layout, &event)
}

fn write<R: Route>(layout: &Layout, change: &Change, scratch: &mut Scratch) -> Result<(), Error> {
    scratch.changed.clear();
    let mut is_soft_delete = false;
    if let Some(old) = change.old {
        for (position, column) in layout.columns.iter().enumerate() {
            if column.differs(old, change.row) {
                scratch.changed.push(position as u16);
            }
        }
        if scratch.changed.is_empty() && layout.policy.skip_unchanged {
            return Ok(());
        }
        is_soft_delete = layout.is_soft_delete(old, change.row);
        if is_soft_delete && !gucs::log_soft_deletes() {
            return Ok(());
        }
    }

    let environment = env::enter(layout.env);
    let limit = gucs::max_value_bytes();
    write_image(layout, change.row, limit, scratch)?;
    let mut has_old_key = false;
    if let Some(old) = change.old {
        scratch.old_values.clear();
        scratch.old_values.begin_object_of(&layout.keys, &scratch.changed)?;
        for &position in &scratch.changed {
            layout.columns[usize::from(position)].write(old, limit, &mut scratch.old_values)?;
        }
        scratch.old_values.end_object()?;
        let key_changed = layout.key.iter().flatten().any(|&column| scratch.changed.contains(&(column as u16)));
        if key_changed {
            write_key(layout, old, limit, &mut scratch.old_key)?;
            has_old_key = scratch.old_key != scratch.key;
        }
    }
    drop(environment);
    let meaning = layout.rules.as_ref().map_or_else(Verdict::default, |rules| rules.decide(change));
    let sample_rate = R::sample_rate(layout);
    let has_details = write_details(is_soft_delete, has_old_key, sample_rate, &meaning.errors, scratch)?;
    if layout.tenant.is_some() && layout.env == Env::Settings {
        // Code of users was called meanwhile, such as a cast: it may have recorded rows of another tenant.
        tenants::begin_event(change.origin, &scratch.tenant)?;
    }

    let event = Event {
        layout: Some(layout.named()),
        operation: change.operation,
        status: Status::Success,
        command: change.command,
        action: meaning.action,
        resource: None,
        resource_id: layout.has_key().then_some(scratch.key.as_slice()),
        row_image: Some(Image::of(&scratch.image)),
        old_values: change.old.is_some().then(|| Image::of(&scratch.old_values)),
        details: has_details.then(|| Image::of(&scratch.details)),
    };
    R::record(layout, &event)
}

/// Writes the whole row, and takes its key from what was written.
fn write_image(layout: &Layout, row: Row, limit: Option<usize>, scratch: &mut Scratch) -> Result<(), Error> {
    let image = &mut scratch.image;
    image.clear();
    image.begin_object(&layout.keys)?;
    if let [Some(key)] = layout.key.as_slice() {
        for (position, column) in layout.columns.iter().enumerate() {
            if position == *key {
                let mark = image.mark();
                column.write(row, limit, image)?;
                scratch.key.clear();
                put_scalar_text(image.value_text(&mark), &mut scratch.key)?;
            } else {
                column.write(row, limit, image)?;
            }
        }
    } else {
        for column in &layout.columns {
            column.write(row, limit, image)?;
        }
        write_key(layout, row, limit, &mut scratch.key)?;
    }
    scratch.image.end_object()?;
    Ok(())
}

/// The key as `resource_id` holds it: a single value as text, several as the text of their JSON array.
fn write_key(layout: &Layout, row: Row, limit: Option<usize>, key: &mut Vec<u8>) -> Result<(), Error> {
    key.clear();
    let mut array = Writer::new();
    array.begin_array(layout.key.len())?;
    let first = array.mark();
    for column in &layout.key {
        match column {
            Some(position) => layout.columns[*position].write(row, limit, &mut array)?,
            None => array.null()?,
        }
    }
    if layout.key.len() == 1 {
        return put_scalar_text(array.value_text(&first), key);
    }
    array.end_array()?;
    append(key, array.text())
}

/// JSON text of a value as `->>` gives it: strings without quotes and escapes, all else as it stands.
pub(crate) fn put_scalar_text(json: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let Some(quoted) = json.strip_prefix(b"\"").and_then(|json| json.strip_suffix(b"\"")) else {
        return append(out, json);
    };
    if !quoted.contains(&b'\\') {
        return append(out, quoted);
    }
    out.try_reserve(quoted.len()).map_err(|_| Error::OutOfMemory)?;
    let mut rest = quoted;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some((&escape, after)) = rest.split_first() else { break };
        rest = after;
        match escape {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                // The writer escapes control characters alone this way: \u00xx.
                let (digits, after) = rest.split_at(rest.len().min(4));
                let value = std::str::from_utf8(digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                out.extend(value);
                rest = after;
            }
            other => out.push(other),
        }
    }
    Ok(())
}

fn append(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Error> {
    out.try_reserve(bytes.len()).map_err(|_| Error::OutOfMemory)?;
    out.extend_from_slice(bytes);
    Ok(())
}

fn write_details(
    is_soft_delete: bool,
    has_old_key: bool,
    sample_rate: Option<f64>,
    rule_errors: &[(i32, SqlState)],
    scratch: &mut Scratch,
) -> Result<bool, Error> {
    let is_sampled = sample_rate.is_some();
    if !is_soft_delete && !has_old_key && !is_sampled && !scratch.is_other_tenant && rule_errors.is_empty() {
        return Ok(false);
    }
    // In JSONB's order of keys: the shorter first.
    let members: [(&[u8], bool); 5] = [
        (b"rule_errors", !rule_errors.is_empty()),
        (SAMPLE_RATE, is_sampled),
        (b"soft_delete", is_soft_delete),
        (b"row_tenant_id", scratch.is_other_tenant),
        (b"old_resource_id", has_old_key),
    ];
    let names: Vec<&[u8]> = members.iter().filter(|(_, is_present)| *is_present).map(|(name, _)| *name).collect();
    let (keys, _) = KeyBlock::new(&names)?;
    let details = &mut scratch.details;
    details.clear();
    details.begin_object(&keys)?;
    if !rule_errors.is_empty() {
        action_rules::write_errors(rule_errors, details)?;
    }
    if let Some(rate) = sample_rate {
        details.decimal(rate.to_string().as_bytes())?;
    }
    if is_soft_delete {
        details.boolean(true)?;
    }
    if scratch.is_other_tenant {
        details.string(&scratch.tenant)?;
    }
    if has_old_key {
        details.string(&scratch.old_key)?;
    }
    details.end_object()?;
    Ok(true)
}

impl Layout {
    pub fn resource_text(&self) -> String {
        String::from_utf8_lossy(&self.resource).into_owned()
    }

    /// Whether rows have a `resource_id`: a key, of which something is recorded.
    fn has_key(&self) -> bool {
        self.key.iter().any(Option::is_some)
    }

    /// Whether the soft-delete column became true, or non-null where it is no boolean.
    fn is_soft_delete(&self, old: Row, new: Row) -> bool {
        let Some((index, is_boolean)) = self.soft_delete else { return false };
        let is_set = |row: Row| !row.nulls[index] && (!is_boolean || row.values[index].value() as u8 != 0);
        is_set(new) && !is_set(old)
    }
}

impl Column {
    fn differs(&self, old: Row, new: Row) -> bool {
        compare::differs(self.shape, self.index, old, new)
    }

    pub(crate) fn write(&self, row: Row, limit: Option<usize>, out: &mut Writer) -> Result<(), Error> {
        if row.nulls[self.index] {
            return Ok(out.null()?);
        }
        if self.is_masked {
            return Ok(out.string(MASK)?);
        }
        let value = row.values[self.index];
        if !self.encoder.may_be_large() {
            return Ok(self.encoder.write(value, out)?);
        }
        let mark = out.mark();
        let fits = match self.write_whole(value, limit, &mark, out) {
            Ok(fits) => fits,
            Err(CoreError::TooLarge | CoreError::NotJsonb(_)) => false,
            Err(error) => return Err(error.into()),
        };
        if !fits {
            out.rollback(&mark);
            let (sha256, length) = digest(self.type_id, &self.encoder, value);
            out.digest(&sha256, length)?;
        }
        Ok(())
    }

    /// Writes the value, and says whether it is within the limit.
    #[inline]
    fn write_whole(
        &self,
        value: Datum,
        limit: Option<usize>,
        mark: &Mark,
        out: &mut Writer,
    ) -> Result<bool, CoreError> {
        let Some(limit) = limit else {
            self.encoder.write(value, out)?;
            return Ok(true);
        };
        if self.encoder.text_size(value).is_some_and(|size| size > limit) {
            return Ok(false);
        }
        self.encoder.write(value, out)?;
        // JSON text is never shorter than the value's own text but for a few deeply nested arrays.
        Ok(out.value_text_len(mark) <= limit || text_length(self.type_id, &self.encoder, value) <= limit)
    }
}
