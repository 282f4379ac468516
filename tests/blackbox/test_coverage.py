"""Coverage: what begins, changes, interrupts or ends auditing is in the log, with who did it; audit.coverage tells what is
captured now, audit.coverage_gaps whether it was all the time."""

import psycopg
import pytest
from auditlib import apply, assert_same_rows, check_integrity, events, replay, sqlstate, state
from collections import Counter
from coveragelib import _template, actions, cluster, covered, gaps, told  # noqa: F401

REFUSED = "42501"


@pytest.fixture
def table(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t')")
    return conn


@pytest.fixture
def owner(db, table, role):
    """The owner of t: an ordinary user."""
    name = role()
    table.execute(f"ALTER TABLE t OWNER TO {name}; GRANT CREATE ON SCHEMA public TO {name}")
    return db.connect(user=name)


def details(conn, action):
    return conn.execute(
        "SELECT details FROM audit.log WHERE action = %s ORDER BY era, position NULLS LAST, command, seq DESC LIMIT 1", ["audit." + action]
    ).fetchone()[0]


def trigger_of(conn, table="t", of="row"):
    return conn.execute(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname LIKE %s", [table, f"!audit_{of}%"]
    ).fetchone()[0]


# --- what is recorded ----------------------------------------------------------------------------------------------


def test_enabling_changing_disabling(table):
    table.execute("SELECT audit.enable('t'); SELECT audit.enable('t', mask_columns => '{v}'); SELECT audit.disable('t')")
    assert told(table) == [
        ("enabled", "public.t", "postgres"),
        ("options_changed", "public.t", "postgres"),
        ("disabled", "public.t", "postgres"),
    ]
    changed = details(table, "options_changed")
    assert (changed["before"]["mask_columns"], changed["after"]["mask_columns"]) == ([], ["v"])
    assert details(table, "enabled")["options"]["mode"] == "sync"
    assert table.execute("SELECT DISTINCT origin::text FROM audit.changeset").fetchall() == [("ddl",)]
    check_integrity(table)


def test_what_rolls_back_is_not_recorded(table):
    table.execute("BEGIN; SELECT audit.disable('t'); ROLLBACK; BEGIN; SAVEPOINT s; ALTER TABLE t ADD w int; ROLLBACK TO s; COMMIT")
    assert actions(table) == ["enabled"]


def test_ddl_on_audited_tables(table):
    table.execute("ALTER TABLE t ADD w int")
    layout = details(table, "table_altered")["layout"]
    assert [[c["name"] for c in layout[when]["columns"]] for when in ("before", "after")] == [["id", "v"], ["id", "v", "w"]]
    table.execute("""
        ALTER TABLE t RENAME TO u; CREATE SCHEMA s; ALTER TABLE u SET SCHEMA s; ALTER TABLE s.u RENAME COLUMN v TO x;
        CREATE INDEX i ON s.u (x); ALTER TABLE s.u SET (fillfactor = 50);
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER mine BEFORE INSERT ON s.u FOR EACH ROW EXECUTE FUNCTION f();
        ALTER TRIGGER mine ON s.u RENAME TO yours; DROP TRIGGER yours ON s.u;
        CREATE RULE r AS ON INSERT TO s.u DO ALSO NOTHING; DROP RULE r ON s.u;
        CREATE POLICY p ON s.u; DROP POLICY p ON s.u; DROP TABLE s.u""")
    made = table.execute(
        "SELECT action, resource, details ->> 'command', details ->> 'object' FROM audit.log WHERE operation = 'DDL'"
        " ORDER BY era, position, command, seq OFFSET 2"
    ).fetchall()
    assert made == [
        ("audit.table_renamed", "public.u", "ALTER TABLE", None),
        ("audit.table_renamed", "s.u", "ALTER TABLE", None),
        ("audit.table_altered", "s.u", "ALTER TABLE", None),
        ("audit.table_altered", "s.u", "CREATE INDEX", "s.i"),
        ("audit.table_altered", "s.u", "ALTER TABLE", "s.u"),
        ("audit.table_altered", "s.u", "CREATE TRIGGER", "mine on s.u"),
        ("audit.table_altered", "s.u", "ALTER TRIGGER", "yours on s.u"),
        ("audit.table_altered", "s.u", "DROP TRIGGER", "yours on s.u"),
        ("audit.table_altered", "s.u", "CREATE RULE", "r on s.u"),
        ("audit.table_altered", "s.u", "DROP RULE", "r on s.u"),
        ("audit.table_altered", "s.u", "CREATE POLICY", "p on s.u"),
        ("audit.table_altered", "s.u", "DROP POLICY", "p on s.u"),
        ("audit.table_dropped", "s.u", "DROP TABLE", None),
    ]
    check_integrity(table)


def test_owner(table, role):
    name = role()
    table.execute(f"ALTER TABLE t OWNER TO {name}")
    assert actions(table) == ["enabled", "owner_changed"]
    assert details(table, "owner_changed")["owner"] == name


def test_ddl_on_other_tables_is_not_recorded(conn):
    conn.execute("CREATE TABLE other (id int); ALTER TABLE other ADD v text; CREATE INDEX ON other (v); DROP TABLE other")
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM audit.ledger").fetchone() == (0,)


def test_statement_is_recorded_where_asked_for(table, db):
    with db.connect(options="-c audit.log_statement=on") as session:
        session.execute("ALTER TABLE t ADD w int")
    assert table.execute("SELECT statement FROM audit.changeset ORDER BY position DESC LIMIT 1").fetchone() == (
        "ALTER TABLE t ADD w int",
    )


def test_partitions(conn):
    conn.execute("""
        CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        SELECT audit.enable('p');
        CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
        CREATE TABLE p3 (id int PRIMARY KEY); INSERT INTO p3 VALUES (25);
        ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (20) TO (30);
        ALTER TABLE p DETACH PARTITION p1;
        ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10)""")
    assert [each[:2] for each in told(conn) if each[0] != "table_altered"] == [
        ("enabled", "public.p"),
        ("enabled", "public.p1"),
        ("enabled", "public.p2"),
        ("enabled", "public.p3"),
        ("partition_detached", "public.p1"),
    ]
    assert gaps(conn, "p") == []
    conn.execute("INSERT INTO p VALUES (1), (11), (21); TRUNCATE p1; DELETE FROM p2")
    replay(conn, "p")


def test_schemas(conn):
    conn.execute("CREATE SCHEMA s; SELECT audit.enable_schema('s'); CREATE TABLE s.a (id int); SELECT audit.disable_schema('s')")
    assert [each[:2] for each in told(conn)] == [
        ("schema_enabled", "s"), ("enabled", "s.a"), ("schema_disabled", "s"), ("disabled", "s.a"),
    ]  # fmt: skip


# --- rows that change without a trigger ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "ALTER TABLE t ALTER v TYPE int USING length(v)",
        "ALTER TABLE t ADD w uuid DEFAULT gen_random_uuid()",
        "ALTER TABLE t ADD w int GENERATED ALWAYS AS (id * 2) STORED",
        "ALTER TABLE t ADD w serial",
        "ALTER TABLE t ALTER v TYPE int USING length(v), ADD w float DEFAULT random()",
    ],
)
def test_rows_that_are_rewritten_are_recorded(table, command):
    table.execute("INSERT INTO t SELECT g, repeat('x', g) FROM generate_series(1, 5) g")
    table.execute(command)
    assert actions(table)[1:] == ["table_altered", "table_rewritten"]
    snapshot = [e for e in events(table, "t") if e.operation == "SNAPSHOT"]
    assert_same_rows(apply(Counter(), snapshot), state(table, "t"))
    table.execute("DELETE FROM t WHERE id = 2")
    assert_same_rows(apply(Counter(), [e for e in events(table, "t") if e.operation in ("SNAPSHOT", "DELETE")]), state(table, "t"))
    check_integrity(table)


def test_rewritten_partitions(conn):
    conn.execute("""
        CREATE TABLE p (id int, v text) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        CREATE TABLE other PARTITION OF p DEFAULT;
        SELECT audit.enable('p'); INSERT INTO p VALUES (1, 'x'), (11, 'yy');
        ALTER TABLE p ALTER v TYPE int USING length(v)""")
    snapshot = [e for e in events(conn, "p") if e.operation == "SNAPSHOT"]
    assert_same_rows(apply(Counter(), snapshot), state(conn, "p"))


@pytest.mark.parametrize("command", ["SET UNLOGGED", "SET TABLESPACE pg_default", "ADD w int DEFAULT 5", "ADD w int"])
def test_rows_that_stay_are_not_recorded_anew(table, command):
    table.execute("INSERT INTO t VALUES (1, 'x')")
    table.execute(f"ALTER TABLE t {command}; VACUUM FULL t" if ";" in command else f"ALTER TABLE t {command}")
    table.execute("VACUUM FULL t")
    table.execute("CLUSTER t USING t_pkey")
    assert [e.operation for e in events(table, "t") if e.operation != "DDL"] == ["INSERT"]


def test_a_rewrite_that_fails_leaves_nothing(table):
    table.execute("INSERT INTO t VALUES (1, 'x')")
    with sqlstate("22P02"):
        table.execute("ALTER TABLE t ALTER v TYPE int USING v::int")
    table.execute("ALTER TABLE t ADD w int")
    assert "table_rewritten" not in actions(table)


# --- the guard ----------------------------------------------------------------------------------------------------

NAMED = [
    'ALTER TABLE t DISABLE TRIGGER "{}"',
    'ALTER TABLE t ENABLE TRIGGER "{}"',
    'ALTER TABLE t ENABLE REPLICA TRIGGER "{}"',
    'DROP TRIGGER "{}" ON t',
    'DROP TRIGGER IF EXISTS "{}" ON public.t CASCADE',
    'ALTER TRIGGER "{}" ON t RENAME TO mine',
    'ALTER TRIGGER "{}" ON t DEPENDS ON EXTENSION plpgsql',
    'CREATE OR REPLACE TRIGGER "{}" AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW WHEN (false) EXECUTE FUNCTION audit.capture()',
    "DO $$ BEGIN EXECUTE 'ALTER TABLE t ADD w int, DISABLE TRIGGER \"{}\"'; END $$",
]


@pytest.mark.parametrize("command", NAMED)
@pytest.mark.parametrize("of", ["row", "truncate"])
def test_owners_leave_the_triggers_alone(table, owner, command, of):
    if of == "truncate" and "REPLACE TRIGGER" in command:
        command = command.replace("INSERT OR UPDATE OR DELETE", "TRUNCATE").replace("ROW WHEN (false)", "STATEMENT WHEN (false)")
    with sqlstate(REFUSED) as caught:
        owner.execute(command.format(trigger_of(table, of=of)))
    assert "audit administrator" in str(caught.error)
    owner.execute("INSERT INTO t VALUES (1, 'x')")
    assert covered(table, "t") == (True, None) and gaps(table, "t") == []
    replay(table, "t")


@pytest.mark.parametrize("how", ["ALL", "USER"])
def test_triggers_switched_off_and_on_together(table, owner, how):
    """What loaders do. A superuser alone may switch off all triggers of a table that has foreign keys."""
    owner.execute(f"ALTER TABLE t DISABLE TRIGGER {how}")
    owner.execute("INSERT INTO t VALUES (1, 'x')")
    owner.execute(f"ALTER TABLE t ENABLE TRIGGER {how}")
    owner.execute("INSERT INTO t VALUES (2, 'x')")
    assert actions(table) == ["enabled", "owner_changed", "triggers_restored", "triggers_restored"]
    assert gaps(table, "t") == [] and covered(table, "t") == (True, None)
    replay(table, "t")


def test_administrators_may_disable_and_are_recorded(table, db, role):
    name = role()
    table.execute(f"ALTER TABLE t OWNER TO {name}; SELECT audit.grant_admin('{name}'); INSERT INTO t VALUES (1, 'x')")
    with db.connect(user=name) as admin:
        admin.execute(f'ALTER TABLE t DISABLE TRIGGER "{trigger_of(table)}"')
        admin.execute("INSERT INTO t VALUES (2, 'unseen')")
    assert covered(table, "t") == (False, "row trigger: disabled")
    assert gaps(table, "t") == [("trigger_disabled", name)]
    assert f"audit: {name} goes to disable audit trigger" in db.cluster.log
    table.execute("SELECT audit.enable('t', snapshot => true)")
    assert covered(table, "t") == (True, None)
    since, until, cause, actor = table.execute("SELECT gap_since, gap_until, cause, actor FROM audit.coverage_gaps('t')").fetchone()
    assert since < until and (cause, actor) == ("trigger_disabled", name)
    # Asked of a time after it, there is none; nor of one before.
    assert table.execute("SELECT FROM audit.coverage_gaps('t', %s)", [until]).fetchall() == []
    assert table.execute("SELECT FROM audit.coverage_gaps('t', NULL, %s)", [since]).fetchall() == []
    assert actions(table)[-2:] == ["trigger_disabled", "triggers_restored"]


def test_superusers_may_drop_and_are_recorded(table, db):
    table.execute(f'DROP TRIGGER "{trigger_of(table)}" ON t; INSERT INTO t VALUES (1, \'unseen\')')
    assert covered(table, "t") == (False, "row trigger: missing")
    assert gaps(table, "t") == [("trigger_dropped", "postgres")]
    # The next command on the table puts it back.
    table.execute("ALTER TABLE t ADD w int; INSERT INTO t VALUES (2, 'seen')")
    assert covered(table, "t") == (True, None)
    assert actions(table)[1:3] == ["trigger_dropped", "triggers_restored"]
    assert len(events(table, "t")) == len(actions(table)) + 1


@pytest.mark.parametrize("state", ["'D'", "'O'"])
def test_what_leaves_no_record_is_found(table, state):
    """A superuser changes the catalog by hand: the triggers tell, not who it was."""
    table.execute("INSERT INTO t VALUES (1, 'seen')")
    table.execute(f"UPDATE pg_trigger SET tgenabled = {state} WHERE tgrelid = 't'::regclass")
    table.execute("INSERT INTO t VALUES (2, 'unseen or not')")
    ((cause, actor),) = gaps(table, "t")
    assert actor is None and "nothing recorded says by whom" in cause
    table.execute("SELECT audit.enable('t')")
    assert covered(table, "t") == (True, None)
    ((cause, actor),) = gaps(table, "t")
    assert actor is None and "missing or disabled" in cause


def test_switched_off(table, db):
    with db.connect() as session:
        session.execute("SET audit.enabled = off; INSERT INTO t VALUES (1, 'unseen'); SET audit.enabled = on; INSERT INTO t VALUES (2, 'seen')")
    ((cause, actor),) = gaps(table, "t")
    assert (cause, actor) == ("capture_suspended", "postgres")


def test_disabled_and_enabled_again(table):
    table.execute("SELECT audit.disable('t'); INSERT INTO t VALUES (1, 'unseen'); SELECT audit.enable('t')")
    assert gaps(table, "t") == [("disabled", "postgres")]
    before = table.execute("SELECT cause FROM audit.coverage_gaps('t', '2000-01-01')").fetchall()
    assert before == [("nothing recorded says that it was audited",), ("disabled",)]


def test_sampled_is_a_gap(table):
    table.execute("SELECT audit.enable('t', mode => 'sampled', sample_rate => 0.5)")
    assert gaps(table, "t") == [("sampled", "postgres")]
    audited, problem = covered(table, "t")
    assert audited and "0.5" in problem
    table.execute("SELECT audit.enable('t')")
    assert gaps(table, "t") == [("sampled", "postgres")]


def test_what_was_enabled_without_a_record(table, db, new_db):
    """Where DDL was not recorded, nothing is vouched for."""
    table.execute("CREATE TABLE u (id int)")
    assert table.execute("SELECT cause FROM audit.coverage_gaps('u')").fetchall() == [("nothing recorded says that it was audited",)]


def test_bad_questions(table):
    with sqlstate("22004"):
        table.execute("SELECT audit.coverage_gaps(NULL)")
    with sqlstate("22023"):
        table.execute("SELECT audit.coverage_gaps('t', '2030-01-01', '2020-01-01')")


# --- the view, and what holds -------------------------------------------------------------------------------------


def test_the_view(conn):
    conn.execute("""
        CREATE TABLE a (id int); CREATE TABLE b (id int); CREATE UNLOGGED TABLE c (id int); CREATE TEMP TABLE d (id int);
        CREATE VIEW v AS TABLE a; CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p DEFAULT;
        SELECT audit.enable('a', exclude_columns => '{id}'), audit.enable('c'), audit.enable('p');
        CREATE SCHEMA s; CREATE TABLE s.x (id int); SELECT audit.enable_schema('s'); SELECT audit.disable('s.x'); INSERT INTO a VALUES (1)""")
    rows = conn.execute("SELECT target::text, audited, mode, since IS NOT NULL, problem, kind, inherited_from::text FROM audit.coverage ORDER BY 1").fetchall()
    assert rows == [
        ("a", True, "sync", True, None, "table", None),
        ("b", False, None, False, "not enabled", "table", None),
        ("c", True, "sync", True, "unlogged: a crash empties it without an event", "table", None),
        ("p", True, "sync", True, None, "partitioned table", None),
        ("p1", True, "sync", True, None, "table", "p"),
        ("s.x", False, None, False, "audit.disable was called for it", "table", None),
    ]
    assert conn.execute("SELECT last_event > since, options -> 'exclude_columns' FROM audit.coverage WHERE table_name = 'a'").fetchone() == (True, ["id"])


def test_status(conn, table):
    def status():
        return {g: (holds, detail, hint) for g, holds, detail, hint in conn.execute("SELECT * FROM audit.status()").fetchall()}

    before = status()
    assert all((hint is None) == holds for holds, _, hint in before.values())
    held = ["changes of audited tables are recorded", "every audited table is captured", "each change is recorded in its own transaction",
            "new tables, partitions and DDL are followed", "coverage is recorded", "the log is append-only"]  # fmt: skip
    assert [before[each][0] for each in held] == [True] * len(held)
    assert not before["DDL is watched where event triggers are switched off"][0]
    conn.execute("ALTER EVENT TRIGGER audit_sql_drop DISABLE; ALTER TABLE audit.changeset DISABLE TRIGGER append_only_row")
    conn.execute("SELECT audit.enable('t', mode => 'sampled', sample_rate => 0.1); UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 't'::regclass")
    conn.execute("ALTER DATABASE %s SET audit.enabled = off" % conn.info.dbname)
    with psycopg.connect(conn.info.dsn, autocommit=True) as other:
        after = {g: holds for g, holds, *_ in other.execute("SELECT * FROM audit.status()").fetchall()}
    assert [after[each] for each in held] == [False, False, False, False, True, False]


def test_rights(table, db, role):
    name, reader, admin = role(), role(), role()
    table.execute(f"SELECT audit.grant_reader('{reader}'), audit.grant_admin('{admin}'); INSERT INTO t VALUES (1, 'x')")
    questions = ["SELECT * FROM audit.coverage", "SELECT * FROM audit.status()", "SELECT * FROM audit.coverage_gaps('t')"]
    for user, allowed in ((name, []), (reader, questions), (admin, questions[:2])):
        with db.connect(user=user) as session:
            for question in questions:
                if question in allowed:
                    session.execute(question).fetchall()
                else:
                    with sqlstate(REFUSED):
                        session.execute(question)


def test_maintenance_of_the_log(table):
    """That audit.maintain exchanges the default partition is no interference, and there is no place for an event meanwhile."""
    table.execute("INSERT INTO t VALUES (1, 'x')")
    done = [action for action, _ in table.execute("SELECT action, object FROM audit.maintain()")]
    assert "default prepared" in done or "default closed" in done
    if "default closed" not in done:
        done = [action for action, _ in table.execute("SELECT action, object FROM audit.maintain()")]
    assert "default closed" in done and "partition" in done
    assert set(actions(table)) == {"enabled"}
    # What comes after it is told.
    with table.transaction() as transaction:
        table.execute("SELECT audit.expect_own_ddl(true)")
        table.execute("SELECT audit.expect_own_ddl(false); ALTER TABLE audit.action ADD COLUMN more text")
        assert actions(table)[-1] == "object_altered"
        raise psycopg.Rollback(transaction)
    table.execute("UPDATE t SET v = 'y'")
    replay(table, "t")
    check_integrity(table)
