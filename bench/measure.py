"""What one measurement takes: processor time, wall time, WAL and log size.

Processor time is the backend's own, read from /proc/PID/schedstat in nanoseconds: the client, other
processes of the machine and waiting do not count. The kernel brings the figure up to date when the
process goes off the processor, so it is read after the backend has gone to sleep on its socket.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SETTLE = 0.002
"""Seconds after which a backend that has answered is surely asleep."""


@dataclass
class Sample:
    """One measurement of one variant; everything is per unit (row, statement or transaction)."""

    cpu_us: float = 0.0
    wall_us: float = 0.0
    wal_bytes: float = 0.0
    log_heap: float = 0.0
    log_index: float = 0.0
    log_toast: float = 0.0
    tps: float = 0.0
    latency_ms: float = 0.0
    p99_ms: float = 0.0

    @property
    def log_bytes(self):
        return self.log_heap + self.log_index + self.log_toast


@dataclass(frozen=True)
class Size:
    heap: int = 0
    index: int = 0
    toast: int = 0

    def __sub__(self, other):
        return Size(self.heap - other.heap, self.index - other.index, self.toast - other.toast)


def size_of(conn, tables):
    """Bytes of the tables given by oid: main forks only, so that maps of free space do not count."""
    heap, index, toast = conn.execute(
        """
        SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint,
               coalesce(sum(pg_indexes_size(c.oid)), 0)::bigint,
               coalesce(sum(CASE WHEN c.reltoastrelid <> 0 THEN pg_total_relation_size(c.reltoastrelid) END), 0)::bigint
          FROM pg_class c
         WHERE c.oid = ANY (%s::oid[])
        """,
        [list(tables)],
    ).fetchone()
    return Size(heap, index, toast)


def wal_position(conn):
    return conn.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()[0]


def wal_records(conn, since, until):
    """Bytes of WAL between two positions, less the full images of pages that a checkpoint before the run has made necessary: they
    are paid once a page, so their share in a transaction depends on how many there were. With them, without contrib's pg_walinspect."""
    if conn.execute("SELECT FROM pg_extension WHERE extname = 'pg_walinspect'").fetchone() is None:
        return until - since
    # The function reads no further than what is on disk.
    conn.execute("BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'bench', ''); COMMIT")
    query = "SELECT sum(record_size)::bigint FROM pg_get_wal_stats('0/0'::pg_lsn + %s, '0/0'::pg_lsn + %s)"
    return conn.execute(query, [since, until]).fetchone()[0]


def backend_pid(conn):
    return conn.info.backend_pid


def processor_ns(pid):
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def reaped_seconds(pid):
    """Processor time of the children that a process has waited for: of a postmaster, its ended backends."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / 100


class Meter:
    """Processor time, wall time and WAL of the stretches in which one backend works."""

    def __init__(self, admin, pid):
        self.admin, self.pid = admin, pid
        self.cpu_ns, self.wall_ns, self.wal_bytes = [], [], []

    @contextmanager
    def running(self):
        wal = wal_position(self.admin)
        cpu, wall = processor_ns(self.pid), time.perf_counter_ns()
        yield
        self.wall_ns.append(time.perf_counter_ns() - wall)
        time.sleep(SETTLE)
        self.cpu_ns.append(processor_ns(self.pid) - cpu)
        self.wal_bytes.append(wal_position(self.admin) - wal)

    def sample(self, units, size=Size()):
        """What a unit costs. Of several stretches, which must be of equal length, times are the median one's:
        a stretch that shared the machine with something else would spoil a mean."""
        each = units / len(self.cpu_ns)
        return Sample(
            cpu_us=median(self.cpu_ns) / 1000 / each,
            wall_us=median(self.wall_ns) / 1000 / each,
            wal_bytes=sum(self.wal_bytes) / units,
            log_heap=size.heap / units,
            log_index=size.index / units,
            log_toast=size.toast / units,
        )
