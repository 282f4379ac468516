"""Image truth: a recorded row equals to_jsonb(row) in the fixed environment, whatever the session has set.

Values are made once, in the fixed environment, in a table that is not audited; a session with hostile settings then
copies them into the audited table, changes and deletes them; a third one, in the fixed environment again, compares the
images with to_jsonb of the rows, both with = and as text. The session under test never parses a literal, so what
differs can only be how it printed.

Random tables and rows are in test_image_property.py.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile

import psycopg
import pytest

import auditlib
from auditlib import connect_like, fixed_session

# Edge values of each type. A plain string is a literal, one that begins with = an expression.
VALUES = {
    "bool": ["true", "false"],
    "int2": ["0", "1", "-1", "32767", "-32768", "10000", "9999", "100"],
    "int4": ["0", "1", "-1", "2147483647", "-2147483648", "10000", "99990000", "100000000"],
    "int8": ["0", "-1", "9223372036854775807", "-9223372036854775808", "10000000000000000", "123456789012345678"],
    "float4": ["0", "-0", "0.1", "1e-45", "3.4028235e38", "NaN", "Infinity", "-Infinity", "16777216", "1e6", "1e7",
               "-1.5e-7", "=1.0::float4/3"],
    "float8": ["0", "-0", "0.1", "5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "NaN", "Infinity",
               "-Infinity", "1e15", "1e16", "123456789012345680", "1e21", "1e-5", "0.0001", "=1.0::float8/3",
               "9007199254740993"],
    "numeric": ["0", "-0", "0.000", "1.0", "1.00", "NaN", "Infinity", "-Infinity", "9999", "10000", "10000.0001",
                "0.0001", "0.00012345", "-12345678901234567890123456789.123456789", "1e-16383", "1e131071",
                "=repeat('9', 131072)::numeric", "=('0.' || repeat('1', 16383))::numeric", "1e20", "100000000",
                "1000000000000.00000000"],
    "numeric(10,2)": ["0", "12345678.91", "-0.01", "NaN"],
    "numeric(3,-2)": ["99900", "-100", "0"],
    "numeric(2,4)": ["0.0099", "-0.0001"],
    "numeric(1000,900)": ["1.5", "0"],
    "money": ["0", "=12.34::numeric::money", "=(-0.01)::numeric::money", "=92233720368547758.07::numeric::money",
              "=(-92233720368547758.08)::numeric::money", "=1234567.89::numeric::money"],
    "text": ["", " ", "a", "\\", "\"", "/", "'", "null", "\\u0041", "{}", "=chr(127)", "</script>",
             "=(SELECT string_agg(chr(g), '' ORDER BY g) FROM generate_series(1, 31) g)",
             "=(SELECT string_agg(chr(g), '' ORDER BY g) FROM generate_series(1, 55295) g)",
             "=(SELECT string_agg(chr(g), '' ORDER BY g) FROM generate_series(57344, 65535) g)",
             "=(SELECT string_agg(chr(p * 65536 + g), '' ORDER BY p, g) FROM generate_series(1, 16) p,"
             " unnest('{0,1,255,256,4095,32768,65533,65534,65535}'::int[]) g)",
             "=chr(128) || chr(133) || chr(8232) || chr(8233) || chr(65279) || 'e' || chr(769)",
             "=repeat('long ', 2000)", "=repeat('\"', 300)", "=repeat(chr(1), 300)"],
    "varchar(20)": ["", "trailing  ", "=repeat(chr(128512), 20)"],
    "char(5)": ["", "ab", "abcde", "=chr(228)"],
    "bpchar": ["", "a  "],
    "\"char\"": ["", "a", "\\", "=chr(1)::\"char\"", "=0::\"char\""],
    "name": ["", "a", "=repeat('n', 63)::name"],
    "bytea": ["", "=decode('00', 'hex')", "=decode('5c27225c5c00ff', 'hex')",
              "=(SELECT string_agg(set_byte('x', 0, g), '' ORDER BY g) FROM generate_series(0, 255) g)",
              "=decode(repeat('deadbeef', 2000), 'hex')"],
    "date": ["infinity", "-infinity", "4713-11-24 BC", "5874897-12-31", "2000-02-29", "0044-03-15 BC", "0001-01-01",
             "9999-12-31", "10000-01-01", "1999-12-31"],
    "time": ["00:00", "24:00", "23:59:59.999999", "00:00:00.000001", "12:00:00.1"],
    "time(3)": ["12:34:56.789"],
    "timetz": ["00:00+15:59:59", "24:00-15:59:59", "12:34:56.789+05:30:15", "00:00+00", "23:59:59.999999-08"],
    "timestamp": ["infinity", "-infinity", "4713-11-24 00:00 BC", "294276-12-31 23:59:59.999999",
                  "2000-01-01", "0001-12-31 23:59:59.5 BC", "2024-02-29 12:00:00.000001", "10000-01-01 00:00"],
    "timestamptz": ["infinity", "-infinity", "4713-11-24 00:00+00 BC", "294276-12-31 23:59:59.999999+00",
                    "2000-01-01+00", "0044-03-15 12:00+00 BC", "1890-01-01 00:00:00+00", "2024-03-31 02:30+01",
                    "2037-10-25 00:59:59.999999+00", "0001-01-01 00:00+14"],
    "timestamptz(0)": ["2024-03-31 02:30+01"],
    "interval": ["0", "1 year -2 mons 3 days -04:05:06.789", "-1 year 2 mons", "1 mon -1 day", "00:00:00.000001",
                 "-0.1 s", "2562047788:00:54.775807", "-2562047788:00:54.775807", "178000000 years",
                 "-178000000 years", "-2147483647 days", "1 day", "1.5 years", "10 years 1 sec ago",
                 "=make_interval(months => -14, days => 3, secs => -0.000001)"],
    "interval year to month": ["3-2"],
    "interval(2)": ["1.239 s"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
             "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "inet": ["0.0.0.0/0", "192.168.1.1/24", "10.0.0.1", "::1", "2001:db8::1/64", "::ffff:1.2.3.4", "::/0"],
    "cidr": ["0.0.0.0/0", "192.168.0.0/16", "10.0.0.1/32", "2001:db8::/32", "::/128"],
    "macaddr": ["00:00:00:00:00:00", "08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05", "ff:ff:ff:ff:ff:ff:ff:ff"],
    "bit(1)": ["0", "1"],
    "bit(9)": ["101010101"],
    "varbit": ["", "1", "=repeat('10', 300)::varbit"],
    "json": ["null", "true", "1", "\"a\"", "{}", "[]", " { \"b\" : 1,\n\t\"a\" : [ 1, 2.50, -0, 1e3, 1E-7 ] } ",
             "{\"a\": 1, \"a\": {\"x\": 2}, \"b\": null, \"a\": 3}", "{\"\": \"\\u00e9\\ud83d\\ude00\\t\\/\\\"\"}",
             "123456789012345678901234567890.123456789", "1e1000", "[[[[[]]]], {\"k\": [{}]}]",
             "=('[' || repeat('[', 500) || repeat(']', 500) || ']')::json",
             "=(SELECT json_object_agg('key' || g, g) FROM generate_series(1, 200) g)"],
    "jsonb": ["null", "true", "false", "1", "1.00", "-0.0", "1e100", "\"\"", "\"\\u00e9\\n\"", "{}", "[]",
              "{\"a\": {\"b\": [1, null, \"x\", {}]}, \"c\": []}", "[[], {}, [[]], {\"a\": {}}]",
              "=(SELECT jsonb_object_agg('key' || g, repeat('v', g)) FROM generate_series(1, 300) g)",
              "=(SELECT jsonb_agg(g * 1.5) FROM generate_series(1, 500) g)",
              "=('[' || repeat('[', 500) || repeat(']', 500) || ']')::jsonb", "1e131071", "[1e-16000]"],
    "jsonpath": ["$", "strict $.a[*] ? (@ > 1).\"b c\"", "lax $[0 to last]"],
    "tsvector": ["", "a:1A,2B b:3 'it''s':4", "=to_tsvector('simple', repeat('word ', 50) || 'x y')"],
    "tsquery": ["", "a & !b | c <2> d", "'it''s':AB*"],
    "point": ["(0,0)", "(-0,1e-300)", "(1e300,NaN)", "(Infinity,-Infinity)", "(0.1,0.30000000000000004)"],
    "line": ["{1,-1,0}", "{0.1,-1,0.5}"],
    "lseg": ["[(0,0),(1,1.1)]"],
    "box": ["(1,1),(0,0)", "(1e-5,1e20),(-1,-1)"],
    "path": ["[(0,0),(1,1),(2,0)]", "((0,0),(1,1),(2,0.1))"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "circle": ["<(0.1,0),1.5>", "<(0,0),0>"],
    "oid": ["0", "1", "4294967295"],
    "xid": ["0", "4294967295"],
    "xid8": ["0", "18446744073709551615"],
    "cid": ["0", "4294967295"],
    "tid": ["(0,0)", "(4294967295,65535)"],
    "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"],
    "pg_snapshot": ["10:20:10,14,15"],
    "txid_snapshot": ["10:20:10,14,15"],
    "refcursor": ["", "odd \"cursor\""],
    "aclitem": ["=makeaclitem(10, 10, 'SELECT', true)", "=makeaclitem(0, 10, 'UPDATE', false)"],
    "oidvector": ["", "1 2 3"],
    "int2vector": ["", "1 -2 3"],
    "regclass": ["0", "99999999", "pg_catalog.pg_class", "public.\"Odd \"\"name\"", "public.plain"],
    "regproc": ["0", "99999999", "pg_catalog.now", "public.plain_function", "=1299::regproc"],
    "regprocedure": ["0", "pg_catalog.abs(int4)", "public.plain_function(int4)"],
    "regoper": ["0", "99999999", "=96::oid::regoper", "=2779::oid::regoper"],
    "regoperator": ["0", "pg_catalog.+(int4,int4)", "pg_catalog.-(NONE,int4)"],
    "regtype": ["0", "int4", "pg_catalog.int4[]", "timestamp with time zone", "public.mood", "public.mood[]",
                "public.\"Odd \"\"name\""],
    "regnamespace": ["pg_catalog", "public", "0", "99999999"],
    "regrole": ["postgres", "0", "99999999"],
    "regconfig": ["pg_catalog.simple", "99999999"],
    "regdictionary": ["pg_catalog.simple", "99999999"],
    "regcollation": ["pg_catalog.\"C\"", "99999999"],
    "pg_node_tree": ["=(SELECT conbin FROM pg_constraint WHERE conbin IS NOT NULL ORDER BY oid LIMIT 1)"],
    "pg_ndistinct": ["=(SELECT stxdndistinct FROM pg_statistic_ext_data WHERE stxdndistinct IS NOT NULL LIMIT 1)"],
    "pg_dependencies": ["=(SELECT stxddependencies FROM pg_statistic_ext_data"
                        " WHERE stxddependencies IS NOT NULL LIMIT 1)"],
    "pg_mcv_list": ["=(SELECT stxdmcv FROM pg_statistic_ext_data WHERE stxdmcv IS NOT NULL LIMIT 1)"],
    "int4range": ["empty", "(,)", "[1,5)", "(,5]", "[-2147483648,)"],
    "int8range": ["[1,9223372036854775807)"],
    "numrange": ["[1.0,2.50]", "(NaN,]", "[-Infinity,Infinity]", "empty"],
    "daterange": ["[2020-01-01,infinity)", "(-infinity,0044-03-15 BC)", "(,)"],
    "tsrange": ["[2020-01-01 00:00,2020-01-02 12:00:00.5]", "[-infinity,infinity]"],
    "tstzrange": ["[2020-01-01 00:00+02,2020-01-02 12:00:00.5+02)", "(,2020-07-01 00:00+00]", "empty"],
    "int4multirange": ["{}", "{[1,2),[5,9)}", "{(,)}"],
    "int8multirange": ["{[1,2)}"],
    "nummultirange": ["{[1.0,2.50],(7,]}"],
    "datemultirange": ["{[2020-01-01,2020-02-01),[2021-01-01,infinity)}"],
    "tsmultirange": ["{[2020-01-01 00:00,2020-01-02 00:00)}"],
    "tstzmultirange": ["{[2020-01-01 00:00+02,2020-01-02 00:00+02),(2021-01-01 00:00+00,)}"],
    # Types of users.
    "public.mood": ["sad", "so \"so\"", "=chr(233)::public.mood"],
    "public.positive": ["1", "2147483647"],
    "public.moment": ["2020-01-01 00:00+02"],
    "public.moments": ["{2020-01-01 00:00+02,NULL}"],
    "public.document": ["{\"a\": 1, \"a\": 2}"],
    "public.span": ["[2020-01-01 00:00+02,2020-07-02 00:00+02)"],
    "public.flag": ["true", "false"],
    "public.inner_row": ["=ROW(1, 'x', '2020-01-01 00:00+02', 12.5::numeric::money, '\\x00ff', 0.1)::public.inner_row",
                         "=ROW(NULL, NULL, NULL, NULL, NULL, NULL)::public.inner_row"],
    "public.outer_row": ["=ROW(ROW(1, '\"', now(), NULL, '', 'NaN')::public.inner_row, '[0:1]={1,NULL}',"
                         " '{\"b\": [1], \"a\": 1.0}', 'sad')::public.outer_row",
                         "=ROW(NULL, '{}', 'null', NULL)::public.outer_row"],
    "public.row_domain": ["=ROW(7, 'd', '2020-01-01 00:00+02', NULL, '\\x01', 3)::public.inner_row"],
    "public.\"Odd \"\"name\"": ["=ROW(1, '2020-01-01 00:00+02', 2)::public.\"Odd \"\"name\""],
    "public.textrange": ["[a,b)", "[\"\"\"\",\"\\\\\"]", "empty"],
    "public.textmultirange": ["{[a,b),[c,)}"],
    "public.momentrange": ["[2020-01-01 00:00+02,2020-07-02 00:00+02)"],
    "public.momentmultirange": ["{[2020-01-01 00:00+02,2020-07-02 00:00+02),[2021-01-01 00:00+00,)}"],
    "information_schema.cardinal_number": ["0", "5"],
    "information_schema.character_data": ["x"],
    "information_schema.sql_identifier": ["x"],
    "information_schema.time_stamp": ["2020-01-01 00:00+02"],
    "information_schema.yes_or_no": ["YES"],
}

# Newer versions bring newer values.
VALUES_17 = {"interval": ["infinity", "-infinity"]}

CONTRIB = {
    "hstore": {"public.hstore": ["", "a=>1, b=>NULL, \"c d\"=>\"\\\"\"", "t=>true, f=>0.10"]},
    "citext": {"public.citext": ["", "MiXed", "=chr(127)::public.citext"]},
    "ltree": {"public.ltree": ["", "Top.Science"], "public.lquery": ["*.a{1,2}"]},
    "cube": {"public.cube": ["(0.1,2),(3,1e300)"]},
    "seg": {"public.seg": ["1.5(+-)0.25", "<5"]},
    "isn": {"public.isbn13": ["978-0-393-04002-9"], "public.ean13": ["0220356483481"]},
}

# Types that no table can hold values of by ordinary means: their columns are tested with NULL.
WITHOUT_VALUES = {"gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"}

OBJECTS = """
    CREATE TYPE mood AS ENUM ('sad', 'so "so"', U&'\\00e9');
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN moment AS timestamptz;
    CREATE DOMAIN moments AS timestamptz[];
    CREATE DOMAIN document AS json;
    CREATE DOMAIN span AS tstzrange;
    CREATE DOMAIN flag0 AS bool;
    CREATE DOMAIN flag AS flag0 NOT NULL DEFAULT true;
    ALTER DOMAIN flag DROP NOT NULL;
    CREATE TYPE inner_row AS (i int, "a ""b" text, at timestamptz, m money, b bytea, f float8);
    CREATE TYPE outer_row AS ("inner" inner_row, list int[], doc jsonb, m mood);
    CREATE DOMAIN row_domain AS inner_row;
    CREATE TABLE "Odd ""name" (gone int, a int, at timestamptz, g int);
    ALTER TABLE "Odd ""name" DROP COLUMN gone;
    CREATE TABLE plain (a int CHECK (a > 0), b int);
    CREATE FUNCTION plain_function(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE TYPE textrange AS RANGE (subtype = text, multirange_type_name = textmultirange);
    CREATE TYPE momentrange AS RANGE (subtype = timestamptz);
    INSERT INTO plain SELECT g % 3 + 1, g % 3 FROM generate_series(1, 100) g;
    CREATE STATISTICS plain_statistics (ndistinct, dependencies, mcv) ON a, b FROM plain;
    ANALYZE plain;
"""

# A schema that shadows what a careless implementation might call.
TRAPS = """
    CREATE SCHEMA trap;
    CREATE FUNCTION trap.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS $$SELECT '"trapped"'::jsonb$$;
    CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT 'epoch'::timestamptz$$;
    CREATE FUNCTION trap.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$SELECT ''::bytea$$;
    CREATE FUNCTION trap.set_config(text, text, bool) RETURNS text LANGUAGE sql AS $$SELECT 'trapped'$$;
    CREATE FUNCTION trap.trapped(int4, int4) RETURNS bool LANGUAGE plpgsql AS $$BEGIN RAISE 'trapped'; END$$;
    CREATE OPERATOR trap.= (leftarg = int4, rightarg = int4, function = trap.trapped);
    CREATE DOMAIN trap.text AS bytea;
    CREATE DOMAIN trap.jsonb AS int;
    CREATE TABLE trap.pg_class (oid int);
    CREATE TABLE trap.policy (target int);
"""

HOSTILE = {
    "sql-escape": {
        "TimeZone": "America/St_Johns", "DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard",
        "bytea_output": "escape", "extra_float_digits": "-15", "xmlbinary": "hex", "quote_all_identifiers": "on",
        "search_path": "public, trap", "standard_conforming_strings": "off", "array_nulls": "off"},
    "german-iso": {
        "TimeZone": "Asia/Kathmandu", "DateStyle": "German, YMD", "IntervalStyle": "iso_8601",
        "bytea_output": "escape", "extra_float_digits": "0", "xmlbinary": "hex", "quote_all_identifiers": "on",
        "search_path": "", "xmloption": "document"},
    "postgres-verbose": {
        "TimeZone": "<-03>+03:30", "DateStyle": "Postgres, MDY", "IntervalStyle": "postgres_verbose",
        "bytea_output": "escape", "extra_float_digits": "-4", "xmlbinary": "hex",
        "search_path": "trap, pg_catalog, public", "transform_null_equals": "on",
        "default_text_search_config": "pg_catalog.simple", "escape_string_warning": "off", "row_security": "off"},
    "replica": {
        "TimeZone": "Pacific/Kiritimati", "DateStyle": "SQL, YMD", "IntervalStyle": "sql_standard",
        "extra_float_digits": "3", "session_replication_role": "replica", "search_path": "\"$user\", trap"},
}


def literal(value):
    return "'" + value.replace("'", "''") + "'"


def expression(type_name, value):
    return "(%s)::%s" % (value[1:] if value.startswith("=") else literal(value), type_name)


def available_values(conn):
    """The values that this server can make, contrib's types included."""
    values = {t: list(v) for t, v in VALUES.items()}
    version = conn.info.server_version
    if version >= 170000:
        for type_name, more in VALUES_17.items():
            values[type_name] += more
    offered = {r[0] for r in conn.execute("SELECT name FROM pg_available_extensions")}
    for extension, types in CONTRIB.items():
        if extension in offered:
            conn.execute("CREATE EXTENSION %s SCHEMA public" % extension)
            values.update(types)
    try:
        conn.execute("SELECT '<a/>'::xml")
    except psycopg.Error:
        pass  # built without libxml
    else:
        values["xml"] = ["<a/>", "<a>&lt;\n\"</a>", "plain text", "<?xml version=\"1.0\"?><a b='c'/>", "<é/>"]
    return values


def make_seed(conn, values):
    """Table `seed`: a column per type and one per array type, a row per edge value, NULL where a type has no more."""
    columns, cells = ["k int NOT NULL"], []
    for i, (type_name, some) in enumerate(sorted(values.items())):
        scalar = [expression(type_name, v) for v in some]
        columns.append("v%d %s" % (i, type_name))
        cells.append(scalar)
        if type_name in ("oidvector", "int2vector", "public.moments", "pg_node_tree", "pg_ndistinct", "pg_dependencies",
                         "pg_mcv_list"):
            continue
        small = [s for s in scalar if "repeat" not in s and "generate_series" not in s]
        element = type_name if "(" not in type_name and " " not in type_name or type_name.startswith("public.") \
            else {"interval year to month": "interval"}.get(type_name, type_name.split("(")[0])
        everything = "ARRAY[%s]::%s[]" % (", ".join(small + ["NULL"]), element)
        one = small[0]
        columns.append("a%d %s[]" % (i, element))
        cells.append([
            everything,
            "'{}'::%s[]" % element,
            "ARRAY[NULL]::%s[]" % element,
            "array_fill(%s, '{2,1,3}', '{-5,0,7}')::%s[]" % (one, element),
            "(ARRAY[%s, NULL]::%s[])[2:2]" % (one, element),
        ])
    conn.execute("CREATE TABLE seed (%s)" % ", ".join(columns))
    rows = max(len(c) for c in cells)
    for k in range(rows + 1):
        conn.execute("INSERT INTO seed VALUES (%d, %s)" % (
            k, ", ".join(c[k] if k < len(c) else "NULL" for c in cells)))
    return rows + 1


# Rows and events that do not match, with the keys that differ.
COMPARE = """
    WITH one AS (
        SELECT image, expected, image = expected AND image::text = expected::text AS same
          FROM ({pairs}) AS pair(image, expected))
    SELECT count(*), count(*) FILTER (WHERE same IS NOT TRUE),
           (array_agg(coalesce((
               SELECT string_agg(coalesce(i.key, x.key) || ': ' || coalesce(left(i.value::text, 300), '(absent)')
                                 || ' instead of ' || coalesce(left(x.value::text, 300), '(absent)'), E'\\n  ')
                 FROM jsonb_each(image) i FULL JOIN jsonb_each(expected) x ON i.key = x.key
                WHERE i.value::text IS DISTINCT FROM x.value::text), 'one is missing'))
            FILTER (WHERE same IS NOT TRUE))[:5]
      FROM one"""

EVENTS_OF = """
    SELECT e.* FROM audit.event e JOIN audit.relation r ON r.id = e.relation_id
     WHERE r.relid = '{table}'::regclass AND e.operation = '{operation}'"""


def assert_equal_images(fixed, pairs, count):
    total, wrong, examples = fixed.execute(COMPARE.format(pairs=pairs)).fetchone()
    assert wrong == 0, "%d of %d images differ:\n  %s" % (wrong, total, "\n  ".join(examples))
    assert total == count


def assert_events_match(fixed, operation, source, count, table="public.target", image="e.row_image", key="k"):
    """Each event of a table has, in `source`, the row with its key, and the image equals that row."""
    pairs = """SELECT {image}, to_jsonb(x) FROM ({events}) e FULL JOIN {source} x
                   ON x.{key} = (e.row_image ->> '{key}')::int"""
    assert_equal_images(fixed, pairs.format(
        image=image, events=EVENTS_OF.format(table=table, operation=operation), source=source, key=key), count)


@pytest.fixture
def seeded(db, conn):
    """The seed and an audited table of its shape."""
    conn.execute(OBJECTS)
    conn.execute(TRAPS)
    with fixed_session(conn) as fixed:
        fixed.execute("SET search_path = public, pg_catalog")
        rows = make_seed(fixed, available_values(conn))
    conn.execute("CREATE TABLE target (LIKE seed)")
    conn.execute("SELECT audit.enable('target')")
    return rows


def test_every_type_of_the_server_is_among_the_values(db, conn):
    conn.execute(OBJECTS)
    values = available_values(conn)
    named = {conn.execute("SELECT to_regtype(%s)::oid::int8", [t.split("(")[0].replace("interval year to month",
                                                                                       "interval")]).fetchone()[0]
             for t in values}
    rows = conn.execute(
        """SELECT t.oid::int8, t.typname FROM pg_type t
            WHERE t.typnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'public'::regnamespace)
              AND t.typtype IN ('b', 'd', 'e', 'r', 'm') AND t.typcategory <> 'A' OR t.oid IN (22, 30)""").fetchall()
    allowed = WITHOUT_VALUES | {"xml"} | {"flag0"}  # flag0 is below the domain flag
    contrib = {r[0] for r in conn.execute("SELECT t.typname FROM pg_type t JOIN pg_depend d ON d.objid = t.oid"
                                          " AND d.classid = 'pg_type'::regclass AND d.deptype = 'e'")}
    missing = sorted(name for oid, name in rows if oid not in named and name not in allowed and name not in contrib)
    assert missing == []


def run_through(conn, hostile, rows):
    """INSERT, UPDATE and DELETE of all rows in a hostile session, each compared."""
    with fixed_session(conn) as fixed:
        columns = [r[0] for r in conn.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'seed'::regclass AND attnum > 1 ORDER BY attnum")]
        hostile.execute("INSERT INTO public.target SELECT * FROM public.seed")
        assert_events_match(fixed, "INSERT", "public.target", rows)

        hostile.execute("UPDATE public.target t SET (%s) = (SELECT %s FROM public.seed s WHERE s.k"
                        " OPERATOR(pg_catalog.=) ((t.k OPERATOR(pg_catalog.+) 1) OPERATOR(pg_catalog.%%) %d))"
                        % (", ".join(columns), ", ".join("s." + c for c in columns), rows))
        assert_events_match(fixed, "UPDATE", "public.target", rows)
        assert_events_match(fixed, "UPDATE", "public.seed", rows, image="e.row_image || e.old_values")
        # A column whose image changed is among the old values, one that was NULL and still is, is not.
        wrong = fixed.execute(
            """SELECT s.k, o.key, n.value, o.value
                 FROM (%s) e JOIN public.seed s ON s.k = (e.row_image ->> 'k')::int
                 JOIN public.target t ON t.k = s.k,
                      jsonb_each(to_jsonb(s)) o JOIN LATERAL jsonb_each(e.row_image) n ON n.key = o.key
                WHERE o.value::text IS DISTINCT FROM n.value::text AND NOT e.old_values ? o.key
                   OR o.key = ANY (ARRAY[%s]) AND e.old_values ? o.key
                LIMIT 5""" % (EVENTS_OF.format(table="public.target", operation="UPDATE"), ", ".join(
                    "CASE num_nulls(s.%s, t.%s) WHEN 2 THEN '%s' END" % (c, c, c) for c in columns))).fetchall()
        assert wrong == []

        before = fixed.execute("CREATE TABLE public.last AS SELECT * FROM public.target")
        assert before.rowcount == rows
        hostile.execute("DELETE FROM public.target")
        assert_events_match(fixed, "DELETE", "public.last", rows)
        # The session's own settings are as they were.
        assert fixed.execute("SELECT count(*) FROM audit.event").fetchone()[0] == 3 * rows


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_every_type_under_hostile_settings(name, conn, seeded):
    settings = HOSTILE[name]
    with connect_like(conn) as hostile:
        for setting, value in settings.items():
            hostile.execute("SELECT set_config(%s, %s, false)", [setting, value])
        shown = {s: hostile.execute("SELECT pg_catalog.current_setting(%s)", [s]).fetchone()[0] for s in settings}
        run_through(conn, hostile, seeded)
        assert shown == {s: hostile.execute("SELECT pg_catalog.current_setting(%s)", [s]).fetchone()[0]
                         for s in settings}
    auditlib.check_integrity(conn)


def test_images_do_not_follow_lc_monetary(new_cluster, monkeypatch):
    """In a cluster that has a locale with another currency, separators and sign."""
    if not shutil.which("localedef"):
        pytest.skip("localedef is not installed")
    # World-readable: the server runs as another user.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        made = subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", folder + "/de_DE.UTF-8"],
                              capture_output=True)
        if not os.path.isdir(folder + "/de_DE.UTF-8"):
            pytest.skip("the sources of locales are not installed: " + made.stderr.decode()[:100])
        monkeypatch.setenv("LOCPATH", folder)
        cluster = new_cluster()
        conn = cluster.connect()
        try:
            conn.execute("SET lc_monetary = 'de_DE.UTF-8'")
        except psycopg.Error:
            pytest.skip("the server does not see LOCPATH")
        conn.execute("CREATE EXTENSION audit_ext")
        conn.execute("CREATE TABLE public.target (k int PRIMARY KEY, m money, l money[])")
        conn.execute("SELECT audit.enable('public.target')")
        assert conn.execute("SELECT 1234.5::numeric::money::text").fetchone()[0] not in ("$1,234.50",)
        conn.execute("INSERT INTO public.target SELECT 1, 1234.5::numeric::money, ARRAY[(-0.01)::numeric::money]")
        conn.execute("UPDATE public.target SET m = 7::money")
        with fixed_session(conn) as fixed:
            assert_events_match(fixed, "UPDATE", "public.target", 1)
            found = fixed.execute("SELECT row_image, old_values FROM audit.event ORDER BY seq, occurred_at").fetchall()
        assert found[0][0] == {"k": 1, "m": "$1,234.50", "l": ["-$0.01"]}
        assert found[1] == ({"k": 1, "m": "$7.00", "l": ["-$0.01"]}, {"m": "$1,234.50"})
        conn.close()


# --- shapes of tables ---------------------------------------------------------------------------------------------

def matches_table(conn, operation, count, table="public.target", key="k"):
    with fixed_session(conn) as fixed:
        assert_events_match(fixed, operation, table, count, table=table, key=key)


def test_sixteen_hundred_columns(conn):
    kinds = ["int4", "bool", "int2", "text", "numeric", "\"char\"", "date", "float4"]
    conn.execute("CREATE TABLE target (k int, %s)" % ", ".join(
        "%s%d %s" % ("cé" if i % 3 else "c", i, kinds[i % len(kinds)]) for i in range(1, 1600)))
    conn.execute("SELECT audit.enable('target')")
    values = {"int4": "%d", "bool": "%d::int::bool", "int2": "%d", "text": "'%d'", "numeric": "%d",
              "\"char\"": "chr(65 + %d %% 26)::\"char\"", "date": "date '2000-01-01' + %d", "float4": "%d"}
    conn.execute("INSERT INTO target VALUES (1, %s)" % ", ".join(
        values[kinds[i % len(kinds)]] % i if i % 2 else "NULL" for i in range(1, 1600)))
    conn.execute("INSERT INTO target VALUES (2)")
    matches_table(conn, "INSERT", 2)
    assert len(auditlib.events(conn, "target")[0].image) == 1600
    conn.execute("UPDATE target SET c1599 = c1599, c3 = 'new', \"cé1598\" = '2020-01-01' WHERE k = 1")
    event = auditlib.replay(conn, "target")[-1]
    assert event.operation == "UPDATE" and set(event.old_values) == {"c3", "cé1598"}
    conn.execute("DELETE FROM target")
    auditlib.replay(conn, "target")
    auditlib.check_integrity(conn)


def test_dropped_and_added_columns(conn):
    conn.execute("CREATE TABLE target (x int, k int PRIMARY KEY, y text, z text)")
    conn.execute("INSERT INTO target SELECT g, g, 'y' || g, 'z' FROM generate_series(1, 3) g")
    start = auditlib.state(conn, "target")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("UPDATE target SET y = 'first' WHERE k = 1")
    conn.execute("ALTER TABLE target DROP COLUMN x")
    conn.execute("ALTER TABLE target ADD COLUMN d timestamptz DEFAULT '2020-01-01 00:00+02',"
                 " ADD COLUMN n int, ADD COLUMN l text DEFAULT repeat('long', 3000),"
                 " ADD COLUMN num numeric(5,2) DEFAULT 1.5, ADD COLUMN \"char\" \"char\" DEFAULT 'c'")
    # The rows are still stored without these columns: their values come from the catalog.
    conn.execute("UPDATE target SET y = 'second' WHERE k = 2")
    conn.execute("DELETE FROM target WHERE k = 3")
    first, second, third = auditlib.events(conn, "target")
    assert first.image == {"x": "\x001", "k": "\x001", "y": "first", "z": "z"} and first.old_values == {"y": "y1"}
    with fixed_session(conn) as fixed:
        expected = auditlib.parse(fixed.execute("SELECT to_jsonb(r)::text FROM public.target r WHERE k = 2").fetchone()[0])
    assert second.image == expected and second.old_values == {"y": "y2"}
    assert third.image == {**expected, "k": "\x003", "y": "y3"}
    conn.execute("ALTER TABLE target ALTER COLUMN n TYPE text USING 'n', DROP COLUMN z, ADD COLUMN x int DEFAULT 7")
    conn.execute("INSERT INTO target (k) VALUES (9)")
    conn.execute("ALTER TABLE target RENAME COLUMN y TO \"Y\"")
    conn.execute("UPDATE target SET \"Y\" = 'third', k = k + 10")
    matching = [e for e in auditlib.events(conn, "target") if e.operation == "UPDATE"][-3:]
    assert {auditlib.freeze(e.new_row) for e in matching} == {row for _, row in auditlib.state(conn, "target")}
    assert start
    auditlib.check_integrity(conn)
    layouts = conn.execute("SELECT id, jsonb_path_query_array(columns, '$[*].name') FROM audit.relation"
                           " WHERE relid = 'target'::regclass ORDER BY id").fetchall()
    assert layouts[0][1] == ["x", "k", "y", "z"]
    assert layouts[-1][1] == ["k", "Y", "d", "n", "l", "num", "char", "x"]


def test_layouts_that_are_rolled_back(conn):
    """The row of audit.relation is written with the first event of a layout, and goes with it; events that stay have theirs."""
    conn.execute("CREATE TABLE target (k int PRIMARY KEY, a text); SELECT audit.enable('target')")
    conn.execute("BEGIN; INSERT INTO target VALUES (0, 'gone'); ROLLBACK")
    conn.execute("BEGIN; SAVEPOINT s; INSERT INTO target VALUES (0, 'gone'); ROLLBACK TO s; INSERT INTO target VALUES (1, 'a');"
                 " COMMIT")
    conn.execute("BEGIN; SAVEPOINT s; ALTER TABLE target ADD COLUMN b int DEFAULT 7; INSERT INTO target VALUES (0, 'gone', 1);"
                 " ROLLBACK TO s; INSERT INTO target VALUES (2, 'a');"
                 " ALTER TABLE target ADD COLUMN c int DEFAULT 8; INSERT INTO target VALUES (3, 'a', 9); COMMIT")
    conn.execute("BEGIN; ALTER TABLE target RENAME TO other; INSERT INTO other VALUES (0, 'gone', 1); ROLLBACK")
    conn.execute("INSERT INTO target VALUES (4, 'a', 9)")
    found = auditlib.events(conn, "target")
    assert [(e.resource_id, e.table_name, sorted(e.image)) for e in found] == [
        ("1", "target", ["a", "k"]), ("2", "target", ["a", "k"]), ("3", "target", ["a", "c", "k"]),
        ("4", "target", ["a", "c", "k"])]
    # A prepared transaction may still be rolled back when its session goes on.
    conn.execute("ALTER TABLE target ADD COLUMN d int")
    conn.execute("BEGIN; INSERT INTO target VALUES (0, 'gone', 1, 1); PREPARE TRANSACTION 'layout %s'" % conn.info.dbname)
    conn.execute("INSERT INTO target VALUES (5, 'a', 9, 9)")
    conn.execute("ROLLBACK PREPARED 'layout %s'" % conn.info.dbname)
    conn.execute("INSERT INTO target VALUES (6, 'a', 9, 9)")
    assert [e.resource_id for e in auditlib.events(conn, "target")] == ["1", "2", "3", "4", "5", "6"]
    auditlib.check_integrity(conn)


def test_fast_default_of_a_dropped_column_and_of_toasted_rows(conn):
    conn.execute("CREATE TABLE target (k int, a text)")
    conn.execute("INSERT INTO target SELECT g, repeat(md5(g::text), 500) FROM generate_series(1, 2) g")
    conn.execute("ALTER TABLE target ADD COLUMN b int DEFAULT 1, ADD COLUMN c jsonb DEFAULT '{\"x\": 1.0}'")
    conn.execute("ALTER TABLE target DROP COLUMN b")
    start = auditlib.state(conn, "target")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("UPDATE target SET k = 5 WHERE k = 1")
    conn.execute("DELETE FROM target WHERE k = 2")
    found = auditlib.replay(conn, "target", start)
    assert found[0].old_values == {"k": "\x001"}


def test_generated_and_identity_columns(conn):
    virtual = conn.info.server_version >= 180000
    conn.execute(
        """CREATE TABLE target (k int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, at timestamp,
               twice int GENERATED ALWAYS AS (a * 2) STORED, label text GENERATED ALWAYS AS ('a' || a::text) STORED,
               d int GENERATED BY DEFAULT AS IDENTITY (START 100)%s)"""
        % (", half numeric GENERATED ALWAYS AS (a / 2.0) VIRTUAL, txt text GENERATED ALWAYS AS (upper('v' || a::text)) VIRTUAL"
           if virtual else ""))
    conn.execute("SELECT audit.enable('target')")
    conn.execute("INSERT INTO target (a) VALUES (1), (2), (NULL)")
    conn.execute("INSERT INTO target (k, a, d) OVERRIDING SYSTEM VALUE VALUES (50, 4, 7)")
    matches_table(conn, "INSERT", 4)
    conn.execute("UPDATE target SET a = 10 WHERE k = 1")
    conn.execute("DELETE FROM target WHERE k = 2")
    update = auditlib.replay(conn, "target")[-2]
    assert {"a", "twice", "label"} <= set(update.old_values) and "k" not in update.old_values
    assert update.image["twice"] == "\x0020"
    if virtual:
        assert update.image["txt"] == "V10" and "half" in update.image


@pytest.mark.parametrize("storage", ["PLAIN", "MAIN", "EXTERNAL", "EXTENDED"])
def test_toasted_and_compressed_values(conn, storage):
    conn.execute("CREATE TABLE target (k int PRIMARY KEY, a text, b bytea, c int[], d jsonb, note int)")
    for column in ("a", "b", "c", "d"):
        conn.execute("ALTER TABLE target ALTER COLUMN %s SET STORAGE %s" % (column, storage))
    conn.execute("SELECT audit.enable('target')")
    size = {"PLAIN": 20}.get(storage, 3000)
    conn.execute(
        """INSERT INTO target SELECT g, string_agg(md5((g * i)::text), ''),
                  decode(string_agg(md5((g + i)::text), ''), 'hex'), array_agg(g * i), jsonb_agg(i * 1.5), 0
             FROM generate_series(1, 3) g, generate_series(1, %d) i GROUP BY g""" % size)
    matches_table(conn, "INSERT", 3)
    conn.execute("UPDATE target SET note = 1")
    conn.execute("UPDATE target SET a = a || '' , b = b || '', c = c || '{}'::int[], note = 2")
    conn.execute("UPDATE target SET d = d || '[1]', note = 3 WHERE k = 1")
    conn.execute("DELETE FROM target WHERE k < 3")
    found = auditlib.replay(conn, "target")
    updates = [set(e.old_values) for e in found if e.operation == "UPDATE"]
    assert updates == [{"note"}] * 6 + [{"note", "d"}]
    auditlib.check_integrity(conn)


def test_a_value_stored_differently_is_not_a_change(conn):
    """The same value inline, compressed and out of line is the same value; 1.0 and 1.00 are two."""
    conn.execute("CREATE TABLE target (k int PRIMARY KEY, a text, n numeric, note int)")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("INSERT INTO target VALUES (1, repeat('compressible ', 5000), 1.0, 0)")
    conn.execute("ALTER TABLE target ALTER COLUMN a SET STORAGE EXTERNAL")
    conn.execute("UPDATE target SET a = repeat('compressible ', 5000), note = 1")
    conn.execute("ALTER TABLE target ALTER COLUMN a SET STORAGE MAIN")
    conn.execute("UPDATE target SET a = repeat('compressible ', 5000), note = 2")
    conn.execute("UPDATE target SET n = 1.00")
    found = auditlib.replay(conn, "target")
    assert [set(e.old_values) for e in found[1:]] == [{"note"}, {"note"}, {"n"}]
    assert conn.execute("SELECT array_agg(changed_columns::text ORDER BY command, position) FROM audit.log"
                        " WHERE operation = 'UPDATE'").fetchone()[0] == ["{note}", "{note}", "{n}"]


def test_lz4_compression(conn):
    try:
        conn.execute("CREATE TABLE target (k int PRIMARY KEY, a text COMPRESSION lz4, c int)")
    except psycopg.Error:
        pytest.skip("built without lz4")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("INSERT INTO target VALUES (1, repeat('compressible ', 500), 0), (2, repeat('x', 100000), 0)")
    conn.execute("UPDATE target SET c = 1")
    conn.execute("DELETE FROM target")
    assert [set(e.old_values) for e in auditlib.replay(conn, "target") if e.operation == "UPDATE"] == [{"c"}] * 2


def test_column_names(conn):
    """Keys of JSONB are ordered by length, then bytes: not by name, and not by attribute number."""
    names = ["t", "k", "target", "audit_row", "A", "a", "Z", "aa", "B", "é", "ee", "日本", " ", "\"", "\\", "\n", "'", "$sha256",
             "select", "n" * 63, "%", "😀", "_", "0", "old_values", "row_image"]
    quoted = ['"%s"' % n.replace('"', '""') for n in names]
    conn.execute("CREATE TABLE target (%s)" % ", ".join(q + " int" for q in quoted))
    conn.execute("SELECT audit.enable('target')")
    conn.execute("INSERT INTO target VALUES (%s)" % ", ".join(map(str, range(len(names)))))
    conn.execute("UPDATE target SET %s" % ", ".join("%s = %s + 1" % (q, q) for q in quoted if q != '"k"'))
    matches_table(conn, "UPDATE", 1)
    update = auditlib.replay(conn, "target")[-1]
    assert set(update.old_values) == set(names) - {"k"}
    assert set(conn.execute("SELECT changed_columns FROM audit.log WHERE operation = 'UPDATE'").fetchone()[0]) \
        == set(names) - {"k"}
    auditlib.check_integrity(conn)


def test_types_altered_under_stored_values(conn):
    """Composites stored before an attribute was added or dropped, and an enum label renamed."""
    conn.execute("CREATE TYPE pair AS (a int, b timestamptz); CREATE TYPE shade AS ENUM ('dark', 'light')")
    conn.execute("CREATE TABLE target (k int, p pair, l pair[], s shade)")
    conn.execute("INSERT INTO target VALUES (1, ROW(1, '2020-01-01 00:00+02'), ARRAY[ROW(2, NULL)]::pair[], 'dark')")
    conn.execute("ALTER TYPE pair ADD ATTRIBUTE c text")
    conn.execute("ALTER TYPE pair DROP ATTRIBUTE a")
    start = auditlib.state(conn, "target")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("UPDATE target SET k = 2")
    conn.execute("ALTER TYPE pair RENAME ATTRIBUTE c TO d")
    conn.execute("ALTER TYPE shade RENAME VALUE 'dark' TO 'black'")
    conn.execute("DELETE FROM target")
    update, delete = auditlib.events(conn, "target")
    assert set(update.image["p"]) == {"b", "c"} and update.old_values == {"k": "\x001"} and update.image["s"] == "dark"
    assert set(delete.image["p"]) == {"b", "d"} and set(delete.image["l"][0]) == {"b", "d"}
    assert delete.image["s"] == "black"
    assert auditlib.apply(start, [update])


def test_casts_to_json_are_followed(conn):
    """to_jsonb uses a cast from a user's type to json where there is one, and so does the image."""
    conn.execute("""
        CREATE TYPE color AS ENUM ('red', 'green');
        CREATE TYPE point3 AS (x int, y int, z int);
        CREATE FUNCTION color_json(color) RETURNS json LANGUAGE sql IMMUTABLE AS
            $$SELECT json_build_object('color', $1::text)$$;
        CREATE CAST (color AS json) WITH FUNCTION color_json(color);
        CREATE FUNCTION point3_json(point3) RETURNS json LANGUAGE plpgsql AS $$BEGIN RETURN '[1,2,3]'; END$$;
        CREATE CAST (point3 AS json) WITH FUNCTION point3_json(point3);
        CREATE DOMAIN paint AS color;
        CREATE TABLE target (k int, c color, l color[], p point3, d paint);
        SELECT audit.enable('target')""")
    conn.execute("INSERT INTO target VALUES (1, 'red', '{green,NULL}', '(1,2,3)', 'green')")
    matches_table(conn, "INSERT", 1)
    assert auditlib.events(conn, "target")[0].image["c"] == {"color": "red"}
    conn.execute("UPDATE target SET c = 'green'")
    matches_table(conn, "UPDATE", 1)
    auditlib.replay(conn, "target")


def test_casts_that_come_and_go(conn):
    """Within one session, between statements: nothing that it remembers may be older than the cast."""
    conn.execute("""
        CREATE TYPE color AS ENUM ('red', 'green');
        CREATE TYPE holder AS (c color);
        CREATE FUNCTION color_json(color) RETURNS json LANGUAGE sql IMMUTABLE AS $$SELECT '{"cast": true}'::json$$;
        CREATE TABLE target (k int PRIMARY KEY, c color, l color[], h holder);
        SELECT audit.enable('target')""")
    for k, change in enumerate(("SELECT 1", "CREATE CAST (color AS json) WITH FUNCTION color_json(color)",
                                "DROP CAST (color AS json); DROP FUNCTION color_json(color)")):
        conn.execute(change)
        conn.execute("INSERT INTO target VALUES (%s, 'red', '{green,NULL}', '(red)')", [k])
        with fixed_session(conn) as fixed:
            expected = fixed.execute("SELECT to_jsonb(x)::text FROM public.target x WHERE k = %s", [k]).fetchone()[0]
        assert auditlib.events(conn, "target")[-1].image_text == expected, change


def test_a_cast_that_writes_to_an_audited_table(conn):
    """An output path may run any statement, also one that is audited: the capture must be re-entrant."""
    conn.execute("""
        CREATE TYPE color AS ENUM ('red', 'green');
        CREATE TABLE side (n int);
        CREATE FUNCTION color_json(color) RETURNS json LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO public.side VALUES (1), (2); RETURN '"cast"'; END$$;
        CREATE CAST (color AS json) WITH FUNCTION color_json(color);
        CREATE TABLE target (k int, c color);
        SELECT audit.enable('target'), audit.enable('side')""")
    conn.execute("INSERT INTO target VALUES (1, 'red'), (2, 'green')")
    conn.execute("UPDATE target SET c = 'red'")
    assert [e.image["c"] for e in auditlib.events(conn, "target")] == ["cast"] * 4
    count = conn.execute("SELECT count(*) FROM side").fetchone()[0]
    assert count > 0 and len(auditlib.replay(conn, "side")) == count
    auditlib.check_integrity(conn)


def test_a_cast_with_settings_of_its_own(conn):
    """What such a function writes to an audited table is recorded in the fixed environment all the same."""
    conn.execute("""
        CREATE TYPE color AS ENUM ('red', 'green');
        CREATE TABLE side (i interval, b bytea, r regclass, n numrange);
        CREATE FUNCTION color_json(color) RETURNS json LANGUAGE plpgsql
            SET IntervalStyle = 'iso_8601' SET bytea_output = 'escape' SET search_path = 'public'
            SET extra_float_digits = -10 SET DateStyle = 'German' AS
            $$BEGIN INSERT INTO side VALUES ('1 day 2 hours', '\\x01', 'side', '[0.1,1e20]'); RETURN '"cast"'; END$$;
        CREATE CAST (color AS json) WITH FUNCTION color_json(color);
        CREATE TABLE target (k int, c color, i interval);
        SELECT audit.enable('target'), audit.enable('side')""")
    conn.execute("SET IntervalStyle = 'sql_standard'")
    conn.execute("INSERT INTO target VALUES (1, 'red', '3 days 4 hours')")
    assert len(auditlib.replay(conn, "side")) > 0
    assert auditlib.replay(conn, "target")[0].image == {"k": "\x001", "c": "cast", "i": "3 days 04:00:00"}
    auditlib.check_integrity(conn)


def test_resource_id(conn):
    conn.execute("""
        CREATE TABLE single (a int, id bigint PRIMARY KEY);
        CREATE TABLE composite (b text, a int, at timestamptz, PRIMARY KEY (a, b, at));
        CREATE TABLE replica (u uuid NOT NULL, v int);
        CREATE UNIQUE INDEX replica_key ON replica (u);
        ALTER TABLE replica REPLICA IDENTITY USING INDEX replica_key;
        CREATE TABLE without_key (a int);
        CREATE TABLE instants (at timestamptz PRIMARY KEY);
        SELECT audit.enable(t) FROM unnest('{single,composite,replica,without_key,instants}'::regclass[]) t;
        SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'""")
    conn.execute("INSERT INTO single VALUES (1, 9000000000)")
    conn.execute("UPDATE single SET id = 5")
    conn.execute("DELETE FROM single")
    found = conn.execute("SELECT resource_id, details FROM audit.event ORDER BY occurred_at, seq").fetchall()
    assert found == [("9000000000", None), ("5", {"old_resource_id": "9000000000"}), ("5", None)]

    def ids(table):
        return [e.resource_id for e in auditlib.events(conn, table)]
    conn.execute("INSERT INTO composite VALUES ('x\"', 1, '2020-01-01 00:00+00')")
    assert ids("composite") == ['[1, "x\\"", "2020-01-01T00:00:00+00:00"]']
    conn.execute("INSERT INTO replica VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 1)")
    assert ids("replica") == ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]
    conn.execute("INSERT INTO without_key VALUES (1)")
    assert ids("without_key") == [None]
    conn.execute("INSERT INTO instants VALUES ('2020-01-01 00:00+00')")
    assert ids("instants") == ["2020-01-01T00:00:00+00:00"]
    auditlib.check_integrity(conn)


# --- values that JSONB cannot hold --------------------------------------------------------------------------------

def stand_in(text):
    data = text.encode() if isinstance(text, str) else text
    return {"$sha256": hashlib.sha256(data).hexdigest(), "$bytes": len(data)}


def image(conn, table="target", index=-1):
    """An image as ordinary Python values."""
    return json.loads(auditlib.events(conn, table)[index].image_text)


NOT_JSONB = [
    '"\\u0000"', '{"a": "x\\u0000y"}', '{"\\u0000": 1}', "1e200000", "[1, -1e-20000]", '{"a": 1, "a": "\\u0000"}',
    '["\\ud800"]', '"\\udc00\\ud800"']


def test_json_that_jsonb_cannot_hold(conn):
    conn.execute("CREATE TABLE target (k int PRIMARY KEY, j json, t text)")
    conn.execute("SELECT audit.enable('target')")
    for text in NOT_JSONB:
        # Whether this version's to_jsonb takes it decides; what json itself refuses is no value.
        try:
            reference = conn.execute("SELECT to_jsonb(%s::json)", [text]).fetchone()[0]
        except psycopg.Error:
            reference = stand_in(text)
        conn.execute("INSERT INTO target VALUES (1, %s, 'x')", [text])
        assert image(conn) == {"k": 1, "j": reference, "t": "x"}, text
        conn.execute("UPDATE target SET t = 'y'")
        assert auditlib.events(conn, "target")[-1].old_values == {"t": "x"}, text
        conn.execute("UPDATE target SET j = '1'")
        assert json.loads(auditlib.events(conn, "target")[-1].old_values_text) == {"j": reference}, text
        conn.execute("UPDATE target SET j = %s", [text])
        conn.execute("DELETE FROM target")
        assert image(conn) == {"k": 1, "j": reference, "t": "y"}, text
    auditlib.check_integrity(conn)


def test_json_that_jsonb_cannot_hold_inside_other_values(conn):
    conn.execute("CREATE TYPE holder AS (a int, j json); CREATE DOMAIN document AS json")
    conn.execute("CREATE TABLE target (k int, l json[], h holder, d document)")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("""INSERT INTO target VALUES (1, ARRAY['"\\u0000"', '1']::json[], ROW(1, '"\\u0000"'), '"\\u0000"')""")
    found = image(conn)
    assert found["d"] == stand_in('"\\u0000"')
    assert "$sha256" in str(found["l"]) and "$sha256" in str(found["h"])
    conn.execute("DELETE FROM target")
    auditlib.check_integrity(conn)


def test_deeply_nested_json(conn):
    """Deeper than to_jsonb gets within the stack limit may stand in by its hash; what json accepts must be written."""
    conn.execute("CREATE TABLE target (k int, j json)")
    conn.execute("SELECT audit.enable('target')")
    for depth in (1000, 3000, 6000, 8000, 10000, 12000, 15000):
        text = "[" * depth + "]" * depth
        try:
            conn.execute("SELECT length(%s::json::text)", [text])
        except psycopg.Error:
            break
        conn.execute("INSERT INTO target VALUES (%s, %s)", [depth, text])
        assert conn.execute("SELECT count(row_image -> 'j') FROM audit.event WHERE row_image ->> 'k' = %s",
                            [str(depth)]).fetchone()[0] == 1
    auditlib.check_integrity(conn)


def test_max_value_bytes(conn):
    conn.execute("CREATE TABLE target (k int PRIMARY KEY, t text, b bytea, n numeric, j jsonb, l int[], note int)")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("SET audit.max_value_bytes = 100")
    conn.execute("SET bytea_output = 'escape'")
    long_text, long_number = "é" * 51, "1" * 101
    conn.execute("INSERT INTO target VALUES (1, %s, %s, %s, %s, '{1}', 0)",
                 ["x" * 100, b"\0" * 49, "1" * 100, '{"a": "%s"}' % ("y" * 91)])
    assert image(conn) == {"k": 1, "t": "x" * 100, "b": "\\x" + "00" * 49, "n": int("1" * 100),
                           "j": {"a": "y" * 91}, "l": [1], "note": 0}
    conn.execute("UPDATE target SET t = %s, b = %s, n = %s, j = %s", [
        long_text, b"\0" * 50, long_number, '{"a": "%s"}' % ("y" * 92)])
    found = image(conn)
    assert found["t"] == stand_in(long_text)
    assert found["b"] == stand_in("\\x" + "00" * 50)
    assert found["n"] == stand_in(long_number)
    assert found["j"] == stand_in('{"a": "%s"}' % ("y" * 92))
    conn.execute("UPDATE target SET note = 1")
    assert auditlib.events(conn, "target")[-1].old_values == {"note": "\x000"}
    conn.execute("UPDATE target SET t = t || 'more'")
    assert json.loads(auditlib.events(conn, "target")[-1].old_values_text) == {"t": stand_in(long_text)}
    conn.execute("SET audit.max_value_bytes = 0")
    conn.execute("DELETE FROM target")
    assert image(conn)["t"] == long_text + "more"
    auditlib.check_integrity(conn)


def test_values_over_the_limits_of_jsonb(conn):
    """A jsonb object holds less than 256 MB in all: a larger value, or the largest of several, is recorded as its hash."""
    limit = 0x0FFFFFFF
    conn.execute("CREATE TABLE target (k int PRIMARY KEY, a text, b text, note int)")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("INSERT INTO target VALUES (1, repeat('x', %d), NULL, 0)" % (limit + 1))
    found = image(conn)
    assert found == {"k": 1, "a": stand_in("x" * (limit + 1)), "b": None, "note": 0}
    conn.execute("UPDATE target SET note = 1")
    assert auditlib.events(conn, "target")[-1].old_values == {"note": "\x000"}
    conn.execute("DELETE FROM target")
    # Neither alone is too large, both together are.
    half = 150_000_000
    conn.execute("INSERT INTO target VALUES (2, repeat('a', %d), repeat('b', %d), 0)" % (half, half))
    shape = conn.execute("SELECT jsonb_typeof(row_image -> 'a'), jsonb_typeof(row_image -> 'b') FROM audit.event"
                         " WHERE row_image -> 'k' = '2'").fetchone()
    assert "object" in shape
    conn.execute("DELETE FROM target")
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone()[0] == 5


@pytest.mark.long
def test_values_whose_text_is_larger_than_a_text_can_be(conn):
    """The text form of a bytea of more than 512 MB is no legal datum; the row is, and must be written."""
    conn.execute("CREATE TABLE target (k int PRIMARY KEY, b bytea)")
    conn.execute("SELECT audit.enable('target')")
    size = 540_000_000
    conn.execute("INSERT INTO target VALUES (1, convert_to(repeat('x', %d), 'UTF8'))" % size)
    digest = hashlib.sha256(b"\\x")
    block = b"78" * 1_000_000
    for _ in range(size // 1_000_000):
        digest.update(block)
    assert image(conn)["b"] == {"$sha256": digest.hexdigest(), "$bytes": 2 + 2 * size}


def test_char_with_high_bit(conn):
    """Before version 16 "char" prints a lone byte, which is no UTF-8; it must still be written."""
    conn.execute("CREATE TABLE target (k int, c \"char\")")
    conn.execute("SELECT audit.enable('target')")
    conn.execute("INSERT INTO target VALUES (1, (-56)::\"char\")")
    conn.execute("UPDATE target SET k = 2")
    assert conn.execute("SELECT count(*) FROM audit.event").fetchone()[0] == 2


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_databases_of_other_encodings(cluster, db, encoding):
    name = "%s_%s" % (db.name, encoding.lower())
    with cluster.connect() as admin:
        admin.execute("CREATE DATABASE %s TEMPLATE template0 ENCODING '%s' LC_COLLATE 'C' LC_CTYPE 'C'" % (name, encoding))
    try:
        conn = cluster.connect(name, client_encoding="UTF8")
        conn.execute("CREATE EXTENSION audit_ext")
        conn.execute("CREATE TABLE public.target (k int PRIMARY KEY, \"n%s\" text)"
                     % {"LATIN1": "é", "SQL_ASCII": "e", "EUC_JP": "日"}[encoding])
        conn.execute("SELECT audit.enable('public.target')")
        conn.execute("SELECT audit.set_context(user_id => %s, is_local => false)",
                     [{"LATIN1": "é", "SQL_ASCII": "e", "EUC_JP": "本"}[encoding]])
        conn.execute("INSERT INTO public.target VALUES (1, %s), (2, chr(127) || chr(1))",
                     [{"LATIN1": "äß", "SQL_ASCII": "ascii", "EUC_JP": "日本"}[encoding]])
        conn.execute("UPDATE public.target SET k = k + 10")
        conn.execute("DELETE FROM public.target WHERE k = 11")
        if encoding != "SQL_ASCII":
            auditlib.replay(conn, "public.target")
        auditlib.check_integrity(conn)
        conn.close()
    finally:
        with cluster.connect() as admin:
            admin.execute("DROP DATABASE %s WITH (FORCE)" % name)
