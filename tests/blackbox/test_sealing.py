"""The background worker that seals: audit.seal_interval."""

import random
import re
import threading
import time

import psycopg
import pytest
from ledgerlib import assert_intact, audit_verify, key_pair, write_key
from queuelib import PRELOAD, stats, until

OFTEN = {**PRELOAD, "audit.seal_interval": "100ms", "audit.maintenance_interval": "0"}
UNSEALED = "SELECT count(*) FROM audit.changeset c WHERE NOT EXISTS (SELECT FROM audit.entry e WHERE e.changeset_id = c.id)"
CHECKPOINTS = "SELECT count(*) FROM audit.checkpoint"


def one(conn, query):
    return conn.execute(query).fetchone()[0]


def prepare(conn):
    conn.execute("CREATE EXTENSION IF NOT EXISTS audit_ext")
    conn.execute("CREATE TABLE account (id int PRIMARY KEY, balance numeric)")
    conn.execute("SELECT audit.enable('account')")
    conn.execute("INSERT INTO account VALUES (1, 0)")


def sealed(conn):
    return until(lambda: one(conn, UNSEALED) == 0, 60)


def rounds_pass(cluster, count=5):
    """Waits until the launcher has had time for some rounds: until it has sealed in another database so often."""
    with cluster.connect("other") as conn:
        for _ in range(count):
            conn.execute("UPDATE account SET balance = balance + 1")
            sealed(conn)


@pytest.fixture
def other(new_cluster):
    cluster = new_cluster(OFTEN)
    cluster.create_db("other")
    with cluster.connect("other") as conn:
        prepare(conn)
    return cluster


def test_it_seals_what_is_written(other):
    with other.connect() as conn:
        prepare(conn)
        sealed(conn)
        for i in range(3):
            conn.execute("UPDATE account SET balance = balance + 1")
            sealed(conn)
        assert one(conn, CHECKPOINTS) >= 3
        assert one(conn, "SELECT max(sealed_below) FROM audit.checkpoint")
        assert_intact(conn)


def test_it_leaves_alone_where_nothing_was_written(other):
    with other.connect() as conn:
        prepare(conn)
        sealed(conn)
        rounds_pass(other, 2)
        count = one(conn, CHECKPOINTS)
        rounds_pass(other)
        assert one(conn, CHECKPOINTS) == count


def test_an_idle_cluster_is_left_alone(new_cluster):
    """Rounds in which nothing was written anywhere start no process: none has begun in the statistics of sessions."""
    cluster = new_cluster(OFTEN)
    with cluster.connect() as conn:
        prepare(conn)
        sealed(conn)
        sessions = "SELECT sessions FROM pg_stat_database WHERE datname = 'postgres'"
        xid = "SELECT pg_snapshot_xmax(pg_current_snapshot())"

        def is_quiet():
            before = one(conn, xid)
            time.sleep(0.5)
            return one(conn, xid) == before

        until(is_quiet)
        running = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit sealer'"
        seen = 0
        end = time.monotonic() + 1
        while time.monotonic() < end:
            seen += one(conn, running)
        assert seen == 0, one(conn, sessions)


def test_what_a_long_transaction_held_back(other):
    """Nothing is written when it ends, but its end is what the round waited for."""
    with other.connect() as conn, other.connect(autocommit=False) as long, other.connect() as prepared:
        prepare(conn)
        long.execute("INSERT INTO account VALUES (2, 0)")
        prepared.execute("BEGIN; INSERT INTO account VALUES (3, 0); PREPARE TRANSACTION 'held'")
        conn.execute("UPDATE account SET balance = 1 WHERE id = 1")
        assert one(conn, UNSEALED) >= 1
        long.commit()
        conn.execute("COMMIT PREPARED 'held'")
        sealed(conn)
        assert one(conn, "SELECT count(*) FROM audit.event e JOIN audit.entry USING (changeset_id)") == 4
        assert_intact(conn)


def test_never(new_cluster):
    cluster = new_cluster({**OFTEN, "audit.seal_interval": "0"})
    with cluster.connect() as conn:
        prepare(conn)
        time.sleep(1)
        assert one(conn, CHECKPOINTS) == 0
        cluster.configure(**{"audit.seal_interval": "100ms"})
        cluster.reload()
        sealed(conn)


def test_failure_is_said_and_ends(new_cluster):
    cluster = new_cluster(OFTEN)
    private, public = key_pair("example.com/audit")
    path = write_key(cluster, private, mode=0o644)
    cluster.configure(**{"audit.signing_key_file": path})
    cluster.reload()
    said = r"LOG:  audit\.seal\(\) failed in database \d+: .*"
    with cluster.connect() as conn:
        prepare(conn)
        until(lambda: re.search(said, cluster.log))
        assert one(conn, UNSEALED) > 0
        time.sleep(2)
        # The pause grows from a second on.
        assert 1 <= len(re.findall(said, cluster.log)) <= 3
        assert "ERROR" not in cluster.log
        path.chmod(0o600)
        sealed(conn)
        until(lambda: "audit.seal() works again in database" in cluster.log)
        assert one(conn, "SELECT key FROM audit.checkpoint ORDER BY tree_size DESC LIMIT 1") == public
        assert_intact(conn, keys=[public])


def test_a_worker_that_is_killed_comes_back(other):
    with other.connect() as conn, other.connect() as lock:
        prepare(conn)
        lock.execute("BEGIN; LOCK TABLE audit.checkpoint")
        conn.execute("UPDATE account SET balance = 1")
        pid = until(lambda: conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'audit sealer' AND wait_event_type = 'Lock'"
            " AND datname = current_database()").fetchone())
        assert conn.execute("SELECT pg_terminate_backend(%s)", pid).fetchone() == (True,)
        until(lambda: not conn.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid).fetchone())
        lock.execute("ROLLBACK")
        sealed(conn)


def test_it_does_not_hold_the_database(other):
    other.create_db("gone")
    with other.connect("gone") as conn:
        prepare(conn)
        sealed(conn)
    other.drop_db("gone")
    rounds_pass(other)
    with other.connect() as conn:
        prepare(conn)
        sealed(conn)
        conn.execute("DROP EXTENSION audit_ext CASCADE")
    rounds_pass(other)
    # A database may go between the launcher's look and the worker's connection.
    assert not re.search(r"FATAL(?!:  database \d+ does not exist)|PANIC|ERROR|seal\(\) failed", other.log), other.log


def test_stats(new_cluster):
    cluster = new_cluster({**OFTEN, "audit.seal_interval": "0"})
    with cluster.connect() as conn:
        prepare(conn)
        now = stats(conn)
        assert now["unsealed_changesets"] == 1
        assert one(conn, "SELECT seal_lag BETWEEN '0' AND '10 min' FROM audit.stats")
        conn.execute("SELECT audit.seal()")
        now = stats(conn)
        assert (now["unsealed_changesets"], now["seal_lag"]) == (0, None)
        conn.execute("INSERT INTO account VALUES (2, 0)")
        conn.execute("INSERT INTO account VALUES (3, 0)")
        assert stats(conn)["unsealed_changesets"] == 2


def work(cluster, number, stop):
    """One client: transactions of all kinds, until it is told to stop or the server is gone."""
    rng = random.Random(number)
    kinds = {
        "single": 10, "bulk": 2, "rollback": 2, "storm": 2, "prepared": 2, "contexts": 2, "long": 1, "reported": 1, "altered": 0.1,
    }  # fmt: skip
    try:
        with cluster.connect() as conn:
            while not stop.is_set():
                kind = rng.choices(list(kinds), kinds.values())[0]
                run, row = conn.execute, rng.randrange(1000)
                update = f"UPDATE account SET balance = balance + 1 WHERE id = {row}"
                if kind == "single":
                    run(update)
                elif kind == "bulk":
                    run(f"INSERT INTO account SELECT nextval('ids'), {number} FROM generate_series(1, 300)")
                elif kind == "altered":
                    run(f"ALTER TABLE account ADD COLUMN c{number}_{row} int")
                elif kind == "reported":
                    run("SELECT audit.log_event('test.reported', isolated => true)")
                else:
                    run("BEGIN")
                    for i in range(60 if kind == "storm" else 1):
                        run(f"SAVEPOINT s{i}; INSERT INTO account VALUES (nextval('ids'), 0)")
                        if rng.random() < 0.5:
                            run(f"ROLLBACK TO s{i}")
                    if kind == "contexts":
                        run("SELECT audit.set_context(user_id => 'second'); INSERT INTO account VALUES (nextval('ids'), 1)")
                    stop.wait(rng.random() * 2 if kind == "long" else 0)
                    if kind == "prepared":
                        name = f"p{number}_{rng.random()}"
                        run(f"PREPARE TRANSACTION '{name}'")
                        stop.wait(rng.random())
                        run(f"COMMIT PREPARED '{name}'" if rng.random() < 0.8 else f"ROLLBACK PREPARED '{name}'")
                    else:
                        run("ROLLBACK" if kind == "rollback" else "COMMIT")
    except psycopg.Error as error:
        # A deadlock ends the client as the end of the server does.
        assert isinstance(error, psycopg.OperationalError), error


@pytest.mark.parametrize("rounds, seconds", [(3, 3), pytest.param(30, 30, marks=pytest.mark.long)])
def test_no_false_alarm(new_cluster, rounds, seconds):
    """Concurrent load, sealed all the while, and crashes: every checkpoint that was ever published holds."""
    cluster = new_cluster({**OFTEN, "max_prepared_transactions": "50", "fsync": "on", "synchronous_commit": "off"})
    with cluster.connect() as conn:
        prepare(conn)
        conn.execute("CREATE SEQUENCE ids START 2000; INSERT INTO account SELECT g, 0 FROM generate_series(2, 1000) g")
    for number in range(rounds):
        stop = threading.Event()
        clients = [threading.Thread(target=work, args=(cluster, 10 * number + i, stop)) for i in range(5)]
        for client in clients:
            client.start()
        stop.wait(seconds)
        if number % 3 == 2:
            stop.set()
            cluster.stop("fast")
        else:
            cluster.kill9()
        stop.set()
        for client in clients:
            client.join()
        cluster.start()
    with cluster.connect() as conn:
        for (name,) in conn.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
            conn.execute(f"COMMIT PREPARED '{name}'")
        sealed(conn)
        published = [line.replace(" | ", "\n") + "\n" for line in re.findall(r"audit checkpoint: (.* \| .*)", cluster.log)]
        assert len(published) > 2 * rounds and conn.execute("SELECT count(*) FROM audit.ledger").fetchone() == (1,)
        assert_intact(conn, published[0])
        assert_intact(conn, published[-1])
        folder = cluster.folder / "kept"
        folder.mkdir()
        for number, note in enumerate(published):
            (folder / str(number)).write_text(note)
        files = [argument for number in range(len(published)) for argument in ("--checkpoint", folder / str(number))]
        audit_verify(cluster, "db", "--dsn", cluster.dsn(), *files, check=0)
