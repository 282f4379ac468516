"""What all workloads share. Each yields, per round, one sample of every variant.

A round goes through the variants in turn, beginning with another one each time, so that what the
machine does beside the bench falls on all of them.
"""

from collections import Counter
from dataclasses import dataclass, field

FLOOR = "floor"
"""Name under which the samples of the bytes' own price are kept: bulk.py and single.py say how it is taken."""


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
    needed: float | None = None
    """Bytes that the record of one event cannot do without: needed.py."""
    samples: dict = field(default_factory=dict)
    waits: dict = field(default_factory=dict)
    """Of pgbench: variant's name to a Counter of what its sessions were seen waiting for."""

    def add(self, variant, sample):
        self.samples.setdefault(variant, []).append(sample)

    def add_waits(self, variant, waits):
        self.waits.setdefault(variant, Counter()).update(waits)


def rotated(sequence, by):
    by %= len(sequence)
    return [*sequence[by:], *sequence[:by]]


def check_events(variant, conn, before, expected):
    if variant.events:
        found = variant.count_events(conn) - before
        if found != expected:
            raise Wrong(f"{variant.name} recorded {found} events, not {expected}")
