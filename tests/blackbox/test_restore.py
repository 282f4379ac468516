"""pg_dump and pg_restore: a restore ends without an error, audited tables are audited, the log reads and verifies.

What a dump cannot carry are oids. Layouts that came with a restore belong to the table of their name, and no function may
take them for those of a table that happens to have their oid here.
"""

import os

import psycopg
import pytest
from auditlib import check_integrity, events, replay, sqlstate
from cluster import Cluster, pg_config_of
from ledgerlib import assert_intact, last_note, seal

SETUP = """
    CREATE EXTENSION audit_ext;
    CREATE TABLE first (x int);
    DROP TABLE first;
    CREATE TABLE t (id int PRIMARY KEY, gone int, secret text, v text);
    ALTER TABLE t DROP COLUMN gone;
    CREATE TABLE no_key (v text);
    CREATE TABLE p (id int PRIMARY KEY, secret text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
    CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (2000);
    CREATE TABLE parent (id int);
    CREATE TABLE child (x int) INHERITS (parent);
    CREATE SCHEMA app;
    CREATE TABLE app.a (id int PRIMARY KEY, t_id int REFERENCES t);
    CREATE TABLE not_audited (id int PRIMARY KEY);
    CREATE TABLE audit.event_2020 PARTITION OF audit.event FOR VALUES FROM ('2020-01-01') TO ('2100-01-01');
    CREATE TABLE audit.changeset_2020 PARTITION OF audit.changeset FOR VALUES FROM ('2020-01-01') TO ('2100-01-01');
    SELECT audit.enable('p2');
    SELECT audit.enable('p', mask_columns => '{secret}');
    SELECT audit.enable('t', mask_columns => '{secret}');
    SELECT audit.enable('no_key');
    SELECT audit.enable('parent', skip_unchanged => true);
    SELECT audit.enable_schema('app');
    SELECT audit.add_action_rule('t', 'UPDATE', 'thing.changed', columns => '{v}');
    ALTER TABLE t RENAME COLUMN v TO w;
    INSERT INTO t SELECT g, 'secret', 'x' FROM generate_series(1, 50) g;
    SELECT audit.seal();
    UPDATE t SET w = 'y' WHERE id < 20;
    INSERT INTO no_key VALUES ('x');
    INSERT INTO p SELECT g, 's' FROM generate_series(1, 1999) g;
    INSERT INTO parent VALUES (1);
    INSERT INTO child VALUES (1, 2);
    INSERT INTO app.a VALUES (1, 1);
    INSERT INTO not_audited SELECT generate_series(1, 10);
    SELECT audit.log_event('thing.noticed', 'thing', '1', '{}');
    SELECT audit.seal();
    DELETE FROM t WHERE id = 50;
"""

# Those whose columns are recorded as they are.
REPLAYED = ("no_key", "parent", "child", "app.a")

SAME = """
    SELECT 'policy', target::text, inherited_from::text, mask_columns::text, skip_unchanged::text FROM audit.policy
    UNION ALL SELECT 'rule', target::text, action, columns::text, id::text FROM audit.action_rule
    UNION ALL SELECT 'schema', schema_name, include_future::text, (schema_id = schema_name::regnamespace)::text, NULL FROM audit.schema_policy
    UNION ALL SELECT 'layout', id::text, resource, columns::text, relid::text FROM audit.relation
    UNION ALL SELECT 'layouts of', c.oid::regclass::text, string_agg(l.relation_id::text, ' ' ORDER BY l.relation_id), NULL, NULL
      FROM pg_class c, audit.table_layouts(c.oid) l WHERE c.relkind IN ('r', 'p') GROUP BY 2
    UNION ALL SELECT 'log', count(*)::text, md5(string_agg(l::text, '' ORDER BY changeset_id, seq)), NULL, NULL FROM audit.log l
    UNION ALL SELECT 'trigger', t.tgrelid::regclass::text, split_part(t.tgname, '_', 2), t.tgenabled::text, count(*)::text
      FROM pg_trigger t WHERE t.tgfoid IN ('audit.capture'::regproc, 'audit.append_only'::regproc) GROUP BY 1, 2, 3, 4
    UNION ALL SELECT 'index', indrelid::regclass::text, count(*)::text, NULL, NULL
      FROM pg_index WHERE indrelid IN (SELECT relid FROM pg_partition_tree('audit.event')) GROUP BY 2
    ORDER BY 1, 2, 3, 4, 5
"""


class Source:
    """A cluster with the database that is dumped, and another one to restore into."""

    def __init__(self, old, new):
        self.old, self.new, self.number = old, new, 0
        with old.connect() as conn:
            conn.execute(SETUP)
            self.kept = last_note(conn)
            self.content = conn.execute(SAME).fetchall()
        self.dump("custom", "-Fc")
        self.dump("folder", "-Fd")

    def dump(self, name, *options):
        self.old.run([self.old.bin("pg_dump"), *options, "-f", self.old.scratch / name, "postgres"])
        return self.old.scratch / name

    def database(self, extension=False):
        self.number += 1
        self.new.create_db(f"restored{self.number}")
        if extension:
            self.new.psql("CREATE EXTENSION audit_ext", f"restored{self.number}")
        return f"restored{self.number}"

    def restore(self, name, *options, settings=""):
        env = {**os.environ, **self.new.env, "PGOPTIONS": settings}
        self.new.run([self.new.bin("pg_restore"), "--exit-on-error", "-d", name, *options], env=env)

    def restored(self):
        name = self.database()
        self.restore(name, self.old.scratch / "custom")
        return self.new.connect(name)


@pytest.fixture(scope="module")
def source(request):
    config = pg_config_of(request.config.getoption("--pg"))
    with Cluster(config) as old, Cluster(config, {"shared_preload_libraries": "audit_ext"}) as new:
        yield Source(old, new)


def assert_same(conn, source):
    assert conn.execute(SAME).fetchall() == source.content
    assert_intact(conn, source.kept)
    check_integrity(conn)
    for table in REPLAYED:
        replay(conn, table)


def assert_audited(conn, source):
    """Changes of each table are recorded, once, as its policy says."""
    before = len(events(conn))
    conn.execute("INSERT INTO t VALUES (100, 'secret', 'x'); UPDATE t SET w = 'z' WHERE id = 100; DELETE FROM app.a;"
                 "INSERT INTO p VALUES (0, 's'); INSERT INTO no_key VALUES ('y'); TRUNCATE child; UPDATE parent SET id = 3")  # fmt: skip
    made = events(conn)[before:]
    assert [(e.operation, e.table_name, e.action) for e in made] == [
        ("INSERT", "t", None),
        ("UPDATE", "t", "thing.changed"),
        ("DELETE", "a", None),
        ("INSERT", "p1", None),
        ("INSERT", "no_key", None),
        ("TRUNCATE", "child", None),
        ("UPDATE", "parent", None),
    ]
    assert made[0].image["secret"] == made[3].image["secret"] == "***"
    for table in REPLAYED:
        replay(conn, table)
    assert seal(conn) > 0
    assert conn.execute("SELECT count(*) FROM audit.ledger").fetchone() == (2,)
    assert_intact(conn, source.kept)
    assert_intact(conn, last_note(conn))
    check_integrity(conn)


@pytest.mark.parametrize("options", [["custom"], ["--single-transaction", "custom"], ["--jobs=4", "folder"]], ids=lambda o: o[0])
def test_whole(source, options):
    name = source.database()
    source.restore(name, *options[:-1], source.old.scratch / options[-1])
    with source.new.connect(name) as conn:
        assert_same(conn, source)
        assert conn.execute("SELECT count(*) FROM audit.local_layout").fetchone() == (0,)
        assert_audited(conn, source)


@pytest.mark.parametrize("options", [[], ["--inserts"]], ids=["copy", "inserts"])
def test_script(source, options):
    name = source.database()
    source.new.psql(source.dump("script.sql", *options).read_text(), name)
    with source.new.connect(name) as conn:
        assert_same(conn, source)
        assert_audited(conn, source)


def test_over_itself(source):
    name = source.database()
    source.restore(name, source.old.scratch / "custom")
    # Which pg_dump does not manage with any partitions that have a key.
    source.new.psql("DROP TABLE p", name)
    source.restore(name, "--clean", "--if-exists", source.old.scratch / "custom")
    with source.new.connect(name) as conn:
        assert_same(conn, source)
        assert_audited(conn, source)


def test_in_parallel_again_and_again(source):
    """Whatever order the workers take."""
    for jobs in (2, 3, 8):
        name = source.database()
        source.restore(name, f"--jobs={jobs}", source.old.scratch / "folder")
        with source.new.connect(name) as conn:
            assert conn.execute(SAME).fetchall() == source.content


def test_schema_then_data(source):
    """Between the two, changes are refused: there are triggers, but no policies. The data come with capturing off."""
    name = source.database()
    source.restore(name, "--schema-only", source.old.scratch / "custom")
    with source.new.connect(name) as conn:
        with sqlstate("55000") as caught:
            conn.execute("INSERT INTO no_key VALUES ('x')")
        assert "audit.enable" in caught.error.diag.message_hint
        # Also where constraints are dropped, and triggers switched off, to load faster.
        conn.execute("ALTER TABLE t DISABLE TRIGGER ALL; ALTER TABLE t ENABLE TRIGGER ALL")
        with sqlstate("55000"):
            conn.execute("SET session_replication_role = replica; INSERT INTO t VALUES (1)")
        conn.execute("RESET session_replication_role")
    options = ["--data-only", "--disable-triggers", source.old.scratch / "custom"]
    source.restore(name, *options, settings="-c audit.enabled=off")
    with source.new.connect(name) as conn:
        assert_intact(conn, source.kept)
        assert len(events(conn)) == int(next(row[1] for row in source.content if row[0] == "log"))
        for table in REPLAYED:
            replay(conn, table)
        assert_audited(conn, source)


def test_schema_alone(source):
    """As for a test system: the triggers can be removed, or auditing begun anew."""
    name = source.database()
    source.restore(name, "--schema-only", source.old.scratch / "custom")
    with source.new.connect(name) as conn:
        conn.execute("SELECT audit.disable('p'), audit.disable('t'), audit.enable('no_key')")
        conn.execute("INSERT INTO p VALUES (1), (1001); INSERT INTO t VALUES (1); INSERT INTO no_key VALUES ('x')")
        assert [event.table_name for event in events(conn)] == ["no_key"]
        with sqlstate("55000"):
            conn.execute("SELECT audit.disable('t')")


def test_one_table(source):
    """Into a database that has the extension: without its policy the table refuses changes until that is there."""
    name = source.database(extension=True)
    dump = source.dump("table", "-Fc", "-t", "t")
    source.restore(name, dump)
    with source.new.connect(name) as conn:
        conn.execute("SET audit.log_failures = off")
        with sqlstate("55000"):
            conn.execute("UPDATE t SET w = 'z'")
        conn.execute("SELECT audit.enable('t', mask_columns => '{secret}', snapshot => true)")
        conn.execute("DELETE FROM t WHERE id = 2")
        assert [event.operation for event in events(conn, "t")] == ["SNAPSHOT"] * 49 + ["DELETE"]
        check_integrity(conn)


def test_one_table_of_the_whole(source):
    """pg_restore -t takes neither triggers nor keys: the table is as new."""
    name = source.database(extension=True)
    source.restore(name, "-t", "t", source.old.scratch / "custom")
    with source.new.connect(name) as conn:
        conn.execute("DELETE FROM t WHERE id = 2; SELECT audit.enable('t'); DELETE FROM t WHERE id = 3")
        assert [event.operation for event in events(conn)] == ["DELETE"]


# --- what was named by oid ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written_first", [False, True])
def test_renamed_columns_keep_their_policy(source, written_first):
    """Although the numbers of columns are others than before: a column had been dropped."""
    with source.restored() as conn:
        if written_first:
            conn.execute("UPDATE t SET w = 'z' WHERE id = 1")
        conn.execute("ALTER TABLE t RENAME COLUMN secret TO hidden; ALTER TABLE t RENAME COLUMN w TO v")
        conn.execute("INSERT INTO t VALUES (100, 'secret', 'x'); UPDATE t SET v = 'y' WHERE id = 100")
        last = events(conn, "t")[-1]
        assert (last.image["hidden"], last.action) == ("***", "thing.changed")


def test_renamed_table_keeps_its_policy(source):
    with source.restored() as conn:
        conn.execute("ALTER TABLE t RENAME TO u; ALTER TABLE u RENAME COLUMN secret TO hidden")
        conn.execute("INSERT INTO u VALUES (100, 'secret', 'x')")
        assert events(conn, "u")[-1].image["hidden"] == "***"


def take_oid(conn, table, columns):
    """A layout, as a restore brings it, of another table that had the oid which this table has here."""
    conn.execute(
        """INSERT INTO audit.relation (id, relid, schema_name, table_name, resource, columns, key_columns, valid_from)
           SELECT nextval('audit.relation_id_seq'), %s::regclass, 'public', 'other', 'public.other', %s, '{id}', now()""",
        [table, columns],
    )
    return conn.execute("SELECT max(id) FROM audit.relation").fetchone()[0]


def test_layouts_of_another_table_with_the_same_oid(source):
    """They neither rename columns of a policy, nor name the table of a failure, nor are their records erased."""
    with source.restored() as conn:
        columns = '[{"attnum": 1, "name": "secret", "type": "text"}, {"attnum": 2, "name": "w", "type": "text"}]'
        other = take_oid(conn, "t", columns)
        conn.execute("ALTER TABLE t ADD COLUMN later int; UPDATE t SET w = 'z' WHERE id = 1")
        assert conn.execute("SELECT mask_columns FROM audit.policy WHERE target = 't'::regclass").fetchone() == (["secret"],)
        last = events(conn, "t")[-1]
        assert (last.table_name, last.image["secret"], last.action) == ("t", "***", "thing.changed")
        conn.execute(
            """INSERT INTO audit.event (occurred_at, seq, command, relation_id, operation, status, changeset_id, salt, checksum, resource_id)
               SELECT occurred_at, 1000000, 0, %s, operation, status, changeset_id, salt, checksum, '1'
                 FROM audit.event WHERE resource_id = '1' LIMIT 1""",
            [other],
        )
        (erased,) = conn.execute("SELECT audit.erase('t', '1', 'asked for')").fetchone()
        assert erased == 3  # inserted, updated, updated here
        assert conn.execute("SELECT salt IS NOT NULL FROM audit.event WHERE relation_id = %s", [other]).fetchone() == (True,)


def test_failure_before_the_first_change(source):
    with source.restored() as conn:
        take_oid(conn, "t", "[]")
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute("INSERT INTO t VALUES (1)")
        found = []
        while not found:  # the test's timeout ends it
            found = conn.execute("SELECT resource FROM audit.log WHERE operation = 'FAILURE'").fetchall()
        assert found == [("public.t",)]


def test_history_goes_on(source):
    """Also for a table whose oid a table had that the log has records of, and after it was renamed."""
    with source.restored() as conn:
        take_oid(conn, "app.a", '[{"attnum": 1, "name": "id", "type": "integer"}]')
        history = "SELECT array_agg(operation) FROM audit.history('app.a', '1')"
        assert conn.execute(history).fetchone() == (["INSERT"],)
        assert conn.execute("SELECT * FROM audit.table_as_of(NULL::app.a, now())").fetchall() == [(1, 1)]
        conn.execute("UPDATE app.a SET t_id = 2")
        assert conn.execute(history).fetchone() == (["INSERT", "UPDATE"],)
        assert conn.execute("SELECT * FROM audit.table_as_of(NULL::app.a, now())").fetchall() == [(1, 2)]
        undo = "SELECT count(*) FROM audit.history('app.a', '1') h, LATERAL audit.undo(h.changeset_id, dry_run => false) WHERE h.operation = %s"
        conn.execute(undo, ["UPDATE"])
        assert conn.execute("TABLE app.a").fetchall() == [(1, 1)]
        conn.execute("ALTER TABLE app.a RENAME TO b")
        assert conn.execute("SELECT count(*) FROM audit.history('app.b', '1')").fetchone() == (3,)


def test_rows_that_were_restored_are_truncated(source):
    with source.restored() as conn:
        conn.execute("TRUNCATE app.a; TRUNCATE child")
        assert conn.execute("SELECT array_agg(operation) FROM audit.history('app.a', '1')").fetchone() == (["INSERT", "TRUNCATE"],)
        assert conn.execute("SELECT audit.row_as_of('app.a', '1', now())").fetchone() == (None,)
        assert conn.execute("SELECT * FROM audit.table_as_of(NULL::app.a, now())").fetchall() == []
        assert conn.execute("SELECT * FROM audit.table_as_of(NULL::child, now())").fetchall() == []


def test_a_snapshot_after_the_restore(source):
    """It has all rows of the table: one that went unrecorded before it is gone."""
    with source.restored() as conn:
        conn.execute("SELECT audit.disable('app.a'); DELETE FROM app.a; SELECT audit.enable('app.a', snapshot => true)")
        conn.execute("INSERT INTO app.a VALUES (7)")
        conn.execute("SELECT audit.enable('app.a', snapshot => true)")
        assert conn.execute("SELECT audit.row_as_of('app.a', '1', now())").fetchone() == (None,)
        assert conn.execute("SELECT id FROM audit.table_as_of(NULL::app.a, now())").fetchall() == [(7,)]


def test_events_with_details(source):
    """The restored index knows the range that they come to, so it is told at the commit."""
    with source.restored() as conn:
        conn.execute("SELECT audit.log_event('thing.noticed', 'thing', '2', '{\"a\": 1}')")
        conn.execute("UPDATE app.a SET id = 2")
        conn.execute("INSERT INTO app.a VALUES (3); REINDEX TABLE audit.event_default")
        conn.execute("UPDATE app.a SET id = id + 10")
        assert conn.execute("SELECT array_agg(operation) FROM audit.history('app.a', '2')").fetchone() == (["UPDATE", "UPDATE"],)
        check_integrity(conn)


def test_oid_of_a_dropped_table(source):
    """It can come again, for another table."""
    with source.restored() as conn:
        conn.execute("INSERT INTO no_key VALUES ('x')")
        local = "SELECT relid = 'no_key'::regclass, relid = 0 FROM audit.local_layout"
        assert conn.execute(local).fetchall() == [(True, False)]
        conn.execute("CREATE TABLE other (); DROP TABLE other")
        assert conn.execute(local).fetchall() == [(True, False)]
        conn.execute("DROP TABLE no_key")
        assert conn.execute("SELECT relid FROM audit.local_layout").fetchall() == [(0,)]


def test_schema_that_is_renamed(source):
    with source.restored() as conn:
        conn.execute("CREATE TABLE app.b (id int); ALTER SCHEMA app RENAME TO app2; CREATE TABLE app2.c (id int)")
        conn.execute("INSERT INTO app2.a VALUES (2); INSERT INTO app2.b VALUES (1); INSERT INTO app2.c VALUES (1)")
        assert [event.table_name for event in events(conn)[-3:]] == ["a", "b", "c"]


# --- the log's own tables -------------------------------------------------------------------------------------------


def test_only_an_empty_table_of_the_log_is_truncated(source):
    """A parallel restore truncates what it has just created."""
    with source.restored() as conn:
        for table in ("audit.event", "audit.event_2020", "audit.changeset_2020", "audit.relation", "audit.changeset"):
            with sqlstate("55000"):
                conn.execute(f"TRUNCATE {table}")
        conn.execute("CREATE TABLE audit.event_2010 PARTITION OF audit.event FOR VALUES FROM ('2010-01-01') TO ('2011-01-01')")
        conn.execute("TRUNCATE ONLY audit.event_2010")
        conn.execute("INSERT INTO audit.event_2010 (occurred_at, seq, command, operation, status, changeset_id, checksum)"
                     " VALUES ('2010-02-02', 0, 0, 'DDL', 'success', gen_random_uuid(), '')")  # fmt: skip
        with sqlstate("55000"):
            conn.execute("TRUNCATE ONLY audit.event_2010")


def test_partitions_of_the_log_have_its_index(source):
    with source.restored() as conn:
        conn.execute("CREATE TABLE audit.event_2010 PARTITION OF audit.event FOR VALUES FROM ('2010-01-01') TO ('2011-01-01')")
        definition = "SELECT regexp_replace(pg_get_indexdef(indexrelid), '^.*USING', '') FROM pg_index WHERE indrelid = %s::regclass"
        expected = conn.execute(definition, ["audit.event_default"]).fetchall()
        assert len(expected) == 1
        for table in ("audit.event_2010", "audit.event_2020"):
            assert conn.execute(definition, [table]).fetchall() == expected


def found_by_index(conn):
    """Whether the index of a partition finds all events that a scan finds."""
    conn.execute("SET enable_seqscan = off")
    for occurred_at, count in conn.execute("SELECT occurred_at, count(*) FROM audit.event GROUP BY 1").fetchall():
        through = "SELECT count(*) FROM audit.event WHERE occurred_at = %s"
        assert "Bitmap Index Scan" in str(conn.execute("EXPLAIN " + through, [occurred_at]).fetchall())
        assert conn.execute(through, [occurred_at]).fetchone() == (count,)


def test_events_in_a_range_that_has_a_summary(source):
    """The index is created after the rows came, and knows all of them: what comes next must be told to it."""
    with source.restored() as conn:
        conn.execute("INSERT INTO no_key VALUES ('y'); INSERT INTO no_key SELECT g FROM generate_series(1, 20) g")
        found_by_index(conn)
        conn.execute("SELECT brin_summarize_new_values(indexrelid) FROM pg_index WHERE indrelid = 'audit.event_2020'::regclass")
        conn.execute("INSERT INTO no_key VALUES ('z')")
        found_by_index(conn)
