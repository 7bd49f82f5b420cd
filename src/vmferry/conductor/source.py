"""The source's side of a hand-over: how each order of its table is carried out.

Nothing here decides; every method does one thing and posts what happened. What a repeat does stands in
core/handover/effects.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence

import structlog

from vmferry.conductor.disk_copying import DiskCopying
from vmferry.conductor.feed import Feed
from vmferry.conductor.guests import Guests
from vmferry.conductor.marks import Marks
from vmferry.conductor.postcopy_source import GONE, PostcopySource, Trip
from vmferry.conductor.rows import Request, written
from vmferry.conductor.runner import Order, Runner, background
from vmferry.conductor.sending import send
from vmferry.conductor.source_calls import Calls
from vmferry.conductor.source_qemu import go_on, is_dying, undo_migration, wait_postmigrate, why_ended
from vmferry.conductor.steering import Steering
from vmferry.core.capabilities import StreamWish, Transport
from vmferry.core.convergence.facts import Throttle
from vmferry.core.errors import Blocker, Broken, Refused, TimedOut, Unreachable, VmferryError
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.effects import AnyEffect, SourceEffect
from vmferry.core.handover.events import SourceEvent
from vmferry.core.handover.states import AnyState, DestinationState, Side, SourceState
from vmferry.core.ids import GuestName, HostName
from vmferry.core.migratable import MigratableDevice, plugging_s
from vmferry.core.migration import POSTCOPY, MigrationSample, MigrationStatus, RunState
from vmferry.core.progress import Guarantee, Throttled
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, GuestProcess, MigrationSetup
from vmferry.ports.peer import CommitReply, Peer, PeerStatus, ReserveReply, ReserveRequest
from vmferry.ports.store import Token

_log = structlog.get_logger(__name__)

_E, _S, _X = SourceEvent, SourceState, SourceEffect

#: Why a hand-over was given up when a person asked for it; also tells this in the journal from a time limit.
CANCELLED = "cancelled by an operator"
#: of QEMU's own statuses: those whose time is told
_MARKED = frozenset(
    {MigrationStatus.ACTIVE, MigrationStatus.PRE_SWITCHOVER, MigrationStatus.DEVICE, MigrationStatus.POSTCOPY_ACTIVE}
)
_BEFORE_THE_STREAM = frozenset({_S.CHECKING, _S.RESERVING, _S.COPYING_DISKS, _S.DETACHING, _S.RESERVED})
#: Pages are, or may still be, sent.
_SENDING = frozenset(
    {_S.PRECOPY, _S.POSTCOPY_ORDERED, _S.POSTCOPY_CROSSING, _S.POSTCOPY_COMMITTED, _S.POSTCOPY_RUNNING}
    | {_S.POSTCOPY_PAUSED}
)
_ASK_AGAIN_S = 0.2
_QUICK_S = 0.02
_LONGEST_PAUSE_S = 2.0
_WAIT_LOADED_MS = Milliseconds(10_000)
_DISCARD_LIMIT_S = 3.0


class Source:
    """One hand-over at its source.

    Args:
        request: what was asked for.
        guests: this host's guests.
        peer: the destination's agent.
        runner: lives the machine.
        feed: what watchers see.
        marks: when what happened.
        calls: the agent around.
        steering: decides when it switches over.
    """

    def __init__(
        self,
        request: Request,
        guests: Guests,
        peer: Peer,
        runner: Runner,
        feed: Feed,
        marks: Marks,
        calls: Calls,
        steering: Steering,
    ) -> None:
        self.request = request
        self.peer = peer
        self.runner = runner
        self.feed = feed
        self.marks = marks
        self.blockers: tuple[Blocker, ...] = ()
        self.guarantee: Guarantee | None = None
        self.commit_reply: CommitReply | None = None
        self.setup: MigrationSetup | None = None
        self.timeline_ms: dict[str, float] = {}
        self.throttled: Throttled | None = None
        self.compression_why: str | None = None  #: of one that was left to us
        self._among = 1  #: streams that share the link
        self.cancelled = False
        #: beats at the source, taken before its receiver goes: of the time before the hand-over, and since
        self.beats_before: Sequence[int] = ()
        self.beats_here: Sequence[int] = ()
        row = guests.journal.guest(request.guest)
        self.guest: FrozenGuest | None = None if row is None else row.guest  #: None: tidied up by an earlier agent
        self._guests = guests
        self._calls = calls
        self._way: ReserveReply | None = None
        self.steering = steering
        self._is_postmigrate = False
        self._preparing: asyncio.Task[None] | None = None
        self._why_ended: str | None = None  #: it was we who ended the source's QEMU
        self.disks = DiskCopying(self.guest, lambda: self.request.copies, self._process, feed, marks)
        trip = Trip(
            request.handover,
            self.name,
            lambda: guests.process(self.name),
            peer,
            runner,
            marks,
            steering.read,
            steering.following,
            self.disks.end,
            self._why_no_channel,
        )
        self._postcopy = PostcopySource(trip)
        steering.helm.begin_postcopy = self._begin_postcopy
        runner.obey(self._orders())

    def _orders(self) -> dict[AnyEffect, Order]:
        waits = (_S.PRE_SWITCHOVER, _S.SWITCHOVER, _S.SOURCE_COMPLETED, _S.ORPHANED)
        return {
            _X.CHECK: background(self._check, _S.CHECKING, failed=_E.CHECK_FAILED),
            _X.RESERVE: background(self._reserve, _S.RESERVING, failed=_E.DESTINATION_REFUSED),
            _X.COPY_DISKS: background(self._copy_disks, _S.COPYING_DISKS, failed=_E.STREAM_FAILED),
            _X.DETACH_DEVICES: background(self._detach_devices, _S.DETACHING, failed=_E.STREAM_FAILED),
            _X.GIVE_DEVICES: Order(self._give_devices),
            _X.SEND: background(self._send, _S.RESERVED, failed=_E.STREAM_FAILED),
            **self._postcopy.orders(),
            _X.STEER: background(self._steer, _S.PRECOPY, _S.POSTCOPY_ORDERED, failed=_E.STREAM_FAILED),
            _X.CONTINUE: background(self._continue, _S.PRE_SWITCHOVER, failed=_E.STREAM_FAILED),
            _X.AWAIT_DESTINATION: background(self._await_destination, *waits),
            _X.RELEASE: background(self._release, _S.LOADED, _S.ORPHANED),
            _X.TELL_DESTINATION: background(self._tell_destination, _S.COMMITTED, _S.POSTCOPY_COMMITTED),
            _X.END_SOURCE: background(self._end_source, _S.RUNNING, _S.LOST),
            _X.DISCARD: Order(self._discard),
            _X.RESTORE: background(self._restore, _S.ABORTING),
            _X.TAKE_BACK: background(self._take_back, _S.RETURNING),
            _X.NOTE_CRASH: background(self._note_crash, _S.CRASHED),
            _X.REPORT: Order(self._report),
        }

    @property
    def destination(self) -> HostName:
        """Return where the guest goes."""
        return self.request.destination

    @property
    def name(self) -> GuestName:
        """Return the guest's name."""
        return self.request.guest

    @property
    def last_sample(self) -> MigrationSample | None:
        """Return QEMU's last word on the migration that has figures."""
        return self.steering.trail.last_sample

    @property
    def reason(self) -> str | None:
        """Return why the hand-over did not go as asked, as far as it is known."""
        failure = self.runner.failure
        return self.runner.why or (None if failure is None else failure.what)

    @property
    def state(self) -> AnyState:
        """Return where the machine stands."""
        return self.runner.machine.state

    @property
    def token(self) -> Token:
        """Return who owns the guest now, as the journal says."""
        row = self._guests.journal.guest(self.name)
        if row is None:
            raise Broken(f"Guest {self.name} is not in the journal any more")
        return row.token

    def _shall_run(self) -> bool:
        return self.token.running

    def settle(self, stream: StreamWish, why: str) -> None:
        """Take what was decided about the stream, for this agent and for one that comes later."""
        self.compression_why = why
        channels, compression = stream.channels, stream.compression
        self._change(dataclasses.replace(self.request, channels=channels, compression=compression))
        self.steering.settle(stream)

    def take_along(self, nodes: Sequence[str], migratable: Sequence[MigratableDevice]) -> None:
        """Take which images are copied and which devices go along, for this agent and for one that comes later."""
        if nodes or migratable:
            self._change(dataclasses.replace(self.request, copies=tuple(nodes), migratable=tuple(migratable)))
        if self.guest is not None:
            self.runner.allow(_S.RESERVING, 1000 * plugging_s(migratable, self.guest.spec.memory_bytes))

    def _change(self, request: Request) -> None:
        self.request = request
        self._guests.journal.put_request(request.handover, str(Side.SOURCE), written(request))

    def cancel(self) -> None:
        """Ask for the end of the hand-over; has no effect after the commit."""
        self.cancelled = True
        self.runner.post(_E.CANCEL_REQUESTED, CANCELLED)

    def begin_postcopy(self, rule: str) -> None:
        """Order post-copy; without effect when the rounds are over already.

        Args:
            rule: who wants it, in words for people.

        Raises:
            Refused: it was not allowed for this move.
        """
        if not self.request.postcopy:
            raise Refused(
                f"Post-copy of guest {self.name} is not allowed for this move", fix="allow it: migrate --postcopy"
            )
        self._postcopy.order(rule)

    def _why_no_channel(self) -> str | None:
        """Return why this agent makes no further channels: an earlier one had the way, which it told nobody."""
        if self._way is not None or self.request.stream.transport is not Transport.UNIX:
            return None
        return f"post-copy of guest {self.name} needs a channel that a restarted agent cannot make (--link unix)"

    async def _begin_postcopy(self, rule: str) -> None:
        self.begin_postcopy(rule)

    async def wait_sending(self) -> bool:
        """Wait until the stream has begun, or never will; tell whether it has."""
        await self.runner.wait_left(_BEFORE_THE_STREAM)
        return self.state in _SENDING

    async def wait_sent(self) -> None:
        """Wait until nothing more is sent."""
        await self.runner.wait_left(_SENDING)

    async def share(self, among: int) -> None:
        """Take so manieth part of the link from now on, within what was asked for."""
        self._among = among
        await self.steering.limit(self._process(), await self._within_share())

    async def _within_share(self) -> BytesPerSecond | None:
        """Return what the stream may take: what was asked for, and its share of the link; None: nobody knows."""
        link, asked = await asyncio.to_thread(self._calls.link), self.request.bandwidth
        if link is None or self._among == 1:
            return asked or link
        share = BytesPerSecond(link // self._among)
        return share if asked is None else min(asked, share)

    async def limit(self, bandwidth: BytesPerSecond | None) -> None:
        """Change what the stream may take; one that has not begun begins with it.

        Args:
            bandwidth: asked for; None: as much as the link gives.

        Raises:
            Refused: the last page is on its way, or there.
        """
        if not await self.wait_sending():
            raise Refused(
                f"Hand-over {self.request.handover} of guest {self.name} is {self.state}: nothing more is sent"
            )
        self._change(dataclasses.replace(self.request, bandwidth=bandwidth))
        await self.steering.limit(self._process(), await self._within_share())

    async def watch_mirrors(self) -> None:
        """Give the move up when writes of the guest wait for copies that do not come."""
        await self.disks.watch(self.runner)

    async def watch_rounds(self) -> None:
        """Order post-copy after the rounds that were asked for."""
        await self._postcopy.watch_rounds(self.request.postcopy_after_rounds if self.request.postcopy else None)

    # -- what QEMU says -------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Turn the process's events into the machine's, until the process or the hand-over ends."""
        process = self._guests.process(self.name)
        if process is None:
            self.runner.post(_E.SOURCE_QEMU_DIED, f"QEMU of guest {self.name} at the source is gone")
            return
        async for event in process.events():
            await self._saw(process, event)

    async def watch_time(self) -> None:
        """Give pre-copy up when it takes longer than asked for."""
        limit = self.request.time_limit_s
        if limit is None:
            return
        await self.runner.wait_left(_BEFORE_THE_STREAM)
        await asyncio.sleep(limit)
        why = f"pre-copy took longer than its time limit of {limit:g} s"
        self.runner.post(_E.CANCEL_REQUESTED, why, only_in=_S.PRECOPY)
        self.runner.post(_E.CANCEL_REQUESTED, why, only_in=_S.POSTCOPY_ORDERED)

    async def _saw(self, process: GuestProcess, event: GuestEvent) -> None:
        if event.status is MigrationStatus.COMPLETED:
            self.marks.mark("source_completed", event.at_ns)
            await self._saw_completed(process)
        elif event.status in (MigrationStatus.FAILED, MigrationStatus.CANCELLED):
            self.runner.post(_E.STREAM_FAILED, await why_ended(process, event.status))
        elif event.kind is GuestEventKind.MIGRATION and event.status is not None:
            self._saw_status(event.status, event.at_ns)
        elif event.kind is GuestEventKind.ROUND_ENDED:
            self.steering.look_now()
        elif event.kind is GuestEventKind.EXITED:
            how = f": {event.detail}" if event.detail else ""
            why = self._why_ended or f"QEMU of guest {self.name} at the source died{how}"
            self.runner.post(_E.SOURCE_QEMU_DIED, why)
        elif event.kind is GuestEventKind.MIRROR_FAILED:
            self.runner.post(_E.STREAM_FAILED, event.detail)
        elif event.kind is GuestEventKind.UNPLUGGED:
            if (lost := await self._calls.devices.why_not_along(self.name, self.request.go_along)) is not None:
                self.runner.post(_E.STREAM_FAILED, lost)  # the destination waits for its state
        elif event.kind in (GuestEventKind.POWERED_OFF, GuestEventKind.PANICKED):
            self.runner.post(_E.GUEST_ENDED, f"guest {self.name} {event.kind} at the source during the hand-over")

    def _saw_status(self, status: MigrationStatus, at_ns: int) -> None:
        if status in _MARKED:
            self.marks.mark(str(status).replace("-", "_"), at_ns)
        if status in {MigrationStatus.ACTIVE, MigrationStatus.PRE_SWITCHOVER}:
            self.runner.post(_E.PRECOPY_BEGAN, only_in=_S.RESERVED)
        if status is MigrationStatus.PRE_SWITCHOVER:
            self.runner.post(_E.SOURCE_PAUSED)

    async def _saw_completed(self, process: GuestProcess) -> None:
        """Tell of `completed` once the run state is `postmigrate` too; asked while the destination still loads."""
        try:
            await self._see_postmigrate(process)
        except VmferryError as error:
            _log.warning("source completed, and then", guest=self.name, error=str(error))
            return  # the state's deadline ends it, or the death that is told next
        self.runner.post(_E.SOURCE_COMPLETED)

    # -- orders ---------------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        self.blockers, self.guarantee = await self._calls.check()
        if self.blockers:
            self.runner.post(_E.CHECK_FAILED, ", ".join(blocker.code for blocker in self.blockers))
        else:
            self._calls.passed(self)
            self.runner.post(_E.CHECK_PASSED)

    async def _reserve(self) -> None:
        self.setup = self.steering.take_setup()
        token = self.token
        if self.guest is None:
            raise Broken(f"Guest {self.name} is not in the journal any more")
        request = ReserveRequest(
            self.request.handover,
            self.guest,
            token.epoch,
            token.running,
            self._guests.settings.name,
            self.setup,
            self.request.stream.transport,
            self.request.pipeline,
            await self.disks.copies(),
            self.request.migratable,
        )
        # While the destination's QEMU starts, which takes ten times as long.
        preparing = asyncio.create_task(self._process().prepare_migration(self.setup, incoming=False))
        self._preparing = preparing
        try:
            self._way = await self.peer.reserve(request)
            await self._tell_reserved(preparing)
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)

    async def _tell_reserved(self, preparing: asyncio.Task[None]) -> None:
        try:
            await preparing
        except VmferryError as error:  # the destination has refused nothing
            self.runner.post(_E.STREAM_FAILED, error.what)
        else:
            self.runner.post(_E.DESTINATION_AWAITS_DISKS if self.request.copies else _E.DESTINATION_RESERVED)

    async def _copy_disks(self) -> None:
        encrypted = self.setup is not None and self.setup.encrypted
        await self.disks.copy(self._way, encrypted=encrypted, bandwidth=await self._within_share())
        self.runner.post(_E.DISKS_MIRRORED)

    async def _detach_devices(self) -> None:
        self.marks.mark("detaching")
        await self._calls.devices.take_away(self.name, self.request.go_along)
        self.marks.mark("detached")
        self.runner.post(_E.DEVICES_DETACHED)

    async def _give_devices(self) -> None:
        self._calls.devices.settle_later(self.name)

    async def _send(self) -> None:
        if plugged := await self._calls.devices.plugged(self.name, self.request.go_along):
            which = ", ".join(f"{claim.wanted} ({claim.address})" for claim in plugged)
            self.runner.post(_E.DEVICES_PLUGGED, f"guest {self.name} has {which} of this host")
            return
        await send(self._process(), self._way, self.request, self._calls.ways, self._uid)
        self.marks.mark("migrate")

    def _uid(self) -> int | None:
        return self._guests.row(self.name).uid

    async def _steer(self) -> None:
        process = self._process()
        slowed = self.request.throttle == Throttle.FORTY_WRITES
        if slowed and await process.query_run_state() is RunState.RUNNING:
            await self._calls.brake.begin()
        try:
            await self.steering.run(process)
        finally:  # left: the guest stands still, or `_restore` lets it go
            self._calls.brake.hush()
            self.throttled = self._calls.brake.seen()

    async def _continue(self) -> None:
        process = self._process()
        try:
            await self.disks.end()  # first: the copies must be whole before the guest can run beside one
            await asyncio.gather(*self.steering.around_stop(process))
        except VmferryError:
            if await is_dying(process):
                return  # its death is told by `watch`, and decides more: all may have been sent
            raise
        self.runner.post(_E.SWITCHOVER_BEGAN)

    async def _await_destination(self) -> None:
        # `migrate-continue`, ordered beside this, goes first: the guest stands still
        await self.runner.wait_left(frozenset({_S.PRE_SWITCHOVER}))
        while True:
            status = await self._ask_loaded()
            if status is not None and status.state == str(DestinationState.LOADED):
                self.marks.mark("destination_loaded")
                self.runner.post(_E.DESTINATION_LOADED)
                return
            if status is not None and status.state in GONE:
                why = status.error or f"the arrival at the destination is {status.state}"
                self.runner.post(_E.DESTINATION_FAILED, why)
                return
            # nobody answers: the state's deadline, or a heal, ends this; a quick answer says little: it was restarted
            await asyncio.sleep(_ASK_AGAIN_S if status is None else _QUICK_S)

    async def _ask_loaded(self) -> PeerStatus | None:
        try:
            return await self.peer.wait_loaded(self.request.handover, _WAIT_LOADED_MS)
        except (Unreachable, TimedOut):
            return None

    async def _release(self) -> None:
        """Look once more before the point of no return, then let the journal's write be the commit.

        A QEMU that is proven dead passes: it stood still until it died, or the machine would not be here.
        """
        process = self._guests.process(self.name)
        if process is not None and not self._is_postmigrate:
            try:
                await self._see_postmigrate(process)
            except VmferryError as error:
                if not await is_dying(process):
                    self.runner.post(_E.DESTINATION_FAILED, error.what, only_in=_S.LOADED)
                    return
        if self.state is _S.LOADED and (why := await self._why_locked()):
            self.runner.post(_E.IMAGE_LOCKED, why, only_in=_S.LOADED)
            return
        self.marks.mark("released")
        self.runner.post(_E.OWNERSHIP_RELEASED)

    async def _why_locked(self) -> str | None:
        """Return why the destination could not have the disks to itself, as far as that can be seen from here."""
        locked = await self.disks.why_locked(self._calls.disk_files)
        return locked or await self._guests.leases.why_not_held(self.name)

    async def _see_postmigrate(self, process: GuestProcess) -> None:
        await wait_postmigrate(process, self.name)
        self._is_postmigrate = True  # from here it never runs again by itself

    async def _tell_destination(self) -> None:
        token = self.token
        pause = 0.05
        while True:
            try:
                await self._guests.leases.give(self.name)
                self.marks.mark("commit_sent")
                reply = await self.peer.commit(self.request.handover, token.epoch, running=token.running)
            except VmferryError as error:  # it may be away for minutes; nobody else may run the guest meanwhile
                _log.warning("destination cannot take the guest yet", guest=self.name, error=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            if self._saw_reply(reply):
                return
            await asyncio.sleep(pause)

    def _saw_reply(self, reply: CommitReply) -> bool:
        kinds = {
            str(DestinationState.RUNNING): _E.DESTINATION_RUNNING,
            str(DestinationState.POSTCOPY_RUNNING): _E.DESTINATION_RUNNING,
            str(DestinationState.RETURNED): _E.DESTINATION_RETURNED,
            str(DestinationState.LOST): _E.DESTINATION_LOST,
        }
        kind = kinds.get(reply.state)
        if kind is None:
            return False
        self.marks.mark("commit_answered")
        self.commit_reply = reply
        self.runner.post(kind, reply.detail)
        return True

    async def _end_source(self) -> None:
        process = self._guests.process(self.name)
        if process is not None:
            await self.steering.read_last(process)
        self._calls.leaving(self)
        if self.disks.paths:  # while the journal still says which
            await asyncio.to_thread(self._calls.disk_files.put_aside, self.request.handover, self.disks.paths)
        await self._guests.let_go(self.name)
        self.marks.mark("tidied")
        self.runner.post(_E.TIDIED)

    async def _report(self) -> None:
        """Measure, which takes a second of the guest's life after the move; the hand-over itself is over before."""
        self._calls.ways.end(self.request.handover)  # however it ended, nothing more passes
        await self._calls.over()
        await self._calls.report(self)

    async def _discard(self) -> None:
        """Tell the destination once; it asks by itself when this does not reach it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_LIMIT_S):
                await self.peer.discard(self.request.handover)

    async def _restore(self) -> None:
        """Bring the source's QEMU to where it was; repeated until it answers or is proven dead."""
        if self._preparing is not None:
            await asyncio.wait({self._preparing})  # it is given up, and takes back what it has set by itself
        self._calls.ways.end(self.request.handover)
        while True:
            process = self._guests.process(self.name)
            if process is None:
                self.runner.post(_E.SOURCE_QEMU_DIED, f"QEMU of guest {self.name} at the source is gone")
                return
            try:
                await self.disks.cut()
                sample = await process.query_migration()
                self.steering.trail.remember(sample)
                if sample.status in POSTCOPY:
                    await self._guests.kill(self.name)  # it can never run the guest again
                    continue
                await self.disks.drop()  # first: a write of the guest may wait for a copy behind a dead link
                await undo_migration(process, sample, self._shall_run, resumes=not self._postcopy.has_stopped_guest)
            except VmferryError as error:
                _log.warning("source not restored yet", guest=self.name, error=str(error))
                await asyncio.sleep(_ASK_AGAIN_S)
                continue
            await self._calls.brake.end()  # not before: a guest that stands still does not answer
            self.marks.mark("restored")
            self.runner.post(_E.SOURCE_RESUMED)
            return

    async def _take_back(self) -> None:
        process = self._guests.process(self.name)
        if process is None:
            self.runner.post(_E.SOURCE_QEMU_DIED, f"QEMU of guest {self.name} at the source is gone")
            return
        if not await self._postcopy.wait_over(process):  # it can never run the guest again, whatever its agent is told
            self._why_ended = f"guest {self.name} came back in the middle of post-copy"
            await self._guests.kill(self.name)
            self.runner.post(_E.SOURCE_QEMU_DIED, self._why_ended)
            return
        await self._guests.leases.take_again(self.name)  # another may have one: again until nobody has
        await go_on(process, self._shall_run)
        await self._calls.brake.end()
        with contextlib.suppress(VmferryError):
            await process.cleanup_migration()
        self.runner.post(_E.SOURCE_RESUMED)

    async def _note_crash(self) -> None:
        await self._guests.kill(self.name)
        old = f"; its disks here are as they were when it left for {self.destination}" if self.disks.paths else ""
        self._guests.note_crash(self.name, f"lost in hand-over {self.request.handover}{old}")

    def _process(self) -> GuestProcess:
        process = self._guests.process(self.name)
        if process is None:
            raise Broken(f"QEMU of guest {self.name} at the source is gone", side="source")
        return process
