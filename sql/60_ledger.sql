-- The Merkle log over changesets: its tables, and the texts that its entries other than changesets are checksums of.
-- docs/format.md is normative.

CREATE TABLE entry (
    index        bigint NOT NULL,
    era          int    NOT NULL,
    relation_id  int,
    changeset_id uuid,
    checksum     bytea  NOT NULL,
    PRIMARY KEY (era, index)
);
CREATE UNIQUE INDEX entry_changeset_id_idx ON entry (changeset_id) WHERE changeset_id IS NOT NULL;
CREATE UNIQUE INDEX entry_relation_id_idx ON entry (relation_id) WHERE relation_id IS NOT NULL;
COMMENT ON TABLE entry IS 'Entries of the Merkle log: of each ledger the ledger''s own record first, then layouts and changesets as they were sealed, and at the end of each round a seal. Append-only.';
COMMENT ON COLUMN entry.index IS 'Place in the log, from 0.';
COMMENT ON COLUMN entry.era IS 'The ledger.';
COMMENT ON COLUMN entry.relation_id IS 'The layout, where the entry is one.';
COMMENT ON COLUMN entry.changeset_id IS 'The changeset, where the entry is one.';
COMMENT ON COLUMN entry.checksum IS 'The entry itself: the checksum of the record, 32 bytes.';

CREATE TABLE tile (
    level  int    NOT NULL,
    era    int    NOT NULL,
    index  bigint NOT NULL,
    root   bytea  NOT NULL,
    hashes bytea  NOT NULL,
    PRIMARY KEY (era, level, index)
);
-- Hashes do not compress. Out of line, so that roots are read without them.
ALTER TABLE tile ALTER hashes SET STORAGE EXTERNAL;
COMMENT ON TABLE tile IS 'Complete tiles of the Merkle log, as C2SP''s tlog-tiles has them. Incomplete ones follow from the entries and the tiles below. Append-only.';
COMMENT ON COLUMN tile.level IS 'From 0, whose hashes are those of entries.';
COMMENT ON COLUMN tile.era IS 'The ledger.';
COMMENT ON COLUMN tile.index IS 'Place within the level, from 0.';
COMMENT ON COLUMN tile.root IS 'Root over the hashes: one hash of the level above.';
COMMENT ON COLUMN tile.hashes IS '256 hashes of 32 bytes.';

CREATE TABLE checkpoint (
    tree_size    bigint      NOT NULL,
    created_at   timestamptz NOT NULL,
    sealed_below xid8        NOT NULL,
    next_xid     xid8        NOT NULL,
    era          int         NOT NULL,
    root_hash    bytea       NOT NULL,
    key          text,
    note         text        NOT NULL,
    PRIMARY KEY (era, tree_size)
);
COMMENT ON TABLE checkpoint IS 'States of the Merkle log, one per round of sealing that appended. Whoever keeps a note can hold the log to it later. Append-only.';
COMMENT ON COLUMN checkpoint.tree_size IS 'Number of entries.';
COMMENT ON COLUMN checkpoint.created_at IS 'When it was sealed.';
COMMENT ON COLUMN checkpoint.sealed_below IS 'Every changeset of a transaction below this id is in the tree.';
COMMENT ON COLUMN checkpoint.next_xid IS 'The first transaction id not given out then.';
COMMENT ON COLUMN checkpoint.era IS 'The ledger.';
COMMENT ON COLUMN checkpoint.root_hash IS 'Root over the entries, 32 bytes.';
COMMENT ON COLUMN checkpoint.key IS 'Public key (vkey) that belongs to the signature; NULL where no key was configured.';
COMMENT ON COLUMN checkpoint.note IS 'The checkpoint as C2SP''s tlog-checkpoint has it: a signed note, or without a key its three lines.';

CREATE TABLE cosignature (
    tree_size bigint NOT NULL,
    era       int    NOT NULL,
    key       text   NOT NULL,
    line      text   NOT NULL,
    PRIMARY KEY (era, tree_size, key)
);
COMMENT ON TABLE cosignature IS 'Signatures of witnesses on checkpoints: audit.add_cosignature. Append-only.';
COMMENT ON COLUMN cosignature.tree_size IS 'The checkpoint.';
COMMENT ON COLUMN cosignature.era IS 'The ledger.';
COMMENT ON COLUMN cosignature.key IS 'Public key (vkey) of the witness.';
COMMENT ON COLUMN cosignature.line IS 'Its line of the signed note; the time is part of the signature.';

CREATE TABLE erasure (
    occurred_at  timestamptz NOT NULL,
    seq          int         NOT NULL,
    changeset_id uuid        NOT NULL,
    PRIMARY KEY (changeset_id, seq)
);
COMMENT ON TABLE erasure IS 'Where the events are that say what was erased, so that they are found without reading all events. Proves nothing by itself. Append-only.';
COMMENT ON COLUMN erasure.occurred_at IS 'The event''s occurred_at.';
COMMENT ON COLUMN erasure.seq IS 'The event''s number.';
COMMENT ON COLUMN erasure.changeset_id IS 'The event''s changeset.';

-- Event and checksum of what remains, for each record that an erasure names. An erasure counts if it is as it was written.
CREATE FUNCTION erased(OUT changeset_id text, OUT seq text, OUT remains text, OUT erased_by text) RETURNS SETOF record
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH intact AS MATERIALIZED (
        SELECT e.details, format('Erased at %s by event %s/%s, session role %s, user %s: %s', e.occurred_at,
                                 e.changeset_id, e.seq, c.session_role, coalesce(c.user_id, 'unknown'),
                                 e.details ->> 'reason') AS erased_by
          FROM audit.erasure AS i
          JOIN audit.event AS e ON (e.changeset_id, e.seq, e.occurred_at) = (i.changeset_id, i.seq, i.occurred_at)
          LEFT JOIN audit.changeset AS c ON (c.id, c.occurred_at) = (e.changeset_id, e.occurred_at)
         WHERE e.action = 'audit.erased' AND jsonb_typeof(e.details) = 'object'
           AND e.checksum = sha256(uuid_send(e.salt) || convert_to(audit.canonical(e.changeset_id, e.seq), 'UTF8'))),
    event AS MATERIALIZED (
        SELECT x.key, x.value, i.erased_by
          FROM intact AS i, jsonb_each(CASE WHEN jsonb_typeof(i.details -> 'events') = 'object'
                                            THEN i.details -> 'events' ELSE '{}' END) AS x
         WHERE jsonb_typeof(x.value) = 'object')
    SELECT v.key, s.key, s.value, v.erased_by FROM event AS v, jsonb_each_text(v.value) AS s
    UNION ALL
    SELECT x.key, NULL, x.value, i.erased_by
      FROM intact AS i, jsonb_each_text(CASE WHEN jsonb_typeof(i.details -> 'changesets') = 'object'
                                             THEN i.details -> 'changesets' ELSE '{}' END) AS x;
END
$$;
COMMENT ON FUNCTION erased() IS 'The records that erasures name: changeset, seq (NULL for a changeset), checksum of what remains in hexadecimal, and who erased them when and why.';

CREATE FUNCTION checksum_of(canonical text) RETURNS bytea
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.sha256(pg_catalog.convert_to(canonical, 'UTF8'));
END;
COMMENT ON FUNCTION checksum_of(text) IS 'SHA-256 of a text in UTF-8: the entry that a layout, a ledger or a seal has in the Merkle log.';

CREATE FUNCTION canonical_relation(layout relation) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.jsonb_build_array(
               'audit_ext/relation/1', layout.id, layout.relid::bigint, layout.schema_name, layout.table_name,
               layout.resource, layout.root_schema, layout.root_table, layout.columns, layout.key_columns,
               (EXTRACT(epoch FROM layout.valid_from) * 1000000)::bigint)::text;
END;
COMMENT ON FUNCTION canonical_relation(relation) IS 'Text whose SHA-256 is the entry of a layout in the Merkle log: docs/format.md.';

CREATE FUNCTION canonical_ledger(ledger ledger) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.jsonb_build_array(
               'audit_ext/ledger/1', (ledger).era, (ledger).id, (ledger).system_identifier::text,
               (ledger).timeline, (ledger).database_id::bigint, (ledger).origin,
               (EXTRACT(epoch FROM (ledger).started_at) * 1000000)::bigint,
               p.origin, p.tree_size, pg_catalog.encode(p.root_hash, 'base64'))::text
      FROM (VALUES (1)) AS one
      LEFT JOIN (SELECT l.origin, k.tree_size, k.root_hash
                   FROM audit.checkpoint AS k JOIN audit.ledger AS l ON l.era = k.era
                  WHERE k.era < (ledger).era
                  ORDER BY k.era DESC, k.tree_size DESC LIMIT 1) AS p ON true;
END;
COMMENT ON FUNCTION canonical_ledger(ledger) IS 'Text whose SHA-256 is the first entry of a ledger; it names the last checkpoint of the ledger before: docs/format.md.';

CREATE FUNCTION canonical_seal(origin text, tree_size bigint, created_at timestamptz, sealed_below xid8, next_xid xid8,
                               key text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_catalog.jsonb_build_array(
               'audit_ext/seal/1', origin, tree_size, (EXTRACT(epoch FROM created_at) * 1000000)::bigint,
               sealed_below::text, next_xid::text, key)::text;
END;
COMMENT ON FUNCTION canonical_seal(text, bigint, timestamptz, xid8, xid8, text) IS 'Text whose SHA-256 is the last entry under a checkpoint: docs/format.md.';

-- Those of eras before the newest with a checkpoint are all sealed. The rest are found by their time, as sealing finds them: they
-- are later than a time at which none of their transactions had begun, but for what happens to clocks.
CREATE FUNCTION unsealed(OUT changesets bigint, OUT oldest timestamptz)
    LANGUAGE sql STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT count(*), min(c.occurred_at)
      FROM (SELECT k.era, k.sealed_below, coalesce((
                       SELECT b.created_at - interval '10 seconds' FROM audit.checkpoint AS b
                        WHERE b.era = k.era AND b.next_xid <= k.sealed_below ORDER BY b.tree_size DESC LIMIT 1),
                   '-infinity') AS since
              FROM (VALUES (1)) AS one
              LEFT JOIN (SELECT * FROM audit.checkpoint AS k ORDER BY k.era DESC, k.tree_size DESC LIMIT 1) AS k ON true) AS k
      JOIN audit.changeset AS c
        ON c.occurred_at >= k.since AND (k.era IS NULL OR c.era > k.era OR c.era = k.era AND c.xid >= k.sealed_below);
END;
COMMENT ON FUNCTION unsealed() IS 'Changesets that are not sealed yet, and the time of the oldest.';

-- The same texts as audit.canonical's, put together piece by piece: building them as JSONB takes two and a half times as long. To be
-- inlined, so without a SET: everything in them is bound when they are created.
CREATE FUNCTION event_text(event event, layout text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT concat('["audit_ext/event/1", "', event.changeset_id, '", ', event.seq, ', ', event.command, ', ',
                  (extract(epoch FROM event.occurred_at) * 1000000)::bigint, ', ', layout, ', "', event.operation, '", ',
                  coalesce(to_json(event.action)::text, 'null'), ', "', event.status, '", ',
                  coalesce(to_json(event.resource)::text, 'null'), ', ', coalesce(to_json(event.resource_id)::text, 'null'),
                  ', ', coalesce(event.row_image::text, 'null'), ', ', coalesce(event.old_values::text, 'null'), ', ',
                  coalesce(event.details::text, 'null'), ']');
END;
COMMENT ON FUNCTION event_text(event, text) IS 'What audit.canonical returns for an event; layout: its fields of layout, schema and table.';

CREATE FUNCTION changeset_text(changeset changeset) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT concat('["audit_ext/changeset/1", "', changeset.id, '", ',
                  (extract(epoch FROM changeset.occurred_at) * 1000000)::bigint, ', ', changeset.era, ', ',
                  coalesce((changeset.position - '0/0'::pg_lsn)::text, 'null'), ', "', changeset.xid, '", ',
                  coalesce(to_json(changeset.user_id)::text, 'null'), ', ',
                  coalesce(to_json(changeset.tenant_id)::text, 'null'), ', ',
                  coalesce(to_json(changeset.request_id)::text, 'null'), ', ',
                  coalesce(to_json(changeset.session_id)::text, 'null'), ', ',
                  coalesce(to_json(changeset.ip_address)::text, 'null'), ', ',
                  coalesce(to_json(changeset.user_agent)::text, 'null'), ', ',
                  coalesce(to_json(changeset.reason)::text, 'null'), ', ', coalesce(changeset.context::text, 'null'), ', "',
                  changeset.context_trust, '", ',
                  coalesce(to_json(changeset.session_role)::text, 'null'), ', ',
                  coalesce(to_json(changeset.effective_role)::text, 'null'), ', ',
                  coalesce(to_json(changeset.application_name)::text, 'null'), ', ',
                  coalesce(to_json(changeset.client_addr)::text, 'null'), ', ',
                  coalesce(changeset.client_port::text, 'null'), ', ', changeset.backend_pid, ', ',
                  coalesce(to_json(changeset.statement)::text, 'null'), ', "', changeset.origin, '", ',
                  changeset.event_count, ', "', encode(changeset.events_root, 'hex'), '"]');
END;
COMMENT ON FUNCTION changeset_text(changeset) IS 'What audit.canonical returns for a changeset.';

CREATE FUNCTION verify_contents(since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL)
    RETURNS TABLE (finding text, occurred_at timestamptz, changeset_id uuid, seq int, detail text)
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 10
    SET search_path = pg_catalog, pg_temp
    SET jit = off -- compiling takes longer than it saves
    -- The planner takes every row for one that does not fit, and so parallel workers for too dear.
    SET parallel_tuple_cost = 0
    SET parallel_setup_cost = 0
AS $$
#variable_conflict use_column
BEGIN
    -- The stored checksum against that of the content; without its salt a record must be what an erasure says remains of it.
    RETURN QUERY
    SELECT CASE WHEN NOT e.is_erased OR v.remains IS DISTINCT FROM e.remains THEN 'event altered' ELSE 'event erased' END,
           e.occurred_at, e.changeset_id, e.seq,
           CASE WHEN NOT e.is_erased THEN 'Its content does not give its checksum, ' || e.checksum || '.'
                WHEN v.remains = e.remains THEN v.erased_by
                WHEN v.remains IS NULL THEN 'Its salt is not there, and no erasure names it.'
                ELSE 'What remains of it is not what its erasure says.' END
      FROM (SELECT e.occurred_at, e.changeset_id, e.seq, e.salt IS NULL AS is_erased, encode(e.checksum, 'hex') AS checksum,
                   encode(sha256(convert_to(audit.event_text(e, coalesce(r.layout, 'null, null, null')), 'UTF8')), 'hex') AS remains
              FROM audit.event AS e
              LEFT JOIN (SELECT r.id, concat(r.id, ', ', to_json(r.schema_name), ', ', to_json(r.table_name)) AS layout
                           FROM audit.relation AS r OFFSET 0) AS r ON r.id = e.relation_id
             WHERE (verify_contents.since IS NULL OR e.occurred_at >= verify_contents.since)
               AND (verify_contents.until IS NULL OR e.occurred_at < verify_contents.until)
               AND (e.checksum = sha256(uuid_send(e.salt) || convert_to(
                       audit.event_text(e, coalesce(r.layout, 'null, null, null')), 'UTF8'))) IS NOT TRUE) AS e
      LEFT JOIN audit.erased() AS v ON e.is_erased AND (v.changeset_id, v.seq) = (e.changeset_id::text, e.seq::text);

    RETURN QUERY
    SELECT CASE WHEN NOT c.is_erased OR v.remains IS DISTINCT FROM c.remains THEN 'changeset altered' ELSE 'changeset erased' END,
           c.occurred_at, c.id, NULL::int,
           CASE WHEN NOT c.is_erased THEN 'Its content does not give its checksum, ' || c.checksum || '.'
                WHEN v.remains = c.remains THEN v.erased_by
                WHEN v.remains IS NULL THEN 'Its salt is not there, and no erasure names it.'
                ELSE 'What remains of it is not what its erasure says.' END
      FROM (SELECT c.occurred_at, c.id, c.salt IS NULL AS is_erased, encode(c.checksum, 'hex') AS checksum,
                   encode(sha256(convert_to(audit.changeset_text(c), 'UTF8')), 'hex') AS remains
              FROM audit.changeset AS c
             WHERE (verify_contents.since IS NULL OR c.occurred_at >= verify_contents.since)
               AND (verify_contents.until IS NULL OR c.occurred_at < verify_contents.until)
               AND (c.checksum = sha256(uuid_send(c.salt) || convert_to(audit.changeset_text(c), 'UTF8'))) IS NOT TRUE) AS c
      LEFT JOIN audit.erased() AS v ON c.is_erased AND v.changeset_id = c.id::text AND v.seq IS NULL;
END
$$;
COMMENT ON FUNCTION verify_contents(timestamptz, timestamptz) IS 'Part of audit.verify: content of events and changesets against their checksums.';

CREATE FUNCTION verify_entries(since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL)
    RETURNS TABLE (finding text, occurred_at timestamptz, changeset_id uuid, seq int, detail text)
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 10
    SET search_path = pg_catalog, pg_temp
    SET jit = off -- compiling takes longer than it saves
    SET work_mem = '64MB'
AS $$
#variable_conflict use_column
DECLARE
    unsealed bigint;
    oldest   timestamptz;
BEGIN
    -- A changeset that is not in the log must be newer than what is sealed.
    RETURN QUERY
    SELECT CASE WHEN c.id IS NULL THEN 'changeset removed'
                WHEN e.changeset_id IS NULL THEN 'changeset added' ELSE 'changeset altered' END,
           coalesce(c.occurred_at, audit.changeset_time(e.changeset_id)), coalesce(c.id, e.changeset_id), NULL::int,
           CASE WHEN c.id IS NULL THEN format('It is entry %s of ledger %s.', e.index, l.origin)
                WHEN e.changeset_id IS NULL THEN format(
                    'It is in no ledger, but its transaction, %s of era %s, is older than what is sealed.', c.xid, c.era)
                ELSE format('Its checksum is %s, entry %s of ledger %s says %s.',
                            encode(c.checksum, 'hex'), e.index, l.origin, encode(e.checksum, 'hex')) END
      FROM (SELECT * FROM audit.changeset AS c
             WHERE (verify_entries.since IS NULL OR c.occurred_at >= verify_entries.since)
               AND (verify_entries.until IS NULL OR c.occurred_at < verify_entries.until)) AS c
      FULL JOIN (SELECT * FROM audit.entry AS e
                  WHERE e.changeset_id IS NOT NULL
                    AND (verify_entries.since IS NULL OR audit.changeset_time(e.changeset_id) >= verify_entries.since)
                    AND (verify_entries.until IS NULL OR audit.changeset_time(e.changeset_id) < verify_entries.until)) AS e
        ON e.changeset_id = c.id
      LEFT JOIN audit.ledger AS l ON l.era = e.era
      LEFT JOIN (SELECT l.era, max(k.sealed_below) AS sealed_below, bool_or(later.era IS NOT NULL) AS is_closed
                   FROM audit.ledger AS l
                   LEFT JOIN LATERAL (SELECT k.sealed_below FROM audit.checkpoint AS k WHERE k.era = l.era
                                       ORDER BY k.tree_size DESC LIMIT 1) AS k ON true
                   LEFT JOIN (SELECT DISTINCT k.era FROM audit.checkpoint AS k) AS later ON later.era > l.era
                  GROUP BY l.era) AS sealed ON sealed.era = c.era
     WHERE c.id IS NULL OR c.checksum <> e.checksum
        OR e.changeset_id IS NULL AND (sealed.era IS NULL OR sealed.is_closed OR c.xid < sealed.sealed_below);

    RETURN QUERY
    SELECT CASE WHEN r.id IS NULL THEN 'layout removed' ELSE 'layout altered' END, NULL::timestamptz, NULL::uuid,
           NULL::int, format('Layout %s is not what entry %s of ledger %s says.', e.relation_id, e.index, l.origin)
      FROM audit.entry AS e
      LEFT JOIN audit.relation AS r ON r.id = e.relation_id
      LEFT JOIN audit.ledger AS l ON l.era = e.era
     WHERE e.relation_id IS NOT NULL AND e.checksum IS DISTINCT FROM audit.checksum_of(audit.canonical_relation(r));

    -- A layout that is in no ledger came after the last round, so nothing sealed can use it.
    RETURN QUERY
    SELECT 'layout added', NULL::timestamptz, NULL::uuid, NULL::int,
           format('Layout %s is in no ledger, but a sealed changeset uses it.', r.id)
      FROM audit.relation AS r
     WHERE NOT EXISTS (SELECT FROM audit.entry AS e WHERE e.relation_id = r.id)
       AND EXISTS (SELECT FROM audit.event AS v JOIN audit.entry AS e ON e.changeset_id = v.changeset_id
                    WHERE v.relation_id = r.id);

    SELECT u.changesets, u.oldest INTO unsealed, oldest FROM audit.unsealed() AS u;
    IF unsealed > 0 THEN
        RAISE NOTICE 'audit.verify: % changesets not sealed yet, the oldest is % old', unsealed,
            date_trunc('second', clock_timestamp() - oldest);
    END IF;
END
$$;
COMMENT ON FUNCTION verify_entries(timestamptz, timestamptz) IS 'Part of audit.verify: changesets and layouts against the entries of the Merkle log.';

CREATE FUNCTION verify(since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, checkpoint text DEFAULT NULL)
    RETURNS TABLE (finding text, occurred_at timestamptz, changeset_id uuid, seq int, detail text)
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 10
    SET search_path = pg_catalog, pg_temp
    SET jit = off
    SET work_mem = '64MB'
AS $$
#variable_conflict use_column
BEGIN
    RAISE NOTICE 'audit.verify: part 1 of 4, content of records';
    RETURN QUERY SELECT * FROM audit.verify_contents(verify.since, verify.until);
    RAISE NOTICE 'audit.verify: part 2 of 4, events of changesets';
    RETURN QUERY SELECT * FROM audit.verify_changesets(verify.since, verify.until);
    RAISE NOTICE 'audit.verify: part 3 of 4, changesets and layouts in the Merkle log';
    RETURN QUERY SELECT * FROM audit.verify_entries(verify.since, verify.until);
    RAISE NOTICE 'audit.verify: part 4 of 4, entries, tiles and checkpoints';
    RETURN QUERY SELECT * FROM audit.verify_tree(verify.checkpoint);
END
$$;
COMMENT ON FUNCTION verify(timestamptz, timestamptz, text) IS 'Checks the log: a row for each thing that does not fit, none where all is intact, and NOTICEs that say what was checked. Content, events and entries of changesets from since to until (excluded); the Merkle log as a whole, and against a checkpoint that was kept: a note of audit.checkpoint, or a line of the server log. Errors: 22023 for what is no checkpoint.';

REVOKE ALL ON entry, tile, checkpoint, cosignature, erasure FROM PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('entry', '');
SELECT pg_catalog.pg_extension_config_dump('tile', '');
SELECT pg_catalog.pg_extension_config_dump('checkpoint', '');
SELECT pg_catalog.pg_extension_config_dump('cosignature', '');
SELECT pg_catalog.pg_extension_config_dump('erasure', '');
