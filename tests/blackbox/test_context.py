"""Context: what the session says of its user, how it is set, checked, stored and shown; the settings that belong to
superusers; the view audit.log."""

import json
import uuid

import psycopg
import pytest

import auditlib
from auditlib import connect_like, events, sqlstate

STRINGS = ["user_id", "tenant_id", "request_id", "session_id", "user_agent", "reason"]

LOG_COLUMNS = """occurred_at era position command seq changeset_id user_id tenant_id action operation resource resource_id
    status old_row new_row changed_columns details ip_address user_agent request_id session_id reason context context_trust
    session_role effective_role application_name client_addr xid checksum relation_id event_at""".split()


@pytest.fixture
def table(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t')")
    yield conn
    auditlib.check_integrity(conn)


def write(conn, number=[0]):
    """One row; returns its changeset."""
    number[0] += 1
    conn.execute("INSERT INTO t VALUES (%s, 'x')", [number[0]])
    row = conn.execute(
        """SELECT c.user_id, c.tenant_id, c.request_id, c.session_id, host(c.ip_address), c.user_agent, c.reason, c.context
             FROM audit.changeset c JOIN audit.event e ON e.changeset_id = c.id WHERE e.resource_id = %s""",
        [str(number[0])]).fetchone()
    return row


ABSENT = (None,) * 8


# --- set_context, clear_context -----------------------------------------------------------------------------------

def test_no_context(table):
    assert write(table) == ABSENT


def test_set_context_for_a_transaction(table):
    """The default: gone with the transaction, as behind a transaction pooler it must be."""
    with table.transaction():
        table.execute("SELECT audit.set_context('u', 't', 'r', 's', '192.0.2.1', 'agent', 'why', '{\"k\": [1.0]}')")
        table.execute("INSERT INTO t VALUES (-1, '')")
    assert table.execute("SELECT user_id, tenant_id, request_id, session_id, ip_address::text, user_agent, reason,"
                         " context::text, session_role, effective_role, backend_pid, origin::text FROM audit.changeset"
                         ).fetchall() == [("u", "t", "r", "s", "192.0.2.1/32", "agent", "why", '{"k": [1.0]}', "postgres",
                                           "postgres", table.info.backend_pid, "trigger")]
    assert write(table) == ABSENT


def test_set_context_outside_a_transaction_leaves_nothing(table):
    table.execute("SELECT audit.set_context(user_id => 'u')")
    assert write(table) == ABSENT


def test_set_context_for_the_session(table):
    table.execute("SELECT audit.set_context(user_id => 'u', ip_address => '2001:db8::1', is_local => false)")
    assert write(table) == ("u", None, None, None, "2001:db8::1", None, None, None)
    with table.transaction():
        table.execute("SELECT audit.set_context(user_id => 'local', reason => 'r')")
        assert write(table) is None  # its changeset is not there before COMMIT
    found = table.execute("SELECT user_id, reason FROM audit.changeset WHERE reason IS NOT NULL").fetchall()
    assert found == [("local", "r")]
    assert write(table)[0] == "u"


def test_null_leaves_a_value_as_it_is(table):
    table.execute("SELECT audit.set_context(user_id => 'u', tenant_id => 't', context => '{\"a\": 1}', is_local => false)")
    table.execute("SELECT audit.set_context(tenant_id => 't2', is_local => false)")
    assert write(table) == ("u", "t2", None, None, None, None, None, {"a": 1})


@pytest.mark.parametrize("key", STRINGS + ["ip_address", "context"])
def test_the_empty_string_is_absent(table, key):
    values = {"ip_address": "192.0.2.1", "context": '{"a": 1}'}
    table.execute("SELECT set_config('audit.%s', %%s, false)" % key, [values.get(key, "x")])
    assert write(table) != ABSENT
    table.execute("SELECT set_config('audit.%s', '', false)" % key)
    assert write(table) == ABSENT
    if key in STRINGS:
        table.execute("SELECT audit.set_context(%s => 'x', is_local => false)" % key)
        table.execute("SELECT audit.set_context(%s => '', is_local => false)" % key)
        assert write(table) == ABSENT


def test_clear_context(table):
    """Values of the transaction and of the session go."""
    everything = "audit.set_context('u', 't', 'r', 's', '192.0.2.1', 'a', 'w', '{\"k\": 1}', is_local => %s)"
    table.execute("SELECT " + everything % "false")
    with table.transaction():
        table.execute("SELECT " + everything % "true")
        table.execute("SELECT audit.clear_context()")
        table.execute("INSERT INTO t VALUES (-1, '')")
    assert table.execute("SELECT user_id, tenant_id, request_id, session_id, ip_address, user_agent, reason, context"
                         " FROM audit.changeset").fetchall() == [ABSENT]
    assert write(table) == ABSENT


def test_discard_all_clears_the_context(table):
    """What a session pooler sends between its clients."""
    table.execute("SELECT audit.set_context(user_id => 'u', context => '{\"a\": 1}', is_local => false)")
    table.execute("DISCARD ALL")
    assert write(table) == ABSENT


def test_context_rolled_back_with_a_savepoint(table):
    with table.transaction():
        table.execute("SELECT audit.set_context(user_id => 'outer')")
        with pytest.raises(ZeroDivisionError), table.transaction():
            table.execute("SELECT audit.set_context(user_id => 'inner')")
            raise ZeroDivisionError
        table.execute("INSERT INTO t VALUES (-1, '')")
    assert [e.user_id for e in events(table, "t")] == ["outer"]


def test_settings_and_function_are_the_same(table):
    table.execute("SET audit.user_id = 'by setting'")
    table.execute("SELECT audit.set_context(reason => 'by function', is_local => false)")
    assert table.execute("SELECT current_setting('audit.user_id'), current_setting('audit.reason')").fetchone() \
        == ("by setting", "by function")
    assert write(table)[0] == "by setting"
    table.execute("RESET audit.user_id")
    assert write(table)[0] is None


def test_context_by_role_and_database(table, db, role):
    user = role()
    table.execute("ALTER ROLE %s SET audit.tenant_id = 'of role'" % user)
    table.execute("ALTER DATABASE %s SET audit.reason = 'of database'" % db.name)
    table.execute("GRANT INSERT ON t TO %s" % user)
    with db.connect(user=user, options="-c audit.user_id=of-options") as other:
        other.execute("INSERT INTO t VALUES (1, '')")
    assert table.execute("SELECT user_id, tenant_id, reason, session_role FROM audit.changeset").fetchall() \
        == [("of-options", "of role", "of database", user)]


def test_contexts_hold_any_text(table):
    text = "ünï \"quoted\" \\ \t\n' 😀" + chr(1) + chr(127)
    table.execute("SELECT audit.set_context(user_id => %s, context => %s, is_local => false)",
                  [text, json.dumps({text: [text, 1.50, None, {"b": 1, "a": 2}]})])
    row = write(table)
    assert row[0] == text and row[7] == {text: [text, 1.5, None, {"a": 2, "b": 1}]}


# --- refusals -----------------------------------------------------------------------------------------------------

def test_strings_too_long_are_refused(table):
    for key in STRINGS:
        check_longest(table, key)
        table.execute("SELECT audit.clear_context()")


def check_longest(table, key):
    table.execute("SELECT audit.set_context(%s => repeat('x', 8192), is_local => false)" % key)
    assert max(len(v or "") for v in write(table)[:7]) == 8192
    with sqlstate("22023"):
        table.execute("SELECT audit.set_context(%s => repeat('x', 8193))" % key)
    with sqlstate("22023"):
        table.execute("SELECT audit.set_context(%s => repeat('é', 4097))" % key)
    with sqlstate("22023"):
        table.execute("SELECT set_config('audit.%s', repeat('x', 8193), false)" % key)
    assert max(len(v or "") for v in write(table)[:7]) == 8192


NO_ADDRESSES = [
    "nonsense", "256.1.1.1", "1.2.3", "1.2.3.4/33", "1.2.3.4 ", " 1.2.3.4", ":::1", "2001:db8::1/129", "1.2.3.4,5.6.7.8",
    "localhost", "1.2.3.4:80", "::1%eth0", "0x7f.0.0.1", "1.2.3.4/-1", "1.2.3.4/a", "[::1]"]


def test_what_is_no_address_is_refused(table):
    for text in NO_ADDRESSES:
        with sqlstate("22023"):
            table.execute("SELECT set_config('audit.ip_address', %s, false)", [text])
            raise AssertionError("accepted: " + text)
    assert write(table) == ABSENT


ADDRESSES = [
    ("192.0.2.1", "192.0.2.1"), ("::1", "::1"), ("2001:DB8:0::1", "2001:db8::1"), ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ("192.0.2.1/24", "192.0.2.1/24"), ("2001:db8::1/64", "2001:db8::1/64"), ("192.0.2.1/32", "192.0.2.1")]


def test_addresses(table):
    for text, stored in ADDRESSES:
        table.execute("SELECT set_config('audit.ip_address', %s, false)", [text])
        write(table)
        table.execute("RESET audit.ip_address")
        table.execute("BEGIN; SELECT audit.set_context(ip_address => '%s', reason => 'by function');"
                      " INSERT INTO t SELECT min(id) - 1, '' FROM t; COMMIT" % text)
        found = table.execute("SELECT to_jsonb(ip_address), reason FROM audit.changeset"
                              " ORDER BY position DESC LIMIT 2").fetchall()
        assert found == [(stored, "by function"), (stored, None)]


NO_OBJECTS = [
    "nonsense", "[1]", "1", "\"x\"", "null", "{", "{\"a\": }", "{} {}", "{\"a\": \"\\u0000\"}", "{'a': 1}", "{\"a\": 1,}",
    "{\"a\": \"\\ud800\"}", "{\"a\": 1e200000}", "{\"a\": NaN}", "{\"a\": \"\t\"}", "{\"a\": 01}"]


def test_what_is_no_json_object_is_refused(table):
    for text in NO_OBJECTS:
        with sqlstate("22023"):
            table.execute("SELECT set_config('audit.context', %s, false)", [text])
            raise AssertionError("accepted: " + text)
    assert write(table) == ABSENT


def test_set_context_refuses_what_is_no_object(table):
    for text in ("[1]", "1", "\"x\"", "null"):
        with sqlstate("22023"):
            table.execute("SELECT audit.set_context(context => %s::jsonb)", [text])


def test_size_of_the_context(table):
    def body(size):
        return '{"a":"%s"}' % ("x" * (size - 8))
    assert len(body(65536)) == 65536
    table.execute("SELECT set_config('audit.context', %s, false)", [body(65536)])
    assert len(write(table)[7]["a"]) == 65528
    with sqlstate("22023"):
        table.execute("SELECT set_config('audit.context', %s, false)", [body(65537)])
    deep = '{"a":' * 9000 + "1" + "}" * 9000
    try:
        table.execute("SELECT set_config('audit.context', %s, false)", [deep])
    except psycopg.Error as error:
        assert error.sqlstate in ("22023", "54001")  # too deep to read: refused where it is set
    else:
        table.execute("INSERT INTO t VALUES (-1, '')")
        assert table.execute("""SELECT count(*) FROM audit.changeset WHERE context::text LIKE '{"a": {"a": %'""").fetchone()[0]


def test_equal_contexts_share_a_changeset(table):
    with table.transaction():
        for text in ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}'):
            table.execute("SELECT audit.set_context(user_id => 'u', context => %s)", [text])
            table.execute("INSERT INTO t SELECT coalesce(max(id), 0) + 1, '' FROM t")
    assert table.execute("SELECT event_count FROM audit.changeset").fetchall() == [(2,)]


# --- client_ip ----------------------------------------------------------------------------------------------------

CLIENTS = [
    # No proxies: the connection's address, whatever the headers say.
    (None, None, "192.0.2.1", [], "192.0.2.1"),
    ("198.51.100.7", "198.51.100.8", "192.0.2.1", [], "192.0.2.1"),
    (None, None, None, [], None),
    ("", "", None, [], None),
    # Nothing known of the connection: the right-most entry.
    ("198.51.100.7", None, None, [], "198.51.100.7"),
    ("203.0.113.5, 198.51.100.7", None, None, [], "198.51.100.7"),
    ("203.0.113.5, 198.51.100.7", None, None, ["198.51.100.0/24"], "203.0.113.5"),
    (None, "198.51.100.8", None, [], "198.51.100.8"),
    # One proxy, several, a network of them.
    ("203.0.113.5", None, "10.0.0.1", ["10.0.0.1"], "203.0.113.5"),
    ("203.0.113.5, 10.0.0.2", None, "10.0.0.1", ["10.0.0.0/8"], "203.0.113.5"),
    ("203.0.113.5,10.0.0.2 ,\t10.0.0.3", None, "10.0.0.1", ["10.0.0.0/8"], "203.0.113.5"),
    ("203.0.113.5", None, "10.0.0.1", ["192.168.0.0/16", "10.0.0.0/8"], "203.0.113.5"),
    # A client that forges the header only adds on the left.
    ("1.1.1.1, 203.0.113.5", None, "10.0.0.1", ["10.0.0.0/8"], "203.0.113.5"),
    ("10.0.0.9, 203.0.113.5", None, "10.0.0.1", ["10.0.0.0/8"], "203.0.113.5"),
    ("<script>, 203.0.113.5", None, "10.0.0.1", ["10.0.0.0/8"], "203.0.113.5"),
    # A proxy that is not trusted is the client.
    ("203.0.113.5, 172.16.0.1", None, "10.0.0.1", ["10.0.0.0/8"], "172.16.0.1"),
    ("203.0.113.5", "203.0.113.6", "172.16.0.1", ["10.0.0.0/8"], "172.16.0.1"),
    # X-Real-IP, where there is no X-Forwarded-For.
    (None, "203.0.113.6", "10.0.0.1", ["10.0.0.0/8"], "203.0.113.6"),
    ("", "203.0.113.6", "10.0.0.1", ["10.0.0.0/8"], "203.0.113.6"),
    ("203.0.113.5", "203.0.113.6", "10.0.0.1", ["10.0.0.0/8"], "203.0.113.5"),
    (None, "nonsense", "10.0.0.1", ["10.0.0.0/8"], "10.0.0.1"),
    # Only proxies: the farthest of them.
    ("10.0.0.3, 10.0.0.2", None, "10.0.0.1", ["10.0.0.0/8"], "10.0.0.3"),
    (None, None, "10.0.0.1", ["10.0.0.0/8"], "10.0.0.1"),
    # Ports, brackets, IPv6 and IPv4 in IPv6.
    ("203.0.113.5:4711", None, "10.0.0.1", ["10.0.0.0/8"], "203.0.113.5"),
    ("[2001:db8::7]:443", None, "10.0.0.1", ["10.0.0.0/8"], "2001:db8::7"),
    ("[2001:db8::7]", None, "10.0.0.1", ["10.0.0.0/8"], "2001:db8::7"),
    ("2001:db8::7", None, "2001:db8:1::1", ["2001:db8:1::/48"], "2001:db8::7"),
    ("203.0.113.5, ::ffff:10.0.0.2", None, "::ffff:10.0.0.1", ["10.0.0.0/8"], "203.0.113.5"),
    ("203.0.113.5", None, "10.0.0.1", ["::ffff:10.0.0.0/104"], "203.0.113.5"),
    ("203.0.113.5", None, "10.0.0.1", ["0.0.0.0/0"], "203.0.113.5"),
]


def test_client_ip(conn):
    for *arguments, expected in CLIENTS:
        found = conn.execute("SELECT host(audit.client_ip(%s, %s, %s::inet, %s::inet[]))", arguments).fetchone()[0]
        assert found == expected, arguments


def test_client_ip_stops_at_what_it_cannot_read(conn):
    """What is left of an unreadable entry was written by somebody not known: it is no address of the client."""
    found = conn.execute("SELECT host(audit.client_ip('203.0.113.5, garbage, 10.0.0.2', NULL, '10.0.0.1', '{10.0.0.0/8}'))"
                         ).fetchone()[0]
    assert found == "10.0.0.2"


def test_client_ip_without_proxies_argument(conn):
    assert conn.execute("SELECT host(audit.client_ip('203.0.113.5', NULL, '10.0.0.1'))").fetchone()[0] == "10.0.0.1"


# --- settings of superusers ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("setting, value", [
    ("audit.enabled", "off"), ("audit.log_statement", "on"), ("audit.log_soft_deletes", "off"), ("audit.max_value_bytes", "10")])
def test_ordinary_users_cannot_change_superusers_settings(table, db, role, setting, value):
    user = role()
    table.execute("GRANT ALL ON t TO %s" % user)
    with db.connect(user=user) as other:
        other.execute("INSERT INTO t VALUES (1, '')")
        with sqlstate("42501"):
            other.execute("SET %s = '%s'" % (setting, value))
        with sqlstate("42501"):
            other.execute("SELECT set_config('%s', '%s', true)" % (setting, value))
    # Given at the start of a session it is refused then, or when the library comes in and finds it.
    before = table.execute("SELECT current_setting('%s')" % setting).fetchone()[0]
    try:
        other = db.connect(user=user, options="-c %s=%s" % (setting, value))
    except psycopg.OperationalError:
        pass
    else:
        other.execute("INSERT INTO t VALUES (2, '')")
        assert other.execute("SELECT current_setting('%s')" % setting).fetchone()[0] == before
        assert len(events(table, "t")) == 2


def test_log_statement(table):
    query = "INSERT INTO t VALUES (1, 'x') /* the client's own text */"
    table.execute("SET audit.log_statement = on")
    table.execute(query)
    table.execute("SET audit.log_statement = off")
    table.execute("INSERT INTO t VALUES (2, 'x')")
    assert table.execute("SELECT statement FROM audit.changeset ORDER BY occurred_at").fetchall() == [(query,), (None,)]


def test_audit_enabled_off_is_recorded(table):
    table.execute("CREATE TABLE t2 (id int); SELECT audit.enable('t2')")
    table.execute("INSERT INTO t VALUES (1, 'before')")
    table.execute("SET audit.enabled = off")
    table.execute("INSERT INTO t VALUES (2, 'unseen')")
    table.execute("UPDATE t SET v = 'unseen'")
    table.execute("INSERT INTO t2 VALUES (1)")
    assert len(events(table)) == 1
    table.execute("SET audit.enabled = on")
    assert len(events(table)) == 1
    table.execute("INSERT INTO t VALUES (3, 'after')")
    found = table.execute(
        """SELECT operation::text, action, details, seq, resource_id, status::text FROM audit.event
            ORDER BY occurred_at, seq""").fetchall()
    assert [(f[0], f[1]) for f in found] == [
        ("INSERT", None), ("APPLICATION", "audit.capture_suspended"), ("INSERT", None)]
    details = found[1][2]
    assert set(details) == {"since", "until", "changes", "tables"}
    assert details["changes"] == 4 and details["since"] <= details["until"]
    assert sorted(details["tables"]) == ["public.t", "public.t2"]
    assert found[1][3] == 0 and found[2][3] == 1
    # Said once.
    table.execute("INSERT INTO t VALUES (4, 'after')")
    assert len([e for e in events(table) if e.action]) == 1


def test_audit_enabled_off_in_a_transaction_that_rolls_back(table):
    table.execute("BEGIN; SET LOCAL audit.enabled = off; INSERT INTO t VALUES (1, ''); ROLLBACK")
    table.execute("INSERT INTO t VALUES (2, '')")
    found = events(table, "t")
    assert [e.resource_id for e in found] == ["2"]
    # SET LOCAL that commits: the changes of that transaction alone are missing.
    table.execute("BEGIN; SET LOCAL audit.enabled = off; INSERT INTO t VALUES (3, ''); COMMIT")
    table.execute("INSERT INTO t VALUES (4, '')")
    assert [e.resource_id for e in events(table, "t")] == ["2", "4"]
    suspended = [e.details for e in events(table) if e.action == "audit.capture_suspended"]
    assert suspended[-1]["changes"] == 1


def test_audit_enabled_off_is_not_recorded_where_nothing_changed(table):
    table.execute("SET audit.enabled = off")
    table.execute("SELECT * FROM t")
    table.execute("SET audit.enabled = on")
    table.execute("INSERT INTO t VALUES (1, '')")
    assert [e.action for e in events(table)][-1:] == [None]


def test_soft_deletes(conn):
    conn.execute("""
        CREATE TABLE flag (id int PRIMARY KEY, gone boolean);
        CREATE TABLE stamp (id int PRIMARY KEY, deleted_at timestamptz, v int);
        SELECT audit.enable('flag', soft_delete_column => 'gone');
        SELECT audit.enable('stamp', soft_delete_column => 'deleted_at');
        INSERT INTO flag VALUES (1, false), (2, NULL), (3, true);
        INSERT INTO stamp VALUES (1, NULL, 0)""")
    conn.execute("UPDATE flag SET gone = true")
    conn.execute("UPDATE stamp SET deleted_at = now()")
    conn.execute("UPDATE stamp SET deleted_at = now() + interval '1 hour'")
    conn.execute("UPDATE stamp SET deleted_at = NULL")
    conn.execute("UPDATE flag SET gone = false")
    soft = {t: [(e.details or {}).get("soft_delete") for e in events(conn, t) if e.operation == "UPDATE"]
            for t in ("flag", "stamp")}
    assert soft == {"flag": [True, True, None, None, None, None], "stamp": [True, None, None]}
    with auditlib.changes(conn, "flag", INSERT=1):
        conn.execute("INSERT INTO flag VALUES (9, true)")
    conn.execute("SET audit.log_soft_deletes = off")
    known = len(events(conn))
    conn.execute("UPDATE flag SET gone = true WHERE id = 1")
    conn.execute("UPDATE stamp SET deleted_at = now()")
    assert len(events(conn)) == known
    conn.execute("UPDATE stamp SET v = 2")
    conn.execute("UPDATE flag SET gone = false WHERE id = 1")
    conn.execute("DELETE FROM stamp")
    assert [e.operation for e in events(conn)[known:]] == ["UPDATE", "UPDATE", "DELETE"]
    auditlib.check_integrity(conn)


def test_soft_delete_column_of_a_domain(conn):
    """A domain over boolean is a boolean."""
    conn.execute("""
        CREATE DOMAIN yes AS boolean;
        CREATE TABLE flag (id int PRIMARY KEY, gone yes);
        SELECT audit.enable('flag', soft_delete_column => 'gone');
        INSERT INTO flag VALUES (1, NULL);
        UPDATE flag SET gone = false; UPDATE flag SET gone = true""")
    assert [e.details for e in events(conn, "flag") if e.operation == "UPDATE"] == [None, {"soft_delete": True}]


# --- audit.log ----------------------------------------------------------------------------------------------------

def test_columns_of_the_log(conn):
    columns = [r[0] for r in conn.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'audit.log'::regclass"
                                          " AND attnum > 0 ORDER BY attnum")]
    assert columns == LOG_COLUMNS


def test_visible_at_once(table):
    """In the same transaction, after the statement, with its context; the same after COMMIT, with its position."""
    columns = [c for c in LOG_COLUMNS if c != "position"]
    query = "SELECT %s FROM audit.log ORDER BY era, position NULLS LAST, command, seq" % ", ".join(columns)
    with table.transaction():
        table.execute("SELECT audit.set_context('u', 't', 'r', 's', '192.0.2.1', 'agent', 'why', '{\"k\": 1}')")
        table.execute("INSERT INTO t VALUES (1, 'x')")
        rows = table.execute(query).fetchall()
        assert len(rows) == 1
        row = dict(zip(columns, rows[0]))
        assert table.execute("SELECT position FROM audit.log").fetchall() == [(None,)]
        assert (row["user_id"], row["tenant_id"], row["request_id"], row["session_id"], str(row["ip_address"]),
                row["user_agent"], row["reason"], row["context"]) == (
                    "u", "t", "r", "s", "192.0.2.1", "agent", "why", {"k": 1})
        assert row["operation"] == "INSERT" and row["resource"] == "public.t" and row["resource_id"] == "1"
        assert row["new_row"] == {"id": 1, "v": "x"} and row["old_row"] is None and row["changed_columns"] is None
        assert row["xid"] is not None and row["status"] == "success" and row["session_role"] == "postgres"
        assert row["checksum"] is not None
        assert row["changeset_id"].version == 7 if isinstance(row["changeset_id"], uuid.UUID) else row["changeset_id"]
        table.execute("SELECT audit.set_context(user_id => 'second')")
        table.execute("UPDATE t SET v = 'y'")
        table.execute("UPDATE t SET v = v")
        table.execute("DELETE FROM t")
        pending = table.execute(query).fetchall()
        assert [dict(zip(columns, r))["user_id"] for r in pending] == ["u", "second", "second", "second"]
        with connect_like(table) as other:
            assert other.execute("SELECT count(*) FROM audit.log").fetchone()[0] == 0
    assert table.execute(query).fetchall() == pending
    assert table.execute("SELECT count(*) FROM audit.log WHERE position IS NULL").fetchone()[0] == 0
    shown = table.execute("SELECT old_row, new_row, changed_columns FROM audit.log ORDER BY seq").fetchall()
    assert shown == [
        (None, {"id": 1, "v": "x"}, None),
        ({"id": 1, "v": "x"}, {"id": 1, "v": "y"}, ["v"]),
        ({"id": 1, "v": "y"}, {"id": 1, "v": "y"}, []),
        ({"id": 1, "v": "y"}, None, None)]


def test_visible_within_a_statement_of_several_parts(table):
    """An SQL function's second statement and a PL/pgSQL block see what the first wrote."""
    found = table.execute("""
        CREATE FUNCTION two() RETURNS bigint LANGUAGE sql AS
            'INSERT INTO t VALUES (1, ''x''); SELECT count(*) FROM audit.log';
        SELECT two()""")
    assert found.nextset() is True and found.fetchone()[0] == 1
    table.execute("""DO $$BEGIN INSERT INTO t VALUES (2, 'x');
        IF (SELECT count(*) FROM audit.log) <> 2 THEN RAISE 'not visible'; END IF; END$$""")


def test_visible_under_parallel_plans(table):
    """The pending changesets live in the session's own process, which a parallel plan must not leave."""
    forced = "debug_parallel_query" if table.info.server_version >= 160000 else "force_parallel_mode"
    table.execute("""SET %s = on; SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
                     SET max_parallel_workers_per_gather = 2""" % forced)
    table.execute("INSERT INTO t SELECT g, '' FROM generate_series(1, 2000) g")
    table.execute("ANALYZE audit.event, audit.changeset, audit.relation")
    with table.transaction():
        table.execute("INSERT INTO t SELECT -g, '' FROM generate_series(1, 300) g")
        assert table.execute("SELECT count(*), count(position), count(DISTINCT new_row) FROM audit.log").fetchone() \
            == (2300, 2000, 2300)


def test_pending_after_a_savepoint_is_rolled_back(table):
    with table.transaction():
        table.execute("INSERT INTO t VALUES (1, 'x')")
        table.execute("SAVEPOINT s; SELECT audit.set_context(user_id => 'inner')")
        table.execute("INSERT INTO t VALUES (2, 'x')")
        assert table.execute("SELECT count(*) FROM audit.log").fetchone()[0] == 2
        table.execute("ROLLBACK TO s")
        assert table.execute("SELECT user_id, resource_id FROM audit.log").fetchall() == [(None, "1")]
    assert table.execute("SELECT user_id, resource_id FROM audit.log").fetchall() == [(None, "1")]


def test_resource_is_quoted_and_of_its_time(conn):
    conn.execute("""
        CREATE SCHEMA "Odd Schema";
        CREATE TABLE "Odd Schema"."Order" ("id" int PRIMARY KEY);
        SELECT audit.enable('"Odd Schema"."Order"');
        INSERT INTO "Odd Schema"."Order" VALUES (1)""")
    conn.execute('ALTER TABLE "Odd Schema"."Order" RENAME TO lines')
    conn.execute('INSERT INTO "Odd Schema".lines VALUES (2)')
    conn.execute('ALTER SCHEMA "Odd Schema" RENAME TO plain')
    conn.execute("INSERT INTO plain.lines VALUES (3)")
    assert [r[0] for r in conn.execute("SELECT resource FROM audit.log ORDER BY resource_id")] \
        == ['"Odd Schema"."Order"', '"Odd Schema".lines', "plain.lines"]
    auditlib.check_integrity(conn)


def test_application_name_and_roles(table, db, role):
    user, group = role(), role("NOLOGIN")
    table.execute("GRANT ALL ON t TO %s; GRANT %s TO %s" % (group, group, user))
    with db.connect(user=user, options="-c application_name=shop") as other:
        other.execute("SET ROLE %s" % group)
        other.execute("INSERT INTO t VALUES (1, '')")
    assert table.execute("SELECT session_role, effective_role, application_name, client_addr FROM audit.log").fetchall() \
        == [(user, group, "shop", None)]


def test_security_definer_functions_show_both_roles(table, db, role):
    user = role()
    table.execute("""CREATE FUNCTION write() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO t VALUES (1, '''')';
                     GRANT EXECUTE ON FUNCTION write() TO %s""" % user)
    with db.connect(user=user) as other:
        other.execute("SELECT write()")
    assert table.execute("SELECT session_role, effective_role FROM audit.log").fetchall() == [(user, "postgres")]
