"""Mode sampled: a share of the transactions is recorded, each of them whole; what is skipped is counted."""

import math

import pytest

from auditlib import check_integrity, events, sqlstate

@pytest.fixture
def server(server):
    """A connection to a fresh database with the extension."""
    server.drop_db("sampled")
    server.create_db("sampled")
    with server.connect("sampled") as conn:
        conn.execute("CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY, n int)")
        yield conn


def enable(conn, rate, table="t", **options):
    further = "".join(", %s => %s" % option for option in options.items())
    conn.execute("SELECT audit.enable('%s', mode => 'sampled', sample_rate => %s%s)" % (table, rate, further))


def sampled_out(conn):
    return conn.execute("SELECT sampled_out FROM audit.stats").fetchone()[0]


def transactions(conn, number, first=1):
    """Each row in a transaction of its own."""
    conn.execute("CREATE OR REPLACE PROCEDURE fill(first int, number int) LANGUAGE plpgsql AS $$ BEGIN "
                 "FOR i IN first .. first + number - 1 LOOP INSERT INTO t VALUES (i, 0); COMMIT; END LOOP; END $$")
    conn.execute("CALL fill(%s, %s)", [first, number])


def recorded(conn):
    return conn.execute("SELECT count(*) FROM audit.event WHERE operation <> 'FAILURE'").fetchone()[0]


def assert_binomial(successes, number, rate):
    deviation = math.sqrt(number * rate * (1 - rate))
    assert abs(successes - number * rate) < 4 * deviation, (successes, number, rate)


def test_a_share_of_100000_transactions(server):
    number, rate = 100_000, 0.1
    enable(server, rate)
    server.execute("SET synchronous_commit = off")
    transactions(server, number)
    found = recorded(server)
    assert_binomial(found, number, rate)
    assert sampled_out(server) == number - found
    # The rate is with what is recorded, as a number.
    assert server.execute("SELECT DISTINCT details::text FROM audit.event").fetchall() == [('{"sample_rate": 0.1}',)]
    # No run of successes, as a generator that is not drawn anew would give.
    pairs = server.execute("SELECT count(*) FROM audit.event a JOIN audit.event b"
                           " ON b.resource_id::int = a.resource_id::int + 1").fetchone()[0]
    assert_binomial(pairs, number, rate * rate)


@pytest.mark.parametrize("rate, share", [(0, 0), (1, 1), ("'-0'", 0)])
def test_none_and_all_are_exact(server, rate, share):
    enable(server, rate)
    transactions(server, 2000)
    assert (recorded(server), sampled_out(server)) == (2000 * share, 2000 * (1 - share))


def test_a_transaction_is_recorded_whole_or_not_at_all(server):
    server.execute("CREATE TABLE u (LIKE t INCLUDING ALL); CREATE TABLE rarer (LIKE t INCLUDING ALL);"
                   "CREATE TABLE always (LIKE t INCLUDING ALL); SELECT audit.enable('always')")
    enable(server, 0.5)
    enable(server, 0.5, "u")
    enable(server, 0.05, "rarer")
    number = 400
    for i in range(number):
        with server.transaction():
            server.execute("INSERT INTO t VALUES (%s, 1), (%s, 2)", [i, number + i])
            server.execute("INSERT INTO u SELECT * FROM t WHERE id = %s", [i])
            with server.transaction():
                server.execute("UPDATE t SET n = 3 WHERE id = %s", [i])
            server.execute("INSERT INTO rarer VALUES (%s, 1)", [i])
            server.execute("INSERT INTO always VALUES (%s, 1)", [i])
            server.execute("DELETE FROM u WHERE id = %s", [i])
    counts = server.execute(
        """SELECT count(*) FILTER (WHERE table_name = 't'), count(*) FILTER (WHERE table_name = 'u'),
                  count(*) FILTER (WHERE table_name = 'rarer'), count(*) FILTER (WHERE table_name = 'always')
             FROM audit.event JOIN audit.relation r ON r.id = relation_id GROUP BY changeset_id""").fetchall()
    assert len(counts) == number
    assert set(counts) <= {(0, 0, 0, 1), (3, 2, 0, 1), (3, 2, 1, 1)}
    whole = sum(1 for found in counts if found[0])
    assert_binomial(whole, number, 0.5)
    rarer = sum(found[2] for found in counts)
    assert sampled_out(server) == (number - whole) * 5 + (number - rarer)
    check_integrity(server)


def test_what_is_rolled_back_is_not_counted(server):
    enable(server, 0)
    with server.transaction():
        server.execute("INSERT INTO t VALUES (1, 1)")
        server.execute("SAVEPOINT a; INSERT INTO t VALUES (2, 1), (3, 1)")
        server.execute("SAVEPOINT b; INSERT INTO t VALUES (4, 1); RELEASE SAVEPOINT b")
        server.execute("ROLLBACK TO SAVEPOINT a; INSERT INTO t VALUES (5, 1); RELEASE SAVEPOINT a")
        server.execute("SAVEPOINT c; INSERT INTO t VALUES (6, 1), (7, 1); RELEASE SAVEPOINT c")
    assert sampled_out(server) == 4
    server.execute("BEGIN; INSERT INTO t VALUES (8, 1); ROLLBACK")
    with sqlstate("23505"):
        server.execute("INSERT INTO t VALUES (9, 1), (1, 1)")
    assert sampled_out(server) == 4
    server.execute("BEGIN; INSERT INTO t VALUES (10, 1); PREPARE TRANSACTION 'sampled'")
    server.execute("COMMIT PREPARED 'sampled'")
    assert sampled_out(server) == 5
    assert recorded(server) == 0
    server.execute("TRUNCATE t")
    assert (sampled_out(server), recorded(server)) == (6, 0)
    server.execute("SELECT audit.stats_reset()")
    assert sampled_out(server) == 0


def test_the_rate_stands_beside_other_details(server):
    server.execute("ALTER TABLE t ADD closed boolean")
    enable(server, "1", soft_delete_column="'closed'", snapshot="true")
    server.execute("INSERT INTO t VALUES (1, 1, false)")
    server.execute("UPDATE t SET closed = true, id = 2")
    server.execute("TRUNCATE t")
    enable(server, "1e-7")
    server.execute("SELECT audit.enable('t', mode => 'sampled', sample_rate => 1.0)")
    found = [(e.operation, e.details) for e in events(server)]
    assert found == [
        ("INSERT", {"sample_rate": 1}),
        ("UPDATE", {"sample_rate": 1, "soft_delete": True, "old_resource_id": "1"}),
        ("TRUNCATE", {"sample_rate": 1})]
    check_integrity(server)


def test_the_rows_that_are_there_are_recorded_in_full(server):
    transactions(server, 100)
    enable(server, 0, snapshot="true")
    assert [e.operation for e in events(server)] == ["SNAPSHOT"] * 100
    assert all(e.details is None for e in events(server))


def test_a_context_is_required_of_what_is_skipped_too(server):
    enable(server, 0, require_context="'{user_id}'")
    with sqlstate("55000"):
        server.execute("INSERT INTO t VALUES (1, 1)")
    with sqlstate("55000"):
        server.execute("TRUNCATE t")
    server.execute("SELECT audit.set_context(user_id => 'ann', is_local => false)")
    server.execute("INSERT INTO t VALUES (1, 1)")
    assert (recorded(server), sampled_out(server)) == (0, 1)


def test_partitions_and_children_follow(server):
    server.execute("CREATE TABLE p (id int) PARTITION BY RANGE (id); CREATE TABLE c () INHERITS (t)")
    enable(server, 0, "p")
    enable(server, 0.25)
    server.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1)")
    assert server.execute("SELECT target::text, mode, sample_rate FROM audit.policy ORDER BY 1").fetchall() == [
        ("c", "sampled", 0.25), ("p", "sampled", 0), ("p1", "sampled", 0), ("t", "sampled", 0.25)]
    assert (recorded(server), sampled_out(server)) == (0, 1)
    server.execute("ALTER TABLE p DETACH PARTITION p1; SELECT audit.enable('p'); INSERT INTO p1 VALUES (2)")
    assert (recorded(server), sampled_out(server)) == (0, 2)


def test_it_is_switched_under_load(preloaded, server):
    enable(server, 0)
    with preloaded.connect("sampled") as other:
        other.execute("INSERT INTO t VALUES (1, 1)")
        server.execute("SELECT audit.enable('t')")
        other.execute("INSERT INTO t VALUES (2, 1)")
        enable(server, 0)
        other.execute("INSERT INTO t VALUES (3, 1)")
        assert [e.resource_id for e in events(server)] == ["2"]
        assert sampled_out(server) == 2


def test_without_preload_it_samples_and_nothing_counts(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    enable(conn, 0)
    conn.execute("INSERT INTO t VALUES (1, 1)")
    assert (recorded(conn), sampled_out(conn)) == (0, None)
    enable(conn, 1)
    conn.execute("INSERT INTO t VALUES (2, 1)")
    assert recorded(conn) == 1


@pytest.mark.parametrize("rate", ["-0.1", "1.1", "'NaN'", "'Infinity'", "'-Infinity'"])
def test_what_is_no_share_is_refused(conn, rate):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    with sqlstate("22023"):
        enable(conn, rate)
    with sqlstate("22023"):
        conn.execute("SELECT audit.enable('t', sample_rate => 0.5)")
