"""Logins: refused ones, floods of them, and sessions from login to logout."""

import socket
import struct
import threading
import time

import psycopg
import pytest

from auditlib import check_integrity
from cluster import Cluster
from queuelib import PRELOAD, database, log_isolated, stats, until


@pytest.fixture(scope="module")
def preloaded():
    port = free_port()
    cluster = Cluster(conf={**PRELOAD, "listen_addresses": "127.0.0.1", "port": str(port)})
    cluster.port = port
    cluster.env["PGPORT"] = str(port)
    with cluster:
        hba = cluster.data_dir / "pg_hba.conf"
        hba.write_text("local all no_entry reject\n"
                       "host all with_password 127.0.0.1/32 scram-sha-256\n"
                       "host all no_host 127.0.0.1/32 reject\n"
                       "local all all trust\n"
                       "host all all 127.0.0.1/32 trust\n")
        cluster.reload()
        with cluster.connect() as conn:
            conn.execute("CREATE ROLE with_password LOGIN PASSWORD 'right'")
            conn.execute("CREATE ROLE no_entry LOGIN")
            conn.execute("CREATE ROLE no_host LOGIN")
            conn.execute("CREATE ROLE no_login")
            conn.execute("CREATE ROLE stranger LOGIN")
            conn.execute("CREATE ROLE limited LOGIN CONNECTION LIMIT 0")
        yield cluster


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def guarded(server):
    with database(server, "guarded"):
        with server.connect("guarded") as conn:
            conn.execute("REVOKE CONNECT ON DATABASE guarded FROM PUBLIC")
            conn.execute("GRANT CONNECT ON DATABASE guarded TO with_password, no_entry, no_host, no_login, limited")
            log_isolated(conn, "marker")  # a worker has seen that the extension is here
        yield server


def logins(conn, action="auth.login_failed"):
    return conn.execute("""SELECT resource_id, details, host(client_addr), session_role, status, resource
                             FROM audit.log WHERE action = %s ORDER BY era, position, command, seq""",
                        [action]).fetchall()


REFUSED = {
    "wrong password": (dict(user="with_password", password="wrong", host="127.0.0.1"), "28P01", "127.0.0.1"),
    "no such role": (dict(user="nobody"), "28000", None),
    "rejected by pg_hba.conf": (dict(user="no_entry"), "28000", None),
    "rejected by pg_hba.conf, over TCP": (dict(user="no_host", host="127.0.0.1"), "28000", "127.0.0.1"),
    "role that may not log in": (dict(user="no_login"), "28000", None),
    "no right to connect": (dict(user="stranger"), "42501", None),
    "too many connections of the role": (dict(user="limited"), "53300", None),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_login_is_one_event(guarded, kind):
    how, code, address = REFUSED[kind]
    with guarded.connect("guarded") as conn:
        with pytest.raises(psycopg.OperationalError):
            guarded.connect("guarded", **how)
        until(lambda: logins(conn))
        log_isolated(conn, "marker")
        (role, details, addr, session_role, status, resource), = logins(conn)
        assert (role, details["sqlstate"], addr, session_role, status, resource) == (
            how["user"], code, address, None, "failure", "role")
        assert details["reason"]
        assert conn.execute("SELECT DISTINCT origin::text FROM audit.changeset WHERE origin <> 'isolated'").fetchall() == [
            ("login",)]
        check_integrity(conn)


def test_too_many_connections_in_all(new_cluster):
    cluster = new_cluster({**PRELOAD, "max_connections": "4", "superuser_reserved_connections": "0",
                           "max_wal_senders": "0", "wal_level": "replica"})
    with database(cluster, "full"):
        with cluster.connect("full") as conn:
            log_isolated(conn, "marker")
            others = []
            with pytest.raises(psycopg.OperationalError):
                while True:
                    others.append(cluster.connect("full"))
            for other in others:
                other.close()
            until(lambda: logins(conn))
            (role, details, *_), = logins(conn)
            assert (role, details["sqlstate"]) == ("postgres", "53300")


def test_other_databases_and_other_settings(guarded):
    with guarded.connect("guarded") as conn, guarded.connect() as admin:
        for dbname in ("postgres", "nosuchdb"):
            with pytest.raises(psycopg.OperationalError):
                guarded.connect(dbname, user="nobody")
        with pytest.raises(psycopg.Error):
            conn.execute("SELECT 1 / 0")
        admin.execute("ALTER SYSTEM SET audit.log_logins = 'off'")
        guarded.reload()
        try:
            until(lambda: guarded.connect().execute("SHOW audit.log_logins").fetchone()[0] == "off")
            with pytest.raises(psycopg.OperationalError):
                guarded.connect("guarded", user="nobody")
        finally:
            admin.execute("ALTER SYSTEM RESET audit.log_logins")
            guarded.reload()
        until(lambda: guarded.connect().execute("SHOW audit.log_logins").fetchone()[0] == "failed")
        log_isolated(conn, "marker")
        assert logins(conn) == []
        # A renamed database is known by its new name.
        admin.execute("CREATE DATABASE named")
        with guarded.connect("named") as named:
            named.execute("CREATE EXTENSION audit_ext")
            log_isolated(named)
        admin.execute("ALTER DATABASE named RENAME TO renamed")
        with guarded.connect("renamed") as renamed:
            with pytest.raises(psycopg.OperationalError):
                guarded.connect("renamed", user="nobody")
            until(lambda: logins(renamed))
        admin.execute("DROP DATABASE renamed")


def test_login_and_logout(guarded):
    with guarded.connect("guarded") as conn:
        conn.execute("ALTER DATABASE guarded SET audit.log_logins = 'all'")
        with guarded.connect("guarded", user="with_password", application_name="app") as session:
            pid = session.info.backend_pid
            until(lambda: logins(conn, "auth.login"))
            time.sleep(0.2)
        until(lambda: logins(conn, "auth.logout"))
        (role, details, addr, session_role, status, _), = logins(conn, "auth.login")
        assert (role, details, addr, session_role, status) == ("with_password", None, None, "with_password", "success")
        (role, details, _, session_role, *_), = logins(conn, "auth.logout")
        assert (role, session_role) == ("with_password", "with_password") and 200 <= details["session_ms"] < 60_000
        assert conn.execute("SELECT DISTINCT backend_pid FROM audit.changeset WHERE origin = 'login'").fetchall() == [
            (pid,)]
        # A session that is terminated ends, too; one that is refused never began.
        with guarded.connect("guarded", user="with_password") as session:
            conn.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
            until(lambda: len(logins(conn, "auth.logout")) == 2)
        with pytest.raises(psycopg.OperationalError):
            guarded.connect("guarded", user="nobody")
        until(lambda: logins(conn))
        assert len(logins(conn, "auth.login")) == len(logins(conn, "auth.logout")) == 2
        check_integrity(conn)


def start_packet(database, user):
    body = b"\0\3\0\0" + b"".join(
        key + b"\0" + value + b"\0" for key, value in ((b"user", user), (b"database", database))) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


def flood(cluster, number, seconds, threads=8):
    """So many refused logins, evenly over the time. Returns how many the server answered."""
    answered = [0] * threads
    begin = time.monotonic()

    def run(thread):
        for i in range(thread, number, threads):
            delay = begin + seconds * i / number - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            with socket.create_connection(("127.0.0.1", cluster.port)) as client:
                client.sendall(start_packet(b"guarded", b"attacker%d" % (i % 7)))
                answer = b"".join(iter(lambda: client.recv(4096), b""))
                answered[thread] += b"does not exist" in answer

    running = [threading.Thread(target=run, args=[thread]) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(answered)


def check_flood(server, number, seconds):
    with server.connect("guarded") as conn:
        queries = []
        stop = threading.Event()

        def use():
            with server.connect("guarded") as own:
                while not stop.is_set():
                    begin = time.monotonic()
                    own.execute("SELECT count(*) FROM pg_class")
                    queries.append(time.monotonic() - begin)
                    time.sleep(0.05)

        user = threading.Thread(target=use)
        user.start()
        begin = time.monotonic()
        refused = flood(server, number, seconds)
        lasted = time.monotonic() - begin
        stop.set()
        user.join()

        def counted():
            found = logins(conn)
            return len([1 for f in found if "count" not in f[1]]), sum(f[1].get("count", 0) for f in found), len(found)

        until(lambda: sum(counted()[:2]) >= refused, seconds=40)
        told, folded, events = counted()
        s = stats(conn)
        assert told + folded == refused == number
        assert (s["logins_folded"], s["logins_lost"]) == (folded, 0)
        windows = lasted / 10 + 2
        assert told <= 5 * windows and events <= 6 * windows, "%s events" % events
        assert s["queue_high_water"] < 100
        assert sorted(queries)[len(queries) // 2] < 1, "the server is not responsive"
        check_integrity(conn)


def test_a_flood_is_folded_and_counted(guarded):
    check_flood(guarded, 2000, 2)


@pytest.mark.long
def test_a_thousand_refused_logins_a_second_for_a_minute(guarded):
    check_flood(guarded, 60_000, 60)


def test_without_preload_logins_are_not_recorded(db, conn):
    with pytest.raises(psycopg.OperationalError):
        db.cluster.connect(db.name, user="nobody")
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone()[0] == 0
