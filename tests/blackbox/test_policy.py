"""Policy: what audit.enable, audit.disable, audit.enable_schema and audit.disable_schema do and refuse; the options of a
policy; who may set it; and that the log is append-only."""

import contextlib

import pytest

import auditlib
from auditlib import changes, connect_like, events, replay, sqlstate


@pytest.fixture
def table(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, secret text, noise int, v text)")
    yield conn
    auditlib.check_integrity(conn)


def policy(conn, target="t"):
    return conn.execute(
        """SELECT mode, sample_rate, exclude_columns, mask_columns, soft_delete_column, require_context, skip_unchanged,
                  inherited_from::text, enabled_by FROM audit.policy WHERE target = %s::regclass""", [target]).fetchone()


def triggers(conn, target="t"):
    return conn.execute("SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal"
                        " ORDER BY tgname", [target]).fetchall()


@contextlib.contextmanager
def counted(conn, count, target="t"):
    """The body makes so many events of a table. Unlike `changes`, it does not demand that they explain the rows."""
    before = len(events(conn, target))
    yield
    assert len(events(conn, target)) - before == count


# --- enable, disable ----------------------------------------------------------------------------------------------

def test_defaults(table):
    table.execute("SELECT audit.enable('t')")
    assert policy(table) == ("sync", 1.0, [], [], None, [], False, None, "postgres")
    assert len(triggers(table)) == 2 and {enabled for _, enabled in triggers(table)} == {"A"}


def test_enabling_twice_changes_nothing(table):
    table.execute("SELECT audit.enable('t')")
    before = triggers(table)
    since = table.execute("SELECT enabled_at FROM audit.policy").fetchone()
    table.execute("SELECT audit.enable('t')")
    assert triggers(table) == before and table.execute("SELECT enabled_at FROM audit.policy").fetchall() == [since]
    with changes(table, "t", INSERT=1):
        table.execute("INSERT INTO t VALUES (1)")


def test_enabling_again_sets_the_options_as_given(table):
    table.execute("SELECT audit.enable('t', exclude_columns => '{noise}', mask_columns => '{secret}', skip_unchanged => true,"
                  " require_context => '{user_id}', soft_delete_column => 'v')")
    assert policy(table) == ("sync", 1.0, ["noise"], ["secret"], "v", ["user_id"], True, None, "postgres")
    table.execute("SELECT audit.enable('t', mask_columns => '{v}')")
    assert policy(table) == ("sync", 1.0, [], ["v"], None, [], False, None, "postgres")
    table.execute("INSERT INTO t VALUES (1, 'open', 1, 'masked')")
    assert events(table, "t")[0].image == {"id": "\x001", "secret": "open", "noise": "\x001", "v": "***"}
    table.execute("SELECT audit.enable('t')")
    assert policy(table) == ("sync", 1.0, [], [], None, [], False, None, "postgres")


def test_options_take_effect_in_other_sessions_at_once(table):
    table.execute("SELECT audit.enable('t')")
    with connect_like(table) as other:
        other.execute("PREPARE p AS INSERT INTO t (id, secret) VALUES ((SELECT count(*) FROM t), 's')")
        for _ in range(6):
            other.execute("EXECUTE p")
        table.execute("SELECT audit.enable('t', exclude_columns => '{secret}')")
        other.execute("EXECUTE p")
        table.execute("SELECT audit.disable('t')")
        other.execute("EXECUTE p")
    found = events(table, "t")
    assert ["secret" in e.image for e in found] == [True] * 6 + [False]


def test_disable(table):
    table.execute("SELECT audit.enable('t'); INSERT INTO t VALUES (1); SELECT audit.disable('t')")
    assert policy(table) is None and triggers(table) == []
    with counted(table, 0):
        table.execute("INSERT INTO t VALUES (2)")
        table.execute("TRUNCATE t")
    assert len(events(table, "t")) == 1
    table.execute("SELECT audit.enable('t')")
    with changes(table, "t", INSERT=1):
        table.execute("INSERT INTO t VALUES (3)")


def test_disable_of_a_table_not_audited(table):
    with sqlstate("55000") as caught:
        table.execute("SELECT audit.disable('t')")
    assert caught.error.diag.message_hint


def test_disable_of_a_partition_alone(conn):
    """It follows its parent; to leave it out would be a hole in the parent's record."""
    conn.execute("""
        CREATE TABLE p (id int) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        SELECT audit.enable('p')""")
    with sqlstate("55000") as caught:
        conn.execute("SELECT audit.disable('p1')")
    assert caught.error.diag.message_hint
    with changes(conn, "p", INSERT=1):
        conn.execute("INSERT INTO p1 VALUES (1)")


def test_partition_with_a_policy_of_its_own(conn):
    """It keeps it when its parent's is set, and falls back to the parent's when its own ends."""
    conn.execute("""
        CREATE TABLE p (id int, secret text) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        SELECT audit.enable('p1', mask_columns => '{secret}');
        SELECT audit.enable('p');
        INSERT INTO p VALUES (1, 's');
        SELECT audit.disable('p1');
        INSERT INTO p VALUES (2, 's');
        SELECT audit.enable('p1', exclude_columns => '{secret}');
        SELECT audit.disable('p');
        INSERT INTO p VALUES (3, 's')""")
    assert [e.image.get("secret") for e in events(conn, "p")] == ["***", "s", None]
    auditlib.check_integrity(conn)


def test_disable_of_a_partitioned_table(conn):
    conn.execute("""
        CREATE TABLE p (id int) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        SELECT audit.enable('p'); SELECT audit.disable('p')""")
    assert conn.execute("SELECT count(*) FROM audit.policy").fetchone()[0] == 0
    assert triggers(conn, "p") == [] and triggers(conn, "p1") == []
    conn.execute("INSERT INTO p VALUES (1)")
    conn.execute("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (11); TRUNCATE p")
    assert events(conn) == []


def test_enable_and_disable_roll_back(table):
    with table.transaction(force_rollback=True):
        table.execute("SELECT audit.enable('t', snapshot => true); INSERT INTO t VALUES (1)")
        assert len(table.execute("SELECT * FROM audit.log").fetchall()) == 1
    assert policy(table) is None and triggers(table) == []
    with counted(table, 0):
        table.execute("INSERT INTO t VALUES (1)")
    table.execute("SELECT audit.enable('t')")
    with table.transaction(force_rollback=True):
        table.execute("SELECT audit.disable('t'); INSERT INTO t VALUES (2)")
    with changes(table, "t", INSERT=1):
        table.execute("INSERT INTO t VALUES (2)")


def test_enable_after_changes_in_the_same_transaction(table):
    with table.transaction():
        table.execute("INSERT INTO t VALUES (1)")
        table.execute("SELECT audit.enable('t')")
        table.execute("INSERT INTO t VALUES (2)")
        table.execute("SELECT audit.disable('t')")
        table.execute("INSERT INTO t VALUES (3)")
        table.execute("SELECT audit.enable('t')")
        table.execute("INSERT INTO t VALUES (4)")
    assert [e.resource_id for e in events(table, "t")] == ["2", "4"]


def test_a_dropped_table_leaves_no_policy(table):
    table.execute("SELECT audit.enable('t'); INSERT INTO t VALUES (1); DROP TABLE t")
    assert table.execute("SELECT count(*) FROM audit.policy").fetchone()[0] == 0
    assert table.execute("SELECT resource, resource_id FROM audit.log").fetchall() == [("public.t", "1")]
    table.execute("CREATE TABLE t (id int PRIMARY KEY, secret text, noise int, v text); INSERT INTO t VALUES (2)")
    assert len(events(table)) == 1


def test_a_table_in_a_dropped_schema_leaves_no_policy(conn):
    conn.execute("CREATE SCHEMA s; CREATE TABLE s.t (id int); SELECT audit.enable('s.t'); DROP SCHEMA s CASCADE")
    assert conn.execute("SELECT count(*) FROM audit.policy").fetchone()[0] == 0


# --- refusals -----------------------------------------------------------------------------------------------------

NOT_AUDITABLE = [
    "pg_catalog.pg_class", "pg_catalog.pg_authid", "information_schema.sql_features", "audit.event", "audit.event_default",
    "audit.changeset", "audit.policy", "audit.relation", "audit.log", "v", "mv", "s", "i", "temporary", "row_type",
    "pg_catalog.pg_locks"]


def test_what_cannot_be_audited_is_refused(conn):
    conn.execute("""
        CREATE TABLE t (id int); CREATE VIEW v AS SELECT * FROM t; CREATE MATERIALIZED VIEW mv AS SELECT * FROM t;
        CREATE SEQUENCE s; CREATE INDEX i ON t (id); CREATE TEMPORARY TABLE temporary (id int);
        CREATE TYPE row_type AS (a int)""")
    for target in NOT_AUDITABLE:
        with sqlstate("42809") as caught:
            conn.execute("SELECT audit.enable(%s)", [target])
            raise AssertionError("accepted: " + target)
        assert caught.error.diag.message_hint, target
    assert conn.execute("SELECT count(*) FROM audit.policy").fetchone()[0] == 0


def test_toast_tables_are_refused(conn):
    conn.execute("CREATE TABLE t (v text)")
    with sqlstate("42809"):
        conn.execute("SELECT audit.enable(reltoastrelid) FROM pg_class WHERE oid = 't'::regclass")


def test_unknown_modes_are_refused(table):
    with sqlstate("22023"):
        table.execute("SELECT audit.enable('t', mode => 'nonsense')")


WITHOUT_COLUMN = [
    "exclude_columns => '{nowhere}'", "mask_columns => '{v,nowhere}'", "soft_delete_column => 'nowhere'",
    "exclude_columns => '{ctid}'", "exclude_columns => '{V}'", "mask_columns => '{dropped}'"]


def test_unknown_columns_are_refused(table):
    table.execute("ALTER TABLE t ADD COLUMN dropped int; ALTER TABLE t DROP COLUMN dropped")
    for option in WITHOUT_COLUMN:
        with sqlstate("42703"):
            table.execute("SELECT audit.enable('t', %s)" % option)
            raise AssertionError("accepted: " + option)
    assert policy(table) is None and triggers(table) == []


def test_unknown_context_keys_are_refused(table):
    with sqlstate("22023"):
        table.execute("SELECT audit.enable('t', require_context => '{user_id,nonsense}')")


def test_null_arguments(table):
    for call in ("enable(NULL)", "disable(NULL)", "enable_schema(NULL)", "disable_schema(NULL)"):
        with sqlstate("22004"):
            table.execute("SELECT audit." + call)
            raise AssertionError("accepted: " + call)
    table.execute("SELECT audit.enable('t', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)")
    assert policy(table) == ("sync", 1.0, [], [], None, [], False, None, "postgres")


def test_a_table_that_does_not_exist(conn):
    with sqlstate("42P01"):
        conn.execute("SELECT audit.enable('nowhere')")
    with sqlstate("42P01", "42809", "22023"):
        conn.execute("SELECT audit.enable(4000000000::oid::regclass)")
    with sqlstate("3F000"):
        conn.execute("SELECT audit.enable_schema('nowhere')")


def test_schemas_of_the_system_are_refused(conn):
    for schema in ("pg_catalog", "information_schema", "audit", "pg_toast"):
        with sqlstate("42809"):
            conn.execute("SELECT audit.enable_schema(%s)", [schema])


def test_the_trigger_function_by_hand(table):
    with sqlstate("39P01", "0A000"):
        table.execute("SELECT audit.capture()")
    table.execute("CREATE TRIGGER mine AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION audit.capture()")
    with sqlstate("55000"):
        table.execute("INSERT INTO t VALUES (1)")
    for shape in ("BEFORE INSERT ON t FOR EACH ROW", "AFTER INSERT ON t FOR EACH STATEMENT",
                  "BEFORE TRUNCATE ON t FOR EACH STATEMENT", "BEFORE UPDATE ON t FOR EACH STATEMENT"):
        table.execute("DROP TRIGGER IF EXISTS mine ON t")
        table.execute("CREATE TRIGGER mine %s EXECUTE FUNCTION audit.capture()" % shape)
        with sqlstate("55000", "39P01"):
            table.execute({"I": "INSERT INTO t VALUES (1)", "T": "TRUNCATE t", "U": "UPDATE t SET v = ''"}[
                shape.split()[1][0]])
    table.execute("DROP TRIGGER mine ON t")
    table.execute("CREATE VIEW v AS SELECT * FROM t")
    table.execute("CREATE TRIGGER mine INSTEAD OF INSERT ON v FOR EACH ROW EXECUTE FUNCTION audit.capture()")
    with sqlstate("55000", "39P01"):
        table.execute("INSERT INTO v VALUES (1)")
    assert table.execute("SELECT count(*) FROM t").fetchone()[0] == 0


# --- options ------------------------------------------------------------------------------------------------------

def test_excluded_columns(table):
    table.execute("SELECT audit.enable('t', exclude_columns => '{secret,noise}')")
    table.execute("INSERT INTO t VALUES (1, 's', 1, 'v')")
    table.execute("UPDATE t SET secret = 'x', noise = 2")
    table.execute("UPDATE t SET secret = 'y', v = 'w'")
    table.execute("DELETE FROM t")
    insert, first, second, delete = events(table, "t")
    assert insert.image == {"id": "\x001", "v": "v"}
    assert first.image == insert.image and first.old_values == {}
    assert second.old_values == {"v": "v"} and delete.image == {"id": "\x001", "v": "w"}
    assert [r[0] for r in table.execute("SELECT changed_columns FROM audit.log WHERE operation = 'UPDATE'"
                                        " ORDER BY position")] == [[], ["v"]]
    text = table.execute("SELECT string_agg(e::text, '') FROM audit.event e").fetchone()[0]
    assert "secret" not in text and "noise" not in text


def test_masked_columns(table):
    """Read as ***, NULL as NULL, and count as changed."""
    table.execute("SELECT audit.enable('t', mask_columns => '{secret,noise}')")
    table.execute("INSERT INTO t VALUES (1, 'tell nobody', NULL, 'v')")
    table.execute("UPDATE t SET secret = 'another'")
    table.execute("UPDATE t SET secret = NULL, noise = 5")
    table.execute("UPDATE t SET v = 'w'")
    insert, first, second, third = events(table, "t")
    assert insert.image == {"id": "\x001", "secret": "***", "noise": None, "v": "v"}
    assert first.image["secret"] == "***" and first.old_values == {"secret": "***"}
    assert second.image["secret"] is None and second.old_values == {"secret": "***", "noise": None}
    assert second.image["noise"] == "***" and third.old_values == {"v": "v"}
    assert "nobody" not in table.execute("SELECT string_agg(e::text, '') FROM audit.event e").fetchone()[0]


def test_excluded_and_masked_in_partitions_of_another_shape(conn):
    conn.execute("""
        CREATE TABLE p (id int, secret text, noise int) PARTITION BY RANGE (id);
        CREATE TABLE p1 (junk int, noise int, id int, secret text);
        ALTER TABLE p1 DROP COLUMN junk;
        ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10);
        SELECT audit.enable('p', exclude_columns => '{noise}', mask_columns => '{secret}');
        CREATE TABLE p2 (secret text, id int, noise int);
        ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20);
        INSERT INTO p VALUES (1, 'x', 1), (11, 'x', 1);
        INSERT INTO p1 (id, secret, noise) VALUES (2, 'x', 2)""")
    assert [e.image for e in events(conn, "p")] == [
        {"id": "\x00%d" % i, "secret": "***"} for i in (1, 11, 2)]


def test_children_follow_changed_options(conn):
    conn.execute("""
        CREATE TABLE parent (id int, secret text);
        CREATE TABLE child (extra int) INHERITS (parent);
        SELECT audit.enable('parent');
        SELECT audit.enable('parent', mask_columns => '{secret}');
        INSERT INTO child VALUES (1, 'x', 2)""")
    assert events(conn, "parent")[0].image == {"id": "\x001", "secret": "***", "extra": "\x002"}


def test_excluded_column_renamed_or_dropped(table):
    table.execute("SELECT audit.enable('t', exclude_columns => '{secret}', mask_columns => '{v}')")
    table.execute("ALTER TABLE t RENAME COLUMN secret TO hidden")
    table.execute("INSERT INTO t VALUES (1, 'must not be seen', 1, 'v')")
    assert "must not be seen" not in table.execute("SELECT string_agg(e::text, '') FROM audit.event e").fetchone()[0]
    table.execute("ALTER TABLE t DROP COLUMN v")
    table.execute("INSERT INTO t VALUES (2, 's', 1)")


def test_skip_unchanged(table):
    table.execute("SELECT audit.enable('t', skip_unchanged => true, exclude_columns => '{noise}')")
    table.execute("INSERT INTO t VALUES (1, 's', 1, 'v'), (2, 's', 1, NULL)")
    with counted(table, 1):
        table.execute("UPDATE t SET v = 'v'")
    with counted(table, 0):
        table.execute("UPDATE t SET noise = 5, v = v")
    table.execute("SELECT audit.enable('t')")
    with counted(table, 2):
        table.execute("UPDATE t SET v = v")


def test_require_context(table):
    for key in ("user_id", "tenant_id", "request_id", "session_id", "ip_address", "user_agent", "reason"):
        check_required(table, key)


def check_required(table, key):
    table.execute("SELECT audit.enable('t'), audit.clear_context()")
    table.execute("DELETE FROM t; INSERT INTO t VALUES (1), (2)")
    table.execute("SELECT audit.enable('t', require_context => ARRAY[%s])", [key])
    with counted(table, 0):
        for statement in ("INSERT INTO t VALUES (3)", "UPDATE t SET v = 'x'", "DELETE FROM t", "TRUNCATE t"):
            with sqlstate("55000") as caught:
                table.execute(statement)
            assert "audit.set_context" in caught.error.diag.message_hint
        table.execute("SELECT set_config('audit.%s', '', false)" % key)
        with sqlstate("55000"):
            table.execute("INSERT INTO t VALUES (3)")
        table.execute("UPDATE t SET v = 'x' WHERE false")
    assert table.execute("SELECT count(*) FROM t").fetchone()[0] == 2
    value = "192.0.2.1" if key == "ip_address" else "x"
    with counted(table, 2):
        with table.transaction():
            table.execute("SELECT audit.set_context(%s => %%s)" % key, [value])
            table.execute("INSERT INTO t VALUES (3)")
            table.execute("UPDATE t SET v = 'x' WHERE id = 1")
    with sqlstate("55000"):
        table.execute("DELETE FROM t")


def test_require_several_keys(table):
    table.execute("SELECT audit.enable('t', require_context => '{user_id,reason}')")
    table.execute("SET audit.user_id = 'u'")
    with sqlstate("55000"):
        table.execute("INSERT INTO t VALUES (1)")
    table.execute("SET audit.reason = 'r'")
    with counted(table, 1):
        table.execute("INSERT INTO t VALUES (1)")


def test_require_context_does_not_poison_the_transaction(table):
    """The refusal is caught in a savepoint; what was captured before stays."""
    table.execute("CREATE TABLE free (id int); SELECT audit.enable('free')")
    table.execute("SELECT audit.enable('t', require_context => '{user_id}')")
    with table.transaction():
        table.execute("INSERT INTO free VALUES (1)")
        with sqlstate("55000"), table.transaction():
            table.execute("INSERT INTO free VALUES (2)")
            table.execute("INSERT INTO t VALUES (1)")
        table.execute("INSERT INTO free VALUES (3)")
    assert [e.image["id"] for e in events(table, "free")] == ["\x001", "\x003"]


# --- snapshot -----------------------------------------------------------------------------------------------------

def test_snapshot(table):
    table.execute("INSERT INTO t SELECT g, 's', g, 'v' FROM generate_series(1, 5) g")
    table.execute("SET audit.user_id = 'admin'")
    table.execute("SELECT audit.enable('t', snapshot => true, mask_columns => '{secret}', exclude_columns => '{noise}')")
    found = events(table, "t")
    assert [e.operation for e in found] == ["SNAPSHOT"] * 5
    assert {e.resource_id for e in found} == {"1", "2", "3", "4", "5"}
    assert found[0].image == {"id": "\x00" + found[0].resource_id, "secret": "***", "v": "v"}
    assert {(e.origin, e.user_id) for e in found} == {("snapshot", "admin")}
    assert table.execute("SELECT DISTINCT old_row::text, new_row IS NOT NULL, changed_columns::text FROM audit.log").fetchall() \
        == [(None, True, None)]


def test_snapshot_of_many_rows(table):
    """In batches; the images are checked by replay, later changes included."""
    table.execute("INSERT INTO t SELECT g, md5(g::text), g, repeat('v', g % 700) FROM generate_series(1, 30000) g")
    table.execute("SELECT audit.enable('t', snapshot => true)")
    table.execute("UPDATE t SET noise = 0 WHERE id % 100 = 0; DELETE FROM t WHERE id % 1000 = 1")
    assert len(replay(table, "t")) == 30000 + 300 + 30


def test_snapshot_of_partitions_and_children(conn):
    conn.execute("""
        CREATE TABLE p (id int) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
        CREATE TABLE p2a PARTITION OF p2 DEFAULT;
        CREATE TABLE parent (id int); CREATE TABLE child (x int) INHERITS (parent);
        INSERT INTO p SELECT generate_series(5, 14); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3);
        SELECT audit.enable('p', snapshot => true), audit.enable('parent', snapshot => true)""")
    assert {e.table_name for e in replay(conn, "p")} == {"p1", "p2a"}
    assert [e.image for e in replay(conn, "parent")] == [{"id": "\x001"}, {"id": "\x002", "x": "\x003"}]
    auditlib.check_integrity(conn)


def test_snapshot_sees_what_the_transaction_sees(table):
    table.execute("INSERT INTO t VALUES (1), (2), (3)")
    with table.transaction():
        table.execute("DELETE FROM t WHERE id = 1")
        table.execute("INSERT INTO t VALUES (4)")
        table.execute("SELECT audit.enable('t', snapshot => true)")
        table.execute("INSERT INTO t VALUES (5)")
    assert sorted((e.operation, e.resource_id) for e in replay(table, "t")) == [
        ("INSERT", "5"), ("SNAPSHOT", "2"), ("SNAPSHOT", "3"), ("SNAPSHOT", "4")]


def test_snapshot_misses_no_concurrent_change(table):
    """Between the snapshot and the trigger no change slips through: enable waits for writers."""
    table.execute("INSERT INTO t VALUES (1)")
    with connect_like(table) as writer, connect_like(table) as admin:
        writer.execute("BEGIN; UPDATE t SET v = 'concurrent' WHERE id = 1; INSERT INTO t VALUES (2)")
        admin.execute("SET lock_timeout = '200ms'")
        with sqlstate("55P03"):
            admin.execute("SELECT audit.enable('t', snapshot => true)")
        writer.execute("COMMIT")
        admin.execute("SELECT audit.enable('t', snapshot => true)")
        writer.execute("UPDATE t SET v = 'later'")
    replay(table, "t")


def test_snapshot_ignores_row_security(table, role):
    table.execute("INSERT INTO t VALUES (1), (2); ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    table.execute("SELECT audit.enable('t', snapshot => true)")
    assert len(events(table, "t")) == 2


# --- schemas ------------------------------------------------------------------------------------------------------

@pytest.fixture
def shop(conn):
    conn.execute("""
        CREATE SCHEMA shop;
        CREATE TABLE shop.a (id int PRIMARY KEY, secret text);
        CREATE TABLE shop.b (id int PRIMARY KEY);
        CREATE TABLE shop.p (id int) PARTITION BY RANGE (id);
        CREATE TABLE shop.p1 PARTITION OF shop.p FOR VALUES FROM (0) TO (10);
        CREATE VIEW shop.v AS SELECT * FROM shop.a;
        CREATE MATERIALIZED VIEW shop.mv AS SELECT * FROM shop.a;
        CREATE SEQUENCE shop.s;
        CREATE TABLE elsewhere (id int)""")
    yield conn
    auditlib.check_integrity(conn)


def audited(conn):
    return {r[0] for r in conn.execute("SELECT target::text FROM audit.policy")}


def test_enable_schema(shop):
    count = shop.execute("SELECT audit.enable_schema('shop')").fetchone()[0]
    assert audited(shop) == {"shop.a", "shop.b", "shop.p", "shop.p1"}
    assert count in (3, 4)
    with changes(shop, "shop.a", "shop.b", "shop.p", INSERT=3):
        shop.execute("INSERT INTO shop.a VALUES (1); INSERT INTO shop.b VALUES (1); INSERT INTO shop.p VALUES (1)")
    shop.execute("SELECT audit.enable_schema('shop')")
    with changes(shop, "shop.a", INSERT=1):
        shop.execute("INSERT INTO shop.a VALUES (2)")


def test_enable_schema_with_future_tables(shop):
    shop.execute("SELECT audit.enable_schema('shop', mask_columns => '{secret}')")
    shop.execute("CREATE TABLE shop.later (id int, secret text)")
    shop.execute("CREATE TABLE elsewhere2 (id int, secret text)")
    with changes(shop, "shop.later", INSERT=1) as made:
        shop.execute("INSERT INTO shop.later VALUES (1, NULL)")
    assert made.events[0].image == {"id": "\x001", "secret": None}
    shop.execute("INSERT INTO shop.later VALUES (2, 'x'); INSERT INTO elsewhere2 VALUES (1)")
    assert events(shop, "shop.later")[-1].image["secret"] == "***"
    assert audited(shop) == {"shop.a", "shop.b", "shop.p", "shop.p1", "shop.later"}
    with shop.transaction():
        shop.execute("CREATE TABLE shop.once (id int PRIMARY KEY); INSERT INTO shop.once VALUES (1)")
        shop.execute("UPDATE shop.once SET id = 2")
    assert [e.operation for e in replay(shop, "shop.once")] == ["INSERT", "UPDATE"]


def test_enable_schema_and_tables_made_from_queries(shop):
    """The rows of CREATE TABLE AS and SELECT INTO are in before the table is seen: SNAPSHOT events follow them."""
    shop.execute("SELECT audit.enable_schema('shop')")
    shop.execute("CREATE TABLE shop.copied AS SELECT g AS id, 'x' AS v FROM generate_series(1, 50) g")
    shop.execute("SELECT g AS id INTO shop.selected FROM generate_series(1, 7) g")
    assert {"shop.copied", "shop.selected"} <= audited(shop)
    shop.execute("UPDATE shop.copied SET v = 'y' WHERE id < 3; DELETE FROM shop.selected WHERE id = 1")
    operations = [e.operation for e in replay(shop, "shop.copied")]
    assert operations == ["SNAPSHOT"] * 50 + ["UPDATE"] * 2
    assert [e.operation for e in replay(shop, "shop.selected")] == ["SNAPSHOT"] * 7 + ["DELETE"]
    with changes(shop, "shop.empty"):
        shop.execute("CREATE TABLE shop.empty AS SELECT * FROM shop.copied WITH NO DATA")


def test_enable_schema_without_future_tables(shop):
    shop.execute("SELECT audit.enable_schema('shop', include_future => false)")
    shop.execute("CREATE TABLE shop.later (id int); INSERT INTO shop.later VALUES (1)")
    assert "shop.later" not in audited(shop)
    # A partition of an audited table is that table's business, not the schema's.
    shop.execute("CREATE TABLE shop.p2 PARTITION OF shop.p FOR VALUES FROM (10) TO (20)")
    assert "shop.p2" in audited(shop)


def test_tables_moved_into_the_schema(shop):
    shop.execute("SELECT audit.enable_schema('shop')")
    shop.execute("ALTER TABLE elsewhere SET SCHEMA shop")
    with changes(shop, "shop.elsewhere", INSERT=1):
        shop.execute("INSERT INTO shop.elsewhere VALUES (1)")


def test_temporary_tables_and_other_objects_in_the_schema(shop):
    shop.execute("SELECT audit.enable_schema('shop'); SET search_path = shop")
    shop.execute("CREATE TEMPORARY TABLE tmp (id int); CREATE VIEW shop.v2 AS SELECT * FROM a; CREATE SEQUENCE shop.s2;"
                 " CREATE TABLE if_not (id int); CREATE TABLE IF NOT EXISTS if_not (id int)")
    assert len(audited(shop)) == 5


def test_schema_with_snapshot(shop):
    shop.execute("INSERT INTO shop.a VALUES (1, 'x'); INSERT INTO shop.p VALUES (1)")
    shop.execute("SELECT audit.enable_schema('shop', snapshot => true)")
    assert [e.operation for e in replay(shop, "shop.a") + replay(shop, "shop.p")] == ["SNAPSHOT"] * 2


def test_tables_made_by_other_commands(shop):
    """In a function, a DO block, from EXECUTE."""
    shop.execute("SELECT audit.enable_schema('shop')")
    shop.execute("""
        CREATE FUNCTION make() RETURNS void LANGUAGE plpgsql AS $$BEGIN CREATE TABLE shop.by_function (id int); END$$;
        SELECT make();
        DO $$BEGIN EXECUTE 'CREATE TABLE shop.by_do (LIKE shop.a INCLUDING ALL)'; END$$;
        PREPARE p AS SELECT 1 AS id;
        CREATE TABLE shop.by_execute AS EXECUTE p;
        CREATE UNLOGGED TABLE shop.unlogged (id int);
        CREATE TYPE shop.pair AS (a int, b int);
        CREATE TABLE shop.typed OF shop.pair""")
    assert {"shop.by_function", "shop.by_do", "shop.by_execute", "shop.unlogged", "shop.typed"} <= audited(shop)
    assert [e.operation for e in replay(shop, "shop.by_execute")] == ["SNAPSHOT"]


def test_enabled_schema_renamed(shop):
    shop.execute("SELECT audit.enable_schema('shop'); ALTER SCHEMA shop RENAME TO store; CREATE TABLE store.later (id int)")
    assert "store.later" in audited(shop)
    with changes(shop, "store.later", INSERT=1):
        shop.execute("INSERT INTO store.later VALUES (1)")
    # A new schema under the old name is another schema.
    shop.execute("CREATE SCHEMA shop; CREATE TABLE shop.other (id int)")
    assert "shop.other" not in audited(shop)


def test_disable_schema(shop):
    shop.execute("SELECT audit.enable('elsewhere'); SELECT audit.enable_schema('shop')")
    assert shop.execute("SELECT audit.disable_schema('shop')").fetchone()[0] in (3, 4)
    assert audited(shop) == {"elsewhere"}
    shop.execute("CREATE TABLE shop.later (id int); INSERT INTO shop.later VALUES (1); INSERT INTO shop.a VALUES (1)")
    assert audited(shop) == {"elsewhere"} and events(shop) == []


def test_future_tables_of_an_ordinary_user(shop, db, role):
    """His CREATE TABLE enables, though he may not call audit.enable."""
    user = role()
    shop.execute("GRANT ALL ON SCHEMA shop TO %s; SELECT audit.enable_schema('shop')" % user)
    with db.connect(user=user) as other:
        other.execute("CREATE TABLE shop.his (id int); INSERT INTO shop.his VALUES (1)")
        other.execute("CREATE TABLE shop.pp (id int) PARTITION BY LIST (id);"
                      "CREATE TABLE shop.pp1 PARTITION OF shop.pp DEFAULT; INSERT INTO shop.pp VALUES (1)")
    assert {"shop.his", "shop.pp", "shop.pp1"} <= audited(shop)
    assert len(events(shop, "shop.his")) == 1 and len(events(shop, "shop.pp")) == 1


# --- rights -------------------------------------------------------------------------------------------------------

POLICY_CALLS = ["audit.enable('t')", "audit.disable('t')", "audit.enable_schema('public')", "audit.disable_schema('public')",
                "audit.grant_admin(current_user::regrole)", "audit.grant_reader(current_user::regrole)"]


def test_ordinary_users_cannot_set_policies(table, db, role):
    user = role()
    table.execute("ALTER TABLE t OWNER TO %s; SELECT audit.enable('t', skip_unchanged => true)" % user)
    before = policy(table)
    with db.connect(user=user) as other:
        for call in POLICY_CALLS:
            with sqlstate("42501"):
                other.execute("SELECT " + call)
                raise AssertionError("allowed: " + call)
    assert policy(table) == before


def test_writers_need_no_rights_on_the_log(table, db, role):
    user = role()
    table.execute("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON t TO %s; SELECT audit.enable('t')" % user)
    with db.connect(user=user) as other:
        other.execute("INSERT INTO t VALUES (1); UPDATE t SET v = 'x'; DELETE FROM t; TRUNCATE t")
        for name in ("event", "changeset", "event_default", "changeset_default", "relation", "policy", "ledger", "log"):
            with sqlstate("42501"):
                other.execute("SELECT * FROM audit.%s" % name)
            with sqlstate("42501", "55000"):
                other.execute("DELETE FROM audit.%s" % name)
        with sqlstate("42501"):
            other.execute("INSERT INTO audit.policy (target) VALUES ('t')")
    assert len(events(table, "t")) == 4


def test_admins_and_readers(table, db, role):
    admin, reader = role(), role()
    table.execute("SELECT audit.grant_admin('%s'), audit.grant_reader('%s')" % (admin, reader))
    table.execute("CREATE TABLE other (id int)")
    with db.connect(user=admin) as session:
        session.execute("SELECT audit.enable('t', mask_columns => '{secret}'); SELECT audit.enable_schema('public')")
        session.execute("SELECT audit.disable('other')")
    assert policy(table)[8] == admin
    table.execute("INSERT INTO t VALUES (1)")
    with db.connect(user=reader) as session:
        assert session.execute("SELECT count(*) FROM audit.log").fetchone()[0] == 1
        assert session.execute("SELECT count(*) FROM audit.event e JOIN audit.changeset c ON c.id = e.changeset_id"
                               " JOIN audit.relation r ON r.id = e.relation_id").fetchone()[0] == 1
        assert session.execute("SELECT bool_and(audit.verify_event(changeset_id, seq)) FROM audit.event").fetchone()[0]
        for statement in ("INSERT INTO audit.event SELECT * FROM audit.event", "DELETE FROM audit.event",
                          "TRUNCATE audit.event", "UPDATE audit.changeset SET user_id = 'x'",
                          "DELETE FROM audit.policy", "SELECT audit.enable('t')", "SELECT audit.disable('t')"):
            with sqlstate("42501", "55000"):
                session.execute(statement)


# --- append-only --------------------------------------------------------------------------------------------------

APPEND_ONLY = [
    "UPDATE audit.event SET seq = seq", "UPDATE audit.event SET resource_id = 'forged'", "DELETE FROM audit.event",
    "UPDATE audit.event_default SET seq = 5", "DELETE FROM ONLY audit.event_default", "TRUNCATE audit.event",
    "TRUNCATE audit.event_default", "TRUNCATE audit.event, audit.changeset CASCADE", "UPDATE audit.changeset SET user_id = 'x'",
    "DELETE FROM audit.changeset", "DELETE FROM audit.changeset_default", "TRUNCATE audit.changeset",
    "TRUNCATE audit.changeset_default", "UPDATE audit.changeset_default SET reason = NULL",
    "MERGE INTO audit.event e USING (SELECT 1) x ON true WHEN MATCHED THEN DELETE",
    "MERGE INTO audit.changeset c USING (SELECT 1) x ON true WHEN MATCHED THEN UPDATE SET user_id = 'x'",
    "WITH d AS (DELETE FROM audit.event RETURNING 1) SELECT * FROM d",
    "INSERT INTO audit.relation SELECT * FROM audit.relation LIMIT 1 ON CONFLICT (id) DO UPDATE SET table_name = 'x'",
]


def test_the_log_is_append_only(table):
    """For superusers too, and under session_replication_role = replica."""
    table.execute("SELECT audit.enable('t'); INSERT INTO t VALUES (1); UPDATE t SET v = 'x'")
    for role in ("origin", "local", "replica"):
        table.execute("SET session_replication_role = %s" % role)
        for statement in APPEND_ONLY:
            with sqlstate("55000"):
                table.execute(statement)
                raise AssertionError("as %s: %s" % (role, statement))
    assert len(events(table, "t")) == 2


@pytest.mark.parametrize("parent", ["event", "changeset"])
def test_partitions_added_later_are_append_only(table, parent):
    table.execute("SELECT audit.enable('t'); INSERT INTO t VALUES (1)")
    table.execute("CREATE TABLE audit.%s_2150 PARTITION OF audit.%s FOR VALUES FROM ('2150-01-01') TO ('2151-01-01')"
                  % (parent, parent))
    columns = [r[0] for r in table.execute("SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
                                           " ORDER BY attnum", ["audit." + parent])]
    table.execute("INSERT INTO audit.%s (%s) SELECT %s FROM audit.%s" % (
        parent, ", ".join(columns), ", ".join("'2150-06-01'" if c == "occurred_at" else c for c in columns), parent))
    try:
        for statement in ("UPDATE audit.%s_2150 SET occurred_at = occurred_at", "DELETE FROM audit.%s_2150"):
            with sqlstate("55000"):
                table.execute(statement % parent)
    finally:
        table.execute("DROP TABLE audit.%s_2150" % parent)


def test_deletes_that_match_nothing_are_refused_as_well(conn):
    for statement in ("DELETE FROM audit.event", "UPDATE audit.changeset SET user_id = 'x' WHERE false"):
        with sqlstate("55000"):
            conn.execute(statement)
