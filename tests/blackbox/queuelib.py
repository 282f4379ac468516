"""What the tests of a server that preloads the library share: its settings, waiting, numbers, isolated events."""

import contextlib
import time

import psycopg.types.json

PRELOAD = {"shared_preload_libraries": "audit_ext", "max_worker_processes": "16"}


@contextlib.contextmanager
def database(cluster, name, extension=True):
    cluster.create_db(name)
    try:
        if extension:
            with cluster.connect(name) as conn:
                conn.execute("CREATE EXTENSION audit_ext")
                conn.execute("CREATE TABLE account (id int PRIMARY KEY, balance numeric)")
        yield name
    finally:
        if cluster.running:
            cluster.drop_db(name)


def until(condition, seconds=20):
    """Waits until the condition gives something true, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "not within %s s" % seconds
        time.sleep(0.02)


def stats(conn):
    row = conn.execute("SELECT to_jsonb(s) FROM audit.stats s").fetchone()
    return row[0]


def log_isolated(conn, action="test.event", **kw):
    """Whether it was committed: what was not comes with a warning."""
    notices = []
    conn.add_notice_handler(notices.append)
    try:
        details = psycopg.types.json.Jsonb(kw["details"]) if "details" in kw else None
        conn.execute("SELECT audit.log_event(%s, %s, %s, %s, isolated => true)",
                     [action, kw.get("resource"), kw.get("resource_id"), details])
    finally:
        conn.remove_notice_handler(notices.append)
    return not notices


def worker_pids(cluster, dbname):
    with cluster.connect() as conn:
        return [pid for pid, in conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'audit worker' AND datname = %s", [dbname])]
