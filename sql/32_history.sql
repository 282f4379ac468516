-- The life of rows: their versions, what they were at a time, what a transaction changed.
--
-- Versions are read in the documented order (era, position, command, seq), and "at a time" is a place in that order: just
-- before the first commit of a transaction that began later. So what is shown is a state that was committed as such, and
-- a transaction under way at that time is in it with all of its changes or with none.

-- Tables and their layouts.

CREATE FUNCTION table_layouts(target regclass) RETURNS TABLE (relation_id int, relid oid, era int)
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last_era CONSTANT int := coalesce((SELECT max(l.era) FROM audit.ledger l), 1);
    begins timestamptz;
    ends timestamptz := 'infinity';
    layouts int[] := ARRAY(SELECT o.relation_id FROM audit.local_layout o);
    family oid[];
    known_as oid[]; -- of each of the family, the table that it is now
    names text[];
    named oid[];
    root_name text;
BEGIN
    WITH RECURSIVE member AS (
        SELECT target::oid AS oid
        UNION
        SELECT i.inhrelid FROM pg_inherits i JOIN member m ON i.inhparent = m.oid
    )
    SELECT array_agg(c.oid), array_agg(format('%I.%I', n.nspname, c.relname)),
           max(format('%I.%I', n.nspname, c.relname)) FILTER (WHERE c.oid = target)
      INTO family, names, root_name
      FROM member m JOIN pg_class c ON c.oid = m.oid JOIN pg_namespace n ON n.oid = c.relnamespace;

    known_as := family;
    named := family;

    -- First what was written in this database, then what was restored into it, era by era.
    FOR e IN REVERSE last_era + 1 .. 1 LOOP
        IF e <= last_era THEN
            -- An era begins before its first layout is written.
            begins := CASE WHEN e > 1 THEN (SELECT l.started_at FROM audit.ledger l WHERE l.era = e) ELSE '-infinity' END;
            layouts := ARRAY(
                SELECT r.id FROM audit.relation r
                 WHERE r.valid_from >= begins AND r.valid_from < ends
                   AND NOT EXISTS (SELECT FROM audit.local_layout o WHERE o.relation_id = r.id));
            ends := begins;
            -- The oids mean nothing here: the names tell, as they were at the era's end.
            SELECT coalesce(array_agg(l.relid), '{}'), array_agg(coalesce(named[array_position(names, l.resource)], l.relid))
              INTO family, known_as
              FROM (SELECT DISTINCT ON (r.relid) r.* FROM audit.relation r WHERE r.id = ANY (layouts) ORDER BY r.relid, r.id DESC) AS l
             WHERE l.resource = ANY (names) OR quote_ident(l.root_schema) || '.' || quote_ident(l.root_table) = root_name;
        END IF;
        RETURN QUERY
        SELECT r.id, coalesce(known_as[array_position(family, r.relid)], r.relid), CASE WHEN e <= last_era THEN e END
          FROM audit.relation r LEFT JOIN audit.local_layout o ON o.relation_id = r.id LEFT JOIN pg_class c ON c.oid = o.relid
         WHERE r.id = ANY (layouts)
           AND CASE WHEN r.relid = ANY (family) AND o.relid IS DISTINCT FROM 0
                    -- Of a partition, what it was before it became one is another table's.
                    THEN r.relid = target OR r.root_table IS NOT NULL OR c.relispartition IS NOT TRUE
                    -- A partition that is gone.
                    ELSE e > last_era AND c.relispartition IS NOT TRUE
                         AND quote_ident(r.root_schema) || '.' || quote_ident(r.root_table) = root_name END;
        SELECT coalesce(array_agg(f.resource) || names, names), coalesce(array_agg(f.oid) || named, named), coalesce(max(f.root), root_name)
          INTO names, named, root_name
          FROM (SELECT DISTINCT ON (r.relid) r.resource, known_as[array_position(family, r.relid)] AS oid, quote_ident(r.root_schema) || '.' || quote_ident(r.root_table) AS root
                  FROM audit.relation r LEFT JOIN audit.local_layout o ON o.relation_id = r.id
                 WHERE r.id = ANY (layouts) AND r.relid = ANY (family) AND o.relid IS DISTINCT FROM 0
                 ORDER BY r.relid, r.id) AS f;
    END LOOP;
END
$$;
COMMENT ON FUNCTION table_layouts(regclass) IS 'Layouts under which rows of a table were recorded, those of its partitions and inheritance children included, also before it was renamed or restored into this database: ids of audit.relation; the era of those that a restore brought.';

CREATE FUNCTION recorded_layouts(target regclass) RETURNS int[]
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ids CONSTANT int[] := ARRAY(SELECT l.relation_id FROM audit.table_layouts(target) AS l);
BEGIN
    IF target IS NULL THEN
        RAISE EXCEPTION 'argument "target" must not be null' USING ERRCODE = 'null_value_not_allowed';
    ELSIF ids = '{}' THEN
        RAISE EXCEPTION 'there are no records of table %', target
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Audit it with audit.enable.';
    END IF;
    RETURN ids;
END
$$;
COMMENT ON FUNCTION recorded_layouts(regclass) IS 'The layouts of audit.table_layouts. Errors: 55000 where there are none; 22004.';

-- Reading a value runs code of its type, and of a domain's constraints, with the rights of who reads. What PostgreSQL brings
-- along can be trusted.
CREATE FUNCTION built_in_type(type text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH RECURSIVE base AS (
        SELECT to_regtype(built_in_type.type)::oid AS oid, built_in_type.type AS name
        UNION ALL
        SELECT t.typbasetype, format_type(t.typbasetype, t.typtypmod) FROM base b JOIN pg_type t ON t.oid = b.oid AND t.typtype = 'd'
    )
    SELECT b.name FROM base b JOIN pg_type t ON t.oid = b.oid
     WHERE t.typtype = 'e' OR t.typtype <> 'd' AND t.typnamespace = 'pg_catalog'::regnamespace;
END;
COMMENT ON FUNCTION built_in_type(text) IS 'The type itself, or that below a domain, if it is an enum or one of PostgreSQL''s own; else NULL.';

-- A row's key as it is recorded: the same number or time can be written in many ways.
CREATE FUNCTION row_key(target regclass, layouts int[], resource_id text) RETURNS text
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET bytea_output = 'hex'
    SET extra_float_digits = 1
AS $$
DECLARE
    names text[];
    types text[];
    parts text[] := ARRAY[resource_id];
    key text;
    layout record;
BEGIN
    IF resource_id IS NULL THEN
        RAISE EXCEPTION 'argument "resource_id" must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    SELECT r.key_columns, r.columns INTO layout FROM audit.relation r WHERE r.id = ANY (layouts) ORDER BY r.id DESC LIMIT 1;
    SELECT array_agg(k.name ORDER BY k.number), array_agg(audit.built_in_type(c.value ->> 'type') ORDER BY k.number) INTO names, types
      FROM unnest(layout.key_columns) WITH ORDINALITY AS k (name, number)
      JOIN jsonb_array_elements(layout.columns) AS c ON c.value ->> 'name' = k.name;
    IF array_position(types, NULL) IS NOT NULL THEN
        RETURN resource_id;
    END IF;
    BEGIN
        IF cardinality(names) > 1 THEN
            parts := ARRAY(SELECT p.value #>> '{}' FROM jsonb_array_elements(resource_id::jsonb) WITH ORDINALITY AS p (value, number)
                            ORDER BY p.number);
        END IF;
        IF cardinality(parts) = cardinality(names) THEN
            EXECUTE format(CASE WHEN cardinality(names) = 1 THEN 'SELECT pg_catalog.to_jsonb(%s) #>> %L'
                                ELSE 'SELECT pg_catalog.jsonb_build_array(%s)::text' END,
                           (SELECT string_agg(format('CAST(%L AS %s)', p.value, p.type), ', ' ORDER BY p.number)
                              FROM unnest(parts, types) WITH ORDINALITY AS p (value, type, number)), '{}')
               INTO key;
        END IF;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR undefined_object THEN
        key := NULL; -- No such value, or a type that is gone.
    END;
    IF key IS DISTINCT FROM resource_id THEN
        IF EXISTS (SELECT FROM audit.key_events(target, layouts, row_key.resource_id) AS e WHERE e.resource_id = row_key.resource_id) THEN
            RETURN resource_id; -- The key was of another kind then.
        ELSIF names IS NULL THEN
            RAISE EXCEPTION 'rows of table % are recorded without a key', target
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = 'Give the table a primary key. What is recorded without one is found in audit.log by its content.';
        ELSIF key IS NULL THEN
            RAISE EXCEPTION '"%" is no key of table %', left(resource_id, 200), target
                USING ERRCODE = 'invalid_parameter_value',
                      DETAIL = format('The key is (%s).', (SELECT string_agg(format('%I %s', p.name, p.type), ', ' ORDER BY p.number)
                                                             FROM unnest(names, types) WITH ORDINALITY AS p (name, type, number))),
                      HINT = 'Pass the value of the key column; of several columns, a JSON array of their values in that order: [7, "b"].';
        END IF;
    END IF;
    RETURN key;
END
$$;
COMMENT ON FUNCTION row_key(regclass, int[], text) IS 'The resource_id of a row, whose key may be written otherwise. Errors: 22023 for what is no key of the table; 55000 where it has none; 22004.';

-- Versions of a row.

CREATE TYPE row_event AS (
    era int, position pg_lsn, command int, seq int, occurred_at timestamptz, changeset_id uuid, relation_id int, relid oid,
    operation operation, resource text, resource_id text, row_image jsonb, old_values jsonb, details jsonb, user_id text,
    tenant_id text, request_id text, ip_address inet, reason text, session_role text
);
COMMENT ON TYPE row_event IS 'An event that made or ended a version of a row, with its place in the order of versions.';

CREATE FUNCTION key_events(target regclass, layouts int[], key text) RETURNS SETOF row_event
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    -- One plan for all calls of a session: the log may have many partitions, and a row has few versions.
    SET plan_cache_mode = force_generic_plan
    SET enable_nestloop = off
    -- The planner takes it that a BRIN index leaves out no page of the partition being written.
    SET enable_seqscan = off
AS $$
DECLARE
    old_key CONSTANT jsonb := jsonb_build_object('old_resource_id', key);
    part audit.log_event[];
    times timestamptz[];
BEGIN
    IF NOT audit.reads_everything() THEN
        RETURN QUERY SELECT * FROM audit.visible_key_events(target, layouts, key);
        RETURN;
    END IF;
    -- In parts, as the operator <@ compares a row's time with each of them.
    FOR part IN
        SELECT array_agg(numbered.e)
          FROM (SELECT found.e, (row_number() OVER () - 1) / 256 AS part
                  FROM (-- Conditions that say the same twice are for the two kinds of indexes: btree, and BRIN.
                        SELECT e FROM audit.log_event e WHERE e.resource_id = key AND e.relation_id = ANY (layouts)
                        UNION ALL
                        SELECT e FROM audit.log_event e
                         WHERE e.details OPERATOR(audit.#=) old_key AND e.details ->> 'old_resource_id' = key
                           AND e.details ? 'old_resource_id' AND e.relation_id = ANY (layouts)
                        UNION ALL
                        SELECT e FROM audit.log_event e WHERE e.operation = 'TRUNCATE' AND e.relation_id = ANY (layouts)
                       ) AS found) AS numbered
         GROUP BY numbered.part
    LOOP
        times := ARRAY(SELECT DISTINCT e.occurred_at FROM unnest(part) AS e ORDER BY 1);
        RETURN QUERY
        SELECT c.era, c.position, e.command, e.seq, c.occurred_at, c.id, e.relation_id, l.relid, e.operation, r.resource,
               e.resource_id, e.row_image, e.old_values, e.details, c.user_id, c.tenant_id, c.request_id, c.ip_address,
               c.reason, c.session_role
          FROM unnest(part) AS e
          JOIN audit.relation r ON r.id = e.relation_id
          -- Under the oid that the table has here, also where a restore brought the record.
          JOIN audit.table_layouts(target) AS l ON l.relation_id = e.relation_id
          JOIN audit.log_changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at
         WHERE c.occurred_at >= times[1] AND c.occurred_at <= times[cardinality(times)]
           AND c.occurred_at = ANY (times) AND c.occurred_at OPERATOR(audit.<@) times;
    END LOOP;
END
$$;
COMMENT ON FUNCTION key_events(regclass, int[], text) IS 'Events of the row of that table with that key, in no order: under it, from it to another key, and TRUNCATEs of its tables.';

CREATE FUNCTION visible_key_events(target regclass, layouts int[], key text) RETURNS SETOF row_event
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on
    SET enable_seqscan = on
AS $$
BEGIN
    RETURN QUERY
    SELECT e.era, e.position, e.command, e.seq, e.occurred_at, e.changeset_id, e.relation_id, l.relid,
           e.operation::audit.operation, e.resource, e.resource_id, coalesce(e.new_row, e.old_row),
           (SELECT jsonb_object_agg(o.key, o.value) FROM jsonb_each(e.old_row) AS o WHERE o.key = ANY (e.changed_columns)),
           e.details, e.user_id, e.tenant_id, e.request_id, e.ip_address, e.reason, e.session_role
      FROM audit.log e
      JOIN audit.table_layouts(target) AS l ON l.relation_id = e.relation_id
     WHERE e.relation_id = ANY (layouts)
       AND (e.resource_id = key OR e.details ->> 'old_resource_id' = key OR e.operation = 'TRUNCATE');
END
$$;
COMMENT ON FUNCTION visible_key_events(regclass, int[], text) IS 'What audit.key_events gives to a tenant''s reader.';

CREATE FUNCTION is_there(operation operation, resource_id text, key text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN operation IN ('INSERT', 'UPDATE', 'SNAPSHOT') AND resource_id = key;
COMMENT ON FUNCTION is_there(operation, text, text) IS 'Whether there is a row of that key after the event. One command can take a key from one row and give it to another: what takes it comes first.';

CREATE TYPE row_version AS (
    version bigint, occurred_at timestamptz, user_id text, operation text, changes jsonb, row_after jsonb, tenant_id text,
    request_id text, ip_address inet, reason text, session_role text, resource text, resource_id text, changeset_id uuid, seq int
);
COMMENT ON TYPE row_version IS 'A row of audit.history.';

CREATE FUNCTION history(target regclass, resource_id text) RETURNS SETOF row_version
    LANGUAGE plpgsql STABLE ROWS 20
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    layouts CONSTANT int[] := audit.recorded_layouts(target);
    key CONSTANT text := audit.row_key(target, layouts, resource_id);
    v audit.row_version;
    -- The table that holds the row, while it is there.
    holder oid;
    e audit.row_event;
BEGIN
    PERFORM audit.note_read('history', jsonb_build_object('target', target, 'resource_id', resource_id));
    v.version := 0;
    FOR e IN
        SELECT * FROM audit.key_events(target, layouts, key) o
         ORDER BY o.era, o.position NULLS LAST, o.command, audit.is_there(o.operation, o.resource_id, key), o.seq
    LOOP
        IF e.operation = 'TRUNCATE' THEN
            CONTINUE WHEN holder IS DISTINCT FROM e.relid;
            holder := NULL;
        ELSE
            holder := CASE WHEN audit.is_there(e.operation, e.resource_id, key) THEN e.relid END;
        END IF;
        v := (v.version + 1, e.occurred_at, e.user_id, e.operation::text, audit.row_changes(e.operation, e.row_image, e.old_values),
              CASE WHEN e.operation <> 'DELETE' THEN e.row_image END, e.tenant_id, e.request_id, e.ip_address, e.reason,
              e.session_role, e.resource, e.resource_id, e.changeset_id, e.seq);
        RETURN NEXT v;
    END LOOP;
END
$$;
COMMENT ON FUNCTION history(regclass, text) IS 'The versions of a row, the first one first: who, when, and what changed from what to what. Covers the partitions of a table, earlier names, and a change of the key under both keys. Errors: 42P01 for an unknown table, 55000 for one without records or key, 22023 for what is no key of it.';

CREATE FUNCTION row_changes(operation operation, row_image jsonb, old_values jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE operation
               WHEN 'UPDATE' THEN coalesce((SELECT pg_catalog.jsonb_object_agg(o.key, pg_catalog.jsonb_build_object('old', o.value, 'new', row_image -> o.key))
                                              FROM pg_catalog.jsonb_each(old_values) AS o), '{}')
               WHEN 'INSERT' THEN (SELECT pg_catalog.jsonb_object_agg(n.key, pg_catalog.jsonb_build_object('new', n.value)) FROM pg_catalog.jsonb_each(row_image) AS n)
               WHEN 'DELETE' THEN (SELECT pg_catalog.jsonb_object_agg(o.key, pg_catalog.jsonb_build_object('old', o.value)) FROM pg_catalog.jsonb_each(row_image) AS o)
           END;
END;
COMMENT ON FUNCTION row_changes(operation, jsonb, jsonb) IS 'What an event changed: an object of {"column": {"old": value, "new": value}}; NULL of a SNAPSHOT or TRUNCATE.';

-- At a time.

CREATE TYPE log_moment AS (era int, position pg_lsn, at timestamptz);
COMMENT ON TYPE log_moment IS 'A time as a place in the order of commits: before that position of that era, or at the end where these are null.';

CREATE FUNCTION commits_after(opened timestamptz, closed timestamptz, enough int) RETURNS TABLE (era int, "position" pg_lsn)
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    IF audit.reads_everything() THEN
        RETURN QUERY
        SELECT c.era, c.position FROM audit.log_changeset c
         WHERE c.occurred_at > opened AND c.occurred_at <= closed AND c.position IS NOT NULL
         ORDER BY c.occurred_at LIMIT enough;
    ELSE
        RETURN QUERY
        SELECT c.era, c.position FROM audit.visible_changeset c
         WHERE c.occurred_at > opened AND c.occurred_at <= closed AND c.position IS NOT NULL
         ORDER BY c.occurred_at LIMIT enough;
    END IF;
END
$$;
COMMENT ON FUNCTION commits_after(timestamptz, timestamptz, int) IS 'Places in the order of commits of the transactions that began next, as many as are enough.';

CREATE FUNCTION log_moment(at timestamptz) RETURNS log_moment
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    -- More transactions than ever run at once.
    enough CONSTANT int := 1000;
    moment audit.log_moment;
    later record;
    opened timestamptz := at;
    closed timestamptz;
    seen int := 0;
BEGIN
    IF at IS NULL THEN
        RAISE EXCEPTION 'argument "at" must not be null' USING ERRCODE = 'null_value_not_allowed';
    ELSIF at > clock_timestamp() THEN
        RAISE EXCEPTION 'time % is in the future', at
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass a time that is past, or now().';
    END IF;
    moment.at := at;
    -- The least position of those that began later. Only if all that began next were still under way could one that
    -- began after them commit before them.
    FOR i IN 0 .. 9 LOOP
        closed := CASE WHEN i < 9 AND opened > '-infinity' AND opened + interval '1 minute' * 8 ^ i < clock_timestamp()
                       THEN opened + interval '1 minute' * 8 ^ i ELSE 'infinity' END;
        FOR later IN SELECT * FROM audit.commits_after(opened, closed, enough) LOOP
            seen := seen + 1;
            IF (later.era, later.position) >= (moment.era, moment.position) THEN
                CONTINUE;
            END IF;
            moment.era := later.era;
            moment.position := later.position;
        END LOOP;
        EXIT WHEN seen >= enough OR closed = 'infinity';
        opened := closed;
    END LOOP;
    RETURN moment;
END
$$;
COMMENT ON FUNCTION log_moment(timestamptz) IS 'A time as a place in the order of commits: just before the first commit of a transaction whose changes began later. Errors: 22023 for a time in the future; 22004.';

CREATE FUNCTION is_before(era int, "position" pg_lsn, occurred_at timestamptz, moment log_moment) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN position IS NULL THEN occurred_at <= (moment).at -- this transaction's own
            WHEN (moment).position IS NULL THEN true
            ELSE (era, position) < ((moment).era, (moment).position) END;
COMMENT ON FUNCTION is_before(int, pg_lsn, timestamptz, log_moment) IS 'Whether a changeset was committed by then.';

CREATE FUNCTION last_snapshot(layouts int[], at timestamptz) RETURNS log_moment
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    taken audit.log_moment;
BEGIN
    IF audit.reads_everything() THEN
        SELECT c.era, c.position, c.occurred_at INTO taken
          FROM (SELECT e.occurred_at, e.changeset_id FROM audit.log_event e
                 WHERE e.operation = 'SNAPSHOT' AND e.relation_id = ANY (layouts) AND e.occurred_at <= at
                 ORDER BY e.occurred_at DESC LIMIT 1) AS s
          JOIN audit.log_changeset c ON c.id = s.changeset_id AND c.occurred_at = s.occurred_at;
    ELSE
        SELECT e.era, e.position, e.occurred_at INTO taken
          FROM audit.log e
         WHERE e.operation = 'SNAPSHOT' AND e.relation_id = ANY (layouts) AND e.occurred_at <= at AND e.event_at <= at
         ORDER BY e.occurred_at DESC LIMIT 1;
    END IF;
    RETURN taken;
END
$$;
COMMENT ON FUNCTION last_snapshot(int[], timestamptz) IS 'Place of the last snapshot of a table, given by its layouts, until a time; NULL without one.';

CREATE FUNCTION row_as_of(target regclass, resource_id text, at timestamptz) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    layouts CONSTANT int[] := audit.recorded_layouts(target);
    key CONSTANT text := audit.row_key(target, layouts, resource_id);
    moment CONSTANT audit.log_moment := audit.log_moment(at);
    e audit.row_event;
    last audit.row_event;
    taken audit.log_moment;
BEGIN
    PERFORM audit.note_read('row_as_of', jsonb_build_object('target', target, 'resource_id', resource_id, 'at', at));
    FOR e IN
        SELECT * FROM audit.key_events(target, layouts, key) o
         WHERE audit.is_before(o.era, o.position, o.occurred_at, moment)
         ORDER BY o.era, o.position NULLS LAST, o.command, audit.is_there(o.operation, o.resource_id, key), o.seq
    LOOP
        IF e.operation = 'TRUNCATE' THEN
            CONTINUE WHEN last.relid IS DISTINCT FROM e.relid;
            last := NULL;
        ELSE
            last := CASE WHEN audit.is_there(e.operation, e.resource_id, key) THEN e END;
        END IF;
    END LOOP;
    IF last.relid IS NULL THEN
        RETURN NULL;
    END IF;
    -- Rows that a later snapshot of the table does not have went while it was not audited.
    taken := audit.last_snapshot(ARRAY(SELECT l.relation_id FROM audit.table_layouts(target) AS l WHERE l.relid = last.relid), at);
    IF (taken.era, taken.position) > (last.era, last.position) AND audit.is_before(taken.era, taken.position, taken.at, moment) THEN
        RETURN NULL;
    END IF;
    RETURN last.row_image;
END
$$;
COMMENT ON FUNCTION row_as_of(regclass, text, timestamptz) IS 'A row as it was recorded to be at a time; NULL where there was none. Errors: as audit.history; 22023 for a time in the future.';

-- A changeset.

CREATE FUNCTION recorded_changeset(changeset_id uuid) RETURNS changeset
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted audit.changeset;
BEGIN
    IF changeset_id IS NULL THEN
        RAISE EXCEPTION 'argument "changeset_id" must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    SELECT * INTO wanted FROM audit.visible_changeset c
     WHERE c.id = recorded_changeset.changeset_id
       AND c.occurred_at = audit.changeset_time(recorded_changeset.changeset_id);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no changeset %', changeset_id
            USING ERRCODE = 'invalid_parameter_value', HINT = 'audit.log shows the changeset_id of each event.';
    END IF;
    RETURN wanted;
END
$$;
COMMENT ON FUNCTION recorded_changeset(uuid) IS 'A changeset by its id. Errors: 22023 where there is none; 22004.';

CREATE TYPE column_change AS (
    seq int, operation text, resource text, resource_id text, column_name text, old_value jsonb, new_value jsonb
);
COMMENT ON TYPE column_change IS 'A row of audit.diff.';

CREATE FUNCTION diff(changeset_id uuid) RETURNS SETOF column_change
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    of audit.changeset := audit.recorded_changeset(changeset_id);
BEGIN
    PERFORM audit.note_read('diff', jsonb_build_object('changeset_id', changeset_id));
    RETURN QUERY
    SELECT l.seq, l.operation, l.resource, l.resource_id, c.name, c.old_value, c.new_value
      FROM audit.log l
      LEFT JOIN LATERAL (
               SELECT coalesce(o.key, n.key) AS name, o.value AS old_value, n.value AS new_value
                 FROM jsonb_each(l.old_row) AS o FULL JOIN jsonb_each(CASE WHEN l.operation IN ('INSERT', 'UPDATE') THEN l.new_row END) AS n ON n.key = o.key
                WHERE l.operation <> 'UPDATE' OR o.key = ANY (l.changed_columns)
           ) AS c ON true
     WHERE l.changeset_id = of.id AND l.occurred_at = of.occurred_at AND l.event_at = of.occurred_at
     ORDER BY l.command, l.seq, c.name COLLATE "C";
END
$$;
COMMENT ON FUNCTION diff(uuid) IS 'What a changeset changed, in the order of its changes: one row per column changed, set or removed; one without a column for an event that changed none. Errors: 22023 for an unknown changeset; 22004.';
