-- The query functions: what they return, and what they refuse.
SET client_min_messages = warning;
CREATE SCHEMA contract_reading;
SET search_path = contract_reading;
CREATE TABLE account (id int PRIMARY KEY, owner text, balance numeric(12,2));
SELECT audit.enable('account');
-- Three transactions.
BEGIN;
SELECT audit.set_context(user_id => 'ann', tenant_id => 'acme', request_id => 'r-1', ip_address => '203.0.113.7');
INSERT INTO account VALUES (1, 'Otto', 100), (2, 'Eva', 5);
COMMIT;
BEGIN;
SELECT audit.set_context(user_id => 'bob', tenant_id => 'acme', request_id => 'r-2', ip_address => '203.0.114.7');
UPDATE account SET balance = 74.50 WHERE id = 1;
COMMIT;
BEGIN;
SELECT audit.set_context(user_id => 'ann', tenant_id => 'other', request_id => 'r-3');
DELETE FROM account WHERE id = 2;
COMMIT;
-- An event of an application, as audit.log_event would write it.
INSERT INTO audit.changeset (occurred_at, position, xid, era, event_count, backend_pid, origin, context_trust, id, salt, events_root, checksum, user_id, ip_address)
SELECT at, '0/1', '7', 1, 1, 1, 'application', 'claimed', '00000000-0000-7000-8000-000000000001', gen_random_uuid(), '', '', 'eve', '198.51.100.1'
  FROM (SELECT clock_timestamp() AS at) AS now;
INSERT INTO audit.event (occurred_at, seq, command, operation, status, changeset_id, checksum, action, resource, resource_id, details)
SELECT occurred_at, 0, 0, 'APPLICATION', 'failure', id, '', 'auth.login_failed', 'user', 'eve', '{"reason": "bad password"}'
  FROM audit.changeset WHERE user_id = 'eve';

-- A row of audit.log, and the cursor.
SELECT attname, format_type(atttypid, atttypmod) AS type
  FROM pg_attribute WHERE attrelid = 'audit.log_page'::regclass AND attnum > 0
EXCEPT
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'audit.log'::regclass AND attnum > 0;

PREPARE page AS SELECT operation, action, status, resource, resource_id, user_id FROM audit.get_logs($1, $2, $3, $4, $5, $6, $7, $8);
EXECUTE page(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
EXECUTE page('ann', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
EXECUTE page('ann', 'acme', NULL, NULL, NULL, NULL, NULL, NULL);
EXECUTE page(NULL, NULL, 'auth.login_failed', NULL, NULL, NULL, NULL, NULL);
EXECUTE page(NULL, NULL, 'auth.*', NULL, NULL, NULL, NULL, NULL);
EXECUTE page(NULL, NULL, 'auth_*', NULL, NULL, NULL, NULL, NULL);
EXECUTE page(NULL, NULL, '*', NULL, NULL, NULL, NULL, NULL);
EXECUTE page(NULL, NULL, NULL, 'contract_reading.account', NULL, NULL, NULL, NULL);
EXECUTE page(NULL, NULL, NULL, 'user', NULL, NULL, NULL, NULL);
EXECUTE page(NULL, NULL, NULL, 'contract_reading.account', '1', NULL, NULL, NULL);
EXECUTE page(NULL, NULL, NULL, NULL, 'eve', NULL, NULL, NULL);
EXECUTE page(NULL, NULL, NULL, NULL, NULL, 'failure', NULL, NULL);
EXECUTE page(NULL, NULL, NULL, NULL, NULL, NULL, '203.0.113.7', NULL);
EXECUTE page(NULL, NULL, NULL, NULL, NULL, NULL, '203.0.112.0/22', NULL);
EXECUTE page(NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'r-2');
EXECUTE page('', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
-- Page by page.
SELECT resource_id, cursor AS after FROM audit.get_logs(page_size => 2) ORDER BY occurred_at, seq LIMIT 1 \gset
SELECT operation, resource_id FROM audit.get_logs(page_size => 2, after => :'after');
SELECT count(*) FROM audit.get_logs(after => :'after', user_id => 'bob');
SELECT count(*) FROM audit.get_logs(since => 'infinity') UNION ALL SELECT count(*) FROM audit.get_logs(until => '-infinity');
SELECT count(*) FROM audit.get_logs(since => now(), until => now());

SELECT audit.count_logs(), audit.count_logs(user_id => 'ann'), audit.count_logs(action => 'auth.*'), audit.count_logs(resource_id => '1'),
       audit.count_logs(tenant_id => 'acme', resource_id => '1'), audit.count_logs(until => '2000-01-01');
SELECT resource_id, operation FROM audit.user_activity('ann');
SELECT resource_id, operation FROM audit.user_activity('ann', max_rows => 1);
SELECT resource_id, operation FROM audit.tenant_activity('acme');
SELECT user_id, details FROM audit.failed_logins();
SELECT user_id, details FROM audit.failed_logins('198.51.100.0/24', 'eve');
SELECT count(*) FROM audit.failed_logins('192.0.2.1');
SELECT dimension, key, events FROM audit.statistics() WHERE dimension <> 'day';
SELECT dimension, key, events FROM audit.statistics(tenant_id => 'acme') WHERE dimension <> 'day';
SELECT dimension, max(length(key)) AS length, sum(events) AS events FROM audit.statistics() WHERE dimension IN ('day', 'hour') GROUP BY 1;
SELECT dimension, max(length(key)) AS length, sum(events) AS events FROM audit.statistics(since => now() - interval '1 day') WHERE dimension IN ('day', 'hour') GROUP BY 1;
SELECT kind, user_id, ip_address, events FROM audit.security_events();

-- What is refused.
CREATE FUNCTION pg_temp.try(query text) RETURNS TABLE (code text, message text, detail text, hint text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE query;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN NEXT;
END $$;
\x on
SELECT t.* FROM unnest(ARRAY[
    $$SELECT FROM audit.get_logs(page_size => 0)$$,
    $$SELECT FROM audit.get_logs(page_size => 10001)$$,
    $$SELECT FROM audit.get_logs(page_size => NULL)$$,
    $$SELECT FROM audit.get_logs(since => '2026-02-01 00:00+00', until => '2026-01-01 00:00+00')$$,
    $$SELECT FROM audit.get_logs(status => 'bad')$$,
    $$SELECT FROM audit.get_logs(after => 'v1.zz')$$,
    $$SELECT FROM audit.get_logs(after => '')$$,
    $$SELECT FROM audit.get_logs(after => 'v2.' || repeat('0', 56))$$,
    $$SELECT FROM audit.get_logs(after => 'v1.' || repeat('f', 56))$$,
    $$SELECT FROM audit.get_logs(after => 'v1.7' || repeat('f', 55))$$,
    $$SELECT audit.count_logs(status => 'bad')$$,
    $$SELECT FROM audit.user_activity(NULL)$$,
    $$SELECT FROM audit.user_activity('ann', max_rows => 0)$$,
    $$SELECT FROM audit.tenant_activity(NULL)$$,
    $$SELECT FROM audit.statistics('2026-02-01 00:00+00', '2026-01-01 00:00+00')$$,
    $$SELECT FROM audit.security_events(burst_count => 1)$$,
    $$SELECT FROM audit.security_events(since => NULL)$$,
    $$SELECT FROM audit.security_events(baseline => NULL)$$
]) AS query, pg_temp.try(query) AS t;
\x off

-- Rights: readers read, others do not.
CREATE ROLE contract_reader;
CREATE ROLE contract_other;
SELECT audit.grant_reader('contract_reader');
SET ROLE contract_reader;
SELECT count(*) FROM audit.get_logs();
SELECT audit.count_logs(user_id => 'ann');
SELECT count(*) FROM audit.user_activity('ann');
SELECT count(*) FROM audit.tenant_activity('acme');
SELECT count(*) FROM audit.failed_logins();
SELECT count(*) > 0 AS some FROM audit.statistics();
SELECT count(*) FROM audit.security_events();
SET ROLE contract_other;
SELECT t.code FROM unnest(ARRAY[
    $$SELECT FROM audit.get_logs()$$, $$SELECT audit.count_logs()$$, $$SELECT FROM audit.user_activity('ann')$$, $$SELECT FROM audit.statistics()$$,
    $$SELECT FROM audit.security_events()$$, $$SELECT FROM audit.failed_logins()$$, $$SELECT FROM audit.log_changeset$$, $$SELECT FROM audit.log_event$$
]) AS query, pg_temp.try(query) AS t;
RESET ROLE;
DROP SCHEMA contract_reading CASCADE;
DROP OWNED BY contract_reader;
DROP ROLE contract_reader, contract_other;
