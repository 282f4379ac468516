"""A verifier of the log in Python, written from docs/format.md: the standard library, and a package for Ed25519.

It shares nothing with audit_ext but that page. `log_problems` reads the tables with any psycopg connection that may,
`proof_problems` needs no database at all; both return what does not fit, an empty list where all is well.
"""

import base64
import datetime
import decimal
import hashlib
import json
import uuid

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)

EVENT_FIELDS = (
    "changeset_id seq command occurred_at relation_id schema_name table_name operation action status resource resource_id"
    " row_image old_values details"
).split()
CHANGESET_FIELDS = (
    "id occurred_at era position xid user_id tenant_id request_id session_id ip_address user_agent reason context"
    " context_trust session_role effective_role application_name client_addr client_port backend_pid statement origin event_count"
    " events_root"
).split()


# --- records -------------------------------------------------------------------------------------


def string(text):
    """A JSON string: two-character escapes where JSON has them, \\u00xx for other controls, all else as it is."""
    short = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(short.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in text) + '"'


def number(value):
    """A number in full, without an exponent, with the fraction digits that it has; zero has no sign."""
    text = format(decimal.Decimal(value), "f")
    return text.lstrip("-") if not text.strip("-0.") else text


def canonical_json(value):
    """A JSON value as text: ', ' and ': ' between parts, an object's keys shortest first, then by bytes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return string(value)
    if isinstance(value, (int, decimal.Decimal)):
        return number(value)
    if isinstance(value, list):
        return "[" + ", ".join(canonical_json(item) for item in value) + "]"
    keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
    return "{" + ", ".join(f"{string(key)}: {canonical_json(value[key])}" for key in keys) + "}"


def parse_json(text):
    """JSON with its numbers kept exact."""
    return json.loads(text, parse_float=decimal.Decimal, parse_int=decimal.Decimal)


def microseconds(moment):
    """Microseconds since the Unix epoch."""
    return (moment - EPOCH) // datetime.timedelta(microseconds=1)


def wal_bytes(position):
    """A WAL position (pg_lsn) as a number of bytes."""
    high, low = position.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def canonical_event(record):
    return canonical_json(["audit_ext/event/1"] + [record[field] for field in EVENT_FIELDS])


def canonical_changeset(record):
    return canonical_json(["audit_ext/changeset/1"] + [record[field] for field in CHANGESET_FIELDS])


def checksum(salt, canonical):
    return hashlib.sha256(salt.bytes + canonical.encode()).digest()


def merkle_root(leaves):
    """RFC 6962, section 2.1: the Merkle tree hash."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + merkle_root(leaves[:split]) + merkle_root(leaves[split:])).digest()


def uuid_microseconds(identifier):
    """The instant that a changeset's id holds."""
    milliseconds, fraction = identifier.int >> 80, identifier.int >> 64 & 0xFFF
    return milliseconds * 1000 + fraction * 1000 // 4096


# --- reading the tables ----------------------------------------------------------------------------------------------

EVENTS = """
SELECT e.changeset_id, e.seq, e.command, e.occurred_at, e.relation_id, r.schema_name, r.table_name, e.operation::text, e.action,
       e.status::text, e.resource, e.resource_id, e.row_image::text, e.old_values::text, e.details::text,
       e.salt, e.checksum
  FROM audit.event e LEFT JOIN audit.relation r ON r.id = e.relation_id
 ORDER BY e.changeset_id, e.seq
"""
CHANGESETS = """
SELECT id, occurred_at, era, position::text, xid::text, user_id, tenant_id, request_id, session_id, abbrev(ip_address),
       user_agent, reason, context::text, context_trust::text, session_role, effective_role, application_name, abbrev(client_addr),
       client_port, backend_pid, statement, origin::text, event_count, encode(events_root, 'hex'), salt, checksum
  FROM audit.changeset
 ORDER BY id
"""


def read_events(connection):
    """The events, as records of canonical fields beside salt and checksum."""
    for *fields, salt, digest in connection.execute(EVENTS).fetchall():
        record = dict(zip(EVENT_FIELDS, fields, strict=True))
        record["occurred_at"] = microseconds(record["occurred_at"])
        record["changeset_id"] = str(record["changeset_id"])
        for field in ("row_image", "old_values", "details"):
            record[field] = None if record[field] is None else parse_json(record[field])
        yield record, salt, digest


def read_changesets(connection):
    for *fields, salt, digest in connection.execute(CHANGESETS).fetchall():
        record = dict(zip(CHANGESET_FIELDS, fields, strict=True))
        record["id"] = str(record["id"])
        record["occurred_at"] = microseconds(record["occurred_at"])
        record["position"] = None if record["position"] is None else wal_bytes(record["position"])
        record["context"] = None if record["context"] is None else parse_json(record["context"])
        yield record, salt, digest


# --- the Merkle log --------------------------------------------------------------------------------------------------

LEAF, NODE = b"\x00", b"\x01"


def sha256(data):
    return hashlib.sha256(data).digest()


def decode(text):
    """Base64 with its padding, and no other text for the same bytes."""
    data = base64.b64decode(text, validate=True)
    assert base64.b64encode(data).decode() == text
    return data


class Tree:
    """The log as it grows: the roots of its complete subtrees, the largest first, each with its size."""

    def __init__(self):
        self.size, self.complete = 0, []

    def push(self, entry):
        self.complete.append((1, sha256(LEAF + entry)))
        self.size += 1
        while len(self.complete) > 1 and self.complete[-2][0] == self.complete[-1][0]:
            size, right = self.complete.pop()
            self.complete[-1] = (2 * size, sha256(NODE + self.complete[-1][1] + right))

    def root(self):
        if not self.complete:
            return sha256(b"")
        root = self.complete[-1][1]
        for _, left in reversed(self.complete[:-1]):
            root = sha256(NODE + left + root)
        return root


class Note:
    """A checkpoint: origin, size, root, and signatures as (name, key id, signature)."""

    def __init__(self, text):
        body, _, signatures = text.partition("\n\n")
        self.body = body.rstrip("\n") + "\n"
        self.origin, size, root = self.body.rstrip("\n").split("\n")
        self.size, self.root = int(size), decode(root)
        assert str(self.size) == size and len(self.root) == 32
        self.signatures = []
        for line in signatures.splitlines():
            dash, name, signature = line.split(" ")
            signature = decode(signature)
            assert dash == "\u2014"
            self.signatures.append((name, signature[:4], signature[4:]))

    def signed_by(self, vkey):
        """Whether the owner of a key has signed: of a log (type 1), or of a witness (type 4)."""
        name, key_id, key = vkey.split("+", 2)
        key = decode(key)
        if sha256(f"{name}\n".encode() + key)[:4].hex() != key_id:
            return False
        for signer, signer_id, signature in self.signatures:
            if (signer, signer_id.hex()) != (name, key_id):
                continue
            message = self.body.encode()
            if key[0] == 4:
                time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
                message = f"cosignature/v1\ntime {time}\n".encode() + message
            try:
                Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature, message)
                return True
            except InvalidSignature:
                return False
        return False


def root_of_path(leaf, index, size, path):
    """RFC 6962, section 2.1.1: the root that a path leads to; None where the path does not fit."""
    if not 0 <= index < size:
        return None
    node, last, path = leaf, size - 1, list(path)
    while last > 0:
        if index % 2 == 1 or index < last:
            if not path:
                return None
            sibling = path.pop(0)
            node = sha256(NODE + (sibling + node if index % 2 == 1 else node + sibling))
        index, last = index // 2, last // 2
    return None if path else node


def canonical_relation(row):
    *fields, valid_from = row
    return canonical_json(["audit_ext/relation/1", *fields, microseconds(valid_from)])


LEDGERS = """
SELECT era, id::text, system_identifier::text, timeline, database_id::bigint, origin, started_at
  FROM audit.ledger ORDER BY era
"""
RELATIONS = """
SELECT id, relid::bigint, schema_name, table_name, resource, root_schema, root_table, columns::text, key_columns,
       valid_from
  FROM audit.relation ORDER BY id
"""
ENTRIES = "SELECT index, relation_id, changeset_id::text, checksum FROM audit.entry WHERE era = %s ORDER BY index"
CHECKPOINTS = """
SELECT tree_size, created_at, sealed_below::text, next_xid::text, root_hash, key, note
  FROM audit.checkpoint WHERE era = %s ORDER BY tree_size
"""
COSIGNATURES = "SELECT tree_size, key, line FROM audit.cosignature WHERE era = %s"
TILES = "SELECT level, index, root, hashes FROM audit.tile WHERE era = %s"


ERASURES = """
SELECT e.details::text FROM audit.event e JOIN audit.erasure USING (changeset_id, seq)
 WHERE e.action = 'audit.erased' AND e.salt IS NOT NULL
"""


def read_erasures(connection):
    """Checksum of what remains, of each changeset (by id) and event (by id and number) that an erasure names."""
    remains = {}
    for (details,) in connection.execute(ERASURES).fetchall():
        details = json.loads(details)
        remains |= details["changesets"]
        remains |= {(c, int(seq)): d for c, events in details["events"].items() for seq, d in events.items()}
    return remains


def holds(canonical, salt, digest, remains):
    """Whether a record is what was written, or if it was erased, what its erasure left."""
    if salt is None:
        return sha256(canonical.encode()).hex() == remains
    return checksum(salt, canonical) == digest


def log_problems(connection, kept=None, keys=()):
    """What does not fit: texts that begin with what it concerns. `kept` is an old checkpoint, `keys` are known vkeys, one
    of which must have signed each checkpoint."""
    problems, checksums, roots = [], {}, {}
    erased = read_erasures(connection)
    for record, salt, digest in read_events(connection):
        where = f"event {record['changeset_id']}/{record['seq']}"
        if not holds(canonical_event(record), salt, digest, erased.get((record["changeset_id"], record["seq"]))):
            problems.append(f"{where}: content")
        roots.setdefault(record["changeset_id"], []).append(digest)
    changesets = {}
    for record, salt, digest in read_changesets(connection):
        where = f"changeset {record['id']}"
        if not holds(canonical_changeset(record), salt, digest, erased.get(record["id"])):
            problems.append(f"{where}: content")
        if record["id"] in changesets:
            problems.append(f"{where}: twice")
        changesets[record["id"]] = record
        checksums["changeset", record["id"]] = digest
        of_changeset = roots.pop(record["id"], [])
        if len(of_changeset) != record["event_count"] or merkle_root(of_changeset).hex() != record["events_root"]:
            problems.append(f"{where}: events")
    problems += [f"changeset {identifier}: missing" for identifier in roots]
    for identifier, relid, *row in connection.execute(RELATIONS).fetchall():
        row[5] = parse_json(row[5])
        checksums["relation", identifier] = sha256(canonical_relation((identifier, relid, *row)).encode())

    kept = Note(kept) if kept else None
    sealed, previous, found_kept, sealed_below = set(), (None, None, None), kept is None, {}
    for era, *ledger, started_at in connection.execute(LEDGERS).fetchall():
        origin = ledger[-1]
        record = canonical_json(["audit_ext/ledger/1", era, *ledger, microseconds(started_at), *previous])
        checkpoints = {row[0]: row[1:] for row in connection.execute(CHECKPOINTS, [era]).fetchall()}
        tiles = {(level, index): (root, hashes) for level, index, root, hashes in connection.execute(TILES, [era])}
        tree, levels = Tree(), [[]]
        for index, relation, changeset, entry in connection.execute(ENTRIES, [era]).fetchall():
            where = f"ledger {era} entry {index}"
            if kept and (kept.origin, kept.size) == (origin, tree.size):
                found_kept = kept.root == tree.root()
            if index != tree.size:
                problems.append(f"{where}: not in its place")
                break
            tree.push(entry)
            kind = ("relation", relation) if relation is not None else ("changeset", changeset)
            if relation is not None or changeset is not None:
                sealed.add(kind)
                if checksums.get(kind) != entry:
                    problems.append(f"{kind[0]} {kind[1]}: not what {where} says")
            elif index == 0:
                if sha256(record.encode()) != entry:
                    problems.append(f"ledger {era}: record")
            elif tree.size not in checkpoints:
                problems.append(f"{where}: seal without checkpoint")
            else:
                problems += checkpoint_problems(origin, tree, entry, checkpoints.pop(tree.size), keys)
            levels[0].append(sha256(LEAF + entry))
            for level in range(8):
                if len(levels[level]) < 256:
                    break
                tile = tiles.pop((level, (tree.size >> 8 * (level + 1)) - 1), None)
                root = merkle_root_of_hashes(levels[level])
                if tile != (root, b"".join(levels[level])):
                    problems.append(f"{where}: tile of level {level}")
                levels[level] = []
                if len(levels) == level + 1:
                    levels.append([])
                levels[level + 1].append(root)
        if kept and (kept.origin, kept.size) == (origin, tree.size):
            found_kept = kept.root == tree.root()
        problems += [f"ledger {era} checkpoint {size}: no such tree" for size in checkpoints]
        problems += [f"ledger {era} tile {place}: no such tile" for place in tiles]
        for size, key, line in connection.execute(COSIGNATURES, [era]).fetchall():
            row = connection.execute("SELECT note FROM audit.checkpoint WHERE (era, tree_size) = (%s, %s)", [era, size])
            note = row.fetchone()
            if note is None or not Note(Note(note[0]).body + "\n" + line).signed_by(key):
                problems.append(f"ledger {era} checkpoint {size}: cosignature")
        last = connection.execute(CHECKPOINTS, [era]).fetchall()[-1:]
        if (last[0][0] if last else 0) != tree.size:
            problems.append(f"ledger {era}: entries beyond the last checkpoint")
        if last:
            previous = (origin, last[0][0], base64.b64encode(last[0][4]).decode())
            sealed_below[era] = int(last[0][2])
    for identifier, record in changesets.items():
        is_old = record["era"] < max(sealed_below, default=0) or int(record["xid"]) < sealed_below.get(record["era"], 0)
        if ("changeset", identifier) not in sealed and is_old:
            problems.append(f"changeset {identifier}: not in the log")
    if not found_kept:
        problems.append("kept checkpoint: history was rewritten")
    return problems


def merkle_root_of_hashes(hashes):
    while len(hashes) > 1:
        hashes = [sha256(NODE + left + right) for left, right in zip(hashes[::2], hashes[1::2])]
    return hashes[0]


def checkpoint_problems(origin, tree, entry, row, keys):
    created_at, sealed_below, next_xid, root, key, note = row
    seal = canonical_json(["audit_ext/seal/1", origin, tree.size, microseconds(created_at), sealed_below, next_xid, key])
    where = f"checkpoint of {tree.size} entries of {origin}"
    if sha256(seal.encode()) != entry:
        yield f"{where}: not what its seal says"
    if root != tree.root():
        yield f"{where}: root"
    try:
        note = Note(note)
    except (AssertionError, ValueError):
        yield f"{where}: malformed note"
        return
    if (note.origin, note.size, note.root) != (origin, tree.size, tree.root()):
        yield f"{where}: note"
    if (key is None) != (not note.signatures) or (key is not None and not note.signed_by(key)):
        yield f"{where}: signature"
    if keys and not any(note.signed_by(known) for known in keys):
        yield f"{where}: not signed by a known key"


def proof_problems(text, keys=()):
    """What is wrong with the proof of an event."""
    try:
        head, _, note = text.partition("\n\n")
        header, extra, index, *path = head.split("\n")
        inner = json.loads(decode(extra.removeprefix("extra ")))
        note, path = Note(note), [decode(line) for line in path]
        event, changeset = (parse_json(inner[part]["canonical"]) for part in ("event", "changeset"))
        digests = [checksum(uuid.UUID(inner[p]["salt"]), inner[p]["canonical"]) for p in ("event", "changeset")]
        inner_path = [decode(hash) for hash in inner["path"]]
        events_root, count = bytes.fromhex(changeset[24]), int(changeset[23])
        inner_index, index = inner["index"], int(index.removeprefix("index "))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
        return [f"malformed: {error!r}"]
    problems = []
    if header != "c2sp.org/tlog-proof@v1" or event[0] != "audit_ext/event/1" or changeset[0] != "audit_ext/changeset/1":
        problems.append("unknown version")
    if event[1] != changeset[1]:
        problems.append("the event is of another changeset")
    if root_of_path(sha256(LEAF + digests[0]), inner_index, count, inner_path) != events_root:
        problems.append("the event is not in the changeset")
    if root_of_path(sha256(LEAF + digests[1]), index, note.size, path) != note.root:
        problems.append("the changeset is not in the log")
    if keys and not any(note.signed_by(key) for key in keys):
        problems.append("not signed by a known key")
    return problems
