-- The log is append-only: for its owner, for superusers, on the partitions, in every replication role, by every statement.
SET client_min_messages = warning;
CREATE SCHEMA contract_append;
CREATE TABLE contract_append.t (id int PRIMARY KEY);
SELECT audit.enable('contract_append.t');
INSERT INTO contract_append.t VALUES (1);
CREATE TEMP TABLE before AS SELECT (SELECT count(*) FROM audit.event) AS events, (SELECT count(*) FROM audit.changeset) AS changesets;
-- UPDATE, DELETE and TRUNCATE raise; the message is the same for all, so it is shown once.
UPDATE audit.event SET row_image = NULL;
\set VERBOSITY sqlstate
UPDATE audit.changeset SET user_id = 'somebody else';
UPDATE audit.event_default SET row_image = NULL;
UPDATE audit.changeset_default SET user_id = 'somebody else';
UPDATE ONLY audit.event_default SET seq = seq;
DELETE FROM audit.event;
DELETE FROM audit.changeset;
DELETE FROM audit.event_default WHERE ctid = '(0,1)';
DELETE FROM audit.changeset_default;
TRUNCATE audit.event;
TRUNCATE audit.changeset;
TRUNCATE audit.event_default;
TRUNCATE audit.changeset_default;
TRUNCATE audit.event, audit.changeset, audit.relation CASCADE;
MERGE INTO audit.event e USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE;
MERGE INTO audit.event_default e USING (SELECT 1) s ON true WHEN MATCHED THEN UPDATE SET seq = 7;
MERGE INTO audit.changeset e USING (SELECT 1) s ON true WHEN MATCHED THEN UPDATE SET user_id = 'x';
WITH gone AS (DELETE FROM audit.event RETURNING *) SELECT count(*) FROM gone;
DELETE FROM audit.log;
UPDATE audit.log SET user_id = 'x';
-- What changes no row is refused as well: a statement is judged by what it is, not by what it finds.
DELETE FROM audit.event WHERE false;
UPDATE audit.changeset SET reason = '' WHERE false;
-- The same as a replica.
SET session_replication_role = replica;
UPDATE audit.event SET row_image = NULL;
DELETE FROM audit.changeset;
DELETE FROM audit.event_default;
TRUNCATE audit.event_default;
MERGE INTO audit.event e USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE;
RESET session_replication_role;
-- Through code of an ordinary user.
DO $$ BEGIN DELETE FROM audit.event; END $$;
-- The layouts are part of the record.
UPDATE audit.relation SET table_name = 'x';
DELETE FROM audit.relation;
TRUNCATE audit.relation CASCADE;
SELECT (SELECT count(*) FROM audit.event) = events AS events, (SELECT count(*) FROM audit.changeset) = changesets AS changesets FROM before;

-- A partition made by hand is covered too.
CREATE TABLE contract_append.event_2001 PARTITION OF audit.event FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
INSERT INTO audit.event (occurred_at, seq, command, operation, status, changeset_id, checksum)
VALUES ('2001-06-01', 0, 0, 'APPLICATION', 'success', '00000000-0000-7000-8000-000000000000', '\x00');
UPDATE contract_append.event_2001 SET seq = 1;
DELETE FROM contract_append.event_2001;
TRUNCATE contract_append.event_2001;
DELETE FROM audit.event WHERE occurred_at < '2002-01-01';
SELECT count(*) FROM contract_append.event_2001;
ALTER TABLE audit.event DETACH PARTITION contract_append.event_2001;

DROP SCHEMA contract_append CASCADE;
