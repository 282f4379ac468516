"""pg_upgrade from 17 to 18: audited tables stay audited, the log verifies, and a new ledger goes on from the old one.

Not from 15: Debian's 15.20 marks each column of each table with an option, pg_attver, that no server of a later version in the
test trees knows, so that pg_upgrade from it fails with any table.
"""

import subprocess
from pathlib import Path

import pytest
from auditlib import check_integrity, events, replay
from cluster import Cluster, pg_config_of
from ledgerlib import assert_intact, audit_verify, last_note, seal
from tiny_verifier import Note

SETUP = """
    CREATE EXTENSION audit_ext;
    CREATE TABLE t (id int PRIMARY KEY, gone int, secret text, v text);
    ALTER TABLE t DROP COLUMN gone;
    CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
    CREATE SCHEMA app;
    CREATE TABLE app.a (id int PRIMARY KEY);
    CREATE TABLE audit.event_2020 PARTITION OF audit.event FOR VALUES FROM ('2020-01-01') TO ('2100-01-01');
    SELECT audit.enable('t', mask_columns => '{secret}');
    SELECT audit.enable('p');
    SELECT audit.enable_schema('app');
    SELECT audit.add_action_rule('t', 'UPDATE', 'thing.changed', columns => '{v}');
    INSERT INTO t SELECT g, 'secret', repeat('x', 5000) FROM generate_series(1, 50) g;
    INSERT INTO p SELECT g, 'x' FROM generate_series(0, 999) g;
    SELECT audit.log_event('thing.noticed', 'thing', '1', '{}');
    SELECT audit.seal();
    UPDATE t SET v = 'not sealed' WHERE id = 1;
"""

CONTENT = "SELECT count(*), md5(string_agg(l::text, '' ORDER BY changeset_id, seq)) FROM audit.log l"


@pytest.fixture
def upgraded(request):
    if request.config.getoption("--pg") != "15" or not all(Path(pg_config_of(n)).exists() for n in (17, 18)):
        pytest.skip("needs versions 17 and 18; once in a run")
    conf = {"shared_preload_libraries": "audit_ext"}
    old, new = Cluster(pg_config_of(17), conf), Cluster(pg_config_of(18), conf)
    try:
        with old.start().connect() as conn:
            conn.execute(SETUP)
            kept, content = last_note(conn), conn.execute(CONTENT).fetchone()
        old.stop()
        # As initdb of version 18 has it by default.
        old.run([old.bin("pg_checksums"), "--enable", "--no-sync", "-D", old.data_dir])
        command = [new.bin("pg_upgrade"), "-b", old.bin_dir, "-B", new.bin_dir, "-d", old.data_dir, "-D", new.data_dir]
        try:
            new.run([*command, "-U", new.user, "-s", new.scratch], cwd=new.scratch)
        except subprocess.CalledProcessError as error:
            for log in new.data_dir.glob("pg_upgrade_output.d/*/log/*"):
                error.add_note(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}")
            raise
        yield new.start(), kept, content
    finally:
        new.remove()
        old.remove()


def test_upgrade(upgraded):
    new, kept, content = upgraded
    with new.connect() as conn:
        assert conn.execute("SHOW server_version_num").fetchone()[0].startswith("18")
        assert conn.execute(CONTENT).fetchone() == content
        assert_intact(conn, kept)
        check_integrity(conn)
        replay(conn, "p")
        # Oids stay, and with them what a policy says of columns by number.
        conn.execute("ALTER TABLE t RENAME COLUMN secret TO hidden; ALTER TABLE t RENAME COLUMN v TO w")
        conn.execute("INSERT INTO t VALUES (100, 'secret', 'x'); UPDATE t SET w = 'y' WHERE id = 100")
        conn.execute("UPDATE p SET v = 'y' WHERE id < 10; CREATE TABLE app.b (id int); INSERT INTO app.b VALUES (1)")
        replay(conn, "p")
        found = events(conn, "t")[-2:] + events(conn, "app.b")
        assert [(e.operation, e.action) for e in found] == [("INSERT", None), ("UPDATE", "thing.changed"), ("INSERT", None)]
        assert found[1].image["hidden"] == "***"
        assert seal(conn) > 0
        # A new ledger, which names the last checkpoint of the old one, and takes in what that had not sealed.
        (canonical,) = conn.execute("SELECT audit.canonical_ledger(l) FROM audit.ledger l WHERE era = 2").fetchone()
        assert f'"{Note(kept).origin}", {Note(kept).size}' in canonical
        unsealed = "SELECT count(*) FROM audit.changeset c WHERE NOT EXISTS (SELECT FROM audit.entry WHERE changeset_id = c.id)"
        assert conn.execute(unsealed).fetchone() == (0,)
        assert_intact(conn, kept)
        assert_intact(conn, last_note(conn))
        check_integrity(conn)
    audit_verify(new, "db", "--dsn", new.dsn(), check=0)
