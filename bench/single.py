"""Rows inserted, updated and deleted by key, each by a transaction of its own."""

from contextlib import ExitStack
from dataclasses import dataclass

import measure
import needed
import tables
import variants
from lab import desummarize, read, warm
from measure import Meter
from workload import FLOOR, Result, Wrong, check_events, rotated


class Single:
    """Rows inserted, updated and deleted by key: a prepared statement each, one statement a transaction.

    All variants' sessions stay open and take turns in short stretches, since a difference of a few
    microseconds drowns in what the machine's mood changes from one second to the next.
    """

    rounds = 5
    CHUNK = 250
    WARM_UP = 100
    PLACES = ", ".join(f"${n}" for n in range(1, 13))
    STATEMENTS = (
        ("single-insert", "INSERT", f"INSERT INTO {{table}} VALUES ({PLACES})", ()),
        ("single-update", "UPDATE of 1 of 12 columns", "UPDATE {table} SET amount = amount + 1 WHERE id = $1", ("amount",)),
        ("single-delete", "DELETE", "DELETE FROM {table} WHERE id = $1", ()),
    )

    def __init__(self, rows, count):
        self.rows, self.count, self.total = rows, count, count + self.WARM_UP
        self.state = tables.mixed_filled(rows)
        self.names = tuple(name for name, *_ in self.STATEMENTS)
        self.results = tuple(
            Result(name, f"{title} by key, {count:,} statements of one row, one a transaction", "statement", "single")
            for name, title, *_ in self.STATEMENTS
        )

    def round(self, lab, number, selected):
        # All three run whatever is selected: each leaves the rows that the next one needs.
        parameters = self._parameters(lab)
        with ExitStack() as stack:
            tracks = [self._open(lab, stack, variant) for variant in lab.variants]
            for result, (_, _, statement, _), values in zip(self.results, self.STATEMENTS, parameters):
                for track in tracks:
                    track.statement, track.parameters = statement.format(table="item"), values
                self._measure(lab, number, result, tracks)
            for track in tracks:
                if track.name == "audit_ext":
                    for result, (*_, changed) in zip(self.results, self.STATEMENTS):
                        result.needed = needed.event(track.conn, "item", changed=changed) + needed.changeset(track.conn, track.variant)
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
            if conn.execute(f"SELECT FROM {name} LIMIT 1").fetchone() is None:
                continue
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
        desummarize(conn, copies)
        warm(conn, ["floor.item"])
        read(conn, ["floor.item"])
        bare = self._open(lab, stack, variants.BARE)
        track = Track(FLOOR, variants.BARE, conn, copies)
        for step, (result, (_, _, statement, _), values) in enumerate(zip(self.results, self.STATEMENTS, parameters)):
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
