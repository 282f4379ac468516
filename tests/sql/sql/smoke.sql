-- The extension is there, in its own schema, under its own version.
SELECT extname, extversion, nspname, extrelocatable
FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
WHERE extname = 'audit_ext';
