"""audit.table_as_of: at random times equal to copies kept of the table, whatever became of it since."""

import random
from collections import Counter

import psycopg
import pytest
from auditlib import sqlstate

KINDS = ["keyed", "composite", "keyless", "partitioned", "inherited"]


class Table:
    """A table that changes, with the columns it has now."""

    def __init__(self, conn, r, kind):
        self.conn, self.r, self.kind = conn, r, kind
        self.columns = {"v": "text", "n": "int"}
        self.number = 0
        key = {"keyed": "id int PRIMARY KEY", "composite": "id int, k text, PRIMARY KEY (k, id)", "keyless": "id int",
               "partitioned": "id int PRIMARY KEY", "inherited": "id int PRIMARY KEY"}[kind]  # fmt: skip
        conn.execute(f"CREATE TABLE t (gone int, {key}, v text, n int){' PARTITION BY RANGE (id)' if kind == 'partitioned' else ''}")
        # Column numbers are to differ from those of partitions.
        conn.execute("ALTER TABLE t DROP gone")
        if kind == "partitioned":
            conn.execute("CREATE TABLE low PARTITION OF t FOR VALUES FROM (MINVALUE) TO (5)")
            conn.execute("CREATE TABLE high (n int, v text, id int PRIMARY KEY); ALTER TABLE t ATTACH PARTITION high FOR VALUES FROM (5) TO (100)")
        elif kind == "inherited":
            conn.execute("CREATE TABLE low (extra int, PRIMARY KEY (id)) INHERITS (t)")
        conn.execute("SELECT audit.enable('t')")

    def value(self, column):
        r = self.r
        if r.random() < 0.15:
            return None
        kind = self.columns[column]
        return str(r.randint(0, 9)) if kind == "text" else r.randint(0, 9)

    def change(self):
        r, conn = self.r, self.conn
        draw = r.random()
        if draw < 0.45:
            columns = r.sample(list(self.columns), r.randint(0, len(self.columns)))
            names = ["id"] + (["k"] if self.kind == "composite" else []) + columns
            values = [r.randint(0, 9)] + ([r.choice("ab")] if self.kind == "composite" else []) + [self.value(c) for c in columns]
            table = "low" if self.kind == "inherited" and r.random() < 0.5 else "t"
            conflict = "ON CONFLICT DO NOTHING" if self.kind != "keyless" else ""
            conn.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))}) {conflict}", values)
        elif draw < 0.75 and self.columns:
            column = r.choice(list(self.columns))
            conn.execute(f"UPDATE t SET {column} = %s WHERE id %% 3 = %s", [self.value(column), r.randint(0, 2)])
        elif draw < 0.85:
            try:
                with conn.transaction():
                    conn.execute("UPDATE t SET id = 9 - id WHERE id IN (%s, %s)", [r.randint(0, 9), r.randint(0, 9)])
            except psycopg.errors.UniqueViolation:
                pass
        elif draw < 0.97:
            conn.execute("DELETE FROM t WHERE id = %s", [r.randint(0, 9)])
        else:
            conn.execute(f"TRUNCATE {r.choice(['t', 'low']) if self.kind in ('partitioned', 'inherited') else 't'}")

    def alter(self):
        """ALTER TABLE that leaves the contents of earlier times readable in the new columns."""
        r, conn = self.r, self.conn
        draw = r.random()
        self.number += 1
        new = f"c{self.number}"
        if draw < 0.35:
            kind = r.choice(["text", "int"])
            default = r.choice(["", " DEFAULT 7", " DEFAULT 8"])
            conn.execute(f"ALTER TABLE t ADD {new} {kind}{default}")
            self.columns[new] = kind
            # A rewrite, which has no event, makes the column's values in old rows its own: only before that they can be told.
            conn.execute("UPDATE t SET id = id WHERE (tableoid, ctid) IN (SELECT DISTINCT ON (tableoid) tableoid, ctid FROM t)")
        elif draw < 0.55 and self.columns:
            column = r.choice(list(self.columns))
            conn.execute(f"ALTER TABLE t DROP {column}")
            del self.columns[column]
        elif draw < 0.75 and self.columns:
            column = r.choice(list(self.columns))
            conn.execute(f"ALTER TABLE t RENAME {column} TO {new}")
            self.columns[new] = self.columns.pop(column)
        elif draw < 0.9 and self.columns:
            column = r.choice(list(self.columns))
            kind = "int" if self.columns[column] == "text" else "text"
            # What a rewrite gives rows has no event: so the same values.
            conn.execute(f"ALTER TABLE t ALTER {column} DROP DEFAULT, ALTER {column} TYPE {kind} USING {column}::{kind}")
            self.columns[column] = kind
        else:
            conn.execute("ALTER TABLE t RENAME TO u; ALTER TABLE u RENAME TO t")


def keep(conn, number):
    """A copy that goes with the table through what ALTER TABLE does to it."""
    conn.execute(f"CREATE TABLE copy_{number} AS SELECT tableoid::regclass::text AS kept_of, * FROM t")


def rows(conn, query, columns, *arguments):
    """As text, so that a copy made under the old types compares with the new."""
    return Counter(conn.execute(f"SELECT {', '.join(f'{c}::text' for c in columns)} FROM {query}", arguments).fetchall())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_copies(db, kind, seed):
    run(db, kind, seed, changes=120, alters=8)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(100, 120))
def test_equals_copies_many_times(db, kind, seed):
    run(db, kind, seed, changes=600, alters=30)


def run(db, kind, seed, changes, alters):
    r = random.Random(f"{kind} {seed}")
    conn = db.connect(prepare_threshold=None)  # types change
    table = Table(conn, r, kind)
    copies = {}  # number -> (time, {column of the copy: column now})
    steps = ["change"] * changes + ["alter"] * alters
    # ADD COLUMN on an empty or hardly filled table would show little.
    r.shuffle(steps)
    steps = ["change"] * 20 + steps
    kept_at = set(r.sample(range(20, len(steps)), 10))
    for number, step in enumerate(steps):
        if number in kept_at:
            keep(conn, number)
            at = conn.execute("SELECT clock_timestamp()").fetchone()[0]
            copies[number] = (at, {column: column for column in ["id", *table.columns]})
        if step == "change":
            # Often several changes in a transaction.
            with conn.transaction():
                for _ in range(r.choice([1, 1, 3])):
                    with conn.transaction():
                        table.change()
        else:
            before = {row[0]: row[1] for row in conn.execute(ATTRIBUTES)}
            table.alter()
            after = {row[0]: row[1] for row in conn.execute(ATTRIBUTES)}
            for kept, (_, names) in copies.items():
                for column, name in list(names.items()):
                    number_of = next(number for number, name_of in before.items() if name_of == name)
                    if number_of in after:
                        names[column] = after[number_of]
                    else:
                        del names[column]
                # A column that came since has the default in the old rows, too.
                for added in after.keys() - before.keys():
                    (default,) = conn.execute(DEFAULT, [after[added]]).fetchone()
                    conn.execute(f"ALTER TABLE copy_{kept} ADD added_{after[added]} text DEFAULT {default or 'NULL'}")
                    names[f"added_{after[added]}"] = after[added]
    assert len(copies) == 10
    for kept, (at, names) in copies.items():
        expected = rows(conn, f"copy_{kept}", list(names))
        found = rows(conn, "audit.table_as_of(NULL::t, %s)", list(names.values()), at)
        assert found == expected, (kept, names)
    assert rows(conn, "audit.table_as_of(NULL::t, clock_timestamp()) AS whole", ["whole"]) == rows(conn, "t AS whole", ["whole"])


ATTRIBUTES = "SELECT attnum, attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped"
DEFAULT = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attribute a LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = 't'::regclass AND attname = %s"


def test_types_and_settings(db):
    """Typed rows, whatever the session has set."""
    conn = db.connect()
    conn.execute("CREATE TYPE mood AS ENUM ('fine', 'so so'); CREATE TYPE pair AS (n int, t text); CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    conn.execute(
        """CREATE TABLE t (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), a timestamptz, b interval, c bytea, d float8, e numeric, f jsonb, g text[],
                           h mood, i pair, j positive, k inet, l numrange, m money, n date, o xml, p bit(3), q int[][], r json,
                           s int GENERATED ALWAYS AS (j * 2) STORED);
           SELECT audit.enable('t');
           SET TimeZone = 'Asia/Kathmandu'; SET IntervalStyle = 'sql_standard'; SET DateStyle = 'German'; SET bytea_output = 'escape'; SET extra_float_digits = 0;
           INSERT INTO t VALUES (DEFAULT, '04.05.2024 06:07:08.123456', '1 year -2 days +03:04:05', '\\x00ff', 0.1 + 0.2::float8, 1.50, '{"a": [1, 2.50]}', '{x,NULL,"y,"}',
                                 'so so', '(1,"a b")', 3, '10.0.0.0/8', '[1,2.5)', 12.25, 'infinity', '<a/>', '101', '{{1,2},{3,NULL}}', '{"k": 1}'),
                                (DEFAULT, 'infinity', NULL, '', 'NaN', 'Infinity', '[null]', '{}', NULL, NULL, NULL, NULL, 'empty', -1, '0044-03-15 BC', NULL, NULL, '{}', '[]')"""
    )
    assert rows(conn, "audit.table_as_of(NULL::t, now()) AS whole", ["whole"]) == rows(conn, "t AS whole", ["whole"])


def test_after_a_new_column_was_written_by_a_transaction_under_way(db):
    """Only what was committed by a transaction as a whole is shown."""
    conn, other = db.connect(), db.connect()
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v int); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 1), (2, 1)")
    other.execute("BEGIN; UPDATE t SET v = 2 WHERE id = 1")
    at = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    conn.execute("UPDATE t SET v = 3 WHERE id = 2")
    other.execute("UPDATE t SET v = 4 WHERE id = 2; COMMIT")
    # The other transaction began before that time, and committed after one that began later: it is not in it.
    assert conn.execute("SELECT id, v FROM audit.table_as_of(NULL::t, %s) ORDER BY 1", [at]).fetchall() == [(1, 1), (2, 1)]
    assert conn.execute("SELECT id, v FROM audit.table_as_of(NULL::t, now()) ORDER BY 1").fetchall() == [(1, 2), (2, 4)]


def test_values_that_do_not_fit_any_more(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 'many')")
    at = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    conn.execute("UPDATE t SET v = '2'; ALTER TABLE t ALTER v TYPE int USING v::int")
    with sqlstate("22000") as caught:
        conn.execute("SELECT * FROM audit.table_as_of(NULL::t, %s)", [at])
    assert "many" in caught.error.diag.message_detail
    assert conn.execute("SELECT audit.row_as_of('t', '1', %s)", [at]).fetchone()[0] == {"id": 1, "v": "many"}
    assert conn.execute("SELECT v FROM audit.table_as_of(NULL::t, now())").fetchone()[0] == 2


def test_masked_excluded_and_large_values(conn):
    conn.execute("SET audit.max_value_bytes = 100; CREATE TABLE t (id int PRIMARY KEY, a text, b int, c int, d text, e int)")
    conn.execute("SELECT audit.enable('t', mask_columns => '{a,b}', exclude_columns => '{c}')")
    conn.execute("INSERT INTO t VALUES (1, 'secret', 2, 3, repeat('x', 101), 5)")
    assert conn.execute("SELECT * FROM audit.table_as_of(NULL::t, now())").fetchall() == [(1, "***", None, None, None, 5)]


def test_an_undisturbed_plan_after_alter(conn):
    """A session that asked before the table was altered."""
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v int); SELECT audit.enable('t'); INSERT INTO t VALUES (1, 1)")
    query = "SELECT to_jsonb(r) FROM audit.table_as_of(NULL::t, now()) AS r"
    assert conn.execute(query).fetchone()[0] == {"id": 1, "v": 1}
    conn.execute("ALTER TABLE t ADD w int DEFAULT 5; ALTER TABLE t DROP v")
    assert conn.execute(query).fetchone()[0] == {"id": 1, "w": 5}
