"""Leases of a guest's images: its QEMU has them whenever it may write, and no other one at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conductor.fakes import HOST_A, HOST_B, SPEC, make_pair, qemu_of
from tests.conductor.leases import STRANGER, FakeLeases, LeasedLink
from tests.conductor.pair import GUEST, Host, running, wait_finished, wait_until
from tests.conductor.saving import path, saving_of
from tests.conductor.test_handovers import state_of

from vmferry.agent.recovery import Recovery
from vmferry.conductor import guest_leases
from vmferry.conductor.source import Source
from vmferry.core.errors import Broken, Refused
from vmferry.core.handover.states import AnyState, DestinationState, SourceState
from vmferry.core.migration import RunState
from vmferry.testing.fake_hypervisor import FakeHypervisor

__all__ = ["path"]

DISK = SPEC.disks[0].path


@pytest.fixture
def leased(monkeypatch: pytest.MonkeyPatch) -> LeasedLink:
    """What two hosts share, leases among it."""
    monkeypatch.setattr(guest_leases, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(guest_leases, "_AGAIN_S", 0.01)
    return LeasedLink()


@pytest.fixture
async def pair(tmp_path: Path, leased: LeasedLink, hurried: None) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts with leases; the guest runs on the first."""
    hosts = make_pair(tmp_path, leased).hosts
    for host in hosts.values():
        host.leases = FakeLeases(leased)
        host.build()
    async with running(hosts[HOST_A], hosts[HOST_B]):
        await hosts[HOST_A].guests.run(SPEC)
        yield hosts[HOST_A], hosts[HOST_B]
    assert leased.doubled == []


def manager(host: Host) -> FakeLeases:
    """Return a host's lock manager."""
    assert isinstance(host.leases, FakeLeases)
    return host.leases


def assert_at(host: Host, link: LeasedLink, state: RunState = RunState.RUNNING) -> None:
    """The guest is on a host, its QEMU the only one, and that has the lease."""
    qemu = qemu_of(host, link)
    assert qemu is not None
    assert link.alive() == [qemu]
    assert (qemu.state, link.lessee(DISK)) == (state, qemu.record.pid)


async def held_in(host: Host, state: AnyState, other: Host, *, postcopy: bool = False) -> Source:
    """Return the hand-over of the guest to another host, which stands still in a state of the first one named."""
    host.hold.ask(state)
    source, destination = (host, other) if isinstance(state, SourceState) else (other, host)
    moving = await source.migrate(destination, postcopy_after=1 if postcopy else None)
    await host.hold.wait_reached(state)
    return moving


@pytest.mark.parametrize("postcopy", [False, True])
async def test_the_lease_goes_with_the_guest(pair: tuple[Host, Host], leased: LeasedLink, postcopy: bool) -> None:
    """There and back, each host's QEMU has the lease before it is let run, and the other one has none any more."""
    for here, there in (pair, (pair[1], pair[0])):
        assert_at(here, leased)
        moving = await here.migrate(there, postcopy_after=1 if postcopy else None)
        await wait_finished(here, there)
        assert state_of(here, moving.request.handover, "source") == "done"
        assert_at(there, leased)


async def test_the_lease_goes_with_a_paused_guest(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """A guest that stands still has its lease where it is, so that it can be let run there without anybody else."""
    here, there = pair
    await here.guests.pause(GUEST)
    await here.migrate(there)
    await wait_finished(here, there)
    assert_at(there, leased, RunState.PAUSED)
    await there.guests.resume(GUEST)
    assert_at(there, leased)


@pytest.mark.parametrize("state", [SourceState.LOADED, SourceState.PRE_SWITCHOVER, SourceState.PRECOPY])
async def test_the_source_keeps_the_lease_until_the_commit(
    pair: tuple[Host, Host], leased: LeasedLink, state: SourceState
) -> None:
    """Whatever comes before the commit, the way back needs nobody's leave: a QEMU may go that way by itself."""
    here, there = pair
    before = leased.lessee(DISK)
    moving = await held_in(here, state, there)
    assert leased.lessee(DISK) == before
    moving.cancel()
    here.hold.let_go(state)
    await wait_finished(here, there)
    assert state_of(here, moving.request.handover, "source") == "aborted"
    assert_at(here, leased)


async def test_a_lost_lease_ends_the_move_before_the_commit(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """A source that is not certain of its lease commits nothing; the guest goes on where it was."""
    here, there = pair
    moving = await held_in(here, SourceState.LOADED, there)
    manager(here).is_down = True
    here.hold.let_go(SourceState.LOADED)
    await wait_finished(here, there)
    assert state_of(here, moving.request.handover, "source") == "aborted"
    assert moving.reason == "sanlock's daemon does not answer"
    assert_at(here, leased)


async def test_a_lease_that_cannot_be_given_back_holds_the_guest(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """After the commit nobody runs the guest until its source has given the lease back; then it arrives."""
    here, there = pair
    await held_in(here, SourceState.COMMITTED, there)
    manager(here).is_down = True
    here.hold.let_go(SourceState.COMMITTED)
    await asyncio.sleep(0.1)
    assert leased.running() == []
    assert here.handovers.unfinished()
    manager(here).is_down = False
    await wait_finished(here, there)
    assert_at(there, leased)


async def test_a_source_whose_lock_manager_was_started_anew_goes_on_without(
    pair: tuple[Host, Host], leased: LeasedLink
) -> None:
    """A QEMU that can have no lease any more runs on, as its neighbours do, but not beside one that has the lease."""
    here, there = pair
    moving = await held_in(there, DestinationState.ACQUIRED, here)
    qemu = qemu_of(here, leased)
    assert qemu is not None
    leased.forgotten.add(qemu.record.pid)
    leased.lessees[DISK] = STRANGER
    there.hold.let_go(DestinationState.ACQUIRED)
    await wait_until(lambda: moving.state is SourceState.RETURNING, "it came back")
    await asyncio.sleep(0.1)
    assert leased.running() == []
    del leased.lessees[DISK]
    await wait_finished(here, there)
    assert state_of(here, moving.request.handover, "source") == "returned"
    assert leased.running() == [qemu]
    assert await here.guests.leases.unleased(GUEST) == (DISK,)


@pytest.mark.parametrize("is_back", [False, True])
async def test_a_destination_without_leases_gives_the_guest_back(
    pair: tuple[Host, Host], leased: LeasedLink, is_back: bool
) -> None:
    """A lock manager that has died at the destination costs a pause; what is back in time costs nothing."""
    here, there = pair
    moving = await held_in(there, DestinationState.ACQUIRED, here)
    manager(there).is_down = not is_back
    there.hold.let_go(DestinationState.ACQUIRED)
    await wait_finished(here, there)
    assert state_of(here, moving.request.handover, "source") == ("done" if is_back else "returned")
    assert_at(there if is_back else here, leased)


async def test_a_stranger_that_was_quicker_is_waited_for_at_the_source(
    pair: tuple[Host, Host], leased: LeasedLink
) -> None:
    """Who took the lease between the two hosts keeps it: the guest stands still at its source until that one leaves."""
    here, there = pair
    moving = await held_in(there, DestinationState.ACQUIRED, here)
    leased.lessees[DISK] = STRANGER
    there.hold.let_go(DestinationState.ACQUIRED)
    await wait_until(lambda: moving.state is SourceState.RETURNING, "it came back")
    await asyncio.sleep(0.1)
    assert leased.running() == []
    assert moving.state is SourceState.RETURNING
    del leased.lessees[DISK]
    await wait_finished(here, there)
    assert state_of(here, moving.request.handover, "source") == "returned"
    assert_at(here, leased)


async def test_postcopy_waits_for_the_lease_at_the_destination(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """Where nobody can take the guest back, the destination tries until it has the lease."""
    here, there = pair
    moving = await held_in(there, DestinationState.POSTCOPY_STARTING, here, postcopy=True)
    leased.lessees[DISK] = STRANGER
    there.hold.let_go(DestinationState.POSTCOPY_STARTING)
    await asyncio.sleep(0.1)
    assert leased.running() == []
    del leased.lessees[DISK]
    await wait_finished(here, there)
    assert state_of(here, moving.request.handover, "source") == "done"
    assert_at(there, leased)


@pytest.mark.parametrize(
    ("state", "postcopy"),
    [
        (SourceState.COMMITTED, False),
        (SourceState.POSTCOPY_COMMITTED, True),
        (DestinationState.ACQUIRED, False),
        (DestinationState.STARTING, False),
        (DestinationState.POSTCOPY_STARTING, True),
    ],
)
async def test_an_agent_that_dies_takes_no_lease_along(
    pair: tuple[Host, Host], leased: LeasedLink, state: AnyState, postcopy: bool
) -> None:
    """Whichever agent is killed around the commit, the next one gives, takes and starts; and nothing is taken twice."""
    here, there = pair
    dying, other = (here, there) if isinstance(state, SourceState) else (there, here)
    await held_in(dying, state, other, postcopy=postcopy)
    dying.hold.let_go(state)
    await dying.restart()
    await wait_finished(here, there)
    assert_at(there, leased)


async def test_an_agent_that_dies_on_the_way_back_takes_the_lease_again(
    pair: tuple[Host, Host], leased: LeasedLink
) -> None:
    """A source's agent that is killed when the token is back takes the lease before it lets the guest go on."""
    here, there = pair
    moving = await held_in(there, DestinationState.ACQUIRED, here)
    here.hold.ask(SourceState.RETURNING)
    manager(there).is_down = True
    there.hold.let_go(DestinationState.ACQUIRED)
    await here.hold.wait_reached(SourceState.RETURNING)
    here.hold.let_go(SourceState.RETURNING)
    await here.restart()
    await wait_finished(here, there)
    assert state_of(here, moving.request.handover, "source") == "returned"
    assert_at(here, leased)


async def test_a_qemu_that_dies_before_the_intent_gives_lease_and_guest_back(
    pair: tuple[Host, Host], leased: LeasedLink
) -> None:
    """A destination's QEMU that dies while its lease is waited for never ran: the source has both again."""
    here, there = pair
    moving = await held_in(there, DestinationState.ACQUIRED, here)
    qemu = qemu_of(there, leased)
    assert qemu is not None
    leased.die(qemu, "killed")
    there.hold.let_go(DestinationState.ACQUIRED)
    await wait_finished(here, there)
    assert state_of(here, moving.request.handover, "source") == "returned"
    assert_at(here, leased)


async def test_recovery_tells_of_the_lease_of_a_host_that_is_off(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """A person's word gives the guest back to its source at once, its disks only when the lease has ended."""
    here, there = pair
    await held_in(there, DestinationState.STARTING, here)
    await there.stop()
    qemu = next(each for each in leased.alive() if each is not qemu_of(here, leased))
    leased.die(qemu, "its host is off")
    leased.lessees[DISK] = STRANGER  # nobody gives it back
    recovery = Recovery(here.guests, here.handovers, saving_of(here))
    (finding,) = await recovery.fenced(there.name)
    assert finding.owner == here.name
    expected = f"it cannot be started here before the lease has ended: image {DISK} is leased by host id 3"
    assert expected in finding.done
    with pytest.raises(Refused, match="host id 3"):
        await here.guests.start(GUEST)
    del leased.lessees[DISK]
    await here.guests.start(GUEST)
    assert_at(here, leased)


async def test_a_guest_whose_lease_another_host_has_is_not_started(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """The refusal says who has the lease; when that one leaves, the guest starts."""
    here, _ = pair
    await here.guests.stop(GUEST)
    leased.lessees[DISK] = STRANGER
    with pytest.raises(Refused, match="web-7 did not start: image /srv/web-7.qcow2 is leased by host id 3"):
        await here.guests.start(GUEST)
    assert leased.alive() == []
    del leased.lessees[DISK]
    await here.guests.start(GUEST)
    assert_at(here, leased)


async def test_what_qemu_says_is_told_when_it_had_its_lease(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """A start that fails for another reason says so, whoever has the lease a moment later."""
    here, _ = pair
    await here.guests.stop(GUEST)
    assert isinstance(here.hypervisor, FakeHypervisor)
    here.hypervisor.refuse_next("start", Broken("kernel header is too old"))
    leased.lessees[DISK] = STRANGER
    with pytest.raises(Broken, match="kernel header is too old"):
        await here.guests.start(GUEST)


async def test_a_guest_is_not_started_while_there_are_no_leases(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """Without its lock manager a host starts nothing that needs it; a guest that runs goes on, paused and resumed."""
    here, _ = pair
    await here.guests.pause(GUEST)
    manager(here).is_down = True
    with pytest.raises(Broken, match="does not answer"):
        await here.guests.resume(GUEST)
    manager(here).is_down = False
    await here.guests.resume(GUEST)
    await here.guests.stop(GUEST)
    manager(here).is_down = True
    with pytest.raises(Broken, match="does not answer"):
        await here.guests.start(GUEST)
    assert leased.alive() == []


async def test_a_guest_from_before_is_resumed_without(pair: tuple[Host, Host], leased: LeasedLink) -> None:
    """A guest that was started before its host took leases can still be paused and let go on."""
    here, _ = pair
    await here.guests.stop(GUEST)
    here.leases = None
    await here.restart()
    await here.guests.start(GUEST)
    await here.guests.pause(GUEST)
    here.leases = FakeLeases(leased)
    await here.restart()
    assert await here.guests.leases.unleased(GUEST) == (DISK,)
    await here.guests.resume(GUEST)
    assert len(leased.running()) == 1


async def test_a_saved_guest_has_its_lease_again(pair: tuple[Host, Host], leased: LeasedLink, path: str) -> None:
    """In its file a guest has no lease; out of it, on either host, it has it before it is let run."""
    here, there = pair
    await saving_of(here).save(GUEST, path)
    assert leased.lessee(DISK) is None
    await saving_of(there).restore(path)
    assert_at(there, leased)
    await saving_of(there).save(GUEST, path)
    leased.lessees[DISK] = STRANGER
    with pytest.raises(Refused, match="host id 3"):
        await saving_of(here).restore(path)
    assert leased.running() == []
    with pytest.raises(Refused, match="host id 3"):
        await here.guests.resume(GUEST)
    del leased.lessees[DISK]
    await here.guests.resume(GUEST)
    assert_at(here, leased)
