-- supa_audit 0.3.1, https://github.com/supabase/supa_audit: row triggers in PL/pgSQL, both images as jsonb, a UUID made
-- of the key. It has to be installed in the PostgreSQL that is measured: its supa_audit.control and supa_audit--0.3.1.sql
-- in the folder `extension` of what pg_config --sharedir says.

-- section: setup
CREATE EXTENSION supa_audit CASCADE;

-- section: enable
SELECT audit.enable_tracking(:table);

-- section: log
SELECT 'audit.record_version'::regclass

-- section: events
SELECT count(*) FROM audit.record_version
