"""Visible at once: in the same transaction, after the statement, audit.log shows the event with its context."""

import pytest
from auditlib import check_integrity

LOG = """SELECT operation::text, resource_id, user_id, position IS NULL FROM audit.log
          WHERE resource = 'public.t' ORDER BY era, position NULLS LAST, command, seq"""


@pytest.fixture
def conn(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, n int); SELECT audit.enable('t')")
    return conn


def log(conn):
    return conn.execute(LOG).fetchall()


def test_after_each_statement(conn, db):
    other = db.connect()
    conn.execute(
        "BEGIN; SELECT audit.set_context('ann', 'acme', 'r-1', 's-1', '192.0.2.7', 'curl', 'why', '{\"k\": 1}')"
    )
    conn.execute("INSERT INTO t VALUES (1, 0)")
    assert log(conn) == [("INSERT", "1", "ann", True)]
    conn.execute("UPDATE t SET n = 1")
    conn.execute("DELETE FROM t")
    conn.execute("TRUNCATE t")
    assert [row[0] for row in log(conn)] == ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    row = conn.execute(
        """SELECT user_id, tenant_id, request_id, session_id, host(ip_address), user_agent, reason, context,
                  session_role, effective_role,
                  xid::text = pg_current_xact_id()::text,
                  application_name IS NOT DISTINCT FROM nullif(current_setting('application_name'), ''),
                  status::text, new_row
             FROM audit.log WHERE operation = 'INSERT'"""
    ).fetchone()
    assert row == (
        "ann",
        "acme",
        "r-1",
        "s-1",
        "192.0.2.7",
        "curl",
        "why",
        {"k": 1},
        "postgres",
        "postgres",
        True,
        True,
        "success",
        {"id": 1, "n": 0},
    )
    assert log(other) == []
    pending = conn.execute("SELECT changeset_id, seq, checksum, command FROM audit.log ORDER BY seq").fetchall()
    conn.execute("COMMIT")
    # The commit adds the position and changes nothing else.
    assert conn.execute("SELECT changeset_id, seq, checksum, command FROM audit.log ORDER BY seq").fetchall() == pending
    assert {row[3] for row in log(conn)} == {False}
    assert log(other) == log(conn)
    check_integrity(conn)


def test_test_that_rolls_back_sees_its_own_context(conn):
    conn.execute("BEGIN; SET LOCAL audit.user_id = 'test'; INSERT INTO t VALUES (1)")
    assert log(conn) == [("INSERT", "1", "test", True)]
    conn.execute("ROLLBACK")
    assert log(conn) == []


def test_each_context_has_its_events(conn):
    conn.execute(
        "BEGIN; SET LOCAL audit.user_id = 'A'; INSERT INTO t VALUES (1); SET LOCAL audit.user_id = 'B'; INSERT INTO t"
        " VALUES (2);SET LOCAL audit.user_id = 'A'; INSERT INTO t VALUES (3); SET LOCAL audit.user_id = 'C'"
    )
    assert [row[1:3] for row in log(conn)] == [("1", "A"), ("2", "B"), ("3", "A")]
    conn.execute("COMMIT")
    assert [row[1:3] for row in log(conn)] == [("1", "A"), ("2", "B"), ("3", "A")]


def test_savepoints(conn):
    conn.execute(
        "BEGIN; SET LOCAL audit.user_id = 'A'; INSERT INTO t VALUES (1); SAVEPOINT s; SET LOCAL audit.user_id = 'B';"
        " INSERT INTO t VALUES (2)"
    )
    assert [row[1:3] for row in log(conn)] == [("1", "A"), ("2", "B")]
    conn.execute("ROLLBACK TO s")
    assert [row[1:3] for row in log(conn)] == [("1", "A")]
    conn.execute("INSERT INTO t VALUES (3); RELEASE s")
    assert [row[1:3] for row in log(conn)] == [("1", "A"), ("3", "A")]
    conn.execute("COMMIT")


def test_within_a_function(conn):
    conn.execute("""
        CREATE FUNCTION look() RETURNS int[] LANGUAGE plpgsql AS $$
        DECLARE counts int[];
        BEGIN
            FOR i IN 1 .. 3 LOOP
                INSERT INTO t VALUES (i), (i + 10);
                counts := counts || (SELECT count(*)::int FROM audit.log);
            END LOOP;
            RETURN counts;
        END $$""")
    assert conn.execute("SELECT look()").fetchone()[0] == [2, 4, 6]


def test_in_an_after_statement_trigger_of_the_same_statement(conn):
    conn.execute("""
        CREATE TABLE seen (events int);
        CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO seen SELECT count(*) FROM audit.log; RETURN NULL; END $$;
        CREATE TRIGGER look AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION look();
        INSERT INTO t SELECT generate_series(1, 7)""")
    assert conn.execute("SELECT events FROM seen").fetchone() == (7,)


def test_in_a_deferred_trigger(conn):
    conn.execute("""
        CREATE TABLE seen (events int, user_id text);
        CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO seen SELECT count(*), min(user_id) FROM audit.log; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER look AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION look();
        BEGIN; SET LOCAL audit.user_id = 'ann'; INSERT INTO t VALUES (1), (2); COMMIT""")
    assert conn.execute("SELECT * FROM seen").fetchall() == [(2, "ann"), (2, "ann")]


def test_partition_written_directly(conn):
    """No trigger on the statement's own table tells the end of such a statement to the root."""
    conn.execute("""
        CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        SELECT audit.enable('p')""")
    conn.execute("BEGIN; INSERT INTO p1 VALUES (1)")
    assert conn.execute("SELECT resource, resource_id FROM audit.log").fetchall() == [("public.p1", "1")]
    conn.execute("INSERT INTO p VALUES (2)")
    assert conn.execute("SELECT count(*) FROM audit.log").fetchone() == (2,)
    conn.execute("COMMIT")


def test_cursor_opened_before_does_not_see_it(conn):
    conn.execute(
        "BEGIN; INSERT INTO t VALUES (1); DECLARE c CURSOR FOR SELECT count(*) FROM audit.log; INSERT INTO t VALUES (2)"
    )
    assert conn.execute("FETCH c").fetchone() == (1,)
    assert len(log(conn)) == 2
    conn.execute("COMMIT")


def test_prepared_is_no_longer_pending_here(conn, db):
    conn.execute("BEGIN; INSERT INTO t VALUES (1)")
    conn.execute(f"PREPARE TRANSACTION '{db.name}'")
    assert log(conn) == []
    conn.execute(f"COMMIT PREPARED '{db.name}'")
    assert [row[0] for row in log(conn)] == ["INSERT"]


def test_reader_sees_his_own_pending_changes(conn, db, role):
    name = role()
    conn.execute(f"GRANT INSERT ON t TO {name}; SELECT audit.grant_reader('{name}')")
    with db.connect(user=name) as reader:
        reader.execute("BEGIN; SET LOCAL audit.user_id = 'ann'; INSERT INTO t VALUES (1)")
        assert log(reader) == [("INSERT", "1", "ann", True)]
        reader.execute("COMMIT")
        assert log(reader) == [("INSERT", "1", "ann", False)]
