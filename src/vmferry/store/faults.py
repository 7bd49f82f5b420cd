"""Turns SQLite's errors into ours: which file, what it means, what to do."""

from __future__ import annotations

import sqlite3

from vmferry.core.errors import Broken, VmferryError

#: primary result code -> (what it means, what to do)
_MEANINGS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free space in its directory, then repeat"),
    sqlite3.SQLITE_READONLY: ("it is read-only", "make file and directory writable for the agent's user"),
    sqlite3.SQLITE_BUSY: (
        "another process holds a lock on it",
        "end the other agent or sqlite3 shell that has it",
    ),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "check that its directory exists and belongs to the agent's user"),
    sqlite3.SQLITE_PERM: ("access to it is not permitted", "make it belong to the agent's user"),
    sqlite3.SQLITE_IOERR: ("reading or writing it failed", "check the disk (dmesg), then restart the agent"),
    sqlite3.SQLITE_CORRUPT: ("it is damaged", "restore it from a backup; guests that run are not touched"),
    sqlite3.SQLITE_NOTADB: ("it is not a journal", "move the file away or set another state_dir"),
}


def journal_fault(path: str, doing: str, error: sqlite3.Error) -> VmferryError:
    """Return the error to raise for what SQLite said; nothing was written.

    Args:
        path: the journal's file.
        doing: what was being done, e.g. "appending an event".
        error: SQLite's own.
    """
    code = getattr(error, "sqlite_errorcode", None)
    meaning, fix = _MEANINGS.get((code or 0) & 0xFF, ("SQLite failed", "see the agent's log"))
    return Broken(
        f"Journal {path} failed while {doing}: {meaning} ({error}); nothing was written",
        fix=fix,
        retry=code is not None and code & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY},
    )
