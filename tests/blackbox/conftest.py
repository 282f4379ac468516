"""Fixtures of the black-box tests: what a test may ask for.

Run with Debian's interpreter, against the PostgreSQL trees that `scripts/pg-versions` and
`scripts/build` keep in the build folder:

    make test                                        everything, as CI runs it
    /usr/bin/python3 -m pytest tests/blackbox        all black-box tests on PostgreSQL 15
    /usr/bin/python3 -m pytest tests/blackbox/test_crash.py --pg 17 -k name

The version comes from `--pg N`, else from the environment's AUDIT_PG, else 15. pytest may run as
root: the servers drop to an unprivileged user (see cluster.py). Files that the *server* reads or
writes (COPY … FROM '/path') therefore go to `cluster.scratch`, not to pytest's tmp_path.

cluster (session scope)
    A running private `Cluster`, shared by all tests of the run: Unix socket only, trust, UTF8,
    locale C, TimeZone UTC, fsync off, wal_level=logical, max_prepared_transactions=20; the
    superuser is `postgres`. Do not stop or reconfigure it: take `new_cluster` for that. Roles are
    shared by all its databases: name them after `db.name`, or use `role`.

db
    A fresh database per test, made from a template that has CREATE EXTENSION audit_ext; dropped
    afterwards with its connections, prepared transactions, subscriptions and slots.
      .name, .cluster
      .connect(**kw) -> psycopg.Connection, autocommit=True unless told otherwise; kw as for
                        psycopg.connect (user=, options=, autocommit=, row_factory=, …).
                        Closed at the end of the test.
      .create_extension(name)   CREATE EXTENSION IF NOT EXISTS … CASCADE as superuser; skips the
                        test where this server does not ship it (PostgreSQL 16 of the test trees
                        has no contrib, version 15 has all).
      .psql(sql, **kw) -> str    runs psql -X -A -t, returns its output, raises on error.

conn
    `db.connect()`: a superuser's psycopg connection with autocommit, extension created.

new_db(name=None, extension=True) -> Db
    Factory of further databases on the shared cluster, e.g. for logical replication.

new_cluster(conf=None, **kw) -> Cluster
    Factory of started private clusters, with the default settings plus the dict `conf`
    ({"fsync": "on"}); removed at the end of the test. `create_db(name)` there is the caller's.

preloaded (module scope), server
    A running private `Cluster` with the library in shared_preload_libraries (queuelib.py), shared by the tests of a
    module; as `server`, a failed test shows its log. Databases on it are the test's own.

role(options="LOGIN") -> str
    Factory of roles with unique names, dropped after the test with what they own in `db`.

class Cluster (cluster.py), beside what psycopg needs:
    start(), stop(mode="fast"), restart(mode="fast"), reload(), kill9() (postmaster and all),
    running, await_ready() (after a backend's crash), connect(dbname="postgres", **kw)
    (autocommit=True), psql(sql, dbname=…),
    create_db(name, template=None), drop_db(name), configure(**settings) + reload() or restart(),
    dsn(dbname), env (dict with PGHOST/PGPORT/PGUSER for subprocesses), bin("pgbench") -> path,
    run([...], **kw) (subprocess as the server's user), version (int, 15), port, socket_dir,
    data_dir, log (text of the server log), scratch (folder the server's user can read and write).

Markers: `@pytest.mark.long` is left out unless `--long` is given (`make test-long`).
"""

from __future__ import annotations

import itertools
import os
import signal

import psycopg
import pytest
from psycopg import sql

for name in [name for name in os.environ if name.startswith("PG")]:
    del os.environ[name]  # PGHOST and the like would reach the programs that the tests start

from cluster import Cluster, pg_config_of  # noqa: E402
from queuelib import PRELOAD  # noqa: E402

TEMPLATE = "audit_template"


def pytest_addoption(parser):
    parser.addoption("--pg", default=os.environ.get("AUDIT_PG", "15"), help="PostgreSQL version")
    parser.addoption("--long", action="store_true", help="also tests marked long")


def pytest_configure(config):
    os.environ["AUDIT_PG"] = str(config.getoption("--pg"))  # for Cluster() made by hand
    config.addinivalue_line("markers", "long: takes minutes; runs with --long only")
    # A plain kill ends a run like Ctrl-C does: with its clusters removed.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        chosen = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def pytest_report_header(config):
    return f"PostgreSQL {config.getoption('--pg')}: {pg_config_of(config.getoption('--pg'))}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what the servers logged meanwhile."""
    report = (yield).get_result()
    if report.failed:
        for cluster, offset in getattr(item, "clusters", {}).items():
            lines = cluster.log[offset:].splitlines()
            report.sections.append((f"server log, last lines ({cluster.folder})", "\n".join(lines[-60:])))


def _watch(request, cluster):
    """Has the report of a failed test show this cluster's log from here on."""
    request.node.__dict__.setdefault("clusters", {})[cluster] = len(cluster.log)


class Db:
    """A database of one test: see the top of this file."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.name = name
        self.dropped = False
        self._connections = []

    def connect(self, **kw) -> psycopg.Connection:
        connection = self.cluster.connect(self.name, **kw)
        self._connections.append(connection)
        return connection

    def create_extension(self, name):
        identifier = sql.Identifier(name)
        with self.cluster.connect(self.name) as connection:
            known = connection.execute("SELECT FROM pg_available_extensions WHERE name = %s", [name])
            if known.rowcount == 0:
                pytest.skip(f"extension {name} does not come with this PostgreSQL {self.cluster.version}")
            connection.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE").format(identifier))

    def psql(self, text, **kw) -> str:
        return self.cluster.psql(text, dbname=self.name, **kw)

    def drop(self):
        if self.dropped:
            return
        self.dropped = True
        for connection in self._connections:
            connection.close()
        if not self.cluster.running:
            self.cluster.start()
        self.cluster.await_ready()  # a test that crashed it has failed for that; the next one may pass
        self._release()
        self.cluster.drop_db(self.name)

    def _release(self):
        """Removes what would keep the database from being dropped."""
        with self.cluster.connect(self.name) as connection:

            def names(query):
                return connection.execute(query.format("= current_database()")).fetchall()

            def run(query, name):
                connection.execute(sql.SQL(query).format(sql.Identifier(name), text=sql.Literal(name)))

            for (name,) in names(
                "SELECT subname FROM pg_subscription JOIN pg_database d ON subdbid = d.oid WHERE datname {}"
            ):
                run("ALTER SUBSCRIPTION {} DISABLE", name)
                run("ALTER SUBSCRIPTION {} SET (slot_name = NONE)", name)
                run("DROP SUBSCRIPTION {}", name)
            for (name,) in names("SELECT gid FROM pg_prepared_xacts WHERE database {}"):
                run("ROLLBACK PREPARED {text}", name)
            for name, pid in names("SELECT slot_name, active_pid FROM pg_replication_slots WHERE database {}"):
                if pid is not None:
                    connection.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
                run("SELECT pg_drop_replication_slot({text})", name)


@pytest.fixture(scope="session")
def cluster():
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _template(cluster):
    cluster.create_db(TEMPLATE)
    with cluster.connect(TEMPLATE) as connection:
        connection.execute("CREATE EXTENSION audit_ext")
    return TEMPLATE


_numbers = itertools.count(1)


@pytest.fixture
def new_db(cluster, request):
    made = []

    def make(name=None, extension=True):
        # Only who asks for the extension depends on its being there.
        template = request.getfixturevalue("_template") if extension else None
        db = Db(cluster, name or f"test{next(_numbers)}")
        cluster.create_db(db.name, template)
        made.append(db)
        return db

    _watch(request, cluster)
    yield make
    for db in reversed(made):
        db.drop()


@pytest.fixture
def db(new_db):
    return new_db()


@pytest.fixture
def conn(db):
    return db.connect()


@pytest.fixture
def new_cluster(request):
    made = []

    def make(conf=None, **kw):
        cluster = Cluster(conf=conf, **kw)
        made.append(cluster)
        cluster.start()
        _watch(request, cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.remove()


@pytest.fixture(scope="module")
def preloaded():
    with Cluster(conf=PRELOAD) as cluster:
        yield cluster


@pytest.fixture
def server(preloaded, request):
    _watch(request, preloaded)
    return preloaded


@pytest.fixture
def role(request):
    db = request.getfixturevalue("db")
    made = []

    def make(options="LOGIN"):
        name = f"{db.name}_role{len(made) + 1}"
        with db.cluster.connect() as connection:
            connection.execute(sql.SQL("CREATE ROLE {} ").format(sql.Identifier(name)) + sql.SQL(options))
        made.append(name)
        return name

    yield make
    for name in made:
        for dbname in (db.name, "postgres"):
            with db.cluster.connect(dbname) as connection:
                connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
    for name in made:
        with db.cluster.connect() as connection:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
