"""The destination's side of a hand-over: how each order of its table is carried out.

Nothing here decides; every method does one thing and posts what happened. What a repeat does stands in
core/handover/effects.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import structlog

from vmferry.conductor.guest_devices import GuestDevices
from vmferry.conductor.guests import ARRIVING, Guests
from vmferry.conductor.marks import Marks
from vmferry.conductor.postcopy_destination import PostcopyDestination
from vmferry.conductor.rows import Arrival, claim_of
from vmferry.conductor.runner import Order, Runner, background
from vmferry.conductor.strangers import Strangers
from vmferry.core.capabilities import Transport
from vmferry.core.disks import ImageCopy
from vmferry.core.errors import Broken, Refused, TimedOut, VmferryError
from vmferry.core.handover.effects import AnyEffect, DestinationEffect
from vmferry.core.handover.events import DestinationEvent
from vmferry.core.handover.states import DestinationState, Side
from vmferry.core.ids import Epoch, GuestName, HandoverId
from vmferry.core.migratable import MigratableDevice
from vmferry.core.migration import MigrationStatus, RunState
from vmferry.ports.disks import DiskFiles, nodes_of
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, GuestProcess, MigrationSetup
from vmferry.ports.peer import Peer, PeerStatus, ReserveReply, Verdict
from vmferry.ports.stream import StreamConnection, StreamWays, Ticket

_log = structlog.get_logger(__name__)

_E, _T, _Y = DestinationEvent, DestinationState, DestinationEffect

#: States in which nothing is decided yet for whoever waits for the load.
UNDECIDED = frozenset({_T.PREPARING, _T.RECEIVING})
#: States in which a commit is on its way to an answer.
UNDER_WAY = frozenset({_T.LOADED, _T.ACQUIRED, _T.STARTING, _T.GIVING_BACK, _T.POSTCOPY_LOADED, _T.POSTCOPY_STARTING})
#: It could run the guest, and waits for the token.
_HELD = frozenset({_T.LOADED, _T.POSTCOPY_LOADED})
_ASK_SOURCE_EVERY_S = 2.0
#: What the agents connect themselves.
_THROUGH_THE_DOOR = frozenset({Transport.FD, Transport.PIPE})
#: Beside those of multifd: the main one, and post-copy's own.
_OTHER_CHANNELS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Incoming:
    """The stream that is to come."""

    setup: MigrationSetup
    link: Transport = Transport.TCP
    pipeline: str | None = None
    copies: tuple[ImageCopy, ...] = ()
    migratable: tuple[MigratableDevice, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class ArrivalCalls:
    """What an arrival needs of the agent around it.

    Args:
        release: gives the reservation back.
        arrived: called when the guest runs here; must return at once.
        ways: how a stream travels that the agents connect.
        disk_files: this host's images.
        devices: this host's devices, which its guests have.
    """

    release: Callable[[], None]
    arrived: Callable[[], None]
    ways: StreamWays
    disk_files: DiskFiles
    devices: GuestDevices


class Destination:
    """One hand-over at its destination.

    Args:
        arrival: what is held; the guest's row is there already.
        incoming: the stream; None after a restart, when QEMU has it already or is undone.
        guests: this host's guests.
        peer: the source's agent.
        runner: lives the machine.
        marks: when what happened.
        calls: the agent around.
    """

    def __init__(
        self,
        arrival: Arrival,
        incoming: Incoming | None,
        guests: Guests,
        peer: Peer,
        runner: Runner,
        marks: Marks,
        calls: ArrivalCalls,
    ) -> None:
        self.arrival = arrival
        self.claim = claim_of(arrival.handover, Side.DESTINATION)  #: what the guest is busy with
        self.runner = runner
        self.marks = marks
        self.error: str | None = None
        self.last_run_state: RunState | None = None
        self.last_status: MigrationStatus | None = None
        self._seen: RunState | None = None  #: with the intent; good for one `cont`
        self.source_is_gone = False  #: for good: what came of its disks may be all that is left of them
        self._making: asyncio.Future[None] | None = None  #: images; a thread cannot be stopped
        self._has_leases = False  #: of its disks, taken by this agent
        self._ran = False  #: `cont` was answered: nothing that fails after it is a refusal
        self._incoming = incoming
        self._strangers = Strangers(arrival.guest)
        self._ticket: Ticket | None = None  #: for the source's agent, where it connects instead of its QEMU
        self._guests = guests
        self._peer = peer
        self._calls = calls
        listens = (arrival.reply.address, arrival.reply.port)
        self.postcopy = PostcopyDestination(self.name, lambda: guests.process(self.name), runner, listens)
        runner.obey(self._orders())

    def _orders(self) -> dict[AnyEffect, Order]:
        return {
            _Y.PREPARE: background(self._prepare, _T.PREPARING, failed=_E.PREPARATION_FAILED),
            _Y.WATCH: background(self._watch, _T.RECEIVING, _T.LOADED, _T.POSTCOPY_LOADED),
            _Y.RECORD_INTENT: background(self._record_intent, _T.ACQUIRED),
            _Y.START: background(self._start, _T.STARTING, _T.POSTCOPY_STARTING),
            _Y.AWAIT_PAGES: background(self.postcopy.await_pages, _T.POSTCOPY_STARTING, _T.POSTCOPY_RUNNING),
            _Y.ANNOUNCE: background(self._announce, _T.RUNNING),
            _Y.GIVE_DEVICES: Order(self._give_devices),
            _Y.CLEAN_UP: background(self._clean_up, _T.DISCARDING, _T.GIVING_BACK),
            _Y.NOTE_CRASH: background(self._note_crash, _T.LOST),
        }

    @property
    def name(self) -> GuestName:
        """Return the guest's name."""
        return self.arrival.guest

    @property
    def state(self) -> DestinationState:
        """Return where the machine stands."""
        state = self.runner.machine.state
        if not isinstance(state, DestinationState):
            raise Broken(f"Hand-over {self.arrival.handover} has a machine of the wrong side: {state}")
        return state

    def reply(self) -> ReserveReply:
        """Return where the stream goes."""
        return dataclasses.replace(self.arrival.reply, ticket=self._ticket)

    def status(self) -> PeerStatus:
        """Return how the arrival stands, for the source."""
        alive = self._guests.process(self.name) is not None
        why = self.error
        if self.state in (_T.DISCARDING, _T.DISCARDED):
            why = why or self.runner.why
        status = self.postcopy.last_status or self.last_status
        return PeerStatus(str(self.state), alive, self.last_run_state, status, why)

    async def wait_decided(self, limit_s: float) -> PeerStatus:
        """Wait until the arrival is loaded or gone, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.runner.wait_left(UNDECIDED)
        return self.status()

    async def commit(self, epoch: Epoch, limit_s: float, *, running: bool) -> DestinationState:
        """Take the token and return where that led: RUNNING, RETURNED or LOST, or a state on the way there.

        Raises:
            Refused: the epoch is not the one that follows the reservation's; nothing moved.
        """
        expected = self.arrival.epoch + 1
        if epoch != expected:
            raise Refused(
                f"Commit of hand-over {self.arrival.handover} names epoch {epoch}, expected {expected}",
                side="destination",
            )
        self.marks.mark("commit_received")
        row = self._guests.journal.guest(self.name)
        if row is not None and self.state in _HELD and row.token.running is not running:
            self._guests.put(row, token=dataclasses.replace(row.token, running=running))
        self.runner.post(_E.COMMIT_RECEIVED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.runner.wait_left(UNDER_WAY | UNDECIDED | {_T.DISCARDING})
        return self.state

    def discard(self, why: str) -> None:
        """Have the arrival undone; has no effect once the token is here."""
        self.runner.post(_E.DISCARD_RECEIVED, why)

    # -- orders ---------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        row = self._guests.journal.guest(self.name)
        if row is None or self._incoming is None:
            raise Broken(f"Arrival of guest {self.name} is not in the journal")
        await self._calls.devices.reserve(self.name)
        await self._make_images(self._incoming.copies)
        await self._guests.launch(row, incoming=True)
        process = self._process()
        await self._calls.devices.plug_before_load(row, process, self._incoming.migratable)
        await process.prepare_migration(self._incoming.setup, incoming=True)
        await self._serve_images(process, self._incoming)
        if self._incoming.link in _THROUGH_THE_DOOR:
            self._ticket = self._calls.ways.door.expect(self.arrival.handover, self._take_stream)
        elif self._incoming.link is Transport.UNIX:
            await process.listen_locally()
            most = int(self._incoming.setup.parameters.get("multifd-channels", 0)) + _OTHER_CHANNELS
            self._ticket = self._calls.ways.door.expect(self.arrival.handover, self._take_stream, most)
        else:
            await process.listen(self.arrival.reply.address, self.arrival.reply.port, self._incoming.link)
        self.runner.post(_E.QEMU_LISTENS)

    async def _make_images(self, copies: Sequence[ImageCopy]) -> None:
        if copies:
            making = asyncio.to_thread(self._calls.disk_files.make, self.arrival.handover, copies)
            self._making = asyncio.ensure_future(making)
            await asyncio.shield(self._making)

    async def _serve_images(self, process: GuestProcess, incoming: Incoming) -> None:
        reply, nodes = self.arrival.reply, nodes_of([one.image for one in incoming.copies])
        if nodes and reply.disk_port is not None:
            encrypted = incoming.setup.encrypted
            await process.mirrors.serve(nodes, reply.address, reply.disk_port, encrypted=encrypted)

    async def _with_images(self, what: Callable[[HandoverId, Sequence[str]], None]) -> None:
        if self.arrival.copies:
            await asyncio.to_thread(what, self.arrival.handover, self.arrival.copies)

    async def _take_stream(self, connection: StreamConnection) -> None:
        """Hand the source's connection to QEMU."""
        if self.state is not _T.RECEIVING:
            raise Refused(f"hand-over {self.arrival.handover} is {self.state}", side="destination")
        process, handover, ways = self._process(), self.arrival.handover, self._calls.ways
        row = self._guests.journal.guest(self.name)
        uid = None if row is None else row.uid
        incoming = self._incoming
        if incoming is not None and incoming.link is Transport.UNIX:
            await ways.relays.into(process.local_socket, connection, uid, handover)
        elif incoming is None or incoming.pipeline is None:
            await process.take_stream(connection)
        else:
            with contextlib.closing(await ways.pipelines.receive(incoming.pipeline, connection, uid, handover)) as end:
                await process.take_stream(end)

    async def _watch(self) -> None:
        """Watch QEMU until it has loaded or is gone, and the source while nothing is heard of it."""
        process = self._guests.process(self.name)
        if process is None:
            self._died(None)
            return
        asking = asyncio.create_task(self._ask_source(process), name=f"verdict:{self.name}")
        try:
            events = process.events()
            await self._look(process)
            async for event in events:
                await self._saw(process, event)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await self._strangers.look(process, last=True)

    async def _look(self, process: GuestProcess) -> None:
        """Ask once what events may have told while nobody listened."""
        sample = await process.query_migration()
        await self._saw_status(process, sample.status, sample.error)
        if process.has_lost_tpm:
            self._lost_tpm()

    async def _saw(self, process: GuestProcess, event: GuestEvent) -> None:
        if event.kind is GuestEventKind.EXITED:
            self._died(event.detail)
        elif event.kind is GuestEventKind.TPM_ENDED:
            self._lost_tpm()
        elif event.kind is GuestEventKind.MIGRATION and event.status is not None:
            error = None
            if event.status is MigrationStatus.FAILED:
                with contextlib.suppress(VmferryError):
                    error = (await process.query_migration()).error
            await self._saw_status(process, event.status, error)

    async def _saw_status(self, process: GuestProcess, status: MigrationStatus, error: str | None) -> None:
        self.last_status = status
        if await self.postcopy.saw(process, status):
            return
        if status is MigrationStatus.FAILED:
            self.error = error or "QEMU at the destination could not load the stream"
            self.runner.post(_E.STREAM_FAILED, self.error, only_in=_T.RECEIVING)
        elif status is MigrationStatus.COMPLETED and self.state is _T.RECEIVING:
            self.last_run_state = await process.query_run_state()
            if self.last_run_state is RunState.PAUSED:
                self.marks.mark("loaded")
                self.runner.post(_E.STREAM_LOADED, only_in=_T.RECEIVING)
            else:
                self.error = f"QEMU at the destination loaded the guest but is {self.last_run_state}, not paused"
                self.runner.post(_E.STREAM_FAILED, self.error, only_in=_T.RECEIVING)

    def _died(self, detail: str | None) -> None:
        self.error = f"QEMU of guest {self.name} at the destination died" + (f": {detail}" if detail else "")
        self.runner.post(_E.QEMU_DIED, self.error)

    def _lost_tpm(self) -> None:
        """Give up while that costs the guest nothing: the state of its TPM would find no place here."""
        self.error = f"what emulates the TPM of guest {self.name} at the destination has ended"
        self.runner.post(_E.STREAM_FAILED, self.error, only_in=_T.RECEIVING)

    async def _ask_source(self, process: GuestProcess) -> None:
        """Ask the source what became of the hand-over: its orders may have been lost on the way."""
        while True:
            await asyncio.sleep(_ASK_SOURCE_EVERY_S)
            await self._strangers.look(process)
            try:
                verdict = await self._peer.verdict(self.arrival.handover)
            except VmferryError:
                continue  # nobody answers: held until somebody does
            if verdict in (Verdict.ABORTED, Verdict.UNKNOWN):
                self.source_is_gone = verdict is Verdict.UNKNOWN
                self.discard(f"the source says that the hand-over is {verdict}")
                return

    async def _record_intent(self) -> None:
        """Have QEMU itself say that it lives: found dead now it never ran, found dead after the intent it may have.

        A process that was killed exists until its memory is freed, seconds for a large guest, but answers nothing; one
        that does not answer is asked again until it does or is proven dead.
        """
        self.marks.mark("acquired")
        process = self._guests.process(self.name)
        if process is None:
            self._died(None)
            return
        self._seen = await process.query_run_state()
        try:
            await self._guests.leases.take_patiently(self.name)
        except VmferryError as error:
            self.error = str(error)
            self.runner.post(_E.START_REFUSED, self.error, only_in=_T.ACQUIRED)
            return
        self._has_leases = True
        self.runner.post(_E.INTENT_RECORDED)

    async def _start(self) -> None:
        self.marks.mark("intent")
        process = self._guests.process(self.name)
        if process is None:
            self._died(None)
            return
        try:
            if self.arrival.copies:
                await process.mirrors.stop_serving()  # nobody else writes them while the guest runs
            if not self._has_leases:
                await self._guests.leases.take(self.name)
            await self._let_run(process)
        except VmferryError as error:
            await self._start_failed(process, error)
            return
        await self._guests.flush_tpm(self.name)  # the guest runs; the source removes its own when it hears so
        self.runner.post(_E.GUEST_STARTED)

    async def _let_run(self, process: GuestProcess) -> None:
        """Start the vCPUs; a repeat has `cont` ask for the run state, so that it never disturbs a guest that runs."""
        if not self._guests.row(self.name).token.running:
            return
        seen, self._seen = self._seen, None
        self.marks.mark("resumed", await process.cont(seen=seen))
        self._ran = True
        self.last_run_state = RunState.RUNNING
        if not self._guests.row(self.name).token.running:
            await process.stop()  # an operator paused it a moment ago

    async def _start_failed(self, process: GuestProcess, error: VmferryError) -> None:
        """Tell a refusal, after which the guest provably never ran, from a death, a silence, and a guest that runs."""
        if not process.is_alive():
            self._died(str(error))
            return
        state = await process.query_run_state()  # a failure begins all of it again
        if state is RunState.PAUSED and not self._ran:
            self.error = str(error)
            if self.state is _T.POSTCOPY_STARTING or isinstance(error, TimedOut):
                raise error  # nobody can take it back: begun again until it works, or every page is here
            self.runner.post(_E.START_REFUSED, self.error, only_in=_T.STARTING)
        else:
            self.runner.post(_E.GUEST_STARTED)

    async def _announce(self) -> None:
        # first, and without a pause: whoever hears that the guest runs here may move it on at once
        self._guests.unclaim(self.name, self.claim)
        self._calls.release()
        self._calls.ways.finish(self.arrival.handover)
        row = self._guests.journal.guest(self.name)
        if row is not None and row.note == ARRIVING:
            self._guests.put(row, note=self._guests.note_of_tpm(self.name))
        await self._with_images(self._calls.disk_files.keep)
        process = self._guests.process(self.name)
        if process is None:
            return
        with contextlib.suppress(VmferryError):
            if await process.query_run_state() is RunState.RUNNING:
                await self._tell_network(process)
                self._calls.arrived()
        await process.cleanup_migration()

    async def _give_devices(self) -> None:
        self._calls.devices.settle_later(self.name)

    async def announce_again(self) -> None:
        """Tell the network once more where the guest is, if it runs."""
        process = self._guests.process(self.name)
        if process is not None and await process.query_run_state() is RunState.RUNNING:
            await self._tell_network(process)

    async def _tell_network(self, process: GuestProcess) -> None:
        """Tell where the guest is, but not by the standbys of functions that it has."""
        row = self._guests.journal.guest(self.name)
        if row is None or self._incoming is None or not self._incoming.migratable:
            await process.announce()
            return
        go_along = {one.wanted for one in self._incoming.migratable}
        cards = [f"nic{index}" for index, nic in enumerate(row.guest.spec.nics) if not nic.is_function or nic.bridge]
        if told := [card for card in cards if card not in go_along]:
            await process.announce(told)

    async def _clean_up(self) -> None:
        self._calls.ways.end(self.arrival.handover)
        await self._guests.kill(self.name)
        await self.runner.wait_undone()  # a QEMU that was just being started is ended there
        if self._making is not None:
            await asyncio.wait({self._making})
        files = self._calls.disk_files
        if self.source_is_gone and self.arrival.copies:
            _log.warning("copies of a source that is gone are kept", guest=self.name, of=self.arrival.copies)
        await self._with_images(files.leave if self.source_is_gone else files.drop)
        self._calls.release()
        self.runner.post(_E.CLEANED_UP)

    async def _note_crash(self) -> None:
        self._calls.ways.end(self.arrival.handover)
        await self._guests.kill(self.name)
        await self._with_images(self._calls.disk_files.keep)  # the guest's newest, whatever became of its memory
        self._calls.release()
        self._guests.note_crash(
            self.name, self.postcopy.error or self.error or "its QEMU died when it was to start here"
        )

    def _process(self) -> GuestProcess:
        process = self._guests.process(self.name)
        if process is None:
            raise Broken(f"QEMU of guest {self.name} at the destination is gone", side="destination")
        return process
