"""What the samples say: a table per workload, the requirement lines, and the same as JSON.

Overheads and ratios are taken within each round, where both sides saw the same machine, and then
their median, smallest and largest over the rounds.
"""

from dataclasses import asdict
from statistics import median

from workloads import FLOOR

BARE, HANDMADE, OURS = "bare", "plpgsql", "audit_ext"

REQUIREMENTS = {"bulk": 4.0, "single": 3.0}
"""How many times cheaper than the hand-written trigger each kind of workload has to be, per row."""


def spread(values):
    """Median, smallest and largest of the values that there are; None without any."""
    values = [value for value in values if value is not None]
    return (median(values), min(values), max(values)) if values else None


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


def variants_of(result):
    """bare first, then the floor, then the others as they were given."""
    order = {BARE: 0, FLOOR: 1}
    return sorted(result.samples, key=lambda name: order.get(name, 2))


def number(value, digits=2):
    return "–" if value is None else f"{value:,.{digits}f}"


def three(values, digits=2):
    return ("–",) * 3 if values is None else tuple(number(value, digits) for value in values)


def first(values):
    return values[0] if values else None


def middle(result, variant, attribute):
    return median(getattr(sample, attribute) for sample in result.samples[variant])


def row_cells(result, variant):
    """Cells of one line of a workload's table: (heading, text) pairs."""
    samples = result.samples[variant]
    apart = variant == FLOOR
    cells = [("variant", variant)]
    if result.kind == "pgbench":
        for heading, text in zip(("tps", "min", "max"), three(spread(s.tps for s in samples), 0)):
            cells.append((heading, text))
        cells.append(("× bare", number(first(times_bare(result, variant, "tps")))))
        cells.append(("latency ms", number(middle(result, variant, "latency_ms"), 3)))
        cells.append(("p99 ms", number(middle(result, variant, "p99_ms"), 3)))
        cells.append(("× bare", number(first(times_bare(result, variant, "p99_ms")))))
    else:
        for heading, text in zip(("CPU µs", "min", "max"), three(None if apart else spread(s.cpu_us for s in samples))):
            cells.append((heading, text))
        cells.append(("× bare", "–" if apart else number(first(times_bare(result, variant, "cpu_us")))))
    over = None if variant == BARE else spread(overheads(result, variant))
    for heading, text in zip(("over bare µs", "min", "max"), three(over)):
        cells.append((heading, text))
    if result.kind == "pgbench":
        cells.append(("CPU µs", number(middle(result, variant, "cpu_us"))))
    else:
        cells.append(("wall µs", number(middle(result, variant, "wall_us"))))
    wal = None if variant == BARE else first(spread(overheads(result, variant, "wal_bytes")))
    cells.append(("WAL B", number(middle(result, variant, "wal_bytes"), 0)))
    cells.append(("WAL B/event", "–" if wal is None else number(wal / result.events_per_unit, 0)))
    for heading, attribute in (("log B/event", "log_bytes"), ("heap", "log_heap"), ("index", "log_index"), ("TOAST", "log_toast")):
        value = None if variant == BARE else middle(result, variant, attribute) / result.events_per_unit
        cells.append((heading, number(value, 0)))
    return cells


def table(result):
    """The readable table of one workload."""
    rounds = max(len(samples) for samples in result.samples.values())
    lines = [f"{result.name}: {result.title}; per {result.unit}, {rounds} round{'s' if rounds > 1 else ''}"]
    rows = [row_cells(result, variant) for variant in variants_of(result)]
    grid = [[heading for heading, _ in rows[0]]] + [[text for _, text in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*grid)]
    for line in grid:
        lines.append("  " + "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip())
    for variant in variants_of(result):
        if variant in (BARE, FLOOR, HANDMADE):
            continue
        facts = []
        if (values := gain(result, variant)) is not None:
            facts.append("{} times cheaper than the hand-written trigger ({} to {})".format(*three(values)))
        if FLOOR in result.samples and variant == OURS:
            facts.append("{} of the floor ({} to {})".format(*three(spread(quotients(overheads(result, variant), overheads(result, FLOOR))))))
        if facts:
            lines.append(f"  {variant}: " + "; ".join(facts))
    return "\n".join(lines)


def markdown(results):
    """The medians as Markdown tables, as docs/performance.md shows them."""
    lines = []
    rows = [result for result in results if result.kind != "pgbench"]
    if rows:
        lines += [
            "| workload | bare, CPU µs | over bare: audit_ext | PL/pgSQL | floor | PL/pgSQL ÷ audit_ext | audit_ext ÷ floor | WAL bytes per event: audit_ext, PL/pgSQL | log bytes per event: audit_ext (heap + index + TOAST), PL/pgSQL |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
    for result in rows:
        over = {name: first(spread(overheads(result, name))) for name in result.samples}
        wal = {name: first(spread(overheads(result, name, "wal_bytes"))) for name in result.samples}
        log = {name: middle(result, name, "log_bytes") for name in result.samples}
        of_floor = first(spread(quotients(overheads(result, OURS), overheads(result, FLOOR))))
        parts = " + ".join(number(middle(result, OURS, part), 0) for part in ("log_heap", "log_index", "log_toast")) if OURS in over else "–"
        cells = [result.name, number(middle(result, BARE, "cpu_us"))]
        cells += [number(over.get(name)) for name in (OURS, HANDMADE, FLOOR)]
        cells += [f"**{number(first(gain(result)), 1)}**", number(of_floor)]
        cells += [f"{number(wal.get(OURS), 0)}, {number(wal.get(HANDMADE), 0)}", f"{number(log.get(OURS), 0)} ({parts}), {number(log.get(HANDMADE), 0)}"]
        lines.append("| " + " | ".join(cells) + " |")
    rows = [result for result in results if result.kind == "pgbench"]
    if rows:
        lines += [
            "",
            "| workload | tps ÷ bare: audit_ext | PL/pgSQL | p99 ÷ bare: audit_ext | PL/pgSQL | CPU per transaction ÷ bare: audit_ext | PL/pgSQL | log bytes per event: audit_ext, PL/pgSQL |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for result in rows:
        cells = [result.name]
        for attribute in ("tps", "p99_ms", "cpu_us"):
            cells += [number(first(times_bare(result, name, attribute))) for name in (OURS, HANDMADE)]
        logs = [number(middle(result, name, "log_bytes") / result.events_per_unit, 0) for name in (OURS, HANDMADE) if name in result.samples]
        lines.append("| " + " | ".join(cells) + " | " + ", ".join(logs) + " |")
    return "\n".join(lines)


def requirements(results):
    """The requirement lines: (passed, text)."""
    lines = []
    for result in results:
        needed = REQUIREMENTS.get(result.kind)
        values = gain(result)
        if needed and values:
            lines.append((values[0] >= needed, f"{result.name}: {values[0]:.2f} times cheaper per {result.unit} than PL/pgSQL, at least {needed:g} required"))
    return lines


def as_json(results, machine):
    """Everything measured, in a shape that a later run can be compared with."""
    return {
        "format": "audit_ext bench 1",
        "machine": machine,
        "workloads": {
            result.name: {
                "title": result.title,
                "unit": result.unit,
                "kind": result.kind,
                "events_per_unit": result.events_per_unit,
                "variants": {
                    name: {
                        "samples": [asdict(sample) for sample in samples],
                        "overhead_cpu_us": None if name == BARE else spread(overheads(result, name)),
                        "cheaper_than_plpgsql": None if name in (BARE, FLOOR) else gain(result, name),
                        "of_floor": spread(quotients(overheads(result, name), overheads(result, FLOOR))) if name == OURS else None,
                    }
                    for name, samples in result.samples.items()
                },
            }
            for result in results
            if result.samples
        },
        "requirements": [{"passed": passed, "text": text} for passed, text in requirements(results)],
    }
