-- The session's context: settings, audit.set_context, audit.clear_context, audit.client_ip.
SET client_min_messages = warning;
CREATE SCHEMA contract_context;
SET search_path = contract_context;
\set VERBOSITY sqlstate

CREATE TABLE t (id int PRIMARY KEY);
SELECT audit.enable('t');
CREATE TEMP VIEW context AS
SELECT current_setting('audit.user_id', true) AS user_id, current_setting('audit.tenant_id', true) AS tenant_id,
       current_setting('audit.request_id', true) AS request_id, current_setting('audit.session_id', true) AS session_id,
       current_setting('audit.ip_address', true) AS ip_address, current_setting('audit.user_agent', true) AS user_agent,
       current_setting('audit.reason', true) AS reason, current_setting('audit.context', true) AS context;
CREATE TEMP VIEW recorded AS
SELECT resource_id AS id, user_id, tenant_id, request_id, session_id, ip_address, user_agent, reason, context
  FROM audit.log WHERE resource = 'contract_context.t'
 ORDER BY era, position NULLS LAST, command, seq;

-- The settings: their kind, who may set them, their defaults.
SELECT name, setting, vartype, context FROM pg_settings
 WHERE name IN ('audit.user_id', 'audit.tenant_id', 'audit.request_id', 'audit.session_id', 'audit.ip_address', 'audit.user_agent',
                'audit.reason', 'audit.context', 'audit.enabled', 'audit.log_statement', 'audit.log_soft_deletes', 'audit.max_value_bytes')
 ORDER BY name COLLATE "C";

-- Without a context the record has none; the database's own view of the session is always there.
INSERT INTO t VALUES (1);
SELECT * FROM recorded WHERE id = '1';
SELECT session_role = session_user AS session_role, effective_role = current_user AS effective_role,
       application_name = current_setting('application_name') AS application_name,
       client_addr IS NOT DISTINCT FROM inet_client_addr() AS client_addr, xid IS NOT NULL AS xid
  FROM audit.log WHERE resource = 'contract_context.t' AND resource_id = '1';
SELECT backend_pid = pg_backend_pid() AS backend_pid, client_port IS NOT DISTINCT FROM inet_client_port() AS client_port,
       c.origin, c.statement, c.era
  FROM audit.changeset c JOIN audit.log l ON l.changeset_id = c.id WHERE l.resource = 'contract_context.t' AND l.resource_id = '1';

-- Transaction-local by default.
BEGIN;
SELECT audit.set_context(user_id => 'ann', tenant_id => 'acme', request_id => 'r-1', session_id => 's-1', ip_address => '192.0.2.7',
                         user_agent => 'curl/8', reason => 'ticket 7', context => '{"b": [1, 2.50], "a": null}');
SELECT * FROM context;
INSERT INTO t VALUES (2);
-- NULL leaves a value as it is.
SELECT audit.set_context(user_id => 'bob', tenant_id => NULL);
SELECT user_id, tenant_id FROM context;
INSERT INTO t VALUES (3);
COMMIT;
SELECT * FROM context;
INSERT INTO t VALUES (4);
SELECT * FROM recorded WHERE id IN ('2', '3', '4');
SELECT count(DISTINCT changeset_id) FROM audit.log WHERE resource = 'contract_context.t' AND resource_id IN ('2', '3');

-- For the session.
SELECT audit.set_context(user_id => 'carl', ip_address => '2001:db8::1', is_local => false);
INSERT INTO t VALUES (5);
BEGIN;
SELECT audit.set_context(user_id => 'dora');
INSERT INTO t VALUES (6);
ROLLBACK;
INSERT INTO t VALUES (7);
SELECT id, user_id, ip_address FROM recorded WHERE id IN ('5', '6', '7');

-- Cleared: transaction and session values both.
BEGIN;
SELECT audit.set_context(user_id => 'emil', context => '{"x": 1}');
SELECT audit.clear_context();
INSERT INTO t VALUES (8);
COMMIT;
INSERT INTO t VALUES (9);
SELECT * FROM recorded WHERE id IN ('8', '9');

-- Plain SET and SET LOCAL do the same; the empty string is absent.
SET audit.user_id = 'fred';
SET audit.tenant_id = '';
BEGIN;
SET LOCAL audit.user_id = 'gina';
INSERT INTO t VALUES (10);
COMMIT;
INSERT INTO t VALUES (11);
RESET audit.user_id;
SET audit.context = '';
INSERT INTO t VALUES (12);
SELECT id, user_id, tenant_id, context FROM recorded WHERE id IN ('10', '11', '12');
-- A context set in a subtransaction that rolls back is gone with it.
BEGIN;
SET LOCAL audit.user_id = 'outer';
SAVEPOINT s;
SET LOCAL audit.user_id = 'inner';
ROLLBACK TO s;
INSERT INTO t VALUES (13);
COMMIT;
SELECT id, user_id FROM recorded WHERE id = '13';

-- Malformed values are refused where they are set, and the old value stays.
SET audit.ip_address = '198.51.100.4';
SET audit.ip_address = 'nowhere';
SET audit.ip_address = '192.0.2.256';
SHOW audit.ip_address;
SET audit.context = '{"a": 1';
SET audit.context = '[1]';
SET audit.context = '"a"';
SET audit.context = 'null';
SET audit.context = '{"a": "\u0000"}';
SELECT set_config('audit.user_id', repeat('x', 8192), false) = repeat('x', 8192);
SELECT set_config('audit.user_id', repeat('x', 8193), false) IS NOT NULL;
SELECT set_config('audit.tenant_id', repeat('x', 8193), false) IS NOT NULL;
SELECT set_config('audit.request_id', repeat('x', 8193), false) IS NOT NULL;
SELECT set_config('audit.session_id', repeat('x', 8193), false) IS NOT NULL;
SELECT set_config('audit.user_agent', repeat('x', 8193), false) IS NOT NULL;
SELECT set_config('audit.reason', repeat('x', 8193), false) IS NOT NULL;
SELECT length(set_config('audit.context', '{"a":"' || repeat('x', 65528) || '"}', false));
SELECT length(set_config('audit.context', '{"a":"' || repeat('x', 65529) || '"}', false));
SELECT length(current_setting('audit.context')), length(current_setting('audit.user_id'));
SELECT audit.set_context(user_agent => repeat('x', 8193));
SELECT audit.set_context(context => '[]');
SELECT audit.clear_context();
SELECT * FROM context;
ALTER ROLE CURRENT_USER SET audit.ip_address = 'nowhere';
ALTER DATABASE :DBNAME SET audit.context = '[]';
SET audit.max_value_bytes = -1;
SET audit.enabled = 'perhaps';

-- The address of the client behind proxies: the right-most one that is no trusted proxy.
SELECT audit.client_ip('203.0.113.9', NULL, '192.0.2.1') AS no_proxy_is_trusted,
       audit.client_ip('203.0.113.9', NULL, '192.0.2.1', '{192.0.2.0/24}') AS one_proxy,
       audit.client_ip('6.6.6.6, 203.0.113.9, 192.0.2.2', NULL, '192.0.2.1', '{192.0.2.0/24}') AS two_proxies_and_a_forgery,
       audit.client_ip(' 203.0.113.9 ,192.0.2.2 ', NULL, '192.0.2.1', '{192.0.2.1,192.0.2.2}') AS blanks;
SELECT audit.client_ip(NULL, '203.0.113.9', '192.0.2.1', '{192.0.2.1}') AS real_ip,
       audit.client_ip(NULL, '203.0.113.9', '192.0.2.1') AS real_ip_untrusted,
       audit.client_ip(NULL, NULL, '192.0.2.1', '{192.0.2.1}') AS neither,
       audit.client_ip('192.0.2.3', NULL, '192.0.2.1', '{192.0.2.0/24}') AS only_proxies;
SELECT audit.client_ip('[2001:db8::9]:443', NULL, '::1', '{::1}') AS bracket_and_port,
       audit.client_ip('203.0.113.9:1234', NULL, '::1', '{::1}') AS port,
       audit.client_ip('unknown', NULL, '192.0.2.1', '{192.0.2.1}') AS word,
       audit.client_ip('203.0.113.9, unknown', NULL, '192.0.2.1', '{192.0.2.1}') AS word_before_proxy;
SELECT audit.client_ip(NULL, NULL, NULL) IS NULL AS nothing_known,
       audit.client_ip('', '', '192.0.2.1', '{192.0.2.1}') AS empty_headers;

DROP SCHEMA contract_context CASCADE;
