"""What the tests of coverage share: a cluster that records DDL, as the extension does unless told otherwise, and questions
to it.

    from coveragelib import _template, cluster      in a test file: `db`, `conn`, `role` and `new_db` then are on such a cluster
"""

import pytest
from cluster import Cluster

TEMPLATE = "audit_template"


@pytest.fixture(scope="module")
def cluster():
    with Cluster(conf={"audit.log_ddl": "on"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def _template(cluster):
    cluster.create_db(TEMPLATE)
    with cluster.connect(TEMPLATE) as connection:
        connection.execute("CREATE EXTENSION audit_ext")
    return TEMPLATE


def told(conn, table=None):
    """(action, table, actor) of the events that tell of coverage, in order."""
    rows = conn.execute(
        "SELECT action, resource, session_role FROM audit.log WHERE operation = 'DDL'"
        " ORDER BY era, position NULLS LAST, command, seq"
    ).fetchall()
    return [(action.removeprefix("audit."), *rest) for action, *rest in rows if table in (None, rest[0])]


def actions(conn, table=None):
    return [action for action, *_ in told(conn, table)]


def gaps(conn, table):
    """(cause, actor) of the gaps in a table's coverage since it was first audited."""
    return conn.execute("SELECT cause, actor FROM audit.coverage_gaps(%s)", [table]).fetchall()


def covered(conn, table):
    """Whether a table is captured now, and the problem."""
    return conn.execute("SELECT audited, problem FROM audit.coverage WHERE target = %s::regclass", [table]).fetchone()
