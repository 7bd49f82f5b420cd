"""Lives one side of one hand-over: takes events in turn, journals, then carries effects out.

Order is everything here: an event is handled, its transition is made durable (with the token, when ownership moves),
then and only then its effects begin. Effects that wait run as tasks beside the loop and end by posting an event; each
belongs to the states it was ordered for and is cancelled when the machine leaves them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from vmferry.core.errors import VmferryError
from vmferry.core.handover.effects import AnyEffect
from vmferry.core.handover.events import AnyEvent, DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.machine import Machine, Transition
from vmferry.core.handover.states import AnyState, Side

#: Pause before an effect that must not give up (no `failed` event) begins again, as long as its states last.
_BEGIN_AGAIN_S = 0.5

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
        """Journal event, state and token in one write."""

    def entered(self, happened: Happened, transition: Transition) -> None:
        """Tell whoever watches; called after `record`."""


async def no_hold(state: AnyState) -> None:
    """Hold nothing: what every agent outside a lab does."""


class Runner:
    """One side of one hand-over, from its present state to a final one.

    Args:
        machine: where it stands.
        recorder: journal and watchers.
        hold: called after a state was journalled and before its effects: fault injection waits here in the lab.
    """

    def __init__(
        self, machine: Machine, recorder: Recorder, hold: Callable[[AnyState], Awaitable[None]] = no_hold
    ) -> None:
        self.machine = machine
        self.failure: VmferryError | None = None
        self.why: str | None = None  #: the first reason that any event gave
        self._recorder = recorder
        self._hold = hold
        self._orders: Mapping[AnyEffect, Order] = {}
        self._queue: asyncio.Queue[tuple[Happened, AnyState | None]] = asyncio.Queue()
        self._tasks: dict[AnyEffect, tuple[asyncio.Task[None], frozenset[AnyState]]] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._changed = asyncio.Condition()

    def obey(self, orders: Mapping[AnyEffect, Order]) -> None:
        """Say how each effect is carried out; once, before `run`."""
        self._orders = orders

    def post(self, kind: AnyEvent, why: str | None = None, *, only_in: AnyState | None = None) -> None:
        """Tell that something happened; handled in turn, and dropped if the machine then left `only_in`."""
        self._queue.put_nowait((Happened(kind, why), only_in))

    async def run(self, first: AnyEffect | None = None) -> AnyState:
        """Live until a final state and return it.

        Args:
            first: an effect to begin with (a new hand-over's first order); None when an event was posted.
        """
        try:
            if first is not None:
                await self._hold(self.machine.state)
                self._arm_deadline()
                await self._carry_out(first)
            while not self.machine.facts.final:
                happened, only_in = await self._queue.get()
                if only_in in (None, self.machine.state):
                    await self._take(happened)
            return self.machine.state
        finally:
            await self._end()

    async def handle_late(self, happened: Happened) -> AnyState:
        """Handle one event of a machine that had already ended (a commit that reaches a discarded arrival)."""
        await self._take(happened)
        return self.machine.state

    async def wait_left(self, states: frozenset[AnyState]) -> AnyState:
        """Wait until the machine is in none of the states; return the state it is in."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.machine.state not in states)
        return self.machine.state

    async def _take(self, happened: Happened) -> None:
        transition = self.machine.handle(happened)
        if transition.ignored:
            _log.debug("event ignored", kind=str(happened.kind), state=str(transition.before))
            return
        self.why = self.why or happened.why
        self._recorder.record(happened, transition)
        self._cancel_left_behind()
        self._arm_deadline()
        self._recorder.entered(happened, transition)
        async with self._changed:
            self._changed.notify_all()
        await self._hold(transition.after)
        for effect in transition.effects:
            await self._carry_out(effect)

    async def _carry_out(self, effect: AnyEffect) -> None:
        order = self._orders[effect]
        if order.scope is None:
            await self._guarded(effect, order)
            return
        if effect in self._tasks and not self._tasks[effect][0].done():
            return  # ordered again by the next state, and still at it
        task = asyncio.create_task(self._guarded(effect, order), name=f"{self.machine.side}:{effect}")
        self._tasks[effect] = (task, order.scope)

    async def _guarded(self, effect: AnyEffect, order: Order) -> None:
        """Carry an effect out; its failure is an event, or, for one that must not give up, a reason to begin again."""
        while True:
            why = await self._try(effect, order)
            if why is None:
                return
            if order.failed is not None:
                self.post(order.failed, why)
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
        for task, scope in self._tasks.values():
            if self.machine.state not in scope:
                task.cancel()

    def _arm_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        limit_ms = self.machine.facts.deadline_ms
        if limit_ms is None:
            return
        state = self.machine.state
        kind: AnyEvent = SourceEvent.DEADLINE_PASSED
        if self.machine.side is Side.DESTINATION:
            kind = DestinationEvent.PREPARATION_FAILED
        why = f"state {state} lasted longer than its limit of {limit_ms} ms"
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(limit_ms / 1000, lambda: self.post(kind, why, only_in=state))

    async def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        tasks = [task for task, _ in self._tasks.values()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def background(
    carry_out: Callable[[], Coroutine[Any, Any, None]], *scope: AnyState, failed: AnyEvent | None = None
) -> Order:
    """Return an order that runs beside the loop while the machine is in one of the states."""
    return Order(carry_out, frozenset(scope), failed)
