"""Event triggers switched off, on a server that preloads the library: the hook on utility statements does their work."""

import pytest
from auditlib import check_integrity, replay, sqlstate
from cluster import Cluster
from coveragelib import _template, actions, covered, gaps  # noqa: F401
from queuelib import PRELOAD

EVENT_TRIGGERS = ("audit_ddl_command_start", "audit_ddl_command_end", "audit_table_rewrite", "audit_sql_drop")


@pytest.fixture(scope="module")
def cluster():
    with Cluster(conf={**PRELOAD, "audit.log_ddl": "on"}) as cluster:
        yield cluster


@pytest.fixture
def off(conn):
    """t and p are audited, as is schema app; event triggers are off."""
    conn.execute("""
        CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE SCHEMA app;
        SELECT audit.enable('t'), audit.enable('p'), audit.enable_schema('app')""")
    for name in EVENT_TRIGGERS:
        conn.execute(f"ALTER EVENT TRIGGER {name} DISABLE")
    return conn


def test_switching_them_off_is_recorded(off, db):
    assert ("event triggers were switched off", "postgres") in gaps(off, "t")
    assert actions(off)[-4:] == ["object_altered"] * 4
    assert db.cluster.log.count("goes to disable event trigger") >= 4
    for name in EVENT_TRIGGERS:
        off.execute(f"ALTER EVENT TRIGGER {name} ENABLE ALWAYS")
    since, until = off.execute("SELECT gap_since, gap_until FROM audit.coverage_gaps('t')").fetchone()
    assert since < until and gaps(off, "t")
    assert off.execute("SELECT FROM audit.coverage_gaps('t', %s)", [until]).fetchall() == []


def test_triggers_are_guarded(off, db, role):
    name = role()
    off.execute(f"ALTER TABLE t OWNER TO {name}")
    trigger = off.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname LIKE '!audit_row%'").fetchone()[0]
    with db.connect(user=name) as owner:
        for command in ('ALTER TABLE t DISABLE TRIGGER "{}"', 'DROP TRIGGER "{}" ON t', 'ALTER TRIGGER "{}" ON t RENAME TO x'):
            with sqlstate("42501"):
                owner.execute(command.format(trigger))
        owner.execute("ALTER TABLE t DISABLE TRIGGER USER; INSERT INTO t VALUES (1, 'x')")
    assert covered(off, "t") == (True, None)
    assert actions(off, "public.t")[-1] == "triggers_restored"
    replay(off, "t")


@pytest.mark.parametrize(
    "commands, table",
    [
        ("CREATE TABLE p2 PARTITION OF p DEFAULT; INSERT INTO p VALUES (50, 'x')", "p"),
        ("CREATE TABLE p2 (id int PRIMARY KEY, v text); INSERT INTO p2 VALUES (50, 'x'); ALTER TABLE p ATTACH PARTITION p2 DEFAULT; DELETE FROM p2", "p"),
        ("INSERT INTO p VALUES (1, 'x'); ALTER TABLE p DETACH PARTITION p1; UPDATE p1 SET v = 'y'", "p1"),
        ("CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (1, 'x')", "t"),
        ("CREATE TABLE app.n (id int); INSERT INTO app.n VALUES (1)", "app.n"),
        ("CREATE TABLE app.n AS SELECT 1 AS id; DELETE FROM app.n", "app.n"),
        ("CREATE TABLE n (id int); ALTER TABLE n SET SCHEMA app; INSERT INTO app.n VALUES (1)", "app.n"),
        ("ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (1, 'x')", "u"),
        ("CREATE SCHEMA AUTHORIZATION CURRENT_USER CREATE TABLE z (id int); CREATE TABLE app.z (id int); INSERT INTO app.z VALUES (1)", "app.z"),
    ],
)
def test_tables_are_followed(off, commands, table):
    off.execute(commands)
    assert covered(off, table)[0]
    replay(off, table)
    check_integrity(off)


def test_dropped_tables_are_forgotten(off):
    off.execute("DROP TABLE t; DROP TABLE p")
    assert off.execute("SELECT target FROM audit.policy").fetchall() == []
    assert actions(off, "public.t")[-1] == actions(off, "public.p1")[-1] == "table_dropped"


def test_setting_event_triggers(conn, db):
    """PostgreSQL 17 can switch them off for a session."""
    if db.cluster.version < 17:
        with sqlstate("42704"):
            conn.execute("SET event_triggers = off")
        return
    conn.execute("CREATE TABLE p (id int) PARTITION BY RANGE (id); SELECT audit.enable('p'); SET event_triggers = off")
    conn.execute("CREATE TABLE p1 PARTITION OF p DEFAULT; INSERT INTO p VALUES (1)")
    replay(conn, "p")
    assert covered(conn, "p1") == (True, None)


def test_databases_without_the_extension(new_db):
    other = new_db(extension=False)
    with other.connect() as session:
        session.execute("CREATE TABLE t (id int); ALTER TABLE t ADD v text; DROP TABLE t")
        session.execute("CREATE EXTENSION audit_ext; DROP EXTENSION audit_ext; DROP SCHEMA IF EXISTS audit")
