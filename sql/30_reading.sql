-- The questions that auditors ask, as functions over the log.
--
-- All of them read with the caller's rights, and only through views. Who may read everything reads the two parts of
-- audit.log, audit.log_changeset and audit.log_event, whose plans are those of the bare tables. Readers of one tenant have no
-- right on these: for them the functions read audit.log and audit.visible_changeset, which show their tenant's events alone.
--
-- The log may be large, and its newest partition has no btree index. So audit.get_logs goes back in time, window by
-- window, and stops when the page is full. In each window it first finds the changesets that can have events of the page,
-- no more than the page has room for, by the condition that an index serves best; then their events, all at once.

CREATE VIEW log_changeset AS
    SELECT * FROM changeset
    UNION ALL
    SELECT * FROM pending_changesets();
COMMENT ON VIEW log_changeset IS 'Changesets as audit.log shows them, this transaction''s own included.';

CREATE VIEW log_event AS
    SELECT * FROM event;
COMMENT ON VIEW log_event IS 'Events as audit.log shows them, without their context.';

-- For both kinds of readers: restricted and fenced as audit.log is.
DO $$
DECLARE
    fenced CONSTANT text := (
        SELECT string_agg(CASE attname WHEN 'occurred_at' THEN 'c.occurred_at' ELSE format('audit.fenced(c.%1$I, c.tenant_id) AS %1$I', attname) END, ', ' ORDER BY attnum)
          FROM pg_catalog.pg_attribute
         WHERE attrelid = 'audit.changeset'::pg_catalog.regclass AND attnum > 0 AND NOT attisdropped);
BEGIN
    EXECUTE format(
        'CREATE VIEW audit.visible_changeset WITH (security_barrier) AS
             SELECT * FROM audit.log_changeset WHERE audit.reads_everything()
             UNION ALL
             SELECT %1$s FROM audit.changeset c WHERE NOT audit.reads_everything() AND audit.tenant_visible(c.tenant_id)
             UNION ALL
             SELECT %1$s FROM audit.pending_changesets() c WHERE NOT audit.reads_everything() AND audit.tenant_visible(c.tenant_id)', fenced);
END
$$;
COMMENT ON VIEW visible_changeset IS 'Changesets of the events that audit.log shows to the current role: all, or those of its tenant.';

-- Made from the view, so that it cannot differ.
DO $$
BEGIN
    EXECUTE (SELECT format('CREATE TYPE audit.log_page AS (%s, cursor text)',
                           string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum))
               FROM pg_catalog.pg_attribute
              WHERE attrelid = 'audit.log'::pg_catalog.regclass AND attnum > 0 AND NOT attisdropped);
END
$$;
COMMENT ON TYPE log_page IS 'A row of audit.log, and its cursor: what audit.get_logs takes as after, to go on from that row.';

-- Functions that are called by users note the read first (audit.log_reads), and so are PARALLEL UNSAFE.

-- Places and cursors.

CREATE TYPE log_place AS (occurred_at timestamptz, changeset_id uuid, seq int);
COMMENT ON TYPE log_place IS 'The place of an event in the order of audit.get_logs.';

CREATE FUNCTION log_cursor(occurred_at timestamptz, changeset_id uuid, seq int) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
RETURN 'v1.' || pg_catalog.encode(pg_catalog.int8send((EXTRACT(epoch FROM occurred_at) * 1000000)::bigint)
                                  || pg_catalog.uuid_send(changeset_id) || pg_catalog.int4send(seq), 'hex');
COMMENT ON FUNCTION log_cursor(timestamptz, uuid, int) IS 'The cursor of an event: version, then in hexadecimal the microseconds since the Unix epoch, the changeset and seq.';

CREATE FUNCTION log_place(cursor text) RETURNS log_place
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place audit.log_place;
    microseconds bigint;
BEGIN
    IF cursor IS NULL THEN
        RETURN ('infinity'::timestamptz, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid, 2147483647);
    END IF;
    IF cursor ~ '^v1\.[0-9a-f]{56}$' THEN
        microseconds := ('x' || substr(cursor, 4, 16))::bit(64)::bigint;
        place.changeset_id := substr(cursor, 20, 32)::uuid;
        place.seq := ('x' || substr(cursor, 52, 8))::bit(32)::int;
        -- Years 1 to 9999.
        IF microseconds BETWEEN -62135596800000000 AND 253402300799999999 AND place.seq >= 0 THEN
            -- In two parts: numbers beyond 2^53 do not multiply an interval exactly.
            place.occurred_at := 'epoch'::timestamptz + microseconds / 1000000 * interval '1 second'
                                 + microseconds % 1000000 * interval '1 microsecond';
            RETURN place;
        END IF;
    END IF;
    RAISE EXCEPTION 'invalid cursor "%"', left(cursor, 80)
        USING ERRCODE = 'invalid_parameter_value',
              HINT = 'Pass the column cursor of the last row of a page, as audit.get_logs returned it.';
END
$$;
COMMENT ON FUNCTION log_place(text) IS 'The place that a cursor stands for, of NULL one after all others. Errors: 22023 for anything that is no cursor.';

-- Filters.

CREATE TYPE log_filter AS (
    user_id text, tenant_id text, action text, action_pattern text, resource text, relations int[], resource_id text,
    status status, ip_address inet, request_id text, since timestamptz, until timestamptz, changeset_id uuid
);
COMMENT ON TYPE log_filter IS 'The filters of audit.get_logs, checked; changeset_id only among them for a while.';

CREATE FUNCTION log_filter(
    user_id text DEFAULT NULL, tenant_id text DEFAULT NULL, action text DEFAULT NULL, resource text DEFAULT NULL,
    resource_id text DEFAULT NULL, status text DEFAULT NULL, ip_address inet DEFAULT NULL, request_id text DEFAULT NULL,
    since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL
) RETURNS log_filter
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f audit.log_filter;
BEGIN
    IF since > until THEN
        RAISE EXCEPTION 'since is later than until'
            USING ERRCODE = 'invalid_parameter_value',
                  DETAIL = format('Since %s, until %s.', since, until),
                  HINT = 'The range is from since (inclusive) until until (exclusive).';
    END IF;
    IF NOT status = ANY (enum_range(NULL::audit.status)::text[]) THEN
        RAISE EXCEPTION 'unknown status "%"', left(status, 80)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'A status is success, failure or error.';
    END IF;
    f.user_id := user_id;
    f.tenant_id := tenant_id;
    IF right(action, 1) = '*' THEN
        f.action_pattern := regexp_replace(left(action, -1), '([\\%_])', '\\\1', 'g') || '%';
    ELSE
        f.action := action;
    END IF;
    f.resource := resource;
    IF resource IS NOT NULL THEN
        f.relations := ARRAY(SELECT r.id FROM audit.relation r WHERE r.resource = f.resource);
    END IF;
    f.resource_id := resource_id;
    f.status := status;
    f.ip_address := ip_address;
    f.request_id := request_id;
    f.since := coalesce(since, '-infinity');
    f.until := coalesce(until, 'infinity');
    RETURN f;
END
$$;
COMMENT ON FUNCTION log_filter(text, text, text, text, text, text, inet, text, timestamptz, timestamptz) IS 'Checks the filters of audit.get_logs. Errors: 22023 for an inverted range or an unknown status.';

CREATE FUNCTION required(argument text, value text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF value IS NULL THEN
        RAISE EXCEPTION 'argument "%" must not be null', argument
            USING ERRCODE = 'null_value_not_allowed', HINT = 'audit.get_logs reads without that filter.';
    END IF;
END
$$;
COMMENT ON FUNCTION required(text, text) IS 'Refuses NULL with 22004.';

-- Windows.

CREATE FUNCTION log_windows(log_table text, key_column text, since timestamptz, until timestamptz)
    RETURNS TABLE (bottom timestamptz, opened timestamptz, closed timestamptz, width interval)
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- So many pages are read in a millisecond or two, whatever they hold. Of a request or a row there is little, mostly.
    few CONSTANT int := CASE key_column WHEN 'request_id' THEN 65536 WHEN 'resource_id' THEN 2048 ELSE 256 END;
    top timestamptz;
    gathered int := 0;
    gathered_pages bigint := 0;
    group_size int := 1;
    p record;
BEGIN
    closed := until;
    FOR p IN
        WITH listed AS MATERIALIZED (
            SELECT * FROM audit.log_partitions(log_table, key_column, log_windows.since, log_windows.until)
        ), range AS (
            SELECT l.since, l.until, l.pages, l.is_indexed FROM listed l WHERE NOT is_default
        )
        TABLE range
        UNION ALL -- the default partition has what is older and what is newer
        SELECT '-infinity', coalesce((SELECT min(r.since) FROM range r), 'infinity'), pages, is_indexed
          FROM listed WHERE is_default
        UNION ALL
        SELECT (SELECT max(r.until) FROM range r), 'infinity', pages, is_indexed FROM listed WHERE is_default
        ORDER BY 1 DESC
    LOOP
        bottom := greatest(p.since, log_windows.since);
        CONTINUE WHEN bottom IS NULL OR bottom >= least(closed, p.until);
        opened := bottom;
        width := NULL;
        IF p.is_indexed OR p.pages <= few THEN
            -- Neighbours are read together, ever more of them: most questions are about what is new.
            gathered_pages := gathered_pages + p.pages;
            CONTINUE WHEN p.pages = 0;
            gathered := gathered + 1;
            CONTINUE WHEN gathered < group_size;
            group_size := group_size * 4;
        ELSE
            IF gathered_pages > 0 AND p.until < closed THEN
                RETURN QUERY SELECT p.until, p.until, log_windows.closed, NULL::interval;
                closed := p.until;
            END IF;
            top := least(closed, p.until, clock_timestamp());
            width := (top - greatest(bottom, top - interval '1 month')) * few / p.pages;
            opened := greatest(bottom, top - width);
        END IF;
        RETURN NEXT;
        gathered := 0;
        gathered_pages := 0;
        closed := bottom;
    END LOOP;
    IF closed > since THEN
        bottom := since;
        opened := since;
        width := NULL;
        RETURN NEXT;
    END IF;
END
$$;
COMMENT ON FUNCTION log_partitions(text, text, timestamptz, timestamptz) IS 'The partitions of audit.event or audit.changeset that can have rows of a time, from since (inclusive) until until (exclusive), their size, and whether a btree index begins with the key column.';
COMMENT ON FUNCTION log_windows(text, text, timestamptz, timestamptz) IS 'The times in which audit.get_logs looks, newest first: one or several partitions with a btree index on the key column; or one without, and where and how wide to begin there.';

-- Pages.

CREATE TYPE log_batch AS (
    changesets uuid[], times timestamptz[], first_seq int, last_seq int, events bigint, lowest log_place, is_last boolean
);
COMMENT ON TYPE log_batch IS 'Changesets that can have events of a page, how many these are at most, the place down to which there are no others, and whether the window has no more.';

-- The operator <@ compares a row's time with each of a batch, so a batch has at most 256 changesets.

CREATE FUNCTION next_events(f log_filter, opened timestamptz, closed timestamptz, after log_place) RETURNS log_batch
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    batch audit.log_batch;
BEGIN
    WITH found AS (
        SELECT e.occurred_at, e.changeset_id, e.seq
          FROM audit.log_event e
         WHERE e.occurred_at >= opened AND e.occurred_at < closed
           AND e.occurred_at <= after.occurred_at
           AND (e.occurred_at, e.changeset_id, e.seq) < (after.occurred_at, after.changeset_id, after.seq)
           AND (f.changeset_id IS NULL OR e.changeset_id = f.changeset_id)
           AND (f.resource_id IS NULL OR e.resource_id = f.resource_id)
           AND (f.resource IS NULL OR e.relation_id = ANY (f.relations)
                OR e.relation_id IS NULL AND e.resource = f.resource)
           AND (f.action IS NULL OR e.action = f.action)
           AND (f.action_pattern IS NULL OR e.action LIKE f.action_pattern)
           AND (f.status IS NULL OR e.status = f.status)
         ORDER BY e.occurred_at DESC, e.changeset_id DESC, e.seq DESC
         LIMIT 256
    )
    SELECT array_agg(DISTINCT changeset_id), array_agg(DISTINCT occurred_at), min(seq), max(seq),
           count(*), (array_agg((occurred_at, changeset_id, seq)::audit.log_place ORDER BY occurred_at, changeset_id, seq))[1],
           count(*) < 256
      INTO batch.changesets, batch.times, batch.first_seq, batch.last_seq, batch.events, batch.lowest, batch.is_last
      FROM found;
    RETURN batch;
END
$$;
COMMENT ON FUNCTION next_events(log_filter, timestamptz, timestamptz, log_place) IS 'The changesets of the next events of a page, found by the filters of events and time.';

CREATE FUNCTION next_changesets(f log_filter, opened timestamptz, closed timestamptz, after log_place, room int)
    RETURNS log_batch
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    batch audit.log_batch;
    -- A changeset with more events than this is read by itself, event by event.
    large CONSTANT int := 1024;
    -- Filters of events leave an unknown part of a changeset's.
    all_count CONSTANT boolean := (f.action, f.action_pattern, f.resource, f.resource_id, f.status) IS NULL;
    wanted CONSTANT int := CASE WHEN all_count THEN least(room, 256) ELSE 256 END;
    events CONSTANT int := CASE WHEN all_count THEN room ELSE 4 * large END;
    first_is_large boolean;
BEGIN
    WITH found AS (
        SELECT c.occurred_at, c.id, c.event_count
          FROM audit.log_changeset c
         WHERE c.occurred_at >= opened AND c.occurred_at < closed
           AND c.occurred_at <= after.occurred_at
           AND (c.occurred_at, c.id, 0) < (after.occurred_at, after.changeset_id, after.seq)
           AND (f.user_id IS NULL OR c.user_id = f.user_id)
           AND (f.tenant_id IS NULL OR c.tenant_id = f.tenant_id)
           AND (f.request_id IS NULL OR c.request_id = f.request_id)
           AND (f.ip_address IS NULL OR c.ip_address <<= f.ip_address)
         ORDER BY c.occurred_at DESC, c.id DESC
         LIMIT wanted
    ), counted AS (
        SELECT occurred_at, id, event_count, row_number() OVER so_far AS number,
               sum(event_count) OVER so_far - event_count AS before,
               bool_or(event_count > large) OVER so_far AS is_large, count(*) OVER () AS of_all
          FROM found WINDOW so_far AS (ORDER BY occurred_at DESC, id DESC)
    )
    SELECT array_agg(id ORDER BY number), array_agg(occurred_at ORDER BY number), 0, 2147483647,
           sum(event_count), coalesce(count(*) = max(of_all) AND max(of_all) < wanted, true), bool_or(is_large)
      INTO batch.changesets, batch.times, batch.first_seq, batch.last_seq, batch.events, batch.is_last, first_is_large
      FROM counted
     WHERE number = 1 OR before < events AND NOT is_large;
    IF first_is_large THEN
        f.changeset_id := batch.changesets[1];
        batch := audit.next_events(f, batch.times[1], batch.times[1] + interval '1 microsecond', after);
        IF batch.is_last THEN
            batch.lowest.seq := 0;
            batch.is_last := false;
        END IF;
    ELSIF batch.changesets IS NOT NULL THEN
        batch.lowest := (batch.times[cardinality(batch.times)], batch.changesets[cardinality(batch.changesets)], 0);
    END IF;
    RETURN batch;
END
$$;
COMMENT ON FUNCTION next_changesets(log_filter, timestamptz, timestamptz, log_place, int) IS 'The next changesets of a page, found by the filters of context and time.';

-- Of the events, time and tenant alone are looked for in an index: 16_tenants.sql.
CREATE FUNCTION next_visible(f log_filter, opened timestamptz, closed timestamptz, after log_place) RETURNS log_batch
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on
    SET enable_seqscan = on
AS $$
DECLARE
    batch audit.log_batch;
BEGIN
    WITH found AS (
        SELECT l.occurred_at, l.changeset_id, l.seq
          FROM audit.log l
         WHERE l.occurred_at >= opened AND l.occurred_at < closed AND l.event_at >= opened AND l.event_at < closed
           AND l.occurred_at <= after.occurred_at AND l.event_at <= after.occurred_at
           AND (l.occurred_at, l.changeset_id, l.seq) < (after.occurred_at, after.changeset_id, after.seq)
           AND (f.user_id IS NULL OR l.user_id = f.user_id)
           AND (f.tenant_id IS NULL OR l.tenant_id = f.tenant_id)
           AND (f.request_id IS NULL OR l.request_id = f.request_id)
           AND (f.ip_address IS NULL OR l.ip_address <<= f.ip_address)
           AND (f.resource_id IS NULL OR l.resource_id = f.resource_id)
           AND (f.resource IS NULL OR l.resource = f.resource)
           AND (f.action IS NULL OR l.action = f.action)
           AND (f.action_pattern IS NULL OR l.action LIKE f.action_pattern)
           AND (f.status IS NULL OR l.status = f.status::text)
         ORDER BY l.occurred_at DESC, l.changeset_id DESC, l.seq DESC
         LIMIT 256
    )
    SELECT array_agg(DISTINCT changeset_id), array_agg(DISTINCT occurred_at), min(seq), max(seq),
           count(*), (array_agg((occurred_at, changeset_id, seq)::audit.log_place ORDER BY occurred_at, changeset_id, seq))[1],
           count(*) < 256
      INTO batch.changesets, batch.times, batch.first_seq, batch.last_seq, batch.events, batch.lowest, batch.is_last
      FROM found;
    RETURN batch;
END
$$;
COMMENT ON FUNCTION next_visible(log_filter, timestamptz, timestamptz, log_place) IS 'The changesets of the next events of a page, of those that a tenant''s reader may see.';

CREATE FUNCTION find_logs(f log_filter, page_size int, after text) RETURNS SETOF log_page
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 100
    SET search_path = pg_catalog, pg_temp
    -- Each window is planned with its bounds, so that only its partitions are.
    SET plan_cache_mode = force_custom_plan
    -- A batch is two short lists to be matched, however few rows the planner expects.
    SET enable_nestloop = off
    -- The planner takes it that a BRIN index leaves out no page of the partition being written.
    SET enable_seqscan = off
AS $$
DECLARE
    place audit.log_place := audit.log_place(after);
    everything CONSTANT boolean := audit.reads_everything();
    by_event CONSTANT boolean := everything AND f.request_id IS NULL AND (f.resource_id IS NOT NULL
        OR (f.user_id, f.tenant_id, f.ip_address) IS NULL
           AND NOT (f.action, f.action_pattern, f.resource, nullif(f.status, 'success')) IS NULL);
    -- Of the condition that finds the fewest, as far as one can tell without looking.
    key_column CONSTANT text := CASE
        WHEN NOT everything THEN 'tenant_id'
        WHEN f.request_id IS NOT NULL THEN 'request_id'
        WHEN f.resource_id IS NOT NULL THEN 'resource_id'
        WHEN f.user_id IS NOT NULL THEN 'user_id'
        WHEN f.ip_address IS NOT NULL THEN 'ip_address'
        WHEN f.tenant_id IS NOT NULL THEN 'tenant_id'
        WHEN f.action IS NOT NULL OR f.action_pattern IS NOT NULL THEN 'action'
        WHEN f.resource IS NOT NULL THEN 'relation_id'
        ELSE 'occurred_at'
    END;
    w record;
    batch audit.log_batch;
    part audit.log_batch;
    -- How far the search has come.
    reached audit.log_place := place;
    remaining int := page_size;
    found_rows int;
    first_time timestamptz;
    last_time timestamptz;
BEGIN
    IF page_size IS NULL OR page_size NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'page_size must be between 1 and 10000'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Read more with further calls: pass the cursor of the last row as after.';
    END IF;
    FOR w IN
        SELECT * FROM audit.log_windows(CASE WHEN by_event THEN 'event' ELSE 'changeset' END, key_column, f.since,
                                        least(f.until, place.occurred_at + interval '1 microsecond'))
    LOOP
        IF NOT everything AND w.opened = w.bottom AND w.bottom > '-infinity' AND w.bottom < least(w.closed, now()) - interval '1 day' THEN
            -- All of the tenant's events of a window are read, so it begins narrow.
            w.width := interval '1 day';
            w.opened := least(w.closed, now()) - w.width;
        END IF;
        LOOP
            -- Gathers changesets until they fill the page, or a batch, or nothing is left.
            batch := NULL;
            LOOP
                IF NOT everything THEN
                    part := audit.next_visible(f, w.opened, w.closed, reached);
                ELSIF by_event THEN
                    part := audit.next_events(f, w.opened, w.closed, reached);
                ELSE
                    part := audit.next_changesets(f, w.opened, w.closed, reached, remaining - coalesce(batch.events, 0)::int);
                END IF;
                IF batch.changesets IS NULL THEN
                    batch := part;
                ELSIF part.changesets IS NOT NULL THEN
                    -- One that is read event by event waits for the next batch.
                    EXIT WHEN everything AND NOT by_event AND part.last_seq < 2147483647;
                    batch.changesets := batch.changesets || part.changesets;
                    batch.times := batch.times || part.times;
                    batch.first_seq := least(batch.first_seq, part.first_seq);
                    batch.last_seq := greatest(batch.last_seq, part.last_seq);
                    batch.events := batch.events + part.events;
                    batch.lowest := part.lowest;
                END IF;
                IF part.changesets IS NOT NULL THEN
                    reached := part.lowest;
                END IF;
                batch.is_last := part.is_last AND w.opened = w.bottom;
                EXIT WHEN NOT part.is_last OR batch.is_last OR batch.events >= least(remaining, 256);
                -- As wide as fills the page, if events go on as densely.
                w.width := w.width * least(32, greatest(2, coalesce(1.5 * remaining / nullif(batch.events, 0), 8)))::float8;
                w.opened := CASE WHEN w.width > interval '100 years' THEN w.bottom
                                 ELSE greatest(w.bottom, w.opened - w.width) END;
            END LOOP;
            EXIT WHEN batch.changesets IS NULL;
            -- A window can be of many partitions, a page is of few.
            SELECT min(t.at), max(t.at) INTO first_time, last_time FROM unnest(batch.times) AS t (at);
            RETURN QUERY
            SELECT l.*, audit.log_cursor(l.occurred_at, l.changeset_id, l.seq)
              FROM audit.log_by_changeset l
             WHERE l.changeset_id = ANY (batch.changesets)
               AND l.occurred_at >= first_time AND l.occurred_at <= last_time
               AND l.event_at >= first_time AND l.event_at <= last_time
               AND l.occurred_at = ANY (batch.times) AND l.occurred_at OPERATOR(audit.<@) batch.times
               AND l.event_at = ANY (batch.times) AND l.event_at OPERATOR(audit.<@) batch.times
               AND (l.occurred_at, l.changeset_id, l.seq) < (place.occurred_at, place.changeset_id, place.seq)
               AND (l.occurred_at, l.changeset_id, l.seq) >= ((batch.lowest).occurred_at, (batch.lowest).changeset_id, (batch.lowest).seq)
               AND l.seq BETWEEN batch.first_seq AND batch.last_seq
               AND (f.user_id IS NULL OR l.user_id = f.user_id)
               AND (f.tenant_id IS NULL OR l.tenant_id = f.tenant_id)
               AND (f.ip_address IS NULL OR l.ip_address <<= f.ip_address)
               AND (f.resource_id IS NULL OR l.resource_id = f.resource_id)
               AND (f.resource IS NULL OR l.resource = f.resource)
               AND (f.action IS NULL OR l.action = f.action)
               AND (f.action_pattern IS NULL OR l.action LIKE f.action_pattern)
               AND (f.status IS NULL OR l.status = f.status::text)
             ORDER BY l.occurred_at DESC, l.changeset_id DESC, l.seq DESC
             LIMIT remaining;
            GET DIAGNOSTICS found_rows = ROW_COUNT;
            remaining := remaining - found_rows;
            IF remaining = 0 THEN
                RETURN;
            END IF;
            place := batch.lowest;
            reached := place;
            EXIT WHEN batch.is_last;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION find_logs(log_filter, int, text) IS 'The page of audit.get_logs.';

CREATE FUNCTION get_logs(
    user_id     text        DEFAULT NULL,
    tenant_id   text        DEFAULT NULL,
    action      text        DEFAULT NULL,
    resource    text        DEFAULT NULL,
    resource_id text        DEFAULT NULL,
    status      text        DEFAULT NULL,
    ip_address  inet        DEFAULT NULL,
    request_id  text        DEFAULT NULL,
    since       timestamptz DEFAULT NULL,
    until       timestamptz DEFAULT NULL,
    page_size   int         DEFAULT 100,
    after       text        DEFAULT NULL
) RETURNS SETOF log_page
    LANGUAGE plpgsql STABLE ROWS 100
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM audit.note_read('get_logs', jsonb_strip_nulls(jsonb_build_object(
        'user_id', user_id, 'tenant_id', tenant_id, 'action', action, 'resource', resource, 'resource_id', resource_id,
        'status', status, 'ip_address', ip_address, 'request_id', request_id, 'since', since, 'until', until,
        'page_size', page_size, 'after', after)));
    RETURN QUERY SELECT * FROM audit.find_logs(
        audit.log_filter(user_id, tenant_id, action, resource, resource_id, status, ip_address, request_id, since, until),
        page_size, after);
END
$$;
COMMENT ON FUNCTION get_logs(text, text, text, text, text, text, inet, text, timestamptz, timestamptz, int, text) IS 'Events that meet all filters given, newest first, with the cursor to go on from each: pass the last row''s as after. Action: exact, or a prefix such as auth.*; ip_address: an address or a network; since inclusive, until exclusive; page_size 1 to 10000. Errors: 22023 for a page_size, range, status or cursor that is not valid.';

CREATE FUNCTION count_logs(
    user_id     text        DEFAULT NULL,
    tenant_id   text        DEFAULT NULL,
    action      text        DEFAULT NULL,
    resource    text        DEFAULT NULL,
    resource_id text        DEFAULT NULL,
    status      text        DEFAULT NULL,
    ip_address  inet        DEFAULT NULL,
    request_id  text        DEFAULT NULL,
    since       timestamptz DEFAULT NULL,
    until       timestamptz DEFAULT NULL
) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    f CONSTANT audit.log_filter := audit.log_filter(user_id, tenant_id, action, resource, resource_id, status,
                                                    ip_address, request_id, since, until);
    everything CONSTANT boolean := audit.reads_everything();
BEGIN
    PERFORM audit.note_read('count_logs', jsonb_strip_nulls(jsonb_build_object(
        'user_id', user_id, 'tenant_id', tenant_id, 'action', action, 'resource', resource, 'resource_id', resource_id,
        'status', status, 'ip_address', ip_address, 'request_id', request_id, 'since', since, 'until', until)));
    IF everything AND (f.action, f.action_pattern, f.resource, f.resource_id, f.status) IS NULL THEN
        RETURN (
            SELECT coalesce(sum(c.event_count), 0)
              FROM audit.log_changeset c
             WHERE c.occurred_at >= f.since AND c.occurred_at < f.until
               AND (f.user_id IS NULL OR c.user_id = f.user_id)
               AND (f.tenant_id IS NULL OR c.tenant_id = f.tenant_id)
               AND (f.request_id IS NULL OR c.request_id = f.request_id)
               AND (f.ip_address IS NULL OR c.ip_address <<= f.ip_address));
    ELSIF everything AND (f.user_id, f.tenant_id, f.request_id, f.ip_address) IS NULL THEN
        RETURN (
            SELECT count(*)
              FROM audit.log_event e
             WHERE e.occurred_at >= f.since AND e.occurred_at < f.until
               AND (f.resource_id IS NULL OR e.resource_id = f.resource_id)
               AND (f.resource IS NULL OR e.relation_id = ANY (f.relations)
                    OR e.relation_id IS NULL AND e.resource = f.resource)
               AND (f.action IS NULL OR e.action = f.action)
               AND (f.action_pattern IS NULL OR e.action LIKE f.action_pattern)
               AND (f.status IS NULL OR e.status = f.status));
    END IF;
    RETURN (
        SELECT count(*)
          FROM audit.log l
         WHERE l.occurred_at >= f.since AND l.occurred_at < f.until AND l.event_at >= f.since AND l.event_at < f.until
           AND (f.user_id IS NULL OR l.user_id = f.user_id)
           AND (f.tenant_id IS NULL OR l.tenant_id = f.tenant_id)
           AND (f.request_id IS NULL OR l.request_id = f.request_id)
           AND (f.ip_address IS NULL OR l.ip_address <<= f.ip_address)
           AND (f.resource_id IS NULL OR l.resource_id = f.resource_id)
           AND (f.resource IS NULL OR l.resource = f.resource)
           AND (f.action IS NULL OR l.action = f.action)
           AND (f.action_pattern IS NULL OR l.action LIKE f.action_pattern)
           AND (f.status IS NULL OR l.status = f.status::text));
END
$$;
COMMENT ON FUNCTION count_logs(text, text, text, text, text, text, inet, text, timestamptz, timestamptz) IS 'Number of events that audit.get_logs would return in all, with the same filters. Errors: as audit.get_logs.';

-- Questions.

CREATE FUNCTION user_activity(user_id text, since timestamptz DEFAULT now() - interval '30 days', max_rows int DEFAULT 100)
    RETURNS SETOF log_page
    LANGUAGE plpgsql STABLE ROWS 100
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM audit.required('user_id', user_id);
    PERFORM audit.note_read('user_activity', jsonb_strip_nulls(jsonb_build_object('user_id', user_id, 'since', since, 'max_rows', max_rows)));
    RETURN QUERY SELECT * FROM audit.find_logs(audit.log_filter(user_id => user_activity.user_id, since => user_activity.since), max_rows, NULL);
END
$$;
COMMENT ON FUNCTION user_activity(text, timestamptz, int) IS 'What a user did, newest first: rows of audit.get_logs. Errors: 22004 without a user; else as audit.get_logs.';

CREATE FUNCTION tenant_activity(tenant_id text, since timestamptz DEFAULT now() - interval '30 days', max_rows int DEFAULT 100)
    RETURNS SETOF log_page
    LANGUAGE plpgsql STABLE ROWS 100
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM audit.required('tenant_id', tenant_id);
    PERFORM audit.note_read('tenant_activity', jsonb_strip_nulls(jsonb_build_object('tenant_id', tenant_id, 'since', since, 'max_rows', max_rows)));
    RETURN QUERY SELECT * FROM audit.find_logs(audit.log_filter(tenant_id => tenant_activity.tenant_id, since => tenant_activity.since), max_rows, NULL);
END
$$;
COMMENT ON FUNCTION tenant_activity(text, timestamptz, int) IS 'What happened in a tenant, newest first: rows of audit.get_logs. Errors: 22004 without a tenant; else as audit.get_logs.';

CREATE FUNCTION failed_logins(
    ip_address inet        DEFAULT NULL,
    user_id    text        DEFAULT NULL,
    since      timestamptz DEFAULT now() - interval '24 hours',
    max_rows   int         DEFAULT 1000
) RETURNS SETOF log_page
    LANGUAGE plpgsql STABLE ROWS 100
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM audit.note_read('failed_logins', jsonb_strip_nulls(jsonb_build_object(
        'ip_address', ip_address, 'user_id', user_id, 'since', since, 'max_rows', max_rows)));
    RETURN QUERY SELECT * FROM audit.find_logs(
        audit.log_filter(action => 'auth.login_failed', ip_address => failed_logins.ip_address, user_id => failed_logins.user_id,
                         since => failed_logins.since),
        max_rows, NULL);
END
$$;
COMMENT ON FUNCTION failed_logins(inet, text, timestamptz, int) IS 'Logins that failed (auth.login_failed), from an address or network, of a user, or all, newest first: rows of audit.get_logs. Errors: as audit.get_logs.';

CREATE FUNCTION content_counts(f log_filter)
    RETURNS TABLE (others int, operation text, action text, status text, relation_id int, events bigint)
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    -- Their context is read only where it decides.
    IF f.tenant_id IS NULL AND audit.reads_everything() THEN
        RETURN QUERY
        SELECT grouping(e.operation, e.action, e.status, e.relation_id), e.operation::text, e.action, e.status::text, e.relation_id, count(*)
          FROM audit.log_event e
         WHERE e.occurred_at >= f.since AND e.occurred_at < f.until
         GROUP BY GROUPING SETS ((e.operation), (e.action), (e.status), (e.relation_id));
    ELSE
        RETURN QUERY
        SELECT grouping(l.operation, l.action, l.status, l.relation_id), l.operation, l.action, l.status, l.relation_id, count(*)
          FROM audit.log l
         WHERE l.occurred_at >= f.since AND l.occurred_at < f.until AND l.event_at >= f.since AND l.event_at < f.until
           AND (f.tenant_id IS NULL OR l.tenant_id = f.tenant_id)
         GROUP BY GROUPING SETS ((l.operation), (l.action), (l.status), (l.relation_id));
    END IF;
END
$$;
COMMENT ON FUNCTION content_counts(log_filter) IS 'Numbers of events of a time, of a tenant or of all, by operation, action, status and table: one of them at a time, others as grouping() of these four.';

CREATE FUNCTION statistics(
    since     timestamptz DEFAULT now() - interval '30 days',
    until     timestamptz DEFAULT NULL,
    tenant_id text        DEFAULT NULL
) RETURNS TABLE (dimension text, key text, events bigint)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    f CONSTANT audit.log_filter := audit.log_filter(tenant_id => tenant_id, since => since, until => until);
    unit CONSTANT text := CASE WHEN least(f.until, now()) <= f.since + interval '2 days' THEN 'hour' ELSE 'day' END;
BEGIN
    PERFORM audit.note_read('statistics', jsonb_strip_nulls(jsonb_build_object('since', since, 'until', until, 'tenant_id', tenant_id)));
    RETURN QUERY
    WITH context AS (
        SELECT grouping(c.user_id, c.tenant_id, p.period) AS others, c.user_id, c.tenant_id, p.period,
               coalesce(sum(c.event_count), 0)::bigint AS events
          FROM audit.visible_changeset c, LATERAL (VALUES (date_trunc(unit, c.occurred_at))) AS p (period)
         WHERE c.occurred_at >= f.since AND c.occurred_at < f.until
           AND (f.tenant_id IS NULL OR c.tenant_id = f.tenant_id)
         GROUP BY GROUPING SETS ((), (c.user_id), (c.tenant_id), (p.period))
    ), content AS MATERIALIZED (
        SELECT * FROM audit.content_counts(f)
    ), counted AS (
        SELECT 1 AS place, 'total' AS dimension, NULL AS key, c.events FROM context c WHERE c.others = 7
        UNION ALL SELECT 2, 'operation', e.operation, e.events FROM content e WHERE e.others = 7
        UNION ALL SELECT 3, 'action', e.action, e.events FROM content e WHERE e.others = 11 AND e.action IS NOT NULL
        UNION ALL SELECT 4, 'status', e.status, e.events FROM content e WHERE e.others = 13
        UNION ALL SELECT 5, 'user', c.user_id, c.events FROM context c WHERE c.others = 3
        UNION ALL SELECT 6, 'tenant', c.tenant_id, c.events FROM context c WHERE c.others = 5
        UNION ALL SELECT 7, 'table', r.resource, sum(e.events)::bigint
                    FROM content e JOIN audit.relation r ON r.id = e.relation_id WHERE e.others = 14 GROUP BY r.resource
        UNION ALL SELECT 8, unit, to_char(c.period, CASE unit WHEN 'hour' THEN 'YYYY-MM-DD HH24:00' ELSE 'YYYY-MM-DD' END),
                         c.events
                    FROM context c WHERE c.others = 6
    )
    SELECT n.dimension, n.key, n.events
      FROM counted n
     ORDER BY n.place, CASE WHEN n.place < 8 THEN n.events END DESC, n.key COLLATE "C" NULLS LAST;
END
$$;
COMMENT ON FUNCTION statistics(timestamptz, timestamptz, text) IS 'Numbers of events: in total, by operation, action, status, user, tenant, table, and by hour where the range is two days or less, else by day (in the session''s time zone). Of a tenant, or of all. Errors: 22023 for an inverted range.';

CREATE TYPE security_event AS (
    occurred_at timestamptz, kind text, user_id text, tenant_id text, ip_address inet, action text, resource text,
    resource_id text, events bigint, changeset_id uuid, seq int, details jsonb
);
COMMENT ON TYPE security_event IS 'A row of audit.security_events: one event, or a finding over several.';

CREATE FUNCTION security_events(
    tenant_id      text        DEFAULT NULL,
    since          timestamptz DEFAULT now() - interval '7 days',
    burst_count    int         DEFAULT 10,
    burst_window   interval    DEFAULT '10 minutes',
    volume_factor  float8      DEFAULT 5,
    volume_minimum int         DEFAULT 1000,
    baseline       interval    DEFAULT '30 days'
) RETURNS SETOF security_event
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    -- Names apart from columns.
    tenant CONSTANT text := security_events.tenant_id;
    first_time CONSTANT timestamptz := security_events.since;
    earlier CONSTANT timestamptz := security_events.since - baseline;
BEGIN
    IF since IS NULL OR NOT (burst_count >= 2 AND burst_window > '0' AND volume_factor >= 1 AND volume_minimum >= 1
                             AND baseline >= '1 day') IS TRUE THEN
        RAISE EXCEPTION 'threshold out of range'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'since must be given, burst_count be 2 or more, burst_window positive, volume_factor and volume_minimum 1 or more, baseline a day or more.';
    END IF;
    PERFORM audit.note_read('security_events', jsonb_strip_nulls(jsonb_build_object(
        'tenant_id', tenant_id, 'since', since, 'burst_count', burst_count, 'burst_window', burst_window, 'volume_factor', volume_factor,
        'volume_minimum', volume_minimum, 'baseline', baseline)));
    RETURN QUERY
    WITH marked AS MATERIALIZED (
        SELECT CASE WHEN l.action = 'auth.login_failed' THEN 'failed_login'
                    WHEN l.action LIKE '%.role\_changed' THEN 'role_change'
                    WHEN l.action LIKE '%.deactivated' THEN 'deactivation'
                    WHEN l.action IN ('user.deleted', 'tenant.deleted') THEN 'deletion'
                    WHEN l.action LIKE 'auth.password%' THEN 'password'
                    WHEN l.action LIKE 'audit.%' AND l.action <> 'audit.read' THEN 'audit_configuration'
                    WHEN l.status <> 'success' AND l.details ->> 'sqlstate' IN ('42501', '28000', '28P01')
                    THEN 'permission_failure'
               END AS kind,
               l.occurred_at, l.user_id, l.tenant_id, l.ip_address, l.action, l.resource, l.resource_id, l.changeset_id,
               l.seq, l.details
          FROM audit.log l
         WHERE l.occurred_at >= first_time AND l.event_at >= first_time AND (tenant IS NULL OR l.tenant_id = tenant)
           AND (l.action IS NOT NULL OR l.status <> 'success')
    ), failure AS (
        SELECT 'burst_from_address' AS kind, host(m.ip_address) AS key, m.*
          FROM marked m (marked_as) WHERE m.marked_as IN ('failed_login', 'permission_failure') AND m.ip_address IS NOT NULL
        UNION ALL
        SELECT 'burst_of_user', m.user_id, m.*
          FROM marked m (marked_as) WHERE m.marked_as IN ('failed_login', 'permission_failure') AND m.user_id IS NOT NULL
    ), counted AS (
        SELECT f.*, count(*) OVER (PARTITION BY f.kind, f.key ORDER BY f.occurred_at
                                   RANGE BETWEEN burst_window PRECEDING AND CURRENT ROW) AS in_window,
               -- A burst goes on until there is a pause longer than the window.
               (f.occurred_at - lag(f.occurred_at) OVER so_far <= burst_window) IS NOT TRUE AS begins
          FROM failure f WINDOW so_far AS (PARTITION BY f.kind, f.key ORDER BY f.occurred_at, f.changeset_id, f.seq)
    ), numbered AS (
        SELECT c.*, count(*) FILTER (WHERE c.begins) OVER so_far AS number
          FROM counted c WINDOW so_far AS (PARTITION BY c.kind, c.key ORDER BY c.occurred_at, c.changeset_id, c.seq)
    ), burst AS (
        SELECT max(n.occurred_at) AS occurred_at, n.kind, count(*) AS events,
               CASE WHEN count(DISTINCT n.user_id) = 1 THEN max(n.user_id) END AS user_id,
               CASE WHEN count(DISTINCT n.tenant_id) = 1 THEN max(n.tenant_id) END AS tenant_id,
               CASE WHEN count(DISTINCT n.ip_address) = 1 THEN max(n.ip_address) END AS ip_address,
               jsonb_build_object('first', min(n.occurred_at), 'most_in_window', max(n.in_window),
                                  'users', count(DISTINCT n.user_id), 'addresses', count(DISTINCT n.ip_address)) AS details
          FROM numbered n
         GROUP BY n.kind, n.key, n.number
        HAVING max(n.in_window) >= burst_count
    ), context AS MATERIALIZED (
        SELECT c.occurred_at, c.user_id, c.tenant_id, c.ip_address, c.event_count, c.id
          FROM audit.visible_changeset c
         WHERE c.occurred_at >= earlier AND c.user_id IS NOT NULL AND (tenant IS NULL OR c.tenant_id = tenant)
    ), pair AS (
        SELECT c.user_id, c.ip_address, min(c.occurred_at) AS first_used, count(*) AS changesets,
               (array_agg(c.id ORDER BY c.occurred_at, c.id))[1] AS id,
               (array_agg(c.tenant_id ORDER BY c.occurred_at, c.id))[1] AS tenant_id
          FROM context c WHERE c.ip_address IS NOT NULL GROUP BY c.user_id, c.ip_address
    ), daily AS (
        SELECT c.user_id, date_trunc('day', c.occurred_at) AS day, max(c.occurred_at) AS occurred_at,
               sum(c.event_count) AS events, CASE WHEN count(DISTINCT c.tenant_id) = 1 THEN max(c.tenant_id) END AS tenant_id
          FROM context c WHERE c.occurred_at >= first_time GROUP BY 1, 2
    ), usual AS (
        SELECT c.user_id, sum(c.event_count) / (EXTRACT(epoch FROM baseline) / 86400) AS a_day
          FROM context c WHERE c.occurred_at < first_time GROUP BY c.user_id
    ), found AS (
        SELECT m.occurred_at, m.kind, m.user_id, m.tenant_id, m.ip_address, m.action, m.resource, m.resource_id,
               1 AS events, m.changeset_id, m.seq, m.details
          FROM marked m WHERE m.kind IS NOT NULL
        UNION ALL
        SELECT b.occurred_at, b.kind, b.user_id, b.tenant_id, b.ip_address, NULL, NULL, NULL, b.events, NULL, NULL, b.details
          FROM burst b
        UNION ALL
        -- Only of users who were there before: all that a new user uses is new.
        SELECT p.first_used, 'new_address', p.user_id, p.tenant_id, p.ip_address, NULL, NULL, NULL, p.changesets, p.id, NULL,
               NULL
          FROM pair p
         WHERE p.first_used >= first_time
           AND EXISTS (SELECT FROM pair o WHERE o.user_id = p.user_id AND o.first_used < first_time)
        UNION ALL
        SELECT d.occurred_at, 'unusual_volume', d.user_id, d.tenant_id, NULL, NULL, NULL, NULL, d.events, NULL, NULL,
               jsonb_build_object('day', d.day, 'usual_a_day', round(coalesce(u.a_day, 0), 1))
          FROM daily d LEFT JOIN usual u ON u.user_id = d.user_id
         WHERE d.events >= volume_minimum AND d.events > volume_factor * coalesce(u.a_day, 0)
    )
    SELECT f.* FROM found f ORDER BY f.occurred_at DESC, f.kind, f.changeset_id, f.seq, f.user_id, f.ip_address;
END
$$;
COMMENT ON FUNCTION security_events(text, timestamptz, int, interval, float8, int, interval) IS 'What matters to security, newest first: failed logins, changes of roles, deactivations, deletions, passwords, refused permissions, what concerns the audit itself; bursts of failures (burst_count within burst_window), the first use of an address by a user who was there before, and days with more than volume_factor times a user''s usual events, at least volume_minimum; what is usual is taken from the baseline before since. Errors: 22023 for a threshold out of range.';
