"""The prober in the fabric: numbered UDP to a guest, window by window, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, Self, cast

from vmferry.core.errors import Broken, TimedOut
from vmferry.core.progress import Gap
from vmferry.core.units import Milliseconds
from vmferry.lab.commands import end
from vmferry.lab.network import FABRIC

if TYPE_CHECKING:
    from vmferry.lab.hosts import Lab

#: One window of the prober, in its own words (vmferry.measure.outage.OutageStats).
Window = dict[str, Any]

INTERVAL_MS = 2.0


class Probe:
    """Probes a guest's UDP echo from the fabric; an async context manager.

    Args:
        lab: a lab with namespaces.
        address: of the guest.
    """

    def __init__(self, lab: Lab, address: str) -> None:
        self._lab = lab
        self._address = address
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self._windows: dict[str, asyncio.Future[Window]] = {}

    async def __aenter__(self) -> Self:
        """Start probing."""
        module = ["-m", "vmferry.measure.prober", self._address, "--interval-ms", str(INTERVAL_MS), "--json-lines"]
        self._process = await asyncio.create_subprocess_exec(
            *[*self._lab.inside(FABRIC), sys.executable, *module],
            env=self._lab.environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the prober."""
        process, reader = cast("asyncio.subprocess.Process", self._process), cast("asyncio.Task[None]", self._reader)
        if process.stdin:
            process.stdin.close()
        await end(process)
        await reader
        for window in self._windows.values():
            window.cancel()

    async def wait_answered(self, timeout_s: float = 60.0) -> None:
        """Wait until the guest has answered once.

        Raises:
            TimedOut: it did not.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._answered.wait()
        except TimeoutError as error:
            raise TimedOut(f"No UDP echo from {self._address} within {timeout_s:.0f} s") from error

    def begin(self, name: str) -> None:
        """End the running window and begin another; each name is used once."""
        stdin = cast("asyncio.subprocess.Process", self._process).stdin
        if stdin is None or name in self._windows:
            raise Broken(f"The prober cannot begin window {name}")
        self._windows[name] = asyncio.get_running_loop().create_future()
        stdin.write(f"mark {name}\n".encode())

    async def window(self, name: str, timeout_s: float = 30.0) -> Window:
        """Return a window's figures; waits until late answers have had their time.

        Raises:
            TimedOut: the prober did not report it (the window has not ended).
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._windows[name])
        except TimeoutError as error:
            raise TimedOut(f"The prober did not report window {name} within {timeout_s:.0f} s") from error

    async def _read(self) -> None:
        stdout = cast("asyncio.subprocess.Process", self._process).stdout
        while stdout and (line := await stdout.readline()):
            fields: Window = json.loads(line)
            if fields["event"] == "answered":
                self._answered.set()
            waiting = self._windows.get(fields.get("name", ""))
            if fields["event"] == "window" and waiting and not waiting.done():
                waiting.set_result(fields)


def outage(window: Window, baseline: Window) -> Gap:
    """Return the outage that a window saw, beside the one of a window without a migration.

    It is known to within the time between two probes, or the longest time in which none could be sent.
    """
    return Gap(
        largest_ms=Milliseconds(window["outage_ms"]),
        uncertainty_ms=Milliseconds(max(INTERVAL_MS, window["send_gap_ms"])),
        baseline_ms=Milliseconds(baseline["outage_ms"]),
        baseline_window_ms=Milliseconds((baseline["end_ns"] - baseline["start_ns"]) / 1e6),
    )
