"""The bench itself: what its files have to look like, that its verdicts follow the figures, and, long, that its programs
run through. Times are never tested."""

import json
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
import sys

import pytest

from cluster import ROOT

BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

import growth  # noqa: E402
import markdown  # noqa: E402
import report  # noqa: E402
import requirements  # noqa: E402
import variants  # noqa: E402
import waits  # noqa: E402
from measure import Sample  # noqa: E402
from workload import FLOOR, Result  # noqa: E402


@pytest.mark.parametrize("path", [*BENCH.glob("*.sql"), *BENCH.glob("peers/*.sql")], ids=lambda path: path.stem)
def test_a_trails_file_keeps_to_the_contract(path, tmp_path):
    for line in path.read_text().splitlines():
        if line.startswith("-- include:"):
            (tmp_path / line.split()[-1]).write_text("SELECT 'theirs';\n\\echo 'of psql'\n")
    trail = variants.read(path.stem, path, tmp_path)
    assert trail.audits and trail.setup and trail.log
    assert "include" not in trail.setup and "echo" not in trail.setup


@pytest.mark.parametrize(
    "text", ["-- section: enabel\nSELECT 1\n", "-- section: settings\nno value\n", "-- section: setup\n-- include: other.sql\n"]
)
def test_a_file_that_does_not_is_refused(tmp_path, text):
    file = tmp_path / "trail.sql"
    file.write_text(text)
    with pytest.raises(variants.ContractError):
        variants.read("trail", file)


def result(kind="bulk", name="bulk-insert", **cpu):
    found = Result(name, "", "row", kind)
    for variant, values in cpu.items():
        for value in values:
            found.add(variant, Sample(cpu_us=value))
    return found


def test_ratios_are_taken_within_the_round():
    found = result(bare=[1, 2, 1], plpgsql=[13, 8, 9], audit_ext=[3, 4, 3], **{FLOOR: [1, 2, 4]})
    assert report.gain(found) == (4, 3, 6)
    assert report.of_floor(found) == (1, 0.5, 2)
    assert report.spread(report.overheads(found, "audit_ext")) == (2, 2, 2)


@pytest.mark.parametrize(("ours", "verdicts"), [(3, [True, True, True]), (3.5, [True, False, True]), (4.1, [False, False, False])])
def test_verdicts_of_cost(ours, verdicts):
    found = result(bare=[1], plpgsql=[13], audit_ext=[ours], **{FLOOR: [2.2]})
    assert [passed for passed, _ in requirements.cost(found)] == verdicts


def pgbench_result(**own):
    found = Result("pgbench-2-async", "", "transaction", "pgbench", 4)
    for variant, tps, p99 in (("bare", 100, 1), ("audit_ext", own.get("tps", 80), own.get("p99", 1.3))):
        found.add(variant, Sample(tps=tps, p99_ms=p99))
        found.add_waits(variant, {waits.ACTIVE: 100, **(own.get("waits", {}) if variant == "audit_ext" else {})})
    return found


@pytest.mark.parametrize(
    ("own", "verdicts"),
    [
        ({}, [True, True, True]),
        ({"tps": 79}, [False, True, True]),
        ({"p99": 1.31}, [True, False, True]),
        ({"waits": {waits.Wait("Lock", "transactionid", "account"): 90}}, [True, True, True]),
        ({"waits": {waits.Wait("Lock", "extend", "audit.event_default", True): 1}}, [True, True, False]),
        # Waiting for pages is the log's only where its pages were seen in several sessions' hands.
        ({"waits": {waits.Wait("LWLock", "BufferContent"): 9}}, [True, True, True]),
        (
            {"waits": {waits.Wait("LWLock", "BufferContent"): 9, waits.LOOKS: 1, waits.Wait(waits.PINNED, "look", "audit.event_default", True): 1}},
            [True, True, False],
        ),
    ],
)
def test_verdicts_of_throughput(own, verdicts):
    assert [passed for passed, _ in requirements.throughput(pgbench_result(**own))] == verdicts


def test_figures_can_be_reported_again():
    both = [result(bare=[1, 2], audit_ext=[3, 4]), pgbench_result(waits={waits.Wait("Lock", "extend", "audit.event_default", True): 1, waits.LOOKS: 2})]
    figures = json.loads(json.dumps(report.as_json(both, {}, [])))
    assert list(report.from_json(figures)) == both


def test_tables_go_to_their_places_in_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- cost -->\nold\n<!-- /cost -->\nafter\n")
    for text in ("new \\1", "newer"):
        markdown.write(page, {"cost": text})
        assert page.read_text() == f"before\n<!-- cost -->\n\n{text}\n\n<!-- /cost -->\nafter\n"
    with pytest.raises(ValueError):
        markdown.write(page, {"waits": "none"})


def test_steps_of_a_curve():
    assert growth.steps(1, 5_000) == [1, 10, 100, 1_000, 5_000]
    assert growth.steps(1, 120) == [1, 10, 100, 120]


@pytest.mark.parametrize(
    ("instructions", "hashing", "grown"),
    [(1_055, 100, False), (1_056, 100, True), (900, 100, False), (1_000, 105, False), (1_000, 111, True)],
)
def test_growth_of_instruction_counts(instructions, hashing, grown):
    loader = SourceFileLoader("instructions", str(BENCH / "instructions"))
    program = module_from_spec(spec_from_loader("instructions", loader))
    loader.exec_module(program)
    now, kept = {"instructions": instructions, "hashing": hashing}, {"instructions": 1_000, "hashing": 100}
    assert program.grown(now, kept, bare=1_000) == grown


@pytest.mark.long
@pytest.mark.parametrize("program", ["bench", "curves"])
def test_it_runs_through(program, pytestconfig, tmp_path):
    file = tmp_path / "figures.json"
    command = [BENCH / program, "--quick", "--pg", str(pytestconfig.getoption("--pg")), "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    if program == "curves":
        assert set(figures["points"]) == {curve.name for curve in growth.CURVES}
        return
    for name, workload in figures["workloads"].items():
        assert {"bare", "plpgsql", "audit_ext"} <= set(workload["variants"]), name
        assert (FLOOR in workload["variants"]) == (workload["kind"] != "pgbench"), name
        assert workload["needed_bytes_per_event"] > 0, name
