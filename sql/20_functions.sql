-- Trigger functions, what is written in SQL, the view, and who may call what.

CREATE FUNCTION capture() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_capture';
COMMENT ON FUNCTION capture() IS 'Records changes of audited tables. Attached by audit.enable alone: called otherwise it raises 39P01, on a table without a policy 55000.';

CREATE FUNCTION append_only() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_append_only';
COMMENT ON FUNCTION append_only() IS 'Refuses UPDATE, DELETE and TRUNCATE of the log with 55000, whoever tries.';

CREATE FUNCTION ddl_command_end() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_ddl_command_end';
COMMENT ON FUNCTION ddl_command_end() IS 'Audits partitions, children and tables of enabled schemas as they come, and keeps detached partitions audited.';

CREATE FUNCTION sql_drop() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_sql_drop';
COMMENT ON FUNCTION sql_drop() IS 'Forgets the policies of tables and schemas that are dropped.';

-- The log is append-only: for the statement as such, and for each row reached another way. Row triggers are cloned to
-- partitions, present and future; statement triggers stand on the partition too.
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY '{changeset,event,relation,ledger,entry,tile,checkpoint,cosignature,erasure}'::text[] LOOP
        EXECUTE format('CREATE TRIGGER append_only_row BEFORE UPDATE OR DELETE ON audit.%I
                            FOR EACH ROW EXECUTE FUNCTION audit.append_only()', t);
        EXECUTE format('ALTER TABLE audit.%I ENABLE ALWAYS TRIGGER append_only_row', t);
    END LOOP;
    FOREACH t IN ARRAY '{changeset,changeset_default,event,event_default,relation,ledger,entry,tile,checkpoint,cosignature,erasure}'::text[] LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.%I
                            FOR EACH STATEMENT EXECUTE FUNCTION audit.append_only()', t);
        EXECUTE format('ALTER TABLE audit.%I ENABLE ALWAYS TRIGGER append_only', t);
    END LOOP;
END
$$;

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
               r.schema_name, r.table_name, e.operation, e.action, e.status, e.resource, e.resource_id,
               e.row_image, e.old_values, e.details)::text
      FROM audit.event e LEFT JOIN audit.relation r ON r.id = e.relation_id
     WHERE e.changeset_id = canonical.changeset_id AND e.seq = canonical.seq
       AND e.occurred_at = audit.changeset_time(canonical.changeset_id);
END;
COMMENT ON FUNCTION canonical(uuid, int) IS 'Text that an event''s checksum is taken over, after its salt: docs/format.md. NULL where there is no such event.';

CREATE FUNCTION canonical(changeset_id uuid) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.jsonb_build_array(
               'audit_ext/changeset/1', c.id, (EXTRACT(epoch FROM c.occurred_at) * 1000000)::bigint, c.era,
               c.position - '0/0'::pg_lsn, c.xid::text, c.user_id, c.tenant_id, c.request_id, c.session_id,
               c.ip_address, c.user_agent, c.reason, c.context, c.session_role, c.effective_role,
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

CREATE VIEW log AS
    SELECT c.occurred_at, c.era, c.position, e.command, e.seq, c.id AS changeset_id, c.user_id, c.tenant_id, e.action,
           e.operation::text AS operation, r.resource, e.resource_id, e.status::text AS status,
           CASE e.operation WHEN 'UPDATE' THEN e.row_image || e.old_values WHEN 'DELETE' THEN e.row_image END AS old_row,
           CASE WHEN e.operation <> 'DELETE' THEN e.row_image END AS new_row,
           CASE WHEN e.operation = 'UPDATE' THEN ARRAY(SELECT jsonb_object_keys(e.old_values)) END AS changed_columns,
           e.details, c.ip_address, c.user_agent, c.request_id, c.session_id, c.reason, c.context, c.session_role,
           c.effective_role, c.application_name, c.client_addr, c.xid, e.checksum
      FROM event e
      JOIN changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at
      JOIN relation r ON r.id = e.relation_id
    UNION ALL
    SELECT c.occurred_at, c.era, c.position, e.command, e.seq, c.id, c.user_id, c.tenant_id, e.action,
           e.operation::text, e.resource, e.resource_id, e.status::text, NULL, NULL, NULL,
           e.details, c.ip_address, c.user_agent, c.request_id, c.session_id, c.reason, c.context, c.session_role,
           c.effective_role, c.application_name, c.client_addr, c.xid, e.checksum
      FROM event e
      JOIN changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at
     WHERE e.relation_id IS NULL
    UNION ALL
    SELECT c.occurred_at, c.era, c.position, e.command, e.seq, c.id, c.user_id, c.tenant_id, e.action,
           e.operation::text, coalesce(r.resource, e.resource), e.resource_id, e.status::text,
           CASE e.operation WHEN 'UPDATE' THEN e.row_image || e.old_values WHEN 'DELETE' THEN e.row_image END,
           CASE WHEN e.operation <> 'DELETE' THEN e.row_image END,
           CASE WHEN e.operation = 'UPDATE' THEN ARRAY(SELECT jsonb_object_keys(e.old_values)) END,
           e.details, c.ip_address, c.user_agent, c.request_id, c.session_id, c.reason, c.context, c.session_role,
           c.effective_role, c.application_name, c.client_addr, c.xid, e.checksum
      FROM pending_changesets() c
      JOIN event e ON e.changeset_id = c.id AND e.occurred_at = c.occurred_at
      LEFT JOIN relation r ON r.id = e.relation_id;
COMMENT ON VIEW log IS 'Events with their context: what people query. This transaction''s own events have no position yet. ORDER BY era, position NULLS LAST, command, seq reads the versions of each row in the order in which they came into being.';

CREATE FUNCTION grant_reader(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT SELECT ON audit.log, audit.changeset, audit.event, audit.relation, audit.ledger, audit.entry, audit.tile, audit.checkpoint, audit.cosignature, audit.erasure, audit.policy, audit.schema_policy TO %s', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION audit.pending_changesets(), audit.changeset_time(uuid), audit.canonical(uuid, int), audit.canonical(uuid), audit.canonical_relation(audit.relation), audit.canonical_ledger(audit.ledger), audit.canonical_seal(text, bigint, timestamptz, xid8, xid8, text), audit.checksum_of(text), audit.verify_event(uuid, int), audit.verify(timestamptz, timestamptz, text), audit.verify_contents(timestamptz, timestamptz), audit.erased(), audit.verify_changesets(timestamptz, timestamptz), audit.verify_entries(timestamptz, timestamptz), audit.verify_tree(text), audit.prove(uuid, int), audit.prove_consistency(bigint), audit.merkle_root(bytea[]) TO %s', role);
END
$$;
COMMENT ON FUNCTION grant_reader(regrole) IS 'Lets a role read the log and check its records.';

CREATE FUNCTION grant_admin(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION audit.enable(regclass, text, float8, text[], text[], text, text[], boolean, boolean), audit.disable(regclass), audit.enable_schema(regnamespace, boolean, text[], text[], text, text[], boolean, boolean), audit.disable_schema(regnamespace), audit.seal(boolean), audit.add_cosignature(text), audit.erase(regclass, text, text), audit.erase_user(text, text) TO %s', role);
    EXECUTE format('GRANT SELECT ON audit.policy, audit.schema_policy TO %s', role);
END
$$;
COMMENT ON FUNCTION grant_admin(regrole) IS 'Lets a role enable and disable auditing of any table. Reading the log is another right: audit.grant_reader.';

COMMENT ON FUNCTION enable(regclass, text, float8, text[], text[], text, text[], boolean, boolean) IS 'Audits a table, its partitions and inheritance children, or changes how. Errors: 42809 for what cannot be audited, 42703 for unknown columns, 22023 for bad options, 0A000 for modes other than sync.';
COMMENT ON FUNCTION disable(regclass) IS 'Ends auditing of a table and of what follows it. Its records stay. Errors: 55000 where it is not audited or follows another table.';
COMMENT ON FUNCTION enable_schema(regnamespace, boolean, text[], text[], text, text[], boolean, boolean) IS 'Audits the tables of a schema, with include_future also those to come. Returns the number of tables.';
COMMENT ON FUNCTION disable_schema(regnamespace) IS 'Ends auditing of the tables of a schema, present and future. Returns the number of tables.';
COMMENT ON FUNCTION set_context(text, text, text, text, inet, text, text, jsonb, boolean) IS 'Sets the context: who, for whom, from where, why. NULL leaves a value as it is, the empty string clears it. For the transaction, or with is_local => false for the session. Errors: 22023 for a value that is too long or malformed.';
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

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA audit FROM PUBLIC;
REVOKE ALL ON log FROM PUBLIC;
GRANT EXECUTE ON FUNCTION set_context(text, text, text, text, inet, text, text, jsonb, boolean), clear_context(), client_ip(text, text, inet, inet[]) TO PUBLIC;
-- PostgreSQL asks for this right when a partition's owner makes a partition of an audited table, and clones the trigger.
GRANT EXECUTE ON FUNCTION capture() TO PUBLIC;

-- Last, so that they do not see this script.
CREATE EVENT TRIGGER audit_ddl_command_end ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE FOREIGN TABLE',
                 'ALTER FOREIGN TABLE', 'CREATE SCHEMA', 'ALTER SCHEMA', 'IMPORT FOREIGN SCHEMA')
    EXECUTE FUNCTION ddl_command_end();
ALTER EVENT TRIGGER audit_ddl_command_end ENABLE ALWAYS;
CREATE EVENT TRIGGER audit_sql_drop ON sql_drop EXECUTE FUNCTION sql_drop();
ALTER EVENT TRIGGER audit_sql_drop ENABLE ALWAYS;
