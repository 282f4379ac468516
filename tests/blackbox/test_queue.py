"""The audit queue and its worker: isolated events, and a worker's life through errors, kills, restarts and DDL."""

import json
import threading
import time

from auditlib import check_integrity, events, sqlstate
from cluster import Cluster
from queuelib import PRELOAD, database, log_isolated, stats, until, worker_pids


def actions(conn, action):
    return [e for e in events(conn) if e.action == action]


def test_an_isolated_event_stays_when_its_transaction_is_rolled_back(server):
    with database(server, "stays"), server.connect("stays") as conn:
        conn.execute("SELECT audit.enable('account')")
        with sqlstate("23505"), conn.transaction():
            conn.execute("INSERT INTO account VALUES (1, 10)")
            conn.execute("SELECT audit.set_context(user_id => 'ann', tenant_id => 't1', ip_address => '192.0.2.7', "
                         "context => '{\"branch\": \"north\"}')")
            begin = time.monotonic()
            assert log_isolated(conn, "auth.login_failed", resource="user", resource_id="ann",
                                details={"reason": "wrong password", "tries": [1, 2.50]})
            assert time.monotonic() - begin < 5
            # There while the transaction is still open, for everybody.
            with server.connect("stays") as other:
                assert len(actions(other, "auth.login_failed")) == 1
            conn.execute("INSERT INTO account VALUES (1, 10)")
        assert conn.execute("SELECT count(*) FROM account").fetchone()[0] == 0
        # The failed INSERT is recorded too, by the same worker.
        event, failure = until(lambda: (lambda found: found if len(found) == 2 else None)(events(conn)))
        assert failure.operation == "FAILURE"
        assert (event.operation, event.status, event.origin, event.user_id) == (
            "APPLICATION", "success", "isolated", "ann")
        row = conn.execute("""SELECT resource, resource_id, details::text, tenant_id, host(ip_address), context, session_role,
                                     application_name, position IS NOT NULL FROM audit.log WHERE action IS NOT NULL""").fetchone()
        assert row == ("user", "ann", '{"tries": [1, 2.5], "reason": "wrong password"}', "t1", "192.0.2.7",
                       {"branch": "north"}, "postgres", None, True)
        pid = conn.execute("SELECT DISTINCT backend_pid FROM audit.changeset").fetchone()[0]
        assert pid == conn.info.backend_pid
        assert check_integrity(conn) == (2, 2)
        # Each has a changeset of its own.
        for _ in range(3):
            assert log_isolated(conn)
        assert check_integrity(conn) == (5, 5)


def test_an_isolated_event_is_there_within_100_ms(server):
    with database(server, "quick"), server.connect("quick") as conn:
        log_isolated(conn)
        times = []
        for _ in range(20):
            begin = time.monotonic()
            assert log_isolated(conn)
            times.append(time.monotonic() - begin)
        assert sorted(times)[10] < 0.1


def test_large_and_odd_messages(server):
    with database(server, "odd"), server.connect("odd") as conn:
        big = "x" * 1_000_000
        assert log_isolated(conn, "big", details={"text": big})
        assert log_isolated(conn, 'a "quoted" action ä', resource="\n\tä", resource_id="\\")
        assert conn.execute("SELECT details ->> 'text' = %s FROM audit.log WHERE action = 'big'", [big]).fetchone()[0]
        assert check_integrity(conn) == (2, 2)
        conn.execute("SELECT audit.set_context(context => %s::jsonb, is_local => false)",
                     ['{"k": "' + "y" * 60_000 + '"}'])
        assert log_isolated(conn)
        assert check_integrity(conn) == (3, 3)


def test_what_does_not_fit_is_lost_with_a_warning(new_cluster):
    cluster = new_cluster({**PRELOAD, "audit.queue_size": "64kB"})
    with database(cluster, "small"), cluster.connect("small") as conn:
        notices = []
        conn.add_notice_handler(lambda notice: notices.append((notice.severity, notice.sqlstate)))
        assert not log_isolated(conn, details={"text": "z" * 70_000})
        assert notices == [("WARNING", "01000")]
        assert "audit.queue_size" in cluster.log
        assert log_isolated(conn, details={"text": "z" * 60_000})
        s = stats(conn)
        assert (s["isolated_lost"], s["queue_written"], s["events_written"]) == (1, 1, 1)
        assert s["queue_bytes"] == 65536 and s["queue_used_bytes"] == 0 and s["queue_used_high_water"] > 60_000
        conn.execute("SELECT audit.stats_reset()")
        s = stats(conn)
        assert (s["isolated_lost"], s["queue_written"]) == (0, 0) and s["stats_reset"] is not None


def test_the_caller_goes_on_when_the_worker_cannot_write(server):
    with database(server, "late"), server.connect("late") as conn, server.connect("late") as blocker:
        assert log_isolated(conn, "first")
        notices = []
        conn.add_notice_handler(lambda notice: notices.append(notice.severity))
        with blocker.transaction():
            blocker.execute("LOCK TABLE audit.event IN SHARE MODE")
            conn.execute("SET audit.isolated_timeout = '200ms'")
            begin = time.monotonic()
            assert not log_isolated(conn, "second")
            assert 0.2 <= time.monotonic() - begin < 5
            assert notices == ["WARNING"]
            assert stats(conn)["isolated_late"] == 1
            # A cancel ends the wait.
            conn.execute("SET audit.isolated_timeout = '1h'")
            conn.execute("SET statement_timeout = '100ms'")
            with sqlstate("57014"):
                log_isolated(conn, "third")
            conn.execute("SET statement_timeout = 0")
            # The worker does not wait for ever: it fails, says so, and tries again.
            until(lambda: stats(conn)["audit_errors"] > 0)
        until(lambda: len(actions(conn, "second")) == 1 and len(actions(conn, "third")) == 1)
        assert check_integrity(conn) == (3, 3)
        assert "audit records cannot be written: canceling statement due to lock timeout" in server.log
        until(lambda: "audit records can be written again" in server.log)


def test_without_preload_it_is_refused_and_reported(conn):
    with sqlstate("55000"):
        conn.execute("SELECT audit.log_event('x', isolated => true)")
    s = stats(conn)
    assert s["is_preloaded"] is False and s["worker_running"] is False and s["queue_depth"] is None
    conn.execute("SELECT audit.stats_reset()")
    conn.execute("SHOW audit.queue_size")


def test_an_ordinary_user_has_no_access(server):
    with database(server, "closed"), server.connect() as admin:
        admin.execute("DROP ROLE IF EXISTS closed_user")
        admin.execute("CREATE ROLE closed_user LOGIN")
        with server.connect("closed", user="closed_user") as conn:
            for query in ("SELECT * FROM audit.stats", "SELECT audit.stats_reset()",
                          "SET audit.isolated_timeout = 1"):
                with sqlstate("42501"):
                    conn.execute(query)
        with server.connect("closed") as conn:
            conn.execute("SELECT audit.grant_reader('closed_user')")
        with server.connect("closed", user="closed_user") as conn:
            assert stats(conn)["is_preloaded"]
        with server.connect("closed") as conn:
            conn.execute("DROP OWNED BY closed_user")
        admin.execute("DROP ROLE closed_user")


def test_the_worker_leaves_and_comes_back(server):
    with database(server, "idle"), server.connect("idle") as conn:
        assert log_isolated(conn)
        first, = until(lambda: worker_pids(server, "idle"))
        until(lambda: not worker_pids(server, "idle"))
        assert log_isolated(conn)
        assert worker_pids(server, "idle") != [first]
        assert stats(conn)["worker_restarts"] == 0


def test_a_terminated_worker_loses_nothing(server):
    """While many sessions report, the worker is terminated again and again."""
    with database(server, "killed"), server.connect("killed") as conn:
        clients, number = 10, 150
        failures = []

        def report(client):
            with server.connect("killed") as own:
                own.execute("SET audit.isolated_timeout = '60s'")
                for i in range(number):
                    if not log_isolated(own, "client %s" % client, resource_id=str(i)):
                        failures.append((client, i))

        threads = [threading.Thread(target=report, args=[client]) for client in range(clients)]
        for thread in threads:
            thread.start()
        kills = 0
        while any(thread.is_alive() for thread in threads):
            for pid in worker_pids(server, "killed"):
                kills += conn.execute("SELECT pg_terminate_backend(%s)", [pid]).fetchone()[0]
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        assert kills > 0 and not failures
        for client in range(clients):
            ids = [r[0] for r in conn.execute(
                "SELECT resource_id FROM audit.log WHERE action = %s ORDER BY era, position, command, seq",
                ["client %s" % client])]
            assert ids == [str(i) for i in range(number)]
        assert check_integrity(conn)[1] == clients * number
        s = stats(conn)
        assert (s["queue_lost"], s["isolated_lost"], s["queue_depth"]) == (0, 0, 0)


def test_a_hundred_clients_and_the_smallest_queue(new_cluster):
    cluster = new_cluster({**PRELOAD, "audit.queue_size": "64kB", "max_connections": "120"})
    with database(cluster, "crowd"), cluster.connect("crowd") as conn:
        clients, number = 100, 10

        def report(client):
            with cluster.connect("crowd") as own:
                own.execute("SET audit.isolated_timeout = '120s'")
                for i in range(number):
                    # Some take half of the queue.
                    padding = "p" * (30_000 if (client + i) % 7 == 0 else 100)
                    assert log_isolated(own, "client %s" % client, resource_id=str(i), details={"p": padding})

        threads = [threading.Thread(target=report, args=[client]) for client in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert conn.execute("SELECT count(*), count(DISTINCT (action, resource_id)) FROM audit.log").fetchone() == (
            clients * number, clients * number)
        assert check_integrity(conn) == (clients * number, clients * number)
        s = stats(conn)
        assert (s["queue_lost"], s["isolated_lost"], s["queue_used_bytes"]) == (0, 0, 0)


def test_what_waits_is_written_at_shutdown(new_cluster):
    cluster = new_cluster(PRELOAD)
    cluster.create_db("ends")
    conn = cluster.connect("ends")
    conn.execute("CREATE EXTENSION audit_ext")
    assert log_isolated(conn, "before")
    blocker = cluster.connect("ends", autocommit=False)
    blocker.execute("LOCK TABLE audit.event IN SHARE MODE")
    conn.execute("SET audit.isolated_timeout = '1ms'")
    for i in range(50):
        log_isolated(conn, "waiting %s" % i)
    assert stats(conn)["queue_depth"] > 40
    # A fast shutdown ends the blocker's session, so the worker can write.
    cluster.stop("fast")
    cluster.start()
    with cluster.connect("ends") as conn:
        assert conn.execute("SELECT count(*) FROM audit.log WHERE action LIKE 'waiting%'").fetchone()[0] == 50
        check_integrity(conn)


def test_a_crash_of_a_process_and_of_the_server(new_cluster):
    cluster = new_cluster(PRELOAD)
    cluster.create_db("crash")
    with cluster.connect("crash") as conn:
        conn.execute("CREATE EXTENSION audit_ext")
        assert log_isolated(conn, "one")
        pid, = until(lambda: worker_pids(cluster, "crash"))
    # SIGKILL of the worker: the server recovers, with a new queue and a new launcher.
    import os
    import signal
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    cluster.await_ready()
    with cluster.connect("crash") as conn:
        assert until(lambda: log_isolated(conn, "two"))
    cluster.kill9()
    cluster.start()
    with cluster.connect("crash") as conn:
        assert until(lambda: log_isolated(conn, "three"))
        assert [e.action for e in events(conn) if e.action != "two"] == ["one", "three"]
        check_integrity(conn)


def test_drop_database_and_drop_extension(server):
    with server.connect() as admin:
        for force in (False, True):
            server.create_db("gone")
            with server.connect("gone") as conn:
                conn.execute("CREATE EXTENSION audit_ext")
                assert log_isolated(conn)
            begin = time.monotonic()
            admin.execute("DROP DATABASE gone" + (" WITH (FORCE)" if force else ""))
            assert time.monotonic() - begin < 4
        with database(server, "renamed"):
            with server.connect("renamed") as conn:
                assert log_isolated(conn)
            admin.execute("ALTER DATABASE renamed RENAME TO renamed2")
            admin.execute("CREATE DATABASE copied TEMPLATE renamed2")
            admin.execute("ALTER DATABASE renamed2 RENAME TO renamed")
            with server.connect("copied") as conn:
                assert log_isolated(conn)
                assert len(events(conn)) == 2
                check_integrity(conn)
            admin.execute("DROP DATABASE copied")
    with database(server, "bare"), server.connect("bare") as conn:
        assert log_isolated(conn)
        conn.execute("DROP EXTENSION audit_ext CASCADE")
        time.sleep(0.2)
        conn.execute("CREATE EXTENSION audit_ext")
        assert log_isolated(conn)
        # Neither the extension nor what reports through it is committed: there is nowhere to write.
        conn.execute("DROP EXTENSION audit_ext CASCADE")
        with conn.transaction():
            conn.execute("CREATE EXTENSION audit_ext")
            conn.execute("SET LOCAL audit.isolated_timeout = '10s'")
            assert not log_isolated(conn)
        assert stats(conn)["queue_lost"] == 1
        assert log_isolated(conn)


def test_databases_without_the_extension_and_templates(server):
    mark = len(server.log)
    with database(server, "plain", extension=False), server.connect("plain") as conn:
        conn.execute("SELECT 1")
    with server.connect("template1") as conn:
        conn.execute("CREATE EXTENSION audit_ext")
        assert log_isolated(conn)
    try:
        server.create_db("from_template")
        with server.connect("from_template") as conn:
            assert log_isolated(conn, "own")
            assert len(actions(conn, "own")) == 1
        server.drop_db("from_template")
    finally:
        with server.connect("template1") as conn:
            conn.execute("DROP EXTENSION audit_ext CASCADE")
        until(lambda: not worker_pids(server, "template1"))
    assert "exited with exit code" not in server.log[mark:]


def test_a_standby_refuses_and_a_promoted_one_writes(new_cluster):
    primary = new_cluster({**PRELOAD, "hot_standby": "on"})
    primary.create_db("pair")
    with primary.connect("pair") as conn:
        conn.execute("CREATE EXTENSION audit_ext")
        assert log_isolated(conn, "primary")
    standby = Cluster(conf=PRELOAD)
    try:
        import shutil
        shutil.rmtree(standby.data_dir)
        primary.run([primary.bin("pg_basebackup"), "-D", standby.data_dir, "-R", "-X", "stream", "-c", "fast"])
        standby.configure(unix_socket_directories=standby.socket_dir)
        standby.start()
        with standby.connect("pair") as conn:
            assert not log_isolated(conn, "standby")
            assert not worker_pids(standby, "pair")
            standby.run([standby.bin("pg_ctl"), "promote", "-D", standby.data_dir, "-w"])
            assert until(lambda: log_isolated(conn, "promoted"))
            assert [e.action for e in events(conn)] == ["primary", "promoted"]
        assert "ERROR" not in standby.log.replace("LOG:", "")
    finally:
        standby.remove()


def test_no_free_background_worker(new_cluster):
    cluster = new_cluster({**PRELOAD, "max_worker_processes": "2"})
    cluster.create_db("starved")
    with cluster.connect("starved") as conn:
        conn.execute("CREATE EXTENSION audit_ext")
        conn.execute("SET audit.isolated_timeout = '100ms'")
        assert not log_isolated(conn)
        assert not log_isolated(conn)
        assert cluster.log.count("no background worker is free") == 1
        s = stats(conn)
        assert (s["isolated_late"], s["queue_depth"]) == (2, 2)


def test_sql_ascii_and_other_encodings(server):
    with server.connect() as admin:
        admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        with server.connect("latin") as conn:
            conn.execute("CREATE EXTENSION audit_ext")
            assert log_isolated(conn, "größe", details={"straße": "ö"})
            assert conn.execute("SELECT action, details ->> 'straße' FROM audit.log").fetchone() == ("größe", "ö")
            check_integrity(conn)
    finally:
        server.drop_db("latin")


def test_reload_reaches_the_worker(server):
    with database(server, "reloaded"), server.connect("reloaded") as conn:
        mark = len(server.log)
        assert log_isolated(conn)
        server.reload()
        assert log_isolated(conn)
        assert "ERROR" not in server.log[mark:]


def test_names_of_the_processes(server):
    with server.connect() as conn:
        assert conn.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit launcher'"
                            ).fetchone()[0] == 1


def notified(listener):
    """The next notification's payload."""
    received = []
    listener.add_notify_handler(received.append)

    def one():
        listener.execute("SELECT 1")
        return received

    try:
        return json.loads(until(one)[0].payload)
    finally:
        listener.remove_notify_handler(received.append)


def test_failure_of_auditing_itself_raises_an_alert_and_is_recorded_when_it_is_over(server):
    with database(server, "alert"), server.connect("alert") as conn, server.connect("alert") as listener:
        conn.execute("SELECT audit.enable('account')")
        assert log_isolated(conn)
        listener.execute("LISTEN audit_alert")
        conn.execute("ALTER TABLE audit.event DETACH PARTITION audit.event_default")
        for i in range(3):
            with sqlstate("55000"):
                conn.execute("INSERT INTO account VALUES (%s, 1)", [i])
        payload = notified(listener)
        assert (payload["alert"], payload["sqlstate"]) == ("write_failed", "55000") and payload["failures"] >= 1
        assert stats(conn)["audit_errors"] >= 3
        conn.execute("ALTER TABLE audit.event ATTACH PARTITION audit.event_default DEFAULT")
        assert notified(listener)["alert"] == "recovered"
        event, = actions(conn, "audit.write_failed")
        assert (event.status, event.origin) == ("error", "isolated")
        assert event.details["sqlstate"] == "55000" and event.details["failures"] >= 3
        assert event.details["since"] <= event.details["until"]
        # What failed meanwhile waited in the queue.
        until(lambda: len([e for e in events(conn) if e.operation == "FAILURE"]) == 3)
        assert stats(conn)["failures_recorded"] == 3
        conn.execute("INSERT INTO account VALUES (1, 1)")
        check_integrity(conn)
        time.sleep(3)
        assert len(actions(conn, "audit.write_failed")) == 1
        # What a caller did or left out is none.
        conn.execute("SELECT audit.enable('account', require_context => '{user_id}')")
        with sqlstate("55000"):
            conn.execute("INSERT INTO account VALUES (2, 1)")
        time.sleep(3)
        assert len(actions(conn, "audit.write_failed")) == 1
