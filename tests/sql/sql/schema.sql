-- audit.enable_schema and audit.disable_schema.
SET client_min_messages = warning;
CREATE SCHEMA contract_schema;
CREATE SCHEMA contract_schema_2;
CREATE SCHEMA contract_empty;
\set VERBOSITY sqlstate

CREATE TEMP VIEW policies AS
SELECT target, inherited_from, exclude_columns, mask_columns, soft_delete_column, require_context, skip_unchanged
  FROM audit.policy WHERE target::text LIKE 'contract\_schema%' ORDER BY target::text COLLATE "C";

CREATE TABLE contract_schema.a (id int PRIMARY KEY, password text, deleted boolean);
CREATE TABLE contract_schema.b (id int PRIMARY KEY);
CREATE TABLE contract_schema.p (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE contract_schema.p_1 PARTITION OF contract_schema.p FOR VALUES FROM (0) TO (10);
CREATE VIEW contract_schema.v AS SELECT * FROM contract_schema.a;
CREATE SEQUENCE contract_schema.s;
CREATE MATERIALIZED VIEW contract_schema.m AS SELECT 1 AS one;
INSERT INTO contract_schema.b VALUES (1);

-- Options apply to the tables that have the columns.
SELECT audit.enable_schema('contract_schema', exclude_columns => '{password}', soft_delete_column => 'deleted', skip_unchanged => true, snapshot => true);
SELECT * FROM policies;
SELECT schema_name, include_future, exclude_columns, soft_delete_column, skip_unchanged FROM audit.schema_policy;
SELECT resource, operation, resource_id, new_row FROM audit.log WHERE resource LIKE 'contract\_schema.%' ORDER BY era, position, command, seq;

-- Tables that come later, by every way a table comes into a schema.
CREATE TABLE contract_schema.later (id int PRIMARY KEY, password text);
CREATE TABLE contract_schema.like_a (LIKE contract_schema.a);
CREATE TABLE contract_schema_2.moved (id int PRIMARY KEY);
ALTER TABLE contract_schema_2.moved SET SCHEMA contract_schema;
CREATE TEMP TABLE later (id int);
CREATE TABLE contract_schema.as_query AS SELECT g AS id FROM generate_series(1, 3) g;
SELECT g AS id INTO contract_schema.as_select FROM generate_series(1, 2) g;
SELECT * FROM policies;
INSERT INTO contract_schema.later VALUES (1, 'p');
INSERT INTO contract_schema.moved VALUES (1);
UPDATE contract_schema.as_query SET id = 30 WHERE id = 3;
SELECT resource, operation, old_row, new_row FROM audit.log
 WHERE resource IN ('contract_schema.later', 'contract_schema.moved', 'contract_schema.as_query', 'contract_schema.as_select')
 ORDER BY era, position, command, seq;

-- Again, without the future.
SELECT audit.enable_schema('contract_schema', include_future => false);
CREATE TABLE contract_schema.unseen (id int PRIMARY KEY);
SELECT count(*) FROM audit.policy WHERE target = 'contract_schema.unseen'::regclass;

SELECT audit.disable_schema('contract_schema');
SELECT * FROM policies;
SELECT count(*) FROM audit.schema_policy;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE '!audit%' AND tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'contract_schema'::regnamespace);
SELECT audit.disable_schema('contract_schema');

-- An empty schema can be enabled for what comes.
SELECT audit.enable_schema('contract_empty', mode => 'sampled', sample_rate => 0.25);
CREATE TABLE contract_empty.sampled (id int PRIMARY KEY);
SELECT target, mode, sample_rate FROM audit.policy WHERE target::text LIKE 'contract\_empty.%';
SELECT audit.enable_schema('contract_empty', sample_rate => 0.25);
SELECT audit.enable_schema('contract_empty');
SELECT target, mode, sample_rate FROM audit.policy WHERE target::text LIKE 'contract\_empty.%';
DROP TABLE contract_empty.sampled;
CREATE TABLE contract_empty.first (id int PRIMARY KEY);
INSERT INTO contract_empty.first VALUES (1);
SELECT resource, operation, resource_id FROM audit.log WHERE resource = 'contract_empty.first';
DROP SCHEMA contract_empty CASCADE;
SELECT count(*) FROM audit.schema_policy;

-- The system's schemas and the log's own are refused.
SELECT audit.enable_schema('pg_catalog');
SELECT audit.enable_schema('information_schema');
SELECT audit.enable_schema('audit');
SELECT audit.enable_schema('pg_toast');

DROP SCHEMA contract_schema, contract_schema_2 CASCADE;
