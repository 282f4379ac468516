"""Action rules: a change of a row is named by what it means. What is wrong with a rule never fails the change."""

import subprocess
import threading
import time

import psycopg
import pytest
from auditlib import check_integrity, replay, sqlstate

ORDER = "ORDER BY era, position NULLS LAST, command, seq"


@pytest.fixture
def conn(conn):
    conn.execute("""
        CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
        CREATE DOMAIN level AS int CHECK (VALUE < 100);
        CREATE TABLE users (id int PRIMARY KEY, name text, role text, active boolean DEFAULT true, n int DEFAULT 0,
                            m mood DEFAULT 'ok', l level DEFAULT 1, seen timestamptz DEFAULT now(), tags text[], data jsonb,
                            secret text, price numeric DEFAULT 1);
        SELECT audit.enable('users')""")
    return conn


def add(conn, operation, action, table="users", **options):
    arguments = "".join(f", {name} => %({name})s" for name in options)
    sql = f"SELECT audit.add_action_rule('{table}', %(operation)s, %(action)s{arguments})"
    return conn.execute(sql, {"operation": operation, "action": action, **options}).fetchone()[0]


def actions(conn, columns="operation, action"):
    return conn.execute(f"SELECT {columns} FROM audit.log {ORDER}").fetchall()


# --- which rule fits ------------------------------------------------------------------------------------------------


def test_operations(conn):
    for operation in ("INSERT", "UPDATE", "DELETE", "TRUNCATE"):
        add(conn, operation, f"user.{operation.lower()}")
    conn.execute("INSERT INTO users (id) VALUES (1); UPDATE users SET n = 1; DELETE FROM users; TRUNCATE users")
    assert actions(conn) == [
        (operation, f"user.{operation.lower()}") for operation in ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
    ]
    replay(conn, "users")
    check_integrity(conn)


def test_columns_must_have_changed(conn):
    conn.execute("SELECT audit.enable('users', exclude_columns => '{secret}')")  # what is left out of the record counts all the same
    add(conn, "UPDATE", "user.role_changed", columns=["role", "secret"])
    conn.execute("INSERT INTO users (id, role) VALUES (1, 'clerk')")
    for assignment in ("role = 'clerk'", "name = 'x'", "role = 'boss'", "role = NULL", "role = NULL", "role = ''", "secret = 's'"):
        conn.execute(f"UPDATE users SET {assignment}")
    assert [action for _, action in actions(conn)[1:]] == [
        None, None, "user.role_changed", "user.role_changed", None, "user.role_changed", "user.role_changed"]  # fmt: skip
    check_integrity(conn)


@pytest.mark.parametrize(
    "condition, update, fits",
    [
        ("old.active AND NOT new.active", "active = false", True),
        ("old.active AND NOT new.active", "active = NULL", False),  # NULL is not true
        ("new.active IS NOT TRUE", "active = NULL", True),
        ("new.n > old.n", "n = n + 1", True),
        ("new.n > old.n", "n = n - 1", False),
        ("new.role IN ('boss', 'admin')", "role = 'boss'", True),
        ("new.role = ANY ('{boss,admin}')", "role = 'clerk'", False),
        ("new.m = 'happy'", "m = 'happy'", True),
        ("new.m > old.m", "m = 'sad'", False),
        ("new.m::text LIKE 'hap%'", "m = 'happy'", True),
        ("new.l BETWEEN 10 AND 20", "l = 15", True),
        ("new.seen < now() - interval '1 year'", "seen = '2001-01-01'", True),
        ("new.seen::date = '2026-03-02'", "seen = '2026-03-01 23:30-02'", True),  # in UTC, whatever the session's zone
        ("'vip' = ANY (new.tags)", "tags = '{a,vip}'", True),
        ("array_length(new.tags, 1) > 1", "tags = '{a}'", False),
        ("new.data ->> 'plan' <> old.data ->> 'plan'", "data = '{\"plan\": \"gold\"}'", False),
        ("new.data @> '{\"plan\": \"gold\"}'", "data = '{\"plan\": \"gold\"}'", True),
        ("(new.data ->> 'seats')::int > 10", "data = '{\"seats\": 11}'", True),
        ("new.price::text = '1.50'", "price = 1.50", True),
        ("current_setting('audit.user_id') = 'ann'", "n = 1", True),
        ("session_user <> 'postgres'", "n = 1", False),
        ("coalesce(new.name, '') = '' OR length(new.name) > 3", "name = 'Otto'", True),
        ("CASE WHEN new.n > 0 THEN new.n % 2 = 1 ELSE false END", "n = 3", True),
        ("NULL", "n = 1", False),
        ("true", "n = 1", True),
        (" new.n = 1 -- a comment", "n = 1", True),
        ("new.secret = 'x'", "secret = 'x'", True),
    ],
)
def test_conditions(conn, condition, update, fits):
    conn.execute("SELECT audit.enable('users', exclude_columns => '{secret}', mask_columns => '{price}')")
    add(conn, "UPDATE", "it.fits", condition=condition)
    conn.execute("INSERT INTO users (id) VALUES (1); SET audit.user_id = 'ann'; SET TimeZone = 'America/New_York';"
                 " SET DateStyle = 'German'; SET search_path = pg_temp")  # fmt: skip
    conn.execute(f"UPDATE public.users SET {update}")
    assert actions(conn, "operation, action, details")[1:] == [("UPDATE", "it.fits" if fits else None, None)]


def test_insert_and_delete_have_one_row(conn):
    add(conn, "INSERT", "boss.hired", condition="new.role = 'boss'")
    add(conn, "DELETE", "boss.fired", condition="old.role = 'boss'")
    conn.execute("INSERT INTO users (id, role) VALUES (1, 'boss'), (2, 'clerk'); DELETE FROM users")
    assert actions(conn, "operation, resource_id, action") == [
        ("INSERT", "1", "boss.hired"),
        ("INSERT", "2", None),
        ("DELETE", "1", "boss.fired"),
        ("DELETE", "2", None),
    ]


def test_the_first_that_fits_by_priority(conn):
    add(conn, "UPDATE", "third")
    add(conn, "UPDATE", "fourth")
    add(conn, "UPDATE", "second", condition="new.n > 1", priority=-1)
    first = add(conn, "UPDATE", "first", condition="new.n > 2", priority=-10)
    conn.execute("INSERT INTO users (id) VALUES (1)")
    for n in (1, 2, 3):
        conn.execute(f"UPDATE users SET n = {n}")
    conn.execute("SELECT audit.drop_action_rule(%s)", [first])
    conn.execute("UPDATE users SET n = 4")
    assert [action for _, action in actions(conn)] == [None, "third", "second", "first", "second"]


def test_rules_reach_sessions_that_are_there(conn, db):
    with db.connect() as other:
        other.execute("INSERT INTO users (id) VALUES (1)")
        rule = add(conn, "UPDATE", "later")
        other.execute("UPDATE users SET n = 1")
        conn.execute("BEGIN; SELECT audit.add_action_rule('users', 'UPDATE', 'never', priority => -1)")
        other.execute("UPDATE users SET n = 2")
        conn.execute("UPDATE users SET n = 3; ROLLBACK")
        conn.execute("UPDATE users SET n = 4; SELECT audit.drop_action_rule(%d)" % rule)
        other.execute("UPDATE users SET n = 5")
    assert [action for _, action in actions(conn)] == [None, "later", "later", "later", None]


def test_a_table_without_rules(conn):
    conn.execute("CREATE TABLE plain (id int); SELECT audit.enable('plain'); INSERT INTO plain VALUES (1); UPDATE plain SET id = 2")
    assert actions(conn) == [("INSERT", None), ("UPDATE", None)]


def test_partitions_and_children(conn):
    conn.execute("""
        CREATE TABLE p (id int, kind text) PARTITION BY LIST (kind);
        CREATE TABLE p_a (junk int, kind text, id int); ALTER TABLE p_a DROP COLUMN junk;
        ALTER TABLE p ATTACH PARTITION p_a FOR VALUES IN ('a');
        CREATE TABLE parent (id int); CREATE TABLE child (x int) INHERITS (parent);
        SELECT audit.enable('p'); SELECT audit.enable('parent')""")
    add(conn, "INSERT", "p.big", table="p", condition="new.id > 10")
    add(conn, "INSERT", "parent.new", table="parent")
    add(conn, "INSERT", "child.new", table="child", condition="new.x = 1", priority=-1)
    conn.execute("CREATE TABLE p_rest PARTITION OF p DEFAULT; INSERT INTO p VALUES (1, 'a'), (11, 'a'), (12, 'b');"
                 " INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1), (2, 2)")  # fmt: skip
    assert actions(conn, "resource, action") == [
        ("public.p_a", None),
        ("public.p_a", "p.big"),
        ("public.p_rest", "p.big"),
        ("public.parent", "parent.new"),
        ("public.child", "child.new"),
        ("public.child", "parent.new"),
    ]
    check_integrity(conn)


def test_generated_columns(conn):
    conn.execute("CREATE TABLE g (a int, b int GENERATED ALWAYS AS (a * 2) STORED); SELECT audit.enable('g')")
    add(conn, "UPDATE", "doubled", table="g", columns=["b"], condition="new.b > 10")
    conn.execute("INSERT INTO g VALUES (1); UPDATE g SET a = 2; UPDATE g SET a = 6")
    expected = [None, None, "doubled"]
    if conn.info.server_version >= 180000:
        conn.execute("CREATE TABLE v (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL); SELECT audit.enable('v')")
        add(conn, "UPDATE", "doubled", table="v", condition="new.b > 10 AND old.b < 10")
        with sqlstate("22023"):
            add(conn, "UPDATE", "x", table="v", columns=["b"])
        conn.execute("INSERT INTO v VALUES (1); UPDATE v SET a = 2; UPDATE v SET a = 6")
        expected += [None, None, "doubled"]
    assert [action for _, action in actions(conn)] == expected


def test_wide_and_toasted_rows(conn):
    add(conn, "UPDATE", "grown", condition="length(new.name) > length(old.name)")
    conn.execute("INSERT INTO users (id, name) VALUES (1, repeat('x', 100000)); UPDATE users SET n = 1;"
                 " UPDATE users SET name = name || 'y'")  # fmt: skip
    assert [action for _, action in actions(conn)] == [None, None, "grown"]
    check_integrity(conn)


def test_snapshots_and_skipped_updates_have_no_action(conn):
    add(conn, "UPDATE", "x")
    add(conn, "INSERT", "y")
    conn.execute("INSERT INTO users (id) VALUES (1); SELECT audit.enable('users', skip_unchanged => true, snapshot => true);"
                 " UPDATE users SET n = n")  # fmt: skip
    assert actions(conn) == [("INSERT", "y"), ("SNAPSHOT", None)]


def test_with_tenant_column_and_soft_delete(conn):
    conn.execute("SELECT audit.enable('users', soft_delete_column => 'active', tenant_column => 'role')")
    add(conn, "UPDATE", "fine", condition="1 / new.n >= 0")
    conn.execute("INSERT INTO users (id, role, active) VALUES (1, 'acme', false)")
    conn.execute("SET audit.tenant_id = 'globex'; UPDATE users SET active = true, id = 2")
    (rule,) = conn.execute("SELECT id FROM audit.action_rule").fetchone()
    assert actions(conn, "operation, action, details")[1:] == [
        ("UPDATE", None, {"soft_delete": True, "rule_errors": [{"rule": rule, "sqlstate": "22012"}],
                          "row_tenant_id": "acme", "old_resource_id": "1"})]  # fmt: skip
    check_integrity(conn)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_erring_condition_does_not_fail_the_write(conn):
    rules = [
        add(conn, "UPDATE", "never", condition="1 / new.n > 0", priority=1),
        add(conn, "UPDATE", "nor", condition="(new.name)::int > 0", priority=2),
        add(conn, "UPDATE", "nor", condition="repeat(new.name, 2000000000) = ''", priority=3),
        add(conn, "UPDATE", "this", priority=4),
    ]
    conn.execute("INSERT INTO users (id, name) VALUES (1, 'Otto')")
    conn.execute("BEGIN; SAVEPOINT a; UPDATE users SET role = 'x'; SAVEPOINT b; UPDATE users SET role = 'y'; ROLLBACK TO b;"
                 " UPDATE users SET role = 'z'; RELEASE a; COMMIT")  # fmt: skip
    found = actions(conn, "new_row ->> 'role', action, details")[1:]
    errors = [{"rule": rules[0], "sqlstate": "22012"}, {"rule": rules[1], "sqlstate": "22P02"}]
    for (role, action, details), expected in zip(found, ("x", "z"), strict=True):
        assert (role, action) == (expected, "this")
        assert details["rule_errors"][:2] == errors
        assert details["rule_errors"][2]["rule"] == rules[2] and len(details["rule_errors"]) == 3
    counted = conn.execute("SELECT rule, resource, events FROM audit.action_rule_errors()").fetchall()
    assert sorted(counted) == [(rule, "public.users", 2) for rule in rules[:3]]
    assert conn.execute("SELECT * FROM audit.action_rule_errors(clock_timestamp())").fetchall() == []
    replay(conn, "users")
    check_integrity(conn)


def test_errors_in_bulk_and_in_every_context(conn):
    add(conn, "UPDATE", "never", condition="1 / (new.n % 2) > 0")
    add(conn, "UPDATE", "odd", condition="new.n % 2 = 1")
    conn.execute("INSERT INTO users (id, n) SELECT i, i FROM generate_series(1, 20000) i")
    conn.execute("UPDATE users SET n = n + 2")
    assert conn.execute("SELECT action, details IS NULL, count(*) FROM audit.log WHERE operation = 'UPDATE' GROUP BY 1, 2 ORDER BY 1").fetchall() == [
        ("never", True, 10000),
        (None, False, 10000),
    ]
    (size,) = conn.execute("SELECT sum(total_bytes) FROM pg_backend_memory_contexts").fetchone()
    assert size < 50 * 1024 * 1024
    # In triggers, procedures that commit, exception blocks, deferred cascades, prepared transactions.
    conn.execute("""
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE kid (id int, parent int REFERENCES parent ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED);
        SELECT audit.enable('kid'); INSERT INTO parent VALUES (1), (2); INSERT INTO kid VALUES (1, 1), (2, 2)""")
    rule = add(conn, "UPDATE", "orphaned", table="kid", condition="1 / (old.parent - 1) = 1")
    conn.execute("DELETE FROM parent")
    assert conn.execute("SELECT resource_id, new_row ->> 'id', action, details FROM audit.log WHERE resource = 'public.kid'"
                        f" AND operation = 'UPDATE' {ORDER}").fetchall() == [  # fmt: skip
        (None, "1", None, {"rule_errors": [{"rule": rule, "sqlstate": "22012"}]}),
        (None, "2", "orphaned", None),
    ]
    conn.execute("""DO $$ BEGIN FOR i IN 1..3 LOOP
        BEGIN UPDATE users SET n = 3 - i WHERE id = i; RAISE 'x'; EXCEPTION WHEN OTHERS THEN UPDATE users SET n = i WHERE id = i; END;
        COMMIT; END LOOP; END $$""")
    conn.execute("BEGIN; UPDATE users SET n = 2 WHERE id = 5; PREPARE TRANSACTION 'p'")
    conn.execute("COMMIT PREPARED 'p'")
    replay(conn, "users")
    check_integrity(conn)


def test_a_cancel_is_not_caught(conn, db):
    add(conn, "UPDATE", "slow", condition="factorial(new.n) > 0")
    conn.execute("INSERT INTO users (id) VALUES (1)")
    with sqlstate("57014"):
        conn.execute("SET statement_timeout = '100ms'; UPDATE users SET n = 32000")
    assert actions(conn) == [("INSERT", None)]


def test_altered_tables(conn):
    """Columns follow a renaming; a condition that no longer fits says so, and stands in nobody's way."""
    notices = []
    conn.add_notice_handler(lambda notice: notices.append((notice.sqlstate, notice.message_hint is not None)))
    add(conn, "UPDATE", "user.role_changed", columns=["role"], priority=2)
    broken = add(conn, "UPDATE", "gone", condition="new.name = 'x'", priority=1)
    conn.execute("INSERT INTO users (id) VALUES (1)")
    conn.execute("ALTER TABLE users RENAME role TO duty")
    assert notices == []
    conn.execute("UPDATE users SET duty = 'boss'")
    conn.execute("ALTER TABLE users RENAME name TO label")
    assert notices == [("01000", True)]
    conn.execute("UPDATE users SET duty = 'clerk'")
    conn.execute("ALTER TABLE users DROP COLUMN duty; ALTER TABLE users ALTER label TYPE int USING NULL; UPDATE users SET n = 7")
    error = {"rule_errors": [{"rule": broken, "sqlstate": "42703"}]}
    # The third is the SNAPSHOT of what ALTER TYPE rewrote.
    found = actions(conn, "action, details")
    assert found[1:] == [("user.role_changed", None), ("user.role_changed", error), (None, None), (None, error)]
    conn.execute("ALTER TABLE users RENAME label TO name; ALTER TABLE users ALTER name TYPE text; UPDATE users SET name = 'x'")
    assert actions(conn, "action, details")[-1] == ("gone", None)
    conn.execute("DROP TABLE users")
    assert conn.execute("SELECT count(*) FROM audit.action_rule").fetchone() == (0,)


def test_type_changes_under_a_cached_condition(conn, db):
    add(conn, "UPDATE", "many", condition="new.n > 5")
    with db.connect() as other:
        other.execute("INSERT INTO users (id) VALUES (1); UPDATE users SET n = 6")
        conn.execute("ALTER TABLE users ALTER n TYPE bigint")
        other.execute("UPDATE users SET n = 7")
        conn.execute("ALTER TABLE users ALTER n TYPE text")
        other.execute("UPDATE users SET n = '8'")
        conn.execute("ALTER TABLE users ADD COLUMN first int; ALTER TABLE users ALTER n TYPE int USING n::int")
        other.execute("UPDATE users SET n = 9")
    # After each change of the type a SNAPSHOT of the row.
    assert [action for _, action in actions(conn)] == [None, "many", None, "many", None, None, None, "many"]
    check_integrity(conn)


# --- who may, and what ----------------------------------------------------------------------------------------------

REFUSED = [
    ("old.nope > 1", "42703"),
    ("old.n", "42804"),
    ("old.n >", "42601"),
    ("", "42P17"),
    ("true; DROP TABLE users", "42601"),
    ("true, false", "42P17"),
    ("true AS x", "42P17"),
    ("true FROM pg_class", "42P17"),
    ("true WHERE true", "42P17"),
    ("true UNION SELECT true", "42601"),
    ("true LIMIT 1", "42P17"),
    ("true ORDER BY 1", "42P17"),
    ("true) OR (true", "42601"),
    ("EXISTS (SELECT 1)", "0A000"),
    ("old.n > (SELECT 1)", "0A000"),
    ("count(*) > 1", "42803"),
    ("row_number() OVER () = 1", "42P20"),
    ("generate_series(1, 2) = 1", "0A000"),
    ("$1 > 1", "42P02"),
    ("random() > 0.5", "42P17"),
    ("clock_timestamp() > old.seen", "42P17"),
    ("nextval('public.s') > 1", "42P17"),
    ("pg_sleep(1) IS NULL", "42P17"),
    ("set_config('audit.enabled', 'off', false) = 'off'", "42P17"),
    ("pg_read_file('/etc/passwd') = ''", "42P17"),
    ("lo_import('/etc/passwd') = 1", "42P17"),
    ("pg_terminate_backend(1)", "42P17"),
    ("query_to_xml('SELECT 1', true, true, '') IS NULL", "42P17"),
    ("table_to_xml('pg_authid', true, true, '') IS NULL", "42P17"),
    ("xmlelement(name x) IS NULL", "42P17"),
    ("old.xmin <> new.xmin", "42P17"),
    ("old.ctid <> new.ctid", "42P17"),
    ("old IS DISTINCT FROM new", "42P17"),
    ("old.* IS DISTINCT FROM new.*", "42P17"),
    ("evil.f(new.n)", "42P17"),
    ("new.n OPERATOR(evil.=) 1", "42P17"),
    ("new.n::evil.d IS NOT NULL", "42P17"),
    ("ROW(1)::evil.c IS NOT NULL", "42P17"),
    ("to_json(ROW(1)::evil.c)::text = ''", "42P17"),
    ("domain_in('5', 'evil.d'::regtype::oid, -1) IS NOT NULL", "42P17"),
    ("domain_in('5'::cstring, 0, -1) IS NOT NULL", "42P17"),
    ("array_in('{5}', 'evil.d'::regtype::oid, -1) IS NOT NULL", "42P17"),
    ("record_in('(5)', 0, -1) IS NOT NULL", "42P17"),
    ("current_user = 'postgres'", "42P17"),
    ("user = 'postgres'", "42P17"),
    ("n > 1", "42702"),
    ("pg_class.oid > 1", "42P01"),
    ("1 / 0 > 1", "22012"),
    ("new.m = 'no such mood'", "22P02"),
]


@pytest.fixture
def admin(conn, db, role):
    name = role()
    conn.execute(f"SELECT audit.grant_admin('{name}'); CREATE SCHEMA evil AUTHORIZATION {name}; CREATE SEQUENCE s")
    with db.connect(user=name) as admin:
        admin.execute("""
            CREATE FUNCTION evil.f(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN true; END $$;
            CREATE FUNCTION evil.eq(int, int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN true; END $$;
            CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.eq);
            CREATE DOMAIN evil.d AS int CHECK (evil.f(VALUE));
            CREATE TYPE evil.c AS (x int);
            GRANT USAGE ON SCHEMA evil TO PUBLIC;
            CREATE FUNCTION evil.c_json(evil.c) RETURNS json LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN '{}'; END $$;
            CREATE CAST (evil.c AS json) WITH FUNCTION evil.c_json(evil.c)""")
        yield admin


@pytest.mark.parametrize("condition, code", REFUSED)
def test_conditions_refused(conn, admin, condition, code):
    notices = []
    admin.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    with sqlstate(code) as caught:
        add(admin, "UPDATE", "x", condition=condition)
    assert caught.error.diag.message_hint
    assert notices == []
    # Where somebody puts it into the table all the same, it is an error of the rule, and nothing of it runs.
    conn.execute("INSERT INTO audit.action_rule (target, operation, condition, action) VALUES ('users', 'UPDATE', %s, 'x')", [condition])
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    conn.execute("INSERT INTO users (id) VALUES (1); UPDATE users SET n = 1")
    ((_, action, details),) = actions(conn, "operation, action, details")[1:]
    assert action is None and details["rule_errors"][0]["sqlstate"] == code
    assert notices == []


def test_what_a_literal_runs_has_no_rights(conn, admin):
    """PostgreSQL reads a literal as it parses it, and with it the checks of a domain: as nobody, and in vain."""
    notices = []
    for session in (admin, conn):
        session.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    with sqlstate("42P17"):
        add(admin, "UPDATE", "x", condition="'{5}'::evil.d[] IS NOT NULL")
    conn.execute("INSERT INTO audit.action_rule (target, operation, condition, action)"
                 " VALUES ('users', 'UPDATE', $$'{5}'::evil.d[] IS NOT NULL$$, 'x')")  # fmt: skip
    conn.execute("INSERT INTO users (id) VALUES (1); UPDATE users SET n = 1")
    assert set(notices) == {"evil as pg_checkpoint"}
    assert [action for _, action in actions(conn)] == [None, None]


def test_names_resolve_in_pg_catalog(conn, admin):
    """An administrator's search_path, or a writer's, does not choose what an operator means."""
    admin.execute("SET search_path = evil, pg_catalog, public")
    add(admin, "UPDATE", "is.one", condition="new.n = 1")
    notices = []
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    conn.execute("SET search_path = evil, pg_catalog, public; INSERT INTO users (id) VALUES (1);"
                 " UPDATE users SET n = n OPERATOR(pg_catalog.+) 1; UPDATE users SET n = n OPERATOR(pg_catalog.+) 1")  # fmt: skip
    assert notices == []
    assert [action for _, action in actions(conn)] == [None, "is.one", None]


def test_options_refused(conn):
    for arguments, code in (
        ("'users', 'MERGE', 'x'", "22023"),
        ("'users', 'update', 'x'", "22023"),
        ("'users', 'SNAPSHOT', 'x'", "22023"),
        ("'users', 'INSERT', 'x', '{role}'", "22023"),
        ("'users', 'UPDATE', 'x', '{nope}'", "42703"),
        ("'users', 'UPDATE', 'x', '{NULL}'", "22004"),
        ("'users', 'TRUNCATE', 'x', condition => 'true'", "22023"),
        ("'users', 'INSERT', 'x', condition => 'old.n = 1'", "42P17"),
        ("'users', 'DELETE', 'x', condition => 'new.n = 1'", "42P17"),
        ("'users', 'UPDATE', ''", "22023"),
        ("'users', 'UPDATE', 'audit.read'", "42939"),
        ("NULL, 'UPDATE', 'x'", "22004"),
        ("'users', NULL, 'x'", "22004"),
        ("'users', 'UPDATE', NULL", "22004"),
        ("'users', 'UPDATE', 'x', priority => NULL", "22004"),
        ("'pg_class', 'UPDATE', 'x'", "42809"),
        ("'audit.event', 'INSERT', 'x'", "42809"),
        ("'audit.log', 'INSERT', 'x'", "42809"),
        ("'no_such_table', 'UPDATE', 'x'", "42P01"),
    ):
        with sqlstate(code):
            conn.execute(f"SELECT audit.add_action_rule({arguments})")
    with sqlstate("42704"):
        conn.execute("SELECT audit.drop_action_rule(4711)")
    with sqlstate("22004"):
        conn.execute("SELECT audit.drop_action_rule(NULL)")
    conn.execute("SET audit.strict_actions = on")
    with sqlstate("22023"):
        add(conn, "UPDATE", "no.such.action")
    add(conn, "UPDATE", "user.updated")
    assert conn.execute("SELECT action FROM audit.action_rule").fetchall() == [("user.updated",)]


def test_administrators_alone(conn, db, admin, role):
    name = role()
    conn.execute(f"ALTER TABLE users OWNER TO {name}")
    with db.connect(user=name) as owner:
        for call in ("add_action_rule('users', 'UPDATE', 'x')", "drop_action_rule(1)", "action_rule_errors()"):
            with sqlstate("42501"):
                owner.execute(f"SELECT audit.{call}")
        for statement in ("TABLE audit.action_rule", "INSERT INTO audit.action_rule DEFAULT VALUES"):
            with sqlstate("42501"):
                owner.execute(statement)
        rule = add(admin, "UPDATE", "by.admin", condition="new.n > 0")
        assert admin.execute("SELECT id, created_by FROM audit.action_rule").fetchall() == [(rule, admin.info.user)]
        for statement in ("UPDATE audit.action_rule SET condition = 'true'", "DELETE FROM audit.action_rule"):
            with sqlstate("42501"):
                admin.execute(statement)
        # Evaluated for a writer who has no right on anything of the audit schema.
        owner.execute("INSERT INTO users (id) VALUES (1); UPDATE users SET n = 1")
        admin.execute("SELECT audit.drop_action_rule(%s)", [rule])
        owner.execute("UPDATE users SET n = 2")
    assert [action for _, action in actions(conn)] == [None, "by.admin", None]


def test_evaluated_without_rights(conn, db, role):
    """Whoever writes, a condition has no right but everybody's; what it may read of the session is whose it is."""
    name = role()
    conn.execute(f"GRANT ALL ON users TO {name}; CREATE SCHEMA own; CREATE TABLE own.t (); CREATE TYPE own.kind AS ENUM ('x');"
                 " ALTER TABLE users ADD COLUMN k own.kind")  # fmt: skip
    add(conn, "UPDATE", "has.rights", condition="has_schema_privilege('own', 'USAGE') OR pg_has_role('pg_monitor', 'USAGE')")
    add(conn, "UPDATE", "by.superuser", condition="session_user = 'postgres' AND new.k = 'x'")
    add(conn, "UPDATE", "by.user", condition=f"session_user = '{name}'")
    with sqlstate("42501"):
        add(conn, "UPDATE", "x", condition="new.k = 'x'::own.kind")
    conn.execute("INSERT INTO users (id) VALUES (1); UPDATE users SET k = 'x'")
    assert conn.execute("SELECT current_user, session_user").fetchone() == ("postgres", "postgres")
    with db.connect(user=name) as user:
        user.execute("UPDATE users SET n = 2")
        add(conn, "UPDATE", "never", condition="1 / (new.n - new.n) = 1", priority=-1)
        user.execute("BEGIN; UPDATE users SET n = 3; CREATE TEMP TABLE made (); COMMIT")
        assert user.execute("SELECT current_user").fetchone() == (name,)
    assert [action for _, action in actions(conn)] == [None, "by.superuser", "by.user", "by.user"]


def test_a_dump_carries_the_rules(conn, db, new_db):
    add(conn, "UPDATE", "first", columns=["role"], condition="new.n > 0", priority=5)
    last = add(conn, "INSERT", "second")
    other = new_db(extension=False)
    dump = subprocess.run([db.cluster.bin("pg_dump"), "-d", db.name], env=db.cluster.env, capture_output=True, text=True, check=True).stdout
    other.psql(dump)
    with other.connect() as restored:
        rows = "SELECT id, target::text, priority, operation, columns, condition, action, created_by FROM audit.action_rule ORDER BY id"
        assert restored.execute(rows).fetchall() == conn.execute(rows).fetchall()
        assert add(restored, "UPDATE", "third") == last + 1
        restored.execute("INSERT INTO users (id) VALUES (1); UPDATE users SET n = 1, role = 'x'")
        assert [action for _, action in actions(restored)] == ["second", "third"]


def test_rules_change_under_load(conn, db):
    """Writers go on while rules come and go; each event has one of the actions that there were."""
    conn.execute("INSERT INTO users (id) SELECT generate_series(1, 8)")
    stop = threading.Event()
    failures = []

    def write(number):
        try:
            with db.connect() as session:
                while not stop.is_set():
                    session.execute("UPDATE users SET n = n + 1 WHERE id = %s", [number])
        except psycopg.Error as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=[number]) for number in range(1, 4)]
    for writer in writers:
        writer.start()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        rule = add(conn, "UPDATE", "even", condition="new.n % 2 = 0", priority=-1)
        conn.execute("SELECT audit.drop_action_rule(%s)", [rule])
    stop.set()
    for writer in writers:
        writer.join()
    assert failures == []
    assert {action for operation, action in actions(conn) if operation == "UPDATE"} <= {"even", None}
    check_integrity(conn, ask_extension=False)
