"""What the project promises of its cost, and whether the samples keep it: lines of PASS and FAIL."""

from dataclasses import dataclass

import report
import waits
from report import OURS


@dataclass(frozen=True)
class Limits:
    """How many times cheaper than the hand-written trigger a row has to be, and is meant to be; at most how many floors it may cost."""

    gain: float
    gain_aim: float
    floors: float


LIMITS = {
    "bulk": Limits(4, 6, 1.25),
    "update": Limits(4, 6, 1.35),
    "wide": Limits(4, 8, 1.3),
    "single": Limits(3, 4, 1.15),
    "large": Limits(4, 4, 1.3),
}
THROUGHPUT = {"async": 0.80, "sync": 0.95}
P99 = 1.3
BYTES = 1.15
UPDATE_BYTES = 700
PAGE_WAITS = 0.05
"""Share of samples by which waiting for pages may grow where pages of the log are among those that several sessions use."""


def at_least(name, value, limit, text, word="required"):
    return value >= limit, f"{name}: {value:.2f} {text}, at least {limit:g} {word}"


def at_most(name, value, limit, text):
    return value <= limit, f"{name}: {value:.2f} {text}, at most {limit:g}"


def lines_of(results):
    """(passed, text) of each requirement that the results speak of."""
    lines = []
    for result in results:
        lines += {"pgbench": throughput, "modes": faster}.get(result.kind, cost)(result)
    return lines + [line for result in results if result.kind != "modes" for line in size(result)]


def cost(result):
    limits = LIMITS[result.kind]
    if gain := report.first(report.gain(result)):
        text = f"times cheaper per {result.unit} than PL/pgSQL"
        yield at_least(result.name, gain, limits.gain, text)
        if limits.gain_aim != limits.gain:
            yield at_least(result.name, gain, limits.gain_aim, text, "aimed at")
    if floors := report.first(report.of_floor(result)):
        yield at_most(result.name, floors, limits.floors, "times the floor")


def throughput(result):
    ratio = report.times_bare(result, OURS, "tps")
    if not ratio:
        return
    yield at_least(result.name, ratio[0], THROUGHPUT[result.name.rpartition("-")[2]], "of the bare throughput")
    yield at_most(result.name, report.times_bare(result, OURS, "p99_ms")[0], P99, "times the bare p99 latency")
    found = result.waits[OURS]
    own = [str(wait) for wait, _ in waits.top(found) if wait.ours]
    share = lambda counts: sum(part for wait, part in waits.top(counts, 100) if wait.event in waits.PAGE_EVENTS)
    more = share(found) - share(result.waits[report.BARE])
    if more > PAGE_WAITS:
        own += [f"pages of {wait.target}" for wait, _ in waits.pinned(found) if wait.ours]
    yield not own, f"{result.name}: among the ten waits seen most, on relations of the log: {', '.join(own) or 'none'}"


def faster(result):
    """What mode async is for."""
    own, sync = ([sample.tps for sample in result.samples.get(name, ())] for name in ("async", OURS))
    if ratio := report.first(report.spread(report.quotients(own, sync))):
        yield at_least(result.name, ratio, 1, "times the throughput of mode sync in mode async")


def size(result):
    if ratios := report.of_needed(result):
        text = "{:.2f} without indexes, {:.2f} with them, WAL {:.2f}".format(*ratios)
        yield max(ratios) <= BYTES, f"{result.name}: bytes in terms of what a record needs: {text}, at most {BYTES:g}"
    if result.name in ("bulk-update", "single-update") and (found := report.log_bytes(result)):
        yield found <= UPDATE_BYTES, f"{result.name}: {found:,.0f} bytes of log per UPDATE of one of twelve columns, at most {UPDATE_BYTES}"
