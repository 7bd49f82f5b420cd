"""Drives one policy: what QEMU says goes in as observations, orders come out and are carried out, watchers see both.

The policy is foreign code. Whatever it does, the worst outcome is a cancel before the commit: the guest stays at the
source and the reason is told. The same holds for an order that QEMU refuses.

The policy lives in this agent's memory. One that is taken up after a restart begins anew, and the feed says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog

from vmferry.conductor import plan
from vmferry.conductor.asking import ask, ask_wishes
from vmferry.conductor.brake import Brake
from vmferry.conductor.feed import Feed
from vmferry.conductor.helm import Helm
from vmferry.conductor.marks import Marks
from vmferry.conductor.trail import Trail
from vmferry.core.capabilities import StreamWish
from vmferry.core.convergence import Facts, Guarded, Observation, Observer, Round, Throttle
from vmferry.core.convergence.orders import (
    Cancel,
    Order,
    Orders,
    Pause,
    Resume,
    SetBandwidth,
    SetThrottle,
    StartPostcopy,
    ThrottleOff,
    order_text,
)
from vmferry.core.errors import Blocker, Broken, VmferryError
from vmferry.core.handover.events import SourceEvent
from vmferry.core.handover.states import SourceState
from vmferry.core.migration import MigrationSample, MigrationStatus, RunState
from vmferry.core.progress import PolicyBegan, PolicyOrdered
from vmferry.core.rounds.unsent import most_unsent
from vmferry.core.units import BytesPerSecond, Milliseconds, Pages
from vmferry.ports.hypervisor import Certificates, GuestProcess, MigrationSetup

_log = structlog.get_logger(__name__)

_E, _S = SourceEvent, SourceState
#: Statuses in which QEMU still works on the migration; leaving them is its final word.
UNDER_WAY = frozenset(
    {
        MigrationStatus.SETUP,
        MigrationStatus.WAIT_UNPLUG,
        MigrationStatus.ACTIVE,
        MigrationStatus.PRE_SWITCHOVER,
        MigrationStatus.DEVICE,
        MigrationStatus.CANCELLING,
    }
)
#: The guest has ended while its process stays.
_ENDED = frozenset({RunState.SHUTDOWN, RunState.PANICKED})
#: Orders that need a stream under way; all others of a policy's first ones are part of its set-up.
_LATE = (Pause, Resume, StartPostcopy)
#: How long the last reading of a QEMU that is ended anyway may take.
_LAST_READING_S = 1.0
_READ_EVERY_S = 0.1
_KEY_BYTES = 32


class Machinery(Protocol):
    """What steering needs of the runner."""

    def post(self, kind: SourceEvent, why: str | None = None, *, only_in: SourceState | None = None) -> None:
        """Tell that something happened."""

    def allow(self, state: SourceState, extra_ms: Milliseconds) -> None:
        """Let a state last longer than usual."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """When something is ordered, and what is left then."""

    elapsed_ms: Milliseconds
    round: int | None = None
    left_pages: Pages | None = None
    rest_ms: Milliseconds | None = None


_START = _Moment(Milliseconds(0.0))


class Steering:
    """Decides, by a policy, when a migration switches over.

    Args:
        asked: what was asked for.
        guest: its name, for messages.
        feed: what watchers see.
        marks: when what happened.
        machinery: the hand-over's runner.
        brake: slows the guest's writes from within.
    """

    def __init__(
        self, asked: plan.Asked, guest: str, feed: Feed, marks: Marks, machinery: Machinery, brake: Brake
    ) -> None:
        self.trail = Trail(asked)
        self.helm = Helm(asked, lambda extra_ms: machinery.allow(_S.SWITCHOVER, extra_ms), brake)
        self._brake = brake
        self._asked = asked
        self._guest = guest
        self._feed = feed
        self._marks = marks
        self._machinery = machinery
        self._guarded: Guarded | None = None
        self._observer = Observer()
        self._setup: MigrationSetup | None = None
        self._late: Orders = ()  #: first orders that wait for the stream
        self._began_ms: Milliseconds | None = None  #: of the first reading
        self._look_now = asyncio.Event()
        self._wished: BytesPerSecond | None = None  #: what the policy gives the stream; None: all that it may take
        self._unsent_for = BytesPerSecond(0)  #: the bandwidth for which what waits in the kernel was bounded last

    # -- before anything is touched -------------------------------------------------------------------------------

    async def prepare(self, qemus: plan.Qemus, certificates: Certificates | None = None) -> tuple[Blocker, ...]:
        """Work out the stream and begin the policy; return what keeps the migration from starting.

        Args:
            qemus: what both can do.
            certificates: by which the stream is encrypted, if it is to be by certificates.

        Raises:
            NotFound: there is no such policy.
        """
        guarded, no_writes = Guarded(plan.policy_of(self._asked)), await self._why_no_writes()
        able = plan.make_facts(self._asked, qemus, holds_writes=no_writes == ())
        wishes = await ask_wishes(guarded, able)
        self._wished = wishes.max_bandwidth
        chosen = plan.choose_stream(self._asked, wishes, qemus)
        if chosen.blockers:
            return chosen.blockers
        facts = plan.granted(able, chosen)
        orders = await self._begin(guarded, facts)
        if refusal := next((order for order in orders if isinstance(order, Cancel)), None):
            return (Blocker("policy.refuses", refusal.rule, "allow it more, or take another policy"),)
        left_out = (plan.left_out_text(left) for left in chosen.left_out)
        held = (f"{Throttle.FORTY_WRITES}: {blocker.what}" for blocker in no_writes or ())
        self.trail.left_out = (*left_out, *held)
        stream = self._asked.stream
        key = secrets.token_hex(_KEY_BYTES) if stream.qemu_encrypts and not stream.by_certificates else None
        self._late = tuple(order for order in orders if _is_late(order))
        folded = tuple(order for order in orders if not _is_late(order))
        setup = plan.make_setup(self._asked, chosen, wishes, folded, key)
        self._setup = dataclasses.replace(setup, certificates=certificates if stream.by_certificates else None)
        await self._tell_began(guarded, None)
        for order in folded:
            self._note(order)
            self.trail.ordered(order, _START.elapsed_ms)
            self.trail.carried_out(order, None)
            await self._tell(order, _START, None)
        return ()

    def settle(self, stream: StreamWish) -> None:
        """Take what was decided about the stream; before `prepare`."""
        self._asked = self.helm.asked = dataclasses.replace(self._asked, stream=stream)

    def following(self, since_ms: Milliseconds, link: BytesPerSecond) -> Mapping[str, int]:
        """Return how fast post-copy's pages may follow the guest now, in QEMU's parameters.

        Args:
            since_ms: for how long it has been running at the destination.
            link: what the link carried before; 0: not known.
        """
        return plan.following_parameters(self._asked, since_ms, link)

    def take_setup(self) -> MigrationSetup:
        """Return what both QEMUs are set to.

        Raises:
            Broken: nothing was prepared.
        """
        if self._setup is None:
            raise Broken(f"Migration of guest {self._guest} was never prepared", side="source")
        return self._setup

    async def _why_no_writes(self) -> tuple[Blocker, ...] | None:
        """Return why a policy cannot have 40-writes; None: it may not, and the guest is not asked."""
        return await self._brake.blockers() if self._asked.may_hold_writes else None

    async def _begin(self, guarded: Guarded, facts: Facts) -> Orders:
        answer = await ask(guarded, partial(guarded.begin, facts))
        self._guarded = guarded
        self.trail.begin(facts)
        return tuple(self._asked.bound(order) for order in answer)

    async def _tell_began(self, guarded: Guarded, again: str | None) -> None:
        now = self._marks.since_start_ms()
        await self._feed.publish(PolicyBegan(now, guarded.name, self.trail.left_out, again))

    # -- while pages are sent -------------------------------------------------------------------------------------

    def look_now(self) -> None:
        """Have the next reading taken at once: a round has ended."""
        self._look_now.set()

    async def run(self, process: GuestProcess) -> None:
        """Read, ask and carry out, until it is cancelled: the machine has left pre-copy."""
        if await process.query_run_state() in _ENDED:
            self._machinery.post(_E.GUEST_ENDED, f"guest {self._guest} ended at the source during the hand-over")
            return
        while True:
            sample = await process.query_migration()
            if sample.status is not MigrationStatus.ACTIVE:  # the guest may be standing still: that goes first
                self._steered_to(sample)
            elif not await self._ready(process):
                return
            else:
                self._keep_unsent_short(process, sample.bandwidth)
            await self._take(process, sample)
            self._look_now.clear()
            with contextlib.suppress(TimeoutError):  # not `wait_for`, which loses a cancellation before Python 3.12
                async with asyncio.timeout(_READ_EVERY_S):
                    await self._look_now.wait()

    async def _ready(self, process: GuestProcess) -> bool:
        """See to it that the policy has begun and its first orders are carried out; False when that ended it all."""
        if self._guarded is None:
            return await self._begin_anew(process)
        late, self._late = self._late, ()
        return await self._carry_out(process, late, _START)

    def _keep_unsent_short(self, process: GuestProcess, bandwidth: BytesPerSecond) -> None:
        """Have little of the stream wait in the kernel, by what the link carries; best effort."""
        if bandwidth <= 0 or self._unsent_for / 2 < bandwidth < self._unsent_for * 2:
            return
        self._unsent_for = bandwidth
        try:
            process.bound_unsent(most_unsent(bandwidth))
        except Broken as error:
            _log.info("more of a stream than needed waits in the kernel", guest=self._guest, error=str(error))

    async def _begin_anew(self, process: GuestProcess) -> bool:
        """Begin a policy whose agent was restarted; what it had seen and ordered is forgotten, and told to be."""
        try:
            guarded = Guarded(plan.policy_of(self._asked))
        except VmferryError as error:
            self._give_up(f"after the agent's restart: {error}")
            return False
        holds_writes = await self._why_no_writes() == ()
        orders = await self._begin(guarded, plan.make_facts(self._asked, None, holds_writes=holds_writes))
        await self._tell_began(guarded, "the source's agent was restarted; what the policy had seen is gone")
        return await self._carry_out(process, orders, _START)

    async def _take(self, process: GuestProcess, sample: MigrationSample) -> None:
        """Take a reading: watchers first, then the policy."""
        await self.read(sample)
        now = self._marks.since_start_ms()
        for seen in self._observer.feed(sample, Milliseconds(now - self._since(now))):
            self.trail.saw(seen)
            guarded = self._guarded
            if guarded is None or guarded.is_over:
                continue
            orders = await ask(guarded, partial(guarded.on, seen))
            if not await self._carry_out(process, orders, _moment(seen, sample)):
                guarded.overdue()  # nothing more will come of it

    def _since(self, now: Milliseconds) -> Milliseconds:
        if self._began_ms is None:
            self._began_ms = now
        return self._began_ms

    async def read(self, sample: MigrationSample) -> None:
        """Take a reading in and publish what it says."""
        for event in self.trail.read(sample, self._marks.since_start_ms()):
            await self._feed.publish(event)

    def _steered_to(self, sample: MigrationSample) -> None:
        """Post what a reading says when its event may have been missed (the agent was away)."""
        post = self._machinery.post
        if sample.status is MigrationStatus.PRE_SWITCHOVER:
            for state in (_S.PRECOPY, _S.POSTCOPY_ORDERED):
                post(_E.SOURCE_PAUSED, only_in=state)
        elif sample.status is MigrationStatus.DEVICE:  # nobody watched it stand still, and nobody would end the wait
            why = "the agent was away while QEMU sent the last pages"
            post(_E.STREAM_FAILED, why, only_in=_S.PRECOPY)
        elif sample.status not in UNDER_WAY:
            for state in (_S.PRECOPY, _S.POSTCOPY_ORDERED):
                post(_E.STREAM_FAILED, sample.error or f"the migration {sample.status}", only_in=state)

    # -- orders ---------------------------------------------------------------------------------------------------

    async def _carry_out(self, process: GuestProcess, orders: Iterable[Order], when: _Moment) -> bool:
        """Carry orders out in turn; False when one was refused, and with it the migration."""
        for order in (self._asked.bound(order) for order in orders):
            self.trail.ordered(order, when.elapsed_ms)
            refused = await self._refusal(process, order, when)
            await self._tell(order, when, refused)
            if refused is not None:
                why = f"policy {self._name} ordered: {order_text(order)} ({order.rule})"
                self._give_up(f"{why}, and it was refused: {refused}")
                return False
            self._note(order)
            self.trail.carried_out(order, when.left_pages)
            if isinstance(order, Cancel):
                self._give_up(order.rule)
        return True

    def _note(self, order: Order) -> None:
        if isinstance(order, SetBandwidth):
            self._wished = order.bandwidth

    async def limit(self, process: GuestProcess, bandwidth: BytesPerSecond | None) -> None:
        """Change what the stream may take, while it runs; the policy's own limit holds below that.

        Args:
            process: the guest's QEMU.
            bandwidth: None: as much as it can.
        """
        self._asked = self.helm.asked = dataclasses.replace(self._asked, bandwidth=bandwidth)
        await process.set_bandwidth(self._asked.capped(self._wished))

    async def _refusal(self, process: GuestProcess, order: Order, when: _Moment) -> str | None:
        try:
            await self.helm.carry_out(process, order, when.rest_ms)
        except VmferryError as error:
            if not process.is_alive():
                raise  # its death decides more
            return error.what
        return None

    async def _tell(self, order: Order, when: _Moment, refused: str | None) -> None:
        await self._feed.publish(
            PolicyOrdered(
                at_ms=self._marks.since_start_ms(),
                policy=self._name,
                order=order_text(order),
                rule=order.rule,
                elapsed_ms=when.elapsed_ms,
                round=when.round,
                left_pages=when.left_pages,
                refused=refused,
            )
        )

    def _give_up(self, why: str) -> None:
        self.trail.gave_up = True
        for state in (_S.PRECOPY, _S.POSTCOPY_ORDERED):
            self._machinery.post(_E.CANCEL_REQUESTED, why, only_in=state)

    @property
    def _name(self) -> str:
        return self._asked.choice.policy if self._guarded is None else self._guarded.name

    # -- at the switchover and after it ---------------------------------------------------------------------------

    def around_stop(self, process: GuestProcess) -> tuple[Coroutine[Any, Any, None], ...]:
        """Return the order to go on and the look at QEMU's counters, to be sent one behind the other.

        A switchover that was forced is looked at first: its pages are to be exact, and its rest takes long anyway. Else
        the guest does not wait for the look, and what QEMU sends in that moment is missing in it.
        """
        go_on, look = process.migrate_continue(), self._read_stop(process)
        return (look, go_on) if self.trail.decision is not None else (go_on, look)

    async def _read_stop(self, process: GuestProcess) -> None:
        """Take QEMU's counters while the guest stands still."""
        with contextlib.suppress(VmferryError):
            self.trail.stopped(await process.query_migration())

    async def read_last(self, process: GuestProcess) -> None:
        """Take QEMU's last figures; a QEMU that does not answer is ended without them."""
        with contextlib.suppress(VmferryError, TimeoutError):
            async with asyncio.timeout(_LAST_READING_S):
                await self.read(await process.query_migration())
        await self.finish()

    async def finish(self) -> None:
        """Publish the row of the last round."""
        for event in self.trail.finish(self._marks.since_start_ms()):
            await self._feed.publish(event)


def _is_late(order: Order) -> bool:
    """Tell whether a first order is none of the set-up's: it waits for the stream."""
    in_guest = isinstance(order, SetThrottle | ThrottleOff) and order.throttle is Throttle.FORTY_WRITES
    return in_guest or isinstance(order, _LATE)


def _moment(seen: Observation, sample: MigrationSample) -> _Moment:
    page = max(sample.page_bytes, 1)
    left = seen.remaining_pages if isinstance(seen, Round) else Pages(seen.remaining_bytes // page)
    rest_ms = Milliseconds(left * page * 1000 / seen.bandwidth) if seen.bandwidth > 0 else None
    return _Moment(seen.at_ms, seen.round, left, rest_ms)
