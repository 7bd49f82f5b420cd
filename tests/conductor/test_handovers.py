"""Hand-overs on fakes: what is no single fault in a single state, and still happens."""

from __future__ import annotations

import asyncio

import pytest
from tests.conductor.fakes import HOST_B, WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, follow, wait_finished, wait_until

from vmferry.core.capabilities import HANDOVER
from vmferry.core.errors import Broken, GuestBusy, Refused, TimedOut
from vmferry.core.handover.states import AnyState, DestinationState, SourceState
from vmferry.core.ids import Epoch, HandoverId
from vmferry.core.migration import MigrationStatus, RunState
from vmferry.core.progress import Finished
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import MigrationSetup
from vmferry.ports.peer import ReserveRequest
from vmferry.testing.fake_hypervisor import FakeGuestProcess, FakeHypervisor
from vmferry.testing.fake_qemu import Fault, FaultAction


def process_of(host: Host) -> FakeGuestProcess:
    """Return the guest's process on a host."""
    process = host.guests.process(GUEST)
    assert isinstance(process, FakeGuestProcess)
    return process


def state_of(host: Host, handover: HandoverId, side: str) -> str:
    """Return a hand-over's state in a host's journal."""
    row = host.journal.handover(handover, side)
    assert row is not None
    return row.state


async def test_epochs_only_grow(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A guest that moves to and fro, and once comes back on the way, gets one epoch per change of its owner."""
    here, there = hosts
    for epoch in range(2, 8):
        await here.migrate(there)
        await wait_finished(here, there)
        assert there.guests.row(GUEST).token.epoch == epoch
        here, there = there, here
    here.hold.ask(SourceState.LOADED)
    await here.migrate(there)
    await here.hold.wait_reached(SourceState.LOADED)
    arrived = qemu_of(there, link)
    assert arrived is not None
    link.die(arrived)
    here.hold.let_go(SourceState.LOADED)
    await wait_finished(here, there)
    token = here.guests.row(GUEST).token
    assert (token.epoch, token.owner, token.running) == (9, here.name, True)


async def test_paused_guest_arrives_paused(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A guest that stood before the move stands after it, and is nowhere announced."""
    here, there = hosts
    await here.guests.pause(GUEST)
    await here.migrate(there)
    await wait_finished(here, there)
    assert link.running() == []
    assert process_of(there).qemu.state is RunState.PAUSED
    hypervisor = there.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    assert {"cont", "announce"} & {call.name for call in hypervisor.calls} == set()
    await there.guests.resume(GUEST)
    assert len(link.running()) == 1


@pytest.mark.parametrize("state", [SourceState.LOADED, DestinationState.ACQUIRED])
async def test_pause_around_the_commit(hosts: tuple[Host, Host], link: WatchedLink, state: AnyState) -> None:
    """A pause before or after the commit, at whoever owns the guest then, is kept: it arrives paused."""
    here, there = hosts
    side = here if isinstance(state, SourceState) else there
    side.hold.ask(state)
    await here.migrate(there)
    await side.hold.wait_reached(state)
    await side.guests.pause(GUEST)
    side.hold.let_go(state)
    await wait_finished(here, there)
    assert link.running() == []
    assert there.guests.row(GUEST).token.running is False


async def test_resume_is_refused_on_the_way(hosts: tuple[Host, Host]) -> None:
    """Nobody lets the vCPUs go on beside a hand-over."""
    here, there = hosts
    here.hold.ask(SourceState.LOADED)
    await here.migrate(there)
    await here.hold.wait_reached(SourceState.LOADED)
    with pytest.raises(GuestBusy):
        await here.guests.resume(GUEST)
    here.hold.let_go(SourceState.LOADED)
    await wait_finished(here, there)


async def test_panic_on_the_way_is_undone(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A guest that panics while it moves stays at its source, and the row says so."""
    here, there = hosts
    here.hold.ask(SourceState.PRECOPY)
    link.rounds = 10**9
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.PRECOPY)
    process_of(here).guest_panics()
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)
    assert state_of(here, source.request.handover, "source") == "aborted"
    assert here.guests.row(GUEST).note == "guest panicked"
    assert process_of(here).qemu.state is RunState.PANICKED


async def test_silent_source_is_ended_all_the_same(hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """A source's QEMU that does not answer any more after the commit is ended without its last figures."""
    here, there = hosts
    here.hold.ask(SourceState.RUNNING)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.RUNNING)

    async def silent() -> None:
        raise TimedOut("does not answer")

    qemu = process_of(here).qemu
    monkeypatch.setattr(process_of(here), "query_migration", silent)
    here.hold.let_go(SourceState.RUNNING)
    await wait_finished(here, there)
    assert state_of(here, source.request.handover, "source") == "done"
    assert not qemu.alive


async def test_failed_end_of_the_source_is_repeated(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A source's QEMU that cannot be ended at first is tried again: it never stays."""
    here, there = hosts
    hypervisor = here.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    hypervisor.refuse_next("quit", Broken("hangs in the kernel"))
    await here.migrate(there)
    await wait_finished(here, there)
    assert len(link.alive()) == 1
    assert here.journal.guest(GUEST) is None


async def test_late_commit_is_returned(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A token that reaches an arrival which is gone, agent restarted and all, comes back and is never started there."""
    here, there = hosts
    here.hold.ask(SourceState.LOADED)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.LOADED)
    arrived = qemu_of(there, link)
    assert arrived is not None
    link.die(arrived)
    handover = source.request.handover
    await wait_until(lambda: there.handovers.unfinished() == [], "the arrival is gone")
    assert state_of(there, handover, "destination") == "discarded"
    await there.restart()
    here.hold.let_go(SourceState.LOADED)
    await wait_finished(here, there)
    assert state_of(there, handover, "destination") == "returned"
    assert state_of(here, handover, "source") == "returned"
    assert link.running() == [process_of(here).qemu]


async def test_commit_of_another_epoch_is_refused(hosts: tuple[Host, Host]) -> None:
    """A commit that does not follow the reservation's epoch moves nothing."""
    here, there = hosts
    there.hold.ask(DestinationState.RECEIVING)
    source = await here.migrate(there)
    await there.hold.wait_reached(DestinationState.RECEIVING)
    with pytest.raises(Refused, match="epoch 9, expected 2"):
        await there.handovers.arrivals.commit(source.request.handover, Epoch(9), 1.0, running=True)
    there.hold.let_go(DestinationState.RECEIVING)
    await wait_finished(here, there)


async def test_abandoned_arrival_is_held(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A loaded arrival whose source does not come back asks for ever, holds everything, and starts nothing."""
    here, there = hosts
    here.hold.ask(SourceState.LOADED)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.LOADED)
    handover = source.request.handover
    await here.stop()
    for _ in range(2):
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert state_of(there, handover, "destination") == "loaded"
        assert [held.handover for held in there.journal.reservations()] == [handover]
        assert link.running() == []
        await there.restart()
    here.hold.let_go(SourceState.LOADED)
    here.build()
    await here.start()
    await wait_finished(here, there)
    assert link.running() == [process_of(there).qemu]


async def test_arrival_without_a_row_is_undone(hosts: tuple[Host, Host]) -> None:
    """A crash between an arrival's entry and its guest's row leaves nothing behind after the restart."""
    here, there = hosts
    there.hold.ask(DestinationState.PREPARING)
    await here.migrate(there)
    await there.hold.wait_reached(DestinationState.PREPARING)
    await there.stop()
    there.journal.remove_guest(GUEST)
    there.hold.let_go(DestinationState.PREPARING)
    there.build()
    await there.start()
    await wait_finished(here, there)
    assert list(there.journal.reservations()) == []
    assert there.guests.busy_with(GUEST) is None
    await here.migrate(there)
    await wait_finished(here, there)
    assert there.guests.row(GUEST).token.owner == HOST_B


async def test_failed_preparation_can_be_tried_again_at_once(hosts: tuple[Host, Host]) -> None:
    """Who hears that the destination refused can ask again: the earlier arrival is gone by then, name and all."""
    here, there = hosts
    hypervisor = there.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    request = _request(here, "h1")
    hypervisor.refuse_next("listen", Broken("port is taken"))
    with pytest.raises(Refused, match="port is taken"):
        await there.handovers.arrivals.reserve(request)
    reply = await there.handovers.arrivals.reserve(_request(here, "h2"))
    assert reply.port in there.ports
    again = await there.handovers.arrivals.reserve(_request(here, "h2"))
    assert again == reply
    await wait_finished(here)
    # the source never heard of it: the arrival finds out, and undoes itself
    await wait_finished(there)
    assert there.journal.guest(GUEST) is None


def _request(here: Host, handover: str) -> ReserveRequest:
    row = here.guests.row(GUEST)
    setup = MigrationSetup({one.name: True for one in HANDOVER}, None, Milliseconds(100.0))
    return ReserveRequest(HandoverId(handover), row.guest, row.token.epoch, True, here.name, setup)


async def test_full_journal_holds_the_commit(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A release that cannot be written is none: the guest waits, and moves when the disk has room again."""
    here, there = hosts
    here.hold.ask(SourceState.LOADED)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.LOADED)
    here.journal.fail_next = Broken("disk is full")  # type: ignore[attr-defined]
    here.hold.let_go(SourceState.LOADED)
    await wait_finished(here, there)
    assert state_of(here, source.request.handover, "source") == "done"
    assert link.running() == [process_of(there).qemu]


async def test_cancel_after_the_commit_changes_nothing(hosts: tuple[Host, Host]) -> None:
    """A cancel that comes too late answers at once, even while the destination is away, and the guest moves."""
    here, there = hosts
    here.hold.ask(SourceState.COMMITTED)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.COMMITTED)
    here.pair.cut = True
    here.hold.let_go(SourceState.COMMITTED)
    async with asyncio.timeout(5):
        await here.handovers.cancel(source.request.handover)
    here.pair.cut = False
    await wait_finished(here, there)
    assert there.guests.row(GUEST).token.owner == there.name


async def test_source_dies_between_event_and_question(
    hosts: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that dies when it is asked for its last state is dead, not wrong: what has arrived is saved."""
    here, there = hosts
    process = process_of(here)
    asked = process.query_run_state

    async def die_when_completed() -> RunState:
        stream = process.qemu.stream
        if stream is not None and stream.status is MigrationStatus.COMPLETED:
            link.die(process.qemu, "killed")
        return await asked()

    monkeypatch.setattr(process, "query_run_state", die_when_completed)
    await here.migrate(there)
    await wait_finished(here, there)
    assert link.running() == [process_of(there).qemu]
    assert here.journal.guest(GUEST) is None


async def test_settle_waits_for_the_delicate(hosts: tuple[Host, Host]) -> None:
    """An agent that is to stop waits until no guest stands still for it, but not for rounds, nor for ever."""
    here, there = hosts
    here.hold.ask(SourceState.LOADED)
    await here.migrate(there)
    await here.hold.wait_reached(SourceState.LOADED)
    settling = asyncio.create_task(here.handovers.settle(5))
    await here.handovers.settle(0.01)
    assert not settling.done()
    here.hold.let_go(SourceState.LOADED)
    await settling
    assert not here.handovers.unfinished() or here.handovers.unfinished()[0].state in {"running", "done"}
    await wait_finished(here, there)


async def test_watchers_see_the_end_when_the_agent_stops(hosts: tuple[Host, Host]) -> None:
    """Whoever watches a hand-over whose agent stops is not left waiting."""
    here, there = hosts
    here.hold.ask(SourceState.PRECOPY)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.PRECOPY)
    watching = asyncio.create_task(follow(here, source.request.handover))
    await here.stop()
    assert not isinstance((await watching)[-1], Finished)
    here.hold.let_go(SourceState.PRECOPY)
    here.build()
    await here.start()
    await wait_finished(here, there)


async def test_time_limit_gives_precopy_up(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A pre-copy that takes longer than asked for ends with the guest at its source, and says why."""
    here, there = hosts
    link.script(Fault(MigrationStatus.ACTIVE, FaultAction.HANG))
    source = await here.migrate(there, time_limit_s=0.02)
    await wait_finished(here, there)
    assert source.reason == "pre-copy took longer than its time limit of 0.02 s"
    assert link.running() == [process_of(here).qemu]


async def test_settle_waits_for_the_end_of_a_commit(hosts: tuple[Host, Host]) -> None:
    """An agent that is to stop waits while a guest stands still, says which hand-over still does, and no longer."""
    here, there = hosts
    here.hold.ask(SourceState.LOADED)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.LOADED)
    assert await here.handovers.settle(0.01) == [source.request.handover]
    settled = asyncio.create_task(here.handovers.settle(20))
    here.hold.let_go(SourceState.LOADED)
    assert await settled == []
    assert source.runner.machine.state in (SourceState.RUNNING, SourceState.DONE)
    await wait_finished(here, there)
    assert await here.handovers.settle(20) == []
