"""Reading the log from outside: what the black-box tests share.

Everything here works from the tables of the log with plain SQL and a few lines of Python. None of it asks the extension
whether the log is right, so that a fault in the writer cannot hide itself.

    events(conn, table)             events of a table and its descendants, in the documented order
    state(conn, table)              the rows the table holds now, as the log writes them
    replay(conn, table)             asserts that the events lead to those rows
    changes(conn, table, INSERT=2)  context manager: asserts which events its body makes, and that they lead from the
                                    rows before to the rows after; the events are in `.events` afterwards
    check_integrity(conn)           asserts counts, numbering, Merkle roots, checksums of the committed log
    sqlstate(code)                  context manager: the body must fail with that SQLSTATE
    fixed_session(conn)             context manager: a second session in the fixed environment of the images
"""

import contextlib
import hashlib
import json
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Optional

import psycopg
from psycopg.pq import TransactionStatus

# The environment in which an image is defined as to_jsonb(row).
FIXED_ENVIRONMENT = {
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "xmlbinary": "base64",
    "quote_all_identifiers": "off",
    "search_path": "pg_catalog",
}

ORDER = "ORDER BY era, position NULLS LAST, command, seq"


# --- sessions -----------------------------------------------------------------------------------------------------

def connect_like(conn, **settings):
    """A further autocommit session on the same database, with settings given at start."""
    options = " ".join("-c %s=%s" % (k, str(v).replace("\\", "\\\\").replace(" ", "\\ ")) for k, v in settings.items())
    parameters = {k: v for k, v in conn.info.get_parameters().items() if k != "options"}
    return psycopg.connect(**{**parameters, "client_encoding": "UTF8"}, options=options, autocommit=True)


@contextlib.contextmanager
def fixed_session(conn):
    other = connect_like(conn, **FIXED_ENVIRONMENT)
    try:
        yield other
    finally:
        other.close()


@contextlib.contextmanager
def sqlstate(*codes):
    """The body must raise one of these SQLSTATEs. The error is in `.value.error` afterwards."""
    class Caught:
        error: Optional[psycopg.Error] = None
    caught = Caught()
    try:
        yield caught
    except psycopg.Error as error:
        caught.error = error
        assert error.sqlstate in codes, "SQLSTATE %s instead of %s: %s" % (error.sqlstate, " or ".join(codes), error)
    else:
        raise AssertionError("no error, expected SQLSTATE " + " or ".join(codes))


# --- JSON without loss --------------------------------------------------------------------------------------------

# jsonb holds no NUL, so a number marked with one cannot be taken for a string; 1.0 and 1.00 stay different.
def _number(text):
    return "\0" + text


def parse(text):
    """The value of a jsonb text, numbers kept digit for digit."""
    if text is None:
        return None
    return json.loads(text, parse_int=_number, parse_float=_number)


def freeze(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


# --- events -------------------------------------------------------------------------------------------------------

@dataclass
class Event:
    era: int
    position: Optional[str]
    command: int
    seq: int
    changeset_id: uuid.UUID
    operation: str
    status: str
    relid: int
    schema_name: str
    table_name: str
    resource_id: Optional[str]
    image_text: Optional[str]
    old_values_text: Optional[str]
    details: Any
    action: Optional[str]
    origin: Optional[str]
    user_id: Optional[str]
    xid: Optional[str]

    @property
    def image(self):
        return parse(self.image_text)

    @property
    def old_values(self):
        return parse(self.old_values_text)

    @property
    def old_row(self):
        if self.operation == "UPDATE":
            return {**self.image, **self.old_values}
        return self.image if self.operation == "DELETE" else None

    @property
    def new_row(self):
        return self.image if self.operation in ("INSERT", "UPDATE", "SNAPSHOT") else None

    def __repr__(self):
        return "<%s %s[%s] command %s seq %s %.200s old %.200s>" % (
            self.operation, self.table_name, self.resource_id, self.command, self.seq, self.image_text,
            self.old_values_text)


def relids(conn, table):
    """Oids of a table and all that inherits from it."""
    rows = conn.execute(
        """WITH RECURSIVE tree(oid) AS (
               SELECT %s::regclass::oid UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid)
           SELECT oid::int8 FROM tree""", [table]).fetchall()
    return [r[0] for r in rows]


def events(conn, table=None, relation_oids=None):
    """Events in the documented order: of a table and its descendants, of given oids, or all there are.

    Layouts that a restore brought have oids of another database: they belong to the table of their name, if it is there.
    """
    if table is not None:
        relation_oids = relids(conn, table)
    rows = conn.execute(
        """WITH layout AS (
               SELECT r.*, coalesce(CASE l.relid WHEN 0 THEN r.relid ELSE l.relid END, to_regclass(format('%%I.%%I', r.schema_name, r.table_name)), r.relid)::int8 AS oid
                 FROM audit.relation r LEFT JOIN audit.local_layout l ON l.relation_id = r.id)
           SELECT c.era, c.position::text, e.command, e.seq, e.changeset_id, e.operation::text, e.status::text,
                  r.oid, r.schema_name, r.table_name, e.resource_id, e.row_image::text, e.old_values::text,
                  e.details, e.action, c.origin::text, c.user_id, c.xid::text
             FROM audit.event e
             LEFT JOIN audit.changeset c ON c.id = e.changeset_id AND c.occurred_at = e.occurred_at
             LEFT JOIN layout r ON r.id = e.relation_id
            WHERE %(oids)s::int8[] IS NULL OR r.oid = ANY (%(oids)s)
            ORDER BY c.era, c.position NULLS LAST, e.command, e.seq""", {"oids": relation_oids}).fetchall()
    return [Event(*row) for row in rows]


# --- replay -------------------------------------------------------------------------------------------------------

def state(conn, table):
    """Multiset of (table oid, row) as the fixed environment shows it; descendants included, each with its own columns.

    Where the session is in a transaction, its own view is read, below a savepoint; else a second session reads.
    """
    holders = conn.execute("SELECT oid::int8, format('%%I.%%I', nspname, relname) FROM ("
                           "SELECT c.oid, nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
                           " WHERE c.oid = ANY (%s::int8[]::oid[]) AND relkind <> 'p') AS holder",
                           [relids(conn, table)]).fetchall()
    rows = Counter()

    def read(session):
        for oid, name in holders:
            query = "SELECT to_jsonb(blackbox_row)::text FROM ONLY %s AS blackbox_row" % name
            rows.update((oid, freeze(parse(text))) for text, in session.execute(query))

    if conn.info.transaction_status == TransactionStatus.IDLE:
        with fixed_session(conn) as other:
            read(other)
    else:
        conn.execute("SAVEPOINT blackbox_state")
        for name, value in FIXED_ENVIRONMENT.items():
            conn.execute("SELECT set_config(%s, %s, true)", [name, value])
        read(conn)
        conn.execute("ROLLBACK TO SAVEPOINT blackbox_state")
        conn.execute("RELEASE SAVEPOINT blackbox_state")
    return rows


def apply(rows, some_events):
    """Replays events onto a multiset of rows. Each event must find the version it says it replaces."""
    rows = Counter(rows)

    def take(event, version):
        key = (event.relid, freeze(version))
        assert rows[key] > 0, "%r replaces a version that is not there; versions there: %s" % (
            event, [k for k, n in rows.items() if n > 0 and k[0] == event.relid][:20])
        rows[key] -= 1

    for event in some_events:
        if event.operation == "TRUNCATE":
            for key in [k for k in rows if k[0] == event.relid]:
                del rows[key]
            continue
        if event.operation in ("UPDATE", "DELETE"):
            take(event, event.old_row)
        if event.operation in ("INSERT", "UPDATE", "SNAPSHOT"):
            rows[(event.relid, freeze(event.new_row))] += 1
    return +rows


def assert_same_rows(found, expected):
    assert found == expected, "replayed and not in the table: %s; in the table and not replayed: %s" % (
        list((found - expected).items())[:10], list((expected - found).items())[:10])


def replay(conn, table, start=None):
    """Asserts that the events of a table lead from `start` (no rows) to its present rows. Returns the events."""
    found = events(conn, table)
    assert_same_rows(apply(start or Counter(), found), state(conn, table))
    return found


@contextlib.contextmanager
def changes(conn, *tables, **expected):
    """Asserts the number of events of each operation that the body makes on some tables, none else, and that they lead
    from the rows before to the rows after.

    Tables are those that stand at the end; one that the body creates is given by name all the same. Expectations are
    keyword arguments (INSERT=1, DELETE=2); an operation not named must not occur.
    """
    class Result:
        events: list = []
    result = Result()

    def existing():
        return [t for t in tables if conn.execute("SELECT to_regclass(%s)", [t]).fetchone()[0] is not None]

    before_tables = existing()
    oids = sorted({oid for t in before_tables for oid in relids(conn, t)})
    known = {(e.changeset_id, e.seq) for e in events(conn, relation_oids=oids)}
    rows = _states(conn, before_tables)
    yield result
    after_tables = existing()
    oids = sorted(set(oids) | {oid for t in after_tables for oid in relids(conn, t)})
    result.events = [e for e in events(conn, relation_oids=oids) if (e.changeset_id, e.seq) not in known]
    counts = Counter(e.operation for e in result.events)
    assert counts == Counter(expected), "events %s instead of %s: %s" % (
        dict(counts), expected, result.events[:20])
    assert_same_rows(apply(rows, result.events), _states(conn, after_tables))


def _states(conn, tables):
    total = Counter()
    for table in tables:
        # A table may be named beside its parent: the union, not the sum.
        total |= state(conn, table)
    return total


# --- integrity ----------------------------------------------------------------------------------------------------

def sha256(data):
    return hashlib.sha256(data).digest()


def merkle_root(leaves):
    """Merkle tree hash of RFC 6962, section 2.1, by its definition."""
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0])
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\1" + merkle_root(leaves[:k]) + merkle_root(leaves[k:]))


class Raw(str):
    """JSON text that goes into a canonical form as it is."""


def jsonb_array(fields):
    """Text of jsonb_build_array(...) as PostgreSQL prints it."""
    def one(field):
        if field is None:
            return "null"
        if isinstance(field, Raw):
            return str(field)
        if isinstance(field, int):
            return str(field)
        return json.dumps(field, ensure_ascii=False)
    return "[" + ", ".join(one(f) for f in fields) + "]"


def _raw(text):
    return None if text is None else Raw(text)


def checksum(salt, canonical):
    return sha256(salt.bytes + canonical.encode("utf-8"))


MICROSECONDS = "(extract(epoch from %s.occurred_at) * 1000000)::bigint"

EVENTS = """
    SELECT e.changeset_id, e.seq, e.command, """ + MICROSECONDS % "e" + """, r.schema_name, r.table_name,
           e.operation::text, e.action, e.status::text, e.resource, e.resource_id, e.row_image::text,
           e.old_values::text, e.details::text, e.salt, e.checksum, e.relation_id
      FROM audit.event e LEFT JOIN audit.relation r ON r.id = e.relation_id
     WHERE %(since)s::timestamptz IS NULL OR e.occurred_at >= %(since)s
     ORDER BY e.changeset_id, e.seq"""

CHANGESETS = """
    SELECT c.id, """ + MICROSECONDS % "c" + """, c.era, (c.position - '0/0'::pg_lsn)::text, c.xid::text, c.user_id,
           c.tenant_id, c.request_id, c.session_id, to_jsonb(c.ip_address) #>> '{}', c.user_agent, c.reason,
           c.context::text, c.context_trust::text, c.session_role, c.effective_role, c.application_name, to_jsonb(c.client_addr) #>> '{}',
           c.client_port, c.backend_pid, c.statement, c.origin::text, c.event_count, c.events_root, c.salt, c.checksum
      FROM audit.changeset c
     WHERE %(since)s::timestamptz IS NULL OR c.occurred_at >= %(since)s
     ORDER BY c.id"""


def check_integrity(conn, since=None, ask_extension=True):
    """Asserts that the committed log is whole, by means of its own.

    For each changeset: number of events, Merkle root, its checksum, its UUID's time; for each event: its checksum; for
    each transaction: numbering from 0 without gaps; no event without its changeset. With `ask_extension`, also that
    audit.canonical and audit.verify_event agree. Must not run in a transaction that has changes pending. Returns the
    numbers of changesets and events.
    """
    arguments = {"since": since}
    # One snapshot, or what other sessions commit meanwhile would show as events without changeset.
    conn = connect_like(conn)
    try:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        event_rows = conn.execute(EVENTS, arguments).fetchall()
        changeset_rows = conn.execute(CHANGESETS, arguments).fetchall()
        if ask_extension:
            # These look up one event among those of its time, so a sample of large transactions must do.
            texts = {(r[0], r[1]): r[2:] for r in conn.execute(
                """SELECT e.changeset_id, e.seq, audit.canonical(e.changeset_id, e.seq),
                          audit.verify_event(e.changeset_id, e.seq)
                     FROM audit.event e
                     JOIN (SELECT id, sum(event_count) OVER (PARTITION BY era, xid) AS events FROM audit.changeset) c
                       ON c.id = e.changeset_id
                    WHERE (%(since)s::timestamptz IS NULL OR e.occurred_at >= %(since)s)
                      AND e.seq %% (c.events / 20 + 1) = 0""", arguments).fetchall()}
            changeset_texts = dict(conn.execute(
                """SELECT c.id, audit.canonical(c.id) FROM audit.changeset c
                    WHERE %(since)s::timestamptz IS NULL OR c.occurred_at >= %(since)s""", arguments).fetchall())
    finally:
        conn.close()

    by_changeset = defaultdict(list)
    for (changeset_id, seq, command, at, schema_name, table_name, operation, action, status, resource, resource_id,
         row_image, old_values, details, salt, stored, relation_id) in event_rows:
        where = "event %s/%s" % (changeset_id, seq)
        assert relation_id is None or schema_name is not None, "%s: layout %s is missing" % (where, relation_id)
        canonical = jsonb_array(["audit_ext/event/1", str(changeset_id), seq, command, at, relation_id, schema_name,
                                 table_name, operation, action, status, resource, resource_id, _raw(row_image), _raw(old_values),
                                 _raw(details)])
        assert checksum(salt, canonical) == stored, "%s: checksum; canonical form %.2000s" % (where, canonical)
        if ask_extension and (changeset_id, seq) in texts:
            said, verified = texts[(changeset_id, seq)]
            assert said == canonical, "%s: audit.canonical says %.2000s instead of %.2000s" % (where, said, canonical)
            assert verified is True, where + ": audit.verify_event"
        by_changeset[changeset_id].append((seq, at, stored))

    by_transaction = defaultdict(list)
    changeset_ids = set()
    for (changeset_id, at, era, position, xid, user_id, tenant_id, request_id, session_id, ip_address, user_agent,
         reason, context, context_trust, session_role, effective_role, application_name, client_addr, client_port, backend_pid,
         statement, origin, event_count, events_root, salt, stored) in changeset_rows:
        where = "changeset %s" % changeset_id
        changeset_ids.add(changeset_id)
        own = by_changeset.get(changeset_id, [])
        assert len(own) == event_count > 0, "%s: event_count %s, %s events" % (where, event_count, len(own))
        assert all(t == at for _, t, _ in own), where + ": occurred_at of its events"
        assert merkle_root([c for _, _, c in own]) == events_root, where + ": events_root"
        by_transaction[(era, xid)].extend(seq for seq, _, _ in own)
        assert position is not None, where + ": position"
        canonical = jsonb_array(["audit_ext/changeset/1", str(changeset_id), at, era, _raw(position), xid, user_id,
                                 tenant_id, request_id, session_id, ip_address, user_agent, reason, _raw(context),
                                 context_trust, session_role, effective_role, application_name, client_addr,
                                 client_port, backend_pid, statement, origin, event_count, events_root.hex()])
        assert checksum(salt, canonical) == stored, "%s: checksum; canonical form %.2000s" % (where, canonical)
        if ask_extension:
            assert changeset_texts[changeset_id] == canonical, "%s: audit.canonical says %.2000s instead of %.2000s" % (
                where, changeset_texts[changeset_id], canonical)
        assert changeset_id.version == 7, where + ": UUID version"
        number = changeset_id.int
        milliseconds, fraction = number >> 80, (number >> 64) & 0xFFF
        assert milliseconds * 1000 + fraction * 1000 // 4096 == at, where + ": time in the UUID"

    orphans = set(by_changeset) - changeset_ids
    assert not orphans, "events without changeset: %s" % list(orphans)[:10]
    for transaction, numbers in by_transaction.items():
        assert sorted(numbers) == list(range(len(numbers))), "transaction %s: seq %s" % (transaction, sorted(numbers))
    return len(changeset_rows), len(event_rows)
