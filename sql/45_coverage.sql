-- What is covered: which tables are captured now, since when without a gap, and what holds in this installation.

CREATE FUNCTION trigger_state(target oid, of_truncate boolean) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    -- 1: row, 4 + 8 + 16: INSERT, DELETE and UPDATE, 32: TRUNCATE (catalog/pg_trigger.h). The best one counts.
    SELECT coalesce(min(s.state COLLATE "C"), 'missing')
      FROM pg_trigger t, LATERAL (
           SELECT CASE WHEN t.tgenabled = 'D' THEN 'disabled' WHEN t.tgenabled <> 'A' THEN 'not always'
                       WHEN t.tgqual IS NOT NULL OR t.tgattr::text <> '' OR NOT of_truncate AND t.tgtype & 28 <> 28 THEN 'incomplete'
                       ELSE 'always' END AS state) AS s
     WHERE t.tgrelid = target AND t.tgfoid = 'audit.capture()'::regprocedure
       AND CASE WHEN of_truncate THEN t.tgtype & 32 <> 0 ELSE t.tgtype & 1 <> 0 END;
END;
COMMENT ON FUNCTION trigger_state(oid, boolean) IS 'State of a table''s audit trigger for rows or for TRUNCATE: always, as it should be; disabled; not always: it does not fire under session_replication_role = replica, or only there; incomplete: it has a condition or leaves out operations; missing.';

CREATE FUNCTION last_event(target regclass) RETURNS timestamptz
    LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    large CONSTANT bigint := 8192;
    layouts CONSTANT int[] := ARRAY(SELECT o.relation_id FROM audit.local_layout o WHERE o.relid = target);
    p record;
    found timestamptz;
BEGIN
    FOR p IN
        SELECT * FROM audit.log_partitions('event', 'relation_id', '-infinity', 'infinity') AS l
         WHERE l.pages > 0 ORDER BY l.is_default DESC, l.until DESC
    LOOP
        EXECUTE format('SELECT max(occurred_at) FROM %s WHERE relation_id = ANY ($1)%s', p.partition::regclass,
                       CASE WHEN NOT p.is_indexed AND p.pages > large THEN ' AND occurred_at >= now() - interval ''1 hour''' END)
           INTO found USING layouts;
        EXIT WHEN found IS NOT NULL;
    END LOOP;
    RETURN found;
END
$$;
COMMENT ON FUNCTION last_event(regclass) IS 'When a table''s newest event was recorded, in this database. Of a large partition that is still written, only the last hour is looked at.';

CREATE VIEW coverage AS
    SELECT c.oid::regclass AS target, n.nspname::text AS schema_name, c.relname::text AS table_name,
           p.target IS NOT NULL AND s.row_trigger = 'always' AND s.truncate_trigger IN ('always', 'none') AS audited,
           p.mode, p.enabled_at AS since,
           CASE WHEN p.target IS NULL THEN
                    CASE WHEN s.row_trigger <> 'missing' THEN 'it has an audit trigger but no policy: its changes are refused'
                         WHEN c.relname::text = ANY (h.except_tables) THEN 'audit.disable was called for it'
                         WHEN h.schema_name IS NOT NULL THEN 'it came before its schema was enabled, or while event triggers were off'
                         ELSE 'not enabled' END
                WHEN s.row_trigger <> 'always' THEN format('row trigger: %s', s.row_trigger)
                WHEN s.truncate_trigger NOT IN ('always', 'none') THEN format('TRUNCATE trigger: %s', s.truncate_trigger)
                WHEN current_setting('audit.enabled', true) = 'off' THEN 'audit.enabled is off'
                WHEN p.mode = 'sampled' THEN format('a share of %s of the transactions is recorded', p.sample_rate)
                WHEN c.relkind = 'f' THEN 'foreign table: what others change, and TRUNCATE, is not captured'
                WHEN c.relpersistence = 'u' THEN 'unlogged: a crash empties it without an event' END AS problem,
           CASE c.relkind WHEN 'p' THEN 'partitioned table' WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind,
           p.inherited_from, s.row_trigger, s.truncate_trigger,
           to_jsonb(p) - '{target,inherited_from,mode,enabled_at,enabled_by}'::text[] AS options,
           p.enabled_by, pg_get_userbyid(c.relowner)::text AS owner,
           CASE WHEN p.target IS NOT NULL THEN audit.last_event(c.oid) END AS last_event
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN audit.policy p ON p.target = c.oid
      LEFT JOIN audit.schema_policy h ON h.schema_name = n.nspname
     CROSS JOIN LATERAL (
           SELECT audit.trigger_state(c.oid, false) AS row_trigger,
                  CASE c.relkind WHEN 'f' THEN 'none' ELSE audit.trigger_state(c.oid, true) END AS truncate_trigger
     ) AS s
     WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'audit') AND n.nspname !~ '^pg_(toast|temp)';
COMMENT ON VIEW coverage IS 'Each user table and partition: whether its changes are captured, and if not, why.';
COMMENT ON COLUMN coverage.target IS 'The table.';
COMMENT ON COLUMN coverage.schema_name IS 'Its schema.';
COMMENT ON COLUMN coverage.table_name IS 'Its name.';
COMMENT ON COLUMN coverage.audited IS 'Whether it has a policy and its triggers are in place and fire always.';
COMMENT ON COLUMN coverage.mode IS 'As in audit.policy.';
COMMENT ON COLUMN coverage.since IS 'When auditing began; whether it went on without a gap, audit.coverage_gaps tells.';
COMMENT ON COLUMN coverage.problem IS 'Why changes are not captured, or which are not; NULL where all are.';
COMMENT ON COLUMN coverage.kind IS 'table, partitioned table or foreign table.';
COMMENT ON COLUMN coverage.inherited_from IS 'The table whose options it follows.';
COMMENT ON COLUMN coverage.row_trigger IS 'State of the trigger that captures rows: audit.trigger_state.';
COMMENT ON COLUMN coverage.truncate_trigger IS 'State of the trigger that captures TRUNCATE; none on foreign tables, which cannot have it.';
COMMENT ON COLUMN coverage.options IS 'Further options, as in audit.policy.';
COMMENT ON COLUMN coverage.enabled_by IS 'Session role that enabled it.';
COMMENT ON COLUMN coverage.owner IS 'The table''s owner.';
COMMENT ON COLUMN coverage.last_event IS 'audit.last_event: a look into the log for each table. Leave it out of the select list where it is not needed.';

-- From the events that tell of it: audit.enabled and the like. The log alone is believed, so where it does not say when auditing
-- of a table began, there is no time that it was captured for sure.
CREATE FUNCTION table_gaps(target regclass, until timestamptz)
    RETURNS TABLE (gap_since timestamptz, gap_until timestamptz, cause text, actor text, changeset_id uuid, details jsonb)
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    layouts CONSTANT int[] := ARRAY(SELECT l.relation_id FROM audit.table_layouts(target) AS l WHERE l.relid = target::oid);
    names CONSTANT text[] := ARRAY(SELECT r.resource FROM audit.relation r WHERE r.id = ANY (layouts));
    latest CONSTANT timestamptz := coalesce(table_gaps.until, clock_timestamp());
    -- What is open: since when the table is not captured, and since when nobody watches over DDL.
    open_since timestamptz := '-infinity';
    open_cause text := 'nothing recorded says that it was audited';
    open_event record;
    unwatched_since timestamptz;
    unwatched_event record;
    last_told timestamptz;
    -- The table's options, as the log has them.
    options jsonb;
    options_at timestamptz;
    e record;
    mode text;
    problem text;
BEGIN
    SELECT NULL::text AS session_role, NULL::uuid AS id, NULL::jsonb AS details INTO open_event;
    FOR e IN
        SELECT v.occurred_at, v.action, v.details, c.session_role, c.id
          FROM audit.event v JOIN audit.changeset c ON c.id = v.changeset_id AND c.occurred_at = v.occurred_at
         WHERE v.action LIKE 'audit.%' AND v.occurred_at < latest
           AND (v.operation = 'DDL' AND v.relation_id = ANY (layouts)
                OR v.operation = 'DDL' AND v.action = 'audit.object_altered'
                OR v.action IN ('audit.capture_suspended', 'audit.events_lost') AND v.details -> 'tables' ?| names)
         ORDER BY c.era, c.position, v.command, v.seq
    LOOP
        CASE e.action
        WHEN 'audit.enabled', 'audit.options_changed', 'audit.triggers_restored' THEN
            IF e.action <> 'audit.triggers_restored' THEN
                options := coalesce(e.details -> 'options', e.details -> 'after');
                options_at := e.occurred_at;
            END IF;
            mode := coalesce(e.details -> 'options' ->> 'mode', e.details -> 'after' ->> 'mode', mode);
            IF e.action = 'audit.triggers_restored' AND open_since IS NULL AND NOT (e.details ->> 'were_in_place')::boolean THEN
                -- They were in place when something of the table was last recorded.
                gap_since := (SELECT max(v.occurred_at) FROM audit.event v WHERE v.relation_id = ANY (layouts) AND v.occurred_at < e.occurred_at);
                gap_until := e.occurred_at;
                cause := 'audit triggers were missing or disabled; nothing recorded says by whom';
                actor := NULL;
                changeset_id := e.id;
                details := e.details;
                RETURN NEXT;
            END IF;
            IF open_since IS NOT NULL AND (e.action <> 'audit.options_changed' OR open_cause = 'sampled') THEN
                gap_since := open_since;
                gap_until := e.occurred_at;
                cause := open_cause;
                actor := open_event.session_role;
                changeset_id := open_event.id;
                details := open_event.details;
                open_since := NULL;
                RETURN NEXT;
            END IF;
            IF mode = 'sampled' AND open_since IS NULL THEN
                open_since := e.occurred_at;
                open_cause := 'sampled';
                open_event := e;
            END IF;
        WHEN 'audit.disabled', 'audit.trigger_disabled', 'audit.trigger_dropped', 'audit.table_dropped' THEN
            IF open_since IS NULL THEN
                open_since := e.occurred_at;
                open_cause := substr(e.action, 7);
                open_event := e;
            END IF;
        WHEN 'audit.capture_suspended', 'audit.events_lost' THEN
            gap_since := (e.details ->> 'since')::timestamptz;
            gap_until := (e.details ->> 'until')::timestamptz;
            cause := substr(e.action, 7);
            actor := e.session_role;
            changeset_id := e.id;
            details := e.details;
            RETURN NEXT;
        WHEN 'audit.object_altered' THEN
            IF e.details ->> 'command' IN ('disable event trigger', 'drop event trigger', 'enable otherwise than always event trigger') THEN
                IF unwatched_since IS NULL THEN
                    unwatched_since := e.occurred_at;
                    unwatched_event := e;
                END IF;
            ELSIF e.details ->> 'command' = 'enable event trigger' AND unwatched_since IS NOT NULL THEN
                gap_since := unwatched_since;
                gap_until := e.occurred_at;
                cause := 'event triggers were switched off';
                actor := unwatched_event.session_role;
                changeset_id := unwatched_event.id;
                details := unwatched_event.details;
                unwatched_since := NULL;
                RETURN NEXT;
            END IF;
        ELSE NULL;
        END CASE;
        last_told := e.occurred_at;
    END LOOP;

    -- Where the log went on in another place, what was committed in the old one since then is not in it.
    FOR e IN SELECT l.era, l.started_at FROM audit.ledger l WHERE l.era > (SELECT min(era) FROM audit.ledger) AND l.started_at < latest LOOP
        gap_since := (SELECT max(c.occurred_at) FROM audit.changeset c WHERE c.era < e.era AND c.occurred_at < e.started_at);
        gap_until := e.started_at;
        cause := 'the log went on in another cluster, database or timeline';
        actor := NULL;
        changeset_id := NULL;
        details := jsonb_build_object('era', e.era);
        RETURN NEXT;
    END LOOP;

    gap_until := latest;
    IF unwatched_since IS NOT NULL THEN
        gap_since := unwatched_since;
        cause := 'event triggers were switched off';
        actor := unwatched_event.session_role;
        changeset_id := unwatched_event.id;
        details := unwatched_event.details;
        RETURN NEXT;
    ELSIF EXISTS (SELECT FROM audit.missing_event_triggers()) AND latest >= now() THEN
        gap_since := last_told;
        cause := 'event triggers are switched off; nothing recorded says by whom';
        actor := NULL;
        changeset_id := NULL;
        details := (SELECT jsonb_build_object('event_triggers', jsonb_agg(m.name)) FROM audit.missing_event_triggers() AS m);
        RETURN NEXT;
    END IF;
    IF open_since IS NOT NULL THEN
        gap_since := open_since;
        cause := open_cause;
        actor := open_event.session_role;
        changeset_id := open_event.id;
        details := open_event.details;
        RETURN NEXT;
    ELSE
        problem := (SELECT v.problem FROM audit.coverage v WHERE v.target = table_gaps.target AND NOT v.audited);
        IF problem IS NOT NULL AND latest >= now() THEN
            gap_since := (SELECT max(v.occurred_at) FROM audit.event v WHERE v.relation_id = ANY (layouts));
            cause := problem || '; nothing recorded says by whom';
            actor := NULL;
            changeset_id := NULL;
            details := NULL;
            RETURN NEXT;
        END IF;
        IF latest >= now() AND options IS DISTINCT FROM (
            SELECT to_jsonb(p) - '{target,inherited_from,enabled_at,enabled_by}'::text[] FROM audit.policy p WHERE p.target = table_gaps.target)
        THEN
            gap_since := options_at;
            cause := 'audit.policy was changed; nothing recorded says by whom';
            actor := NULL;
            changeset_id := NULL;
            details := options;
            RETURN NEXT;
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION table_gaps(regclass, timestamptz) IS 'Part of audit.coverage_gaps: the gaps of one table, not cut to the time asked for.';

CREATE FUNCTION coverage_gaps(target regclass, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL)
    RETURNS TABLE (relation regclass, gap_since timestamptz, gap_until timestamptz, cause text, actor text, changeset_id uuid, details jsonb)
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    latest CONSTANT timestamptz := coalesce(coverage_gaps.until, clock_timestamp());
BEGIN
    IF target IS NULL THEN
        RAISE EXCEPTION 'argument "target" must not be null' USING ERRCODE = 'null_value_not_allowed';
    ELSIF coverage_gaps.since > latest THEN
        RAISE EXCEPTION 'since must not be later than until' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'The time asked for begins with since and ends with until, or now.';
    END IF;
    RETURN QUERY
    WITH RECURSIVE member AS (
        SELECT target::oid AS oid
        UNION
        SELECT i.inhrelid FROM pg_inherits i JOIN member m ON i.inhparent = m.oid
    ), gap AS (
        SELECT m.oid::regclass AS relation, g.*,
               -- Of a partition, and where no time is given, what was before its auditing began is no gap.
               CASE WHEN m.oid = target AND coverage_gaps.since IS NOT NULL THEN coverage_gaps.since
                    ELSE greatest(coverage_gaps.since, coalesce(audit.audited_first(m.oid), '-infinity')) END AS earliest
          FROM member m, audit.table_gaps(m.oid, coverage_gaps.until) AS g
    )
    SELECT g.relation, greatest(g.gap_since, g.earliest), least(g.gap_until, latest), g.cause, g.actor, g.changeset_id, g.details
      FROM gap g
     WHERE coalesce(g.gap_since, g.earliest) < latest AND g.gap_until > g.earliest
     ORDER BY 2, 3, 1;
END
$$;
COMMENT ON FUNCTION coverage_gaps(regclass, timestamptz, timestamptz) IS 'When changes of a table, its partitions and children may have gone unrecorded between since and until, why, and by whom. No rows: it was captured without a gap. NULL: since its auditing began; until now. Errors: 22004, 22023.';

CREATE FUNCTION audited_first(target oid) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT min(v.occurred_at) FROM audit.event v
     WHERE v.action = 'audit.enabled' AND v.operation = 'DDL'
       AND v.relation_id IN (SELECT l.relation_id FROM audit.table_layouts(target) AS l WHERE l.relid = target)
$$;
COMMENT ON FUNCTION audited_first(oid) IS 'When a table''s auditing first began, as the log has it.';

CREATE FUNCTION missing_event_triggers() RETURNS TABLE (name text, state text)
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT w.name, CASE WHEN e.evtname IS NULL THEN 'missing' WHEN e.evtenabled = 'D' THEN 'disabled' ELSE 'not always' END
      FROM unnest('{audit_ddl_command_start,audit_ddl_command_end,audit_table_rewrite,audit_sql_drop}'::text[]) AS w (name)
      LEFT JOIN pg_event_trigger e ON e.evtname = w.name
     WHERE e.evtenabled IS DISTINCT FROM 'A';
END;
COMMENT ON FUNCTION missing_event_triggers() IS 'Event triggers of the extension that are not enabled always.';

CREATE FUNCTION status() RETURNS TABLE (guarantee text, holds boolean, detail text, hint text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_preloaded CONSTANT boolean := (SELECT q.is_preloaded FROM audit.queue_state() AS q);
    preload CONSTANT text := 'Add audit_ext to shared_preload_libraries, and restart the server.';
    found text;
    checkpointed_at timestamptz;
BEGIN
    guarantee := 'changes of audited tables are recorded';
    holds := coalesce((SELECT s.setting = 'on' AND s.reset_val = 'on' FROM pg_settings s WHERE s.name = 'audit.enabled'), true);
    detail := CASE WHEN NOT holds THEN 'audit.enabled is off' END;
    hint := CASE WHEN NOT holds THEN 'Set audit.enabled to on, in postgresql.conf, and for databases and roles.' END;
    RETURN NEXT;

    guarantee := 'every audited table is captured';
    found := (SELECT string_agg(format('%s (%s)', c.target, c.problem), ', ') FROM audit.coverage c WHERE c.mode IS NOT NULL AND NOT c.audited);
    holds := found IS NULL;
    detail := coalesce(found, (SELECT format('%s tables', count(*)) FROM audit.policy));
    hint := CASE WHEN NOT holds THEN 'Call audit.enable for them with their options, and see audit.coverage_gaps.' END;
    RETURN NEXT;

    guarantee := 'each change is recorded in its own transaction';
    found := (SELECT string_agg(format('%s (%s)', p.target, p.mode), ', ') FROM audit.policy p WHERE p.mode <> 'sync');
    holds := found IS NULL;
    detail := found;
    hint := CASE WHEN NOT holds THEN 'Mode async can lose what a crash of the server catches on its way; mode sampled records a share.' END;
    RETURN NEXT;

    guarantee := 'new tables, partitions and DDL are followed';
    found := (SELECT string_agg(format('%s (%s)', m.name, m.state), ', ') FROM audit.missing_event_triggers() AS m);
    IF found IS NULL AND current_setting('event_triggers', true) = 'off' THEN
        found := 'event_triggers is off';
    END IF;
    holds := found IS NULL;
    detail := found;
    hint := CASE WHEN NOT holds THEN 'ALTER EVENT TRIGGER ... ENABLE ALWAYS; then see audit.coverage and audit.coverage_gaps.' END;
    RETURN NEXT;

    guarantee := 'coverage is recorded';
    holds := coalesce(current_setting('audit.log_ddl', true), 'on') = 'on';
    detail := CASE WHEN NOT holds THEN 'audit.log_ddl is off' END;
    hint := CASE WHEN NOT holds THEN 'Set audit.log_ddl to on in postgresql.conf, and reload.' END;
    RETURN NEXT;

    guarantee := 'DDL is watched where event triggers are switched off';
    holds := is_preloaded;
    detail := CASE WHEN NOT holds THEN 'audit_ext is not preloaded' END;
    hint := CASE WHEN NOT holds THEN preload END;
    RETURN NEXT;

    guarantee := 'failed statements, logins and isolated events are recorded';
    hint := CASE WHEN NOT holds THEN preload END;
    RETURN NEXT;

    guarantee := 'the log is append-only';
    found := (SELECT string_agg(t.oid::regclass::text, ', ' ORDER BY 1)
                FROM pg_class t
               WHERE t.relnamespace = 'audit'::regnamespace AND t.relkind IN ('r', 'p')
                 AND (t.oid IN (SELECT to_regclass('audit.' || n) FROM unnest('{changeset,event,relation,ledger,entry,tile,checkpoint,cosignature,erasure,in_transit}'::text[]) AS n)
                      OR t.relispartition)
                 AND NOT (EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.oid AND g.tgfoid = 'audit.append_only()'::regprocedure
                                     AND g.tgtype & 59 = 58 AND g.tgenabled = 'A')
                          AND EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.oid AND g.tgfoid = 'audit.append_only()'::regprocedure
                                         AND g.tgtype & 27 = 27 AND g.tgenabled = 'A')));
    holds := found IS NULL;
    detail := CASE WHEN NOT holds THEN 'triggers are missing or disabled on ' || found END;
    hint := CASE WHEN NOT holds THEN 'ALTER TABLE ... ENABLE ALWAYS TRIGGER for append_only and append_only_row; then see audit.verify().' END;
    RETURN NEXT;

    guarantee := 'records are sealed';
    checkpointed_at := (SELECT max(c.created_at) FROM audit.checkpoint c);
    holds := coalesce(checkpointed_at > now() - interval '1 day', false) OR NOT EXISTS (SELECT FROM audit.changeset);
    detail := coalesce('last checkpoint: ' || checkpointed_at, 'no checkpoint yet');
    hint := CASE WHEN NOT holds THEN 'Call audit.seal() from a scheduler, and keep its checkpoints elsewhere.' END;
    RETURN NEXT;

    guarantee := 'checkpoints are signed';
    holds := coalesce((SELECT s.setting <> '' FROM pg_settings s WHERE s.name = 'audit.signing_key_file'), false);
    detail := CASE WHEN NOT holds THEN 'audit.signing_key_file is not set' END;
    hint := CASE WHEN NOT holds THEN 'Make a key with audit-verify keygen, and set audit.signing_key_file.' END;
    RETURN NEXT;

    guarantee := 'committed records survive a crash';
    found := (SELECT string_agg(s.name || ' is off', ', ') FROM pg_settings s WHERE s.name IN ('fsync', 'full_page_writes') AND s.setting = 'off');
    holds := found IS NULL;
    detail := found;
    hint := CASE WHEN NOT holds THEN 'Switch them on in postgresql.conf.' END;
    RETURN NEXT;

    guarantee := 'damaged pages are found';
    holds := current_setting('data_checksums') = 'on';
    detail := CASE WHEN NOT holds THEN 'the cluster has no page checksums' END;
    hint := CASE WHEN NOT holds THEN 'Stop the server, and run pg_checksums --enable.' END;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION status() IS 'What is guaranteed in this installation, whether it holds now, what is in the way, and what to do about it.';
