-- The trigger that people write by hand today, and what audit_ext is measured against.
--
-- It does what such a trigger should: both images, the context of the session, a checksum over the record's text, the
-- indexes without which the log could not be asked anything, and SECURITY DEFINER with a search_path of its own, so that
-- who writes the table need not be able to write the log. It is written for speed: one INSERT, where the usual record
-- filled field by field costs a fifth more for single rows (PL/pgSQL prepares each expression anew in each transaction).
-- It has no delta, no order of row versions, no check that the context is well formed, and no protection of its log.
--
-- The sections are the contract of a variant: variants.py describes them.

-- section: settings
app.user_id = 4711
app.tenant_id = tenant-42
app.request_id = 0b8f2c54-7d0e-4a6b-9a53-3f9c1d2e7a10
app.ip_address = 203.0.113.7

-- section: setup
CREATE SCHEMA handmade;

CREATE TABLE handmade.log (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    occurred_at      timestamptz NOT NULL,
    schema_name      text        NOT NULL,
    table_name       text        NOT NULL,
    operation        text        NOT NULL,
    row_key          text,
    old_row          jsonb,
    new_row          jsonb,
    user_id          text,
    tenant_id        text,
    request_id       text,
    ip_address       inet,
    session_role     text        NOT NULL,
    application_name text,
    xid              xid8        NOT NULL,
    checksum         bytea       NOT NULL
);
CREATE INDEX ON handmade.log (table_name, row_key);
CREATE INDEX ON handmade.log (user_id, occurred_at);
CREATE INDEX ON handmade.log (occurred_at);

-- The argument is the name of the key column; a table without a key passes none.
CREATE FUNCTION handmade.audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    happened_at timestamptz := clock_timestamp();
    old_image   jsonb;
    new_image   jsonb;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        old_image := to_jsonb(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        new_image := to_jsonb(NEW);
    END IF;
    INSERT INTO handmade.log (occurred_at, schema_name, table_name, operation, row_key, old_row, new_row, user_id,
                              tenant_id, request_id, ip_address, session_role, application_name, xid, checksum)
    SELECT happened_at, TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP, coalesce(new_image, old_image) ->> TG_ARGV[0],
           old_image, new_image,
           current_setting('app.user_id', true), current_setting('app.tenant_id', true),
           current_setting('app.request_id', true), nullif(current_setting('app.ip_address', true), '')::inet,
           session_user, current_setting('application_name'), pg_current_xact_id(),
           sha256(convert_to(concat_ws('|', happened_at, TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP, old_image, new_image,
                                       current_setting('app.user_id', true), current_setting('app.tenant_id', true),
                                       current_setting('app.request_id', true), current_setting('app.ip_address', true),
                                       session_user, pg_current_xact_id()), 'UTF8'));
    RETURN NULL;
END
$$;

CREATE FUNCTION handmade.enable(target regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION handmade.audit(%s)',
                   target,
                   (SELECT string_agg(quote_literal(a.attname), ', ' ORDER BY a.attnum)
                      FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
                     WHERE i.indrelid = target AND i.indisprimary));
END
$$;

-- section: enable
SELECT handmade.enable(:table);

-- section: log
SELECT 'handmade.log'::regclass

-- section: events
SELECT count(*) FROM handmade.log
