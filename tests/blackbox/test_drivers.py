"""psql and the drivers that applications use: prepared statements, their types, transactions; directly, and through PgBouncer in
transaction mode. What each client does and prints is described in tests/drivers/README.md."""

import json
import os
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest
from auditlib import check_integrity
from cluster import build_folder
from pooler import Pooler
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

DRIVERS = Path(__file__).resolve().parents[1] / "drivers"
TABLE = """CREATE TABLE account (key text PRIMARY KEY, owner text, balance numeric, meta jsonb);
           SELECT audit.enable('account')"""


@pytest.fixture
def conn(conn):
    conn.execute(TABLE)
    return conn


@pytest.fixture(params=["direct", "pooled"])
def env(request, db):
    """Environment of a client, and how many server processes there may be."""
    own = {"PGDATABASE": db.name}
    if request.param == "direct":
        yield {**db.cluster.env, **own}, None
    else:
        with Pooler(db.cluster, server_connections=2) as pooler:
            yield {**pooler.env, **own}, 2


# --- the clients ----------------------------------------------------------------------------------------------------


def psycopg_client(name, env):
    own = {"host": env["PGHOST"], "port": env["PGPORT"], "user": env["PGUSER"], "dbname": env["PGDATABASE"]}
    with psycopg.connect(**own, application_name=name, autocommit=True, row_factory=dict_row) as session:
        session.prepare_threshold = 0

        def set_context(user):
            context = Jsonb({"client": name, "nested": ["ä", None, 1.5]})
            session.execute(
                "SELECT audit.set_context(user_id => %s, tenant_id => %s, request_id => %s, ip_address => %s, context => %s)",
                [user, f"{name}-tenant", None, "203.0.113.7", context],
            )

        def insert(key, owner):
            session.execute(
                "INSERT INTO account (key, owner, balance, meta) VALUES (%s, %s, %s, %s)",
                [key, owner, "10.50", Jsonb({"of": owner})],
            )

        for i in range(1, 9):
            with session.transaction():
                set_context(f"{name}-user-{i}")
                insert(f"{name}-{i}", f"{name}-user-{i}")
                session.execute("UPDATE account SET balance = balance + %s WHERE key = %s", [i, f"{name}-{i}"])
        duplicate = None
        try:
            with session.transaction():
                set_context(f"{name}-ghost")
                insert(f"{name}-1", f"{name}-ghost")
        except psycopg.errors.UniqueViolation as error:
            duplicate = error.sqlstate
        insert(f"{name}-alone", None)
        with session.transaction():
            set_context(f"{name}-user-9")
            session.execute(
                "SELECT audit.log_event(%s, %s, %s, %s)", ["order.approved", "order", f"{name}-9", Jsonb({"amount": 100.25})]
            )
            session.execute("SELECT audit.log_login_failed(%s, %s)", [f"{name}-otto", "wrong password"])
        events = session.execute(
            """SELECT operation, action, resource_id, user_id, tenant_id, host(ip_address) AS ip_address, context, status, details,
                      changed_columns, new_row ->> 'balance' AS balance, new_row ->> 'owner' AS owner
                 FROM audit.log WHERE application_name = %s ORDER BY era, position, command, seq""",
            [name],
            binary=True,
        ).fetchall()
        return {"duplicate": duplicate, "events": events}


def run(command, env, name):
    done = subprocess.run([*command, name], env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def node_client(name, env):
    modules = build_folder() / "node" / "node_modules"
    assert modules.exists(), f"no {modules}: scripts/drivers gets it"
    return run(["node", DRIVERS / "node" / "client.js"], {**env, "NODE_PATH": str(modules)}, name)


def sqlx_client(name, env):
    target = build_folder() / "target" / "sqlx"
    manifest = DRIVERS / "sqlx" / "Cargo.toml"
    build = {**os.environ, "CARGO_TARGET_DIR": str(target), "RUSTFLAGS": ""}
    done = subprocess.run(
        ["cargo", "build", "--quiet", "--locked", "--manifest-path", manifest], env=build, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return run([target / "debug" / "audit-ext-sqlx-client"], env, name)


def check(name, printed):
    assert printed["duplicate"] == "23505"
    context = {"client": name, "nested": ["ä", None, 1.5]}
    who = {"tenant_id": f"{name}-tenant", "ip_address": "203.0.113.7", "context": context, "status": "success"}
    row = {"action": None, "details": None}
    expected = []
    for i in range(1, 9):
        user = f"{name}-user-{i}"
        own = {**who, **row, "resource_id": f"{name}-{i}", "user_id": user, "owner": user}
        expected.append({**own, "operation": "INSERT", "changed_columns": None, "balance": "10.50"})
        expected.append({**own, "operation": "UPDATE", "changed_columns": ["balance"], "balance": f"{10 + i}.50"})
    expected.append({**row, "operation": "INSERT", "resource_id": f"{name}-alone", "user_id": None, "tenant_id": None,
                     "ip_address": None, "context": None, "status": "success", "changed_columns": None, "balance": "10.50",
                     "owner": None})  # fmt: skip
    event = {**who, "operation": "APPLICATION", "changed_columns": None, "balance": None, "owner": None}
    expected.append({**event, "action": "order.approved", "resource_id": f"{name}-9", "user_id": f"{name}-user-9",
                     "details": {"amount": 100.25}})  # fmt: skip
    expected.append({**event, "action": "auth.login_failed", "resource_id": None, "user_id": f"{name}-otto", "status": "failure",
                     "details": {"reason": "wrong password", "context_user_id": f"{name}-user-9"}})  # fmt: skip
    assert printed["events"] == expected


def all_at_once(clients, env):
    printed, failures = {}, []

    def work(name, client):
        try:
            printed[name] = client(name, env)
        except Exception as error:  # noqa: BLE001 (told by the test)
            failures.append((name, error))

    threads = [threading.Thread(target=work, args=item) for item in clients.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for name in clients:
        check(name, printed[name])


def test_psycopg_and_node_postgres(conn, env):
    env, processes = env
    for name, client in (("psycopg", psycopg_client), ("node", node_client)):
        check(name, client(name, env))
    all_at_once({f"{kind}{i}": client for kind, client in (("py", psycopg_client), ("js", node_client)) for i in range(3)}, env)
    if processes:
        assert conn.execute("SELECT count(DISTINCT backend_pid) <= %s FROM audit.changeset", [processes]).fetchone() == (True,)
    check_integrity(conn)


@pytest.mark.long
def test_sqlx(conn, env):
    env, _ = env
    check("sqlx", sqlx_client("sqlx", env))
    all_at_once({"sqlx1": sqlx_client, "sqlx2": sqlx_client, "py": psycopg_client, "js": node_client}, env)
    check_integrity(conn)


# --- psycopg, beyond what all clients do --------------------------------------------------------------------------


def test_psycopg_pipeline_copy_and_server_cursors(conn, db):
    with db.connect(autocommit=False) as session:
        with session.pipeline():
            session.execute("SELECT audit.set_context(user_id => %s)", ["ann"])
            session.execute("INSERT INTO account (key) VALUES (%s)", ["1"])
            session.execute("SELECT audit.log_event(%s)", ["x"])
        session.cursor().executemany("INSERT INTO account (key, balance) VALUES (%s, %s)", [("2", 1), ("3", 2), ("4", None)])
        with session.cursor().copy("COPY account (key, meta) FROM STDIN") as copy:
            for key in ("5", "6"):
                copy.write_row([key, Jsonb({"n": key})])
        with session.cursor("server_side") as cursor:
            cursor.itersize = 2
            cursor.execute("SELECT resource_id, user_id, action FROM audit.log ORDER BY seq")
            assert cursor.fetchall() == [
                ("1", "ann", None),
                (None, "ann", "x"),
                *((key, "ann", None) for key in ("2", "3", "4", "5", "6")),
            ]
    check_integrity(conn)


def test_psycopg_types(conn):
    conn.execute("BEGIN; SELECT audit.set_context(user_id => 'ann', ip_address => '2001:db8::1', context => '{\"a\": [1]}')")
    conn.execute("INSERT INTO account VALUES ('1', 'o', 1.50, '{\"b\": null}'); UPDATE account SET balance = 2; COMMIT")
    for binary in (False, True):
        row = conn.cursor(binary=binary, row_factory=dict_row).execute("SELECT * FROM audit.log ORDER BY seq DESC LIMIT 1").fetchone()
        assert (str(row["ip_address"]), row["context"], row["changed_columns"]) == ("2001:db8::1", {"a": [1]}, ["balance"])
        assert row["new_row"] == {"key": "1", "owner": "o", "balance": 2, "meta": {"b": None}}
        assert row["occurred_at"].tzinfo is not None and row["changeset_id"].version == 7 and len(row["checksum"]) == 32


# --- psql -----------------------------------------------------------------------------------------------------------


def test_psql(conn, db):
    script = r"""
        \set user 'o''brien "x"'
        BEGIN;
        SELECT audit.set_context(user_id => :'user', reason => :'reason') \g /dev/null
        INSERT INTO account (key) VALUES ('1');
        SELECT changeset_id, seq FROM audit.log \gset
        COMMIT;
        SELECT audit.verify_event(:'changeset_id', :seq);
        \set ON_ERROR_STOP off
        SELECT audit.log_event('audit.forged');
        \echo :SQLSTATE
        \set ON_ERROR_STOP on
        SELECT operation || ' by ' || user_id || ' for ' || reason FROM audit.log;
        \copy account (key) FROM PROGRAM 'printf "2\\n3\\n"'
        SELECT string_agg(resource_id || coalesce(user_id, '-'), ',' ORDER BY seq) FROM audit.log WHERE resource_id > '1';
    """
    done = subprocess.run(
        [db.cluster.bin("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-v", "reason=a ticket", "-d", db.name, "-f", "-"],
        input=script,
        env={**os.environ, **db.cluster.env, "PGOPTIONS": "-c audit.tenant_id=acme"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == ["t", "42939", "INSERT by o'brien \"x\" for a ticket", "2-,3-"]
    assert conn.execute("SELECT DISTINCT tenant_id FROM audit.log").fetchall() == [("acme",)]
