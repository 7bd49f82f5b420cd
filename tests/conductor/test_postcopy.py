"""Post-copy on fakes: it arrives, a broken stream is recovered by itself, agents come back, and a death is a loss."""

from __future__ import annotations

import asyncio

import pytest
from tests.conductor.fakes import WatchedLink, end_rounds, endless, qemu_of
from tests.conductor.pair import GUEST, Host, follow, wait_finished, wait_until

from vmferry.conductor.source import Source
from vmferry.core.convergence import make_policy
from vmferry.core.convergence.replay import replay
from vmferry.core.errors import GuestBusy, Refused
from vmferry.core.handover.states import AnyState, DestinationState, SourceState
from vmferry.core.migration import MigrationStatus, RunState
from vmferry.core.progress import PolicyOrdered, StateEntered
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.testing.fake_hypervisor import FakeGuestProcess, Fault, FaultAction

S, T = SourceState, DestinationState
#: On fakes a post-copy with a limit lasts until the limit is taken away.
SLOW = BytesPerSecond(MIB)


def process_of(host: Host) -> FakeGuestProcess:
    """Return the guest's process on a host."""
    process = host.guests.process(GUEST)
    assert isinstance(process, FakeGuestProcess)
    return process


async def let_pages_flow(host: Host) -> None:
    """Take the limit away."""
    await process_of(host).set_parameters({"max-postcopy-bandwidth": 0})


async def begin(here: Host, there: Host) -> Source:
    """Migrate by a post-copy that lasts, until both say that the guest runs at the destination."""
    source = await here.migrate(there, postcopy_after=1, bandwidth=SLOW)
    await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_RUNNING, "the guest runs there")
    return source


def states_of(host: Host, source: Source) -> tuple[str | None, str | None]:
    """Return what the journals of both sides say."""
    rows = [each.journal.handover(source.request.handover, side) for each, side in _sides(host, source)]
    here, there = ((None if row is None else row.state) for row in rows)
    return here, there


def _sides(host: Host, source: Source) -> list[tuple[Host, str]]:
    return [(host, "source"), (host.pair.hosts[source.request.destination], "destination")]


async def test_guest_arrives_by_postcopy(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """The guest runs at the destination before its last page is there, under one token, and nothing is left."""
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    assert process_of(there).qemu.incoming_status is MigrationStatus.POSTCOPY_ACTIVE
    token = there.guests.row(GUEST).token
    assert (token.epoch, token.owner, token.cont_intent) == (2, there.name, True)
    assert len(link.running()) == 1
    await let_pages_flow(here)
    await wait_finished(here, there)
    assert states_of(here, source) == ("done", "running")
    entered = [event.state for event in await follow(here, source.request.handover) if isinstance(event, StateEntered)]
    assert entered[4:] == [
        "postcopy-ordered", "postcopy-crossing", "postcopy-committed", "postcopy-running", "running", "done"
    ]  # fmt: skip
    assert len(link.alive()) == 1


async def test_the_default_policy_decides_for_postcopy(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Allowed and no more than that: the policy sees after a short first round and another that pre-copy has no end."""
    here, there = hosts
    link.script(Fault(MigrationStatus.ACTIVE, FaultAction.HANG))
    source = await here.migrate(there, postcopy=True, bandwidth=SLOW)
    stream = await endless(here, source, link)
    assert not stream.postcopy
    await end_rounds(source, stream, 1)
    assert not stream.postcopy
    await end_rounds(source, stream, 1)
    await wait_until(lambda: stream.postcopy, "post-copy is ordered")
    link.release()
    await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_RUNNING, "the guest runs there")
    assert len(link.running()) == 1
    await let_pages_flow(here)
    await wait_finished(here, there)
    assert states_of(here, source) == ("done", "running")
    events = await follow(here, source.request.handover)
    told = [event for event in events if isinstance(event, PolicyOrdered)]
    assert (told[-1].order, told[-1].round, told[-1].refused) == ("start post-copy", 2, None)
    assert told[-1].rule.startswith("no end soon: round 2 dirtied 16384 pages while it sent 16384")
    assert not any("auto-converge" in each.order and each is not told[1] for each in told)
    trace = here.traces[source.request.handover]
    dry = replay(trace, make_policy("vmferry", trace.goal))
    assert (dry.fired[-1].what, dry.fired[-1].rule) == (told[-1].order, told[-1].rule)


async def test_a_policy_without_leave_finds_another_way(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """The same guest, post-copy not allowed: no order for it, and none is refused."""
    here, there = hosts
    link.script(Fault(MigrationStatus.ACTIVE, FaultAction.HANG))
    source = await here.migrate(there)
    stream = await endless(here, source, link)
    await end_rounds(source, stream, 2)
    await wait_until(lambda: stream.source.parameters["cpu-throttle-initial"] != 1, "the brake is put on")
    assert not stream.postcopy
    link.release()
    await here.handovers.cancel(source.request.handover)
    await wait_finished(here, there)
    told = [event for event in await follow(here, source.request.handover) if isinstance(event, PolicyOrdered)]
    assert "start post-copy" not in {each.order for each in told}
    assert [each.refused for each in told if each.refused] == []


async def test_paused_guest_arrives_paused(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A guest that stood before a post-copy stands after it."""
    here, there = hosts
    link.rounds = 10**9
    await here.guests.pause(GUEST)
    await here.migrate(there, postcopy_after=1)
    await wait_finished(here, there)
    assert link.running() == []
    assert process_of(there).qemu.state is RunState.PAUSED


async def test_without_leave_there_is_no_postcopy(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Whoever steers is refused when the move does not allow post-copy."""
    here, there = hosts
    link.rounds = 10**9
    source = await here.migrate(there)
    await wait_until(lambda: source.runner.machine.state is S.PRECOPY, "the rounds")
    with pytest.raises(Refused, match="not allowed"):
        source.begin_postcopy("a test")
    await here.handovers.cancel(source.request.handover)
    await wait_finished(here, there)


async def test_broken_stream_is_recovered(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A stream that breaks again and again is recovered by itself each time, and whoever watches sees it."""
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    stream = process_of(here).qemu.stream
    assert stream is not None
    for _ in range(3):
        link.break_postcopy(stream)
        await wait_until(lambda: stream.status is MigrationStatus.POSTCOPY_PAUSED, "it broke")
        await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_PAUSED, "it is told")
        await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_RUNNING, "it is recovered")
    await let_pages_flow(here)
    await wait_finished(here, there)
    assert states_of(here, source) == ("done", "running")


async def test_silent_cut_is_found(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A dead link that no QEMU notices is found by the agents, and everything goes on when it is back."""
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    link.cut()
    here.pair.cut = True
    await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_PAUSED, "the cut is found")
    link.heal()
    here.pair.cut = False
    await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_RUNNING, "it is recovered")
    await let_pages_flow(here)
    await wait_finished(here, there)
    assert states_of(here, source) == ("done", "running")


async def test_one_dead_link_is_no_cut(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """When only the agents cannot talk, the stream is left alone as long as anything moves."""
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    there.gone.set()
    await let_pages_flow(here)
    await wait_until(lambda: source.runner.machine.state is S.DONE, "the source is done")
    there.gone.clear()
    await wait_finished(here, there)
    assert "pause_postcopy" not in {call.name for call in process_of(there)._hypervisor.calls}


RESTARTS: list[AnyState] = [
    S.POSTCOPY_ORDERED, S.POSTCOPY_CROSSING, S.POSTCOPY_COMMITTED, S.POSTCOPY_RUNNING, S.POSTCOPY_PAUSED,
    T.POSTCOPY_LOADED, T.POSTCOPY_STARTING, T.POSTCOPY_RUNNING,
]  # fmt: skip


@pytest.mark.parametrize("whose", ["source", "destination"])
@pytest.mark.parametrize("state", RESTARTS, ids=lambda state: f"{type(state).__name__}-{state}")
async def test_agent_restarts(hosts: tuple[Host, Host], link: WatchedLink, state: AnyState, whose: str) -> None:
    """Either agent is killed in any state of a post-copy, while paused too: the next one brings it to its end."""
    here, there = hosts
    link.rounds = 10**9
    side = here if isinstance(state, SourceState) else there
    side.hold.ask(state)
    source = await here.migrate(there, postcopy_after=1, bandwidth=SLOW)
    if state is S.POSTCOPY_PAUSED:
        await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_RUNNING, "the guest runs there")
        stream = process_of(here).qemu.stream
        assert stream is not None
        link.break_postcopy(stream)
    await side.hold.wait_reached(state)
    side.hold.let_go(state)
    await (here if whose == "source" else there).restart()
    await let_pages_flow(here)
    await wait_finished(here, there)
    ends = {("done", "running")}
    if whose == "destination" and state in (S.POSTCOPY_ORDERED, S.POSTCOPY_CROSSING):
        ends.add(("aborted", "discarded"))  # it did not answer while there was still a way back
    assert states_of(here, source) in ends
    assert len(link.alive()) == len(link.running()) == 1


async def broken_and_deaf(here: Host, there: Host, link: WatchedLink) -> Source:
    """Break a post-copy whose destination lacks a page and answers nothing, and have a new agent come there."""
    link.rounds = 10**9
    source = await begin(here, there)
    process_of(there).qemu.deaf = True
    stream = process_of(here).qemu.stream
    assert stream is not None
    here.hold.ask(S.POSTCOPY_PAUSED)
    link.break_postcopy(stream)
    await here.hold.wait_reached(S.POSTCOPY_PAUSED)
    await there.restart()
    return source


async def test_a_new_agent_recovers_a_deaf_destination(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """An agent that comes anew while QEMU answers no question for want of a page has it listen for that page."""
    here, there = hosts
    source = await broken_and_deaf(here, there, link)
    with pytest.raises(GuestBusy, match="does not answer"):
        there.guests.claim(GUEST, "a test")
    here.hold.let_go(S.POSTCOPY_PAUSED)
    await wait_until(lambda: source.runner.machine.state is S.POSTCOPY_RUNNING, "it is recovered")
    process_of(there).qemu.deaf = False
    await let_pages_flow(here)
    await wait_finished(here, there)
    assert states_of(here, source) == ("done", "running")
    assert len(link.alive()) == len(link.running()) == 1


async def test_a_deaf_destination_is_lost_with_its_source(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """What a new agent cannot ask, it finds out by an order: the stream is broken, and nobody has the page any more."""
    here, there = hosts
    source = await broken_and_deaf(here, there, link)
    dead = qemu_of(here, link)
    assert dead is not None
    link.die(dead)
    here.hold.let_go(S.POSTCOPY_PAUSED)
    await wait_finished(here, there)
    assert states_of(here, source) == ("lost", "lost")
    assert link.alive() == []


async def test_a_silent_destination_that_is_whole_is_kept(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A QEMU may be silent for another reason than a page: with its source gone it is lost only if it proves to be."""
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    whole, dead = process_of(there).qemu, qemu_of(here, link)
    assert dead is not None
    whole.deaf = True
    await there.restart()
    link.die(dead)
    whole.incoming_status = MigrationStatus.COMPLETED
    await asyncio.sleep(1.5)  # longer than what a dead source has sent may still be read
    assert states_of(here, source)[1] == "postcopy-running"
    whole.deaf = False
    await wait_finished(here, there)
    assert states_of(here, source) == ("done", "running")
    assert [qemu.record for qemu in link.running()] == [whole.record]


@pytest.mark.parametrize("whose", ["source", "destination"])
async def test_dead_qemu_is_a_lost_guest(hosts: tuple[Host, Host], link: WatchedLink, whose: str) -> None:
    """When either QEMU dies with pages missing, both sides say that the guest is lost, and none is left running."""
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    dead = qemu_of(here if whose == "source" else there, link)
    assert dead is not None
    link.die(dead)
    await wait_finished(here, there)
    assert states_of(here, source) == ("lost", "lost")
    assert link.alive() == []
    row = there.journal.guest(GUEST)
    assert row is not None
    assert row.token.owner == there.name
    assert row.note is not None


async def test_death_before_the_crossing_costs_nothing(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A destination that is gone before `migrate-continue` is found out while the source can still go on."""
    here, there = hosts
    link.rounds = 10**9
    here.hold.ask(S.POSTCOPY_CROSSING)
    source = await here.migrate(there, postcopy_after=1)
    await here.hold.wait_reached(S.POSTCOPY_CROSSING)
    dead = qemu_of(there, link)
    assert dead is not None
    link.die(dead)
    here.hold.let_go(S.POSTCOPY_CROSSING)
    await wait_finished(here, there)
    assert states_of(here, source) == ("aborted", "discarded")
    assert process_of(here).qemu.state is RunState.RUNNING


async def test_death_around_the_commit_is_a_crash_at_the_owner(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A destination that dies on its way to the token, with pages missing: the source owns the guest and it is lost."""
    here, there = hosts
    link.rounds = 10**9
    there.hold.ask(T.POSTCOPY_LOADED)
    source = await here.migrate(there, postcopy_after=1, bandwidth=SLOW)
    await there.hold.wait_reached(T.POSTCOPY_LOADED)
    dead = qemu_of(there, link)
    assert dead is not None
    link.die(dead)
    there.hold.let_go(T.POSTCOPY_LOADED)
    await wait_finished(here, there)
    assert states_of(here, source)[0] == "crashed"
    assert here.guests.row(GUEST).token.owner == here.name
    assert link.alive() == []


async def test_operators_are_refused(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """In the middle of post-copy nobody pauses, stops or cancels; each is told why, and nothing happens."""
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    with pytest.raises(GuestBusy, match="middle of post-copy"):
        await there.guests.pause(GUEST)
    with pytest.raises(GuestBusy):
        await there.guests.stop(GUEST)
    with pytest.raises(GuestBusy, match="middle of post-copy"):
        await here.handovers.cancel(source.request.handover)
    await let_pages_flow(here)
    await wait_finished(here, there)
    await there.guests.pause(GUEST)
    assert link.running() == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_fenced_destination_gives_the_name_back(
    hosts: tuple[Host, Host], link: WatchedLink, *, restarted: bool
) -> None:
    """A person says that the destination is off: the memory is given up, name and disks are the source's again.

    The word counts too when it comes before an agent that was just started has found its QEMU.
    """
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    await there.stop()
    arrived = qemu_of(there, link)
    assert arrived is not None
    link.die(arrived)
    if restarted:
        await here.restart()
        assert here.handovers.source(source.request.handover) is None
    here.handovers.fenced(there.name)
    await wait_until(lambda: states_of(here, source)[0] == "crashed", "the guest is given up")
    token = here.guests.row(GUEST).token
    assert (token.epoch, token.owner, token.running) == (3, here.name, False)
    there.build()
    await there.start()
    await wait_finished(here, there)
