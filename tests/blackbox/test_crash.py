"""kill -9 of the postmaster in the midst of a pgbench run of four clients, ten times.

After each recovery every committed change has its one event and every event its change: pgbench_history, where each
transaction adds a row, is compared with its events one to one; the other tables' balances add up to it; and each
transaction has one changeset of four events. At the end all is replayed and every checksum recomputed.
"""

import os
import subprocess
import time

import psycopg
from auditlib import check_integrity, replay

CRASHES = 10
ACCOUNTS = 1000  # a tenth of the transactions meet others on the same row
TRANSACTIONS = 300  # between start and crash, at least

SCRIPT = f"""
\\set aid random(1, {ACCOUNTS})
\\set tid random(1, 10)
\\set delta random(-5000, 5000)
BEGIN;
SELECT audit.set_context(user_id => 'client ' || :client_id);
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SAVEPOINT s;
UPDATE pgbench_tellers SET tbalance = tbalance - 1 WHERE tid = :tid;
ROLLBACK TO s;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""

# The rows of the history against its events, both ways, as multisets.
UNMATCHED = """
    WITH event AS (SELECT new_row FROM audit.log WHERE resource = 'public.pgbench_history'),
         history AS (SELECT to_jsonb(h) AS new_row FROM pgbench_history h)
    SELECT (SELECT count(*) FROM (TABLE event EXCEPT ALL TABLE history) a),
           (SELECT count(*) FROM (TABLE history EXCEPT ALL TABLE event) b)"""

BALANCES = """
    SELECT (SELECT sum(delta) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts),
           (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches)"""


def prepare(cluster):
    cluster.run([cluster.bin("pgbench"), "-i", "-s", "1", "-q", "postgres"])
    cluster.psql(f"""
        CREATE EXTENSION audit_ext;
        DELETE FROM pgbench_accounts WHERE aid > {ACCOUNTS};
        SELECT audit.enable(t, snapshot => true)
          FROM unnest('{{pgbench_accounts,pgbench_tellers,pgbench_branches,pgbench_history}}'::regclass[]) t""")


def test_kill_9_ten_times(new_cluster):
    # Checkpoints often, so that some crashes meet one and full page images are in every WAL.
    cluster = new_cluster({"checkpoint_timeout": "30s", "max_wal_size": "32MB", "autovacuum_naptime": "1s"})
    prepare(cluster)
    script = cluster.folder / "script.sql"
    script.write_text(SCRIPT)
    total = 0
    for crash in range(CRASHES):
        bench = subprocess.Popen(
            [
                cluster.bin("pgbench"),
                "-n",
                "-c",
                "4",
                "-j",
                "2",
                "-T",
                "120",
                "-M",
                ("simple", "prepared")[crash % 2],
                "-f",
                str(script),
                "postgres",
            ],
            env={**os.environ, **cluster.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with cluster.connect() as conn:
                deadline = time.monotonic() + 60
                while conn.execute("SELECT count(*) FROM pgbench_history").fetchone()[0] < total + TRANSACTIONS:
                    assert bench.poll() is None and time.monotonic() < deadline
                    time.sleep(0.005)
            cluster.kill9()
        finally:
            bench.wait(60)
        cluster.start()
        with cluster.connect() as conn:
            assert conn.execute(UNMATCHED).fetchone() == (0, 0)
            assert len(set(conn.execute(BALANCES).fetchone())) == 1
            total = conn.execute("SELECT count(*) FROM pgbench_history").fetchone()[0]
            # Each transaction left one changeset, with its four events, and no trace of its savepoint.
            assert conn.execute(
                "SELECT count(*), min(event_count), max(event_count), count(DISTINCT xid) FROM audit.changeset WHERE"
                " origin = 'trigger'"
            ).fetchone() == (total, 4, 4, total)
            assert conn.execute("SELECT count(*) FROM audit.event WHERE operation <> 'SNAPSHOT'").fetchone() == (
                total * 4,
            )
    assert total >= CRASHES * TRANSACTIONS
    with cluster.connect() as conn:
        for table in ("pgbench_accounts", "pgbench_tellers", "pgbench_branches", "pgbench_history"):
            replay(conn, table)
        check_integrity(conn, ask_extension=False)
        # The indexes know every event, and the heap holds nothing that they point to and that is not there.
        conn.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        assert conn.execute(
            "SELECT count(*) FROM audit.changeset c WHERE c.event_count <> (SELECT count(*) FROM audit.event e WHERE"
            " e.changeset_id = c.id)"
        ).fetchone() == (0,)
        if conn.execute("SELECT FROM pg_available_extensions WHERE name = 'amcheck'").rowcount:
            cluster.run(
                [cluster.bin("pg_amcheck"), "--install-missing", "--heapallindexed", "-r", "audit.*", "postgres"]
            )
    # A plain restart finds nothing left to do.
    cluster.restart()
    with cluster.connect() as conn:
        assert conn.execute(UNMATCHED).fetchone() == (0, 0)


def test_kill_9_of_one_backend(new_cluster):
    """The server restarts by itself; the transaction of the killed backend is gone with its events."""
    cluster = new_cluster({"restart_after_crash": "on"})
    with cluster.connect() as conn:
        conn.execute(
            "CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); INSERT INTO t"
            " VALUES (1)"
        )
        pid = conn.info.backend_pid
        conn.execute("BEGIN; INSERT INTO t SELECT generate_series(2, 5000)")
        cluster.run(["kill", "-9", str(pid)])
        try:
            conn.execute("COMMIT")
        except psycopg.OperationalError:
            pass
    deadline = time.monotonic() + 60
    while True:
        try:
            with cluster.connect() as conn:
                assert len(replay(conn, "t")) == 1
                assert check_integrity(conn) == (1, 1)
                break
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
