"""The fake fails where its script says, as real QEMU was seen to fail there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.core.guest import Disk
from vmferry.ports.hypervisor import GuestEventKind, HostResources, MigrationStatus, RunState
from vmferry.testing.conformance_hypervisor import ADDRESS, SPEC, Bench, Move, make_move, make_setup, wait_event
from vmferry.testing.fake_hypervisor import FakeGuestProcess, FakeHypervisor, FakeLink, Fault, FaultAction

S = MigrationStatus


@pytest.fixture
async def link() -> FakeLink:
    """A link that moves only when told."""
    return FakeLink(auto=False)


@pytest.fixture
async def move(link: FakeLink) -> AsyncIterator[Move]:
    """A running guest and its destination, with the stream open."""
    bench = Bench(FakeHypervisor("host-a", link), FakeHypervisor("host-b", link), Path("/run"), Disk("/shared/a"))
    move = await make_move(bench, replace(SPEC, disks=(bench.image,)))
    await move.send()
    yield move
    await bench.end()


async def run(link: FakeLink, steps: int = 10) -> None:
    """Step until nothing more can happen."""
    for _ in range(steps):
        link.step()


async def status(move: Move) -> MigrationStatus:
    """Return the source's status."""
    return (await move.source.query_migration()).status


async def test_moves_one_status_at_a_time(link: FakeLink, move: Move) -> None:
    """Each step is one round or one status; pre-switchover waits for an order; postmigrate comes last."""
    seen = []
    for _ in range(6):
        seen.append(await status(move))
        link.step()
    assert seen == [S.SETUP, S.ACTIVE, S.ACTIVE, S.ACTIVE, S.PRE_SWITCHOVER, S.PRE_SWITCHOVER]
    await move.source.migrate_continue()
    link.step()
    assert (await status(move), await move.destination.query_run_state()) == (S.DEVICE, RunState.INMIGRATE)
    link.step()
    assert (await status(move), await move.destination.query_run_state()) == (S.DEVICE, RunState.PAUSED)
    link.step()
    assert (await status(move), await move.source.query_run_state()) == (S.COMPLETED, RunState.FINISH_MIGRATE)
    with pytest.raises(Broken, match="finish-migrate"):
        await move.source.cont()
    link.step()
    assert await move.source.query_run_state() is RunState.POSTMIGRATE


@pytest.mark.parametrize("at", [S.ACTIVE, S.DEVICE])
@pytest.mark.parametrize("action", [FaultAction.DIE, FaultAction.FAIL])
async def test_the_guest_runs_on_by_itself(link: FakeLink, move: Move, at: S, action: FaultAction) -> None:
    """A destination or stream that is lost before loading ends with the guest running and locked at the source."""
    link.script(Fault(at, action))
    await run(link, 5)
    if at is S.DEVICE:
        await move.source.migrate_continue()
    await run(link)
    assert await status(move) is S.FAILED
    assert await move.source.query_run_state() is RunState.RUNNING
    assert isinstance(move.source, FakeGuestProcess)
    assert link.locks == {"/shared/a": move.source.qemu}
    assert not move.destination.is_alive()


@pytest.mark.parametrize("action", [FaultAction.DIE, FaultAction.FAIL])
async def test_pre_switchover_waits_whatever_happens(link: FakeLink, move: Move, action: FaultAction) -> None:
    """In pre-switchover a loss changes nothing until the source is told to go on or to give up."""
    link.script(Fault(S.PRE_SWITCHOVER, action))
    await run(link)
    assert await status(move) is S.PRE_SWITCHOVER
    await move.source.migrate_continue()
    await run(link)
    assert (await status(move), await move.source.query_run_state()) == (S.FAILED, RunState.RUNNING)


async def test_a_hanging_stream_waits_for_release(link: FakeLink, move: Move) -> None:
    """A stream that hangs stays where it is until it is released."""
    link.script(Fault(S.DEVICE, FaultAction.HANG))
    await run(link, 5)
    await move.source.migrate_continue()
    await run(link)
    assert await status(move) is S.DEVICE
    link.release()
    await run(link)
    assert await move.source.query_run_state() is RunState.POSTMIGRATE


async def test_a_cut_link_holds_the_stream(link: FakeLink, move: Move) -> None:
    """Cut off from each other both sides stay as they are, and go on when healed."""
    link.step()
    link.cut()
    await run(link)
    assert (await status(move), await move.destination.query_run_state()) == (S.ACTIVE, RunState.INMIGRATE)
    link.heal()
    await run(link)
    assert await status(move) is S.PRE_SWITCHOVER


async def test_a_dead_source_takes_its_destination_along(link: FakeLink, move: Move) -> None:
    """A source that dies before loading ends ends the destination too, and no lock is left."""
    link.script(Fault(S.DEVICE, FaultAction.DIE, side="source"))
    await run(link, 5)
    await move.source.migrate_continue()
    await run(link)
    await wait_event(move.destination_events, GuestEventKind.EXITED)
    assert not link.locks


async def test_cancel_is_too_late_in_device(link: FakeLink, move: Move) -> None:
    """A cancel after the stream left pre-switchover does not stop it."""
    await run(link, 5)
    await move.source.migrate_continue()
    link.step()
    await move.source.migrate_cancel()
    await run(link)
    assert await status(move) is S.COMPLETED


async def test_calls_are_recorded_in_order(move: Move, link: FakeLink) -> None:
    """Every call stands in its host's record, refused ones too."""
    assert isinstance(move.source, FakeGuestProcess)
    calls = [call.name for call in move.source._hypervisor.calls]
    assert calls == ["freeze", "start", "cont", "prepare_migration", "migrate"]
    with pytest.raises(Broken):
        await move.source.migrate(ADDRESS, 1)
    assert move.source._hypervisor.calls[-1].name == "migrate"


async def test_refuses_what_was_scripted(link: FakeLink) -> None:
    """A scripted refusal is met once and has no effect."""
    host = FakeHypervisor("host-a", link)
    guest = await host.freeze(SPEC)
    host.refuse_next("start", Broken("out of memory"))
    with pytest.raises(Broken, match="out of memory"):
        await host.start(guest, HostResources("/run/a", None), incoming=False)
    assert not link.processes
    assert (await host.start(guest, HostResources("/run/a", None), incoming=False)).is_alive()


async def test_unprepared_migrations_are_refused(link: FakeLink) -> None:
    """The fake refuses to send or listen before both were prepared, and to prepare the wrong way round."""
    host, other = FakeHypervisor("host-a", link), FakeHypervisor("host-b", link)
    guest = await host.freeze(SPEC)
    source = await host.start(guest, HostResources("/run/a", None), incoming=False)
    destination = await other.start(guest, HostResources("/run/b", None), incoming=True)
    with pytest.raises(Broken, match="prepared"):
        await source.migrate(ADDRESS, 1)
    with pytest.raises(Broken, match="prepared"):
        await destination.listen(ADDRESS, 1)
    with pytest.raises(Broken, match="incoming"):
        await source.prepare_migration(make_setup(), incoming=True)
