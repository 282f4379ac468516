-- The indexes of a partition of the log that is being written, and what makes them enough.
--
-- Each btree would cost every audited change a tenth of what its whole record costs, so while a partition is written it
-- has one BRIN index: next to nothing for the writer, who never meets a range that has its summary yet. A BRIN index
-- answers one instant by reading all of its summary, so joining events with their changesets one by one would read it
-- over and over; the operator <@ has it answer for a page of them at once. Partitions whose time is over get btree
-- indexes beside it: 50_maintenance.sql.

CREATE FUNCTION instant_among(instant timestamptz, instants timestamptz[]) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE LEAKPROOF AS 'MODULE_PATHNAME', 'audit_instant_among';
COMMENT ON FUNCTION instant_among(timestamptz, timestamptz[]) IS 'Whether an instant is one of an array: operator <@.';

CREATE OPERATOR <@ (
    LEFTARG = timestamptz, RIGHTARG = timestamptz[], FUNCTION = instant_among, RESTRICT = eqsel, JOIN = eqjoinsel
);
COMMENT ON OPERATOR <@ (timestamptz, timestamptz[]) IS 'is one of; finds many instants in one pass of a BRIN index';

CREATE FUNCTION instants_consistent(internal, internal, internal) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'audit_instants_consistent';
COMMENT ON FUNCTION instants_consistent(internal, internal, internal) IS 'Support of the operator class audit.instants.';

CREATE OPERATOR CLASS instants FOR TYPE timestamptz USING brin AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
    OPERATOR 6 <@ (timestamptz, timestamptz[]),
    FUNCTION 1 brin_minmax_opcinfo(internal),
    FUNCTION 2 brin_minmax_add_value(internal, internal, internal, internal),
    FUNCTION 3 instants_consistent(internal, internal, internal),
    FUNCTION 4 brin_minmax_union(internal, internal, internal);
COMMENT ON OPERATOR CLASS instants USING brin IS 'PostgreSQL''s minmax class of timestamptz, and the operator <@.';
COMMENT ON OPERATOR FAMILY instants USING brin IS 'PostgreSQL''s minmax class of timestamptz, and the operator <@.';

-- Events that are rare, found among many without a byte or a microsecond for the others: those of an operation, and
-- UPDATEs that changed the key.

CREATE OPERATOR CLASS enum_bloom FOR TYPE anyenum USING brin AS
    OPERATOR 1 = (anyenum, anyenum),
    FUNCTION 1 brin_bloom_opcinfo(internal),
    FUNCTION 2 brin_bloom_add_value(internal, internal, internal, internal),
    FUNCTION 3 brin_bloom_consistent(internal, internal, internal, int4),
    FUNCTION 4 brin_bloom_union(internal, internal, internal),
    FUNCTION 5 brin_bloom_options(internal),
    FUNCTION 11 hashenum(anyenum);
COMMENT ON OPERATOR CLASS enum_bloom USING brin IS 'PostgreSQL''s bloom class, for enums.';
COMMENT ON OPERATOR FAMILY enum_bloom USING brin IS 'PostgreSQL''s bloom class, for enums.';

-- Not to be inlined: then no index would be found for it. Its SET sees to that.
CREATE FUNCTION same_old_key(details jsonb, other jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT details ->> 'old_resource_id' = other ->> 'old_resource_id';
END;
COMMENT ON FUNCTION same_old_key(jsonb, jsonb) IS 'Whether two details name the same old key: operator #=.';

CREATE OPERATOR #= (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = same_old_key, RESTRICT = eqsel, JOIN = eqjoinsel);
COMMENT ON OPERATOR #= (jsonb, jsonb) IS 'same details.old_resource_id';

CREATE FUNCTION old_key_hash(details jsonb) RETURNS int
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'audit_old_key_hash';
COMMENT ON FUNCTION old_key_hash(jsonb) IS 'Support of the operator class audit.old_key_bloom.';

CREATE OPERATOR CLASS old_key_bloom FOR TYPE jsonb USING brin AS
    OPERATOR 1 #= (jsonb, jsonb),
    FUNCTION 1 brin_bloom_opcinfo(internal),
    FUNCTION 2 brin_bloom_add_value(internal, internal, internal, internal),
    FUNCTION 3 brin_bloom_consistent(internal, internal, internal, int4),
    FUNCTION 4 brin_bloom_union(internal, internal, internal),
    FUNCTION 5 brin_bloom_options(internal),
    FUNCTION 11 old_key_hash(jsonb);
COMMENT ON OPERATOR CLASS old_key_bloom USING brin IS 'PostgreSQL''s bloom class, for the old key in an event''s details.';
COMMENT ON OPERATOR FAMILY old_key_bloom USING brin IS 'PostgreSQL''s bloom class, for the old key in an event''s details.';

-- On each partition by itself: a restore makes a partition, attaches it, and creates its index then, which an index of the
-- parent would have made already.
--
-- Ranges as short as pays: a match costs reading a range, a look-up costs reading all summaries.
CREATE INDEX changeset_default_brin_idx ON changeset_default USING brin (
        occurred_at instants, user_id text_bloom_ops, tenant_id text_bloom_ops, request_id text_bloom_ops,
        ip_address inet_bloom_ops)
    WITH (pages_per_range = 4, autosummarize = on);
CREATE INDEX event_default_brin_idx ON event_default USING brin (
        occurred_at instants, resource_id text_bloom_ops, action text_bloom_ops (n_distinct_per_range = 32),
        operation enum_bloom (n_distinct_per_range = 16), details old_key_bloom (n_distinct_per_range = 16))
    WITH (pages_per_range = 16, autosummarize = on);

CREATE FUNCTION index_partition(partition regclass) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    model text;
BEGIN
    IF EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
                WHERE i.indrelid = partition AND a.amname = 'brin') THEN
        RETURN;
    END IF;
    SELECT pg_get_indexdef(i.indexrelid) INTO model
      FROM pg_inherits own
      JOIN pg_inherits sibling ON sibling.inhparent = own.inhparent
      JOIN pg_index i ON i.indrelid = sibling.inhrelid AND i.indisvalid
      JOIN pg_class c ON c.oid = i.indexrelid
      JOIN pg_am a ON a.oid = c.relam AND a.amname = 'brin'
     WHERE own.inhrelid = partition
     ORDER BY sibling.inhrelid DESC, i.indexrelid LIMIT 1;
    IF model IS NOT NULL THEN
        EXECUTE regexp_replace(model, '^CREATE INDEX .* ON .* USING brin ', format('CREATE INDEX ON %s USING brin ', partition));
        PERFORM audit.begin_unsummarized(partition);
    END IF;
END
$$;
COMMENT ON FUNCTION index_partition(regclass) IS 'Gives a partition of the log the BRIN index that its newest sibling has. Called when CREATE TABLE makes one.';

CREATE FUNCTION begin_unsummarized(partition regclass) RETURNS void
    LANGUAGE sql
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.brin_desummarize_range(i.indexrelid, 0)
      FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
      JOIN pg_catalog.pg_am a ON a.oid = c.relam AND a.amname = 'brin'
     WHERE i.indrelid = begin_unsummarized.partition;
END;
COMMENT ON FUNCTION begin_unsummarized(regclass) IS 'Leaves the first range of an empty partition without a summary: keeping one up to date costs more than all the rest.';

SELECT begin_unsummarized('changeset_default'), begin_unsummarized('event_default');
