"""Post-copy at its source: how the guest crosses, and how its pages follow until the last one is there.

Nothing here decides; every order looks first and posts what it saw, so a repeat is harmless (core/handover/table.py,
"Post-copy"). Two things are ours because QEMU does not do them: a silent cut is found (nothing moves *and* the other
agent does not answer), and a broken stream is recovered by itself, with growing pauses, for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from vmferry.conductor.marks import Marks
from vmferry.conductor.runner import Order, Runner, background
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.handover.effects import AnyEffect, SourceEffect
from vmferry.core.handover.events import SourceEvent
from vmferry.core.handover.states import DestinationState, SourceState
from vmferry.core.ids import GuestName, HandoverId
from vmferry.core.migration import POSTCOPY, MigrationSample, MigrationStatus, RunState
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import GuestProcess
from vmferry.ports.peer import Peer, PeerStatus

_log = structlog.get_logger(__name__)

_E, _S, _X, _T = SourceEvent, SourceState, SourceEffect, DestinationState
_M = MigrationStatus

_FOLLOWING = (_S.POSTCOPY_COMMITTED, _S.POSTCOPY_RUNNING, _S.POSTCOPY_PAUSED)
#: The destination misses nothing that it needs to run; it has not run.
_LOADED = frozenset({str(_T.POSTCOPY_LOADED), str(_T.LOADED)})
#: The destination misses no page any more.
_WHOLE = frozenset(map(str, (_T.LOADED, _T.ACQUIRED, _T.STARTING, _T.RUNNING)))
#: The arrival can never be loaded any more; its machine's own word.
GONE = frozenset({str(_T.DISCARDING), str(_T.DISCARDED), "unknown"})
_ENDED = frozenset({_M.FAILED, _M.CANCELLED})

_LOOK_S = 0.002
_READ_EVERY_S = 0.1
_FOLLOW_LOOK_S = 0.05
#: How long the guest may take to start there before its pages follow as if it ran.
_STARTS_S = 2.0
_NOT_YET = Milliseconds(0.0)
_ROUND_LOOK_S = 0.02
_WAIT_LOADED_MS = Milliseconds(2_000)
#: How long the guest may stand still for the destination's answer before `migrate-continue`: there is a way back.
_ANSWER_S = 2.0
#: How long QEMU may say pre-switchover after `migrate-continue`: longer, and it did not take it.
_CONTINUES_S = 1.0
#: How long QEMU may take to say `failed`, or to get on, after the destination is gone or an error is told.
_LAST_WORD_S = 3.0
_ASK_EVERY_S = 1.0
#: So long nothing moves and nobody answers before a stream counts as cut. A shorter gap TCP closes by itself.
_SILENT_S = 5.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
#: How long QEMU may say postcopy-paused after an order to connect: longer, and it failed.
_CONNECTS_S = 3.0
#: How long connecting anew may take; QEMU was seen to need 0.1 s.
_RECONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Trip:
    """What it is about, and who is asked.

    Args:
        handover: which one.
        guest: whose.
        process: the guest's QEMU here; None when it is proven dead.
        peer: the destination's agent.
        runner: lives the machine.
        marks: when what happened.
        read: takes a reading and publishes it.
        following: how fast pages may follow, in QEMU's parameters: since so many ms at the destination, on such a link.
        end_mirrors: has the copies of disks be whole; raises when one cannot be used.
        why_no_channel: why the channel of its own that post-copy needs cannot be made any more; None: it can.
    """

    handover: HandoverId
    guest: GuestName
    process: Callable[[], GuestProcess | None]
    peer: Peer
    runner: Runner
    marks: Marks
    read: Callable[[MigrationSample], Awaitable[None]]
    following: Callable[[Milliseconds, BytesPerSecond], Mapping[str, int]]
    end_mirrors: Callable[[], Awaitable[None]]
    why_no_channel: Callable[[], str | None]


class PostcopySource:
    """One hand-over's post-copy at its source.

    Args:
        trip: what it is about.
    """

    def __init__(self, trip: Trip) -> None:
        self._trip = trip
        self._post = trip.runner.post
        self._pause_s = _FIRST_PAUSE_S  #: before the next try to recover
        self._moved: tuple[int, float] = (0, 0.0)  #: bytes sent, and since when they stand there
        self._heard_at = 0.0
        self._asked_at = 0.0
        self._continued_at = -_CONTINUES_S
        self.has_stopped_guest = False  #: no cancel lets it run again
        self._link = BytesPerSecond(0)  #: what it carried when post-copy was ordered; 0: an earlier agent knew
        self._follows_since: float | None = None
        self._runs_since: float | None = None  #: at the destination, or it should
        self._following: Mapping[str, int] | None = None  #: how fast pages follow, as ordered last

    def orders(self) -> dict[AnyEffect, Order]:
        """Return how its effects are carried out."""
        return {
            _X.BEGIN_POSTCOPY: background(self._begin, _S.POSTCOPY_ORDERED, failed=_E.STREAM_FAILED),
            _X.CROSS: background(self._cross, _S.POSTCOPY_CROSSING),
            _X.FOLLOW_PAGES: background(self._follow, *_FOLLOWING),
        }

    def order(self, rule: str) -> None:
        """Have post-copy begin; without effect when the rounds are over already.

        Args:
            rule: who wants it, in words for people.
        """
        self._post(_E.POSTCOPY_ORDERED, rule, only_in=_S.PRECOPY)

    async def watch_rounds(self, after: int | None) -> None:
        """Order it when round `after` begins (1: at once); None: never."""
        runner = self._trip.runner
        if after is None:
            return
        await runner.wait_left(frozenset({_S.CHECKING, _S.RESERVING, _S.COPYING_DISKS, _S.DETACHING, _S.RESERVED}))
        while runner.machine.state is _S.PRECOPY:
            with contextlib.suppress(VmferryError):
                if (await self._alive().query_migration()).rounds >= after:
                    self.order(f"asked for after round {after}")
                    return
            await asyncio.sleep(_ROUND_LOOK_S)

    # -- crossing -------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Stop the guest, then end the rounds: a QEMU that stopped it by itself starts it again when it fails later.

        QEMU 10.0 does so behind the commit, when the stream breaks between its last page and the last word. What cannot
        have its channel is given up here, while the guest runs: the destination's QEMU may die for want of it once the
        guest is on its way, and with it the guest.
        """
        process = self._alive()
        why = self._trip.why_no_channel()
        if why is not None and await process.query_run_state() is RunState.RUNNING:  # an earlier agent had not begun
            raise Broken(why, side="source")
        self._link = (await process.query_migration()).bandwidth
        await process.set_parameters(self._trip.following(_NOT_YET, self._link))
        await process.stop()
        self.has_stopped_guest = True
        await process.start_postcopy()
        self._trip.marks.mark("postcopy_ordered")

    async def _cross(self) -> None:
        """Check the stream, send `migrate-continue`, and wait until both say that the guest has crossed."""
        gone_since: float | None = None
        while True:
            process = self._alive()
            sample = await process.query_migration()
            if sample.status is _M.PRE_SWITCHOVER and _now() - self._continued_at > _CONTINUES_S:
                why = sample.error or await self._why_not_there() or await self._why_no_disks()
                if why := why or self._why_no_tpm(process):
                    if (await process.query_migration()).status is not _M.PRE_SWITCHOVER:
                        continue  # it was on its way: nothing leads back
                    self._post(_E.STREAM_FAILED, why, only_in=_S.POSTCOPY_CROSSING)
                    return
                try:
                    await process.migrate_continue()
                finally:
                    self._continued_at = _now()
                self._trip.marks.mark("continued")
                continue
            if sample.status in _ENDED:
                why = sample.error or f"QEMU at the source says that the migration {sample.status}"
                self._post(_E.STREAM_FAILED, why, only_in=_S.POSTCOPY_CROSSING)
                return
            if sample.status is _M.COMPLETED and await process.query_run_state() is not RunState.FINISH_MIGRATE:
                self._post(_E.SOURCE_COMPLETED, only_in=_S.POSTCOPY_CROSSING)
                return
            status = await self._ask_loaded()
            if status is not None and status.state in _LOADED and await self._has_crossed(process):
                self._trip.marks.mark("released")
                self._post(_E.OWNERSHIP_RELEASED, only_in=_S.POSTCOPY_CROSSING)
                return
            why = self._why_stranded(sample, status)
            gone_since = (gone_since or _now()) if why else None
            if why and gone_since is not None and _now() - gone_since > _LAST_WORD_S:
                self._post(_E.DESTINATION_FAILED, why, only_in=_S.POSTCOPY_CROSSING)
                return
            await asyncio.sleep(_LOOK_S if status is not None else _READ_EVERY_S)

    async def _why_not_there(self) -> str | None:
        """Return why the stream must not be continued; asked while there is still a way back."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                status = await self._trip.peer.status(self._trip.handover)
        except TimeoutError:
            return f"the destination's agent did not answer within {_ANSWER_S:g} s before post-copy"
        except VmferryError as error:
            return error.what
        receives = status.state == str(_T.RECEIVING) and status.qemu_alive
        if receives or status.state in _LOADED:  # an earlier agent may have continued it a moment ago
            return None
        return status.error or f"the arrival at the destination is {status.state}"

    async def _why_no_disks(self) -> str | None:
        try:
            await self._trip.end_mirrors()
        except VmferryError as error:
            return error.what
        return None

    def _why_no_tpm(self, process: GuestProcess) -> str | None:
        """Return why the state of its TPM cannot be had; QEMU 10.0 would fail for it, stay `device` and never end."""
        return f"what emulates the TPM of guest {self._trip.guest} has ended" if process.has_lost_tpm else None

    async def _ask_loaded(self) -> PeerStatus | None:
        with contextlib.suppress(VmferryError):
            return await self._trip.peer.wait_loaded(self._trip.handover, _WAIT_LOADED_MS)
        return None

    async def _has_crossed(self, process: GuestProcess) -> bool:
        """Tell whether the source's QEMU can never run the guest by itself again."""
        status = (await process.query_migration()).status
        if status in POSTCOPY:
            self._trip.marks.mark("postcopy_active")
            return True
        return status is _M.COMPLETED and await process.query_run_state() is RunState.POSTMIGRATE

    @staticmethod
    def _why_stranded(sample: MigrationSample, status: PeerStatus | None) -> str | None:
        """Return why neither QEMU can go on, should it stay like that: the destination is gone, or the stream broke."""
        if status is not None and status.state in GONE:
            return status.error or f"the arrival at the destination is {status.state}"
        if sample.status is _M.DEVICE and sample.error is not None:
            return f"the stream broke on the way into post-copy: {sample.error}"
        return None

    # -- pages follow ---------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Watch until the last page is there; a broken stream is recovered."""
        self._moved, self._heard_at = (0, _now()), _now()
        while True:
            process = self._trip.process()
            if process is None:
                await self._tell_gone()
                continue
            sample = await process.query_migration()
            await self._trip.read(sample)
            if sample.status is _M.COMPLETED and await process.query_run_state() is not RunState.FINISH_MIGRATE:
                self._trip.marks.mark("pages_completed")
                self._post(_E.SOURCE_COMPLETED)
                return
            if sample.status in _ENDED:  # the stream broke behind the last page: QEMU can send nothing more
                await process.kill()
                continue
            if sample.status is _M.POSTCOPY_ACTIVE:
                self._post(_E.STREAM_RECOVERED, only_in=_S.POSTCOPY_PAUSED)
                await self._let_follow(process)
                await self._listen_for_silence(process, sample)
            elif sample.status is _M.POSTCOPY_PAUSED:
                self._trip.marks.mark("stream_broke")
                self._post(_E.STREAM_BROKE, sample.error or "the stream broke", only_in=_S.POSTCOPY_RUNNING)
                await self._recover(process)
            await asyncio.sleep(_FOLLOW_LOOK_S)

    async def _let_follow(self, process: GuestProcess) -> None:
        """Let pages that nobody waits for follow as fast as they may by now; nothing is ordered twice.

        A guest that cannot be started at the destination must not wait for slow pages: they are its way back.
        """
        self._follows_since = self._follows_since or _now()
        runs = self._trip.runner.machine.state is _S.POSTCOPY_RUNNING
        if not runs and _now() - self._follows_since < _STARTS_S:
            return
        self._runs_since = self._runs_since or _now()
        following = self._trip.following(Milliseconds(1000 * (_now() - self._runs_since)), self._link)
        if following != self._following:
            await process.set_parameters(following)
            self._following = following

    async def _listen_for_silence(self, process: GuestProcess, sample: MigrationSample) -> None:
        """Break a stream that nobody else will: nothing moves and nobody answers, or the other side broke off alone."""
        now = _now()
        if sample.transferred_bytes != self._moved[0]:
            self._moved = (sample.transferred_bytes, now)
        if now - self._asked_at < _ASK_EVERY_S:
            return
        status = await self._ask_status()
        self._asked_at = _now()
        if status is not None:
            self._heard_at = self._asked_at
        moves_not = self._asked_at - self._moved[1] > _ASK_EVERY_S
        broken_there = status is not None and status.migration_status is _M.POSTCOPY_PAUSED and moves_not
        cut = self._asked_at - max(self._heard_at, self._moved[1]) > _SILENT_S
        if broken_there or cut:
            _log.warning("post-copy stands still; its stream is broken off", guest=self._trip.guest, cut=cut)
            await process.pause_postcopy()

    async def _ask_status(self) -> PeerStatus | None:
        with contextlib.suppress(VmferryError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                return await self._trip.peer.status(self._trip.handover)
        return None

    async def _recover(self, process: GuestProcess) -> None:
        """Have the destination listen anew, and only then connect: QEMU hangs on a peer that accepts and is silent."""
        try:
            reply = await self._trip.peer.rejoin(self._trip.handover, source_alive=True)
            if self._saw_state(reply.state, reply.detail) or reply.address is None or reply.port is None:
                await self._pause()
                return
            await process.resume_stream(reply.address, reply.port)
            if await self._wait_connected(process):
                _log.info("post-copy goes on", guest=self._trip.guest)
                self._pause_s, self._heard_at = _FIRST_PAUSE_S, _now()
                self._moved = (self._moved[0], _now())
                self._trip.marks.mark("stream_recovered")
                return
        except VmferryError as error:
            _log.info("post-copy is not recovered yet", guest=self._trip.guest, error=str(error))
        await self._pause()

    async def _wait_connected(self, process: GuestProcess) -> bool:
        """Tell whether the stream is whole again; 7.2 says postcopy-paused while it still connects."""
        begun, seen = _now(), set[MigrationStatus]()
        while _now() - begun < _RECONNECT_S:
            status = (await process.query_migration()).status
            seen.add(status)
            if status in (_M.POSTCOPY_ACTIVE, _M.COMPLETED):
                return True
            if status is _M.POSTCOPY_PAUSED and (len(seen) > 1 or _now() - begun > _CONNECTS_S):
                return False
            await asyncio.sleep(_ROUND_LOOK_S)
        return False

    async def _tell_gone(self) -> None:
        """Tell the destination that no page comes any more, and take its word for whether one was missing."""
        try:
            reply = await self._trip.peer.rejoin(self._trip.handover, source_alive=False)
            if self._saw_state(reply.state, reply.detail):
                await asyncio.sleep(_READ_EVERY_S)
                return
        except VmferryError as error:
            _log.info("destination cannot be told yet", guest=self._trip.guest, error=str(error))
        await self._pause()

    def _saw_state(self, state: str, detail: str | None) -> bool:
        """Post what the destination's state decides; tell whether it did."""
        if state in _WHOLE:
            self._post(_E.PAGES_ARRIVED)
        elif state == str(_T.LOST):
            self._post(_E.DESTINATION_LOST, detail)
        else:
            return False
        return True

    async def _pause(self) -> None:
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    async def wait_over(self, process: GuestProcess) -> bool:
        """Tell whether a QEMU has left post-copy with everything sent; it may take a moment to hear so."""
        end = _now() + _LAST_WORD_S
        while (await process.query_migration()).status in POSTCOPY:
            if _now() > end:
                return False
            await asyncio.sleep(_ROUND_LOOK_S)
        return True

    def _alive(self) -> GuestProcess:
        process = self._trip.process()
        if process is None:
            raise Broken(f"QEMU of guest {self._trip.guest} at the source is gone", side="source")
        return process


def _now() -> float:
    return asyncio.get_running_loop().time()
