"""One statement that changes many rows."""

import measure
import needed
from lab import desummarize, read, warm
from measure import Meter
from workload import FLOOR, Result, Wrong, check_events, rotated


class Bulk:
    """`image` names a table that holds rows like those recorded, `changed` the columns that an UPDATE changes; `warm_up`
    is run and rolled back before, where there are so few rows that a session's first statement would show."""

    def __init__(self, name, title, state, statement, rows, kind="bulk", image=None, changed=(), warm_up=None, rounds=5):
        self.rounds = rounds
        self.statement, self.rows, self.state, self.warm_up = statement, rows, state, warm_up
        self.image, self.changed = image or state.tables[0], changed
        self.names = (name,)
        self.results = (Result(name, f"{title}, {rows:,} rows", "row", kind),)

    def round(self, lab, number, selected):
        (result,) = self.results
        for variant in rotated(lab.variants, number):
            with lab.database(self.state, variant) as name, lab.connect(name, variant) as conn:
                ours = variant.name == "audit_ext"
                if ours and result.needed is None:
                    with lab.connect(name, variant) as other:
                        result.needed = needed.event(other, self.image, changed=self.changed) + needed.changeset(other, variant) / self.rows
                result.add(variant.name, self._measure(lab, variant, conn))
                if ours:
                    result.add(FLOOR, floor(lab, variant, conn, self.rows))

    def _measure(self, lab, variant, conn):
        warm(conn, self.state.tables)
        if self.warm_up:
            conn.execute(f"BEGIN; {self.warm_up}; ROLLBACK")
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
        pairs.append((name, f"floor.copy_{oid}"))
    # Sets the hint bits, which the copy would otherwise pay for.
    read(conn, [name for name, _ in pairs])
    copies = [row[0] for row in conn.execute("SELECT oid FROM pg_class WHERE relnamespace = 'floor'::regnamespace AND relkind = 'r'")]
    desummarize(conn, copies)
    size = measure.size_of(conn, copies)
    meter = Meter(lab.admin, measure.backend_pid(conn))
    lab.checkpoint()
    with meter.running():
        for name, copy in pairs:
            conn.execute(f"INSERT INTO {copy} OVERRIDING SYSTEM VALUE SELECT * FROM {name}")
    return meter.sample(rows, measure.size_of(conn, copies) - size)
