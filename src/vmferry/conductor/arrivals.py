"""Every hand-over of which this host is the destination: reserved, answered for, found again after a restart."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from vmferry.conductor.around import Surroundings
from vmferry.conductor.destination import ArrivalCalls, Destination, Incoming
from vmferry.conductor.guests import Guests
from vmferry.conductor.lives import Lives
from vmferry.conductor.marks import Marks
from vmferry.conductor.recorder import JournalRecorder, Parties
from vmferry.conductor.rows import Arrival, arrival_of, arrival_row, claim_of, replayed, row_of
from vmferry.conductor.runner import Runner, write_last
from vmferry.core.checks import memory_needed
from vmferry.core.disks import why_not_copies
from vmferry.core.errors import Refused
from vmferry.core.handover.events import DestinationEvent, Happened
from vmferry.core.handover.machine import Machine
from vmferry.core.handover.replay import to_json
from vmferry.core.handover.states import DestinationState, Side
from vmferry.core.handover.table import OPENING
from vmferry.core.ids import Epoch, GuestName, HandoverId
from vmferry.core.migratable import plugging_s
from vmferry.ports.peer import CommitReply, PeerStatus, RejoinReply, ReserveReply, ReserveRequest
from vmferry.ports.store import HandoverRow, Reservation

_ARRIVAL_OVER_S = 5.0


class Arrivals:
    """Receives guests, and answers their sources.

    Args:
        guests: this host's guests, with the journal.
        around: the agent around.
        lives: drives them.
    """

    def __init__(self, guests: Guests, around: Surroundings, lives: Lives) -> None:
        self._guests = guests
        self._journal = guests.journal
        self._around = around
        self._lives = lives
        self._destinations: dict[HandoverId, Destination] = {}

    def every(self) -> Collection[Destination]:
        """Return those that live in this agent's memory."""
        return self._destinations.values()

    # -- asked by the source --------------------------------------------------------------------------------------

    async def reserve(self, request: ReserveRequest) -> ReserveReply:
        """Hold everything for an arrival and have its QEMU listen. The same hand-over again: the same answer.

        Raises:
            Refused: memory, port or name is gone, or QEMU could not be prepared; nothing is left.
        """
        known = self._destinations.get(request.handover)
        if known is None:
            known = self._hold_place(request)
            self._lives.begin(request.handover, Side.DESTINATION, self._live(known, new=True))
        await known.runner.wait_left(frozenset({DestinationState.PREPARING, DestinationState.DISCARDING}))
        if known.state is DestinationState.DISCARDED:
            await self._lives.wait_ended(request.handover, Side.DESTINATION)
            raise Refused(
                f"Host {self._guests.settings.name} could not prepare for guest {known.name}:"
                f" {known.error or known.runner.why or 'discarded'}",
                side="destination",
            )
        return known.reply()

    def _hold_place(self, request: ReserveRequest) -> Destination:
        name = request.guest.spec.name
        claim = claim_of(request.handover, Side.DESTINATION)
        self._guests.claim(name, claim)
        try:
            self._guests.check_free(name)
            reply = self._reply(request)
            reservation = Reservation(request.handover, name, memory_needed(request.guest), reply.port)
            self._journal.reserve(reservation, self._around.free_memory())
            try:
                self._journal.open_handover(arrival_row(request, reply))
                self._guests.arrival(request.guest, request.epoch, request.source, running=request.running)
            except BaseException:
                self._journal.release(request.handover)
                raise
        except BaseException:
            self._guests.unclaim(name, claim)
            raise
        paths = tuple(one.image.path for one in request.copies)
        arrival = Arrival(request.handover, name, request.source, request.epoch, reply, paths)
        incoming = Incoming(request.setup, request.link, request.pipeline, request.copies, request.migratable)
        destination = self._destination(arrival, incoming, Machine(Side.DESTINATION))
        longer_s = plugging_s(request.migratable, request.guest.spec.memory_bytes)
        destination.runner.allow(DestinationState.PREPARING, 1000 * longer_s)
        return destination

    def _reply(self, request: ReserveRequest) -> ReserveReply:
        """Return where the stream goes, and the images that are copied."""
        if why := why_not_copies(request.copies, request.guest.spec):
            raise Refused(f"Arrival of guest {request.guest.spec.name} is refused: {why}", side="destination")
        taken = {reservation.port for reservation in self._journal.reservations()}
        others = [one for one in self._destinations.values() if not one.runner.machine.facts.final]
        taken |= {port for one in others if (port := one.arrival.reply.disk_port) is not None}
        port = self._free_port(taken)
        disk_port = self._free_port(taken | {port}) if request.copies else None
        return ReserveReply(self._around.listen_address, port, disk_port=disk_port)

    def _free_port(self, taken: Collection[int]) -> int:
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
            await self._lives.wait_ended(handover, Side.DESTINATION)
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
        row = self._row(handover)
        guest = self._journal.guest(row.guest)
        epoch = arrival_of(row).epoch if guest is None else guest.token.epoch
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
            state = self._row(handover).state if known is None else str(known.state)
            return RejoinReply(state, detail=None if known is None else known.postcopy.error or known.error)
        if source_alive:
            return await known.postcopy.rejoin()
        known.error = "the source's QEMU died in post-copy, with pages that had not been sent"
        known.postcopy.source_is_gone(known.error)
        return RejoinReply(str(known.state))

    async def announce(self, handover: HandoverId) -> None:
        """Announce a guest that runs here to the network; unknown ones, and those that do not run, are no error."""
        known = self._destinations.get(handover)
        if known is not None and known.state is DestinationState.RUNNING:
            await known.announce_again()

    def discard(self, handover: HandoverId) -> None:
        """Have an arrival undone; unknown ones are no error."""
        known = self._destinations.get(handover)
        if known is not None:
            known.discard("the source gave the hand-over up")

    def _past(self, handover: HandoverId) -> PeerStatus:
        """Return what the journal says; an arrival that is about to be taken up again is not dead for that."""
        row = self._journal.handover(handover, str(Side.DESTINATION))
        if row is None:
            return PeerStatus("unknown", qemu_alive=False)
        return PeerStatus(row.state, qemu_alive=not row.finished)

    def _past_state(self, handover: HandoverId) -> DestinationState | None:
        row = self._journal.handover(handover, str(Side.DESTINATION))
        return None if row is None else DestinationState(row.state)

    def _row(self, handover: HandoverId) -> HandoverRow:
        return row_of(self._journal, handover, Side.DESTINATION, self._guests.settings.name)

    # -- asked here -----------------------------------------------------------------------------------------------

    async def wait_over(self, guest: GuestName) -> None:
        """Wait, shortly, for the last orders of an arrival that runs here already: it may move on at once."""
        for destination in list(self._destinations.values()):  # others may come meanwhile
            if destination.name == guest and destination.state is DestinationState.RUNNING:
                await self._lives.wait_ended(destination.arrival.handover, Side.DESTINATION, _ARRIVAL_OVER_S)

    def fenced(self, handover: HandoverId, why: str) -> bool:
        """End every wait for a source that is off; return whether the arrival is known here by now."""
        known = self._destinations.get(handover)
        if known is not None:
            known.error, known.source_is_gone = why, True
            known.runner.post(DestinationEvent.SOURCE_FENCED, why)
            known.postcopy.source_is_gone(why)
        return known is not None

    async def take_up(self, row: HandoverRow, fenced: str | None) -> None:
        """Live on where the journal left it; a guest without a row (a crash) is undone.

        Args:
            row: where the journal left it.
            fenced: a person's word that the source is off, said meanwhile.
        """
        known = self._destination(arrival_of(row), None, replayed(self._journal, row))
        if fenced is not None:
            self.fenced(row.id, fenced)
        await self._live(known, new=False)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _destination(self, arrival: Arrival, incoming: Incoming | None, machine: Machine) -> Destination:
        marks = Marks(time.monotonic_ns)
        marks.mark("start")
        parties = Parties(arrival.handover, arrival.guest, arrival.source, self._guests.settings.name)
        recorder = JournalRecorder(Side.DESTINATION, parties, self._journal, None, marks.since_start_ms)
        destination = Destination(
            arrival,
            incoming,
            self._guests,
            self._around.peer(arrival.source),
            Runner(machine, recorder, self._around.hold),
            marks,
            ArrivalCalls(
                lambda: self._journal.release(arrival.handover),
                lambda: self._around.throttle.arrived(arrival.guest, arrival.handover),
                self._around.ways,
                self._around.disk_files,
                self._around.devices,
            ),
        )
        self._destinations[arrival.handover] = destination
        return destination

    async def _live(self, destination: Destination, *, new: bool) -> None:
        handover = destination.arrival.handover
        opening = OPENING[Side.DESTINATION].effects if new else ()
        try:
            state = await destination.runner.run(opening, () if new else self._found(destination))
            if state in (DestinationState.DISCARDED, DestinationState.RETURNED):
                await write_last(lambda: self._journal.release(handover))
                await write_last(lambda: self._guests.forget(destination.name))
            await write_last(lambda: self._journal.finish(handover, str(Side.DESTINATION)))
        finally:
            self._guests.unclaim(destination.name, destination.claim)

    def _found(self, destination: Destination) -> Sequence[Happened]:
        """Return what a restarted agent begins an arrival with; whether QEMU lives is certain by now."""
        found = [Happened(DestinationEvent.AGENT_RESTARTED, "the destination's agent was restarted")]
        if self._guests.process(destination.name) is None:
            destination.error = f"QEMU of guest {destination.name} at the destination is gone"
            found.insert(0, Happened(DestinationEvent.QEMU_DIED, destination.error))
        return found
