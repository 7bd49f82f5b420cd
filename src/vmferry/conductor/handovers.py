"""Every hand-over of this host, on either side: opened, reserved, found again after a restart.

The journal is the memory; objects here exist only while a hand-over is unfinished, or until the agent restarts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

from vmferry.conductor.around import Surroundings
from vmferry.conductor.asking import ask_wishes
from vmferry.conductor.brake import Brake
from vmferry.conductor.destination import Arrival, Destination
from vmferry.conductor.feed import Feed
from vmferry.conductor.guests import Guests
from vmferry.conductor.marks import Marks
from vmferry.conductor.plan import UNLIMITED, Asked, Choice, Qemus, check_asked, choose_stream, make_facts, policy_of
from vmferry.conductor.recorder import JournalRecorder, Parties
from vmferry.conductor.runner import Runner
from vmferry.conductor.source import Calls, Postcopy, Request, Source
from vmferry.conductor.steering import Steering
from vmferry.core.capabilities import CapabilitySet
from vmferry.core.checks import memory_needed
from vmferry.core.convergence import Guarded
from vmferry.core.convergence.facts import Throttle
from vmferry.core.errors import Blocker, GuestBusy, NotFound, Refused
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.events import DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.machine import Machine
from vmferry.core.handover.replay import replay, to_json
from vmferry.core.handover.states import FACTS, POSTCOPY_STATES, AnyState, DestinationState, Owner, Side, SourceState
from vmferry.core.handover.table import OPENING
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.progress import Guarantee, StateEntered
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import MigrationSetup
from vmferry.ports.peer import CommitReply, PeerStatus, RejoinReply, ReserveReply, ReserveRequest, Verdict
from vmferry.ports.store import HandoverRow, Reservation

_log = structlog.get_logger(__name__)

#: The default policy with its defaults.
DEFAULT_CHOICE = Choice()
_ARRIVAL_OVER_S = 5.0
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


class Handovers:
    """Opens, receives and recovers hand-overs.

    Args:
        guests: this host's guests, with the journal.
        around: the agent around.
    """

    def __init__(self, guests: Guests, around: Surroundings) -> None:
        self._guests = guests
        self._journal = guests.journal
        self._around = around
        self._sources: dict[HandoverId, Source] = {}
        self._destinations: dict[HandoverId, Destination] = {}
        self._living: dict[tuple[HandoverId, Side], asyncio.Task[None]] = {}
        guests.why_held = self._why_held

    # -- the source's side ----------------------------------------------------------------------------------------

    async def open(
        self,
        guest: GuestName,
        destination: HostName,
        *,
        downtime_limit_ms: Milliseconds | None,
        bandwidth: BytesPerSecond | None,
        time_limit_s: float | None,
        encrypted: bool,
        choice: Choice = DEFAULT_CHOICE,
        postcopy: Postcopy | None = None,
    ) -> HandoverId:
        """Open a hand-over and let it live; returns at once, or when the guest's own arrival here is over.

        Raises:
            NotFound: no such guest here, or no such policy.
            BadInput: the goal cannot be met.
            GuestBusy: something else holds the guest.
        """
        await self._arrival_over(guest)
        row = self._guests.row(guest)
        request = Request(
            handover=HandoverId(secrets.token_hex(8)),
            guest=guest,
            destination=destination,
            downtime_limit_ms=downtime_limit_ms,
            bandwidth=bandwidth,
            time_limit_s=time_limit_s,
            encrypted=encrypted,
            **dataclasses.asdict(choice),
            postcopy=postcopy is not None,
            postcopy_after_rounds=None if postcopy is None else postcopy.after_rounds,
        )
        check_asked(self._asked(request, row.guest))
        claim = _claim_of(request.handover)
        self._guests.claim(guest, claim)
        try:
            self._journal.open_handover(self._row(request))
        except BaseException:
            self._guests.unclaim(guest, claim)
            raise
        source = self._source(request, Machine(Side.SOURCE))
        self._spawn(request.handover, Side.SOURCE, self._live_source(source, claim, new=True))
        self._around.opened(source)
        return request.handover

    async def _arrival_over(self, guest: GuestName) -> None:
        """Wait, shortly, for the last orders of an arrival that runs here already: it may move on at once."""
        for destination in self._destinations.values():
            if destination.name == guest and destination.state is DestinationState.RUNNING:
                await self._ended(destination.arrival.handover, Side.DESTINATION, _ARRIVAL_OVER_S)

    def _row(self, request: Request) -> HandoverRow:
        return HandoverRow(
            id=request.handover,
            guest=request.guest,
            side=str(Side.SOURCE),
            peer=request.destination,
            state=str(SourceState.CHECKING),
            request=dataclasses.asdict(request),
            report=None,
            finished=False,
            created_at=time.time(),
        )

    def _source(self, request: Request, machine: Machine, age_s: float = 0.0) -> Source:
        feed, marks = Feed(), Marks(time.monotonic_ns)
        marks.mark("start", time.monotonic_ns() - int(age_s * 1e9))
        parties = Parties(request.handover, request.guest, self._guests.settings.name, request.destination)

        recorder = JournalRecorder(Side.SOURCE, parties, self._journal, feed.tell, marks.since_start_ms)
        runner = Runner(machine, recorder, self._around.hold)
        row = self._journal.guest(request.guest)
        asked = self._asked(request, None if row is None else row.guest)
        steering = Steering(asked, request.guest, feed, marks, runner)
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
                Brake(self._around.throttle, request.guest, request.handover, lambda: self._link(request)),
            ),
            steering,
        )
        source.timeline_ms = recorder.timeline_ms
        self._sources[request.handover] = source
        owner = parties.owner(machine.state)
        feed.tell(StateEntered(Milliseconds(0.0), str(machine.state), machine.facts.step, owner, None))
        return source

    def _over(self, request: Request) -> None:
        """Free the guest's name here; a crash from now on costs the report and nothing else."""
        self._journal.finish(request.handover, str(Side.SOURCE))
        self._guests.unclaim(request.guest, _claim_of(request.handover))

    def _asked(self, request: Request, guest: FrozenGuest | None) -> Asked:
        bandwidth = request.bandwidth or self._around.link_bandwidth(request.destination)
        ram = Bytes(0) if guest is None else guest.spec.memory_bytes
        return Asked(request.choice, ram, bandwidth, request.downtime_limit_ms, request.encrypted, request.postcopy)

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
        checked = await self._around.check(
            request.guest, request.destination, request.handover, postcopy=request.postcopy
        )
        blockers = checked.blockers
        if request.throttle == Throttle.FORTY_WRITES:
            blockers += await self._around.throttle.blockers(request.guest)
        blockers = blockers or await steering.prepare(checked.qemus)
        return blockers, None if blockers else checked.guarantee

    async def _report(self, source: Source) -> None:
        """Keep the trace, then have the end measured and published."""
        sample = source.last_sample
        how = f"{source.runner.machine.state}" + (f": {source.reason}" if source.reason else "")
        trace = source.steering.trail.trace(how, None if sample is None else sample.downtime_ms)
        if trace is not None:
            await asyncio.to_thread(self._around.keep_trace, source.request.handover, trace)
        await self._around.report(source)

    def _link(self, request: Request) -> BytesPerSecond:
        """Return what the stream may take."""
        return request.bandwidth or self._around.link_bandwidth(request.destination) or UNLIMITED

    async def _live_source(self, source: Source, claim: str, *, new: bool) -> None:
        handover = source.request.handover
        opening = OPENING[Side.SOURCE].effects if new else ()
        first = () if new else (Happened(SourceEvent.AGENT_RESTARTED, "the source's agent was restarted"),)
        beside = [
            asyncio.create_task(source.watch(), name=f"watch:{handover}"),
            asyncio.create_task(source.watch_time(), name=f"time:{handover}"),
            asyncio.create_task(source.watch_rounds(), name=f"rounds:{handover}"),
        ]
        try:
            await source.runner.run(opening, first)
            self._journal.finish(handover, str(Side.SOURCE))
        finally:
            self._guests.unclaim(source.name, claim)
            source.feed.close()
            await self._around.throttle.end(handover)  # of a guest that left or died: its port is closed
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    # -- the destination's side -----------------------------------------------------------------------------------

    async def reserve(self, request: ReserveRequest) -> ReserveReply:
        """Hold everything for an arrival and have its QEMU listen. The same hand-over again: the same answer.

        Raises:
            Refused: memory, port or name is gone, or QEMU could not be prepared; nothing is left.
        """
        known = self._destinations.get(request.handover)
        if known is None:
            known = self._hold_place(request)
            self._spawn(request.handover, Side.DESTINATION, self._live_destination(known, new=True))
        await known.runner.wait_left(frozenset({DestinationState.PREPARING, DestinationState.DISCARDING}))
        if known.state is DestinationState.DISCARDED:
            await self._ended(request.handover, Side.DESTINATION)
            raise Refused(
                f"Host {self._guests.settings.name} could not prepare for guest {known.name}:"
                f" {known.error or known.runner.why or 'discarded'}",
                side="destination",
            )
        return known.arrival.reply

    def _hold_place(self, request: ReserveRequest) -> Destination:
        name = request.guest.spec.name
        claim = f"arrival {request.handover}"
        self._guests.claim(name, claim)
        try:
            self._guests.check_free(name)
            reply = ReserveReply(self._around.listen_address, self._free_port())
            reservation = Reservation(request.handover, name, memory_needed(request.guest), reply.port)
            self._journal.reserve(reservation, self._around.free_memory())
            try:
                self._journal.open_handover(self._arrival_row(request, reply))
                self._guests.arrival(request.guest, request.epoch, request.source, running=request.running)
            except BaseException:
                self._journal.release(request.handover)
                raise
        except BaseException:
            self._guests.unclaim(name, claim)
            raise
        arrival = Arrival(request.handover, name, request.source, request.epoch, reply)
        return self._destination(arrival, request.setup, Machine(Side.DESTINATION))

    def _free_port(self) -> int:
        taken = {reservation.port for reservation in self._journal.reservations()}
        address = self._around.listen_address
        for port in self._around.ports:
            if port not in taken and self._around.port_is_free(address, port):
                return port
        ports = self._around.ports
        raise Refused(
            f"No migration port is free on {address} between {ports.start} and {ports.stop - 1}",
            side="destination",
            retry=True,
        )

    def _arrival_row(self, request: ReserveRequest, reply: ReserveReply) -> HandoverRow:
        # The stream's key is of no use after a restart (QEMU has it already) and has no place in a journal.
        return HandoverRow(
            id=request.handover,
            guest=request.guest.spec.name,
            side=str(Side.DESTINATION),
            peer=request.source,
            state=str(DestinationState.PREPARING),
            request={"epoch": request.epoch, "running": request.running, **dataclasses.asdict(reply)},
            report=None,
            finished=False,
            created_at=time.time(),
        )

    def _destination(self, arrival: Arrival, setup: MigrationSetup | None, machine: Machine) -> Destination:
        marks = Marks(time.monotonic_ns)
        marks.mark("start")
        parties = Parties(arrival.handover, arrival.guest, arrival.source, self._guests.settings.name)
        recorder = JournalRecorder(Side.DESTINATION, parties, self._journal, None, marks.since_start_ms)
        destination = Destination(
            arrival,
            setup,
            self._guests,
            self._around.peer(arrival.source),
            Runner(machine, recorder, self._around.hold),
            marks,
            lambda: self._journal.release(arrival.handover),
            lambda: self._around.throttle.arrived(arrival.guest, arrival.handover),
        )
        self._destinations[arrival.handover] = destination
        return destination

    async def _live_destination(self, destination: Destination, *, new: bool) -> None:
        handover = destination.arrival.handover
        opening = OPENING[Side.DESTINATION].effects if new else ()
        try:
            state = await destination.runner.run(opening, () if new else self._found(destination))
            if state in (DestinationState.DISCARDED, DestinationState.RETURNED):
                self._journal.release(handover)
                await self._guests.forget(destination.name)
            self._journal.finish(handover, str(Side.DESTINATION))
        finally:
            self._guests.unclaim(destination.name, destination.claim)

    def _found(self, destination: Destination) -> Sequence[Happened]:
        """Return what a restarted agent begins an arrival with; whether QEMU lives is certain by now."""
        found = [Happened(DestinationEvent.AGENT_RESTARTED, "the destination's agent was restarted")]
        if self._guests.process(destination.name) is None:
            destination.error = f"QEMU of guest {destination.name} at the destination is gone"
            found.insert(0, Happened(DestinationEvent.QEMU_DIED, destination.error))
        return found

    async def wait_loaded(self, handover: HandoverId, limit_s: float) -> PeerStatus:
        """Answer the source's long poll."""
        known = self._destinations.get(handover)
        if known is None:
            return self._past(handover)
        return await known.wait_decided(limit_s)

    async def commit(self, handover: HandoverId, epoch: Epoch, limit_s: float, *, running: bool) -> CommitReply:
        """Take the token over, or give it back. Idempotent.

        Raises:
            NotFound: this host never heard of the hand-over.
            Refused: the epoch is not the one that follows the reservation's.
        """
        known = self._destinations.get(handover)
        if known is not None and not known.runner.machine.facts.final:
            await known.commit(epoch, limit_s, running=running)
        if self._past_state(handover) is DestinationState.DISCARDED:
            await self._ended(handover, Side.DESTINATION)
            self._return_late(handover)
        return self._commit_reply(handover)

    def _return_late(self, handover: HandoverId) -> None:
        """Journal the return of a token that reached an arrival which was gone already; its row is gone with it."""
        machine = Machine(Side.DESTINATION, self._past_state(handover))
        happened = Happened(DestinationEvent.COMMIT_RECEIVED)
        transition = machine.handle(happened)
        if not transition.ignored:
            side, state = str(Side.DESTINATION), str(transition.after)
            self._journal.append(handover, side, [(to_json(happened), state)], finished=True)
        self._destinations.pop(handover, None)

    def _commit_reply(self, handover: HandoverId) -> CommitReply:
        row = self._handover_row(handover, Side.DESTINATION)
        guest = self._journal.guest(row.guest)
        epoch = _epoch(row) if guest is None else guest.token.epoch
        known = self._destinations.get(handover)
        if known is None:
            return CommitReply(row.state, epoch)
        marks = known.marks
        parts = {
            "destination_acquire": marks.between_ms("commit_received", "acquired"),
            "destination_intent": marks.between_ms("acquired", "intent"),
            "destination_cont": marks.between_ms("intent", "resumed"),
        }
        parts_ms = tuple((name, float(value)) for name, value in parts.items() if value is not None)
        return CommitReply(str(known.state), epoch, marks.at("resumed"), known.error, parts_ms)

    async def rejoin(self, handover: HandoverId, *, source_alive: bool) -> RejoinReply:
        """Have an arrival in post-copy listen anew, or hear that its source is dead; raises if QEMU does not listen."""
        known = self._destinations.get(handover)
        if known is None or not known.postcopy.is_fetching:
            state = self._handover_row(handover, Side.DESTINATION).state if known is None else str(known.state)
            return RejoinReply(state, detail=None if known is None else known.postcopy.error or known.error)
        if source_alive:
            return await known.postcopy.rejoin()
        known.error = "the source's QEMU died in post-copy, with pages that had not been sent"
        known.postcopy.source_is_gone(known.error)
        return RejoinReply(str(known.state))

    def discard(self, handover: HandoverId) -> None:
        """Have an arrival undone; unknown ones are no error."""
        known = self._destinations.get(handover)
        if known is not None:
            known.discard("the source gave the hand-over up")

    # -- asked by anybody -----------------------------------------------------------------------------------------

    def verdict(self, handover: HandoverId) -> Verdict:
        """Say, as the source, who owns the guest of a hand-over."""
        row = self._journal.handover(handover, str(Side.SOURCE))
        if row is None:
            return Verdict.UNKNOWN
        state = SourceState(row.state)
        if state in (SourceState.ABORTED, SourceState.CRASHED):
            return Verdict.ABORTED
        if FACTS[state].owner.value == "destination":
            return Verdict.RELEASED
        return Verdict.OPEN

    async def cancel(self, handover: HandoverId) -> None:
        """Ask for a hand-over's end and wait until it is decided; without effect after its commit.

        Raises:
            NotFound: it is not a hand-over of which this host is the source.
            GuestBusy: post-copy has begun: there is no way back, and nothing that a cancel could do but harm.
        """
        row = self._handover_row(handover, Side.SOURCE)
        source = self._sources.get(handover)
        if source is not None:
            if why := self._why_held(row.guest):
                raise GuestBusy(why, fix=f"wait for its last page (`vmferry watch {row.guest}`)", retry=True)
            source.cancel()
            await source.runner.wait_left(_CANCELLABLE)

    def _why_held(self, guest: GuestName) -> str | None:
        """Return why nobody may stop, pause or cancel a guest now: both hosts hold a part of it."""
        sides: list[Source | Destination] = [*self._sources.values(), *self._destinations.values()]
        states = [side.runner.machine.state for side in sides if side.name == guest]
        state = next((state for state in states if state in POSTCOPY_STATES), None)
        return state and f"Guest {guest} is in the middle of post-copy ({state}): both hosts hold a part of its memory"

    def source(self, handover: HandoverId) -> Source | None:
        """Return the source's side of a hand-over that lives in this agent's memory."""
        return self._sources.get(handover)

    def destination(self, handover: HandoverId) -> Destination | None:
        """Return the destination's side of a hand-over that lives in this agent's memory."""
        return self._destinations.get(handover)

    def unfinished(self) -> list[HandoverRow]:
        """Return the journal's unfinished hand-overs."""
        return list(self._journal.handovers(unfinished_only=True))

    def fenced(self, host: HostName) -> list[HandoverRow]:
        """Take a person's word that a host is off: end every wait for it; return the hand-overs concerned."""
        concerned = [row for row in self.unfinished() if row.peer == host]
        for row in concerned:
            why = f"an operator says that host {host} is off"
            source, destination = self._sources.get(row.id), self._destinations.get(row.id)
            if source is not None:
                source.runner.post(SourceEvent.DESTINATION_FENCED, why)
            if destination is not None:
                destination.error = why
                destination.runner.post(DestinationEvent.SOURCE_FENCED, why)
                destination.postcopy.source_is_gone(why)
        return concerned

    def _past(self, handover: HandoverId) -> PeerStatus:
        """Return what the journal says; an arrival that is about to be taken up again is not dead for that."""
        row = self._journal.handover(handover, str(Side.DESTINATION))
        if row is None:
            return PeerStatus("unknown", qemu_alive=False)
        return PeerStatus(row.state, qemu_alive=not row.finished)

    def _past_state(self, handover: HandoverId) -> DestinationState | None:
        row = self._journal.handover(handover, str(Side.DESTINATION))
        return None if row is None else DestinationState(row.state)

    def _handover_row(self, handover: HandoverId, side: Side) -> HandoverRow:
        row = self._journal.handover(handover, str(side))
        if row is None:
            raise NotFound(f"Hand-over {handover} is not known on host {self._guests.settings.name} as {side}")
        return row

    # -- after a restart ------------------------------------------------------------------------------------------

    def recover(self) -> list[HandoverRow]:
        """Take every unfinished hand-over up where the journal left it; `Guests.adopt_all` came before."""
        rows = self.unfinished()
        for row in rows:
            kind = "hand-over" if row.side == str(Side.SOURCE) else "arrival"
            claim = f"{kind} {row.id}"
            self._guests.claim_again(row.guest, claim)
            self._spawn(row.id, Side(row.side), self._recover(row, claim))
        return rows

    async def _recover(self, row: HandoverRow, claim: str) -> None:
        """Take one up, as soon as it is certain whether its QEMU lives."""
        await self._guests.adopted(row.guest)
        if row.side == str(Side.SOURCE):
            await self._recover_source(row, claim)
        else:
            await self._live_destination(self._arrived(row), new=False)

    def _replayed(self, row: HandoverRow, side: Side) -> Machine:
        events = self._journal.events(row.id, row.side)
        return replay(side, [event.event for event in events])

    async def _recover_source(self, row: HandoverRow, claim: str) -> None:
        request = Request(**_known(Request, row.request))
        source = self._source(request, self._replayed(row, Side.SOURCE), max(0.0, time.time() - row.created_at))
        await self._live_source(source, claim, new=False)

    def _arrived(self, row: HandoverRow) -> Destination:
        """Return the arrival of a row; its guest's row may be missing when a crash came before it or after its end."""
        reply = ReserveReply(str(row.request["address"]), int(str(row.request["port"])))
        arrival = Arrival(row.id, row.guest, row.peer, _epoch(row), reply)
        return self._destination(arrival, None, self._replayed(row, Side.DESTINATION))

    # -- the agent's end ------------------------------------------------------------------------------------------

    async def settle(self, limit_s: float) -> list[HandoverId]:
        """Wait until no guest stands still for a hand-over of ours, at most so long; for an agent that is to stop.

        Returns the hand-overs that are still in such a state.
        """
        runners = {handover: source.runner for handover, source in self._sources.items()}
        runners |= {handover: arrival.runner for handover, arrival in self._destinations.items()}
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
        tasks = list(self._living.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._around.throttle.close()

    def _spawn(self, handover: HandoverId, side: Side, life: Coroutine[Any, Any, None]) -> None:
        key = (handover, side)
        task = asyncio.create_task(life, name=f"{side}:{handover}")
        self._living[key] = task
        task.add_done_callback(lambda ended: self._bury(key, ended))

    def _bury(self, key: tuple[HandoverId, Side], ended: asyncio.Task[None]) -> None:
        self._living.pop(key, None)
        if not ended.cancelled() and (error := ended.exception()) is not None:
            _log.error("hand-over is not driven any more", handover=key[0], side=str(key[1]), error=repr(error))

    async def _ended(self, handover: HandoverId, side: Side, limit_s: float | None = None) -> None:
        """Wait until everything of a hand-over that has reached its final state is tidied up."""
        task = self._living.get((handover, side))
        if task is not None:
            await asyncio.wait([task], timeout=limit_s)


def _epoch(row: HandoverRow) -> Epoch:
    """Return the source's epoch, as an arrival's row has it."""
    return Epoch(int(str(row.request["epoch"])))


def _known(kind: type[Request], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that this version's request has: an older agent may have written fewer, a newer one more."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {key: value for key, value in values.items() if key in names}


def _claim_of(handover: HandoverId) -> str:
    """Return what holds a guest's operation while it is moved away."""
    return f"hand-over {handover}"
