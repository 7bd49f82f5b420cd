"""Lives one side of one hand-over: takes events in turn, journals, then carries effects out.

Order is everything here: an event is handled, its transition is made durable (with the token, when ownership moves),
then and only then its effects begin. Effects that wait run as tasks beside the loop and end by posting an event; each
belongs to the states it was ordered for and is cancelled when the machine leaves them. A final state's effects are
carried out one after the other, and `run` returns after the last: whatever ends here has ended tidily.

The entry of a `DEFERRED` state may wait for the next one, and is then written with it; what is not written yet is lost
by a crash and only by one (core/handover/states.py says why that does no harm).

The log and the watchers are told when the runner has nothing else to do: the guest may be standing still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from vmferry.core.errors import IllegalTransition, VmferryError
from vmferry.core.handover.effects import AnyEffect
from vmferry.core.handover.events import AnyEvent, DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.machine import Machine, Transition
from vmferry.core.handover.states import DEFERRED, AnyState, Side

#: Pause before an effect that must not give up (no `failed` event) begins again, as long as its states last.
_BEGIN_AGAIN_S = 0.5
#: Pause before a write that the journal refused (a full disk) is tried again; nothing moves meanwhile.
_WRITE_AGAIN_S = 0.5
#: Their reason says who wanted it, not what went wrong.
_ASKED_FOR = frozenset({SourceEvent.POSTCOPY_ORDERED, SourceEvent.DEVICES_PLUGGED})
#: How long a deferred entry may wait for the next one.
_DEFERRED_S = 0.02

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """How an effect is carried out.

    Args:
        carry_out: does it; posts events itself.
        scope: the states in which it may go on; None: it is short and done before the next event is taken.
        failed: the event that its failure is; None: with a scope it begins again, else the failure is only logged.
    """

    carry_out: Callable[[], Awaitable[None]]
    scope: frozenset[AnyState] | None = None
    failed: AnyEvent | None = None


class Recorder(Protocol):
    """Makes a transition durable and tells the watchers."""

    def record(self, happened: Happened, transition: Transition) -> None:
        """Journal event, state and token in one write; a deferred state's are kept for the next or for `write_down`.

        Raises:
            VmferryError: nothing of it was written; what was kept before is kept.
        """

    def write_down(self) -> None:
        """Journal what was kept; raises, and keeps it, when that cannot be written. Nothing kept: does nothing."""

    def entered(self, happened: Happened, transition: Transition) -> None:
        """Tell whoever watches; called after `record`, in the same order, when nothing more urgent is to be done."""


def no_hold(_: AnyState) -> Awaitable[object] | None:
    """Hold nothing: what every agent outside a lab does."""
    return None


class Runner:
    """One side of one hand-over, from its present state to a final one.

    Args:
        machine: where it stands.
        recorder: journal and watchers.
        hold: called before a state's effects; fault injection in the lab has the runner wait for what it returns, and
            then the state is durable, deferred or not.
    """

    def __init__(
        self, machine: Machine, recorder: Recorder, hold: Callable[[AnyState], Awaitable[object] | None] = no_hold
    ) -> None:
        self.machine = machine
        self.failure: VmferryError | None = None
        self.why: str | None = None  #: the first reason that any event gave for what went otherwise than asked
        self._recorder = recorder
        self._hold = hold
        self._orders: Mapping[AnyEffect, Order] = {}
        self._queue: asyncio.Queue[tuple[Happened, frozenset[AnyState] | None]] = asyncio.Queue()
        self._tasks: dict[AnyEffect, tuple[asyncio.Task[None], frozenset[AnyState]]] = {}
        self._left: set[asyncio.Task[None]] = set()  #: cancelled, and not ended yet
        self._deadline: asyncio.TimerHandle | None = None
        self._allowed_ms: dict[AnyState, float] = {}  #: more than a state's own limit
        self._writing: asyncio.TimerHandle | None = None
        self._untold: list[tuple[Happened, Transition]] = []
        self._moved = asyncio.Event()  #: set with the next transition, and replaced then

    def obey(self, orders: Mapping[AnyEffect, Order]) -> None:
        """Say how each effect is carried out; once, before `run`."""
        self._orders = orders

    def post(self, kind: AnyEvent, why: str | None = None, *, only_in: AnyState | None = None) -> None:
        """Tell that something happened; handled in turn, and dropped if the machine then left `only_in`."""
        self._queue.put_nowait((Happened(kind, why), None if only_in is None else frozenset({only_in})))

    def allow(self, state: AnyState, extra_ms: float) -> None:
        """Let a state that is to come last so much longer than its limit; a later word replaces an earlier one."""
        self._allowed_ms[state] = extra_ms

    async def run(self, opening: Iterable[AnyEffect] = (), first: Iterable[Happened] = ()) -> AnyState:
        """Live until a final state's last effect was carried out, and return that state.

        Args:
            opening: the effects that a new hand-over begins with.
            first: the events that one taken up from the journal begins with, handled in a final state too.
        """
        try:
            if opening:
                await self._wait_held(self.machine.state)
                self._arm_deadline()
                await self._carry_out(opening)
            for happened in first:
                await self._take(happened)
            while not self.machine.facts.final:
                if self._queue.empty():
                    self._tell()
                happened, only_in = await self._queue.get()
                if only_in is None or self.machine.state in only_in:
                    await self._take(happened)
            return self.machine.state
        finally:
            await self._end()

    async def wait_left(self, states: frozenset[AnyState]) -> AnyState:
        """Wait until the machine is in none of the states; return the state it is in."""
        while self.machine.state in states:
            await self._moved.wait()
        return self.machine.state

    async def wait_undone(self) -> None:
        """Wait until what was begun for states that are left has ended, and with it what it undoes."""
        if self._left:
            await asyncio.wait(set(self._left))

    async def _take(self, happened: Happened) -> None:
        transition = await self._handle(happened)
        if transition is None:
            return
        if happened.kind not in _ASKED_FOR:
            self.why = self.why or happened.why
        self._cancel_left_behind()
        self._arm_deadline()
        self._moved.set()
        self._moved = asyncio.Event()
        if transition.after in DEFERRED:
            self._defer(_DEFERRED_S)
        await self._wait_held(transition.after)
        self._untold.append((happened, transition))
        await self._carry_out(transition.effects)

    async def _handle(self, happened: Happened) -> Transition | None:
        """Move the machine and make it durable; None when nothing moved."""
        while True:
            try:
                transition = self.machine.handle(happened)
            except IllegalTransition as error:
                _log.exception("event is not possible here", error=str(error))
                return None
            if transition.ignored:
                _log.debug("event ignored", kind=str(happened.kind), state=str(transition.before))
                return None
            try:
                self._recorder.record(happened, transition)
            except VmferryError as error:
                self.machine.state = transition.before  # it was not written, so it did not happen yet
                _log.error("journal refused an event; trying again", kind=str(happened.kind), error=str(error))
                await asyncio.sleep(_WRITE_AGAIN_S)
                continue
            return transition

    async def _wait_held(self, state: AnyState) -> None:
        held = self._hold(state)
        if held is not None:
            self._write_down()
            await held

    def _write_down(self) -> None:
        """Make what was deferred durable; what cannot be written now waits on."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        try:
            self._recorder.write_down()
        except VmferryError as error:
            _log.error("journal refused what it was given later; trying again", error=str(error))
            self._defer(_WRITE_AGAIN_S)

    def _defer(self, seconds: float) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().call_later(seconds, self._write_down)

    def _tell(self) -> None:
        """Tell what was not told yet."""
        untold, self._untold = self._untold, []
        for happened, transition in untold:
            self._recorder.entered(happened, transition)

    async def _carry_out(self, effects: Iterable[AnyEffect]) -> None:
        """Begin what runs beside the loop, and do the rest in order; a final state's effects are all done in order."""
        final = self.machine.facts.final
        if final:
            self._tell()
        begun = False
        for effect in effects:
            order = self._orders[effect]
            if final or order.scope is None:
                await self._guarded(effect, order)
            else:
                self._begin(effect, order)
                begun = True
        if begun:
            await asyncio.sleep(0)  # they make their first step: QEMU and the peer have their orders now

    def _begin(self, effect: AnyEffect, order: Order) -> None:
        task, _ = self._tasks.get(effect, (None, None))
        if task is not None and not task.done():
            return  # ordered again by the next state, and still at it
        task = asyncio.create_task(self._guarded(effect, order), name=f"{self.machine.side}:{effect}")
        self._tasks[effect] = (task, order.scope or frozenset())

    async def _guarded(self, effect: AnyEffect, order: Order) -> None:
        """Carry an effect out; its failure is an event, or, for one that must not give up, a reason to begin again."""
        while True:
            why = await self._try(effect, order)
            if why is None:
                return
            if order.failed is not None:  # of no interest any more once its states are left
                self._queue.put_nowait((Happened(order.failed, why), order.scope))
            if order.failed is not None or order.scope is None:
                return
            await asyncio.sleep(_BEGIN_AGAIN_S)

    async def _try(self, effect: AnyEffect, order: Order) -> str | None:
        """Carry an effect out once; return why it failed."""
        try:
            await order.carry_out()
        except VmferryError as error:
            _log.info("effect failed", effect=str(effect), state=str(self.machine.state), error=str(error))
            self.failure = error
            return error.what
        except Exception as error:  # noqa: BLE001 - our bug, but a guest must not hang on it: the effect has failed
            _log.exception("effect broke", effect=str(effect), state=str(self.machine.state))
            return f"internal error: {error!r}"
        return None

    def _cancel_left_behind(self) -> None:
        for effect, (task, scope) in list(self._tasks.items()):
            if self.machine.state not in scope:
                del self._tasks[effect]
                task.cancel()
                self._left.add(task)
                task.add_done_callback(self._left.discard)

    def _arm_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        limit_ms = self.machine.facts.deadline_ms
        if limit_ms is None:
            return
        state = self.machine.state
        limit_ms = round(limit_ms + self._allowed_ms.get(state, 0.0))
        kind: AnyEvent = SourceEvent.DEADLINE_PASSED
        if self.machine.side is Side.DESTINATION:
            kind = DestinationEvent.PREPARATION_FAILED
        why = f"state {state} lasted longer than its limit of {limit_ms} ms"
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(limit_ms / 1000, lambda: self.post(kind, why, only_in=state))

    async def _end(self) -> None:
        self._write_down()
        if self._writing is not None:
            self._writing.cancel()  # a full disk at the very end: forgotten like in a crash
        self._tell()
        if self._deadline is not None:
            self._deadline.cancel()
        tasks = self._left | {task for task, _ in self._tasks.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)


async def write_last(write: Callable[[], Awaitable[object] | None]) -> None:
    """Write the last of a hand-over, as often as it takes: unwritten it would hold the guest for ever."""
    while True:
        try:
            written = write()
            if written is not None:
                await written
        except VmferryError as error:
            _log.error("journal refused the end of a hand-over; trying again", error=str(error))
            await asyncio.sleep(_WRITE_AGAIN_S)
        else:
            return


def background(
    carry_out: Callable[[], Coroutine[Any, Any, None]], *scope: AnyState, failed: AnyEvent | None = None
) -> Order:
    """Return an order that runs beside the loop while the machine is in one of the states."""
    return Order(carry_out, frozenset(scope), failed)
