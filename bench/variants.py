"""Variants: the ways of auditing a table that the bench compares, each a small SQL file.

A file has sections, each begun by a line `-- section: NAME`:

settings    lines `name = value`, given to every session as start-up options: the context
setup       run once in a new database, as superuser: the tables, functions and triggers of the trail
enable      audits one table; `:table` stands for its quoted name
log         a query for the oids of the tables that hold the log, whose size is measured
events      a query for the number of events in the log; without it the count is not checked
teardown    run in the database before it is dropped, for trails that leave something outside it

Every section may be missing. `bare` is the variant without any. Another trail joins with
`--peer NAME=FILE`; it needs no code here. A line `-- include: NAME` stands for the file of that name in
the folder of `--peer-sources`, psql's own commands left out: so that the files in peers/ can name what
belongs to others.

Each variant gets databases of its own and every measurement a fresh copy of one: a log that refuses
TRUNCATE cannot be emptied, and a copy is the same each time.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import sql

SECTIONS = ("settings", "setup", "enable", "log", "events", "teardown")


class ContractError(Exception):
    """A variant's file does not keep to the contract."""


@dataclass(frozen=True)
class Variant:
    name: str
    settings: dict = field(default_factory=dict)
    setup: str = ""
    enable: str = ""
    log: str = ""
    events: str = ""
    teardown: str = ""

    @property
    def audits(self):
        return bool(self.enable)

    def options(self, **more):
        """The start-up options of a session: the variant's settings and further ones."""
        pairs = {**self.settings, **more}.items()
        return " ".join("-c " + re.sub(r"([\\ ])", r"\\\1", f"{name}={value}") for name, value in pairs)

    def install(self, conn, tables):
        """Makes the trail in a new database and audits the tables."""
        if self.setup:
            conn.execute(self.setup)
        self.enable_all(conn, tables)

    def enable_all(self, conn, tables):
        for table in tables if self.enable else ():
            conn.execute(self.enable.replace(":table", sql.Literal(table).as_string(conn)))

    def count_events(self, conn):
        """Events in the log, or None where the variant cannot tell."""
        return conn.execute(self.events).fetchone()[0] if self.events else None

    def log_tables(self, conn):
        query = f"SELECT log.relation::oid FROM ({self.log}) AS log(relation)"
        return [row[0] for row in conn.execute(query)] if self.log else []


BARE = Variant("bare")


def read(name, path, sources=None):
    """Reads a variant's file."""

    def included(match):
        if sources is None:
            raise ContractError(f"{path} includes {match[1]}: say where it is, with --peer-sources FOLDER")
        text = (Path(sources) / match[1]).read_text(encoding="utf-8")
        return re.sub(r"^\\.*$", "", text, flags=re.MULTILINE)

    text = re.sub(r"^-- include: *(\S+) *$", included, Path(path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = re.split(r"^-- section: *(\w+) *\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2]))
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        raise ContractError(f"{path}: unknown section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    settings = {}
    for line in sections.pop("settings", "").splitlines():
        if line.strip() and not line.startswith("--"):
            key, equals, value = line.partition("=")
            if not equals:
                raise ContractError(f"{path}: a line of section settings is not `name = value`: {line}")
            settings[key.strip()] = value.strip()
    # The driver sends the queries alone, so a closing semicolon would be a second, empty statement.
    texts = {key: text.strip().rstrip(";") for key, text in sections.items()}
    return Variant(name, settings, **texts)
