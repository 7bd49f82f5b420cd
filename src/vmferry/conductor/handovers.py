"""Every hand-over of this host, on either side: opened, reserved, found again after a restart.

The journal is the memory; objects here exist only while a hand-over is unfinished, or until the agent restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from vmferry.conductor.destination import Destination
from vmferry.conductor.feed import Feed
from vmferry.conductor.guests import Guests
from vmferry.conductor.marks import Marks
from vmferry.conductor.recorder import JournalRecorder, Parties, keep
from vmferry.conductor.runner import Runner, no_hold
from vmferry.conductor.source import Calls, Request, Source
from vmferry.core.checks import memory_needed
from vmferry.core.errors import Blocker, NotFound, Refused
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.effects import DestinationEffect, SourceEffect
from vmferry.core.handover.events import DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.machine import Machine
from vmferry.core.handover.replay import replay
from vmferry.core.handover.states import FACTS, AnyState, DestinationState, Side, SourceState
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.progress import Guarantee, StateEntered
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import MigrationSetup
from vmferry.ports.peer import CommitReply, Peer, PeerStatus, ReserveReply, ReserveRequest, Verdict
from vmferry.ports.store import HandoverRow, Reservation

_log = structlog.get_logger(__name__)

#: What both QEMUs need on; each was there long before 7.2 (facts: return-path 2.10, pause-before-switchover 2.11,
#: late-block-activate 3.0).
CAPABILITIES = {"events": True, "return-path": True, "pause-before-switchover": True, "late-block-activate": True}
#: `max-bandwidth` when the link does not say how fast it is: QEMU's own default of 128 MiB/s would be a silent cap.
UNLIMITED = BytesPerSecond(16 * 1024**3)
#: A third of QEMU's own default: loading, the commit and the first packets come on top of it, and the guest's whole pause
#: should stay under 150 ms.
DEFAULT_DOWNTIME = Milliseconds(100.0)
_KEY_BYTES = 32


def _measure_nothing(source: Source) -> None:
    """Do nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What hand-overs need of the agent around them.

    Args:
        peer: another host's agent, by name.
        check: every blocker for a guest and a destination, and what is promised.
        opened: begins to measure a hand-over that this agent opened; must return at once.
        passed: as `opened`, when the checks have passed.
        leaving: takes what is measured at the source before the guest is forgotten there.
        report: measures a source's hand-over, journals the report and publishes the end.
        link_bandwidth: what the link to an address gives; None when it does not say.
        free_memory: what this host has now, reservations not subtracted.
        listen_address: where this host's QEMUs listen for streams.
        ports: from which of them.
        hold: fault injection in the lab.
    """

    peer: Callable[[HostName], Peer]
    check: Callable[[GuestName, HostName, HandoverId], Awaitable[tuple[tuple[Blocker, ...], Guarantee | None]]]
    leaving: Callable[[Source], None]
    report: Callable[[Source], Awaitable[None]]
    link_bandwidth: Callable[[HostName], BytesPerSecond | None]
    free_memory: Callable[[], Bytes]
    listen_address: str
    ports: range
    port_is_free: Callable[[str, int], bool]
    default_downtime_ms: Milliseconds = DEFAULT_DOWNTIME
    hold: Callable[[AnyState], Awaitable[None]] = no_hold
    opened: Callable[[Source], None] = _measure_nothing
    passed: Callable[[Source], None] = _measure_nothing


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
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the source's side ----------------------------------------------------------------------------------------

    def open(
        self,
        guest: GuestName,
        destination: HostName,
        *,
        downtime_limit_ms: Milliseconds | None,
        bandwidth: BytesPerSecond | None,
        time_limit_s: float | None,
        encrypted: bool,
    ) -> HandoverId:
        """Open a hand-over and let it live; returns at once.

        Raises:
            NotFound: no such guest here.
            GuestBusy: something else holds the guest.
        """
        self._guests.row(guest)
        request = Request(
            handover=HandoverId(secrets.token_hex(8)),
            guest=guest,
            destination=destination,
            downtime_limit_ms=downtime_limit_ms or self._around.default_downtime_ms,
            bandwidth=bandwidth,
            time_limit_s=time_limit_s,
            encrypted=encrypted,
        )
        self._guests.claim(guest, f"hand-over {request.handover}")
        try:
            self._journal.open_handover(self._row(request))
        except BaseException:
            self._guests.unclaim(guest)
            raise
        source = self._source(request, Machine(Side.SOURCE))
        self._spawn(self._live_source(source, SourceEffect.CHECK))
        self._around.opened(source)
        return request.handover

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

        def tell(event: StateEntered) -> None:
            self._spawn(feed.publish(event))

        recorder = JournalRecorder(Side.SOURCE, parties, self._journal, tell, marks.since_start_ms)
        runner = Runner(machine, recorder, self._around.hold)
        source = Source(
            request,
            self._guests,
            self._around.peer(request.destination),
            runner,
            feed,
            marks,
            Calls(
                lambda: self._around.check(request.guest, request.destination, request.handover),
                lambda: self._setup(request),
                self._around.leaving,
                self._around.report,
                self._around.passed,
            ),
        )
        source.timeline_ms = recorder.timeline_ms
        self._sources[request.handover] = source
        first = StateEntered(
            Milliseconds(0.0), str(machine.state), machine.facts.step, parties.owner(machine.state), None
        )
        tell(first)
        return source

    def _setup(self, request: Request) -> MigrationSetup:
        bandwidth = request.bandwidth or self._around.link_bandwidth(request.destination) or UNLIMITED
        return MigrationSetup(
            capabilities=dict(CAPABILITIES),
            max_bandwidth=bandwidth,
            downtime_limit_ms=request.downtime_limit_ms,
            psk_key=secrets.token_hex(_KEY_BYTES) if request.encrypted else None,
        )

    async def _live_source(self, source: Source, first: SourceEffect | None) -> None:
        beside = [asyncio.create_task(source.watch(), name=f"watch:{source.request.handover}")]
        beside.append(asyncio.create_task(source.watch_time(), name=f"time:{source.request.handover}"))
        try:
            await source.runner.run(first)
        finally:
            for task in beside:
                task.cancel()
            self._guests.unclaim(source.name)

    # -- the destination's side -----------------------------------------------------------------------------------

    async def reserve(self, request: ReserveRequest) -> ReserveReply:
        """Hold everything for an arrival and have its QEMU listen. The same hand-over again: the same answer.

        Raises:
            Refused: memory, port or name is gone, or QEMU could not be prepared; nothing is left.
        """
        known = self._destinations.get(request.handover)
        if known is None:
            known = self._hold_place(request)
            self._spawn(self._live_destination(known, DestinationEffect.PREPARE))
        await known.runner.wait_left(frozenset({DestinationState.PREPARING, DestinationState.DISCARDING}))
        if known.state is DestinationState.DISCARDED:
            raise Refused(
                f"Host {self._guests.settings.name} could not prepare for guest {known.name}:"
                f" {known.error or known.runner.failure or 'discarded'}",
                side="destination",
            )
        return known.reply

    def _hold_place(self, request: ReserveRequest) -> Destination:
        name = request.guest.spec.name
        self._guests.claim(name, f"arrival {request.handover}")
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
            self._guests.unclaim(name)
            raise
        return self._destination(request, reply, Machine(Side.DESTINATION))

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

    def _destination(self, request: ReserveRequest, reply: ReserveReply, machine: Machine) -> Destination:
        marks = Marks(time.monotonic_ns)
        marks.mark("start")
        parties = Parties(request.handover, request.guest.spec.name, request.source, self._guests.settings.name)
        recorder = JournalRecorder(Side.DESTINATION, parties, self._journal, None, marks.since_start_ms)
        destination = Destination(
            request,
            reply,
            self._guests,
            self._around.peer(request.source),
            Runner(machine, recorder, self._around.hold),
            marks,
            lambda: self._journal.release(request.handover),
        )
        self._destinations[request.handover] = destination
        return destination

    async def _live_destination(self, destination: Destination, first: DestinationEffect | None) -> None:
        try:
            state = await destination.runner.run(first)
            if state in (DestinationState.DISCARDED, DestinationState.RETURNED):
                await self._guests.forget(destination.name)
        finally:
            self._guests.unclaim(destination.name)

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
        elif self._past_state(handover) is DestinationState.DISCARDED:
            await self._return_late(handover)
        return self._commit_reply(handover)

    async def _return_late(self, handover: HandoverId) -> None:
        """Journal the return of a token that reached an arrival which was gone already."""
        row = self._handover_row(handover, Side.DESTINATION)
        parties = Parties(handover, row.guest, row.peer, self._guests.settings.name)
        marks = Marks(time.monotonic_ns)
        recorder = JournalRecorder(Side.DESTINATION, parties, self._journal, None, marks.since_start_ms)
        runner = Runner(Machine(Side.DESTINATION, DestinationState.DISCARDED), recorder)
        await runner.handle_late(Happened(DestinationEvent.COMMIT_RECEIVED))
        self._destinations.pop(handover, None)

    def _commit_reply(self, handover: HandoverId) -> CommitReply:
        row = self._handover_row(handover, Side.DESTINATION)
        known = self._destinations.get(handover)
        guest = self._journal.guest(row.guest)
        epoch = guest.token.epoch if guest is not None else row.request.get("epoch", 0)
        state = str(known.state) if known is not None else row.state
        marks = known.marks if known is not None else Marks(time.monotonic_ns)
        return CommitReply(
            state=state,
            epoch=epoch,  # type: ignore[arg-type]
            resumed_at_ns=marks.at("resumed"),
            detail=known.error if known is not None else None,
        )

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
        """
        self._handover_row(handover, Side.SOURCE)
        source = self._sources.get(handover)
        if source is not None:
            source.cancel()
            await source.runner.wait_left(frozenset(state for state in SourceState if not FACTS[state].final))

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
        return concerned

    def _past(self, handover: HandoverId) -> PeerStatus:
        state = self._past_state(handover)
        return PeerStatus("unknown" if state is None else str(state), qemu_alive=False)

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
            self._guests.claim(row.guest, f"{kind} {row.id}")
            self._spawn(self._recover(row))
        return rows

    async def _recover(self, row: HandoverRow) -> None:
        """Take one up, as soon as it is certain whether its QEMU lives."""
        await self._guests.adopted(row.guest)
        if row.side == str(Side.SOURCE):
            await self._recover_source(row)
        else:
            await self._recover_destination(row)

    def _replayed(self, row: HandoverRow, side: Side) -> Machine:
        events = self._journal.events(row.id, row.side)
        return replay(side, [event.event for event in events])

    async def _recover_source(self, row: HandoverRow) -> None:
        request = Request(**_known(Request, row.request))
        source = self._source(request, self._replayed(row, Side.SOURCE), max(0.0, time.time() - row.created_at))
        source.runner.post(SourceEvent.AGENT_RESTARTED, "the source's agent was restarted")
        await self._live_source(source, None)

    async def _recover_destination(self, row: HandoverRow) -> None:
        guest = self._journal.guest(row.guest)
        request = self._arrival_request(row, None if guest is None else guest.guest)
        reply = ReserveReply(str(row.request["address"]), int(str(row.request["port"])))
        destination = self._destination(request, reply, self._replayed(row, Side.DESTINATION))
        if self._guests.process(row.guest) is None:
            destination.error = f"QEMU of guest {row.guest} at the destination is gone"
            destination.runner.post(DestinationEvent.QEMU_DIED, destination.error)
        destination.runner.post(DestinationEvent.AGENT_RESTARTED, "the destination's agent was restarted")
        await self._live_destination(destination, None)

    def _arrival_request(self, row: HandoverRow, guest: FrozenGuest | None) -> ReserveRequest:
        if guest is None:
            raise NotFound(f"Arrival {row.id} has no guest row in the journal")
        setup = MigrationSetup(dict(CAPABILITIES), None, self._around.default_downtime_ms)
        epoch, running = row.request["epoch"], row.request["running"]
        return ReserveRequest(row.id, guest, epoch, bool(running), row.peer, setup)  # type: ignore[arg-type]

    async def close(self) -> None:
        """Stop driving; everything is journalled and goes on with the next agent."""
        for task in list(self._tasks):
            task.cancel()
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _spawn(self, work: Any) -> None:
        keep(asyncio.create_task(work), self._tasks)


def _known(kind: type[Request], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that this version's request has: an older agent may have written fewer, a newer one more."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {key: value for key, value in values.items() if key in names}
