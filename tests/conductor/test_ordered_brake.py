"""40-writes as an order of a policy: when it is put on and released, and that nothing leaves the guest slowed."""

from __future__ import annotations

from collections.abc import Callable

from tests.conductor.fakes import WatchedLink, end_rounds, endless, qemu_of
from tests.conductor.pair import GUEST, Host, follow, wait_finished, wait_until
from tests.conductor.test_steering import SET, assert_stayed, calls, end_of, made, ordered, slow_link

from vmferry.conductor.plan import UNLIMITED, Choice
from vmferry.core.convergence import Goal, Throttle, make_policy
from vmferry.core.convergence.orders import Orders, SetThrottle, ThrottleOff
from vmferry.core.convergence.replay import replay
from vmferry.core.convergence.trace import Ordered, decode, encode
from vmferry.core.errors import Blocker, TimedOut
from vmferry.core.migration import RunState
from vmferry.core.progress import PolicyBegan, Throttled
from vmferry.core.units import Milliseconds
from vmferry.ports.write_throttle import WriteBudget

__all__ = ["made", "slow_link"]

ANY = Choice(throttle="any")
WRITES = Throttle.FORTY_WRITES
ON, OFF = SetThrottle(WRITES, 40, "on"), ThrottleOff(WRITES, "off")
ASKED, BEGUN, OVER = ["blockers"], ["blockers", "begin"], ["blockers", "begin", "end"]


async def test_the_default_policy_orders_40_writes_and_then_auto_converge_in_its_place(
    hosts: tuple[Host, Host], slow_link: WatchedLink
) -> None:
    """Asked beforehand, begun upon proof, ended when two rounds show that it does not do; the trace replays to it."""
    here, there = hosts
    source = await here.migrate(there, choice=ANY)
    stream = await endless(here, source, slow_link)
    await end_rounds(source, stream, 1)
    assert here.throttle.calls == ASKED
    await end_rounds(source, stream, 1)
    await wait_until(lambda: here.throttle.calls == BEGUN, "writes are held after round 2")
    assert here.throttle.in_force == {source.request.handover: WriteBudget(UNLIMITED, Milliseconds(15.0), 40)}
    await end_rounds(source, stream, 2)
    await wait_until(lambda: stream.source.parameters["cpu-throttle-initial"] != 1, "the vCPUs are slowed instead")
    assert here.throttle.calls == OVER
    stream.endless = False
    slow_link.release()
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    told = [event.order for event in ordered(events)]
    limits = ["downtime limit 30.0 ms", "downtime limit 15.0 ms"]
    assert told[:4] == [limits[0], "auto-converge 1", limits[1], "40-writes 40"]
    assert told[4] == "40-writes off"
    assert told[5].startswith("auto-converge ")
    assert here.throttle.calls == OVER
    assert there.throttle.calls == [f"arrived {source.request.handover}"]
    assert source.throttled == Throttled(40, 20, 1, 0, 0, Milliseconds(0.0))
    trace = decode(encode(here.traces[source.request.handover]), "stored")
    assert trace.goal.throttles == trace.facts.throttles == set(Throttle)
    dry = replay(trace, make_policy("vmferry", trace.goal))
    assert [(fired.what, fired.rule) for fired in dry.fired[: len(told)]] == [
        (e.order, e.rule) for e in ordered(events)
    ]
    assert dry.uncertain_line is None


async def test_a_guest_arrives_slowed_by_a_policy_and_is_let_go_there(
    hosts: tuple[Host, Host], slow_link: WatchedLink
) -> None:
    """An order that is in force at the stop is hushed, told in the report, and ended at both hosts."""
    here, there = hosts
    source = await here.migrate(there, choice=ANY)
    stream = await endless(here, source, slow_link)
    await end_rounds(source, stream, 2)
    await wait_until(lambda: here.throttle.calls == BEGUN, "writes are held")
    stream.endless = False
    slow_link.release()
    end, _ = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    assert here.throttle.calls == [*BEGUN, "hush", "end"]
    assert there.throttle.calls == [f"arrived {source.request.handover}"]
    assert source.throttled == Throttled(40, 20, 1, 0, 0, Milliseconds(0.0))


async def test_a_cancelled_move_ends_a_policys_order(hosts: tuple[Host, Host], slow_link: WatchedLink) -> None:
    """The guest that stays runs free before the hand-over is over."""
    here, there = hosts
    source = await here.migrate(there, choice=ANY)
    await end_rounds(source, await endless(here, source, slow_link), 2)
    await wait_until(lambda: here.throttle.calls == BEGUN, "writes are held")
    await here.handovers.cancel(source.request.handover)
    await wait_finished(here, there)
    assert here.throttle.calls == [*BEGUN, "hush", "end"]
    assert_stayed(here, there)


async def test_without_a_helper_it_is_left_out_and_told(hosts: tuple[Host, Host], slow_link: WatchedLink) -> None:
    """Where any brake is allowed, one that cannot be had blocks nothing: the next one is taken."""
    here, there = hosts
    here.throttle.found = (Blocker("throttle.no-port", "guest web-7 has no port", "b"),)
    source = await here.migrate(there, choice=ANY)
    stream = await endless(here, source, slow_link)
    await end_rounds(source, stream, 2)
    await wait_until(lambda: stream.source.parameters["cpu-throttle-initial"] != 1, "the vCPUs are slowed")
    stream.endless = False
    slow_link.release()
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    (began,) = [event for event in events if isinstance(event, PolicyBegan)]
    assert began.left_out == ("40-writes: guest web-7 has no port",)
    assert here.throttle.calls == ASKED


async def test_a_helper_that_falls_silent_ends_the_hand_over(hosts: tuple[Host, Host], slow_link: WatchedLink) -> None:
    """As with every refused order: the reason is told and the guest stays."""
    here, there = hosts
    here.throttle.refuses = TimedOut("the helper did not answer")
    source = await here.migrate(there, choice=ANY)
    await end_rounds(source, await endless(here, source, slow_link), 2)
    end, _ = await end_of(here, source.request.handover)
    assert end.outcome == "aborted"
    assert "ordered: 40-writes 40 (no end: round 2 dirtied" in str(end.reason)
    assert str(end.reason).endswith("and it was refused: the helper did not answer")
    assert here.throttle.in_force == {}
    assert_stayed(here, there)


async def test_a_first_order_waits_for_the_stream_and_a_release_is_carried_out(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """40-writes is nothing that QEMUs are set up with; other numbers than 40 reach the helper, released means ended."""
    here, there = hosts
    orders: Orders = (OFF, SetThrottle(WRITES, 7, "fewer"))
    choice = made((ON,), orders)
    source = await here.migrate(there, choice=Choice(choice.policy, throttle="any"))
    await wait_until(lambda: here.throttle.calls == [*OVER, "begin"], "on, off, on")
    assert {budget.writes for budget in here.throttle.in_force.values()} == {7}
    slow_link.release()
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    assert [event.order for event in ordered(events)] == ["40-writes 40", "40-writes off", "40-writes 7"]
    items = here.traces[source.request.handover].items
    assert [item.value for item in items if isinstance(item, Ordered)] == ["40-writes 40", "40-writes", "40-writes 7"]
    assert calls(here, SET) == []


async def test_no_policy_lets_go_what_a_person_has_put_on(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """Under `--throttle 40-writes` an order about it is refused."""
    here, there = hosts
    source = await here.migrate(there, choice=made((), (OFF,)), throttle=WRITES)
    end, _ = await end_of(here, source.request.handover)
    assert "40-writes off (off), and it was refused: 40-writes is no order of a policy" in str(end.reason)
    assert here.throttle.calls == [*BEGUN, "hush", "end"]
    assert_stayed(here, there)


async def test_a_paused_guest_is_not_asked_to_hold_its_writes(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """It writes nothing, and its helper would not answer: the order is carried out by doing nothing."""
    here, there = hosts
    await here.guests.pause(GUEST)
    source = await here.migrate(there, choice=Choice(made((ON,)).policy, throttle="any"))
    await wait_until(
        lambda: source.steering.trail.last_sample is not None, "first orders are carried out, and it is read"
    )
    slow_link.release()
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved", end.reason
    assert [(event.order, event.refused) for event in ordered(events)] == [("40-writes 40", None)]
    assert here.throttle.calls == ASKED
    qemu = qemu_of(there, slow_link)
    assert qemu is not None
    assert qemu.state is RunState.PAUSED


async def test_a_restarted_agent_asks_the_helper_again(hosts: tuple[Host, Host], slow_link: WatchedLink) -> None:
    """The port closed with the agent, so the guest is free; the policy that begins anew is told what there is now."""
    here, there = hosts
    source = await here.migrate(there, choice=ANY)
    await end_rounds(source, await endless(here, source, slow_link), 2)
    await wait_until(lambda: here.throttle.calls == BEGUN, "writes are held")
    await here.stop()
    here.throttle.in_force.clear()
    here.throttle.calls.clear()
    here.throttle.found = (Blocker("throttle.no-helper", "a", "b"),)
    here.build()
    await here.start()
    await wait_until(lambda: here.throttle.calls == ASKED, "the helper is asked again")
    await here.handovers.cancel(source.request.handover)
    await follow(here, source.request.handover)
    await wait_finished(here, there)
    trace = here.traces[source.request.handover]
    assert trace.facts.throttles == {Throttle.AUTO_CONVERGE}
    assert trace.goal == Goal(trace.goal.max_gap_ms, throttles=frozenset(Throttle))
