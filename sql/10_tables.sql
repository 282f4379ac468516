-- The tables of the log, and who may touch them. Functions and the view are in 20_functions.sql.
--
-- Column order within changeset and event is physical order: fixed-width columns first, then the variable ones, so
-- that a record carries no padding. The writer (src/store.rs) builds these tuples itself and refuses to write when the
-- columns are not exactly these.

-- The schema must be ours from the start: whoever owned it before could have left functions, types or operators
-- that this script would otherwise resolve to.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = 'audit'::pg_catalog.regnamespace)
       OR EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = 'audit'::pg_catalog.regnamespace)
       OR EXISTS (SELECT FROM pg_catalog.pg_type WHERE typnamespace = 'audit'::pg_catalog.regnamespace)
       OR EXISTS (SELECT FROM pg_catalog.pg_operator WHERE oprnamespace = 'audit'::pg_catalog.regnamespace)
    THEN
        RAISE EXCEPTION 'schema "audit" already holds objects'
            USING ERRCODE = 'duplicate_schema',
                  HINT = 'Move them to another schema, then run CREATE EXTENSION audit_ext again.';
    END IF;
END
$$;

CREATE TYPE operation AS ENUM ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'SNAPSHOT', 'APPLICATION', 'FAILURE', 'DDL');
COMMENT ON TYPE operation IS 'What an event records.';

CREATE TYPE status AS ENUM ('success', 'failure', 'error');
COMMENT ON TYPE status IS 'Outcome of an event: success; failure, refused by a rule or a right; error.';

CREATE TYPE origin AS ENUM ('trigger', 'application', 'isolated', 'failure', 'login', 'ddl', 'snapshot');
COMMENT ON TYPE origin IS 'What wrote a changeset.';

CREATE TYPE context_trust AS ENUM ('none', 'claimed', 'verified');
COMMENT ON TYPE context_trust IS 'What the context of a changeset rests on: nothing, as there is none; the word of the session; a token that was checked (audit.set_context_token).';

CREATE TABLE ledger (
    era               int         PRIMARY KEY,
    id                uuid        NOT NULL,
    system_identifier numeric     NOT NULL,
    started_at        timestamptz NOT NULL,
    timeline          bigint      NOT NULL,
    database_id       oid         NOT NULL,
    origin            text        NOT NULL
);
COMMENT ON TABLE ledger IS 'One row per ledger: a new one begins where the log finds itself in another cluster, on another WAL timeline or in another database, since history can fork there and WAL positions and transaction ids may start again. Records are ordered by era first.';
COMMENT ON COLUMN ledger.era IS 'Counts the ledgers, from 1.';
COMMENT ON COLUMN ledger.id IS 'Identity of the ledger.';
COMMENT ON COLUMN ledger.system_identifier IS 'The cluster''s system identifier, as pg_control_system() shows it.';
COMMENT ON COLUMN ledger.started_at IS 'When the first record was written to it.';
COMMENT ON COLUMN ledger.timeline IS 'WAL timeline: a promoted standby and a point-in-time recovery have another.';
COMMENT ON COLUMN ledger.database_id IS 'The database''s oid.';
COMMENT ON COLUMN ledger.origin IS 'Name of the ledger in its checkpoints.';

CREATE TABLE relation (
    id           int         PRIMARY KEY,
    relid        oid         NOT NULL,
    schema_name  text        NOT NULL,
    table_name   text        NOT NULL,
    resource     text        NOT NULL,
    root_schema  text,
    root_table   text,
    columns      jsonb       NOT NULL,
    key_columns  text[],
    valid_from   timestamptz NOT NULL
);
CREATE SEQUENCE relation_id_seq AS int OWNED BY relation.id;
CREATE INDEX relation_resource_idx ON relation (resource);
COMMENT ON TABLE relation IS 'Layout of an audited table: a row per version of its name, columns and key, written before the first event under that layout.';
COMMENT ON COLUMN relation.relid IS 'The table''s oid when the row was written; it means nothing after a restore: audit.local_layout.';
COMMENT ON COLUMN relation.resource IS 'Qualified, quoted name: what audit.log shows as resource.';
COMMENT ON COLUMN relation.root_schema IS 'Of a partition: the schema of the partitioned table at the top.';
COMMENT ON COLUMN relation.root_table IS 'Of a partition: the name of the partitioned table at the top.';
COMMENT ON COLUMN relation.columns IS 'Array of {"attnum", "name", "type"} in attnum order, dropped columns left out. With "missing": the value that rows written before the column was added have in it.';
COMMENT ON COLUMN relation.key_columns IS 'Columns of the primary key, else of the replica identity index, in key order; NULL without either.';

CREATE TABLE local_layout (
    relid       oid NOT NULL,
    relation_id int PRIMARY KEY
);
CREATE INDEX local_layout_relid_idx ON local_layout (relid);
COMMENT ON TABLE local_layout IS 'Layouts that were written in this database, and so name tables by oids that are valid here. A dump leaves it out: whatever finds layouts by oid finds none of those that a restore brought.';
COMMENT ON COLUMN local_layout.relid IS 'The table''s oid; 0 when it is gone.';
COMMENT ON COLUMN local_layout.relation_id IS 'The layout: audit.relation.';

CREATE TABLE changeset (
    occurred_at      timestamptz NOT NULL,
    position         pg_lsn,
    xid              xid8        NOT NULL,
    era              int         NOT NULL,
    event_count      int         NOT NULL,
    backend_pid      int         NOT NULL,
    client_port      int,
    origin           origin      NOT NULL,
    context_trust    context_trust NOT NULL,
    id               uuid        NOT NULL,
    salt             uuid,
    events_root      bytea       NOT NULL,
    checksum         bytea       NOT NULL,
    user_id          text,
    tenant_id        text,
    request_id       text,
    session_id       text,
    ip_address       inet,
    client_addr      inet,
    user_agent       text,
    reason           text,
    session_role     text,
    effective_role   text,
    application_name text,
    statement        text,
    context          jsonb
) PARTITION BY RANGE (occurred_at);
CREATE TABLE changeset_default PARTITION OF changeset DEFAULT;
COMMENT ON TABLE changeset IS 'The events of one transaction under one context: who, from where, why. Written at commit; append-only.';
COMMENT ON COLUMN changeset.occurred_at IS 'Clock time of the first event, the same instant as in id.';
COMMENT ON COLUMN changeset.position IS 'WAL insert position just before commit. ORDER BY era, position NULLS LAST, command, seq reads the versions of each row in the order in which they came into being.';
COMMENT ON COLUMN changeset.xid IS 'The transaction''s id.';
COMMENT ON COLUMN changeset.era IS 'The ledger''s era: xid and position compare within one era only.';
COMMENT ON COLUMN changeset.event_count IS 'Number of events.';
COMMENT ON COLUMN changeset.id IS 'UUID version 7 (RFC 9562): 48 bits of milliseconds, then 12 bits of the fraction of a millisecond.';
COMMENT ON COLUMN changeset.salt IS '16 random bytes that go into the checksum before the canonical text.';
COMMENT ON COLUMN changeset.events_root IS 'RFC 6962 Merkle root over the checksums of the events in seq order.';
COMMENT ON COLUMN changeset.checksum IS 'SHA-256 of salt and canonical text: docs/format.md.';
COMMENT ON COLUMN changeset.user_id IS 'The application''s user: setting audit.user_id.';
COMMENT ON COLUMN changeset.tenant_id IS 'Setting audit.tenant_id.';
COMMENT ON COLUMN changeset.request_id IS 'Setting audit.request_id.';
COMMENT ON COLUMN changeset.session_id IS 'Setting audit.session_id.';
COMMENT ON COLUMN changeset.ip_address IS 'The application''s client: setting audit.ip_address.';
COMMENT ON COLUMN changeset.client_addr IS 'Address of the database connection; NULL over a Unix socket.';
COMMENT ON COLUMN changeset.client_port IS 'Port of the database connection; NULL over a Unix socket.';
COMMENT ON COLUMN changeset.backend_pid IS 'Process id of the server process.';
COMMENT ON COLUMN changeset.user_agent IS 'Setting audit.user_agent.';
COMMENT ON COLUMN changeset.reason IS 'Setting audit.reason.';
COMMENT ON COLUMN changeset.session_role IS 'session_user.';
COMMENT ON COLUMN changeset.effective_role IS 'current_user where the change was captured.';
COMMENT ON COLUMN changeset.application_name IS 'application_name at the first event.';
COMMENT ON COLUMN changeset.statement IS 'Text of the client''s statement at the first event; only with audit.log_statement.';
COMMENT ON COLUMN changeset.context IS 'Further keys: setting audit.context.';
COMMENT ON COLUMN changeset.origin IS 'What wrote it.';
COMMENT ON COLUMN changeset.context_trust IS 'What the context rests on: verified where the keys of the context that tokens say (audit.context_claims) are those of a token whose signature was checked, and were set by nothing else since.';

CREATE TABLE event (
    occurred_at  timestamptz NOT NULL,
    seq          int         NOT NULL,
    command      int         NOT NULL,
    relation_id  int,
    operation    operation   NOT NULL,
    status       status      NOT NULL,
    changeset_id uuid        NOT NULL,
    salt         uuid,
    checksum     bytea       NOT NULL,
    resource_id  text,
    row_image    jsonb,
    old_values   jsonb,
    details      jsonb,
    action       text,
    resource     text
) PARTITION BY RANGE (occurred_at);
CREATE TABLE event_default PARTITION OF event DEFAULT;
-- Records over 2 kB are compressed. Where the server has lz4, with that: pglz takes half of the cost of recording a wide row.
DO $$
DECLARE
    t text;
    c text;
BEGIN
    IF 'lz4' = ANY (SELECT unnest(enumvals) FROM pg_catalog.pg_settings WHERE name = 'default_toast_compression') THEN
        FOREACH t IN ARRAY '{event,event_default}'::text[] LOOP
            FOREACH c IN ARRAY '{row_image,old_values,details}'::text[] LOOP
                EXECUTE pg_catalog.format('ALTER TABLE audit.%I ALTER %I SET COMPRESSION lz4', t, c);
            END LOOP;
        END LOOP;
    END IF;
END
$$;
COMMENT ON TABLE event IS 'One recorded fact: a row change, a failure, an application action. Written in the transaction that it records; append-only.';
COMMENT ON COLUMN event.occurred_at IS 'The changeset''s occurred_at.';
COMMENT ON COLUMN event.seq IS 'Counts the events of the transaction, from 0, without gaps.';
COMMENT ON COLUMN event.command IS 'Command id that made the row version: cmin of the new one, cmax of a deleted one.';
COMMENT ON COLUMN event.relation_id IS 'Layout of the table: audit.relation.';
COMMENT ON COLUMN event.changeset_id IS 'The changeset.';
COMMENT ON COLUMN event.salt IS '16 random bytes that go into the checksum before the canonical text.';
COMMENT ON COLUMN event.checksum IS 'SHA-256 of salt and canonical text: docs/format.md.';
COMMENT ON COLUMN event.resource_id IS 'The row''s key as text; of a composite key, its JSON array.';
COMMENT ON COLUMN event.row_image IS 'The row after INSERT, UPDATE and SNAPSHOT, before DELETE.';
COMMENT ON COLUMN event.old_values IS 'Of an UPDATE: previous values of the columns that changed.';
COMMENT ON COLUMN event.details IS 'Further facts: docs/format.md.';
COMMENT ON COLUMN event.action IS 'What happened: of application events, and of row events for which there is an action rule.';
COMMENT ON COLUMN event.resource IS 'What an application event is about; NULL for row events, see audit.relation.';

CREATE TABLE policy (
    target             regclass    PRIMARY KEY,
    inherited_from     regclass,
    mode               text        NOT NULL DEFAULT 'sync',
    sample_rate        float8      NOT NULL DEFAULT 1.0,
    exclude_columns    text[]      NOT NULL DEFAULT '{}',
    mask_columns       text[]      NOT NULL DEFAULT '{}',
    soft_delete_column text,
    require_context    text[]      NOT NULL DEFAULT '{}',
    skip_unchanged     boolean     NOT NULL DEFAULT false,
    tenant_column      text,
    require_verified_context boolean NOT NULL DEFAULT false,
    enabled_at         timestamptz NOT NULL DEFAULT now(),
    enabled_by         text        NOT NULL DEFAULT session_user
);
COMMENT ON TABLE policy IS 'What is audited, and how: a row per audited table, partitions and inheritance children included. Changed by audit.enable and audit.disable.';
COMMENT ON COLUMN policy.target IS 'The table.';
COMMENT ON COLUMN policy.inherited_from IS 'The partitioned or parent table whose options this one follows; NULL where audit.enable named this table.';
COMMENT ON COLUMN policy.mode IS 'sync: the record is written in the transaction of the change; async: by the worker, after the commit; sampled: as sync, for a share of the transactions.';
COMMENT ON COLUMN policy.sample_rate IS 'Share of transactions that are recorded, 0 to 1; 1 but in mode sampled.';
COMMENT ON COLUMN policy.exclude_columns IS 'Columns left out of the record.';
COMMENT ON COLUMN policy.mask_columns IS 'Columns recorded as "***".';
COMMENT ON COLUMN policy.soft_delete_column IS 'Column whose becoming true or non-null is recorded as a soft delete.';
COMMENT ON COLUMN policy.require_context IS 'Context keys without which a change is refused.';
COMMENT ON COLUMN policy.skip_unchanged IS 'Whether an UPDATE that changes no recorded column is left out.';
COMMENT ON COLUMN policy.tenant_column IS 'Column that names the row''s tenant, which counts where the context names none.';
COMMENT ON COLUMN policy.require_verified_context IS 'Whether a change is refused whose context is not that of a checked token: audit.set_context_token.';
COMMENT ON COLUMN policy.enabled_at IS 'When auditing began.';
COMMENT ON COLUMN policy.enabled_by IS 'Session role that enabled it.';

CREATE TABLE schema_policy (
    schema_name        text        PRIMARY KEY,
    schema_id          oid         NOT NULL,
    include_future     boolean     NOT NULL,
    mode               text        NOT NULL DEFAULT 'sync',
    sample_rate        float8      NOT NULL DEFAULT 1.0,
    exclude_columns    text[]      NOT NULL DEFAULT '{}',
    mask_columns       text[]      NOT NULL DEFAULT '{}',
    soft_delete_column text,
    require_context    text[]      NOT NULL DEFAULT '{}',
    skip_unchanged     boolean     NOT NULL DEFAULT false,
    tenant_column      text,
    require_verified_context boolean NOT NULL DEFAULT false,
    except_tables      text[]      NOT NULL DEFAULT '{}',
    enabled_at         timestamptz NOT NULL DEFAULT now(),
    enabled_by         text        NOT NULL DEFAULT session_user
);
COMMENT ON COLUMN schema_policy.except_tables IS 'Tables of the schema for which audit.disable was called.';
COMMENT ON TABLE schema_policy IS 'Schemas enabled as a whole: audit.enable_schema. Options named here apply to the tables that have the columns.';

REVOKE ALL ON ledger, relation, local_layout, changeset, changeset_default, event, event_default, policy, schema_policy FROM PUBLIC;
REVOKE ALL ON SEQUENCE relation_id_seq FROM PUBLIC;
GRANT USAGE ON SCHEMA audit TO PUBLIC;

-- What a dump must carry beside the extension itself. Not local_layout, whose oids mean nothing elsewhere.
SELECT pg_catalog.pg_extension_config_dump('ledger', '');
SELECT pg_catalog.pg_extension_config_dump('relation', '');
SELECT pg_catalog.pg_extension_config_dump('relation_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('changeset_default', '');
SELECT pg_catalog.pg_extension_config_dump('event_default', '');
SELECT pg_catalog.pg_extension_config_dump('policy', '');
SELECT pg_catalog.pg_extension_config_dump('schema_policy', '');
