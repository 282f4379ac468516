"""The tables of the workloads, filled with the same rows every time."""

from pathlib import Path

from lab import State

MIXED = """
CREATE TABLE {name} (
    id         int PRIMARY KEY,
    account_id bigint NOT NULL,
    note       text,
    amount     numeric(12,2) NOT NULL,
    created_at timestamptz NOT NULL,
    due_on     date,
    active     bool NOT NULL,
    token      uuid NOT NULL,
    attributes jsonb,
    score      float8,
    status     varchar(20) NOT NULL,
    tags       text[]
)
"""
"""Twelve columns of twelve types; a row of about 280 bytes."""
MIXED_COLUMNS = ("id", "account_id", "note", "amount", "created_at", "due_on", "active", "token", "attributes", "score", "status", "tags")

MIXED_ROWS = """
SELECT n,
       1000000000 + n * 7::bigint,
       'Order ' || n || ': ' || left(repeat(md5(n::text), 3), 76),
       (n * 37 % 1000000)::numeric / 100,
       timestamptz '2024-01-01 00:00:00+00' + n * interval '61.000127 seconds',
       date '2024-01-01' + n % 730,
       n % 3 <> 0,
       md5('token' || n)::uuid,
       jsonb_build_object('colour', (ARRAY['red','green','blue'])[1 + n % 3], 'size', n % 50, 'gift', n % 7 = 0),
       sqrt(n),
       (ARRAY['open','paid','shipped','returned'])[1 + n % 4],
       ARRAY['tag' || n % 10, 'group' || n % 100]
  FROM generate_series({first}, {last}) AS n
"""


def mixed_empty(rows, scratch):
    """The mixed table empty, its rows in `source` and in a file for COPY."""

    def build(conn):
        conn.execute(MIXED.format(name="item"))
        conn.execute(MIXED.format(name="source"))
        conn.execute("INSERT INTO source " + MIXED_ROWS.format(first=1, last=rows))
        conn.execute(f"COPY (SELECT * FROM source ORDER BY id) TO '{copy_file(scratch)}'")

    return State("mixed_empty", ("item",), build)


def copy_file(scratch):
    return Path(scratch) / "item.copy"


def mixed_filled(rows):
    """The mixed table with its rows."""

    def build(conn):
        conn.execute(MIXED.format(name="item"))
        conn.execute("INSERT INTO item " + MIXED_ROWS.format(first=1, last=rows))

    return State("mixed_filled", ("item",), build)


def mixed_partitioned(rows, partitions):
    """The mixed table with its rows, in partitions by hash of the key."""

    def build(conn):
        conn.execute(MIXED.format(name="item").rstrip() + " PARTITION BY HASH (id)")
        for n in range(partitions):
            conn.execute(f"CREATE TABLE item_{n} PARTITION OF item FOR VALUES WITH (MODULUS {partitions}, REMAINDER {n})")
        conn.execute("INSERT INTO item " + MIXED_ROWS.format(first=1, last=rows))

    return State(f"mixed_partitioned_{partitions}", ("item",), build)


def log_partitioned(rows, partitions):
    """The mixed table with its rows, and audit_ext's log in partitions of a month, the one in use among them."""

    def finish(conn):
        for table in ("event", "changeset"):
            for n in range(partitions - 1):
                months = [n - partitions // 2 + more for more in (0, 1)]
                query = "SELECT (date_trunc('month', now()) + make_interval(months => %s))::text"
                low, high = (conn.execute(query, [month]).fetchone()[0] for month in months)
                conn.execute(f"CREATE TABLE audit.bench_{table}_{n} PARTITION OF audit.{table} FOR VALUES FROM ('{low}') TO ('{high}')")

    filled = mixed_filled(rows)
    return State(f"log_partitioned_{partitions}", filled.tables, filled.build, finish)


WIDE_TYPES = (
    ("int", "n * {c} % 100000"),
    ("text", "'value ' || n % 1000"),
    ("numeric(10,2)", "(n * {c} % 100000)::numeric / 100"),
    ("bool", "(n + {c}) % 2 = 0"),
    ("timestamptz", "timestamptz '2024-01-01 00:00:00+00' + (n * {c}) * interval '1 second'"),
    ("bigint", "n * {c}::bigint"),
)


def wide(rows):
    """A table of 100 columns: a key, a counter and 98 of mixed types."""
    columns = [WIDE_TYPES[c % len(WIDE_TYPES)] for c in range(3, 101)]

    def build(conn):
        definitions = ", ".join(f"column_{c} {kind}" for c, (kind, _) in enumerate(columns, 3))
        values = ", ".join(value.format(c=c) for c, (_, value) in enumerate(columns, 3))
        conn.execute(f"CREATE TABLE wide (id int PRIMARY KEY, counter int NOT NULL, {definitions})")
        conn.execute(f"INSERT INTO wide SELECT n, 0, {values} FROM generate_series(1, {rows}) AS n")

    return State("wide", ("wide",), build)


WORDS = "copper river lantern meadow granite harbour velvet orchard compass thunder saddle marble willow anchor cinder prairie"
WORD = f"(string_to_array('{WORDS}', ' '))[1 + (h >> 8 & 15)]"
LARGE_TYPES = {
    # What fills a value of so many bytes, element by element, and an expression that changes it a little.
    "text": (f"string_agg({WORD} || (h >> 16 & 255), ' ')", 9.0, "document || ' (changed)'"),
    "jsonb": (
        f"jsonb_agg(jsonb_build_object('sku', 'A-' || (h & 65535), 'name', {WORD}, 'quantity', h & 63,"
        " 'price', (h & 4095)::numeric / 100, 'gift', h & 1 = 0))",
        82.0,
        "jsonb_set(document, '{0,quantity}', '-1')",
    ),
}


def large(kind, kilobytes, rows):
    """A table with one large value a row, which compresses to about a half, and beside it `source` with as many more, uncompressed."""
    element, size, _ = LARGE_TYPES[kind]
    document = f"""
        (SELECT {element}
           FROM generate_series(1, {round(kilobytes * 1024 / size)}) AS i, abs(hashint8(n * 1048576::bigint + i)::bigint) AS h)
    """

    def build(conn):
        for table, first in (("large", 1), ("source", rows + 1)):
            conn.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, counter int NOT NULL, title text NOT NULL, document {kind})")
            if table == "source":
                # As values come from a client.
                conn.execute("ALTER TABLE source ALTER document SET STORAGE external")
            conn.execute(f"INSERT INTO {table} SELECT n, 0, 'Document ' || n, {document} FROM generate_series({first}, {first + rows - 1}) AS n")

    return State(f"large_{kind}_{kilobytes}", ("large",), build)


def pgbench(cluster, scale):
    """pgbench's own schema."""

    def build(conn):
        cluster.run([cluster.bin("pgbench"), "-i", "-I", "dtgp", "-q", "-s", scale, conn.info.dbname])

    tables = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history")
    return State("pgbench", tables, build)
