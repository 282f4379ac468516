"""Mode async: events are handed to the worker when the transaction commits. Nothing of a live server is lost, and what a
crash takes is found."""

import contextlib
import functools
import os
import shutil
import signal
import threading
import time

import psycopg
import pytest

import queuelib
from auditlib import check_integrity, events, replay, sqlstate
from cluster import Cluster
from queuelib import PRELOAD, stats, worker_pids

until = functools.partial(queuelib.until, seconds=120)


def prepare(cluster, name):
    cluster.drop_db(name)
    cluster.create_db(name)
    with cluster.connect(name) as conn:
        conn.execute("CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY, n int, v text);"
                     "CREATE TABLE s (LIKE t INCLUDING ALL)")
        conn.execute("SELECT audit.enable('t', mode => 'async'), audit.enable('s')")


@pytest.fixture
def server(server):
    """A connection to a fresh database where table t is async and s sync."""
    prepare(server, "later")
    with server.connect("later") as conn:
        yield conn


def settled(conn, least=0):
    """Waits until nothing is on its way, and returns the events of rows."""
    until(lambda: conn.execute("SELECT count(*) FROM audit.in_transit").fetchone()[0] == 0
          and stats(conn)["queue_depth"] == 0)
    found = [e for e in events(conn) if e.operation not in ("FAILURE", "APPLICATION")]
    assert len(found) >= least
    return found


def fallbacks(conn):
    return stats(conn)["queue_fallbacks"]


def test_events_come_after_the_commit_with_the_sessions_context(server, preloaded):
    with preloaded.connect("later", application_name="shop") as conn:
        with conn.transaction():
            conn.execute("SELECT audit.set_context(user_id => 'ann', tenant_id => 't1', ip_address => '192.0.2.7', "
                         "context => '{\"branch\": \"north\"}')")
            conn.execute("INSERT INTO t VALUES (1, 1, 'a'), (2, 2, NULL)")
            conn.execute("UPDATE t SET n = 5 WHERE id = 1")
            conn.execute("INSERT INTO s VALUES (1, 1, 'a')")
            # Its own log does not have them yet.
            assert conn.execute("SELECT count(*) FROM audit.log WHERE resource = 'public.t'").fetchone()[0] == 0
            assert conn.execute("SELECT count(*) FROM audit.log WHERE resource = 'public.s'").fetchone()[0] == 1
        pid = conn.info.backend_pid
    settled(server, 4)
    replay(server, "t")
    replay(server, "s")
    assert check_integrity(server) == (2, 4)
    rows = server.execute(
        """SELECT DISTINCT r.resource, user_id, tenant_id, host(ip_address), context, session_role, effective_role,
                  application_name, origin::text, backend_pid, position::text
             FROM audit.event e JOIN audit.relation r ON r.id = e.relation_id
             JOIN audit.changeset c ON c.id = e.changeset_id ORDER BY 1""").fetchall()
    assert [row[0] for row in rows] == ["public.s", "public.t"]
    assert rows[0][1:] == rows[1][1:] and rows[0][1:-1] == (
        "ann", "t1", "192.0.2.7", {"branch": "north"}, "postgres", "postgres", "shop", "trigger", pid)
    s = stats(server)
    assert (s["queue_fallbacks"], s["queue_lost"], s["events_lost"], s["queue_used_bytes"]) == (0, 0, 0, 0)
    assert server.execute("SELECT mode, sample_rate FROM audit.policy WHERE target = 't'::regclass").fetchone() == (
        "async", 1.0)
    assert not server.execute("SELECT * FROM audit.verify()").fetchall()


def test_what_is_rolled_back_is_never_written(server):
    with sqlstate("23505"), server.transaction():
        server.execute("INSERT INTO t VALUES (1, 1, 'a')")
        server.execute("INSERT INTO t VALUES (1, 1, 'a')")
    server.execute("BEGIN; INSERT INTO t VALUES (1, 1, 'a'); ROLLBACK")
    with server.transaction():
        server.execute("INSERT INTO t VALUES (1, 1, 'a')")
        server.execute("SAVEPOINT a; INSERT INTO t VALUES (2, 1, 'b'), (3, 1, 'c')")
        server.execute("SAVEPOINT b; INSERT INTO t VALUES (4, 1, 'd'); RELEASE SAVEPOINT b")
        server.execute("ROLLBACK TO SAVEPOINT a; INSERT INTO t VALUES (5, 1, 'e'); RELEASE SAVEPOINT a")
        server.execute("SAVEPOINT c; UPDATE t SET n = 2; RELEASE SAVEPOINT c")
    found = settled(server, 4)
    assert [(e.operation, e.resource_id) for e in found] == [
        ("INSERT", "1"), ("INSERT", "5"), ("UPDATE", "1"), ("UPDATE", "5")]
    replay(server, "t")
    # The failure says how much it discarded.
    failure, = until(lambda: [e for e in events(server) if e.operation == "FAILURE"])
    assert failure.details["discarded_events"] == 1 and failure.table_name == "t"
    check_integrity(server)


def test_a_deferred_constraint_that_fails_at_commit(server):
    server.execute("ALTER TABLE t ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    with sqlstate("23505"), server.transaction():
        server.execute("INSERT INTO t VALUES (1, 1, 'a'), (2, 1, 'b')")
    server.execute("INSERT INTO t VALUES (1, 1, 'a')")
    assert [e.resource_id for e in settled(server, 1)] == ["1"]
    assert stats(server)["queue_used_bytes"] == 0


def test_the_order_of_a_row_s_versions(server):
    server.execute("""
        CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.n < 5 THEN
                BEGIN
                    UPDATE t SET n = NEW.n + 1 WHERE id = NEW.id;
                EXCEPTION WHEN division_by_zero THEN NULL;
                END;
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER again AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION again()""")
    with server.transaction():
        server.execute("INSERT INTO t SELECT i, 1, 'a' FROM generate_series(1, 20) i")
        server.execute("WITH gone AS (DELETE FROM t RETURNING *) INSERT INTO t SELECT id, 9, v FROM gone ON CONFLICT DO NOTHING")
        server.execute("DELETE FROM t WHERE id > 10")
        server.execute("INSERT INTO t SELECT i, 9, 'b' FROM generate_series(11, 20) i")
    settled(server)
    replay(server, "t")
    check_integrity(server)


def test_contexts_by_turns_and_tenants_of_rows(server):
    server.execute("CREATE TABLE r (id int PRIMARY KEY, tenant text)")
    server.execute("SELECT audit.enable('r', mode => 'async', tenant_column => 'tenant')")
    with server.transaction():
        for i in range(30):
            server.execute("SELECT audit.set_context(user_id => %s)", ["user %s" % (i % 3)])
            server.execute("INSERT INTO t VALUES (%s, 1, 'a')", [i])
        server.execute("INSERT INTO r SELECT i, 'tenant ' || i % 4 FROM generate_series(1, 40) i")
        server.execute("WITH gone AS (DELETE FROM r RETURNING *) "
                       "INSERT INTO r SELECT id + 100, 'tenant ' || (id + 1) % 4 FROM gone")
    settled(server, 150)
    replay(server, "t")
    replay(server, "r")
    assert check_integrity(server) == (7, 150)
    assert server.execute("SELECT count(DISTINCT user_id), count(DISTINCT tenant_id) FROM audit.changeset").fetchone() == (3, 4)


def test_prepared_transactions_are_written_in_the_transaction(server):
    server.execute("BEGIN; INSERT INTO t VALUES (1, 1, 'a'); SAVEPOINT a; INSERT INTO t VALUES (2, 1, 'a');"
                   "RELEASE SAVEPOINT a; PREPARE TRANSACTION 'later'")
    assert stats(server)["queue_depth"] == 0
    assert events(server) == []
    server.execute("COMMIT PREPARED 'later'")
    assert [e.resource_id for e in events(server)] == ["1", "2"]
    assert fallbacks(server) == 1
    check_integrity(server)


@pytest.mark.parametrize("kind", ["at once", "in a savepoint", "after a savepoint", "around a savepoint", "rolled back"])
def test_a_large_transaction_is_written_in_the_transaction(server, kind):
    many = "INSERT INTO t SELECT i, 1, repeat('x', 1000) FROM generate_series(%s::int, %s::int) i"
    with server.transaction():
        server.execute("INSERT INTO t VALUES (1, 1, 'first')")
        server.execute("INSERT INTO s VALUES (1, 1, 'first')")
        if kind == "at once":
            server.execute(many, [2, 5000])
        elif kind == "in a savepoint":
            with server.transaction():
                server.execute("UPDATE t SET n = 2")
                server.execute(many, [2, 5000])
                server.execute("UPDATE t SET n = n + 1 WHERE id < 10")
            server.execute("UPDATE t SET n = n + 1 WHERE id < 20")
        elif kind == "after a savepoint":
            with server.transaction():
                server.execute("UPDATE t SET n = 2")
            server.execute(many, [2, 5000])
            server.execute("UPDATE t SET n = n + 1 WHERE id < 10")
        elif kind == "around a savepoint":
            server.execute(many, [2, 500])
            with server.transaction():
                server.execute(many, [501, 2000])
                with server.transaction():
                    server.execute("UPDATE t SET n = n + 1 WHERE id < 20")
            server.execute("UPDATE t SET n = n + 1 WHERE id < 10")
        else:
            server.execute("SAVEPOINT a")
            server.execute(many, [2, 5000])
            server.execute("ROLLBACK TO SAVEPOINT a")
            server.execute("UPDATE t SET n = n + 1")
    assert stats(server)["queue_queued"] == 0 and fallbacks(server) == 1
    assert server.execute("SELECT count(*) FROM audit.in_transit").fetchone()[0] == 0
    replay(server, "t")
    replay(server, "s")
    assert len(set(server.execute("SELECT id FROM audit.changeset").fetchall())) == 1
    check_integrity(server, ask_extension=False)
    # The next one goes through the queue again.
    server.execute("UPDATE t SET n = 7 WHERE id = 1")
    settled(server)
    assert (fallbacks(server), stats(server)["queue_queued"]) == (1, 1)
    replay(server, "t")


def test_an_inner_transaction_that_changes_much_waits_for_the_outer_one(server):
    """What an outer level keeps is not written by an inner one, which may still roll back."""
    with server.transaction():
        server.execute("INSERT INTO t VALUES (1, 1, 'outer')")
        server.execute("SAVEPOINT a")
        server.execute("INSERT INTO t SELECT i, 1, repeat('x', 1000) FROM generate_series(2, 2000) i")
        server.execute("SAVEPOINT b")
        server.execute("UPDATE t SET n = 2 WHERE id = 1")
        server.execute("ROLLBACK TO SAVEPOINT b")
        server.execute("UPDATE t SET n = 3 WHERE id <= 2")
        server.execute("ROLLBACK TO SAVEPOINT a")
        server.execute("UPDATE t SET n = 4")
    assert [(e.operation, e.resource_id) for e in settled(server, 2)] == [("INSERT", "1"), ("UPDATE", "1")]
    replay(server, "t")
    check_integrity(server)


def test_a_full_queue_slows_down_and_loses_nothing(new_cluster):
    cluster = new_cluster({**PRELOAD, "audit.queue_size": "64kB"})
    prepare(cluster, "full")
    with cluster.connect("full") as conn, cluster.connect("full") as blocker:
        with blocker.transaction():
            blocker.execute("LOCK TABLE audit.in_transit IN SHARE ROW EXCLUSIVE MODE")
            # Commits wait for nobody but this lock, so the queue is filled by a session that holds it.
            for i in range(200):
                blocker.execute("INSERT INTO s VALUES (%s, 1, 'a')", [i])
        with conn.transaction():
            conn.execute("INSERT INTO t SELECT i, 1, repeat('x', 100) FROM generate_series(1, 1000) i")
        assert fallbacks(conn) == 1
        for i in range(1001, 2000):
            conn.execute("INSERT INTO t VALUES (%s, 1, 'a')", [i])
        settled(conn, 1999)
        replay(conn, "t")
        assert (stats(conn)["queue_lost"], stats(conn)["queue_used_bytes"]) == (0, 0)
        check_integrity(conn, ask_extension=False)


SCRIPT = """
\\set id random(1, 500)
BEGIN;
SELECT audit.set_context(user_id => 'client ' || :client_id);
INSERT INTO t VALUES (:id, 1, 'a') ON CONFLICT (id) DO UPDATE SET n = t.n + 1;
SAVEPOINT a;
INSERT INTO s VALUES (:id, 1, 'a') ON CONFLICT (id) DO UPDATE SET n = s.n + 1;
UPDATE t SET n = n + 1 WHERE id = :id;
ROLLBACK TO a;
UPDATE t SET n = n + 1, v = repeat('y', (random() * 3000)::int) WHERE id = :id;
DELETE FROM t WHERE id = :id AND n % 7 = 0;
INSERT INTO s VALUES (:id, 1, 'a') ON CONFLICT (id) DO UPDATE SET n = s.n + 1;
END;
"""


class Load(threading.Thread):
    """pgbench in the background."""

    def __init__(self, cluster, name, clients, transactions):
        super().__init__()
        script = cluster.scratch / "script.sql"
        script.write_text(SCRIPT)
        self.command = [cluster.bin("pgbench"), "-n", "-c", clients, "-j", 2, "-t", transactions, "--max-tries=1000",
                        "-f", script, name]
        self.cluster = cluster
        self.result = None
        self.total = clients * transactions

    def run(self):
        self.result = self.cluster.run(self.command).stdout

    def check(self):
        assert "transactions actually processed: %s/%s" % (self.total, self.total) in self.result, self.result


def test_a_hundred_clients_and_the_smallest_queue(new_cluster):
    cluster = new_cluster({**PRELOAD, "audit.queue_size": "64kB", "max_connections": "130"})
    prepare(cluster, "crowd")
    load = Load(cluster, "crowd", 100, 40)
    load.start()
    load.join()
    load.check()
    with cluster.connect("crowd") as conn:
        settled(conn)
        replay(conn, "t")
        replay(conn, "s")
        check_integrity(conn, ask_extension=False)
        s = stats(conn)
        assert (s["queue_lost"], s["queue_used_bytes"], s["events_lost"]) == (0, 0, 0)
        assert s["queue_queued"] + s["queue_fallbacks"] == load.total
        assert s["queue_queued"] > 0


def test_a_worker_that_is_terminated_again_and_again_loses_nothing(preloaded, server):
    load = Load(preloaded, "later", 8, 400)
    load.start()
    kills = 0
    while load.is_alive():
        for pid in worker_pids(preloaded, "later"):
            if kills % 2:
                kills += server.execute("SELECT pg_terminate_backend(%s)", [pid]).fetchone()[0]
            else:
                try:
                    os.kill(pid, signal.SIGTERM)
                    kills += 1
                except ProcessLookupError:
                    pass
        time.sleep(0.05)
    load.join()
    load.check()
    assert kills > 1
    settled(server)
    replay(server, "t")
    replay(server, "s")
    check_integrity(server, ask_extension=False)
    s = stats(server)
    assert (s["queue_lost"], s["events_lost"]) == (0, 0)
    assert s["queue_queued"] + s["queue_fallbacks"] == load.total


def test_it_is_switched_under_load(preloaded, server):
    load = Load(preloaded, "later", 6, 300)
    load.start()
    switches = 0
    while load.is_alive():
        server.execute("SELECT audit.enable('t', mode => %s)", ["sync" if switches % 2 == 0 else "async"])
        switches += 1
        time.sleep(0.05)
    load.join()
    load.check()
    assert switches > 3
    settled(server)
    replay(server, "t")
    replay(server, "s")
    check_integrity(server, ask_extension=False)


def test_what_waits_is_written_at_shutdown(new_cluster):
    cluster = new_cluster({**PRELOAD, "audit.queue_delay": "60s"})
    prepare(cluster, "ends")
    with cluster.connect("ends") as conn:
        conn.execute("INSERT INTO t VALUES (0, 0, 'wakes the worker')")
        until(lambda: len(events(conn)) == 1)
        for i in range(1, 50):
            conn.execute("INSERT INTO t VALUES (%s, 1, 'a')", [i])
    cluster.restart("smart")
    with cluster.connect("ends") as conn:
        assert conn.execute("SELECT count(*) FROM audit.event").fetchone()[0] == 50
        assert conn.execute("SELECT count(*) FROM audit.in_transit").fetchone()[0] == 0
        replay(conn, "t")
        check_integrity(conn)


def lost_events(conn):
    return [e for e in events(conn) if e.action == "audit.events_lost"]


@contextlib.contextmanager
def blocked(cluster, name):
    """The worker cannot write the log meanwhile. Sessions can commit what they leave to it."""
    with cluster.connect(name, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE audit.event IN SHARE MODE")
        yield
        if cluster.running and not blocker.broken:
            blocker.rollback()


def lose(cluster, name, number):
    """Commits so many transactions of two events."""
    with cluster.connect(name) as conn:
        for i in range(1, number + 1):
            conn.execute("INSERT INTO t VALUES (%s, 1, 'a'), (%s, 2, 'b')", [i, -i])
        assert conn.execute("SELECT count(*), sum(events) FROM audit.in_transit").fetchone() == (number, 2 * number)


@pytest.mark.parametrize("how", ["kill -9 of the server", "kill -9 of the worker", "immediate shutdown"])
def test_what_a_crash_takes_is_counted_and_recorded(new_cluster, how):
    cluster = new_cluster(PRELOAD)
    prepare(cluster, "crash")
    with contextlib.suppress(psycopg.OperationalError), blocked(cluster, "crash"):
        lose(cluster, "crash", 25)
        if how == "kill -9 of the server":
            cluster.kill9()
            cluster.start()
        elif how == "immediate shutdown":
            cluster.restart("immediate")
        else:
            pid, = until(lambda: worker_pids(cluster, "crash"))
            before = cluster.log.count("database system is ready")
            os.kill(pid, signal.SIGKILL)
            until(lambda: cluster.log.count("database system is ready") > before)
            cluster.await_ready()
    with cluster.connect("crash") as conn:
        # Nobody has to come first: the launcher looks into each database.
        lost, = until(lambda: lost_events(conn))
        assert (lost.status, lost.origin) == ("error", "isolated")
        assert (lost.details["transactions"], lost.details["events"], lost.details["tables"]) == (25, 50, ["public.t"])
        assert lost.details["since"] <= lost.details["until"]
        assert conn.execute("SELECT count(*) FROM audit.in_transit").fetchone()[0] == 0
        assert stats(conn)["events_lost"] == 50
        assert "audit events of 25 transactions were lost" in cluster.log
        check_integrity(conn)
        assert not conn.execute("SELECT * FROM audit.verify()").fetchall()
    # Once.
    cluster.restart()
    with cluster.connect("crash") as conn:
        conn.execute("INSERT INTO t VALUES (10000, 1, 'a')")
        until(lambda: conn.execute("SELECT count(*) FROM audit.event WHERE resource_id = '10000'").fetchone()[0] == 1)
        assert len(lost_events(conn)) == 1
        assert stats(conn)["events_lost"] == 0


def test_a_worker_killed_again_and_again_loses_what_is_counted(new_cluster):
    """SIGKILL of any process makes the server start anew, with an empty queue."""
    cluster = new_cluster(PRELOAD)
    prepare(cluster, "again")
    number = 0
    for _ in range(4):
        conn = cluster.connect("again")
        before = cluster.log.count("database system is ready")
        pid = None
        try:
            for i in range(400):
                number += 1
                conn.execute("INSERT INTO t VALUES (%s, 1, 'a')", [number])
                if i > 100 and pid is None:
                    pid = next(iter(worker_pids(cluster, "again")), None)
                    if pid is not None:
                        os.kill(pid, signal.SIGKILL)
        except Exception:
            pass
        assert pid is not None
        until(lambda: cluster.log.count("database system is ready") > before)
        cluster.await_ready()
    with cluster.connect("again") as conn:
        until(lambda: conn.execute("SELECT count(*) FROM audit.in_transit").fetchone()[0] == 0)
        rows = conn.execute("SELECT count(*) FROM t").fetchone()[0]
        written = conn.execute("SELECT count(*) FROM audit.event WHERE operation = 'INSERT'").fetchone()[0]
        lost = sum(e.details["events"] for e in lost_events(conn))
        assert rows == written + lost
        check_integrity(conn, ask_extension=False)


def test_a_promoted_standby_tells_what_was_on_its_way(new_cluster):
    primary = new_cluster({**PRELOAD, "hot_standby": "on"})
    prepare(primary, "pair")
    standby = Cluster(conf=PRELOAD)
    try:
        shutil.rmtree(standby.data_dir)
        with blocked(primary, "pair"):
            lose(primary, "pair", 3)
            primary.run([primary.bin("pg_basebackup"), "-D", standby.data_dir, "-X", "stream", "-c", "fast"])
        (standby.data_dir / "standby.signal").touch()
        standby.configure(unix_socket_directories=standby.socket_dir)
        standby.start()
        with standby.connect("pair") as conn:
            assert conn.execute("SELECT count(*) FROM audit.in_transit").fetchone()[0] == 3
            standby.run([standby.bin("pg_ctl"), "promote", "-D", standby.data_dir, "-w"])
            lost, = until(lambda: lost_events(conn))
            assert (lost.details["transactions"], lost.details["events"]) == (3, 6)
            conn.execute("INSERT INTO t VALUES (10000, 1, 'a')")
            until(lambda: conn.execute("SELECT count(*) FROM audit.event WHERE resource_id = '10000'").fetchone()[0] == 1)
        # The primary goes on, and has lost nothing.
        primary.restart()
        with primary.connect("pair") as conn:
            settled(conn, 6)
            assert lost_events(conn) == []
            replay(conn, "t")
    finally:
        standby.remove()


def test_rows_that_moved_are_found(server, preloaded):
    with blocked(preloaded, "later"):
        lose(preloaded, "later", 5)
        server.execute("VACUUM FULL audit.in_transit")
    settled(server, 10)
    replay(server, "t")
    assert (stats(server)["queue_lost"], stats(server)["queue_written"]) == (0, 5)


def test_events_of_a_log_that_was_dropped_are_not_written_into_its_successor(server, preloaded):
    with blocked(preloaded, "later"):
        lose(preloaded, "later", 5)
        dropper = threading.Thread(target=preloaded.psql, args=[
            "BEGIN; DROP EXTENSION audit_ext CASCADE; CREATE EXTENSION audit_ext;"
            "SELECT audit.enable('t', mode => 'async'); COMMIT", "later"])
        dropper.start()
        until(lambda: server.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                                     " AND query LIKE 'DROP EXTENSION%'").fetchone()[0])
    dropper.join()
    with preloaded.connect("later") as conn:
        conn.execute("SELECT audit.log_event('new', isolated => true)")
        until(lambda: stats(conn)["queue_depth"] == 0)
        # The worker may have been quicker than DROP EXTENSION.
        s = stats(conn)
        assert s["queue_lost"] <= 5
        assert [e.action for e in events(conn) if e.operation != "FAILURE"] == ["new"]
        assert s["queue_lost"] + s["queue_written"] >= 6


def test_the_in_transit_rows_are_nobodys(server, preloaded):
    server.execute("INSERT INTO t VALUES (2, 1, 'a')")  # TRUNCATE of a table without a page removes nothing, and is let through
    with sqlstate("55000"):
        server.execute("DELETE FROM audit.in_transit")
    with sqlstate("55000"):
        server.execute("TRUNCATE audit.in_transit")
    with preloaded.connect() as admin:
        admin.execute("DROP ROLE IF EXISTS later_user; CREATE ROLE later_user LOGIN")
    server.execute("GRANT ALL ON t TO later_user")
    with preloaded.connect("later", user="later_user") as conn:
        conn.execute("INSERT INTO t VALUES (1, 1, 'a')")
        for query in ("SELECT * FROM audit.in_transit", "INSERT INTO audit.in_transit VALUES (1, 1, now(), 1, '{}')"):
            with sqlstate("42501"):
                conn.execute(query)
    settled(server, 2)
    assert server.execute("SELECT session_role, effective_role FROM audit.changeset ORDER BY position").fetchall()[1:] == [
        ("later_user", "later_user")]
    server.execute("DROP OWNED BY later_user")
    with preloaded.connect() as admin:
        admin.execute("DROP ROLE later_user")


def test_when_the_log_of_what_is_in_transit_is_missing_the_change_is_refused(server):
    server.execute("ALTER TABLE audit.in_transit RENAME TO elsewhere")
    try:
        with sqlstate("55000"):
            server.execute("INSERT INTO t VALUES (1, 1, 'a')")
        assert server.execute("SELECT count(*) FROM t").fetchone()[0] == 0
        until(lambda: stats(server)["queue_used_bytes"] == 0)
        server.execute("INSERT INTO s VALUES (1, 1, 'a')")
    finally:
        server.execute("ALTER TABLE audit.elsewhere RENAME TO in_transit")
    server.execute("INSERT INTO t VALUES (1, 1, 'a')")
    settled(server, 2)


def test_it_needs_the_library_preloaded(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with sqlstate("55000") as caught:
        conn.execute("SELECT audit.enable('t', mode => 'async')")
    assert "shared_preload_libraries" in caught.error.diag.message_hint
    assert conn.execute("SELECT count(*) FROM audit.policy").fetchone()[0] == 0
    for rate in ("0.5", "0"):
        with sqlstate("22023"):
            conn.execute("SELECT audit.enable('t', mode => 'async', sample_rate => %s)" % rate)


def test_without_the_library_preloaded_any_more_it_is_sync(new_cluster):
    cluster = new_cluster(PRELOAD)
    prepare(cluster, "fewer")
    cluster.configure(shared_preload_libraries="")
    cluster.restart()
    with cluster.connect("fewer") as conn:
        with conn.transaction():
            conn.execute("INSERT INTO t VALUES (1, 1, 'a')")
            assert conn.execute("SELECT count(*) FROM audit.log").fetchone()[0] == 1
        replay(conn, "t")
        assert check_integrity(conn) == (1, 1)


def test_snapshots_and_truncate(server):
    server.execute("CREATE TABLE r (id int); INSERT INTO r SELECT generate_series(1, 1000)")
    with server.transaction():
        server.execute("SELECT audit.enable('r', mode => 'async', snapshot => true)")
        assert server.execute("SELECT count(*) FROM audit.log").fetchone()[0] == 1000
    server.execute("INSERT INTO t VALUES (1, 1, 'a')")
    server.execute("TRUNCATE t, r")
    server.execute("INSERT INTO t VALUES (1, 1, 'a')")
    settled(server, 1004)
    replay(server, "t")
    replay(server, "r")
    check_integrity(server)


def test_statements_rules_and_details(server):
    server.execute("SELECT audit.enable('t', mode => 'async', soft_delete_column => 'v', mask_columns => '{n}')")
    server.execute("SET audit.log_statement = on")
    server.execute("INSERT INTO t VALUES (1, 1, NULL)")
    server.execute("UPDATE t SET id = 2, v = 'gone'")
    found = settled(server, 2)
    assert found[1].details == {"soft_delete": True, "old_resource_id": "1"}
    assert found[0].image["n"] == "***"
    assert [s for s, in server.execute("SELECT statement FROM audit.changeset ORDER BY position")] == [
        "INSERT INTO t VALUES (1, 1, NULL)", "UPDATE t SET id = 2, v = 'gone'"]
    check_integrity(server)


def test_partitions_follow_and_a_move_between_them(server):
    server.execute("CREATE TABLE p (id int, n int) PARTITION BY RANGE (id)")
    server.execute("SELECT audit.enable('p', mode => 'async')")
    server.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);"
                   "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)")
    server.execute("INSERT INTO p VALUES (1, 1), (11, 1); UPDATE p SET id = id + 10 WHERE id = 1")
    settled(server, 4)
    replay(server, "p")
    assert server.execute("SELECT DISTINCT mode FROM audit.policy WHERE target::text LIKE 'p%'").fetchall() == [("async",)]


def test_drop_extension_and_drop_database_with_events_on_their_way(server, preloaded):
    lose_or_not = "INSERT INTO t SELECT i, 1, 'a' FROM generate_series(%s::int, %s::int) i"
    mark = len(preloaded.log)
    server.execute(lose_or_not, [1, 10])
    server.execute("DROP EXTENSION audit_ext CASCADE")
    # Its table is an ordinary one now.
    server.execute(lose_or_not, [11, 20])
    server.execute("CREATE EXTENSION audit_ext; SELECT audit.enable('t', mode => 'async')")
    server.execute(lose_or_not, [21, 30])
    settled(server, 10)
    until(lambda: stats(server)["queue_used_bytes"] == 0)
    prepare(preloaded, "goes")
    with preloaded.connect("goes") as conn:
        conn.execute(lose_or_not, [1, 10])
    with preloaded.connect() as admin:
        admin.execute("DROP DATABASE goes")
    until(lambda: stats(server)["queue_used_bytes"] == 0)
    assert "exited with exit code" not in preloaded.log[mark:]


def test_while_extension_and_library_differ_in_version_changes_are_refused_and_events_wait(server, preloaded):
    """Between the installation of another version and ALTER EXTENSION UPDATE."""
    with blocked(preloaded, "later"):
        lose(preloaded, "later", 3)
        version, = server.execute("SELECT extversion FROM pg_extension WHERE extname = 'audit_ext'").fetchone()
        server.execute("UPDATE pg_extension SET extversion = '0.0.0' WHERE extname = 'audit_ext'")
    errors = stats(server)["audit_errors"]
    until(lambda: stats(server)["audit_errors"] > errors)
    with preloaded.connect("later") as conn:
        for table in ("s", "t"):
            with sqlstate("55000"):
                conn.execute("INSERT INTO %s VALUES (100, 1, 'a')" % table)
    assert events(server) == [] and stats(server)["queue_depth"] >= 3
    # It tries ever less often, and says the same once.
    assert preloaded.log.count("differ in version (55000)") == 1
    server.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'audit_ext'", [version])
    settled(server, 6)
    replay(server, "t")
    assert stats(server)["queue_lost"] == 0


def test_a_copy_of_the_database_is_one_of_its_own(server, preloaded):
    server.execute("INSERT INTO t VALUES (1, 1, 'a')")
    settled(server, 1)
    server.close()
    until(lambda: not worker_pids(preloaded, "later"))
    preloaded.drop_db("copy")
    preloaded.create_db("copy", "later")
    with preloaded.connect("copy") as conn:
        conn.execute("INSERT INTO t VALUES (2, 1, 'a')")
        settled(conn, 2)
        replay(conn, "t")
        assert lost_events(conn) == []
        check_integrity(conn)
    preloaded.drop_db("copy")


def test_a_database_that_is_a_template_and_allows_no_connections(server, preloaded):
    with preloaded.connect() as admin:
        with blocked(preloaded, "later"):
            lose(preloaded, "later", 2)
            admin.execute("ALTER DATABASE later IS_TEMPLATE true")
        settled(server, 4)
        admin.execute("ALTER DATABASE later IS_TEMPLATE false")
    replay(server, "t")
