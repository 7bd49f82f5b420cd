"""Post-copy at its destination: what QEMU says until the last page is there, and listening anew for a broken stream.

Nothing here decides. A QEMU whose vCPUs wait for pages may hang with them and answer no question: that is "held", not
"gone". What breaks its stream and has it listen anew goes out of band and works nevertheless.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import structlog

from vmferry.conductor.runner import Runner
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.handover.events import DestinationEvent
from vmferry.core.handover.states import DestinationState
from vmferry.core.ids import GuestName
from vmferry.core.migration import POSTCOPY, MigrationStatus, RunState
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, GuestProcess
from vmferry.ports.peer import RejoinReply

_log = structlog.get_logger(__name__)

_E, _T = DestinationEvent, DestinationState
_M = MigrationStatus

#: States in which pages are, or may be, missing here.
FETCHING = frozenset({_T.POSTCOPY_LOADED, _T.POSTCOPY_STARTING, _T.POSTCOPY_RUNNING})
_LOOK_EVERY_S = 0.2
#: How long what a dead source has sent may still be read here.
_DRAIN_S = 1.0
#: QEMU enters `paused` up to 10 ms after it said postcopy-active.
_PAUSED_LOOK_S = 0.001
_PAUSED_LIMIT_S = 5.0
#: How long QEMU may take to leave postcopy-active when it is told to; it was seen to need 0.1 s.
_BREAK_LIMIT_S = 3.0


class PostcopyDestination:
    """One arrival's post-copy.

    Args:
        guest: whose.
        process: the guest's QEMU here; None when it is proven dead.
        runner: lives the machine.
        listens: address and port of the stream, which is also where it listens anew.
    """

    def __init__(
        self, guest: GuestName, process: Callable[[], GuestProcess | None], runner: Runner, listens: tuple[str, int]
    ) -> None:
        self.last_status: MigrationStatus | None = None
        self.error: str | None = None  #: why the guest was lost
        self._guest = guest
        self._process = process
        self._runner = runner
        self._listens = listens
        self._source_gone: str | None = None
        self._look_now = asyncio.Event()
        self._look_for_source = asyncio.Event()  #: it is gone
        self._rejoining = asyncio.Lock()
        self._announced = False
        self._has_crossed = False  #: QEMU said so; the machine may hear it later, when QEMU has said more

    @property
    def is_fetching(self) -> bool:
        """Tell whether pages may be missing."""
        return self._runner.machine.state in FETCHING

    async def saw(self, process: GuestProcess, status: MigrationStatus) -> bool:
        """Take what QEMU says before the commit; tell whether it was post-copy's."""
        self.last_status = status
        if status in POSTCOPY and self._runner.machine.state is _T.RECEIVING:
            await self._wait_paused(process)
            self._has_crossed = True
            self._runner.post(_E.POSTCOPY_LOADED, only_in=_T.RECEIVING)
        elif status is _M.COMPLETED and (self._has_crossed or self.is_fetching):
            self._runner.post(_E.PAGES_COMPLETED)
        self._look_now.set()
        return status in POSTCOPY or self._has_crossed or self.is_fetching

    async def _wait_paused(self, process: GuestProcess) -> None:
        """Wait until QEMU takes a `cont` now: at `inmigrate` it would remember it, and start the guest by itself."""
        end = asyncio.get_running_loop().time() + _PAUSED_LIMIT_S
        while (state := await process.query_run_state()) is RunState.INMIGRATE:
            if asyncio.get_running_loop().time() > end:
                raise Broken(f"QEMU of guest {self._guest} is in post-copy and still {state}", side="destination")
            await asyncio.sleep(_PAUSED_LOOK_S)

    async def await_pages(self) -> None:
        """Watch until nothing is missing any more, or the source's QEMU is gone with what is.

        Events come when questions hang, and questions tell what came while nobody listened.
        """
        process = self._process()
        if process is None:
            self._died()
            return
        beside = [
            asyncio.create_task(self._listen_to(process.events()), name=f"pages:{self._guest}"),
            asyncio.create_task(self._tell_when_gone(process), name=f"source of pages:{self._guest}"),
        ]
        try:
            await self._ask_until_whole(process)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _died(self) -> None:
        self.error = f"QEMU of guest {self._guest} at the destination died in post-copy"
        self._runner.post(_E.QEMU_DIED, self.error)

    async def _listen_to(self, events: AsyncIterator[GuestEvent]) -> None:
        async for event in events:
            if event.kind is GuestEventKind.EXITED:
                self._died()
            elif event.kind is GuestEventKind.MIGRATION and event.status is not None:
                self.last_status = event.status
                if event.status is _M.COMPLETED:
                    self._runner.post(_E.PAGES_COMPLETED)
                self._look_now.set()

    async def _ask_until_whole(self, process: GuestProcess) -> None:
        while True:
            if not process.is_alive():
                self._died()
                return
            with contextlib.suppress(VmferryError):  # it may hang with its vCPU; its events come
                self.last_status = (await process.query_migration()).status
                if self.last_status is _M.COMPLETED:
                    self._runner.post(_E.PAGES_COMPLETED)
                    return
                await self._announce(process)
            self._look_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._look_now.wait()

    async def _announce(self, process: GuestProcess) -> None:
        """Tell the network as soon as the guest runs here; not only when its last page is there."""
        if self._announced or self._runner.machine.state is not _T.POSTCOPY_RUNNING:
            return
        self._announced = True
        with contextlib.suppress(VmferryError):
            if await process.query_run_state() is RunState.RUNNING:
                await process.announce()

    async def _tell_when_gone(self, process: GuestProcess) -> None:
        """Once the source is gone, tell it when the stream is broken for certain; one that stands still is broken.

        Its events tell, and not only answers: QEMU answers nothing while a vCPU waits for a page with its lock held.
        """
        await self._look_for_source.wait()
        loop = asyncio.get_running_loop()
        end = loop.time() + _DRAIN_S
        while self.last_status is not _M.POSTCOPY_PAUSED:
            if loop.time() > end and await self._is_broken(process):
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        self.error = self._source_gone
        self._runner.post(_E.SOURCE_GONE, self.error)

    async def _is_broken(self, process: GuestProcess) -> bool:
        """Break the stream, and have QEMU prove that it is broken: it listens anew only then.

        It may have been broken before, and an earlier agent have been told; nobody is told twice.
        """
        with contextlib.suppress(VmferryError):
            await process.pause_postcopy()
        try:
            await process.recover_listen(*self._listens)
        except VmferryError:
            return False
        return True

    def source_is_gone(self, why: str) -> None:
        """Take it that the source's QEMU is dead: what is missing now will never come."""
        self._source_gone = why
        self._look_for_source.set()

    async def rejoin(self) -> RejoinReply:
        """Listen anew: the source says that its end of the stream is broken, so this one is of no use either.

        Raises:
            VmferryError: QEMU does not listen; ask again.
        """
        async with self._rejoining:
            process = self._process()
            if process is None:
                return self._reply(None)
            with contextlib.suppress(VmferryError):  # it has noticed by itself, or has completed
                await process.pause_postcopy()
            await self._listen(process)
            _log.info("listens anew for the rest of a guest", guest=self._guest, port=self._listens[1])
            return self._reply(self._listens)

    async def _listen(self, process: GuestProcess) -> None:
        end = asyncio.get_running_loop().time() + _BREAK_LIMIT_S
        while True:
            try:
                await process.recover_listen(*self._listens)
            except VmferryError:
                if asyncio.get_running_loop().time() > end or not self.is_fetching:
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    def _reply(self, listens: tuple[str, int] | None) -> RejoinReply:
        state = str(self._runner.machine.state)
        return RejoinReply(state) if listens is None else RejoinReply(state, *listens)
