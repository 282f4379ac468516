"""Values at the edges of the record: keys that need escaping, addresses of TCP clients, arguments out of range."""

import os
import socket

import pytest
from auditlib import check_integrity, sqlstate
from cluster import Cluster, pg_config_of

SPECIAL = ['plain', 'with "quotes"', "back\\slash", "tab\tand\nline\r", "\x01\x08\x0c\x1f", "", "ünïcödé 🙂", '"', "\\", "\\u0041"]


@pytest.mark.parametrize("key", SPECIAL)
def test_keys_with_special_characters(conn, key):
    conn.execute("CREATE TABLE item (id text PRIMARY KEY, n int)")
    conn.execute("SELECT audit.enable('item')")
    conn.execute("INSERT INTO item VALUES (%s, 1)", [key])
    conn.execute("UPDATE item SET n = 2")
    conn.execute("UPDATE item SET id = 'other'")
    conn.execute("UPDATE item SET id = %s", [key])
    rows = conn.execute(
        "SELECT resource_id, row_image ->> 'id', details ->> 'old_resource_id' FROM audit.event ORDER BY occurred_at, seq"
    ).fetchall()
    assert rows == [(key, key, None), (key, key, None), ("other", "other", key), (key, key, "other")]
    check_integrity(conn)


def test_keys_of_several_columns(conn):
    conn.execute("CREATE TABLE item (a text, b int, c text, PRIMARY KEY (c, a))")
    conn.execute("SELECT audit.enable('item')")
    for first in SPECIAL:
        conn.execute("INSERT INTO item VALUES (%s, 1, 'x')", [first])
    rows = conn.execute(
        "SELECT resource_id, jsonb_build_array(row_image -> 'c', row_image -> 'a')::text FROM audit.event"
    ).fetchall()
    assert len(rows) == len(SPECIAL) and all(found == wanted for found, wanted in rows)


def test_soft_delete_that_changes_the_key(conn):
    conn.execute("CREATE TABLE item (id int PRIMARY KEY, gone boolean DEFAULT false)")
    conn.execute("SELECT audit.enable('item', soft_delete_column => 'gone')")
    conn.execute("INSERT INTO item VALUES (1)")
    conn.execute("UPDATE item SET id = 2, gone = true")
    details = conn.execute("SELECT details FROM audit.event WHERE operation = 'UPDATE'").fetchone()[0]
    assert details == {"soft_delete": True, "old_resource_id": "1"}
    check_integrity(conn)


def test_leaf_of_another_size_is_refused(conn):
    for leaves in (["\\x00"], ["\\x" + "00" * 33], [None]):
        with sqlstate("22023"):
            conn.execute("SELECT audit.merkle_root(%s::bytea[])", [leaves])


def test_null_among_named_columns_is_refused(conn):
    conn.execute("CREATE TABLE item (id int PRIMARY KEY)")
    for option in ("exclude_columns", "mask_columns", "require_context"):
        with sqlstate("22004"):
            conn.execute(f"SELECT audit.enable('item', {option} => '{{NULL}}')")
    with sqlstate("22004"):
        conn.execute("SELECT audit.enable(NULL)")


def _free_port(family, host):
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def test_address_of_a_tcp_client(family, host):
    try:
        port = _free_port(family, host)
    except OSError as error:
        assert family == socket.AF_INET6, error
        pytest.skip("no IPv6 here")
    conf = {"listen_addresses": host, "port": port}
    cluster = Cluster(pg_config_of(os.environ.get("AUDIT_PG", "15")), conf)
    cluster.port = port
    with cluster:
        with cluster.connect(host=host, port=port) as conn:
            conn.execute("CREATE EXTENSION audit_ext")
            conn.execute("CREATE TABLE item (id int PRIMARY KEY)")
            conn.execute("SELECT audit.enable('item')")
            conn.execute("INSERT INTO item VALUES (1)")
            found = conn.execute("SELECT host(client_addr), client_port FROM audit.changeset").fetchone()
            assert found == (host, conn.execute("SELECT inet_client_port()").fetchone()[0])
            check_integrity(conn)
