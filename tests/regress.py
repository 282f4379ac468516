#!/usr/bin/python3
"""regress.py {sql,isolation} [--pg N] [--accept] [TEST...]

Runs the SQL contract (tests/sql, with pg_regress) or the two-session tests (tests/isolation, with
pg_isolation_regress) against a private cluster. Each test gets a database of its own with the
extension in it, so none depends on what another left behind. Both drivers know `name_1.out` to
`name_9.out` as further accepted outputs of `name`: versions differ. `--accept` writes what came out
to expected/: review the difference before you commit it.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS / "blackbox"))

from cluster import Cluster, pg_config_of  # noqa: E402

TEMPLATE = "audit_template"
KINDS = {
    "sql": ("sql", ".sql", "regress/pg_regress"),
    "isolation": ("specs", ".spec", "isolation/pg_isolation_regress"),
}


class Driver:
    def __init__(self, kind: str, cluster: Cluster, output: Path):
        self.folder, self.suffix, program = KINDS[kind]
        self.home = TESTS / kind
        self.cluster = cluster
        self.output = output
        pgxs = subprocess.check_output([cluster.pg_config, "--pgxs"], text=True).strip()
        self.program = Path(pgxs).parents[1] / "test" / program

    def all_tests(self) -> list[str]:
        return sorted(path.stem for path in (self.home / self.folder).glob(f"*{self.suffix}"))

    def run(self, test: str) -> tuple[str | None, bool]:
        """What went wrong, None if nothing did, and whether the server survived it."""
        dbname = f"{self.home.name}_{test.replace('-', '_')}"
        self.cluster.create_db(dbname, TEMPLATE)
        logged = len(self.cluster.log)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        env |= {**self.cluster.env, "PG_REGRESS_DIFF_OPTS": "-U3"}
        command = [self.program, "--use-existing", f"--dbname={dbname}", f"--bindir={self.cluster.bin_dir}"]
        command += [f"--inputdir={self.home}", f"--outputdir={self.output}"]
        command += [f"--host={self.cluster.socket_dir}", f"--port={self.cluster.port}"]
        command += [f"--user={self.cluster.user}", test]
        done = subprocess.run(
            command, cwd=self.output, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        log = self.cluster.log[logged:]
        if "was terminated by signal" in log:
            self.cluster.await_ready()
            return done.stdout + log[-4000:], False
        self.cluster.drop_db(dbname)
        if done.returncode == 0:
            return None, True
        differences = self.output / "regression.diffs"
        text = differences.read_text(errors="replace") if differences.exists() else ""
        return text or done.stdout, True

    def accept(self, test: str) -> None:
        expected = self.home / "expected"
        expected.mkdir(exist_ok=True)
        shutil.copyfile(self.output / "results" / f"{test}.out", expected / f"{test}.out")


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--pg", default=os.environ.get("AUDIT_PG", "15"))
    parser.add_argument("--accept", action="store_true")
    parser.add_argument("tests", nargs="*")
    options = parser.parse_args()

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    passed = failed = 0
    with (
        Cluster(pg_config_of(options.pg)) as cluster,
        tempfile.TemporaryDirectory(prefix="ax.", dir=os.environ.get("AUDIT_TMP")) as output,
    ):
        driver = Driver(options.kind, cluster, Path(output))
        cluster.create_db(TEMPLATE)
        cluster.psql("CREATE EXTENSION audit_ext", TEMPLATE)
        for test in options.tests or driver.all_tests():
            trouble, survived = driver.run(test)
            if trouble is not None and survived and options.accept:
                driver.accept(test)
                print(f"  accepted  {test}", flush=True)
            elif trouble is not None:
                failed += 1
                print(f"  FAILED    {test}\n{trouble}", flush=True)
            else:
                passed += 1
                print(f"  ok        {test}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
