"""The SQL of README.md and docs/*.md, run as a reader would: psql, from top to bottom, a fresh database per page.

Marks that a page can carry, all of them unseen by its reader:

    <!-- setup … -->       SQL to run first, or at that place
    ```sql                 runs; every statement must succeed
    ```sql error=55000     runs; its last statement must fail with that SQLSTATE, the others succeed
    ```sql skip            does not run here: it needs another server, or another user
    ```text result         what psql prints for the block above, or the end of it

Results are compared without trailing blanks. What changes from run to run has no place in one.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from cluster import pg_config_of
from psycopg import sql

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROLES = ("app_user", "auditor", "audit_manager", "acme_auditor")
SQL = re.compile(r"\s*(?:sql)?(?: (skip)| error=(\w{5}))?$")
MARK = "@@ %s @@"


def parts(page):
    """(line number, kind, argument, text) of each marked part, in order."""
    lines = page.read_text().split("\n")
    opened = None
    for number, line in enumerate(lines, start=1):
        if opened is None:
            if line.startswith("```") or line.startswith("<!-- setup"):
                opened = (number, line)
        elif line == ("-->" if opened[1].startswith("<!--") else "```"):
            start, head = opened
            text = "\n".join(lines[start : number - 1])
            opened = None
            if head.startswith("<!--"):
                yield start, "sql", None, text
            elif head == "```text result":
                yield start, "result", None, text
            elif head.startswith("```sql"):
                match = SQL.match(head[3:])
                assert match, f"{page.name}:{start}: {head}"
                if not match.group(1):
                    yield start, "sql", match.group(2), text
    assert opened is None, f"{page.name}:{opened[0]}: not closed"


def script(page):
    """One psql script of the whole page. Between the blocks it prints marks, so that output can be told apart."""
    for number, kind, code, text in parts(page):
        if kind != "sql":
            continue
        yield r"\echo " + MARK % number
        if code:
            *good, bad = split(text)
            yield "".join(good)
            yield r"\set ON_ERROR_STOP off"
            yield bad
            yield r"\echo SQLSTATE :SQLSTATE"
            yield "ROLLBACK;" if re.match(r"\s*BEGIN\b", text) else ""
            yield r"\set ON_ERROR_STOP on"
        else:
            yield text
    yield r"\echo " + MARK % "end"


def split(text):
    """Statements of a block: each ends with a semicolon at the end of a line."""
    return re.findall(r".*?;[ ]*(?:--[^\n]*)?(?:\n|$)", text, re.S)


def tidy(text):
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


@pytest.fixture
def database(new_db):
    """A database without the extension, and the roles that the pages speak of."""
    db = new_db(extension=False)
    with db.cluster.connect() as connection:
        for name in ROLES:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield db
    with db.cluster.connect(db.name) as connection:
        for name in ROLES:
            connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(database, page):
    found = list(parts(page))
    if not found:
        pytest.skip("no SQL")
    cluster = database.cluster
    done = subprocess.run(
        [cluster.bin("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-P", "pager=off", "-d", database.name],
        input="\n".join(script(page)),
        env={**os.environ, **cluster.env, "PGOPTIONS": "-c client_min_messages=warning"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{page.name}: {done.stderr}\nafter\n{done.stdout[-3000:]}"

    # Output of each block, by the line that it starts at.
    pieces = re.split(r"^@@ (\w+) @@\n", done.stdout, flags=re.M)
    outputs = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    last = None
    for number, kind, code, text in found:
        where = f"{page.name}:{number}"
        if kind == "sql":
            last = tidy(outputs[str(number)])
            if code:
                assert last.endswith(f"SQLSTATE {code}"), f"{where}: {last}\n{done.stderr}"
        else:
            assert last is not None, f"{where}: a result without a block above"
            assert last.endswith(tidy(text)), f"{where}: psql printed\n{last}"


def test_demo():
    """`make demo`, a shorter one. It checks its own results, so its exit code tells."""
    if not Path(pg_config_of(os.environ["AUDIT_PG"]).parent, "pgbench").exists():
        pytest.skip("this PostgreSQL has no pgbench")
    done = subprocess.run(
        [ROOT / "demo" / "demo"], env={**os.environ, "DEMO_SECONDS": "2"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_pages_have_sql():
    """The parser finds what there is to find."""
    counts = {page.name: sum(kind == "sql" for _, kind, _, _ in parts(page)) for page in PAGES}
    assert counts["README.md"] >= 2 and counts["format.md"] >= 3 and counts["reference.md"] >= 5, counts


def test_reference_is_complete(conn):
    """Every function and view is in reference.md with an example that was run here, or named there as a part of others."""
    reference = (ROOT / "docs" / "reference.md").read_text()
    described, _, of_others = reference.partition("\n## Parts\n")
    inner = set(re.findall(r"`(\w+)`", of_others))
    executed = "".join(text for page in PAGES for _, kind, _, text in parts(page) if kind == "sql")
    members = [name for (name,) in conn.execute(
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'audit'::regnamespace"
        " UNION SELECT relname FROM pg_class WHERE relnamespace = 'audit'::regnamespace AND relkind = 'v'")]  # fmt: skip
    for name in members:
        if name not in inner:
            assert re.search(rf"\baudit\.{name}\b", described), f"{name} has no entry"
            assert re.search(rf"\baudit\.{name}\b", executed), f"{name} has no example"
    tables = conn.execute("SELECT relname::text FROM pg_class WHERE relnamespace = 'audit'::regnamespace AND relkind IN ('r', 'p')")
    assert [name for (name,) in tables if name not in inner and f"audit.{name}" not in described] == []


def test_links():
    """Links within the project lead to a file and, where they name one, to a heading."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
                anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page.name}: {target}"
