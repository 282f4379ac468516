"""pgbench's standard transaction, by several clients at once: throughput, latency, and what the sessions wait for."""

import os
import re
import shutil
import time

import measure
import needed
import tables
from measure import Sample
from waits import Sampler
from workload import Result, Wrong, check_events, rotated


class Pgbench:
    """TPC-B-like: three UPDATEs, a SELECT and an INSERT, all four tables audited."""

    rounds = 3
    CHANGES = (
        ("pgbench_accounts", "aid", ("abalance",)),
        ("pgbench_tellers", "tid", ("tbalance",)),
        ("pgbench_branches", "bid", ("bbalance",)),
        ("pgbench_history", None, ()),
    )
    EVENTS = len(CHANGES)

    def __init__(self, cluster, scale, seconds, clients):
        self.seconds = seconds
        self.state = tables.pgbench(cluster, scale)
        self.modes = [(count, sync) for sync in ("off", "on") for count in clients]
        self.names = tuple(f"pgbench-{count}-{'sync' if sync == 'on' else 'async'}" for count, sync in self.modes)
        self.results = tuple(
            Result(
                name,
                f"pgbench, scale {scale}, {count} client{'s' if count > 1 else ''}, synchronous_commit and fsync {sync}, {seconds} s",
                "transaction",
                "pgbench",
                self.EVENTS,
            )
            for name, (count, sync) in zip(self.names, self.modes)
        )

    def round(self, lab, number, selected):
        for result, (clients, sync) in zip(self.results, self.modes):
            if result.name not in selected:
                continue
            # Without fsync a synchronous commit would wait for nothing.
            lab.cluster.configure(fsync=sync)
            lab.cluster.reload()
            for variant in rotated(lab.variants, number):
                with lab.database(self.state, variant) as name:
                    result.add(variant.name, self._measure(lab, variant, name, clients, sync, result))
        lab.cluster.configure(fsync="off")
        lab.cluster.reload()

    def _measure(self, lab, variant, name, clients, sync, result):
        cluster = lab.cluster
        with lab.connect(name, variant) as conn:
            for table in self.state.tables:
                conn.execute(f"SELECT count(*) FROM {table}")
            log = variant.log_tables(conn)
            size = measure.size_of(conn, log)
            sampler = Sampler(lab, name, variant)
            lab.checkpoint()
            cpu, wal = measure.reaped_seconds(cluster.pid), measure.wal_position(lab.admin)
            directory = cluster.scratch / "pgbench"
            cluster.run(["mkdir", directory])
            try:
                sampler.start()
                output = cluster.run(
                    [cluster.bin("pgbench"), "-n", "-M", "prepared", "-c", clients, "-j", clients, "-T", self.seconds]
                    + ["-l", "--log-prefix", directory / "log", name],
                    env={**os.environ, **cluster.env, "PGOPTIONS": variant.options(synchronous_commit=sync)},
                ).stdout
                latencies = sorted(
                    int(line.split()[2]) for file in directory.iterdir() for line in file.read_text().splitlines()
                )
            finally:
                shutil.rmtree(directory)
                sampler.stop()
            self._await_exit(lab, name)
            self._settle(lab, variant, name, conn)
            transactions = len(latencies)
            cpu, wal = measure.reaped_seconds(cluster.pid) - cpu, measure.wal_records(lab.admin, wal, measure.wal_position(lab.admin))
            check_events(variant, conn, 0, transactions * self.EVENTS)
            size = measure.size_of(conn, log) - size
            result.add_waits(variant.name, sampler.close())
            if variant.name == "audit_ext":
                each = sum(needed.event(conn, table, key, changed) for table, key, changed in self.CHANGES)
                result.needed = (each + needed.changeset(conn, variant)) / self.EVENTS
        return Sample(
            cpu_us=cpu * 1e6 / transactions,
            wall_us=sum(latencies) / transactions,
            wal_bytes=wal / transactions,
            log_heap=size.heap / transactions,
            log_index=size.index / transactions,
            log_toast=size.toast / transactions,
            tps=float(re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)[1]),
            latency_ms=sum(latencies) / transactions / 1000,
            p99_ms=latencies[min(transactions - 1, transactions * 99 // 100)] / 1000,
        )

    def _settle(self, lab, variant, name, conn):
        """What is recorded with the transaction is there."""

    @staticmethod
    def _await_exit(lab, name):
        """Waits until the postmaster has reaped pgbench's backends, and so counts their time as its own children's."""
        deadline = time.monotonic() + 10
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'pgbench'"
        while lab.admin.execute(query, [name]).fetchone()[0]:
            if time.monotonic() > deadline:
                raise Wrong("pgbench's sessions do not end")
            time.sleep(0.01)
        time.sleep(0.05)
