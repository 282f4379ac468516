"""Settings made before the library is loaded, when PostgreSQL knows them as placeholders only: they obey the same
rights and checks as later ones.

The library is loaded by a session's first audited write. Until then `SET audit.enabled = off` is accepted from anybody,
since nothing knows the name; it must have no effect. The same holds for values that a check would refuse.
"""

import json
import time

import psycopg
import pytest
from auditlib import check_integrity, sqlstate
from psycopg import sql

INSUFFICIENT_PRIVILEGE = "42501"
INVALID_PARAMETER_VALUE = "22023"


@pytest.fixture
def user(conn, db, role):
    name = role()
    conn.execute(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, deleted bool); SELECT"
        " audit.enable('t', soft_delete_column => 'deleted')"
    )
    conn.execute(
        f"GRANT ALL ON t TO {name}; GRANT CREATE ON SCHEMA public TO {name}; ALTER DATABASE {db.name} OWNER TO {name}"
    )
    yield name
    conn.rollback()
    conn.execute(f"ALTER DATABASE {db.name} OWNER TO CURRENT_USER")


def last_event(conn):
    cursor = conn.execute(
        """SELECT e.row_image, e.details, c.user_id, host(c.ip_address) AS ip_address, c.context, c.reason, c.tenant_id,
                                      c.statement
                               FROM audit.event e JOIN audit.changeset c ON c.id = e.changeset_id
                              ORDER BY c.era, c.position DESC, e.seq DESC LIMIT 1"""
    )
    row = cursor.fetchone()
    return row and dict(zip((column.name for column in cursor.description), row))


# --- ways for an ordinary user ------------------------------------------------------------------------------------


def quoted(value):
    return sql.Literal(value).as_string(None)


def by_options(db, user, name, value):
    escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
    return db.connect(user=user, options=f"-c {name}={escaped}")


def by_set(db, user, name, value):
    session = db.connect(user=user)
    session.execute(f"SET {name} = {quoted(value)}")
    return session


def by_set_in_capitals(db, user, name, value):
    return by_set(db, user, name.upper(), value)


def by_set_config(db, user, name, value):
    session = db.connect(user=user)
    session.execute("SELECT set_config(%s, %s, false)", [name, value])
    return session


def by_set_local(db, user, name, value):
    session = db.connect(user=user)
    session.execute(f"BEGIN; SET LOCAL {name} = {quoted(value)}")
    return session


def by_set_in_savepoints(db, user, name, value):
    session = db.connect(user=user)
    session.execute(
        f"BEGIN; SET LOCAL {name} = {quoted(value)}; SAVEPOINT a; RESET {name}; SAVEPOINT b; SET LOCAL {name} ="
        f" {quoted(value)}; RELEASE b; ROLLBACK TO a"
    )
    return session


def by_role(db, user, name, value):
    with db.connect(user=user) as session:
        session.execute(f"ALTER ROLE CURRENT_USER SET {name} = {quoted(value)}")
    return db.connect(user=user)


def by_role_in_database(db, user, name, value):
    with db.connect(user=user) as session:
        session.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {db.name} SET {name} = {quoted(value)}")
    return db.connect(user=user)


def by_database(db, user, name, value):
    with db.connect(user=user) as session:
        session.execute(f"ALTER DATABASE {db.name} SET {name} = {quoted(value)}")
    return db.connect(user=user)


def by_set_and_load(db, user, name, value):
    """The setting stands while a call of another function loads the library."""
    session = by_set(db, user, name, value)
    session.execute("SELECT audit.client_ip(NULL, NULL, NULL)")
    return session


def by_function(db, user, name, value):
    session = db.connect(user=user)
    session.execute(
        f"CREATE OR REPLACE FUNCTION public.with_setting(text) RETURNS void LANGUAGE plpgsql SET {name} = {quoted(value)} AS $$"
        " BEGIN EXECUTE $1; END $$"
    )
    return session


WAYS = [
    by_options,
    by_set,
    by_set_in_capitals,
    by_set_config,
    by_set_local,
    by_set_in_savepoints,
    by_role,
    by_role_in_database,
    by_database,
    by_set_and_load,
    by_function,
]


def write(session, way, statement):
    if way is by_function:
        session.execute("SELECT public.with_setting(%s)", [statement])
    else:
        session.execute(statement)


# Setting, a value that would lessen what is recorded, the default.
WEAKENED = [
    ("audit.enabled", "off", "on"),
    ("audit.log_soft_deletes", "off", "on"),
    ("audit.max_value_bytes", "1", "0"),
    ("audit.log_statement", "on", "off"),
]


@pytest.mark.parametrize("way", WAYS)
def test_ordinary_user_cannot_change_what_is_recorded(conn, db, user, way):
    for name, value, default in WEAKENED:
        attempt_to_weaken(conn, db, user, way, name, value, default)
    check_integrity(conn)


def attempt_to_weaken(conn, db, user, way, name, value, default):
    (before,) = conn.execute("SELECT count(*) FROM audit.event").fetchone()
    try:
        session = way(db, user, name, value)
    except psycopg.Error as error:
        assert error.sqlstate == INSUFFICIENT_PRIVILEGE
        session = db.connect(user=user)
        way = None
    write(session, way, f"INSERT INTO t (v) VALUES ('{name}')")
    write(session, way, f"UPDATE t SET deleted = true WHERE v = '{name}'")
    session.execute("COMMIT")
    assert session.execute(f"SHOW {name}").fetchone() == (default,)
    event = last_event(conn)
    assert (event["row_image"]["v"], event["row_image"]["deleted"]) == (name, True)
    assert event["details"] == {"soft_delete": True}
    assert event["statement"] is None
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone() == (before + 2,)
    # Now that the library is loaded, each attempt is refused.
    for attempt in (
        f"SET {name} = {quoted(value)}",
        f"SELECT set_config('{name}', {quoted(value)}, true)",
        f"UPDATE pg_settings SET setting = {quoted(value)} WHERE name = '{name}'",
        f"ALTER ROLE CURRENT_USER SET {name} = {quoted(value)}",
        f"ALTER DATABASE {db.name} SET {name} = {quoted(value)}",
        f"ALTER SYSTEM SET {name} = {quoted(value)}",
        f"CREATE FUNCTION public.f() RETURNS int LANGUAGE sql SET {name} = {quoted(value)} AS 'SELECT 1'",
    ):
        with sqlstate(INSUFFICIENT_PRIVILEGE):
            session.execute(attempt)
        session.rollback()
    session.execute("RESET ALL")
    session.execute("DISCARD ALL")
    session.execute("INSERT INTO t (v) VALUES ('b')")
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone() == (before + 3,)
    session.close()


MALFORMED = [
    ("audit.ip_address", "nowhere"),
    ("audit.ip_address", "192.0.2.1, 192.0.2.2"),
    ("audit.context", "[1]"),
    ("audit.context", '{"a": '),
    ("audit.context", '{"a": "\\u0000"}'),
    ("audit.context", '{"a": 1} x'),
    ("audit.user_id", "x" * 8193),
    ("audit.reason", "ü" * 4097),
    ("audit.context", json.dumps({"a": "x" * 65600})),
]


@pytest.mark.parametrize("way", WAYS)
def test_malformed_context_is_not_smuggled_in(conn, db, user, way):
    for name, value in MALFORMED:
        # A connection's first message is limited to 10,000 bytes.
        if not (way is by_options and len(value.encode()) > 9000):
            attempt_to_smuggle(conn, db, user, way, name, value)
    check_integrity(conn)


def attempt_to_smuggle(conn, db, user, way, name, value):
    stored = {
        by_role: f"ROLE {user}",
        by_role_in_database: f"ROLE {user} IN DATABASE {db.name}",
        by_database: f"DATABASE {db.name}",
    }.get(way)
    if stored:
        # An ordinary user may not store a placeholder. A superuser may, and the check comes when the library is loaded.
        with db.connect() as superuser:
            superuser.execute(f"ALTER {stored} SET {name} = {quoted(value)}")
        session = db.connect(user=user)
    else:
        try:
            session = way(db, user, name, value)
        except psycopg.Error as error:
            assert error.sqlstate in (INSUFFICIENT_PRIVILEGE, INVALID_PARAMETER_VALUE)
            session, way = db.connect(user=user), None
    session.execute("SELECT set_config('audit.tenant_id', 'acme', false)")
    try:
        write(session, way, "INSERT INTO t (v) VALUES ('a')")
    except psycopg.Error as error:
        # Refused at the call, since a function's setting is made again at each.
        assert way is by_function and error.sqlstate == INVALID_PARAMETER_VALUE
        session.execute("INSERT INTO t (v) VALUES ('a')")
    session.execute("COMMIT")
    event = last_event(conn)
    assert event["row_image"]["v"] == "a"
    assert event["tenant_id"] == "acme"
    assert (event["user_id"], event["ip_address"], event["context"], event["reason"]) == (None, None, None, None)
    assert session.execute(f"SHOW {name}").fetchone() == ("",)
    with sqlstate(INVALID_PARAMETER_VALUE):
        session.execute(f"SET {name} = {quoted(value)}")
    for target in ("ROLE CURRENT_USER", f"DATABASE {db.name}"):
        with sqlstate(INVALID_PARAMETER_VALUE):
            session.execute(f"ALTER {target} SET {name} = {quoted(value)}")
    session.close()
    if stored:
        conn.execute(f"ALTER {stored} RESET {name}")


@pytest.mark.parametrize("way", [way for way in WAYS if way is not by_set_in_savepoints])
def test_good_context_is_taken_over(conn, db, user, way):
    """A user's own settings of the context are his to make, before the library is loaded as after."""
    if way in (by_role, by_role_in_database, by_database):
        with db.connect(user=user) as session:
            session.execute("SELECT audit.client_ip(NULL, NULL, NULL)")  # with the library, the names are known
            target = {
                by_role: "ROLE CURRENT_USER",
                by_role_in_database: f"ROLE CURRENT_USER IN DATABASE {db.name}",
                by_database: f"DATABASE {db.name}",
            }[way]
            session.execute(f"ALTER {target} SET audit.user_id = 'ann'")
        session = db.connect(user=user)
    else:
        try:
            session = way(db, user, "audit.user_id", "ann")
        except psycopg.Error as error:
            # PostgreSQL lets nobody but a superuser store a name that it does not know.
            assert way is by_function and error.sqlstate == INSUFFICIENT_PRIVILEGE
            return
    write(session, way, "INSERT INTO t (v) VALUES ('a')")
    session.execute("COMMIT")
    assert last_event(conn)["user_id"] == "ann"


def test_values_stacked_before_the_library_was_loaded(conn, db, user):
    session = db.connect(user=user)
    session.execute("SET audit.user_id = 'session'; SET audit.context = '[1]'; SET audit.reason = 'r'")
    session.execute(
        "BEGIN; SET LOCAL audit.user_id = 'transaction'; SET LOCAL audit.context = '{\"a\": 1}'; SAVEPOINT s; SET LOCAL"
        " audit.user_id = 'savepoint';INSERT INTO t (v) VALUES ('1'); ROLLBACK TO s; INSERT INTO t (v) VALUES ('2');"
        " COMMIT"
    )
    assert (last_event(conn)["user_id"], last_event(conn)["context"], last_event(conn)["reason"]) == (
        "transaction",
        {"a": 1},
        "r",
    )
    session.execute("INSERT INTO t (v) VALUES ('3')")
    assert (last_event(conn)["user_id"], last_event(conn)["context"], last_event(conn)["reason"]) == (
        "session",
        None,
        "r",
    )


def test_enabled_stacked_before_the_library_was_loaded(conn, db, user):
    session = db.connect(user=user)
    session.execute(
        "SET audit.enabled = off; BEGIN; SET LOCAL audit.enabled = on; SAVEPOINT s; SET LOCAL audit.enabled = off;"
        " INSERT INTO t (v) VALUES ('1');RELEASE s; INSERT INTO t (v) VALUES ('2'); COMMIT"
    )
    session.execute("INSERT INTO t (v) VALUES ('3')")
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone() == (3,)


def test_required_context_is_not_met_by_a_malformed_one(conn, db, user):
    conn.execute("SELECT audit.enable('t', require_context => '{ip_address}')")
    session = db.connect(user=user)
    session.execute("SET audit.ip_address = 'nowhere'")
    with sqlstate("55000"):
        session.execute("INSERT INTO t (v) VALUES ('1')")


def test_unknown_names_are_refused_once_the_library_is_loaded(conn, db, user):
    session = db.connect(user=user)
    session.execute("SET audit.enabld = off; INSERT INTO t (v) VALUES ('1')")
    with sqlstate("42602"):
        session.execute("SET audit.enabld = off")


# --- superusers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ROLE {user}", "DATABASE {db}", "ROLE {user} IN DATABASE {db}"])
def test_superuser_switches_off_for_a_role_or_a_database(conn, db, user, target):
    """What a superuser has stored holds, before the library is loaded as after; he alone can."""
    target = target.format(user=user, db=db.name)
    before = db.connect(user=user)
    with db.connect() as superuser:
        superuser.execute(f"ALTER {target} SET audit.enabled = off; ALTER {target} SET audit.log_statement = on")
    db.connect(user=user).execute("INSERT INTO t (v) VALUES ('1')")
    assert last_event(conn) is None
    before.execute("INSERT INTO t (v) VALUES ('2')")
    assert last_event(conn)["row_image"]["v"] == "2"
    conn.execute(f"ALTER {target} RESET audit.enabled")
    db.connect(user=user).execute("INSERT INTO t (v) VALUES ('3')")
    assert (last_event(conn)["row_image"]["v"], last_event(conn)["statement"]) == (
        "3",
        "INSERT INTO t (v) VALUES ('3')",
    )


def test_granted_parameter(conn, db, user):
    """GRANT SET ON PARAMETER is how a superuser hands the right on; the pause is recorded like his own."""
    conn.execute("SELECT audit.client_ip(NULL, NULL, NULL)")
    conn.execute(f"GRANT SET ON PARAMETER audit.enabled TO {user}")
    try:
        session = db.connect(user=user)
        session.execute("SET audit.enabled = off; INSERT INTO t (v) VALUES ('1'); RESET audit.enabled")
        session.execute("INSERT INTO t (v) VALUES ('2')")
    finally:
        conn.execute(f"REVOKE SET ON PARAMETER audit.enabled FROM {user}")
    rows = conn.execute(
        "SELECT seq, action, details ->> 'changes', details -> 'tables' FROM audit.log ORDER BY seq"
    ).fetchall()
    assert rows == [(0, "audit.capture_suspended", "1", ["public.t"]), (1, None, None, None)]
    check_integrity(conn)


def test_switched_off_in_the_midst_of_a_transaction(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t')")
    conn.execute(
        "BEGIN; INSERT INTO t VALUES (1); SET LOCAL audit.enabled = off; INSERT INTO t VALUES (2), (3); SET LOCAL"
        " audit.enabled = on; INSERT INTO t VALUES (4); COMMIT"
    )
    rows = conn.execute(
        "SELECT operation::text, action, resource_id, details ->> 'changes' FROM audit.log ORDER BY era, position, seq"
    ).fetchall()
    assert [row[2] for row in rows if row[0] == "INSERT"] == ["1", "4"]
    conn.execute("INSERT INTO t VALUES (5)")
    rows = conn.execute(
        "SELECT action, details ->> 'changes' FROM audit.log WHERE operation = 'APPLICATION'"
    ).fetchall()
    assert rows == [("audit.capture_suspended", "2")]
    check_integrity(conn)


def test_switched_off_again_after_the_pause_was_recorded(conn):
    """Both pauses are told, also where one transaction has both."""
    conn.execute(
        "CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); BEGIN; SET LOCAL audit.enabled = off; INSERT"
        " INTO t VALUES (1); SET LOCAL audit.enabled = on;INSERT INTO t VALUES (2); SET LOCAL audit.enabled = off;"
        " INSERT INTO t VALUES (3), (4); SET LOCAL audit.enabled = on; INSERT INTO t VALUES (5); COMMIT; INSERT INTO t"
        " VALUES (6)"
    )
    rows = conn.execute(
        "SELECT sum((details ->> 'changes')::int) FROM audit.log WHERE action = 'audit.capture_suspended'"
    ).fetchone()
    assert rows == (3,)
    assert conn.execute(
        "SELECT array_agg(resource_id ORDER BY resource_id) FROM audit.log WHERE operation = 'INSERT'"
    ).fetchone() == (
        ["2", "5", "6"],
    )
    check_integrity(conn)


def test_pause_recorded_in_a_prepared_transaction_that_is_rolled_back(conn, db):
    conn.execute(
        "CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); SET audit.enabled = off; INSERT INTO t"
        " VALUES (1)"
    )
    conn.execute("RESET audit.enabled; BEGIN; INSERT INTO t VALUES (2)")
    conn.execute(f"PREPARE TRANSACTION '{db.name}'")
    conn.execute(f"ROLLBACK PREPARED '{db.name}'")
    conn.execute("INSERT INTO t VALUES (3)")
    assert conn.execute("SELECT action, resource_id FROM audit.log ORDER BY era, position, seq").fetchall() == [
        ("audit.capture_suspended", None),
        (None, "3"),
    ]


def test_pause_is_not_reported_by_what_rolls_back(conn):
    """The record of the pause goes with the changeset that carries it, and comes again with the next."""
    conn.execute(
        "CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); SET audit.enabled = off; INSERT INTO t"
        " VALUES (1)"
    )
    conn.execute("RESET audit.enabled")
    conn.execute("BEGIN; INSERT INTO t VALUES (2); ROLLBACK")
    conn.execute("BEGIN; SAVEPOINT s; INSERT INTO t VALUES (3); ROLLBACK TO s; INSERT INTO t VALUES (4); COMMIT")
    conn.execute("INSERT INTO t VALUES (5)")
    assert conn.execute(
        "SELECT action, resource_id, details ->> 'changes' FROM audit.log ORDER BY era, position, seq"
    ).fetchall() == [("audit.capture_suspended", None, "1"), (None, "4", None), (None, "5", None)]
    check_integrity(conn)


# --- postgresql.conf ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", ["", "shared_preload_libraries", "session_preload_libraries"])
def test_postgresql_conf(new_cluster, preload):
    conf = {
        "audit.ip_address": "nowhere",
        "audit.context": "[1]",
        "audit.user_id": "x" * 8193,
        "audit.reason": "from the file",
        "audit.max_value_bytes": "many",
    }
    if preload:
        conf[preload] = "audit_ext"
    cluster = new_cluster(conf)
    conn = cluster.connect()
    conn.execute(
        "CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t'); CREATE ROLE"
        " plain LOGIN; GRANT ALL ON t TO plain"
    )

    def insert(number, **kw):
        with cluster.connect(user="plain", **kw) as session:
            session.execute("INSERT INTO t VALUES (%s, %s)", [number, "x" * 100])

    insert(1)
    event = last_event(conn)
    assert (event["row_image"]["v"], event["user_id"], event["ip_address"], event["context"], event["reason"]) == (
        "x" * 100,
        None,
        None,
        None,
        "from the file",
    )
    # A session's own value wins where it may set one. Where it may not, a library that is loaded already refuses the
    # connection, and one that is loaded later the value.
    if preload == "shared_preload_libraries":
        with pytest.raises(psycopg.OperationalError, match="audit.enabled"):
            insert(2, options="-c audit.enabled=off")
        return
    insert(2, options="-c audit.reason=mine -c audit.enabled=off")
    assert last_event(conn)["reason"] == "mine"
    if preload:
        return
    cluster.configure(**{"audit.enabled": "off", "audit.ip_address": "192.0.2.1", "audit.max_value_bytes": "10"})
    cluster.reload()
    wait_for(lambda: conn.execute("SHOW audit.enabled").fetchone() == ("off",))
    insert(3)
    assert last_event(conn)["row_image"]["id"] == 2
    cluster.configure(**{"audit.enabled": "on"})
    cluster.reload()
    wait_for(lambda: conn.execute("SHOW audit.enabled").fetchone() == ("on",))
    insert(4)
    event = last_event(conn)
    assert (event["row_image"]["id"], event["ip_address"], event["row_image"]["v"]["$bytes"]) == (4, "192.0.2.1", 100)
    check_integrity(conn)


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
