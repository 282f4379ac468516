"""Behind PgBouncer in transaction mode, where clients share server connections: no context reaches another client."""

import contextlib
import random
import threading
import uuid

import psycopg
import pytest
from auditlib import check_integrity, sqlstate
from pooler import Pooler

ORDER = "ORDER BY era, position NULLS LAST, command, seq"


@pytest.fixture
def conn(conn):
    conn.execute("CREATE TABLE t (id text PRIMARY KEY, author text, tenant text, n int DEFAULT 0); SELECT audit.enable('t')")
    return conn


@pytest.fixture
def pool(db):
    """A function that gives clients of one pool; with `size` server connections."""
    with contextlib.ExitStack() as stack:

        def make(size=1, users=(), mode="transaction"):
            pooler = stack.enter_context(Pooler(db.cluster, users, mode, size))

            def client(**kw):
                connection = pooler.connect(db.name, **kw)
                stack.callback(connection.close)
                return connection

            return client

        yield make
        # The pooler's server connections would keep the database from being dropped.


def log(conn, columns="resource_id, user_id, tenant_id"):
    return conn.execute(f"SELECT {columns} FROM audit.log {ORDER}").fetchall()


def server_process(client):
    return client.execute("SELECT pg_backend_pid()").fetchone()[0]


def test_one_server_connection_for_all(conn, pool):
    client = pool()
    first, second, third = client(), client(), client()
    assert server_process(first) == server_process(second) == server_process(third)
    first.execute("BEGIN")
    first.execute("SELECT audit.set_context(user_id => 'ann', tenant_id => 'acme', reason => 'x', context => '{\"a\": 1}')")
    first.execute("INSERT INTO t (id) VALUES ('1')")
    first.execute("COMMIT")
    second.execute("INSERT INTO t (id) VALUES ('2')")
    third.execute("BEGIN")
    third.execute("SELECT audit.set_context(user_id => 'bob')")
    third.execute("INSERT INTO t (id) VALUES ('3')")
    third.execute("ROLLBACK")
    second.execute("INSERT INTO t (id) VALUES ('4')")
    with sqlstate("23505"):
        with second.transaction():
            second.execute("SELECT audit.set_context(user_id => 'eve')")
            second.execute("INSERT INTO t (id) VALUES ('4')")
    third.execute("INSERT INTO t (id) VALUES ('5')")
    with first.transaction():
        first.execute("SELECT audit.set_context(user_id => 'cyd')")
        with contextlib.suppress(psycopg.errors.DivisionByZero), first.transaction():
            first.execute("SELECT audit.set_context(user_id => 'dan')")
            first.execute("SELECT 1 / 0")
        first.execute("INSERT INTO t (id) VALUES ('6')")
    assert log(conn) == [
        ("1", "ann", "acme"),
        ("2", None, None),
        ("4", None, None),
        ("5", None, None),
        ("6", "cyd", None),
    ]
    assert log(conn, "reason, context") == [("x", {"a": 1})] + [(None, None)] * 4
    check_integrity(conn)


def test_outside_a_transaction_nothing_stays(conn, pool):
    """By default a context ends with its transaction: set in one of its own, it is gone for whoever comes next."""
    client = pool()
    first, second = client(), client()
    first.execute("SELECT audit.set_context(user_id => 'ann')")
    second.execute("INSERT INTO t (id) VALUES ('1')")
    first.execute("INSERT INTO t (id) VALUES ('2')")
    assert log(conn) == [("1", None, None), ("2", None, None)]


def test_a_client_that_goes_away(conn, pool):
    client = pool()
    first = client()
    first.execute("BEGIN")
    first.execute("SELECT audit.set_context(user_id => 'ann')")
    first.execute("INSERT INTO t (id) VALUES ('1')")
    first.close()
    second = client()
    second.execute("INSERT INTO t (id) VALUES ('2')")
    assert log(conn) == [("2", None, None)]
    check_integrity(conn)


def test_values_for_the_session_stay_and_can_be_cleared(conn, pool):
    """What the documentation warns of, and the way out."""
    client = pool()
    first, second = client(), client()
    first.execute("SELECT audit.set_context(user_id => 'ann', is_local => false)")
    second.execute("INSERT INTO t (id) VALUES ('1')")
    first.execute("SELECT audit.clear_context()")
    second.execute("INSERT INTO t (id) VALUES ('2')")
    assert log(conn) == [("1", "ann", None), ("2", None, None)]


def test_session_mode_resets_between_clients(conn, pool):
    """PgBouncer's DISCARD ALL clears the context with the rest of the session."""
    client = pool(mode="session")
    first = client()
    first.execute("SELECT audit.set_context(user_id => 'ann', is_local => false)")
    first.execute("INSERT INTO t (id) VALUES ('1')")
    process = server_process(first)
    first.close()
    second = client()
    assert server_process(second) == process
    second.execute("INSERT INTO t (id) VALUES ('2')")
    assert log(conn) == [("1", "ann", None), ("2", None, None)]


def test_users_of_logins_and_tenants_of_rows(conn, pool):
    """What differs from the context for one event differs for that event alone."""
    conn.execute("SELECT audit.enable('t', tenant_column => 'tenant')")
    client = pool()
    first, second = client(), client()
    first.execute("SELECT audit.log_login('ann')")
    second.execute("SELECT audit.log_event('x')")
    first.execute("INSERT INTO t (id, tenant) VALUES ('1', 'acme')")
    second.execute("INSERT INTO t (id) VALUES ('2')")
    second.execute("SELECT audit.log_event('y')")
    assert log(conn, "action, resource_id, user_id, tenant_id") == [
        ("auth.login", None, "ann", None),
        ("x", None, None, None),
        (None, "1", None, "acme"),
        (None, "2", None, None),
        ("y", None, None, None),
    ]


def test_tenant_readers_share_a_database(conn, db, pool, role):
    """Connections are pooled by role: each reader keeps his tenant, prepared statements included."""
    conn.execute("SELECT audit.set_context(tenant_id => 'acme'), audit.log_event('acme')")
    conn.execute("SELECT audit.set_context(tenant_id => 'globex'), audit.log_event('globex')")
    names = {tenant: role() for tenant in ("acme", "globex")}
    for tenant, name in names.items():
        conn.execute("SELECT audit.grant_tenant_reader(%s, %s)", [name, tenant])
    client = pool(users=names.values())
    sessions = {tenant: [client(user=name) for _ in range(3)] for tenant, name in names.items()}
    for number in range(30):
        for tenant, own in sessions.items():
            query = "SELECT tenant_id, %s::int FROM audit.log"
            assert own[number % 3].execute(query, [number], prepare=True).fetchall() == [(tenant, number)]


@pytest.mark.parametrize("size", [1, 3])
def test_many_clients_with_prepared_statements(conn, pool, size):
    """Twelve clients at once on few server connections: each event has the author that its row names, or nobody."""
    client = pool(size)
    failures = []

    def work(name):
        choose = random.Random(name)
        try:
            session = client(application_name=name)
            session.prepare_threshold = 0
            for number in range(60):
                author = f"{name}-{number}" if choose.random() < 0.7 else None
                key = str(uuid.UUID(int=choose.getrandbits(128)))
                if author is None:
                    session.execute("INSERT INTO t (id, author) VALUES (%s, %s)", [key, author])
                    continue
                with contextlib.suppress(psycopg.errors.DivisionByZero), session.transaction():
                    session.execute("SELECT audit.set_context(user_id => %s, tenant_id => %s)", [author, name])
                    session.execute("INSERT INTO t (id, author) VALUES (%s, %s)", [key, author])
                    session.execute("UPDATE t SET n = n + %s WHERE id = %s", [number, key])
                    session.execute("SELECT audit.log_event(%s, %s, %s)", ["x.done", name, author])
                    if choose.random() < 0.2:
                        session.execute("SELECT 1 / %s", [0])
        except Exception as error:  # noqa: BLE001 (told by the test)
            failures.append(error)

    workers = [threading.Thread(target=work, args=[f"client{number}"]) for number in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    rows = conn.execute(
        "SELECT operation, coalesce(new_row ->> 'author', resource_id), user_id, tenant_id, application_name FROM audit.log"
    ).fetchall()
    authored = 0
    for operation, author, user, tenant, application in rows:
        if user is None:
            assert operation == "INSERT" and tenant is None
        else:
            assert user == author and tenant == application == author.rpartition("-")[0]
            authored += 1
    (processes,) = conn.execute("SELECT count(DISTINCT backend_pid) FROM audit.changeset").fetchone()
    assert processes == size and authored > 700 and len(rows) - authored > 150
    assert conn.execute("SELECT count(*) FROM t").fetchone()[0] == sum(operation == "INSERT" for operation, *_ in rows)
    check_integrity(conn, ask_extension=False)
