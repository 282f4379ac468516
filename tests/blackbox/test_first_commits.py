"""The first audited transactions of a database, or of a cluster after a restore, all at once.

The first record written in a cluster begins an era (audit.ledger). Sessions that commit their first records at the same
time must not get in each other's way: auditing is no reason for a business transaction to fail.
"""

from concurrent.futures import ThreadPoolExecutor


def test_first_commits_at_once(new_cluster):
    # Each commit takes a while, so that the others come in the midst of it.
    cluster = new_cluster({"fsync": "on", "commit_delay": "50000", "commit_siblings": "0"})
    cluster.create_db("first")
    setup = cluster.connect("first")
    setup.execute("CREATE EXTENSION audit_ext")
    setup.execute("CREATE TABLE t (id int PRIMARY KEY)")
    setup.execute("SELECT audit.enable('t')")

    sessions = [cluster.connect("first") for _ in range(8)]
    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(lambda number: sessions[number].execute("INSERT INTO t VALUES (%s)", [number]), range(8)))

    assert setup.execute("SELECT count(*) FROM audit.log").fetchone() == (8,)
    assert setup.execute("SELECT array_agg(DISTINCT era) FROM audit.changeset").fetchone() == ([1],)
    assert setup.execute("SELECT count(*) FROM audit.ledger").fetchone() == (1,)
    for session in sessions:
        session.close()
    setup.close()
