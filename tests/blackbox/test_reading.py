"""The questions that auditors ask, over a year that was made up, answered by plain Python loops beside it."""

import datetime
import json
import random
import threading
from collections import Counter

import psycopg
import pytest
from auditlib import sqlstate
from year import TABLES, UTC, Year, months

FILTERS = ("user_id", "tenant_id", "action", "resource", "resource_id", "status", "ip_address", "request_id")


class Log:
    def __init__(self, year, cluster, name):
        self.year = year
        self.cluster = cluster
        self.name = name
        self.conn = cluster.connect(name)

    def pages(self, sizes, conn=None, **filters):
        """All rows that get_logs returns, page by page: (changeset_id, seq)."""
        arguments = ", ".join(f"{name} => %({name})s" for name in filters)
        after = None
        while True:
            size = next(sizes)
            rows = (conn or self.conn).execute(
                f"SELECT changeset_id, seq, cursor FROM audit.get_logs({arguments}{', ' if filters else ''}"
                "page_size => %(size)s, after => %(after)s)",
                {**filters, "size": size, "after": after},
            ).fetchall()
            assert len(rows) <= size
            yield from ((row[0], row[1]) for row in rows)
            if len(rows) < size:
                return
            after = rows[-1][2]

    def expected(self, **filters):
        """The events that meet the filters, newest first."""
        return [e for e in reversed(self.year.events) if meets(e, **filters)]

    def value(self, query, *arguments):
        return self.conn.execute(query, arguments).fetchone()[0]


def meets(e, since=None, until=None, **filters):
    c = e.changeset
    if since is not None and c.at < since or until is not None and c.at >= until:
        return False
    for name, wanted in filters.items():
        value = getattr(e if hasattr(e, name) else c, name)
        if name == "ip_address" and wanted.endswith("/16"):
            if value is None or value.split(".")[:2] != wanted.split(".")[:2]:
                return False
        elif name == "action" and wanted.endswith("*"):
            if value is None or not value.startswith(wanted[:-1]):
                return False
        elif value != wanted:
            return False
    return True


def keys(events):
    return [(e.changeset.id, e.seq) for e in events]


@pytest.fixture(scope="module", params=["small", pytest.param("large", marks=pytest.mark.long)])
def log(request, cluster, _template):
    end = datetime.datetime.now(UTC) - datetime.timedelta(minutes=5)
    year = Year(20261121, 20_000, 40, end) if request.param == "small" else Year(7, 1_000_000, 400, end)
    name = f"year_{request.param}"
    cluster.create_db(name, _template)
    log = Log(year, cluster, name)
    # The newest rows go to the default partition, as they do where nobody makes partitions.
    months(log.conn, year.start, end - datetime.timedelta(days=20))
    year.load(log.conn)
    yield log
    log.conn.close()
    cluster.drop_db(name)


def some_filters(log, r):
    """A choice of filters that a user might make: the values are those of some event, mostly."""
    e = r.choice(log.year.events)
    c = e.changeset
    values = {
        "user_id": c.user_id,
        "tenant_id": c.tenant_id,
        "action": e.action and r.choice([e.action, e.action.split(".")[0] + ".*"]),
        "resource": e.resource,
        "resource_id": e.resource_id,
        "status": e.status,
        "ip_address": c.ip_address and r.choice([c.ip_address, ".".join(c.ip_address.split(".")[:2]) + ".0.0/16"]),
        "request_id": c.request_id,
    }
    chosen = {name: values[name] for name in r.sample(FILTERS, r.choice([1, 1, 1, 2, 2, 3])) if values[name] is not None}
    if r.random() < 0.4:
        chosen["since"] = c.at - datetime.timedelta(days=r.choice([0, 1, 40, 400]))
    if r.random() < 0.4:
        chosen["until"] = c.at + datetime.timedelta(days=r.choice([0, 1, 40]), microseconds=r.choice([0, 1]))
    return chosen


def test_filters_pages_and_counts(log):
    r = random.Random(4)
    found = 0
    for _ in range(120):
        filters = some_filters(log, r)
        expected = keys(log.expected(**filters))
        sizes = iter(lambda: r.choice([3, 50, 100, 999]) if len(expected) < 5000 else 2000, None)
        assert list(log.pages(sizes, **filters)) == expected, filters
        arguments = ", ".join(f"{name} => %s" for name in filters)
        assert log.value(f"SELECT audit.count_logs({arguments})", *filters.values()) == len(expected), filters
        found += len(expected)
    assert found > 10_000


def test_everything_newest_first(log):
    assert list(log.pages(iter(lambda: 10_000, None))) == keys(reversed(log.year.events))
    assert log.value("SELECT audit.count_logs()") == len(log.year.events)


def test_no_page_is_empty_without_need(log):
    """A page is short only at the end."""
    user = log.year.busy
    expected = log.expected(user_id=user)
    rows = log.conn.execute("SELECT * FROM audit.get_logs(user_id => %s, page_size => %s)", [user, len(expected)]).fetchall()
    assert len(rows) == len(expected)


def test_rows_are_those_of_the_view(log):
    e = log.expected(tenant_id=log.year.tenants[0], resource="shop.stock")[7]
    row, cursor = log.conn.execute(
        "SELECT to_jsonb(g) - 'cursor', cursor FROM audit.get_logs(request_id => %s) g WHERE seq = %s",
        [e.changeset.request_id, e.seq],
    ).fetchone()
    view = log.value("SELECT to_jsonb(l) FROM audit.log l WHERE changeset_id = %s AND seq = %s", e.changeset.id, e.seq)
    assert row == view
    assert cursor.startswith("v1.")
    assert row["new_row"] == e.new_row and row["old_row"] == e.old_row and row["user_id"] == e.changeset.user_id


def test_a_changeset_of_many_events(log):
    """It is read page by page too, from its last event to its first."""
    bulk = log.expected(user_id="importer")
    assert len(bulk) == 3000
    assert list(log.pages(iter(lambda: 130, None), user_id="importer")) == keys(bulk)
    since, until = bulk[0].changeset.at - datetime.timedelta(days=1), bulk[0].changeset.at + datetime.timedelta(days=1)
    around = keys(log.expected(since=since, until=until))
    assert list(log.pages(iter(lambda: 999, None), since=since, until=until)) == around
    updates = keys(log.expected(user_id="importer", resource_id=bulk[100].resource_id))
    assert list(log.pages(iter(lambda: 1, None), user_id="importer", resource_id=bulk[100].resource_id)) == updates


def test_pages_while_a_writer_runs(log):
    """Each event that was there is returned once, whatever comes meanwhile."""
    name = f"{log.name}_writer"
    log.conn.close()  # PostgreSQL copies no database that somebody uses
    log.cluster.create_db(name, log.name)
    log.conn = log.cluster.connect(log.name)
    try:
        with log.cluster.connect(name) as conn, log.cluster.connect(name) as writer:
            conn.execute("CREATE TABLE t (id serial PRIMARY KEY); SELECT audit.enable('t')")
            conn.execute("CREATE FUNCTION work() RETURNS void LANGUAGE sql AS $$ INSERT INTO public.t DEFAULT VALUES $$")
            tenant = log.year.tenants[0]
            stop = threading.Event()
            written = []

            def write():
                while not stop.is_set():
                    with writer.transaction():
                        writer.execute("SELECT audit.set_context(tenant_id => %s)", [tenant])
                        writer.execute("SELECT work() FROM generate_series(1, 3)")
                    written.append(3)
                    stop.wait(0.01)  # the reader is to come to old events as well

            thread = threading.Thread(target=write)
            thread.start()
            try:
                while len(written) < 5:
                    stop.wait(0.01)
                expected = keys(log.expected(tenant_id=tenant))
                known = set(expected)
                for size in (7, 100):
                    limited = expected[: 62 * size]
                    returned = []
                    for key in log.pages(iter(lambda: size, None), conn=conn, tenant_id=tenant):
                        returned.append(key)
                        if key in known and len(returned) > 61 * size:
                            break
                    assert len(set(returned)) == len(returned)
                    old = [key for key in returned if key in known]
                    assert old == limited[: len(old)] and len(old) > 20 * size
            finally:
                stop.set()
                thread.join()
            assert conn.execute("SELECT audit.count_logs(resource => 'public.t')").fetchone()[0] == sum(written)
    finally:
        log.cluster.drop_db(name)


def test_what_did_this_user_do(log):
    since = log.year.end - datetime.timedelta(days=30)
    rows = log.conn.execute("SELECT changeset_id, seq FROM audit.user_activity(%s, %s)", [log.year.busy, since]).fetchall()
    assert rows == keys(log.expected(user_id=log.year.busy, since=since))[:100]
    rows = log.conn.execute("SELECT changeset_id, seq FROM audit.user_activity(%s, max_rows => 7)", [log.year.busy]).fetchall()
    assert rows == keys(log.expected(user_id=log.year.busy))[:7]


def test_what_happened_in_this_tenant(log):
    tenant = log.year.tenants[3]
    since = log.year.end - datetime.timedelta(days=90)
    rows = log.conn.execute("SELECT changeset_id, seq FROM audit.tenant_activity(%s, %s, 10000)", [tenant, since]).fetchall()
    assert rows == keys(log.expected(tenant_id=tenant, since=since))[:10000]
    # By default the last 30 days, counted from now.
    rows = log.conn.execute("SELECT changeset_id, seq FROM audit.tenant_activity(%s, max_rows => 10000)", [tenant]).fetchall()
    month = keys(log.expected(tenant_id=tenant, since=log.year.end - datetime.timedelta(days=29)))[:10000]
    assert rows[: len(month)] == month


def test_who_failed_to_log_in(log):
    since = log.year.end - datetime.timedelta(days=60)
    failed = {"action": "auth.login_failed", "since": since}
    for arguments in ({}, {"ip_address": log.year.attacker}, {"user_id": log.year.victim}, {"ip_address": "198.51.0.0/16"}):
        named = "".join(f"{name} => %({name})s, " for name in arguments)
        rows = log.conn.execute(
            f"SELECT changeset_id, seq FROM audit.failed_logins({named}since => %(since)s, max_rows => 9999)",
            {**arguments, "since": since},
        ).fetchall()
        assert rows == keys(log.expected(**failed, **arguments)) and len(rows) >= 15
    day = log.expected(action="auth.login_failed", since=log.year.end - datetime.timedelta(hours=23))
    rows = log.conn.execute("SELECT changeset_id, seq FROM audit.failed_logins()").fetchall()
    assert rows[: len(day)] == keys(day)


@pytest.mark.parametrize("days", [1, 30, 400])
@pytest.mark.parametrize("of_tenant", [False, True])
def test_statistics(log, days, of_tenant):
    tenant = log.year.tenants[0] if of_tenant else None
    until = log.year.end - datetime.timedelta(days=3)
    since = until - datetime.timedelta(days=days)
    expected = Counter()
    for e in log.expected(since=since, until=until, **({"tenant_id": tenant} if of_tenant else {})):
        c = e.changeset
        expected["total", None] += 1
        expected["operation", e.operation] += 1
        if e.action:
            expected["action", e.action] += 1
        expected["status", e.status] += 1
        expected["user", c.user_id] += 1
        expected["tenant", c.tenant_id] += 1
        if e.operation != "APPLICATION":
            expected["table", e.resource] += 1
        if days <= 2:
            expected["hour", f"{c.at:%Y-%m-%d %H}:00"] += 1
        else:
            expected["day", f"{c.at:%Y-%m-%d}"] += 1
    rows = log.conn.execute("SELECT * FROM audit.statistics(%s, %s, %s)", [since, until, tenant]).fetchall()
    assert {(dimension, key): events for dimension, key, events in rows} == expected
    order = ["total", "operation", "action", "status", "user", "tenant", "table", "hour", "day"]
    assert [order.index(row[0]) for row in rows] == sorted(order.index(row[0]) for row in rows)


def security(log, **arguments):
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    cursor = log.conn.execute(f"SELECT * FROM audit.security_events({named})", arguments)
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def test_security_events(log):
    year = log.year
    since = year.end - datetime.timedelta(days=7)
    found = security(log, since=since)
    assert [row["occurred_at"] for row in found] == sorted((row["occurred_at"] for row in found), reverse=True)
    recent = log.expected(since=since)
    single = {
        "failed_login": lambda e: e.action == "auth.login_failed",
        "role_change": lambda e: e.action == "user.role_changed",
        "deactivation": lambda e: e.action == "tenant.deactivated",
    }
    for kind, test in single.items():
        rows = [(row["changeset_id"], row["seq"]) for row in found if row["kind"] == kind]
        assert sorted(rows) == sorted(keys(e for e in recent if test(e))) and rows, kind
    assert not [row for row in found if row["kind"] == "deletion"]
    month = security(log, since=year.end - datetime.timedelta(days=31))
    assert [row["resource_id"] for row in month if row["kind"] == "deletion"] == [year.users[year.tenants[2]][0]]


def failures(log, since, key):
    """Failed logins by a key, each group a list of times."""
    groups = {}
    for e in reversed(log.expected(action="auth.login_failed", since=since)):
        groups.setdefault(key(e.changeset), []).append(e.changeset.at)
    return groups


def bursts(times, window, least):
    """(number of failures, most within the window) of each burst."""
    runs, run = [], [times[0]]
    for before, at in zip(times, times[1:], strict=False):
        if at - before > window:
            runs.append(run)
            run = []
        run.append(at)
    runs.append(run)
    most = [max(sum(0 <= (b - a).total_seconds() <= window.total_seconds() for b in run) for a in run) for run in runs]
    return sorted((len(run), top) for run, top in zip(runs, most, strict=True) if top >= least)


@pytest.mark.parametrize("least, minutes", [(10, 10), (2, 60 * 24), (60, 10), (61, 10)])
def test_bursts(log, least, minutes):
    since = log.year.end - datetime.timedelta(days=7)
    window = datetime.timedelta(minutes=minutes)
    found = security(log, since=since, burst_count=least, burst_window=window)
    for kind, key, column in (
        ("burst_from_address", lambda c: c.ip_address, "ip_address"),
        ("burst_of_user", lambda c: c.user_id, "user_id"),
    ):
        expected = {}
        for value, times in failures(log, since, key).items():
            if some := bursts(times, window, least):
                expected[value] = some
        rows = {}
        for row in found:
            if row["kind"] == kind:
                value = row[column] if column == "user_id" else str(row[column])
                rows.setdefault(value, []).append((row["events"], row["details"]["most_in_window"]))
        assert {value: sorted(some) for value, some in rows.items()} == expected
    if least <= 60:
        assert log.year.attacker in [str(row["ip_address"]) for row in found if row["kind"] == "burst_from_address"]


def test_first_use_of_an_address(log):
    year = log.year
    since = year.end - datetime.timedelta(days=7)
    before = since - datetime.timedelta(days=30)
    known, first = set(), {}
    for c in year.changesets:
        if c.at >= before and c.user_id and c.ip_address:
            pair = (c.user_id, c.ip_address)
            if c.at < since:
                known.add(pair)
            elif pair not in first:
                first[pair] = c
    users = {user for user, _ in known}
    expected = {(pair, c.id) for pair, c in first.items() if pair not in known and pair[0] in users}
    found = {
        ((row["user_id"], str(row["ip_address"])), row["changeset_id"])
        for row in security(log, since=since)
        if row["kind"] == "new_address"
    }
    assert found == expected
    assert year.stolen in {pair for pair, _ in found}


def test_unusual_volume(log):
    year = log.year
    since = year.end - datetime.timedelta(days=7)
    usual, daily = Counter(), Counter()
    for c in year.changesets:
        if c.user_id and since - datetime.timedelta(days=20) <= c.at < since:
            usual[c.user_id] += len(c.events)
        elif c.user_id and c.at >= since:
            daily[c.user_id, f"{c.at:%Y-%m-%d}"] += len(c.events)
    expected = {
        (user, day, events)
        for (user, day), events in daily.items()
        if events >= 30 and events > 3 * usual[user] / 20
    }
    found = {
        (row["user_id"], row["details"]["day"][:10], row["events"])
        for row in security(
            log, since=since, volume_minimum=30, volume_factor=3.0, baseline=datetime.timedelta(days=20)
        )
        if row["kind"] == "unusual_volume"
    }
    assert found == expected
    assert year.busy in {user for user, _, _ in found}


def test_security_events_of_a_tenant(log):
    tenant = log.year.tenants[1]
    found = security(log, since=log.year.end - datetime.timedelta(days=7), tenant_id=tenant)
    assert {row["tenant_id"] for row in found} == {tenant}
    assert log.year.victim in {row["user_id"] for row in found if row["kind"] == "burst_of_user"}


@pytest.fixture
def of_tenant(log):
    """A reader of the largest tenant."""
    name = f"{log.name}_reader"
    log.conn.execute(f"CREATE ROLE {name} LOGIN")
    log.conn.execute("SELECT audit.grant_tenant_reader(%s, %s)", [name, log.year.tenants[0]])
    with log.cluster.connect(log.name, user=name) as conn:
        yield conn
    log.conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_tenants_reader(log, of_tenant):
    """His answers are those that the whole log gives of his tenant."""
    tenant = log.year.tenants[0]
    r = random.Random(8)
    found = 0
    for _ in range(25):
        filters = some_filters(log, r)
        expected = [] if filters.get("tenant_id", tenant) != tenant else keys(log.expected(**{**filters, "tenant_id": tenant}))
        sizes = iter(lambda: r.choice([20, 100, 999]) if len(expected) < 2000 else 5000, None)
        assert list(log.pages(sizes, conn=of_tenant, **filters)) == expected, filters
        arguments = ", ".join(f"{name} => %s" for name in filters)
        assert of_tenant.execute(f"SELECT audit.count_logs({arguments})", [*filters.values()]).fetchone()[0] == len(expected), filters
        found += len(expected)
    assert found > 500
    since = log.year.end - datetime.timedelta(days=60)
    query = "SELECT * FROM audit.statistics(%s, tenant_id => %s)"
    assert of_tenant.execute(query, [since, None]).fetchall() == log.conn.execute(query, [since, tenant]).fetchall()
    query = "SELECT * FROM audit.security_events(%s, since => %s)"
    week = log.year.end - datetime.timedelta(days=7)
    assert of_tenant.execute(query, [None, week]).fetchall() == log.conn.execute(query, [tenant, week]).fetchall()


# Beside the year


def test_own_changes_of_the_transaction(conn):
    conn.execute("CREATE TABLE t (id int PRIMARY KEY); SELECT audit.enable('t')")
    conn.execute("BEGIN; SET LOCAL audit.user_id = 'ann'; INSERT INTO t SELECT generate_series(1, 5)")
    rows = conn.execute("SELECT resource_id, position FROM audit.get_logs(user_id => 'ann')").fetchall()
    assert rows == [(str(n), None) for n in (5, 4, 3, 2, 1)]
    assert conn.execute("SELECT audit.count_logs(user_id => 'ann')").fetchone()[0] == 5
    assert conn.execute("SELECT audit.count_logs(user_id => 'ann', resource_id => '3')").fetchone()[0] == 1
    assert conn.execute("SELECT count(*) FROM audit.get_logs(resource_id => '3')").fetchone()[0] == 1
    conn.execute("ROLLBACK")
    assert conn.execute("SELECT count(*) FROM audit.get_logs()").fetchone()[0] == 0


def test_empty_log(conn):
    assert conn.execute("SELECT count(*) FROM audit.get_logs(user_id => 'ann')").fetchone()[0] == 0
    assert conn.execute("SELECT audit.count_logs()").fetchone()[0] == 0
    assert conn.execute("SELECT * FROM audit.statistics()").fetchall() == [("total", None, 0)]
    assert conn.execute("SELECT count(*) FROM audit.security_events()").fetchone()[0] == 0
