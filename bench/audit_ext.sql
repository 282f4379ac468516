-- audit_ext as a variant of the bench: the sections of variants.py, with the same context as plpgsql.sql.

-- section: settings
audit.user_id = 4711
audit.tenant_id = tenant-42
audit.request_id = 0b8f2c54-7d0e-4a6b-9a53-3f9c1d2e7a10
audit.ip_address = 203.0.113.7

-- section: setup
CREATE EXTENSION audit_ext;

-- section: enable
SELECT audit.enable(:table);

-- section: log
SELECT relid
  FROM unnest('{audit.event, audit.changeset}'::regclass[]) AS root, pg_partition_tree(root)
 WHERE isleaf

-- section: events
SELECT count(*) FROM audit.event
