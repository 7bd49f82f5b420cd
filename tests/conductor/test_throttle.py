"""When a move slows its guest's writes, and that nothing leaves the guest slowed."""

from __future__ import annotations

from tests.conductor.fakes import WatchedLink
from tests.conductor.pair import GUEST, Host, follow, wait_finished, wait_until

from vmferry.conductor.plan import DEFAULT_MAX_GAP, UNLIMITED
from vmferry.core.convergence.facts import Throttle
from vmferry.core.convergence.trace import Ordered
from vmferry.core.errors import Blocker, TimedOut
from vmferry.core.handover.states import SourceState
from vmferry.core.progress import Finished, Outcome, Throttled
from vmferry.core.units import Milliseconds
from vmferry.ports.write_throttle import WriteBudget

FORTY = Throttle.FORTY_WRITES


async def test_a_move_that_asks_for_nothing_slows_nobody(hosts: tuple[Host, Host]) -> None:
    """Without the option the guest's helper is not even asked; only the destination makes sure that it is free."""
    here, there = hosts
    source = await here.migrate(there)
    await wait_finished(here, there)
    assert here.throttle.calls == []
    assert source.throttled is None
    assert there.throttle.calls == [f"arrived {source.request.handover}"]


async def test_the_guest_is_slowed_from_the_first_round_to_its_stop(hosts: tuple[Host, Host]) -> None:
    """Asked before the reservation, begun with pre-copy, hushed when the guest stops, and ended at both hosts."""
    here, there = hosts
    here.hold.ask(SourceState.RESERVED)
    here.hold.ask(SourceState.SWITCHOVER)
    source = await here.migrate(there, throttle=FORTY)
    await here.hold.wait_reached(SourceState.RESERVED)
    assert here.throttle.calls == ["blockers"]
    here.hold.let_go(SourceState.RESERVED)
    await here.hold.wait_reached(SourceState.SWITCHOVER)
    await wait_until(lambda: here.throttle.calls == ["blockers", "begin", "hush"], "the guest is not spoken to")
    assert here.throttle.in_force == {source.request.handover: WriteBudget(UNLIMITED, DEFAULT_MAX_GAP, 40)}
    here.hold.let_go(SourceState.SWITCHOVER)
    await wait_finished(here, there)
    assert here.throttle.calls == ["blockers", "begin", "hush", "end"]
    assert there.throttle.calls == [f"arrived {source.request.handover}"]
    assert source.throttled == Throttled(40, 20, 1, 0, 0, Milliseconds(0.0))
    orders = [item for item in here.traces[source.request.handover].items if isinstance(item, Ordered)]
    assert (orders[0].value, orders[0].rule) == ("40-writes 40", "asked for: from the first round on")


async def test_a_cancelled_move_lets_the_guest_go(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """The guest that stays runs free before the hand-over is over."""
    here, there = hosts
    link.rounds = 10**9
    source = await here.migrate(there, throttle=FORTY)
    await wait_until(lambda: here.throttle.in_force != {}, "the guest is slowed")
    await here.handovers.cancel(source.request.handover)
    assert here.throttle.in_force == {}
    await wait_finished(here, there)
    assert here.throttle.calls == ["blockers", "begin", "hush", "end"]


async def test_what_blocks_the_throttle_blocks_the_move(hosts: tuple[Host, Host]) -> None:
    """A guest that cannot be slowed is told with all other blockers, and nothing is touched."""
    here, there = hosts
    here.blockers = (Blocker("port.none-free", "b", "c"),)
    here.throttle.found = (Blocker("throttle.no-port", "a", "b"),)
    source = await here.migrate(there, throttle=FORTY)
    events = await follow(here, source.request.handover)
    last = events[-1]
    assert isinstance(last, Finished)
    assert [blocker.code for blocker in last.blockers] == ["port.none-free", "throttle.no-port"]
    await wait_finished(here, there)
    assert here.throttle.calls == ["blockers"]
    assert there.journal.guest(GUEST) is None


async def test_a_guest_that_cannot_be_slowed_after_all_stays(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A helper that falls silent when it is needed ends the hand-over with its reason; the guest runs on."""
    here, there = hosts
    link.rounds = 10**9
    here.throttle.refuses = TimedOut("the helper did not answer")
    source = await here.migrate(there, throttle=FORTY)
    last = (await follow(here, source.request.handover))[-1]
    assert isinstance(last, Finished)
    assert (last.outcome, last.owner, last.reason) == (Outcome.ABORTED, here.name, "the helper did not answer")
    await wait_finished(here, there)
    assert len(link.running()) == 1


async def test_a_paused_guest_is_not_slowed(hosts: tuple[Host, Host]) -> None:
    """A guest that stands still writes nothing and answers nobody: it moves without."""
    here, there = hosts
    await here.guests.pause(GUEST)
    await here.migrate(there, throttle=FORTY)
    await wait_finished(here, there)
    assert there.guests.row(GUEST).token.owner == there.name
    assert here.throttle.calls == ["blockers"]


async def test_a_restarted_agent_slows_the_guest_again(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """The wish stands in the journal: who takes the hand-over up in the middle of pre-copy begins anew."""
    here, there = hosts
    link.rounds = 10**9
    source = await here.migrate(there, throttle=FORTY)
    await wait_until(lambda: here.throttle.in_force != {}, "the guest is slowed")
    await here.stop()
    assert here.throttle.in_force == {}
    here.build()
    await here.start()
    await wait_until(lambda: source.request.handover in here.throttle.in_force, "it is slowed again")
    await here.handovers.cancel(source.request.handover)
    await wait_finished(here, there)
    assert here.throttle.in_force == {}
