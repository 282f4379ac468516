-- Trigger functions, what is written in SQL, the view, and who may be let to read and to administrate.

CREATE FUNCTION capture() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_capture';
COMMENT ON FUNCTION capture() IS 'Records changes of audited tables. Attached by audit.enable alone: called otherwise it raises 39P01, on a table without a policy 55000.';

CREATE FUNCTION append_only() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_append_only';
COMMENT ON FUNCTION append_only() IS 'Refuses UPDATE, DELETE and TRUNCATE of the log with 55000, whoever tries.';

CREATE FUNCTION ddl_command_end() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_ddl_command_end';
COMMENT ON FUNCTION ddl_command_end() IS 'Audits partitions, children and tables of enabled schemas as they come, keeps detached partitions audited, and records DDL on audited tables.';

CREATE FUNCTION ddl_command_start() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_ddl_command_start';
COMMENT ON FUNCTION ddl_command_start() IS 'Refuses with 42501 to disable, drop, rename or replace an audit trigger to whoever may not call audit.disable.';

CREATE FUNCTION table_rewrite() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_table_rewrite';
COMMENT ON FUNCTION table_rewrite() IS 'Notes tables whose rows ALTER TABLE gives other values, so that these are recorded.';

CREATE FUNCTION sql_drop() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_sql_drop';
COMMENT ON FUNCTION sql_drop() IS 'Forgets the policies of tables and schemas that are dropped, and records what was dropped of audited tables.';

-- The log is append-only: for the statement as such, and for each row reached another way. Row triggers are cloned to
-- partitions, present and future; statement triggers stand on the partition too.
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY '{changeset,event,relation,ledger,entry,tile,checkpoint,cosignature,erasure,in_transit}'::text[] LOOP
        EXECUTE format('CREATE TRIGGER append_only_row BEFORE UPDATE OR DELETE ON audit.%I
                            FOR EACH ROW EXECUTE FUNCTION audit.append_only()', t);
        EXECUTE format('ALTER TABLE audit.%I ENABLE ALWAYS TRIGGER append_only_row', t);
    END LOOP;
    FOREACH t IN ARRAY '{changeset,changeset_default,event,event_default,relation,ledger,entry,tile,checkpoint,cosignature,erasure,in_transit}'::text[] LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.%I
                            FOR EACH STATEMENT EXECUTE FUNCTION audit.append_only()', t);
        EXECUTE format('ALTER TABLE audit.%I ENABLE ALWAYS TRIGGER append_only', t);
    END LOOP;
END
$$;

-- A dump names tables and roles by name, but schemas by oid (pg_upgrade refuses columns of type regnamespace).
CREATE FUNCTION find_schema() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.schema_id := coalesce((SELECT oid FROM pg_namespace WHERE nspname = NEW.schema_name), 0);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION find_schema() IS 'Fills in audit.schema_policy.schema_id, also of rows that a restore brings.';
CREATE TRIGGER find_schema BEFORE INSERT ON schema_policy FOR EACH ROW EXECUTE FUNCTION find_schema();
ALTER TABLE schema_policy ENABLE ALWAYS TRIGGER find_schema;

CREATE FUNCTION pending_changesets() RETURNS SETOF changeset
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'audit_pending_changesets';
COMMENT ON FUNCTION pending_changesets() IS 'This transaction''s own changesets, before they are written: without position, salt and checksum.';

CREATE FUNCTION changeset_time(changeset_id uuid) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
    SELECT 'epoch'::timestamptz
           + ((('x' || pg_catalog.substr(pg_catalog.replace(changeset_id::text, '-', ''), 1, 12))::bit(48)::bigint * 1000
               + (('x' || pg_catalog.substr(changeset_id::text, 16, 3))::bit(12)::int * 1000) / 4096)
              * interval '1 microsecond');
END;
COMMENT ON FUNCTION changeset_time(uuid) IS 'The occurred_at that a changeset''s id was made from, to the microsecond: what finds a changeset by its id.';

CREATE FUNCTION canonical(changeset_id uuid, seq int) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.jsonb_build_array(
               'audit_ext/event/1', e.changeset_id, e.seq, e.command,
               (EXTRACT(epoch FROM e.occurred_at) * 1000000)::bigint,
               e.relation_id, r.schema_name, r.table_name, e.operation, e.action, e.status, e.resource, e.resource_id,
               e.row_image, e.old_values, e.details)::text
      FROM audit.event e LEFT JOIN audit.relation r ON r.id = e.relation_id
     WHERE e.occurred_at = audit.changeset_time(canonical.changeset_id)
       AND e.changeset_id = canonical.changeset_id AND e.seq = canonical.seq;
END;
COMMENT ON FUNCTION canonical(uuid, int) IS 'Text that an event''s checksum is taken over, after its salt: docs/format.md. NULL where there is no such event.';

CREATE FUNCTION canonical(changeset_id uuid) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.jsonb_build_array(
               'audit_ext/changeset/1', c.id, (EXTRACT(epoch FROM c.occurred_at) * 1000000)::bigint, c.era,
               c.position - '0/0'::pg_lsn, c.xid::text, c.user_id, c.tenant_id, c.request_id, c.session_id,
               c.ip_address, c.user_agent, c.reason, c.context, c.context_trust, c.session_role, c.effective_role,
               c.application_name, c.client_addr, c.client_port, c.backend_pid, c.statement, c.origin,
               c.event_count, pg_catalog.encode(c.events_root, 'hex'))::text
      FROM audit.changeset c
     WHERE c.id = canonical.changeset_id AND c.occurred_at = audit.changeset_time(canonical.changeset_id);
END;
COMMENT ON FUNCTION canonical(uuid) IS 'Text that a changeset''s checksum is taken over, after its salt: docs/format.md. NULL where there is no such changeset.';

CREATE FUNCTION verify_event(changeset_id uuid, seq int) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.count(*) = 1
           AND pg_catalog.bool_and(
                   e.checksum = pg_catalog.sha256(pg_catalog.uuid_send(e.salt)
                       || pg_catalog.convert_to(audit.canonical(e.changeset_id, e.seq), 'UTF8'))
                   AND c.checksum = pg_catalog.sha256(pg_catalog.uuid_send(c.salt)
                       || pg_catalog.convert_to(audit.canonical(c.id), 'UTF8'))
                   AND (SELECT pg_catalog.count(*) = c.event_count
                               AND audit.merkle_root(pg_catalog.array_agg(m.checksum ORDER BY m.seq)) = c.events_root
                          FROM audit.event m WHERE m.changeset_id = c.id AND m.occurred_at = c.occurred_at)
                   AND NOT EXISTS (SELECT FROM audit.entry n
                                    WHERE n.changeset_id = c.id AND n.checksum <> c.checksum))
      FROM audit.event e JOIN audit.changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at
     WHERE e.changeset_id = verify_event.changeset_id AND e.seq = verify_event.seq
       AND e.occurred_at = audit.changeset_time(verify_event.changeset_id)
       AND c.occurred_at = audit.changeset_time(verify_event.changeset_id);
END;
COMMENT ON FUNCTION verify_event(uuid, int) IS 'Whether an event is as it was written: its checksum, its changeset''s, its place in the changeset''s Merkle root, and the changeset''s entry in the Merkle log if it is sealed. False where there is no such event.';

-- What people query, in three parts, so that each is planned by itself. They restrict what is read, by tenant (16_tenants.sql),
-- and are barriers: conditions that could tell of rows they refuse wait until those are gone. Time alone is not fenced: it
-- is what partitions are chosen by.
DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT * FROM (VALUES
            ('row_events', 'r.resource',
             'audit.event e
              JOIN audit.changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at
              JOIN audit.relation r ON r.id = e.relation_id',
             'true', 'Part of audit.log: events of rows and tables.'),
            ('other_events', 'e.resource',
             'audit.event e
              JOIN audit.changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at',
             'e.relation_id IS NULL', 'Part of audit.log: events of no table, such as those of applications.'),
            ('stored_events', 'coalesce(r.resource, e.resource)',
             'audit.event e
              JOIN audit.changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at
              LEFT JOIN audit.relation r ON r.id = e.relation_id',
             'true', 'Part of audit.log_by_changeset: row_events and other_events, read at once.'),
            ('pending_events', 'coalesce(r.resource, e.resource)',
             'audit.pending_changesets() c
              JOIN audit.event e ON e.changeset_id = c.id AND e.occurred_at = c.occurred_at
              LEFT JOIN audit.relation r ON r.id = e.relation_id',
             'true', 'Part of audit.log: this transaction''s own events.')
        ) AS v (name, resource, source, condition, comment)
    LOOP
        EXECUTE pg_catalog.format(
            'CREATE VIEW audit.%I WITH (security_barrier) AS SELECT c.occurred_at, %s FROM %s WHERE %s AND audit.tenant_visible(c.tenant_id)',
            part.name,
            (SELECT pg_catalog.string_agg(pg_catalog.format(CASE name WHEN 'event_at' THEN '%s AS %I' ELSE 'audit.fenced(%s, c.tenant_id) AS %I' END, expression, name), ', ' ORDER BY n)
               FROM (VALUES
                    (1, 'era', 'c.era'), (2, 'position', 'c.position'), (3, 'command', 'e.command'), (4, 'seq', 'e.seq'),
                    (5, 'changeset_id', 'c.id'), (6, 'user_id', 'c.user_id'), (7, 'tenant_id', 'c.tenant_id'),
                    (8, 'action', 'e.action'), (9, 'operation', 'e.operation::text'), (10, 'resource', part.resource),
                    (11, 'resource_id', 'e.resource_id'), (12, 'status', 'e.status::text'),
                    (13, 'old_row', $x$CASE e.operation WHEN 'UPDATE' THEN e.row_image || e.old_values WHEN 'DELETE' THEN e.row_image END$x$),
                    (14, 'new_row', $x$CASE WHEN e.operation <> 'DELETE' THEN e.row_image END$x$),
                    (15, 'changed_columns', $x$CASE WHEN e.operation = 'UPDATE' THEN ARRAY(SELECT jsonb_object_keys(e.old_values)) END$x$),
                    (16, 'details', 'e.details'), (17, 'ip_address', 'c.ip_address'), (18, 'user_agent', 'c.user_agent'),
                    (19, 'request_id', 'c.request_id'), (20, 'session_id', 'c.session_id'), (21, 'reason', 'c.reason'),
                    (22, 'context', 'c.context'), (23, 'context_trust', 'c.context_trust::text'),
                    (24, 'session_role', 'c.session_role'), (25, 'effective_role', 'c.effective_role'),
                    (26, 'application_name', 'c.application_name'), (27, 'client_addr', 'c.client_addr'), (28, 'xid', 'c.xid'),
                    (29, 'checksum', 'e.checksum'), (30, 'relation_id', 'e.relation_id'), (31, 'event_at', 'e.occurred_at')
               ) AS shown (n, name, expression)),
            part.source, part.condition);
        EXECUTE pg_catalog.format('COMMENT ON VIEW audit.%I IS %L', part.name, part.comment);
    END LOOP;
END
$$;

CREATE VIEW log AS
    SELECT * FROM row_events UNION ALL SELECT * FROM other_events UNION ALL SELECT * FROM pending_events;
COMMENT ON VIEW log IS 'Events with their context: what people query. This transaction''s own events have no position yet. ORDER BY era, position NULLS LAST, command, seq reads the versions of each row in the order in which they came into being.';

-- What is looked up by changeset and time gains nothing from a plan for events of tables and one for the others.
CREATE VIEW log_by_changeset AS
    SELECT * FROM stored_events UNION ALL SELECT * FROM pending_events;
COMMENT ON VIEW log_by_changeset IS 'audit.log, for looking events up by their changesets.';

-- Functions that read audit.log have their text parsed when they are called: bodies bound to the view would keep a later
-- version's upgrade script from replacing it.
CREATE FUNCTION uncatalogued_actions(
        since timestamptz DEFAULT now() - interval '30 days',
        OUT action text, OUT events bigint, OUT first_at timestamptz, OUT last_at timestamptz)
    RETURNS SETOF record
    LANGUAGE sql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.action, count(*), min(l.occurred_at), max(l.occurred_at)
      FROM audit.log l
     WHERE l.action IS NOT NULL AND (uncatalogued_actions.since IS NULL OR l.occurred_at >= uncatalogued_actions.since)
       AND NOT EXISTS (SELECT FROM audit.action a WHERE a.name = l.action)
     GROUP BY 1 ORDER BY 2 DESC, 1
$$;
COMMENT ON FUNCTION uncatalogued_actions(timestamptz) IS 'Actions that were recorded since then, and that audit.action does not list. NULL: ever.';

CREATE FUNCTION grant_functions(role regrole, names text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE (SELECT format('GRANT EXECUTE ON FUNCTION %s TO %s', string_agg(p.oid::regprocedure::text, ', '), role)
               FROM pg_proc p WHERE p.pronamespace = 'audit'::regnamespace AND p.proname = ANY (names));
END
$$;
COMMENT ON FUNCTION grant_functions(regrole, text[]) IS 'Lets a role call functions of this extension, given by their names.';

CREATE FUNCTION action_rule_errors(
        since timestamptz DEFAULT now() - interval '7 days',
        OUT rule int, OUT sqlstate text, OUT resource text, OUT events bigint, OUT first_at timestamptz, OUT last_at timestamptz)
    RETURNS SETOF record
    LANGUAGE sql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT e.rule, e.sqlstate, l.resource, count(*), min(l.occurred_at), max(l.occurred_at)
      FROM audit.log l, jsonb_to_recordset(l.details -> 'rule_errors') AS e (rule int, sqlstate text)
     WHERE (action_rule_errors.since IS NULL OR l.occurred_at >= action_rule_errors.since)
       AND l.operation IN ('INSERT', 'UPDATE', 'DELETE') AND l.details ? 'rule_errors'
     GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3
$$;
COMMENT ON FUNCTION action_rule_errors(timestamptz) IS 'Action rules whose condition failed since then: with which SQLSTATE, on which table, for how many events. NULL: ever.';

CREATE FUNCTION grant_reader(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT SELECT ON audit.log, audit.changeset, audit.event, audit.relation, audit.local_layout, audit.ledger, audit.entry, audit.tile, audit.checkpoint, audit.cosignature, audit.erasure, audit.policy, audit.schema_policy, audit.action, audit.action_rule, audit.stats, audit.stats_tables, audit.in_transit, audit.tenant_reader, audit.coverage TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION audit.pending_changesets(), audit.changeset_time(uuid), audit.canonical(uuid, int), audit.canonical(uuid), audit.canonical_relation(audit.relation), audit.canonical_ledger(audit.ledger), audit.canonical_seal(text, bigint, timestamptz, xid8, xid8, text), audit.checksum_of(text), audit.verify_event(uuid, int), audit.verify(timestamptz, timestamptz, text), audit.verify_contents(timestamptz, timestamptz), audit.erased(), audit.unsealed(), audit.event_text(audit.event, text), audit.changeset_text(audit.changeset), audit.verify_changesets(timestamptz, timestamptz), audit.verify_entries(timestamptz, timestamptz), audit.verify_tree(text), audit.prove(uuid, int), audit.prove_consistency(bigint), audit.merkle_root(bytea[]), audit.uncatalogued_actions(timestamptz), audit.note_read(text, jsonb), audit.action_rule_errors(timestamptz), audit.queue_state(), audit.table_state(), audit.failure_classes(), audit.bound_tenants(), audit.reads_everything(), audit.tenant_visible(text), audit.fenced(anyelement, text) TO %s', role);
    EXECUTE format('GRANT SELECT ON audit.log_changeset, audit.log_event, audit.visible_changeset, audit.log_by_changeset TO %s', role);
    PERFORM audit.grant_functions(role, '{get_logs,count_logs,user_activity,tenant_activity,failed_logins,statistics,security_events,
        required,log_filter,log_place,log_cursor,log_partitions,log_windows,find_logs,next_events,next_changesets,next_visible,instant_among,content_counts,
        history,row_as_of,table_as_of,diff,table_layouts,recorded_layouts,built_in_type,row_key,key_events,visible_key_events,same_old_key,is_there,
        row_changes,log_moment,commits_after,is_before,last_snapshot,recorded_changeset,layout_columns,current_image,images_as_of,known_values,
        undo,undo_changes,sql_literals,sql_condition,present_row,undo_references,key_values,undo_plan,undo_statement,undo_conflict,
        row_key_of,undo_referring,undo_differences,undo_refused,undo_changed_one,undo_verified,undo_context,undo_deferrable,
        trigger_state,last_event,table_gaps,coverage_gaps,audited_first,missing_event_triggers,status}');
END
$$;
COMMENT ON FUNCTION grant_reader(regrole) IS 'Lets a role read the log and check its records.';

CREATE FUNCTION grant_admin(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION audit.enable(regclass, text, float8, text[], text[], text, text[], boolean, boolean, text, boolean), audit.disable(regclass), audit.enable_schema(regnamespace, boolean, text, float8, text[], text[], text, text[], boolean, boolean, text, boolean), audit.disable_schema(regnamespace), audit.seal(boolean), audit.add_cosignature(text), audit.erase(regclass, text, text), audit.erase_user(text, text), audit.add_action_rule(regclass, text, text, text[], text, int), audit.drop_action_rule(int), audit.maintain(text, int, int) TO %s', role);
    EXECUTE format('GRANT SELECT ON audit.policy, audit.schema_policy, audit.action, audit.action_rule, audit.coverage TO %s', role);
    PERFORM audit.grant_functions(role, '{trigger_state,last_event,status}');
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON audit.action TO %s', role);
END
$$;
COMMENT ON FUNCTION grant_admin(regrole) IS 'Lets a role enable and disable auditing of any table, say what its changes mean, and edit the catalog of actions. Reading the log is another right: audit.grant_reader.';

COMMENT ON FUNCTION enable(regclass, text, float8, text[], text[], text, text[], boolean, boolean, text, boolean) IS 'Audits a table, its partitions and inheritance children, or changes how. Errors: 42809 for what cannot be audited, 42703 for unknown columns, 22023 for bad options, 55000 for mode async without the library preloaded.';
COMMENT ON FUNCTION disable(regclass) IS 'Ends auditing of a table and of what follows it. Its records stay. Errors: 55000 where it is not audited or follows another table.';
COMMENT ON FUNCTION enable_schema(regnamespace, boolean, text, float8, text[], text[], text, text[], boolean, boolean, text, boolean) IS 'Audits the tables of a schema, with include_future also those to come. Returns the number of tables.';
COMMENT ON FUNCTION disable_schema(regnamespace) IS 'Ends auditing of the tables of a schema, present and future. Returns the number of tables.';
COMMENT ON FUNCTION set_context(text, text, text, text, inet, text, text, jsonb, boolean) IS 'Sets the context: who, for whom, from where, why. NULL leaves a value as it is, the empty string clears it. For the transaction, or with is_local => false for the session. Errors: 22023 for a value that is too long or malformed.';
COMMENT ON FUNCTION set_context_token(text, boolean) IS 'Sets the context to what a signed token (JWT) says, and so to verified: who, for whom, by audit.context_claims; keys of which the token says nothing are cleared. For the transaction, or with is_local => false for the session. Errors: 28000 for a token that does not hold, 22023 for claims that do not fit, 55000 where tokens are not set up, F0000 where the keys cannot be read.';
COMMENT ON FUNCTION clear_context() IS 'Clears the context of the transaction and of the session.';
COMMENT ON FUNCTION client_ip(text, text, inet, inet[]) IS 'Address of the client behind proxies: the right-most address of X-Forwarded-For that is no trusted proxy, considered only where the connection comes from one.';
COMMENT ON FUNCTION seal(boolean) IS 'Appends the changesets of all finished transactions older than any that is under way to the Merkle log, and publishes a checkpoint: a row, NOTIFY audit_checkpoint, a line of the server log. Returns the number of entries. With everything => true, looks at all changesets and not only at recent ones. Errors: 25001 with a shared snapshot, 25006 on a standby, F0000 where the signing key cannot be used, XX001 where the log was altered.';
COMMENT ON FUNCTION erase(regclass, text, text) IS 'Erases what the log holds of a row: images, details, key and salt of the events under that resource_id. Their checksums stay, and an event audit.erased says what was erased and why. Returns the number of events. Copies in WAL, backups and until the next VACUUM in the table''s files are not reached. Errors: XX001 where a record was altered.';
COMMENT ON FUNCTION erase_user(text, text) IS 'Erases the context of a user''s changesets (user, request, session, addresses, user agent, reason, context, statement, application name), their salts, and details of what the application reported under it. Row images are erased by key: audit.erase. An event audit.erased says what was erased and why. Returns the number of changesets. Errors: XX001 where a record was altered.';
COMMENT ON FUNCTION prove(uuid, int) IS 'A proof that an event is in the log, for somebody who does not have the log: C2SP tlog-proof with the event, its changeset and the path between them in the extra line. Errors: P0002 without such an event, 55000 where it is not sealed yet or was erased, XX001 where it was altered.';
COMMENT ON FUNCTION prove_consistency(bigint) IS 'A proof that the current ledger, when it had that many entries, was the beginning of what its last checkpoint tells of: old size, hashes, checkpoint, as C2SP tlog-witness has it. Errors: 22023 for a size that the ledger never had.';
COMMENT ON FUNCTION add_cosignature(text) IS 'Stores the cosignatures on a checkpoint by the witnesses of audit.witness_keys. Returns how many are new. Errors: 22023 where there is no such checkpoint, no known witness has signed, or a signature does not hold.';
COMMENT ON FUNCTION verify_changesets(timestamptz, timestamptz) IS 'Part of audit.verify: the events of each changeset against its event_count and events_root.';
COMMENT ON FUNCTION verify_tree(text) IS 'Part of audit.verify: the entries of each ledger against its tiles and checkpoints, and against a checkpoint that was kept.';
COMMENT ON FUNCTION merkle_root(bytea[]) IS 'Merkle tree hash of RFC 6962 over 32-byte checksums.';
