"""The life of rows: audit.history, audit.row_as_of, audit.diff."""

import uuid

import pytest
from auditlib import sqlstate


def history(conn, table, key, columns="operation, changes"):
    return conn.execute(f"SELECT {columns} FROM audit.history(%s, %s) ORDER BY version", [table, key]).fetchall()


def operations(conn, table, key):
    return [row[0] for row in history(conn, table, key, "operation")]


def now(conn):
    return conn.execute("SELECT clock_timestamp()").fetchone()[0]


def as_of(conn, table, key, at):
    return conn.execute("SELECT audit.row_as_of(%s, %s, %s)", [table, key, at]).fetchone()[0]


def last_changeset(conn):
    return conn.execute("SELECT id FROM audit.changeset ORDER BY position DESC LIMIT 1").fetchone()[0]


# One row per version


def test_versions_of_a_row(conn):
    conn.execute("CREATE TABLE account (id int PRIMARY KEY, owner text, balance numeric); SELECT audit.enable('account')")
    times = [now(conn)]
    for user, statement in [
        ("ann", "INSERT INTO account VALUES (1, 'ann', 100.00), (2, 'bob', 7)"),
        ("bob", "UPDATE account SET balance = 50, owner = 'ann b' WHERE id = 1"),
        (None, "DELETE FROM account WHERE id = 1"),
        ("ann", "INSERT INTO account VALUES (1, 'eve', NULL)"),
    ]:
        with conn.transaction():
            conn.execute("SELECT audit.set_context(user_id => %s, reason => 'because')", [user])
            conn.execute(statement)
        times.append(now(conn))
    first, second = {"id": 1, "owner": "ann", "balance": 100.0}, {"id": 1, "owner": "ann b", "balance": 50}
    third = {"id": 1, "owner": "eve", "balance": None}
    rows = history(conn, "account", "1", "version, user_id, operation, changes, row_after, reason, resource, resource_id, occurred_at")
    assert [row[:5] for row in rows] == [
        (1, "ann", "INSERT", {name: {"new": value} for name, value in first.items()}, first),
        (2, "bob", "UPDATE", {"owner": {"old": "ann", "new": "ann b"}, "balance": {"old": 100.0, "new": 50}}, second),
        (3, None, "DELETE", {name: {"old": value} for name, value in second.items()}, None),
        (4, "ann", "INSERT", {name: {"new": value} for name, value in third.items()}, third),
    ]
    assert {row[5:8] for row in rows} == {("because", "public.account", "1")}
    assert all(before < row[8] < after for before, row, after in zip(times, rows, times[1:], strict=False))
    assert [as_of(conn, "account", "1", at) for at in times] == [None, first, second, None, third]
    assert history(conn, "account", "3") == []
    assert as_of(conn, "account", "3", times[0]) is None


def test_what_this_transaction_did_is_shown(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v int); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 1)")
    conn.execute("BEGIN; UPDATE t SET v = 2; SAVEPOINT a; UPDATE t SET v = 3; ROLLBACK TO a; UPDATE t SET v = 4")
    assert [row[0]["v"] for row in history(conn, "t", "1", "row_after")] == [1, 2, 4]
    assert as_of(conn, "t", "1", now(conn))["v"] == 4
    conn.execute("ROLLBACK")
    assert operations(conn, "t", "1") == ["INSERT"]


def test_a_change_of_the_key_is_in_both_histories(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text); SELECT audit.enable('t')")
    conn.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    conn.execute("UPDATE t SET id = 3 WHERE id = 1")
    at = now(conn)
    conn.execute("UPDATE t SET id = 5 - id")  # each takes the other's key
    assert operations(conn, "t", "1") == ["INSERT", "UPDATE"]
    assert operations(conn, "t", "3") == ["UPDATE", "UPDATE", "UPDATE"]
    assert [row[0] for row in history(conn, "t", "3", "row_after ->> 'v'")] == ["a", "a", "b"]
    assert as_of(conn, "t", "1", at) is None
    assert as_of(conn, "t", "3", at) == {"id": 3, "v": "a"}
    assert as_of(conn, "t", "3", now(conn)) == {"id": 3, "v": "b"}
    assert as_of(conn, "t", "2", now(conn)) == {"id": 2, "v": "a"}


def test_one_command_takes_a_key_and_gives_it(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 'a')")
    conn.execute("WITH gone AS (DELETE FROM t RETURNING id) INSERT INTO t SELECT 1, 'b' FROM (SELECT count(*) FROM gone) AS first")
    assert operations(conn, "t", "1") == ["INSERT", "DELETE", "INSERT"]
    assert as_of(conn, "t", "1", now(conn)) == {"id": 1, "v": "b"}


@pytest.mark.parametrize(
    "key_type, written",
    [
        ("int", ["7", " 07 "]),
        ("numeric(8,2)", ["7.50", "7.5", "75e-1"]),
        ("timestamptz", ["2024-05-06T07:08:09+00:00", "2024-05-06 09:08:09+02"]),
        ("uuid", ["00000000-0000-4000-8000-0000000000ab", "{00000000000040008000-0000000000AB}"]),
        ("char(5)", ["ab   ", "ab"]),
        ("text", ['it\'s "a" \\ key']),
        ("bytea", ["\\x00ff", "\\000\\377"]),
        ("date", ["2024-02-29", "29 feb 2024"]),
        ("boolean", ["true", "yes"]),
        ("mood", ["so so"]),
        ("positive", ["7", "+7"]),
        ("tsrange", ['["2024-01-01 00:00:00","2024-01-02 00:00:00")', "[2024-01-01,2024-01-02)"]),
    ],
)
def test_a_key_can_be_written_in_many_ways(conn, key_type, written):
    conn.execute("CREATE TYPE mood AS ENUM ('fine', 'so so'); CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    conn.execute(f"CREATE TABLE t (id {key_type} PRIMARY KEY, v int); SELECT audit.enable('t')")
    conn.execute(f"INSERT INTO t SELECT %s::{key_type}, 1", [written[0]])
    conn.execute("SET DateStyle = 'German'; SET TimeZone = 'Asia/Kathmandu'; SET bytea_output = 'escape'")
    for text in written:
        assert operations(conn, "t", text) == ["INSERT"], text


def test_composite_keys(conn):
    conn.execute("CREATE TABLE t (b text, n numeric(6,1), v int, PRIMARY KEY (n, b)); SELECT audit.enable('t')")
    conn.execute("INSERT INTO t VALUES ('x', 1.5, 1); UPDATE t SET v = 2")
    for key in ('[1.5, "x"]', '[1.50,"x"]', ' ["1.5" , "x" ]'):
        assert operations(conn, "t", key) == ["INSERT", "UPDATE"], key
    for bad in ("1.5", '["x", 1.5]', "[1.5]", '[1.5, "x", 1]', '{"n": 1}', "[1.5", '"x"', ""):
        with sqlstate("22023") as caught:
            history(conn, "t", bad)
        assert "[7, " in caught.error.diag.message_hint


def test_reading_a_key_runs_no_code_of_others(conn, role, db):
    """A domain's check is its owner's code, which is not to run with the rights of who looks at a history."""
    name = role()
    conn.execute(f"CREATE SCHEMA mine AUTHORIZATION {name}")
    conn.execute("SET SESSION AUTHORIZATION " + name)
    conn.execute("CREATE FUNCTION mine.fine(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING '%', current_user; RETURN true; END $$")
    conn.execute("CREATE DOMAIN mine.key AS text CHECK (mine.fine(VALUE)); CREATE TABLE mine.t (id mine.key PRIMARY KEY, v mine.key)")
    conn.execute("RESET SESSION AUTHORIZATION; SELECT audit.enable('mine.t')")
    notices = []
    conn.execute("SET SESSION AUTHORIZATION " + name)
    conn.execute("INSERT INTO mine.t VALUES ('a', 'b')")
    conn.execute("RESET SESSION AUTHORIZATION")
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    assert operations(conn, "mine.t", "a") == ["INSERT"]
    assert as_of(conn, "mine.t", "a", now(conn)) == {"id": "a", "v": "b"}
    assert history(conn, "mine.t", "z") == []
    assert notices == []


# Through changes of the table


def test_truncate_ends_all_rows(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); INSERT INTO t VALUES (1), (2); DELETE FROM t WHERE id = 2")
    before = now(conn)
    conn.execute("TRUNCATE t")
    between = now(conn)
    conn.execute("INSERT INTO t VALUES (1)")
    assert operations(conn, "t", "1") == ["INSERT", "TRUNCATE", "INSERT"]
    assert operations(conn, "t", "2") == ["INSERT", "DELETE"]
    assert operations(conn, "t", "3") == []
    assert [as_of(conn, "t", "1", at) for at in (before, between, now(conn))] == [{"id": 1}, None, {"id": 1}]


def test_renamed_moved_altered(conn):
    conn.execute("CREATE SCHEMA s; CREATE TABLE t (id int PRIMARY KEY, v int); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 1)")
    conn.execute("ALTER TABLE t RENAME TO u; ALTER TABLE u SET SCHEMA s; ALTER TABLE s.u RENAME v TO w")
    conn.execute("UPDATE s.u SET w = 2; ALTER TABLE s.u ALTER id TYPE text; UPDATE s.u SET w = 3")
    conn.execute("ALTER TABLE s.u DROP w; ALTER TABLE s.u ADD x text; UPDATE s.u SET x = 'y'")
    assert history(conn, "s.u", "1", "resource, row_after") == [
        ("public.t", {"id": 1, "v": 1}),
        ("s.u", {"id": 1, "w": 2}),
        ("s.u", {"id": "1", "w": 2}),  # the SNAPSHOT of what ALTER TYPE rewrote
        ("s.u", {"id": "1", "w": 3}),
        ("s.u", {"id": "1", "x": "y"}),
    ]


def test_a_table_of_the_same_name_is_another(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); INSERT INTO t VALUES (1); DROP TABLE t")
    conn.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with sqlstate("55000") as caught:
        history(conn, "t", "1")
    assert "audit.enable" in caught.error.diag.message_hint
    conn.execute("SELECT audit.enable('t'); INSERT INTO t VALUES (1)")
    assert operations(conn, "t", "1") == ["INSERT"]


def test_partitions(conn):
    conn.execute(
        """CREATE TABLE p (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
           CREATE TABLE north PARTITION OF p FOR VALUES IN ('n'); CREATE TABLE south PARTITION OF p FOR VALUES IN ('s');
           SELECT audit.enable('p'); INSERT INTO p VALUES (1, 'n', 1); UPDATE p SET v = 2; UPDATE p SET region = 's'"""
    )
    before = now(conn)
    conn.execute("TRUNCATE north")
    assert operations(conn, "p", '[1, "n"]') == ["INSERT", "UPDATE", "DELETE"]
    assert history(conn, "p", '[1, "s"]', "operation, resource") == [("INSERT", "public.south")]
    assert operations(conn, "north", '[1, "n"]') == ["INSERT", "UPDATE", "DELETE"]
    conn.execute("TRUNCATE p")
    assert operations(conn, "p", '[1, "s"]') == ["INSERT", "TRUNCATE"]
    assert as_of(conn, "p", '[1, "s"]', now(conn)) is None
    assert as_of(conn, "p", '[1, "s"]', before) == {"id": 1, "region": "s", "v": 2}
    # Of a partition that is dropped, the records stay the root's.
    conn.execute("INSERT INTO p VALUES (2, 'n', 1); DROP TABLE north; CREATE TABLE south2 PARTITION OF p FOR VALUES IN ('n')")
    assert operations(conn, "p", '[2, "n"]') == ["INSERT"]


def test_a_copy_of_the_database_goes_on(db, conn, new_db):
    """Another era: positions may begin anew."""
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v int); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 1)")
    before = now(conn)
    conn.execute("UPDATE t SET v = 2")
    conn.close()
    copy = new_db(extension=False)
    copy.cluster.drop_db(copy.name)
    copy.cluster.create_db(copy.name, db.name)
    with copy.connect() as conn:
        conn.execute("UPDATE t SET v = 3")
        assert conn.execute("SELECT max(era) FROM audit.changeset").fetchone()[0] == 2
        assert [row[0]["v"] for row in history(conn, "t", "1", "row_after")] == [1, 2, 3]
        assert as_of(conn, "t", "1", before) == {"id": 1, "v": 1}
        assert conn.execute("SELECT * FROM audit.table_as_of(NULL::t, %s)", [before]).fetchall() == [(1, 1)]


def test_a_restore_goes_on(new_cluster):
    """In another cluster oids mean nothing: names tell."""
    old, new = new_cluster(), new_cluster()
    with old.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY, v int); SELECT audit.enable('t')")
        conn.execute("INSERT INTO t VALUES (1, 1); ALTER TABLE t RENAME TO account; ALTER TABLE account RENAME v TO balance")
        conn.execute("UPDATE account SET balance = 2")
        before = now(conn)
    dump = old.run([old.bin("pg_dump"), "postgres"]).stdout
    with new.connect() as conn:  # so that oids differ
        conn.execute("CREATE TABLE a (); CREATE TABLE b (); CREATE TABLE c (); DROP TABLE a, b, c")
    new.run([new.bin("psql"), "-X", "-q", "-d", "postgres", "-f", "-"], input=dump)
    with new.connect() as conn:
        conn.execute("UPDATE account SET balance = 3; ALTER TABLE account RENAME balance TO amount; UPDATE account SET amount = 4")
        assert history(conn, "account", "1", "resource, row_after") == [
            ("public.t", {"id": 1, "v": 1}),
            ("public.account", {"id": 1, "balance": 2}),
            ("public.account", {"id": 1, "balance": 3}),
            ("public.account", {"id": 1, "amount": 4}),
        ]
        assert as_of(conn, "account", "1", before) == {"id": 1, "balance": 2}
        assert conn.execute("SELECT id, amount FROM audit.table_as_of(NULL::account, %s)", [before]).fetchall() == [(1, 2)]


def test_a_snapshot_says_what_is_gone(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2); SELECT audit.enable('t', snapshot => true)")
    before = now(conn)
    conn.execute("SELECT audit.disable('t'); DELETE FROM t WHERE id = 1; SELECT audit.enable('t', snapshot => true)")
    assert operations(conn, "t", "1") == ["SNAPSHOT"]
    assert operations(conn, "t", "2") == ["SNAPSHOT", "SNAPSHOT"]
    assert [as_of(conn, "t", "1", at) for at in (before, now(conn))] == [{"id": 1}, None]
    assert conn.execute("SELECT id FROM audit.table_as_of(NULL::t, now())").fetchall() == [(2,)]


def test_erased_rows(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    at, changeset = now(conn), last_changeset(conn)
    conn.execute("SELECT audit.erase('t', '1', 'asked for')")
    assert operations(conn, "t", "1") == []
    assert as_of(conn, "t", "1", at) is None
    assert conn.execute("SELECT * FROM audit.table_as_of(NULL::t, %s)", [at]).fetchall() == [(2, "b")]
    conn.execute("UPDATE t SET v = 'c' WHERE id = 1")
    assert conn.execute("SELECT * FROM audit.table_as_of(NULL::t, now()) ORDER BY 1").fetchall() == [(1, "c"), (2, "b")]
    diff = conn.execute("SELECT seq, column_name FROM audit.diff(%s)", [changeset]).fetchall()
    assert diff == [(0, None), (1, "id"), (1, "v")]


# A changeset


def test_diff(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text, w int); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)")
    with conn.transaction():
        conn.execute("UPDATE t SET v = upper(v) WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (3)")
        conn.execute("UPDATE t SET w = w WHERE id = 1; TRUNCATE t")
    found = conn.execute(
        "SELECT operation, resource, resource_id, column_name, old_value, new_value FROM audit.diff(%s)", [last_changeset(conn)]
    ).fetchall()
    t = "public.t"
    assert found == [
        ("UPDATE", t, "1", "v", "a", "A"),
        ("DELETE", t, "2", "id", 2, None),
        ("DELETE", t, "2", "v", "b", None),
        ("DELETE", t, "2", "w", 2, None),
        ("INSERT", t, "3", "id", None, 3),
        ("INSERT", t, "3", "v", None, None),
        ("INSERT", t, "3", "w", None, None),
        ("UPDATE", t, "1", None, None, None),
        ("TRUNCATE", t, None, None, None, None),
    ]


# Bad input


@pytest.mark.parametrize(
    "code, call",
    [
        ("42P01", "audit.history('nowhere', '1')"),
        ("22004", "audit.history(NULL, '1')"),
        ("22004", "audit.history('t', NULL)"),
        ("22023", "audit.history('t', 'one')"),
        ("22023", "audit.history('t', '')"),
        ("22023", "audit.history('t', '99999999999')"),
        ("22023", "audit.history('t', '[1]')"),
        ("55000", "audit.history('unaudited', '1')"),
        ("55000", "audit.history('keyless', '1')"),
        ("22023", "audit.row_as_of('t', '1', now() + interval '1 hour')"),
        ("22023", "audit.row_as_of('t', '1', 'infinity')"),
        ("22004", "audit.row_as_of('t', '1', NULL)"),
        ("55000", "audit.row_as_of('unaudited', '1', now())"),
        ("22023", "audit.table_as_of(NULL::t, now() + interval '1 hour')"),
        ("22004", "audit.table_as_of(NULL::t, NULL)"),
        ("42809", "audit.table_as_of(NULL::text, now())"),
        ("42809", "audit.table_as_of(NULL::some_view, now())"),
        ("42809", "audit.table_as_of(NULL::pair, now())"),
        ("55000", "audit.table_as_of(NULL::unaudited, now())"),
        ("22023", f"audit.diff('{uuid.UUID(int=7)}')"),
        ("22004", "audit.diff(NULL)"),
    ],
)
def test_bad_input(conn, code, call):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE unaudited (id int PRIMARY KEY); CREATE TABLE keyless (v int)")
    conn.execute("CREATE VIEW some_view AS SELECT 1 AS one; CREATE TYPE pair AS (a int, b int)")
    conn.execute("SELECT audit.enable('t'), audit.enable('keyless'); INSERT INTO t VALUES (1); INSERT INTO keyless VALUES (1)")
    with sqlstate(code) as caught:
        conn.execute(f"SELECT * FROM {call}")
    diag = caught.error.diag
    assert diag.message_hint or code in ("42P01", "22004"), diag.message_primary


def test_beginning_of_time(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); INSERT INTO t VALUES (1)")
    assert as_of(conn, "t", "1", "-infinity") is None
    assert conn.execute("SELECT * FROM audit.table_as_of(NULL::t, '-infinity')").fetchall() == []
    assert conn.execute("SELECT * FROM audit.table_as_of(NULL::t, '1000-01-01')").fetchall() == []


# Rights

CALLS = ["audit.history('t', '1')", "audit.row_as_of('t', '1', now())", "audit.table_as_of(NULL::t, now())", "audit.diff(%(id)s)"]


@pytest.mark.parametrize("call", CALLS)
def test_for_readers_alone(conn, role, call):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t'); INSERT INTO t VALUES (1)")
    arguments = {"id": last_changeset(conn)}
    user, reader = role(), role()
    conn.execute(f"GRANT SELECT ON t TO {user}")
    conn.execute("SELECT audit.grant_reader(%s)", [reader])
    conn.execute(f"SET SESSION AUTHORIZATION {user}")
    with sqlstate("42501"):
        conn.execute(f"SELECT * FROM {call}", arguments)
    conn.execute("RESET SESSION AUTHORIZATION")
    # Without any right on the table itself: the log is what he reads.
    conn.execute(f"SET SESSION AUTHORIZATION {reader}")
    assert len(conn.execute(f"SELECT * FROM {call}", arguments).fetchall()) == 1
