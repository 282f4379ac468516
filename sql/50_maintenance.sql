-- What a scheduler calls from time to time: partitions ahead of time, and indexes where nothing is written any more.
--
-- Writers are never kept waiting for long: partitions are made while they are empty, indexes built where the time is over,
-- and the default partition, which takes what no other does, is turned into a partition of its own without being read
-- under a lock.

CREATE FUNCTION closed_indexes() RETURNS TABLE (log_table text, suffix text, definition text)
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    VALUES
        ('changeset', 'time',    '(occurred_at)'),
        ('changeset', 'user',    '(user_id, occurred_at) WHERE user_id IS NOT NULL'),
        ('changeset', 'tenant',  '(tenant_id, occurred_at) WHERE tenant_id IS NOT NULL'),
        ('changeset', 'request', '(request_id, occurred_at) WHERE request_id IS NOT NULL'),
        ('changeset', 'address', '(ip_address, occurred_at) WHERE ip_address IS NOT NULL'),
        ('event', 'time',        '(occurred_at, changeset_id, seq)'),
        ('event', 'row',         '(resource_id, occurred_at, relation_id) WHERE resource_id IS NOT NULL'),
        ('event', 'table',       '(relation_id, occurred_at) WHERE relation_id IS NOT NULL'),
        ('event', 'action',      '(action text_pattern_ops, occurred_at) WHERE action IS NOT NULL'),
        ('event', 'resource',    '(resource, occurred_at) WHERE resource IS NOT NULL'),
        ('event', 'failure',     '(occurred_at) WHERE status <> ''success'''),
        ('event', 'whole',       '(relation_id, occurred_at) WHERE operation IN (''TRUNCATE'', ''SNAPSHOT'')'),
        ('event', 'old_key',     '((details ->> ''old_resource_id'')) WHERE details ? ''old_resource_id''');
END;
COMMENT ON FUNCTION closed_indexes() IS 'The indexes of a partition that is written no more: what audit.get_logs, audit.history and the other functions look by.';

CREATE FUNCTION summarize_partition(partition regclass, is_closed boolean) RETURNS int
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pages CONSTANT bigint := pg_relation_size(partition) / current_setting('block_size')::int;
    summaries int := 0;
    made int;
    brin regclass;
BEGIN
    FOR brin IN
        SELECT i.indexrelid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
         WHERE i.indrelid = partition AND a.amname = 'brin' AND i.indisvalid
    LOOP
        made := brin_summarize_new_values(brin);
        -- The range being filled is left without a summary, or each row would have to bring it up to date.
        IF NOT is_closed THEN
            PERFORM brin_desummarize_range(brin, greatest(pages - 1, 0));
            made := greatest(made - 1, 0);
        END IF;
        summaries := summaries + made;
    END LOOP;
    RETURN summaries;
END
$$;
COMMENT ON FUNCTION summarize_partition(regclass, boolean) IS 'Brings the BRIN indexes of a partition up to date, but for the range being filled where it is still written. Returns the number of new summaries.';

CREATE FUNCTION make_partition(log_table text, since timestamptz, until timestamptz) RETURNS text
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    SET TimeZone = 'UTC' SET DateStyle = 'ISO'
AS $$
DECLARE
    name CONSTANT text := audit.partition_name(log_table, since, until);
BEGIN
    EXECUTE format('CREATE TABLE audit.%I PARTITION OF audit.%I FOR VALUES FROM (%L) TO (%L)', name, log_table, since, until);
    PERFORM audit.close_to_others(format('audit.%I', name)::regclass);
    RETURN format('audit.%I', name);
END
$$;
COMMENT ON FUNCTION make_partition(text, timestamptz, timestamptz) IS 'Makes a partition of audit.event or audit.changeset.';

CREATE FUNCTION partition_name(log_table text, since timestamptz, until timestamptz) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET TimeZone = 'UTC'
AS $$
DECLARE
    wanted CONSTANT text := log_table || CASE WHEN since = '-infinity' THEN '_before_' || to_char(until, 'YYYYMMDD')
                                              ELSE '_' || to_char(since, 'YYYYMMDD') END;
    name text := wanted;
BEGIN
    -- Something that was detached may have the name still.
    FOR i IN 2 .. 1000 LOOP
        EXIT WHEN to_regclass(format('audit.%I', name)) IS NULL;
        name := wanted || '_' || i;
    END LOOP;
    RETURN name;
END
$$;
COMMENT ON FUNCTION partition_name(text, timestamptz, timestamptz) IS 'A free name for a partition.';

CREATE FUNCTION close_to_others(partition regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    grantee text;
BEGIN
    -- Whatever default privileges gave.
    FOR grantee IN
        SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END
          FROM pg_class c, aclexplode(c.relacl) AS g WHERE c.oid = partition AND g.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', partition, grantee);
    END LOOP;
END
$$;
COMMENT ON FUNCTION close_to_others(regclass) IS 'Takes all rights on a partition from everybody but its owner: the log is read through its parent.';

-- The default partition becomes one of a time in two steps, if it is large. Its rows are checked first, while writers go on;
-- PostgreSQL believes a constraint that it has checked, and reads nothing when the locks are taken.

CREATE FUNCTION default_is_ready(since timestamptz, until timestamptz) RETURNS boolean
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    SET TimeZone = 'UTC' SET DateStyle = 'ISO'
AS $$
DECLARE
    large CONSTANT bigint := 64 * 1024 * 1024; -- what is smaller is read in no time
    is_checked boolean;
    partition regclass;
BEGIN
    IF greatest(pg_relation_size('audit.event_default'), pg_relation_size('audit.changeset_default')) <= large THEN
        RETURN true;
    END IF;
    is_checked := EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'audit.event_default'::regclass AND conname = 'maintain_range');
    IF NOT is_checked THEN
        PERFORM audit.lock_log();
    END IF;
    FOREACH partition IN ARRAY '{audit.event_default,audit.changeset_default}'::regclass[] LOOP
        IF is_checked THEN
            EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT maintain_range', partition);
        ELSE
            EXECUTE format('ALTER TABLE %s ADD CONSTRAINT maintain_range CHECK (%soccurred_at < %L) NOT VALID', partition,
                           CASE WHEN since > '-infinity' THEN format('occurred_at >= %L AND ', since) END, until);
        END IF;
    END LOOP;
    RETURN is_checked;
EXCEPTION WHEN check_violation THEN
    -- Time went on since the constraint was made.
    PERFORM audit.lock_log();
    FOREACH partition IN ARRAY '{audit.event_default,audit.changeset_default}'::regclass[] LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT maintain_range', partition);
    END LOOP;
    RETURN false;
END
$$;
COMMENT ON FUNCTION default_is_ready(timestamptz, timestamptz) IS 'Whether the default partitions can become those of a time without being read under a lock. Where they cannot, prepares that for the next call.';

COMMENT ON FUNCTION expect_own_ddl(boolean) IS 'From now on, or no longer, DDL on objects of the extension is maintenance, and no coverage event.';

CREATE FUNCTION close_default(log_table text, since timestamptz, until timestamptz) RETURNS text
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    SET TimeZone = 'UTC' SET DateStyle = 'ISO'
AS $$
DECLARE
    old_name CONSTANT text := log_table || '_default';
    old CONSTANT regclass := format('audit.%I', old_name);
    name CONSTANT text := audit.partition_name(log_table, since, until);
    index_name text;
BEGIN
    PERFORM audit.expect_own_ddl(true);
    EXECUTE format('ALTER TABLE audit.%I DETACH PARTITION %s', log_table, old);
    -- A table of the extension is dumped without its definition; this becomes one like the other partitions.
    EXECUTE format('ALTER EXTENSION audit_ext DROP TABLE %s', old);
    EXECUTE format('DROP TRIGGER IF EXISTS append_only ON %s', old);
    EXECUTE format('ALTER TABLE %s RENAME TO %I', old, name);
    FOR index_name IN SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = old LOOP
        EXECUTE format('ALTER INDEX audit.%I RENAME TO %I', index_name, name || substr(index_name, length(old_name) + 1));
    END LOOP;
    EXECUTE format('ALTER TABLE audit.%I ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%L)', log_table, old,
                   CASE WHEN since > '-infinity' THEN quote_literal(since) ELSE 'MINVALUE' END, until);
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS maintain_range', old);
    PERFORM audit.close_to_others(old);
    EXECUTE format('CREATE TABLE audit.%I PARTITION OF audit.%I DEFAULT', old_name, log_table);
    EXECUTE format('ALTER EXTENSION audit_ext ADD TABLE audit.%I', old_name);
    -- As pg_extension_config_dump, which CREATE EXTENSION alone may call.
    UPDATE pg_extension
       SET extconfig = extconfig || format('audit.%I', old_name)::regclass::oid, extcondition = extcondition || ''::text
     WHERE extname = 'audit_ext';
    PERFORM audit.close_to_others(format('audit.%I', old_name)::regclass);
    PERFORM audit.expect_own_ddl(false);
    RETURN old::text;
END
$$;
COMMENT ON FUNCTION close_default(text, timestamptz, timestamptz) IS 'Makes the default partition one of a time, and an empty one the default.';

-- A record's transaction holds its partition of events, then that of changesets, and may ask for the tables above. All four
-- locks are had at once, or given back before any of those who wait looks for a deadlock and becomes its victim.
CREATE FUNCTION lock_log() RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    attempts CONSTANT int := 20;
    patience CONSTANT int := (SELECT greatest(setting::int / 5, 1) FROM pg_settings WHERE name = 'deadlock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', patience::text, true);
    FOR attempt IN 1 .. attempts LOOP
        BEGIN
            LOCK TABLE ONLY audit.event, ONLY audit.event_default, ONLY audit.changeset, ONLY audit.changeset_default IN ACCESS EXCLUSIVE MODE;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF attempt = attempts THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.1);
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION lock_log() IS 'Locks the log for a moment, without ever being the cause of a deadlock. Errors: 55P03 where that cannot be had.';

CREATE FUNCTION maintain(partition_interval text DEFAULT NULL, ahead int DEFAULT 2, max_indexes int DEFAULT NULL)
    RETURNS TABLE (action text, object text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET TimeZone = 'UTC' SET DateStyle = 'ISO'
    -- Who holds a lock longer is waited for in the next call.
    SET lock_timeout = '3s'
AS $$
#variable_conflict use_variable
DECLARE
    -- Transactions that began in time may still be writing.
    grace CONSTANT interval := '1 hour';
    margin CONSTANT interval := '5 minutes';
    unit text := partition_interval;
    step interval;
    log_table text;
    p record;
    i record;
    last_until timestamptz;
    oldest timestamptz;
    newest timestamptz;
    boundary timestamptz;
    made int;
    indexes_left int := coalesce(max_indexes, 2147483647);
BEGIN
    IF indexes_left < 0 THEN
        RAISE EXCEPTION 'max_indexes must not be negative' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'It is the number of indexes to be built at most; NULL for all.';
    ELSIF ahead IS NULL OR ahead NOT BETWEEN 1 AND 100 THEN
        RAISE EXCEPTION 'ahead must be between 1 and 100' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'It is the number of partitions to be made ahead of time.';
    ELSIF unit IS NULL THEN
        -- As the newest partition is.
        unit := (SELECT CASE WHEN l.until - l.since <= interval '1 day' THEN 'day' WHEN l.until - l.since <= interval '7 days' THEN 'week' ELSE 'month' END
                   FROM audit.log_partitions('event', 'occurred_at', '-infinity', 'infinity') AS l
                  WHERE NOT l.is_default AND l.since > '-infinity' AND l.until < 'infinity' ORDER BY l.until DESC LIMIT 1);
        unit := coalesce(unit, 'month');
    ELSIF unit NOT IN ('day', 'week', 'month') THEN
        RAISE EXCEPTION 'unknown partition interval "%"', left(unit, 80) USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Partitions can be of a day, a week or a month.';
    END IF;
    step := ('1 ' || unit)::interval;

    -- One call at a time. It keeps neither readers nor writers.
    LOCK TABLE ONLY audit.event IN SHARE UPDATE EXCLUSIVE MODE;

    -- Where the time is over: indexes. Where not: summaries of what was written.
    FOREACH log_table IN ARRAY '{changeset,event}'::text[] LOOP
        FOR p IN
            SELECT l.partition::regclass AS partition, c.relname AS name, NOT l.is_default AND l.until <= now() - grace AS is_closed
              FROM audit.log_partitions(log_table, 'occurred_at', '-infinity', 'infinity') AS l JOIN pg_class c ON c.oid = l.partition
             ORDER BY l.until DESC NULLS FIRST
        LOOP
            BEGIN
                made := 0;
                IF p.is_closed THEN
                    FOR i IN
                        SELECT n.suffix, n.definition FROM audit.closed_indexes() AS n
                         WHERE n.log_table = log_table AND to_regclass(format('audit.%I', p.name || '_' || n.suffix || '_idx')) IS NULL
                    LOOP
                        EXIT WHEN indexes_left = 0;
                        indexes_left := indexes_left - 1;
                        EXECUTE format('CREATE INDEX %I ON %s %s', p.name || '_' || i.suffix || '_idx', p.partition, i.definition);
                        made := made + 1;
                        action := 'index';
                        object := format('audit.%I', p.name || '_' || i.suffix || '_idx');
                        RETURN NEXT;
                    END LOOP;
                END IF;
                IF audit.summarize_partition(p.partition, p.is_closed) > 0 THEN
                    action := 'summary';
                    object := p.partition::text;
                    RETURN NEXT;
                END IF;
                IF made > 0 THEN
                    EXECUTE format('ANALYZE %s (%s)', p.partition, CASE log_table
                        WHEN 'event' THEN 'occurred_at, seq, relation_id, operation, status, changeset_id, resource_id, action, resource'
                        ELSE 'occurred_at, id, event_count, user_id, tenant_id, request_id, ip_address' END);
                END IF;
            EXCEPTION WHEN lock_not_available THEN
                RAISE WARNING 'partition % is locked; it is left for the next call', p.partition;
            END;
        END LOOP;
    END LOOP;

    -- Partitions, both tables alike. Last, since their locks are held until the end.
    last_until := (SELECT max(l.until) FROM audit.log_partitions('event', 'occurred_at', '-infinity', 'infinity') AS l WHERE NOT l.is_default);
    boundary := date_trunc(unit, now()) + step;
    SELECT least(e.first, c.first), greatest(e.last, c.last) INTO oldest, newest
      FROM (SELECT min(occurred_at) AS first, max(occurred_at) AS last FROM audit.event_default) AS e,
           (SELECT min(occurred_at) AS first, max(occurred_at) AS last FROM audit.changeset_default) AS c;
    IF oldest < last_until OR newest >= boundary THEN
        RAISE WARNING 'the default partitions hold records of % to %, which stay there', oldest, newest
            USING DETAIL = format('Other partitions end at %s; the present one would end at %s.', last_until, boundary),
                  HINT = 'The clock was wrong, or partitions were made by hand.';
        oldest := NULL;
    END IF;
    BEGIN
        IF oldest IS NOT NULL THEN
            -- PostgreSQL believes a constraint that it has checked, and records are written past constraints: long before the
            -- time is over there can be none that breaks it.
            IF clock_timestamp() >= boundary - margin THEN
                RETURN;
            ELSIF NOT audit.default_is_ready(coalesce(last_until, '-infinity'), boundary) THEN
                action := 'default prepared';
                object := 'call again';
                RETURN NEXT;
                RETURN;
            END IF;
            PERFORM audit.lock_log();
            IF clock_timestamp() >= boundary - margin THEN
                RAISE lock_not_available; -- so that the check is undone
            END IF;
            FOREACH log_table IN ARRAY '{changeset,event}'::text[] LOOP
                action := 'default closed';
                object := audit.close_default(log_table, coalesce(last_until, '-infinity'), boundary);
                RETURN NEXT;
            END LOOP;
            last_until := boundary;
        END IF;
        FOR p IN
            SELECT t.log_table, g.since, g.since + step AS until
              FROM (SELECT greatest(last_until, date_trunc(unit, now())) AS first) AS f,
                   generate_series(f.first, date_trunc(unit, now()) + ahead * step, step) AS g (since),
                   (VALUES ('changeset'), ('event')) AS t (log_table)
             WHERE NOT EXISTS (SELECT FROM audit.log_partitions(t.log_table, 'occurred_at', g.since, g.since + step) AS l WHERE NOT l.is_default)
               -- Records of another time.
               AND NOT EXISTS (SELECT FROM audit.event_default d WHERE d.occurred_at >= g.since AND d.occurred_at < g.since + step)
               AND NOT EXISTS (SELECT FROM audit.changeset_default d WHERE d.occurred_at >= g.since AND d.occurred_at < g.since + step)
             ORDER BY g.since, t.log_table
        LOOP
            PERFORM audit.lock_log();
            action := 'partition';
            object := audit.make_partition(p.log_table, p.since, p.until);
            RETURN NEXT;
        END LOOP;
    EXCEPTION WHEN lock_not_available THEN
        RAISE WARNING 'the log is in use; its partitions are left for the next call'
            USING HINT = 'A long transaction that wrote or read the log holds them.';
    END;
END
$$;
COMMENT ON FUNCTION maintain(text, int, int) IS 'Makes partitions of the log ahead of time (of a day, a week or a month, UTC; NULL: as the newest is, else of a month), and builds the indexes of those whose time is over, max_indexes of them at most. To be called by a scheduler, at least once per partition; calls that come too often do nothing. Returns what it did. Errors: 22023 for an unknown interval or a number out of range; 55P03 while another call is at work.';
