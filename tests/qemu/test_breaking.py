"""A stream is broken off only where it can be recovered, and in a way that no QEMU dies of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from tests.qemu.conftest import Start
from tests.qemus import VERSIONS, binary_of

from vmferry.core.errors import Broken, TimedOut
from vmferry.core.guest import Acceleration
from vmferry.lab.commands import end
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, MigrationSample, MigrationStatus
from vmferry.qemu import QemuGuestProcess, QemuHypervisor, breaking
from vmferry.qemu.breaking import Breaker
from vmferry.qemu.qmp import SaidNo
from vmferry.qemu.userfault import why_no_userfault
from vmferry.testing.conformance_hypervisor import SPEC, Move

S = MigrationStatus

#: How long QEMU is kept in each shutdown(2) of a stream, so that what takes microseconds can be met.
DELAY_US = 400_000


class Qemu:
    """What a QEMU answers."""

    def __init__(self, status: MigrationStatus | None, refusal: str | None = None) -> None:
        self.status = status
        self.refusal = refusal
        self.ordered: list[str] = []
        self.asked = 0
        self.breaker = Breaker("web-7", self.order, self.query)

    async def order(self, command: str, arguments: Mapping[str, object]) -> None:
        """Take an order."""
        assert arguments == {"instances": [{"type": "migration"}]}
        if self.refusal is not None:
            raise SaidNo(self.refusal)
        self.ordered.append(command)

    async def query(self) -> MigrationSample:
        """Answer a question, or never."""
        self.asked += 1
        if self.status is None:
            await asyncio.Event().wait()
        assert self.status is not None
        return MigrationSample(self.status)


def event_of(status: MigrationStatus) -> GuestEvent:
    """Return what QEMU says by itself."""
    return GuestEvent(GuestEventKind.MIGRATION, 0, status)


@pytest.mark.parametrize("status", list(S))
async def test_only_a_post_copy_is_broken_off(status: MigrationStatus) -> None:
    """What would be lost with its stream is not touched, whether an event told the status or an answer."""
    told, asked = Qemu(S.NONE), Qemu(status)
    told.breaker.saw(event_of(status))
    for qemu in (told, asked):
        if status in (S.POSTCOPY_ACTIVE, S.POSTCOPY_RECOVER):
            await qemu.breaker.break_off()
            assert qemu.ordered == ["yank"]
        else:
            with pytest.raises(Broken, match=f"web-7 cannot be broken off: the status is {status}; expected"):
                await qemu.breaker.break_off()
            assert qemu.ordered == []
    assert (told.asked, asked.asked) == (0, 1)


async def test_a_qemu_that_answers_nothing_waits_for_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new agent's QEMU that hangs is in post-copy: its stream is broken off all the same."""
    monkeypatch.setattr(breaking, "_ANSWER_S", 0.01)
    qemu = Qemu(None)
    await qemu.breaker.break_off()
    assert qemu.ordered == ["yank"]


async def test_an_event_without_a_status_changes_nothing() -> None:
    """Only what QEMU says of its migration counts."""
    qemu = Qemu(S.NONE)
    qemu.breaker.saw(event_of(S.POSTCOPY_ACTIVE))
    qemu.breaker.saw(GuestEvent(GuestEventKind.STOPPED, 0))
    await qemu.breaker.break_off()
    assert (qemu.ordered, qemu.asked) == (["yank"], 0)


async def test_a_refusal_says_what_there_is_not() -> None:
    """A migration that is over has no stream any more."""
    qemu = Qemu(S.POSTCOPY_ACTIVE, refusal="Instance not found")
    with pytest.raises(Broken, match="broken off: Instance not found; expected"):
        await qemu.breaker.break_off()


@contextlib.asynccontextmanager
async def slow_shutdown(process: QemuGuestProcess) -> AsyncIterator[None]:
    """Have each shutdown(2) of a QEMU take its time."""
    inject = ("-e", "trace=shutdown", "-e", f"inject=shutdown:delay_exit={DELAY_US}")
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-o", "/dev/null", *inject, "-p", str(process.record.pid)),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert strace.stderr is not None
        async with asyncio.timeout(10):
            while (line := await strace.stderr.readline()) and b"attached" not in line:
                pass
        assert line, "strace cannot attach"
        yield
    finally:
        await end(strace)


@pytest.mark.real
@pytest.mark.skipif(why_no_userfault(None, VERSIONS[0]) is not None, reason=str(why_no_userfault(None, VERSIONS[0])))
@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_both_break_it_off_at_once(start: Start, probes_dir: Path, version: tuple[int, int], side: str) -> None:
    """A QEMU that is just taking note of a break is told to break the stream off: it lives, and goes on.

    With `migrate-pause` the destination dies here, 7.2 and 10.0 alike.
    """
    hypervisor = QemuHypervisor(binary_of(version), Acceleration.TCG, state_dir=probes_dir)
    guest = await hypervisor.freeze(SPEC)
    source = await start(hypervisor, guest)
    await source.cont()
    destination = await start(hypervisor, guest, incoming=True)
    move = Move(source, destination, source.events(), destination.events())
    await move.begin_postcopy()
    here, there = (source, destination) if side == "source" else (destination, source)
    async with slow_shutdown(here):
        await there.pause_postcopy()
        for _ in range(40):
            with contextlib.suppress(Broken, TimedOut):
                await here.pause_postcopy()
            await asyncio.sleep(DELAY_US / 1e7)
    assert here.is_alive()
    await move.both_in(S.POSTCOPY_PAUSED)
    await move.recover()
