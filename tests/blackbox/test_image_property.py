"""Images of random tables: random columns of random types, random rows, changes and session settings.

Each case makes a table, works on it in a session with random settings, and compares every event with to_jsonb of the
rows before and after, read by another session in the fixed environment. Types are made at random too: enums, domains,
composites, ranges, and arrays of all of them.

The seed is printed with each failure. AUDIT_SEED=… repeats a run, AUDIT_CASES=… sets the number of cases (default 160,
some 30 seconds).
"""

import os
import random

import psycopg
import pytest

import auditlib
from auditlib import FIXED_ENVIRONMENT, connect_like, fixed_session

CASES = int(os.environ.get("AUDIT_CASES", "160"))
SEED = int(os.environ.get("AUDIT_SEED", random.SystemRandom().randrange(1 << 32)))

ZONES = ["UTC", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia", "Europe/Dublin", "<+13>-13"]
SETTINGS = {
    "TimeZone": ZONES,
    "DateStyle": ["%s, %s" % (s, o) for s in ("ISO", "SQL", "German", "Postgres") for o in ("DMY", "MDY", "YMD")],
    "IntervalStyle": ["postgres", "postgres_verbose", "sql_standard", "iso_8601"],
    "bytea_output": ["hex", "escape"],
    "extra_float_digits": ["-15", "-3", "0", "1", "3"],
    "xmlbinary": ["base64", "hex"],
    "quote_all_identifiers": ["on", "off"],
    "search_path": ["public", "", "pg_catalog, public", "types, public"],
    "session_replication_role": ["origin", "replica", "local"],
}


def quote(text):
    return "'" + text.replace("'", "''") + "'"


def identifier(text):
    return '"' + text.replace('"', '""') + '"'


# --- random values ------------------------------------------------------------------------------------------------

def some_text(r, longest=40):
    kind = r.random()
    size = int(r.random() ** 3 * longest)
    if kind < 0.5:
        return "".join(r.choice("abc XYZ019_") for _ in range(size))
    if kind < 0.8:
        return "".join(r.choice("\"\\/\b\f\n\r\t\x01\x1f\x7f'{}[],:é€😀\u2028\ufeff\U0010ffff") for _ in range(size))
    if kind < 0.97:
        return "".join(chr(c) for c in (r.randrange(1, 0x110000) for _ in range(size)) if not 0xD800 <= c <= 0xDFFF)
    return r.choice(["x" * 5000, "ab\"" * 20000, "é\n" * 1500])


def some_number(r):
    kind = r.random()
    if kind < 0.1:
        return r.choice(["0", "0.0", "-0.000", "NaN", "Infinity", "-Infinity", "1e-300", "-1e300"])
    digits = "".join(r.choice("0123456789") if r.random() < 0.7 else "0" for _ in range(1 + int(r.random() ** 3 * 60)))
    if kind < 0.6:
        at = r.randrange(len(digits) + 1)
        digits = (digits[:at] or "0") + "." + (digits[at:] or "0")
    return r.choice(["", "-"]) + digits


def some_float(r):
    kind = r.random()
    if kind < 0.2:
        return r.choice(["0", "-0", "NaN", "Infinity", "-Infinity"])
    if kind < 0.5:
        return repr(r.uniform(-1e6, 1e6))
    # Within float4 as well.
    return repr(r.uniform(-1, 1) * 10.0 ** r.randrange(-37, 38))


def some_instant(r, zone=""):
    kind = r.random()
    if kind < 0.1:
        return r.choice(["infinity", "-infinity"])
    if kind < 0.2:
        return "%04d-%02d-%02d 12:34:56.5%s BC" % (r.randrange(1, 4000), r.randrange(1, 13), r.randrange(1, 28), zone)
    year = r.randrange(1900, 2040) if kind < 0.9 else r.randrange(1, 200000)
    return "%04d-%02d-%02d %02d:%02d:%02d%s%s" % (
        year, r.randrange(1, 13), r.randrange(1, 28), r.randrange(24), r.randrange(60), r.randrange(60),
        r.choice(["", ".5", ".%06d" % r.randrange(1000000), ".000001"]), zone)


def some_interval(r):
    parts = ["%d %s" % (r.randrange(-500, 500), unit) for unit in ("years", "mons", "days") if r.random() < 0.5]
    parts.append("%d:%02d:%02d.%06d" % (r.randrange(-100, 100), r.randrange(60), r.randrange(60),
                                        r.choice([0, r.randrange(1000000)])))
    return " ".join(parts)


def some_json(r, depth=0):
    """Valid as json and, as most of it, as jsonb: duplicate keys, odd spacing, escapes."""
    kind = r.random()
    if depth > 3 or kind < 0.5:
        return r.choice([
            "null", "true", "false", "0", "-0", "-0.0", "1.50", "1e5", "1E-7", "12345678901234567890.10", '""',
            '"\\u00e9\\ud83d\\ude00\\n\\/"', '"%s"' % "".join(c for c in some_text(r, 20) if c >= " " and c not in '"\\')])
    space = r.choice(["", " ", "\n\t"])
    if kind < 0.75:
        return "[" + ("," + space).join(some_json(r, depth + 1) for _ in range(r.randrange(5))) + "]"
    keys = ['"%s"' % r.choice(["a", "b", "aa", "é", "", " ", "k\\n", "\\u0041", "long key " * 3]) for _ in range(r.randrange(5))]
    return "{" + ("," + space).join(k + space + ":" + some_json(r, depth + 1) for k in keys) + "}"


def some_inet(r):
    address = (".".join(str(r.randrange(256)) for _ in range(4)), 32) if r.random() < 0.5 else (
        ":".join("%x" % r.choice([0, 1, r.randrange(65536)]) for _ in range(8)), 128)
    return address[0] + r.choice(["", "/%d" % r.randrange(address[1] + 1)])


BASE = {
    "bool": lambda r: r.choice(["t", "f"]),
    "int2": lambda r: str(r.randrange(-32768, 32768)),
    "int4": lambda r: str(r.choice([r.randrange(-2**31, 2**31), r.randrange(-10, 10), r.randrange(1, 20) * 10000])),
    "int8": lambda r: str(r.choice([r.randrange(-2**63, 2**63), r.randrange(-100, 100), 10**r.randrange(19)])),
    "float4": some_float,
    "float8": some_float,
    "numeric": some_number,
    "numeric(12,3)": lambda r: "%d.%03d" % (r.randrange(-10**8, 10**8), r.randrange(1000)),
    "money": lambda r: "%d.%02d" % (r.randrange(-10**9, 10**9), r.randrange(100)),
    "text": some_text,
    "varchar(30)": lambda r: some_text(r, 25)[:30],
    "char(7)": lambda r: some_text(r, 7)[:7],
    "name": lambda r: "".join(r.choice("abc\"' ") for _ in range(r.randrange(20))),
    "\"char\"": lambda r: r.choice("abc\"\\\x01"),
    "bytea": lambda r: "\\x" + bytes(r.randrange(256) for _ in range(int(r.random() ** 4 * 200))).hex(),
    "date": lambda r: some_instant(r).split(" ")[0],
    "time": lambda r: "%02d:%02d:%02d.%06d" % (r.randrange(24), r.randrange(60), r.randrange(60), r.randrange(1000000)),
    "timetz": lambda r: "%02d:%02d:%02d%+03d:%02d" % (r.randrange(24), r.randrange(60), r.randrange(60),
                                                     r.randrange(-15, 16), r.randrange(60)),
    "timestamp": some_instant,
    "timestamptz": lambda r: some_instant(r, r.choice(["+00", "+05:45", "-11"])),
    "timestamptz(2)": lambda r: some_instant(r, "+00"),
    "interval": some_interval,
    "uuid": lambda r: "%032x" % r.randrange(1 << 128),
    "inet": some_inet,
    "cidr": lambda r: "%d.%d.0.0/16" % (r.randrange(256), r.randrange(256)),
    "macaddr": lambda r: "%012x" % r.randrange(1 << 48),
    "bit(5)": lambda r: "".join(r.choice("01") for _ in range(5)),
    "varbit": lambda r: "".join(r.choice("01") for _ in range(r.randrange(70))),
    "json": some_json,
    "jsonb": some_json,
    "tsvector": lambda r: " ".join("w%d:%d%s" % (r.randrange(9), r.randrange(1, 50), r.choice(["", "A", "C"]))
                                   for _ in range(r.randrange(5))),
    "tsquery": lambda r: r.choice(["a & b", "!x | (y <-> z)", "'q q':*", ""]),
    "point": lambda r: "(%s,%s)" % (some_float(r), some_float(r)),
    "box": lambda r: "(%r,%r),(%r,%r)" % tuple(r.uniform(-9, 9) for _ in range(4)),
    "path": lambda r: "[(0,0),(%r,%r)]" % (r.random(), r.random()),
    "polygon": lambda r: "((0,0),(%r,%r),(1,1))" % (r.random(), r.random()),
    "circle": lambda r: "<(%r,0),%r>" % (r.random(), r.random()),
    "oid": lambda r: str(r.randrange(1 << 32)),
    "xid8": lambda r: str(r.randrange(1 << 64)),
    "pg_lsn": lambda r: "%X/%X" % (r.randrange(1 << 32), r.randrange(1 << 32)),
    "regclass": lambda r: r.choice(["pg_catalog.pg_class", "0", "99999999", "pg_catalog.pg_proc"]),
    "regtype": lambda r: r.choice(["int4", "text[]", "timestamp with time zone"]),
    "int4range": lambda r: r.choice(["empty", "(,)", "[%d,%d)" % (r.randrange(-9, 0), r.randrange(1, 9))]),
    "numrange": lambda r: "[%d.50,%d.0]" % (r.randrange(-9, 0), r.randrange(1, 9)),
    "tstzrange": lambda r: "[2020-01-%02d 00:00+02,2020-0%d-02 00:00:00.5+00)" % (r.randrange(1, 29), r.randrange(2, 10)),
    "datemultirange": lambda r: r.choice(["{}", "{[2020-01-01,2020-02-01),[2021-01-01,)}"]),
}

INTEGERS = ("int2", "int4", "int8")


class Type:
    """A type by name, and SQL expressions of values of it."""

    def __init__(self, name, make, nullable=True):
        self.name, self.make, self.nullable = name, make, nullable

    def value(self, r, nulls=0.12):
        if self.nullable and r.random() < nulls:
            return "NULL::" + self.name
        return self.make(r)


def base_type(name):
    generate = BASE[name]
    if name == "money":  # its input follows lc_monetary
        return Type(name, lambda r: "%s::numeric::money" % quote(generate(r)))
    return Type(name, lambda r: "%s::%s" % (quote(generate(r)), name))


def without_modifier(name):
    return name.split("(")[0] if not name.startswith("types.") else name


def array_of(element):
    name = without_modifier(element.name) + "[]"

    def make(r):
        count = r.randrange(5)
        if count == 0:
            return "'{}'::" + name
        if r.random() < 0.25:
            low = r.randrange(-5, 5)
            bounds, lows = (quote("{%d,%d}" % (r.randrange(1, 3), r.randrange(1, 4))), quote("{%d,1}" % low)) \
                if r.random() < 0.5 else (quote("{%d}" % count), quote("{%d}" % low))
            return "array_fill(%s::%s, %s, %s)" % (element.value(r), without_modifier(element.name), bounds, lows)
        items = ", ".join(element.value(r) for _ in range(count))
        if r.random() < 0.2:
            other = ", ".join(element.value(r) for _ in range(count))
            return "ARRAY[ARRAY[%s], ARRAY[%s]]::%s" % (items, other, name)
        return "ARRAY[%s]::%s" % (items, name)
    return Type(name, make)


class Types:
    """Types of one run: the base types and some that are made of them, in schema `types`."""

    def __init__(self, conn, r):
        self.types = [base_type(name) for name in BASE]
        conn.execute("CREATE SCHEMA types")
        for i in range(40):
            kind = r.choice(["enum", "domain", "domain", "composite", "composite", "range", "array", "array"])
            getattr(self, kind)(conn, r, "types." + identifier(r.choice(["t%d", "T %d", "é%d"]) % i))

    def pick(self, r):
        made = self.types[len(BASE):]
        return r.choice(made) if made and r.random() < 0.35 else r.choice(self.types[:len(BASE)])

    def enum(self, conn, r, name):
        labels = list({some_text(r, 12).replace("\x7f", "")[:10] + str(i) for i in range(r.randrange(1, 6))})
        conn.execute("CREATE TYPE %s AS ENUM (%s)" % (name, ", ".join(map(quote, labels))))
        self.types.append(Type(name, lambda r: "%s::%s" % (quote(r.choice(labels)), name)))

    def domain(self, conn, r, name):
        base = self.pick(r)
        conn.execute("CREATE DOMAIN %s AS %s %s" % (name, base.name, r.choice(["", "CHECK (true)"])))
        self.types.append(Type(name, lambda r: "(%s)::%s" % (base.value(r), name)))

    def composite(self, conn, r, name):
        fields = [self.pick(r) for _ in range(r.randrange(1, 6))]
        names = r.sample(["a", "b", "aa", "é", "A", "with space", "\"q\"", "z" * 40, "f1"], len(fields))
        conn.execute("CREATE TYPE %s AS (%s)" % (
            name, ", ".join("%s %s" % (identifier(n), f.name) for n, f in zip(names, fields))))
        self.types.append(Type(name, lambda r: "ROW(%s)::%s" % (", ".join(f.value(r) for f in fields), name)))

    def range(self, conn, r, name):
        base = base_type(r.choice(["text", "numeric", "timestamptz", "float8", "interval", "inet"]))
        conn.execute("CREATE TYPE %s AS RANGE (subtype = %s)" % (name, base.name))

        def make(r):
            low, high = base.value(r), base.value(r)
            return ("(SELECT CASE WHEN l <= h THEN {n}(l, h, {b}) WHEN l > h THEN {n}(h, l, {b}) ELSE {n}(l, h, '()') END"
                    " FROM (SELECT {low}, {high}) AS bounds(l, h))").format(
                        n=name, b=quote(r.choice(["[]", "[)", "(]", "()"])), low=low, high=high)
        self.types.append(Type(name, make))

    def array(self, conn, r, name):
        element = self.pick(r)
        if not element.name.endswith("[]"):  # an array of an array type is the same type
            self.types.append(array_of(element))


# --- one case -----------------------------------------------------------------------------------------------------

IMAGES = "SELECT k, to_jsonb(blackbox_row)::text FROM public.target AS blackbox_row"

EVENTS = """SELECT (e.row_image ->> 'k')::int, e.operation::text, e.row_image::text, e.old_values::text
              FROM audit.event e JOIN audit.relation r ON r.id = e.relation_id
             WHERE r.relid = 'public.target'::regclass"""

# Of the events that a statement made, whether SQL's own equality says the same as the comparison by text.
EQUAL = """SELECT coalesce(bool_and(e.row_image = to_jsonb(x)), true)
             FROM (SELECT e.* FROM audit.event e JOIN audit.relation r ON r.id = e.relation_id
                    WHERE r.relid = 'public.target'::regclass ORDER BY e.occurred_at, e.seq OFFSET %d) e
             JOIN public.target x ON x.k = (e.row_image ->> 'k')::int"""


def merged(image, old_values):
    return auditlib.freeze({**auditlib.parse(image), **auditlib.parse(old_values)})


class Case:
    def __init__(self, conn, fixed, work, types, r):
        self.conn, self.fixed, self.work, self.types, self.r = conn, fixed, work, types, r
        self.columns = {}
        self.next_key = 1
        self.seen = 0

    def run(self):
        r = self.r
        self.create()
        self.settings()
        for i in range(r.randrange(1, 4)):
            self.step(lambda: self.insert(r.randrange(1, 4)))
        if r.random() < 0.3:
            self.alter()
        for i in range(r.randrange(2, 5)):
            if r.random() < 0.2:
                self.settings()
            self.step(self.update)
        if r.random() < 0.2:
            self.alter()
        self.step(lambda: self.insert(1))
        self.step(self.delete)
        self.conn.execute("SELECT audit.disable('public.target'); DROP TABLE public.target")

    def create(self):
        r = self.r
        names = ["c%d" % i for i in range(r.randrange(1, 10))] + r.sample(
            ["A", "é", "with space", "quote\"d", "back\\slash", "x" * 63, "t", "aa", "zz", "日本"], r.randrange(3))
        columns = ["k int" + r.choice(["", " PRIMARY KEY", " NOT NULL UNIQUE"])]
        for name in names:
            kind = self.types.pick(r)
            self.columns[name] = kind
            text = "%s %s" % (identifier(name), kind.name)
            columns.append(text)
        if r.random() < 0.2:
            kind = r.choice(["STORED", "VIRTUAL"]) if self.conn.info.server_version >= 180000 else "STORED"
            columns.append("generated text GENERATED ALWAYS AS ('k' || k) " + kind)
        r.shuffle(columns)
        self.conn.execute("CREATE TABLE public.target (%s)" % ", ".join(columns))
        for name, kind in self.columns.items():
            if r.random() < 0.2:
                try:
                    self.conn.execute("ALTER TABLE public.target ALTER COLUMN %s SET STORAGE %s"
                                      % (identifier(name), r.choice(["EXTERNAL", "MAIN", "EXTENDED"])))
                except psycopg.Error:
                    pass  # of fixed length
        self.conn.execute("SELECT audit.enable('public.target')")

    def settings(self):
        for name, values in SETTINGS.items():
            self.work.execute("SELECT pg_catalog.set_config(%s, %s, false)", [name, self.r.choice(values)])

    def insert(self, count):
        # Values are made in the fixed environment: the session under test parses nothing that depends on a setting.
        rows = []
        names = list(self.columns)
        self.fixed.execute("BEGIN")
        self.fixed.execute("CREATE TABLE public.fresh AS SELECT %s" % ", ".join(
            ["NULL::int AS k"] + ["NULL::%s AS %s" % (self.columns[n].name, identifier(n)) for n in names]))
        for _ in range(count):
            rows.append("(%s)" % ", ".join([str(self.next_key)] + [self.columns[n].value(self.r) for n in names]))
            self.next_key += 1
        for row in rows:
            self.fixed.execute("INSERT INTO public.fresh VALUES " + row)
        self.fixed.execute("COMMIT")
        listed = ", ".join(["k"] + [identifier(n) for n in names])
        self.work.execute("INSERT INTO public.target (%s) SELECT %s FROM public.fresh WHERE k IS NOT NULL" % (listed, listed))
        self.fixed.execute("DROP TABLE public.fresh")

    def update(self):
        r = self.r
        names = r.sample(list(self.columns), r.randrange(1, len(self.columns) + 1))
        self.fixed.execute("CREATE TABLE public.fresh AS SELECT %s" % ", ".join(
            "%s AS %s" % (self.columns[n].value(r), identifier(n)) for n in names))
        keep = {n for n in names if r.random() < 0.3}
        self.work.execute("UPDATE public.target SET %s FROM public.fresh f WHERE k OPERATOR(pg_catalog.<=) %d" % (
            ", ".join("%s = %s.%s" % (identifier(n), "target" if n in keep else "f", identifier(n)) for n in names),
            r.randrange(1, self.next_key + 1)))
        self.fixed.execute("DROP TABLE public.fresh")

    def delete(self):
        self.work.execute("DELETE FROM public.target WHERE k OPERATOR(pg_catalog.<=) %d" % self.r.randrange(1, self.next_key + 1))

    def alter(self):
        """Not through `step`: it makes no events."""
        r = self.r
        if len(self.columns) > 1 and r.random() < 0.5:
            name = r.choice(list(self.columns))
            del self.columns[name]
            self.conn.execute("ALTER TABLE public.target DROP COLUMN %s" % identifier(name))
        else:
            name, kind = "added%d" % r.randrange(1000), base_type(r.choice(list(BASE)))
            self.columns[name] = kind
            with connect_like(self.conn, **FIXED_ENVIRONMENT) as session:
                session.execute("ALTER TABLE public.target ADD COLUMN %s %s DEFAULT %s" % (name, kind.name, kind.make(r)))

    def step(self, act):
        before = dict(self.fixed.execute(IMAGES).fetchall())
        known = self.count()
        act()
        after = dict(self.fixed.execute(IMAGES).fetchall())
        made = self.fixed.execute(EVENTS + " ORDER BY e.occurred_at, e.seq OFFSET %d" % known).fetchall()
        touched = set()
        for key, operation, image, old_values in made:
            assert key not in touched, "row %s has two events" % key
            touched.add(key)
            if operation == "INSERT":
                assert key not in before and image == after[key], (key, image, after[key])
            elif operation == "UPDATE":
                assert image == after[key], (key, image, after[key])
                assert merged(image, old_values) == auditlib.freeze(auditlib.parse(before[key])), (
                    key, old_values, image, before[key])
            else:
                assert operation == "DELETE" and key not in after and image == before[key], (key, image, before.get(key))
        untouched = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} - touched
        assert not untouched, "rows changed without event: %s" % untouched
        assert self.fixed.execute(EQUAL % known).fetchone()[0]

    def count(self):
        return self.fixed.execute("SELECT count(*) FROM audit.event e JOIN audit.relation r ON r.id = e.relation_id"
                                  " WHERE r.relid = 'public.target'::regclass").fetchone()[0]


@pytest.mark.parametrize("part", range(4))
def test_images_of_random_tables(conn, part):
    with fixed_session(conn) as fixed:
        seed = SEED + part
        print("AUDIT_SEED=%d, part %d of it" % (SEED, part))
        types = Types(conn, random.Random(seed))
        for number in range(CASES // 4):
            r = random.Random("%d/%d" % (seed, number))
            with connect_like(conn) as work:
                try:
                    Case(conn, fixed, work, types, r).run()
                except BaseException:
                    print("case %d" % number)
                    raise
        changesets, events = auditlib.check_integrity(conn)
        assert changesets and events
