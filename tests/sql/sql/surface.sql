-- Every member of the extension, with what decides who may do what with it. The expected file of this test is the list of public
-- names: a change of it is a change of the interface, and an upgraded installation must print the same.
SET client_min_messages = warning;
-- Names print qualified.
SET search_path = pg_catalog;

-- Grants as text, the owner's own left out: which rights an owner has by default differs between versions of PostgreSQL.
CREATE FUNCTION pg_temp.grants(acl aclitem[], kind "char", owner oid) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(grantee || ': ' || rights, '; ' ORDER BY grantee COLLATE "C"), 'owner only')
      FROM (SELECT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END AS grantee,
                   string_agg(g.privilege_type || CASE WHEN g.is_grantable THEN '*' ELSE '' END, ', ' ORDER BY g.privilege_type COLLATE "C") AS rights
              FROM aclexplode(coalesce(acl, acldefault(kind, owner))) g WHERE g.grantee <> owner GROUP BY 1) s
$$;
CREATE TEMP VIEW member AS
SELECT d.classid, d.objid, i.type, i.identity
  FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'audit_ext', pg_identify_object(d.classid, d.objid, 0) i
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e';

SELECT extversion, extrelocatable, extnamespace::regnamespace, extowner = (SELECT oid FROM pg_roles WHERE rolname = current_user) AS mine FROM pg_extension WHERE extname = 'audit_ext';
-- What pg_dump carries beside the extension itself.
SELECT unnest(extconfig)::regclass::text AS dumped, nullif(unnest(extcondition), '') AS condition FROM pg_extension WHERE extname = 'audit_ext' ORDER BY 1;

-- Objects. Composite and array types go with their tables.
SELECT type, identity FROM member
 WHERE NOT (type = 'type' AND objid IN (SELECT oid FROM pg_type WHERE typcategory = 'A' OR typtype = 'c')) ORDER BY type, identity COLLATE "C";
-- Objects in the schema that are not members.
SELECT 'relation' AS kind, oid::regclass::text AS name FROM pg_class WHERE relnamespace = 'audit'::regnamespace AND relkind NOT IN ('i', 'I') AND oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)
UNION ALL SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'audit'::regnamespace AND oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_proc'::regclass)
ORDER BY 1, 2;

SELECT nspname, pg_temp.grants(nspacl, 'n', nspowner) AS grants FROM pg_namespace WHERE nspname = 'audit';

-- Functions: signature, then behaviour and rights.
\pset format unaligned
\pset fieldsep ' | '
SELECT p.oid::regprocedure::text AS function, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
  FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid ORDER BY 1;
SELECT p.oid::regprocedure::text AS function, l.lanname AS language, CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END AS volatility,
       CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel,
       CASE WHEN p.proisstrict THEN 'strict' ELSE 'called on null' END AS nulls, CASE WHEN p.prosecdef THEN 'definer' ELSE 'invoker' END AS security,
       p.proleakproof AS leakproof, p.proconfig AS settings, pg_temp.grants(p.proacl, 'f', p.proowner) AS grants
  FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid JOIN pg_language l ON l.oid = p.prolang ORDER BY 1;
-- Every function that runs with other rights than its caller's, or is written in C, has its search_path fixed or needs none.
SELECT p.oid::regprocedure::text AS unsafe_search_path
  FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
 WHERE p.prosecdef AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c LIKE 'search_path=%') ORDER BY 1;

-- Relations.
SELECT c.oid::regclass::text AS relation, c.relkind AS kind, c.relpersistence AS persistence, a.amname AS access, c.reloptions AS options, c.relrowsecurity AS row_security, c.relforcerowsecurity AS forced,
       pg_get_partkeydef(c.oid) AS partition_key, pg_get_expr(c.relpartbound, c.oid) AS bound, pg_temp.grants(c.relacl, CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner) AS grants
  FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid LEFT JOIN pg_am a ON a.oid = c.relam
 WHERE c.relkind <> 'c' ORDER BY 1;
SELECT c.oid::regclass::text AS relation, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type, CASE WHEN a.attnotnull THEN 'not null' END AS nulls,
       pg_get_expr(d.adbin, d.adrelid) AS default, nullif(a.attidentity, '') AS identity, pg_temp.grants(a.attacl, 'c', c.relowner) AS grants
  FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relkind NOT IN ('S', 'c') AND NOT c.relispartition ORDER BY c.oid::regclass::text COLLATE "C", a.attnum;
SELECT i.indrelid::regclass::text AS relation, pg_get_indexdef(i.indexrelid) AS index
  FROM pg_index i JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = i.indrelid ORDER BY i.indrelid::regclass::text COLLATE "C", pg_get_indexdef(i.indexrelid) COLLATE "C";
-- NOT NULL is shown with the columns: it is a constraint of its own from PostgreSQL 18 on.
SELECT k.conrelid::regclass::text AS relation, k.conname AS constraint, pg_get_constraintdef(k.oid) AS definition
  FROM pg_constraint k JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = k.conrelid WHERE k.contype NOT IN ('n', 't') ORDER BY 1, 2;
SELECT t.tgrelid::regclass::text AS relation, t.tgname AS trigger, t.tgenabled AS enabled, t.tgtype AS type, t.tgfoid::regprocedure AS function
  FROM pg_trigger t JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = t.tgrelid WHERE NOT t.tgisinternal ORDER BY 1, 2;
SELECT r.ev_class::regclass AS relation, r.rulename AS rule FROM pg_rewrite r JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = r.ev_class
 WHERE r.rulename <> '_RETURN' ORDER BY 1, 2;
SELECT p.polrelid::regclass::text AS relation, p.polname AS policy, p.polcmd AS command, p.polpermissive AS permissive, p.polroles::regrole[] AS roles,
       pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS check
  FROM pg_policy p JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = p.polrelid ORDER BY 1, 2;
SELECT c.oid::regclass::text AS view, c.reloptions AS options, regexp_replace(pg_get_viewdef(c.oid), '\m(event|changeset|pending_changesets|queue_state)\.(?=\w)', '', 'g') AS text
  FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid WHERE c.relkind = 'v' ORDER BY 1;

-- Types and event triggers.
SELECT t.oid::regtype::text AS type, t.typtype AS kind, pg_temp.grants(t.typacl, 'T', t.typowner) AS grants, (SELECT string_agg(enumlabel, ', ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid) AS labels
  FROM pg_type t JOIN member m ON m.classid = 'pg_type'::regclass AND m.objid = t.oid WHERE t.typtype NOT IN ('c', 'b') OR t.typcategory NOT IN ('A', 'C') ORDER BY 1;
SELECT evtname AS event_trigger, evtevent AS event, evtenabled AS enabled, evttags AS tags, evtfoid::regprocedure AS function
  FROM pg_event_trigger e JOIN member m ON m.classid = 'pg_event_trigger'::regclass AND m.objid = e.oid ORDER BY 1;

-- The rest has a comment: these members have none.
SELECT m.type, m.identity FROM member m
 WHERE obj_description(m.objid, m.classid::regclass::text) IS NULL AND m.type NOT IN ('type', 'schema') ORDER BY m.type, m.identity COLLATE "C";

-- The settings that the library defines.
LOAD 'audit_ext';
SELECT name, vartype, context, boot_val, unit, min_val, max_val, short_desc FROM pg_settings WHERE name LIKE 'audit.%' ORDER BY name COLLATE "C";
