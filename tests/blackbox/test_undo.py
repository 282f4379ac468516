"""audit.undo: random transactions on random schemas are taken back exactly, and what cannot be is refused with a list."""

import random
from collections import Counter

import psycopg
import pytest
from auditlib import check_integrity, replay, sqlstate

# Column types beside the keys, with a way to make up a value.
TYPES = {
    "text": lambda r: r.choice(["a", "b", "it's", 'quo"te', "back\\slash", "", "ä\n€"]),
    "int": lambda r: r.randint(-5, 5),
    "numeric(12,3)": lambda r: r.randint(-99999, 99999) / 1000,
    "float8": lambda r: r.choice([0.1 + 0.2, 1e-300, -1.5, 3e20]),
    "boolean": lambda r: r.random() < 0.5,
    "timestamptz": lambda r: f"2024-0{r.randint(1, 9)}-11 12:34:56.{r.randint(0, 999999):06d}+02",
    "date": lambda r: f"2023-1{r.randint(0, 2)}-05",
    "interval": lambda r: r.choice(["1 mon -3 days +04:05:06", "-1 days +02:03:00", "2 years"]),
    "jsonb": lambda r: r.choice(['{"a": [1, 2.50], "b": null}', "[]", '"text"', "null"]),
    "text[]": lambda r: r.choice([["x", None, 'y"z,'], [], ["{}"]]),
    "bytea": lambda r: r.choice([b"\x00\xff", b"abc"]),
    "uuid": lambda r: f"00000000-0000-4000-8000-{r.randint(0, 9):012d}",
    "inet": lambda r: f"10.0.{r.randint(0, 3)}.0/24",
    "point": lambda r: f"({r.randint(0, 9)},0.1)",
    "numrange": lambda r: r.choice(["[1,2.5)", "empty", "(,5]"]),
    "mood": lambda r: r.choice(["fine", "so so"]),
    "pair": lambda r: r.choice(['(1,"a b")', "(,)"]),
    "char(5)": lambda r: r.choice(["ab", "abcde"]),
    "varbit": lambda r: r.choice(["101", ""]),
    "money": lambda r: f"{r.randint(-999, 999)}.25",
}
ACTIONS = ["NO ACTION", "CASCADE", "SET NULL", "RESTRICT"]


class Table:
    def __init__(self, name, keys, columns, references, unique):
        self.name = name
        self.keys = keys
        self.columns = columns
        self.references = references  # (columns, parent)
        self.unique = unique


def make_schema(conn, r):
    """Some tables, each referring to earlier ones or to itself."""
    conn.execute("CREATE TYPE mood AS ENUM ('fine', 'so so'); CREATE TYPE pair AS (n int, t text)")
    tables = []
    for number in range(r.randint(2, 4)):
        name = f't{number}' if r.random() < 0.7 else f'"T {number}"'
        keys = ["id"] if r.random() < 0.6 else ["a", "b"]
        kind = r.choice(["int", "text", "int GENERATED ALWAYS AS IDENTITY"]) if keys == ["id"] else None
        parts = [f"id {kind}"] if keys == ["id"] else ["a int", "b text"]
        columns = {}
        for place, type_name in enumerate(r.sample(list(TYPES), r.randint(1, 5))):
            columns[f"c{place}"] = type_name
            parts.append(f"c{place} {type_name}")
        if r.random() < 0.4:
            columns["base"] = "int"
            parts += ["base int", "twice int GENERATED ALWAYS AS (base * 2) STORED"]
        unique = r.random() < 0.3
        if unique:
            parts.append("u int UNIQUE")
        parts.append(f"PRIMARY KEY ({', '.join(reversed(keys) if r.random() < 0.3 else keys)})")
        table = Table(name, keys, columns, [], unique)
        parents = r.sample(tables, min(len(tables), r.choice([0, 1, 1, 2]))) + ([table] if r.random() < 0.3 else [])
        for parent in parents:
            prefix = f"r{len(table.references)}_"
            referring = [prefix + key for key in parent.keys]
            types = {key: conn_type for key, conn_type in key_types(parent, parts if parent is table else None).items()}
            parts[:0] = [f"{column} {types[key]}" for column, key in zip(referring, parent.keys, strict=True)]
            actions = f"ON DELETE {r.choice(ACTIONS)} ON UPDATE {r.choice(ACTIONS[:3])}"
            deferrable = r.choice(["", "", "DEFERRABLE INITIALLY DEFERRED", "DEFERRABLE"])
            parts.append(f"FOREIGN KEY ({', '.join(referring)}) REFERENCES {parent.name} ({', '.join(parent.keys)}) {actions} {deferrable}")
            table.references.append((referring, parent))
        table.key_types = key_types(table, parts)
        conn.execute(f"CREATE TABLE {name} ({', '.join(parts)})")
        conn.execute("SELECT audit.enable(%s)", [name])
        tables.append(table)
    return tables


def key_types(table, parts):
    if hasattr(table, "key_types"):
        return table.key_types
    found = {}
    for key in table.keys:
        definition = next(part for part in parts if part.split(" ")[0] == key)
        found[key] = definition.split(" ")[1]
    return found


def some_key(r, table):
    return [str(r.randint(1, 6)) if table.key_types[key] == "text" else r.randint(1, 6) for key in table.keys]


def work(conn, r, tables):
    """One statement that may well fail."""
    table = r.choice(tables)
    where = " AND ".join(f"{key} = %s" for key in table.keys)
    draw = r.random()
    if draw < 0.45:
        names, values = list(table.keys), some_key(r, table)
        for column, type_name in table.columns.items():
            if r.random() < 0.8:
                names.append(column)
                values.append(None if r.random() < 0.15 else TYPES[type_name](r))
        if table.unique:
            names.append("u")
            values.append(r.randint(1, 8))
        for columns, parent in table.references:
            names += columns
            values += some_key(r, parent) if r.random() < 0.8 else [None] * len(columns)
        identity = "OVERRIDING SYSTEM VALUE"
        conn.execute(f"INSERT INTO {table.name} ({', '.join(names)}) {identity} VALUES ({', '.join(['%s'] * len(names))})", values)
    elif draw < 0.8:
        choices = [([column], lambda t=type_name: [TYPES[t](r)]) for column, type_name in table.columns.items()]
        choices += [(columns, lambda p=parent: some_key(r, p)) for columns, parent in table.references]
        if "id" not in table.keys or table.key_types["id"] != "int":
            choices.append((table.keys, lambda: some_key(r, table)))
        if table.unique:
            choices.append((["u"], lambda: [r.randint(1, 8)]))
        assignments, values = [], []
        for columns, make in r.sample(choices, min(len(choices), r.choice([1, 1, 2]))):
            assignments += [f"{column} = %s" for column in columns]
            values += make()
        if r.random() < 0.2 and all(a.split(" ")[0] not in table.keys + ["u"] for a in assignments):
            conn.execute(f"UPDATE {table.name} SET {', '.join(assignments)}", values)
        else:
            conn.execute(f"UPDATE {table.name} SET {', '.join(assignments)} WHERE {where}", values + some_key(r, table))
    else:
        conn.execute(f"DELETE FROM {table.name} WHERE {where}", some_key(r, table))


def contents(conn, tables):
    return {
        table.name: Counter(row[0] for row in conn.execute(f"SELECT row_to_json(t)::text FROM {table.name} t"))
        for table in tables
    }


def transaction(conn, r, tables):
    """Runs a random transaction; returns its changeset, if it has one."""
    try:
        with conn.transaction():
            for _ in range(r.choice([1, 3, 6, 12])):
                try:
                    with conn.transaction():
                        work(conn, r, tables)
                except psycopg.errors.IntegrityError:
                    pass
    except psycopg.errors.IntegrityError:
        pass  # a deferred constraint
    row = conn.execute("SELECT id FROM audit.changeset ORDER BY occurred_at DESC LIMIT 1").fetchone()
    return row and row[0]


@pytest.mark.parametrize("seed", range(16))
def test_random_transactions_are_taken_back(db, seed):
    run(db, seed, 14)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_many_random_transactions_are_taken_back(db, seed):
    run(db, seed, 40)


def run(db, seed, transactions):
    r = random.Random(seed)
    conn = db.connect()
    conn.execute("SET TimeZone = 'Asia/Kathmandu'; SET IntervalStyle = 'sql_standard'; SET DateStyle = 'German'")
    conn.execute("SET bytea_output = 'escape'; SET extra_float_digits = 3")
    tables = make_schema(conn, r)
    undone, last = 0, None
    for _ in range(transactions):
        before = contents(conn, tables)
        changeset = transaction(conn, r, tables)
        if changeset is None or changeset == last:
            continue
        last = changeset
        after = contents(conn, tables)
        steps = conn.execute("SELECT statement, conflict FROM audit.undo(%s)", [changeset]).fetchall()
        assert contents(conn, tables) == after, "a dry run changes nothing"
        assert [conflict for _, conflict in steps if conflict] == [], seed
        executed = conn.execute("SELECT statement, conflict FROM audit.undo(%s, false)", [changeset]).fetchall()
        assert executed == steps
        assert contents(conn, tables) == before, seed
        undone += bool(steps)
        last = conn.execute("SELECT id FROM audit.changeset ORDER BY occurred_at DESC LIMIT 1").fetchone()[0]
        if steps and r.random() < 0.7:
            assert conn.execute("SELECT context FROM audit.changeset WHERE id = %s", [last]).fetchone()[0] == {"undoes": str(changeset)}
            # An undo is undone like anything else.
            conn.execute("SELECT audit.undo(%s, false)", [last])
            assert contents(conn, tables) == after, seed
            last = conn.execute("SELECT id FROM audit.changeset ORDER BY occurred_at DESC LIMIT 1").fetchone()[0]
    assert undone > 0
    for table in tables:
        replay(conn, table.name)
    check_integrity(conn)
