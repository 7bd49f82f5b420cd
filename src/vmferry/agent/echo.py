"""network_outage: a prober in a process of its own, beside one hand-over, so that the agent's loop is not in it.

The prober is started when the hand-over is opened, asked for its windows when the guest has run at the destination
for a while, and killed then. It also ends with this process: its input is a pipe of ours, and the kernel kills it when
its parent dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import structlog

from vmferry.core.progress import Gap
from vmferry.core.units import Milliseconds

_log = structlog.get_logger(__name__)

INTERVAL_MS = 2.0
#: The baseline is at most this long: a quiet time of the length that guest_gap's baseline has.
_BASELINE_NS = 3_000_000_000
#: What the prober remembers (vmferry.measure.outage.DEFAULT_CAPACITY probes); an earlier time is not measured.
_MEMORY_NS = 600_000_000_000
#: A later answer counts as none, for the last probes of a window.
_GRACE_MS = 300
_REPLY_LIMIT_S = 3.0
_NS_PER_MS = 1_000_000

#: One window in the prober's own words (vmferry.measure.outage.OutageStats).
_Window: TypeAlias = dict[str, Any]


def prober_argv(address: str, port: int) -> list[str]:
    """Return the command line of the prober for a guest."""
    module = ["-P", "-m", "vmferry.measure.prober", address, "--port", str(port), "--json-lines"]
    limits = ["--interval-ms", str(INTERVAL_MS), "--grace-ms", str(_GRACE_MS), "--parent", str(os.getpid())]
    return [sys.executable, *module, *limits]


class EchoProbe:
    """Probes one guest's UDP echo from `begin` to `close`.

    Args:
        argv: the prober's command line, from `prober_argv`.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._answered_ns: int | None = None
        self._windows: dict[str, asyncio.Future[_Window]] = {}

    def begin(self) -> None:
        """Start the prober beside everything else; returns at once. Needs a running loop, whose thread must last."""
        self._task = asyncio.create_task(self._live(), name="echo-probe")

    async def gap(self, stopped_ns: int, ended_ns: int) -> Gap | None:
        """Return the longest outage until now; None when nothing had answered before the guest was stopped.

        Args:
            stopped_ns: when the guest was stopped for the switchover: the baseline ends here. CLOCK_MONOTONIC.
            ended_ns: when the measure ends.
        """
        began = self._answered_ns
        if began is None or began >= stopped_ns:
            return None
        try:
            async with asyncio.timeout(_REPLY_LIMIT_S):
                baseline, whole = await asyncio.gather(
                    self._window("baseline", max(began, stopped_ns - _BASELINE_NS), stopped_ns),
                    self._window("whole", max(began, ended_ns - _MEMORY_NS), ended_ns),
                )
        except (TimeoutError, OSError) as error:
            _log.warning("prober does not report: network_outage is not measured", why=repr(error))
            return None
        return _gap(whole, baseline)

    async def close(self) -> None:
        """Have the prober killed and gone. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _window(self, name: str, start_ns: int, end_ns: int) -> _Window:
        """Ask for a window and wait until late answers to it have had their time."""
        stdin = None if self._process is None else self._process.stdin
        if stdin is None:
            raise ProcessLookupError("the prober was not started")
        waiting: asyncio.Future[_Window] = asyncio.get_running_loop().create_future()
        self._windows[name] = waiting
        stdin.write(f"window {name} {start_ns} {end_ns}\n".encode())
        await stdin.drain()
        return await waiting

    async def _live(self) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C at an agent's terminal is the agent's matter
            )
        except OSError as error:
            _log.warning("prober cannot be started: network_outage is not measured", why=repr(error))
            return
        self._process = process
        try:
            await self._read(process)
        finally:
            await _end(process)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        while process.stdout is not None and (line := await process.stdout.readline()):
            fields: _Window = json.loads(line)
            if fields["event"] == "answered":
                self._answered_ns = int(fields["at_ns"])
            waiting = self._windows.pop(fields.get("name", ""), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(fields)
        _log.warning("prober ended by itself: network_outage is not measured", status=await process.wait())


def _gap(whole: _Window, baseline: _Window) -> Gap:
    """Return the outage; it is known to within the time between two probes, or the longest in which none was sent."""
    is_baseline = baseline["sent"] > 1
    return Gap(
        largest_ms=Milliseconds(whole["outage_ms"]),
        uncertainty_ms=Milliseconds(max(INTERVAL_MS, whole["send_gap_ms"])),
        baseline_ms=Milliseconds(baseline["outage_ms"]) if is_baseline else None,
        baseline_window_ms=_length_ms(baseline) if is_baseline else None,
        window_ms=_length_ms(whole),
        ended=bool(whole["outage_ended"]),
    )


def _length_ms(window: _Window) -> Milliseconds:
    return Milliseconds((window["end_ns"] - window["start_ns"]) / _NS_PER_MS)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the process, if it lives, and wait until it and its pipes are gone."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    await process.communicate()
