"""Every hand-over of this host: opened at its source, found again after a restart; arrivals are in arrivals.py.

The journal is the memory; what is kept here ends with the agent, and only what is unfinished is found again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time

from vmferry.conductor.around import Surroundings
from vmferry.conductor.arrivals import Arrivals
from vmferry.conductor.asking import ask_wishes
from vmferry.conductor.brake import Brake
from vmferry.conductor.compressing import settle
from vmferry.conductor.destination import Destination
from vmferry.conductor.feed import Feed
from vmferry.conductor.guests import Guests
from vmferry.conductor.lives import Lives
from vmferry.conductor.marks import Marks
from vmferry.conductor.plan import (
    UNLIMITED,
    Asked,
    Choice,
    Qemus,
    all_blockers,
    check_asked,
    choose_stream,
    make_facts,
    policy_of,
)
from vmferry.conductor.postcopy_destination import FETCHING
from vmferry.conductor.recorder import JournalRecorder, Parties
from vmferry.conductor.rows import Request, claim_of, replayed, request_of, row_of, source_row
from vmferry.conductor.runner import Runner, write_last
from vmferry.conductor.sharing import Sharing
from vmferry.conductor.source import Source
from vmferry.conductor.source_calls import Calls
from vmferry.conductor.steering import Steering
from vmferry.core.bandwidth import expect
from vmferry.core.capabilities import DEFAULT_STREAM, CapabilitySet, StreamWish
from vmferry.core.convergence import Guarded
from vmferry.core.convergence.facts import Throttle
from vmferry.core.errors import Blocker, GuestBusy, Refused, VmferryError
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.events import Happened, SourceEvent
from vmferry.core.handover.machine import Machine
from vmferry.core.handover.states import FACTS, POSTCOPY_STATES, AnyState, DestinationState, Owner, Side, SourceState
from vmferry.core.handover.table import OPENING
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.core.progress import Guarantee, StateEntered
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.peer import Verdict
from vmferry.ports.store import HandoverRow

#: The default policy with its defaults.
DEFAULT_CHOICE = Choice()
#: The guest stands still, or is between two owners: whoever stops an agent waits for the end of these.
_DELICATE: frozenset[AnyState] = frozenset(
    {
        *(SourceState.PRE_SWITCHOVER, SourceState.SWITCHOVER, SourceState.SOURCE_COMPLETED),
        *(SourceState.DESTINATION_LOADED, SourceState.LOADED, SourceState.COMMITTED),
        *(SourceState.ABORTING, SourceState.RETURNING),
        *(SourceState.POSTCOPY_CROSSING, SourceState.POSTCOPY_COMMITTED),
        *(DestinationState.POSTCOPY_LOADED, DestinationState.POSTCOPY_STARTING),
        *(DestinationState.LOADED, DestinationState.ACQUIRED, DestinationState.STARTING, DestinationState.GIVING_BACK),
    }
)
#: Before the commit, and about to end by itself: whoever cancels waits for the end of these.
_CANCELLABLE: frozenset[AnyState] = frozenset(
    state
    for state, facts in FACTS.items()
    if isinstance(state, SourceState) and facts.owner is Owner.SOURCE and not facts.final
) - {SourceState.ORPHANED, SourceState.RETURNING, SourceState.POSTCOPY_CROSSING}
#: A guest's memory or disks are on the way, or about to be, or it stands still for the end of that.
_ON_THE_WAY: frozenset[AnyState] = frozenset(
    {
        *(SourceState.CHECKING, SourceState.RESERVING, SourceState.COPYING_DISKS, SourceState.DETACHING),
        *(SourceState.RESERVED, SourceState.PRECOPY, SourceState.PRE_SWITCHOVER, SourceState.SWITCHOVER),
        *(SourceState.SOURCE_COMPLETED, SourceState.DESTINATION_LOADED, SourceState.LOADED),
        *(DestinationState.PREPARING, DestinationState.RECEIVING, DestinationState.LOADED, DestinationState.ACQUIRED),
        *(SourceState.POSTCOPY_ORDERED, DestinationState.STARTING, *POSTCOPY_STATES),
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Postcopy:
    """Post-copy is allowed: whoever steers may begin it."""

    after_rounds: int | None = None  #: begun when this round begins, whoever steers (1: at once)


class Handovers:
    """Opens and recovers hand-overs.

    Args:
        guests: this host's guests, with the journal.
        around: the agent around.
    """

    def __init__(self, guests: Guests, around: Surroundings) -> None:
        self._guests = guests
        self._journal = guests.journal
        self._around = around
        self.lives = Lives()
        self.arrivals = Arrivals(guests, around, self.lives)
        self._sources: dict[HandoverId, Source] = {}
        self._returning: dict[HandoverId, asyncio.Event] = {}  #: journalled by an agent before, and not taken up yet
        self._fenced: dict[HandoverId, str] = {}  #: a person's word on those, for when they are
        self._sharing = Sharing(around.link_device)
        guests.why_held = self._why_held

    # -- the source's side ----------------------------------------------------------------------------------------

    async def open(  # noqa: PLR0913 - one for each thing that can be asked for
        self,
        guest: GuestName,
        destination: HostName,
        *,
        downtime_limit_ms: Milliseconds | None,
        bandwidth: BytesPerSecond | None,
        time_limit_s: float | None,
        choice: Choice = DEFAULT_CHOICE,
        postcopy: Postcopy | None = None,
        stream: StreamWish = DEFAULT_STREAM,
        copy_disks: bool = False,
    ) -> HandoverId:
        """Open a hand-over and let it live; returns at once, or when the guest's own arrival here is over.

        Raises:
            NotFound: no such guest here, or no such policy.
            BadInput: the goal cannot be met.
            GuestBusy: something else holds the guest.
        """
        await self.arrivals.wait_over(guest)
        row = self._guests.row(guest)
        request = Request(
            handover=HandoverId(secrets.token_hex(8)),
            guest=guest,
            destination=destination,
            downtime_limit_ms=downtime_limit_ms,
            bandwidth=bandwidth,
            time_limit_s=time_limit_s,
            **dataclasses.asdict(choice),
            **dataclasses.asdict(stream),
            postcopy=postcopy is not None,
            postcopy_after_rounds=None if postcopy is None else postcopy.after_rounds,
            copy_disks=copy_disks,
        )
        check_asked(self._asked(request, row.guest))
        claim = claim_of(request.handover, Side.SOURCE)
        self._guests.claim(guest, claim)
        try:
            self._journal.open_handover(source_row(request))
        except BaseException:
            self._guests.unclaim(guest, claim)
            raise
        source = self._source(request, Machine(Side.SOURCE))
        self.lives.begin(request.handover, Side.SOURCE, self._live(source, new=True))
        self._around.opened(source)
        return request.handover

    def _source(self, request: Request, machine: Machine, age_s: float = 0.0) -> Source:
        feed, marks = Feed(), Marks(time.monotonic_ns)
        marks.mark("start", time.monotonic_ns() - int(age_s * 1e9))
        parties = Parties(request.handover, request.guest, self._guests.settings.name, request.destination)

        recorder = JournalRecorder(Side.SOURCE, parties, self._journal, feed.tell, marks.since_start_ms)
        runner = Runner(machine, recorder, self._around.hold)
        row = self._journal.guest(request.guest)
        asked = self._asked(request, None if row is None else row.guest)
        throttle, most_hold_ms = self._around.throttle, asked.most_hold_ms

        def link() -> BytesPerSecond:  # asked for: it may change on the way
            return self._link(self._sources[request.handover].request)

        brake = Brake(throttle, request.guest, request.handover, link, most_hold_ms)
        steering = Steering(asked, request.guest, feed, marks, runner, brake)
        source = Source(
            request,
            self._guests,
            self._around.peer(request.destination),
            runner,
            feed,
            marks,
            Calls(
                lambda: self._check(request, steering),
                self._around.leaving,
                lambda: self._over(request),
                self._report,
                self._around.passed,
                brake,
                self._around.ways,
                lambda: self._around.link_bandwidth(request.destination),
                self._around.disk_files,
                self._around.devices,
            ),
            steering,
        )
        source.timeline_ms = recorder.timeline_ms
        self._sources[request.handover] = source
        owner = parties.owner(machine.state)
        feed.tell(StateEntered(Milliseconds(0.0), str(machine.state), machine.facts.step, owner, None))
        return source

    async def _over(self, request: Request) -> None:
        """Free the guest's name here; a crash from now on costs the report and nothing else."""
        await write_last(lambda: self._journal.finish(request.handover, str(Side.SOURCE)))
        self._guests.unclaim(request.guest, claim_of(request.handover, Side.SOURCE))

    def _asked(self, request: Request, guest: FrozenGuest | None) -> Asked:
        bandwidth = request.bandwidth or self._around.link_bandwidth(request.destination)
        ram = Bytes(0) if guest is None else guest.spec.memory_bytes
        return Asked(
            request.choice,
            ram,
            bandwidth,
            request.downtime_limit_ms,
            request.postcopy,
            request.stream,
            self._around.link_measured(request.destination),
        )

    async def foresee(self, asked: Asked, qemus: Qemus) -> CapabilitySet:
        """Return what a migration would be set to; nothing is touched.

        Raises:
            NotFound: there is no such policy.
            BadInput: the goal cannot be met.
        """
        check_asked(asked)
        wishes = await ask_wishes(Guarded(policy_of(asked)), make_facts(asked, qemus))
        return choose_stream(asked, wishes, qemus)

    async def _check(self, request: Request, steering: Steering) -> tuple[tuple[Blocker, ...], Guarantee | None]:
        """Collect what blocks: the facts of guest and hosts, then what the policy makes of them."""
        checked = await self._around.check(request)
        blockers = checked.blockers
        blockers += await self.brake_blockers(request.guest, request.throttle)
        if blockers:
            return await self._with_streams_own(blockers, request, checked.qemus), None
        self._sources[request.handover].take_along(checked.copies, checked.migratable)
        await self._settle_stream(self._sources[request.handover], checked.qemus)
        blockers = await steering.prepare(checked.qemus, checked.certificates)
        return blockers, None if blockers else checked.guarantee

    async def _with_streams_own(
        self, found: tuple[Blocker, ...], request: Request, qemus: Qemus
    ) -> tuple[Blocker, ...]:
        """Return every reason at once, as `vmferry check` does; what is wrong with a goal is told when it is alone."""
        asked = self._asked(request, self._sources[request.handover].guest)
        try:
            return all_blockers(found, await self.foresee(asked, qemus))
        except VmferryError:
            return found

    async def _settle_stream(self, source: Source, qemus: Qemus) -> None:
        """Decide what was left to us about the stream, by the guest's own pages."""
        process, guest = self._guests.process(source.name), source.guest
        asked = self._asked(source.request, guest)
        vcpus = 1 if guest is None else guest.spec.vcpus
        stream, why = await settle(asked, qemus, process, vcpus, self._around.compressing)
        if why is not None:
            source.settle(stream, why)

    async def brake_blockers(self, guest: GuestName, throttle: str | None) -> tuple[Blocker, ...]:
        """Return what keeps a brake from being in force from the first round on; nothing for one that may stay away."""
        return await self._around.throttle.blockers(guest) if throttle == Throttle.FORTY_WRITES else ()

    async def _report(self, source: Source) -> None:
        """Keep the trace, then have the end measured and published."""
        sample = source.last_sample
        how = f"{source.runner.machine.state}" + (f": {source.reason}" if source.reason else "")
        trace = source.steering.trail.trace(how, None if sample is None else sample.downtime_ms)
        if trace is not None:
            await asyncio.to_thread(self._around.keep_trace, source.request.handover, trace)
        await self._around.report(source)

    def _link(self, request: Request) -> BytesPerSecond:
        """Return what the stream can count on."""
        limit = request.bandwidth or self._around.link_bandwidth(request.destination)
        return expect(limit, self._around.link_measured(request.destination)) or UNLIMITED

    async def _live(self, source: Source, *, new: bool) -> None:
        handover = source.request.handover
        opening = OPENING[Side.SOURCE].effects if new else ()
        first = () if new else (Happened(SourceEvent.AGENT_RESTARTED, "the source's agent was restarted"),)
        beside = [
            asyncio.create_task(source.watch(), name=f"watch:{handover}"),
            asyncio.create_task(source.watch_time(), name=f"time:{handover}"),
            asyncio.create_task(source.watch_mirrors(), name=f"mirrors:{handover}"),
            asyncio.create_task(source.watch_rounds(), name=f"rounds:{handover}"),
            asyncio.create_task(self._share_link(source, new=new), name=f"share:{handover}"),
        ]
        try:
            await source.runner.run(opening, first)
            await write_last(lambda: self._journal.finish(handover, str(Side.SOURCE)))
        finally:
            self._guests.unclaim(source.name, claim_of(handover, Side.SOURCE))
            source.feed.close()
            await self._around.throttle.end(handover)  # of a guest that left or died: its port is closed
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _share_link(self, source: Source, *, new: bool) -> None:
        """Divide the link with others while the stream lasts."""
        if await source.wait_sending():
            try:
                await self._sharing.begins(source, new=new)
                await source.wait_sent()
            finally:
                await self._sharing.ends(source)

    # -- asked by anybody -----------------------------------------------------------------------------------------

    def verdict(self, handover: HandoverId) -> Verdict:
        """Say, as the source, who owns the guest of a hand-over."""
        row = self._journal.handover(handover, str(Side.SOURCE))
        if row is None:
            return Verdict.UNKNOWN
        state = SourceState(row.state)
        if state in (SourceState.ABORTED, SourceState.CRASHED):
            return Verdict.ABORTED
        if FACTS[state].owner is Owner.DESTINATION:
            return Verdict.RELEASED
        return Verdict.OPEN

    async def cancel(self, handover: HandoverId) -> None:
        """Ask for a hand-over's end and wait until it is decided; without effect after its commit.

        Raises:
            NotFound: it is not a hand-over of which this host is the source.
            GuestBusy: post-copy has begun: there is no way back, and nothing that a cancel could do but harm.
        """
        row = row_of(self._journal, handover, Side.SOURCE, self._guests.settings.name)
        source = await self._taken_up(handover)
        if source is not None:
            if why := self._why_held(row.guest):
                raise GuestBusy(why, fix=f"wait for its last page (`vmferry watch {row.guest}`)", retry=True)
            source.cancel()
            await source.runner.wait_left(_CANCELLABLE)

    async def limit(self, handover: HandoverId, bandwidth: BytesPerSecond | None) -> None:
        """Change what a hand-over's stream may take, from now on and for an agent that comes after this one.

        Args:
            handover: which one; its stream is waited for.
            bandwidth: None: as much as the link gives.

        Raises:
            NotFound: it is not a hand-over of which this host is the source.
            Refused: nothing more is sent.
        """
        row = row_of(self._journal, handover, Side.SOURCE, self._guests.settings.name)
        source = await self._taken_up(handover)
        if source is None:
            raise Refused(f"Hand-over {handover} of guest {row.guest} is over ({row.state}): nothing more is sent")
        await source.limit(bandwidth)

    async def _taken_up(self, handover: HandoverId) -> Source | None:
        """Return the source's side, as soon as an agent that has just been started knows what it found; None: over."""
        if returning := self._returning.get(handover):
            await returning.wait()
        return self._sources.get(handover)

    def _why_held(self, guest: GuestName) -> str | None:
        """Return why nobody may stop, pause or cancel a guest now: both hosts hold a part of it."""
        sides: list[Source | Destination] = [*self._sources.values(), *self.arrivals.every()]
        states = [side.runner.machine.state for side in sides if side.name == guest]
        state = next((state for state in states if state in POSTCOPY_STATES), None)
        return state and f"Guest {guest} is in the middle of post-copy ({state}): both hosts hold a part of its memory"

    def moving(self) -> list[GuestName]:
        """Return the guests that are on the way from or to this host: the link is theirs."""
        sides: list[Source | Destination] = [*self._sources.values(), *self.arrivals.every()]
        return [side.name for side in sides if side.runner.machine.state in _ON_THE_WAY]

    def source(self, handover: HandoverId) -> Source | None:
        """Return the source's side of a hand-over that lives in this agent's memory."""
        return self._sources.get(handover)

    def unfinished(self) -> list[HandoverRow]:
        """Return the journal's unfinished hand-overs."""
        return list(self._journal.handovers(unfinished_only=True))

    def fenced(self, host: HostName) -> list[HandoverRow]:
        """Take a person's word that a host is off: end every wait for it; return the hand-overs concerned."""
        concerned = [row for row in self.unfinished() if row.peer == host]
        for row in concerned:
            why = f"an operator says that host {host} is off"
            source = self._sources.get(row.id)
            if source is not None:
                source.runner.post(SourceEvent.DESTINATION_FENCED, why)
            elif not self.arrivals.fenced(row.id, why):
                self._fenced[row.id] = why
        return concerned

    # -- after a restart ------------------------------------------------------------------------------------------

    def recover(self) -> list[HandoverRow]:
        """Take every unfinished hand-over up where the journal left it; `Guests.adopt_all` came before."""
        rows = self.unfinished()
        for row in rows:
            side = Side(row.side)
            self._guests.claim_again(row.guest, claim_of(row.id, side))
            if side is Side.SOURCE:
                self._returning[row.id] = asyncio.Event()
            self.lives.begin(row.id, side, self._recover(row))
        return rows

    async def _recover(self, row: HandoverRow) -> None:
        """Take one up, as soon as it is certain whether its QEMU lives.

        One that lacks pages may live and answer nothing until it has listened anew for them.
        """
        if row.side == str(Side.DESTINATION):
            fetching = DestinationState(row.state) in FETCHING
            await (self._guests.reached(row.guest) if fetching else self._guests.adopted(row.guest))
            await self.arrivals.take_up(row, self._fenced.pop(row.id, None))
            return
        try:
            await self._guests.adopted(row.guest)
            age_s = max(0.0, time.time() - row.created_at)
            source = self._source(request_of(row), replayed(self._journal, row), age_s)
        finally:
            self._returning.pop(row.id).set()
        if fenced := self._fenced.pop(row.id, None):
            source.runner.post(SourceEvent.DESTINATION_FENCED, fenced)
        await self._live(source, new=False)

    # -- the agent's end ------------------------------------------------------------------------------------------

    async def settle(self, limit_s: float) -> list[HandoverId]:
        """Wait until no guest stands still for a hand-over of ours, at most so long; for an agent that is to stop.

        Returns the hand-overs that are still in such a state.
        """
        runners = {handover: source.runner for handover, source in self._sources.items()}
        runners |= {arrival.arrival.handover: arrival.runner for arrival in self.arrivals.every()}
        waits = {asyncio.create_task(runner.wait_left(_DELICATE)): handover for handover, runner in runners.items()}
        if not waits:
            return []
        _, late = await asyncio.wait(waits, timeout=limit_s)
        for wait in late:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return [waits[wait] for wait in late]

    async def close(self) -> None:
        """Stop driving; everything is journalled and goes on with the next agent."""
        await self.lives.close()
        await self._around.throttle.close()
