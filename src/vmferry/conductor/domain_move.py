"""Moves a libvirt domain under one of our policies: libvirt carries the move out and commits it, the policy steers it.

The policies are the same as for guests of ours, and so is what they are told: readings of the job, ten in a second, and
one at once when libvirt tells that a round ended.
What libvirt has no order for (a brake that is changed while it works) is not among a policy's means; one that QEMU
pulls by itself is, bounded beforehand (`unattended_brake`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from vmferry.conductor.asking import ask
from vmferry.conductor.plan import UNLIMITED, Asked, policy_of
from vmferry.conductor.trail import Trail
from vmferry.core.convergence import Facts, Guarded, Observation, Observer, Round
from vmferry.core.convergence.facts import TYPICAL_FIXED_COST_MS
from vmferry.core.convergence.orders import (
    MAX_DOWNTIME_MS,
    Cancel,
    Order,
    Pause,
    Resume,
    SetBandwidth,
    SetDowntimeLimit,
    StartPostcopy,
    SwitchNow,
    order_text,
)
from vmferry.core.convergence.throttle import NONE, stall_ms, unattended
from vmferry.core.convergence.trace import Trace
from vmferry.core.errors import InDoubt, Refused, VmferryError
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import PolicyBegan, PolicyOrdered, Progress, RoundEnded
from vmferry.core.rounds.following import QUIET, may_follow
from vmferry.core.units import BytesPerSecond, Milliseconds, Pages, Percent, format_ms
from vmferry.ports.domains import MovingDomain

Event = PolicyBegan | PolicyOrdered | Progress | RoundEnded
Tell = Callable[[Event], Awaitable[None]]

_READ_EVERY_S = 0.1
#: A daemon that has not answered for so long is not waited for: nobody would steer the move.
_SILENCE_S = 10.0
#: How long a move that was given up may take to end.
_ENDS_WITHIN_S = 20.0
#: Between two attempts to give it up.
_GIVE_UP_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a move ended."""

    failure: VmferryError | None  #: None: the domain runs at the destination
    gave_up: str | None  #: why the policy, or a person, had it ended
    last: MigrationSample | None  #: the last reading with figures
    limit_ms: Milliseconds  #: the downtime limit that was in force last
    trace: Trace | None  #: None: nothing was sent

    @property
    def reason(self) -> str | None:
        """Return why the domain did not move; None when it did."""
        return None if self.failure is None else self.gave_up or self.failure.what


def unattended_brake(asked: Asked) -> Percent:
    """Return with how much QEMU's auto-converge begins where nobody can change it while it works; 0: without it.

    Of a policy with a goal that has no post-copy to fall back on.
    """
    if not policy_of(asked).heeds_goal or asked.postcopy:
        return NONE
    return unattended(asked.goal.max_gap_ms, TYPICAL_FIXED_COST_MS)


class DomainMove:
    """One move.

    Args:
        domain: which moves.
        asked: the policy and its goal, and what the stream may take.
        tell: watchers.
        bounded: QEMU brakes by itself, and the move is given up before it holds a vCPU for longer than the goal's gap.
    """

    def __init__(self, domain: MovingDomain, asked: Asked, tell: Tell, *, bounded: bool = False) -> None:
        self._domain = domain
        self._asked = asked
        self._tell = tell
        self._most_stall_ms = asked.goal.max_gap_ms if bounded else None
        self._trail = Trail(asked)
        self._guarded = Guarded(policy_of(asked))
        self._observer = Observer()
        self._gave_up: str | None = None
        self._began = time.monotonic()
        self._silent_since: float | None = None  #: its daemon does not answer
        self._following = _Following(domain)

    async def run(self) -> Ended:
        """Move the domain; a caller that is cancelled has the move given up, unless libvirt is past that.

        Raises:
            InDoubt: nobody steers it any more (its daemon does not answer), and libvirt may go on with it.
        """
        moving = asyncio.create_task(self._domain.move(), name=f"move:{self._domain.name}")
        steering = asyncio.create_task(self._steer(), name=f"steer:{self._domain.name}")
        try:
            await asyncio.wait({moving, steering}, return_when=asyncio.FIRST_COMPLETED)
            if not moving.done():
                await self._end_unsteered(moving, steering)
        except asyncio.CancelledError:
            await self._end(moving, "interrupted")
            moving.exception()  # whoever interrupts looks where it runs
            raise
        finally:
            steering.cancel()
            await asyncio.gather(steering, return_exceptions=True)
        failure = moving.exception()
        if failure is not None and not isinstance(failure, VmferryError):
            raise failure
        for event in self._trail.finish(self._now()):
            await self._tell(event)
        how = "moved" if failure is None else f"aborted: {self._gave_up or failure.what}"
        last = self._trail.last_sample
        trace = self._trail.trace(how, None if last is None else last.downtime_ms)
        return Ended(failure, self._gave_up, last, self._trail.limit_ms, trace)

    async def _end_unsteered(self, moving: asyncio.Task[None], steering: asyncio.Task[None]) -> None:
        """Have a move given up whose steering has failed; one that goes on all the same is told."""
        error = steering.exception()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDS_WITHIN_S):
                await self._end(moving, f"steering failed: {error}")
        if not moving.done():
            moving.cancel()
            raise InDoubt(
                f"Move of domain {self._domain.name} is not steered any more ({error}), and libvirt goes on with it",
                fix="look at the domain on both hosts (virsh domstate --reason, virsh domjobinfo)",
            )

    async def _end(self, moving: asyncio.Task[None], why: str) -> None:
        """Have a move given up until it is over: before libvirt has begun, and in post-copy, it refuses."""
        while not moving.done():
            await self.give_up(why)
            await asyncio.wait({moving}, timeout=_GIVE_UP_EVERY_S)

    async def give_up(self, why: str) -> None:
        """Have libvirt give the move up; without effect once it is past that."""
        self._gave_up, self._trail.gave_up = self._gave_up or why, True
        with contextlib.suppress(VmferryError):
            await self._domain.abort()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _now(self) -> Milliseconds:
        return Milliseconds((time.monotonic() - self._began) * 1000)

    async def _steer(self) -> None:
        """Read, ask and carry out, until it is cancelled: the move is over."""
        facts = Facts(self._asked.ram_bytes, link=self._asked.link, postcopy=self._asked.postcopy)
        first = await ask(self._guarded, partial(self._guarded.begin, facts))
        self._trail.begin(facts)
        await self._tell(PolicyBegan(self._now(), self._guarded.name, (), None))
        began: Milliseconds | None = None
        while True:
            sample = await self._read()
            await self._following.saw(sample, self._now())
            if sample.status is MigrationStatus.ACTIVE and began is None:
                began = self._now()
                await self._carry_out(first, None)
            await self._show(sample, Milliseconds(self._now() - (began or 0.0)))
            await self._domain.wait_news(_READ_EVERY_S)

    async def _show(self, sample: MigrationSample, at_ms: Milliseconds) -> None:
        """Show a reading to the policy, and carry out what it orders."""
        for seen in self._observer.feed(sample, at_ms):
            self._trail.saw(seen)
            if not self._guarded.is_over:
                orders = await ask(self._guarded, partial(self._guarded.on, seen))
                await self._carry_out(orders, _Moment.of(seen, sample))

    async def _read(self) -> MigrationSample:
        """Take a reading; a daemon that does not answer has none for a while.

        Raises:
            VmferryError: it has not answered for too long.
        """
        try:
            sample = await self._domain.sample()
        except VmferryError:
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since > _SILENCE_S:
                raise
            return MigrationSample(MigrationStatus.OTHER)
        self._silent_since = None
        for event in self._trail.read(sample, self._now()):
            await self._tell(event)
        await self._check_brake(sample)
        return sample

    async def _check_brake(self, sample: MigrationSample) -> None:
        percent = sample.throttle_percent or 0
        if self._most_stall_ms is not None and stall_ms(percent) > self._most_stall_ms and self._gave_up is None:
            gap = format_ms(self._most_stall_ms)
            await self.give_up(f"QEMU's brake is at {percent} %: it would hold the guest for more than {gap} at a time")

    async def _carry_out(self, orders: Iterable[Order], when: _Moment | None) -> None:
        """Carry orders out in turn; one that is refused ends the move, as with guests of ours."""
        for order in map(self._asked.bound, orders):
            refused: str | None = None
            self._trail.ordered(order, self._now())
            try:
                await self._order(order)
            except VmferryError as error:
                refused = error.what
            await self._tell(
                PolicyOrdered(
                    at_ms=self._now(),
                    policy=self._guarded.name,
                    order=order_text(order),
                    rule=order.rule,
                    elapsed_ms=Milliseconds(0.0) if when is None else when.at_ms,
                    round=None if when is None else when.round,
                    left_pages=None if when is None else when.left_pages,
                    refused=refused,
                )
            )
            if refused is not None:
                why = f"policy {self._guarded.name} ordered: {order_text(order)} ({order.rule}), and it was refused"
                await self.give_up(f"{why}: {refused}")
                return
            self._trail.carried_out(order, None if when is None else when.left_pages)

    async def _order(self, order: Order) -> None:
        match order:
            case SetDowntimeLimit(limit_ms=limit_ms):
                await self._domain.set_downtime_limit(limit_ms)
            case SwitchNow():
                await self._domain.set_downtime_limit(MAX_DOWNTIME_MS)
            case SetBandwidth(bandwidth=bandwidth):
                limit = self._asked.capped(bandwidth)
                await self._domain.set_bandwidth(None if limit >= UNLIMITED else limit)
            case Pause():
                await self._domain.suspend()
            case Resume():
                await self._domain.resume()
            case StartPostcopy():
                await self._following.begin()
                await self._domain.start_postcopy()
            case Cancel(rule=rule):
                await self.give_up(rule)
            case _:
                raise Refused(f"libvirt has no order for {order_text(order)}")


class _Following:
    """How fast pages follow a guest that has left by post-copy: next to none at first, as with guests of ours."""

    def __init__(self, domain: MovingDomain) -> None:
        self._domain = domain
        self._link = BytesPerSecond(0)
        self._ordered: BytesPerSecond | None = None
        self._left_ms: Milliseconds | None = None  #: since when it runs at the destination

    async def begin(self) -> None:
        """Have them follow slowly from its first moment on; where libvirt refuses that they come as they do."""
        await self._order(QUIET)

    async def saw(self, sample: MigrationSample, now_ms: Milliseconds) -> None:
        """Let more of them follow, as its time at the destination and the link allow; a refusal is asked again."""
        if sample.status is MigrationStatus.ACTIVE:
            self._link = sample.bandwidth or self._link
        if sample.status is not MigrationStatus.POSTCOPY_ACTIVE or self._ordered is None:
            return
        self._left_ms = now_ms if self._left_ms is None else self._left_ms
        if (most := may_follow(Milliseconds(now_ms - self._left_ms), self._link)) != self._ordered:
            await self._order(most)

    async def _order(self, most: BytesPerSecond | None) -> None:
        with contextlib.suppress(VmferryError):
            await self._domain.set_following(most)
            self._ordered = most


@dataclass(frozen=True, slots=True)
class _Moment:
    """When something is ordered, and what is left then."""

    at_ms: Milliseconds
    round: int
    left_pages: Pages

    @classmethod
    def of(cls, seen: Observation, sample: MigrationSample) -> _Moment:
        """Return the moment of an observation."""
        page = max(sample.page_bytes, 1)
        left = seen.remaining_pages if isinstance(seen, Round) else Pages(seen.remaining_bytes // page)
        return cls(seen.at_ms, seen.round, left)
