"""What a lab holds right now, as counted lines: two snapshots subtracted show what leaked.

Each line names the host and a thing: a process, a descriptor of the agent, a port, an interface, a reservation, a
file. Numbers that differ from one start to the next (ports of beats, tap numbers) are left out of the line, so that
a guest that moved there and back leaves the same lines behind.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from vmferry.lab.processes import Identity, command_line

if TYPE_CHECKING:
    from vmferry.lab.hosts import Lab, LabHost

Snapshot = Counter[str]

_LISTEN = "0A"  # include/net/tcp_states.h
#: SQLite's own files come and go with its checkpoints.
_PASSING = re.compile(r"-(wal|shm|journal)$")
#: What a host keeps of its last migrations, at most so many of each: no leak (agent/traces.py).
_KEPT = frozenset({"traces"})


def snapshot_leaks(lab: Lab) -> Snapshot:
    """Return everything that the lab's hosts hold now, counted."""
    found: Snapshot = Counter()
    for host in lab.hosts.values():
        found.update(f"{host.name}: {line}" for line in _lines(lab, host))
    return found


def leaked(before: Snapshot, after: Snapshot) -> list[str]:
    """Return what there is more of than before, one line each."""
    return [f"{number} x {line}" for line, number in sorted((after - before).items())]


async def assert_no_leaks(lab: Lab, before: Snapshot, patience_s: float = 30.0) -> None:
    """Fail (AssertionError) when something is still held that was not held before.

    Args:
        lab: the lab.
        before: what it held before.
        patience_s: how long idle connections and ending processes may take to go.
    """
    deadline = time.monotonic() + patience_s
    while more := leaked(before, snapshot_leaks(lab)):
        if time.monotonic() > deadline:
            raise AssertionError(f"held {patience_s:.0f} s later and not before:\n" + "\n".join(more))
        await asyncio.sleep(0.25)


def _lines(lab: Lab, host: LabHost) -> Iterator[str]:
    yield from _processes(lab, host)
    worker = host.agent.worker
    if worker:
        yield from _descriptors(worker)
        if lab.network:
            yield from _ports(worker)
            yield from _interfaces(worker)
    yield from _reservations(host.state_dir)
    for directory in (host.state_dir, host.run_dir):
        yield from _files(directory)


def _processes(lab: Lab, host: LabHost) -> Iterator[str]:
    for process in lab.processes_of(host.name):
        program = Path(command_line(process.pid).partition(" ")[0]).name
        yield f"process {program}"


def _descriptors(process: Identity) -> Iterator[str]:
    for path in _listing(Path(f"/proc/{process.pid}/fd")):
        try:
            target = str(path.readlink())
        except OSError:
            continue
        yield f"agent's descriptor {target if target.startswith('/') else target.partition(':')[0]}"


def _ports(process: Identity) -> Iterator[str]:
    """Return the namespace's listening TCP ports, and how many UDP ports are bound.

    Source: proc_pid_net(5): column 1 is the local address, 3 the state.
    """
    for row in _rows(process, "tcp"):
        if row[3] == _LISTEN:
            yield f"TCP listener on port {int(row[1].rpartition(':')[2], 16)}"
    for _ in _rows(process, "udp"):
        yield "UDP port"


def _interfaces(process: Identity) -> Iterator[str]:
    for row in _rows(process, "dev"):
        if ":" in row[0]:
            name = re.sub(r"\d+", "N", row[0].rstrip(":"))
            yield f"interface {name}"


def _rows(process: Identity, name: str) -> list[list[str]]:
    try:
        text = Path(f"/proc/{process.pid}/net/{name}").read_text("ascii")
    except OSError:
        return []
    return [line.split() for line in text.splitlines()[1:] if line.strip()]


def _reservations(state_dir: Path) -> Iterator[str]:
    """Return what the journal holds for arriving guests, read beside the running agent."""
    for file in _listing(state_dir):
        if _PASSING.search(file.name) or not _is_sqlite(file):
            continue
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as journal:
            for (guest,) in journal.execute("SELECT guest FROM reservations"):
                yield f"reservation for guest {guest}"


def _is_sqlite(file: Path) -> bool:
    """Tell whether a file is an SQLite database (https://sqlite.org/fileformat2.html, 1.3)."""
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(16) == b"SQLite format 3\0"


def _files(directory: Path) -> Iterator[str]:
    for folder, inner, names in os.walk(directory):
        inner[:] = [name for name in inner if name not in _KEPT]
        for name in names:
            if not _PASSING.search(name):
                yield f"file {(Path(folder) / name).relative_to(directory.parent)}"


def _listing(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
