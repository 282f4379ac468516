//! How tables are audited at one moment, and what commands did to them: what coverage events say. Texts are in the database's
//! encoding, whatever that is. The callers act as the extension's owner with search_path pg_catalog.

use pgrx::pg_sys::Oid;

use super::Acting;
use crate::coverage::Standing;
use crate::error::Error;
use crate::layouts::{self, Named};
use crate::pg::catalog::Row;
use crate::pg::spi::{self, Arg, Sees};

fn all<T>(sql: &str, arguments: &[Arg], take: impl Fn(&Row) -> Option<T>) -> Result<Vec<T>, Error> {
    let mut found = Vec::new();
    spi::for_each(Sees::Now, sql, arguments, |row| {
        found.extend(take(row));
        Ok(())
    })?;
    Ok(found)
}

fn oid(table: Oid) -> Arg<'static> {
    Arg::Int8(i64::from(table.to_u32()))
}

/// How a table is audited now.
pub(super) fn audited_standing(table: Oid) -> Result<Standing, Error> {
    let sql =
        "SELECT (to_jsonb(p) - '{target,inherited_from,enabled_at,enabled_by}'::text[])::text, p.inherited_from::text
               FROM audit.policy p WHERE p.target = $1::oid";
    let found = spi::first(Sees::Now, sql, &[oid(table)], |row| (row.bytes(1), row.bytes(2)))?;
    let (policy, follows) = found.unwrap_or_default();
    Ok(Standing { policy, follows, layout: layouts::last_written(table)? })
}

/// What a DDL command did to an audited table, or something of it.
pub struct Altered {
    pub table: Oid,
    pub object_type: Vec<u8>,
    pub identity: Vec<u8>,
}

impl Altered {
    /// Whether it is the table or a column of it: what changed then, its layout says.
    pub fn is_of_table(&self) -> bool {
        matches!(&self.object_type[..], b"table" | b"foreign table" | b"table column" | b"foreign table column")
    }
}

/// What a DDL command altered of audited tables.
pub fn altered_of_audited() -> Result<Vec<Altered>, Error> {
    let sql = "SELECT p.target::oid, d.object_type, d.object_identity
         FROM pg_event_trigger_ddl_commands() d
         LEFT JOIN pg_trigger t ON d.object_type = 'trigger' AND t.oid = d.objid
         LEFT JOIN pg_rewrite r ON d.object_type = 'rule' AND r.oid = d.objid
         LEFT JOIN pg_policy y ON d.object_type = 'policy' AND y.oid = d.objid
         LEFT JOIN pg_index i ON d.object_type = 'index' AND i.indexrelid = d.objid
         JOIN audit.policy p ON p.target = coalesce(t.tgrelid, r.ev_class, y.polrelid, i.indrelid, d.objid)
         WHERE NOT d.in_extension";
    all(sql, &[], |row| {
        Some(Altered {
            table: row.oid(1)?,
            object_type: row.bytes(2).unwrap_or_default(),
            identity: row.bytes(3).unwrap_or_default(),
        })
    })
}

/// Objects of the extension that a DDL command altered, otherwise than by its scripts.
pub fn altered_of_ours() -> Result<Vec<Vec<u8>>, Error> {
    let sql = "SELECT d.object_identity FROM pg_event_trigger_ddl_commands() d
         WHERE NOT d.in_extension AND d.schema_name = 'audit'
            OR d.object_type = 'extension' AND d.object_identity = 'audit_ext'";
    all(sql, &[], |row| row.bytes(1))
}

/// What was dropped: an audited table, something of one, something of the log.
pub struct Dropped {
    pub object_type: Vec<u8>,
    pub identity: Vec<u8>,
    /// The audited table, as its last layout names it.
    pub table: Option<Named>,
    /// Whether that table is still there.
    pub is_part: bool,
    pub is_audit_trigger: bool,
    pub is_ours: bool,
}

impl Dropped {
    pub fn what(&self) -> String {
        let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        format!("drop {} {}", text(&self.object_type), text(&self.identity))
    }
}

/// What a command dropped that auditing is concerned with. Comes before the policies are forgotten.
pub fn dropped_of_audited() -> Result<Vec<Dropped>, Error> {
    let _acting = Acting::begin()?;
    let sql = "WITH dropped AS (
             SELECT *, CASE WHEN object_type IN ('trigger', 'rule', 'policy')
                            THEN to_regclass(format('%I.%I', address_names[1], address_names[2])) END AS part_of
             FROM pg_event_trigger_dropped_objects()
             WHERE NOT is_temporary AND (classid = 'pg_class'::regclass AND objsubid = 0
                   OR object_type IN ('trigger', 'rule', 'policy'))
         )
         SELECT d.object_type, d.object_identity, d.part_of IS NOT NULL,
                coalesce(d.object_type = 'trigger' AND starts_with(d.address_names[3], '!audit_'), false),
                p.target::oid, coalesce(d.schema_name = 'audit', false)
         FROM dropped d LEFT JOIN audit.policy p ON p.target = coalesce(d.part_of::oid, d.objid)
         WHERE p.target IS NOT NULL OR d.schema_name = 'audit' AND d.object_type IN ('table', 'trigger', 'rule')";
    let mut found = all(sql, &[], |row| {
        let dropped = Dropped {
            object_type: row.bytes(1)?,
            identity: row.bytes(2).unwrap_or_default(),
            table: None,
            is_part: row.boolean(3).unwrap_or(false),
            is_audit_trigger: row.boolean(4).unwrap_or(false),
            is_ours: row.boolean(6).unwrap_or(false),
        };
        Some((dropped, row.oid(5)))
    })?;
    for (dropped, table) in &mut found {
        if let Some(table) = *table {
            dropped.table = layouts::last_written(table)?;
        }
    }
    Ok(found.into_iter().map(|(dropped, _)| dropped).collect())
}

/// What differs between two layouts, as the text of a JSON object: columns, key and name as they were, and as they are.
pub fn layout_change(before: i32, after: i32) -> Result<Option<Vec<u8>>, Error> {
    let _acting = Acting::begin()?;
    let sql = "SELECT jsonb_object_agg(CASE r.id WHEN $1 THEN 'before' ELSE 'after' END,
                    jsonb_build_object('columns', r.columns, 'key_columns', r.key_columns, 'resource', r.resource))::text
               FROM audit.relation r WHERE r.id IN ($1, $2)";
    Ok(spi::first(Sees::Now, sql, &[Arg::Int4(before), Arg::Int4(after)], |row| row.bytes(1))?.flatten())
}

/// A table's owner.
pub fn owner_of(table: Oid) -> Result<Option<Vec<u8>>, Error> {
    let _acting = Acting::begin()?;
    let sql = "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = $1::oid";
    Ok(spi::first(Sees::Now, sql, &[oid(table)], |row| row.bytes(1))?.flatten())
}
