-- pgMemento 0.7.4, https://github.com/pgMemento/pgMemento: triggers in PL/pgSQL, the changed columns' previous values as
-- jsonb, a column of its own in each audited table. --peer-sources has to name a folder with the files of its src/.

-- section: settings
search_path = public, pgmemento

-- section: setup
CREATE EXTENSION IF NOT EXISTS btree_gist;
-- include: SCHEMA.sql
-- include: SETUP.sql
-- include: LOG_UTIL.sql
-- include: DDL_LOG.sql
-- include: RESTORE.sql
-- include: REVERT.sql
-- include: SCHEMA_MANAGEMENT.sql
-- include: CTL.sql

-- section: enable
SELECT pgmemento.create_table_audit(:table);

-- section: log
SELECT unnest('{pgmemento.transaction_log, pgmemento.table_event_log, pgmemento.row_log}'::regclass[])

-- section: events
SELECT count(*) FROM pgmemento.row_log
