-- Who may call what, and the event triggers. Last, so that it covers all functions.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA audit FROM PUBLIC;
REVOKE ALL ON log, row_events, other_events, stored_events, pending_events, log_by_changeset, log_changeset, log_event, visible_changeset FROM PUBLIC;
GRANT EXECUTE ON FUNCTION set_context(text, text, text, text, inet, text, text, jsonb, boolean), set_context_token(text, boolean), clear_context(), client_ip(text, text, inet, inet[]) TO PUBLIC;
-- Applications report what happens in them.
GRANT EXECUTE ON FUNCTION log_event(text, text, text, jsonb, text, boolean), log_login(text, jsonb), log_login_failed(text, text, jsonb), log_logout(text, jsonb) TO PUBLIC;
-- PostgreSQL asks for this right when a partition's owner makes a partition of an audited table, and clones the trigger.
GRANT EXECUTE ON FUNCTION capture() TO PUBLIC;

-- Last, so that they do not see this script.
CREATE EVENT TRIGGER audit_ddl_command_start ON ddl_command_start
    WHEN TAG IN ('ALTER TABLE', 'ALTER FOREIGN TABLE', 'CREATE TRIGGER', 'ALTER TRIGGER', 'DROP TRIGGER', 'DROP TABLE',
                 'ALTER EXTENSION', 'DROP EXTENSION', 'DROP SCHEMA', 'ALTER SCHEMA')
    EXECUTE FUNCTION ddl_command_start();
ALTER EVENT TRIGGER audit_ddl_command_start ENABLE ALWAYS;
CREATE EVENT TRIGGER audit_ddl_command_end ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE FOREIGN TABLE',
                 'ALTER FOREIGN TABLE', 'CREATE SCHEMA', 'ALTER SCHEMA', 'IMPORT FOREIGN SCHEMA',
                 'CREATE TRIGGER', 'ALTER TRIGGER', 'CREATE RULE', 'ALTER RULE', 'CREATE POLICY', 'ALTER POLICY',
                 'CREATE INDEX', 'CREATE FUNCTION', 'ALTER FUNCTION', 'CREATE VIEW', 'ALTER VIEW', 'ALTER EXTENSION')
    EXECUTE FUNCTION ddl_command_end();
ALTER EVENT TRIGGER audit_ddl_command_end ENABLE ALWAYS;
CREATE EVENT TRIGGER audit_table_rewrite ON table_rewrite EXECUTE FUNCTION table_rewrite();
ALTER EVENT TRIGGER audit_table_rewrite ENABLE ALWAYS;
CREATE EVENT TRIGGER audit_sql_drop ON sql_drop EXECUTE FUNCTION sql_drop();
ALTER EVENT TRIGGER audit_sql_drop ENABLE ALWAYS;
