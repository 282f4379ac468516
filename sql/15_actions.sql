-- Actions: what events mean. The catalog, and application events.

CREATE TABLE action (
    name        text    COLLATE "C" PRIMARY KEY
                        CHECK (name = pg_catalog.btrim(name) AND pg_catalog.octet_length(name) BETWEEN 1 AND 128),
    category    text    NOT NULL,
    is_security boolean NOT NULL DEFAULT false,
    is_standard boolean NOT NULL DEFAULT false CHECK (NOT is_standard OR description IS NOT NULL),
    description text
);
COMMENT ON TABLE action IS 'Catalog of actions. The standard ones come with the extension and stay as they are; add your own with INSERT.';
COMMENT ON COLUMN action.name IS 'What audit.event.action holds.';
COMMENT ON COLUMN action.category IS 'Groups actions: authentication, tenant, user, branch, settings, audit, or of your own.';
COMMENT ON COLUMN action.is_security IS 'Whether it matters to security.';
COMMENT ON COLUMN action.is_standard IS 'Whether it comes with the extension.';
COMMENT ON COLUMN action.description IS 'What it means.';

INSERT INTO action (name, category, is_security, is_standard, description) VALUES
    ('auth.login',                  'authentication', true,  true, 'A user logged in.'),
    ('auth.logout',                 'authentication', true,  true, 'A user logged out.'),
    ('auth.login_failed',           'authentication', true,  true, 'A login was refused.'),
    ('auth.password_reset_request', 'authentication', true,  true, 'A user asked for a new password.'),
    ('auth.password_reset',         'authentication', true,  true, 'A password was reset.'),
    ('auth.password_changed',       'authentication', true,  true, 'A user changed his password.'),
    ('auth.email_verified',         'authentication', false, true, 'An e-mail address was confirmed.'),
    ('auth.token_refreshed',        'authentication', false, true, 'A session was prolonged.'),
    ('tenant.created',              'tenant',         false, true, 'A tenant was created.'),
    ('tenant.updated',              'tenant',         false, true, 'A tenant was changed.'),
    ('tenant.deleted',              'tenant',         true,  true, 'A tenant was deleted.'),
    ('tenant.activated',            'tenant',         false, true, 'A tenant was activated.'),
    ('tenant.deactivated',          'tenant',         true,  true, 'A tenant was deactivated.'),
    ('tenant.subscription_changed', 'tenant',         false, true, 'A tenant''s subscription was changed.'),
    ('user.created',                'user',           false, true, 'A user was created.'),
    ('user.updated',                'user',           false, true, 'A user was changed.'),
    ('user.deleted',                'user',           true,  true, 'A user was deleted.'),
    ('user.activated',              'user',           false, true, 'A user was activated.'),
    ('user.deactivated',            'user',           true,  true, 'A user was deactivated.'),
    ('user.role_changed',           'user',           true,  true, 'A user''s role was changed.'),
    ('user.invited',                'user',           false, true, 'A user was invited.'),
    ('branch.created',              'branch',         false, true, 'A branch was created.'),
    ('branch.updated',              'branch',         false, true, 'A branch was changed.'),
    ('branch.deleted',              'branch',         false, true, 'A branch was deleted.'),
    ('branch.activated',            'branch',         false, true, 'A branch was activated.'),
    ('branch.deactivated',          'branch',         false, true, 'A branch was deactivated.'),
    ('settings.updated',            'settings',       false, true, 'Settings were changed.'),
    ('audit.capture_suspended',     'audit',          true,  true, 'Changes went unrecorded while audit.enabled was off.'),
    ('audit.read',                  'audit',          false, true, 'The log was read: audit.log_reads.'),
    ('audit.enabled',               'audit',          true,  true, 'Auditing of a table began.'),
    ('audit.disabled',              'audit',          true,  true, 'Auditing of a table ended.'),
    ('audit.options_changed',       'audit',          true,  true, 'A table is audited in another way.'),
    ('audit.trigger_disabled',      'audit',          true,  true, 'An administrator disabled audit triggers: changes go unrecorded.'),
    ('audit.trigger_dropped',       'audit',          true,  true, 'An administrator dropped an audit trigger: changes go unrecorded.'),
    ('audit.triggers_restored',     'audit',          true,  true, 'Audit triggers that were missing or disabled are in place again.'),
    ('audit.partition_attached',    'audit',          false, true, 'An audited table became a partition or child of another one.'),
    ('audit.partition_detached',    'audit',          false, true, 'An audited partition or child became a table of its own.'),
    ('audit.table_altered',         'audit',          false, true, 'DDL on an audited table.'),
    ('audit.table_renamed',         'audit',          true,  true, 'An audited table has another name or schema.'),
    ('audit.table_rewritten',       'audit',          false, true, 'ALTER TABLE rewrote an audited table.'),
    ('audit.table_dropped',         'audit',          true,  true, 'An audited table was dropped.'),
    ('audit.owner_changed',         'audit',          true,  true, 'An audited table has another owner.'),
    ('audit.schema_enabled',        'audit',          true,  true, 'Auditing of a schema''s tables was asked for.'),
    ('audit.schema_disabled',       'audit',          true,  true, 'Auditing of a schema''s tables was ended.'),
    ('audit.object_altered',        'audit',          true,  true, 'An object of the extension was altered or dropped.');

-- A dump carries the users' own actions; the standard ones come with the extension, so they must stay as they came.
CREATE FUNCTION keep_standard_actions() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'action "%" is a standard action', CASE TG_OP WHEN 'INSERT' THEN NEW.name ELSE OLD.name END
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = 'Standard actions are not added, changed or removed; INSERT your own under other names.';
END
$$;
COMMENT ON FUNCTION keep_standard_actions() IS 'Refuses changes of the standard actions with 55000.';
CREATE TRIGGER keep_standard_insert BEFORE INSERT ON action
    FOR EACH ROW WHEN (NEW.is_standard) EXECUTE FUNCTION keep_standard_actions();
CREATE TRIGGER keep_standard_update BEFORE UPDATE ON action
    FOR EACH ROW WHEN (OLD.is_standard OR NEW.is_standard) EXECUTE FUNCTION keep_standard_actions();
CREATE TRIGGER keep_standard_delete BEFORE DELETE ON action
    FOR EACH ROW WHEN (OLD.is_standard) EXECUTE FUNCTION keep_standard_actions();
SELECT pg_catalog.pg_extension_config_dump('action', 'WHERE NOT is_standard');

COMMENT ON FUNCTION log_event(text, text, text, jsonb, text, boolean) IS 'Records an event of the application, under the session''s context, as part of its transaction. Status: success, failure or error. Errors: 22023 for an action, resource (1 kB), resource_id (1 kB) or details (a JSON object, 1 MB) that are malformed or too long, and with audit.strict_actions for an action that is not in audit.action; 42939 for actions that begin with "audit."; 25006 on a standby. With isolated => true in a transaction of its own, which stays if this one is rolled back: that needs shared_preload_libraries (55000), and where it cannot be written, the caller gets a WARNING and goes on.';
COMMENT ON FUNCTION log_login(text, jsonb) IS 'Records auth.login as an event of that user, whatever user the context names; NULL means the context''s. Errors as audit.log_event; 22004 without any user.';
COMMENT ON FUNCTION log_login_failed(text, text, jsonb) IS 'Records auth.login_failed, status failure, as an event of that user; the reason goes into details. Errors as audit.log_event.';
COMMENT ON FUNCTION log_logout(text, jsonb) IS 'Records auth.logout as an event of that user; NULL means the context''s. Errors as audit.log_login.';
COMMENT ON FUNCTION note_read(text, jsonb) IS 'Records a call of one of the functions that read the log, with audit.log_reads on: action audit.read, the function as resource, its arguments in details. Called by these functions. Errors: 25006 on a standby.';
