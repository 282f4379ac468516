"""The tables of docs/performance.md, and how they get there: each stands between two comments that name it."""

import re

import report
import waits
from report import BARE, FLOOR, HANDMADE, OURS, first, middle, number


def write(path, parts):
    """Puts the parts in their places; those that there are none of stay as they are."""
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        text, places = re.subn(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda match: f"{match[1]}\n{part}\n\n{match[2]}", text, flags=re.DOTALL)
        if places != 1:
            raise ValueError(f"{path} has {places} places for {name}, not one")
    path.write_text(text, encoding="utf-8")


def parts(results, machine, lines):
    """Name to text: of the workloads measured in processor time, and of pgbench, which are best run apart."""
    rows = [result for result in results if result.kind not in report.THROUGHPUT]
    modes = [result for result in results if result.kind == "modes"]
    threads = [result for result in results if result.kind == "pgbench"]
    found = {}
    if rows:
        found |= {"cost": "\n\n".join((where(machine, rows), costs(rows), verdicts(lines, rows))), "bytes": sizes(rows)}
    if threads:
        found["throughput"] = "\n\n".join((where(machine, threads), throughput(threads), verdicts(lines, threads)))
        found["waits"] = all_waits(threads)
    if modes:
        found["modes"] = "\n\n".join((where(machine, modes), all_modes(modes), verdicts(lines, modes)))
    return found


def where(machine, results):
    rounds = sorted({len(samples) for result in results for samples in result.samples.values()})
    text = "{processors} × {processor}, Linux {kernel}, PostgreSQL {postgresql}".format(**machine)
    return f"{text}, {' to '.join(map(str, rounds))} rounds."


def verdicts(lines, results):
    names = {result.name for result in results}
    chosen = [f"    {'PASS' if passed else 'FAIL'}  {text}" for passed, text in lines if text.partition(":")[0] in names]
    return "\n".join(chosen)


def table(headings, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows))


def ranged(values, digits=2):
    return "–" if values is None else "**{}** ({}–{})".format(*report.three(values, digits))


def costs(results):
    peers = [name for name in report.variants_of(results[0]) if name not in (BARE, FLOOR, HANDMADE, OURS)]
    headings = ["µs of CPU per row", "bare", "over bare: audit_ext (min–max)", "floor", "PL/pgSQL", *peers]
    headings += ["audit_ext ÷ floor (min–max)", "PL/pgSQL ÷ audit_ext (min–max)", *(f"{peer} ÷ audit_ext" for peer in peers)]
    rows = []
    for result in results:
        over = {name: first(report.spread(report.overheads(result, name))) for name in result.samples}
        cells = [result.name, number(middle(result, BARE, "cpu_us")), ranged(report.spread(report.overheads(result, OURS)))]
        cells += [number(over.get(name)) for name in (FLOOR, HANDMADE, *peers)]
        cells += [ranged(report.of_floor(result)), ranged(report.gain(result), 1)]
        cells += [number(first(report.spread(report.quotients(report.overheads(result, peer), report.overheads(result, OURS)))), 1) for peer in peers]
        rows.append(cells)
    return table(headings, rows)


def sizes(results):
    headings = ["bytes per event", "needed", "log: heap", "index", "TOAST", "all", "WAL"]
    headings += ["heap + TOAST ÷ needed", "all ÷ needed", "WAL ÷ needed", "PL/pgSQL: log", "WAL"]
    rows = []
    for result in results:
        if ratios := report.of_needed(result):
            parts = [report.log_bytes(result, OURS, attribute) for _, attribute in report.LOG_PARTS]
            cells = [result.needed, *parts, report.log_bytes(result), report.wal_bytes(result)]
            hand = [report.log_bytes(result, HANDMADE), report.wal_bytes(result, HANDMADE)]
            rows.append([result.name, *(number(cell, 0) for cell in cells), *map(number, ratios), *(number(cell, 0) for cell in hand)])
    return table(headings, rows)


def throughput(results):
    headings = ["workload", "bare: tps", "p99 ms", "tps ÷ bare: audit_ext (min–max)", "PL/pgSQL", "p99 ÷ bare: audit_ext (min–max)", "PL/pgSQL"]
    headings += ["CPU per transaction ÷ bare: audit_ext", "PL/pgSQL", "bytes per event: needed", "log", "WAL", "PL/pgSQL: log", "WAL"]
    rows = []
    for result in results:
        of_bare = lambda name, attribute: report.times_bare(result, name, attribute)
        cells = [result.name, number(middle(result, BARE, "tps"), 0), number(middle(result, BARE, "p99_ms"))]
        for attribute in ("tps", "p99_ms"):
            cells += [ranged(of_bare(OURS, attribute)), number(first(of_bare(HANDMADE, attribute)))]
        cells += [number(first(of_bare(name, "cpu_us"))) for name in (OURS, HANDMADE)] + [number(result.needed, 0)]
        cells += [number(of(result, name), 0) for name in (OURS, HANDMADE) for of in (report.log_bytes, report.wal_bytes)]
        rows.append(cells)
    return table(headings, rows)


def all_modes(results):
    headings = ["workload", "mode", "tps", "tps ÷ bare (min–max)", "latency ms", "p99 ms", "CPU µs per transaction, worker included"]
    rows = []
    for result in results:
        for name in (name for name in report.variants_of(result) if name in (BARE, OURS, "async")):
            mode = {BARE: "not audited", OURS: "sync"}.get(name, name)
            cells = [result.name, mode, number(middle(result, name, "tps"), 0), ranged(report.times_bare(result, name, "tps"))]
            cells += [number(middle(result, name, attribute), digits) for attribute, digits in (("latency_ms", 3), ("p99_ms", 3), ("cpu_us", 0))]
            rows.append(cells)
    return table(headings, rows)


def all_waits(results):
    rows = [[result.name, name, waits.text(result.waits[name])] for result in results for name in (BARE, OURS) if name in result.waits]
    return table(["workload", "variant", "waits, share of the samples of active sessions"], rows)
