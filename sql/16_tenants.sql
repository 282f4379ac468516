-- Tenants: readers who see the events of one tenant.

CREATE TABLE tenant_reader (
    role       regrole     PRIMARY KEY,
    tenant_id  text        NOT NULL CHECK (tenant_id <> ''),
    granted_at timestamptz NOT NULL DEFAULT now(),
    granted_by text        NOT NULL DEFAULT session_user
);
COMMENT ON TABLE tenant_reader IS 'Roles that read the events of one tenant: audit.grant_tenant_reader. Removing a row takes that from the role.';
COMMENT ON COLUMN tenant_reader.role IS 'The role. Its members have what it has, as with every right.';
COMMENT ON COLUMN tenant_reader.tenant_id IS 'What audit.changeset.tenant_id holds.';
COMMENT ON COLUMN tenant_reader.granted_at IS 'When it was bound.';
COMMENT ON COLUMN tenant_reader.granted_by IS 'Session role that bound it.';
SELECT pg_catalog.pg_extension_config_dump('tenant_reader', '');

CREATE FUNCTION bound_tenants() RETURNS text[]
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'audit_bound_tenants';
COMMENT ON FUNCTION bound_tenants() IS 'Tenants whose events the current role may read because it, or a role whose rights it has, is bound to them.';

COMMENT ON FUNCTION tenant_visible(text) IS 'Whether the current role may read events of that tenant: all, if it has SELECT on audit.changeset, else those that it is bound to.';
COMMENT ON FUNCTION fenced(anyelement, text) IS 'The value, if the current role may read events of that tenant, else NULL.';
COMMENT ON FUNCTION reads_everything() IS 'Whether the current role may read the events of all tenants: whether it has SELECT on audit.changeset.';
COMMENT ON FUNCTION simplify_reads_everything(internal) IS 'Planner support of audit.reads_everything.';
COMMENT ON FUNCTION simplify_tenant_visible(internal) IS 'Planner support of audit.tenant_visible.';
COMMENT ON FUNCTION simplify_fenced(internal) IS 'Planner support of audit.fenced.';

CREATE FUNCTION grant_tenant_reader(role regrole, tenant_id text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF role IS NULL OR tenant_id IS NULL THEN
        RAISE EXCEPTION 'argument "%" must not be null', CASE WHEN role IS NULL THEN 'role' ELSE 'tenant_id' END
            USING ERRCODE = 'null_value_not_allowed';
    ELSIF tenant_id = '' OR octet_length(tenant_id) > 8192 THEN
        RAISE EXCEPTION 'tenant_id must have 1 to 8192 bytes' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Pass what audit.tenant_id is set to for that tenant.';
    ELSIF has_table_privilege(role, 'audit.changeset', 'SELECT') THEN
        RAISE EXCEPTION 'role % may read the whole log', role USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Rights add up, so binding it to a tenant would not restrict it. Take back what audit.grant_reader gave first, or use another role.';
    END IF;
    DELETE FROM audit.tenant_reader t WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = t.role);
    INSERT INTO audit.tenant_reader AS t (role, tenant_id) VALUES (grant_tenant_reader.role, grant_tenant_reader.tenant_id)
        ON CONFLICT ON CONSTRAINT tenant_reader_pkey
        DO UPDATE SET tenant_id = excluded.tenant_id, granted_at = excluded.granted_at, granted_by = excluded.granted_by;
    EXECUTE format('GRANT SELECT ON audit.log, audit.log_by_changeset, audit.visible_changeset, audit.relation, audit.local_layout, audit.ledger, audit.action TO %s', role);
    PERFORM audit.grant_functions(role, '{bound_tenants,tenant_visible,fenced,reads_everything,pending_changesets,changeset_time,note_read,
        uncatalogued_actions,action_rule_errors,
        get_logs,count_logs,user_activity,tenant_activity,failed_logins,statistics,security_events,
        required,log_filter,log_place,log_cursor,log_partitions,log_windows,find_logs,next_visible,instant_among,content_counts,
        history,row_as_of,table_as_of,diff,table_layouts,recorded_layouts,built_in_type,row_key,key_events,visible_key_events,is_there,
        row_changes,log_moment,commits_after,is_before,last_snapshot,recorded_changeset,layout_columns,current_image,images_as_of,known_values}');
END
$$;
COMMENT ON FUNCTION grant_tenant_reader(regrole, text) IS 'Lets a role read the events of one tenant, and of no other; a role that was bound to another tenant is bound to this one from then on. Errors: 55000 for a role that may read the whole log, 22023 for an empty or too long tenant_id.';

REVOKE ALL ON tenant_reader FROM PUBLIC;
