"""What sessions wait for while pgbench runs, sampled from pg_stat_activity.

A heavyweight lock names its relation in pg_locks; that of a transaction or a row is attributed to the
table whose row the statement changes. Waits for pages (BufferContent, BufferIO) name nothing. For them
the sampler also looks which pages several sessions have pinned at that moment, since who waits for a
page has it pinned: a hint, since pages are also pinned side by side by sessions that do not wait. All
other lightweight locks are the server's own, and none belongs to a relation.
"""

import re
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields

EVERY = 0.02
PAGE_EVENTS = ("BufferContent", "BufferIO")
PAGES_EVERY = 0.25
"""Seconds between looks at the pages: each reads the header of every buffer."""

ACTIVITY = """
SELECT wait_event_type, wait_event, locktype, relation, query
  FROM pg_stat_activity a
       LEFT JOIN LATERAL (SELECT locktype, relation FROM pg_locks
                           WHERE a.wait_event_type = 'Lock' AND pid = a.pid AND NOT granted LIMIT 1) AS awaited ON true
 WHERE datname = current_database() AND application_name = 'pgbench' AND state = 'active'
"""

PAGES = """
SELECT DISTINCT pg_filenode_relation(reltablespace, relfilenode)::oid
  FROM pg_buffercache
 WHERE reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pinning_backends > 1
"""


@dataclass(frozen=True)
class Wait:
    """`target` is the relation, where it is known; `ours` says that it belongs to the variant's trail."""

    kind: str
    event: str
    target: str = ""
    ours: bool = False

    def __str__(self):
        return f"{self.kind}:{self.event}" + (f" {self.target}" if self.target else "")


ACTIVE = Wait("", "active")
"""Counts all samples of active sessions, waiting or not."""
PINNED = "pages pinned by several"
LOOKS = Wait(PINNED, "looks")


class Sampler:
    def __init__(self, lab, dbname, variant):
        self._conn = lab.cluster.connect(dbname)
        self._conn.execute("SET jit = off")
        # Not every installation has contrib's pg_buffercache.
        self._sees_pages = self._conn.execute("SELECT to_regclass('pg_buffercache')").fetchone()[0] is not None
        # Everything in the schemas of the log is the trail's.
        self._relations = {
            oid: (name, ours)
            for oid, name, ours in self._conn.execute(
                """
                SELECT c.oid, c.oid::regclass::text,
                       coalesce(t.relnamespace, i.relnamespace, c.relnamespace) = ANY (SELECT relnamespace FROM pg_class WHERE oid = ANY (%s::oid[]))
                  FROM pg_class c
                       LEFT JOIN pg_index ON indexrelid = c.oid
                       LEFT JOIN pg_class t ON t.reltoastrelid IN (c.oid, indrelid) AND t.reltoastrelid <> 0
                       LEFT JOIN pg_class i ON i.oid = indrelid
                """,
                [variant.log_tables(self._conn)],
            )
        }
        self.counts = Counter()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        self._stopped.set()
        self._thread.join()

    def close(self):
        """Ends the session, and gives the counts."""
        self._conn.close()
        return self.counts

    def _run(self):
        looked = 0.0
        while not self._stopped.wait(EVERY):
            found = self._conn.execute(ACTIVITY).fetchall()
            waits = [self._wait(*row) for row in found if row[0] not in (None, "Client", "Activity")]
            self.counts[ACTIVE] += len(found)
            self.counts.update(waits)
            is_due = self._sees_pages and time.monotonic() > looked + PAGES_EVERY
            if is_due and any(wait.event in PAGE_EVENTS for wait in waits):
                looked = time.monotonic()
                self.counts[LOOKS] += 1
                self.counts.update(Wait(PINNED, "look", *self._relations.get(oid, ("", False))) for (oid,) in self._conn.execute(PAGES))

    def _wait(self, kind, event, locktype, relation, query):
        if kind != "Lock":
            return Wait(kind, event)
        if relation is not None:
            return Wait(kind, event, *self._relations.get(relation, (str(relation), False)))
        table = re.match(r"(?:UPDATE|INSERT INTO|DELETE FROM)\s+(\S+)", query, re.IGNORECASE)
        return Wait(kind, event, table[1] if table else locktype or "")


def top(counts, places=10):
    """The waits seen most often: (wait, share of the samples of active sessions)."""
    active = counts[ACTIVE] or 1
    seen = [(wait, count / active) for wait, count in counts.most_common() if wait != ACTIVE and wait.kind != PINNED]
    return seen[:places]


def pinned(counts):
    """Relations of which several sessions had one page pinned: (wait, share of the looks)."""
    looks = counts[LOOKS] or 1
    return [(wait, count / looks) for wait, count in counts.most_common() if wait.kind == PINNED and wait != LOOKS]


def text(counts):
    parts = [f"{wait} {100 * share:.1f} %" for wait, share in top(counts)]
    if looks := counts[LOOKS]:
        pages = ", ".join(f"{wait.target or 'a catalog'} {100 * share:.0f} %" for wait, share in pinned(counts))
        parts.append(f"({PINNED} in {looks} looks: {pages or 'none'})")
    return "; ".join(parts) or "none"


def as_json(counts):
    """The counts as they are; `share` is of the samples of active sessions, of pages of the looks at them."""
    return [
        {"samples": count, "share": count / (counts[LOOKS if wait.kind == PINNED else ACTIVE] or 1), **asdict(wait)}
        for wait, count in counts.most_common()
    ]


def from_json(figures):
    return Counter({Wait(*(figure[field.name] for field in fields(Wait))): figure["samples"] for figure in figures})
