"""The medians as the Markdown tables of docs/performance.md."""

import report
import waits
from report import BARE, FLOOR, HANDMADE, OURS, first, middle, number


def tables(results):
    rows = [result for result in results if result.kind != "pgbench"]
    threads = [result for result in results if result.kind == "pgbench"]
    parts = [costs(rows), sizes(rows + threads), throughput(threads), all_waits(threads)]
    return "\n\n".join(part for part in parts if part)


def table(headings, rows):
    if not rows:
        return ""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows))


def costs(results):
    peers = [name for result in results[:1] for name in report.variants_of(result) if name not in (BARE, FLOOR, HANDMADE, OURS)]
    headings = ["µs of CPU per row", "bare", "over bare: audit_ext (min–max)", "floor", "PL/pgSQL", *peers]
    headings += ["audit_ext ÷ floor (min–max)", "PL/pgSQL ÷ audit_ext (min–max)", *(f"{peer} ÷ audit_ext" for peer in peers)]

    def ranged(values, digits=2):
        return "–" if values is None else "**{}** ({}–{})".format(*report.three(values, digits))

    rows = []
    for result in results:
        over = {name: first(report.spread(report.overheads(result, name))) for name in result.samples}
        cells = [result.name, number(middle(result, BARE, "cpu_us")), ranged(report.spread(report.overheads(result, OURS)))]
        cells += [number(over.get(name)) for name in (FLOOR, HANDMADE, *peers)]
        cells += [ranged(report.of_floor(result)), ranged(report.gain(result), 1)]
        rows.append(cells + [number(over[peer] / over[OURS], 1) for peer in peers])
    return table(headings, rows)


def sizes(results):
    headings = ["bytes per event", "needed", "log: heap", "index", "TOAST", "all", "WAL", "heap + TOAST ÷ needed", "PL/pgSQL: log", "WAL"]
    rows = []
    for result in results:
        if ratios := report.of_needed(result):
            parts = [report.log_bytes(result, OURS, attribute) for _, attribute in report.LOG_PARTS]
            cells = [result.needed, *parts, report.log_bytes(result), report.wal_bytes(result)]
            hand = [report.log_bytes(result, HANDMADE), report.wal_bytes(result, HANDMADE)]
            rows.append([result.name, *(number(cell, 0) for cell in cells), number(ratios[0]), *(number(cell, 0) for cell in hand)])
    return table(headings, rows)


def throughput(results):
    headings = ["workload", "bare: tps", "p99 ms", "tps ÷ bare: audit_ext (min–max)", "PL/pgSQL", "p99 ÷ bare: audit_ext", "PL/pgSQL", "CPU per transaction ÷ bare: audit_ext", "PL/pgSQL"]
    rows = []
    for result in results:
        of_bare = lambda name, attribute: number(first(report.times_bare(result, name, attribute)))
        tps = report.three(report.times_bare(result, OURS, "tps"))
        cells = [result.name, number(middle(result, BARE, "tps"), 0), number(middle(result, BARE, "p99_ms"))]
        cells += ["**{}** ({}–{})".format(*tps), of_bare(HANDMADE, "tps")]
        rows.append(cells + [of_bare(name, attribute) for attribute in ("p99_ms", "cpu_us") for name in (OURS, HANDMADE)])
    return table(headings, rows)


def all_waits(results):
    rows = [[result.name, name, waits.text(result.waits[name])] for result in results for name in (BARE, OURS) if name in result.waits]
    return table(["workload", "variant", "waits, share of the samples of active sessions"], rows)
