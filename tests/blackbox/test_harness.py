"""The harness itself: what the other tests take for granted."""

import psycopg
import pytest
from psycopg import errors


def test_a_test_gets_a_database_with_the_extension(conn, db):
    row = conn.execute("SELECT current_database(), extname FROM pg_extension WHERE extname = 'audit_ext'")
    assert row.fetchone() == (db.name, "audit_ext")


def test_no_tcp_port(cluster):
    assert cluster.psql("SHOW listen_addresses") == ""


def test_server_does_not_run_as_root(cluster):
    assert cluster.run(["id", "-u"]).stdout.strip() != "0"
    assert (cluster.data_dir / "postmaster.pid").stat().st_uid != 0


def test_database_is_dropped_in_spite_of_a_prepared_transaction(new_db):
    db = new_db()
    with db.connect(autocommit=False) as connection:
        connection.execute("CREATE TABLE t ()")
        connection.execute("PREPARE TRANSACTION 'left over'")
        connection.autocommit = True
    db.drop()
    with pytest.raises(psycopg.OperationalError):
        db.connect()
    new_db(db.name)


def test_roles_of_a_test(db, role):
    name = role()
    with db.connect(user=name) as connection:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("CREATE ROLE other")


def test_killed_cluster_recovers(new_cluster):
    cluster = new_cluster({"work_mem": "5MB"})
    assert cluster.psql("SHOW work_mem") == "5MB"
    cluster.psql("CREATE TABLE t AS SELECT 1 AS n")
    cluster.kill9()
    assert not cluster.running
    cluster.start()
    assert cluster.psql("SELECT n FROM t") == "1"
    assert "automatic recovery in progress" in cluster.log
