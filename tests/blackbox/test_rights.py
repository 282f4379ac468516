"""Rights: who has them on the table alone can write it and gets his event, and can neither read nor write the log."""

import pytest
from auditlib import check_integrity, replay, sqlstate

INSUFFICIENT_PRIVILEGE = "42501"


@pytest.fixture
def conn(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, n int); SELECT audit.enable('t')")
    return conn


@pytest.fixture
def user(conn, db, role):
    name = role()
    conn.execute(f"GRANT INSERT, UPDATE, DELETE, TRUNCATE, SELECT ON t TO {name}")
    return db.connect(user=name)


def test_rights_on_the_table_suffice(conn, user):
    user.execute(
        "INSERT INTO t VALUES (1, 0), (2, 0); UPDATE t SET n = 1; DELETE FROM t WHERE id = 1; TRUNCATE t; BEGIN; INSERT"
        " INTO t VALUES (3, 0); SAVEPOINT s;UPDATE t SET n = 5; COMMIT"
    )
    rows = conn.execute(
        "SELECT operation::text, session_role, effective_role FROM audit.log ORDER BY era, position, command, seq"
    ).fetchall()
    name = user.info.user
    assert rows == [
        (operation, name, name)
        for operation in ("INSERT", "INSERT", "UPDATE", "UPDATE", "DELETE", "TRUNCATE", "INSERT", "UPDATE")
    ]
    replay(conn, "t")
    check_integrity(conn)


def test_insert_alone_suffices(conn, db, role):
    """The image needs no right to read the table; row security hides nothing from it."""
    name = role()
    conn.execute(f"""GRANT INSERT (id, n) ON t TO {name}; GRANT UPDATE (n) ON t TO {name};
                     ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
                     CREATE POLICY p ON t TO {name} USING (true) WITH CHECK (true)""")
    with db.connect(user=name) as session:
        session.execute("INSERT INTO t VALUES (1, 2); UPDATE t SET n = 3")
        with sqlstate(INSUFFICIENT_PRIVILEGE):
            session.execute("SELECT * FROM t")
    assert conn.execute("SELECT new_row FROM audit.log ORDER BY era, position").fetchall() == [
        ({"id": 1, "n": 2},),
        ({"id": 1, "n": 3},),
    ]


def test_hidden_by_row_security(conn, db, role):
    name = role()
    conn.execute(
        f"GRANT INSERT, SELECT ON t TO {name}; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY i ON t FOR INSERT"
        f" TO {name} WITH CHECK (true);CREATE POLICY s ON t FOR SELECT TO {name} USING (false)"
    )
    with db.connect(user=name) as session:
        session.execute("INSERT INTO t VALUES (1, 2)")
        assert session.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert conn.execute("SELECT new_row FROM audit.log").fetchall() == [({"id": 1, "n": 2},)]


def test_log_can_neither_be_read_nor_written(conn, user):
    user.execute("INSERT INTO t VALUES (1, 0)")
    relations = dict(
        conn.execute(
            "SELECT oid::regclass::text, relkind = 'v' FROM pg_class WHERE relnamespace = 'audit'::regnamespace AND relkind"
            " IN ('r', 'p', 'v')"
        ).fetchall()
    )
    assert {
        "audit.event",
        "audit.event_default",
        "audit.changeset",
        "audit.changeset_default",
        "audit.relation",
        "audit.policy",
        "audit.log",
    } <= set(relations)
    for relation, is_view in relations.items():
        for statement in (
            "TABLE {}",
            "SELECT count(*) FROM {}",
            "INSERT INTO {} OVERRIDING SYSTEM VALUE SELECT * FROM {}",
            "INSERT INTO {} DEFAULT VALUES",
            "DELETE FROM {}",
            "COPY {} TO STDOUT",
            "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
            "ALTER TABLE {} RENAME TO mine",
            "DROP %s {} CASCADE" % ("VIEW" if is_view else "TABLE"),
            "CREATE TRIGGER x BEFORE INSERT ON {} EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
            "CREATE RULE x AS ON INSERT TO {} DO INSTEAD NOTHING",
        ):
            if is_view and statement.startswith(("INSERT", "DELETE", "COPY")):
                continue  # for nobody
            with sqlstate(INSUFFICIENT_PRIVILEGE):
                user.execute("BEGIN; " + statement.replace("{}", relation))
            user.rollback()
        assert conn.execute(
            "SELECT has_any_column_privilege(%s, %s, 'SELECT, INSERT, UPDATE, REFERENCES')", [user.info.user, relation]
        ).fetchone() == (False,)
    for sequence in conn.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'audit'::regnamespace AND relkind = 'S'"
    ).fetchall():
        with sqlstate(INSUFFICIENT_PRIVILEGE):
            user.execute("SELECT nextval(%s)", sequence)
    with sqlstate(INSUFFICIENT_PRIVILEGE):
        user.execute("CREATE TABLE audit.mine ()")
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone() == (1,)


@pytest.mark.parametrize(
    "call",
    [
        "audit.enable('t')",
        "audit.enable('mine')",
        "audit.disable('t')",
        "audit.enable_schema('public')",
        "audit.disable_schema('public')",
        "audit.grant_admin(current_user::regrole)",
        "audit.grant_reader(current_user::regrole)",
        "audit.canonical('00000000-0000-7000-8000-000000000000', 0)",
        "audit.canonical('00000000-0000-7000-8000-000000000000')",
        "audit.verify_event('00000000-0000-7000-8000-000000000000', 0)",
        "audit.uncatalogued_actions()",
        "audit.grant_tenant_reader(current_user::regrole, 'acme')",
        "audit.add_action_rule('t', 'UPDATE', 'x')",
        "audit.drop_action_rule(1)",
        "audit.action_rule_errors()",
        "audit.bound_tenants()",
        "audit.note_read('get_logs', NULL)",
    ],
)
def test_functions_of_administrators_and_readers(conn, user, call):
    conn.execute(f"GRANT CREATE ON SCHEMA public TO {user.info.user}")
    user.execute("CREATE TABLE mine (id int)")
    with sqlstate(INSUFFICIENT_PRIVILEGE):
        user.execute(f"SELECT {call}")
    # The owner of a table is no administrator of its audit.
    conn.execute(f"ALTER TABLE t OWNER TO {user.info.user}")
    with sqlstate(INSUFFICIENT_PRIVILEGE):
        user.execute(f"SELECT {call}")
    assert conn.execute("SELECT array_agg(target::text) FROM audit.policy").fetchone() == (["t"],)


def test_functions_for_everybody_are_a_reviewed_list(conn, user):
    granted = conn.execute(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'audit'::regnamespace AND"
        " has_function_privilege(%s, oid, 'EXECUTE') ORDER BY 1",
        [user.info.user],
    ).fetchall()
    names = {row[0].split("(")[0] for row in granted}
    needed = {"audit.set_context", "audit.set_context_token", "audit.clear_context", "audit.client_ip"}
    needed |= {"audit.log_event", "audit.log_login", "audit.log_login_failed", "audit.log_logout"}
    # The trigger function checks how it is called; partitions made by ordinary users take it over from their parent.
    assert needed <= names <= needed | {"audit.merkle_root", "audit.capture"}, names


def test_context_is_for_everybody(conn, user):
    user.execute(
        "BEGIN; SELECT audit.set_context(user_id => 'ann', ip_address => audit.client_ip('198.51.100.1', NULL,"
        " '192.0.2.1', '{192.0.2.1}')); INSERT INTO t VALUES (1, 0);SELECT audit.clear_context(); INSERT INTO t VALUES"
        " (2, 0); COMMIT"
    )
    assert conn.execute("SELECT user_id, host(ip_address) FROM audit.log ORDER BY seq").fetchall() == [
        ("ann", "198.51.100.1"),
        (None, None),
    ]


def test_names_of_the_users_own_do_not_reach_the_writer(conn, db, user):
    """Functions, operators, tables with the writer's names, first in the search path: none is called or written."""
    name = user.info.user
    conn.execute(f"CREATE SCHEMA evil AUTHORIZATION {name}")
    user.execute("""
        CREATE FUNCTION evil.trap(text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap %', $1; END $$;
        CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$
            SELECT evil.trap('now'); SELECT clock_timestamp() $$;
        CREATE FUNCTION evil.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT evil.trap('sha256'); SELECT $1 $$;
        CREATE FUNCTION evil.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS $$
            SELECT evil.trap('to_jsonb'); SELECT NULL::jsonb $$;
        CREATE FUNCTION evil.int4_eq(int, int) RETURNS bool LANGUAGE sql AS $$ SELECT evil.trap('='); SELECT true $$;
        CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.int4_eq);
        CREATE FUNCTION evil.text_eq(text, text) RETURNS bool LANGUAGE sql AS $$ SELECT evil.trap('='); SELECT true $$;
        CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.text_eq);
        CREATE TABLE evil.event (LIKE t); CREATE TABLE evil.changeset (LIKE t);
        CREATE TABLE evil.policy (LIKE t); CREATE TABLE evil.relation (LIKE t);
        CREATE TEMP TABLE event (id int); CREATE TEMP TABLE changeset (id int);
        CREATE TEMP TABLE policy (id int); CREATE TEMP TABLE relation (id int);
        CREATE TYPE evil.operation AS ENUM ('INSERT'); CREATE DOMAIN evil.jsonb AS int; CREATE DOMAIN evil.uuid AS int;
        SET search_path = evil, pg_temp, pg_catalog, public;
        BEGIN; SELECT audit.set_context(user_id => 'ann'); INSERT INTO public.t VALUES (1, 0), (2, 0);
        UPDATE public.t SET n = 1 WHERE n IS NOT NULL; DELETE FROM public.t; TRUNCATE public.t;
        SELECT audit.clear_context(); COMMIT""")
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone() == (7,)
    check_integrity(conn)


def test_superusers_own_calls_do_not_resolve_to_a_users_names(conn, db, user):
    """A superuser with a user's schema first in his path enables, reads, disables, and runs none of the user's code."""
    name = user.info.user
    conn.execute(f"CREATE SCHEMA evil AUTHORIZATION {name}")
    user.execute("""
        CREATE FUNCTION evil.eq(anyelement, anyelement) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
        CREATE OPERATOR evil.= (LEFTARG = anyelement, RIGHTARG = anyelement, FUNCTION = evil.eq);
        CREATE FUNCTION evil.teq(text, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
        CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.teq);
        CREATE FUNCTION evil.oideq(oid, oid) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
        CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.oideq);
        CREATE FUNCTION evil.cat(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
        CREATE OPERATOR evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.cat);
        CREATE FUNCTION evil.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
        CREATE FUNCTION evil.count(anyelement) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$""")
    conn.execute("SET search_path = evil, pg_catalog, public")
    conn.execute("SELECT audit.enable('public.t', skip_unchanged => true, snapshot => true)")
    conn.execute("CREATE TABLE public.later (id int PRIMARY KEY)")
    conn.execute("SELECT audit.enable_schema('public')")
    conn.execute(
        "CREATE TABLE public.future (id int PRIMARY KEY); DROP TABLE public.later; INSERT INTO public.t VALUES (1, 1)"
    )
    conn.execute(
        "SELECT audit.canonical(changeset_id, seq), audit.canonical(changeset_id), audit.verify_event(changeset_id,"
        " seq), changed_columns, old_row FROM audit.log"
    )
    conn.execute(f"SELECT audit.grant_reader('{name}')")
    conn.execute("SELECT audit.disable_schema('public')")


def test_reader(conn, db, role, user):
    name = role()
    conn.execute(f"SELECT audit.grant_reader('{name}')")
    user.execute("SET audit.user_id = 'ann'; INSERT INTO t VALUES (1, 0)")
    with db.connect(user=name) as reader:
        assert reader.execute("SELECT resource, user_id, new_row FROM audit.log").fetchall() == [
            ("public.t", "ann", {"id": 1, "n": 0})
        ]
        assert reader.execute(
            "SELECT audit.verify_event(changeset_id, seq), audit.canonical(changeset_id, seq) LIKE '%\"public\"%',"
            " audit.canonical(changeset_id) LIKE '%\"ann\"%' FROM audit.log"
        ).fetchone() == (True, True, True)
        check = [
            "INSERT INTO audit.event SELECT * FROM audit.event",
            "DELETE FROM audit.event",
            "UPDATE audit.changeset SET user_id = 'x'",
            "TRUNCATE audit.event",
            "SELECT audit.enable('t')",
            "SELECT audit.disable('t')",
            "SELECT audit.grant_reader(current_user::regrole)",
            "DELETE FROM audit.policy",
            "SELECT * FROM t",
        ]
        for statement in check:
            with sqlstate(INSUFFICIENT_PRIVILEGE):
                reader.execute(statement)


def test_admin(conn, db, role, user):
    """An audit administrator enables and disables, on others' tables too, and cannot touch what is recorded."""
    name = role()
    conn.execute(
        f"SELECT audit.grant_admin('{name}'); CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)"
    )
    with db.connect(user=name) as admin:
        admin.execute(
            "SELECT audit.enable('other', snapshot => true); SELECT audit.enable('t', skip_unchanged => true); SELECT"
            " audit.disable('other')"
        )
        assert admin.execute("SELECT target::text, skip_unchanged FROM audit.policy").fetchall() == [("t", True)]
        assert admin.execute("SELECT audit.enable_schema('public')").fetchone()[0] >= 1
        conn.execute("CREATE TABLE future (id int PRIMARY KEY)")
        assert admin.execute("SELECT audit.disable_schema('public')").fetchone()[0] == 3
        assert conn.execute("SELECT enabled_by FROM audit.policy").fetchall() == []
        admin.execute("SELECT audit.enable('t')")
        assert conn.execute("SELECT enabled_by FROM audit.policy").fetchone() == (name,)
        for statement in (
            "INSERT INTO audit.event SELECT * FROM audit.event",
            "DELETE FROM audit.event",
            "UPDATE audit.changeset SET user_id = 'x'",
            "TRUNCATE audit.event",
            "SELECT * FROM t",
            "DELETE FROM audit.policy",
            "UPDATE audit.policy SET skip_unchanged = false",
            "SET audit.enabled = off",
        ):
            with sqlstate(INSUFFICIENT_PRIVILEGE, "55000"):
                admin.execute(statement)
        # A right to administer is not a right to hand it on, nor on the system's or the log's tables.
        with sqlstate(INSUFFICIENT_PRIVILEGE):
            admin.execute(f"SELECT audit.grant_admin('{user.info.user}')")
        with sqlstate("42809"):
            admin.execute("SELECT audit.enable('audit.policy')")


def test_future_tables_of_a_user_in_an_enabled_schema(conn, db, role):
    """The event trigger works with rights of its own: a user without any on the audit schema creates audited tables."""
    name = role()
    conn.execute(f"CREATE SCHEMA app AUTHORIZATION {name}; SELECT audit.enable_schema('app')")
    with db.connect(user=name) as owner:
        owner.execute(
            "CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1); CREATE TABLE app.p (id int)"
            " PARTITION BY LIST (id); CREATE TABLE app.p1 PARTITION OF app.p FOR VALUES IN (1);INSERT INTO app.p VALUES"
            " (1); ALTER TABLE app.t ADD COLUMN c int; UPDATE app.t SET c = 1; DROP TABLE app.p"
        )
    assert [
        row[0]
        for row in conn.execute(
            "SELECT operation::text FROM audit.log WHERE operation <> 'DDL' ORDER BY era, position, seq"
        ).fetchall()
    ] == ["INSERT", "INSERT", "UPDATE"]
    check_integrity(conn)


def test_owner_cannot_use_the_trigger_function_elsewhere(conn, db, role):
    name = role()
    conn.execute(f"CREATE SCHEMA app AUTHORIZATION {name}")
    with db.connect(user=name) as owner:
        owner.execute("CREATE TABLE app.t (id int)")
        with sqlstate(INSUFFICIENT_PRIVILEGE, "55000"):
            owner.execute(
                "CREATE TRIGGER x AFTER INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION audit.capture(); INSERT INTO"
                " app.t VALUES (1)"
            )
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone() == (0,)
