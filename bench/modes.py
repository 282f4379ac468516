"""pgbench's standard transaction with the tables in mode async, in mode sync, and bare, in one run: the library is preloaded for all."""

import time
from dataclasses import replace

from report import BARE, OURS
from tpcb import Pgbench
from workload import Result, Wrong, rotated

ASYNC = "async"


class Modes(Pgbench):
    def __init__(self, cluster, scale, seconds, clients):
        super().__init__(cluster, scale, seconds, clients)
        self.clients = clients
        self.names = tuple(f"modes-{count}" for count in clients)
        title = "pgbench, scale {}, {} client{}, library preloaded, synchronous_commit and fsync off, {} s"
        self.results = tuple(
            Result(name, title.format(scale, count, "s" if count > 1 else "", seconds), "transaction", "modes", self.EVENTS)
            for name, count in zip(self.names, clients)
        )

    def round(self, lab, number, selected):
        ours = [variant for variant in lab.variants if variant.name == OURS]
        bare = [variant for variant in lab.variants if variant.name == BARE]
        later = [replace(variant, name=ASYNC, enable="SELECT audit.enable(:table, mode => 'async')") for variant in ours]
        if ours:
            lab.restart(shared_preload_libraries="audit_ext")
        for result, clients in zip(self.results, self.clients):
            if result.name in selected:
                for variant in rotated(bare + ours + later, number):
                    with lab.database(self.state, variant) as name:
                        result.add(variant.name, self._measure(lab, variant, name, clients, "off", result))
        if ours:
            lab.restart(shared_preload_libraries="")

    def _settle(self, lab, variant, name, conn):
        """Waits until the worker has written all and left, so that what it took counts."""
        if not variant.audits:
            return
        waiting = (
            (conn, "SELECT count(*) FROM audit.in_transit", []),
            (lab.admin, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit worker' AND datname = %s", [name]),
        )
        deadline = time.monotonic() + 300
        for session, query, arguments in waiting:
            while session.execute(query, arguments).fetchone()[0]:
                if time.monotonic() > deadline:
                    raise Wrong("the audit worker does not come to an end")
                time.sleep(0.05)
        time.sleep(0.05)
