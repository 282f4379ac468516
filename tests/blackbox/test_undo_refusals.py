"""audit.undo: what it says of itself, and what it refuses, each time with a list and without a change."""

import psycopg
import pytest
from auditlib import check_integrity, connect_like, sqlstate


def last_changeset(conn):
    return conn.execute("SELECT id FROM audit.changeset ORDER BY era DESC, position DESC LIMIT 1").fetchone()[0]


def change(conn, *statements):
    """Runs them in a transaction; returns its changeset."""
    with conn.transaction():
        for statement in statements:
            conn.execute(statement)
    return last_changeset(conn)


def undo(conn, changeset, **arguments):
    named = "".join(f", {name} => {value}" for name, value in arguments.items())
    return conn.execute(f"SELECT step, statement, conflict FROM audit.undo(%s{named})", [changeset]).fetchall()


def assert_refused(conn, changeset, *words):
    """By the dry run in a list, and for real with 55000 and the same list, without a trace."""
    conflicts = [conflict for _, _, conflict in undo(conn, changeset) if conflict]
    assert conflicts
    for word in words:
        assert any(word in conflict for conflict in conflicts), (word, conflicts)
    count = conn.execute("SELECT count(*) FROM audit.event").fetchone()
    with sqlstate("55000") as caught:
        undo(conn, changeset, dry_run=False)
    assert caught.error.diag.message_detail.split("\n") == conflicts
    assert caught.error.diag.message_hint
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone() == count


@pytest.fixture
def shop(conn):
    conn.execute(
        """CREATE TABLE customer (id int PRIMARY KEY, name text);
           CREATE TABLE invoice (id int PRIMARY KEY, customer int REFERENCES customer ON DELETE CASCADE ON UPDATE CASCADE, total numeric);
           SELECT audit.enable('customer'), audit.enable('invoice');
           INSERT INTO customer VALUES (1, 'ann'), (2, 'bob');
           INSERT INTO invoice VALUES (10, 1, 5), (11, 1, 6), (12, 2, 7)"""
    )
    return conn


def test_statements_in_order(shop):
    changeset = change(shop, "DELETE FROM customer WHERE id = 1", "UPDATE customer SET name = 'b''o' WHERE id = 2")
    assert undo(shop, changeset) == [
        (1, "UPDATE ONLY public.customer SET name = 'bob' WHERE id = '2'", None),
        (2, "INSERT INTO public.customer (id, name) OVERRIDING SYSTEM VALUE VALUES ('1', 'ann')", None),
        (3, "INSERT INTO public.invoice (id, customer, total) OVERRIDING SYSTEM VALUE VALUES ('11', '1', '6')", None),
        (4, "INSERT INTO public.invoice (id, customer, total) OVERRIDING SYSTEM VALUE VALUES ('10', '1', '5')", None),
    ]
    assert shop.execute("SELECT count(*) FROM invoice").fetchone()[0] == 1


def test_it_is_recorded_with_a_reference(shop):
    changeset = change(shop, "DELETE FROM customer WHERE id = 1")
    shop.execute("SET audit.user_id = 'ann'; SET audit.reason = 'mistake'; SET audit.context = '{\"ticket\": 7}'")
    undo(shop, changeset, dry_run=False)
    user, reason, context, count = shop.execute(
        "SELECT user_id, reason, context, event_count FROM audit.changeset WHERE id = %s", [last_changeset(shop)]
    ).fetchone()
    assert (user, reason, context, count) == ("ann", "mistake", {"ticket": 7, "undoes": str(changeset)}, 3)
    assert shop.execute("SHOW audit.context").fetchone()[0] == '{"ticket": 7}'
    check_integrity(shop)


def test_its_own_context_ends_with_it(shop):
    """What the transaction does beside belongs to its own context."""
    changeset = change(shop, "UPDATE customer SET name = 'x'")
    with shop.transaction():
        undo(shop, changeset, dry_run=False)
        shop.execute("INSERT INTO customer VALUES (3, 'cid')")
    rows = shop.execute("SELECT context ->> 'undoes', count(*) FROM audit.log WHERE occurred_at > (SELECT max(occurred_at) - interval '1 hour' FROM audit.log)"
                        " AND resource_id = '3' OR context ? 'undoes' GROUP BY 1 ORDER BY 1").fetchall()  # fmt: skip
    assert rows == [(str(changeset), 2), (None, 1)]


def test_changed_since(shop):
    changeset = change(shop, "UPDATE customer SET name = upper(name)", "INSERT INTO customer VALUES (3, 'cid')")
    shop.execute("SET audit.user_id = 'eve'")
    later = change(shop, "UPDATE customer SET name = 'Eve' WHERE id = 1", "UPDATE customer SET id = 4 WHERE id = 3")
    assert_refused(
        shop, changeset, "customer row 1: changed since: name", "customer row 3: it is gone, or has another key", f"changeset {later} by eve"
    )
    # What came later first.
    undo(shop, later, dry_run=False)
    undo(shop, changeset, dry_run=False)
    assert shop.execute("SELECT * FROM customer ORDER BY id").fetchall() == [(1, "ann"), (2, "bob")]


def test_other_columns_may_have_changed(shop):
    changeset = change(shop, "UPDATE invoice SET total = 0 WHERE id = 10")
    shop.execute("UPDATE invoice SET customer = 2 WHERE id = 10")
    undo(shop, changeset, dry_run=False)
    assert shop.execute("SELECT * FROM invoice WHERE id = 10").fetchone() == (10, 2, 5)


def test_there_again(shop):
    changeset = change(shop, "DELETE FROM invoice WHERE id = 12")
    shop.execute("INSERT INTO invoice VALUES (12, 1, 1)")
    assert_refused(shop, changeset, "invoice row 12: there is such a row again")


def test_referred_to_since(shop):
    changeset = change(shop, "INSERT INTO customer VALUES (3, 'cid')", "INSERT INTO invoice VALUES (13, 3, 1)")
    shop.execute("INSERT INTO invoice VALUES (14, 3, 1), (15, 3, 1)")
    assert_refused(shop, changeset, "2 row(s) of public.invoice refer to it")
    shop.execute("DELETE FROM invoice WHERE id IN (14, 15)")
    undo(shop, changeset, dry_run=False)
    assert shop.execute("SELECT count(*) FROM customer").fetchone()[0] == 2


@pytest.mark.parametrize(
    "before, statement, after, word",
    [
        ("", "TRUNCATE t", "", "holds no rows"),
        ("", "INSERT INTO t VALUES (9, 9)", "DROP TABLE t", "the table is gone"),
        ("", "INSERT INTO t VALUES (9, 9)", "SELECT audit.disable('t')", "not audited any more"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "INSERT INTO t VALUES (9, 9)", "", "without a key"),
        ("", "INSERT INTO t VALUES (9, 9)", "ALTER TABLE t DROP id", "a column of the key is gone"),
        ("SELECT audit.enable('t', exclude_columns => '{v}')", "DELETE FROM t WHERE id = 1", "", "the record lacks v"),
        ("SELECT audit.enable('t', mask_columns => '{v}')", "UPDATE t SET v = 7", "", "no value of v"),
        ("SET audit.max_value_bytes = 4", "DELETE FROM t WHERE id = 2", "", "no value of v"),
        ("", "DELETE FROM t WHERE id = 1", "SELECT audit.erase('t', '1', 'asked for')", "its record was erased"),
    ],
)
def test_what_is_not_recorded(conn, before, statement, after, word):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 'a'), (2, 'bbbbbbb')")
    if before:
        conn.execute(before)
    changeset = change(conn, statement)
    if after:
        conn.execute(after)
    assert_refused(conn, changeset, word)


def test_masked_values_that_did_not_change(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text, n int); SELECT audit.enable('t', mask_columns => '{v}'); INSERT INTO t VALUES (1, 'a', 1)")
    undo(conn, change(conn, "UPDATE t SET n = 2"), dry_run=False)
    assert conn.execute("SELECT * FROM t").fetchall() == [(1, "a", 1)]


def test_columns_that_changed_since(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v int, gone int); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 1, 1), (2, 2, 2)")
    changeset = change(conn, "UPDATE t SET v = 7, gone = 8", "DELETE FROM t WHERE id = 2")
    conn.execute("ALTER TABLE t DROP gone; ALTER TABLE t RENAME v TO w; ALTER TABLE t ALTER w TYPE text; ALTER TABLE t ADD x int DEFAULT 5; ALTER TABLE t RENAME TO u")
    undo(conn, changeset, dry_run=False)
    assert conn.execute("SELECT * FROM u ORDER BY id").fetchall() == [(1, "1", 5), (2, "2", 5)]


def test_all_or_nothing(shop):
    changeset = change(shop, "DELETE FROM invoice WHERE id = 10", "UPDATE customer SET name = 'x' WHERE id = 1")
    shop.execute("ALTER TABLE invoice ADD CONSTRAINT small CHECK (total < 5) NOT VALID")
    before = shop.execute("SELECT * FROM customer ORDER BY id").fetchall()
    with sqlstate("23514"):
        undo(shop, changeset, dry_run=False)
    assert shop.execute("SELECT * FROM customer ORDER BY id").fetchall() == before
    assert shop.execute("SHOW audit.context").fetchone()[0] in ("", None)


def test_triggers_that_change_rows_again(shop):
    shop.execute(
        """CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := NEW.name || '!'; RETURN NEW; END $$;
           CREATE TRIGGER stamp BEFORE UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION stamp()"""
    )
    changeset = change(shop, "UPDATE customer SET name = 'x' WHERE id = 1")
    with sqlstate("55000") as caught:
        undo(shop, changeset, dry_run=False)
    assert "customer row 1" in caught.error.diag.message_detail
    assert shop.execute("SELECT name FROM customer WHERE id = 1").fetchone()[0] == "x!"
    undo(shop, changeset, dry_run=False, exact=False)
    assert shop.execute("SELECT name FROM customer WHERE id = 1").fetchone()[0] == "ann!"


def test_a_trigger_that_swallows_it(shop):
    changeset = change(shop, "UPDATE customer SET name = 'x' WHERE id = 1")
    shop.execute(
        """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
           CREATE TRIGGER swallow BEFORE UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION swallow()"""
    )
    with sqlstate("55000"):
        undo(shop, changeset, dry_run=False)


def test_triggers_of_the_table_have_the_callers_search_path(shop):
    shop.execute(
        """CREATE SCHEMA mine; CREATE TABLE mine.seen (id int); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO seen VALUES (NEW.id); RETURN NULL; END $$;
           CREATE TRIGGER note AFTER UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION note(); SET search_path = public, mine"""
    )
    undo(shop, change(shop, "UPDATE customer SET name = 'x' WHERE id = 1"), dry_run=False)
    assert shop.execute("SELECT count(*) FROM seen").fetchone()[0] == 2


def test_partitions(conn):
    conn.execute(
        """CREATE TABLE p (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
           CREATE TABLE north PARTITION OF p FOR VALUES IN ('n'); CREATE TABLE south PARTITION OF p FOR VALUES IN ('s');
           SELECT audit.enable('p'); INSERT INTO p VALUES (1, 'n', 1), (2, 's', 2)"""
    )
    changeset = change(conn, "UPDATE p SET region = CASE region WHEN 'n' THEN 's' ELSE 'n' END", "INSERT INTO p VALUES (3, 'n', 3)", "UPDATE p SET v = v + 1")
    undo(conn, changeset, dry_run=False)
    assert conn.execute("SELECT tableoid::regclass::text, * FROM p ORDER BY id").fetchall() == [("north", 1, "n", 1), ("south", 2, "s", 2)]


def test_names_that_need_quotes(conn):
    conn.execute('CREATE SCHEMA "S x"; CREATE TABLE "S x"."T ""q""" ("a b" int PRIMARY KEY, "select" text)')
    conn.execute("SELECT audit.enable(%s)", ['"S x"."T ""q"""'])
    conn.execute('INSERT INTO "S x"."T ""q""" VALUES (1, %s)', ["it's \\ $x$"])
    undo(conn, change(conn, 'DELETE FROM "S x"."T ""q"""'), dry_run=False)
    assert conn.execute('SELECT * FROM "S x"."T ""q"""').fetchall() == [(1, "it's \\ $x$")]


def test_unknown_and_uncommitted(shop):
    for bad, code in [("00000000-0000-7000-8000-000000000007", "22023"), (None, "22004")]:
        with sqlstate(code):
            undo(shop, bad)
    shop.execute("BEGIN; UPDATE customer SET name = 'x'")
    own = shop.execute("SELECT id FROM audit.pending_changesets()").fetchone()[0]
    assert len(undo(shop, own)) == 2
    with sqlstate("55000"):
        undo(shop, own, dry_run=False)
    shop.execute("ROLLBACK")


def test_with_the_callers_rights(shop, role):
    """Who may read the log sees the statements; to run them takes the right to each of them."""
    changeset = change(shop, "DELETE FROM customer WHERE id = 1")
    reader, user, clerk = role(), role(), role()
    shop.execute("SELECT audit.grant_reader(%s), audit.grant_reader(%s)", [reader, clerk])
    shop.execute(f"GRANT ALL ON customer, invoice TO {clerk}, {user}; GRANT SELECT ON customer, invoice TO {reader}")
    shop.execute(f"SET SESSION AUTHORIZATION {user}")
    with sqlstate("42501"):
        undo(shop, changeset)
    shop.execute(f"SET SESSION AUTHORIZATION {reader}")
    assert len(undo(shop, changeset)) == 3
    with sqlstate("42501"):
        undo(shop, changeset, dry_run=False)
    shop.execute(f"SET SESSION AUTHORIZATION {clerk}")
    undo(shop, changeset, dry_run=False)
    shop.execute("RESET SESSION AUTHORIZATION")
    assert shop.execute("SELECT count(*) FROM invoice").fetchone()[0] == 3


def test_what_others_do_meanwhile(shop):
    """Rows to be changed back are locked before they are looked at."""
    changeset = change(shop, "UPDATE customer SET name = 'x' WHERE id = 1")
    with connect_like(shop) as other:
        shop.execute("BEGIN")
        undo(shop, changeset, dry_run=False)
        other.execute("SET lock_timeout = '100ms'")
        with sqlstate("55P03"):
            other.execute("UPDATE customer SET name = 'y' WHERE id = 1")
        shop.execute("COMMIT")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            undo(other, changeset, dry_run=False)


def test_read_only(shop):
    changeset = change(shop, "DELETE FROM customer WHERE id = 1")
    shop.execute("BEGIN READ ONLY")
    assert len(undo(shop, changeset)) == 3
    with sqlstate("25006"):
        undo(shop, changeset, dry_run=False)
    shop.execute("ROLLBACK")
