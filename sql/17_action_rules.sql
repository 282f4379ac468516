-- What changes of rows mean.

CREATE TABLE action_rule (
    id         int         GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target     regclass    NOT NULL,
    priority   int         NOT NULL DEFAULT 0,
    operation  text        NOT NULL CHECK (operation IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')),
    columns    text[],
    condition  text,
    action     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text        NOT NULL DEFAULT session_user
);
CREATE INDEX action_rule_target_idx ON action_rule (target);
COMMENT ON TABLE action_rule IS 'Rules that name changes of rows by what they mean: audit.add_action_rule, audit.drop_action_rule.';
COMMENT ON COLUMN action_rule.target IS 'The table, with its partitions and children.';
COMMENT ON COLUMN action_rule.priority IS 'Rules are tried in ascending order, those of one priority in that of their ids. The first that fits names the event.';
COMMENT ON COLUMN action_rule.operation IS 'INSERT, UPDATE, DELETE or TRUNCATE.';
COMMENT ON COLUMN action_rule.columns IS 'Of an UPDATE: one of these must have changed; NULL for any.';
COMMENT ON COLUMN action_rule.condition IS 'SQL expression over old and new that must be true; NULL for none.';
COMMENT ON COLUMN action_rule.action IS 'The event''s action.';
COMMENT ON COLUMN action_rule.created_at IS 'When it was added.';
COMMENT ON COLUMN action_rule.created_by IS 'Session role that added it.';
SELECT pg_catalog.pg_extension_config_dump('action_rule', '');
SELECT pg_catalog.pg_extension_config_dump('action_rule_id_seq', '');
REVOKE ALL ON action_rule FROM PUBLIC;
REVOKE ALL ON SEQUENCE action_rule_id_seq FROM PUBLIC;

COMMENT ON FUNCTION add_action_rule(regclass, text, text, text[], text, int) IS 'Names changes of a table''s rows by what they mean: the events get the action of the first rule that fits. Returns the rule''s id. Errors: 42703 for unknown columns, 22023 for options that do not go together, 42P17 for what a condition must not use, and PostgreSQL''s own for a condition that is no boolean expression.';
COMMENT ON FUNCTION drop_action_rule(int) IS 'Drops a rule. Errors: 42704 where there is none of that id.';
