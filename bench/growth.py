"""The curves: what a recorded row costs as statements, the log, the number of audited tables and of partitions grow.

Each curve is a function that yields points: the value of x, and for each series µs of CPU per unit, a
row or a statement, of the bare table and of audit_ext. Sessions take turns in short stretches, and the
median stretch counts, as in single.py.
"""

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import measure
import tables
from lab import State, warm
from measure import Meter
from workload import rotated

ROWS = 20_000
STATEMENTS, STRETCH = 5_000, 250
BARE, OURS, LOADED, PRELOADED = "bare", "audit_ext", "loaded", "preloaded"


@dataclass(frozen=True)
class Limits:
    """How far the curves go."""

    rows: int = 5_000_000
    events: int = 10_000_000
    tables: int = 5_000
    partitions: int = 120
    connections: int = 40


@dataclass(frozen=True)
class Curve:
    """`reference` is the x with whose cost the last one's is compared; the first without it."""

    name: str
    title: str
    x: str
    unit: str
    points: Callable
    reference: int | None = None


@dataclass
class Track:
    """A session of one variant, and what it does in a stretch: `work(turn)`."""

    name: str
    conn: object
    work: Callable


def by_turns(lab, tracks, turns, units):
    """µs of CPU per unit of each track, when each does `units` in each of so many turns."""
    meters = [Meter(lab.admin, measure.backend_pid(track.conn)) for track in tracks]
    lab.checkpoint()
    for turn in range(turns):
        for track, meter in rotated(list(zip(tracks, meters)), turn):
            with meter.running():
                track.work(turn)
    return {track.name: meter.sample(units * turns).cpu_us for track, meter in zip(tracks, meters)}


def steps(first, last):
    """Powers of ten between the two, and the last."""
    return sorted({first, last, *itertools.takewhile(lambda x: x < last, (10**n for n in range(12)))})


def middle_of(rounds):
    """Medians of several measurements of the same series."""
    return {name: median(found[name] for found in rounds) for name in rounds[0]}


def open_all(lab, stack, state):
    """A session of each variant on a fresh copy of the state."""
    names = [stack.enter_context(lab.database(state, variant)) for variant in lab.variants]
    return [stack.enter_context(lab.connect(name, variant)) for name, variant in zip(names, lab.variants)]


def prepared(conn, name, statement):
    """A function that runs the statement once for each set of parameters, a transaction each."""
    conn.pgconn.prepare(name.encode(), statement.encode())

    def run(parameters):
        for values in parameters:
            answer = conn.pgconn.exec_prepared(name.encode(), [str(value).encode() for value in values])
            if answer.error_message:
                raise RuntimeError(answer.error_message.decode())

    return run


def execute(conn, statement):
    """Sent as it is: the driver would prepare what it sees often."""
    answer = conn.pgconn.exec_(statement.encode())
    if answer.error_message:
        raise RuntimeError(answer.error_message.decode())


def updates(lab, conns, table="item", rows=ROWS):
    """UPDATEs of one column: of all rows at once, and by key with a transaction each. µs per row."""
    bulk = [Track(v.name, conn, lambda _, conn=conn: conn.execute(f"UPDATE {table} SET amount = amount + 1")) for v, conn in zip(lab.variants, conns)]
    single = []
    for variant, conn in zip(lab.variants, conns):
        run = prepared(conn, f"update_{table}", f"UPDATE {table} SET amount = amount + 1 WHERE id = $1")
        keys = itertools.cycle(range(1, rows, 7))
        run([[next(keys)] for _ in range(STRETCH)])
        single.append(Track(variant.name, conn, lambda _, run=run, keys=keys: run([[next(keys)] for _ in range(STRETCH)])))
    many = by_turns(lab, bulk, 3, rows)
    one = by_turns(lab, single, STATEMENTS // STRETCH, STRETCH)
    for conn in conns:
        conn.execute(f"VACUUM {table}")
    return {"bulk " + name: value for name, value in many.items()} | {"single " + name: value for name, value in one.items()}


def statement_size(lab, limits):
    """INSERT … SELECT of so many rows a statement."""
    source = min(limits.rows, 200_000)
    columns = ", ".join(f"s.{name}" for name in tables.MIXED_COLUMNS[1:])
    state = tables.mixed_empty(source, lab.cluster.scratch)
    for size in steps(1, limits.rows):
        turns, repeats = (1, 1) if size >= source else (max(2, min(20, source // size // 2)), max(1, min(200, source // 40 // size)))
        rounds = []
        for number in range(1 if size > source else 3):
            with ExitStack() as stack:
                conns = open_all(lab, stack, state)
                tracks = []
                for variant, conn in rotated(list(zip(lab.variants, conns)), number):
                    warm(conn, ["source"])
                    statement = f"INSERT INTO item SELECT k * {source} + s.id, {columns} FROM generate_series(0, $1::int - 1) AS k, source AS s"
                    statement += " WHERE s.id > $2::int AND s.id <= $3::int"
                    run = prepared(conn, "insert", statement)
                    firsts = itertools.count(0, size)
                    times = max(1, size // source)
                    # The session's first statement is not part of it.
                    conn.execute("BEGIN; INSERT INTO item SELECT * FROM source WHERE id = 1; ROLLBACK")

                    def work(_, run=run, firsts=firsts, times=times):
                        run([[times, first, first + min(size, source)] for first in itertools.islice(firsts, repeats)])

                    tracks.append(Track(variant.name, conn, work))
                rounds.append(by_turns(lab, tracks, turns, repeats * size))
        yield size, middle_of(rounds)


def log_size(lab, limits):
    """UPDATEs with so many events in the log already."""
    with ExitStack() as stack:
        conns = open_all(lab, stack, tables.mixed_filled(ROWS))
        log = conns[-1]
        for conn in conns:
            warm(conn, ["item"])
            # The events of which the filling is made; and the same dead rows without auditing.
            conn.execute("UPDATE item SET amount = amount + 1")
            conn.execute("VACUUM item")
        held = ROWS
        for size in (x for x in steps(ROWS, limits.events) if x >= ROWS):
            fill(log, held, size)
            held = size
            yield size, updates(lab, conns)


def fill(conn, first, last):
    """Adds events until there are `last`, made of real ones: ten to a changeset, in the past, keys spread widely."""
    conn.execute("CREATE TEMP TABLE IF NOT EXISTS model_event AS SELECT row_number() OVER () - 1 AS nth, * FROM audit.event LIMIT 20000")
    conn.execute("CREATE TEMP TABLE IF NOT EXISTS model_changeset AS SELECT * FROM audit.changeset LIMIT 1")
    time = "now() - interval '1 day' + {n} / 10 * interval '1 ms'"
    uuid = "encode(int8send(1700000000000 + {n} / 10), 'hex')"
    uuid = f"(substr({uuid}, 5) || '7' || substr(md5(({{n}} / 10)::text), 2, 19))::uuid"
    made = {
        "event": {
            "occurred_at": time,
            "changeset_id": uuid,
            "seq": "{n} % 10",
            "salt": "gen_random_uuid()",
            "resource_id": "({n}::bigint * 7919 % 5000000)::text",
        },
        "changeset": {"occurred_at": time, "id": uuid, "salt": "gen_random_uuid()"},
    }
    for table, every in (("event", 1), ("changeset", 10)):
        query = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        names = [name for (name,) in conn.execute(query, [f"audit.{table}"])]
        values = [made[table].get(name, f"m.{name}").format(n="n") for name in names]
        model = "model_event AS m ON m.nth = n % 20000" if table == "event" else "model_changeset AS m ON true"
        for begin in range(first, last, 1_000_000):
            end = min(last, begin + 1_000_000)
            rows = f"SELECT {', '.join(values)} FROM generate_series({begin}, {end - 1}, {every}) AS n JOIN {model} ORDER BY n"
            conn.execute(f"INSERT INTO audit.{table} ({', '.join(names)}) {rows}")


def many_tables(count):
    """Small tables without TOAST: so many files are slow enough to copy and to drop."""

    def build(conn):
        for first in range(1, count + 1, 500):
            parts = []
            for n in range(first, min(first + 500, count + 1)):
                parts.append(f"CREATE TABLE t{n} (id int PRIMARY KEY, amount int NOT NULL, changed_at timestamptz)")
                parts.append(f"INSERT INTO t{n} VALUES (1, 0, now())")
            conn.execute("; ".join(parts))

    return State(f"tables_{count}", (), build)


def audited_tables(lab, limits):
    """UPDATE by key where so many tables are audited: of one of them again and again, and of all of them by turns."""
    with ExitStack() as stack:
        conns = open_all(lab, stack, many_tables(limits.tables))
        audited = 0
        for count in steps(1, limits.tables):
            for variant, conn in zip(lab.variants, conns):
                variant.enable_all(conn, [f"t{n}" for n in range(audited + 1, count + 1)])
                conn.execute("VACUUM ANALYZE pg_catalog.pg_class, pg_catalog.pg_attribute, pg_catalog.pg_trigger, pg_catalog.pg_depend")
            audited = count
            found = {}
            for series, turn_tables in (("one", [1] * STRETCH), ("all", None)):
                tracks = []
                for variant, conn in zip(lab.variants, conns):
                    every = itertools.cycle(range(1, count + 1))

                    def work(_, conn=conn, every=every, turn_tables=turn_tables):
                        for n in turn_tables or itertools.islice(every, STRETCH):
                            execute(conn, f"UPDATE t{n} SET amount = amount + 1 WHERE id = 1")

                    # Once over all: what is measured are warm caches.
                    for _ in range(count // STRETCH + 1 if turn_tables is None else 1):
                        work(0)
                    tracks.append(Track(variant.name, conn, work))
                values = by_turns(lab, tracks, max(STATEMENTS, count) // STRETCH, STRETCH)
                found |= {f"{series} {name}": value for name, value in values.items()}
            yield count, found


def connections(lab, limits):
    """The first statement of a connection, an UPDATE by key, beyond what the following ones take, with so many tables audited."""

    def first(name, variant):
        """µs of CPU of the first statement less the median of five more."""
        with lab.connect(name, variant) as conn:
            meter = Meter(lab.admin, measure.backend_pid(conn))
            for _ in range(6):
                with meter.running():
                    execute(conn, "UPDATE t1 SET amount = amount + 1 WHERE id = 1")
            return (meter.cpu_ns[0] - median(meter.cpu_ns[1:])) / 1000

    with ExitStack() as stack:
        places = [(stack.enter_context(lab.database(many_tables(limits.tables), variant)), variant) for variant in lab.variants]
        audited = 0
        for count in steps(1, limits.tables):
            for name, variant in places:
                with lab.connect(name, variant) as conn:
                    variant.enable_all(conn, [f"t{n}" for n in range(audited + 1, count + 1)])
                    conn.execute("VACUUM ANALYZE")
            audited = count
            found = {}
            for library, measured in (("", {BARE: places[0], OURS: places[1]}), ("audit_ext", {PRELOADED: places[1]})):
                lab.restart(shared_preload_libraries=library)
                rounds = [{series: first(*place) for series, place in measured.items()} for _ in range(limits.connections + 1)]
                found |= middle_of(rounds[1:])  # after a restart the server's own caches are empty
            lab.restart(shared_preload_libraries="")
            yield count, found


def log_partitions(lab, limits):
    """UPDATEs where the log has so many partitions, the one in use among them."""
    for count in steps(1, limits.partitions):
        with ExitStack() as stack:
            conns = open_all(lab, stack, tables.log_partitioned(ROWS, count))
            for conn in conns:
                warm(conn, ["item"])
            yield count, updates(lab, conns)


def table_partitions(lab, limits):
    """UPDATEs of an audited table of so many partitions."""
    for count in steps(1, limits.partitions):
        with ExitStack() as stack:
            conns = open_all(lab, stack, tables.mixed_partitioned(ROWS, count))
            for conn in conns:
                warm(conn, ["item"])
            yield count, updates(lab, conns)


def untouched(lab, limits):
    """UPDATE by key of a table that nobody audits, beside so many audited ones."""
    bare, ours = lab.variants
    loaded = {"session_preload_libraries": "audit_ext"}
    with ExitStack() as stack:
        names = [stack.enter_context(lab.database(many_tables(limits.tables), variant)) for variant in lab.variants]
        for variant, name in zip(lab.variants, names):
            with lab.connect(name, variant) as conn:
                variant.enable_all(conn, [f"t{n}" for n in range(2, limits.tables + 1)])
                conn.execute("VACUUM ANALYZE")
        tracks = []
        # The last has the library in its session though nothing it does needs it, as where it is preloaded.
        for series, variant, name, settings in ((BARE, bare, names[0], {}), (OURS, ours, names[1], {}), (LOADED, ours, names[1], loaded)):
            conn = stack.enter_context(lab.connect(name, variant, **settings))
            run = prepared(conn, "update", "UPDATE t1 SET amount = amount + 1 WHERE id = $1")
            run([[1]] * STRETCH)
            tracks.append(Track(series, conn, lambda _, run=run: run([[1]] * STRETCH)))
        yield limits.tables, by_turns(lab, tracks, 40, STRETCH)


CURVES = (
    Curve("statement-size", "INSERT … SELECT, 12 columns", "rows a statement", "row", statement_size, reference=1_000),
    Curve("log-size", "UPDATE of 1 of 12 columns", "events in the log", "row", log_size),
    Curve("audited-tables", "UPDATE by key", "audited tables", "statement", audited_tables),
    Curve("log-partitions", "UPDATE of 1 of 12 columns", "partitions of the log", "row", log_partitions),
    Curve("table-partitions", "UPDATE of 1 of 12 columns", "partitions of the audited table", "row", table_partitions),
    Curve("connections", "first statement of a connection beyond later ones", "audited tables", "connection", connections),
    Curve("untouched", "UPDATE by key of a table that is not audited", "audited tables beside it", "statement", untouched),
)
