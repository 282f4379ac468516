"""Application events: audit.log_event and its kin, the catalog of actions, and the record of reads."""

import json
import subprocess

import pytest
from auditlib import check_integrity, sqlstate
from psycopg.rows import dict_row

STANDARD = """auth.login auth.logout auth.login_failed auth.password_reset_request auth.password_reset auth.password_changed
    auth.email_verified auth.token_refreshed tenant.created tenant.updated tenant.deleted tenant.activated
    tenant.deactivated tenant.subscription_changed user.created user.updated user.deleted user.activated user.deactivated
    user.role_changed user.invited branch.created branch.updated branch.deleted branch.activated branch.deactivated
    settings.updated""".split()


def log(conn, columns="action, user_id, resource, resource_id, status, details"):
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"SELECT {columns} FROM audit.log ORDER BY era, position NULLS LAST, command, seq").fetchall()


@pytest.fixture
def user(db, role):
    return db.connect(user=role())


def test_an_event_of_an_ordinary_user(conn, user):
    user.execute(
        "SELECT audit.set_context(user_id => 'ann', tenant_id => 'acme', request_id => 'r1', is_local => false)"
    )
    user.execute("SELECT audit.log_event('order.approved', 'order', '42', '{\"amount\": 1.50, \"by\": [1, null]}')")
    columns = (
        "action, operation, resource, resource_id, status, details::text AS details, user_id, tenant_id, request_id,"
        " session_role, effective_role, old_row, new_row, changed_columns"
    )
    assert log(conn, columns) == [
        {
            "action": "order.approved",
            "operation": "APPLICATION",
            "resource": "order",
            "resource_id": "42",
            "status": "success",
            "details": '{"by": [1, null], "amount": 1.50}',
            "user_id": "ann",
            "tenant_id": "acme",
            "request_id": "r1",
            "session_role": user.info.user,
            "effective_role": user.info.user,
            "old_row": None,
            "new_row": None,
            "changed_columns": None,
        }
    ]
    assert conn.execute("SELECT origin::text FROM audit.changeset").fetchall() == [("application",)]
    check_integrity(conn)


def test_visible_to_the_next_statement_and_gone_with_a_rollback(conn):
    conn.execute("BEGIN; SELECT audit.log_event('a'); SAVEPOINT s; SELECT audit.log_event('b')")
    assert [row["action"] for row in log(conn)] == ["a", "b"]
    conn.execute("ROLLBACK TO s; SELECT audit.log_event('c')")
    assert [row["action"] for row in log(conn)] == ["a", "c"]
    conn.execute("COMMIT; BEGIN; SELECT audit.log_event('d'); ROLLBACK")
    assert [row["action"] for row in log(conn)] == ["a", "c"]
    with sqlstate("22012"):
        conn.execute("SELECT audit.log_event('e'), 1 / 0 FROM pg_class")
    conn.execute("DO $$ BEGIN PERFORM audit.log_event('f'); RAISE 'x'; EXCEPTION WHEN OTHERS THEN PERFORM"
                 " audit.log_event('g'); END $$")  # fmt: skip
    assert [row["action"] for row in log(conn)] == ["a", "c", "g"]
    check_integrity(conn)


def test_one_sequence_with_the_changes_of_rows(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t')")
    conn.execute(
        "BEGIN; INSERT INTO t VALUES (1); SELECT audit.log_event('order.created', resource_id => '1');"
        " INSERT INTO t SELECT generate_series(2, 3); SELECT audit.log_event('order.closed'); COMMIT"
    )
    rows = conn.execute("SELECT operation, seq FROM audit.log ORDER BY seq").fetchall()
    assert rows == [("INSERT", 0), ("APPLICATION", 1), ("INSERT", 2), ("INSERT", 3), ("APPLICATION", 4)]
    assert conn.execute("SELECT origin::text, event_count FROM audit.changeset ORDER BY 1").fetchall() == [
        ("application", 2),
        ("trigger", 3),
    ]
    check_integrity(conn)


def test_prepared_transaction(conn):
    conn.execute("BEGIN; SELECT audit.log_event('a'); PREPARE TRANSACTION 'p'")
    assert log(conn) == []
    conn.execute("COMMIT PREPARED 'p'")
    assert [row["action"] for row in log(conn)] == ["a"]
    check_integrity(conn)


@pytest.mark.parametrize(
    "arguments, code",
    [
        ("NULL", "22004"),
        ("''", "22023"),
        ("' a'", "22023"),
        ("E'a\\nb'", "22023"),
        ("repeat('a', 129)", "22023"),
        ("'audit.read'", "42939"),
        ("'audit.anything'", "42939"),
        ("'a', repeat('r', 1025)", "22023"),
        ("'a', NULL, repeat('r', 1025)", "22023"),
        ("'a', details => '[1]'", "22023"),
        ("'a', details => '\"x\"'", "22023"),
        ("'a', details => 'null'", "22023"),
        ("'a', details => jsonb_build_object('x', repeat('x', 1048576))", "22023"),
        ("'a', status => 'fine'", "22023"),
        ("'a', status => NULL", "22004"),
        ("'a', isolated => true", "55000"),
    ],
)
def test_refused(conn, user, arguments, code):
    with sqlstate(code) as caught:
        user.execute(f"SELECT audit.log_event({arguments})")
    assert code == "22004" or caught.error.diag.message_hint
    assert log(conn) == []


def test_limits_are_reached(conn, user):
    user.execute(
        "SELECT audit.log_event(repeat('a', 128), repeat('r', 1024), repeat('i', 1024),"
        " jsonb_build_object('x', repeat('x', 1000000)), 'error', false)"
    )
    (row,) = log(conn)
    assert (len(row["action"]), len(row["resource"]), len(row["resource_id"]), len(row["details"]["x"])) == (
        128,
        1024,
        1024,
        1000000,
    )
    assert row["status"] == "error"
    check_integrity(conn)


def test_empty_is_absent(conn):
    conn.execute("SELECT audit.log_event('a', '', '', '{}')")
    assert log(conn) == [
        {"action": "a", "user_id": None, "resource": None, "resource_id": None, "status": "success", "details": {}}
    ]


@pytest.mark.parametrize("action", ["Größe.geändert", 'quote"\\', "a b", "АБВ", "x" * 128])
def test_names_of_actions(conn, action):
    conn.execute("SELECT audit.log_event(%s)", [action])
    assert [row["action"] for row in log(conn)] == [action]
    check_integrity(conn)


# --- accounts -------------------------------------------------------------------------------------------------------


def test_logins_are_found_under_the_user(conn, user):
    user.execute(
        "SELECT audit.log_login('ann'); SELECT audit.log_login_failed('bob', 'wrong password', '{\"attempt\": 3}');"
        " SELECT audit.log_login_failed(NULL, 'no such user'); SELECT audit.log_logout('ann', '{\"idle\": true}')"
    )
    assert [(r["action"], r["user_id"], r["status"], r["details"]) for r in log(conn)] == [
        ("auth.login", "ann", "success", None),
        ("auth.login_failed", "bob", "failure", {"reason": "wrong password", "attempt": 3}),
        ("auth.login_failed", None, "failure", {"reason": "no such user"}),
        ("auth.logout", "ann", "success", {"idle": True}),
    ]
    check_integrity(conn)


def test_the_user_given_counts_and_the_contexts_is_kept(conn):
    conn.execute("SELECT audit.set_context(user_id => 'gateway', tenant_id => 'acme', is_local => false)")
    conn.execute("SELECT audit.log_login('ann'); SELECT audit.log_login(); SELECT audit.log_logout('gateway')")
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t')")
    conn.execute("BEGIN; SELECT audit.log_login('ann'); INSERT INTO t VALUES (1); COMMIT")
    rows = log(conn, "operation, user_id, tenant_id, details")
    assert [tuple(row.values()) for row in rows] == [
        ("APPLICATION", "ann", "acme", {"context_user_id": "gateway"}),
        ("APPLICATION", "gateway", "acme", None),
        ("APPLICATION", "gateway", "acme", None),
        ("APPLICATION", "ann", "acme", {"context_user_id": "gateway"}),
        ("INSERT", "gateway", "acme", None),
    ]
    check_integrity(conn)


def test_many_users_in_one_transaction(conn):
    """Each has one changeset, however often he comes, and whatever the context becomes meanwhile."""
    conn.execute("""DO $$ BEGIN
        FOR i IN 1..3000 LOOP
            PERFORM audit.log_login_failed('user' || i % 300, 'x');
            IF i % 500 = 0 THEN PERFORM audit.set_context(request_id => 'r' || i); END IF;
        END LOOP; END $$""")
    assert conn.execute("SELECT count(*), sum(event_count), count(DISTINCT user_id) FROM audit.changeset").fetchone() == (
        3000 // 500 * 300,
        3000,
        300,
    )
    check_integrity(conn)


def test_nobody_logs_in(conn, user):
    for call in ("audit.log_login()", "audit.log_login('')", "audit.log_logout(NULL, '{}')"):
        with sqlstate("22004"):
            user.execute(f"SELECT {call}")
    for call in ("audit.log_login(repeat('u', 8193))", "audit.log_login('u', '[]')"):
        with sqlstate("22023"):
            user.execute(f"SELECT {call}")
    assert log(conn) == []


# --- the catalog ----------------------------------------------------------------------------------------------------


def test_standard_actions(conn):
    names = {name for (name,) in conn.execute("SELECT name FROM audit.action WHERE is_standard").fetchall()}
    ours = {name for name in names if name.startswith("audit.")}
    assert names - ours == {*STANDARD} and {"audit.capture_suspended", "audit.read", "audit.disabled"} <= ours
    for name in STANDARD:
        conn.execute("SELECT audit.log_event(%s)", [name])
    assert conn.execute("SELECT * FROM audit.uncatalogued_actions()").fetchall() == []


def test_uncatalogued_actions(conn):
    conn.execute("SELECT audit.log_event('b'), audit.log_event('a'), audit.log_event('b'), audit.log_event('user.created')")
    conn.execute("INSERT INTO audit.action (name, category) VALUES ('known', 'mine'); SELECT audit.log_event('known')")
    query = "SELECT action, events, first_at = last_at FROM audit.uncatalogued_actions({})"
    assert conn.execute(query.format("")).fetchall() == [("b", 2, True), ("a", 1, True)]
    assert conn.execute(query.format("since => NULL")).fetchall() == [("b", 2, True), ("a", 1, True)]
    assert conn.execute(query.format("clock_timestamp()")).fetchall() == []


def test_strict_actions(conn, db, user):
    conn.execute(
        "INSERT INTO audit.action (name, category) VALUES ('order.approved', 'order');"
        f" ALTER DATABASE {db.name} SET audit.strict_actions = on"
    )
    with sqlstate("42501"):
        user.execute("LOAD 'audit_ext'; SET audit.strict_actions = off")
    with db.connect(user=user.info.user) as session:
        session.execute("SELECT audit.log_event('order.approved'), audit.log_event('auth.login'), audit.log_login('ann')")
        for name in ("order.rejected", "Order.Approved", "order.approve", "order.approved.x"):
            with sqlstate("22023"):
                session.execute("SELECT audit.log_event(%s)", [name])
    # What is added counts at once, in sessions that are there too.
    with db.connect() as strict:
        with sqlstate("22023"):
            strict.execute("SELECT audit.log_event('order.rejected')")
        strict.execute("BEGIN; INSERT INTO audit.action VALUES ('order.rejected', 'order')")
        strict.execute("SELECT audit.log_event('order.rejected'); COMMIT")
        conn.execute("DELETE FROM audit.action WHERE name = 'order.rejected'")
        with sqlstate("22023"):
            strict.execute("SELECT audit.log_event('order.rejected')")
    assert [row["action"] for row in log(conn)] == ["order.approved", "auth.login", "auth.login", "order.rejected"]


def test_the_catalog_is_kept(conn, db, role):
    name = role()
    conn.execute(f"SELECT audit.grant_admin('{name}')")
    with db.connect(user=name) as admin:
        admin.execute(
            "INSERT INTO audit.action VALUES ('a', 'mine', false), ('b', 'mine', true);"
            " UPDATE audit.action SET is_security = true WHERE name = 'a'; DELETE FROM audit.action WHERE name = 'b'"
        )
        for statement in (
            "UPDATE audit.action SET is_security = false WHERE name = 'auth.login'",
            "UPDATE audit.action SET is_standard = true, description = 'x' WHERE name = 'a'",
            "DELETE FROM audit.action WHERE name = 'auth.login'",
            "INSERT INTO audit.action VALUES ('c', 'mine', true, true, 'x')",
        ):
            with sqlstate("55000"):
                admin.execute(statement)
        for name, code in (("auth.login", "23505"), ("", "23514"), (" x", "23514"), ("x" * 129, "23514")):
            with sqlstate(code):
                admin.execute("INSERT INTO audit.action VALUES (%s, 'mine')", [name])
    assert conn.execute("SELECT name, is_security FROM audit.action WHERE NOT is_standard").fetchall() == [("a", True)]


def test_a_dump_carries_ones_own_actions(conn, db, new_db):
    conn.execute("INSERT INTO audit.action VALUES ('mine', 'x', true, false, 'of mine')")
    other = new_db(extension=False)
    dump = subprocess.run(
        [db.cluster.bin("pg_dump"), "-d", db.name], env=db.cluster.env, capture_output=True, text=True, check=True
    ).stdout
    other.psql(dump)
    rows = "SELECT name, category, is_security, is_standard, description FROM audit.action ORDER BY name"
    with other.connect() as restored:
        assert restored.execute(rows).fetchall() == conn.execute(rows).fetchall()


# --- settings -------------------------------------------------------------------------------------------------------


def test_switched_off(conn):
    """With audit.enabled off nothing is recorded, and the next record says so."""
    conn.execute("SET audit.enabled = off; SELECT audit.log_event('a'); SELECT audit.log_login('ann')")
    assert log(conn) == []
    conn.execute("SET audit.enabled = on; SELECT audit.log_event('b')")
    first, second = log(conn)
    assert (first["action"], first["details"]["changes"], first["details"]["tables"]) == (
        "audit.capture_suspended",
        2,
        [],
    )
    assert second["action"] == "b"
    check_integrity(conn)


def test_reads_are_recorded_if_asked_for(conn, db, role):
    name = role()
    conn.execute(f"SELECT audit.grant_reader('{name}')")
    arguments = json.dumps({"user_id": "ann", "since": "2026-01-01"})
    with db.connect(user=name) as reader:
        reader.execute("SELECT audit.note_read('get_logs', %s)", [arguments])
        with sqlstate("42501"):
            reader.execute("SET audit.log_reads = on")
    assert log(conn) == []
    conn.execute(f"ALTER ROLE {name} SET audit.log_reads = on")
    with db.connect(user=name) as reader:
        reader.execute("SELECT audit.note_read('get_logs', %s)", [arguments])
        reader.execute("BEGIN READ ONLY; SELECT audit.note_read('count_logs', NULL)")
        assert reader.execute("SELECT count(*) FROM audit.log").fetchone() == (2,)
        reader.execute("COMMIT")
    assert log(conn, "action, operation, resource, details, session_role") == [
        {
            "action": "audit.read",
            "operation": "APPLICATION",
            "resource": f"audit.{function}",
            "details": {"arguments": json.loads(given)},
            "session_role": name,
        }
        for function, given in (("get_logs", arguments), ("count_logs", "{}"))
    ]
    check_integrity(conn)


def test_reads_are_not_for_everybody_to_record(user):
    with sqlstate("42501"):
        user.execute("SELECT audit.note_read('get_logs', NULL)")


def test_on_a_standby(new_cluster):
    """Where nothing can be written an event is refused, and so is a read that is to be recorded."""
    cluster = new_cluster()
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext; SELECT audit.log_event('before')")
    cluster.stop()
    (cluster.data_dir / "standby.signal").touch()
    cluster.start()
    with cluster.connect() as conn:
        assert conn.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        for call in ("log_event('x')", "log_login('ann')"):
            with sqlstate("25006") as caught:
                conn.execute(f"SELECT audit.{call}")
            assert caught.error.diag.message_hint
        conn.execute("SELECT audit.note_read('get_logs', NULL)")
        with sqlstate("25006"):
            conn.execute("SET audit.log_reads = on; SELECT audit.note_read('get_logs', NULL)")
        assert conn.execute("SELECT action FROM audit.log").fetchall() == [("before",)]
