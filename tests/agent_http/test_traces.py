"""Traces are kept for nobody else's eyes, and not for ever."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vmferry.agent.traces import TraceStore
from vmferry.core.convergence import Facts, Goal
from vmferry.core.convergence.trace import Ended, Trace, decode
from vmferry.core.errors import Broken, NotFound
from vmferry.core.ids import HandoverId
from vmferry.core.units import GIB, Bytes, Milliseconds

TRACE = Trace("qemu", Facts(Bytes(GIB)), Goal(), (Ended(Milliseconds(9.0), "done"),))


def keep(store: TraceStore, directory: Path, *names: str) -> None:
    """Store a trace under each name, each a second older than the next."""
    for age, name in enumerate(names):
        store.keep(HandoverId(name), TRACE)
        os.utime(directory / f"{name}.jsonl", (age, age))


async def test_what_is_kept_is_what_is_read(tmp_path: Path) -> None:
    """A trace comes back line by line, from a file of the agent's own."""
    directory = tmp_path / "traces"
    store = TraceStore(directory)
    store.keep(HandoverId("h-1"), TRACE)
    lines = [json.dumps(line) async for line in await store.read(HandoverId("h-1"))]
    assert decode(lines, "h-1") == TRACE
    assert (directory / "h-1.jsonl").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    """Beyond so many, the oldest are removed; the new one stays."""
    keep(TraceStore(tmp_path, most=2), tmp_path, "h-1", "h-2", "h-3")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["h-2", "h-3"]


def test_the_oldest_go_when_they_are_too_large(tmp_path: Path) -> None:
    """Beyond so many bytes too; the newest is kept however large it is."""
    keep(TraceStore(tmp_path, most_bytes=1), tmp_path, "h-1", "h-2")
    assert [path.stem for path in tmp_path.iterdir()] == ["h-2"]


@pytest.mark.parametrize("name", ["h-9", "../journal", "a/b", ""])
async def test_one_that_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    """No name leads out of the directory."""
    (tmp_path / "journal.jsonl").write_text("{}")
    with pytest.raises(NotFound):
        await TraceStore(tmp_path / "traces").read(HandoverId(name))


async def test_one_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """What stands in the way of reading is told."""
    (tmp_path / "h-1.jsonl").mkdir()
    with pytest.raises(Broken):
        await TraceStore(tmp_path).read(HandoverId("h-1"))


def test_one_that_cannot_be_kept_costs_only_itself(tmp_path: Path) -> None:
    """Whatever the file system refuses, nobody is disturbed, and nothing half-written is left."""
    (tmp_path / "h-1.jsonl").mkdir()
    TraceStore(tmp_path).keep(HandoverId("h-1"), TRACE)
    assert [path.name for path in tmp_path.iterdir()] == ["h-1.jsonl"]
