-- 2ndQuadrant's audit-trigger, https://github.com/2ndQuadrant/audit-trigger: row triggers in PL/pgSQL, the old row and
-- what changed as hstore, with the statement's text. --peer-sources has to name a folder with its audit.sql.

-- section: setup
-- include: audit.sql

-- section: enable
SELECT audit.audit_table(:table);

-- section: log
SELECT 'audit.logged_actions'::regclass

-- section: events
SELECT count(*) FROM audit.logged_actions
