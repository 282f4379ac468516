//! Layouts: how the rows of each audited table are recorded. Built once per table and version of it from the relation
//! cache and audit.policy, kept until PostgreSQL says that the table changed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use audit_core::canonical;
use audit_core::jsonb::{KeyBlock, Writer};
use pgrx::pg_sys::Oid;

use crate::action_rules::Rules;
use crate::context::Keys;
use crate::error::Error;
use crate::modes::Mode;
use crate::pg::catalog::{self, Row};
use crate::pg::compare::Shape;
use crate::pg::encode::Encoder;
use crate::pg::env::Env;
use crate::pg::generated::VirtualColumns;
use crate::pg::heap::{self, Value};
use crate::pg::relation::{ColumnDescription, Description, LayoutMemory, Relation, base_type, partition_ancestors};
use crate::pg::session;
use crate::{gucs, store, transaction};

/// How a table's rows are recorded.
pub struct Layout {
    pub oid: Oid,
    pub relation_id: i32,
    /// As events' canonical forms have it.
    pub canonical: Vec<u8>,
    pub resource: Vec<u8>,
    pub is_heap: bool,
    /// Each change is recorded with it, and nothing else is done.
    pub is_plain: bool,
    /// The triggers that record; others on the same function stand by.
    pub row_trigger: Option<Oid>,
    pub truncate_trigger: Option<Oid>,
    pub keys: KeyBlock,
    /// Recorded columns, in the order of their keys.
    pub columns: Vec<Column>,
    /// Positions of the key columns among `columns`, in key order; `None` where the key column is not recorded.
    pub key: Vec<Option<usize>>,
    pub env: Env,
    pub policy: Policy,
    /// Position of the soft-delete column among all attributes, and whether it is a boolean.
    pub soft_delete: Option<(usize, bool)>,
    pub virtual_columns: VirtualColumns,
    /// The column that names the row's tenant.
    pub tenant: Option<Column>,
    /// What changes mean.
    pub rules: Option<Rules>,
    stale: Cell<bool>,
    _memory: LayoutMemory,
}

/// The table of an event.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    pub oid: Oid,
    pub relation_id: i32,
    /// What the event's canonical form has of it.
    pub canonical: &'a [u8],
}

impl Layout {
    pub fn named(&self) -> Table<'_> {
        Table { oid: self.oid, relation_id: self.relation_id, canonical: &self.canonical }
    }
}

pub struct Column {
    /// Position in the tuple.
    pub index: usize,
    pub type_id: Oid,
    pub shape: Shape,
    pub encoder: Encoder,
    pub is_masked: bool,
}

/// The row of audit.policy.
#[derive(Default)]
pub struct Policy {
    pub mode: Mode,
    pub excluded: Vec<Vec<u8>>,
    pub masked: Vec<Vec<u8>>,
    pub soft_delete_column: Option<Vec<u8>>,
    pub required: Keys,
    pub skip_unchanged: bool,
    pub tenant_column: Option<Vec<u8>>,
}

/// Columns of audit.policy, counted from 1 as in sql/10_tables.sql.
mod policy_column {
    pub const TARGET: i16 = 1;
    pub const MODE: usize = 3;
    pub const SAMPLE_RATE: usize = 4;
    pub const EXCLUDE_COLUMNS: usize = 5;
    pub const MASK_COLUMNS: usize = 6;
    pub const SOFT_DELETE_COLUMN: usize = 7;
    pub const REQUIRE_CONTEXT: usize = 8;
    pub const SKIP_UNCHANGED: usize = 9;
    pub const TENANT_COLUMN: usize = 10;
    pub const REQUIRE_VERIFIED_CONTEXT: usize = 11;
}

/// Columns of audit.relation.
mod relation_column {
    pub const ID: usize = 1;
    pub const SCHEMA_NAME: usize = 3;
    pub const TABLE_NAME: usize = 4;
    pub const RESOURCE: usize = 5;
    pub const ROOT_SCHEMA: usize = 6;
    pub const ROOT_TABLE: usize = 7;
    pub const COLUMNS: usize = 8;
    pub const KEY_COLUMNS: usize = 9;
}

/// Columns of audit.local_layout.
mod local_column {
    pub const RELID: i16 = 1;
    pub const RELATION_ID: usize = 2;
}

type Cache = HashMap<u32, Rc<Layout>>;

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(HashMap::new());
    static LAST: RefCell<Option<(u32, Rc<Layout>)>> = const { RefCell::new(None) };
}

pub use catalog::table_oid as find_table;

/// The table's layout.
pub fn get(relation: Relation, capture: Oid) -> Result<Rc<Layout>, Error> {
    let oid = relation.oid().to_u32();
    let last = LAST.with_borrow(|last| match last {
        Some((last_oid, layout)) if *last_oid == oid && !layout.stale.get() => Some(layout.clone()),
        _ => None,
    });
    if let Some(layout) = last {
        return Ok(layout);
    }
    let cached = CACHE.with_borrow(|cache| cache.get(&oid).filter(|layout| !layout.stale.get()).cloned());
    let layout = match cached {
        Some(layout) => layout,
        None => {
            let layout = Rc::new(build(relation, capture)?);
            CACHE.with_borrow_mut(|cache| cache.insert(oid, layout.clone()));
            layout
        }
    };
    LAST.with_borrow_mut(|last| *last = Some((oid, layout.clone())));
    Ok(layout)
}

/// PostgreSQL's word that a relation (or, with `None`, any) may have changed.
pub fn invalidate(relation: Option<Oid>) {
    CACHE.with(|cache| {
        // Borrowed only between calls into PostgreSQL, so it is free here.
        let Ok(cache) = cache.try_borrow() else { return };
        match relation {
            Some(oid) => {
                if let Some(layout) = cache.get(&oid.to_u32()) {
                    layout.stale.set(true);
                }
            }
            None => cache.values().for_each(|layout| layout.stale.set(true)),
        }
    });
}

/// An audited table as the catalog and the log know it, found without a lock on it.
pub struct Known {
    pub oid: Oid,
    pub relation_id: i32,
    pub schema: Vec<u8>,
    pub name: Vec<u8>,
    pub resource: Vec<u8>,
    /// Whether its policy keeps columns, or what is in them, out of the log.
    pub hides_columns: bool,
}

/// The table with its latest layout; `None` where it is not audited.
pub fn known(oid: Oid) -> Result<Option<Known>, Error> {
    let mut policy = None;
    let read = |row: &Row| policy = Some(Policy::from_row(row));
    catalog::scan(&store::POLICY, c"policy_pkey", policy_column::TARGET, oid, read)?;
    let Some(policy) = policy else { return Ok(None) };
    let mut latest: Option<Known> = None;
    let mut take = |row: &Row| {
        let relation_id = row.int4(relation_column::ID).unwrap_or_default();
        if latest.as_ref().is_none_or(|latest| latest.relation_id < relation_id) {
            let text = |column| row.bytes(column).unwrap_or_default();
            latest = Some(Known {
                oid,
                relation_id,
                schema: text(relation_column::SCHEMA_NAME),
                name: text(relation_column::TABLE_NAME),
                resource: text(relation_column::RESOURCE),
                hides_columns: !policy.excluded.is_empty() || !policy.masked.is_empty(),
            });
        }
    };
    if let Some(&id) = local_layouts(oid)?.last() {
        catalog::scan(&store::RELATION, c"relation_pkey", relation_column::ID as i16, id, take)?;
    } else if let Some((schema, name)) = catalog::table_name(oid) {
        // Restored, and not written to since.
        catalog::scan_all(&store::RELATION, |row| {
            let is_its = row.bytes(relation_column::SCHEMA_NAME).as_ref() == Some(&schema)
                && row.bytes(relation_column::TABLE_NAME).as_ref() == Some(&name);
            if is_its {
                take(row);
            }
        })?;
    }
    Ok(latest)
}

/// The layouts of a table that were written here, in ascending order.
fn local_layouts(oid: Oid) -> Result<Vec<i32>, Error> {
    let mut ids = Vec::new();
    catalog::scan(&store::LOCAL_LAYOUT, c"local_layout_relid_idx", local_column::RELID, oid, |row| {
        ids.extend(row.int4(local_column::RELATION_ID));
    })?;
    ids.sort_unstable();
    Ok(ids)
}

fn build(relation: Relation, capture: Oid) -> Result<Layout, Error> {
    let description = relation.describe(capture);
    let policy = policy_for(&description)?;
    let memory = LayoutMemory::new();

    let recorded: Vec<&ColumnDescription> =
        description.columns.iter().filter(|column| !policy.excluded.contains(&column.name)).collect();
    let names: Vec<&[u8]> = recorded.iter().map(|column| column.name.as_slice()).collect();
    let (keys, order) = KeyBlock::new(&names)?;
    let mut env = Env::Free;
    let columns: Vec<Column> = order
        .into_iter()
        .map(|position| {
            let described = recorded[position];
            let (column, needs) = Column::of(described, &memory);
            env = env.max(needs);
            Column { is_masked: policy.masked.contains(&described.name), ..column }
        })
        .collect();
    let tenant = policy.tenant_column.as_ref().and_then(|name| {
        let column = description.columns.iter().find(|column| column.name == *name)?;
        Some(Column::of(column, &memory).0)
    });
    let key = description.key.iter().map(|index| columns.iter().position(|column| column.index == *index)).collect();
    let soft_delete = policy.soft_delete_column.as_ref().and_then(|name| {
        let column = description.columns.iter().find(|column| column.name == *name)?;
        Some((column.index, base_type(column.type_id) == pgrx::pg_sys::BOOLOID))
    });

    let rules = Rules::load(relation, &description.columns, &memory)?;
    let relation_id = relation_id(&description)?;
    let mut canonical = Vec::new();
    canonical::layout(relation_id, &description.schema, &description.table, &mut canonical)?;

    Ok(Layout {
        oid: description.oid,
        relation_id,
        canonical,
        resource: description.resource,
        is_heap: description.is_heap,
        is_plain: policy.mode == Mode::Sync && !gucs::track_timing(),
        row_trigger: description.row_trigger,
        truncate_trigger: description.truncate_trigger,
        keys,
        columns,
        key,
        env,
        policy,
        soft_delete,
        virtual_columns: memory.virtual_columns(relation),
        tenant,
        rules,
        stale: Cell::new(false),
        _memory: memory,
    })
}

impl Column {
    /// An unmasked column, and what writing it needs of the environment.
    fn of(described: &ColumnDescription, memory: &LayoutMemory) -> (Self, Env) {
        let (encoder, needs) = memory.encoder(described.type_id);
        let column = Column {
            index: described.index,
            type_id: described.type_id,
            shape: described.shape,
            encoder,
            is_masked: false,
        };
        (column, needs)
    }
}

/// The table's policy; a partition that the event trigger has not seen yet follows its nearest audited ancestor.
fn policy_for(description: &Description) -> Result<Policy, Error> {
    let mut candidates = vec![description.oid];
    if description.root.is_some() {
        candidates.extend(partition_ancestors(description.oid));
    }
    for target in candidates {
        let mut policy = None;
        let read = |row: &Row| policy = Some(Policy::from_row(row));
        catalog::scan(&store::POLICY, c"policy_pkey", policy_column::TARGET, target, read)?;
        if let Some(policy) = policy {
            return Ok(policy);
        }
    }
    Err(Error::NoPolicy { table: String::from_utf8_lossy(&description.resource).into_owned() })
}

impl Policy {
    fn from_row(row: &Row) -> Self {
        let mode = row.bytes(policy_column::MODE).unwrap_or_default();
        let mut required = Keys::of(&row.texts(policy_column::REQUIRE_CONTEXT));
        if row.boolean(policy_column::REQUIRE_VERIFIED_CONTEXT).unwrap_or(false) {
            required.add_verified();
        }
        Policy {
            mode: Mode::of_policy(&mode, row.float8(policy_column::SAMPLE_RATE).unwrap_or(1.0)),
            excluded: row.texts(policy_column::EXCLUDE_COLUMNS),
            masked: row.texts(policy_column::MASK_COLUMNS),
            soft_delete_column: row.bytes(policy_column::SOFT_DELETE_COLUMN),
            required,
            skip_unchanged: row.boolean(policy_column::SKIP_UNCHANGED).unwrap_or(false),
            tenant_column: row.bytes(policy_column::TENANT_COLUMN),
        }
    }
}

/// A table as the last layout of it names it.
pub struct Named {
    pub oid: Oid,
    pub relation_id: i32,
    pub resource: Vec<u8>,
    canonical: Vec<u8>,
}

impl Named {
    pub fn table(&self) -> Table<'_> {
        Table { oid: self.oid, relation_id: self.relation_id, canonical: &self.canonical }
    }
}

/// The last layout of a table that was written in this database; the table may be gone.
pub fn last_written(table: Oid) -> Result<Option<Named>, Error> {
    let Some(relation_id) = local_layouts(table)?.into_iter().max() else { return Ok(None) };
    let mut names = None;
    catalog::scan(&store::RELATION, c"relation_pkey", relation_column::ID as i16, relation_id, |row| {
        let name = |column| row.bytes(column).unwrap_or_default();
        names = Some([relation_column::SCHEMA_NAME, relation_column::TABLE_NAME, relation_column::RESOURCE].map(name));
    })?;
    let Some([schema, name, resource]) = names else { return Ok(None) };
    let mut canonical = Vec::new();
    canonical::layout(relation_id, &schema, &name, &mut canonical)?;
    Ok(Some(Named { oid: table, relation_id, resource, canonical }))
}

/// The id of this layout in audit.relation, where it is written first if it is new.
///
/// Two sessions that meet a new layout at the same time both write it; either row says the same.
fn relation_id(description: &Description) -> Result<i32, Error> {
    let columns = columns_json(description)?;
    let key_columns: Vec<Vec<u8>> = description
        .key
        .iter()
        .filter_map(|index| description.columns.iter().find(|column| column.index == *index))
        .map(|column| column.name.clone())
        .collect();
    let (root_schema, root_table) = description.root.clone().unzip();

    for id in local_layouts(description.oid)?.into_iter().rev() {
        let mut is_same = false;
        catalog::scan(&store::RELATION, c"relation_pkey", relation_column::ID as i16, id, |row| {
            is_same = row.bytes(relation_column::SCHEMA_NAME).as_ref() == Some(&description.schema)
                && row.bytes(relation_column::TABLE_NAME).as_ref() == Some(&description.table)
                && row.bytes(relation_column::RESOURCE).as_ref() == Some(&description.resource)
                && row.bytes(relation_column::ROOT_SCHEMA) == root_schema
                && row.bytes(relation_column::ROOT_TABLE) == root_table
                && row.texts(relation_column::KEY_COLUMNS) == key_columns
                && row.bytes(relation_column::COLUMNS).as_deref() == Some(columns.jsonb());
        })?;
        if is_same {
            return Ok(id);
        }
    }

    // Before the layout, so that its time is within the era: that is how readers tell.
    store::era()?;
    let sequence = catalog::relation_oid(c"relation_id_seq")
        .ok_or_else(|| Error::LogMissing { table: "relation_id_seq".into() })?;
    let id = i32::try_from(heap::next_value(sequence)).map_err(|_| Error::Internal("audit.relation is full"))?;
    heap::insert(
        &store::RELATION,
        &[
            Value::Int4(id),
            Value::Oid(description.oid),
            Value::Varlena(&description.schema),
            Value::Varlena(&description.table),
            Value::Varlena(&description.resource),
            root_schema.as_deref().map_or(Value::Null, Value::Varlena),
            root_table.as_deref().map_or(Value::Null, Value::Varlena),
            Value::Varlena(columns.jsonb()),
            if key_columns.is_empty() { Value::Null } else { Value::TextArray(&key_columns) },
            Value::Int8(session::clock()),
        ],
    )?;
    heap::insert(&store::LOCAL_LAYOUT, &[Value::Oid(description.oid), Value::Int4(id)])?;
    transaction::wrote_cached_row();
    Ok(id)
}

fn columns_json(description: &Description) -> Result<Writer, Error> {
    const NAMES: [&[u8]; 4] = [b"attnum", b"name", b"type", b"missing"];
    let mut json = Writer::new();
    json.begin_array(description.columns.len())?;
    for column in &description.columns {
        let (keys, order) = KeyBlock::new(if column.missing.is_some() { &NAMES } else { &NAMES[..3] })?;
        json.begin_object(&keys)?;
        for key in order {
            match key {
                0 => json.integer(column.index as i64 + 1)?,
                1 => json.string(&column.name)?,
                2 => json.string(&column.type_name)?,
                _ => json.container(column.missing.as_deref().unwrap_or_default())?,
            }
        }
        json.end_object()?;
    }
    json.end_array()?;
    Ok(json)
}
