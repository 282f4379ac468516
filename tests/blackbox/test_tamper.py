"""A superuser who knows the code alters the log. Each attack must be found by audit.verify, by the verifier in Python, or
where a whole consistent history was forged, by either with a checkpoint that somebody kept; and the report must point
at the right record.

An attack works on a copy of a database whose log is sealed but for its newest changesets.
"""

import random
import uuid

import pytest
from ledgerlib import assert_intact, attacker, audit_verify, last_note, seal, verify
from tiny_verifier import log_problems

SALT = "'00000000-0000-4000-8000-000000000000'"


@pytest.fixture(scope="module")
def victim(cluster, _template):
    """Name of a database with a log of everything, and a checkpoint kept of it."""
    name = "tamper_template"
    cluster.create_db(name, _template)
    with cluster.connect(name) as conn:
        run = conn.execute
        run("CREATE TABLE account (id int PRIMARY KEY, owner text, balance numeric)")
        run("CREATE TABLE item (a int, b text, v jsonb, PRIMARY KEY (a, b))")
        run("SELECT audit.enable('account'), audit.enable('item')")
        run("SELECT audit.set_context(user_id => 'ann', tenant_id => 'acme', request_id => 'r1', session_id => 's1',"
            " ip_address => '203.0.113.7', user_agent => 'agent', reason => 'why', context => '{\"k\": 1}',"
            " is_local => false)")
        run("SET audit.log_statement = on")
        run("INSERT INTO account SELECT g, 'owner ' || g, g * 1.50 FROM generate_series(1, 40) g")
        for i in range(140):
            run("UPDATE account SET balance = balance + 1 WHERE id = %s", [i % 40 + 1])
            if i % 20 == 0:
                seal(conn)
        run("BEGIN; UPDATE account SET id = 100 WHERE id = 1; SELECT audit.set_context(user_id => 'bob');"
            " DELETE FROM account WHERE id IN (2, 3); INSERT INTO item VALUES (1, 'x', '{\"a\": [1, 2.50]}'); COMMIT")
        run("ALTER TABLE item ADD COLUMN w text; UPDATE item SET w = 'w'")
        for i in range(130):
            run("UPDATE account SET balance = balance - 1 WHERE id = %s", [i % 30 + 5])
        seal(conn)
        kept = last_note(conn)
        for i in range(3):
            run("UPDATE account SET owner = 'new' WHERE id = %s", [i + 10])
        seal(conn)
        run("UPDATE account SET owner = 'unsealed' WHERE id = 20")
    yield name, kept
    cluster.drop_db(name)


@pytest.fixture
def scene(cluster, victim, new_db):
    """A copy to attack, and the kept checkpoint."""
    name, kept = victim
    db = new_db(extension=False)
    cluster.drop_db(db.name)
    cluster.create_db(db.name, name)
    # One cluster holds template and copy, so the copy's first write would begin a new ledger: nothing writes here.
    return db, kept


def found(db, kept):
    """What audit.verify and the verifier in Python find; audit-verify must agree on whether there is something."""
    with db.connect() as conn:
        findings, problems = verify(conn, kept), log_problems(conn, kept)
    arguments = ["db", "--dsn", db.cluster.dsn(db.name)]
    if kept:
        file = db.cluster.folder / f"{db.name}.kept"
        file.write_text(kept)
        arguments += ["--checkpoint", file]
    audit_verify(db.cluster, *arguments, check=1 if problems else 0)
    return findings, problems


def test_the_untouched_copy_is_intact(scene):
    db, kept = scene
    assert_intact(db.connect(), kept)
    assert_intact(db.connect())


# A record well inside the sealed part, with more than one event, and its place in the ledger.
EVENT = "(SELECT e.ctid FROM audit.event e JOIN audit.entry n USING (changeset_id) WHERE n.index > 20 AND seq = 0 ORDER BY n.index LIMIT 1)"
CHANGESET = "(SELECT c.ctid FROM audit.changeset c JOIN audit.entry n ON n.changeset_id = c.id WHERE n.index > 20 ORDER BY n.index LIMIT 1)"
WHOSE = "SELECT changeset_id::text FROM audit.entry WHERE changeset_id IS NOT NULL AND index > 20 ORDER BY index LIMIT 1"

OTHER = {
    "timestamptz": "{c} + interval '1 microsecond'",
    "integer": "coalesce({c}, 0) + 1",
    "bigint": "{c} + 1",
    "numeric": "{c} + 1",
    "oid": "({c}::bigint + 1)::oid",
    "uuid": "gen_random_uuid()",
    "text": "coalesce({c}, '') || 'x'",
    "bytea": "sha256(coalesce({c}, ''))",
    "jsonb": "coalesce({c}, '{{}}') || '{{\"forged\": 1}}'",
    "inet": "coalesce({c} + 1, '192.0.2.1')",
    "xid8": "({c}::text::bigint + 1)::text::xid8",
    "pg_lsn": "{c} + 1",
    "text[]": "coalesce({c}, '{{}}') || 'x'::text",
    "audit.operation": "CASE {c} WHEN 'UPDATE' THEN 'INSERT' ELSE 'UPDATE' END::audit.operation",
    "audit.status": "'failure'::audit.status",
    "audit.origin": "'login'::audit.origin",
    "audit.context_trust": "CASE {c} WHEN 'none' THEN 'verified' ELSE 'none' END::audit.context_trust",
}
ROWS = {
    "event": EVENT,
    "changeset": CHANGESET,
    "relation": "(SELECT ctid FROM audit.relation ORDER BY id LIMIT 1)",
    "ledger": "(SELECT ctid FROM audit.ledger LIMIT 1)",
    "entry": "(SELECT ctid FROM audit.entry WHERE changeset_id IS NOT NULL ORDER BY index LIMIT 1)",
    "tile": "(SELECT ctid FROM audit.tile LIMIT 1)",
    "checkpoint": "(SELECT ctid FROM audit.checkpoint ORDER BY tree_size LIMIT 1)",
}


def columns():
    """Every column of every table of the log, with an expression for another value."""
    import re
    from pathlib import Path

    root = Path(__file__).resolve().parents[2] / "sql"
    text = (root / "10_tables.sql").read_text() + (root / "60_ledger.sql").read_text()
    for table in ROWS:
        body = re.search(rf"CREATE TABLE {table} \((.*?)\n\)", text, re.S).group(1)
        for name, kind in re.findall(r"^    (\w+) +([a-z0-9_]+(?:\[\])?)", body, re.M):
            if name != "PRIMARY":
                yield table, name, kind
            else:
                break


TYPES = {"int": "integer"} | {name: f"audit.{name}" for name in ("operation", "status", "origin", "context_trust")}


@pytest.mark.parametrize("table, column, kind", [pytest.param(*c, id=f"{c[0]}.{c[1]}") for c in columns()])
def test_any_column_altered(scene, table, column, kind):
    db, kept = scene
    conn = attacker(db)
    expression = OTHER[TYPES.get(kind, kind)].format(c=column)
    if (table, column) in {("entry", "relation_id"), ("relation", "id"), ("entry", "index")}:
        expression = f"coalesce({column}, 0) + 1000"  # beyond those that there are
    (whose,) = conn.execute(WHOSE).fetchone()
    done = conn.execute(f"UPDATE audit.{table} SET {column} = {expression} WHERE ctid = {ROWS[table]}")
    assert done.rowcount == 1
    findings, problems = found(db, kept)
    assert findings and problems, column
    if table in ("event", "changeset") and column not in ("changeset_id", "id"):
        assert whose in {changeset for _, changeset, *_ in findings}
        assert any(whose in problem for problem in problems)
    if table in ("tile", "checkpoint", "ledger"):
        assert any(table in finding or "root" in finding for finding, *_ in findings), findings
    if table == "relation" and column != "id":
        assert {"layout altered"} <= {finding for finding, *_ in findings}


REWRITE_EVENT = f"""
    UPDATE audit.event SET row_image = row_image || '{{"balance": 1000000}}' WHERE ctid = {EVENT};
    UPDATE audit.event e SET checksum = sha256(uuid_send(salt) || convert_to(audit.canonical(changeset_id, seq), 'UTF8'))
     WHERE row_image @> '{{"balance": 1000000}}'"""
REWRITE_ROOT = """
    UPDATE audit.changeset c SET events_root = audit.merkle_root(
               ARRAY(SELECT checksum FROM audit.event WHERE changeset_id = c.id ORDER BY seq)),
           event_count = (SELECT count(*) FROM audit.event WHERE changeset_id = c.id)"""
REWRITE_CHANGESET = """
    UPDATE audit.changeset c SET checksum = sha256(uuid_send(salt) || convert_to(audit.canonical(id), 'UTF8'))"""
REWRITE_ENTRY = "UPDATE audit.entry n SET checksum = c.checksum FROM audit.changeset c WHERE c.id = n.changeset_id"

# name: (statements, words that must be in a finding; None: any)
ATTACKS = {
    "event removed": (f"DELETE FROM audit.event WHERE ctid = {EVENT}", "event removed"),
    "event added": (
        "INSERT INTO audit.event SELECT occurred_at, 1, command, relation_id, operation, status, changeset_id, salt,"
        f" checksum, resource_id, row_image, old_values, details, action, resource FROM audit.event WHERE ctid = {EVENT}",
        "event added",
    ),
    "event duplicated": (
        f"INSERT INTO audit.event SELECT * FROM audit.event WHERE ctid = {EVENT}",
        "event added",
    ),
    "an event pointed at another layout of its table": (
        "UPDATE audit.event SET relation_id = (SELECT max(id) FROM audit.relation WHERE table_name = 'item')"
        " WHERE relation_id = (SELECT min(id) FROM audit.relation WHERE table_name = 'item')",
        "event altered",
    ),
    "events swapped": (
        "UPDATE audit.event SET seq = 1 - seq WHERE changeset_id = (SELECT id FROM audit.changeset WHERE event_count >= 40) AND seq < 2",
        "event altered",
    ),
    "events renumbered": (
        "UPDATE audit.event SET seq = seq + 1 WHERE changeset_id = (SELECT id FROM audit.changeset WHERE event_count >= 40)",
        "event altered",
    ),
    "contents of two events swapped": (
        "UPDATE audit.event e SET row_image = o.row_image, salt = o.salt, checksum = o.checksum FROM audit.event o"
        " WHERE e.changeset_id = o.changeset_id AND e.seq = 3 AND o.seq = 4",
        "event altered",
    ),
    "event moved to another changeset": (
        f"UPDATE audit.event SET changeset_id = (SELECT id FROM audit.changeset ORDER BY xid LIMIT 1) WHERE ctid = {EVENT}",
        "event",
    ),
    "event rewritten with a fresh checksum": (REWRITE_EVENT, "event altered"),
    "event rewritten with fresh checksum and root": (REWRITE_EVENT + ";" + REWRITE_ROOT, "changeset altered"),
    "event rewritten up to the changeset's checksum": (
        REWRITE_EVENT + ";" + REWRITE_ROOT + ";" + REWRITE_CHANGESET,
        "changeset altered",
    ),
    "event rewritten up to the entry": (
        REWRITE_EVENT + ";" + REWRITE_ROOT + ";" + REWRITE_CHANGESET + ";" + REWRITE_ENTRY,
        "root altered",
    ),
    "event removed and the changeset rewritten": (
        f"DELETE FROM audit.event WHERE ctid = {EVENT};" + REWRITE_ROOT + ";" + REWRITE_CHANGESET,
        "changeset altered",
    ),
    "changeset removed": (f"DELETE FROM audit.changeset WHERE ctid = {CHANGESET}", "changeset removed"),
    "changeset removed with its events": (
        f"DELETE FROM audit.event WHERE changeset_id IN ({WHOSE.replace('::text', '')});"
        f" DELETE FROM audit.changeset WHERE ctid = {CHANGESET}",
        "changeset removed",
    ),
    "changeset removed with its events and its entry": (
        f"DELETE FROM audit.event WHERE changeset_id IN ({WHOSE.replace('::text', '')});"
        f" DELETE FROM audit.changeset WHERE ctid = {CHANGESET};"
        f" DELETE FROM audit.entry WHERE changeset_id IN ({WHOSE.replace('::text', '')})",
        "entry removed",
    ),
    "changeset removed and the entries renumbered": (
        "CREATE TEMP TABLE gone AS SELECT index AS i, changeset_id AS c FROM audit.entry WHERE changeset_id IS NOT NULL AND index > 20 ORDER BY index LIMIT 1;"
        " DELETE FROM audit.event WHERE changeset_id = (SELECT c FROM gone);"
        " DELETE FROM audit.changeset WHERE id = (SELECT c FROM gone);"
        " DELETE FROM audit.entry WHERE changeset_id = (SELECT c FROM gone);"
        " UPDATE audit.entry SET index = index + 100000 WHERE index > (SELECT i FROM gone);"
        " UPDATE audit.entry SET index = index - 100001 WHERE index >= 100000",
        "altered",
    ),
    "changeset duplicated": (
        f"INSERT INTO audit.changeset SELECT * FROM audit.changeset WHERE ctid = {CHANGESET}",
        "changeset added",
    ),
    "changeset added into the past": (
        "INSERT INTO audit.changeset SELECT occurred_at, position, xid, era, 0, backend_pid, client_port, origin, context_trust,"
        " '01a1fe66-8dd0-78ee-87e8-000000000000', salt, events_root, checksum, user_id FROM audit.changeset"
        f" WHERE ctid = {CHANGESET}; UPDATE audit.changeset SET events_root = sha256(''), occurred_at ="
        " audit.changeset_time(id) WHERE event_count = 0; UPDATE audit.changeset SET checksum = sha256(uuid_send(salt) ||"
        " convert_to(audit.canonical(id), 'UTF8')) WHERE event_count = 0",
        "changeset added",
    ),
    "changesets' entries swapped": (
        "UPDATE audit.entry a SET checksum = b.checksum FROM audit.entry b WHERE (a.index, b.index) IN ((21, 22), (22, 21))",
        "altered",
    ),
    "transaction moved to another era": (
        f"UPDATE audit.changeset SET era = 2 WHERE ctid = {CHANGESET};" + REWRITE_CHANGESET,
        "changeset altered",
    ),
    "the newest checkpoint removed": (
        "DELETE FROM audit.checkpoint WHERE tree_size = (SELECT max(tree_size) FROM audit.checkpoint)",
        "checkpoint removed",
    ),
    "an old checkpoint removed": (
        "DELETE FROM audit.checkpoint WHERE tree_size = (SELECT min(tree_size) FROM audit.checkpoint)",
        "checkpoint removed",
    ),
    "all checkpoints removed": ("DELETE FROM audit.checkpoint", "checkpoint removed"),
    "the newest entries removed": (
        "DELETE FROM audit.entry WHERE index >= (SELECT max(tree_size) - 2 FROM audit.checkpoint)",
        "entry removed",
    ),
    "entry added": (
        "INSERT INTO audit.entry SELECT max(index) + 1, 1, NULL, NULL, sha256('') FROM audit.entry",
        "entry added",
    ),
    "tile removed": ("DELETE FROM audit.tile", "tile removed"),
    "tile added": ("INSERT INTO audit.tile SELECT 1, 1, 0, root, hashes FROM audit.tile", "tile added"),
    "layout removed": ("DELETE FROM audit.relation WHERE id = 1", "layout removed"),
    "layout renamed": ("UPDATE audit.relation SET table_name = 'other' WHERE id = 1", "layout altered"),
    "layouts swapped": (
        "UPDATE audit.event SET relation_id = CASE relation_id WHEN 1 THEN 2 ELSE 1 END WHERE relation_id < 3",
        "event altered",
    ),
    "ledger removed": ("DELETE FROM audit.ledger", "ledger removed"),
    "ledger renamed": ("UPDATE audit.ledger SET origin = 'audit_ext/other/1/x'", "ledger"),
    "checkpoint forged without a signature": (
        "UPDATE audit.checkpoint SET root_hash = sha256('forged'), note = split_part(note, E'\\n', 1) || E'\\n' || tree_size"
        " || E'\\n' || encode(sha256('forged'), 'base64') || E'\\n'",
        "root altered",
    ),
    "a partition detached": ("ALTER TABLE audit.event DETACH PARTITION audit.event_default", "event removed"),
    "salt and content removed without an erasure": (
        f"UPDATE audit.event SET salt = NULL, row_image = NULL WHERE ctid = {EVENT}",
        "event altered",
    ),
    "salt of a transaction removed without an erasure": (
        f"UPDATE audit.changeset SET salt = NULL, user_id = NULL WHERE ctid = {CHANGESET}",
        "changeset altered",
    ),
    "sealing made out to have reached less far": (
        "UPDATE audit.checkpoint SET sealed_below = '3' WHERE tree_size = (SELECT max(tree_size) FROM audit.checkpoint)",
        "checkpoint altered",
    ),
    "two entries exchange their changesets": (
        "CREATE TEMP TABLE two AS SELECT index, changeset_id FROM audit.entry WHERE index IN (21, 22);"
        " UPDATE audit.entry SET changeset_id = gen_random_uuid() WHERE index = 21;"
        " UPDATE audit.entry SET changeset_id = (SELECT changeset_id FROM two WHERE index = 21) WHERE index = 22;"
        " UPDATE audit.entry SET changeset_id = (SELECT changeset_id FROM two WHERE index = 22) WHERE index = 21",
        "changeset altered",
    ),
    "a transaction moved in time with its events": (
        f"UPDATE audit.event SET occurred_at = occurred_at + interval '1 hour' WHERE changeset_id IN ({WHOSE.replace('::text', '')});"
        f" UPDATE audit.changeset SET occurred_at = occurred_at + interval '1 hour' WHERE ctid = {CHANGESET}",
        "event altered",
    ),
    "entries given to another era": ("UPDATE audit.entry SET era = 2", "ledger removed"),
    "a cosignature made up": (
        "INSERT INTO audit.cosignature SELECT max(tree_size), 1, 'w.example.com+752cf3a6+BGzlJIH9Eogx+Cww0qoiiWsw4iVON2val46a/oVJ1nXv',"
        " '— w.example.com jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA=='"
        " FROM audit.checkpoint",
        "cosignature",
    ),
    "emptied": (
        "DELETE FROM audit.event; DELETE FROM audit.changeset; DELETE FROM audit.entry; DELETE FROM audit.tile;"
        " DELETE FROM audit.checkpoint",
        "checkpoint inconsistent",
    ),
    "emptied with the ledger": (
        "DELETE FROM audit.event; DELETE FROM audit.changeset; DELETE FROM audit.entry; DELETE FROM audit.tile;"
        " DELETE FROM audit.checkpoint; DELETE FROM audit.ledger; DELETE FROM audit.relation",
        "ledger removed",
    ),
    "the newest history removed without a trace": (
        "CREATE TEMP TABLE old AS SELECT max(tree_size) AS size FROM audit.checkpoint WHERE tree_size <"
        " (SELECT max(tree_size) FROM audit.checkpoint WHERE tree_size < (SELECT max(tree_size) FROM audit.checkpoint));"
        " DELETE FROM audit.checkpoint WHERE tree_size > (SELECT size FROM old);"
        " DELETE FROM audit.changeset WHERE id NOT IN (SELECT changeset_id FROM audit.entry WHERE changeset_id IS NOT NULL AND index < (SELECT size FROM old));"
        " DELETE FROM audit.event WHERE changeset_id NOT IN (SELECT id FROM audit.changeset);"
        " DELETE FROM audit.entry WHERE index >= (SELECT size FROM old);"
        " DELETE FROM audit.relation WHERE id NOT IN (SELECT relation_id FROM audit.entry WHERE relation_id IS NOT NULL);"
        " DELETE FROM audit.tile WHERE (index + 1) * 256 > (SELECT size FROM old)",
        "checkpoint inconsistent",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(scene, name):
    db, kept = scene
    statements, expected = ATTACKS[name]
    conn = attacker(db)
    (whose,) = conn.execute(WHOSE).fetchone()
    conn.execute(statements)
    findings, problems = found(db, kept)
    assert any(expected in finding for finding, *_ in findings), findings[:10]
    assert problems
    if "{" not in name and name.split()[0] in ("event", "changeset") and "renumbered" not in name:
        if "moved" in name or "into the past" in name or name == "event rewritten up to the entry":
            return
        if "entry" not in name:
            assert whose in {changeset for _, changeset, *_ in findings}, findings[:10]


def test_history_forged_to_the_last_hash(scene, cluster):
    """The attacker rewrites a record and makes the whole ledger anew, seals and all: consistent in itself, and found by
    the checkpoint that was kept."""
    db, kept = scene
    conn = attacker(db)
    conn.execute(REWRITE_EVENT + ";" + REWRITE_ROOT + ";" + REWRITE_CHANGESET + ";" + REWRITE_ENTRY)
    (count,) = conn.execute("SELECT count(*) FROM audit.checkpoint").fetchone()
    forge_tree(conn)
    findings, problems = found(db, None)
    assert (findings, problems) == ([], [])
    findings, problems = found(db, kept)
    assert [finding for finding, *_ in findings] == ["checkpoint inconsistent"]
    assert problems == ["kept checkpoint: history was rewritten"]
    assert count > 3


def forge_tree(conn):
    """Makes tiles, roots and notes from the entries as they are."""
    import base64

    from tiny_verifier import LEAF, Tree, merkle_root_of_hashes, sha256

    entries = [bytes(row[0]) for row in conn.execute("SELECT checksum FROM audit.entry ORDER BY index").fetchall()]
    sizes = [row[0] for row in conn.execute("SELECT tree_size FROM audit.checkpoint ORDER BY 1").fetchall()]
    (origin,) = conn.execute("SELECT origin FROM audit.ledger").fetchone()
    tree = Tree()
    for index, entry in enumerate(entries):
        tree.push(entry)
        if index % 256 == 255:
            hashes = [sha256(LEAF + e) for e in entries[index - 255 : index + 1]]
            conn.execute("UPDATE audit.tile SET root = %s, hashes = %s WHERE level = 0 AND index = %s",
                         [merkle_root_of_hashes(hashes), b"".join(hashes), index // 256])
        if tree.size in sizes:
            root = tree.root()
            note = f"{origin}\n{tree.size}\n{base64.b64encode(root).decode()}\n"
            conn.execute("UPDATE audit.checkpoint SET root_hash = %s, note = %s WHERE tree_size = %s",
                         [root, note, tree.size])


def test_rolled_back_to_an_older_copy(victim, cluster, new_db):
    """A database put back as it was: found by a checkpoint of what came after."""
    name, kept = victim
    db = new_db(extension=False)
    cluster.drop_db(db.name)
    cluster.create_db(db.name, name)
    with db.connect() as conn:
        (size,) = conn.execute("SELECT max(tree_size) FROM audit.checkpoint").fetchone()
    newer = kept.split("\n")
    newer[1] = str(size + 7)
    findings, problems = found(db, "\n".join(newer))
    assert [finding for finding, *_ in findings] == ["checkpoint inconsistent"]
    assert "an older state was put back" in findings[0][3]
    assert problems


def test_functions_replaced(scene):
    """audit.verify can be made to say anything; a verifier of one's own does not ask it."""
    db, kept = scene
    conn = attacker(db)
    conn.execute(f"DELETE FROM audit.event WHERE ctid = {EVENT}")
    conn.execute("CREATE OR REPLACE FUNCTION audit.verify(since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL,"
                 " checkpoint text DEFAULT NULL) RETURNS TABLE (finding text, occurred_at timestamptz, changeset_id uuid,"
                 " seq int, detail text) LANGUAGE plpgsql AS 'BEGIN END'")
    findings, problems = found(db, kept)
    assert findings == [] and problems != []


RANDOM_TABLES = ["event", "changeset", "entry", "tile", "checkpoint", "relation", "ledger"]


@pytest.mark.parametrize("round", range(6))
def test_random_bytes(scene, round):
    """Random bytes of random columns of random rows, one at a time: every one is found."""
    db, kept = scene
    rng = random.Random(round)
    conn = attacker(db)
    conn.autocommit = False
    for _ in range(25):
        table = rng.choice(RANDOM_TABLES)
        names = conn.execute(
            "SELECT attname, format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND format_type(atttypid, -1) IN ('text', 'bytea', 'jsonb', 'uuid', 'integer', 'bigint')",
            [f"audit.{table}"],
        ).fetchall()
        column, kind = rng.choice(names)
        (text,) = conn.execute(
            f"SELECT {column}::text FROM audit.{table} WHERE {column} IS NOT NULL ORDER BY md5(ctid::text || %s) LIMIT 1",
            [str(rng.random())],
        ).fetchone() or (None,)
        if not text:
            continue
        altered = flip(rng, text, kind)
        try:
            with conn.transaction():
                done = conn.execute(
                    f"UPDATE audit.{table} SET {column} = %s::text::{kind} WHERE ctid = (SELECT ctid FROM audit.{table}"
                    f" WHERE {column}::text = %s LIMIT 1) AND {column} IS DISTINCT FROM %s::text::{kind}"
                    f" RETURNING 1",
                    [altered, text, altered],
                ).fetchall()
        except Exception:  # no value of the type, or a key that is taken
            continue
        if done:
            assert verify(conn, kept) != [], (table, column, text[:80], altered[:80])
            assert log_problems(conn, kept) != [], (table, column, text[:80], altered[:80])
        conn.rollback()


def flip(rng, text, kind):
    if kind == "integer" or kind == "bigint":
        return str(int(text) ^ 1 << rng.randrange(31))
    if kind == "bytea":
        at = rng.randrange(2, len(text))
        return text[:at] + rng.choice("0123456789abcdef") + text[at + 1 :]
    if kind == "uuid":
        data = bytearray(uuid.UUID(text).bytes)
        data[rng.randrange(16)] ^= 1 << rng.randrange(8)
        return str(uuid.UUID(bytes=bytes(data)))
    at = rng.randrange(len(text))
    return text[:at] + chr(ord(text[at]) ^ 1 << rng.randrange(4)) + text[at + 1 :]
