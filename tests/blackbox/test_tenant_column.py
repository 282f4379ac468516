"""A policy's tenant column: the row's own tenant counts where the context names none, and a mismatch is recorded."""

import uuid
from collections import Counter

import pytest
from auditlib import check_integrity, replay, sqlstate

ORDER = "ORDER BY era, position NULLS LAST, command, seq"


def tenants(conn, columns="operation, tenant_id, details"):
    return conn.execute(f"SELECT {columns} FROM audit.log {ORDER}").fetchall()


@pytest.fixture
def conn(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, tenant text, n int, gone boolean)")
    return conn


def enable(conn, **options):
    conn.execute(
        "SELECT audit.enable('t', tenant_column => 'tenant'%s)" % "".join(f", {k} => {v}" for k, v in options.items())
    )


def test_the_rows_own_tenant_counts(conn):
    enable(conn)
    conn.execute("INSERT INTO t VALUES (1, 'acme'), (2, 'globex'), (3, NULL), (4, ''), (5, 'acme')")
    conn.execute("UPDATE t SET n = 1 WHERE id <= 2; DELETE FROM t WHERE id IN (1, 3)")
    assert tenants(conn, "operation, resource_id, tenant_id, details") == [
        ("INSERT", "1", "acme", None),
        ("INSERT", "2", "globex", None),
        ("INSERT", "3", None, None),
        ("INSERT", "4", None, None),
        ("INSERT", "5", "acme", None),
        ("UPDATE", "1", "acme", None),
        ("UPDATE", "2", "globex", None),
        ("DELETE", "1", "acme", None),
        ("DELETE", "3", None, None),
    ]
    assert conn.execute("SELECT count(*) FROM audit.changeset").fetchone() == (3 + 3,)
    replay(conn, "t")
    check_integrity(conn)


def test_the_context_goes_before_and_a_mismatch_is_recorded(conn):
    enable(conn, soft_delete_column="'gone'")
    conn.execute("SELECT audit.set_context(tenant_id => 'acme', user_id => 'ann', is_local => false)")
    conn.execute("INSERT INTO t VALUES (1, 'acme'), (2, 'globex'), (3, NULL)")
    conn.execute("UPDATE t SET id = id + 10, gone = true WHERE id = 2; UPDATE t SET tenant = 'acme' WHERE id = 12")
    conn.execute("DELETE FROM t; TRUNCATE t")
    assert tenants(conn) == [
        ("INSERT", "acme", None),
        ("INSERT", "acme", {"row_tenant_id": "globex"}),
        ("INSERT", "acme", None),
        ("UPDATE", "acme", {"soft_delete": True, "row_tenant_id": "globex", "old_resource_id": "2"}),
        ("UPDATE", "acme", None),
        ("DELETE", "acme", None),
        ("DELETE", "acme", None),
        ("DELETE", "acme", None),
        ("TRUNCATE", "acme", None),
    ]
    replay(conn, "t")
    check_integrity(conn)


def test_a_row_that_changes_hands(conn):
    """The new owner's event; the old one stands in the old row."""
    enable(conn)
    conn.execute("INSERT INTO t VALUES (1, 'acme'); UPDATE t SET tenant = 'globex'; UPDATE t SET tenant = NULL")
    assert tenants(conn, "operation, tenant_id, old_row ->> 'tenant'") == [
        ("INSERT", "acme", None),
        ("UPDATE", "globex", "acme"),
        ("UPDATE", None, "globex"),
    ]
    check_integrity(conn)


def test_one_statement_over_many_tenants(conn):
    """A changeset for each tenant, at one time, however they alternate."""
    enable(conn)
    conn.execute("INSERT INTO t SELECT i, 'tenant' || i % 40, 0 FROM generate_series(1, 4000) i")
    conn.execute("BEGIN; UPDATE t SET n = 1; UPDATE t SET n = 2 WHERE id % 2 = 0; SAVEPOINT s; UPDATE t SET n = 3;"
                 " ROLLBACK TO s; UPDATE t SET n = 4 WHERE id < 1000; COMMIT")  # fmt: skip
    found = Counter(tenants(conn, "tenant_id, operation"))
    expected = Counter()
    for i in range(1, 4001):
        expected[(f"tenant{i % 40}", "INSERT")] += 1
        expected[(f"tenant{i % 40}", "UPDATE")] += 1 + (i % 2 == 0) + (i < 1000)
    assert found == expected
    assert conn.execute("SELECT count(*), count(DISTINCT occurred_at), count(DISTINCT xid) FROM audit.changeset").fetchone() == (
        80,
        2,
        2,
    )
    replay(conn, "t")
    check_integrity(conn)


def test_many_tenants_in_bounded_memory(conn):
    enable(conn)
    conn.execute("INSERT INTO t SELECT i, 'tenant' || i % 20000, 0 FROM generate_series(1, 100000) i")
    assert conn.execute("SELECT count(DISTINCT tenant_id), sum(event_count) FROM audit.changeset").fetchone() == (
        20000,
        100000,
    )
    (size,) = conn.execute("SELECT sum(total_bytes) FROM pg_backend_memory_contexts").fetchone()
    assert size < 200 * 1024 * 1024


def test_contexts_and_tables_by_turns(conn):
    """A row's tenant is not left behind for what is recorded next."""
    enable(conn)
    conn.execute("CREATE TABLE u (id int PRIMARY KEY); SELECT audit.enable('u')")
    conn.execute(
        "BEGIN; INSERT INTO t VALUES (1, 'acme'); INSERT INTO u VALUES (1); INSERT INTO t VALUES (2, 'globex');"
        " SELECT audit.log_event('x'); SELECT audit.set_context(user_id => 'ann'); INSERT INTO t VALUES (3, 'acme');"
        " INSERT INTO u VALUES (2); SELECT audit.set_context(tenant_id => 'initech'); INSERT INTO t VALUES (4, 'acme');"
        " INSERT INTO u VALUES (3); SELECT audit.set_context(tenant_id => ''); INSERT INTO t VALUES (5, 'acme');"
        " TRUNCATE t; COMMIT"
    )
    assert conn.execute("SELECT operation, resource, resource_id, user_id, tenant_id FROM audit.log ORDER BY seq").fetchall() == [
        ("INSERT", "public.t", "1", None, "acme"),
        ("INSERT", "public.u", "1", None, None),
        ("INSERT", "public.t", "2", None, "globex"),
        ("APPLICATION", None, None, None, None),
        ("INSERT", "public.t", "3", "ann", "acme"),
        ("INSERT", "public.u", "2", "ann", None),
        ("INSERT", "public.t", "4", "ann", "initech"),
        ("INSERT", "public.u", "3", "ann", "initech"),
        ("INSERT", "public.t", "5", "ann", "acme"),
        ("TRUNCATE", "public.t", None, "ann", None),
    ]
    check_integrity(conn)


def test_a_required_tenant_may_be_the_rows_own(conn):
    enable(conn, require_context="'{tenant_id}'")
    conn.execute("INSERT INTO t VALUES (1, 'acme')")
    for statement in ("INSERT INTO t VALUES (2, NULL)", "UPDATE t SET tenant = ''", "TRUNCATE t"):
        with sqlstate("55000"):
            conn.execute(statement)
    assert tenants(conn) == [("INSERT", "acme", None)]


@pytest.mark.parametrize(
    "type_, value, text",
    [
        ("uuid", "'0198c5a0-0000-7000-8000-0000000000ff'", str(uuid.UUID("0198c5a0-0000-7000-8000-0000000000ff"))),
        ("smallint", "-7", "-7"),
        ("int", "42", "42"),
        ("bigint", "9007199254740993", "9007199254740993"),
        ("varchar(20)", "'Größe \"1\"\\'", 'Größe "1"\\'),
        ("text", "E'a\\tb\\nc'", "a\tb\nc"),
        ("tenant_key", "'acme'", "acme"),
    ],
)
def test_types(conn, type_, value, text):
    conn.execute("CREATE DOMAIN tenant_key AS text CHECK (VALUE <> 'x')")
    conn.execute(f"ALTER TABLE t DROP COLUMN tenant; ALTER TABLE t ADD COLUMN tenant {type_}")
    enable(conn)
    conn.execute(f"INSERT INTO t (id, tenant) VALUES (1, {value})")
    conn.execute("SELECT audit.set_context(tenant_id => %s, is_local => false)", [text])
    conn.execute(f"INSERT INTO t (id, tenant) VALUES (2, {value})")
    assert tenants(conn) == [("INSERT", text, None)] * 2
    check_integrity(conn)


@pytest.mark.parametrize("type_", ["char(4)", "numeric", "jsonb", "text[]", "bytea", "timestamptz", "name"])
def test_types_refused(conn, type_):
    conn.execute(f"ALTER TABLE t DROP COLUMN tenant; ALTER TABLE t ADD COLUMN tenant {type_}")
    with sqlstate("22023"):
        enable(conn)


def test_options_refused(conn):
    with sqlstate("42703"):
        conn.execute("SELECT audit.enable('t', tenant_column => 'nope')")
    for option in ("exclude_columns", "mask_columns"):
        with sqlstate("22023") as caught:
            enable(conn, **{option: "'{tenant}'"})
        assert caught.error.diag.message_hint


def test_a_tenant_that_is_too_long(conn):
    """A context string has its limit, wherever it comes from; a tenant named by context as well does not matter."""
    enable(conn)
    with sqlstate("22023"):
        conn.execute("INSERT INTO t VALUES (1, repeat('x', 8193))")
    conn.execute("INSERT INTO t VALUES (1, repeat('x', 8192))")
    assert conn.execute("SELECT length(tenant_id) FROM audit.changeset").fetchall() == [(8192,)]


def test_partitions_children_and_schemas(conn):
    conn.execute("""
        CREATE SCHEMA app;
        CREATE TABLE app.p (id int, tenant text) PARTITION BY LIST (tenant);
        CREATE TABLE app.p_acme (tenant text, id int);
        ALTER TABLE app.p ATTACH PARTITION app.p_acme FOR VALUES IN ('acme');
        CREATE TABLE app.parent (tenant text); CREATE TABLE app.child (x int) INHERITS (app.parent);
        CREATE TABLE app.without (id int);
        SELECT audit.enable_schema('app', tenant_column => 'tenant')""")
    conn.execute("CREATE TABLE app.later (tenant text); CREATE TABLE app.p_rest PARTITION OF app.p DEFAULT")
    assert dict(conn.execute("SELECT target::text, tenant_column FROM audit.policy WHERE target::text <> 't'").fetchall()) == {
        "app.without": None,
        **{f"app.{table}": "tenant" for table in ("p", "p_acme", "p_rest", "parent", "child", "later")},
    }
    conn.execute("INSERT INTO app.p VALUES (1, 'acme'), (2, 'globex'); INSERT INTO app.child VALUES ('acme', 1);"
                 " INSERT INTO app.later VALUES ('acme'); INSERT INTO app.without VALUES (1);"
                 " UPDATE app.p SET tenant = 'initech' WHERE id = 1")  # fmt: skip
    assert tenants(conn, "resource, operation, tenant_id") == [
        ("app.p_acme", "INSERT", "acme"),
        ("app.p_rest", "INSERT", "globex"),
        ("app.child", "INSERT", "acme"),
        ("app.later", "INSERT", "acme"),
        ("app.without", "INSERT", None),
        ("app.p_acme", "DELETE", "acme"),
        ("app.p_rest", "INSERT", "initech"),
    ]
    check_integrity(conn)


def test_renamed_and_dropped_columns(conn):
    enable(conn)
    conn.execute("ALTER TABLE t RENAME tenant TO owner; INSERT INTO t VALUES (1, 'acme')")
    assert conn.execute("SELECT tenant_column FROM audit.policy").fetchone() == ("owner",)
    conn.execute("ALTER TABLE t DROP COLUMN owner; INSERT INTO t VALUES (2)")
    assert tenants(conn) == [("INSERT", "acme", None), ("INSERT", None, None)]
    conn.execute("SELECT audit.enable('t')")
    assert conn.execute("SELECT tenant_column FROM audit.policy").fetchone() == (None,)


def test_snapshot(conn):
    conn.execute("INSERT INTO t VALUES (1, 'acme'), (2, 'globex'), (3, NULL), (4, 'acme')")
    enable(conn, snapshot="true")
    assert conn.execute("SELECT tenant_id, event_count, origin::text FROM audit.changeset ORDER BY 1").fetchall() == [
        ("acme", 2, "snapshot"),
        ("globex", 1, "snapshot"),
        (None, 1, "snapshot"),
    ]
    check_integrity(conn)


def test_a_cast_that_writes_rows_of_another_tenant(conn):
    """What an output cast records while a row is being written has its own tenant, and the row keeps its."""
    conn.execute("""
        CREATE TABLE u (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant text);
        SELECT audit.enable('u', tenant_column => 'tenant');
        CREATE TYPE odd AS (x int);
        CREATE FUNCTION odd_json(odd) RETURNS json LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO u (tenant) VALUES ('globex'); RETURN '{}'; END $$;
        CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd);
        CREATE DOMAIN odd_domain AS odd;
        ALTER TABLE t ADD COLUMN o odd""")
    enable(conn)
    conn.execute("INSERT INTO t (id, tenant, o) VALUES (1, 'acme', ROW(1)), (2, 'acme', NULL)")
    rows = tenants(conn, "resource, tenant_id")
    assert Counter(rows) == Counter({("public.t", "acme"): 2, **({("public.u", "globex"): len(rows) - 2} if len(rows) > 2 else {})})
    check_integrity(conn)


def test_prepared_transaction(conn):
    enable(conn)
    conn.execute("BEGIN; INSERT INTO t VALUES (1, 'acme'), (2, 'globex'); PREPARE TRANSACTION 'p'")
    conn.execute("COMMIT PREPARED 'p'")
    assert sorted(tenants(conn)) == [("INSERT", "acme", None), ("INSERT", "globex", None)]
    check_integrity(conn)


def test_rows_of_no_tenant_between_rows_of_tenants(conn):
    """Batches do not pile up where times alternate."""
    enable(conn)
    conn.execute("BEGIN; INSERT INTO t (id) VALUES (0); SELECT pg_sleep(0.002)")
    conn.execute(
        "INSERT INTO t SELECT i, CASE i % 3 WHEN 0 THEN NULL WHEN 1 THEN 'acme' ELSE 'globex' END"
        " FROM generate_series(1, 100000) i"
    )
    (size,) = conn.execute("SELECT sum(total_bytes) FROM pg_backend_memory_contexts").fetchone()
    (resident,) = conn.execute(
        "SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status'), 'VmRSS:\\s+(\\d+)')::int / 1024"
    ).fetchone()
    conn.execute("COMMIT")
    assert size < 50 * 1024 * 1024 and resident < 300
    assert conn.execute("SELECT tenant_id, event_count FROM audit.changeset ORDER BY 1").fetchall() == [
        ("acme", 33334),
        ("globex", 33333),
        (None, 33334),
    ]
    check_integrity(conn)
