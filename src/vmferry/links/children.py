"""Programs that were started for hand-overs: reaped when they end, ended with their hand-over, outliving the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from vmferry.core.ids import HandoverId


class Children:
    """Programs by hand-over; each leads a process group of its own."""

    def __init__(self) -> None:
        self._running: dict[HandoverId, set[int]] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def add(
        self, handover: HandoverId, pid: int, ended: Callable[[int], None], let_go: Callable[[], None] = lambda: None
    ) -> None:
        """Watch a child of this process.

        Args:
            handover: for which it works.
            pid: its number, and its group's.
            ended: called with its exit code, as a shell has it.
            let_go: called last, also when it goes on without us.
        """
        self._running.setdefault(handover, set()).add(pid)
        task = asyncio.create_task(self._watch(handover, pid, ended), name=f"child {pid}")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)
        task.add_done_callback(lambda _: let_go())

    def end(self, handover: HandoverId) -> None:
        """Kill a hand-over's programs that have not ended by themselves; unknown ones are no error."""
        for pid in self._running.get(handover, ()):  # not reaped yet: nobody else has its number
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    async def close(self) -> None:
        """Let go of them: they go on. Idempotent."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)

    async def _watch(self, handover: HandoverId, pid: int, ended: Callable[[int], None]) -> None:
        ended(await _wait(pid, lambda: self._forget(handover, pid)))

    def _forget(self, handover: HandoverId, pid: int) -> None:
        left = self._running.get(handover, set()) - {pid}
        self._running.pop(handover, None)
        if left:
            self._running[handover] = left


async def _wait(pid: int, forget: Callable[[], None]) -> int:
    """Return the exit code; a pidfd tells when it is there. Forgotten before its number is free."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    forget()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # noqa: ASYNC222 - it has ended
    return 128 - code if code < 0 else code
