"""A tenant's reader sees the events of his tenant, and by no means anything of another's.

The log holds events of two tenants, acme and globex, and of none. Whatever belongs to acme begins with "acme", whatever is
globex's with "globex", and the reader bound to acme tries to make the second come out anywhere: in a result, in a notice of
a function of his, in an error, in the numbers of a plan.
"""

import itertools
import json
import subprocess

import psycopg
import pytest
from auditlib import sqlstate

DENIED = "42501"


def fill(conn, rounds=25):
    conn.execute("""
        CREATE TABLE doc (id text PRIMARY KEY, body text, n int);
        SELECT audit.enable('doc')""")
    for tenant in ("acme", "globex", None):
        name = tenant or "nobody"
        conn.execute("SELECT audit.set_context(user_id => %s, tenant_id => %s, request_id => %s, session_id => %s,"
                     " user_agent => %s, reason => %s, ip_address => %s, context => %s, is_local => false)",
                     [f"{name}-user", tenant or "", f"{name}-request", f"{name}-session", f"{name}-agent", f"{name}-reason",
                      {"acme": "10.1.0.1", "globex": "10.2.0.1"}.get(tenant, "10.3.0.1"),
                      json.dumps({"key": f"{name}-context"})])  # fmt: skip
        for i in range(rounds):
            conn.execute("INSERT INTO doc VALUES (%s, %s, %s)", [f"{name}-{i}", f"{name}-body-{i}", i])
        conn.execute("UPDATE doc SET body = body || '!' WHERE id LIKE %s", [f"{name}-1%"])
        conn.execute("DELETE FROM doc WHERE id LIKE %s", [f"{name}-2%"])
        conn.execute("SELECT audit.log_event(%s, %s, %s, %s)",
                     [f"{name}-action", f"{name}-resource", f"{name}-event", json.dumps({"k": f"{name}-details"})])  # fmt: skip
    conn.execute("SELECT audit.clear_context()")
    conn.execute("VACUUM ANALYZE audit.event, audit.changeset, audit.relation")


@pytest.fixture
def conn(conn):
    fill(conn)
    return conn


class Readers:
    """Roles of one test: reader of everything, readers of acme and globex."""

    def __init__(self, conn, db, role):
        self.conn, self.db, self.role = conn, db, role
        self.acme, self.globex, self.all = role(), role(), role()
        conn.execute(
            f"SELECT audit.grant_tenant_reader('{self.acme}', 'acme'), audit.grant_tenant_reader('{self.globex}', 'globex'),"
            f" audit.grant_reader('{self.all}'); GRANT TEMP ON DATABASE {db.name} TO PUBLIC"
        )

    def connect(self, name, **kw):
        return self.db.connect(user=name, **kw)


@pytest.fixture
def readers(conn, db, role):
    return Readers(conn, db, role)


@pytest.fixture
def acme(readers):
    return readers.connect(readers.acme)


def seen(session, sql="SELECT to_jsonb(l)::text FROM audit.log l", params=None):
    """All that a query returns, as one text."""
    return "\n".join(str(value) for row in session.execute(sql, params).fetchall() for value in row)


def of_acme_alone(text):
    return "acme" in text and "globex" not in text and "nobody" not in text


# --- what is seen ---------------------------------------------------------------------------------------------------


def test_each_sees_his_own(conn, readers):
    total = dict(conn.execute("SELECT tenant_id, count(*) FROM audit.log GROUP BY 1").fetchall())
    assert len(total) == 3 and total["acme"] > 40
    query = "SELECT tenant_id, count(*) FROM audit.log GROUP BY 1"
    assert dict(readers.connect(readers.acme).execute(query).fetchall()) == {"acme": total["acme"]}
    assert dict(readers.connect(readers.globex).execute(query).fetchall()) == {"globex": total["globex"]}
    assert dict(readers.connect(readers.all).execute(query).fetchall()) == total


def test_whole_rows_are_the_same_as_a_readers(conn, readers, acme):
    query = "SELECT * FROM audit.log WHERE tenant_id = 'acme' ORDER BY era, position NULLS LAST, command, seq"
    everything = conn.execute(query).fetchall()
    assert acme.execute(query).fetchall() == everything
    assert readers.connect(readers.all).execute(query).fetchall() == everything


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT to_jsonb(l)::text FROM audit.log l",
        "SELECT DISTINCT user_id, resource_id, new_row::text FROM audit.log",
        "SELECT string_agg(to_jsonb(l)::text, ' ') FROM audit.log l",
        "SELECT to_jsonb(a)::text FROM audit.log a JOIN audit.log b USING (changeset_id)",
        "SELECT to_jsonb(b)::text FROM audit.log a LEFT JOIN audit.log b ON true WHERE a.action = 'acme-action'",
        "SELECT (SELECT string_agg(user_id, ' ') FROM audit.log)",
        "SELECT to_jsonb(l)::text FROM (TABLE audit.log) l WHERE tenant_id <> 'x' OR tenant_id IS NULL OR true",
        "SELECT x FROM audit.log l, LATERAL (SELECT l.details::text || coalesce(l.user_id, '') AS x OFFSET 0) y"
        " WHERE x IS NOT NULL",
        "WITH w AS MATERIALIZED (TABLE audit.log) SELECT to_jsonb(w)::text FROM w",
        "SELECT max(user_id), min(user_id), max(resource_id) FROM audit.log",
        "SELECT percentile_disc(1) WITHIN GROUP (ORDER BY user_id) FROM audit.log",
        "SELECT last_value(user_id) OVER (ORDER BY user_id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"
        " FROM audit.log",
        "TABLE audit.log EXCEPT TABLE audit.log UNION ALL TABLE audit.log",
    ],
)  # fmt: skip
def test_queries_of_all_kinds(acme, sql):
    assert of_acme_alone(seen(acme, sql))


def test_copy_and_do(acme):
    with acme.cursor().copy("COPY (SELECT to_jsonb(l)::text FROM audit.log l) TO STDOUT") as copy:
        assert of_acme_alone(b"".join(copy).decode())
    notices = []
    acme.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    acme.execute("DO $$ DECLARE r record; BEGIN FOR r IN EXECUTE 'SELECT * FROM audit.log' LOOP"
                 " RAISE NOTICE '%', r; END LOOP; END $$")  # fmt: skip
    assert of_acme_alone("\n".join(notices))


def test_nothing_but_the_view(conn, acme):
    relations = conn.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'audit'::regnamespace AND relkind IN ('r', 'p', 'v')"
    ).fetchall()
    readable = set()
    for (relation,) in relations:
        try:
            acme.execute(f"SELECT * FROM {relation} LIMIT 0")
            readable.add(relation)
        except psycopg.errors.InsufficientPrivilege:
            pass
    assert readable == {"audit.log", "audit.log_by_changeset", "audit.visible_changeset", "audit.relation", "audit.local_layout", "audit.ledger", "audit.action"}
    some = "'00000000-0000-7000-8000-000000000000'"
    for call in (f"canonical({some})", f"canonical({some}, 0)", f"verify_event({some}, 0)", "merkle_root('{}')",
                 f"undo({some})", "next_events(NULL, NULL, NULL, NULL)", "next_changesets(NULL, NULL, NULL, NULL, 1)",
                 "enable('doc')", "disable('doc')", "grant_tenant_reader(current_user::regrole, 'globex')",
                 "grant_reader(current_user::regrole)", "grant_admin(current_user::regrole)"):  # fmt: skip
        with sqlstate(DENIED):
            acme.execute(f"SELECT audit.{call}")
    for statement in (
        "INSERT INTO audit.tenant_reader VALUES (current_user::regrole, 'globex')",
        "UPDATE audit.tenant_reader SET tenant_id = 'globex'",
        "DELETE FROM audit.tenant_reader",
        "INSERT INTO audit.log SELECT * FROM audit.log",
        "CREATE OR REPLACE FUNCTION audit.bound_tenants() RETURNS text[] LANGUAGE sql AS $$ SELECT '{globex}'::text[] $$",
        "ALTER VIEW audit.row_events SET (security_barrier = false)",
    ):
        with sqlstate(DENIED, "55000"):
            acme.execute(statement)
    assert seen(acme, "SELECT * FROM pg_stats WHERE schemaname = 'audit' AND tablename NOT IN ('relation', 'local_layout', 'ledger', 'action')") == ""


# --- leaky functions and operators --------------------------------------------------------------------------------

LEAKS = """
    CREATE FUNCTION pg_temp.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
        $$ BEGIN RAISE NOTICE 'leak %', $1; RETURN true; END $$;
    CREATE FUNCTION pg_temp.leak2(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 IMMUTABLE AS
        $$ BEGIN RAISE NOTICE 'leak % %', $1, $2; RETURN true; END $$;
    CREATE FUNCTION pg_temp.leak_inet(inet, inet) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 IMMUTABLE AS
        $$ BEGIN RAISE NOTICE 'leak % %', $1, $2; RETURN true; END $$;
    CREATE OPERATOR pg_temp.<<< (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.leak2, RESTRICT = scalarltsel,
                                 JOIN = scalarltjoinsel, COMMUTATOR = OPERATOR(pg_temp.>>>));
    CREATE OPERATOR pg_temp.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.leak2, RESTRICT = eqsel, JOIN = eqjoinsel);
    CREATE OPERATOR pg_temp.=== (LEFTARG = inet, RIGHTARG = inet, FUNCTION = pg_temp.leak_inet, RESTRICT = eqsel);
    CREATE OPERATOR pg_temp.~~~ (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.leak2, RESTRICT = matchingsel)"""

PREDICATES = [
    *(f"pg_temp.leak(l.{column})" for column in
      "user_id tenant_id action resource resource_id old_row new_row changed_columns details ip_address request_id session_id"
      " reason context changeset_id checksum occurred_at position xid".split()),
    *(f"l.{column} OPERATOR(pg_temp.{operator}) 'globex-1'" for column in "user_id tenant_id resource_id action request_id".split()
      for operator in ("<<<", "===", "~~~")),
    "l.ip_address OPERATOR(pg_temp.===) '10.2.0.1'",
    "pg_temp.leak(l)",
    "(l.new_row ->> 'body') OPERATOR(pg_temp.<<<) 'x'",
]  # fmt: skip

PLANNERS = [
    "SET jit = off",
    "SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off",
    "SET enable_nestloop = off; SET enable_hashjoin = off; SET jit = off",
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off",
    "SET from_collapse_limit = 1; SET join_collapse_limit = 1; SET jit = off",
]  # fmt: skip


@pytest.mark.parametrize("planner", PLANNERS)
def test_leaky_predicates(acme, planner):
    notices = []
    acme.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    acme.execute(LEAKS + ";" + planner)
    for predicate in PREDICATES:
        for query in (
            "SELECT count(*) FROM audit.log l WHERE {}",
            "EXPLAIN SELECT * FROM audit.log l WHERE {}",
            "SELECT count(*) FROM audit.log l WHERE {} AND l.occurred_at > now() - interval '1 day' AND l.resource = 'public.doc'",
            "SELECT count(*) FROM pg_am a LEFT JOIN audit.log l ON {}",
            "SELECT count(*) FILTER (WHERE {}) FROM audit.log l",
        ):
            acme.execute(query.format(predicate))
    joined = "\n".join(notices)
    # The second argument of an operator is what the attacker wrote himself, and a value of his own.
    for line in joined.replace("globex-1", "mine").replace("10.2.0.1", "mine").split("\n"):
        assert "globex" not in line and "nobody" not in line and "10.2." not in line and "10.3." not in line, line
    assert "acme" in joined  # they were called, for what he may see


def test_leaks_through_errors(acme):
    """What raises shows in its message only what is his."""
    casts = ["(l.user_id)::int", "(l.new_row ->> 'body')::int", "(l.resource_id)::uuid", "(l.details ->> 'k')::date",
             "(l.context ->> 'key')::numeric", "(l.request_id)::inet", "1 / (l.new_row ->> 'n')::int"]  # fmt: skip
    for cast in casts:
        for query in (
            "SELECT {} FROM audit.log l",
            "SELECT count(*) FROM audit.log l WHERE {} IS NOT NULL",
            "SELECT count(*) FROM audit.log l WHERE l.tenant_id = 'globex' AND {} IS NOT NULL",
            "SELECT count(*) FROM audit.log l WHERE l.resource_id LIKE 'globex%' AND {} IS NOT NULL",
            "SELECT count(*) FROM pg_am a JOIN audit.log l ON {} IS NOT NULL",
        ):
            try:
                acme.execute(query.format(cast))
            except psycopg.Error as error:
                assert error.sqlstate in ("22P02", "22007", "22012"), error
                text = " ".join(filter(None, (str(error), error.diag.message_detail, error.diag.context)))
                assert "globex" not in text.replace("'globex", "") and "nobody" not in text, text
    # What belongs to others is not even tried: there is nothing to raise.
    acme.execute("SELECT count(*) FROM audit.log l WHERE l.tenant_id = 'globex' AND (l.user_id)::int IS NOT NULL")


def numbers(session, sql):
    """All that a plan tells of numbers of rows, pages, and estimates."""
    session.execute(sql)  # warm
    (plan,), = session.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF, FORMAT JSON) {sql}").fetchall()

    def walk(node):
        kept = {k: v for k, v in node.items()
                if isinstance(v, (int, float, bool)) and not k.endswith("Time") and not k.startswith(("Shared", "Local", "Temp"))}  # fmt: skip
        kept["pages"] = node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
        return [node["Node Type"], kept, [walk(child) for child in node.get("Plans", [])]]

    return walk(plan[0]["Plan"])


@pytest.mark.parametrize("planner", PLANNERS)
def test_plans_tell_nothing_of_others(acme, planner):
    """EXPLAIN ANALYZE has the same numbers whether what is asked for exists at another tenant or nowhere."""
    acme.execute("SET max_parallel_workers_per_gather = 0;" + planner)
    pairs = [
        ("resource_id", "globex-17", "absent-17"),
        ("user_id", "globex-user", "absent-user"),
        ("tenant_id", "globex", "absent"),
        ("action", "globex-action", "absent-action"),
        ("resource", "globex-resource", "absent-resource"),
        ("request_id", "globex-request", "absent-request"),
        ("session_id", "globex-session", "absent-session"),
        ("ip_address", "10.2.0.1", "10.9.0.1"),
    ]
    for column, there, nowhere in pairs:
        for operator in ("=", ">", "<=", "<>") if column != "ip_address" else ("=",):
            # Ranges tell of what he sees himself: ask for those between two names that are none of his.
            template = "SELECT * FROM audit.log WHERE {0} {1} '{2}'" if operator == "=" else (
                "SELECT * FROM audit.log WHERE {0} {1} '{2}' AND {0} >= 'g' AND {0} < 'h'")  # fmt: skip
            other = nowhere if operator == "=" else "g-nowhere"
            assert numbers(acme, template.format(column, operator, there)) == numbers(
                acme, template.format(column, operator, other)
            ), (column, operator)
    assert "globex" not in seen(acme, "EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM audit.log WHERE user_id LIKE 'g%'")


def test_time_alone_reaches_the_tables(readers, acme):
    """Conditions on anything but the time are tried where the tenant is known: no scan of the events shows them."""
    def scans(sql):
        found = []

        def walk(node):
            if "Scan" in node["Node Type"]:
                found.append((node.get("Relation Name", ""), " ".join(str(v) for k, v in node.items() if "Cond" in k or "Filter" in k)))
            for child in node.get("Plans", []):
                walk(child)

        (plan,), = acme.execute(f"EXPLAIN (FORMAT JSON) {sql}").fetchall()
        walk(plan[0]["Plan"])
        return found

    for planner in PLANNERS:
        acme.execute("RESET ALL;" + planner)
        for predicate in ("resource_id = 'x'", "action = 'x'", "resource = 'x'", "operation = 'UPDATE'", "seq = 1"):
            for relation, conditions in scans(f"SELECT * FROM audit.log WHERE {predicate} AND occurred_at > '2020-01-01'"):
                name = predicate.split()[0]
                if relation.startswith("event") and "c_2" not in conditions:  # c_2: his own pending ones
                    assert name not in conditions or "fenced" in conditions and "tenant_id" in conditions, conditions


# --- functions ----------------------------------------------------------------------------------------------------


def both(readers, acme, call, of_acme=None):
    """What a call returns to the tenant's reader, and to who may read everything."""
    rows = "SELECT to_jsonb(f)::text FROM audit.{} f"
    return (acme.execute(rows.format(call)).fetchall(),
            readers.everything.execute(rows.format(of_acme or call)).fetchall())  # fmt: skip


CALLS = [
    # As the tenant's reader calls it, and what then is the same for a reader of everything.
    ("get_logs(page_size => 10000)", "get_logs(tenant_id => 'acme', page_size => 10000)"),
    ("get_logs(action => 'acme-action')", None),
    ("get_logs(action => '*', since => now() - interval '1 day')", "get_logs(action => '*', tenant_id => 'acme', since => now() - interval '1 day')"),
    ("get_logs(resource => 'public.doc', status => 'success', page_size => 9999)", "get_logs(resource => 'public.doc', tenant_id => 'acme', page_size => 9999)"),
    ("get_logs(resource_id => 'acme-1')", None),
    ("get_logs(user_id => 'acme-user', page_size => 7)", None),
    ("get_logs(request_id => 'acme-request', page_size => 7)", None),
    ("get_logs(ip_address => '10.0.0.0/8', page_size => 5000)", "get_logs(tenant_id => 'acme', page_size => 5000)"),
    ("count_logs()", "count_logs(tenant_id => 'acme')"),
    ("count_logs(resource => 'public.doc')", "count_logs(resource => 'public.doc', tenant_id => 'acme')"),
    ("count_logs(ip_address => '10.0.0.0/8')", "count_logs(tenant_id => 'acme')"),
    ("user_activity('acme-user')", None),
    ("tenant_activity('acme')", None),
    ("failed_logins()", "get_logs(tenant_id => 'acme', action => 'auth.login_failed')"),
    ("statistics()", "statistics(tenant_id => 'acme')"),
    ("statistics(now() - interval '1 hour')", "statistics(now() - interval '1 hour', tenant_id => 'acme')"),
    ("security_events(volume_minimum => 1, burst_count => 2)", "security_events('acme', volume_minimum => 1, burst_count => 2)"),
    ("history('doc', 'acme-1')", None),
    ("history('doc', 'acme-2')", None),
    ("row_as_of('doc', 'acme-1', now())", None),
    ("row_as_of('doc', 'acme-2', now())", None),
]


@pytest.fixture
def questioned(conn, readers):
    """Some failed logins too, and the log in its indexes."""
    for tenant in ("acme", "globex", ""):
        with conn.transaction():
            conn.execute("SELECT audit.set_context(tenant_id => %s, ip_address => '10.7.0.1')", [tenant])
            for n in range(5):
                conn.execute("SELECT audit.log_login_failed(%s, %s)", [f"{tenant or 'nobody'}-victim", f"reason-{n}"])
    readers.everything = readers.connect(readers.all)
    return readers


def test_functions_answer_for_the_tenant(questioned, acme):
    for call, of_acme in CALLS:
        of_tenant, of_all = both(questioned, acme, call, of_acme)
        assert of_tenant == of_all and of_tenant, call
    answered = {call.split("(")[0] for call, _ in CALLS}
    assert answered >= {"get_logs", "count_logs", "statistics", "security_events", "history", "row_as_of"}
    (changeset,) = acme.execute("SELECT changeset_id FROM audit.log WHERE operation = 'UPDATE' LIMIT 1").fetchone()
    of_tenant, of_all = both(questioned, acme, f"diff('{changeset}')")
    assert of_tenant == of_all and of_tenant
    questioned.conn.execute("GRANT SELECT ON doc TO PUBLIC")
    rows = "SELECT * FROM audit.table_as_of(NULL::doc, now()) WHERE id LIKE 'acme%' ORDER BY id"
    everything = acme.execute("SELECT * FROM audit.table_as_of(NULL::doc, now()) ORDER BY id").fetchall()
    assert everything == questioned.everything.execute(rows).fetchall() == acme.execute("SELECT * FROM doc WHERE id LIKE 'acme%' ORDER BY id").fetchall()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_pages_of_a_tenant(questioned, acme, size):
    found, after = [], None
    while True:
        rows = acme.execute("SELECT cursor, to_jsonb(l) - 'cursor' FROM audit.get_logs(page_size => %s, after => %s) l", [size, after]).fetchall()
        found += [row for _, row in rows]
        if len(rows) < size:
            break
        after = rows[-1][0]
    query = "SELECT to_jsonb(l) FROM audit.log l WHERE tenant_id = 'acme' ORDER BY occurred_at DESC, changeset_id DESC, seq DESC"
    assert found == [row for (row,) in questioned.conn.execute(query).fetchall()]


FOREIGN = [
    "get_logs(tenant_id => 'globex')",
    "get_logs(user_id => 'globex-user')",
    "get_logs(action => 'globex-action')",
    "get_logs(action => 'globex*')",
    "get_logs(resource_id => 'globex-1')",
    "get_logs(resource => 'globex-resource')",
    "get_logs(request_id => 'globex-request')",
    "get_logs(ip_address => '10.2.0.0/16')",
    "get_logs(user_id => 'nobody-user', page_size => 10000)",
    "tenant_activity('globex')",
    "user_activity('globex-user')",
    "failed_logins(user_id => 'globex-victim')",
    "security_events('globex', volume_minimum => 1)",
    "history('doc', 'globex-1')",
]


def test_functions_tell_nothing_of_others(questioned, acme):
    """What belongs to others is as if it were nowhere: in rows, errors, and the numbers of a plan."""
    for call in FOREIGN:
        assert questioned.everything.execute(f"SELECT FROM audit.{call}").rowcount > 0, call
        absent = call.replace("globex", "absent").replace("nobody", "absent").replace("10.2.", "10.9.")
        assert acme.execute(f"SELECT FROM audit.{call}").rowcount == 0, call
        assert numbers(acme, f"SELECT * FROM audit.{call}") == numbers(acme, f"SELECT * FROM audit.{absent}"), call
    for call in ("count_logs(tenant_id => 'globex')", "count_logs(user_id => 'globex-user')", "count_logs(resource_id => 'globex-1')",
                 "count_logs(action => 'globex-action')", "count_logs(request_id => 'globex-request')"):  # fmt: skip
        assert acme.execute(f"SELECT audit.{call}").fetchone() == (0,)
    assert acme.execute("SELECT audit.row_as_of('doc', 'globex-1', now())").fetchone() == (None,)
    assert acme.execute("SELECT * FROM audit.statistics(tenant_id => 'globex')").fetchall() == [("total", None, 0)]
    (changeset,) = questioned.conn.execute("SELECT id FROM audit.changeset WHERE tenant_id = 'globex' LIMIT 1").fetchone()
    messages = []
    for number in (str(changeset), "01900000-0000-7000-8000-000000000000"):
        with sqlstate("22023") as caught:
            acme.execute(f"SELECT * FROM audit.diff('{number}')")
        messages.append(str(caught.error).replace(number, ""))
    assert messages[0] == messages[1]


def test_leaks_around_functions(questioned, acme):
    """A condition of the reader's own is tried on what a function returns, and that is his."""
    notices = []
    acme.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    acme.execute(LEAKS)
    for call in ("get_logs(page_size => 9999)", "statistics()", "security_events(volume_minimum => 1)", "history('doc', 'acme-1')",
                 "history('doc', 'globex-1')", "table_as_of(NULL::doc, now())", "uncatalogued_actions()"):  # fmt: skip
        acme.execute(f"SELECT count(*) FROM audit.{call} l WHERE pg_temp.leak(l)")
        acme.execute(f"SELECT count(*) FROM pg_am LEFT JOIN audit.{call} l ON pg_temp.leak(l::text)")
        try:
            acme.execute(f"SELECT (l::text)::int FROM audit.{call} l")
        except psycopg.Error as error:
            notices.append(str(error))
    text = "\n".join(notices)
    assert of_acme_alone(text.replace("absent", ""))


@pytest.mark.parametrize("planner", PLANNERS)
def test_leaks_around_changesets(acme, planner):
    """The view beneath the functions holds as audit.log does."""
    notices = []
    acme.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    acme.execute(LEAKS + ";" + planner)
    columns = [c for (c,) in acme.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'audit.visible_changeset'::regclass AND attnum > 0").fetchall()]
    predicates = [f"pg_temp.leak(c.{column})" for column in columns] + [
        f"c.{column} OPERATOR(pg_temp.{operator}) 'mine'" for column in ("user_id", "tenant_id", "request_id", "reason")
        for operator in ("<<<", "===", "~~~")]  # fmt: skip
    for predicate in predicates:
        for query in ("SELECT count(*) FROM audit.visible_changeset c WHERE {}", "EXPLAIN SELECT * FROM audit.visible_changeset c WHERE {}",
                      "SELECT count(*) FROM pg_am a LEFT JOIN audit.visible_changeset c ON {}"):  # fmt: skip
            acme.execute(query.format(predicate))
    text = "\n".join(notices)
    assert of_acme_alone(text) and "10.2." not in text and "10.3." not in text
    acme.execute("SET max_parallel_workers_per_gather = 0")
    for column, there, nowhere in (("user_id", "globex-user", "absent"), ("tenant_id", "globex", "absent"), ("request_id", "globex-request", "absent")):
        query = "SELECT * FROM audit.visible_changeset WHERE {} = '{}'"
        assert numbers(acme, query.format(column, there)) == numbers(acme, query.format(column, nowhere))
    assert of_acme_alone(seen(acme, "SELECT to_jsonb(c)::text FROM audit.visible_changeset c"))


def test_types_of_his_own_see_his_rows_alone(conn, questioned, acme):
    """table_as_of has values read by the types of the table: code of whoever made them."""
    notices = []
    acme.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    acme.execute("CREATE FUNCTION pg_temp.tells(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'told %', $1; RETURN true; END $$;"
                 " CREATE DOMAIN pg_temp.told AS text CHECK (pg_temp.tells(VALUE)); CREATE TEMP TABLE doc (id told, body told, n int)")  # fmt: skip
    with sqlstate("55000"):  # a table of that name, but not that one
        acme.execute("SELECT * FROM audit.table_as_of(NULL::pg_temp.doc, now())")
    assert acme.execute("SELECT count(*) FROM audit.table_as_of(NULL::public.doc, now())").fetchone()[0] > 0
    assert not [line for line in notices if "globex" in line or "nobody" in line]


def test_cursors_over_functions(questioned, acme):
    acme.execute("BEGIN; DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT to_jsonb(l)::text FROM audit.get_logs(page_size => 9999) l")
    first = acme.execute("FETCH 3 FROM c").fetchall()
    acme.execute("SET LOCAL audit.tenant_id = 'globex'")
    rest = acme.execute("FETCH ALL FROM c").fetchall()
    acme.execute("COMMIT")
    assert of_acme_alone("".join(row[0] for row in first + rest + acme.execute("FETCH BACKWARD ALL FROM c").fetchall()))
    # A cursor of another's page is a place in time, and no more.
    (cursor,) = questioned.everything.execute("SELECT cursor FROM audit.get_logs(tenant_id => 'globex', page_size => 1)").fetchone()
    text = seen(acme, "SELECT to_jsonb(l)::text FROM audit.get_logs(page_size => 9999, after => %s) l", [cursor])
    assert text == "" or of_acme_alone(text)


def test_functions_follow_the_role(conn, questioned):
    """In one session, whatever plans are there."""
    calls = "SELECT audit.count_logs(), (SELECT string_agg(DISTINCT coalesce(tenant_id, 'none'), ' ') FROM audit.get_logs(page_size => 10000))," \
            " (SELECT string_agg(coalesce(key, 'none'), ' ' ORDER BY key) FROM audit.statistics() WHERE dimension = 'tenant')," \
            " (SELECT count(*) FROM audit.history('doc', 'globex-1')), (SELECT count(*) FROM audit.security_events() WHERE tenant_id = 'globex') > 0"  # fmt: skip
    total, acme, globex = conn.execute("SELECT count(*), count(*) FILTER (WHERE tenant_id = 'acme'), count(*) FILTER (WHERE tenant_id = 'globex') FROM audit.log").fetchone()
    with conn.cursor() as session:
        for _ in range(7):
            for name, expected in ((None, (total, "acme globex none", "acme globex none", 2, True)), (questioned.acme, (acme, "acme", "acme", 0, False)),
                                   (questioned.globex, (globex, "globex", "globex", 2, True)), (questioned.all, (total, "acme globex none", "acme globex none", 2, True))):  # fmt: skip
                session.execute(f"SET ROLE {name}" if name else "RESET ROLE")
                assert session.execute(calls).fetchone() == expected
        session.execute("RESET ROLE")


def test_functions_of_two_tenants(conn, questioned, role):
    name = role()
    conn.execute(f"GRANT {questioned.acme}, {questioned.globex} TO {name}")
    with questioned.connect(name) as session:
        assert session.execute("SELECT key FROM audit.statistics() WHERE dimension = 'tenant' ORDER BY 1").fetchall() == [("acme",), ("globex",)]
        tenants = session.execute("SELECT DISTINCT tenant_id FROM audit.get_logs(page_size => 10000) ORDER BY 1").fetchall()
        assert tenants == [("acme",), ("globex",)]
        assert session.execute("SELECT count(*) FROM audit.get_logs(tenant_id => 'globex', page_size => 9999)").fetchone()[0] > 40


# --- roles ----------------------------------------------------------------------------------------------------------


def test_settings_and_roles_do_not_help(conn, readers, acme):
    acme.execute("SET audit.tenant_id = 'globex'; SET audit.user_id = 'globex-user'; SET row_security = off;"
                 " SET search_path = pg_temp, audit")  # fmt: skip
    acme.execute("CREATE FUNCTION pg_temp.tenant_visible(text) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
                 " CREATE FUNCTION pg_temp.bound_tenants() RETURNS text[] LANGUAGE sql AS $$ SELECT '{globex}'::text[] $$")  # fmt: skip
    assert of_acme_alone(seen(acme))
    for statement in (f"SET ROLE {readers.globex}", f"SET ROLE {readers.all}", "SET ROLE postgres",
                      f"SET SESSION AUTHORIZATION {readers.globex}",
                      f"GRANT {readers.globex} TO {readers.acme}", f"ALTER ROLE {readers.acme} BYPASSRLS"):  # fmt: skip
        with sqlstate(DENIED):
            acme.execute(statement)
    for statement in ("RESET ROLE", "RESET SESSION AUTHORIZATION", "RESET ALL", "DISCARD ALL", "SET ROLE NONE"):
        acme.execute(statement)
        assert of_acme_alone(seen(acme))


def test_an_event_under_anothers_tenant_is_not_seen(acme):
    """Who may write anything may name any tenant; he does not see it for that, pending or not."""
    acme.execute("BEGIN; SELECT audit.set_context(tenant_id => 'globex'); SELECT audit.log_event('globex-forged');"
                 " SELECT audit.set_context(tenant_id => 'acme'); SELECT audit.log_event('acme-own')")  # fmt: skip
    assert of_acme_alone(seen(acme)) and "acme-own" in seen(acme)
    acme.execute("COMMIT")
    assert of_acme_alone(seen(acme)) and "acme-own" in seen(acme)


def test_set_role_and_back(conn, readers, role):
    """A role with both rights to choose from has one at a time; plans follow it."""
    name = role("LOGIN NOINHERIT")
    conn.execute(f"GRANT {readers.acme}, {readers.globex}, {readers.all} TO {name}")
    with readers.connect(name) as session:
        with sqlstate(DENIED):
            session.execute("SELECT * FROM audit.log")
        for mode in ("auto", "force_generic_plan"):
            session.execute(f"RESET ROLE; SET plan_cache_mode = {mode}; SET ROLE {readers.all};"
                            " PREPARE q AS SELECT coalesce(tenant_id, 'none') FROM audit.log GROUP BY 1 ORDER BY 1")  # fmt: skip
            for chosen, expected in ((readers.all, ["acme", "globex", "none"]), (readers.acme, ["acme"]),
                                     (readers.globex, ["globex"]), (readers.acme, ["acme"]),
                                     (readers.all, ["acme", "globex", "none"])) * 4:  # fmt: skip
                session.execute(f"SET ROLE {chosen}")
                assert [row[0] for row in session.execute("EXECUTE q").fetchall()] == expected
            session.execute("DEALLOCATE q")


def test_functions_keep_no_plan_of_another_role(conn, readers, role):
    conn.execute("""
        CREATE FUNCTION plpgsql_seen() RETURNS text LANGUAGE plpgsql AS
            $$ BEGIN RETURN (SELECT string_agg(DISTINCT coalesce(tenant_id, 'none'), ' ') FROM audit.log); END $$;
        CREATE FUNCTION sql_seen() RETURNS text STABLE LANGUAGE sql AS
            $$ SELECT string_agg(DISTINCT coalesce(tenant_id, 'none'), ' ') FROM audit.log $$;
        CREATE FUNCTION atomic_seen() RETURNS text LANGUAGE sql BEGIN ATOMIC
            SELECT string_agg(DISTINCT coalesce(tenant_id, 'none'), ' ') FROM audit.log; END""")
    with conn.cursor() as session:
        for _ in range(8):
            for name, expected in ((None, "acme globex none"), (readers.acme, "acme"), (readers.globex, "globex")):
                session.execute(f"SET ROLE {name}" if name else "RESET ROLE")
                found = session.execute("SELECT plpgsql_seen(), sql_seen(), atomic_seen()").fetchone()
                assert found == (expected,) * 3
        session.execute("RESET ROLE")


def test_security_definer(conn, readers, acme):
    """A function shows what its owner may read."""
    body = "RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS" \
           " $$ BEGIN RETURN (SELECT string_agg(DISTINCT coalesce(tenant_id, 'none'), ' ') FROM audit.log); END $$"  # fmt: skip
    conn.execute(f"CREATE FUNCTION of_admin() {body}; CREATE FUNCTION of_acme() {body};"
                 f" ALTER FUNCTION of_acme() OWNER TO {readers.acme}")  # fmt: skip
    for _ in range(7):
        assert acme.execute("SELECT of_admin(), of_acme()").fetchone() == ("acme globex none", "acme")
        assert conn.execute("SELECT of_acme(), of_admin()").fetchone() == ("acme", "acme globex none")
        assert acme.execute("SELECT string_agg(DISTINCT tenant_id, ' ') FROM audit.log").fetchone() == ("acme",)


def test_views_of_a_tenants_reader(conn, readers, acme):
    conn.execute(f"CREATE SCHEMA mine AUTHORIZATION {readers.acme}")
    acme.execute("CREATE VIEW mine.v AS SELECT * FROM audit.log; CREATE MATERIALIZED VIEW mine.m AS SELECT * FROM audit.log")
    assert of_acme_alone(seen(acme, "SELECT to_jsonb(v)::text FROM mine.v"))
    conn.execute("REFRESH MATERIALIZED VIEW mine.m")
    assert of_acme_alone(seen(acme, "SELECT to_jsonb(m)::text FROM mine.m"))
    # Others see through it what they may see themselves.
    acme.execute(f"GRANT USAGE ON SCHEMA mine TO {readers.globex}; GRANT SELECT ON mine.v TO {readers.globex}")
    with readers.connect(readers.globex) as other:
        assert "acme" not in seen(other, "SELECT to_jsonb(v)::text FROM mine.v")


def test_cursors(conn, readers, acme, role):
    acme.execute("BEGIN; DECLARE c SCROLL CURSOR FOR SELECT to_jsonb(l)::text FROM audit.log l;"
                 " DECLARE h CURSOR WITH HOLD FOR SELECT to_jsonb(l)::text FROM audit.log l")  # fmt: skip
    first = acme.execute("FETCH 3 FROM c").fetchall()
    acme.execute("SET LOCAL audit.tenant_id = 'globex'; RESET ROLE")
    conn.execute("SELECT audit.set_context(tenant_id => 'globex'), audit.log_event('globex-later')")
    rest = acme.execute("FETCH ALL FROM c").fetchall() + acme.execute("FETCH BACKWARD ALL FROM c").fetchall()
    assert of_acme_alone("".join(row[0] for row in first + rest))
    acme.execute("COMMIT")
    assert of_acme_alone("".join(row[0] for row in acme.execute("FETCH ALL FROM h").fetchall()))
    # Opened in one role and read in another: never more than the one it was opened in may see.
    name = role("LOGIN NOINHERIT")
    conn.execute(f"GRANT {readers.acme}, {readers.globex} TO {name}")
    with readers.connect(name) as session:
        session.execute(f"SET ROLE {readers.acme}; BEGIN; DECLARE c CURSOR FOR SELECT to_jsonb(l)::text FROM audit.log l")
        session.execute(f"FETCH 2 FROM c; SET ROLE {readers.globex}")
        text = "".join(row[0] for row in session.execute("FETCH ALL FROM c").fetchall())
        assert "nobody" not in text


def test_parallel_plans(conn, readers, acme):
    version = conn.info.server_version // 10000
    force = "debug_parallel_query" if version >= 16 else "force_parallel_mode"
    for session, expected in ((acme, ["acme"]), (readers.connect(readers.all), ["acme", "globex", None])):
        session.execute(f"SET {force} = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;"
                        " SET min_parallel_table_scan_size = 0; SET min_parallel_index_scan_size = 0")  # fmt: skip
        query = "SELECT tenant_id FROM audit.log GROUP BY 1 ORDER BY 1"
        assert [row[0] for row in session.execute(query).fetchall()] == expected


# --- bindings -------------------------------------------------------------------------------------------------------


def test_rights_add_up(conn, readers, role):
    name = role()
    query = "SELECT tenant_id FROM audit.log GROUP BY 1 ORDER BY 1"
    with readers.connect(name) as session:
        for granted, expected in (
            (readers.acme, ["acme"]),
            (readers.globex, ["acme", "globex"]),
            (readers.all, ["acme", "globex", None]),
        ):
            conn.execute(f"GRANT {granted} TO {name}")
            assert [row[0] for row in session.execute(query).fetchall()] == expected
        assert sorted(session.execute("SELECT audit.bound_tenants()").fetchone()[0]) == ["acme", "globex"]
        for revoked, expected in ((readers.all, ["acme", "globex"]), (readers.globex, ["acme"])):
            conn.execute(f"REVOKE {revoked} FROM {name}")
            assert [row[0] for row in session.execute(query).fetchall()] == expected
        conn.execute(f"REVOKE {readers.acme} FROM {name}")
        with sqlstate(DENIED):
            session.execute(query)


def test_changes_reach_plans_that_are_there(conn, readers, role):
    """Whatever is granted, bound or taken back holds for the next execution of a prepared statement."""
    name = role()
    conn.execute(f"GRANT {readers.acme} TO {name}")
    with readers.connect(name) as session:
        session.execute("SET plan_cache_mode = force_generic_plan;"
                        " PREPARE q AS SELECT coalesce(tenant_id, 'none') FROM audit.log GROUP BY 1 ORDER BY 1")  # fmt: skip

        def now():
            return [row[0] for row in session.execute("EXECUTE q").fetchall()]

        assert now() == ["acme"]
        conn.execute(f"GRANT {readers.all} TO {name}")
        assert now() == ["acme", "globex", "none"]
        conn.execute(f"REVOKE {readers.all} FROM {name}")
        assert now() == ["acme"]
        conn.execute(f"SELECT audit.grant_tenant_reader('{readers.acme}', 'globex')")
        assert now() == ["globex"]
        conn.execute(f"GRANT SELECT ON audit.changeset TO {name}")
        assert now() == ["acme", "globex", "none"]
        conn.execute(f"REVOKE SELECT ON audit.changeset FROM {name}")
        assert now() == ["globex"]
        conn.execute("DELETE FROM audit.tenant_reader")
        assert now() == []


def test_within_the_transaction_that_binds(conn, readers, role):
    name = role()
    conn.execute(f"BEGIN; SELECT audit.grant_tenant_reader('{name}', 'acme'); SET LOCAL ROLE {name}")
    assert of_acme_alone(seen(conn))
    conn.execute("ROLLBACK")
    conn.execute(f"SELECT audit.grant_tenant_reader('{name}', 'globex'); DELETE FROM audit.tenant_reader WHERE role = '{name}'::regrole")
    with readers.connect(name) as session:
        assert seen(session) == ""


def test_a_right_on_the_view_alone_shows_nothing(conn, readers, role):
    name = role()
    conn.execute(f"GRANT SELECT ON audit.log TO {name}; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit TO {name}")
    with readers.connect(name) as session:
        assert seen(session) == ""


def test_renamed_and_dropped_roles(conn, db, role):
    first, second = role(), role()
    conn.execute(f"SELECT audit.grant_tenant_reader('{first}', 'acme'); ALTER ROLE {first} RENAME TO {first}_x")
    with db.connect(user=f"{first}_x") as session:
        assert of_acme_alone(seen(session))
    conn.execute(f"ALTER ROLE {first}_x RENAME TO {first}; CREATE ROLE {first}_gone;"
                 f" SELECT audit.grant_tenant_reader('{first}_gone', 'globex');"
                 f" DROP OWNED BY {first}_gone; DROP ROLE {first}_gone")  # fmt: skip
    assert conn.execute("SELECT count(*) FROM audit.tenant_reader").fetchone() == (2,)
    conn.execute(f"SELECT audit.grant_tenant_reader('{second}', 'acme')")
    assert conn.execute("SELECT role::text, tenant_id, granted_by FROM audit.tenant_reader ORDER BY 1").fetchall() == [
        (first, "acme", "postgres"),
        (second, "acme", "postgres"),
    ]


def test_refused_bindings(conn, readers, role):
    name = role()
    for arguments, code in (("NULL, 'acme'", "22004"), (f"'{name}', NULL", "22004"), (f"'{name}', ''", "22023"),
                            (f"'{name}', repeat('x', 8193)", "22023"), (f"'{readers.all}', 'acme'", "55000"),
                            ("current_user::regrole, 'acme'", "55000"), ("'no_such_role', 'acme'", "42704")):  # fmt: skip
        with sqlstate(code) as caught:
            conn.execute(f"SELECT audit.grant_tenant_reader({arguments})")
        assert code in ("22004", "42704") or caught.error.diag.message_hint
    odd = "Größe '\"\\ %s"
    conn.execute("SELECT audit.set_context(tenant_id => %s), audit.log_event('x')", [odd])
    conn.execute("SELECT audit.grant_tenant_reader(%s, %s)", [name, odd])
    with readers.connect(name) as session:
        assert session.execute("SELECT tenant_id FROM audit.log").fetchall() == [(odd,)]


def test_a_dump_carries_the_bindings(conn, db, new_db, readers, request):
    other = new_db(extension=False)
    request.addfinalizer(other.drop)  # before the roles
    dump = subprocess.run([db.cluster.bin("pg_dump"), "-d", db.name], env=db.cluster.env, capture_output=True, text=True, check=True).stdout
    other.psql(dump)
    with other.connect(user=readers.acme) as session:
        assert of_acme_alone(seen(session))
    with other.connect() as restored:
        rows = "SELECT role::text, tenant_id FROM audit.tenant_reader ORDER BY 1"
        assert restored.execute(rows).fetchall() == conn.execute(rows).fetchall()


# --- plans ----------------------------------------------------------------------------------------------------------


def test_who_may_read_everything_pays_nothing(conn, readers):
    """His plans are those of the bare tables."""
    bare = """SELECT e.resource_id FROM audit.event e JOIN audit.changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at
              JOIN audit.relation r ON r.id = e.relation_id WHERE {}"""
    conditions = [("user_id = 'acme-user'", "c.user_id = 'acme-user'"), ("resource_id = 'acme-1'", "e.resource_id = 'acme-1'"),
                  ("tenant_id = 'acme' AND occurred_at > now() - interval '1 day'",
                   "c.tenant_id = 'acme' AND c.occurred_at > now() - interval '1 day'")]  # fmt: skip
    for session in (conn, readers.connect(readers.all)):
        for through_view, plain in conditions:
            text = seen(session, f"EXPLAIN SELECT resource_id FROM audit.row_events WHERE {through_view}") if session is conn else ""
            text += seen(session, f"EXPLAIN (VERBOSE) SELECT * FROM audit.log WHERE {through_view}")
            assert "fenced" not in text and "tenant_visible" not in text and "bound_tenants" not in text
        if session is conn:
            def shape(node):
                inner = [shape(child) for child in node.get("Plans", [])]
                # The view's own node, where there is one, adds nothing.
                return inner[0] if node["Node Type"] == "Subquery Scan" else [
                    node["Node Type"], node.get("Index Cond"), node.get("Filter"), node.get("Hash Cond"), inner]  # fmt: skip
            for through_view, plain in conditions:
                (a,), = session.execute(f"EXPLAIN (FORMAT JSON) SELECT resource_id FROM audit.row_events WHERE {through_view}").fetchall()
                (b,), = session.execute("EXPLAIN (FORMAT JSON) " + bare.format(plain)).fetchall()
                assert shape(a[0]["Plan"]) == shape(b[0]["Plan"])


def test_the_tenant_reaches_the_index(conn, acme):
    conn.execute("""
        INSERT INTO audit.changeset (occurred_at, xid, era, event_count, backend_pid, origin, context_trust, id, events_root,
                                     checksum, tenant_id)
        SELECT now() - i * interval '1 second', '1', 1, 1, 1, 'application', 'claimed', gen_random_uuid(), '', '', 'tenant' || i / 500
          FROM generate_series(1, 100000) i;
        SELECT brin_summarize_new_values(c.oid) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
         WHERE a.amname = 'brin' AND c.relkind = 'i' AND c.relname LIKE 'changeset%'""")
    conn.execute("VACUUM ANALYZE audit.changeset")
    plan = seen(acme, "EXPLAIN SELECT * FROM audit.log")
    assert "Index Cond: (tenant_id = ANY (audit.bound_tenants()))" in plan
    plan = seen(acme, "EXPLAIN (ANALYZE) SELECT * FROM audit.log WHERE occurred_at > now() - interval '1 hour'")
    assert "Index Cond: ((occurred_at > (now() - '01:00:00'::interval)) AND (tenant_id = ANY" in plan
    assert of_acme_alone(seen(acme))
