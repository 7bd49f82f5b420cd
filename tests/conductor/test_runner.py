"""The runner: journal first, effects second, each for as long as its states last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

import pytest

from vmferry.conductor.runner import Order, Runner, background
from vmferry.core.errors import Broken
from vmferry.core.handover.effects import AnyEffect, SourceEffect
from vmferry.core.handover.events import Happened, SourceEvent
from vmferry.core.handover.machine import Machine, Transition
from vmferry.core.handover.states import DEFERRED, FACTS, AnyState, Side, SourceState

_S, _E, _X = SourceState, SourceEvent, SourceEffect


class Told:
    """A recorder that remembers, in one list with the effects, and refuses writes when asked to."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.refusals = 0
        self.kept: list[AnyState] = []

    def record(self, happened: Happened, transition: Transition) -> None:
        if transition.after in DEFERRED:
            self.kept.append(transition.after)
        else:
            self._write([*self.kept, transition.after])

    def write_down(self) -> None:
        if self.kept:
            self._write(self.kept)

    def _write(self, states: Sequence[AnyState]) -> None:
        if self.refusals:
            self.refusals -= 1
            self.log.append("refused")
            raise Broken("disk is full")
        self.log += [f"journal {state}" for state in states]
        self.kept = []

    def entered(self, happened: Happened, transition: Transition) -> None:
        self.log.append(f"told {transition.after}")


class Bench:
    """A source's runner whose every effect only writes itself down, unless a test says otherwise."""

    def __init__(self, state: AnyState = _S.CHECKING) -> None:
        self.log: list[str] = []
        self.told = Told(self.log)
        self.runner = Runner(Machine(Side.SOURCE, state), self.told, self._hold)
        self.held: dict[AnyState, asyncio.Event] = {}
        self.orders: dict[AnyEffect, Order] = {effect: Order(self.writes(effect)) for effect in SourceEffect}

    def writes(self, effect: AnyEffect) -> Callable[[], Awaitable[None]]:
        async def write() -> None:
            self.log.append(f"do {effect}")

        return write

    def _hold(self, state: AnyState) -> Awaitable[object] | None:
        if state not in self.held:
            return None
        self.log.append(f"held {state}")
        return self.held[state].wait()

    @contextlib.asynccontextmanager
    async def living(self, opening: Iterable[AnyEffect] = ()) -> AsyncIterator[asyncio.Task[AnyState]]:
        self.runner.obey(self.orders)
        task = asyncio.create_task(self.runner.run(opening))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def enter(self, state: AnyState) -> None:
        async with asyncio.timeout(5):
            await self.runner.wait_left(frozenset(SourceState) - {state})
        await settle()


async def settle() -> None:
    """Let every task that can run now run."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def short_pauses(hurried: None) -> None:
    """Begin again at once."""


async def test_journal_comes_before_effects() -> None:
    """A transition is durable before its first effect begins, and watchers hear of nothing that is not."""
    bench = Bench()
    async with bench.living((_X.CHECK,)):
        bench.runner.post(_E.CHECK_PASSED)
        await bench.enter(_S.RESERVING)
    assert bench.log == ["do check", "journal reserving", "do reserve", "told reserving"]


async def test_watchers_are_told_after_waiting_effects_began() -> None:
    """What waits (and keeps the guest waiting) is begun before log and watchers are told."""
    bench = Bench()
    bench.orders[_X.RESERVE] = background(bench.orders[_X.RESERVE].carry_out, _S.RESERVING)  # type: ignore[arg-type]
    async with bench.living():
        bench.runner.post(_E.CHECK_PASSED)
        await bench.enter(_S.RESERVING)
    assert bench.log == ["journal reserving", "do reserve", "told reserving"]


async def test_nobody_is_told_between_two_urgent_events() -> None:
    """While events wait to be handled they come first; then everything is told, in order."""
    bench = Bench(_S.SOURCE_COMPLETED)
    bench.orders[_X.TELL_DESTINATION] = background(asyncio.Event().wait, _S.COMMITTED)  # type: ignore[arg-type]
    async with bench.living():
        bench.runner.post(_E.DESTINATION_LOADED)
        bench.runner.post(_E.OWNERSHIP_RELEASED)
        await bench.enter(_S.COMMITTED)
    assert bench.log == ["do release", "journal loaded", "journal committed", "told loaded", "told committed"]


async def test_hold_stands_between_journal_and_effects() -> None:
    """A held state is journalled and has ordered nothing; whoever waits for it is told all the same."""
    bench = Bench()
    bench.held[_S.RESERVING] = asyncio.Event()
    async with bench.living():
        bench.runner.post(_E.CHECK_PASSED)
        assert await bench.runner.wait_left(frozenset({_S.CHECKING})) is _S.RESERVING
        await settle()
        assert bench.log == ["journal reserving", "held reserving"]
        bench.held[_S.RESERVING].set()
        await settle()
        assert bench.log[2:] == ["do reserve", "told reserving"]


async def test_refused_write_moves_nothing() -> None:
    """While the journal refuses, the machine stands where it stood and no effect begins; then it goes on."""
    bench = Bench()
    bench.told.refusals = 2
    async with bench.living():
        bench.runner.post(_E.CHECK_PASSED)
        await settle()
        assert bench.log == ["refused"]
        assert bench.runner.machine.state is _S.CHECKING
        await bench.enter(_S.RESERVING)
    assert bench.log == ["refused", "refused", "journal reserving", "do reserve", "told reserving"]


async def test_impossible_event_moves_nothing() -> None:
    """An event that cannot be is not journalled, and the hand-over goes on."""
    bench = Bench()
    async with bench.living():
        bench.runner.post(_E.DESTINATION_RUNNING)
        bench.runner.post(_E.CHECK_PASSED)
        await bench.enter(_S.RESERVING)
    assert bench.log[0] == "journal reserving"


async def test_event_of_a_left_state_is_dropped() -> None:
    """An event said for one state only does nothing in the next."""
    bench = Bench(_S.RESERVED)
    async with bench.living():
        bench.runner.post(_E.PRECOPY_BEGAN)
        bench.runner.post(_E.CANCEL_REQUESTED, only_in=_S.RESERVED)
        await bench.enter(_S.PRECOPY)
    assert bench.runner.machine.state is _S.PRECOPY


async def test_deadline_ends_only_its_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline passes in its state, with its reason; in a state without one nothing passes."""
    monkeypatch.setitem(FACTS, _S.RESERVED, replace(FACTS[_S.RESERVED], deadline_ms=5))
    bench = Bench(_S.RESERVING)
    bench.orders[_X.SEND] = background(asyncio.Event().wait, _S.RESERVED)  # type: ignore[arg-type]
    async with bench.living():
        bench.runner.post(_E.DESTINATION_RESERVED)
        await bench.enter(_S.ABORTING)
    assert bench.runner.why == "state reserved lasted longer than its limit of 5 ms"
    left = Bench(_S.RESERVING)
    async with left.living():
        left.runner.post(_E.DESTINATION_RESERVED)
        left.runner.post(_E.PRECOPY_BEGAN)
        await left.enter(_S.PRECOPY)
        assert left.runner._deadline is None


async def test_a_state_that_may_last_longer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was allowed is added to the limit of that state, for the state alone."""
    monkeypatch.setitem(FACTS, _S.RESERVED, replace(FACTS[_S.RESERVED], deadline_ms=5))
    bench = Bench(_S.RESERVING)
    bench.orders[_X.SEND] = background(asyncio.Event().wait, _S.RESERVED)  # type: ignore[arg-type]
    bench.runner.allow(_S.SWITCHOVER, 1000.0)
    bench.runner.allow(_S.RESERVED, 20.0)
    async with bench.living():
        bench.runner.post(_E.DESTINATION_RESERVED)
        await bench.enter(_S.ABORTING)
    assert bench.runner.why == "state reserved lasted longer than its limit of 25 ms"


async def test_effect_is_cancelled_with_its_states() -> None:
    """An effect that waits ends when its states are left, and its failure by then says nothing."""
    bench = Bench(_S.RESERVED)
    ended: list[str] = []

    async def steer() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise Broken("too late") from None

    bench.orders[_X.STEER] = background(steer, _S.PRECOPY, failed=_E.STREAM_FAILED)
    bench.orders[_X.AWAIT_DESTINATION] = background(asyncio.Event().wait, _S.PRE_SWITCHOVER)  # type: ignore[arg-type]
    async with bench.living():
        bench.runner.post(_E.PRECOPY_BEGAN)
        await bench.enter(_S.PRECOPY)
        bench.runner.post(_E.SOURCE_PAUSED)
        await bench.enter(_S.PRE_SWITCHOVER)
        assert ended == ["cancelled"]
        assert bench.runner.machine.state is _S.PRE_SWITCHOVER


async def test_failure_is_its_event() -> None:
    """A failed effect posts its event with the reason, and the error is kept for the report."""
    bench = Bench()

    async def reserve() -> None:
        raise Broken("host-b is full", fix="choose another host")

    bench.orders[_X.RESERVE] = background(reserve, _S.RESERVING, failed=_E.DESTINATION_REFUSED)
    async with bench.living():
        bench.runner.post(_E.CHECK_PASSED)
        await bench.enter(_S.ABORTING)
    assert bench.runner.why == "host-b is full"
    assert bench.runner.failure is not None
    assert bench.runner.failure.fix == "choose another host"


async def test_who_wanted_postcopy_is_not_why_it_failed() -> None:
    """The reason of an order says who gave it; the first reason for a failure is that of a later event."""
    bench = Bench(_S.PRECOPY)
    async with bench.living():
        bench.runner.post(_E.POSTCOPY_ORDERED, "asked for after round 1")
        await bench.enter(_S.POSTCOPY_ORDERED)
        assert bench.runner.why is None
        bench.runner.post(_E.STREAM_FAILED, "the stream was cut")
        await bench.enter(_S.ABORTING)
    assert bench.runner.why == "the stream was cut"


async def test_our_own_bug_fails_the_effect() -> None:
    """An effect that breaks on a bug of ours has failed: the guest does not hang on it."""
    bench = Bench()

    async def reserve() -> None:
        raise ZeroDivisionError("oops")

    bench.orders[_X.RESERVE] = background(reserve, _S.RESERVING, failed=_E.DESTINATION_REFUSED)
    async with bench.living():
        bench.runner.post(_E.CHECK_PASSED)
        await bench.enter(_S.ABORTING)
    assert bench.runner.why == "internal error: ZeroDivisionError('oops')"


async def test_effect_that_must_not_give_up_begins_again() -> None:
    """An effect without a failure event is tried until it succeeds, in a final state too."""
    bench = Bench(_S.RUNNING)
    failures = [Broken("hangs"), Broken("hangs")]

    async def report() -> None:
        if failures:
            raise failures.pop()
        bench.log.append("reported")

    bench.orders[_X.REPORT] = background(report, _S.DONE)
    async with bench.living() as task:
        bench.runner.post(_E.TIDIED)
        async with asyncio.timeout(5):
            assert await task is _S.DONE
    assert bench.log == ["journal done", "told done", "reported"]


async def test_effect_ordered_twice_runs_once() -> None:
    """An effect that the next state orders again while it is still at it is not begun a second time."""
    bench = Bench(_S.ORPHANED)
    begun: list[int] = []

    async def wait() -> None:
        begun.append(1)
        await asyncio.Event().wait()

    bench.orders[_X.AWAIT_DESTINATION] = background(wait, _S.ORPHANED)
    async with bench.living():
        for _ in range(2):
            bench.runner.post(_E.AGENT_RESTARTED)
        await settle()
        assert begun == [1]


async def test_final_effects_end_in_order_before_run_returns() -> None:
    """`run` returns after the last effect of the final state: only then is a hand-over finished."""
    bench = Bench(_S.ABORTING)
    gate = asyncio.Event()

    async def discard() -> None:
        await gate.wait()
        bench.log.append("discarded")

    bench.orders[_X.DISCARD] = Order(discard)
    async with bench.living() as task:
        bench.runner.post(_E.SOURCE_RESUMED)
        await bench.enter(_S.ABORTED)
        assert not task.done()
        gate.set()
        await task
    assert bench.log[-2:] == ["discarded", "do report"]


async def test_first_event_reaches_a_final_machine() -> None:
    """A machine taken up in a final state is given its last orders once more."""
    bench = Bench(_S.ABORTED)
    bench.runner.obey(bench.orders)
    assert await bench.runner.run(first=[Happened(_E.AGENT_RESTARTED)]) is _S.ABORTED
    assert bench.log[-2:] == ["do discard", "do report"]


async def test_end_leaves_no_task() -> None:
    """A runner that is stopped in the middle leaves nothing running."""
    bench = Bench(_S.RESERVED)
    bench.orders[_X.STEER] = background(asyncio.Event().wait, _S.PRECOPY)  # type: ignore[arg-type]
    before = asyncio.all_tasks()
    async with bench.living():
        bench.runner.post(_E.PRECOPY_BEGAN)
        await bench.enter(_S.PRECOPY)
        assert asyncio.all_tasks() != before
    assert asyncio.all_tasks() == before


async def test_deferred_entry_is_written_soon() -> None:
    """A deferred entry after which nothing comes is durable a moment later, also past a full disk."""
    bench = Bench(_S.SOURCE_COMPLETED)
    async with bench.living():
        bench.told.refusals = 1
        bench.runner.post(_E.DESTINATION_LOADED)
        async with asyncio.timeout(5):
            while "journal loaded" not in bench.log:  # noqa: ASYNC110 - the recorder has no event
                await asyncio.sleep(0.01)
    assert bench.log == ["do release", "told loaded", "refused", "journal loaded"]


async def test_held_state_is_durable() -> None:
    """Where the lab holds a hand-over, its journal says so, also in a deferred state."""
    bench = Bench(_S.SOURCE_COMPLETED)
    bench.held[_S.LOADED] = asyncio.Event()
    async with bench.living():
        bench.runner.post(_E.DESTINATION_LOADED)
        await bench.enter(_S.LOADED)
        assert bench.log == ["held loaded", "journal loaded"]


async def test_end_writes_down() -> None:
    """An agent that stops tidily leaves nothing unwritten."""
    bench = Bench(_S.SOURCE_COMPLETED)
    async with bench.living():
        bench.runner.post(_E.DESTINATION_LOADED)
        await bench.enter(_S.LOADED)
    assert "journal loaded" in bench.log
