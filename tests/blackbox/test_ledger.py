"""Sealing, checkpoints, signatures, proofs."""

import subprocess
import threading
import time

import psycopg
import pytest
from auditlib import sqlstate
from ledgerlib import assert_intact, attacker, key_pair, last_note, seal, verify, write_key
from tiny_verifier import Note, proof_problems, root_of_path, sha256


@pytest.fixture
def log(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    conn.execute("SELECT audit.enable('t')")
    return conn


def entries(conn):
    return conn.execute("SELECT index, changeset_id FROM audit.entry ORDER BY era, index").fetchall()


def test_nothing_to_seal(conn):
    assert seal(conn) == 0
    assert_intact(conn)
    log = conn
    log.execute("CREATE TABLE t (id int PRIMARY KEY)")
    log.execute("SELECT audit.enable('t')")
    log.execute("INSERT INTO t VALUES (1)")
    assert seal(log) == 4  # ledger, layout, changeset, seal
    assert seal(log) == 4
    assert log.execute("SELECT count(*) FROM audit.checkpoint").fetchone() == (1,)
    assert_intact(log)


def test_order_and_sizes(log, db):
    """Changesets are sealed in the order of their transactions, whatever order they commit in; 300 rounds of one."""
    first, second = db.connect(autocommit=False), db.connect(autocommit=False)
    first.execute("INSERT INTO t VALUES (1)")
    second.execute("INSERT INTO t VALUES (2)")
    second.commit()
    log.execute("INSERT INTO t VALUES (3)")
    # The first transaction holds back what is younger.
    assert seal(log) == 3
    assert [changeset for _, changeset in entries(log) if changeset] == []
    assert_intact(log)
    first.commit()
    assert seal(log) == 7
    ordered = log.execute("SELECT id FROM audit.changeset ORDER BY xid").fetchall()
    assert [(changeset,) for _, changeset in entries(log) if changeset] == ordered
    kept = last_note(log)
    for i in range(300):
        log.execute("UPDATE t SET v = %s WHERE id = 1", [str(i)])
        assert seal(log) == 7 + 2 * (i + 1)
    assert log.execute("SELECT level, index FROM audit.tile ORDER BY 1, 2").fetchall() == [(0, 0), (0, 1)]
    assert_intact(log, kept)


def test_many_entries_at_once(log):
    log.execute("DO $$ BEGIN FOR i IN 1..70000 LOOP INSERT INTO t VALUES (i); COMMIT; END LOOP; END $$")
    assert seal(log) == 70003
    assert log.execute("SELECT level, count(*) FROM audit.tile GROUP BY 1 ORDER BY 1").fetchall() == [(0, 273), (1, 1)]
    kept = last_note(log)
    log.execute("UPDATE t SET v = 'x' WHERE id < 10")
    seal(log)
    assert_intact(log, kept)
    ids = log.execute("SELECT changeset_id FROM audit.entry WHERE index IN (2, 3, 257, 258, 65535, 65536, 70001)")
    for (changeset,) in ids.fetchall():
        (text,) = log.execute("SELECT audit.prove(%s, 0)", [changeset]).fetchone()
        assert proof_problems(text) == []


def test_long_and_prepared_transactions(log, db):
    """What is below a long transaction is sealed, what is above waits; a transaction that began long ago comes in."""
    long = db.connect(autocommit=False)
    long.execute("INSERT INTO t VALUES (1)")
    prepared = db.connect(autocommit=False)
    prepared.execute("INSERT INTO t VALUES (2)")
    prepared.execute(f"PREPARE TRANSACTION '{db.name}'")
    sizes = set()
    for i in range(10, 20):
        log.execute("INSERT INTO t VALUES (%s)", [i])
        sizes.add(seal(log))
    assert len(sizes) == 1
    long.commit()
    assert seal(log) > max(sizes)
    log.execute("INSERT INTO t VALUES (30)")
    log.execute(f"COMMIT PREPARED '{db.name}'")
    seal(log)
    assert_intact(log)
    assert log.execute("SELECT count(*) FROM audit.entry WHERE changeset_id IS NOT NULL").fetchone() == (13,)


def test_a_clock_that_was_set_back(log, db):
    """A changeset whose time lies before the last rounds' is found by audit.seal(true), and until then reported."""
    log.execute("INSERT INTO t VALUES (1)")
    seal(log)
    log.execute("INSERT INTO t VALUES (2)")
    # As if its clock had been a day behind: by a superuser, past the trigger.
    attacker(db).execute("UPDATE audit.changeset SET occurred_at = occurred_at - interval '1 day' WHERE id ="
                " (SELECT id FROM audit.changeset ORDER BY xid DESC LIMIT 1)")
    log.execute("INSERT INTO t VALUES (3)")
    before = seal(log)
    log.execute("INSERT INTO t VALUES (4)")
    assert seal(log) == before + 2
    assert "changeset added" in {finding for finding, *_ in verify(log)}
    assert log.execute("SELECT audit.seal(true)").fetchone()[0] == before + 4
    assert "changeset added" not in {finding for finding, *_ in verify(log)}


def test_verify_within_the_writing_transaction(db, log):
    writer = db.connect(autocommit=False)
    writer.execute("INSERT INTO t VALUES (1)")
    assert writer.execute("SELECT * FROM audit.verify()").fetchall() == []
    writer.execute("SELECT audit.seal()")
    assert writer.execute("SELECT * FROM audit.verify()").fetchall() == []
    writer.rollback()
    assert_intact(log)


def test_errors(log, db, role):
    with sqlstate("25001"):
        other = db.connect(autocommit=False)
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT audit.seal()")
    log.execute("INSERT INTO t VALUES (1)")
    (changeset,) = log.execute("SELECT id FROM audit.changeset").fetchone()
    with sqlstate("55000"):
        log.execute("SELECT audit.prove(%s, 0)", [changeset])
    seal(log)
    with sqlstate("P0002"):
        log.execute("SELECT audit.prove(%s, 1)", [changeset])
    for size in (-1, 5):
        with sqlstate("22023"):
            log.execute("SELECT audit.prove_consistency(%s)", [size])
    for text in ("", "nonsense", "a\n1\n\n"):
        with sqlstate("22023"):
            log.execute("SELECT * FROM audit.verify(checkpoint => %s)", [text])
    with sqlstate("22004"):
        log.execute("SELECT audit.prove(NULL, 0)")
    user = db.connect(user=role())
    for call in ("audit.seal()", "audit.verify()", "audit.prove(gen_random_uuid(), 0)", "audit.add_cosignature('')"):
        with sqlstate("42501"):
            user.execute(f"SELECT {call}")
    for table in ("entry", "tile", "checkpoint", "cosignature"):
        for statement in (f"TABLE audit.{table}", f"DELETE FROM audit.{table}"):
            with sqlstate("42501"):
                user.execute(statement)
        with sqlstate("55000"):
            log.execute(f"DELETE FROM audit.{table}")


def test_rights(log, db, role):
    """A reader verifies and proves, an administrator seals."""
    log.execute("INSERT INTO t VALUES (1)")
    reader, admin = role(), role()
    log.execute(f"SELECT audit.grant_reader('{reader}'), audit.grant_admin('{admin}')")
    admin = db.connect(user=admin)
    assert seal(admin) == 4
    with sqlstate("42501"):
        admin.execute("TABLE audit.entry")
    reader = db.connect(user=reader)
    assert_intact(reader, last_note(log))
    (changeset,) = log.execute("SELECT id FROM audit.changeset").fetchone()
    assert proof_problems(reader.execute("SELECT audit.prove(%s, 0)", [changeset]).fetchone()[0]) == []
    reader.execute("SELECT audit.prove_consistency(2)")
    with sqlstate("42501"):
        seal(reader)


def test_published_when_committed(log, db):
    """NOTIFY and the line in the server log come with the commit, and not with a rollback; either can be kept."""
    listener, notes = db.connect(), []
    listener.add_notify_handler(lambda notice: notes.append(notice.payload))
    listener.execute("LISTEN audit_checkpoint")
    log.execute("INSERT INTO t VALUES (1)")
    (origin,) = log.execute("SELECT origin FROM audit.ledger").fetchone()
    sealer = db.connect(autocommit=False)
    seal(sealer)
    sealer.rollback()
    sealer.execute("SAVEPOINT s")
    seal(sealer)
    sealer.execute("ROLLBACK TO s")
    sealer.commit()
    assert f"audit checkpoint: {origin}" not in db.cluster.log
    sealer.execute("SET LOCAL synchronous_commit = off")
    sealer.execute("SAVEPOINT s")
    seal(sealer)
    sealer.execute("RELEASE s")
    assert f"audit checkpoint: {origin}" not in db.cluster.log
    sealer.commit()
    while not notes:
        listener.execute("SELECT")
    assert notes == [last_note(log)]
    (line,) = [line for line in db.cluster.log.splitlines() if f"audit checkpoint: {origin}" in line]
    log.execute("INSERT INTO t VALUES (2)")
    seal(log)
    for kept in (line, notes[0], notes[0].replace("\n", "\r\n"), "\n " + notes[0] + "\n"):
        assert_intact_in_sql(log, kept)
    forged = line.replace(" | 4 | ", " | 5 | ")
    assert [finding for finding, *_ in verify(log, forged)] == ["checkpoint inconsistent"]


def assert_intact_in_sql(conn, kept):
    assert verify(conn, kept) == []


def test_one_sealer_at_a_time(log, db):
    log.execute("INSERT INTO t SELECT generate_series(1, 100)")
    first = db.connect(autocommit=False)
    size = seal(first)
    result = []
    thread = threading.Thread(target=lambda: result.append(seal(db.connect())))
    thread.start()
    while not log.execute("SELECT FROM pg_locks WHERE NOT granted AND relation = 'audit.checkpoint'::regclass").rowcount:
        time.sleep(0.01)
    first.commit()
    thread.join(60)
    assert result == [size]
    assert_intact(log)


# --- signatures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def signing(new_cluster):
    """A cluster whose checkpoints are signed; its vkey is in `.vkey`."""
    cluster = new_cluster()
    private, cluster.vkey = key_pair("example.com/audit")
    cluster.configure(**{"audit.signing_key_file": write_key(cluster, private)})
    cluster.reload()
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY, v text)")
        conn.execute("SELECT audit.enable('t')")
    return cluster


def test_signed_checkpoints(signing):
    conn = signing.connect()
    conn.execute("INSERT INTO t VALUES (1)")
    seal(conn)
    note = Note(last_note(conn))
    assert note.signed_by(signing.vkey)
    assert conn.execute("SELECT key FROM audit.checkpoint").fetchall() == [(signing.vkey,)]
    assert_intact(conn, last_note(conn), [signing.vkey])
    # Another key from here on: what was signed before stays valid.
    private, vkey = key_pair("example.com/audit")
    signing.configure(**{"audit.signing_key_file": write_key(signing, private, "other.key")})
    signing.reload()
    conn = signing.connect()
    conn.execute("INSERT INTO t VALUES (2)")
    seal(conn)
    assert Note(last_note(conn)).signed_by(vkey)
    assert_intact(conn, None, [signing.vkey, vkey])


def test_a_key_file_that_others_can_read(signing):
    conn = signing.connect()
    conn.execute("INSERT INTO t VALUES (1)")
    path = signing.folder / "signing.key"
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with sqlstate("F0000") as caught:
            seal(conn)
        assert "signing.key" in str(caught.error)
    path.chmod(0o600)
    text = path.read_text()
    path.write_text("no key\n")
    with sqlstate("F0000"):
        seal(conn)
    path.write_text(text)
    if signing.system_user is not None:
        subprocess.run(["chown", "nobody", path], check=True)
        with sqlstate("F0000"):
            seal(conn)
        subprocess.run(["chown", "root:root", path], check=True)
        path.chmod(0o644)
        with sqlstate("F0000"):
            seal(conn)
        path.chmod(0o600)
        with sqlstate("F0000"):  # the server's user cannot read it
            seal(conn)
        subprocess.run(["chown", signing.system_user.pw_name, path], check=True)
    assert seal(conn) == 4
    with sqlstate("55P02"):
        conn.execute("SET audit.signing_key_file = '/tmp/x'")


def test_cosignatures(signing):
    witness, vkey = key_pair("witness.example.com", 4)
    _, other = key_pair("other.example.com", 4)
    conn = signing.connect()
    conn.execute("INSERT INTO t VALUES (1)")
    seal(conn)
    note = last_note(conn)
    cosigned = note + cosignature(witness, note, 1_700_000_000)
    with sqlstate("22023"):  # no witness is configured
        conn.execute("SELECT audit.add_cosignature(%s)", [cosigned])
    signing.configure(**{"audit.witness_keys": f"{other}, {vkey}"})
    signing.reload()
    conn = signing.connect()
    assert conn.execute("SELECT audit.add_cosignature(%s)", [cosigned]).fetchone() == (1,)
    assert conn.execute("SELECT audit.add_cosignature(%s)", [cosigned]).fetchone() == (0,)
    for bad in (
        note,
        "nonsense",
        note + cosignature(witness, note.replace("\n4\n", "\n3\n"), 1),
        cosigned.replace("\n4\n", "\n3\n"),
        cosigned.replace(Note(note).origin, "elsewhere"),
    ):
        with sqlstate("22023"):
            conn.execute("SELECT audit.add_cosignature(%s)", [bad])
    (changeset,) = conn.execute("SELECT id FROM audit.changeset").fetchone()
    (proof,) = conn.execute("SELECT audit.prove(%s, 0)", [changeset]).fetchone()
    assert proof_problems(proof, [vkey]) == [] and proof_problems(proof, [signing.vkey]) == []
    assert proof_problems(proof, [other]) == ["not signed by a known key"]
    assert_intact(conn, cosigned)


def cosignature(private, note, time):
    """The line that a witness adds."""
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    name, key_id, seed = private.removeprefix("PRIVATE+KEY+").split("+", 2)
    body = note.partition("\n\n")[0] + "\n"
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(seed)[1:])
    signature = key.sign(f"cosignature/v1\ntime {time}\n{body}".encode())
    line = bytes.fromhex(key_id) + time.to_bytes(8, "big") + signature
    return f"\u2014 {name} {base64.b64encode(line).decode()}\n"


# --- proofs ----------------------------------------------------------------------------------------------------------


def test_proofs_of_each_event(log):
    log.execute("INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 37) g")
    log.execute("BEGIN; UPDATE t SET v = 'é \"q\" \\ \t' WHERE id = 1; SELECT audit.set_context(user_id => 'other');"
                " DELETE FROM t WHERE id = 2; COMMIT")
    for i in range(5):
        log.execute("UPDATE t SET v = %s WHERE id = 5", [str(i)])
    seal(log)
    proofs = log.execute("SELECT audit.prove(changeset_id, seq) FROM audit.event").fetchall()
    assert len(proofs) == 44
    for (text,) in proofs:
        assert proof_problems(text) == []
    # No byte of it can be changed: a digit of each line.
    (text,) = proofs[0]
    (origin,) = log.execute("SELECT origin FROM audit.ledger").fetchone()
    for number, line in enumerate(text.splitlines()):
        for at in range(0, len(line), 7):
            other = "B" if line[at] == "A" else "A"
            lines = text.splitlines()
            lines[number] = line[:at] + other + line[at + 1 :]
            if line == origin:
                continue  # the origin, which a signature covers
            assert proof_problems("\n".join(lines) + "\n") != [], (number, at)


def test_consistency_with_every_size(log):
    notes = []
    for i in range(40):
        log.execute("INSERT INTO t VALUES (%s)", [i])
        seal(log)
        notes.append(Note(last_note(log)))
    for note in notes:
        (text,) = log.execute("SELECT audit.prove_consistency(%s)", [note.size]).fetchone()
        assert consistent(text, note), note.size
        assert not consistent(text.replace("\nA", "\nB", 1).replace("\nq", "\nr", 1), note) or "\nA" not in text


def consistent(text, old):
    """RFC 6962, section 2.1.2, as RFC 9162 tells to check it."""
    import base64

    head, _, note = text.partition("\n\n")
    size, *path = head.split("\n")
    new = Note(note)
    path = [base64.b64decode(line) for line in path]
    assert size == f"old {old.size}"
    if old.size == new.size:
        return path == [] and old.root == new.root
    if old.size & (old.size - 1) == 0:
        path.insert(0, old.root)
    at, last = old.size - 1, new.size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for node in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first, second = sha256(b"\x01" + node + first), sha256(b"\x01" + node + second)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            second = sha256(b"\x01" + second + node)
        at, last = at >> 1, last >> 1
    return last == 0 and first == old.root and second == new.root


def test_verify_says_how_far_it_is(log):
    said = []
    log.add_notice_handler(lambda notice: said.append(notice.message_primary))
    assert verify(log) == []
    assert [line.partition(",")[0] for line in said if "part" in line] == [f"audit.verify: part {n} of 4" for n in range(1, 5)]
    assert any("entries, " in line and "checkpoints" in line for line in said) and any("events in" in line for line in said)


def test_root_of_path():
    """The check that the tests rest on fails where it should."""
    leaves = [sha256(b"\x00" + bytes([i])) for i in range(3)]
    root = sha256(b"\x01" + sha256(b"\x01" + leaves[0] + leaves[1]) + leaves[2])
    assert root_of_path(leaves[0], 0, 3, [leaves[1], leaves[2]]) == root
    assert root_of_path(leaves[2], 2, 3, [sha256(b"\x01" + leaves[0] + leaves[1])]) == root
    assert root_of_path(leaves[2], 2, 3, [leaves[0], leaves[1]]) is None
    assert root_of_path(leaves[0], 3, 3, []) is None


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_kill_9_while_sealing(new_cluster):
    """Checkpoints that were published are kept across crashes, and verify holds the log to each of them."""
    cluster = new_cluster({"synchronous_commit": "off"})
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext; CREATE TABLE t (id serial PRIMARY KEY, v text)")
        conn.execute("SELECT audit.enable('t')")
    kept = []
    for crash in range(8):
        stop = threading.Event()

        def write():
            try:
                with cluster.connect() as conn:
                    while not stop.is_set():
                        conn.execute("BEGIN; INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 3);"
                                     " SAVEPOINT s; DELETE FROM t WHERE id % 7 = 0; ROLLBACK TO s; COMMIT")
            except psycopg.OperationalError:
                pass

        def seals():
            try:
                with cluster.connect() as conn:
                    conn.add_notify_handler(lambda notice: kept.append(notice.payload))
                    conn.execute("LISTEN audit_checkpoint")
                    while not stop.is_set():
                        seal(conn)
            except psycopg.OperationalError:
                pass

        threads = [threading.Thread(target=target) for target in (write, write, seals)]
        for thread in threads:
            thread.start()
        time.sleep(0.4 + crash * 0.05)
        cluster.kill9()
        stop.set()
        for thread in threads:
            thread.join(60)
        cluster.start()
        with cluster.connect() as conn:
            assert len(kept) > crash
            for note in (kept[0], kept[len(kept) // 2], kept[-1]):
                assert verify(conn, note) == []
            before = conn.execute("SELECT max(tree_size) FROM audit.checkpoint").fetchone()[0]
            assert before >= Note(kept[-1]).size
            assert seal(conn) >= before
            assert_intact(conn, kept[-1])
