"""Asks agents to hold hand-overs in a state, and waits until they do (vmferry.conductor.hold is the other end)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from vmferry.conductor.hold import hold_name
from vmferry.core.errors import TimedOut
from vmferry.core.handover.states import AnyState, SourceState
from vmferry.lab.hosts import Lab

_LOOK_EVERY_S = 0.002


class Holds:
    """The holds of one cell; `release_all` leaves none."""

    def __init__(self, lab: Lab, source: str, destination: str) -> None:
        self._lab = lab
        self._source, self._destination = source, destination

    def ask(self, *states: AnyState) -> None:
        """Have states held from now on."""
        for state in states:
            self._file(state).touch()

    async def reached(self, state: AnyState, timeout_s: float) -> None:
        """Wait until the hand-over is held there.

        Raises:
            TimedOut: it never came there.
        """
        answer = self._answer(state)
        deadline = time.monotonic() + timeout_s
        while not answer.exists():
            if time.monotonic() > deadline:
                raise TimedOut(f"The hand-over is not held in {state} after {timeout_s:g} s")
            await asyncio.sleep(_LOOK_EVERY_S)

    def release(self, *states: AnyState) -> None:
        """Let the hand-over go on."""
        for state in states:
            self._answer(state).unlink(missing_ok=True)
            self._file(state).unlink(missing_ok=True)

    def release_all(self) -> None:
        """Let everything go on and forget all answers."""
        for host in self._lab.hosts.values():
            for file in host.hold_dir.iterdir():
                file.unlink(missing_ok=True)

    def _file(self, state: AnyState) -> Path:
        host = self._source if isinstance(state, SourceState) else self._destination
        return self._lab.hosts[host].hold_dir / hold_name(state)

    def _answer(self, state: AnyState) -> Path:
        file = self._file(state)
        return file.with_name(file.name + ".reached")
