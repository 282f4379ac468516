"""What the samples say: tables for the reader, and the same as JSON.

Overheads and ratios are taken within each round, where both sides saw the same machine, and then
their median, smallest and largest over the rounds.
"""

from dataclasses import asdict
from statistics import median

import waits
from measure import Sample
from workload import FLOOR, Result

BARE, HANDMADE, OURS = "bare", "plpgsql", "audit_ext"
THROUGHPUT = ("pgbench", "modes")
"""Kinds of workloads whose samples are runs of many transactions."""
LOG_PARTS = (("heap", "log_heap"), ("index", "log_index"), ("TOAST", "log_toast"))


def spread(values):
    """Median, smallest and largest of the values that there are; None without any."""
    values = [value for value in values if value is not None]
    return (median(values), min(values), max(values)) if values else None


def first(values):
    return values[0] if values else None


def overheads(result, variant, attribute="cpu_us"):
    """What the variant costs beyond the bare table, per round. The floor is a cost beyond it by itself."""
    own = [getattr(sample, attribute) for sample in result.samples.get(variant, ())]
    bare = [getattr(sample, attribute) for sample in result.samples.get(BARE, ())]
    return own if variant == FLOOR else [a - b for a, b in zip(own, bare)]


def quotients(above, below):
    return [a / b if b > 0 else None for a, b in zip(above, below)]


def times_bare(result, variant, attribute):
    values = lambda name: [getattr(sample, attribute) for sample in result.samples.get(name, ())]
    return spread(quotients(values(variant), values(BARE)))


def gain(result, variant=OURS):
    """How many times cheaper than the hand-written trigger the variant is."""
    return spread(quotients(overheads(result, HANDMADE), overheads(result, variant)))


def of_floor(result, variant=OURS):
    """The variant's overhead in terms of the floor's."""
    return spread(quotients(overheads(result, variant), overheads(result, FLOOR)))


def middle(result, variant, attribute):
    return median(getattr(sample, attribute) for sample in result.samples[variant])


def log_bytes(result, variant=OURS, attribute="log_bytes"):
    return middle(result, variant, attribute) / result.events_per_unit if variant in result.samples else None


def wal_bytes(result, variant=OURS):
    """WAL per event beyond the bare table's."""
    values = first(spread(overheads(result, variant, "wal_bytes")))
    return None if values is None else values / result.events_per_unit


def of_needed(result):
    """What the record takes, in terms of what it cannot do without: without indexes, with them, in the WAL. See needed.py."""
    if OURS not in result.samples or not result.needed:
        return None
    stored = log_bytes(result, OURS, "log_heap") + log_bytes(result, OURS, "log_toast")
    return tuple(value / result.needed for value in (stored, log_bytes(result), wal_bytes(result)))


def variants_of(result):
    """bare first, then the floor, then the others as they were given."""
    order = {BARE: 0, FLOOR: 1}
    return sorted(result.samples, key=lambda name: order.get(name, 2))


def number(value, digits=2):
    return "–" if value is None else f"{value:,.{digits}f}"


def three(values, digits=2):
    return ("–",) * 3 if values is None else tuple(number(value, digits) for value in values)


def grid(rows):
    """Rows of (heading, text) pairs as an aligned table."""
    lines = [[heading for heading, _ in rows[0]]] + [[text for _, text in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  " + "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip() for line in lines]


def cost_cells(result, variant):
    """Processor time of one variant, and its ratios."""
    samples = result.samples[variant]
    over = None if variant == BARE else spread(overheads(result, variant))
    ranges = [("over bare µs", "min", "max", over, 2)]
    if variant in (BARE, FLOOR):
        ranges += [("÷ floor", "min", "max", None, 2), ("PL/pgSQL ÷", "min", "max", None, 1)]
    else:
        ranges += [("÷ floor", "min", "max", of_floor(result, variant), 2), ("PL/pgSQL ÷", "min", "max", gain(result, variant), 1)]
    cells = [("variant", variant), ("CPU µs", number(None if variant == FLOOR else median(s.cpu_us for s in samples)))]
    for *headings, values, digits in ranges:
        cells += zip(headings, three(values, digits))
    return [*cells, ("wall µs", number(middle(result, variant, "wall_us")))]


def throughput_cells(result, variant):
    cells = [("variant", variant), *zip(("tps", "min", "max"), three(spread(s.tps for s in result.samples[variant]), 0))]
    cells += zip(("× bare", "min", "max"), three(times_bare(result, variant, "tps")))
    cells += [("latency ms", number(middle(result, variant, "latency_ms"), 3)), ("p99 ms", number(middle(result, variant, "p99_ms"), 3))]
    cells += zip(("× bare", "min", "max"), three(times_bare(result, variant, "p99_ms")))
    cells.append(("CPU µs", number(middle(result, variant, "cpu_us"))))
    return [*cells, ("× bare", number(first(times_bare(result, variant, "cpu_us"))))]


def byte_cells(result, variant):
    """Bytes per event of one variant."""
    cells = [("bytes per event", variant), ("WAL", number(wal_bytes(result, variant), 0)), ("log", number(log_bytes(result, variant), 0))]
    cells += [(heading, number(log_bytes(result, variant, attribute), 0)) for heading, attribute in LOG_PARTS]
    ours = of_needed(result) if variant == OURS else None
    cells.append(("needed", number(result.needed if ours else None, 0)))
    return [*cells, *zip(("heap + TOAST ÷ needed", "log ÷ needed", "WAL ÷ needed"), three(ours))]


def table(result):
    """The readable tables of one workload."""
    rounds = max(len(samples) for samples in result.samples.values())
    lines = [f"{result.name}: {result.title}; per {result.unit}, {rounds} round{'s' if rounds > 1 else ''}"]
    names = variants_of(result)
    lines += grid([(throughput_cells if result.kind in THROUGHPUT else cost_cells)(result, name) for name in names])
    lines += grid([byte_cells(result, name) for name in names if name != BARE]) if len(names) > 1 else []
    for name in names:
        if name in result.waits:
            lines.append(f"  {name} waits, share of active sessions: " + waits.text(result.waits[name]))
    return "\n".join(lines)


def as_json(results, machine, requirements):
    """Everything measured, in a shape that a later run can be compared with."""
    return {
        "format": "audit_ext bench 2",
        "machine": machine,
        "workloads": {
            result.name: {
                "title": result.title,
                "unit": result.unit,
                "kind": result.kind,
                "events_per_unit": result.events_per_unit,
                "needed_bytes_per_event": result.needed,
                "variants": {
                    name: {
                        "samples": [asdict(sample) for sample in samples],
                        "waits": waits.as_json(result.waits[name]) if name in result.waits else None,
                        "overhead_cpu_us": None if name == BARE else spread(overheads(result, name)),
                        "cheaper_than_plpgsql": None if name in (BARE, FLOOR) else gain(result, name),
                        "of_floor": None if name in (BARE, FLOOR) else of_floor(result, name),
                        "of_bare_throughput": times_bare(result, name, "tps"),
                        "of_bare_p99": times_bare(result, name, "p99_ms"),
                        "wal_bytes_per_event": wal_bytes(result, name),
                        "log_bytes_per_event": {heading: log_bytes(result, name, attribute) for heading, attribute in LOG_PARTS},
                    }
                    for name, samples in result.samples.items()
                },
            }
            for result in results
            if result.samples
        },
        "requirements": [{"passed": passed, "text": text} for passed, text in requirements],
    }


def from_json(figures):
    """The results that `as_json` was made of."""
    for name, workload in figures["workloads"].items():
        result = Result(name, workload["title"], workload["unit"], workload["kind"], workload["events_per_unit"], workload["needed_bytes_per_event"])
        for variant, found in workload["variants"].items():
            result.samples[variant] = [Sample(**sample) for sample in found["samples"]]
            if found["waits"] is not None:
                result.waits[variant] = waits.from_json(found["waits"])
        yield result
