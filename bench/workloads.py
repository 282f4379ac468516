"""The workloads. Each yields, per round, one sample of every variant; `run` interleaves them.

A round goes through the variants in turn, beginning with another one each time, so that what the
machine does beside the bench falls on all of them.
"""

import os
import re
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import measure
import tables
import variants
from lab import warm
from measure import Meter, Sample

FLOOR = "floor"
"""Name under which the floor's samples are kept: see `floor`."""


class Wrong(Exception):
    """A variant did not do what it was measured for."""


@dataclass
class Result:
    """The samples of one workload: variant's name to one sample per round."""

    name: str
    title: str
    unit: str
    kind: str
    events_per_unit: int = 1
    samples: dict = field(default_factory=dict)

    def add(self, variant, sample):
        self.samples.setdefault(variant, []).append(sample)


def rotated(sequence, by):
    by %= len(sequence)
    return [*sequence[by:], *sequence[:by]]


def check_events(variant, conn, before, expected):
    if variant.events:
        found = variant.count_events(conn) - before
        if found != expected:
            raise Wrong(f"{variant.name} recorded {found} events, not {expected}")


class Bulk:
    """One statement that changes many rows."""

    def __init__(self, name, title, state, statement, rows):
        self.statement, self.rows, self.state = statement, rows, state
        self.names = (name,)
        self.results = (Result(name, f"{title}, {rows:,} rows", "row", "bulk"),)

    def round(self, lab, number, selected):
        for variant in rotated(lab.variants, number):
            with lab.database(self.state, variant) as name, lab.connect(name, variant) as conn:
                self.results[0].add(variant.name, self._measure(lab, variant, conn))
                if variant.name == "audit_ext":
                    self.results[0].add(FLOOR, floor(lab, variant, conn, self.rows))

    def _measure(self, lab, variant, conn):
        warm(conn, self.state.tables)
        log = variant.log_tables(conn)
        size = measure.size_of(conn, log)
        meter = Meter(lab.admin, measure.backend_pid(conn))
        lab.checkpoint()
        with meter.running():
            changed = conn.execute(self.statement).rowcount
        if changed != self.rows:
            raise Wrong(f"the statement changed {changed} rows, not {self.rows}")
        check_events(variant, conn, 0, self.rows)
        return meter.sample(self.rows, measure.size_of(conn, log) - size)


def floor(lab, variant, conn, rows):
    """The price of the bytes alone: the log's finished rows inserted once more, into tables of the same definition and indexes."""
    log = variant.log_tables(conn)
    conn.execute("CREATE SCHEMA floor")
    pairs = []
    for oid in log:
        name = conn.execute("SELECT %s::regclass::text", [oid]).fetchone()[0]
        conn.execute(f"CREATE TABLE floor.copy_{oid} (LIKE {name} INCLUDING ALL)")
        # Sets the hint bits, which the copy would otherwise pay for.
        conn.execute(f"SELECT count(*) FROM {name}")
        pairs.append((name, f"floor.copy_{oid}"))
    copies = [row[0] for row in conn.execute("SELECT oid FROM pg_class WHERE relnamespace = 'floor'::regnamespace AND relkind = 'r'")]
    size = measure.size_of(conn, copies)
    meter = Meter(lab.admin, measure.backend_pid(conn))
    lab.checkpoint()
    with meter.running():
        for name, copy in pairs:
            conn.execute(f"INSERT INTO {copy} OVERRIDING SYSTEM VALUE SELECT * FROM {name}")
    return meter.sample(rows, measure.size_of(conn, copies) - size)


class Single:
    """Rows inserted, updated and deleted by key: a prepared statement each, one statement a transaction.

    All variants' sessions stay open and take turns in short stretches, since a difference of a few
    microseconds drowns in what the machine's mood changes from one second to the next.
    """

    CHUNK = 250
    WARM_UP = 100
    PLACES = ", ".join(f"${n}" for n in range(1, 13))
    STATEMENTS = (
        ("single-insert", "INSERT", f"INSERT INTO {{table}} VALUES ({PLACES})"),
        ("single-update", "UPDATE of 1 of 12 columns", "UPDATE {table} SET amount = amount + 1 WHERE id = $1"),
        ("single-delete", "DELETE", "DELETE FROM {table} WHERE id = $1"),
    )

    def __init__(self, rows, count):
        self.rows, self.count, self.total = rows, count, count + self.WARM_UP
        self.state = tables.mixed_filled(rows)
        self.names = tuple(name for name, *_ in self.STATEMENTS)
        self.results = tuple(
            Result(name, f"{title} by key, {count:,} statements of one row, one a transaction", "statement", "single")
            for name, title, _ in self.STATEMENTS
        )

    def round(self, lab, number, selected):
        # All three run whatever is selected: each leaves the rows that the next one needs.
        parameters = self._parameters(lab)
        with ExitStack() as stack:
            tracks = [self._open(lab, stack, variant) for variant in lab.variants]
            for result, (_, _, statement), values in zip(self.results, self.STATEMENTS, parameters):
                for track in tracks:
                    track.statement, track.parameters = statement.format(table="item"), values
                self._measure(lab, number, result, tracks)
            for track in tracks:
                if track.name == "audit_ext":
                    self._floor(lab, stack, number, track, parameters)

    def _open(self, lab, stack, variant):
        name = stack.enter_context(lab.database(self.state, variant))
        conn = stack.enter_context(lab.connect(name, variant))
        warm(conn, self.state.tables)
        return Track(variant.name, variant, conn, variant.log_tables(conn))

    def _parameters(self, lab):
        """The parameters of each statement: new rows, then keys spread over the table."""
        query = tables.MIXED_ROWS.format(first=self.rows + 1, last=self.rows + self.total)
        with lab.cluster.connect("postgres") as conn:
            result = conn.pgconn.exec_(query.encode())
        insert = [[result.get_value(row, column) for column in range(12)] for row in range(self.total)]
        step = max(1, self.rows // self.total)
        keys = [[b"%d" % (1 + n * step % self.rows)] for n in range(self.total)]
        return insert, keys, keys

    def _measure(self, lab, number, result, tracks):
        for track in tracks:
            track.conn.pgconn.prepare(result.name.encode(), track.statement.encode())
            execute(track.conn, result.name, track.parameters[: self.WARM_UP])
            track.begin(lab)
        lab.checkpoint()
        for turn, first in enumerate(range(self.WARM_UP, self.total, self.CHUNK)):
            for track in rotated(tracks, number + turn):
                with track.meter.running():
                    execute(track.conn, result.name, track.parameters[first : first + self.CHUNK])
        for track in tracks:
            result.add(track.name, track.end(self.count))

    def _floor(self, lab, stack, number, audited, parameters):
        """The price of the bytes alone: the same statements, on a table nobody audits, which also insert the
        log's finished rows into tables of the same definition. Beside it the bare statements once more."""
        conn = audited.conn
        conn.execute("CREATE SCHEMA floor")
        conn.execute("CREATE TABLE floor.item (LIKE item INCLUDING ALL)")
        conn.execute("INSERT INTO floor.item " + tables.MIXED_ROWS.format(first=1, last=self.rows))
        stores = []
        for oid, name, columns in conn.execute(
            """
            SELECT attrelid, attrelid::regclass::text, string_agg(quote_ident(attname), ', ' ORDER BY attnum)
              FROM pg_attribute
             WHERE attrelid = ANY (%s) AND attnum > 0 AND NOT attisdropped
             GROUP BY attrelid
            """,
            [audited.log],
        ).fetchall():
            copy, stage = f"floor.copy_{oid}", f"floor.stage_{oid}"
            conn.execute(f"CREATE TABLE {copy} (LIKE {name} INCLUDING ALL)")
            conn.execute(f"CREATE TABLE {stage} AS SELECT row_number() OVER (ORDER BY ctid) - 1 AS nth, {columns} FROM {name}")
            conn.execute(f"ALTER TABLE {stage} ADD PRIMARY KEY (nth)")
            found = conn.execute(f"SELECT count(*) FROM {stage}").fetchone()[0]
            if found != 3 * self.total:
                raise Wrong(f"{name} has {found} rows, not one for each of {3 * self.total} statements")
            stores.append(f"INSERT INTO {copy} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {stage} WHERE nth = {{nth}}")
        conn.execute("VACUUM (FREEZE, ANALYZE)")
        copies = [row[0] for row in conn.execute("SELECT oid FROM pg_class WHERE relnamespace = 'floor'::regnamespace AND relname LIKE 'copy%' AND relkind = 'r'")]
        warm(conn, ["floor.item"])
        bare = self._open(lab, stack, variants.BARE)
        track = Track(FLOOR, variants.BARE, conn, copies)
        for step, (result, (_, _, statement), values) in enumerate(zip(self.results, self.STATEMENTS, parameters)):
            place = f"${len(values[0]) + 1}::bigint"
            writes = ", ".join(f"store_{n} AS ({store.format(nth=place)})" for n, store in enumerate(stores))
            track.statement = f"WITH {writes} " + statement.format(table="floor.item")
            track.parameters = [[*row, b"%d" % (step * self.total + n)] for n, row in enumerate(values)]
            bare.statement, bare.parameters = statement.format(table="item"), values
            both = Result(result.name + "-floor", "", "", "")
            self._measure(lab, number, both, [bare, track])
            (own,), (control,) = both.samples[FLOOR], both.samples["bare"]
            own.cpu_us -= control.cpu_us
            own.wall_us -= control.wall_us
            own.wal_bytes -= control.wal_bytes
            result.add(FLOOR, own)


@dataclass
class Track:
    """A session that runs one statement many times, by turns with others."""

    name: str
    variant: variants.Variant
    conn: object
    log: list
    statement: str = ""
    parameters: list = ()

    def begin(self, lab):
        self.events = self.variant.count_events(self.conn)
        self.size = measure.size_of(self.conn, self.log)
        self.meter = Meter(lab.admin, measure.backend_pid(self.conn))

    def end(self, count):
        check_events(self.variant, self.conn, self.events, count)
        return self.meter.sample(count, measure.size_of(self.conn, self.log) - self.size)


def execute(conn, name, parameters):
    """Runs a prepared statement once for each set of parameters, one transaction each."""
    pgconn, name = conn.pgconn, name.encode()
    for values in parameters:
        answer = pgconn.exec_prepared(name, values)
        if answer.command_tuples != 1:
            raise Wrong(f"{name.decode()}: {answer.error_message.decode() or 'no row changed'}")


class Pgbench:
    """pgbench's standard transaction (three UPDATEs, a SELECT and an INSERT) with all four tables audited."""

    EVENTS = 4

    def __init__(self, cluster, scale, seconds, clients):
        self.seconds = seconds
        self.state = tables.pgbench(cluster, scale)
        self.modes = [(count, sync) for sync in ("off", "on") for count in clients]
        self.names = tuple(f"pgbench-{count}-{'sync' if sync == 'on' else 'async'}" for count, sync in self.modes)
        self.results = tuple(
            Result(
                name,
                f"pgbench, scale {scale}, {count} client{'s' if count > 1 else ''}, synchronous_commit and fsync {sync}, {seconds} s",
                "transaction",
                "pgbench",
                self.EVENTS,
            )
            for name, (count, sync) in zip(self.names, self.modes)
        )

    def round(self, lab, number, selected):
        for result, (clients, sync) in zip(self.results, self.modes):
            if result.name not in selected:
                continue
            # Without fsync a synchronous commit would wait for nothing.
            lab.cluster.configure(fsync=sync)
            lab.cluster.reload()
            for variant in rotated(lab.variants, number):
                with lab.database(self.state, variant) as name:
                    result.add(variant.name, self._measure(lab, variant, name, clients, sync))
        lab.cluster.configure(fsync="off")
        lab.cluster.reload()

    def _measure(self, lab, variant, name, clients, sync):
        cluster = lab.cluster
        with lab.connect(name, variant) as conn:
            for table in self.state.tables:
                conn.execute(f"SELECT count(*) FROM {table}")
            log = variant.log_tables(conn)
            size = measure.size_of(conn, log)
            lab.checkpoint()
            cpu, wal = measure.reaped_seconds(cluster.pid), measure.wal_position(lab.admin)
            directory = cluster.scratch / "pgbench"
            cluster.run(["mkdir", directory])
            try:
                output = cluster.run(
                    [cluster.bin("pgbench"), "-n", "-M", "prepared", "-c", clients, "-j", clients, "-T", self.seconds]
                    + ["-l", "--log-prefix", directory / "log", name],
                    env={**os.environ, **cluster.env, "PGOPTIONS": variant.options(synchronous_commit=sync)},
                ).stdout
                latencies = sorted(
                    int(line.split()[2]) for file in directory.iterdir() for line in file.read_text().splitlines()
                )
            finally:
                shutil.rmtree(directory)
            self._await_exit(lab, name)
            transactions = len(latencies)
            cpu, wal = measure.reaped_seconds(cluster.pid) - cpu, measure.wal_position(lab.admin) - wal
            check_events(variant, conn, 0, transactions * self.EVENTS)
            size = measure.size_of(conn, log) - size
        return Sample(
            cpu_us=cpu * 1e6 / transactions,
            wall_us=sum(latencies) / transactions,
            wal_bytes=wal / transactions,
            log_heap=size.heap / transactions,
            log_index=size.index / transactions,
            log_toast=size.toast / transactions,
            tps=float(re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)[1]),
            latency_ms=sum(latencies) / transactions / 1000,
            p99_ms=latencies[min(transactions - 1, transactions * 99 // 100)] / 1000,
        )

    @staticmethod
    def _await_exit(lab, name):
        """Waits until the postmaster has reaped pgbench's backends, and so counts their time as its own children's."""
        deadline = time.monotonic() + 10
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'pgbench'"
        while lab.admin.execute(query, [name]).fetchone()[0]:
            if time.monotonic() > deadline:
                raise Wrong("pgbench's sessions do not end")
            time.sleep(0.01)
        time.sleep(0.05)


def all_of(cluster, size):
    """Every workload, in the order in which they are measured."""
    empty = tables.mixed_empty(size.rows, cluster.scratch)
    filled = tables.mixed_filled(size.rows)
    copy = f"COPY item FROM '{tables.copy_file(cluster.scratch)}'"
    return [
        Bulk("bulk-insert", "INSERT … SELECT, 12-column table", empty, "INSERT INTO item SELECT * FROM source", size.rows),
        Bulk("bulk-copy", "COPY, 12-column table", empty, copy, size.rows),
        Bulk("bulk-update", "UPDATE of 1 of 12 columns", filled, "UPDATE item SET amount = amount + 1", size.rows),
        Bulk("bulk-delete", "DELETE, 12-column table", filled, "DELETE FROM item", size.rows),
        Bulk("wide-update", "UPDATE of 1 of 100 columns", tables.wide(size.wide_rows), "UPDATE wide SET counter = counter + 1", size.wide_rows),
        Single(size.rows, size.statements),
        Pgbench(cluster, size.scale, size.seconds, size.clients),
    ]
