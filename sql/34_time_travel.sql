-- Whole tables as they were, in the columns and types that they have now.

CREATE FUNCTION layout_columns(target regclass)
    RETURNS TABLE (relation_id int, relid oid, key_numbers int[], names jsonb, missing jsonb)
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- What columns were called when the era after the one looked at began, and what they are called now.
    later_names jsonb := (SELECT jsonb_object_agg(a.attname, a.attname) FROM pg_attribute a
                           WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped);
    -- Values that rows got without being rewritten, with columns added in later eras.
    later_missing jsonb := '{}';
    e int;
    found record;
BEGIN
    FOR e IN SELECT DISTINCT l.era FROM audit.table_layouts(target) l ORDER BY 1 DESC NULLS FIRST LOOP
        later_names := coalesce(later_names, '{}');
        FOR found IN
            WITH layout AS (
                SELECT l.relation_id, l.relid, r.columns, r.key_columns,
                       max(l.relation_id) OVER (PARTITION BY l.relid) AS last_id,
                       min(l.relation_id) OVER (PARTITION BY l.relid) AS first_id
                  FROM audit.table_layouts(target) l JOIN audit.relation r ON r.id = l.relation_id
                 WHERE l.era IS NOT DISTINCT FROM e
            ), col AS (
                SELECT l.*, (c.value ->> 'attnum')::int AS number, c.value ->> 'name' AS name,
                       c.value -> 'missing' AS missing
                  FROM layout l, jsonb_array_elements(l.columns) AS c
            ), last_name AS (
                -- Of a table that is there, what it has now; else as it was last seen.
                SELECT a.attrelid AS relid, a.attnum AS number, a.attname::text AS name, a.attname::text AS now
                  FROM pg_attribute a
                 WHERE e IS NULL AND a.attrelid IN (SELECT l.relid FROM layout l) AND a.attnum > 0 AND NOT a.attisdropped
                UNION ALL
                SELECT c.relid, c.number, c.name, later_names ->> c.name
                  FROM col c
                 WHERE c.relation_id = c.last_id
                   AND NOT (e IS NULL AND EXISTS (SELECT FROM pg_class t WHERE t.oid = c.relid))
            ), named AS (
                SELECT c.*, n.now FROM col c LEFT JOIN last_name n ON n.relid = c.relid AND n.number = c.number
            ), added AS (
                -- The layout in which a column first appears has the value that rows without it read as.
                SELECT DISTINCT ON (c.relid, c.number) c.relid, c.number, c.now, c.relation_id, c.first_id, c.missing
                  FROM named c
                 WHERE c.now IS NOT NULL
                 ORDER BY c.relid, c.number, c.relation_id
            ), valued AS (
                SELECT a.relid, a.now, a.relation_id, a.missing AS value
                  FROM added a WHERE a.relation_id > a.first_id AND a.missing IS NOT NULL
            )
            SELECT l.relation_id, l.relid, l.first_id = l.relation_id AS is_first,
                   (SELECT array_agg(c.number ORDER BY array_position(l.key_columns, c.name))
                      FROM named c WHERE c.relation_id = l.relation_id AND c.name = ANY (l.key_columns)) AS key_numbers,
                   (SELECT coalesce(jsonb_object_agg(c.name, c.now), '{}')
                      FROM named c WHERE c.relation_id = l.relation_id AND c.now IS NOT NULL) AS names,
                   later_missing || (SELECT coalesce(jsonb_object_agg(v.now, v.value), '{}')
                                       FROM valued v WHERE v.relid = l.relid AND v.relation_id > l.relation_id) AS missing
              FROM layout l
             ORDER BY l.relation_id DESC
        LOOP
            relation_id := found.relation_id;
            relid := found.relid;
            key_numbers := found.key_numbers;
            names := found.names;
            missing := found.missing;
            RETURN NEXT;
        END LOOP;
        -- Of the last one returned, the oldest of the era.
        later_names := names;
        later_missing := missing;
    END LOOP;
END
$$;
COMMENT ON FUNCTION layout_columns(regclass) IS 'For each layout of a table: the numbers of its key columns, what its columns are called now ({"then": "now"}, those that are gone left out), and the values that its rows have in columns that were added since.';

CREATE FUNCTION current_image(image jsonb, names jsonb, missing jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT missing || coalesce(pg_catalog.jsonb_object_agg(names ->> i.key, i.value) FILTER (WHERE names ? i.key), '{}')
      FROM pg_catalog.jsonb_each(image) AS i;
END;
COMMENT ON FUNCTION current_image(jsonb, jsonb, jsonb) IS 'A row''s image in the columns that its table has now.';

CREATE FUNCTION images_as_of(target regclass, moment log_moment) RETURNS SETOF jsonb
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    layouts CONSTANT int[] := audit.recorded_layouts(target);
    disagreement bigint;
BEGIN
    RETURN QUERY
    WITH layout AS MATERIALIZED (
        SELECT * FROM audit.layout_columns(target)
    ), event AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY e.era, e.position NULLS LAST, e.command, e.seq) AS place,
               dense_rank() OVER (ORDER BY e.era, e.position NULLS LAST, e.command) AS step,
               l.relid, l.key_numbers, e.operation, e.resource_id, e.details ->> 'old_resource_id' AS old_key, e.changeset_id,
               CASE WHEN i.row_image IS NOT NULL THEN audit.current_image(i.row_image, l.names, l.missing) END AS image,
               CASE e.operation WHEN 'UPDATE' THEN audit.current_image(e.old_row, l.names, l.missing) END AS old_image
          FROM audit.log e
          JOIN layout l ON l.relation_id = e.relation_id,
               LATERAL (SELECT coalesce(e.new_row, e.old_row) AS row_image) AS i
         WHERE e.relation_id = ANY (layouts) AND e.occurred_at <= (moment).at AND e.event_at <= (moment).at
           AND e.operation IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'SNAPSHOT')
           AND audit.is_before(e.era, e.position, e.occurred_at, moment)
    ), reset AS (
        -- After a TRUNCATE a table is empty; a snapshot has all of its rows.
        SELECT r.relid, max(r.place) AS place
          FROM (SELECT t.relid, t.place + 1 AS place FROM event t WHERE t.operation = 'TRUNCATE'
                UNION ALL
                SELECT s.relid, min(s.place) FROM event s WHERE s.operation = 'SNAPSHOT' GROUP BY s.relid, s.changeset_id) AS r
         GROUP BY r.relid
    ), since AS (
        SELECT e.*, coalesce(bool_and(e.resource_id IS NOT NULL) OVER of_table
                             AND min(e.key_numbers) OVER of_table = max(e.key_numbers) OVER of_table, false) AS is_keyed
          FROM event e LEFT JOIN reset r ON r.relid = e.relid
         -- Of an event that was erased, nothing is known.
         WHERE e.operation <> 'TRUNCATE' AND e.image IS NOT NULL AND (r.place IS NULL OR e.place >= r.place)
        WINDOW of_table AS (PARTITION BY e.relid)
    ), by_key AS (
        -- The last word on each key. One command can take a key from one row and give it to another.
        SELECT DISTINCT ON (k.relid, k.key) k.image
          FROM (SELECT s.relid, s.resource_id AS key, s.step, s.operation <> 'DELETE' AS is_there, s.place,
                       CASE WHEN s.operation <> 'DELETE' THEN s.image END AS image
                  FROM since s WHERE s.is_keyed
                UNION ALL
                SELECT s.relid, s.old_key, s.step, false, s.place, NULL FROM since s WHERE s.is_keyed AND s.old_key IS NOT NULL) AS k
         ORDER BY k.relid, k.key, k.step DESC, k.is_there DESC, k.place DESC
    ), by_content AS (
        -- Without a key, rows are known by their content alone: so many came, so many went. As text, since a column's type
        -- may have changed in between; without nulls, since it may have been added.
        SELECT (array_agg(i.image ORDER BY i.place DESC))[1] AS image, sum(i.number) AS number
          FROM (SELECT s.relid, s.place, s.image, CASE WHEN s.operation = 'DELETE' THEN -1 ELSE 1 END AS number FROM since s WHERE NOT s.is_keyed
                UNION ALL
                SELECT s.relid, s.place, s.old_image, -1 FROM since s WHERE NOT s.is_keyed AND s.operation = 'UPDATE') AS i,
               LATERAL (SELECT jsonb_object_agg(v.key, v.value) AS content FROM jsonb_each_text(i.image) AS v WHERE v.value IS NOT NULL) AS c
         GROUP BY i.relid, c.content
    )
    SELECT k.image FROM by_key k WHERE k.image IS NOT NULL
    UNION ALL
    SELECT c.image FROM by_content c, generate_series(1, c.number);
END
$$;
COMMENT ON FUNCTION images_as_of(regclass, log_moment) IS 'The rows of a table at a time, in the columns that it has now.';

CREATE FUNCTION known_values(image jsonb, not_text text[]) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT image - ARRAY(SELECT v.key FROM pg_catalog.jsonb_each(image) AS v
                          WHERE v.value = '"***"' AND v.key = ANY (not_text)
                             OR v.value ? '$sha256' AND v.value ? '$bytes' AND pg_catalog.jsonb_typeof(v.value) = 'object');
END;
COMMENT ON FUNCTION known_values(jsonb, text[]) IS 'An image without values that were not recorded: digests, and masks where the column is not of text.';

CREATE FUNCTION table_as_of(row_type anyelement, at timestamptz) RETURNS SETOF anyelement
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    -- Values are read as they were written.
    SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET lc_monetary = 'C'
AS $$
DECLARE
    target CONSTANT regclass := (SELECT t.typrelid FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid
                                  WHERE t.oid = pg_typeof(row_type) AND c.relkind IN ('r', 'p', 'f'));
    moment CONSTANT audit.log_moment := audit.log_moment(at);
    not_text CONSTANT text[] := ARRAY(SELECT a.attname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                                       WHERE a.attrelid = target AND a.attnum > 0 AND t.typcategory <> 'S');
    message text;
BEGIN
    IF target IS NULL THEN
        RAISE EXCEPTION 'type % is not the row type of a table', pg_typeof(row_type)
            USING ERRCODE = 'wrong_object_type', HINT = 'Pass a null of the table''s type: audit.table_as_of(NULL::account, now()).';
    END IF;
    PERFORM audit.note_read('table_as_of', jsonb_build_object('target', target, 'at', at));
    -- Parsed afresh each time: the table's columns may have changed since the session's last call.
    RETURN QUERY EXECUTE
        'SELECT r.*
           FROM audit.images_as_of($1, $2) AS i (image), jsonb_populate_record($3, audit.known_values(i.image, $4)) AS r'
        USING target, moment, row_type, not_text;
EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
    RAISE EXCEPTION 'a row of table % cannot be read in its present types', target
        USING ERRCODE = 'data_exception', DETAIL = message,
              HINT = 'audit.history and audit.row_as_of show rows as they were recorded.';
END
$$;
COMMENT ON FUNCTION table_as_of(anyelement, timestamptz) IS 'The rows of a table at a time, in its present columns and types: SELECT * FROM audit.table_as_of(NULL::account, now()). Errors: 42809 for what is no table''s row type; 55000 for one without records; 22023 for a time in the future; 22000 for a value that its column''s present type does not take.';
