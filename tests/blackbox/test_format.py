"""The log is recomputed here from its tables, by the rules of docs/format.md and nothing else.

What this is not: a use of the extension's own functions. Not one line of audit_ext runs in a check below, save in
the last test, which holds audit.canonical and audit.verify_event against this file. tiny_verifier.py is what an auditor
would write after reading docs/format.md; the test vectors are read from that page, so neither can drift from the
other.
"""

import re
import uuid
from pathlib import Path

import psycopg
import pytest
from tiny_verifier import (
    CHANGESET_FIELDS,
    EVENT_FIELDS,
    canonical_changeset,
    canonical_event,
    canonical_json,
    checksum,
    merkle_root,
    parse_json,
    read_changesets,
    read_events,
    uuid_microseconds,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"


# --- the test vectors ------------------------------------------------------------------------------------------------

VECTOR = re.compile(r"^```text vector (\S+) (.*)\n((?:.*\n)*?)```$", re.M)


def vectors(kind):
    """The blocks of docs/format.md marked as vectors of this kind: name and `label: value` lines."""
    found = [
        pytest.param([line.split(": ", 1) for line in body.rstrip("\n").split("\n")], id=name)
        for marked, name, body in VECTOR.findall(PAGE.read_text())
        if marked == kind
    ]
    assert found, f"no {kind} vector in {PAGE}"
    return found


@pytest.fixture
def connection(db):
    return db.connect(autocommit=False)


@pytest.mark.parametrize("vector", vectors("json"))
def test_json_vector(vector):
    for (_, written), (_, canonical) in zip(vector[::2], vector[1::2], strict=True):
        assert canonical_json(parse_json(written)) == canonical


@pytest.mark.parametrize("vector", vectors("json"))
def test_json_vector_in_sql(connection, vector):
    for (_, written), (_, canonical) in zip(vector[::2], vector[1::2], strict=True):
        assert connection.execute("SELECT %s::jsonb::text", [written]).fetchone() == (canonical,)


@pytest.mark.parametrize("vector", vectors("event"))
def test_event_vector(vector):
    fields = dict(vector)
    record = {field: parse_json(fields[field]) for field in EVENT_FIELDS}
    assert canonical_event(record) == fields["canonical"]
    assert checksum(uuid.UUID(fields["salt"]), fields["canonical"]).hex() == fields["checksum"]


@pytest.mark.parametrize("vector", vectors("changeset"))
def test_changeset_vector(vector):
    fields = dict(vector)
    record = {field: parse_json(fields[field]) for field in CHANGESET_FIELDS}
    assert canonical_changeset(record) == fields["canonical"]
    assert checksum(uuid.UUID(fields["salt"]), fields["canonical"]).hex() == fields["checksum"]


@pytest.mark.parametrize("vector", vectors("merkle"))
def test_merkle_vector(vector):
    for count, root in vector:
        assert merkle_root([bytes([leaf]) * 32 for leaf in range(int(count))]).hex() == root


@pytest.mark.parametrize("vector", vectors("uuid"))
def test_uuid_vector(vector):
    for identifier, moment in vector:
        assert uuid_microseconds(uuid.UUID(identifier)) == int(moment)


@pytest.mark.parametrize("vector", vectors("event"))
def test_event_vector_in_sql(connection, vector):
    """What PostgreSQL's own functions make of the same fields."""
    fields = dict(vector)
    values = [parse_json(fields[field]) for field in EVENT_FIELDS]
    parameters = [canonical_json(value) if isinstance(value, dict) else value for value in values]
    canonical, digest = connection.execute(
        """
        SELECT c, encode(sha256(uuid_send(%s::uuid) || convert_to(c, 'UTF8')), 'hex')
          FROM jsonb_build_array('audit_ext/event/1', %s::uuid, %s::int, %s::int, %s::bigint, %s::int, %s::text, %s::text,
                   %s::text, %s::text, %s::text, %s::text, %s::text, %s::jsonb, %s::jsonb, %s::jsonb) AS a,
               CAST(a AS text) AS c
        """,
        [fields["salt"], *parameters],
    ).fetchone()
    assert canonical == fields["canonical"]
    assert digest == fields["checksum"]


# --- a log -----------------------------------------------------------------------------------------------------------

AWKWARD = "\x01\x08\x0c\t\n\r\x1f\x7f\u00a0\u2028 \\ \" / é 漢 \U0001f600 \U0010ffff"


def fill(connection):
    """A log with every kind of record that ordinary work makes."""
    run = connection.execute
    run("SET TIME ZONE 'Asia/Kathmandu'")
    run("SET DateStyle = 'German'")
    run("SET application_name = 'test of \"format\"'")
    run("CREATE TABLE single (id bigint PRIMARY KEY, t text, n numeric, f float8, j jsonb, b bytea, at timestamptz)")
    run("CREATE TABLE \"Double key\" (a int, \"B \"\"q\"\"\" text, v text, PRIMARY KEY (\"B \"\"q\"\"\", a))")
    run("CREATE TABLE keyless (v text)")
    for table in ("single", '"Double key"', "keyless"):
        run("SELECT audit.enable(%s::regclass)", [table])
    connection.commit()

    run("INSERT INTO single VALUES (1, %s, 1.50, 1e-7, %s, %s, now())",
        [AWKWARD, '{"bb": 1.0, "a": [1e2, -0.0, {}], "é": null, "a ": "\\u2028"}', b"\x00\xff"])
    run("INSERT INTO single VALUES (-9223372036854775808, NULL, 'NaN', 'Infinity', 'null', '', 'infinity')")
    run("INSERT INTO single (id, n) VALUES (2, -0.000), (3, 1e30), (4, 1e-30)")
    connection.commit()

    run("SELECT audit.set_context(user_id => %s, tenant_id => 'acme', request_id => 'r-1', session_id => 's',"
        " ip_address => '2001:db8::7', user_agent => 'Mozilla/5.0', reason => %s, context => %s)",
        [AWKWARD, AWKWARD, '{"b": [1.10], "a": {"z": "\\t"}}'])
    run("UPDATE single SET n = n + 1, t = 'x' WHERE id IN (1, 2)")
    run("INSERT INTO \"Double key\" VALUES (1, %s, 'v')", [AWKWARD])
    run("SELECT audit.set_context(user_id => 'second', ip_address => '10.1.2.3/16')")
    run("UPDATE \"Double key\" SET a = 2")
    run("SELECT audit.set_context(user_id => 'third')")
    run("DELETE FROM single WHERE id = 4")
    connection.commit()

    run("INSERT INTO keyless SELECT 'row ' || g FROM generate_series(1, 300) g")
    run("SAVEPOINT s")
    run("DELETE FROM keyless")
    run("ROLLBACK TO s")
    run("UPDATE keyless SET v = 'same' WHERE v = 'row 7'")
    run("TRUNCATE keyless, single")
    connection.commit()
    run("RESET DateStyle")  # psycopg reads ISO alone
    connection.commit()


@pytest.fixture
def log(connection):
    fill(connection)
    return connection


def test_recomputed_in_python(log):
    """Every checksum and every root, from the tables alone."""
    leaves = {}
    operations = set()
    for record, salt, digest in read_events(log):
        assert checksum(salt, canonical_event(record)) == digest, record
        leaves.setdefault(record["changeset_id"], []).append(digest)
        operations.add(record["operation"])
    assert {"INSERT", "UPDATE", "DELETE", "TRUNCATE"} <= operations

    changesets = 0
    for record, salt, digest in read_changesets(log):
        assert checksum(salt, canonical_changeset(record)) == digest, record
        of_changeset = leaves.pop(record["id"])
        assert len(of_changeset) == record["event_count"]
        assert merkle_root(of_changeset).hex() == record["events_root"]
        assert uuid_microseconds(uuid.UUID(record["id"])) == record["occurred_at"]
        changesets += 1
    assert changesets == 5
    assert not leaves, "events without a changeset"


def test_an_alteration_is_seen(log):
    """The check above can fail: the same record with another byte, salt or place has another checksum."""
    record, salt, digest = next(read_events(log))
    assert checksum(salt, canonical_event(record)) == digest
    for field, value in {"seq": record["seq"] + 1, "resource_id": "2", "status": "failure", "row_image": {}}.items():
        assert checksum(salt, canonical_event({**record, field: value})) != digest
    assert checksum(uuid.UUID(int=salt.int ^ 1), canonical_event(record)) != digest


def sql_of_page(heading):
    """The statement under a heading of docs/format.md."""
    section = PAGE.read_text().split(f"### {heading}\n", 1)[1]
    return re.search(r"^```sql\n(.*?)^```$", section, re.M | re.S).group(1)


@pytest.mark.parametrize("heading", ["Events in SQL", "Changesets in SQL", "Roots in SQL"])
def test_recomputed_in_sql(log, heading):
    """The page's own statements, which use core functions alone, find nothing amiss here, in any session's settings."""
    statement = sql_of_page(heading)
    assert "audit.canonical" not in statement and "audit.verify" not in statement
    assert log.execute(statement).fetchall() == []
    log.execute("SET TIME ZONE 'America/St_Johns'")
    log.execute("SET extra_float_digits = -5")
    log.execute("SET bytea_output = 'escape'")
    assert log.execute(statement).fetchall() == []


def test_extension_agrees(log):
    """audit.canonical gives the same text, audit.merkle_root the same roots, audit.verify_event true for each event."""
    for record, salt, _ in read_events(log):
        key = [record["changeset_id"], record["seq"]]
        text, intact = log.execute(
            "SELECT audit.canonical(%s::uuid, %s), audit.verify_event(%s::uuid, %s)", key + key
        ).fetchone()
        assert text == canonical_event(record)
        assert intact is True
    for record, _, _ in read_changesets(log):
        (text,) = log.execute("SELECT audit.canonical(%s::uuid)", [record["id"]]).fetchone()
        assert text == canonical_changeset(record)
    for count in (0, 1, 2, 3, 7, 8, 100):
        leaves = [bytes([leaf]) * 32 for leaf in range(count)]
        (root,) = log.execute("SELECT audit.merkle_root(%s::bytea[])", [leaves]).fetchone()
        assert root == merkle_root(leaves)


def test_unknown_event_is_no_intact_one(log):
    """There is nothing to verify: not true, and the call says which event it did not find or gives NULL or false."""
    try:
        (intact,) = log.execute("SELECT audit.verify_event(%s::uuid, 0)", [str(uuid.uuid4())]).fetchone()
    except psycopg.Error as error:
        assert error.sqlstate == "P0002"
    else:
        assert intact is not True
