"""Captured events wait until commit, or until somebody reads the log: whoever reads finds all of them, however deep in
sub-transactions, and what remains at the end is in the log exactly once."""

import pytest
from auditlib import check_integrity

KEYS = "SELECT resource_id FROM audit.log WHERE resource = 'public.t' ORDER BY era, position NULLS LAST, command, seq"


@pytest.fixture
def conn(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, n int); SELECT audit.enable('t')")
    conn.execute(
        """CREATE FUNCTION seen() RETURNS text LANGUAGE plpgsql AS $$
           BEGIN RETURN (SELECT coalesce(string_agg(resource_id, ' ' ORDER BY seq), '') FROM audit.log); END $$"""
    )
    return conn


def keys(conn, query=KEYS):
    return [row[0] for row in conn.execute(query).fetchall()]


def heap_rows(conn, db):
    """Rows in the log's heap, committed or not."""
    with db.connect() as other:
        other.execute("CREATE EXTENSION IF NOT EXISTS pageinspect")
        return other.execute(
            """SELECT count(*) FROM generate_series(0, pg_relation_size('audit.event_default') / 8192 - 1) AS block,
                      heap_page_items(get_raw_page('audit.event_default', block::int)) WHERE t_xmin IS NOT NULL"""
        ).fetchone()[0]


def test_nothing_is_written_before_it_must_be(conn, db):
    conn.execute("BEGIN; INSERT INTO t VALUES (1); UPDATE t SET n = 1; SELECT * FROM t; DELETE FROM t")
    assert heap_rows(conn, db) == 0
    conn.execute("COMMIT")
    assert heap_rows(conn, db) == 3
    check_integrity(conn)


@pytest.mark.parametrize(
    "read",
    [
        "SELECT resource_id FROM audit.log ORDER BY seq",
        "SELECT resource_id FROM audit.event ORDER BY seq",
        "SELECT resource_id FROM audit.event_default ORDER BY seq",
        "WITH e AS MATERIALIZED (SELECT * FROM audit.event) SELECT resource_id FROM e ORDER BY seq",
        "SELECT (SELECT e.resource_id FROM audit.event e WHERE e.seq = i) FROM generate_series(0, 1) i",
        "SELECT unnest(string_to_array(seen(), ' '))",
        "INSERT INTO copy SELECT resource_id FROM audit.event ORDER BY seq RETURNING id",
        "EXECUTE reader",
        "FETCH ALL FROM later",
    ],
)
def test_every_way_of_reading(conn, read):
    conn.execute("CREATE TABLE copy (id text); PREPARE reader AS SELECT resource_id FROM audit.event ORDER BY seq")
    conn.execute("BEGIN; INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)")
    if read.startswith("FETCH"):
        conn.execute("DECLARE later CURSOR FOR SELECT resource_id FROM audit.event ORDER BY seq")
    assert keys(conn, read) == ["1", "2"]
    assert keys(conn) == ["1", "2"]
    conn.execute("COMMIT")
    assert keys(conn) == ["1", "2"]
    check_integrity(conn)


def test_utility_statements_that_read(conn):
    conn.execute("BEGIN; INSERT INTO t VALUES (1)")
    with conn.cursor().copy("COPY audit.event_default (resource_id) TO STDOUT") as copy:
        assert b"".join(copy) == b"1\n"
    conn.execute("INSERT INTO t VALUES (2)")
    with conn.cursor().copy("COPY (SELECT resource_id FROM audit.event ORDER BY seq) TO STDOUT") as copy:
        assert b"".join(copy) == b"1\n2\n"
    conn.execute("INSERT INTO t VALUES (3); CREATE TABLE copy AS SELECT resource_id FROM audit.event")
    assert conn.execute("SELECT count(*) FROM copy").fetchone() == (3,)
    conn.execute("COMMIT")
    assert keys(conn) == ["1", "2", "3"]
    check_integrity(conn)


def test_a_cursor_sees_what_was_there_when_it_was_opened(conn):
    conn.execute("BEGIN; INSERT INTO t VALUES (1); DECLARE c CURSOR FOR SELECT resource_id FROM audit.event")
    conn.execute("INSERT INTO t VALUES (2)")
    assert keys(conn) == ["1", "2"]
    assert keys(conn, "FETCH ALL FROM c") == ["1"]
    conn.execute("COMMIT")
    check_integrity(conn)


@pytest.mark.parametrize("end", ["RELEASE", "ROLLBACK TO"])
def test_an_inner_one_reads_what_the_outer_ones_captured(conn, end):
    conn.execute("BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a; INSERT INTO t VALUES (2); SAVEPOINT b")
    assert keys(conn) == ["1", "2"]
    conn.execute("INSERT INTO t VALUES (3); SAVEPOINT c; INSERT INTO t VALUES (4)")
    assert keys(conn) == ["1", "2", "3", "4"]
    conn.execute(f"{end} SAVEPOINT b" if end == "RELEASE" else "ROLLBACK TO b")
    expected = ["1", "2", "3", "4"] if end == "RELEASE" else ["1", "2"]
    assert keys(conn) == expected
    conn.execute("INSERT INTO t VALUES (5)")
    assert keys(conn) == [*expected, "5"]
    conn.execute("COMMIT")
    assert keys(conn) == [*expected, "5"]
    check_integrity(conn)


def test_stored_by_one_level_and_rolled_back_by_another(conn):
    """b stores what the top captured and is released into a; a is rolled back: the top's events are to be stored again."""
    conn.execute("BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a; INSERT INTO t VALUES (2); SAVEPOINT b")
    assert keys(conn) == ["1", "2"]
    conn.execute("RELEASE b")
    assert keys(conn) == ["1", "2"]
    conn.execute("ROLLBACK TO a")
    assert keys(conn) == ["1"]
    conn.execute("ROLLBACK TO a; COMMIT")
    assert keys(conn) == ["1"]
    check_integrity(conn)


def test_read_in_exception_blocks_of_the_first_statement_of_a_session(conn, db):
    """The library is loaded by the statement itself."""
    conn.execute(
        """CREATE FUNCTION work() RETURNS text LANGUAGE plpgsql AS $$
           DECLARE inside text; caught text;
           BEGIN
               INSERT INTO t VALUES (1);
               BEGIN
                   INSERT INTO t VALUES (2);
                   inside := seen();
                   RAISE EXCEPTION 'back';
               EXCEPTION WHEN raise_exception THEN
                   caught := seen();
               END;
               INSERT INTO t VALUES (3);
               RETURN inside || ', ' || caught || ', ' || seen();
           END $$"""
    )
    with db.connect() as fresh:
        assert fresh.execute("SELECT work()").fetchone() == ("1 2, 1, 1 3",)
    assert keys(conn) == ["1", "3"]
    check_integrity(conn)


def test_loops_of_exception_blocks(conn):
    conn.execute(
        """DO $$
           BEGIN
               FOR i IN 1..5000 LOOP
                   BEGIN
                       INSERT INTO t VALUES (i);
                       IF i % 3 = 0 THEN RAISE EXCEPTION 'back'; END IF;
                       IF i % 500 = 1 THEN PERFORM seen(); END IF;
                   EXCEPTION WHEN raise_exception THEN NULL;
                   END;
               END LOOP;
           END $$"""
    )
    assert keys(conn) == [str(i) for i in range(1, 5001) if i % 3]
    check_integrity(conn)


def test_more_than_a_batch_inside_and_outside(conn):
    """Full batches are stored by whoever captured them, and nobody else."""
    conn.execute("BEGIN; INSERT INTO t SELECT generate_series(1, 50)")
    conn.execute("SAVEPOINT a; INSERT INTO t SELECT generate_series(51, 3000); ROLLBACK TO a")
    conn.execute("SAVEPOINT b; INSERT INTO t SELECT generate_series(3001, 6000); RELEASE b")
    expected = [str(i) for i in [*range(1, 51), *range(3001, 6001)]]
    assert keys(conn) == expected
    conn.execute("COMMIT")
    assert keys(conn) == expected
    check_integrity(conn)


def test_a_failed_read_leaves_all_as_it_was(conn):
    conn.execute("BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a")
    with pytest.raises(Exception, match="division by zero"):
        conn.execute("SELECT 1 / (count(*) - 1) FROM audit.event")
    conn.execute("ROLLBACK TO a")
    assert keys(conn) == ["1"]
    conn.execute("COMMIT")
    assert keys(conn) == ["1"]
    check_integrity(conn)


def test_contexts_by_turns(conn):
    conn.execute("BEGIN")
    for i in range(30):
        conn.execute("SELECT set_config('audit.user_id', %s, true)", ["AB"[i % 2]])
        conn.execute("INSERT INTO t VALUES (%s)", [i])
        if i % 7 == 0:
            assert keys(conn) == [str(j) for j in range(i + 1)]
    conn.execute("COMMIT")
    assert keys(conn) == [str(j) for j in range(30)]
    check_integrity(conn)
