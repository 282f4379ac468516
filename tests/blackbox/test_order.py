"""Order: read by era, position, command, seq, the events of a table replay to its present rows.

Each scenario makes versions whose capture order, time order or transaction order is not the order in which they came
into being. `replay` (auditlib.py) applies the events in the documented order and demands that each finds the version
which it says it replaces.
"""

import random
import threading

import psycopg
import pytest

import auditlib
from auditlib import connect_like, events, replay


@pytest.fixture
def table(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, n int, note text); SELECT audit.enable('t')")
    yield conn
    replay(conn, "t")
    auditlib.check_integrity(conn)


def trigger(conn, body, timing="AFTER UPDATE", condition="true", on="t", name="users_trigger", kind="", options=""):
    conn.execute("""
        CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$;
        CREATE {kind} TRIGGER {name} {timing} ON {on} {options} FOR EACH ROW WHEN ({condition})
            EXECUTE FUNCTION {name}()""".format(**locals()))


# --- triggers -----------------------------------------------------------------------------------------------------

def test_after_trigger_that_updates_other_rows(table):
    trigger(table, "UPDATE t SET n = n + 100 WHERE id <> NEW.id; RETURN NULL;", condition="NEW.n < 100")
    table.execute("INSERT INTO t SELECT g, g, '' FROM generate_series(1, 5) g")
    table.execute("UPDATE t SET n = n + 1")
    assert len(events(table, "t")) == 5 + 5 + 5 * 4


def test_after_trigger_that_updates_the_same_row(table):
    trigger(table, "UPDATE t SET note = 'again ' || NEW.n WHERE id = NEW.id; RETURN NULL;",
            condition="OLD.n IS DISTINCT FROM NEW.n")
    table.execute("INSERT INTO t SELECT g, g, '' FROM generate_series(1, 3) g")
    table.execute("UPDATE t SET n = n + 1")
    table.execute("UPDATE t SET n = n + 1 WHERE id = 2")
    assert len(events(table, "t")) == 3 + 6 + 2


def test_after_trigger_on_insert_that_updates_and_deletes(table):
    trigger(table, """UPDATE t SET note = note || 'x' WHERE id = NEW.id;
                      IF NEW.id % 2 = 0 THEN DELETE FROM t WHERE id = NEW.id; END IF;
                      UPDATE t SET n = n + 1 WHERE id < NEW.id; RETURN NULL;""", timing="AFTER INSERT")
    table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 6) g")


def test_after_trigger_that_undoes_a_deletion(table):
    trigger(table, "INSERT INTO t VALUES (OLD.id, OLD.n + 1, 'back'); RETURN NULL;", timing="AFTER DELETE",
            condition="OLD.n < 2")
    table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 3) g")
    for _ in range(4):
        table.execute("DELETE FROM t WHERE id < 3")
    assert len(replay(table, "t")) == 3 + 2 * (2 * 2 + 1)


def test_recursive_trigger(table):
    trigger(table, "UPDATE t SET n = n - 1 WHERE id = NEW.id; RETURN NULL;", condition="NEW.n > 0")
    table.execute("INSERT INTO t VALUES (1, 0, ''), (2, 0, '')")
    table.execute("UPDATE t SET n = 30")
    assert len(events(table, "t")) == 2 + 2 * 31


def test_recursive_trigger_over_rows(table):
    """Each row's change changes its neighbour, down a chain and back."""
    trigger(table, "UPDATE t SET n = NEW.n - 1 WHERE id = NEW.id % 7 + 1; RETURN NULL;", condition="NEW.n > 0")
    table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 7) g")
    table.execute("UPDATE t SET n = 40 WHERE id IN (1, 4)")


def test_before_trigger_that_changes_other_rows(table):
    trigger(table, "UPDATE t SET note = note || NEW.id WHERE id > NEW.id; RETURN NEW;", timing="BEFORE INSERT")
    table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(5, 1, -1) g")


def test_statement_triggers_and_row_triggers(table):
    table.execute("""
        CREATE FUNCTION after_all() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN IF pg_trigger_depth() < 3 THEN UPDATE t SET n = n + 1; END IF; RETURN NULL; END$$;
        CREATE TRIGGER after_all AFTER UPDATE ON t EXECUTE FUNCTION after_all();
        CREATE TRIGGER "   first" AFTER UPDATE ON t EXECUTE FUNCTION after_all()""")
    table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 3) g")
    table.execute("UPDATE t SET n = 10")


def test_user_trigger_that_sorts_before_the_capture(table):
    """A trigger whose name comes first fires first, and records its later versions first."""
    trigger(table, "UPDATE t SET note = 'early' WHERE id = NEW.id; RETURN NULL;", name='"  before all"',
            condition="OLD.n IS DISTINCT FROM NEW.n")
    table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 3) g")
    table.execute("UPDATE t SET n = 1")


def test_deferred_triggers(table):
    trigger(table, "UPDATE t SET note = note || '+' WHERE id >= NEW.id; RETURN NULL;", timing="AFTER INSERT",
            kind="CONSTRAINT", options="DEFERRABLE INITIALLY DEFERRED")
    with table.transaction():
        table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 3) g")
        table.execute("UPDATE t SET n = 1")
    with table.transaction():
        table.execute("INSERT INTO t VALUES (10, 0, '')")
        table.execute("SET CONSTRAINTS ALL IMMEDIATE")
        table.execute("UPDATE t SET n = 2")


def test_function_in_a_statement_that_changes_the_same_table(table):
    table.execute("""
        CREATE FUNCTION bump(int) RETURNS int LANGUAGE plpgsql AS
            $$BEGIN UPDATE t SET n = n + 1, note = note || $1 WHERE id = $1 + 10; RETURN 1; END$$;
        INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 20) g""")
    table.execute("UPDATE t SET n = n + bump(id) WHERE id <= 10")
    table.execute("INSERT INTO t SELECT 100 + id, bump(id), 'x' FROM t WHERE id <= 10 ORDER BY id")


def test_savepoints_between(table):
    with table.transaction():
        table.execute("INSERT INTO t VALUES (1, 0, ''), (2, 0, '')")
        for i in range(6):
            table.execute("SAVEPOINT s")
            table.execute("UPDATE t SET n = n + 1, note = %s", [str(i)])
            if i % 2:
                table.execute("ROLLBACK TO s")
            table.execute("RELEASE s")
            table.execute("UPDATE t SET n = n + 10 WHERE id = 1")
        # The transaction's own view of it replays as well.
        replay(table, "t")


# --- cascades -----------------------------------------------------------------------------------------------------

def test_cascades_in_both_directions(conn):
    """A parent's change cascades to its children, whose trigger changes the parent again."""
    conn.execute("""
        CREATE TABLE parent (id int PRIMARY KEY, children int DEFAULT 0, total int DEFAULT 0);
        CREATE TABLE child (id int PRIMARY KEY, amount int DEFAULT 1,
            parent_id int REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE);
        SELECT audit.enable('parent'), audit.enable('child');
        CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP <> 'INSERT' THEN
                UPDATE parent SET children = children - 1, total = total - OLD.amount WHERE id = OLD.parent_id;
            END IF;
            IF TG_OP <> 'DELETE' THEN
                UPDATE parent SET children = children + 1, total = total + NEW.amount WHERE id = NEW.parent_id;
            END IF;
            RETURN NULL;
        END$$;
        CREATE TRIGGER count_up AFTER INSERT OR UPDATE OR DELETE ON child FOR EACH ROW EXECUTE FUNCTION count_up();
        INSERT INTO parent (id) VALUES (1), (2), (3);
        INSERT INTO child (id, parent_id) SELECT g, g % 3 + 1 FROM generate_series(1, 12) g""")
    conn.execute("UPDATE parent SET id = id + 10")
    conn.execute("UPDATE child SET parent_id = 11, amount = 5 WHERE id < 5")
    conn.execute("DELETE FROM parent WHERE id = 11")
    conn.execute("DELETE FROM child WHERE id = 3")
    replay(conn, "parent")
    replay(conn, "child")
    auditlib.check_integrity(conn)


def test_row_movement_with_triggers(conn):
    conn.execute("""
        CREATE TABLE p (id int, part int, n int) PARTITION BY LIST (part);
        CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
        CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
        SELECT audit.enable('p');
        CREATE FUNCTION push() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN UPDATE p SET n = n + 1, part = 3 - part WHERE id = NEW.id AND n < 5; RETURN NULL; END$$;
        CREATE TRIGGER push AFTER INSERT OR UPDATE ON p FOR EACH ROW EXECUTE FUNCTION push()""")
    conn.execute("INSERT INTO p VALUES (1, 1, 0), (2, 2, 3)")
    conn.execute("UPDATE p SET n = 0, part = 1")
    replay(conn, "p")
    auditlib.check_integrity(conn)


# --- several sessions ---------------------------------------------------------------------------------------------

def test_transactions_that_began_in_the_other_order(table):
    table.execute("INSERT INTO t VALUES (1, 0, ''), (2, 0, '')")
    with connect_like(table) as early, connect_like(table) as late:
        early.execute("BEGIN")
        # Its transaction id, its changeset and its clock are older than the other's.
        early.execute("UPDATE t SET n = 1 WHERE id = 2")
        late.execute("BEGIN")
        late.execute("UPDATE t SET n = n + 10 WHERE id = 1")
        late.execute("COMMIT")
        early.execute("UPDATE t SET n = n * 2 WHERE id = 1")
        early.execute("COMMIT")
        late.execute("UPDATE t SET n = n + 1")
    found = [e for e in replay(table, "t") if e.resource_id == "1"]
    assert [e.image["n"] for e in found] == ["\x000", "\x0010", "\x0020", "\x0021"]
    assert int(found[1].xid) > int(found[2].xid)


def test_same_row_by_turns(table):
    """Many transactions, each begun before the one whose version it replaces."""
    table.execute("INSERT INTO t VALUES (0, 0, '')")
    sessions = [connect_like(table) for _ in range(6)]
    try:
        for round_ in range(4):
            for i, session in enumerate(sessions):
                session.execute("BEGIN")
                session.execute("INSERT INTO t VALUES (%s, 0, 'own')", [100 * (round_ + 1) + i])
            for session in reversed(sessions):
                session.execute("UPDATE t SET n = n + 1 WHERE id = 0")
                session.execute("COMMIT")
            for session in sessions:
                session.execute("DELETE FROM t WHERE id = 0")
                session.execute("INSERT INTO t SELECT 0, %s, 'reborn'", [round_])
    finally:
        for session in sessions:
            session.close()


def test_many_sessions_on_few_rows(table):
    """Threads of random transactions, with savepoints and triggers that touch the neighbour."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    trigger(table, "UPDATE t SET note = 'from ' || NEW.id WHERE id = NEW.id + 1; RETURN NULL;",
            condition="NEW.n % 5 = 0 AND OLD.n <> NEW.n")
    table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 5) g")
    failures = []

    def work(number):
        chance = random.Random(seed + number)
        try:
            with connect_like(table) as session:
                for _ in range(60):
                    try:
                        session.execute("BEGIN")
                        for _ in range(chance.randrange(1, 5)):
                            session.execute("SAVEPOINT s")
                            row = chance.randrange(1, 6)
                            session.execute(chance.choice([
                                "UPDATE t SET n = n + 1 WHERE id = %d",
                                "DELETE FROM t WHERE id = %d",
                                "INSERT INTO t VALUES (%d, 1, 'in') ON CONFLICT (id) DO UPDATE SET n = t.n + 1",
                                "UPDATE t SET note = note || 'y' WHERE id >= %d"]) % row)
                            if chance.random() < 0.2:
                                session.execute("ROLLBACK TO s")
                        session.execute("COMMIT" if chance.random() < 0.9 else "ROLLBACK")
                    except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                        session.execute("ROLLBACK")
        except Exception as error:  # noqa: BLE001 - reported by the test itself
            failures.append(error)

    table.execute("ALTER DATABASE %s SET deadlock_timeout = '20ms'" % table.info.dbname)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_insert_on_conflict_that_waits(table):
    with connect_like(table) as one, connect_like(table) as two:
        one.execute("BEGIN")
        two.execute("BEGIN")
        two.execute("INSERT INTO t VALUES (7, 0, 'two')")  # two has the younger changeset of these rows
        one.execute("INSERT INTO t VALUES (1, 1, 'one')")
        waiting = threading.Thread(target=two.execute, args=(
            "INSERT INTO t VALUES (1, 5, 'two') ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n",))
        waiting.start()
        one.execute("UPDATE t SET n = 2 WHERE id = 1")
        one.execute("COMMIT")
        waiting.join()
        two.execute("COMMIT")
    assert [e.image["n"] for e in replay(table, "t") if e.resource_id == "1"] == ["\x001", "\x002", "\x007"]


def test_update_that_waits_for_another(table):
    """Under READ COMMITTED it goes on from the version that the other session left."""
    table.execute("INSERT INTO t VALUES (1, 1, ''), (2, 1, '')")
    with connect_like(table) as one, connect_like(table) as two:
        one.execute("BEGIN; UPDATE t SET n = 10 WHERE id = 1")
        two.execute("BEGIN; UPDATE t SET note = 'earlier' WHERE id = 2")
        waiting = threading.Thread(target=two.execute, args=("UPDATE t SET note = 'two', n = n + 1",))
        waiting.start()
        one.execute("UPDATE t SET n = 20 WHERE id = 1; COMMIT")
        waiting.join()
        two.execute("COMMIT")
    last = [e for e in replay(table, "t") if e.resource_id == "1"][-1]
    assert last.image["n"] == "\x0021" and last.old_values == {"n": "\x0020", "note": ""}


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_isolation_levels(table, level):
    """Auditing adds no conflict between sessions that have none, and takes none away."""
    table.execute("CREATE TABLE u (id int PRIMARY KEY); SELECT audit.enable('u'); INSERT INTO t VALUES (1, 1, '')")
    with connect_like(table) as one, connect_like(table) as two:
        for session in (one, two):
            session.execute("BEGIN ISOLATION LEVEL %s; SELECT 1" % level)
        one.execute("SELECT * FROM t; INSERT INTO t VALUES (2, 1, '')")
        two.execute("SELECT * FROM u; INSERT INTO u VALUES (1)")
        one.execute("UPDATE t SET n = 2 WHERE id = 1; COMMIT")
        two.execute("INSERT INTO u VALUES (2); COMMIT")
        for session in (one, two):
            session.execute("BEGIN ISOLATION LEVEL %s; SELECT n FROM t" % level)
        one.execute("UPDATE t SET n = n + 1 WHERE id = 1; COMMIT")
        with auditlib.sqlstate("40001"):
            two.execute("UPDATE t SET n = n + 1 WHERE id = 1")
        two.execute("ROLLBACK")
    assert len(replay(table, "u")) == 2


def test_prepared_transactions(table):
    table.execute("INSERT INTO t VALUES (1, 0, ''), (2, 0, '')")
    with connect_like(table) as other:
        name = table.info.dbname
        other.execute("BEGIN; UPDATE t SET n = 1 WHERE id = 1")
        other.execute("PREPARE TRANSACTION '%s'" % name)
        table.execute("UPDATE t SET n = 2 WHERE id = 2")
        other.execute("COMMIT PREPARED '%s'" % name)
        table.execute("UPDATE t SET n = n + 3")
        other.execute("BEGIN; UPDATE t SET n = 9; PREPARE TRANSACTION '%s'" % name)
        other.execute("ROLLBACK PREPARED '%s'" % name)
        table.execute("UPDATE t SET n = n + 3 WHERE id = 1")
    assert len(events(table, "t")) == 2 + 1 + 1 + 2 + 1


# --- contexts -----------------------------------------------------------------------------------------------------

def test_contexts_a_b_a_in_one_transaction(table):
    with table.transaction():
        for n, user in enumerate("ABABCA"):
            table.execute("SELECT audit.set_context(user_id => %s)", [user])
            table.execute("INSERT INTO t VALUES (1, %s, '') ON CONFLICT (id) DO UPDATE SET n = excluded.n", [n])
            table.execute("UPDATE t SET note = %s", [user])
    found = replay(table, "t")
    assert [e.user_id for e in found] == [u for u in "ABABCA" for _ in (1, 2)]
    assert [e.seq for e in found] == list(range(12))
    sets = table.execute("SELECT user_id, event_count FROM audit.changeset ORDER BY user_id").fetchall()
    assert sets == [("A", 6), ("B", 4), ("C", 2)]
    assert table.execute("SELECT count(DISTINCT (position, xid)) FROM audit.changeset").fetchone()[0] == 1


def test_contexts_in_triggers(table):
    """The trigger changes the context between the statement's own rows."""
    trigger(table, """PERFORM set_config('audit.user_id', 'user ' || NEW.id, true);
                      UPDATE t SET note = 'by ' || NEW.id WHERE id = NEW.id % 3 + 1; RETURN NULL;""",
            condition="OLD.n <> NEW.n")
    table.execute("INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 3) g")
    table.execute("UPDATE t SET n = 1")


def test_change_of_role_opens_another_changeset(table, role):
    user = role()
    table.execute("GRANT ALL ON t TO %s" % user)
    with table.transaction():
        table.execute("INSERT INTO t VALUES (1, 0, '')")
        table.execute("SET LOCAL ROLE %s" % user)
        table.execute("UPDATE t SET n = 1")
        table.execute("RESET ROLE")
        table.execute("UPDATE t SET n = 2")
    rows = table.execute("SELECT session_role, effective_role, event_count FROM audit.changeset ORDER BY effective_role = %s",
                         [user]).fetchall()
    assert rows == [("postgres", "postgres", 2), ("postgres", user, 1)]


# --- random nesting -----------------------------------------------------------------------------------------------

def test_random_nested_work(table):
    """Triggers that do random things to random rows, to a bounded depth, in transactions with savepoints."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    table.execute("""
        CREATE FUNCTION anything() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE which int := (random() * 8)::int;
        BEGIN
            IF pg_trigger_depth() > 4 THEN RETURN coalesce(NEW, OLD); END IF;
            CASE (random() * 7)::int
                WHEN 0 THEN UPDATE t SET n = n + 1 WHERE id = which;
                WHEN 1 THEN DELETE FROM t WHERE id = which;
                WHEN 2 THEN INSERT INTO t VALUES (which, 0, 'new') ON CONFLICT (id) DO UPDATE SET note = 'up';
                WHEN 3 THEN
                    BEGIN
                        UPDATE t SET n = n - 1 WHERE id <= which;
                        IF random() < 0.5 THEN RAISE EXCEPTION 'undone'; END IF;
                    EXCEPTION WHEN raise_exception THEN NULL;
                    END;
                ELSE NULL;
            END CASE;
            RETURN coalesce(NEW, OLD);
        END$$;
        CREATE TRIGGER anything AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION anything();
        CREATE TRIGGER zz_before BEFORE INSERT ON t FOR EACH ROW WHEN (NEW.id < 3) EXECUTE FUNCTION anything()""")
    table.execute("SELECT setseed(%s)", [chance.random()])
    for _ in range(150):
        try:
            with table.transaction():
                for _ in range(chance.randrange(1, 4)):
                    table.execute(chance.choice([
                        "INSERT INTO t VALUES (%d, 1, 'top') ON CONFLICT DO NOTHING", "UPDATE t SET n = n + 1 WHERE id > %d",
                        "UPDATE t SET note = 'top' WHERE id = %d", "DELETE FROM t WHERE id = %d"]) % chance.randrange(9))
        except psycopg.Error as error:
            # What PostgreSQL itself refuses: a row changed by the trigger of its own BEFORE phase, or twice by an upsert.
            assert error.sqlstate in ("27000", "21000", "23505"), error
