"""audit.maintain: partitions of the log, their indexes, the default partition; by hand and by the worker."""

import datetime
import re
import threading
import time

import pytest
from auditlib import check_integrity, sqlstate
from year import UTC, Year, months

PARTITIONS = """
    SELECT i.inhparent::regclass::text, i.inhrelid::regclass::text, pg_get_expr(c.relpartbound, c.oid)
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent IN ('audit.event'::regclass, 'audit.changeset'::regclass) ORDER BY 1, 2"""


def maintain(conn, *arguments):
    with conn.transaction():
        return conn.execute(f"SELECT action, object FROM audit.maintain({', '.join(arguments)})").fetchall()


def until_done(conn, *arguments):
    done = []
    while found := maintain(conn, *arguments):
        done += found
        assert len(done) < 1000
    return done


def month(count=0):
    now = datetime.datetime.now(UTC)
    years, months = divmod(now.year * 12 + now.month - 1 + count, 12)
    return f"{years:04}{months + 1:02}01"


def partitions(conn, table):
    return [name for parent, name, _ in conn.execute(PARTITIONS) if parent == f"audit.{table}"]


def rows_in(conn, partition):
    return conn.execute(f"SELECT count(*) FROM {partition}").fetchone()[0]


def audited(conn, rows=0):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t')")
    if rows:
        conn.execute("INSERT INTO t SELECT g, 'x' FROM generate_series(1, %s) AS g", [rows])


def test_partitions_ahead(conn):
    names = [f"audit.{table}_{month(n)}" for n in range(3) for table in ("changeset", "event")]
    assert sorted(maintain(conn)) == sorted(("partition", name) for name in names)
    assert maintain(conn) == []
    for table in ("changeset", "event"):
        assert set(partitions(conn, table)) == {f"audit.{table}_default", *(f"audit.{table}_{month(n)}" for n in range(3))}
    audited(conn, 3)
    assert rows_in(conn, f"audit.event_{month()}") == 3 and rows_in(conn, f"audit.changeset_{month()}") == 1
    check_integrity(conn)
    assert [row[1] for row in maintain(conn, "ahead => 4")] == [f"audit.{table}_{month(n)}" for n in (3, 4) for table in ("changeset", "event")]


def test_partitions_are_like_the_default(conn):
    """Columns stored alike, an index each, nobody's but the owner's, append-only."""
    conn.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA audit GRANT ALL ON TABLES TO PUBLIC")
    maintain(conn)
    alike = """SELECT array_agg(ROW(a.attname, a.attstorage, a.attcompression, a.attnotnull)::text ORDER BY attnum),
                      (SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid),
                      (SELECT count(*) FROM aclexplode(c.relacl) AS g WHERE g.grantee <> c.relowner)
                 FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
                WHERE c.oid = %s::regclass GROUP BY c.oid"""
    for table in ("changeset", "event"):
        default = conn.execute(alike, [f"audit.{table}_default"]).fetchone()
        for name in partitions(conn, table):
            assert conn.execute(alike, [name]).fetchone() == default
    assert_append_only(conn)


def assert_append_only(conn):
    for role in ("origin", "replica"):
        conn.execute(f"SET session_replication_role = {role}")
        for table in ("changeset", "event"):
            for name in [f"audit.{table}", *partitions(conn, table)]:
                for statement in (f"DELETE FROM {name}", f"UPDATE {name} SET checksum = NULL"):
                    with sqlstate("55000"):
                        conn.execute(statement)
                # Of a partition that has no page yet, it removes nothing.
                if name == f"audit.{table}" or conn.execute("SELECT pg_relation_size(%s)", [name]).fetchone()[0]:
                    with sqlstate("55000"):
                        conn.execute(f"TRUNCATE {name}")
    conn.execute("RESET session_replication_role")


def test_the_default_partition_becomes_one_of_a_time(conn):
    audited(conn, 10)
    assert maintain(conn)[:2] == [("default closed", f"audit.{table}_before_{month(1)}") for table in ("changeset", "event")]
    assert maintain(conn) == []
    assert rows_in(conn, f"audit.event_before_{month(1)}") == 10 and rows_in(conn, "audit.event_default") == 0
    conn.execute("UPDATE t SET v = 'y'")
    assert rows_in(conn, f"audit.event_before_{month(1)}") == 20 and rows_in(conn, "audit.event_default") == 0
    assert conn.execute("SELECT count(*) FROM audit.log").fetchone()[0] == 20
    assert conn.execute("SELECT count(*) FROM audit.history('t', '7')").fetchone()[0] == 2
    assert_append_only(conn)
    check_integrity(conn)
    # The new default partition is the extension's, as the old one was: a dump takes its rows.
    assert conn.execute(
        """SELECT count(*) FROM pg_extension, unnest(extconfig) AS kept WHERE extname = 'audit_ext'
            AND kept IN ('audit.event_default'::regclass, 'audit.changeset_default'::regclass)"""
    ).fetchone()[0] == 2
    conn.execute("DROP EXTENSION audit_ext CASCADE")
    assert conn.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'event\\_%' AND relkind = 'r'").fetchone()[0] == 0


def test_a_large_default_partition(conn):
    """Its rows are checked in one call, while writers go on; it becomes another partition in the next."""
    audited(conn)
    conn.execute("INSERT INTO t SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 60000) AS g")
    conn.execute("ALTER TABLE audit.event ALTER row_image SET STORAGE EXTERNAL")  # so that few rows are many pages
    conn.execute("UPDATE t SET v = v || id")
    assert conn.execute("SELECT pg_relation_size('audit.event_default') > 64 * 1024 * 1024").fetchone()[0]
    assert ("default prepared", "call again") in maintain(conn)
    conn.execute("UPDATE t SET v = 'w' WHERE id = 1")
    done = maintain(conn)
    assert [row for row in done if row[0] == "default closed"] == [
        ("default closed", f"audit.{table}_before_{month(1)}") for table in ("changeset", "event")
    ]
    assert conn.execute("SELECT count(*) FROM pg_constraint WHERE conname = 'maintain_range'").fetchone()[0] == 0
    assert rows_in(conn, "audit.event_default") == 0
    assert conn.execute("SELECT count(*) FROM audit.history('t', '1')").fetchone()[0] == 3


def test_writers_go_on(db, conn):
    audited(conn)
    conn.execute("CREATE TABLE u (LIKE t INCLUDING ALL); SELECT audit.enable('u')")
    stop, written, errors = threading.Event(), [], []

    def write(number):
        with db.connect() as writer:
            count = 0
            while not stop.is_set():
                try:
                    with writer.transaction():
                        writer.execute("INSERT INTO t VALUES (%s, 'x')", [number * 1_000_000 + count])
                        writer.execute("INSERT INTO u VALUES (%s, 'x')", [number * 1_000_000 + count])
                    count += 1
                except Exception as error:
                    errors.append(error)
                    return
            written.append(count)

    threads = [threading.Thread(target=write, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: rows_in(conn, "t"))
        closed = 0
        for unit in ("'day'", "'day'", "'week'", "'month'"):
            for _ in range(3):
                closed += sum(action == "default closed" for action, _ in maintain(conn, unit))
        eventually(lambda: closed or "default closed" in [action for action, _ in maintain(conn)])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone()[0] == 2 * sum(written) > 0
    for table in ("changeset", "event"):
        assert rows_in(conn, f"audit.{table}_default") == 0
        for name in partitions(conn, table):
            constraint = conn.execute("SELECT pg_get_partition_constraintdef(%s::regclass)", [name]).fetchone()[0]
            assert conn.execute(f"SELECT count(*) FROM {name} WHERE NOT ({constraint})").fetchone()[0] == 0
    check_integrity(conn)


def test_a_partition_in_use_is_left_for_the_next_call(db, conn):
    """Nobody is kept waiting longer than the lock timeout; what is locked is done later."""
    audited(conn, 1)
    with db.connect() as other:
        other.execute("BEGIN; SELECT FROM audit.event")
        assert [action for action, _ in maintain(conn) if action != "summary"] == []
        other.execute("COMMIT")
    assert "default closed" in [action for action, _ in maintain(conn)]


def test_indexes_of_partitions_whose_time_is_over(db, conn):
    end = datetime.datetime.now(UTC)
    year = Year(11, 4000, 10, end - datetime.timedelta(minutes=5))
    months(conn, year.start, end + datetime.timedelta(days=1))
    year.load(conn)
    done = maintain(conn, "max_indexes => 2")
    assert len([action for action, _ in done if action == "index"]) == 2
    done += until_done(conn, "max_indexes => 5")
    built = [object for action, object in done if action == "index"]
    kinds = conn.execute("SELECT log_table, suffix FROM audit.closed_indexes()").fetchall()
    closed = [f"{year.start.year + (year.start.month + n - 1) // 12:04}{(year.start.month + n - 1) % 12 + 1:02}01" for n in range(12)]
    assert sorted(built) == sorted(f"audit.{table}_{at}_{suffix}_idx" for at in closed for table, suffix in kinds)
    assert until_done(conn) == []
    # The one that is written has none but its BRIN index.
    indexes = "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass"
    for table in ("changeset", "event"):
        assert conn.execute(indexes, [f"audit.{table}_{end:%Y%m}01"]).fetchone()[0] == 1
    # What was indexed is found by it.
    busy = [e for e in year.events if e.changeset.user_id == year.busy]
    assert conn.execute("SELECT audit.count_logs(user_id => %s)", [year.busy]).fetchone()[0] == len(busy)


def test_records_of_another_time(conn):
    """The clock was wrong: they stay where they are, and all else goes on."""
    audited(conn, 1)
    maintain(conn)
    conn.execute("CREATE TEMP TABLE copy AS SELECT * FROM audit.changeset LIMIT 1; UPDATE copy SET occurred_at = now() + interval '5 years'")
    conn.execute("INSERT INTO audit.changeset SELECT * FROM copy")
    notices = []
    conn.add_notice_handler(lambda notice: notices.append((notice.severity, notice.message_primary)))
    assert [row[1] for row in maintain(conn, "ahead => 3")] == [f"audit.{table}_{month(3)}" for table in ("changeset", "event")]
    assert [severity for severity, _ in notices] == ["WARNING"] and "stay there" in notices[0][1]


@pytest.mark.parametrize("arguments", ["'year'", "''", "ahead => 0", "ahead => 101", "ahead => NULL", "max_indexes => -1"])
def test_bad_input(conn, arguments):
    with sqlstate("22023") as caught:
        maintain(conn, arguments)
    assert caught.error.diag.message_hint
    assert len(conn.execute(PARTITIONS).fetchall()) == 2


def test_rights(conn, role):
    """An administrator calls it, and it works with the owner's rights."""
    user, reader, admin = role(), role(), role()
    conn.execute("SELECT audit.grant_reader(%s), audit.grant_admin(%s)", [reader, admin])
    for name in (user, reader):
        conn.execute(f"SET SESSION AUTHORIZATION {name}")
        with sqlstate("42501"):
            maintain(conn)
    conn.execute(f"SET SESSION AUTHORIZATION {admin}")
    assert len(maintain(conn)) == 6
    with sqlstate("42501"):
        conn.execute(f"SELECT FROM audit.event_{month()}")


def test_dump_and_restore(new_cluster):
    """With partitions, indexes, and rows in a new default partition."""
    old, new = new_cluster(), new_cluster()
    with old.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext")
        audited(conn, 5)
        maintain(conn)
        conn.execute("UPDATE t SET v = 'y'")
        conn.execute("CREATE TEMP TABLE copy AS SELECT * FROM audit.changeset LIMIT 1; UPDATE copy SET occurred_at = now() + interval '5 years'")
        conn.execute("INSERT INTO audit.changeset SELECT * FROM copy")
        expected = conn.execute(PARTITIONS).fetchall(), conn.execute("SELECT count(*), sum(hashtext(e::text)) FROM audit.event e").fetchall()
    dump = old.run([old.bin("pg_dump"), "postgres"]).stdout
    new.run([new.bin("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", "-"], input=dump)
    with new.connect() as conn:
        found = conn.execute(PARTITIONS).fetchall(), conn.execute("SELECT count(*), sum(hashtext(e::text)) FROM audit.event e").fetchall()
        assert found == expected
        assert rows_in(conn, "audit.changeset_default") == 1
        conn.execute("UPDATE t SET v = 'z'")
        assert_append_only(conn)
        assert maintain(conn, "ahead => 3") != []


# The worker


def eventually(test, seconds=120):
    until = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return found


def test_the_worker_calls_it(new_cluster):
    cluster = new_cluster({"shared_preload_libraries": "audit_ext", "audit.maintenance_interval": "1s"})
    cluster.create_db("without")
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext")
        eventually(lambda: f"audit.event_{month(2)}" in partitions(conn, "event"))
        # Its own transaction reads nothing that keeps others from working.
        audited(conn, 3)
        conn.execute("SELECT audit.disable('t')")
        cluster.configure(**{"audit.maintenance_interval": 0})
        cluster.reload()
        eventually(lambda: conn.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit maintenance'").fetchone()[0] == 0)
    cluster.drop_db("without")
    assert not re.search(r"audit.maintain\(\) failed|ERROR|FATAL|PANIC", cluster.log), cluster.log


def test_the_worker_says_what_went_wrong(new_cluster):
    cluster = new_cluster({"shared_preload_libraries": "audit_ext", "audit.maintenance_interval": "1s"})
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext; ALTER TABLE audit.event RENAME TO other")
        eventually(lambda: "audit.maintain() failed" in cluster.log)
        conn.execute("ALTER TABLE audit.other RENAME TO event")
        eventually(lambda: f"audit.event_{month(2)}" in partitions(conn, "event"))


def test_the_worker_ends_with_the_server(new_cluster):
    """Also one that waits for a lock."""
    cluster = new_cluster({"shared_preload_libraries": "audit_ext", "audit.maintenance_interval": "1s"})
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext")
        conn.execute("BEGIN; LOCK TABLE audit.event")
        eventually(lambda: cluster.connect().execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit maintenance' AND wait_event_type = 'Lock'").fetchone()[0])
    cluster.restart()
    with cluster.connect() as conn:
        eventually(lambda: f"audit.event_{month(2)}" in partitions(conn, "event"))
