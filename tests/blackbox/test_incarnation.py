"""Restores, copies, promotions, recoveries: each continues the ledger or begins a new one that names the last checkpoint of
the old one. There are never two histories under one origin."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ledgerlib import assert_intact, audit_verify, last_note, seal
from tiny_verifier import Note


def prepare(conn):
    conn.execute("CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY, v text)")
    conn.execute("SELECT audit.enable('t')")
    conn.execute("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g")
    seal(conn)
    conn.execute("UPDATE t SET v = 'sealed' WHERE id = 1")
    seal(conn)


def restore(dump, cluster, database="postgres"):
    """As psql does it by itself: past errors, such as that of a trigger that is there already."""
    command = [cluster.bin("psql"), "-X", "-q", "-d", database, "-f", "-"]
    cluster.run(command, input=dump)


def ledgers(conn):
    return conn.execute("SELECT era, origin FROM audit.ledger ORDER BY era").fetchall()


def assert_new_ledger(conn, kept):
    """Writing begins a ledger of another origin, whose first entry names the kept checkpoint; all is intact."""
    before = ledgers(conn)
    conn.execute("INSERT INTO t VALUES (%s)", [1000 + len(before)])
    assert seal(conn) >= 2
    after = ledgers(conn)
    assert len(after) == len(before) + 1 and len({origin for _, origin in after}) == len(after)
    (canonical,) = conn.execute(
        "SELECT audit.canonical_ledger(l) FROM audit.ledger l ORDER BY era DESC LIMIT 1"
    ).fetchone()
    note = Note(kept)
    assert f'"{note.origin}", {note.size}' in canonical
    assert Note(last_note(conn)).origin == after[-1][1]
    assert_intact(conn, kept)
    assert_intact(conn, last_note(conn))


def test_dump_and_restore(new_cluster):
    """Into another cluster, with changesets that were not sealed: the new ledger seals them."""
    old, new = new_cluster(), new_cluster()
    with old.connect() as conn:
        prepare(conn)
        kept = last_note(conn)
        conn.execute("UPDATE t SET v = 'not sealed' WHERE id = 2")
    dump = old.run([old.bin("pg_dump"), "postgres"]).stdout
    restore(dump, new)
    with new.connect() as conn:
        assert_intact(conn, kept)
        assert seal(conn) == 0  # nothing was written here yet: no ledger of this place
        assert_intact(conn, kept)
        assert_new_ledger(conn, kept)
        assert conn.execute(
            "SELECT count(*) FROM audit.changeset c WHERE NOT EXISTS (SELECT FROM audit.entry WHERE changeset_id = c.id)"
        ).fetchone() == (0,)
        audit_verify(new, "db", "--dsn", new.dsn(), check=0)
    # And once more, back.
    dump = new.run([new.bin("pg_dump"), "postgres"]).stdout
    old.create_db("again")
    restore(dump, old, "again")
    with old.connect("again") as conn:
        assert_new_ledger(conn, last_note(conn))
        assert len(ledgers(conn)) == 3


def test_restore_beside_the_original(new_cluster):
    """In the same cluster, as another database: both go on, under different origins."""
    cluster = new_cluster()
    with cluster.connect() as conn:
        prepare(conn)
        kept = last_note(conn)
    cluster.create_db("restored")
    restore(cluster.run([cluster.bin("pg_dump"), "postgres"]).stdout, cluster, "restored")
    cluster.create_db("copied", "postgres")
    for name in ("restored", "copied"):
        with cluster.connect(name) as conn:
            assert_new_ledger(conn, kept)
    with cluster.connect() as conn:
        conn.execute("INSERT INTO t VALUES (2000)")
        seal(conn)
        assert len(ledgers(conn)) == 1
        assert_intact(conn, kept)


def test_plain_restart_goes_on(new_cluster):
    cluster = new_cluster()
    with cluster.connect() as conn:
        prepare(conn)
        kept = last_note(conn)
    for mode in ("fast", "immediate"):
        cluster.restart(mode)
        with cluster.connect() as conn:
            conn.execute("UPDATE t SET v = v || 'x' WHERE id = 3")
            seal(conn)
            assert len(ledgers(conn)) == 1
            assert_intact(conn, kept)
    # A database with another name is the same ledger.
    with cluster.connect("template1") as conn:
        conn.execute("ALTER DATABASE postgres RENAME TO renamed")
    with cluster.connect("renamed") as conn:
        conn.execute("INSERT INTO t VALUES (3000)")
        seal(conn)
        assert len(ledgers(conn)) == 1
        assert_intact(conn, kept)


@pytest.fixture
def standby(new_cluster):
    """A primary and a physical standby of it."""
    primary = new_cluster({"wal_level": "replica", "max_wal_senders": "5", "hot_standby": "on"})
    with primary.connect() as conn:
        prepare(conn)
    folder = primary.folder / "standby"
    primary.run([primary.bin("pg_basebackup"), "-D", folder, "-R", "-X", "stream", "-c", "fast"])
    yield primary, *started(primary, folder, 5433)
    primary.run([primary.bin("pg_ctl"), "stop", "-D", folder, "-m", "immediate"], check=False)


def started(primary, folder, port):
    with open(folder / "postgresql.conf", "a", encoding="utf-8") as conf:
        conf.write(f"port = {port}\n")
    primary.run([primary.bin("pg_ctl"), "start", "-D", folder, "-w", "-l", folder / "log"], capture=False)
    return folder, port


def test_standby_and_promotion(standby):
    """A standby verifies. Promoted while the primary has sealed more than it got, it begins a ledger of its own."""
    primary, folder, port = standby
    with primary.connect() as conn, primary.connect(port=port) as other:
        kept = last_note(conn)
        deadline = time.monotonic() + 60
        while other.execute("SELECT count(*) FROM audit.checkpoint").fetchone() != (2,):
            assert time.monotonic() < deadline
        assert_intact(other, kept)
        (changeset,) = other.execute("SELECT id FROM audit.changeset LIMIT 1").fetchone()
        other.execute("SELECT audit.prove(%s, 0), audit.prove_consistency(3)", [changeset])
        with pytest.raises(Exception) as caught:
            seal(other)
        assert caught.value.sqlstate == "25006"
        primary.run([primary.bin("pg_ctl"), "promote", "-D", folder, "-w"])
        conn.execute("UPDATE t SET v = 'lost' WHERE id = 5")
        seal(conn)
        assert_intact(conn, kept)
        assert seal(other) == 0
        assert_new_ledger(other, kept)
        assert Note(last_note(conn)).origin != Note(last_note(other)).origin


def test_point_in_time_recovery(new_cluster):
    """To before the last checkpoint that was published: what comes after goes to another ledger."""
    archive = None
    cluster = new_cluster({"wal_level": "replica", "max_wal_senders": "5"})
    archive = cluster.folder / "archive"
    archive.mkdir()
    shutil.chown(archive, cluster.system_user.pw_name if cluster.system_user else None)
    cluster.configure(archive_mode="on", archive_command=f"cp %p {archive}/%f")
    cluster.restart()
    with cluster.connect() as conn:
        prepare(conn)
        kept = last_note(conn)
        folder = cluster.folder / "recovered"
        cluster.run([cluster.bin("pg_basebackup"), "-D", folder, "-X", "none", "-c", "fast"])
        (target,) = conn.execute("SELECT pg_create_restore_point('before')::text").fetchone()
        conn.execute("UPDATE t SET v = 'after' WHERE id = 6")
        seal(conn)
        published = last_note(conn)
        conn.execute("SELECT pg_switch_wal()")
        deadline = time.monotonic() + 60
        while conn.execute("SELECT last_archived_wal >= pg_walfile_name(%s::pg_lsn) FROM pg_stat_archiver",
                           [target]).fetchone() != (True,):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with open(folder / "postgresql.conf", "a", encoding="utf-8") as conf:
        conf.write(f"archive_mode = off\nrestore_command = 'cp {archive}/%f %p'\nrecovery_target_name = 'before'\n"
                   "recovery_target_action = 'promote'\n")
    (folder / "recovery.signal").touch()
    started(cluster, folder, 5434)
    try:
        with cluster.connect(port=5434) as conn:
            while conn.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
                time.sleep(0.05)
            assert last_note(conn) == kept
            assert_new_ledger(conn, kept)
            # The checkpoint published before the recovery shows what is gone.
            findings = conn.execute("SELECT finding FROM audit.verify(checkpoint => %s)", [published]).fetchall()
            assert findings == [("checkpoint inconsistent",)]
    finally:
        cluster.run([cluster.bin("pg_ctl"), "stop", "-D", folder, "-m", "immediate"], check=False)


def test_synchronous_standby(standby):
    """What is published is on the synchronous standby, also where those who wrote it did not wait for that."""
    primary, folder, port = standby
    with primary.connect() as conn, primary.connect() as sealer, primary.connect() as listener:
        notes = []
        listener.add_notify_handler(lambda notice: notes.append(Note(notice.payload).size))
        listener.execute("LISTEN audit_checkpoint")
        conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        conn.execute("SELECT pg_reload_conf()")
        wait_for(lambda: conn.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone())
        seal(sealer)
        listener.execute("SELECT 1")
        notes.clear()
        kept = last_note(conn)
        primary.run([primary.bin("pg_ctl"), "stop", "-D", folder, "-m", "fast", "-w"])
        conn.execute("SET synchronous_commit = local; UPDATE t SET v = 'not there yet' WHERE id = 5")
        published = primary.log.count("audit checkpoint:")
        with ThreadPoolExecutor() as pool:
            sealing = pool.submit(seal, sealer)
            wait_for(lambda: conn.execute(
                "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'", [sealer.info.backend_pid]).fetchone())
            assert last_note(conn) == kept and not sealing.done()
            assert primary.log.count("audit checkpoint:") == published
            listener.execute("SELECT 1")
            assert notes == []
            primary.run([primary.bin("pg_ctl"), "start", "-D", folder, "-w", "-l", folder / "log"], capture=False)
            size = sealing.result(timeout=60)
        assert Note(last_note(conn)).size == size
        wait_for(lambda: primary.log.count("audit checkpoint:") == published + 1)
        wait_for(lambda: listener.execute("SELECT 1") and notes)
        assert notes == [size]
        kept = last_note(conn)
        # The primary is lost there and then.
        primary.kill9()
    primary.run([primary.bin("pg_ctl"), "promote", "-D", folder, "-w"])
    with primary.connect(port=port) as other:
        assert other.execute("SELECT v FROM t WHERE id = 5").fetchone() == ("not there yet",)
        assert_intact(other, kept)
        other.execute("SET synchronous_commit = local")
        other.execute("ALTER SYSTEM RESET synchronous_standby_names")
        other.execute("SELECT pg_reload_conf()")
        wait_for(lambda: other.execute("SHOW synchronous_standby_names").fetchone() == ("",))
        assert_new_ledger(other, kept)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_published_is_durable(new_cluster):
    """Also where those who wrote it did not wait for the disk: after a crash the checkpoint still holds."""
    cluster = new_cluster({"synchronous_commit": "off", "wal_writer_delay": "10s", "fsync": "on"})
    with cluster.connect() as conn:
        prepare(conn)
        for i in range(20):
            conn.execute("UPDATE t SET v = v || 'x' WHERE id = %s", [i + 1])
        size = seal(conn)
        kept = last_note(conn)
    cluster.kill9()
    cluster.start()
    with cluster.connect() as conn:
        assert Note(last_note(conn)).size == size
        assert_intact(conn, kept)
