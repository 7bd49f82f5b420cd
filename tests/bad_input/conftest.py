"""A lab with one running guest, and the proof that a refused order has touched nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from vmferry.lab.commands import Ran
from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.leaks import Snapshot, leaked, snapshot_leaks
from vmferry.lab.scenarios import remove, started
from vmferry.ports.hypervisor import RunState

Vmferry = Callable[..., Coroutine[Any, Any, Ran]]
PATIENCE_S = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts with the newest QEMU."""
    async with Lab() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web7(lab: Lab) -> GuestRun:
    """The guest web-7, which runs on host-a during all tests; each host has answered every question about QEMU once."""
    await remove(lab, await started(lab, micro_guest("first"), "host-b"))
    guest = await started(lab, micro_guest())
    for host in lab.hosts:
        await lab.cli("host-a", "check", "web-7", host)
    return guest


@pytest.fixture
def vmferry(lab: Lab) -> Vmferry:
    """The real command line on host-a; nothing of it may ever be a traceback."""

    async def run(*arguments: str) -> Ran:
        ran = await lab.cli("host-a", *arguments, timeout_s=60)
        assert "Traceback" not in ran.stderr + ran.stdout, ran.stderr
        return ran

    return run


@pytest_asyncio.fixture(loop_scope="module")
async def untouched(lab: Lab, web7: GuestRun) -> AsyncIterator[None]:
    """Prove that a test changed nothing: no row of a journal, nothing held, and the guest runs on, whole."""
    before = await _everything(lab, web7)
    yield
    deadline = time.monotonic() + PATIENCE_S  # idle connections take a moment to go
    while (more := before.changed(await _everything(lab, web7))) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert not more
    assert (await web7.oracle()).startswith("oracle clean")


@dataclass(frozen=True, slots=True)
class _State:
    leaks: Snapshot
    journals: dict[str, list[tuple[Any, ...]]]
    guest: tuple[int | None, RunState | None, int] = field(default=(None, None, 0))

    def changed(self, after: _State) -> list[str]:
        rows = [f"journal: {name}" for name, was in self.journals.items() if after.journals[name] != was]
        guest = [] if self.guest == after.guest else [f"guest: {self.guest} -> {after.guest}"]
        return [*rows, *guest, *leaked(self.leaks, after.leaks)]


async def _everything(lab: Lab, guest: GuestRun) -> _State:
    view = await guest.view()
    journals = {name: journal_rows(host.state_dir / "journal.sqlite") for name, host in lab.hosts.items()}
    return _State(snapshot_leaks(lab), journals, (view.pid, view.run_state, view.epoch))


def journal_rows(path: Path) -> list[tuple[Any, ...]]:
    """Return every row of a journal's tables, read beside the running agent."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        tables = [row[0] for row in journal.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [row for table in sorted(tables) for row in journal.execute(f"SELECT * FROM {table}")]  # noqa: S608 - our own tables
