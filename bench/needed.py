"""The bytes that a record cannot do without, whatever its format: what the log's size is judged by.

A change needs the row's values and the names of its columns, both as JSON spells them, once, and once
more for the previous values of what an UPDATE changed; the row's key; checksum and salt; and which
changeset, place, command, table, operation and outcome it is. A changeset needs the fields of the
context and its own. Each is a row, to which PostgreSQL adds 28 bytes. Of the punctuation of JSON, the
offsets of JSONB, padding, free space on pages and indexes nothing is counted: they are what a format adds.
"""

ROW = 24 + 4
"""A row's header and its pointer on the page."""
EVENT = ROW + 32 + 16 + 16 + 4 + 4 + 4 + 1 + 1
"""Checksum, salt, changeset, place in it, command, table, operation, outcome."""
CHANGESET = ROW + 16 + 16 + 32 + 32 + 8 + 8 + 8 + 4 + 4 + 4 + 1
"""Id, salt, root over its events, checksum, time, position, transaction, era, number of events, process, origin."""


def event(conn, rows, key="id", changed=()):
    """Bytes per event: the average over the first thousand rows of a table that is, or will be, changed."""
    return EVENT + conn.execute(
        f"""
        SELECT avg((SELECT sum((octet_length(name) + octet_length(value)) * CASE WHEN name = ANY (%(changed)s) THEN 2 ELSE 1 END)
                           + coalesce(sum(octet_length(value)) FILTER (WHERE name = %(key)s), 0)
                      FROM jsonb_each_text(to_jsonb(row)) AS field(name, value)))::float8
          FROM (SELECT * FROM {rows} LIMIT 1000) AS row
        """,
        {"changed": list(changed), "key": key},
    ).fetchone()[0]


def changeset(conn, variant):
    """Bytes per changeset under the variant's context."""
    names = conn.execute("SELECT concat(session_user, current_user, current_setting('application_name'))").fetchone()[0]
    return CHANGESET + sum(len(text.encode()) for text in (names, *variant.settings.values()))
