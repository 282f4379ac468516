-- The checksums, recomputed from the stored columns with PostgreSQL's own functions alone: jsonb_build_array, sha256, uuid_send,
-- convert_to. Nothing of the extension runs in the recomputation, so a mistake in it cannot hide here.
SET client_min_messages = warning;
CREATE SCHEMA contract_checksum;
SET search_path = contract_checksum;
\set VERBOSITY sqlstate

CREATE TABLE t (id int PRIMARY KEY, n numeric, s text, j jsonb, b bytea, ts timestamptz, f float8, a int[]);
CREATE TABLE "T 2" (k text);
SELECT audit.enable('t'), audit.enable('"T 2"');

-- Changesets of one, of two, of three, and of many events; with every part of a context; with two contexts; a snapshot; a truncation.
INSERT INTO t VALUES (1, 1.50, E'quote " backslash \\ tab \t bell \x07 umlaut \u00fc plane 2 \U00020000', '{"b": [1, {"c": null}], "a": 1e3}', '\x00ff', '2024-02-29 23:59:59.999999+00', 0.1, '[0:1]={1,NULL}');
INSERT INTO t VALUES (2, 'NaN', '', '"x"', '', '-infinity', '-Infinity', '{}'), (3, 0, NULL, NULL, NULL, NULL, NULL, NULL);
BEGIN;
SELECT audit.set_context('ann', 'acme', 'r-1', 's-1', '192.0.2.7/25', E'agent "quoted" \\ \u2603', E'a\nreason', '{"z": 1.0, "a": {"k": [true, null]}}');
UPDATE t SET n = n + 1, s = s || '!' WHERE id IN (1, 2);
DELETE FROM t WHERE id = 3;
SELECT audit.set_context(ip_address => '2001:db8::7', context => '{}');
UPDATE t SET n = 0 WHERE id = 1;
SELECT audit.set_context(ip_address => '192.0.2.7/25', context => '{"z": 1.0, "a": {"k": [true, null]}}');
UPDATE t SET id = 4 WHERE id = 1;
COMMIT;
INSERT INTO t SELECT i, i FROM generate_series(100, 1126) i;
TRUNCATE "T 2";
INSERT INTO "T 2" VALUES (NULL);
SELECT audit.enable('t', snapshot => true);
ALTER TABLE "T 2" RENAME TO renamed;
UPDATE renamed SET k = '';
SET audit.log_statement = on;
DELETE FROM renamed;
RESET audit.log_statement;
SET audit.enabled = off;
INSERT INTO t VALUES (5);
RESET audit.enabled;
DELETE FROM t WHERE id = 5;

CREATE TEMP TABLE event AS
SELECT e.*, jsonb_build_array('audit_ext/event/1', e.changeset_id, e.seq, e.command, (extract(epoch FROM e.occurred_at) * 1000000)::bigint,
           e.relation_id, r.schema_name, r.table_name, e.operation, e.action, e.status, e.resource, e.resource_id, e.row_image, e.old_values, e.details)::text AS canonical
  FROM audit.event e LEFT JOIN audit.relation r ON r.id = e.relation_id
 WHERE e.changeset_id IN (SELECT changeset_id FROM audit.log WHERE resource LIKE 'contract\_checksum.%');
CREATE TEMP TABLE changeset AS
SELECT c.*, jsonb_build_array('audit_ext/changeset/1', c.id, (extract(epoch FROM c.occurred_at) * 1000000)::bigint, c.era, (c.position - '0/0'::pg_lsn),
           c.xid::text, c.user_id, c.tenant_id, c.request_id, c.session_id, c.ip_address, c.user_agent, c.reason, c.context, c.context_trust,
           c.session_role, c.effective_role, c.application_name, c.client_addr, c.client_port, c.backend_pid, c.statement, c.origin,
           c.event_count, encode(c.events_root, 'hex'))::text AS canonical
  FROM audit.changeset c WHERE c.id IN (SELECT changeset_id FROM event);

SELECT count(*) AS events, count(*) FILTER (WHERE sha256(uuid_send(salt) || convert_to(canonical, 'UTF8')) = checksum) AS agree,
       count(*) FILTER (WHERE canonical = audit.canonical(changeset_id, seq)) AS canonical, count(*) FILTER (WHERE audit.verify_event(changeset_id, seq)) AS verified,
       count(DISTINCT salt) AS salts
  FROM event;
SELECT count(*) AS changesets, count(*) FILTER (WHERE sha256(uuid_send(salt) || convert_to(canonical, 'UTF8')) = checksum) AS agree,
       count(*) FILTER (WHERE canonical = audit.canonical(id)) AS canonical, count(DISTINCT salt) AS salts
  FROM changeset;

-- RFC 6962, section 2.1: the tree over n leaves splits at the largest power of two below n. Level by level that is: pair
-- neighbours, carry an odd last one up.
CREATE FUNCTION pg_temp.root(leaves bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    level bytea[];
    next bytea[];
BEGIN
    IF cardinality(leaves) = 0 THEN
        RETURN sha256('');
    END IF;
    SELECT array_agg(sha256('\x00'::bytea || leaf) ORDER BY n) INTO level FROM unnest(leaves) WITH ORDINALITY AS u(leaf, n);
    WHILE cardinality(level) > 1 LOOP
        SELECT array_agg(CASE WHEN n = cardinality(level) THEN level[n] ELSE sha256('\x01'::bytea || level[n] || level[n + 1]) END ORDER BY n)
          INTO next FROM generate_series(1, cardinality(level), 2) n;
        level := next;
    END LOOP;
    RETURN level[1];
END
$$;
-- The RFC's empty tree, and Certificate Transparency's own test vectors: trees of one to eight leaves.
SELECT encode(pg_temp.root('{}'), 'hex') AS core, encode(audit.merkle_root('{}'), 'hex') AS extension;
WITH v AS (SELECT ARRAY['', '\x00', '\x10', '\x2021', '\x3031', '\x40414243', '\x5051525354555657', '\x606162636465666768696a6b6c6d6e6f']::bytea[] AS leaves)
SELECT n, encode(pg_temp.root(leaves[:n]), 'hex') AS core FROM v, generate_series(1, 8) n ORDER BY n;
SELECT bool_and(pg_temp.root(l) = audit.merkle_root(l)) AS agree
  FROM (SELECT array_agg(sha256(int4send(i))) AS l FROM generate_series(0, 70) n, generate_series(1, n) i GROUP BY n) s;
SELECT c.event_count, count(*) AS stored, bool_and(c.events_root = root) AS agree
  FROM changeset c
  JOIN LATERAL (SELECT count(*) AS n, pg_temp.root(array_agg(e.checksum ORDER BY e.seq)) AS root FROM event e WHERE e.changeset_id = c.id) s ON s.n = c.event_count
 GROUP BY 1 ORDER BY 1;
SELECT audit.merkle_root((SELECT array_agg(checksum ORDER BY seq) FROM event e WHERE e.changeset_id = c.id)) = events_root AS agree, count(*) FROM changeset c GROUP BY 1;

-- The pending changeset's events too.
BEGIN;
DELETE FROM t WHERE id = 4;
SELECT sha256(uuid_send(e.salt) || convert_to(audit.canonical(e.changeset_id, e.seq), 'UTF8')) = e.checksum AS agree,
       audit.verify_event(e.changeset_id, e.seq) AS verified
  FROM audit.event e JOIN audit.log l USING (changeset_id, seq)
 WHERE l.resource = 'contract_checksum.t' AND l.position IS NULL;
ROLLBACK;

-- The canonical text does not depend on the session's settings.
SET TimeZone = 'Asia/Kathmandu';
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'iso_8601';
SET bytea_output = 'escape';
SET extra_float_digits = 0;
SELECT count(*) FILTER (WHERE canonical <> audit.canonical(changeset_id, seq)) AS differ, count(*) FILTER (WHERE NOT audit.verify_event(changeset_id, seq)) AS fail FROM event;
SELECT count(*) FILTER (WHERE canonical <> audit.canonical(id)) AS differ FROM changeset;
RESET TimeZone;
RESET DateStyle;
RESET IntervalStyle;
RESET bytea_output;
RESET extra_float_digits;

-- What is not there has no canonical text, and does not verify.
SELECT audit.canonical('00000000-0000-7000-8000-000000000000', 0) IS NULL AS event, audit.canonical('00000000-0000-7000-8000-000000000000') IS NULL AS changeset,
       audit.verify_event('00000000-0000-7000-8000-000000000000', 0) IS NOT TRUE AS verify;

-- A superuser can insert into the log (a restore does). An event forged that way is found.
INSERT INTO audit.event (occurred_at, seq, command, relation_id, operation, status, changeset_id, salt, checksum, resource_id, row_image)
SELECT occurred_at, 4711, command, relation_id, operation, status, changeset_id, salt, checksum, resource_id, row_image || '{"n": 99}'
  FROM event WHERE resource_id = '100' AND operation = 'INSERT';
SELECT audit.verify_event(changeset_id, seq) FROM audit.event WHERE seq = 4711;

DROP SCHEMA contract_checksum CASCADE;
