-- temporal_tables 1.2.2, https://github.com/arkhipov/temporal_tables: a row trigger in C that copies the old row to a
-- history table, and nothing else: no user, no new rows, one version a transaction. It has to be installed in the
-- PostgreSQL that is measured. An INSERT leaves no history, so the number of events is not checked.

-- section: setup
CREATE EXTENSION temporal_tables;

-- section: enable
DO $$
DECLARE
    target regclass := :table;
BEGIN
    EXECUTE format('ALTER TABLE %s ADD sys_period tstzrange NOT NULL DEFAULT tstzrange(current_timestamp, NULL)', target);
    EXECUTE format('CREATE TABLE history_of_%s (LIKE %s)', target, target);
    EXECUTE format('CREATE TRIGGER versioning BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW
                        EXECUTE FUNCTION versioning(''sys_period'', %L, true)', target, 'history_of_' || target);
END
$$;

-- section: log
SELECT oid FROM pg_class WHERE relname LIKE 'history\_of\_%' AND relkind = 'r'
