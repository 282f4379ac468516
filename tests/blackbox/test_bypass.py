"""Ways around auditing, each by name: captured, refused, or shown by audit.coverage_gaps with who went it.

What tells is the same for all: a way that is captured leads, event by event, to the rows that the table holds; one that is
refused changes nothing; one that is shown leaves a gap. docs/security.md has the same names in a table, and a test here
compares.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from auditlib import check_integrity, replay, sqlstate
from cluster import Cluster
from coveragelib import TEMPLATE, _template, actions, cluster, covered, gaps  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]

SETUP = """
    CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent SELECT generate_series(1, 9);
    CREATE TABLE t (id int PRIMARY KEY, v text, ref int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
    CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
    CREATE SCHEMA app;
    SELECT audit.enable('t'), audit.enable('p'), audit.enable_schema('app');
    INSERT INTO t SELECT g, 'v' || g, g FROM generate_series(1, 9) g; INSERT INTO p VALUES (1, 'a'), (11, 'b');
"""

# Way: (what the owner of the tables does, the table that tells). {name} is the owner's.
CAPTURED = {
    "COPY": ("COPY t (id) FROM PROGRAM 'seq 50 59'", "t"),
    "INSERT ... ON CONFLICT DO UPDATE": ("INSERT INTO t VALUES (1, 'x', 1), (50, 'y', 1) ON CONFLICT (id) DO UPDATE SET v = excluded.v", "t"),
    "MERGE": ("MERGE INTO t USING generate_series(5, 55, 10) g ON g = id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (g, 'm', 1)", "t"),
    "data-modifying CTE": ("WITH d AS (DELETE FROM t WHERE id < 3 RETURNING *) INSERT INTO t SELECT id + 100, v, ref FROM d", "t"),
    "updatable view": ("CREATE VIEW w AS SELECT id, v FROM t; UPDATE w SET v = 'view'; DELETE FROM w WHERE id = 3", "t"),
    "view with INSTEAD OF trigger": ("CREATE VIEW w AS SELECT id, v FROM t; CREATE FUNCTION io() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM t WHERE id = OLD.id; RETURN OLD; END'; CREATE TRIGGER io INSTEAD OF DELETE ON w FOR EACH ROW EXECUTE FUNCTION io(); DELETE FROM w WHERE id < 4", "t"),
    "rule that redirects": ("CREATE TABLE front (id int); CREATE RULE r AS ON INSERT TO front DO INSTEAD UPDATE t SET v = 'rule' WHERE id = NEW.id; INSERT INTO front VALUES (2)", "t"),
    "rule on the audited table": ("CREATE RULE r AS ON DELETE TO t DO INSTEAD UPDATE t SET v = 'kept' WHERE id = OLD.id; DELETE FROM t WHERE id = 2", "t"),
    "foreign key ON DELETE CASCADE": ("DELETE FROM parent WHERE id = 4", "t"),
    "foreign key ON UPDATE CASCADE": ("UPDATE parent SET id = 40 WHERE id = 4", "t"),
    "TRUNCATE": ("TRUNCATE t", "t"),
    "TRUNCATE ... CASCADE of another table": ("TRUNCATE parent CASCADE", "t"),
    "TRUNCATE of a partition": ("TRUNCATE p1", "p"),
    "prepared statement": ("PREPARE s AS DELETE FROM t WHERE id = $1; EXECUTE s(1); EXECUTE s(2)", "t"),
    "cursor, WHERE CURRENT OF": ("BEGIN; DECLARE c CURSOR FOR SELECT * FROM t FOR UPDATE; MOVE 2 IN c; FETCH c; DELETE FROM t WHERE CURRENT OF c; COMMIT", "t"),
    "DO block with handled errors": ("DO $$ BEGIN FOR i IN 1..9 LOOP BEGIN UPDATE t SET v = 'x' WHERE id = i; IF i % 2 = 0 THEN RAISE 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$", "t"),
    "savepoints": ("BEGIN; DELETE FROM t WHERE id = 1; SAVEPOINT a; DELETE FROM t WHERE id = 2; ROLLBACK TO a; DELETE FROM t WHERE id = 3; RELEASE a; COMMIT", "t"),
    "two-phase commit": ("BEGIN; DELETE FROM t WHERE id = 1; PREPARE TRANSACTION '{name}'; COMMIT PREPARED '{name}'", "t"),
    "SECURITY DEFINER function": ("CREATE FUNCTION f() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM t WHERE id = 1'; SELECT f()", "t"),
    "procedure that commits": ("CREATE PROCEDURE pr() LANGUAGE plpgsql AS $$ BEGIN DELETE FROM t WHERE id = 1; COMMIT; DELETE FROM t WHERE id = 2; ROLLBACK; DELETE FROM t WHERE id = 3; END $$; CALL pr()", "t"),
    "BEFORE trigger that changes the row": ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := 'changed'; RETURN NEW; END $$; CREATE TRIGGER f BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f(); UPDATE t SET v = 'x'", "t"),
    "AFTER trigger that changes the row again": ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE t SET v = 'again' WHERE id = NEW.id; RETURN NULL; END $$; CREATE TRIGGER \"!!first\" AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(); INSERT INTO t VALUES (50, 'x', 1)", "t"),
    "deferred constraint trigger": ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE t SET v = 'late' WHERE id = NEW.id + 1; RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER f AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f(); BEGIN; INSERT INTO t VALUES (51, 'x', 1); INSERT INTO t VALUES (50, 'x', 1); COMMIT", "t"),
    "change of a partition itself": ("INSERT INTO p1 VALUES (2, 'x'); UPDATE p2 SET v = 'y'; DELETE FROM p1 WHERE id = 1", "p"),
    "row that moves to another partition": ("UPDATE p SET id = 12 WHERE id = 1", "p"),
    "partition created later": ("CREATE TABLE p3 PARTITION OF p DEFAULT; INSERT INTO p VALUES (99, 'new')", "p"),
    "partition attached with rows": ("CREATE TABLE p3 (id int PRIMARY KEY, v text); INSERT INTO p3 VALUES (25, 'came'); ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (20) TO (30); UPDATE p SET v = 'z' WHERE id = 25", "p"),
    "partition detached": ("ALTER TABLE p DETACH PARTITION p1; DELETE FROM p1; INSERT INTO p1 VALUES (7, 'alone')", "p1"),
    "partition detached concurrently": ("ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY; DELETE FROM p1; INSERT INTO p1 VALUES (7, 'alone')", "p1"),
    "inheritance child": ("CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (70, 'c', 1); UPDATE t SET v = 'all'", "t"),
    "child that no longer inherits": ("CREATE TABLE child () INHERITS (t); ALTER TABLE child NO INHERIT t; INSERT INTO child VALUES (70, 'c', 1)", "child"),
    "CREATE TABLE in an enabled schema": ("CREATE TABLE app.n (id int); INSERT INTO app.n VALUES (1)", "app.n"),
    "CREATE TABLE AS in an enabled schema": ("CREATE TABLE app.n AS SELECT * FROM t; DELETE FROM app.n WHERE id < 5", "app.n"),
    "SELECT INTO in an enabled schema": ("SELECT id, v INTO app.n FROM t; UPDATE app.n SET v = 'x'", "app.n"),
    "table moved into an enabled schema": ("CREATE TABLE n (id int); ALTER TABLE n SET SCHEMA app; INSERT INTO app.n VALUES (1)", "app.n"),
    "ALTER COLUMN ... TYPE ... USING": ("DELETE FROM t; ALTER TABLE t ALTER v TYPE int USING 1; INSERT INTO t VALUES (1, 7, 1)", "t"),
    "table renamed": ("ALTER TABLE t RENAME TO gone; DELETE FROM gone WHERE id = 1", "gone"),
    "table moved to another schema": ("ALTER TABLE t SET SCHEMA app; DELETE FROM app.t WHERE id = 1", "app.t"),
    "column renamed": ("DELETE FROM t; ALTER TABLE t RENAME v TO w; INSERT INTO t VALUES (1, 'x', 1)", "t"),
    "tables swapped by renaming": ("CREATE TABLE app.t2 (LIKE t); INSERT INTO app.t2 SELECT * FROM t; ALTER TABLE t RENAME TO old; ALTER TABLE app.t2 SET SCHEMA public; ALTER TABLE t2 RENAME TO t; DELETE FROM t WHERE id = 2", "t"),
    "DISABLE TRIGGER ALL": ("ALTER TABLE t DISABLE TRIGGER USER; DELETE FROM t WHERE id = 1", "t"),
    "ENABLE TRIGGER that makes them fire no longer always": ("ALTER TABLE t DISABLE TRIGGER USER; ALTER TABLE t ENABLE TRIGGER USER; DELETE FROM t WHERE id = 1", "t"),
    "DISABLE TRIGGER on one partition": ("ALTER TABLE p1 DISABLE TRIGGER USER; DELETE FROM p1", "p"),
    "row security that hides the rows": ("ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY none ON t FOR SELECT USING (false); ALTER TABLE t FORCE ROW LEVEL SECURITY; CREATE POLICY ins ON t FOR INSERT WITH CHECK (true); INSERT INTO t VALUES (50, 'x', 1)", "t"),
    "tables and functions of the log's names in the search path": ("CREATE TEMP TABLE event (id int); CREATE TEMP TABLE changeset (id int); CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'; SET search_path = pg_temp, public; DELETE FROM t WHERE id = 1", "t"),
    "settings that change how values read": ("SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Tokyo'; SET bytea_output = escape; SET extra_float_digits = -15; DELETE FROM t WHERE id = 1", "t"),
    "large values out of line": ("ALTER TABLE t ALTER v SET STORAGE EXTERNAL; INSERT INTO t VALUES (50, repeat('x', 100000), 1); UPDATE t SET ref = 2 WHERE id = 50", "t"),
    "UNLOGGED and back": ("ALTER TABLE p2 SET UNLOGGED; DELETE FROM p2; ALTER TABLE p2 SET LOGGED; INSERT INTO p2 VALUES (12, 'x')", "p"),
}  # fmt: skip

# As a superuser.
CAPTURED_OF_SUPERUSERS = {
    "session_replication_role = replica": ("SET session_replication_role = replica; DELETE FROM t WHERE id = 1; TRUNCATE p", "t"),
    "COPY FREEZE": ("CREATE TABLE app.f (id int); BEGIN; TRUNCATE app.f; COPY app.f FROM PROGRAM 'seq 5' (FREEZE); COMMIT", "app.f"),
    "DISABLE TRIGGER ALL of a superuser": ("ALTER TABLE t DISABLE TRIGGER ALL; DELETE FROM t WHERE id = 1; ALTER TABLE t ENABLE TRIGGER ALL", "t"),
    "SET ROLE to the owner": ("SET ROLE {name}; DELETE FROM t WHERE id = 1", "t"),
    "table rewritten by VACUUM FULL and CLUSTER": ("VACUUM FULL t; CLUSTER t USING t_pkey; DELETE FROM t WHERE id = 1", "t"),
    "REASSIGN OWNED": ("REASSIGN OWNED BY {name} TO postgres; DELETE FROM t WHERE id = 1", "t"),
}  # fmt: skip

DENIED = "42501"
APPEND_ONLY = "55000"
# Way: (what the owner of the tables does, SQLSTATE).
REFUSED = {
    "ALTER TABLE ... DISABLE TRIGGER by name": ('ALTER TABLE t DISABLE TRIGGER "{row}"', DENIED),
    "ALTER TABLE ... DISABLE TRIGGER of TRUNCATE": ('ALTER TABLE t DISABLE TRIGGER "{truncate}"', DENIED),
    "ALTER TABLE ... ENABLE REPLICA TRIGGER": ('ALTER TABLE t ENABLE REPLICA TRIGGER "{row}"', DENIED),
    "ALTER TABLE ... ENABLE TRIGGER by name": ('ALTER TABLE t ENABLE TRIGGER "{row}"', DENIED),
    "DROP TRIGGER": ('DROP TRIGGER "{row}" ON t', DENIED),
    "ALTER TRIGGER ... RENAME": ('ALTER TRIGGER "{row}" ON t RENAME TO zz', DENIED),
    "ALTER TRIGGER ... DEPENDS ON EXTENSION": ('ALTER TRIGGER "{row}" ON t DEPENDS ON EXTENSION plpgsql', DENIED),
    "CREATE OR REPLACE TRIGGER": ('CREATE OR REPLACE TRIGGER "{row}" AFTER INSERT ON t FOR EACH ROW WHEN (false) EXECUTE FUNCTION audit.capture()', DENIED),
    "trigger disabled from a function": ('DO $$ BEGIN EXECUTE \'ALTER TABLE t DISABLE TRIGGER "{row}"\'; END $$', DENIED),
    "SET audit.enabled = off": ("SELECT audit.client_ip(NULL, NULL, NULL); SET audit.enabled = off", DENIED),
    "SET audit.enabled in a function's definition": ("SELECT audit.client_ip(NULL, NULL, NULL); CREATE FUNCTION f() RETURNS void LANGUAGE sql SET audit.enabled = off AS 'SELECT'", DENIED),
    "ALTER ROLE ... SET audit.enabled": ("SELECT audit.client_ip(NULL, NULL, NULL); ALTER ROLE {name} SET audit.enabled = off", DENIED),
    "audit.disable": ("SELECT audit.disable('t')", DENIED),
    "audit.enable with other options": ("SELECT audit.enable('t', exclude_columns => '{{v}}')", DENIED),
    "audit.enable_schema, audit.disable_schema": ("SELECT audit.disable_schema('app')", DENIED),
    "audit.grant_admin": ("SELECT audit.grant_admin('{name}')", DENIED),
    "DELETE FROM audit.policy": ("DELETE FROM audit.policy", DENIED),
    "DELETE FROM audit.event": ("DELETE FROM audit.event", DENIED),
    "UPDATE of audit.changeset": ("UPDATE audit.changeset SET user_id = 'x'", DENIED),
    "TRUNCATE audit.event": ("TRUNCATE audit.event", DENIED),
    "INSERT INTO audit.event": ("INSERT INTO audit.event TABLE audit.event", DENIED),
    "DELETE from a partition of the log": ("DELETE FROM audit.event_default", DENIED),
    "DROP TABLE of a partition of the log": ("DROP TABLE audit.event_default", DENIED),
    "trigger on a table of the log": ("CREATE TRIGGER x BEFORE INSERT ON audit.event FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()", DENIED),
    "rule on a table of the log": ("CREATE RULE x AS ON INSERT TO audit.event DO INSTEAD NOTHING", DENIED),
    "ALTER TABLE of a table of the log": ("ALTER TABLE audit.event ADD CHECK (false)", DENIED),
    "append-only triggers disabled": ("ALTER TABLE audit.event DISABLE TRIGGER append_only", DENIED),
    "index on a table of the log": ("CREATE UNIQUE INDEX ON audit.event_default (seq)", DENIED),
    "CREATE OR REPLACE FUNCTION audit.capture": ("CREATE OR REPLACE FUNCTION audit.capture() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'", DENIED),
    "DROP FUNCTION audit.capture() CASCADE": ("DROP FUNCTION audit.capture() CASCADE", DENIED),
    "ALTER FUNCTION audit.capture() RENAME": ("ALTER FUNCTION audit.capture() RENAME TO x", DENIED),
    "DROP EXTENSION": ("DROP EXTENSION audit_ext CASCADE", DENIED),
    "ALTER EXTENSION ... DROP": ("ALTER EXTENSION audit_ext DROP FUNCTION audit.capture()", DENIED),
    "DROP SCHEMA audit CASCADE": ("DROP SCHEMA audit CASCADE", DENIED),
    "new objects in schema audit": ("CREATE TABLE audit.mine (id int)", DENIED),
    "ALTER EVENT TRIGGER": ("ALTER EVENT TRIGGER audit_sql_drop DISABLE", DENIED),
    "the trigger function on another table": ("CREATE TABLE n (id int); CREATE TRIGGER x AFTER INSERT ON n FOR EACH ROW EXECUTE FUNCTION audit.capture(); INSERT INTO n VALUES (1)", "55000"),
    "the trigger function called directly": ("SELECT audit.capture()", "39P01"),
    "forged events of this extension": ("SELECT audit.log_event('audit.enabled', 't')", "42939"),
    "erasing records": ("SELECT audit.erase('t', '1', 'mine')", DENIED),
}  # fmt: skip

REFUSED_TO_SUPERUSERS = {
    "DELETE FROM audit.event by a superuser": ("DELETE FROM audit.event", APPEND_ONLY),
    "UPDATE of audit.changeset by a superuser": ("UPDATE audit.changeset SET user_id = 'x'", APPEND_ONLY),
    "TRUNCATE of the log by a superuser": ("TRUNCATE audit.event", APPEND_ONLY),
    "DELETE under session_replication_role = replica": ("SET session_replication_role = replica; DELETE FROM audit.event_default", APPEND_ONLY),
    "DROP TABLE of the log by a superuser": ("DROP TABLE audit.changeset_default", "2BP01"),
}  # fmt: skip

# Way of a superuser: (what he does, the table, cause, whether he is named).
SHOWN = {
    "audit trigger disabled by a superuser": ('ALTER TABLE t DISABLE TRIGGER "{row}"; DELETE FROM t WHERE id = 1', "t", "trigger_disabled", True),
    "audit trigger dropped by a superuser": ('DROP TRIGGER "{row}" ON t; DELETE FROM t WHERE id = 1', "t", "trigger_dropped", True),
    "TRUNCATE trigger dropped by a superuser": ('DROP TRIGGER "{truncate}" ON t; TRUNCATE t', "t", "trigger_dropped", True),
    "trigger disabled on a partitioned table": ('ALTER TABLE p DISABLE TRIGGER "{p_row}"; DELETE FROM p', "p", "trigger_disabled", True),
    "audit trigger replaced by a superuser": ("CREATE OR REPLACE TRIGGER \"{row}\" AFTER INSERT ON t FOR EACH ROW WHEN (false) EXECUTE FUNCTION audit.capture(); DELETE FROM t WHERE id = 1", "t", "trigger_disabled", True),
    "disabled, changed and enabled again": ('ALTER TABLE t DISABLE TRIGGER "{row}"; DELETE FROM t WHERE id = 1; ALTER TABLE t ENABLE ALWAYS TRIGGER "{row}"', "t", "trigger_disabled", True),
    "audit.disable and audit.enable": ("SELECT audit.disable('t'); DELETE FROM t WHERE id = 1; SELECT audit.enable('t')", "t", "disabled", True),
    "audit.enabled = off": ("DELETE FROM t WHERE id = 9; SET audit.enabled = off; DELETE FROM t WHERE id = 1; SET audit.enabled = on; DELETE FROM t WHERE id = 2", "t", "capture_suspended", True),
    "mode sampled": ("SELECT audit.enable('t', mode => 'sampled', sample_rate => 0); DELETE FROM t WHERE id = 1", "t", "sampled", True),
    "event trigger disabled": ("DELETE FROM t WHERE id = 9; ALTER EVENT TRIGGER audit_ddl_command_end DISABLE; CREATE TABLE p3 PARTITION OF p DEFAULT", "p", "event triggers were switched off", True),
    "event trigger dropped": ("ALTER EXTENSION audit_ext DROP EVENT TRIGGER audit_sql_drop; DROP EVENT TRIGGER audit_sql_drop", "t", "event triggers were switched off", True),
    "trigger switched off in the catalog": ("UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 't'::regclass; DELETE FROM t WHERE id = 1", "t", "nothing recorded says by whom", False),
    "trigger removed from the catalog": ("DELETE FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname = '{row}'; DELETE FROM t WHERE id = 1", "t", "nothing recorded says by whom", False),
    "event trigger switched off in the catalog": ("UPDATE pg_event_trigger SET evtenabled = 'D' WHERE evtname = 'audit_ddl_command_end'", "t", "nothing recorded says by whom", False),
    "rows of audit.policy changed by a superuser": ("UPDATE audit.policy SET mode = 'sampled', sample_rate = 0 WHERE target = 't'::regclass; DELETE FROM t WHERE id = 1", "t", "audit.policy was changed", False),
}  # fmt: skip


@pytest.fixture(scope="module")
def ground(cluster, _template):
    """A database, and in it an ordinary user, for ways that leave nothing behind but tables of his."""
    cluster.create_db("bypass", TEMPLATE)
    with cluster.connect("bypass") as conn:
        conn.execute("CREATE ROLE bypass_owner LOGIN; GRANT pg_execute_server_program TO bypass_owner")
        yield Ground(cluster, "bypass", conn, "bypass_owner")


@pytest.fixture
def fresh(cluster, new_db):
    """A database of its own, for what a superuser does to the whole of it."""
    db = new_db()
    with cluster.connect("postgres") as conn:
        conn.execute(f"CREATE ROLE {db.name}_owner LOGIN")
    yield made(Ground(cluster, db.name, db.connect(), f"{db.name}_owner"))
    db.drop()  # with all that the role owns
    with cluster.connect("postgres") as conn:
        conn.execute(f"DROP ROLE {db.name}_owner")


@pytest.fixture
def old(ground):
    return made(ground)


@dataclass
class Ground:
    cluster: Cluster
    dbname: str
    conn: psycopg.Connection
    owner: str

    def connect(self, user="postgres"):
        return self.cluster.connect(self.dbname, user=user)


def made(ground):
    """The tables, as if new, belonging to the ordinary user."""
    conn, owner = ground.conn, ground.owner
    conn.execute("DROP SCHEMA IF EXISTS app CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    conn.execute(SETUP)
    for table in ("parent", "t", "p", "p1", "p2"):
        conn.execute(f"ALTER TABLE {table} OWNER TO {owner}")
    conn.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {owner}; ALTER SCHEMA app OWNER TO {owner}")
    return ground


def names(ground):
    def trigger(table, of):
        return ground.conn.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname LIKE %s", [table, f"!audit_{of}%"]
        ).fetchone()[0]

    return {"name": ground.owner, "row": trigger("t", "row"), "truncate": trigger("t", "truncate"), "p_row": trigger("p", "row")}


def run(session, statements, given):
    """One after the other, as a client sends them: PREPARE TRANSACTION and the like stand alone."""
    for statement in re.findall(r"(?:'[^']*'|\"[^\"]*\"|\$\$.*?\$\$|[^;'\"$]|\$(?!\$))+", statements.format(**given), re.S):
        if statement.strip():
            session.execute(statement)


@pytest.mark.parametrize("way", [*CAPTURED, *CAPTURED_OF_SUPERUSERS])
def test_captured(old, way):
    statements, table = {**CAPTURED, **CAPTURED_OF_SUPERUSERS}[way]
    with old.connect(old.owner if way in CAPTURED else "postgres") as session:
        run(session, statements, names(old))
    replay(old.conn, table)
    assert covered(old.conn, table)[0] and gaps(old.conn, table) == []


def test_all_that_was_captured_is_whole(ground):
    check_integrity(ground.conn)


@pytest.mark.parametrize("way", [*REFUSED, *REFUSED_TO_SUPERUSERS])
def test_refused(old, way):
    statements, code = {**REFUSED, **REFUSED_TO_SUPERUSERS}[way]
    before = recorded(old.conn)
    with old.connect(old.owner if way in REFUSED else "postgres") as session:
        with sqlstate(code):
            run(session, statements, names(old))
    assert recorded(old.conn) == before
    assert gaps(old.conn, "t") == [] and gaps(old.conn, "p") == []
    old.conn.execute("DELETE FROM t WHERE id = 1; INSERT INTO p VALUES (3, 'x')")
    replay(old.conn, "t")
    replay(old.conn, "p")


def recorded(conn):
    return conn.execute(
        "SELECT md5(string_agg(e::text, '' ORDER BY changeset_id, seq)) FROM audit.event e WHERE operation <> 'DDL'"
    ).fetchone()


@pytest.mark.parametrize("way", SHOWN)
def test_shown(fresh, way):
    statements, table, cause, is_named = SHOWN[way]
    with fresh.connect() as session:
        run(session, statements, names(fresh))
    found = gaps(fresh.conn, table)
    assert any(cause in what and (who == "postgres") == is_named for what, who in found), found


def test_dropped_tables_are_recorded(old):
    conn, owner = old.conn, old.owner
    with old.connect(owner) as session:
        session.execute("DROP TABLE t; CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
        last = "SELECT session_role FROM audit.log WHERE action = 'audit.table_dropped' AND resource = %s ORDER BY position DESC LIMIT 1"
        assert conn.execute(last, ["public.t"]).fetchone() == (owner,)
        assert covered(conn, "t") == (False, "not enabled")
        session.execute("DROP OWNED BY CURRENT_USER CASCADE")
    assert actions(conn, "public.p")[-1] == "table_dropped"


def test_ways_are_in_the_documentation():
    page = (ROOT / "docs" / "security.md").read_text()
    told = dict(re.findall(r"^\| (.+?) \| (captured|refused|shown)\b", page, re.M))
    ways = {}
    for table, what in ((CAPTURED, "captured"), (CAPTURED_OF_SUPERUSERS, "captured"), (REFUSED, "refused"),
                        (REFUSED_TO_SUPERUSERS, "refused"), (SHOWN, "shown")):  # fmt: skip
        ways |= {way: what for way in table}
    assert told == ways
    assert len(ways) >= 100
