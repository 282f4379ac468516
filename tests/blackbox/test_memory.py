"""Memory stays bounded: what auditing adds to a server process does not grow with the rows that a statement changes.

PostgreSQL itself keeps a queue of the rows that AFTER triggers have still to see, and some kilobytes for each released
sub-transaction that fired a statement trigger. Both are the same with any AFTER triggers, so the same statement with
triggers that do nothing is the measure. Counted is the anonymous memory of the process (RssAnon), which leaves the
shared buffers out.
"""

import threading
from pathlib import Path

import pytest

BUDGET = 32 << 20


def anonymous(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def growth(session, statement):
    """By how much the session's process grows at most while it runs the statement."""
    pid = session.info.backend_pid
    start = anonymous(pid)
    peak = [start]
    done = threading.Event()

    def watch():
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        session.execute(statement)
    finally:
        done.set()
        watcher.join()
    return max(peak[0], anonymous(pid)) - start


def baseline_and_audited(db, setup, statement, warm_up):
    """Growth with a trigger that does nothing, and with auditing, each in a session of its own that has warmed up."""
    found = []
    for audited in (False, True):
        name = "audited" if audited else "bare"
        with db.connect() as session:
            session.execute(setup.replace("{t}", name))
            if audited:
                session.execute(f"SELECT audit.enable('{name}')")
            else:
                for level in ("ROW", "STATEMENT"):
                    session.execute(
                        f"CREATE TRIGGER nothing_{level} AFTER INSERT OR UPDATE OR DELETE ON {name}"
                        f" FOR EACH {level} EXECUTE FUNCTION nothing()"
                    )
            session.execute(warm_up.replace("{t}", name))
            found.append(growth(session, statement.replace("{t}", name)))
    return found


@pytest.fixture
def conn(conn):
    conn.execute("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$")
    return conn


def test_statement_that_changes_five_million_rows(conn, db):
    rows = 5_000_000
    baseline, audited = baseline_and_audited(
        db,
        "CREATE UNLOGGED TABLE {t} (n int)",
        f"INSERT INTO {{t}} SELECT generate_series(1, {rows})",
        "INSERT INTO {t} VALUES (0)",
    )
    assert conn.execute("SELECT event_count FROM audit.changeset ORDER BY event_count DESC LIMIT 1").fetchone() == (
        rows,
    )
    print(f"grew by {baseline >> 20} MB with a trigger that does nothing, by {audited >> 20} MB with auditing")
    assert audited - baseline < BUDGET


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {t} SET n = n + 1, v = v || 'x'",
        "DELETE FROM {t}",
        # Every row is out of line: fetched, encoded, stored, and given back.
        "UPDATE {t} SET w = repeat(md5(n::text), 400) WHERE id <= 20000",
        (
            "DO $$ BEGIN FOR i IN 1 .. 40000 LOOP BEGIN UPDATE {t} SET n = i WHERE id = i; IF i % 2 = 0 THEN RAISE"
            " division_by_zero; END IF; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$"
        ),
        "DO $$ BEGIN FOR i IN 1 .. 20000 LOOP UPDATE {t} SET n = i WHERE id = i; COMMIT; END LOOP; END $$",
    ],
)
def test_other_shapes(conn, db, statement):
    baseline, audited = baseline_and_audited(
        db,
        "CREATE TABLE {t} (id int PRIMARY KEY, n int, v text, w text); ALTER TABLE {t} ALTER w SET STORAGE EXTERNAL;"
        " INSERT INTO {t} SELECT i, i, 'v' FROM generate_series(1, 100000) i",
        statement,
        "UPDATE {t} SET n = n WHERE id = 1",
    )
    assert audited - baseline < BUDGET, (baseline >> 20, audited >> 20)


def test_large_values_do_not_stay(conn, db):
    """The room that one large row took is given back after its statement."""
    with db.connect() as session:
        session.execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 'x')"
        )
        pid = session.info.backend_pid
        before = anonymous(pid)
        session.execute("INSERT INTO t SELECT 2, string_agg(md5(i::text), '') FROM generate_series(1, 2000000) i")
        session.execute("INSERT INTO t VALUES (3, 'x')")
        assert anonymous(pid) - before < BUDGET
