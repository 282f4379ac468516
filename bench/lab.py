"""The place where the bench measures: one private cluster, and fresh copies of prepared databases.

A `State` says what a database holds before a measurement. It is built once; each variant's trail is
added to a copy once; each measurement then gets a copy of that, so that all rounds and all variants
begin with equal tables, indexes and hint bits, and an empty log.
"""

import itertools
import os
import platform
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    # Keeps segments to recycle, so that no backend has to fill new ones with zeros while it is measured.
    "min_wal_size": "2GB",
    "wal_level": "replica",
    "checkpoint_timeout": "1h",
    "bgwriter_lru_maxpages": "0",
    "fsync": "off",
    "full_page_writes": "on",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "log_checkpoints": "off",
}
"""Settings of the cluster; those of the pgbench workload that differ are in its own table's title."""


@dataclass(frozen=True)
class State:
    """What a database holds: `build` fills it, `tables` are the ones to audit, `finish` runs when a trail is there."""

    name: str
    tables: tuple
    build: Callable
    finish: Callable | None = None


class Lab:
    def __init__(self, cluster, variants):
        self.cluster, self.variants = cluster, variants
        self.admin = cluster.connect("postgres")
        self._templates = {}
        self._numbers = itertools.count(1)
        with cluster.connect("template1") as conn:
            # In every database, for waits.py; in the administrator's, for measure.py. Not every installation has contrib.
            for extension, place in (("pg_buffercache", conn), ("pg_walinspect", self.admin)):
                if conn.execute("SELECT FROM pg_available_extensions WHERE name = %s", [extension]).fetchone() is not None:
                    place.execute(f"CREATE EXTENSION {extension}")

    def connect(self, dbname, variant, **settings):
        return self.cluster.connect(dbname, options=variant.options(**settings))

    def machine(self):
        """Where and with what figures are taken."""
        lines = (line.partition(":") for line in open("/proc/cpuinfo", encoding="utf-8"))
        return {
            "processor": next((value.strip() for key, _, value in lines if key.startswith("model name")), platform.machine()),
            "processors": os.cpu_count(),
            "kernel": platform.release(),
            "postgresql": self.admin.execute("SHOW server_version").fetchone()[0],
            "settings": SETTINGS,
        }

    def restart(self, **settings):
        """Restarts the server with further settings. There must be no session but the administrator's."""
        self.admin.close()
        self.cluster.configure(**settings)
        self.cluster.restart()
        self.admin = self.cluster.connect("postgres")

    def checkpoint(self):
        self.admin.execute("CHECKPOINT")

    def touch_buffers(self):
        """Uses every shared buffer once: the kernel gives memory at first touch, and would charge it to whoever comes first."""
        self.admin.execute("CREATE DATABASE touch")
        with self.connect("touch", self.variants[0]) as conn:
            conn.execute("CREATE TABLE page (filler text)")
            conn.execute("ALTER TABLE page ALTER filler SET STORAGE plain")
            conn.execute("INSERT INTO page SELECT repeat('x', 8000) FROM generate_series(1, 131072)")
        self.admin.execute("DROP DATABASE touch")
        self.checkpoint()

    def _template(self, state, variant):
        key = (state.name, variant.name)
        if key not in self._templates:
            base = self._templates.get((state.name, None))
            if base is None:
                base = self._create("template1")
                with self.cluster.connect(base) as conn:
                    state.build(conn)
                    conn.execute("VACUUM (FREEZE, ANALYZE)")
                self._templates[state.name, None] = base
            name = self._create(base)
            with self.connect(name, variant) as conn:
                variant.install(conn, state.tables)
                if state.finish and variant.audits:
                    state.finish(conn)
            self._templates[key] = name
        return self._templates[key]

    def _create(self, template):
        name = f"bench_{next(self._numbers)}"
        # file_copy: the copy writes no WAL of its own.
        self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def copy(self, state, variant):
        """A fresh copy of the state with the variant's trail."""
        return self._create(self._template(state, variant))

    @contextmanager
    def database(self, state, variant):
        """A copy that is dropped afterwards."""
        name = self.copy(state, variant)
        try:
            yield name
        finally:
            if variant.teardown:
                with self.connect(name, variant) as conn:
                    conn.execute(variant.teardown)
            self.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def read(conn, tables):
    """Reads tables and what they keep out of line into shared buffers, maps those buffers into this backend and sets hint bits."""
    for table in tables:
        conn.execute(f"SELECT count(*) FROM {table}")
    query = "SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = ANY (%s::regclass[]) AND reltoastrelid <> 0"
    for (toast,) in conn.execute(query, [list(tables)]).fetchall():
        conn.execute(f"SELECT count(*) FROM {toast}")


def warm(conn, tables):
    """Reads the database's own tables, and the key's index of those given."""
    conn.execute("SET enable_seqscan = off")
    for table in tables:
        conn.execute(f"SELECT count(*) FROM (SELECT * FROM {table} ORDER BY id OFFSET 0) AS ordered")
    conn.execute("RESET enable_seqscan")
    query = "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    read(conn, [name for (name,) in conn.execute(query)])


def desummarize(conn, tables):
    """Leaves the first range of BRIN indexes without a summary, as the log's own are: keeping one up to date costs more than the rest."""
    conn.execute(
        """
        SELECT brin_desummarize_range(indexrelid, 0)
          FROM pg_index JOIN pg_class c ON c.oid = indexrelid JOIN pg_am a ON a.oid = c.relam
         WHERE indrelid = ANY (%s::oid[]) AND amname = 'brin'
        """,
        [list(tables)],
    )
