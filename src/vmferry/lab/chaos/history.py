"""What happened in one cell, in order: kept when its verdict is not a pass."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from vmferry.lab.hosts import LabHost


@dataclass
class History:
    """Lines with their time in milliseconds since the cell began."""

    began: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Add a line."""
        self.lines.append(f"{1000 * (time.monotonic() - self.began):8.1f} ms  {what}")


def journal_lines(host: LabHost) -> list[str]:
    """Return what a host's journal holds, read beside the running agent."""
    found = []
    for file in journals(host.state_dir):
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as journal:
            rows = journal.execute("SELECT name, epoch, owner, running, cont_intent, note FROM guests").fetchall()
            found += [f"guest {name}: epoch {epoch}, owner {owner}, {rest}" for name, epoch, owner, *rest in rows]
            rows = journal.execute("SELECT id, side, state, finished FROM handovers").fetchall()
            found += [f"hand-over {row}" for row in rows[-4:]]
            rows = journal.execute("SELECT at, handover, side, event, state FROM events ORDER BY seq").fetchall()
            for at, handover, side, event, state in rows[-24:]:
                found.append(f"{at:.3f} {handover} {side}: {json.loads(event)} -> {state}")
            found += [f"reservation {row}" for row in journal.execute("SELECT handover, guest FROM reservations")]
    return [f"{host.name}: {line}" for line in found]


def journals(state_dir: Path) -> list[Path]:
    """Return a host's journal files."""
    return [file for file in state_dir.iterdir() if _is_sqlite(file)]


def _is_sqlite(file: Path) -> bool:
    if not file.is_file() or file.name.endswith(("-wal", "-shm", "-journal")):
        return False
    with file.open("rb") as content:
        return content.read(16) == b"SQLite format 3\0"
