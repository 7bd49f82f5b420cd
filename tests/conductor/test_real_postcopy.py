"""Post-copy between two conductors on real QEMUs: the memory is whole, agents come back, and a dead QEMU is a loss."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from tests.conductor.pair import GUEST, Host, follow, wait_finished, wait_until
from tests.conductor.real import ask, end_of, home, image, make_spec, pair, process_of, start

from vmferry.conductor.source import Source
from vmferry.core.convergence import make_policy
from vmferry.core.convergence.replay import replay
from vmferry.core.handover.states import SourceState
from vmferry.core.migration import MigrationStatus, RunState
from vmferry.core.progress import PolicyOrdered, StateEntered
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.guests import GuestImage
from vmferry.lab.toolchain import find_qemus
from vmferry.qemu import QemuGuestProcess
from vmferry.qemu.userfault import why_no_userfault

__all__ = ["home", "image", "pair"]

_WHY_NOT = why_no_userfault(None, (10, 0, 0)) if find_qemus() else "no QEMU"
pytestmark = [pytest.mark.real, pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))]

S = SourceState
#: As much as the kernel's buffers of one connection surely hold.
LITTLE = 1 * MIB
#: A post-copy that lasts for many seconds.
SLOW = BytesPerSecond(2 * MIB)


async def begin(here: Host, there: Host) -> Source:
    """Begin an encrypted post-copy that lasts; the guest runs at the destination."""
    source = await here.migrate(there, encrypted=True, postcopy_after=1, bandwidth=SLOW)
    await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_RUNNING, "the guest runs there")
    return source


async def hurry(host: Host) -> None:
    """Take the limit away."""
    await process_of(host).set_parameters({"max-postcopy-bandwidth": 0})


def states_of(here: Host, there: Host, source: Source) -> tuple[str, str]:
    """Return what both journals say."""
    rows = (
        here.journal.handover(source.request.handover, "source"),
        there.journal.handover(source.request.handover, "destination"),
    )
    return tuple("none" if row is None else row.state for row in rows)  # type: ignore[return-value]


@pytest.mark.parametrize("rounds", [1, 2])
async def test_memory_is_whole(pair: tuple[Host, Host], image: GuestImage, rounds: int) -> None:
    """A guest that writes faster than its stream is sent arrives by post-copy, whole."""
    here, there = pair
    await start(here, make_spec(image, mb=16, rate=40))
    source = await here.migrate(there, encrypted=True, postcopy_after=rounds, bandwidth=BytesPerSecond(20 * MIB))
    events = await follow(here, source.request.handover)
    await wait_finished(here, there)
    assert states_of(here, there, source) == ("done", "running")
    entered = [event.state for event in events if isinstance(event, StateEntered)]
    assert "postcopy-running" in entered
    assert source.last_sample is not None
    assert source.last_sample.postcopy_bytes > 0
    assert (await ask(there, "o", "oracle")).startswith("oracle clean")


async def test_the_default_policy_decides_for_postcopy(pair: tuple[Host, Host], image: GuestImage) -> None:
    """Allowed and no more than that: a guest that outruns its link is moved by post-copy because the policy says so."""
    here, there = pair
    await start(here, make_spec(image, mb=24, rate=100))
    source = await here.migrate(there, encrypted=True, postcopy=True, bandwidth=BytesPerSecond(16 * MIB))
    events = await follow(here, source.request.handover)
    await wait_finished(here, there)
    assert states_of(here, there, source) == ("done", "running")
    told = [event for event in events if isinstance(event, PolicyOrdered)]
    assert (told[-1].order, told[-1].refused) == ("start post-copy", None)
    assert told[-1].rule.startswith("no end soon: round ")
    assert [each.order for each in told if each.elapsed_ms > 0] == ["start post-copy"]  # and no brake before it
    entered = [event.state for event in events if isinstance(event, StateEntered)]
    assert "postcopy-running" in entered
    assert source.last_sample is not None
    assert source.last_sample.postcopy_bytes > 0
    trace = here.traces[source.request.handover]
    dry = replay(trace, make_policy("vmferry", trace.goal))
    assert (dry.fired[-1].what, dry.fired[-1].round) == ("start post-copy", told[-1].round)
    assert (await ask(there, "o", "oracle")).startswith("oracle clean")


@pytest.mark.parametrize("paused", [False, True], ids=["active", "paused"])
@pytest.mark.parametrize("whose", ["source", "destination"])
async def test_agent_restarts(pair: tuple[Host, Host], image: GuestImage, whose: str, *, paused: bool) -> None:
    """Either agent is replaced in mid-post-copy, or while the stream is broken: the guest arrives whole by itself."""
    here, there = pair
    await start(here, make_spec(image, mb=16, rate=4))
    source = await begin(here, there)
    if paused:
        here.hold.ask(S.POSTCOPY_PAUSED)
        await process_of(here).pause_postcopy()
        await here.hold.wait_reached(S.POSTCOPY_PAUSED)
        here.hold.let_go(S.POSTCOPY_PAUSED)
    await (here if whose == "source" else there).restart()
    await wait_status(here, MigrationStatus.POSTCOPY_ACTIVE)
    await hurry(here)
    await wait_finished(here, there)
    assert states_of(here, there, source) == ("done", "running")
    assert (await ask(there, "o", "oracle")).startswith("oracle clean")


async def wait_status(host: Host, status: MigrationStatus) -> None:
    """Wait until the source's QEMU says so."""
    async with asyncio.timeout(60):
        while (await process_of(host).query_migration()).status is not status:  # noqa: ASYNC110 - another agent's doing
            await asyncio.sleep(0.01)


async def test_broken_streams_are_recovered(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A stream that breaks three times, at either end, goes on by itself, and the memory is whole."""
    here, there = pair
    await start(here, make_spec(image, mb=16, rate=4))
    source = await begin(here, there)
    for broken in (here, there, here):
        await process_of(broken).pause_postcopy()
        await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_PAUSED, "it is broken")
        await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_RUNNING, "it is recovered")
    await hurry(here)
    assert (await end_of(here, source)).outcome == "moved"
    assert (await ask(there, "o", "oracle")).startswith("oracle clean")


@pytest.mark.parametrize("whose", ["source", "destination"])
async def test_dead_qemu_is_a_lost_guest(pair: tuple[Host, Host], image: GuestImage, whose: str) -> None:
    """A QEMU that is killed while pages are missing takes the guest with it: said so on both sides, and never two."""
    here, there = pair
    await start(here, make_spec(image, mb=16, rate=4))
    source = await begin(here, there)
    await process_of(here if whose == "source" else there).kill()
    assert (await end_of(here, source)).outcome == "lost"
    assert states_of(here, there, source) == ("lost", "lost")
    assert here.guests.process(GUEST) is None
    assert there.guests.process(GUEST) is None
    row = there.journal.guest(GUEST)
    assert row is not None
    assert row.note is not None


async def test_source_that_fails_behind_its_last_page_never_runs(
    pair: tuple[Host, Host], image: GuestImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU 10.0 fails when the stream breaks between its last page and the last word: the guest stays stopped there."""
    here, there = pair
    await start(here, make_spec(image, mb=16, rate=4))
    source = await begin(here, there)
    qemu, doomed = process_of(here), process_of(there)
    states: list[tuple[MigrationStatus, RunState]] = []

    async def end_failed() -> None:
        states.append(((await qemu.query_migration()).status, await qemu.query_run_state()))
        await real_kill()

    real_kill = qemu.kill
    monkeypatch.setattr(qemu, "kill", end_failed)
    await wait_left(qemu, LITTLE)
    os.kill(doomed.record.pid, signal.SIGSTOP)  # what is sent from now on stays in the kernel's buffers
    await hurry(here)
    await wait_left(qemu, 0)
    os.kill(doomed.record.pid, signal.SIGKILL)
    assert (await end_of(here, source)).outcome == "lost"
    assert states == [(MigrationStatus.FAILED, RunState.PAUSED)]


async def wait_left(process: QemuGuestProcess, most: int) -> None:
    """Wait until no more than so many bytes are left to send."""
    async with asyncio.timeout(60):
        while (await process.query_migration()).remaining_bytes > most:  # noqa: ASYNC110 - QEMU does not tell
            await asyncio.sleep(0.005)


async def test_paused_guest(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A guest that stands is moved by post-copy without ever being started."""
    here, there = pair
    await start(here, make_spec(image))
    await here.guests.pause(GUEST)
    source = await here.migrate(there, encrypted=True, postcopy_after=1)
    end = await end_of(here, source)
    assert end.outcome == "moved", end.reason
    assert await process_of(there).query_run_state() is RunState.PAUSED
    await there.guests.resume(GUEST)
    assert (await ask(there, "o", "oracle")).startswith("oracle clean")
