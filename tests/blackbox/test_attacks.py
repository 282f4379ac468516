"""Attacks on what runs with more rights than its caller has: docs/security.md lists them. Names in the search path are in
test_rights.py, what is refused outright in test_bypass.py."""

import pytest
from auditlib import check_integrity, events, replay, sqlstate


@pytest.fixture
def owner(db, conn, role):
    name = role()
    conn.execute(f"GRANT CREATE ON SCHEMA public TO {name}")
    return db.connect(user=name)


def test_casts_to_json_run_as_the_writer(conn, owner, db, role):
    """The code of a type's owner sees the writer's rights, never those of the extension's owner, and reads no log."""
    writer = role()
    owner.execute("""
        CREATE TYPE pair AS ENUM ('ab');
        CREATE FUNCTION pair_json(pair) RETURNS json LANGUAGE plpgsql AS $$
        DECLARE found text := current_user;
        BEGIN
            BEGIN PERFORM count(*) FROM audit.event; found := found || ' reads'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            BEGIN DELETE FROM audit.policy; found := found || ' writes'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            RETURN to_json(found);
        END $$;
        CREATE CAST (pair AS json) WITH FUNCTION pair_json(pair);
        CREATE TABLE t (id int PRIMARY KEY, v pair)""")
    owner.execute(f"GRANT INSERT ON t TO {writer}")
    conn.execute("SELECT audit.enable('t')")
    with db.connect(user=writer) as session:
        session.execute("INSERT INTO t VALUES (1, 'ab')")
    assert [e.new_row["v"] for e in events(conn, "t") if e.operation == "INSERT"] == [writer]
    check_integrity(conn)


def test_checks_of_domains_run_once(conn, owner):
    owner.execute("""
        CREATE SEQUENCE calls;
        CREATE FUNCTION checked(int) RETURNS bool LANGUAGE sql VOLATILE AS 'SELECT nextval(''calls'') > 0';
        CREATE DOMAIN positive AS int CHECK (checked(VALUE)); CREATE TABLE t (id int PRIMARY KEY, v positive)""")
    conn.execute("SELECT audit.enable('t')")
    owner.execute("INSERT INTO t VALUES (1, 5)")
    assert owner.execute("SELECT last_value FROM calls").fetchone() == (1,)
    owner.execute("UPDATE t SET id = 2; DELETE FROM t")
    assert owner.execute("SELECT last_value FROM calls").fetchone() == (1,)
    replay(conn, "t")


def test_generated_columns_are_not_computed_anew(conn, owner):
    owner.execute("""
        CREATE SEQUENCE calls;
        CREATE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT nextval(''calls'')::int + $1';
        CREATE TABLE t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (f(id)) STORED)""")
    conn.execute("SELECT audit.enable('t')")
    owner.execute("INSERT INTO t (id) VALUES (1)")
    assert owner.execute("SELECT last_value FROM calls").fetchone() == (1,)
    replay(conn, "t")


def test_rules_on_tables_of_the_log_are_not_applied(conn, owner):
    """Not even those of a superuser: records are written past SQL."""
    owner.execute("CREATE TABLE t (id int PRIMARY KEY)")
    conn.execute("SELECT audit.enable('t')")
    for table in ("event", "changeset", "event_default", "changeset_default"):
        conn.execute(f"CREATE RULE lost AS ON INSERT TO audit.{table} DO INSTEAD NOTHING")
    owner.execute("INSERT INTO t VALUES (1)")
    replay(conn, "t")
    check_integrity(conn)


def test_event_triggers_of_users_neither_see_ours_nor_recurse(conn):
    conn.execute("""
        CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE seen (tag text, object text);
        CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO seen SELECT tg_tag, object_identity FROM pg_event_trigger_ddl_commands();
            IF tg_tag = 'ALTER TABLE' THEN
                CREATE INDEX IF NOT EXISTS made ON t (id); -- DDL in DDL, on an audited table
            END IF;
        END $$;
        SELECT audit.enable('t'), audit.enable('seen');
        CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note();
        ALTER TABLE t ADD v text; ALTER TABLE t DISABLE TRIGGER ALL; INSERT INTO t VALUES (1, 'x')""")
    tags = {tag for (tag,) in conn.execute("SELECT tag FROM seen").fetchall()}
    assert tags == {"ALTER TABLE", "CREATE INDEX"}
    replay(conn, "t")
    replay(conn, "seen")


@pytest.mark.parametrize(
    "planted",
    [
        "CREATE FUNCTION audit.capture() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TABLE audit.event (id int)",
        "CREATE TYPE audit.operation AS ENUM ('INSERT')",
        "CREATE OPERATOR audit.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)",
    ],
)
def test_what_was_planted_before_the_extension(new_db, planted):
    db = new_db(extension=False)
    with db.connect() as conn:
        conn.execute(f"CREATE SCHEMA audit; {planted}")
        with sqlstate("42P06"):
            conn.execute("CREATE EXTENSION audit_ext")


def test_temporary_objects_of_the_logs_names(conn, owner):
    owner.execute("CREATE TABLE t (id int PRIMARY KEY)")
    conn.execute("SELECT audit.enable('t')")
    owner.execute("""
        CREATE TEMP TABLE event (LIKE t); CREATE TEMP TABLE changeset (LIKE t); CREATE TEMP TABLE policy (LIKE t);
        CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea';
        SET search_path = pg_temp, public; INSERT INTO t VALUES (1); DELETE FROM t""")
    assert len(events(conn, "t")) == 2
    check_integrity(conn)
