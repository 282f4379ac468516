"""Erasure: content goes, checksums stay, verification says who erased it and why; anything else is tampering."""

import pytest
from auditlib import sqlstate
from ledgerlib import assert_intact, attacker, audit_verify, last_note, seal, verify
from tiny_verifier import log_problems, proof_problems


@pytest.fixture
def log(conn):
    run = conn.execute
    run("CREATE TABLE person (id int PRIMARY KEY, name text)")
    run("CREATE TABLE other (id int PRIMARY KEY, name text)")
    run("SELECT audit.enable('person'), audit.enable('other')")
    run("SELECT audit.set_context(user_id => 'ann', ip_address => '203.0.113.7', reason => 'private', is_local => false)")
    run("INSERT INTO person SELECT g, 'name ' || g FROM generate_series(1, 9) g; INSERT INTO other VALUES (3, 'name 3')")
    run("UPDATE person SET name = 'secret' WHERE id = 3")
    run("UPDATE person SET id = 33 WHERE id = 3")
    run("SELECT audit.set_context(user_id => 'bob', ip_address => '203.0.113.8', is_local => false)")
    run("UPDATE person SET name = 'x' WHERE id = 4")
    seal(conn)
    return conn


def names(conn, kept=None):
    findings = verify(conn, kept)
    return sorted({finding for finding, *_ in findings}), findings


def test_a_row(log, db):
    kept = last_note(log)
    assert log.execute("SELECT audit.erase('person', '3', 'request 12')").fetchone() == (3,)
    text = log.execute("SELECT string_agg(e::text, ' ') FROM audit.event e WHERE action IS NULL").fetchone()[0]
    assert "secret" not in text and "name 3" in text  # that of the other table
    findings, rows = names(log, kept)
    assert findings == ["event erased"] and len(rows) == 3
    assert all("request 12" in row[3] and "user bob" in row[3] for row in rows)
    seal(log)
    assert names(log, kept)[0] == ["event erased"]
    assert log_problems(log, kept) == []
    _, result = audit_verify(db.cluster, "db", "--dsn", db.cluster.dsn(db.name), check=0)
    assert [note["finding"] for note in result["notes"]] == ["event erased"] * 3
    # Its neighbours are proven as before, itself no more.
    changeset, seq = log.execute(
        "SELECT changeset_id, seq FROM audit.event WHERE salt IS NULL ORDER BY occurred_at LIMIT 1"
    ).fetchone()
    assert proof_problems(log.execute("SELECT audit.prove(%s, %s)", [changeset, seq + 1]).fetchone()[0]) == []
    with sqlstate("55000"):
        log.execute("SELECT audit.prove(%s, %s)", [changeset, seq])
    assert log.execute("SELECT audit.erase('person', '3', 'again')").fetchone() == (0,)
    assert log.execute("SELECT audit.erase('person', 'none', 'again')").fetchone() == (0,)
    assert log.execute("SELECT count(*) FROM audit.event WHERE action = 'audit.erased'").fetchone() == (1,)


def test_a_user(log, db):
    kept = last_note(log)
    assert log.execute("SELECT audit.erase_user('ann', 'left')").fetchone() == (3,)
    assert log.execute("SELECT count(*) FROM audit.changeset WHERE user_id = 'ann'").fetchone() == (0,)
    assert log.execute("SELECT count(*) FROM audit.changeset WHERE ip_address = '203.0.113.7'").fetchone() == (0,)
    seal(log)
    findings, rows = names(log, kept)
    assert findings == ["changeset erased"] and len(rows) == 3
    assert log_problems(log, kept) == []
    _, result = audit_verify(db.cluster, "db", "--dsn", db.cluster.dsn(db.name), check=0)
    assert len(result["notes"]) == 3


def test_rolled_back(log):
    log.execute("BEGIN; SELECT audit.erase('person', '3', 'oops'); SELECT audit.erase_user('ann', 'oops'); ROLLBACK")
    log.execute("BEGIN; SAVEPOINT s; SELECT audit.erase('person', '3', 'oops'); ROLLBACK TO s; COMMIT")
    assert_intact(log)
    with sqlstate("55000"):
        log.execute("UPDATE audit.event SET salt = NULL")


def test_before_it_is_sealed(log):
    log.execute("INSERT INTO person VALUES (50, 'new')")
    assert log.execute("SELECT audit.erase('person', '50', 'at once')").fetchone() == (1,)
    seal(log)
    assert names(log)[0] == ["event erased"]
    assert log_problems(log) == []


def test_what_was_altered_is_not_erased(log, db):
    attacker(db).execute("UPDATE audit.event SET row_image = '{}' WHERE resource_id = '3' AND operation = 'INSERT'")
    with sqlstate("XX001"):
        log.execute("SELECT audit.erase('person', '3', 'hide it')")
    attacker(db).execute("UPDATE audit.changeset SET tenant_id = 'other' WHERE user_id = 'ann'")
    with sqlstate("XX001"):
        log.execute("SELECT audit.erase_user('ann', 'hide it')")


def test_rights(log, db, role):
    user, admin = role(), role()
    log.execute(f"SELECT audit.grant_admin('{admin}')")
    log.execute(f"SELECT audit.grant_reader('{user}')")
    for call in ("audit.erase('person', '3', 'x')", "audit.erase_user('ann', 'x')"):
        with sqlstate("42501"):
            db.connect(user=user).execute(f"SELECT {call}")
    assert db.connect(user=admin).execute("SELECT audit.erase('person', '3', 'x')").fetchone() == (3,)
    for arguments in ("NULL, '3', 'x'", "'person', NULL, 'x'", "'person', '3', NULL"):
        with sqlstate("22004"):
            log.execute(f"SELECT audit.erase({arguments})")


FORGERIES = {
    "no event": "UPDATE audit.event SET salt = NULL, row_image = NULL, resource_id = NULL WHERE resource_id = '4'",
    "no event for a changeset": "UPDATE audit.changeset SET salt = NULL, user_id = NULL WHERE user_id = 'bob' AND origin = 'trigger'",
    "another event's": "SELECT audit.erase('person', '3', 'true'); UPDATE audit.event SET salt = NULL, row_image = NULL"
    " WHERE resource_id = '4'",
    "what remains is altered": "SELECT audit.erase('person', '3', 'true'); UPDATE audit.event SET operation = 'DELETE'"
    " WHERE salt IS NULL AND operation = 'UPDATE'",
    "what remains of a changeset is altered": "SELECT audit.erase_user('ann', 'true'); UPDATE audit.changeset SET"
    " events_root = sha256(''), event_count = 0 WHERE salt IS NULL",
    "the erasure altered": "SELECT audit.erase('person', '3', 'true'); UPDATE audit.event SET details = jsonb_set(details,"
    " '{reason}', '\"other\"') WHERE action = 'audit.erased'",
    "the erasure removed": "SELECT audit.erase('person', '3', 'true'); DELETE FROM audit.event WHERE action = 'audit.erased'",
    "the index of erasures removed": "SELECT audit.erase('person', '3', 'true'); DELETE FROM audit.erasure",
    "the erasure is nonsense": "SELECT audit.erase('person', '3', 'true'); UPDATE audit.event SET details ="
    " '{\"events\": {\"x\": [1], \"y\": {\"z\": 1}}, \"changesets\": 7}' WHERE action = 'audit.erased'",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_erasure(log, db, name):
    attacker(db).execute(FORGERIES[name])
    seal(log)
    assert {"event altered", "changeset altered", "event removed"} & set(names(log)[0])
    status, result = audit_verify(db.cluster, "db", "--dsn", db.cluster.dsn(db.name))
    assert status == 1 and result["result"] == "tampered"
    try:
        assert log_problems(log) != []
    except (KeyError, AttributeError, TypeError, ValueError):
        assert "nonsense" in name  # the small one does not bear it
