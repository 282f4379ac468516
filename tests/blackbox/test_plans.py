"""What the query functions read: partitions without what is asked for are left alone, indexes are used, and no more rows are
read than the page and what comes next to it.

The plans are those of the statements inside the functions, as auto_explain shows them.
"""

import datetime
import json
import re
from collections import Counter

import pytest
from year import UTC, Year, months

PAGE = 20


@pytest.fixture(scope="module")
def log(cluster, _template):
    """A year in monthly partitions, indexed where the time is over; the last weeks are in the partition being written."""
    end = datetime.datetime.now(UTC)
    year = Year(5, 60_000, 40, end - datetime.timedelta(minutes=5))
    name = "plans"
    cluster.create_db(name, _template)
    with cluster.connect(name) as conn:
        if conn.execute("SELECT FROM pg_available_extension_versions WHERE name = 'pg_stat_statements'").rowcount == 0:
            pytest.skip("this PostgreSQL comes without contrib")
        months(conn, year.start, end + datetime.timedelta(days=1))
        conn.execute("CREATE SCHEMA shop; CREATE TABLE shop.customer (id text PRIMARY KEY, name text, city int)")
        year.load(conn)
        # The log knows that table as the one that is there now.
        conn.execute("ALTER TABLE audit.relation DISABLE TRIGGER ALL; UPDATE audit.relation SET relid = 'shop.customer'::regclass WHERE table_name = 'customer'")
        conn.execute("INSERT INTO audit.local_layout SELECT relid, id FROM audit.relation WHERE table_name = 'customer'")
        conn.execute("ALTER TABLE audit.relation ENABLE ALWAYS TRIGGER append_only; ALTER TABLE audit.relation ENABLE ALWAYS TRIGGER append_only_row")
        while conn.execute("SELECT FROM audit.maintain(max_indexes => 50) AS m WHERE m.action = 'index'").rowcount:
            pass
        conn.execute("VACUUM ANALYZE audit.changeset, audit.event, audit.relation")
        yield Log(conn, year)
    cluster.drop_db(name)


class Log:
    def __init__(self, conn, year):
        self.conn, self.year = conn, year
        self.plans = []
        conn.add_notice_handler(self.note)
        conn.execute("LOAD 'auto_explain'; SET client_min_messages = log; SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on")
        conn.execute("SET random_page_cost = 1.1")  # as on an SSD
        conn.execute("SET auto_explain.log_nested_statements = on; SET auto_explain.log_format = json; SET auto_explain.log_timing = off")

    def note(self, notice):
        if "plan:" in notice.message_primary:
            self.plans.append(json.loads(notice.message_primary.split("plan:", 1)[1]))

    def scans(self, query, *arguments):
        """The scans of the log's partitions: (kind, partition, index, rows read, loops). And the rows of the answer."""
        self.conn.execute(query, arguments)  # what is planned once per session
        self.plans.clear()
        rows = self.conn.execute(query, arguments).fetchall()
        found = []
        for plan in self.plans:
            walk(plan["Plan"], found)
        return [Scan(node) for node in found], rows


def walk(node, found):
    name = node.get("Relation Name", "")
    if re.match(r"(event|changeset)_(\d{8}|default)$", name) and node["Actual Loops"] > 0:
        found.append(node)
    for child in node.get("Plans", []):
        if node["Node Type"] == "Bitmap Heap Scan":
            node["index"] = child.get("Index Name")
        walk(child, found)


class Scan:
    def __init__(self, node):
        self.kind = node["Node Type"]
        self.partition = node["Relation Name"]
        self.index = node.get("Index Name") or node.get("index") or indexes_below(node)
        # Of a lossy bitmap, what is rejected was read, too.
        rejected = node.get("Rows Removed by Filter", 0)
        if "brin" not in str(self.index):
            rejected += node.get("Rows Removed by Index Recheck", 0)
        self.rows = (node["Actual Rows"] + rejected) * node["Actual Loops"]

    def __repr__(self):
        return f"{self.kind} of {self.partition} by {self.index}: {self.rows} rows"


def indexes_below(node):
    names = [child.get("Index Name") or indexes_below(child) for child in node.get("Plans", [])]
    return next((name for name in names if name), None)


def closed(scans):
    """Those of partitions whose time is over."""
    newest = f"{datetime.datetime.now(UTC):%Y%m}01"
    return [scan for scan in scans if scan.partition[-8:].isdigit() and scan.partition[-8:] < newest]


def assert_by_index(scans):
    """Where the time is over, by a btree index, and not in vain."""
    for scan in scans:
        assert scan.index and "brin" not in scan.index, scan


def of_time(scans, since, until):
    """No partition outside that time."""
    for scan in scans:
        if scan.partition[-8:].isdigit():
            first = datetime.datetime.strptime(scan.partition[-8:], "%Y%m%d").replace(tzinfo=UTC)
            last = (first + datetime.timedelta(days=32)).replace(day=1)
            assert last > since and first < until, scan


def middle(log):
    """A month in the middle of the year, all of it over."""
    since = (log.year.start + datetime.timedelta(days=150)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return since, (since + datetime.timedelta(days=32)).replace(day=1)


@pytest.mark.parametrize("column", ["user_id", "tenant_id"])
def test_a_page_of_activity(log, column):
    since, until = middle(log)
    counts = Counter(getattr(e.changeset, column) for e in log.year.events if since <= e.changeset.at < until)
    # One of those who have just two pages.
    value = min((value for value, count in counts.items() if value and count >= 2 * PAGE), key=counts.get)
    query = f"SELECT cursor FROM audit.get_logs({column} => %s, since => %s, until => %s, page_size => {PAGE}, after => %s)"
    after = None
    for _ in range(2):  # the first page, and the next
        scans, rows = log.scans(query, value, since, until, after)
        assert len(rows) == PAGE
        of_time(scans, since, until)
        assert_by_index(scans)
        changesets = [scan for scan in scans if scan.partition.startswith("changeset")]
        events = [scan for scan in scans if scan.partition.startswith("event")]
        # Each part of the view reads them: to choose changesets, events of rows, other events. Of the last changeset all events.
        assert all(scan.rows <= PAGE + 1 for scan in changesets) and sum(scan.rows for scan in changesets) <= 3 * (PAGE + 1), changesets
        assert all(scan.rows <= PAGE + 6 for scan in events) and sum(scan.rows for scan in events) <= 2 * (PAGE + 6), events
        after = rows[-1][0]


def test_one_request(log):
    e = log.year.events[len(log.year.events) // 2]
    while e.changeset.request_id is None or e.changeset.at.day > 20:
        e = log.year.events[log.year.events.index(e) + 1]
    scans, rows = log.scans("SELECT * FROM audit.get_logs(request_id => %s)", e.changeset.request_id)
    assert len(rows) == len(e.changeset.events)
    old = closed(scans)
    assert_by_index(old)
    assert sum(scan.rows for scan in old) <= 3 * (len(rows) + 1), old


def test_failed_logins_of_an_address(log):
    since, until = log.year.end - datetime.timedelta(days=3), log.year.end
    scans, rows = log.scans("SELECT * FROM audit.failed_logins(%s, since => %s)", log.year.attacker, since)
    assert len(rows) == 60
    of_time(scans, since, until + datetime.timedelta(days=100))  # partitions of times to come are empty
    since, until = middle(log)
    scans, rows = log.scans(
        "SELECT * FROM audit.get_logs(action => 'auth.login_failed', ip_address => %s, since => %s, until => %s)",
        next(iter(log.year.home.values())), since, until,
    )  # fmt: skip
    of_time(scans, since, until)
    assert_by_index(scans)


def test_actions(log):
    since, until = middle(log)
    scans, rows = log.scans(f"SELECT * FROM audit.get_logs(action => 'user.role_changed', since => %s, until => %s, page_size => {PAGE})", since, until)
    of_time(scans, since, until)
    assert_by_index(scans)
    assert rows


def test_history_of_a_row(log):
    key = max(log.year.keys["customer"][:50], key=lambda key: sum(e.resource_id == key and e.resource == "shop.customer" for e in log.year.events))
    versions = [e for e in log.year.events if e.resource == "shop.customer" and e.resource_id == key]
    scans, rows = log.scans("SELECT * FROM audit.history('shop.customer', %s)", key)
    assert len(rows) == len(versions) > 3
    old = closed(scans)
    assert_by_index(old)
    # The key is found in other tables, too; then each version's changeset.
    same_key = sum(e.resource_id == key for e in log.year.events)
    assert sum(scan.rows for scan in old if scan.partition.startswith("event")) <= same_key
    assert sum(scan.rows for scan in old if scan.partition.startswith("changeset")) <= len(versions)


def test_statistics_of_a_month(log):
    """Reads the month, once each, and nothing else."""
    since, until = middle(log)
    scans, rows = log.scans("SELECT * FROM audit.statistics(%s, %s)", since, until)
    of_time(scans, since, until)
    number = sum(since <= e.changeset.at < until for e in log.year.events)
    assert sum(scan.rows for scan in scans if scan.partition.startswith("event")) <= number
    assert [row[2] for row in rows if row[0] == "total"] == [number]


def test_diff(log):
    changeset = log.year.changesets[len(log.year.changesets) // 3]
    scans, rows = log.scans("SELECT DISTINCT seq FROM audit.diff(%s)", changeset.id)
    assert len(rows) == len(changeset.events)
    of_time(scans, changeset.at, changeset.at + datetime.timedelta(microseconds=1))
    assert_by_index(scans)
    assert sum(scan.rows for scan in scans) <= 3 * (len(rows) + 1)
