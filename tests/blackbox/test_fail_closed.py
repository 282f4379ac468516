"""Fail-closed: whatever breaks, the statement or the COMMIT fails with a clear SQLSTATE, and no row or event is there.

A witness session stays connected throughout: a crash of any backend would end it.
"""

import random
import subprocess
import threading
import time
from pathlib import Path

import psycopg
import pytest
from auditlib import check_integrity, events, replay, sqlstate

OBJECT_NOT_IN_PREREQUISITE_STATE = "55000"
DISK_FULL = "53100"
OUT_OF_MEMORY = "53200"
QUERY_CANCELED = "57014"

# Every way of writing one row, then many.
WRITES = [
    "INSERT INTO t VALUES (100, 1)",
    "UPDATE t SET n = n + 1 WHERE id = 1",
    "DELETE FROM t WHERE id = 1",
    "TRUNCATE t",
    "INSERT INTO t SELECT i, i FROM generate_series(100, 3000) i",
    "UPDATE t SET n = n + 1",
    "WITH a AS (DELETE FROM t RETURNING id) SELECT count(*) FROM a",
    "MERGE INTO t USING (SELECT 1 AS id) s ON t.id = s.id WHEN MATCHED THEN UPDATE SET n = 9",
    "BEGIN; INSERT INTO t VALUES (100, 1); SAVEPOINT a; INSERT INTO t VALUES (101, 1); RELEASE a; COMMIT",
]


@pytest.fixture
def conn(conn):
    conn.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); SELECT audit.enable('t');"
        "INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i"
    )
    return conn


@pytest.fixture
def witness(db):
    session = db.connect()
    before = session.execute("SELECT pg_backend_pid(), pg_postmaster_start_time()").fetchone()
    yield session
    assert session.execute("SELECT pg_backend_pid(), pg_postmaster_start_time()").fetchone() == before


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows(session, table="t"):
    return session.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


def refused(session, *codes, writes=WRITES):
    """Each of these writes fails with one of these codes and leaves the table as it was. Returns the last error."""
    before = rows(session)
    for write in writes:
        with sqlstate(*codes) as caught:
            session.execute(write)
        session.rollback()
        assert rows(session) == before, write
        assert caught.error.diag.message_primary
    return caught.error


# --- the log is damaged -------------------------------------------------------------------------------------------

# In a superuser's hands even members of an extension can go. What reads the log goes first, or CASCADE would reach
# the extension itself.
RELEASE = """
    DO $$
    DECLARE
        members text[];
        member text;
    BEGIN
        SELECT array_agg(o.type || ' ' || o.identity) INTO members
          FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) o
         WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'audit_ext') AND d.deptype = 'e'
           AND (o.type IN ('table', 'view', 'sequence', 'operator', 'operator class', 'operator family')
                OR o.type = 'function' AND (SELECT l.lanname <> 'c' OR p.proname = 'pending_changesets'
                                              FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.oid = d.objid));
        FOREACH member IN ARRAY members LOOP
            EXECUTE 'ALTER EXTENSION audit_ext DROP ' || member;
        END LOOP;
        FOREACH member IN ARRAY members LOOP
            IF member ~ '^(view|function)' THEN
                EXECUTE regexp_replace(member, '^([a-z]+)', 'DROP \\1 IF EXISTS') || ' CASCADE';
            END IF;
        END LOOP;
    END $$;
"""

DAMAGES = {
    "event table dropped": "DROP TABLE audit.event",
    "changeset table dropped": "DROP TABLE audit.changeset",
    "event partition dropped": "DROP TABLE audit.event_default",
    "changeset partition dropped": "DROP TABLE audit.changeset_default",
    "event partition detached": "ALTER TABLE audit.event DETACH PARTITION audit.event_default",
    "changeset partition detached": "ALTER TABLE audit.changeset DETACH PARTITION audit.changeset_default",
    "event column dropped": "ALTER TABLE audit.event DROP COLUMN details",
    "event column added": "ALTER TABLE audit.event ADD COLUMN more int",
    "event column renamed": "ALTER TABLE audit.event RENAME COLUMN details TO particulars",
    "event column of another type": "ALTER TABLE audit.event ALTER COLUMN seq TYPE bigint",
    "changeset column dropped": "ALTER TABLE audit.changeset DROP COLUMN context",
    "changeset column added": "ALTER TABLE audit.changeset ADD COLUMN more int NOT NULL DEFAULT 1",
    "changeset column renamed": "ALTER TABLE audit.changeset RENAME COLUMN reason TO why",
    "changeset column of another type": ("ALTER TABLE audit.changeset ALTER COLUMN reason TYPE varchar"),
    "event table renamed": "ALTER TABLE audit.event RENAME TO event_1",
    "changeset table renamed": "ALTER TABLE audit.changeset RENAME TO changeset_1",
    "event table in another schema": "ALTER TABLE audit.event SET SCHEMA public",
    "event table replaced by a view": "DROP TABLE audit.event; CREATE VIEW audit.event AS SELECT 1 AS seq",
    "event table replaced by a plain one": (
        "CREATE TABLE copy (LIKE audit.event); DROP TABLE audit.event; ALTER TABLE copy RENAME TO event; ALTER"
        " TABLE event SET SCHEMA audit"
    ),
    "event partition with a column order of its own": (
        """
        ALTER TABLE audit.event DETACH PARTITION audit.event_default;
        CREATE TABLE other AS
            SELECT details, seq, occurred_at, command, relation_id, operation, status, changeset_id, salt, checksum,
                   resource_id, row_image, old_values, action, resource FROM audit.event_default LIMIT 0;
        ALTER TABLE other ALTER occurred_at SET NOT NULL, ALTER seq SET NOT NULL, ALTER command SET NOT NULL,
            ALTER operation SET NOT NULL, ALTER status SET NOT NULL, ALTER changeset_id SET NOT NULL,
            ALTER checksum SET NOT NULL;
        ALTER TABLE audit.event ATTACH PARTITION other DEFAULT"""
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("session", ["same", "new"])
def test_damaged_log(conn, db, witness, damage, session):
    conn.execute(RELEASE + DAMAGES[damage])
    writer = conn if session == "same" else db.connect()
    error = refused(writer, OBJECT_NOT_IN_PREREQUISITE_STATE)
    assert error.diag.message_hint
    # A session that has the log's layout cached learns of it as well.
    with sqlstate(OBJECT_NOT_IN_PREREQUISITE_STATE):
        witness.execute("INSERT INTO t VALUES (1000)")


@pytest.mark.parametrize(
    "damage",
    [
        "changeset table dropped",
        "changeset partition dropped",
        "changeset partition detached",
        "changeset column added",
        "changeset column renamed",
    ],
)
def test_log_is_damaged_between_the_statement_and_its_commit(conn, witness, damage):
    before = rows(conn)
    conn.execute("BEGIN; INSERT INTO t VALUES (100, 1)")
    with sqlstate(OBJECT_NOT_IN_PREREQUISITE_STATE):
        conn.execute(RELEASE + DAMAGES[damage])
        conn.execute("COMMIT")
    conn.rollback()
    assert rows(conn) == before
    assert rows(witness) == before


@pytest.mark.parametrize(
    "damage",
    [
        "event table dropped",
        "event partition dropped",
        "event partition detached",
        "event column added",
        "event column renamed",
        "changeset table dropped",
        "changeset partition detached",
        "changeset column added",
    ],
)
def test_log_is_damaged_while_a_writer_waits_for_it(conn, db, witness, damage):
    """The writer has the log's layout cached and waits for its lock; what it finds then is another log."""
    writer = db.connect()
    writer.execute("UPDATE t SET n = n WHERE id = 1")
    before = rows(conn)
    conn.execute("BEGIN;" + RELEASE + DAMAGES[damage])
    outcome = []

    def write():
        try:
            writer.execute("UPDATE t SET n = n + 1")
        except psycopg.Error as error:
            outcome.append(error.sqlstate)

    thread = threading.Thread(target=write)
    thread.start()
    waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
    wait_for(lambda: not thread.is_alive() or witness.execute(waits, [writer.info.backend_pid]).rowcount)
    conn.execute("COMMIT")
    thread.join()
    assert outcome == [OBJECT_NOT_IN_PREREQUISITE_STATE]
    assert rows(conn) == before


@pytest.mark.parametrize(
    "damage",
    [
        (
            "CREATE FUNCTION fail(uuid) RETURNS uuid IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RAISE 'no' USING ERRCODE ="
            " '22000'; END $$;CREATE INDEX ON audit.event_default (fail(changeset_id)) WHERE seq >= 0 AND occurred_at >"
            " clock_of_tests()"
        ),
        (
            "CREATE UNIQUE INDEX ON audit.event_default (status) WHERE resource_id IS NOT NULL AND occurred_at >"
            " clock_of_tests()"
        ),
        "CREATE UNIQUE INDEX ON audit.changeset_default (origin, era) WHERE occurred_at > clock_of_tests()",
        (
            "CREATE INDEX ON audit.event_default ((row_image ->> 'v')); CREATE INDEX ON audit.changeset_default"
            " ((reason || user_id)) WHERE user_id > 'a'"
        ),
        "ALTER TABLE audit.event_default ADD CHECK (seq < 0) NOT VALID",
        "ALTER TABLE audit.changeset_default ADD CHECK (event_count < 0) NOT VALID",
        (
            "CREATE TRIGGER more BEFORE INSERT ON audit.event_default FOR EACH ROW EXECUTE FUNCTION"
            " suppress_redundant_updates_trigger()"
        ),
        "CREATE RULE more AS ON INSERT TO audit.event_default DO INSTEAD NOTHING",
        (
            "ALTER TABLE audit.event_default ENABLE ROW LEVEL SECURITY; ALTER TABLE audit.event_default FORCE ROW LEVEL"
            " SECURITY"
        ),
        "ALTER TABLE audit.event_default ALTER details SET NOT NULL",
        """DO $$ DECLARE i regclass; BEGIN
                  FOR i IN SELECT indexrelid FROM pg_index WHERE NOT indisprimary
                               AND indrelid IN ('audit.event_default'::regclass, 'audit.changeset_default'::regclass) LOOP
                      EXECUTE 'DROP INDEX ' || i;
                  END LOOP; END $$""",
    ],
)
def test_log_with_additions_is_written_rightly_or_not_at_all(conn, db, witness, damage):
    """Indexes, constraints, triggers, rules of somebody's own on the log: they may be obeyed, ignored or refused, but a
    change never comes without
    its event, nor an event that an index does not know."""
    conn.execute(
        "CREATE FUNCTION clock_of_tests() RETURNS timestamptz IMMUTABLE LANGUAGE sql AS $$ SELECT timestamptz '%s' $$"
        % conn.execute("SELECT clock_timestamp()").fetchone()[0]
    )
    try:
        conn.execute(damage)
    except psycopg.Error:
        return  # refused already here
    writer = db.connect()
    for write in WRITES:
        try:
            writer.execute(write)
        except psycopg.Error as error:
            assert error.sqlstate and not error.sqlstate.startswith("XX"), error
            writer.rollback()
    replay(conn, "t")
    check_integrity(conn, ask_extension=False)
    for index in (True, False):
        conn.execute(
            f"SET enable_seqscan = {not index}; SET enable_indexscan = {index}; SET enable_bitmapscan = {index}; SET"
            f" enable_indexonlyscan = {index}"
        )
        assert conn.execute(
            "SELECT count(*) FROM audit.event e WHERE NOT EXISTS (SELECT FROM audit.event f WHERE f.changeset_id ="
            " e.changeset_id AND f.seq = e.seq OFFSET 0)"
        ).fetchone() == (0,)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM audit.policy",
        RELEASE + "DROP TABLE audit.policy CASCADE",
        RELEASE + "DROP TABLE audit.relation",
    ],
)
def test_policy_or_layouts_gone(conn, db, witness, damage):
    try:
        conn.execute(damage)
    except psycopg.Error as error:
        # The extension's own event trigger needs the policies to let a table go.
        assert "policy" in damage and error.sqlstate in (OBJECT_NOT_IN_PREREQUISITE_STATE, "42P01")
        return
    refused(db.connect(), OBJECT_NOT_IN_PREREQUISITE_STATE)
    # A session that knows the policy may go on, if what it does is recorded.
    before = rows(conn)
    try:
        conn.execute("INSERT INTO t VALUES (100, 1)")
    except psycopg.Error as error:
        assert error.sqlstate == OBJECT_NOT_IN_PREREQUISITE_STATE
        assert rows(conn) == before
    else:
        assert conn.execute("SELECT count(*) FROM audit.event WHERE resource_id = '100'").fetchone() == (1,)


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE audit.relation ADD COLUMN more int NOT NULL DEFAULT 1",
        "ALTER TABLE audit.relation DROP COLUMN columns",
        "ALTER TABLE audit.relation DROP COLUMN valid_from",
        "ALTER TABLE audit.relation ALTER COLUMN key_columns TYPE text USING 'x'",
        "ALTER TABLE audit.ledger ADD COLUMN more int",
        "ALTER TABLE audit.ledger DROP COLUMN system_identifier",
        "ALTER TABLE audit.policy DROP COLUMN exclude_columns",
        "ALTER TABLE audit.policy ADD COLUMN more int",
        (
            "ALTER TABLE audit.policy ALTER COLUMN exclude_columns DROP DEFAULT, ALTER COLUMN exclude_columns TYPE text"
            " USING 'v'"
        ),
        (
            "ALTER TABLE audit.policy ALTER COLUMN skip_unchanged DROP DEFAULT, ALTER COLUMN skip_unchanged TYPE text"
            " USING 'v'"
        ),
    ],
)
def test_small_tables_altered(conn, db, witness, damage):
    """The tables that the writer reads: other columns than it knows are refused, not misread; and a column that the
    policy leaves out stays out."""
    conn.execute("SELECT audit.enable('t', exclude_columns => '{v}')")
    conn.execute("ALTER TABLE t ADD COLUMN more int")
    try:
        conn.execute(RELEASE + damage)
    except psycopg.Error:
        return  # refused already here, by the extension's own event trigger
    session = db.connect()
    before = rows(session)
    try:
        session.execute("UPDATE t SET v = 'secret'")
    except psycopg.Error as error:
        assert error.sqlstate == OBJECT_NOT_IN_PREREQUISITE_STATE, error
        assert rows(conn) == before
    else:
        assert conn.execute(
            "SELECT count(*), count(*) FILTER (WHERE row_image::text LIKE '%secret%') FROM audit.event WHERE operation"
            " = 'UPDATE'"
        ).fetchone() == (len(before), 0)


@pytest.mark.parametrize("how", ["ALL", "USER"])
def test_trigger_enabled_again_otherwise(conn, db, role, witness, how):
    """DISABLE TRIGGER followed by ENABLE TRIGGER, as loaders do, leaves the triggers enabled, but no longer always:
    they still record, or refuse."""
    name = role()
    conn.execute(f"ALTER TABLE t OWNER TO {name}")
    with db.connect(user=name) as owner:
        try:
            owner.execute(f"ALTER TABLE t DISABLE TRIGGER {how}")
            owner.execute(f"ALTER TABLE t ENABLE TRIGGER {how}")
        except psycopg.Error as error:
            assert error.sqlstate == "42501"
        before = rows(conn)
        try:
            owner.execute("INSERT INTO t VALUES (100, 1)")
        except psycopg.Error as error:
            assert error.sqlstate == OBJECT_NOT_IN_PREREQUISITE_STATE
            assert rows(conn) == before
        else:
            assert conn.execute("SELECT count(*) FROM audit.log WHERE resource_id = '100'").fetchone() == (1,)


def test_extension_dropped_takes_its_triggers_along(conn, witness):
    """What is no longer audited is not refused either."""
    conn.execute("DROP EXTENSION audit_ext CASCADE")
    witness.execute("INSERT INTO t VALUES (100)")
    assert conn.execute("SELECT count(*) FROM pg_trigger WHERE tgrelid = 't'::regclass").fetchone() == (0,)
    conn.execute("CREATE EXTENSION audit_ext; SELECT audit.enable('t'); DELETE FROM t")
    witness.execute("INSERT INTO t VALUES (200)")
    assert len(events(conn, "t")) == 22
    check_integrity(conn, ask_extension=False)


def test_library_of_another_version(conn, db, witness):
    conn.execute("UPDATE pg_extension SET extversion = '0.0.9' WHERE extname = 'audit_ext'")
    error = refused(db.connect(), OBJECT_NOT_IN_PREREQUISITE_STATE)
    assert "ALTER EXTENSION" in error.diag.message_hint
    conn.execute("UPDATE pg_extension SET extversion = '0.1.0' WHERE extname = 'audit_ext'")
    db.connect().execute("INSERT INTO t VALUES (100)")
    replay(conn, "t")


# --- no space -----------------------------------------------------------------------------------------------------


def enter_namespace(cluster, mount_point, size):
    """Starts the cluster in a mount namespace of its own, where `mount_point` is a file system of that size.

    Nothing of it is seen outside, and it goes with the server. Needs user namespaces, no privileges.
    """
    inner = (
        f"mount -t tmpfs -o size={size},mode=0700 none {mount_point} && mkdir {mount_point}/space && "
        "exec unshare --user --map-user=$1 --map-group=$2 -- "
        f"{cluster.bin('pg_ctl')} start -w -D {cluster.data_dir} -l {cluster.log_file}"
    )
    uid, gid = cluster.run(["id", "-u"]).stdout.strip(), cluster.run(["id", "-g"]).stdout.strip()
    try:
        cluster.run(
            ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", inner, "sh", uid, gid], capture=False
        )
    except subprocess.CalledProcessError:
        assert not cluster.running
        return False
    return True


@pytest.mark.parametrize("full", ["event", "changeset", "indexes"])
def test_no_space(new_cluster, full):
    cluster = new_cluster()
    cluster.stop()
    mount_point = cluster.scratch / "small"
    cluster.run(["mkdir", mount_point])
    if not enter_namespace(cluster, mount_point, "1m"):
        pytest.skip("this kernel grants no user namespaces")
    conn, witness = cluster.connect(), cluster.connect()
    conn.execute(
        "CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY, n int, v text); SELECT audit.enable('t')"
    )
    conn.execute(f"CREATE TABLESPACE small LOCATION '{mount_point}/space'")
    if full == "indexes":
        # The log's own indexes hardly grow; one that an administrator adds does.
        conn.execute("CREATE INDEX ON audit.event (changeset_id, seq) TABLESPACE small")
    else:
        conn.execute(f"ALTER TABLE audit.{full}_default SET TABLESPACE small")
    # Many rows for the events, many transactions with a long reason for the changesets.
    if full == "changeset":

        def write(i):
            conn.execute("BEGIN")
            conn.execute(
                "SELECT audit.set_context(reason => string_agg(md5(random()::text), '')) FROM generate_series(1, 200)"
            )
            conn.execute("INSERT INTO t VALUES (%s, 0)", [i])
            conn.execute("COMMIT")

        step, attempts = 1, 3000
    else:

        def write(i):
            conn.execute("INSERT INTO t SELECT j, 0 FROM generate_series(%s::int, %s::int) j", [i, i + 999])

        step, attempts = 1000, 100000
    done = 0
    with sqlstate(DISK_FULL):
        for i in range(0, attempts, step):
            write(i)
            done += step
    conn.rollback()
    assert done > 0
    for again in range(3):
        with sqlstate(DISK_FULL):
            write(500000)
        conn.rollback()
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (done,)
    assert len(replay(conn, "t")) == done
    check_integrity(conn, ask_extension=False)
    assert witness.execute("SELECT count(*) FROM t").fetchone() == (done,)
    # With room again, it goes on.
    conn.execute("CREATE TABLESPACE roomy LOCATION '%s'" % make_folder(cluster, "roomy"))
    conn.execute(
        "ALTER INDEX ALL IN TABLESPACE small SET TABLESPACE roomy; ALTER TABLE ALL IN TABLESPACE small SET TABLESPACE"
        " roomy"
    )
    write(500000)
    assert len(replay(conn, "t")) == done + step
    check_integrity(conn, ask_extension=False)
    conn.close()
    witness.close()
    cluster.stop()


def make_folder(cluster, name):
    folder = cluster.scratch / name
    cluster.run(["mkdir", folder])
    return folder


# --- a context that is refused ------------------------------------------------------------------------------------


def test_refused_context(conn, witness):
    before = rows(conn)
    conn.execute("BEGIN; INSERT INTO t VALUES (100, 1)")
    with sqlstate("22023"):
        conn.execute("SET LOCAL audit.ip_address = 'nowhere'; COMMIT")
    conn.rollback()
    assert rows(conn) == before
    conn.execute("SELECT audit.enable('t', require_context => '{user_id}')")
    refused(conn, OBJECT_NOT_IN_PREREQUISITE_STATE)
    conn.execute("SET audit.user_id = 'ann'; INSERT INTO t VALUES (100, 1)")
    replay(conn, "t")
    check_integrity(conn, ask_extension=False)


# --- cancelled ----------------------------------------------------------------------------------------------------

BULK = 6000
BULK_STATEMENTS = [
    "UPDATE t SET n = n + 1",
    "WITH a AS (UPDATE t SET n = n + 1 RETURNING id) SELECT count(*) FROM a",
    "BEGIN; UPDATE t SET n = n + 1 WHERE id % 2 = 0; UPDATE t SET n = n + 1 WHERE id % 2 = 1; COMMIT",
    "DO $$ BEGIN FOR i IN 0 .. 9 LOOP UPDATE t SET n = n + 1 WHERE id % 10 = i; END LOOP; END $$",
]


@pytest.fixture
def bulk(conn):
    conn.execute(f"DELETE FROM t; INSERT INTO t SELECT i, 0 FROM generate_series(1, {BULK}) i")
    return conn


def duration(conn):
    start = time.monotonic()
    conn.execute("BEGIN; UPDATE t SET n = n + 1; ROLLBACK")
    conn.execute("VACUUM t")
    return time.monotonic() - start


def all_or_nothing(conn, succeeded):
    """Each round changed all rows or none, and the log has the events of the rounds that succeeded."""
    assert conn.execute("SELECT min(n), max(n), count(*) FROM t").fetchone() == (succeeded, succeeded, BULK)
    found = conn.execute(
        "SELECT count(*), count(DISTINCT changeset_id) FROM audit.event WHERE operation = 'UPDATE'"
    ).fetchone()
    assert found == (succeeded * BULK, succeeded)


@pytest.mark.parametrize("how", ["pg_cancel_backend", "statement_timeout", "pg_terminate_backend"])
def test_cancelled_at_any_point(bulk, db, witness, how):
    choice = random.Random(how)
    length = duration(bulk)
    succeeded, failed = 0, 0
    rounds = 24 if how != "pg_terminate_backend" else 10
    session = db.connect()
    for i in range(rounds):
        statement = BULK_STATEMENTS[i % len(BULK_STATEMENTS)]
        # From at once to a little after the end.
        delay = length * 1.3 * (i + choice.random()) / rounds
        if session.closed:
            session = db.connect()
        pid = session.info.backend_pid
        if how == "statement_timeout":
            session.execute("SET statement_timeout = %d" % max(1, delay * 1000))
        else:
            timer = threading.Timer(delay, lambda pid=pid: witness.execute(f"SELECT {how}(%s)", [pid]))
            timer.start()
        try:
            session.execute(statement)
            succeeded += 1
        except psycopg.Error as error:
            failed += 1
            if how == "pg_terminate_backend":
                session.close()
            else:
                assert error.sqlstate == QUERY_CANCELED
                session.rollback()
        if how == "statement_timeout":
            session.execute("RESET statement_timeout")
        else:
            timer.join()
            # A cancel that comes after the end must not meet the next statement.
            try:
                session.execute("SELECT 1")
            except psycopg.Error:
                session.close()
        if how == "pg_terminate_backend" and session.closed:
            # The connection may have gone just before it could say that the commit was done.
            wait_for(lambda: not bulk.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).rowcount)
            succeeded = bulk.execute("SELECT max(n) FROM t").fetchone()[0]
        all_or_nothing(bulk, succeeded)
        if i % 8 == 0:
            bulk.execute("VACUUM t")
    assert failed > 0
    bulk.execute("UPDATE t SET n = n + 1")
    all_or_nothing(bulk, succeeded + 1)
    check_integrity(bulk, ask_extension=False)


def test_cancelled_and_caught(bulk, witness):
    """What the cancelled statement had captured goes with its savepoint; what came before and comes after stays."""
    length = duration(bulk)
    choice = random.Random(1)
    cancelled = 0
    for i in range(10):
        bulk.execute("BEGIN; UPDATE t SET v = 'a' WHERE id = 1; SAVEPOINT s")
        timer = threading.Timer(
            length * choice.random() * 0.9,
            lambda: witness.execute("SELECT pg_cancel_backend(%s)", [bulk.info.backend_pid]),
        )
        timer.start()
        try:
            bulk.execute("UPDATE t SET n = n + 1")
        except psycopg.Error as error:
            assert error.sqlstate == QUERY_CANCELED
            cancelled += 1
        timer.join()
        bulk.execute("ROLLBACK TO s; UPDATE t SET v = 'b' WHERE id = 2; COMMIT")
    assert cancelled > 0
    assert len([event for event in events(bulk, "t") if event.operation == "UPDATE"]) == 20
    replay(bulk, "t")
    check_integrity(bulk, ask_extension=False)


def test_cancelled_at_commit(bulk, db, witness):
    """Deferred triggers that write at COMMIT, cancelled while they do."""
    bulk.execute("""
        CREATE TABLE late (id int, n int); SELECT audit.enable('late');
        CREATE FUNCTION copy_late() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO late VALUES (NEW.id, NEW.n); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION copy_late()""")
    bulk.execute("BEGIN; UPDATE t SET n = n + 1 WHERE id <= 2000")
    start = time.monotonic()
    bulk.execute("COMMIT")
    length = time.monotonic() - start
    failed, succeeded = 0, 1
    pid = bulk.info.backend_pid
    for i in range(12):
        bulk.execute("BEGIN; UPDATE t SET n = n + 1 WHERE id <= 2000")
        # statement_timeout does not reach into COMMIT.
        timer = threading.Timer(length * i / 10, lambda: witness.execute("SELECT pg_cancel_backend(%s)", [pid]))
        timer.start()
        try:
            bulk.execute("COMMIT")
            succeeded += 1
        except psycopg.Error as error:
            assert error.sqlstate == QUERY_CANCELED
            failed += 1
        timer.join()
        if bulk.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
            bulk.execute("ROLLBACK")  # the cancel came before COMMIT began to commit
        try:
            bulk.execute("SELECT 1")
        except psycopg.Error:
            pass  # the cancel came after the end
        assert bulk.execute("SELECT max(n), (SELECT count(*) FROM late) FROM t").fetchone() == (
            succeeded,
            succeeded * 2000,
        )
    assert failed > 0
    replay(bulk, "late")
    replay(bulk, "t")
    check_integrity(bulk, ask_extension=False)


# --- out of memory ------------------------------------------------------------------------------------------------


def address_space(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmSize")


def limit(db, session, megabytes):
    """Lets the session's process have so much more address space than it has now; None: as much as it wants."""
    pid = session.info.backend_pid
    soft = "unlimited" if megabytes is None else address_space(pid) + (megabytes << 20)
    # The server's own user may do that to it, where root in a container may not.
    db.cluster.run(["prlimit", f"--pid={pid}", f"--as={soft}:"])


# Rows of t that differ from the last version that the log has of them, or that one of both lacks.
LAST_VERSIONS = """
    SELECT count(*)
      FROM (SELECT DISTINCT ON (resource_id) resource_id, new_row FROM audit.log WHERE resource = 'public.t'
             ORDER BY resource_id, era DESC, position DESC, command DESC, seq DESC) l
      FULL JOIN t ON l.resource_id = t.id::text
     WHERE l.new_row IS DISTINCT FROM to_jsonb(t)"""
CHECKSUMS = """
    SELECT (SELECT bool_and(checksum = sha256(uuid_send(salt) || convert_to(audit.canonical(changeset_id, seq), 'UTF8')))
              FROM audit.event),
           (SELECT bool_and(event_count = (SELECT count(*) FROM audit.event e WHERE e.changeset_id = c.id))
              FROM audit.changeset c)"""


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO t SELECT 100, 0, repeat('ab', 6000000)",
        "UPDATE t SET v = upper(v) WHERE id = 1",
        "UPDATE t SET n = n + 1 WHERE id = 1",
        "DELETE FROM t WHERE id = 1",
        "INSERT INTO t SELECT i, 0, repeat(chr(1), 100000) FROM generate_series(100, 110) i",
        "INSERT INTO doc SELECT id, jsonb_build_object('v', v, 'w', v) FROM t WHERE id = 1",
    ],
)
def test_out_of_memory(conn, db, witness, write):
    """The server process gets less and less address space: it fails while it reads, encodes, hashes or stores the
    value, wherever the limit meets it."""
    conn.execute(
        "UPDATE t SET v = repeat('quote \" control ' || chr(7), 700000) WHERE id = 1; CREATE TABLE doc (id int, doc"
        " jsonb); SELECT audit.enable('doc')"
    )
    failed = succeeded = 0
    for extra in (1, 3, 6, 10, 16, 24, 36, 52, 72, 100, 150, 600):
        session = db.connect()
        session.execute("UPDATE t SET n = n WHERE id = 2")  # loads the library and fills the caches
        session.execute("BEGIN")
        limit(db, session, extra)
        try:
            session.execute(write)
            session.execute("COMMIT")
            succeeded += 1
        except psycopg.Error as error:
            assert error.sqlstate == OUT_OF_MEMORY, error
            failed += 1
        # The session lives on, and audits.
        limit(db, session, None)
        session.rollback()
        session.execute("UPDATE t SET n = n + 1 WHERE id = 3; DELETE FROM t WHERE id >= 100")
        if succeeded and write.startswith("DELETE"):
            break
        session.close()
    assert failed and succeeded
    # As replay() and check_integrity() do, but within the server: the values are large.
    assert conn.execute(LAST_VERSIONS).fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM doc").fetchone() == conn.execute(
        "SELECT count(*) FROM audit.log WHERE resource = 'public.doc'"
    ).fetchone()
    assert conn.execute(CHECKSUMS).fetchone() == (True, True)


def test_out_of_memory_with_many_rows(conn, db, witness):
    """The batch of a statement's events meets the limit."""
    failed = succeeded = 0
    for extra in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 40, 80):
        session = db.connect()
        session.execute("UPDATE t SET n = n WHERE id = 2")
        limit(db, session, extra)
        try:
            session.execute("INSERT INTO t SELECT i, 0, repeat('x', 1500) FROM generate_series(1000, 9000) i")
            succeeded += 1
        except psycopg.Error as error:
            assert error.sqlstate == OUT_OF_MEMORY, error
            failed += 1
        limit(db, session, None)
        session.rollback()
        session.execute("DELETE FROM t WHERE id >= 1000")
        session.close()
        if succeeded == 2:
            break
    assert failed and succeeded
    replay(conn, "t")
    check_integrity(conn, ask_extension=False)
