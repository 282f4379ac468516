//! Reads and writes audit.policy and audit.schema_policy. The callers act as the extension's owner with search_path
//! pg_catalog, so names and operators are PostgreSQL's own.

use pgrx::Spi;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, Oid};
use pgrx::spi::SpiClient;

use super::{NewRule, Options};
use crate::error::Error;
use crate::modes::Mode;
use crate::pg::env::{self, Env};
use crate::pg::relation::{self, Relation, with_descendants};

/// Forgets the policies of tables and schemas that are gone, the action rules, and the oids of their layouts.
pub fn forget_dropped() -> Result<(), Error> {
    let _acting = super::Acting::begin()?;
    run(
        "DELETE FROM audit.policy p USING pg_catalog.pg_event_trigger_dropped_objects() d
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0
           AND p.target = d.objid",
        &[],
    )?;
    run(
        "DELETE FROM audit.action_rule r USING pg_catalog.pg_event_trigger_dropped_objects() d
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0
           AND r.target = d.objid",
        &[],
    )?;
    // The layouts stay known as written here, but another table can get the oid.
    run(
        "UPDATE audit.local_layout l SET relid = 0 FROM pg_catalog.pg_event_trigger_dropped_objects() d
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0
           AND l.relid = d.objid",
        &[],
    )?;
    run(
        "DELETE FROM audit.schema_policy p USING pg_catalog.pg_event_trigger_dropped_objects() d
         WHERE d.object_type = 'schema' AND p.schema_name = d.object_name",
        &[],
    )
}

/// Tables with a policy that are gone.
pub fn gone() -> Result<Vec<Oid>, Error> {
    query(
        "SELECT target::pg_catalog.oid FROM audit.policy p
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = p.target)",
        &[],
        |row| row.get(1),
    )
}

/// Forgets the policy of a table that is gone, its action rules, and the oid of its layouts: as [`forget_dropped`], where no
/// event trigger tells.
pub fn forget_table(table: Oid) -> Result<(), Error> {
    run("DELETE FROM audit.policy WHERE target = $1", &[oid(table)])?;
    run("DELETE FROM audit.action_rule WHERE target = $1", &[oid(table)])?;
    run("UPDATE audit.local_layout SET relid = 0 WHERE relid = $1", &[oid(table)])
}

/// Whether the current role may call audit.disable.
pub fn is_administrator() -> Result<bool, Error> {
    let _environment = env::enter(Env::Settings);
    let sql = "SELECT pg_catalog.has_function_privilege('audit.disable(regclass)', 'EXECUTE')";
    Ok(query(sql, &[], |row| row.get(1))?.first() == Some(&true))
}

/// Whether a table is audited.
pub fn is_audited(table: Oid) -> Result<bool, Error> {
    Ok(policy_of(table)?.is_some())
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

/// Gives a partition of the log the index that its siblings have.
pub fn index_log_partition(partition: Oid) -> Result<(), Error> {
    let is_there = "SELECT pg_catalog.to_regprocedure('audit.index_partition(regclass)')::pg_catalog.oid";
    if query(is_there, &[], |row| row.get::<Oid>(1))?.is_empty() {
        return Ok(()); // A superuser took the extension apart; the partition is slow to read without.
    }
    run("SELECT audit.index_partition($1::pg_catalog.regclass)", &[oid(partition)])
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

/// The columns of the table $1 as its last layout has them, beside those that it has now. Of a restored table, the last
/// layout is that of its name, and columns keep their order but not their numbers.
const COLUMNS: &str = "WITH layout AS (
         SELECT r.columns, true AS is_local FROM audit.local_layout l JOIN audit.relation r ON r.id = l.relation_id
         WHERE l.relid = $1
         ORDER BY r.id DESC LIMIT 1
     ), last AS (
         SELECT columns, is_local FROM layout
         UNION ALL
         (SELECT r.columns, false FROM audit.relation r
            JOIN pg_catalog.pg_class t ON t.relname::text = r.table_name
            JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace AND n.nspname::text = r.schema_name
          WHERE t.oid = $1 AND NOT EXISTS (SELECT FROM layout)
          ORDER BY r.id DESC LIMIT 1)
     ), former AS (
         SELECT c.value ->> 'name' AS name,
                CASE WHEN is_local THEN (c.value ->> 'attnum')::bigint ELSE c.place END AS place
         FROM last, pg_catalog.jsonb_array_elements(last.columns) WITH ORDINALITY AS c (value, place)
     ), present AS (
         SELECT attname::text AS name,
                CASE WHEN EXISTS (SELECT FROM layout) THEN attnum ELSE row_number() OVER (ORDER BY attnum) END AS place
         FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
     )";

/// Whether a table was restored from a dump, and has the columns that it had then. Nothing is written of such a table
/// before its first change: the tables of the log may be yet to come.
pub(super) fn is_as_restored(table: Oid) -> Result<bool, Error> {
    let sql = format!(
        "{COLUMNS}
         SELECT NOT EXISTS (SELECT FROM layout)
                AND (NOT EXISTS (SELECT FROM audit.relation)
                     OR (SELECT pg_catalog.array_agg(name ORDER BY name) FROM former)
                         = (SELECT pg_catalog.array_agg(name ORDER BY name) FROM present))"
    );
    Ok(query(&sql, &[oid(table)], |row| row.get(1))?.first() == Some(&true))
}

/// Has the columns that a policy and its action rules name follow a renaming.
pub(super) fn rename_columns(table: Oid) -> Result<(), Error> {
    run(
        &format!(
            "{COLUMNS}, renamed AS (
             SELECT f.name AS old_name, p.name AS new_name
             FROM former f JOIN present p USING (place)
             WHERE p.name <> f.name
               -- Where numbers are not known, columns might only stand in another order.
               AND (EXISTS (SELECT FROM layout)
                    OR f.name NOT IN (SELECT name FROM present) AND p.name NOT IN (SELECT name FROM former))
         ), rules AS (
             UPDATE audit.action_rule SET
                 columns = ARRAY(SELECT coalesce(r.new_name, n) FROM unnest(columns) n LEFT JOIN renamed r ON r.old_name = n)
             WHERE target = $1 AND columns IS NOT NULL AND EXISTS (SELECT FROM renamed)
         )
         UPDATE audit.policy SET
             exclude_columns = ARRAY(SELECT coalesce(r.new_name, n) FROM unnest(exclude_columns) n
                                     LEFT JOIN renamed r ON r.old_name = n),
             mask_columns = ARRAY(SELECT coalesce(r.new_name, n) FROM unnest(mask_columns) n
                                  LEFT JOIN renamed r ON r.old_name = n),
             soft_delete_column = coalesce((SELECT r.new_name FROM renamed r WHERE r.old_name = soft_delete_column),
                                           soft_delete_column),
             tenant_column = coalesce((SELECT r.new_name FROM renamed r WHERE r.old_name = tenant_column), tenant_column)
         WHERE target = $1 AND EXISTS (SELECT FROM renamed)"
        ),
        &[oid(table)],
    )
}

/// Remembers that a table of an enabled schema is not to be audited, or no longer so.
pub(super) fn except_from_schema(table: Oid, is_excepted: bool) -> Result<(), Error> {
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
    // No lock: another session may hold one, and wait for this one's.
    let family = with_descendants(root, pg_sys::NoLock);
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

/// Tables of a schema that can be audited, parents before their children.
pub(super) fn tables_of(schema: Oid) -> Result<Vec<Oid>, Error> {
    let _environment = env::enter(Env::Settings);
    query(
        "SELECT oid FROM pg_catalog.pg_class
         WHERE relnamespace = $1 AND relkind IN ('r', 'p', 'f') AND relpersistence <> 't' AND NOT relispartition
         ORDER BY oid",
        &[oid(schema)],
        |row| row.get(1),
    )
}

pub(super) fn schema_options(relation: Relation) -> Result<Option<Options>, Error> {
    let name = String::from_utf8_lossy(&relation::namespace_name(relation.namespace())).into_owned();
    let found = query(
        &format!(
            "SELECT {OPTIONS} FROM audit.schema_policy
             WHERE schema_name = $1 AND include_future AND $2 <> ALL (except_tables)"
        ),
        &[name.as_str().into(), String::from_utf8_lossy(&relation.name()).into_owned().into()],
        |row| {
            Ok(Some(Options {
                mode: Mode::of_policy(row.get::<String>(1)?.unwrap_or_default().as_bytes(), row.get(2)?.unwrap_or(1.0)),
                exclude_columns: row.get::<Vec<String>>(3)?.unwrap_or_default(),
                mask_columns: row.get::<Vec<String>>(4)?.unwrap_or_default(),
                soft_delete_column: row.get(5)?,
                require_context: row.get::<Vec<String>>(6)?.unwrap_or_default(),
                skip_unchanged: row.get(7)?.unwrap_or(false),
                tenant_column: row.get(8)?,
                require_verified_context: row.get(9)?.unwrap_or(false),
                snapshot: false,
            }))
        },
    )?;
    Ok(found.first().map(|options| options.for_table(relation)))
}

/// The table's policy: what it follows, if anything.
pub(super) fn policy_of(table: Oid) -> Result<Option<Option<Oid>>, Error> {
    let found =
        query("SELECT inherited_from::pg_catalog.oid FROM audit.policy WHERE target = $1", &[oid(table)], |row| {
            Ok(Some(row.get::<Oid>(1)?))
        })?;
    Ok(found.first().copied())
}

/// The table's policy, as `policy_of` has it, and what the table should follow: the policy of its nearest audited ancestor.
/// Both as of one moment.
pub(super) fn standing(table: Oid) -> Result<(Option<Option<Oid>>, Option<Oid>), Error> {
    let found = query(
        "WITH RECURSIVE ancestor (oid, depth) AS (
             SELECT inhparent, 1 FROM pg_catalog.pg_inherits WHERE inhrelid = $1 AND NOT inhdetachpending
             UNION
             SELECT i.inhparent, a.depth + 1
             FROM pg_catalog.pg_inherits i JOIN ancestor a ON i.inhrelid = a.oid WHERE NOT i.inhdetachpending
         ), source (oid) AS (
             SELECT coalesce(p.inherited_from, p.target)::pg_catalog.oid
             FROM ancestor a JOIN audit.policy p ON p.target = a.oid
             WHERE p.inherited_from IS NULL OR p.inherited_from IN (SELECT oid FROM ancestor)
             ORDER BY a.depth LIMIT 1
         )
         SELECT p.target IS NOT NULL, p.inherited_from::pg_catalog.oid, source.oid
         FROM (VALUES (1)) one LEFT JOIN audit.policy p ON p.target = $1 LEFT JOIN source ON true",
        &[oid(table)],
        |row| {
            let own = row.get::<bool>(1)?.unwrap_or(false).then_some(row.get::<Oid>(2)?);
            Ok(Some((own, row.get::<Oid>(3)?)))
        },
    )?;
    Ok(found.first().copied().unwrap_or_default())
}

pub(super) fn write_policy(target: Oid, inherited_from: Option<Oid>, options: &Options) -> Result<(), Error> {
    run(
        &format!(
            "INSERT INTO audit.policy ({OPTIONS}, target, inherited_from)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (target) DO UPDATE SET inherited_from = excluded.inherited_from, {REPLACE_OPTIONS}"
        ),
        &with_values(options, [oid(target), inherited_from.into()]),
    )
}

/// Has a descendant follow `target`, unless it has a policy of its own or follows something nearer.
pub(super) fn write_inherited(table: Oid, target: Oid, tables: &[Oid], options: &Options) -> Result<(), Error> {
    match policy_of(table)? {
        Some(None) => Ok(()),
        Some(Some(nearer)) if nearer != target && tables.contains(&nearer) => Ok(()),
        _ => write_policy(table, Some(target), options),
    }
}

pub(super) fn copy_policy(table: Oid, source: Oid) -> Result<(), Error> {
    run(
        &format!(
            "INSERT INTO audit.policy ({OPTIONS}, target, inherited_from)
             SELECT {OPTIONS}, $1, $2 FROM audit.policy WHERE target = $2
             ON CONFLICT (target) DO UPDATE SET inherited_from = excluded.inherited_from, {REPLACE_OPTIONS}"
        ),
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

/// The columns that audit.policy and audit.schema_policy share, in the order of [`with_values`].
const OPTIONS: &str = "mode, sample_rate, exclude_columns, mask_columns, soft_delete_column, require_context,
    skip_unchanged, tenant_column, require_verified_context";
/// What an upsert does to them.
const REPLACE_OPTIONS: &str = "mode = excluded.mode, sample_rate = excluded.sample_rate,
    exclude_columns = excluded.exclude_columns, mask_columns = excluded.mask_columns,
    soft_delete_column = excluded.soft_delete_column, require_context = excluded.require_context,
    skip_unchanged = excluded.skip_unchanged, tenant_column = excluded.tenant_column,
    require_verified_context = excluded.require_verified_context";

/// The values of [`OPTIONS`], $1 to $9, and others after them.
fn with_values<'a, const N: usize>(options: &Options, others: [DatumWithOid<'a>; N]) -> Vec<DatumWithOid<'a>> {
    let mut values: Vec<DatumWithOid> = vec![
        options.mode.name().into(),
        options.mode.sample_rate().into(),
        options.exclude_columns.clone().into(),
        options.mask_columns.clone().into(),
        options.soft_delete_column.clone().into(),
        options.require_context.clone().into(),
        options.skip_unchanged.into(),
        options.tenant_column.clone().into(),
        options.require_verified_context.into(),
    ];
    values.extend(others);
    values
}

/// Drops the policy of a table, and of what follows it.
pub(super) fn forget_policy(target: Oid) -> Result<(), Error> {
    run("DELETE FROM audit.policy WHERE target = $1 OR inherited_from = $1", &[oid(target)])
}

/// Makes the policy that a table follows its own.
pub(super) fn detach_policy(table: Oid) -> Result<(), Error> {
    run("UPDATE audit.policy SET inherited_from = NULL WHERE target = $1", &[oid(table)])
}

pub(super) fn write_schema_policy(
    schema: Oid,
    name: &str,
    include_future: bool,
    options: &Options,
) -> Result<(), Error> {
    run(
        &format!(
            "INSERT INTO audit.schema_policy ({OPTIONS}, schema_name, schema_id, include_future)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             ON CONFLICT (schema_name) DO UPDATE SET schema_id = excluded.schema_id,
                include_future = excluded.include_future, {REPLACE_OPTIONS}"
        ),
        &with_values(options, [name.into(), oid(schema), include_future.into()]),
    )
}

pub(super) fn forget_schema(name: &str) -> Result<(), Error> {
    run("DELETE FROM audit.schema_policy WHERE schema_name = $1", &[name.into()])
}

/// Writes a rule, and returns its id.
pub(super) fn write_rule(rule: &NewRule) -> Result<i32, Error> {
    let columns = (!rule.columns.is_empty()).then(|| rule.columns.clone());
    let sql = "INSERT INTO audit.action_rule (target, priority, operation, columns, condition, action)
               VALUES ($1, $2, $3, $4, $5, $6) RETURNING id";
    let arguments = [
        oid(rule.target),
        rule.priority.into(),
        rule.operation.as_str().into(),
        columns.into(),
        rule.condition.clone().into(),
        rule.action.as_str().into(),
    ];
    changed(sql, &arguments, |row| row.get(1))?.ok_or(SPI_FAILED)
}

/// Removes a rule, and returns the table that it was for.
pub(super) fn delete_rule(id: i32) -> Result<Option<Oid>, Error> {
    let sql = "DELETE FROM audit.action_rule WHERE id = $1 RETURNING target::pg_catalog.oid";
    changed(sql, &[id.into()], |row| row.get(1))
}

/// What `take` makes of the one row that a statement changes.
fn changed<T>(
    sql: &str,
    arguments: &[DatumWithOid],
    take: impl Fn(&pgrx::spi::SpiHeapTupleData) -> Result<Option<T>, pgrx::spi::Error>,
) -> Result<Option<T>, Error> {
    let run = |client: &mut SpiClient| -> Result<Option<T>, pgrx::spi::Error> {
        match client.update(sql, None, arguments)?.next() {
            Some(row) => take(&row),
            None => Ok(None),
        }
    };
    Spi::connect_mut(run).map_err(|_| SPI_FAILED)
}
