"""A prober in a nested host: numbered UDP to a guest, window by window."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from vmferry.core.errors import TimedOut
from vmferry.lab.nested.host import NestedHost

#: A nested host has one slow CPU: more often, and the prober itself is what it measures.
INTERVAL_MS = 50.0
_GRACE_MS = 1000
_LOOK_EVERY_S = 0.5


class NestedProbe:
    """Probes a guest's UDP echo from a nested host until it is closed.

    Args:
        host: it is up.
        address: of the guest.
        folder: of the host, in which it may write.
    """

    def __init__(self, host: NestedHost, address: str, folder: str) -> None:
        self._host = host
        self._address = address
        self._fifo, self._out = f"{folder}/probe.in", f"{folder}/probe.out"

    async def start(self) -> None:
        """Begin; the first window has no name."""
        module = f"-m vmferry.measure.prober {self._address} --json-lines"
        limits = f"--interval-ms {INTERVAL_MS} --grace-ms {_GRACE_MS}"
        await self._host.shell(
            f"rm -f {self._fifo}; mkfifo {self._fifo};"
            f" setsid {sys.executable} {module} {limits} <>{self._fifo} >{self._out} 2>&1 &"
        )

    async def wait_answered(self, timeout_s: float = 60.0) -> None:
        """Wait until the guest has answered once; raises TimedOut."""
        await self._line(lambda line: line["event"] == "answered", "no UDP echo", timeout_s)

    async def begin(self, name: str) -> None:
        """End the running window and begin another; each name is used once."""
        await self._host.shell(f"echo mark {name} >{self._fifo}")

    async def window(self, name: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Return the figures (`measure.outage.OutageStats`) of a window that was ended; raises TimedOut."""
        return await self._line(lambda line: line.get("name") == name, f"no window {name}", timeout_s)

    async def close(self) -> None:
        """End it; idempotent."""
        await self._host.shell(f"pkill -f '[p]rober {self._address}' || true")

    async def _line(self, wanted: Any, what: str, timeout_s: float) -> dict[str, Any]:
        ends = asyncio.get_running_loop().time() + timeout_s
        while True:
            said = await self._host.must("cat", self._out)
            for text in said.splitlines():
                line: dict[str, Any] = json.loads(text) if text.startswith("{") else {"event": text}
                if wanted(line):
                    return line
            if asyncio.get_running_loop().time() > ends:
                raise TimedOut(
                    f"Prober on nested host {self._host.plan.name} reports {what} of {self._address}: {said}"
                )
            await asyncio.sleep(_LOOK_EVERY_S)
