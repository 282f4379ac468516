"""Failed statements: each gives exactly one FAILURE event, handled errors give none."""

import contextlib
import threading
import time

import psycopg
import pytest

from auditlib import check_integrity
from queuelib import PRELOAD, database, log_isolated, stats, until

SETUP = """
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent VALUES (1), (2);
CREATE TABLE account (
    id int PRIMARY KEY,
    owner varchar(10) NOT NULL DEFAULT 'x',
    balance numeric(6,2) CHECK (balance >= 0),
    parent int REFERENCES parent DEFERRABLE,
    slot int,
    period int4range,
    born date,
    EXCLUDE USING gist (period WITH &&),
    CONSTRAINT slot_once UNIQUE (slot) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE child (id int PRIMARY KEY, account int REFERENCES account);
CREATE TABLE part (id int, v int CHECK (v > 0)) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE other (id int PRIMARY KEY);
CREATE TABLE log_copy (id int CHECK (id < 100));
CREATE VIEW small AS SELECT * FROM account WHERE balance < 100 WITH CHECK OPTION;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.owner = 'evil' THEN RAISE EXCEPTION 'no evil' USING HINT = 'be good'; END IF;
    IF NEW.owner = 'custom' THEN RAISE EXCEPTION 'mine' USING ERRCODE = 'AX123'; END IF;
    IF NEW.owner = 'nested' THEN INSERT INTO log_copy VALUES (100); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON account FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE FUNCTION change(i int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN UPDATE account SET balance = -1 WHERE id = i; END $$;
CREATE FUNCTION divide(i int) RETURNS int LANGUAGE sql AS 'SELECT 1 / i';
SELECT audit.enable('account'); SELECT audit.enable('parent'); SELECT audit.enable('child'); SELECT audit.enable('part');
INSERT INTO account (id, balance, slot, parent) VALUES (1, 10, 1, 1), (2, 20, 2, 1);
INSERT INTO child VALUES (1, 1);
CREATE TABLE demanding (id int); SELECT audit.enable('demanding', require_context => '{user_id}');
"""

# What fails, with which SQLSTATE, of which table.
KINDS = {
    "unique": ("INSERT INTO account (id) VALUES (1)", "23505", "public.account"),
    "not null": ("INSERT INTO account (id, owner) VALUES (3, NULL)", "23502", "public.account"),
    "check": ("UPDATE account SET balance = -1", "23514", "public.account"),
    "foreign key, missing parent": ("UPDATE account SET parent = 99 WHERE id = 1", "23503", "public.account"),
    "foreign key, still referenced": ("DELETE FROM account WHERE id = 1", "23503", "public.account"),
    "exclusion": ("UPDATE account SET period = '[1,5]'", "23P01", "public.account"),
    "string too long": ("UPDATE account SET owner = repeat('x', 20)", "22001", "public.account"),
    "numeric overflow": ("UPDATE account SET balance = 100000 + id", "22003", "public.account"),
    "division by zero at run": ("UPDATE account SET balance = 1 / (id - id)", "22012", "public.account"),
    "division by zero when planned": ("UPDATE account SET balance = 1 / 0", "22012", "public.account"),
    "bad cast at run": ("UPDATE account SET slot = (owner || 'q')::int", "22P02", "public.account"),
    "bad date": ("UPDATE account SET born = ('2024-13-' || id)::date", "22008", "public.account"),
    "trigger raises": ("INSERT INTO account (id, owner) VALUES (3, 'evil')", "P0001", "public.account"),
    "trigger raises a code of its own": ("INSERT INTO account (id, owner) VALUES (3, 'custom')", "AX123", "public.account"),
    "trigger's own statement": ("INSERT INTO account (id, owner) VALUES (3, 'nested')", "23514", "public.account"),
    "with check option": ("INSERT INTO small (id, balance) VALUES (3, 500)", "44000", "public.account"),
    "in a function": ("SELECT change(1)", "23514", "public.account"),
    "in a DO block": ("DO $$ BEGIN UPDATE account SET balance = -5; END $$", "23514", "public.account"),
    "function in the target list": ("UPDATE account SET slot = divide(id - 1)", "22012", "public.account"),
    "no partition": ("INSERT INTO part VALUES (50, 1)", "23514", "public.part"),
    "check of a partition": ("INSERT INTO part VALUES (5, -1)", "23514", "public.part"),
    "copy": ("COPY account (id, balance) FROM STDIN", "22P02", "public.account"),
    "truncate of a referenced table": ("TRUNCATE account", "0A000", "public.account"),
    "alter, not valid": ("ALTER TABLE account ADD CHECK (id > 1)", "23514", "public.account"),
    "alter, no such column": ("ALTER TABLE account DROP COLUMN nosuch", "42703", "public.account"),
    "drop, still referenced": ("DROP TABLE account", "2BP01", "public.account"),
    "scalar subquery with two rows": ("UPDATE account SET slot = (SELECT id FROM account)", "21000", "public.account"),
    "upsert twice": ("INSERT INTO account (id) VALUES (1), (1) ON CONFLICT (id) DO UPDATE SET owner = 'y'", "21000",
                     "public.account"),
    "merge": ("MERGE INTO account a USING (VALUES (1)) s(i) ON a.id = s.i WHEN MATCHED THEN UPDATE SET balance = -1",
              "23514", "public.account"),
    "select": ("SELECT 1 / (id - id) FROM account", "22012", "public.account"),
    "timeout": ("SET LOCAL statement_timeout = '50ms'; UPDATE account SET slot = 1 WHERE pg_sleep(10) IS NULL", "57014",
                "public.account"),
    "read-only transaction": ("SET LOCAL transaction_read_only = on; DELETE FROM account", "25006", "public.account"),
    "required context": ("INSERT INTO demanding VALUES (1)", "55000", "public.demanding"),
    "deferred unique at COMMIT": ("UPDATE account SET slot = 7", "23505", "public.account"),
    "deferred foreign key at COMMIT": ("SET CONSTRAINTS ALL DEFERRED; UPDATE account SET parent = 99", "23503",
                                       "public.account"),
    "bad literal": ("INSERT INTO account VALUES ('one')", "22P02", "public.account"),
    "wrong type": ("UPDATE public.account SET balance = true", "42804", "public.account"),
    "no such column": ("UPDATE account SET nosuch = 1", "42703", "public.account"),
    "no such function": ("INSERT INTO account SELECT nosuch(id) FROM parent", "42883", "public.account"),
    "no such column in a subquery": ("DELETE FROM other WHERE id IN (SELECT nosuch FROM account)", "42703",
                                     "public.account"),
    "too many values": ("INSERT INTO \"account\" VALUES (1, 'a', 1, 1, 1, NULL, NULL, 9)", "42601", "public.account"),
    "lock timeout": ("SET LOCAL lock_timeout = '50ms'; UPDATE account SET slot = 1 WHERE id = 1", "55P03",
                     "public.account"),
}

HANDLED = {
    "unique": "INSERT INTO account (id) VALUES (1)",
    "not null": "INSERT INTO account (id, owner) VALUES (3, NULL)",
    "check": "UPDATE account SET balance = -1",
    "foreign key": "DELETE FROM account WHERE id = 1",
    "exclusion": "UPDATE account SET period = '[1,5]'",
    "too long": "UPDATE account SET owner = repeat('x', 20)",
    "overflow": "UPDATE account SET balance = 100000 + id",
    "division": "UPDATE account SET balance = 1 / (id - id)",
    "planned": "UPDATE account SET balance = 1 / 0",
    "cast": "UPDATE account SET slot = (owner || 'q')::int",
    "trigger": "INSERT INTO account (id, owner) VALUES (3, 'evil')",
    "nested": "INSERT INTO account (id, owner) VALUES (3, 'nested')",
    "view": "INSERT INTO small (id, balance) VALUES (3, 500)",
    "function": "PERFORM change(1)",
    "partition": "INSERT INTO part VALUES (50, 1)",
    "two rows": "UPDATE account SET slot = (SELECT id FROM account)",
    "raised": "RAISE EXCEPTION 'x'",
}


@pytest.fixture(scope="module")
def kinds_db(preloaded):
    with database(preloaded, "kinds", extension=False):
        with preloaded.connect("kinds") as conn:
            conn.execute("CREATE EXTENSION audit_ext")
            conn.execute(SETUP)
        yield "kinds"


def failures(conn, since=0):
    """Failures, after those before were waited for."""
    log_isolated(conn, "marker")
    return conn.execute("""SELECT details ->> 'sqlstate', resource, status, details, changeset_id::text, user_id,
                                  session_role, effective_role
                             FROM audit.log WHERE operation = 'FAILURE'
                            ORDER BY era, position, command, seq OFFSET %s""", [since]).fetchall()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_failure_gives_one_event(server, kinds_db, kind):
    text, code, table = KINDS[kind]
    with server.connect("kinds") as conn, server.connect("kinds", autocommit=False) as blocker:
        before = len(failures(conn))
        if kind == "lock timeout":
            blocker.execute("SELECT FROM account WHERE id = 1 FOR UPDATE")
        with pytest.raises(psycopg.Error) as caught:
            with conn.transaction():
                if kind == "copy":
                    with conn.cursor().copy(text) as copy:
                        copy.write(b"7\tnothing\n")
                else:
                    conn.execute(text)
        assert caught.value.sqlstate == code
        blocker.rollback()
        found = failures(conn, before)
        assert [(f[0], f[1]) for f in found] == [(code, table)]
        details = found[0][3]
        assert details["message"].startswith(caught.value.diag.message_primary[:60])
        assert details.get("constraint") == caught.value.diag.constraint_name
        assert table in details["tables"]


@pytest.mark.parametrize("kind", HANDLED)
def test_a_handled_error_is_none(server, kinds_db, kind):
    with server.connect("kinds") as conn:
        before = len(failures(conn))
        conn.execute("DO $$ BEGIN BEGIN %s; EXCEPTION WHEN OTHERS THEN NULL; END; END $$" % HANDLED[kind])
        conn.execute("INSERT INTO account (id, balance) VALUES (1, 1) ON CONFLICT DO NOTHING")
        assert failures(conn, before) == []


def test_errors_elsewhere_are_none_unless_all_are_wanted(server, kinds_db):
    with server.connect("kinds") as conn:
        before = len(failures(conn))

        def fail():
            for text, code in (("SELECT 1 / 0", "22012"), ("SELEC", "42601"), ("SELECT * FROM nosuch", "42P01"),
                               ("INSERT INTO other VALUES (1), (1)", "23505"), ("DELETE FROM account WHER id = 1", "42601")):
                with pytest.raises(psycopg.Error) as caught:
                    conn.execute(text)
                assert caught.value.sqlstate == code

        fail()
        assert failures(conn, before) == []
        conn.execute("SET audit.log_failures = 'all'")
        fail()
        assert [f[:2] for f in failures(conn, before)] == [
            ("22012", None), ("42601", None), ("42P01", None), ("23505", None),
            ("42601", None)]
        conn.execute("SET audit.log_failures = 'off'")
        with pytest.raises(psycopg.Error):
            conn.execute("UPDATE account SET balance = -1")
        assert len(failures(conn, before)) == 5
        check_integrity(conn)


def test_what_a_failure_says(server, kinds_db):
    with server.connect("kinds") as admin:
        admin.execute("DROP ROLE IF EXISTS failing_user")
        admin.execute("CREATE ROLE failing_user LOGIN")
        before = len(failures(admin))
        with server.connect("kinds", user="failing_user") as conn:
            conn.execute("SELECT audit.set_context(user_id => 'mallory', ip_address => '192.0.2.9', is_local => false)")
            for text, command in (("INSERT INTO account (id) VALUES (9)", "INSERT"), ("TABLE account", "SELECT"),
                                  ("TRUNCATE account", "TRUNCATE"), ("DROP TABLE account", "DROP"),
                                  ("COPY account TO STDOUT", "COPY")):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(text)
                code, table, status, details, _, user, session_role, effective = failures(admin, before)[-1]
                assert (code, table, status, details["command"], user, session_role, effective) == (
                    "42501", "public.account", "failure", command, "mallory", "failing_user", "failing_user")
        # How many captured events went with it; the statement's text only when asked for.
        with server.connect("kinds", options="-c audit.log_statement=on") as conn:
            with pytest.raises(psycopg.Error), conn.transaction():
                conn.execute("UPDATE account SET owner = 'z'")
                conn.execute("UPDATE account SET balance = -id")
            *_, details, changeset, _, _, _ = failures(admin)[-1]
            assert details["discarded_events"] == 2
            assert conn.execute("SELECT statement, origin::text, event_count FROM audit.changeset WHERE id = %s",
                                [changeset]).fetchone() == ("UPDATE account SET balance = -id", "failure", 1)
            # In a savepoint: only what it captured.
            with conn.transaction():
                conn.execute("UPDATE account SET owner = 'z' WHERE id = 1")
                with pytest.raises(psycopg.Error), conn.transaction():
                    conn.execute("UPDATE account SET owner = 'y' WHERE id = 1")
                    conn.execute("UPDATE account SET balance = -id")
            assert failures(admin)[-1][3]["discarded_events"] == 1
            check_integrity(conn)


def test_values_that_the_policy_hides_are_not_in_the_details(server, kinds_db):
    with server.connect("kinds") as conn:
        conn.execute("CREATE TABLE secret (pin text PRIMARY KEY)")
        conn.execute("SELECT audit.enable('secret', mask_columns => '{pin}')")
        conn.execute("INSERT INTO secret VALUES ('4711')")
        with pytest.raises(psycopg.Error):
            conn.execute("INSERT INTO secret VALUES ('4711')")
        assert "4711" not in str(failures(conn)[-1][3])


def test_a_deadlock_a_serialization_failure_a_cancel_and_a_termination(server, kinds_db):
    with server.connect("kinds") as admin:
        before = len(failures(admin))
        with server.connect("kinds", autocommit=False) as one, server.connect("kinds", autocommit=False) as two:
            one.execute("UPDATE account SET owner = 'd' WHERE id = 1")
            two.execute("UPDATE account SET owner = 'd' WHERE id = 2")
            errors = []

            def cross(conn, i):
                try:
                    conn.execute("UPDATE account SET owner = 'd' WHERE id = %s", [i])
                except psycopg.Error as error:
                    errors.append(error.sqlstate)
                conn.rollback()

            thread = threading.Thread(target=cross, args=[one, 2])
            thread.start()
            cross(two, 1)
            thread.join()
            assert errors == ["40P01"]
            assert [f[:2] for f in failures(admin, before)] == [("40P01", "public.account")]

            for conn in (one, two):
                conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                conn.execute("SELECT sum(balance) FROM account")
            one.execute("UPDATE account SET balance = 11 WHERE id = 1")
            two.execute("UPDATE account SET balance = 21 WHERE id = 2")
            one.commit()
            with pytest.raises(psycopg.errors.SerializationFailure):
                two.commit()
            assert [f[:2] for f in failures(admin, before + 1)] == [("40001", "public.account")]

            sleeping = threading.Thread(target=cross, args=[one, 0])

            def sleep(conn):
                try:
                    conn.execute("UPDATE account SET owner = 'd' WHERE pg_sleep(60) IS NOT NULL")
                except psycopg.Error as error:
                    errors.append(error.sqlstate or "57P01")  # the connection is gone

            for function, code in (("pg_cancel_backend", "57014"), ("pg_terminate_backend", "57P01")):
                sleeping = threading.Thread(target=sleep, args=[one])
                sleeping.start()
                until(lambda: admin.execute("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s",
                                            [one.info.backend_pid]).fetchone()[0])
                admin.execute("SELECT %s(%%s)" % function, [one.info.backend_pid])
                sleeping.join()
                assert errors[-1] == code
                if code == "57014":
                    one.rollback()
                until(lambda: [f[:2] for f in failures(admin, before + 2)][-1:] == [(code, "public.account")])
        assert len(failures(admin, before)) == 4


def test_names_are_looked_up_as_the_session_would(server, kinds_db):
    with server.connect("kinds") as conn, server.connect("kinds") as admin:
        admin.execute("DROP ROLE IF EXISTS mine")
        admin.execute("CREATE ROLE mine LOGIN SUPERUSER")
        for schema in ("mine", "apart"):
            admin.execute("CREATE SCHEMA %s" % schema)
            admin.execute("CREATE TABLE %s.thing (id int)" % schema)
            admin.execute("SELECT audit.enable('%s.thing')" % schema)
        with server.connect("kinds", user="mine") as conn:
            for path, table in (('"$user", public', "mine.thing"), ("nosuch, apart, mine", "apart.thing"), ("public", None)):
                before = len(failures(admin))
                conn.execute("SET search_path = %s" % path)
                with pytest.raises(psycopg.Error):
                    conn.execute("INSERT INTO thing (id) VALUES ('x')")
                assert [f[1] for f in failures(admin, before)] == ([table] if table else [])
        admin.execute("DROP SCHEMA mine, apart CASCADE")
        admin.execute("DROP ROLE mine")


def test_a_rollback_is_recorded_if_asked_for(server, kinds_db):
    with server.connect("kinds", autocommit=False) as conn, server.connect("kinds") as admin:
        before = len(failures(admin))
        for setting in ("off", "on"):
            conn.execute("SET audit.log_rollbacks = %s" % setting)
            conn.commit()
            conn.execute("SELECT 1")
            conn.rollback()
            conn.execute("UPDATE account SET owner = 'r'")
            conn.execute("INSERT INTO child VALUES (5, 1)")
            conn.rollback()
        (code, table, status, details, *_), = failures(admin, before)
        assert (code, table, status) == (None, "public.account", "failure")
        assert details == {"command": "ROLLBACK", "tables": ["public.account", "public.child"], "discarded_events": 3}
        # An error says it all.
        conn.execute("UPDATE account SET owner = 'r'")
        with pytest.raises(psycopg.Error):
            conn.execute("UPDATE account SET balance = -1")
        conn.rollback()
        assert [f[0] for f in failures(admin, before)] == [None, "23514"]


def test_dirty_reads_of_the_stack(server, kinds_db):
    """After handled errors deep inside, the statements outside are still the ones that are meant."""
    with server.connect("kinds") as conn:
        conn.execute("""CREATE OR REPLACE FUNCTION deep(n int) RETURNS int LANGUAGE plpgsql AS $$
            BEGIN
                IF n = 0 THEN UPDATE account SET balance = -1; END IF;
                BEGIN PERFORM deep(n - 1); EXCEPTION WHEN check_violation THEN NULL; END;
                RETURN n;
            END $$""")
        before = len(failures(conn))
        for depth in (1, 5, 30):
            conn.execute("SELECT deep(%s)", [depth])
        assert failures(conn, before) == []
        with pytest.raises(psycopg.Error):
            conn.execute("INSERT INTO child SELECT deep(20), 99")
        assert [f[:2] for f in failures(conn, before)] == [("23503", "public.child")]
        with pytest.raises(psycopg.Error):
            conn.execute("SELECT 1 / (deep(3) - 3)")
        assert len(failures(conn, before)) == 1


def test_a_cursor_and_a_procedure(server, kinds_db):
    with server.connect("kinds") as conn:
        before = len(failures(conn))
        # An open cursor on an audited table has no part in another statement's failure.
        with pytest.raises(psycopg.Error), conn.transaction():
            conn.execute("DECLARE c CURSOR FOR SELECT * FROM account")
            conn.execute("FETCH c")
            conn.execute("INSERT INTO other VALUES (1), (1)")
        assert failures(conn, before) == []
        conn.execute("""CREATE OR REPLACE PROCEDURE steps() LANGUAGE plpgsql AS $$
            BEGIN
                UPDATE account SET owner = 'p'; COMMIT;
                UPDATE account SET owner = 'q'; ROLLBACK;
                UPDATE account SET balance = -1;
            END $$""")
        with pytest.raises(psycopg.Error):
            conn.execute("CALL steps()")
        assert [f[:2] for f in failures(conn, before)] == [("23514", "public.account")]


def test_a_parallel_worker_s_error_counts_once(server, kinds_db):
    with server.connect("kinds") as conn:
        conn.execute("CREATE TABLE big AS SELECT g AS id FROM generate_series(1, 200000) g")
        conn.execute("SELECT audit.enable('big')")
        for name, value in (("parallel_setup_cost", 0), ("parallel_tuple_cost", 0), ("min_parallel_table_scan_size", 0),
                            ("max_parallel_workers_per_gather", 2), ("parallel_leader_participation", "off")):
            conn.execute("SET %s = %s" % (name, value))
        before = len(failures(conn))
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("SELECT sum(1 / (id - 199999)) FROM big")
        assert caught.value.sqlstate == "22012"
        assert [f[:2] for f in failures(conn, before)] == [("22012", "public.big")]


def test_failures_of_many_clients_and_a_small_queue(new_cluster):
    cluster = new_cluster({**PRELOAD, "audit.queue_size": "64kB", "max_connections": "60"})
    with database(cluster, "many"), cluster.connect("many") as conn:
        conn.execute("SELECT audit.enable('account')")
        conn.execute("INSERT INTO account VALUES (1, 1)")
        clients, number = 20, 50  # a session keeps up to 64 failures while there is no room

        def fail(own):
            for i in range(number):
                with pytest.raises(psycopg.errors.UniqueViolation):
                    own.execute("INSERT INTO account VALUES (1, %s)", [i])

        def settled():
            # A session hands over what it keeps with its next transaction.
            for own in sessions:
                own.execute("SELECT 1")
            s = stats(conn)
            return s["failures_recorded"] + s["failures_lost"] == clients * number

        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(cluster.connect("many")) for _ in range(clients)]
            threads = [threading.Thread(target=fail, args=[own]) for own in sessions]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            until(settled, 300)
        assert stats(conn)["failures_lost"] == 0
        assert len(failures(conn)) == clients * number
        check_integrity(conn)


def test_a_database_without_the_extension_starts_no_worker(server):
    with database(server, "nothing", extension=False), server.connect("nothing") as conn:
        for _ in range(5):
            with pytest.raises(psycopg.Error):
                conn.execute("SELECT 1 / 0")
        time.sleep(0.2)
        assert conn.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit worker' AND datname = "
                            "current_database()").fetchone()[0] == 0


def test_without_preload_failures_are_not_recorded(conn):
    conn.execute("CREATE TABLE account (id int PRIMARY KEY)")
    conn.execute("SELECT audit.enable('account')")
    conn.execute("INSERT INTO account VALUES (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("INSERT INTO account VALUES (1)")
    assert conn.execute("SELECT count(*) FROM audit.event WHERE operation = 'FAILURE'").fetchone()[0] == 0
