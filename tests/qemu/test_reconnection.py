"""A second resume waits until the first is decided: by an event, or by what QEMU wrote."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.qemu.conftest import Start
from tests.qemus import VERSIONS

from vmferry.core.errors import Broken, TimedOut
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, MigrationStatus
from vmferry.qemu import QemuHypervisor, reconnection
from vmferry.qemu.reconnection import Reconnection
from vmferry.qemu.userfault import why_no_userfault
from vmferry.testing.conformance_hypervisor import ADDRESS, SPEC, Move, find_free_port, wait_reading

LATE = b"2026-01-01T00:00:00.000000Z qemu-system-x86_64: Detected IO failure for postcopy. Migration paused.\n"
REFUSED = b"2026-01-01T00:00:00.000000Z qemu-system-x86_64: Failed to connect to '10.0.0.2:4': Connection refused\n"


@pytest.fixture
def ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reconnection:
    """A resume that was ordered, of a source whose log says why it is paused."""
    monkeypatch.setattr(reconnection, "LIMIT_S", 0.05)
    (tmp_path / "qemu.log").write_bytes(REFUSED + LATE)
    one = Reconnection("web-7", tmp_path / "qemu.log")
    one.begin()
    return one


async def test_is_undecided_until_qemu_says_something(ordered: Reconnection, tmp_path: Path) -> None:
    """Neither an older line, nor one about the break, nor half a line decides it."""
    with (tmp_path / "qemu.log").open("ab") as log:
        log.write(LATE + REFUSED[:-1])
    with pytest.raises(TimedOut, match="web-7 still connects"):
        await ordered.settle()
    with pytest.raises(TimedOut, match="web-7 still connects"):
        await ordered.settle()


@pytest.mark.parametrize("written", [REFUSED + LATE + REFUSED, REFUSED], ids=["appended", "log was cut"])
async def test_is_decided_by_the_log(ordered: Reconnection, tmp_path: Path, written: bytes) -> None:
    """A line after the order is its failure."""
    (tmp_path / "qemu.log").write_bytes(written)
    await ordered.settle()


@pytest.mark.parametrize(
    "event",
    [GuestEvent(GuestEventKind.MIGRATION, 0, MigrationStatus.POSTCOPY_RECOVER), GuestEvent(GuestEventKind.EXITED, 0)],
    ids=["connected", "ended"],
)
async def test_is_decided_by_an_event(ordered: Reconnection, event: GuestEvent) -> None:
    """It connected, or there is nobody left who could."""
    ordered.saw(event)
    await ordered.settle()


@contextmanager
def silent_port() -> Iterator[int]:
    """A port whose queue is full: who connects is kept waiting until the block ends, and is refused then."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind((ADDRESS, 0))
        server.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@pytest.mark.real
@pytest.mark.skipif(why_no_userfault(None, VERSIONS[0]) is not None, reason=str(why_no_userfault(None, VERSIONS[0])))
async def test_two_resumes_at_once_do_not_end_a_source(
    hypervisor: QemuHypervisor, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one resume still connects another is refused, by QEMU or by us; once it has failed recovery works."""
    guest = await hypervisor.freeze(replace(SPEC, nics=()))
    source = await start(hypervisor, guest)
    await source.cont()
    destination = await start(hypervisor, guest, incoming=True)
    move = Move(source, destination, source.events(), destination.events())
    await move.begin_postcopy()
    await source.pause_postcopy()
    await move.both_in(MigrationStatus.POSTCOPY_PAUSED)
    monkeypatch.setattr(reconnection, "LIMIT_S", 0.5)
    with silent_port() as port:
        first = asyncio.create_task(source.resume_stream(ADDRESS, port))
        await asyncio.wait({first})
        with pytest.raises((Broken, TimedOut), match="resume"):
            await source.resume_stream(ADDRESS, find_free_port())
    assert first.exception() is None or isinstance(first.exception(), TimedOut)
    monkeypatch.undo()
    await wait_reading(source, MigrationStatus.POSTCOPY_PAUSED)
    await move.recover()
    assert source.is_alive()
