-- What each option of a policy does to the record.
SET client_min_messages = warning;
CREATE SCHEMA contract_policy;
SET search_path = contract_policy;
\set VERBOSITY sqlstate

CREATE TEMP VIEW recorded AS
SELECT resource, operation, resource_id, old_row, new_row, changed_columns, details
  FROM audit.log
 WHERE resource LIKE 'contract\_policy.%'
 ORDER BY era, position NULLS LAST, command, seq;

-- Excluded columns are absent; masked ones read "***", NULL stays NULL, and they count as changed.
CREATE TABLE person (id int PRIMARY KEY, name text, password text, token text, mail text);
SELECT audit.enable('person', exclude_columns => '{password,token}', mask_columns => '{mail}');
INSERT INTO person VALUES (1, 'Ann', 'p', 't', 'ann@example.org'), (2, 'Bob', 'p', 't', NULL);
UPDATE person SET password = 'q' WHERE id = 1;
UPDATE person SET mail = 'ann@example.com' WHERE id = 1;
UPDATE person SET mail = 'bob@example.com', name = 'Rob' WHERE id = 2;
UPDATE person SET mail = NULL WHERE id = 1;
DELETE FROM person WHERE id = 2;
SELECT operation, resource_id, old_row, new_row, changed_columns FROM recorded WHERE resource = 'contract_policy.person';

-- The key, if it is excluded or masked: the record must not carry it by another way.
CREATE TABLE secret_key (ssn text PRIMARY KEY, n int);
SELECT audit.enable('secret_key', mask_columns => '{ssn}');
INSERT INTO secret_key VALUES ('078-05-1120', 1);
UPDATE secret_key SET ssn = '219-09-9999';
SELECT count(*) FROM audit.log WHERE resource = 'contract_policy.secret_key'
   AND concat(resource_id, old_row, new_row, details, audit.canonical(changeset_id, seq)) ~ '078-05-1120|219-09-9999';
SELECT audit.enable('secret_key', exclude_columns => '{ssn}');
UPDATE secret_key SET ssn = '457-55-5462', n = 2;
SELECT count(*) FROM audit.log WHERE resource = 'contract_policy.secret_key'
   AND concat(resource_id, old_row, new_row, details, audit.canonical(changeset_id, seq)) ~ '219-09-9999|457-55-5462';

-- An UPDATE that changes nothing is an event with no changed columns, unless the policy says to skip it.
CREATE TABLE idle (id int PRIMARY KEY, n numeric, hidden int);
SELECT audit.enable('idle', exclude_columns => '{hidden}');
INSERT INTO idle VALUES (1, 1.0, 0);
UPDATE idle SET n = n;
UPDATE idle SET n = 1.00;
SELECT audit.enable('idle', skip_unchanged => true, exclude_columns => '{hidden}');
UPDATE idle SET n = n;
UPDATE idle SET hidden = hidden + 1;
UPDATE idle SET n = 2;
SELECT operation, old_row, new_row, changed_columns FROM recorded WHERE resource = 'contract_policy.idle';

-- A soft delete is an UPDATE whose details say so: the column becomes true, or becomes non-null.
CREATE TABLE flagged (id int PRIMARY KEY, deleted boolean);
CREATE TABLE stamped (id int PRIMARY KEY, deleted_at timestamp, n int);
SELECT audit.enable('flagged', soft_delete_column => 'deleted'), audit.enable('stamped', soft_delete_column => 'deleted_at');
INSERT INTO flagged VALUES (1, NULL), (2, false);
INSERT INTO stamped VALUES (1, NULL, 0);
UPDATE flagged SET deleted = false WHERE id = 1;
UPDATE flagged SET deleted = true;
UPDATE flagged SET deleted = true;
UPDATE flagged SET deleted = false WHERE id = 2;
UPDATE stamped SET n = 1;
UPDATE stamped SET deleted_at = '2020-01-01';
UPDATE stamped SET deleted_at = '2020-01-02';
UPDATE stamped SET deleted_at = NULL;
SELECT resource, operation, new_row, changed_columns, details FROM recorded WHERE resource IN ('contract_policy.flagged', 'contract_policy.stamped');
-- Left out on request: the soft delete alone, not the other changes.
SET audit.log_soft_deletes = off;
UPDATE flagged SET deleted = true WHERE id = 2;
UPDATE stamped SET deleted_at = '2020-01-03';
UPDATE stamped SET n = 2;
RESET audit.log_soft_deletes;
SELECT resource, operation, new_row, details FROM recorded WHERE resource IN ('contract_policy.flagged', 'contract_policy.stamped') OFFSET 11;

-- A required context.
CREATE TABLE guarded (id int PRIMARY KEY, n int);
SELECT audit.enable('guarded', require_context => '{user_id,reason}');
INSERT INTO guarded VALUES (1, 1);
SET audit.user_id = 'ann';
INSERT INTO guarded VALUES (1, 1);
SET audit.reason = 'because';
INSERT INTO guarded VALUES (1, 1);
SET audit.user_id = '';
UPDATE guarded SET n = 2;
DELETE FROM guarded;
TRUNCATE guarded;
SELECT * FROM guarded;
RESET audit.reason;
SELECT operation, new_row FROM recorded WHERE resource = 'contract_policy.guarded';
-- The hint names the call that helps.
SELECT audit.enable('guarded', require_context => '{user_id}');
DO $$
DECLARE hint text;
BEGIN
    INSERT INTO contract_policy.guarded VALUES (9, 9);
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RAISE WARNING 'set_context in the hint: %', hint LIKE '%audit.set_context%' USING ERRCODE = '01000';
    IF hint NOT LIKE '%audit.set_context%' THEN RAISE; END IF;
END
$$;

-- A snapshot records the rows that are there, in the same transaction.
CREATE TABLE filled (id int PRIMARY KEY, secret text);
INSERT INTO filled SELECT i, 's' FROM generate_series(1, 2500) i;
BEGIN;
SELECT audit.enable('filled', snapshot => true, exclude_columns => '{secret}');
UPDATE filled SET secret = 't' WHERE id = 1;
COMMIT;
SELECT operation, count(*), count(DISTINCT resource_id), min(new_row::text), max(old_row::text) FROM recorded
 WHERE resource = 'contract_policy.filled' GROUP BY operation ORDER BY operation;
SELECT DISTINCT c.origin FROM audit.changeset c JOIN audit.log l ON l.changeset_id = c.id WHERE l.resource = 'contract_policy.filled' AND l.operation = 'SNAPSHOT';
-- Of a partitioned table: the rows of every partition, once.
CREATE TABLE split (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (10);
CREATE TABLE split_2 PARTITION OF split FOR VALUES FROM (10) TO (20);
INSERT INTO split SELECT generate_series(0, 19);
SELECT audit.enable('split', snapshot => true);
SELECT resource, operation, count(*), count(DISTINCT resource_id) FROM recorded WHERE resource LIKE 'contract_policy.split%' GROUP BY 1, 2 ORDER BY 1, 2;

-- A value over the limit is recorded as its digest and length.
CREATE TABLE big (id int PRIMARY KEY, v text);
SELECT audit.enable('big');
SET audit.max_value_bytes = 100;
INSERT INTO big VALUES (1, repeat('x', 100)), (2, repeat('x', 101));
RESET audit.max_value_bytes;
SELECT length(new_row ->> 'v') FROM recorded WHERE resource = 'contract_policy.big' AND resource_id = '1';
SELECT new_row -> 'v' FROM recorded WHERE resource = 'contract_policy.big' AND resource_id = '2';
SELECT encode(sha256(convert_to(repeat('x', 101), 'UTF8')), 'hex');

-- Auditing switched off: nothing is captured, and the next changeset of the session begins with a record of that.
CREATE TABLE paused (id int PRIMARY KEY);
SELECT audit.enable('paused');
SET audit.enabled = off;
INSERT INTO paused VALUES (1), (2);
DELETE FROM paused WHERE id = 2;
RESET audit.enabled;
INSERT INTO paused VALUES (3);
INSERT INTO paused VALUES (4);
SELECT l.seq, l.operation, l.action, l.resource_id, l.details ->> 'changes' AS changes, l.details -> 'tables' AS tables,
       (l.details ->> 'since')::timestamptz <= (l.details ->> 'until')::timestamptz AS since_until
  FROM audit.log l
 WHERE l.changeset_id IN (SELECT changeset_id FROM audit.log WHERE resource = 'contract_policy.paused')
 ORDER BY l.era, l.position, l.command, l.seq;

DROP SCHEMA contract_policy CASCADE;
