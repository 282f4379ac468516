-- audit.log: what it shows of each kind of change, also before the commit.
SET client_min_messages = warning;
CREATE SCHEMA contract_log;
SET search_path = contract_log;

SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
 WHERE attrelid = 'audit.log'::regclass AND attnum > 0 ORDER BY attnum;

CREATE TEMP VIEW recorded AS
SELECT resource, seq, operation, status, action, resource_id, old_row, new_row, changed_columns, details
  FROM audit.log WHERE resource LIKE 'contract\_log.%'
 ORDER BY era, position NULLS LAST, command, seq;

-- One changeset per transaction and context; seq counts on through the transaction.
CREATE TABLE "Order" (id int PRIMARY KEY, item text, qty int, total numeric GENERATED ALWAYS AS (qty * 1.5) STORED);
CREATE TABLE line (order_id int, pos int, txt text, PRIMARY KEY (pos, order_id));
SELECT audit.enable('"Order"'), audit.enable('line');
BEGIN;
INSERT INTO "Order" VALUES (1, 'pear', 2), (2, 'plum', NULL);
INSERT INTO line VALUES (1, 1, 'a'), (1, 2, 'b');
UPDATE "Order" SET qty = 3 WHERE id = 1;
UPDATE line SET pos = 9, txt = NULL WHERE pos = 2;
DELETE FROM "Order" WHERE id = 2;
TRUNCATE line;
SELECT * FROM recorded;
-- Seen at once, with the context, the changeset still pending.
SELECT position IS NULL AS pending, count(*), count(DISTINCT changeset_id) AS changesets, count(checksum) AS checksums FROM audit.log
 WHERE resource LIKE 'contract\_log.%' GROUP BY 1;
SELECT count(*) FROM audit.changeset c JOIN audit.log l ON l.changeset_id = c.id WHERE l.resource LIKE 'contract\_log.%';
COMMIT;
SELECT * FROM recorded;
SELECT position IS NULL AS pending, count(*), count(DISTINCT changeset_id) AS changesets FROM audit.log
 WHERE resource LIKE 'contract\_log.%' GROUP BY 1;
SELECT c.event_count, c.position <= pg_current_wal_insert_lsn() AS position, c.xid < pg_snapshot_xmax(pg_current_snapshot()) AS xid,
       length(c.events_root) AS root, length(c.checksum) AS checksum, c.occurred_at BETWEEN now() - interval '1 day' AND clock_timestamp() AS occurred_at
  FROM audit.changeset c WHERE c.id IN (SELECT changeset_id FROM audit.log WHERE resource LIKE 'contract\_log.%');
-- The changeset's id is a version 7 UUID of its time, to the microsecond.
SELECT bool_and(substr(c.id::text, 15, 1) = '7' AND substr(c.id::text, 20, 1) IN ('8', '9', 'a', 'b')) AS version_7,
       bool_and(('x' || left(replace(c.id::text, '-', ''), 12))::bit(48)::bigint * 1000
                + ('x' || substr(replace(c.id::text, '-', ''), 14, 3))::bit(12)::int * 1000 / 4096
                = (extract(epoch FROM c.occurred_at) * 1000000)::bigint) AS instant
  FROM audit.changeset c;
SELECT bool_and(e.occurred_at = c.occurred_at) FROM audit.event e JOIN audit.changeset c ON c.id = e.changeset_id;

-- The relation: its name at the time, its columns, its key.
SELECT schema_name, table_name, resource, columns, key_columns FROM audit.relation WHERE schema_name = 'contract_log' ORDER BY id;
ALTER TABLE line RENAME TO position;
ALTER TABLE position DROP COLUMN txt;
INSERT INTO position VALUES (5, 5);
SELECT resource, resource_id, new_row FROM recorded WHERE resource = 'contract_log."position"';
SELECT resource, columns, key_columns FROM audit.relation WHERE resource = 'contract_log."position"' ORDER BY id;

-- A key of several columns is a JSON array of the image's values, in key order; a change of the key names the old one.
CREATE TABLE keys (a numeric, b text, c date, PRIMARY KEY (c, a, b));
SELECT audit.enable('keys');
INSERT INTO keys VALUES (1.50, 'x"y', '2024-02-29');
UPDATE keys SET a = 2.0;
DELETE FROM keys;
SELECT operation, resource_id, old_row, new_row, changed_columns, details FROM recorded WHERE resource = 'contract_log.keys';

-- The image does not depend on the session's settings.
CREATE TABLE fixed (id int PRIMARY KEY, ts timestamptz, d date, i interval, b bytea, f float8, m money, c regclass);
SELECT audit.enable('fixed');
SET TimeZone = 'America/St_Johns';
SET DateStyle = 'German';
SET IntervalStyle = 'sql_standard';
SET bytea_output = 'escape';
SET extra_float_digits = -15;
INSERT INTO fixed VALUES (1, '2024-07-01 12:00+00', '2024-07-01', '1 year -3 days 04:05', '\x00ff41', 0.1::float8 + 0.2, 1234.5, 'contract_log.fixed');
RESET TimeZone;
RESET DateStyle;
RESET IntervalStyle;
RESET bytea_output;
RESET extra_float_digits;
SELECT new_row FROM recorded WHERE resource = 'contract_log.fixed';

-- audit.log_statement adds the client's statement to the changeset.
SET audit.log_statement = on;
INSERT INTO position VALUES (6, 6) /* a remark */;
RESET audit.log_statement;
SELECT statement FROM audit.changeset c JOIN audit.log l ON l.changeset_id = c.id WHERE l.resource_id = '[6, 6]';

-- Rolled back: nothing remains, and no gap in what does.
BEGIN;
INSERT INTO position VALUES (7, 7);
ROLLBACK;
BEGIN;
INSERT INTO position VALUES (8, 8);
SAVEPOINT s;
INSERT INTO position VALUES (9, 9);
ROLLBACK TO s;
INSERT INTO position VALUES (10, 10);
COMMIT;
SELECT seq, resource_id FROM recorded WHERE resource = 'contract_log."position"' AND resource_id > '[5, 5]' OR resource_id = '[10, 10]';
SELECT count(*) FROM audit.event WHERE changeset_id NOT IN (SELECT id FROM audit.changeset);
SELECT count(*) FROM audit.changeset WHERE id NOT IN (SELECT changeset_id FROM audit.event);

DROP SCHEMA contract_log CASCADE;
