"""The journal's tables and how an older file becomes the newest: one forward migration per version.

A migration is never edited once it was released; a change of the tables is a new entry at the end of `MIGRATIONS`.
"""

from __future__ import annotations

import sqlite3

from vmferry.core.errors import Broken

_VERSION_1 = """
CREATE TABLE guests (
    name        TEXT PRIMARY KEY,
    guest       TEXT NOT NULL,              -- FrozenGuest as JSON
    epoch       INTEGER NOT NULL,           -- the token: who owns the guest
    owner       TEXT NOT NULL,
    running     INTEGER NOT NULL CHECK (running IN (0, 1)),
    cont_intent INTEGER NOT NULL CHECK (cont_intent IN (0, 1)),
    desired     TEXT NOT NULL,
    process     TEXT,                       -- ProcessRecord as JSON
    beat_port   INTEGER,
    uid         INTEGER,
    note        TEXT
) STRICT;
CREATE TABLE handovers (
    opened      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL,
    side        TEXT NOT NULL CHECK (side IN ('source', 'destination')),
    guest       TEXT NOT NULL,
    peer        TEXT NOT NULL,
    state       TEXT NOT NULL,
    request     TEXT NOT NULL,              -- JSON object
    report      TEXT,                       -- JSON object
    finished    INTEGER NOT NULL CHECK (finished IN (0, 1)),
    created_at  REAL NOT NULL,
    UNIQUE (id, side)
) STRICT;
CREATE UNIQUE INDEX one_unfinished_handover_per_guest ON handovers (guest) WHERE finished = 0;
CREATE TABLE events (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    handover    TEXT NOT NULL,
    side        TEXT NOT NULL,
    event       TEXT NOT NULL,              -- JSON object
    state       TEXT NOT NULL,
    at          REAL NOT NULL,
    FOREIGN KEY (handover, side) REFERENCES handovers (id, side)
) STRICT;
CREATE INDEX events_of_handover ON events (handover, side, seq);
CREATE TABLE reservations (
    handover     TEXT PRIMARY KEY,
    guest        TEXT NOT NULL UNIQUE,
    memory_bytes INTEGER NOT NULL CHECK (memory_bytes > 0),
    port         INTEGER NOT NULL UNIQUE
) STRICT;
"""

_VERSION_2 = """
CREATE TABLE savings (
    id        TEXT PRIMARY KEY,
    guest     TEXT NOT NULL UNIQUE,
    kind      TEXT NOT NULL CHECK (kind IN ('save', 'restore')),
    path      TEXT NOT NULL,
    committed INTEGER NOT NULL CHECK (committed IN (0, 1)),
    digest    TEXT
) STRICT;
"""

_VERSION_3 = """
CREATE TABLE devices (
    address     TEXT PRIMARY KEY,           -- as lspci -D writes it
    guest       TEXT NOT NULL,
    iommu_group INTEGER NOT NULL,
    port        TEXT NOT NULL,              -- the guest's root port
    was_kept    INTEGER NOT NULL CHECK (was_kept IN (0, 1)),
    UNIQUE (guest, port)
) STRICT;
"""

_VERSION_4 = """
ALTER TABLE devices ADD COLUMN wanted TEXT;             -- which of its own the guest has by its definition
ALTER TABLE devices ADD COLUMN before_mac TEXT;         -- what its card was told of it before
ALTER TABLE devices ADD COLUMN before_vlan INTEGER;
"""

#: Entry n brings version n to n + 1.
MIGRATIONS: tuple[str, ...] = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4)
SCHEMA_VERSION = len(MIGRATIONS)


def read_version(connection: sqlite3.Connection) -> int:
    """Return the schema version of the file; 0 for one that has no tables yet."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'").fetchone()
    if found is None:
        return 0
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    return int(row[0]) if row is not None else 0


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the journal to the newest schema, all steps in one transaction; a newer one is refused untouched.

    Raises:
        Broken: the file was written by a newer agent.
    """
    version = read_version(connection)
    if version > SCHEMA_VERSION:
        raise Broken(
            f"Journal {path} has schema version {version}, this agent knows versions up to {SCHEMA_VERSION}",
            fix="start the newer agent that wrote it (nothing was changed)",
        )
    if version == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
        for script in MIGRATIONS[version:]:
            _run(connection, script)
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _run(connection: sqlite3.Connection, script: str) -> None:
    """Run each statement of a script inside the open transaction (`executescript` would commit it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
