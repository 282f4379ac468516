-- What is refused, with which SQLSTATE, and whether a hint says what to do instead.
SET client_min_messages = warning;
CREATE SCHEMA contract_errors;
SET search_path = contract_errors;

CREATE FUNCTION pg_temp.outcome(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE hint text;
BEGIN
    EXECUTE statement;
    RETURN 'done';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN SQLSTATE || CASE WHEN hint > '' THEN ', with a hint' ELSE '' END;
END
$$;

CREATE TABLE t (id int PRIMARY KEY, n int);
CREATE VIEW v AS SELECT * FROM t;
CREATE MATERIALIZED VIEW m AS SELECT * FROM t;
CREATE SEQUENCE s;
CREATE TEMP TABLE passing (id int PRIMARY KEY);
CREATE TYPE pair AS (a int, b int);
CREATE INDEX t_n ON t (n);

SELECT statement, pg_temp.outcome(statement) FROM (VALUES
    -- What cannot be audited.
    ($$SELECT audit.enable('v')$$), ($$SELECT audit.enable('m')$$), ($$SELECT audit.enable('s')$$), ($$SELECT audit.enable('passing')$$),
    ($$SELECT audit.enable('pair')$$), ($$SELECT audit.enable('t_n')$$),
    ($$SELECT audit.enable('pg_class')$$), ($$SELECT audit.enable('pg_authid')$$), ($$SELECT audit.enable('information_schema.sql_features')$$),
    ($$SELECT audit.enable('audit.event')$$), ($$SELECT audit.enable('audit.event_default')$$), ($$SELECT audit.enable('audit.changeset')$$),
    ($$SELECT audit.enable('audit.policy')$$), ($$SELECT audit.enable('audit.relation')$$), ($$SELECT audit.enable('audit.log')$$),
    ($$SELECT audit.enable('no_such_table')$$), ($$SELECT audit.enable(0)$$), ($$SELECT audit.enable(4294967295)$$), ($$SELECT audit.disable(0)$$),
    ($$SELECT audit.enable(NULL)$$),
    -- What needs the library preloaded, and what is no mode.
    ($$SELECT audit.enable('t', mode => 'async')$$), ($$SELECT audit.enable('t', mode => 'sampled', sample_rate => 1.5)$$),
    ($$SELECT audit.enable('t', mode => 'never')$$), ($$SELECT audit.enable('t', mode => NULL)$$), ($$SELECT audit.enable('t', sample_rate => 2)$$),
    ($$SELECT audit.enable('t', sample_rate => 'NaN')$$),
    -- Columns that are not there.
    ($$SELECT audit.enable('t', exclude_columns => '{n,nope}')$$), ($$SELECT audit.enable('t', mask_columns => '{nope}')$$),
    ($$SELECT audit.enable('t', soft_delete_column => 'nope')$$), ($$SELECT audit.enable('t', exclude_columns => '{ctid}')$$),
    ($$SELECT audit.enable('t', exclude_columns => '{NULL}')$$), ($$SELECT audit.enable('t', require_context => '{NULL}')$$),
    ($$SELECT audit.enable('t', require_context => '{""}')$$), ($$SELECT audit.enable('t', require_context => '{user_id,shoe_size}')$$),
    ($$SELECT audit.enable('t', exclude_columns => '{n}', mask_columns => '{n}')$$),
    -- Not enabled.
    ($$SELECT audit.disable('t')$$), ($$SELECT audit.disable('v')$$), ($$SELECT audit.disable('no_such_table')$$),
    ($$SELECT audit.enable_schema('no_such_schema')$$)
) AS x (statement);
SELECT count(*) FROM audit.policy WHERE target = 't'::regclass;

-- A partition follows its parent; it is not disabled alone.
CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
SELECT audit.enable('parted');
SELECT pg_temp.outcome($$SELECT audit.disable('parted_1')$$);
INSERT INTO parted VALUES (1);
SELECT count(*) FROM audit.log WHERE resource = 'contract_errors.parted_1';

-- The trigger function belongs to audit.enable: attached by hand, called by hand, it refuses to work.
SELECT pg_temp.outcome('SELECT audit.capture()');
CREATE TABLE by_hand (id int PRIMARY KEY);
CREATE VIEW by_hand_view AS SELECT * FROM by_hand;
SELECT statement, pg_temp.outcome(statement) AS attach, pg_temp.outcome('INSERT INTO by_hand VALUES (1)') AS "insert", pg_temp.outcome('UPDATE by_hand SET id = id') AS update,
       pg_temp.outcome('TRUNCATE by_hand') AS truncate, pg_temp.outcome('INSERT INTO by_hand_view VALUES (1)') AS through_view,
       pg_temp.outcome('DROP TRIGGER IF EXISTS x ON by_hand') AS drop, pg_temp.outcome('DROP TRIGGER IF EXISTS x ON by_hand_view') AS drop_view
  FROM (VALUES
    ('CREATE TRIGGER x AFTER INSERT OR UPDATE OR DELETE ON by_hand FOR EACH ROW EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x BEFORE INSERT OR UPDATE OR DELETE ON by_hand FOR EACH ROW EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x AFTER INSERT OR UPDATE OR DELETE ON by_hand FOR EACH STATEMENT EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x BEFORE INSERT OR UPDATE OR DELETE ON by_hand FOR EACH STATEMENT EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x AFTER TRUNCATE ON by_hand FOR EACH STATEMENT EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x BEFORE TRUNCATE ON by_hand FOR EACH STATEMENT EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x INSTEAD OF INSERT ON by_hand_view FOR EACH ROW EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x AFTER INSERT ON by_hand REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION audit.capture()'),
    ('CREATE CONSTRAINT TRIGGER x AFTER INSERT ON by_hand DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW EXECUTE FUNCTION audit.capture()')
  ) AS x (statement);
SELECT count(*) FROM by_hand;

-- On a table that is audited, a further trigger of that function must neither record twice nor crash.
SELECT audit.enable('by_hand');
SELECT statement, pg_temp.outcome(statement) AS attach, pg_temp.outcome('INSERT INTO by_hand VALUES (1)') AS "insert", pg_temp.outcome('DELETE FROM by_hand') AS delete,
       pg_temp.outcome('DROP TRIGGER IF EXISTS x ON by_hand') AS drop
  FROM (VALUES
    ('CREATE TRIGGER x BEFORE INSERT OR UPDATE OR DELETE ON by_hand FOR EACH ROW EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x AFTER INSERT OR UPDATE OR DELETE ON by_hand FOR EACH ROW EXECUTE FUNCTION audit.capture()'),
    ('CREATE TRIGGER x BEFORE INSERT OR UPDATE OR DELETE ON by_hand FOR EACH STATEMENT EXECUTE FUNCTION audit.capture()')
  ) AS x (statement);
SELECT count(*) = 2 * count(DISTINCT resource_id || changeset_id::text) AS balanced, count(*) = count(DISTINCT (changeset_id, command, operation, resource_id)) AS once
  FROM audit.log WHERE resource = 'contract_errors.by_hand';

-- Names already taken in the schema are reported before anything is made.
SELECT pg_temp.outcome('CREATE EXTENSION audit_ext');
SELECT pg_temp.outcome('ALTER EXTENSION audit_ext SET SCHEMA public');

DROP SCHEMA contract_errors CASCADE;
