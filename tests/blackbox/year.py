"""A year of a multi-tenant application, made up from a seed, and what there is to know of it.

`Year(seed, events, tenants, end)` makes the records; `load(conn)` writes them into the log, past the triggers, since no
clock can be turned back a year. Everything that a test compares with is taken from the Python objects, by plain loops
over `year.events`: nothing here asks the extension.

What is in it: tenants of very different size, users with their addresses and requests, rows that come, change and go in
three tables, logins, and a few things that an auditor looks for: an attack from one address, a stolen password used
from elsewhere, roles that change, tenants that are switched off, a user who works a night through, a bulk change.
"""

from __future__ import annotations

import bisect
import datetime
import hashlib
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

UTC = datetime.timezone.utc
TABLES = {"customer": ["id", "name", "city"], "invoice": ["id", "customer", "total"], "stock": ["id", "item", "pieces"]}
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Changeset:
    id: uuid.UUID
    at: datetime.datetime
    position: int
    user_id: str | None
    tenant_id: str | None
    request_id: str | None
    ip_address: str | None
    origin: str
    events: list[Event] = field(default_factory=list)


@dataclass
class Event:
    changeset: Changeset
    seq: int
    operation: str
    status: str = "success"
    action: str | None = None
    resource: str | None = None
    resource_id: str | None = None
    old_row: dict | None = None
    new_row: dict | None = None
    details: dict | None = None

    @property
    def place(self):
        """Where audit.get_logs has it, the newest last."""
        return (self.changeset.at, self.changeset.id, self.seq)

    @property
    def order(self):
        """The order in which row versions came into being."""
        return (self.changeset.position, self.seq)


def uuid7(at: datetime.datetime, tail: int) -> uuid.UUID:
    microseconds = (at - EPOCH) // datetime.timedelta(microseconds=1)
    milliseconds, rest = divmod(microseconds, 1000)
    fraction = -(-rest * 4096 // 1000)
    return uuid.UUID(int=milliseconds << 80 | 0x7000 << 64 | fraction << 64 | 0b10 << 62 | tail & (1 << 62) - 1)


class Year:
    def __init__(self, seed: int, events: int, tenants: int, end: datetime.datetime):
        self.random = random.Random(seed)
        self.end = end
        self.start = end - datetime.timedelta(days=365)
        self.changesets: list[Changeset] = []
        self.rows: dict[str, dict[str, dict]] = {table: {} for table in TABLES}
        self.keys: dict[str, list[str]] = {table: [] for table in TABLES}
        self.next_key = 1
        self._make_people(tenants)
        # What happens, and when; then all of it in the order of time, so that rows change in that order.
        self.plan: list[tuple[datetime.datetime, Callable]] = []
        self._plan_work(events)
        self._plan_incidents()
        for at, happen in sorted(self.plan, key=lambda planned: planned[0]):
            happen(at)
        self._commit()
        self.events = sorted((e for c in self.changesets for e in c.events), key=lambda e: e.place)

    # People

    def _make_people(self, tenants):
        r = self.random
        self.tenants = [f"tenant-{n}" for n in range(tenants)]
        weights = [1 / (n + 3) for n in range(tenants)]
        self.tenant_sums = [sum(weights[: n + 1]) for n in range(tenants)]
        self.users = {tenant: [f"{tenant}/user-{n}" for n in range(r.randint(3, 20))] for tenant in self.tenants}
        self.home = {
            user: f"10.{r.randint(0, 255)}.{r.randint(0, 255)}.{r.randint(1, 254)}"
            for users in self.users.values()
            for user in users
        }

    def _tenant(self):
        return self.tenants[bisect.bisect(self.tenant_sums, self.random.random() * self.tenant_sums[-1] * 0.999999)]

    # Records

    def _changeset(self, at, user, tenant, address=None, request=True):
        r = self.random
        changeset = Changeset(
            uuid7(at, r.getrandbits(62)), at, 0, user, tenant,
            f"req-{len(self.changesets)}" if request else None, address or self.home.get(user), "trigger",
        )  # fmt: skip
        self.changesets.append(changeset)
        return changeset

    def _row_change(self, changeset, table=None):
        r = self.random
        table = table or r.choice(list(TABLES))
        rows, keys = self.rows[table], self.keys[table]
        event = Event(changeset, len(changeset.events), "INSERT", resource=f"shop.{table}")
        draw = r.random()
        if draw < 0.3 or not keys:
            key = str(self.next_key)
            self.next_key += 1
            keys.append(key)
            columns = TABLES[table]
            event.new_row = {columns[0]: int(key), columns[1]: f"{columns[1]} {r.randint(1, 999)}", columns[2]: r.randint(0, 99)}
        else:
            place = int(len(keys) * r.random() ** 2)  # some rows change often
            key = keys[place]
            event.old_row = rows[key]
            if draw < 0.95:
                event.operation = "UPDATE"
                event.new_row = {**event.old_row, TABLES[table][2]: r.randint(0, 99)}
            else:
                event.operation = "DELETE"
                keys[place] = keys[-1]
                keys.pop()
        event.resource_id = key
        if event.new_row is None:
            del rows[key]
        else:
            rows[key] = event.new_row
        changeset.events.append(event)

    def _action(self, changeset, action, status="success", resource=None, resource_id=None, details=None):
        changeset.origin = "application"
        changeset.events.append(
            Event(changeset, len(changeset.events), "APPLICATION", status, action, resource, resource_id, details=details)
        )

    # Work

    def _plan_work(self, events):
        seconds = (self.end - self.start).total_seconds()
        for _ in range(int(events / 1.79)):  # events of an average changeset
            self.plan.append((self.start + datetime.timedelta(microseconds=int(self.random.random() * seconds * 1e6)), self._work))

    def _work(self, at):
        r = self.random
        tenant = self._tenant()
        user = r.choice(self.users[tenant])
        draw = r.random()
        if draw < 0.08:
            action = r.choice(["auth.login", "auth.login", "auth.logout", "auth.token_refreshed"])
            self._action(self._changeset(at, user, tenant), action)
        elif draw < 0.09:
            self._failed_login(at, user, tenant)
        elif draw < 0.095:
            changeset = self._changeset(at, user, tenant)
            self._action(changeset, "user.role_changed", resource="user", resource_id=r.choice(self.users[tenant]))
        elif draw < 0.12:  # a job of nobody, without a request
            changeset = self._changeset(at, None, tenant if draw < 0.11 else None, request=False)
            for _ in range(r.randint(1, 6)):
                self._row_change(changeset)
        else:
            changeset = self._changeset(at, user, tenant)
            for _ in range(r.choice([1, 1, 1, 2, 2, 4])):
                self._row_change(changeset)

    def _failed_login(self, at, user, tenant, address=None):
        changeset = self._changeset(at, user, tenant, address)
        self._action(changeset, "auth.login_failed", "failure", details={"reason": "bad password"})

    def _plan_incidents(self):
        r = self.random
        days = datetime.timedelta(days=1)
        seconds = datetime.timedelta(seconds=1)

        def plan(at, happen, *arguments):
            self.plan.append((at, lambda at: happen(at, *arguments)))

        # Passwords tried from one address, for many users.
        self.attacker = "203.0.113.66"
        for n in range(60):
            tenant = self._tenant()
            plan(self.end - 2 * days + n * 7 * seconds, self._failed_login, r.choice(self.users[tenant]), tenant, self.attacker)
        # One user's password tried from many addresses.
        self.victim = self.users[self.tenants[1]][0]
        for n in range(15):
            address = f"198.51.100.{n + 1}"
            plan(self.end - 3 * days + n * 20 * seconds, self._failed_login, self.victim, self.tenants[1], address)
        # A login from where the user never was.
        self.stolen = (self.users[self.tenants[0]][1], "192.0.2.99")

        def login(at):
            self._action(self._changeset(at, self.stolen[0], self.tenants[0], self.stolen[1]), "auth.login")

        plan(self.end - days, login)

        # Tenants switched off, a user deleted.
        def operate(at, action, resource, resource_id):
            self._action(self._changeset(at, "operator", None, "10.0.0.1"), action, resource=resource, resource_id=resource_id)

        for n in range(3):
            plan(self.end - (n + 1) * days, operate, "tenant.deactivated", "tenant", self.tenants[n])
        plan(self.end - 30 * days, operate, "user.deleted", "user", self.users[self.tenants[2]][0])
        # A night's work, and one bulk change.
        self.busy = self.users[self.tenants[0]][0]

        def change(at, user, table, count, address=None):
            changeset = self._changeset(at, user, self.tenants[0], address)
            for _ in range(count):
                self._row_change(changeset, table)

        night = (self.end - 4 * days).replace(hour=1, minute=0, second=0, microsecond=0)
        for n in range(400):
            plan(night + n * 10 * seconds, change, self.busy, "stock", 3)
        plan(self.end - 100 * days, change, "importer", "invoice", 3000, "10.0.0.2")

    def _commit(self):
        """WAL positions: in the order of time, but that some transactions commit late; not those that share rows."""
        for number, changeset in enumerate(self.changesets, start=1):
            changeset.position = number * 1_000_000 + number
            if changeset.origin == "application":
                changeset.position += self.random.choice([0, 0, 0, 5_000_000, 40_000_000])

    # The log

    def load(self, conn):
        """Writes all of it into the log. The tables are known to it, without being there."""
        relations = {}
        for number, (table, columns) in enumerate(TABLES.items(), start=1):
            relations[f"shop.{table}"] = number
            layout = [{"attnum": n, "name": name, "type": "text"} for n, name in enumerate(columns, start=1)]
            conn.execute(
                "INSERT INTO audit.relation VALUES (%s, %s, 'shop', %s, %s, NULL, NULL, %s, '{id}', %s)",
                [number, 4_000_000_000 + number, table, f"shop.{table}", json.dumps(layout), self.start],
            )
        conn.execute("SELECT setval('audit.relation_id_seq', %s)", [len(relations)])
        with conn.cursor() as cursor:
            with cursor.copy(
                "COPY audit.changeset (occurred_at, position, xid, era, event_count, backend_pid, origin, context_trust, id, salt, events_root,"
                " checksum, user_id, tenant_id, request_id, ip_address, session_role, effective_role) FROM STDIN"
            ) as copy:
                for n, c in enumerate(self.changesets):
                    digest = rf"\x{hashlib.sha256(c.id.bytes).hexdigest()}"
                    copy.write_row([
                        c.at.isoformat(), f"{c.position >> 32:X}/{c.position & 0xFFFFFFFF:X}", str(n + 1000), 1, len(c.events),
                        4242, c.origin, "claimed", c.id, c.id, digest, digest, c.user_id, c.tenant_id, c.request_id, c.ip_address, "app",
                        "app",
                    ])  # fmt: skip
            with cursor.copy(
                "COPY audit.event (occurred_at, seq, command, relation_id, operation, status, changeset_id, salt, checksum,"
                " resource_id, row_image, old_values, details, action, resource) FROM STDIN"
            ) as copy:
                for c in self.changesets:
                    digest = rf"\x{hashlib.sha256(c.id.bytes).hexdigest()}"
                    for e in c.events:
                        image = e.new_row or e.old_row
                        old_values = None
                        if e.operation == "UPDATE":
                            old_values = {k: v for k, v in e.old_row.items() if e.new_row[k] != v}
                        relation = relations.get(e.resource)
                        copy.write_row([
                            c.at.isoformat(), e.seq, e.seq, relation, e.operation, e.status, c.id, c.id, digest, e.resource_id,
                            image and json.dumps(image), None if old_values is None else json.dumps(old_values),
                            e.details and json.dumps(e.details), e.action, None if relation else e.resource,
                        ])  # fmt: skip
        conn.execute("ANALYZE audit.changeset; ANALYZE audit.event")


def months(conn, start: datetime.datetime, until: datetime.datetime):
    """Monthly partitions of the log, as far as they are not there."""
    at = datetime.datetime(start.year, start.month, 1, tzinfo=UTC)
    while at < until:
        following = (at + datetime.timedelta(days=32)).replace(day=1)
        for table in ("changeset", "event"):
            conn.execute(
                f"CREATE TABLE audit.{table}_{at:%Y%m%d} PARTITION OF audit.{table}"
                f" FOR VALUES FROM ('{at.isoformat()}') TO ('{following.isoformat()}')"
            )
        at = following
