"""audit.log_reads: each call of a function that reads the log is an event itself, with what was asked for, by whom."""

import pytest
from auditlib import check_integrity, sqlstate
from queuelib import PRELOAD, database

SETUP = """
    CREATE TABLE doc (id int PRIMARY KEY, body text);
    SELECT audit.enable('doc');
    BEGIN;
    SELECT audit.set_context(user_id => 'ann', tenant_id => 'acme');
    INSERT INTO doc VALUES (1, 'a');
    COMMIT;
    GRANT SELECT ON doc TO PUBLIC;"""

# The calls, and what of their arguments is recorded at least.
CALLS = [
    ("get_logs(user_id => 'ann', action => 'auth.*', ip_address => '10.0.0.0/8', page_size => 7)",
     {"user_id": "ann", "action": "auth.*", "ip_address": "10.0.0.0/8", "page_size": 7}),
    ("get_logs()", {"page_size": 100}),
    ("count_logs(tenant_id => 'acme', resource => 'public.doc')", {"tenant_id": "acme", "resource": "public.doc"}),
    ("user_activity('ann', since => '2026-01-01Z')", {"user_id": "ann", "since": "2026-01-01T00:00:00+00:00", "max_rows": 100}),
    ("tenant_activity('acme', max_rows => 3)", {"tenant_id": "acme", "max_rows": 3}),
    ("failed_logins('192.0.2.1', 'ann')", {"ip_address": "192.0.2.1", "user_id": "ann"}),
    ("statistics(tenant_id => 'acme')", {"tenant_id": "acme"}),
    ("security_events('acme', burst_count => 3)", {"tenant_id": "acme", "burst_count": 3}),
    ("history('doc', '1')", {"target": "public.doc", "resource_id": "1"}),
    ("row_as_of('doc', '1', '2026-01-01Z')", {"target": "public.doc", "resource_id": "1", "at": "2026-01-01T00:00:00+00:00"}),
    ("table_as_of(NULL::doc, '2026-01-01Z')", {"target": "public.doc", "at": "2026-01-01T00:00:00+00:00"}),
    ("diff('{changeset}')", {"changeset_id": "{changeset}"}),
    ("undo('{changeset}')", {"changeset_id": "{changeset}", "dry_run": True}),
]  # fmt: skip


def reads(conn):
    return conn.execute(
        "SELECT resource, details -> 'arguments', user_id, session_role FROM audit.log WHERE action = 'audit.read'"
        " ORDER BY era, position NULLS LAST, command, seq"
    ).fetchall()


def calls(conn):
    (changeset,) = conn.execute("SELECT id::text FROM audit.changeset LIMIT 1").fetchone()
    for call, arguments in CALLS:
        yield call.replace("{changeset}", changeset), {
            name: changeset if value == "{changeset}" else value for name, value in arguments.items()
        }


@pytest.fixture
def reader(conn, db, role):
    conn.execute(SETUP)
    name = role()
    conn.execute(f"SELECT audit.grant_reader('{name}'); ALTER ROLE {name} SET audit.log_reads = on")
    return db.connect(user=name)


def test_each_function_notes_its_call(conn, reader):
    reader.execute("SELECT audit.set_context(user_id => 'auditor', is_local => false)")
    for number, (call, arguments) in enumerate(calls(conn), start=1):
        reader.execute(f"SELECT * FROM audit.{call}")
        found = reads(conn)
        assert len(found) == number, call  # one, also where one function is made of others
        resource, noted, user, role = found[-1]
        assert (resource, user, role) == (f"audit.{call.split('(')[0]}", "auditor", reader.info.user)
        assert arguments.items() <= noted.items()
        assert None not in noted.values()
    check_integrity(conn)


def test_nothing_is_noted_unless_asked_for(conn, reader):
    for call, _ in calls(conn):
        conn.execute(f"SELECT * FROM audit.{call}")
    assert reads(conn) == []


def test_in_read_only_transactions_and_of_tenants(conn, db, reader, role):
    reader.execute("BEGIN READ ONLY")
    for call, _ in calls(conn):
        reader.execute(f"SELECT * FROM audit.{call}")
    reader.execute("COMMIT")
    assert len(reads(conn)) == len(CALLS)
    name = role()
    conn.execute(f"SELECT audit.grant_tenant_reader('{name}', 'acme'); ALTER ROLE {name} SET audit.log_reads = on")
    with db.connect(user=name) as tenant:
        tenant.execute("SET default_transaction_read_only = on")
        assert tenant.execute("SELECT FROM audit.get_logs()").rowcount == 1
    assert reads(conn)[len(CALLS):] == [("audit.get_logs", {"page_size": 100}, None, name)]
    check_integrity(conn)


def test_in_queries_of_all_shapes(conn, reader):
    """Joined, prepared, in a cursor, in a subquery, and where PostgreSQL would run the query in parallel."""
    force = "debug_parallel_query" if conn.info.server_version >= 160000 else "force_parallel_mode"
    reader.execute(f"SET {force} = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0")
    reader.execute("SELECT count(*) FROM pg_class c, audit.get_logs() l")
    reader.execute("PREPARE p AS SELECT * FROM audit.user_activity('ann'); EXECUTE p; EXECUTE p")
    reader.execute("BEGIN; DECLARE c CURSOR FOR SELECT * FROM audit.get_logs(); FETCH 1 FROM c; COMMIT")
    reader.execute("SELECT (SELECT audit.count_logs()) FROM pg_class LIMIT 1")
    reader.execute("SELECT relname FROM pg_class WHERE audit.count_logs(resource => relname) > 0 AND relname = 'doc'")
    functions = [resource for resource, *_ in reads(conn)]
    assert functions == ["audit.get_logs", "audit.user_activity", "audit.user_activity", "audit.get_logs", "audit.count_logs", "audit.count_logs"]


def test_a_rollback_takes_it_along_without_the_worker(conn, reader):
    reader.execute("BEGIN; SELECT * FROM audit.get_logs(); ROLLBACK")
    assert reads(conn) == []


def test_a_rollback_does_not_take_it_along(server):
    """With the library preloaded, the worker writes it before the function returns anything."""
    with database(server, "reads"), server.connect("reads") as conn, server.connect("reads") as reader:
        conn.execute(SETUP)
        reader.execute("SET audit.log_reads = on; SET audit.user_id = 'ann'")
        given = list(calls(conn))
        for number, (call, _) in enumerate(given, start=1):
            reader.execute(f"BEGIN; SELECT * FROM audit.{call}")
            assert len(reads(conn)) == number  # while that transaction is under way
            reader.execute("ROLLBACK")
        assert len(reads(conn)) == len(given)
        reader.execute("BEGIN READ ONLY; SELECT * FROM audit.get_logs(); ROLLBACK")
        with sqlstate("22023"):
            reader.execute("SELECT * FROM audit.get_logs(page_size => 0)")
        found = reads(conn)
        assert [(resource, user) for resource, _, user, _ in found[-2:]] == [("audit.get_logs", "ann")] * 2
        # A read does not find itself.
        count = "SELECT audit.count_logs(action => 'audit.read')"
        assert reader.execute(count).fetchone()[0] == len(found)
        assert reader.execute(count).fetchone()[0] == len(found) + 1
        check_integrity(conn)


def test_where_the_worker_cannot_the_transaction_writes_it(new_cluster):
    """Here since the message does not fit into the queue."""
    cluster = new_cluster({**PRELOAD, "audit.queue_size": "64kB"})
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext; SET audit.log_reads = on")
        long = "SELECT audit.note_read('report', jsonb_build_object('long', repeat('x', 100000)))"
        conn.execute(f"BEGIN; {long}; ROLLBACK; {long}")
        assert [resource for resource, *_ in reads(conn)] == ["audit.report"]
        check_integrity(conn)
