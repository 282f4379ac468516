//! What is audited: audit.policy and audit.schema_policy, and the triggers that go with them.
//!
//! One rule makes all cases come out right: [`follow`] brings a table into the state that its own policy, its audited
//! ancestors and its schema's policy call for. Enabling, disabling, attached, detached and new tables all end there.

use pgrx::Spi;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, Oid};
use pgrx::spi::SpiClient;

use crate::context::REQUIRABLE;
use crate::error::Error;
use crate::pg::env::{self, Env};
use crate::pg::relation::{self, Opened, Relation, with_descendants};
use crate::pg::session::AsOwner;
use crate::pg::{catalog, session, table_triggers};
use crate::{layouts, store, trigger};

/// How a table is audited.
#[derive(Clone, Default)]
pub struct Options {
    pub exclude_columns: Vec<String>,
    pub mask_columns: Vec<String>,
    pub soft_delete_column: Option<String>,
    pub require_context: Vec<String>,
    pub skip_unchanged: bool,
    pub snapshot: bool,
}

/// Refuses what is not `sync` at rate 1.
pub fn check_mode(mode: &str, sample_rate: f64) -> Result<(), Error> {
    match mode {
        "sync" if sample_rate == 1.0 => Ok(()),
        "sync" => Err(Error::InvalidOption {
            message: "sample_rate must be 1 in mode \"sync\"".into(),
            hint: "Mode \"sync\" records every change.",
        }),
        "async" | "sampled" => Err(Error::ModeNotAvailable { mode: mode.into() }),
        _ => Err(Error::InvalidOption {
            message: format!("unknown audit mode \"{mode}\""),
            hint: "Modes are sync, async and sampled.",
        }),
    }
}

/// Audits a table, its partitions and inheritance children; or changes how.
pub fn enable(target: Oid, options: &Options) -> Result<(), Error> {
    let opened = lock(target)?;
    check_auditable(opened.relation())?;
    check_options(opened.relation(), options)?;
    drop(opened);
    let tables = with_descendants(target, pg_sys::ShareRowExclusiveLock);
    // Here rather than with the first changes, which may come from many sessions at once.
    store::era()?;
    let acting = Acting::begin()?;
    write_policy(target, None, options)?;
    except_from_schema(target, false)?;
    for &table in tables.iter().filter(|&&table| table != target) {
        write_inherited(table, target, &tables, options)?;
    }
    for &table in &tables {
        establish(table, &acting)?;
    }
    let capture = acting.end();
    if options.snapshot { record_rows(&tables, capture) } else { Ok(()) }
}

/// Ends auditing of a table and of what followed it, unless something else calls for it.
pub fn disable(target: Oid) -> Result<(), Error> {
    let opened = lock(target)?;
    let resource = String::from_utf8_lossy(&opened.relation().resource()).into_owned();
    drop(opened);
    let tables = with_descendants(target, pg_sys::ShareRowExclusiveLock);
    let acting = Acting::begin()?;
    match policy_of(target)? {
        None => return Err(Error::NotEnabled { table: resource }),
        Some(Some(root)) => {
            let root = Opened::with_lock(root, pg_sys::AccessShareLock)
                .map_or_else(String::new, |root| String::from_utf8_lossy(&root.relation().resource()).into_owned());
            return Err(Error::Inherited { table: resource, root });
        }
        Some(None) => {}
    }
    run("DELETE FROM audit.policy WHERE target = $1 OR inherited_from = $1", &[oid(target)])?;
    except_from_schema(target, true)?;
    for table in tables {
        follow(table, &acting)?;
    }
    Ok(())
}

/// The rights and the function that putting triggers on tables takes.
pub struct Acting {
    _owner: AsOwner,
    _environment: env::Guard,
    capture: Oid,
}

impl Acting {
    pub fn begin() -> Result<Self, Error> {
        let capture = relation::capture_function().ok_or(Error::NotInstalled)?;
        Ok(Acting { _owner: AsOwner::begin()?, _environment: env::enter(Env::Settings), capture })
    }

    fn end(self) -> Oid {
        self.capture
    }
}

/// Brings a table into the state that its policy, its ancestors and its schema call for. Returns whether its auditing
/// begins here, so that rows it has came in without an event.
pub fn follow(table: Oid, acting: &Acting) -> Result<bool, Error> {
    let Some(opened) = Opened::with_lock(table, pg_sys::AccessShareLock) else { return Ok(false) };
    let relation = opened.relation();
    if !is_auditable_kind(relation) {
        return Ok(false);
    }
    rename_columns(table)?;
    let own = policy_of(table)?;
    let source = inherited_source(table)?;
    let mut is_new = false;
    match (own, source) {
        (Some(None), _) => {}
        (_, Some(source)) => {
            is_new = own.is_none();
            copy_policy(table, source)?;
        }
        // Detached: it stays audited, by a policy of its own.
        (Some(Some(_)), None) => {
            run("UPDATE audit.policy SET inherited_from = NULL WHERE target = $1", &[oid(table)])?;
        }
        (None, None) => {
            let options = if check_auditable(relation).is_ok() { schema_options(relation)? } else { None };
            let Some(options) = options else {
                drop(opened);
                if table_triggers::remove_all(table, acting.capture) {
                    table_triggers::invalidate(table);
                }
                return Ok(false);
            };
            write_policy(table, None, &options)?;
            is_new = true;
        }
    }
    drop(opened);
    establish(table, acting)?;
    Ok(is_new)
}

/// Puts the triggers on a table that has a policy, and writes its layout.
fn establish(table: Oid, acting: &Acting) -> Result<(), Error> {
    table_triggers::ensure(table, acting.capture)?;
    table_triggers::invalidate(table);
    session::make_changes_visible();
    if let Some(opened) = Opened::with_lock(table, pg_sys::AccessShareLock) {
        layouts::get(opened.relation(), acting.capture)?;
    }
    Ok(())
}

/// Records the rows that are in tables now as SNAPSHOT events.
pub fn record_rows(tables: &[Oid], capture: Oid) -> Result<(), Error> {
    for &table in tables {
        let Some(opened) = Opened::with_lock(table, pg_sys::ShareRowExclusiveLock) else { continue };
        if opened.relation().has_storage() {
            trigger::snapshot(opened.relation(), capture)?;
        }
    }
    Ok(())
}

/// Audits the tables of a schema; with `include_future` also those to come. Returns how many it found.
pub fn enable_schema(schema: Oid, include_future: bool, options: &Options) -> Result<i32, Error> {
    let name = check_schema(schema)?;
    check_context_keys(options)?;
    {
        let _acting = Acting::begin()?;
        run(
            "INSERT INTO audit.schema_policy AS p (schema_name, schema_id, include_future, exclude_columns, mask_columns,
                soft_delete_column, require_context, skip_unchanged)
             VALUES ($1, $8, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (schema_name) DO UPDATE SET schema_id = excluded.schema_id,
                include_future = excluded.include_future,
                exclude_columns = excluded.exclude_columns, mask_columns = excluded.mask_columns,
                soft_delete_column = excluded.soft_delete_column, require_context = excluded.require_context,
                skip_unchanged = excluded.skip_unchanged",
            &[
                name.as_str().into(),
                include_future.into(),
                options.exclude_columns.clone().into(),
                options.mask_columns.clone().into(),
                options.soft_delete_column.clone().into(),
                options.require_context.clone().into(),
                options.skip_unchanged.into(),
                oid(schema),
            ],
        )?;
    }
    let mut count = 0;
    for table in tables_of(schema)? {
        let Some(opened) = Opened::with_lock(table, pg_sys::ShareRowExclusiveLock) else { continue };
        let own = options.for_table(opened.relation());
        drop(opened);
        enable(table, &own)?;
        count += 1;
    }
    Ok(count)
}

/// Ends auditing of a schema's tables, present and future. Returns how many there were.
pub fn disable_schema(schema: Oid) -> Result<i32, Error> {
    let name = check_schema(schema)?;
    {
        let _acting = Acting::begin()?;
        run("DELETE FROM audit.schema_policy WHERE schema_name = $1", &[name.as_str().into()])?;
    }
    let mut count = 0;
    for table in tables_of(schema)? {
        let is_own = {
            let _acting = Acting::begin()?;
            matches!(policy_of(table)?, Some(None))
        };
        if is_own {
            disable(table)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Forgets the policies of tables and schemas that are gone.
pub fn forget_dropped() -> Result<(), Error> {
    let _acting = Acting::begin()?;
    run(
        "DELETE FROM audit.policy p USING pg_catalog.pg_event_trigger_dropped_objects() d
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0
           AND p.target = d.objid",
        &[],
    )?;
    run(
        "DELETE FROM audit.schema_policy p USING pg_catalog.pg_event_trigger_dropped_objects() d
         WHERE d.object_type = 'schema' AND p.schema_name = d.object_name",
        &[],
    )
}

/// Tables that a DDL command made or altered.
pub fn touched_tables() -> Result<Vec<Oid>, Error> {
    query(
        "SELECT DISTINCT objid FROM pg_catalog.pg_event_trigger_ddl_commands()
         WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass
           AND (object_type IN ('table', 'foreign table') OR object_type LIKE '%table column')",
        &[],
        |row| row.get(1),
    )
}

/// Audited tables that have no row trigger.
pub fn without_trigger(capture: Oid) -> Result<Vec<Oid>, Error> {
    query(
        "SELECT target::pg_catalog.oid FROM audit.policy p
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t
                           WHERE t.tgrelid = p.target AND t.tgfoid = $1 AND t.tgtype & 1 = 1)",
        &[oid(capture)],
        |row| row.get(1),
    )
}

/// Has the columns that a policy names follow a renaming: their numbers are in the last layout.
fn rename_columns(table: Oid) -> Result<(), Error> {
    run(
        "WITH layout AS (
             SELECT columns FROM audit.relation WHERE relid = $1 ORDER BY id DESC LIMIT 1
         ), renamed AS (
             SELECT c.value ->> 'name' AS old_name, a.attname::text AS new_name
             FROM layout, pg_catalog.jsonb_array_elements(layout.columns) c
             JOIN pg_catalog.pg_attribute a
               ON a.attrelid = $1 AND a.attnum = (c.value ->> 'attnum')::int2 AND NOT a.attisdropped
             WHERE a.attname::text <> c.value ->> 'name'
         )
         UPDATE audit.policy SET
             exclude_columns = ARRAY(SELECT coalesce(r.new_name, n) FROM unnest(exclude_columns) n
                                     LEFT JOIN renamed r ON r.old_name = n),
             mask_columns = ARRAY(SELECT coalesce(r.new_name, n) FROM unnest(mask_columns) n
                                  LEFT JOIN renamed r ON r.old_name = n),
             soft_delete_column = coalesce((SELECT r.new_name FROM renamed r WHERE r.old_name = soft_delete_column),
                                           soft_delete_column)
         WHERE target = $1 AND EXISTS (SELECT FROM renamed)",
        &[oid(table)],
    )
}

/// Remembers that a table of an enabled schema is not to be audited, or no longer so.
fn except_from_schema(table: Oid, is_excepted: bool) -> Result<(), Error> {
    run(
        "UPDATE audit.schema_policy p
         SET except_tables = CASE WHEN $2 THEN pg_catalog.array_append(
                 pg_catalog.array_remove(p.except_tables, c.relname::text), c.relname::text)
             ELSE pg_catalog.array_remove(p.except_tables, c.relname::text) END
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = $1 AND p.schema_name = n.nspname
           AND $2 <> (c.relname::text = ANY (p.except_tables))",
        &[oid(table), is_excepted.into()],
    )
}

/// Tables that follow `table`, or what `table` follows, but are none of its descendants any more: partitions detached and
/// children that no longer inherit.
pub fn orphans(table: Oid) -> Result<Vec<Oid>, Error> {
    let root = policy_of(table)?.flatten().unwrap_or(table);
    let followers: Vec<Oid> =
        query("SELECT target::pg_catalog.oid FROM audit.policy WHERE inherited_from = $1", &[oid(root)], |row| {
            row.get(1)
        })?;
    if followers.is_empty() {
        return Ok(followers);
    }
    let family = with_descendants(root, pg_sys::AccessShareLock);
    Ok(followers.into_iter().filter(|follower| !family.contains(follower)).collect())
}

/// Has the policies of schemas that were renamed follow the new name.
pub fn follow_renamed_schemas() -> Result<(), Error> {
    run(
        "UPDATE audit.schema_policy p SET schema_name = n.nspname
         FROM pg_catalog.pg_event_trigger_ddl_commands() d JOIN pg_catalog.pg_namespace n ON n.oid = d.objid
         WHERE d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.command_tag = 'ALTER SCHEMA'
           AND p.schema_id = d.objid AND p.schema_name <> n.nspname
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace o WHERE o.nspname = p.schema_name)",
        &[],
    )
}

fn lock(target: Oid) -> Result<Opened, Error> {
    Opened::with_lock(target, pg_sys::ShareRowExclusiveLock).ok_or(Error::NoSuchTable { oid: target.to_u32() })
}

fn is_auditable_kind(relation: Relation) -> bool {
    matches!(
        relation.kind(),
        pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE | pg_sys::RELKIND_FOREIGN_TABLE
    )
}

fn check_auditable(relation: Relation) -> Result<(), Error> {
    let refuse = |what, hint| {
        Err(Error::NotAuditable { table: String::from_utf8_lossy(&relation.resource()).into_owned(), what, hint })
    };
    match relation.kind() {
        pg_sys::RELKIND_VIEW => return refuse("a view", "Audit the tables beneath it."),
        pg_sys::RELKIND_MATVIEW => return refuse("a materialized view", "Audit the tables beneath it."),
        pg_sys::RELKIND_SEQUENCE => return refuse("a sequence", "Audit the tables that use it."),
        _ if !is_auditable_kind(relation) => return refuse("no table", "Name a table."),
        _ => {}
    }
    if relation.is_temporary() {
        return refuse("a temporary table", "Audit permanent tables; a temporary one is gone with its session.");
    }
    if relation.is_system() {
        return refuse("a system catalog", "Changes of catalogs are made by DDL commands; audit ordinary tables.");
    }
    if relation::namespace_name(relation.namespace()) == catalog::SCHEMA.to_bytes() {
        return refuse("part of the audit trail itself", "The log is append-only and needs no audit.");
    }
    Ok(())
}

fn check_options(relation: Relation, options: &Options) -> Result<(), Error> {
    check_context_keys(options)?;
    let columns = relation.column_names();
    let named = options.exclude_columns.iter().chain(&options.mask_columns).chain(&options.soft_delete_column);
    for column in named {
        if !columns.iter().any(|name| name == column.as_bytes()) {
            return Err(Error::NoSuchColumn {
                table: String::from_utf8_lossy(&relation.resource()).into_owned(),
                column: column.clone(),
            });
        }
    }
    if let Some(both) = options.exclude_columns.iter().find(|column| options.mask_columns.contains(column)) {
        return Err(Error::InvalidOption {
            message: format!("column \"{both}\" is both excluded and masked"),
            hint: "An excluded column is left out of the record, a masked one reads \"***\".",
        });
    }
    Ok(())
}

fn check_context_keys(options: &Options) -> Result<(), Error> {
    for key in &options.require_context {
        if !REQUIRABLE.iter().any(|(name, _)| name == key) {
            return Err(Error::InvalidOption {
                message: format!("unknown context key \"{key}\""),
                hint: "Keys are user_id, tenant_id, request_id, session_id, ip_address, user_agent and reason.",
            });
        }
    }
    Ok(())
}

fn check_schema(schema: Oid) -> Result<String, Error> {
    let name = relation::namespace_name(schema);
    let text = String::from_utf8_lossy(&name).into_owned();
    let is_system = name.starts_with(b"pg_") || name == b"information_schema" || name == catalog::SCHEMA.to_bytes();
    if name.is_empty() || is_system {
        return Err(Error::NotAuditable {
            table: format!("schema {text}"),
            what: "no schema of user tables",
            hint: "Name a schema that holds ordinary tables.",
        });
    }
    Ok(text)
}

impl Options {
    /// These options for one table of a schema: only the columns that it has.
    fn for_table(&self, relation: Relation) -> Options {
        let columns = relation.column_names();
        let has = |column: &String| columns.iter().any(|name| name == column.as_bytes());
        Options {
            exclude_columns: self.exclude_columns.iter().filter(|column| has(column)).cloned().collect(),
            mask_columns: self.mask_columns.iter().filter(|column| has(column)).cloned().collect(),
            soft_delete_column: self.soft_delete_column.clone().filter(has),
            ..self.clone()
        }
    }
}

/// Tables of a schema that can be audited, parents before their children.
fn tables_of(schema: Oid) -> Result<Vec<Oid>, Error> {
    let _environment = env::enter(Env::Settings);
    query(
        "SELECT oid FROM pg_catalog.pg_class
         WHERE relnamespace = $1 AND relkind IN ('r', 'p', 'f') AND relpersistence <> 't' AND NOT relispartition
         ORDER BY oid",
        &[oid(schema)],
        |row| row.get(1),
    )
}

fn schema_options(relation: Relation) -> Result<Option<Options>, Error> {
    let name = String::from_utf8_lossy(&relation::namespace_name(relation.namespace())).into_owned();
    let found = query(
        "SELECT exclude_columns, mask_columns, soft_delete_column, require_context, skip_unchanged
         FROM audit.schema_policy WHERE schema_name = $1 AND include_future AND $2 <> ALL (except_tables)",
        &[name.as_str().into(), String::from_utf8_lossy(&relation.name()).into_owned().into()],
        |row| {
            Ok(Some(Options {
                exclude_columns: row.get::<Vec<String>>(1)?.unwrap_or_default(),
                mask_columns: row.get::<Vec<String>>(2)?.unwrap_or_default(),
                soft_delete_column: row.get(3)?,
                require_context: row.get::<Vec<String>>(4)?.unwrap_or_default(),
                skip_unchanged: row.get(5)?.unwrap_or(false),
                snapshot: false,
            }))
        },
    )?;
    Ok(found.first().map(|options| options.for_table(relation)))
}

/// The table's policy: what it follows, if anything.
fn policy_of(table: Oid) -> Result<Option<Option<Oid>>, Error> {
    let found =
        query("SELECT inherited_from::pg_catalog.oid FROM audit.policy WHERE target = $1", &[oid(table)], |row| {
            Ok(Some(row.get::<Oid>(1)?))
        })?;
    Ok(found.first().copied())
}

/// What the table should follow: the policy of its nearest audited ancestor.
fn inherited_source(table: Oid) -> Result<Option<Oid>, Error> {
    let found = query(
        "WITH RECURSIVE ancestor (oid, depth) AS (
             SELECT inhparent, 1 FROM pg_catalog.pg_inherits WHERE inhrelid = $1 AND NOT inhdetachpending
             UNION
             SELECT i.inhparent, a.depth + 1
             FROM pg_catalog.pg_inherits i JOIN ancestor a ON i.inhrelid = a.oid WHERE NOT i.inhdetachpending
         )
         SELECT coalesce(p.inherited_from, p.target)::pg_catalog.oid
         FROM ancestor a JOIN audit.policy p ON p.target = a.oid
         WHERE p.inherited_from IS NULL OR p.inherited_from IN (SELECT oid FROM ancestor)
         ORDER BY a.depth LIMIT 1",
        &[oid(table)],
        |row| row.get(1),
    )?;
    Ok(found.first().copied())
}

fn write_policy(target: Oid, inherited_from: Option<Oid>, options: &Options) -> Result<(), Error> {
    run(
        "INSERT INTO audit.policy AS p (target, inherited_from, exclude_columns, mask_columns, soft_delete_column,
            require_context, skip_unchanged)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (target) DO UPDATE SET inherited_from = excluded.inherited_from,
            exclude_columns = excluded.exclude_columns, mask_columns = excluded.mask_columns,
            soft_delete_column = excluded.soft_delete_column, require_context = excluded.require_context,
            skip_unchanged = excluded.skip_unchanged",
        &[
            oid(target),
            inherited_from.into(),
            options.exclude_columns.clone().into(),
            options.mask_columns.clone().into(),
            options.soft_delete_column.clone().into(),
            options.require_context.clone().into(),
            options.skip_unchanged.into(),
        ],
    )
}

/// Has a descendant follow `target`, unless it has a policy of its own or follows something nearer.
fn write_inherited(table: Oid, target: Oid, tables: &[Oid], options: &Options) -> Result<(), Error> {
    match policy_of(table)? {
        Some(None) => Ok(()),
        Some(Some(nearer)) if nearer != target && tables.contains(&nearer) => Ok(()),
        _ => write_policy(table, Some(target), options),
    }
}

fn copy_policy(table: Oid, source: Oid) -> Result<(), Error> {
    run(
        "INSERT INTO audit.policy AS p (target, inherited_from, exclude_columns, mask_columns, soft_delete_column,
            require_context, skip_unchanged)
         SELECT $1, $2, exclude_columns, mask_columns, soft_delete_column, require_context, skip_unchanged
         FROM audit.policy WHERE target = $2
         ON CONFLICT (target) DO UPDATE SET inherited_from = excluded.inherited_from,
            exclude_columns = excluded.exclude_columns, mask_columns = excluded.mask_columns,
            soft_delete_column = excluded.soft_delete_column, require_context = excluded.require_context,
            skip_unchanged = excluded.skip_unchanged",
        &[oid(table), oid(source)],
    )
}

fn oid<'a>(value: Oid) -> DatumWithOid<'a> {
    value.into()
}

/// Runs a statement of ours. The search_path is pg_catalog, so names and operators are PostgreSQL's own.
fn run(sql: &str, arguments: &[DatumWithOid]) -> Result<(), Error> {
    Spi::connect_mut(|client| client.update(sql, None, arguments).map(|_| ())).map_err(|_| SPI_FAILED)
}

/// The rows that `take` makes something of.
fn query<T>(
    sql: &str,
    arguments: &[DatumWithOid],
    take: impl Fn(&pgrx::spi::SpiHeapTupleData) -> Result<Option<T>, pgrx::spi::Error>,
) -> Result<Vec<T>, Error> {
    let rows = |client: &SpiClient| -> Result<Vec<T>, pgrx::spi::Error> {
        let mut found = Vec::new();
        for row in client.select(sql, None, arguments)? {
            found.extend(take(&row)?);
        }
        Ok(found)
    };
    Spi::connect(rows).map_err(|_| SPI_FAILED)
}

const SPI_FAILED: Error = Error::Internal("a query on the audit policy failed");
