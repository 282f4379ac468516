"""Transactions of every shape: what remains in the log is exactly what remains in the tables.

Each test ends with the log replayed to the tables' rows and with `check_integrity`, which recounts every changeset: its
event_count, the numbering of the transaction's events from 0 without gaps, and its events_root.
"""

import random

import psycopg
import pytest
from auditlib import changes, check_integrity, events, replay, sqlstate

TABLES = """
    CREATE TABLE t (id int PRIMARY KEY, n int, pad text);
    CREATE TABLE u (id int PRIMARY KEY, n int);
    CREATE TABLE plain (id int PRIMARY KEY, n int);
    SELECT audit.enable('t'), audit.enable('u');
"""


@pytest.fixture
def conn(conn):
    conn.execute("SET lock_timeout = '30s'")
    conn.execute(TABLES)
    yield conn
    conn.rollback()
    replay(conn, "t")
    replay(conn, "u")
    check(conn)


def check(conn):
    # audit.verify_event looks at the whole changeset of each event: too much to ask of large ones.
    check_integrity(conn, ask_extension=log_size(conn)[1] < 1000)


def value(conn, query, *arguments):
    return conn.execute(query, arguments or None).fetchone()[0]


def log_size(conn):
    return conn.execute("SELECT (SELECT count(*) FROM audit.changeset), (SELECT count(*) FROM audit.event)").fetchone()


def keys(found):
    return [event.resource_id for event in found]


# --- what writes nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "SELECT * FROM t FOR UPDATE",
        "UPDATE t SET n = 1 WHERE id < 0",
        "DELETE FROM t WHERE false",
        "INSERT INTO t SELECT id FROM t WHERE false",
        "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING",
        "MERGE INTO t USING (SELECT 1 AS id) s ON t.id = s.id WHEN MATCHED THEN DO NOTHING",
        "INSERT INTO plain VALUES (1); UPDATE plain SET n = 2; TRUNCATE plain",
        "SELECT audit.set_context(user_id => 'ann')",
        "LOCK TABLE t; CREATE TEMP TABLE s AS SELECT * FROM t",
    ],
)
def test_transaction_that_changes_no_audited_row_writes_nothing(conn, body):
    conn.execute("INSERT INTO t VALUES (1)")
    before = log_size(conn)
    conn.execute("BEGIN;" + body + "; COMMIT")
    assert log_size(conn) == before


def test_statement_without_rows_needs_no_transaction_id(conn):
    conn.execute("BEGIN; UPDATE t SET n = 1 WHERE id < 0; DELETE FROM u")
    assert value(conn, "SELECT pg_current_xact_id_if_assigned()") is None
    conn.execute("COMMIT")


@pytest.mark.parametrize(
    "body",
    [
        "INSERT INTO t VALUES (1); UPDATE t SET n = 2; ROLLBACK",
        "SAVEPOINT a; INSERT INTO t VALUES (1); ROLLBACK TO a; COMMIT",
        (
            "SAVEPOINT a; INSERT INTO t VALUES (1); SAVEPOINT b; INSERT INTO u VALUES (1); RELEASE b; ROLLBACK TO a;"
            " COMMIT"
        ),
        "SAVEPOINT a; TRUNCATE t; ROLLBACK TO a; INSERT INTO plain VALUES (1); COMMIT",
        (
            "SAVEPOINT a; INSERT INTO t SELECT generate_series(1, 5000); ROLLBACK TO a; SAVEPOINT a; INSERT INTO u"
            " SELECT generate_series(1, 5000); ROLLBACK TO a; COMMIT"
        ),
        "INSERT INTO t VALUES (1); PREPARE TRANSACTION '{gid}'; ROLLBACK PREPARED '{gid}'",
    ],
)
def test_work_that_is_rolled_back_leaves_no_changeset(conn, db, body):
    before = log_size(conn)
    for statement in ("BEGIN;" + body.format(gid=db.name)).split(";"):
        conn.execute(statement)
    assert log_size(conn) == before
    with changes(conn, "t", INSERT=1):
        conn.execute("INSERT INTO t VALUES (1)")


def test_failed_statement_leaves_nothing(conn):
    conn.execute("INSERT INTO t SELECT i FROM generate_series(1, 10) i")
    before = log_size(conn)
    with sqlstate("23505"):
        conn.execute("INSERT INTO t SELECT i FROM generate_series(5000, 1, -1) i")
    with sqlstate("22012"):
        conn.execute("UPDATE t SET n = 1 / (id - 9)")
    with sqlstate("22012"):
        conn.execute("INSERT INTO t VALUES (11); INSERT INTO t VALUES (12); SELECT 1/0")
    assert log_size(conn) == before


def test_copy_that_fails_half_way_leaves_nothing(conn):
    with sqlstate("22P02"):
        with conn.cursor().copy("COPY t (id, n) FROM STDIN") as copy:
            for i in range(3000):
                copy.write(f"{i}\t{i}\n")
            copy.write("3000\tno number\n")
    assert log_size(conn) == (0, 0)


# --- savepoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, left",
    [
        ("INSERT 1; SAVEPOINT a; INSERT 2; RELEASE a; INSERT 3", "1 2 3"),
        ("INSERT 1; SAVEPOINT a; INSERT 2; ROLLBACK TO a; INSERT 3", "1 3"),
        (
            "SAVEPOINT a; INSERT 1; SAVEPOINT b; INSERT 2; SAVEPOINT c; INSERT 3; RELEASE c; RELEASE b; RELEASE a",
            "1 2 3",
        ),
        (
            "SAVEPOINT a; INSERT 1; SAVEPOINT b; INSERT 2; SAVEPOINT c; INSERT 3; RELEASE c; ROLLBACK TO b; INSERT 4",
            "1 4",
        ),
        (
            (
                "SAVEPOINT a; INSERT 1; SAVEPOINT b; INSERT 2; SAVEPOINT c; INSERT 3; ROLLBACK TO c; INSERT 4; RELEASE"
                " b; INSERT 5"
            ),
            "1 2 4 5",
        ),
        ("SAVEPOINT a; INSERT 1; SAVEPOINT b; INSERT 2; RELEASE b; INSERT 3; ROLLBACK TO a; INSERT 4; RELEASE a", "4"),
        ("SAVEPOINT a; INSERT 1; ROLLBACK TO a; INSERT 2; ROLLBACK TO a; INSERT 3; ROLLBACK TO a; INSERT 4", "4"),
        ("SAVEPOINT a; SAVEPOINT b; SAVEPOINT c; INSERT 1; ROLLBACK TO b; INSERT 2; RELEASE a; INSERT 3", "2 3"),
        (
            (
                "SAVEPOINT s; INSERT 1; SAVEPOINT s; INSERT 2; ROLLBACK TO s; INSERT 3; RELEASE s; INSERT 4; ROLLBACK"
                " TO s; INSERT 5"
            ),
            "5",
        ),
        ("SAVEPOINT a; SELECT; ROLLBACK TO a; INSERT 1; SAVEPOINT b; SELECT; RELEASE b; INSERT 2", "1 2"),
    ],
)
@pytest.mark.parametrize("rows", [1, 1500])
def test_savepoints(conn, body, left, rows):
    with changes(conn, "t", INSERT=len(left.split()) * rows) as changed:
        conn.execute("BEGIN")
        for statement in body.split("; "):
            if statement.startswith("INSERT"):
                number = int(statement.split()[1])
                conn.execute(
                    "INSERT INTO t SELECT i, %s, 'x' FROM generate_series(%s::int, %s::int) i",
                    [number, number * 10000, number * 10000 + rows - 1],
                )
            else:
                conn.execute(statement)
        conn.execute("COMMIT")
    assert sorted({event.image["n"].strip("\0") for event in changed.events}) == left.split()
    assert len({event.changeset_id for event in changed.events}) == 1


def test_savepoints_two_hundred_deep(conn):
    """More than the 64 subtransactions whose ids a backend shows to others."""
    conn.execute("BEGIN")
    for depth in range(200):
        conn.execute(f"SAVEPOINT s{depth}; INSERT INTO t VALUES ({depth})")
    conn.execute(
        "ROLLBACK TO s150; RELEASE s100; INSERT INTO t VALUES (1000); ROLLBACK TO s50; INSERT INTO t VALUES (2000);"
        " COMMIT"
    )
    assert keys(events(conn, "t")) == [str(i) for i in range(50)] + ["2000"]


def test_error_in_a_statement_is_undone_to_the_savepoint(conn):
    conn.execute("BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a; INSERT INTO t VALUES (2)")
    with sqlstate("23505"):
        conn.execute("INSERT INTO t SELECT i FROM generate_series(3000, 1, -1) i")
    conn.execute("ROLLBACK TO a; INSERT INTO t VALUES (3); COMMIT")
    assert keys(events(conn, "t")) == ["1", "3"]


@pytest.mark.parametrize("seed", range(12))
def test_random_transactions(conn, seed):
    """Random statements among random savepoints, contexts, errors; the replay at the end is the judge."""
    choice = random.Random(seed)
    audited = 0
    for transaction in range(12):
        conn.execute("BEGIN")
        depth = 0
        for _ in range(choice.randrange(1, 25)):
            kind = choice.choice(
                [
                    "save",
                    "save",
                    "release",
                    "back",
                    "insert",
                    "insert",
                    "update",
                    "delete",
                    "bulk",
                    "context",
                    "error",
                    "truncate",
                    "caught",
                    "both",
                ]
            )
            table = choice.choice("tu")
            some = choice.randrange(40)
            if kind == "save":
                depth += 1
                conn.execute(f"SAVEPOINT s{depth}")
            elif kind in ("release", "back") and depth:
                level = choice.randint(1, depth)
                conn.execute(f"RELEASE s{level}" if kind == "release" else f"ROLLBACK TO s{level}")
                depth = level - 1 if kind == "release" else level
            elif kind == "insert":
                conn.execute(f"INSERT INTO {table} VALUES ({some}, 0) ON CONFLICT (id) DO UPDATE SET n = {table}.n + 1")
            elif kind == "update":
                conn.execute(f"UPDATE {table} SET n = n + 1 WHERE id % 7 = {some % 7}")
            elif kind == "delete":
                conn.execute(f"DELETE FROM {table} WHERE id % 5 = {some % 5}")
            elif kind == "bulk":
                conn.execute(
                    f"INSERT INTO {table} SELECT i, i FROM generate_series(100, {100 + some * 40}) i ON CONFLICT DO"
                    " NOTHING"
                )
            elif kind == "context":
                conn.execute("SELECT audit.set_context(user_id => %s)", [f"user {some % 3}"])
            elif kind == "truncate" and some < 8:
                conn.execute(f"TRUNCATE {table}")
            elif kind == "caught":
                conn.execute(f"""DO $$ BEGIN INSERT INTO {table} VALUES ({some + 50}, 1) ON CONFLICT DO NOTHING;
                        UPDATE {table} SET n = n / (n - n); EXCEPTION WHEN division_by_zero THEN NULL; END $$""")
            elif kind == "both":
                conn.execute(
                    f"WITH a AS (UPDATE t SET n = n + 1 WHERE id = {some} RETURNING id) "
                    "INSERT INTO u SELECT id, 7 FROM a ON CONFLICT DO NOTHING"
                )
            elif kind == "error" and depth:
                with sqlstate("22012"):
                    conn.execute(f"INSERT INTO {table} SELECT i + 90000, 1 / (i - 20) FROM generate_series(1, 30) i")
                conn.execute(f"ROLLBACK TO s{depth}")
        conn.execute("COMMIT" if choice.random() < 0.8 else "ROLLBACK")
        audited = max(audited, log_size(conn)[1])
    assert audited > 0


# --- exceptions in PL/pgSQL ---------------------------------------------------------------------------------------


def test_exceptions_ten_deep(conn):
    """Each level inserts before and after an inner block that fails at some levels: all 1024 patterns of failure."""
    conn.execute("""
        CREATE FUNCTION nest(pattern int, depth int) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO t VALUES (pattern * 100 + depth * 2, depth);
            IF depth < 10 THEN
                BEGIN
                    PERFORM nest(pattern, depth + 1);
                EXCEPTION WHEN division_by_zero THEN
                    NULL;
                END;
            END IF;
            INSERT INTO t VALUES (pattern * 100 + depth * 2 + 1, depth);
            IF (pattern >> depth) & 1 = 1 THEN
                PERFORM 1 / 0;
            END IF;
        END $$""")

    def left(pattern, depth=0):
        if (pattern >> depth) & 1:
            return 0
        return 2 + (left(pattern, depth + 1) if depth < 10 else 0)

    patterns = range(0, 2048, 2)
    with changes(conn, "t", INSERT=sum(left(pattern) for pattern in patterns)):
        for pattern in patterns:
            if pattern % 32 == 0:
                conn.execute("BEGIN")
            conn.execute("SELECT nest(%s, 0)", [pattern])
            if pattern % 32 == 30:
                conn.execute("COMMIT")


def test_exceptions_in_a_loop_of_thousands(conn):
    with changes(conn, "t", INSERT=4000):
        with changes(conn, "u", INSERT=6000):
            conn.execute("""
                DO $$
                BEGIN
                    FOR i IN 1 .. 6000 LOOP
                        INSERT INTO u VALUES (i);
                        BEGIN
                            INSERT INTO t VALUES (i);
                            IF i % 3 = 0 THEN
                                RAISE EXCEPTION 'no' USING ERRCODE = 'P0042';
                            END IF;
                        EXCEPTION WHEN SQLSTATE 'P0042' THEN
                            NULL;
                        END;
                    END LOOP;
                END $$""")


def test_trigger_that_fails_amid_a_bulk_statement(conn):
    conn.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.id = 2500 THEN RAISE 'no' USING ERRCODE = 'P0042'; END IF; RETURN NULL; END $$;
        CREATE TRIGGER refuse AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION refuse()""")
    with changes(conn, "t", INSERT=2):
        conn.execute("""
            BEGIN;
            INSERT INTO t VALUES (1);
            DO $$ BEGIN
                INSERT INTO t SELECT generate_series(2, 3000);
            EXCEPTION WHEN SQLSTATE 'P0042' THEN NULL;
            END $$;
            INSERT INTO t VALUES (2);
            COMMIT""")


def test_events_of_a_statement_are_not_lost_with_an_inner_subtransaction(conn):
    """A row trigger writes another audited table in a block that is rolled back for every other row, while the outer
    statement has
    more events under way than memory holds at once. What is flushed there must not go with the inner block."""
    conn.execute("""
        CREATE FUNCTION inner_block() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            BEGIN
                INSERT INTO u SELECT NEW.id * 10 + i, NEW.n FROM generate_series(0, 3) i;
                IF NEW.id % 2 = 0 THEN
                    RAISE 'no' USING ERRCODE = 'P0042';
                END IF;
            EXCEPTION WHEN SQLSTATE 'P0042' THEN
                NULL;
            END;
            RETURN NULL;
        END $$;
        CREATE TRIGGER inner_block AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION inner_block()""")
    with changes(conn, "t", "u", INSERT=3000 + 1500 * 4):
        conn.execute("INSERT INTO t SELECT i, 0, repeat('x', 2000) FROM generate_series(1, 3000) i")
    # The same where the outer statement itself is inside a block that fails in the end.
    conn.execute("DELETE FROM u")
    with changes(conn, "t", "u", UPDATE=10, INSERT=5 * 4):
        conn.execute("""
            BEGIN;
            DO $$ BEGIN UPDATE t SET n = 1; PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN NULL; END $$;
            UPDATE t SET n = 2 WHERE id <= 10;
            COMMIT""")


def test_events_of_an_outer_statement_survive_a_large_inner_rollback(conn):
    """The inner block alone is larger than memory holds at once."""
    conn.execute("""
        CREATE FUNCTION large_block() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO u SELECT NEW.id * 10000 + i, NEW.n FROM generate_series(0, 4999) i;
            RAISE 'no' USING ERRCODE = 'P0042';
        EXCEPTION WHEN SQLSTATE 'P0042' THEN
            RETURN NULL;
        END $$;
        CREATE TRIGGER large_block AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION large_block()""")
    with changes(conn, "t", "u", INSERT=8):
        conn.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 8) i")


def test_function_that_catches_its_callers_rows(conn):
    """A volatile function in a SELECT list, each call its own subtransaction."""
    conn.execute("""
        CREATE FUNCTION try(i int) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO t VALUES (i / 2);
            RETURN true;
        EXCEPTION WHEN unique_violation THEN
            UPDATE t SET n = coalesce(n, 0) + 1 WHERE id = i / 2;
            RETURN false;
        END $$""")
    with changes(conn, "t", INSERT=500, UPDATE=500):
        conn.execute("SELECT try(i) FROM generate_series(0, 999) i")


# --- two-phase commit ---------------------------------------------------------------------------------------------


def test_commit_prepared_and_rollback_prepared(conn, db):
    other = db.connect()
    for end, survives in (("COMMIT", True), ("ROLLBACK", False)):
        gid = f"{db.name} {end}"
        before = log_size(other)
        conn.execute(
            "BEGIN; SELECT audit.set_context(user_id => 'ann'); DELETE FROM t; INSERT INTO t VALUES (1), (2);"
            "SAVEPOINT a; UPDATE t SET n = 1; ROLLBACK TO a; UPDATE t SET n = 2 WHERE id = 1;"
            "SELECT audit.set_context(user_id => 'bob'); INSERT INTO u VALUES (1) ON CONFLICT (id) DO UPDATE SET n = 1"
        )
        conn.execute(f"PREPARE TRANSACTION '{gid}'")
        # Between the phases the session goes on, with a changeset of its own, and nobody sees what is prepared.
        assert log_size(other) == before
        conn.execute(
            "SELECT audit.clear_context(); BEGIN; INSERT INTO t VALUES (100), (101); DELETE FROM t WHERE id IN (100,"
            " 101); COMMIT"
        )
        assert log_size(other) == (before[0] + 1, before[1] + 4)
        check(conn)
        other.execute(f"{end} PREPARED '{gid}'")
        grown = log_size(other)
        assert (grown[0] - before[0] - 1 == 2) is survives
        check(conn)
        replay(conn, "t")
        replay(conn, "u")


def test_untouched_transaction_is_prepared(conn, db):
    conn.execute("BEGIN; INSERT INTO plain VALUES (1)")
    conn.execute(f"PREPARE TRANSACTION '{db.name}'")
    conn.execute(f"COMMIT PREPARED '{db.name}'")
    assert log_size(conn) == (0, 0)


def test_deferred_trigger_writes_at_prepare(conn, db):
    deferred_copy(conn)
    conn.execute("BEGIN; INSERT INTO t VALUES (1), (2)")
    conn.execute(f"PREPARE TRANSACTION '{db.name}'")
    conn.execute(f"COMMIT PREPARED '{db.name}'")
    assert len(events(conn, "u")) == 2
    assert len({event.changeset_id for event in events(conn)}) == 1


@pytest.mark.parametrize("how", ["fast", "kill -9"])
def test_prepared_transactions_across_a_restart(new_cluster, how):
    cluster = new_cluster()
    with cluster.connect() as conn:
        conn.execute("SET lock_timeout = '30s'; CREATE EXTENSION audit_ext;" + TABLES)
        conn.execute(
            "BEGIN; INSERT INTO t SELECT i FROM generate_series(1, 2000) i; SAVEPOINT a; DELETE FROM t; ROLLBACK TO a"
        )
        conn.execute("PREPARE TRANSACTION 'kept'")
        conn.execute("BEGIN; INSERT INTO t SELECT i FROM generate_series(3001, 5000) i")
        conn.execute("PREPARE TRANSACTION 'dropped'")
        conn.execute("INSERT INTO t VALUES (10000)")
    if how == "fast":
        cluster.restart()
    else:
        cluster.kill9()
        cluster.start()
    with cluster.connect() as conn:
        assert log_size(conn) == (1, 1)
        conn.execute("INSERT INTO t VALUES (10001)")
        conn.execute("ROLLBACK PREPARED 'dropped'")
        conn.execute("COMMIT PREPARED 'kept'")
        assert log_size(conn) == (3, 2002)
        assert {event.operation for event in replay(conn, "t")} == {"INSERT"}
        check(conn)


# --- transactions that procedures begin and end -------------------------------------------------------------------


def test_procedure_commits_and_rolls_back(conn):
    conn.execute("""
        CREATE PROCEDURE steps() LANGUAGE plpgsql AS $$
        BEGIN
            FOR i IN 1 .. 300 LOOP
                PERFORM audit.set_context(user_id => 'step ' || i);
                INSERT INTO t VALUES (i), (i + 1000);
                IF i % 3 = 0 THEN ROLLBACK; ELSIF i % 3 = 1 THEN COMMIT; END IF;
            END LOOP;
        END $$""")
    conn.execute("CALL steps()")
    found = events(conn, "t")
    # The second of each three is rolled back with the third.
    assert sorted({int(event.image["id"].strip("\0")) for event in found}) == sorted(
        base + i for i in range(1, 301) if i % 3 == 1 for base in (0, 1000)
    )
    assert len({event.xid for event in found}) == len({event.changeset_id for event in found}) == 100
    assert all(event.user_id == f"step {int(event.resource_id) % 1000}" for event in found)


def test_procedure_that_loops_over_a_cursor(conn):
    conn.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 200) i")
    with changes(conn, "t", UPDATE=200):
        conn.execute("""DO $$ DECLARE r record;
            BEGIN
                FOR r IN SELECT id FROM t ORDER BY id LOOP UPDATE t SET n = n + 1 WHERE id = r.id; COMMIT; END LOOP;
            END $$""")


def test_commit_and_chain(conn):
    conn.execute(
        "BEGIN; INSERT INTO t VALUES (1); COMMIT AND CHAIN; INSERT INTO t VALUES (2); ROLLBACK AND CHAIN; INSERT INTO t"
        " VALUES (3); COMMIT"
    )
    found = events(conn, "t")
    assert keys(found) == ["1", "3"]
    assert len({event.xid for event in found}) == 2


# --- at COMMIT ----------------------------------------------------------------------------------------------------


def deferred_copy(conn):
    conn.execute("""
        CREATE FUNCTION copy_to_u() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.n = 13 THEN RAISE 'no' USING ERRCODE = 'P0042'; END IF;
            INSERT INTO u VALUES (NEW.id, NEW.n);
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER copy_to_u AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION copy_to_u()""")


def test_deferred_trigger_writes_at_commit(conn):
    deferred_copy(conn)
    conn.execute("INSERT INTO t VALUES (1)")
    with changes(conn, "t", "u", INSERT=4001 * 2):
        conn.execute(
            "BEGIN; INSERT INTO t SELECT generate_series(2, 4001); SAVEPOINT a; INSERT INTO t VALUES (5000); ROLLBACK"
            " TO a;INSERT INTO t VALUES (5001); COMMIT"
        )
    assert len({event.changeset_id for event in events(conn)}) == 2


def test_deferred_trigger_that_writes_into_a_table_with_a_deferred_trigger(conn):
    deferred_copy(conn)
    conn.execute("""
        CREATE FUNCTION further() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.id < 20 THEN INSERT INTO t VALUES (NEW.id + 1, 0); END IF; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER further AFTER INSERT ON u DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION further()""")
    with changes(conn, "t", "u", INSERT=40):
        conn.execute("INSERT INTO t VALUES (1, 0)")


def test_deferred_trigger_that_fails_at_commit(conn):
    deferred_copy(conn)
    with sqlstate("P0042"):
        conn.execute("BEGIN; INSERT INTO t VALUES (1); UPDATE t SET n = 5; INSERT INTO t VALUES (2, 13); COMMIT")
    assert log_size(conn) == (0, 0)
    assert value(conn, "SELECT count(*) FROM t") == 0


def test_deferred_trigger_made_immediate(conn):
    deferred_copy(conn)
    with changes(conn, "t", "u", INSERT=3):
        conn.execute("""
            BEGIN;
            INSERT INTO t VALUES (1);
            DO $$ BEGIN
                INSERT INTO t VALUES (2, 13); SET CONSTRAINTS ALL IMMEDIATE;
            EXCEPTION WHEN SQLSTATE 'P0042' THEN NULL;
            END $$;
            SET CONSTRAINTS ALL IMMEDIATE;
            INSERT INTO plain VALUES (1);
            SET CONSTRAINTS ALL DEFERRED;
            DELETE FROM plain;
            INSERT INTO u VALUES (9);
            COMMIT""")


def test_deferred_foreign_key_that_fails_at_commit(conn):
    conn.execute("ALTER TABLE u ADD FOREIGN KEY (n) REFERENCES t DEFERRABLE INITIALLY DEFERRED")
    with sqlstate("23503"):
        conn.execute("BEGIN; INSERT INTO t VALUES (1); INSERT INTO u VALUES (1, 7); COMMIT")
    assert log_size(conn) == (0, 0)
    with changes(conn, "t", "u", INSERT=2):
        conn.execute("BEGIN; INSERT INTO u VALUES (1, 7); INSERT INTO t VALUES (7); COMMIT")


# --- contexts and roles -------------------------------------------------------------------------------------------


def test_contexts_a_b_a(conn):
    conn.execute(
        "BEGIN; SET LOCAL audit.user_id = 'A'; INSERT INTO t VALUES (1); SET LOCAL audit.user_id = 'B'; UPDATE t SET n"
        " = 2;SET LOCAL audit.user_id = 'A'; UPDATE t SET n = 3; INSERT INTO u VALUES (1); COMMIT"
    )
    found = events(conn)
    assert [(event.user_id, event.seq) for event in found] == [("A", 0), ("B", 1), ("A", 2), ("A", 3)]
    assert len({event.changeset_id for event in found}) == 2
    assert sorted(conn.execute("SELECT user_id, event_count FROM audit.changeset").fetchall()) == [("A", 3), ("B", 1)]
    assert value(conn, "SELECT count(DISTINCT position) FROM audit.changeset") == 1


def test_context_that_is_rolled_back(conn):
    conn.execute(
        "BEGIN; SET LOCAL audit.user_id = 'A'; INSERT INTO t VALUES (1); SAVEPOINT s; SET LOCAL audit.user_id = 'B';"
        "INSERT INTO t VALUES (2); ROLLBACK TO s; INSERT INTO t VALUES (3); COMMIT"
    )
    assert [(event.user_id, event.resource_id, event.seq) for event in events(conn)] == [("A", "1", 0), ("A", "3", 1)]


def test_context_first_used_in_what_is_rolled_back(conn):
    conn.execute(
        "BEGIN; SAVEPOINT s; SET LOCAL audit.user_id = 'A'; INSERT INTO t VALUES (1); SET LOCAL audit.user_id = 'B';"
        " INSERT INTO t VALUES (2);ROLLBACK TO s; SET LOCAL audit.user_id = 'B'; INSERT INTO t VALUES (3); SET LOCAL"
        " audit.user_id = 'A'; INSERT INTO t VALUES (4); COMMIT"
    )
    assert [(event.user_id, event.resource_id, event.seq) for event in events(conn)] == [("B", "3", 0), ("A", "4", 1)]


def test_hundreds_of_contexts_in_a_transaction(conn):
    with changes(conn, "t", INSERT=500, UPDATE=500):
        conn.execute("""DO $$ BEGIN
            FOR i IN 1 .. 500 LOOP
                PERFORM audit.set_context(request_id => 'r' || i); INSERT INTO t VALUES (i, 0);
            END LOOP;
            FOR i IN 1 .. 500 LOOP
                PERFORM audit.set_context(request_id => 'r' || i); UPDATE t SET n = i WHERE id = i;
            END LOOP; END $$""")
    assert log_size(conn) == (500, 1000)
    assert value(conn, "SELECT count(*) FROM audit.changeset WHERE event_count = 2") == 500


def test_context_changes_within_a_statement(conn):
    """A trigger sets the context for what comes after it; events know the one at their capture."""
    conn.execute("""
        CREATE FUNCTION as_user() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM audit.set_context(user_id => 'user ' || NEW.id); INSERT INTO u VALUES (NEW.id); RETURN NULL;
        END $$;
        CREATE TRIGGER as_user AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION as_user()""")
    conn.execute("INSERT INTO t VALUES (1), (2), (3)")
    assert [(event.table_name, event.resource_id, event.user_id) for event in events(conn, "u")] == [
        ("u", str(i), f"user {i}") for i in (1, 2, 3)
    ]


def test_security_definer_function_has_its_own_changeset(conn, db, role):
    owner, user = role(), role()
    conn.execute(f"""
        GRANT INSERT ON t TO {owner}, {user};
        CREATE FUNCTION deputy(int) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO t VALUES ($1)';
        ALTER FUNCTION deputy OWNER TO {owner}""")
    conn.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    with db.connect(user=user) as other:
        other.execute("BEGIN; INSERT INTO t VALUES (1); SELECT deputy(2); INSERT INTO t VALUES (3); COMMIT")
    rows = conn.execute(
        "SELECT resource_id, session_role, effective_role, changeset_id FROM audit.log ORDER BY era, position,"
        " command, seq"
    ).fetchall()
    assert [row[:3] for row in rows] == [("1", user, user), ("2", user, owner), ("3", user, user)]
    assert rows[0][3] == rows[2][3] != rows[1][3]


def test_set_role_has_its_own_changeset(conn, role):
    name = role()
    conn.execute(
        f"GRANT INSERT ON t TO {name}; BEGIN; INSERT INTO t VALUES (1); SET LOCAL ROLE {name}; INSERT INTO t VALUES"
        " (2);RESET ROLE; INSERT INTO t VALUES (3); COMMIT"
    )
    rows = conn.execute("SELECT effective_role, session_role FROM audit.log ORDER BY seq").fetchall()
    assert rows == [("postgres", "postgres"), (name, "postgres"), ("postgres", "postgres")]
    assert log_size(conn)[0] == 2


# --- isolation levels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_serialization_failure_and_retry(conn, db, level):
    conn.execute("INSERT INTO t VALUES (1, 0)")
    other = db.connect()
    other.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT * FROM t")
    conn.execute("UPDATE t SET n = 1")
    with sqlstate("40001"):
        other.execute("UPDATE t SET n = 2")
    other.execute(f"ROLLBACK; BEGIN ISOLATION LEVEL {level}; UPDATE t SET n = 2; COMMIT")
    assert [event.image["n"] for event in events(conn, "t")] == ["\0000", "\0001", "\0002"]


def test_serializable_transactions_do_not_meet_in_the_log(conn, db):
    """Two that touch different tables must not fail because both write the log."""
    other = db.connect()
    for i in range(20):
        for session in (conn, other):
            session.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        conn.execute("SELECT count(*) FROM plain; INSERT INTO t VALUES (%d)" % i)
        other.execute("SELECT count(*) FROM plain; INSERT INTO u VALUES (%d)" % i)
        conn.execute("COMMIT")
        other.execute("COMMIT")


def test_deadlock_victim_leaves_nothing(conn, db):
    import threading

    conn.execute("INSERT INTO t VALUES (1, 0), (2, 0); SET deadlock_timeout = '10ms'")
    other = db.connect()
    conn.execute("BEGIN; UPDATE t SET n = n + 1 WHERE id = 1")
    other.execute("BEGIN; UPDATE t SET n = n + 1 WHERE id = 2")
    failures = []

    def second():
        try:
            other.execute("UPDATE t SET n = n + 1 WHERE id = 1; COMMIT")
        except psycopg.Error as error:
            failures.append(error.sqlstate)
            other.execute("ROLLBACK")

    thread = threading.Thread(target=second)
    thread.start()
    try:
        conn.execute("UPDATE t SET n = n + 1 WHERE id = 2; COMMIT")
    except psycopg.Error as error:
        failures.append(error.sqlstate)
        conn.execute("ROLLBACK")
    thread.join()
    assert failures == ["40P01"]
    assert len(events(conn, "t")) == 4
