-- audit.enable and audit.disable: what they leave on a table, and what calling them again changes.
SET client_min_messages = warning;
CREATE SCHEMA contract_enable;
SET search_path = contract_enable;

CREATE TEMP VIEW audit_trigger AS
SELECT t.tgrelid::regclass AS "table",
       regexp_replace(t.tgname, '\d+_[0-9a-f]{8}$', '<oid>') AS trigger,
       t.tgenabled AS enabled,
       CASE t.tgtype & 66 WHEN 0 THEN 'AFTER' ELSE 'other' END AS timing,
       CASE t.tgtype & 1 WHEN 1 THEN 'ROW' ELSE 'STATEMENT' END AS level,
       concat_ws(' ', CASE WHEN t.tgtype & 4 > 0 THEN 'INSERT' END, CASE WHEN t.tgtype & 8 > 0 THEN 'DELETE' END,
                 CASE WHEN t.tgtype & 16 > 0 THEN 'UPDATE' END, CASE WHEN t.tgtype & 32 > 0 THEN 'TRUNCATE' END) AS events,
       t.tgfoid::regproc AS function,
       t.tgparentid > 0 AS cloned
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
 WHERE t.tgname LIKE '!audit%' AND c.relnamespace = 'contract_enable'::regnamespace
 ORDER BY t.tgrelid::regclass::text COLLATE "C", t.tgname COLLATE "C";

CREATE TEMP VIEW audit_policy AS
SELECT target, inherited_from, mode, sample_rate, exclude_columns, mask_columns, soft_delete_column, require_context, skip_unchanged
  FROM audit.policy
 WHERE target::text LIKE '%enable%' OR target IN (SELECT oid FROM pg_class WHERE relnamespace = 'contract_enable'::regnamespace)
 ORDER BY target::text COLLATE "C";

CREATE TEMP VIEW recorded AS
SELECT resource, operation, resource_id, old_row, new_row, changed_columns
  FROM audit.log
 WHERE resource LIKE 'contract\_enable.%'
 ORDER BY era, position NULLS LAST, command, seq;

-- A plain table.
CREATE TABLE plain (id int PRIMARY KEY, name text, note text);
INSERT INTO plain VALUES (0, 'before', NULL);
SELECT audit.enable('plain');
SELECT * FROM audit_trigger;
SELECT * FROM audit_policy;
SELECT enabled_at <= clock_timestamp() AS enabled_at, enabled_by = session_user AS enabled_by FROM audit.policy WHERE target = 'plain'::regclass;

-- They fire before every other trigger of the table.
SELECT bool_and(tgname COLLATE "C" < 'A') AS first FROM pg_trigger WHERE tgrelid = 'plain'::regclass AND NOT tgisinternal;

INSERT INTO plain VALUES (1, 'one', 'x');
UPDATE plain SET name = 'uno' WHERE id = 1;
DELETE FROM plain WHERE id = 1;
SELECT * FROM recorded;

-- Again: nothing is added, and the options become those of the last call.
SELECT audit.enable('plain');
SELECT audit.enable('plain', exclude_columns => '{note}', mask_columns => '{name}', skip_unchanged => true);
SELECT count(*) FROM audit_trigger;
SELECT * FROM audit_policy;
SELECT audit.enable('plain', require_context => '{user_id}', soft_delete_column => 'note');
SELECT * FROM audit_policy;
SELECT audit.enable('plain');
SELECT * FROM audit_policy;
SELECT count(*) FROM audit_trigger;

-- The options are in force from the next statement of the same transaction, also in a plan that is already made.
PREPARE add AS INSERT INTO plain VALUES ($1, 'n', 'secret');
EXECUTE add(2);
BEGIN;
EXECUTE add(3);
SELECT audit.enable('plain', exclude_columns => '{note}');
EXECUTE add(4);
COMMIT;
SELECT resource_id, new_row FROM recorded WHERE resource_id IN ('2', '3', '4');

-- Rolled back, it never was.
BEGIN;
SELECT audit.disable('plain');
EXECUTE add(5);
ROLLBACK;
EXECUTE add(6);
SELECT resource_id, new_row FROM recorded WHERE resource_id IN ('5', '6');

-- Disabled: the triggers and the policy are gone, the log stays.
SELECT audit.disable('plain');
SELECT * FROM audit_trigger;
SELECT * FROM audit_policy;
EXECUTE add(7);
SELECT count(*) FROM recorded;
SELECT audit.enable('plain');
EXECUTE add(8);
SELECT resource_id FROM recorded WHERE resource_id IN ('7', '8');
SELECT audit.disable('plain');

-- A partitioned table covers its partitions, those that come later too.
CREATE TABLE parted (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu');
SELECT audit.enable('parted', skip_unchanged => true);
CREATE TABLE parted_us PARTITION OF parted FOR VALUES IN ('us');
CREATE TABLE parted_rest (region text, id int NOT NULL, PRIMARY KEY (id, region)) PARTITION BY RANGE (id);
CREATE TABLE parted_rest_1 PARTITION OF parted_rest FOR VALUES FROM (0) TO (100);
ALTER TABLE parted ATTACH PARTITION parted_rest DEFAULT;
SELECT * FROM audit_trigger;
SELECT * FROM audit_policy;
INSERT INTO parted VALUES (1, 'eu'), (2, 'us'), (3, 'mars');
UPDATE parted SET region = 'us' WHERE id = 1;
SELECT resource, operation, resource_id, new_row FROM recorded WHERE resource LIKE '%parted%';
-- A partition that leaves stays audited.
ALTER TABLE parted DETACH PARTITION parted_us;
INSERT INTO parted_us VALUES (9, 'us');
SELECT resource, operation, resource_id FROM recorded WHERE resource_id = '[9, "us"]';
SELECT * FROM audit_policy;
SELECT audit.disable('parted');
SELECT * FROM audit_policy;
SELECT audit.disable('parted_us');
SELECT * FROM audit_trigger;
SELECT * FROM audit_policy;

-- Inheritance children likewise.
CREATE TABLE parent (id int PRIMARY KEY, a text);
CREATE TABLE child (b text) INHERITS (parent);
SELECT audit.enable('parent');
CREATE TABLE grandchild (c text) INHERITS (child);
INSERT INTO child VALUES (1, 'a', 'b');
INSERT INTO grandchild VALUES (2, 'a', 'b', 'c');
UPDATE parent SET a = 'A';
SELECT resource, operation, resource_id, old_row, new_row FROM recorded WHERE resource LIKE '%child';
SELECT target, inherited_from FROM audit_policy;
SELECT audit.disable('parent');
SELECT * FROM audit_policy;

-- A table without a key can be audited; its events have no resource_id. A replica identity index stands in for a key.
CREATE TABLE keyless (a int, b int);
CREATE TABLE by_identity (a int NOT NULL, b int);
CREATE UNIQUE INDEX by_identity_a ON by_identity (a);
ALTER TABLE by_identity REPLICA IDENTITY USING INDEX by_identity_a;
SELECT audit.enable('keyless'), audit.enable('by_identity');
INSERT INTO keyless VALUES (1, 2);
INSERT INTO by_identity VALUES (3, 4);
SELECT resource, operation, resource_id, new_row FROM recorded WHERE resource IN ('contract_enable.keyless', 'contract_enable.by_identity');

-- Dropping a table leaves no policy behind.
DROP TABLE keyless;
SELECT target FROM audit_policy;

DROP SCHEMA contract_enable CASCADE;
SELECT count(*) FROM audit.policy WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = target);
