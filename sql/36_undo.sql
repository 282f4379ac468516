-- Taking back what a changeset changed.
--
-- Changes are taken back in the reverse of their order: each step of that way is a state that the tables were in. But what
-- foreign keys did by themselves was recorded after what caused it, while it can be taken back only after its cause: a
-- child that went with its parent needs the parent first. So such changes go with their cause.

CREATE TYPE undo_change AS (
    place bigint, relid oid, operation operation, resource text, resource_id text, key_columns text[], old_row jsonb,
    new_row jsonb, changed text[], trouble text
);
COMMENT ON TYPE undo_change IS 'A change to be taken back, in the columns that its table has now.';

CREATE FUNCTION undo_changes(of changeset) RETURNS SETOF undo_change
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN QUERY
    WITH event AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY e.command, e.seq) AS place, e.*
          FROM audit.log_event e
         WHERE e.changeset_id = of.id AND e.occurred_at = of.occurred_at
           AND e.operation IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'DDL')
    ), present AS MATERIALIZED (
        -- In another database than that of the record, a table is known by its name.
        SELECT r.id, r.resource, r.columns, r.key_columns,
               coalesce((SELECT c.oid FROM audit.local_layout o JOIN pg_class c ON c.oid = o.relid WHERE o.relation_id = r.id),
                        to_regclass(r.resource)) AS relid
          FROM audit.relation r WHERE r.id IN (SELECT e.relation_id FROM event e)
    ), layout AS MATERIALIZED (
        SELECT p.*, l.names, ARRAY(SELECT l.names ->> k.name FROM unnest(p.key_columns) WITH ORDINALITY AS k (name, number)
                                    ORDER BY k.number) AS keys
          FROM present p LEFT JOIN LATERAL audit.layout_columns(p.relid) AS l ON l.relation_id = p.id
    ), image AS (
        SELECT e.place, l.relid, e.operation, l.resource, e.resource_id, l.keys,
               CASE e.operation WHEN 'UPDATE' THEN audit.current_image(e.row_image || e.old_values, l.names, '{}')
                                WHEN 'DELETE' THEN audit.current_image(e.row_image, l.names, '{}') END AS old_row,
               CASE WHEN e.operation IN ('INSERT', 'UPDATE') THEN audit.current_image(e.row_image, l.names, '{}') END AS new_row,
               ARRAY(SELECT l.names ->> o.name FROM jsonb_object_keys(e.old_values) AS o (name) WHERE l.names ? o.name) AS changed,
               CASE WHEN e.operation IN ('TRUNCATE', 'DDL')
                    THEN format('a %s cannot be undone: its record holds no rows', e.operation)
                    WHEN e.row_image IS NULL THEN 'its record was erased'
                    WHEN l.names IS NULL THEN 'the table is gone'
                    WHEN NOT EXISTS (SELECT FROM audit.policy p WHERE p.target = l.relid) THEN 'the table is not audited any more'
                    WHEN l.key_columns IS NULL THEN 'the rows are recorded without a key'
                    WHEN array_position(l.keys, NULL) IS NOT NULL THEN 'a column of the key is gone'
                    WHEN e.operation = 'DELETE' THEN (
                        SELECT 'the record lacks ' || string_agg(quote_ident(c.value ->> 'name'), ', ')
                          FROM jsonb_array_elements(l.columns) AS c
                         WHERE l.names ? (c.value ->> 'name') AND NOT e.row_image ? (c.value ->> 'name')) END AS trouble
          FROM event e LEFT JOIN layout l ON l.id = e.relation_id
    )
    SELECT i.place, i.relid, i.operation, i.resource, i.resource_id, i.keys, i.old_row, i.new_row, i.changed,
           coalesce(i.trouble, (
               SELECT 'the record has no value of ' || string_agg(quote_ident(v.key), ', ')
                 FROM jsonb_each(i.old_row) AS v LEFT JOIN audit.policy p ON p.target = i.relid
                WHERE (i.operation = 'DELETE' OR v.key = ANY (i.changed))
                  AND (v.value = '"***"' AND v.key = ANY (p.mask_columns)
                       OR v.value ? '$sha256' AND v.value ? '$bytes' AND jsonb_typeof(v.value) = 'object')))
      FROM image i;
END
$$;
COMMENT ON FUNCTION undo_changes(changeset) IS 'What a changeset changed, and what of it cannot be taken back, whatever the tables hold.';

-- Rows in SQL. Values are compared as text, since a column's type may have changed.

CREATE FUNCTION sql_literals(target regclass, image jsonb, columns text[]) RETURNS text[]
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    -- So that they read the same whatever the settings of who runs them.
    SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET bytea_output = 'hex'
    SET extra_float_digits = 1 SET lc_monetary = 'C' SET xmlbinary = 'base64'
AS $$
DECLARE
    texts text[];
BEGIN
    IF columns = '{}' THEN
        RETURN columns;
    END IF;
    EXECUTE format('SELECT ARRAY[%s] FROM pg_catalog.jsonb_populate_record(NULL::%s, $1) AS r',
                   (SELECT string_agg(CASE WHEN a.atttypid = 'money'::regtype THEN format('r.%I::numeric::text', c.name)
                                           ELSE format('r.%I::text', c.name) END, ', ' ORDER BY c.number)
                      FROM unnest(columns) WITH ORDINALITY AS c (name, number)
                      JOIN pg_attribute a ON a.attrelid = target AND a.attname = c.name), target)
       INTO texts USING image;
    RETURN ARRAY(SELECT CASE WHEN a.atttypid = 'money'::regtype AND t.value IS NOT NULL THEN format('%L::numeric::money', t.value)
                             ELSE quote_nullable(t.value) END
                   FROM unnest(columns, texts) WITH ORDINALITY AS t (name, value, number)
                   JOIN pg_attribute a ON a.attrelid = target AND a.attname = t.name
                  ORDER BY t.number);
END
$$;
COMMENT ON FUNCTION sql_literals(regclass, jsonb, text[]) IS 'Values of an image as SQL literals, in the types of a table''s columns. Errors: those of reading a value that its column''s type does not take.';

CREATE FUNCTION sql_condition(target regclass, image jsonb, columns text[]) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.string_agg(pg_catalog.format('%I = %s', c.name, c.value), ' AND ' ORDER BY c.number)
      FROM ROWS FROM (unnest(columns), unnest(audit.sql_literals(target, image, columns))) WITH ORDINALITY AS c (name, value, number);
END;
COMMENT ON FUNCTION sql_condition(regclass, jsonb, text[]) IS 'The condition that finds a row by its key.';

CREATE FUNCTION present_row(target regclass, image jsonb, key_columns text[], for_update boolean) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    -- As rows are recorded.
    SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET bytea_output = 'hex'
    SET extra_float_digits = 1 SET lc_monetary = 'C' SET xmlbinary = 'base64'
AS $$
DECLARE
    found jsonb;
BEGIN
    EXECUTE format('SELECT pg_catalog.to_jsonb(present_row.*) FROM ONLY %s AS present_row WHERE %s%s', target,
                   audit.sql_condition(target, image, key_columns), CASE WHEN for_update THEN ' FOR UPDATE' END)
       INTO found;
    RETURN found;
END
$$;
COMMENT ON FUNCTION present_row(regclass, jsonb, text[], boolean) IS 'A table''s row with the key of an image, as it would be recorded now; NULL where there is none.';

-- The order of taking back.

CREATE TYPE undo_reference AS (
    child oid, child_columns text[], parent oid, parent_columns text[], on_delete "char", on_update "char"
);
COMMENT ON TYPE undo_reference IS 'A foreign key between two tables, of which either may be a partition.';

CREATE FUNCTION undo_references(children oid[], parents oid[]) RETURNS SETOF undo_reference
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH member AS (
        SELECT t.oid, t.oid AS of FROM pg_catalog.unnest(children || parents) AS t (oid)
        UNION
        SELECT t.oid, a.relid FROM pg_catalog.unnest(children || parents) AS t (oid), LATERAL pg_catalog.pg_partition_ancestors(t.oid) AS a
    )
    SELECT c.oid, ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS n (number, place)
                          JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = n.number ORDER BY n.place),
           p.oid, ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS n (number, place)
                          JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = n.number ORDER BY n.place),
           k.confdeltype, k.confupdtype
      FROM pg_catalog.pg_constraint k
      JOIN member c ON c.of = k.conrelid AND c.oid = ANY (children)
      JOIN member p ON p.of = k.confrelid AND p.oid = ANY (parents)
     WHERE k.contype = 'f' AND k.conparentid = 0;
END;
COMMENT ON FUNCTION undo_references(oid[], oid[]) IS 'The foreign keys from some tables to some tables.';

CREATE FUNCTION key_values(image jsonb, columns text[]) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    -- NULL where one of them is: then there is no such key, and no reference to one.
    SELECT CASE WHEN pg_catalog.bool_and(coalesce(image -> c.name, 'null') <> 'null') THEN pg_catalog.jsonb_agg(image -> c.name ORDER BY c.number) END
      FROM pg_catalog.unnest(columns) WITH ORDINALITY AS c (name, number);
END;
COMMENT ON FUNCTION key_values(jsonb, text[]) IS 'The values of some columns of an image, as an array; NULL where one is null.';

CREATE TYPE undo_step AS (step int, statement text, conflict text);
COMMENT ON TYPE undo_step IS 'A row of audit.undo.';

CREATE FUNCTION undo_plan(of changeset, for_update boolean) RETURNS SETOF undo_step
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changes CONSTANT audit.undo_change[] := ARRAY(SELECT c FROM audit.undo_changes(of) AS c ORDER BY c.place);
    tables CONSTANT oid[] := ARRAY(SELECT DISTINCT c.relid FROM unnest(changes) AS c WHERE c.relid IS NOT NULL);
    -- Then foreign keys do nothing by themselves.
    by_hand CONSTANT boolean := current_setting('session_replication_role') = 'replica';
    s audit.undo_step;
    c record;
BEGIN
    s.step := 0;
    FOR c IN
        WITH RECURSIVE change AS MATERIALIZED (
            SELECT h.*, audit.key_values(h.old_row, h.key_columns) AS old_key, audit.key_values(h.new_row, h.key_columns) AS new_key
              FROM unnest(changes) AS h
        ), reference AS MATERIALIZED (
            SELECT row_number() OVER () AS number, r.* FROM audit.undo_references(tables, tables) AS r
        ), referring AS MATERIALIZED (
            SELECT r.*, h.place, h.changed, h.operation, audit.key_values(h.old_row, r.child_columns) AS lost,
                   audit.key_values(h.new_row, r.child_columns) AS gained
              FROM reference r JOIN change h ON h.relid = r.child
        ), referred AS MATERIALIZED (
            SELECT r.number, h.place, h.operation, audit.key_values(h.old_row, r.parent_columns) AS lost,
                   audit.key_values(h.new_row, r.parent_columns) AS gained
              FROM reference r JOIN change h ON h.relid = r.parent
        ), consequence AS MATERIALIZED (
            -- A reference that ended while what it referred to was gone already: the foreign key ended it.
            SELECT DISTINCT ON (e.place) e.place, p.place AS cause, e.child_columns,
                   e.on_update = 'c' AND e.operation = 'UPDATE' AND p.operation = 'UPDATE' AS follows
              FROM referring e JOIN referred p ON p.number = e.number AND p.lost = e.lost AND p.place < e.place
             WHERE e.lost IS DISTINCT FROM e.gained AND p.lost IS DISTINCT FROM p.gained
               AND NOT EXISTS (SELECT FROM referred o WHERE o.number = p.number AND o.gained = p.lost AND o.gained IS DISTINCT FROM o.lost
                                  AND o.place BETWEEN p.place AND e.place)
             ORDER BY e.place, p.place DESC
        ), after AS (
            SELECT q.place, q.cause FROM consequence q
            UNION
            -- A reference made before what it refers to, by a foreign key that waits: that goes after all who refer to it.
            SELECT p.place, min(e.place)
              FROM referring e JOIN referred p ON p.number = e.number AND p.gained = e.gained AND e.place < p.place
             WHERE e.lost IS DISTINCT FROM e.gained AND p.lost IS DISTINCT FROM p.gained
               AND NOT EXISTS (SELECT FROM referred o WHERE o.number = p.number AND o.lost = p.gained AND o.gained IS DISTINCT FROM o.lost
                                  AND o.place BETWEEN e.place AND p.place)
             GROUP BY p.place, p.number
        ), path AS (
            SELECT h.place, h.place AS root, 0 AS depth FROM change h
            UNION
            SELECT a.place, p.root, p.depth + 1 FROM path p JOIN after a ON a.cause = p.place
        ), ordered AS (
            SELECT DISTINCT ON (p.place) p.place, p.root, p.depth FROM path p ORDER BY p.place, p.root, p.depth DESC
        ), kept AS (
            -- Rows that are as a change left them, as far as the changeset goes; back to what it did to them first.
            SELECT h.place, h.place AS last, h.relid, h.operation, h.old_key, h.changed
              FROM change h
             WHERE h.new_key IS NOT NULL
               AND NOT EXISTS (SELECT FROM change n WHERE n.relid = h.relid AND n.old_key = h.new_key AND n.place > h.place)
            UNION ALL
            SELECT n.place, k.last, n.relid, n.operation, n.old_key, n.changed
              FROM kept k
              CROSS JOIN LATERAL (SELECT * FROM change h WHERE h.relid = k.relid AND h.new_key = k.old_key AND h.place < k.place
                                   ORDER BY h.place DESC LIMIT 1) AS n
        ), last AS MATERIALIZED (
            SELECT k.last AS place, bool_or(k.operation = 'INSERT') AS is_new, array_agg(DISTINCT n.name) AS touched
              FROM kept k LEFT JOIN LATERAL unnest(k.changed) AS n (name) ON true
             GROUP BY k.last
        )
        SELECT h.*, coalesce(q.follows AND h.changed <@ q.child_columns AND NOT by_hand, false) AS is_implied, l.is_new, l.touched,
               -- Where to find the row: its key has followed the parent's already.
               CASE WHEN q.follows AND NOT by_hand
                    THEN h.new_row || (SELECT jsonb_object_agg(f.name, h.old_row -> f.name) FROM unnest(q.child_columns) AS f (name))
                    ELSE h.new_row END AS found_row,
               h.old_key IS NOT NULL AND h.old_key IS DISTINCT FROM h.new_key
               AND NOT EXISTS (SELECT FROM change n WHERE n.relid = h.relid AND n.new_key = h.old_key AND n.place > h.place) AS is_vacant
          FROM ordered o
          JOIN change h ON h.place = o.place
          LEFT JOIN consequence q ON q.place = o.place
          LEFT JOIN last l ON l.place = o.place
         ORDER BY o.root DESC, o.depth, o.place DESC
    LOOP
        s.conflict := c.trouble;
        IF c.trouble IS NULL THEN
            s.statement := audit.undo_statement(c.relid, c.operation, c.key_columns, c.old_row, c.found_row, c.changed);
            s.conflict := audit.undo_conflict(of, changes, c.place, c.is_vacant, c.is_new, c.touched, for_update);
        ELSE
            s.statement := NULL;
        END IF;
        IF s.conflict IS NOT NULL THEN
            s.conflict := format('%s row %s: %s', coalesce(c.resource, 'a table,'), coalesce(c.resource_id, '?'), s.conflict);
        ELSIF c.is_implied OR s.statement IS NULL THEN
            CONTINUE;
        END IF;
        s.step := s.step + 1;
        RETURN NEXT s;
    END LOOP;
END
$$;
COMMENT ON FUNCTION undo_plan(changeset, boolean) IS 'The statements that take a changeset back, in an order that foreign keys allow, and what stands in the way of each. With for_update, the rows concerned are locked.';

CREATE FUNCTION undo_statement(target regclass, operation operation, key_columns text[], old_row jsonb, found_row jsonb, changed text[])
    RETURNS text
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- What is computed is not written.
    columns CONSTANT text[] := ARRAY(
        SELECT a.attname::text FROM pg_attribute a
         WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND old_row ? a.attname::text
           AND (operation = 'DELETE' OR a.attname = ANY (changed))
         ORDER BY a.attnum);
    table_name CONSTANT text := (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                            WHERE c.oid = target);
BEGIN
    CASE operation
        WHEN 'INSERT' THEN
            RETURN format('DELETE FROM ONLY %s WHERE %s', table_name, audit.sql_condition(target, found_row, key_columns));
        WHEN 'DELETE' THEN
            RETURN format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)', table_name,
                          (SELECT string_agg(quote_ident(c.name), ', ' ORDER BY c.number) FROM unnest(columns) WITH ORDINALITY AS c (name, number)),
                          array_to_string(audit.sql_literals(target, old_row, columns), ', '));
        ELSE
            RETURN (SELECT format('UPDATE ONLY %s SET %s WHERE %s', table_name, string_agg(format('%I = %s', c.name, c.value), ', ' ORDER BY c.number),
                                  audit.sql_condition(target, found_row, key_columns))
                      FROM ROWS FROM (unnest(columns), unnest(audit.sql_literals(target, old_row, columns))) WITH ORDINALITY AS c (name, value, number)
                    HAVING count(*) > 0);
    END CASE;
END
$$;
COMMENT ON FUNCTION undo_statement(regclass, operation, text[], jsonb, jsonb, text[]) IS 'The statement that takes a change back; NULL where it changed no column that is left.';

CREATE FUNCTION undo_conflict(
    of changeset, changes undo_change[], place bigint, is_vacant boolean, is_new boolean, touched text[], for_update boolean
) RETURNS text
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c CONSTANT audit.undo_change := changes[undo_conflict.place];
    present jsonb;
    later record;
    what text;
BEGIN
    IF is_vacant AND audit.present_row(c.relid, c.old_row, c.key_columns, false) IS NOT NULL THEN
        what := 'there is such a row again';
    END IF;
    -- Otherwise a later change of the changeset has the row's last state.
    IF what IS NULL AND is_new IS NOT NULL THEN
        present := audit.present_row(c.relid, c.new_row, c.key_columns, for_update);
        IF present IS NULL THEN
            what := 'it is gone, or has another key';
        ELSE
            SELECT 'changed since: ' || string_agg(quote_ident(n.key), ', ' ORDER BY n.key) INTO what
              FROM jsonb_each(c.new_row) AS n
             WHERE (is_new OR n.key = ANY (touched)) AND present ->> n.key IS DISTINCT FROM n.value #>> '{}'
               AND NOT (n.value = '"***"' OR n.value ? '$sha256' AND n.value ? '$bytes' AND jsonb_typeof(n.value) = 'object');
            IF what IS NULL THEN
                RETURN audit.undo_referring(changes, c, is_new, touched);
            END IF;
        END IF;
    END IF;
    IF what IS NULL THEN
        RETURN NULL;
    END IF;
    -- By whom: the last one who wrote it.
    SELECT o.changeset_id, o.user_id INTO later
      FROM audit.key_events(c.relid, audit.recorded_layouts(c.relid), audit.row_key_of(c.relid, coalesce(CASE WHEN is_new IS NULL THEN c.old_row END, c.new_row), c.key_columns)) AS o
     WHERE o.position IS NULL OR (o.era, o.position) > (of.era, of.position)
     ORDER BY o.era DESC, o.position DESC NULLS FIRST, o.command DESC, o.seq DESC LIMIT 1;
    RETURN what || CASE WHEN later.changeset_id IS NULL THEN ''
                        ELSE format(' (changeset %s%s)', later.changeset_id, ' by ' || later.user_id) END;
END
$$;
COMMENT ON FUNCTION undo_conflict(changeset, undo_change[], bigint, boolean, boolean, text[], boolean) IS 'What in the present state of the tables stands in the way of taking a change back; NULL where nothing does.';

CREATE FUNCTION row_key_of(target regclass, image jsonb, key_columns text[]) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN pg_catalog.cardinality(key_columns) = 1 THEN image ->> key_columns[1]
                ELSE audit.key_values(image, key_columns)::text END;
END;
COMMENT ON FUNCTION row_key_of(regclass, jsonb, text[]) IS 'The resource_id of a row, from its image.';

CREATE FUNCTION undo_referring(changes undo_change[], c undo_change, is_new boolean, touched text[]) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    children CONSTANT oid[] := ARRAY(
        SELECT DISTINCT k.conrelid FROM pg_constraint k
         WHERE k.contype = 'f' AND k.conparentid = 0
           AND k.confrelid IN (SELECT c.relid UNION SELECT a.relid FROM pg_partition_ancestors(c.relid) AS a));
    r audit.undo_reference;
    referring bigint;
    own bigint;
BEGIN
    FOR r IN SELECT f.* FROM audit.undo_references(children, ARRAY[c.relid]) AS f LOOP
        -- A key that changes back takes along who refers to it, if the foreign key says so.
        CONTINUE WHEN audit.key_values(c.new_row, r.parent_columns) IS NULL
                      OR NOT is_new AND (r.on_update = 'c' OR NOT touched && r.parent_columns);
        EXECUTE format('SELECT count(*) FROM %s WHERE %s', r.child::regclass, (
            SELECT string_agg(format('%I = %s', p.name, p.value), ' AND ')
              FROM ROWS FROM (unnest(r.child_columns), unnest(audit.sql_literals(c.relid, c.new_row, r.parent_columns))) AS p (name, value)))
           INTO referring;
        CONTINUE WHEN referring = 0;
        SELECT count(*) INTO own
          FROM unnest(changes) AS h
         WHERE (h.relid = r.child OR r.child IN (SELECT a.relid FROM pg_partition_ancestors(h.relid) AS a))
           AND audit.key_values(h.new_row, r.child_columns) = audit.key_values(c.new_row, r.parent_columns)
           AND NOT EXISTS (SELECT FROM unnest(changes) AS n
                            WHERE n.relid = h.relid AND n.place > h.place
                              AND audit.key_values(n.old_row, n.key_columns) = audit.key_values(h.new_row, h.key_columns));
        IF referring > own THEN
            RETURN format('%s row(s) of %s refer to it that this changeset did not write', referring - own, r.child::regclass);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION undo_referring(undo_change[], undo_change, boolean, text[]) IS 'Whether rows refer to one that is to go, or to lose its key, beside those that go with it; NULL where none does.';

CREATE FUNCTION undo_differences(of changeset) RETURNS SETOF text
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changes CONSTANT audit.undo_change[] := ARRAY(SELECT c FROM audit.undo_changes(of) AS c ORDER BY c.place);
    c record;
    present jsonb;
BEGIN
    FOR c IN
        -- What was at each key at first.
        SELECT DISTINCT ON (k.relid, k.key) k.*
          FROM (SELECT h.relid, audit.key_values(h.old_row, h.key_columns) AS key, h.place, 0 AS side, h.key_columns, h.old_row AS at_key,
                       h.old_row, h.operation, h.changed, h.resource
                  FROM unnest(changes) AS h WHERE h.old_row IS NOT NULL
                UNION ALL
                SELECT h.relid, audit.key_values(h.new_row, h.key_columns), h.place, 1, h.key_columns, h.new_row, NULL, h.operation, NULL, h.resource
                  FROM unnest(changes) AS h WHERE h.new_row IS NOT NULL) AS k
         ORDER BY k.relid, k.key, k.place, k.side
    LOOP
        present := audit.present_row(c.relid, c.at_key, c.key_columns, false);
        IF c.old_row IS NULL AND present IS NULL THEN
            CONTINUE;
        ELSIF c.old_row IS NULL OR present IS NULL
              OR EXISTS (SELECT FROM jsonb_each(c.old_row) AS o
                          WHERE present ->> o.key IS DISTINCT FROM o.value #>> '{}' AND (c.operation = 'DELETE' OR o.key = ANY (c.changed)))
        THEN
            RETURN NEXT format('%s row %s', c.resource, audit.row_key_of(c.relid, c.at_key, c.key_columns));
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION undo_differences(changeset) IS 'Rows that are not what they were before a changeset, after its undo.';

-- Runs statements under the caller's own settings, since triggers that fire may depend on them; so it has no search_path of
-- its own, and does next to nothing beside that.
CREATE FUNCTION undo(changeset_id uuid, dry_run boolean DEFAULT true, exact boolean DEFAULT true) RETURNS SETOF undo_step
    LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    of audit.changeset := audit.recorded_changeset(changeset_id);
    steps CONSTANT audit.undo_step[] := ARRAY(SELECT p FROM audit.undo_plan(of, dry_run IS FALSE) AS p);
    context CONSTANT text := pg_catalog.current_setting('audit.context', true);
    keys text;
    s audit.undo_step;
    changed_rows bigint;
BEGIN
    PERFORM audit.note_read('undo', pg_catalog.jsonb_build_object('changeset_id', changeset_id, 'dry_run', dry_run));
    IF dry_run IS FALSE THEN
        PERFORM audit.undo_refused(of, steps);
        PERFORM pg_catalog.set_config('audit.context', audit.undo_context(context, changeset_id), true);
        keys := audit.undo_deferrable(of);
        IF keys IS NOT NULL THEN
            EXECUTE pg_catalog.format('SET CONSTRAINTS %s DEFERRED', keys);
        END IF;
        FOREACH s IN ARRAY steps LOOP
            EXECUTE s.statement;
            GET DIAGNOSTICS changed_rows = ROW_COUNT;
            PERFORM audit.undo_changed_one(s.statement, changed_rows);
        END LOOP;
        IF keys IS NOT NULL THEN
            EXECUTE pg_catalog.format('SET CONSTRAINTS %s IMMEDIATE', keys);
        END IF;
        IF exact IS NOT FALSE THEN
            PERFORM audit.undo_verified(of);
        END IF;
        PERFORM pg_catalog.set_config('audit.context', pg_catalog.concat(context), true);
    END IF;
    RETURN QUERY SELECT * FROM pg_catalog.unnest(steps);
END
$$;
COMMENT ON FUNCTION undo(uuid, boolean, boolean) IS 'The statements that take back what a changeset changed, and with dry_run => false runs them, all or none; the changeset that they make says so in its context: {"undoes": id}. A dry run shows what stands in the way of each. With exact, it is an error if triggers left a row other than it was. Errors: 55000 with the list of conflicts, or of rows that are not as they were; 22023 for an unknown changeset; those of the statements.';

CREATE FUNCTION undo_refused(of changeset, steps undo_step[]) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    conflicts CONSTANT text[] := ARRAY(SELECT s.conflict FROM unnest(steps) AS s WHERE s.conflict IS NOT NULL);
BEGIN
    IF of.position IS NULL THEN
        RAISE EXCEPTION 'changeset % is not committed', of.id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Roll the transaction back.';
    ELSIF conflicts <> '{}' THEN
        RAISE EXCEPTION 'changeset % cannot be undone', of.id
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = array_to_string(conflicts[1:100], E'\n') || CASE WHEN cardinality(conflicts) > 100 THEN format(E'\n... and %s more', cardinality(conflicts) - 100) ELSE '' END,
                  HINT = 'Undo what came later first, or run some of the statements of a dry run by hand.';
    END IF;
END
$$;
COMMENT ON FUNCTION undo_refused(changeset, undo_step[]) IS 'Refuses to undo where something stands in the way, with 55000 and the list of it.';

CREATE FUNCTION undo_changed_one(statement text, changed_rows bigint) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF changed_rows <> 1 THEN
        RAISE EXCEPTION 'undo changed % rows where it should change one', changed_rows
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = left(statement, 1000),
                  HINT = 'A trigger, a rule or row security keeps the row from being changed, or somebody changed it meanwhile.';
    END IF;
END
$$;
COMMENT ON FUNCTION undo_changed_one(text, bigint) IS 'Refuses with 55000 a step of undo that did not change one row.';

CREATE FUNCTION undo_verified(of changeset) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    differences CONSTANT text[] := ARRAY(SELECT audit.undo_differences(of));
BEGIN
    IF differences <> '{}' THEN
        RAISE EXCEPTION 'after undo % row(s) are not what they were before changeset %', cardinality(differences), of.id
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = array_to_string(differences[1:100], E'\n'),
                  HINT = 'Triggers of these tables changed them again. With exact => false, undo leaves it at that.';
    END IF;
END
$$;
COMMENT ON FUNCTION undo_verified(changeset) IS 'Refuses with 55000 an undo after which rows are not what they were.';

CREATE FUNCTION undo_context(context text, changeset_id uuid) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT (coalesce(nullif(context, ''), '{}')::jsonb || pg_catalog.jsonb_build_object('undoes', changeset_id))::text;
END;
COMMENT ON FUNCTION undo_context(text, uuid) IS 'The context with the reference to the changeset that is undone.';

CREATE FUNCTION undo_deferrable(of changeset) RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(DISTINCT format('%I.%I', n.nspname, k.conname), ', ')
      FROM audit.undo_changes(of) AS c
      JOIN pg_constraint k ON k.contype = 'f' AND k.condeferrable
                          AND k.conrelid IN (SELECT c.relid UNION SELECT a.relid FROM pg_partition_ancestors(c.relid) AS a)
      JOIN pg_namespace n ON n.oid = k.connamespace
$$;
COMMENT ON FUNCTION undo_deferrable(changeset) IS 'The foreign keys of a changeset''s tables that can wait for the end of an undo.';
