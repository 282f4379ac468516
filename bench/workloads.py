"""All workloads, in the order in which they are measured."""

import tables
from bulk import Bulk
from modes import Modes
from single import Single
from tpcb import Pgbench

LARGE = ((1, 10_000), (32, 500), (1024, 24))
"""Kilobytes of a large value, and rows."""


def all_of(cluster, size):
    empty = tables.mixed_empty(size.rows, cluster.scratch)
    filled = tables.mixed_filled(size.rows)
    # Some trails add a column of their own.
    copy = f"COPY item ({', '.join(tables.MIXED_COLUMNS)}) FROM '{tables.copy_file(cluster.scratch)}'"
    insert, update, delete = "INSERT INTO item SELECT * FROM source", "UPDATE item SET amount = amount + 1", "DELETE FROM item"
    wide, widely = tables.wide(size.wide_rows), "UPDATE wide SET counter = counter + 1"
    return [
        Bulk("bulk-insert", "INSERT … SELECT, 12-column table", empty, insert, size.rows, image="source"),
        Bulk("bulk-copy", "COPY, 12-column table", empty, copy, size.rows, image="source"),
        Bulk("bulk-update", "UPDATE of 1 of 12 columns", filled, update, size.rows, "update", changed=("amount",)),
        Bulk("bulk-delete", "DELETE, 12-column table", filled, delete, size.rows),
        Bulk("wide-update", "UPDATE of 1 of 100 columns", wide, widely, size.wide_rows, "wide", changed=("counter",), warm_up=f"{widely} WHERE id = 1"),
        Single(size.rows, size.statements),
        *large(size.large_share),
        Pgbench(cluster, size.scale, size.seconds, size.clients),
        Modes(cluster, size.scale, size.seconds, size.clients),
    ]


def large(share):
    """INSERT, UPDATE of another column and of the value itself, for each type and size of large values."""
    for kind, (_, _, change) in tables.LARGE_TYPES.items():
        for kilobytes, rows in LARGE:
            rows = max(2, round(rows * share))
            state = tables.large(kind, kilobytes, rows)
            name, values = f"large-{kind}-{kilobytes}k", f"{kind} values of {kilobytes:,} kB"
            for what, title, statement, changed in (
                ("insert", "INSERT of", "INSERT INTO large SELECT * FROM source", ()),
                ("other", "UPDATE of another column beside", "UPDATE large SET counter = counter + 1", ("counter",)),
                ("value", "UPDATE of", f"UPDATE large SET document = {change}", ("document",)),
            ):
                image = "source" if what == "insert" else "large"
                warm_up = "UPDATE large SET counter = counter WHERE id = 1"
                yield Bulk(f"{name}-{what}", f"{title} {values}", state, statement, rows, "large", image, changed, warm_up, rounds=3)
