"""What audit.stats and audit.stats_tables count."""

from auditlib import sqlstate
from queuelib import database, log_isolated, stats, until


def tables(conn):
    return {row[0]: row[1:] for row in conn.execute(
        "SELECT target::text, mode, events, sampled_out, extract(epoch FROM capture_time)::float8 FROM audit.stats_tables")}


def test_failures_by_class(server):
    with database(server, "classes"), server.connect("classes") as conn:
        assert stats(conn)["failures_by_class"] is None
        conn.execute("SELECT audit.enable('account'); INSERT INTO account VALUES (1, 1)")
        for statement, state, number in (
            ("INSERT INTO account VALUES (1, 1)", "23505", 3),
            ("INSERT INTO account VALUES (NULL, 1)", "23502", 2),
            ("UPDATE account SET balance = 1 / (id - 1)", "22012", 4),
            ("UPDATE account SET nowhere = 1", "42703", 1),
            ("DO $$ BEGIN UPDATE account SET balance = 2; RAISE SQLSTATE 'ZZ123'; END $$", "ZZ123", 1),
        ):
            for _ in range(number):
                with sqlstate(state):
                    conn.execute(statement)
        until(lambda: stats(conn)["failures_recorded"] == 11, 60)
        assert stats(conn)["failures_by_class"] == {"22": 4, "23": 5, "42": 1, "ZZ": 1}
        conn.execute("SELECT audit.stats_reset()")
        assert stats(conn)["failures_by_class"] is None
        with sqlstate("22012"):
            conn.execute("UPDATE account SET balance = 1 / (id - 1)")
        until(lambda: stats(conn)["failures_by_class"] == {"22": 1}, 60)


def test_numbers_of_tables(server):
    with database(server, "numbers"), server.connect("numbers") as conn:
        conn.execute("CREATE TABLE a (id int); CREATE TABLE s (id int)")
        conn.execute("SELECT audit.enable('account'), audit.enable('a', mode => 'async'), "
                     "audit.enable('s', mode => 'sampled', sample_rate => 0)")
        assert tables(conn) == {"account": ("sync", None, None, None), "a": ("async", None, None, None),
                                "s": ("sampled", None, None, None)}

        def change():
            with conn.transaction():
                conn.execute("INSERT INTO account VALUES ((SELECT coalesce(max(id), 0) + 1 FROM account), 1)")
                conn.execute("INSERT INTO a VALUES (1), (2)")
                conn.execute("SAVEPOINT x; INSERT INTO a VALUES (3); INSERT INTO s VALUES (9); ROLLBACK TO SAVEPOINT x")
                conn.execute("SAVEPOINT y; INSERT INTO s SELECT generate_series(1, 5); RELEASE SAVEPOINT y")
            conn.execute("BEGIN; INSERT INTO a VALUES (4); ROLLBACK")

        change()
        assert tables(conn) == {"account": ("sync", None, None, None), "a": ("async", 2, 0, 0), "s": ("sampled", 0, 5, 0)}
        assert stats(conn)["session_time"] == "00:00:00"
        # In the midst of a session, with layouts at hand.
        conn.execute("SET audit.track_timing = on")
        change()
        found = tables(conn)
        assert {name: numbers[:3] for name, numbers in found.items()} == {
            "account": ("sync", 1, 0), "a": ("async", 4, 0), "s": ("sampled", 0, 10)}
        assert all(numbers[3] > 0 for numbers in found.values())
        spent = conn.execute("SELECT extract(epoch FROM session_time)::float8 FROM audit.stats").fetchone()[0]
        # With what the commit takes.
        assert spent > 0.9 * found["account"][3]
        conn.execute("SET audit.track_timing = off")
        change()
        assert tables(conn)["account"] == found["account"]
        until(lambda: stats(conn)["worker_time"] > "00:00:00", 60)
        conn.execute("SELECT audit.stats_reset()")
        assert set(numbers[1:] for numbers in tables(conn).values()) == {(None, None, None)}
        assert stats(conn)["session_time"] == "00:00:00"


def test_a_thousand_tables_and_more(server):
    """What finds no place is not counted; nothing else happens to it."""
    with database(server, "crowded"), server.connect("crowded") as conn:
        conn.execute("CREATE TABLE p (id int) PARTITION BY LIST (id)")
        conn.execute("DO $$ BEGIN FOR i IN 1 .. 1050 LOOP EXECUTE format('CREATE TABLE p_%s PARTITION OF p FOR VALUES IN (%s)', i, i);"
                     "END LOOP; END $$")
        conn.execute("SELECT audit.enable('p', mode => 'sampled', sample_rate => 1)")
        conn.execute("INSERT INTO p SELECT generate_series(1, 1050)")
        assert conn.execute("SELECT count(*) FROM audit.event").fetchone()[0] == 1050
        counted, events = conn.execute("SELECT count(events), sum(events) FROM audit.stats_tables").fetchone()
        assert 500 < counted <= 1024 and events == counted
        # The places of a database that is gone are free again, once the launcher has seen that it is.
        conn.execute("SELECT audit.stats_reset()")
        assert conn.execute("SELECT count(events) FROM audit.stats_tables").fetchone()[0] == 0


def test_readers_see_them_and_others_do_not(server):
    with database(server, "shown"), server.connect("shown") as conn, server.connect() as admin:
        admin.execute("DROP ROLE IF EXISTS stats_user; CREATE ROLE stats_user LOGIN")
        with server.connect("shown", user="stats_user") as own:
            for query in ("SELECT * FROM audit.stats_tables", "SELECT * FROM audit.table_state()",
                          "SELECT * FROM audit.failure_classes()", "SET audit.track_timing = on"):
                with sqlstate("42501"):
                    own.execute(query)
        conn.execute("SELECT audit.grant_reader('stats_user')")
        with server.connect("shown", user="stats_user") as own:
            own.execute("SELECT * FROM audit.stats_tables, audit.stats, audit.in_transit")
        conn.execute("DROP OWNED BY stats_user")
        admin.execute("DROP ROLE stats_user")


def test_without_preload_nothing_is_counted(conn):
    conn.execute("CREATE TABLE t (id int); SELECT audit.enable('t')")
    conn.execute("SET audit.track_timing = on; INSERT INTO t VALUES (1)")
    assert tables(conn) == {"t": ("sync", None, None, None)}
    s = stats(conn)
    assert s["failures_by_class"] is None and s["session_time"] is None


def test_the_worker_counts_its_time(server):
    with database(server, "timed"), server.connect("timed") as conn:
        assert log_isolated(conn)
        until(lambda: stats(conn)["worker_time"] > "00:00:00")
