"""Hand-overs between two conductors on real QEMUs: there and back, undone, disturbed; and nothing is left."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from tests.conductor.pair import GUEST, Host, follow, wait_finished
from tests.conductor.real import ask, end_of, home, image, make_spec, pair, press, process_of, run_state_of, start

from vmferry.conductor.source import Source
from vmferry.core.capabilities import StreamWish
from vmferry.core.checks import memory_needed
from vmferry.core.guest import Disk
from vmferry.core.handover.states import AnyState, SourceState
from vmferry.core.ids import GuestName
from vmferry.core.migration import RunState
from vmferry.core.progress import Finished
from vmferry.core.units import MIB, Bytes, BytesPerSecond
from vmferry.lab.guests import GuestImage
from vmferry.ports.hypervisor import GuestEventKind

__all__ = ["home", "image", "pair"]

pytestmark = pytest.mark.real

#: A stream that lasts seconds: what is to happen in mid-migration happens in PRECOPY for certain.
SLOW = BytesPerSecond(2 * MIB)
PLAIN = StreamWish(encrypted=False)


async def slowly(here: Host, there: Host) -> Source:
    """Begin a hand-over that is in PRECOPY and stays there for seconds."""
    handover = await here.handovers.open(
        GUEST, there.name, downtime_limit_ms=None, bandwidth=SLOW, time_limit_s=None, stream=PLAIN
    )
    source = here.handovers.source(handover)
    assert source is not None
    before: frozenset[AnyState] = frozenset({SourceState.CHECKING, SourceState.RESERVING, SourceState.RESERVED})
    assert await source.runner.wait_left(before) is SourceState.PRECOPY
    return source


async def hurry(host: Host, source: Source) -> None:
    """Let a slow stream go as fast as it can, as its owner would: an agent that came back keeps to what was asked."""
    await host.handovers.limit(source.request.handover, BytesPerSecond(1000 * MIB))


def assert_tidy(owner: Host, other: Host) -> None:
    """The guest is the owner's alone, and nothing of any hand-over is left."""
    assert [row.guest.spec.name for row in owner.journal.guests()] == [GUEST]
    assert owner.journal.guests()[0].token.owner == owner.name
    assert list(other.journal.guests()) == []
    assert other.guests.process(GUEST) is None
    for host in (owner, other):
        assert list(host.journal.reservations()) == []
        assert host.handovers.unfinished() == []
        assert host.guests.busy_with(GUEST) is None


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
async def test_there_and_back(pair: tuple[Host, Host], image: GuestImage, encrypted: bool) -> None:
    """A guest that writes moves to and fro, whole each time, two epochs further with each round trip."""
    source, destination = pair
    await start(source, make_spec(image))
    for move in range(4):
        end = await end_of(source, await source.migrate(destination, encrypted=encrypted))
        assert end.outcome == "moved", end.reason
        assert_tidy(destination, source)
        assert destination.guests.row(GUEST).token.epoch == 2 + move
        assert (await ask(destination, "o", "oracle")).startswith("oracle clean")
        source, destination = destination, source


async def test_cancelled_in_precopy(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A cancelled guest runs on at the source, whole, and can be moved afterwards."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    await here.handovers.cancel(source.request.handover)
    end = await end_of(here, source)
    assert (end.outcome, end.reason) == ("aborted", "cancelled by an operator")
    assert_tidy(here, there)
    assert (await ask(here, "o", "oracle")).startswith("oracle clean")
    assert (await end_of(here, await here.migrate(there))).outcome == "moved"
    assert_tidy(there, here)


async def test_power_off_in_mid_migration(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A guest that powers itself off while it moves stays where it was, and the row says why it stopped."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    await press(here, "p")
    end = await end_of(here, source)
    assert end.outcome == "aborted"
    assert_tidy(here, there)
    assert here.guests.row(GUEST).note == "powered off by the guest"
    assert await run_state_of(here) is RunState.SHUTDOWN


async def test_reboot_in_mid_migration(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A guest that reboots while it moves arrives all the same."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    events = process_of(here).events()
    await press(here, "r")
    async for event in events:
        if event.kind is GuestEventKind.RESET:
            break
    await hurry(here, source)
    assert (await end_of(here, source)).outcome == "moved"
    assert_tidy(there, here)
    assert await run_state_of(there) is RunState.RUNNING


async def test_paused_in_mid_migration(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A guest that an operator pauses while it moves arrives paused, cannot be resumed on the way, and can then."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    await here.guests.pause(GUEST)
    await hurry(here, source)
    assert (await end_of(here, source)).outcome == "moved"
    assert await run_state_of(there) is RunState.PAUSED
    assert there.guests.row(GUEST).token.running is False
    await there.guests.resume(GUEST)
    assert await run_state_of(there) is RunState.RUNNING
    assert (await ask(there, "o", "oracle")).startswith("oracle clean")


async def test_paused_then_cancelled(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A guest that was paused on its way is paused at the source when the move is undone."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    await here.guests.pause(GUEST)
    await here.handovers.cancel(source.request.handover)
    await end_of(here, source)
    assert await run_state_of(here) is RunState.PAUSED
    assert_tidy(here, there)


async def test_shared_disk_is_locked_by_its_owner(pair: tuple[Host, Host], image: GuestImage, home: Path) -> None:
    """The image's lock follows the guest: nobody else can open it for writing, before or after."""
    path = home / "web-7.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M"]
    await asyncio.to_thread(subprocess.run, create, check=True)
    here, there = pair
    await start(here, make_spec(image, Disk(str(path))))

    def write() -> subprocess.CompletedProcess[str]:
        order = ["qemu-io", "-f", "qcow2", "-c", "write 0 4k", str(path)]
        return subprocess.run(order, check=False, capture_output=True, text=True)

    assert "lock" in (await asyncio.to_thread(write)).stderr
    assert (await end_of(here, await here.migrate(there))).outcome == "moved"
    assert "lock" in (await asyncio.to_thread(write)).stderr
    await there.guests.stop(GUEST)
    assert (await asyncio.to_thread(write)).returncode == 0


@pytest.mark.parametrize("lacks", ["memory", "name", "port"])
async def test_destination_refuses(pair: tuple[Host, Host], image: GuestImage, lacks: str) -> None:
    """A destination without memory, name or port says so; the guest never noticed and nothing is left there."""
    here, there = pair
    await start(here, make_spec(image))
    reasons = {"memory": "of memory here", "name": "is taken on host", "port": "No migration port is free"}
    if lacks == "memory":
        there.free_memory = Bytes(MIB)
    elif lacks == "name":
        await there.guests.run(make_spec(image))
    else:
        there.ports = range(0)
    if lacks != "name":
        await there.restart()
    end = await end_of(here, await here.migrate(there))
    assert end.outcome == "aborted"
    assert reasons[lacks] in (end.reason or "")
    assert await run_state_of(here) is RunState.RUNNING
    assert list(there.journal.reservations()) == []
    if lacks != "name":
        assert_tidy(here, there)


async def test_two_race_for_the_last_memory(pair: tuple[Host, Host], image: GuestImage) -> None:
    """Of two guests that want the last memory at once exactly one arrives, and the other runs on at home."""
    here, there = pair
    first = make_spec(image)
    row = await here.guests.run(first)
    other = GuestName("web-8")
    await start(here, type(first)(other, first.memory_bytes, first.boot))
    there.free_memory = Bytes(round(memory_needed(row.guest) * 1.5))
    await there.restart()
    opened = [
        await here.handovers.open(
            name, there.name, downtime_limit_ms=None, bandwidth=None, time_limit_s=None, stream=PLAIN
        )
        for name in (GUEST, other)
    ]
    ends = [(await follow(here, handover))[-1] for handover in opened]
    await wait_finished(here, there)
    assert sorted(end.outcome for end in ends if isinstance(end, Finished)) == ["aborted", "moved"]
    assert len(there.journal.guests()) == len(here.journal.guests()) == 1
    assert list(there.journal.reservations()) == []


@pytest.mark.parametrize("restarted", ["source", "destination", "both"])
async def test_restart_in_precopy_goes_on(pair: tuple[Host, Host], image: GuestImage, restarted: str) -> None:
    """An agent that restarts in pre-copy finds its QEMU sending or loading, and the move ends as if nothing was."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    pid = process_of(here).record.pid
    for host in {"source": [here], "destination": [there], "both": [here, there]}[restarted]:
        await host.restart()
    assert process_of(here).record.pid == pid
    await hurry(here, source)
    await wait_finished(here, there)
    row = here.journal.handover(source.request.handover, "source")
    assert row is not None
    assert row.state == "done"
    assert_tidy(there, here)
    assert (await ask(there, "o", "oracle")).startswith("oracle clean")


async def test_cancelled_at_the_moment_of_a_restart(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A cancel that comes before the agent has found its QEMU again is not lost: it waits, and then ends the move."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    await here.restart()
    assert here.handovers.source(source.request.handover) is None
    await here.handovers.cancel(source.request.handover)
    await wait_finished(here, there)
    row = here.journal.handover(source.request.handover, "source")
    assert row is not None
    assert row.state == "aborted"
    assert_tidy(here, there)


async def test_source_qemu_killed_in_precopy(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A source that dies before everything was sent is a crash at its owner, noted there, and nothing is left."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    await process_of(here).kill()
    assert (await end_of(here, source)).outcome == "lost"
    row = here.guests.row(GUEST)
    assert row.process is None
    assert row.note == f"lost in hand-over {source.request.handover}"
    assert_tidy(here, there)


async def test_destination_qemu_killed_in_precopy(pair: tuple[Host, Host], image: GuestImage) -> None:
    """A destination that dies while it loads costs the guest nothing."""
    here, there = pair
    await start(here, make_spec(image))
    source = await slowly(here, there)
    await process_of(there).kill()
    assert (await end_of(here, source)).outcome == "aborted"
    assert_tidy(here, there)
    assert await run_state_of(here) is RunState.RUNNING
    assert (await ask(here, "o", "oracle")).startswith("oracle clean")
