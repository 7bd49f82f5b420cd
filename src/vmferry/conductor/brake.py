"""One hand-over's write throttle: the port with everything filled in that only the hand-over knows."""

from __future__ import annotations

from collections.abc import Callable

from vmferry.core.convergence.facts import MAX_GAP_MS
from vmferry.core.ids import GuestName, HandoverId
from vmferry.core.progress import Throttled
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.ports.write_throttle import WriteBudget, WriteThrottle

#: Of the article, and of its source (Clark et al., NSDI 2005).
FORTY = 40


class Brake:
    """Slows one guest while it moves.

    Args:
        port: what slows guests of this host.
        guest: which.
        handover: on whose behalf.
        bandwidth: tells what the link gives to this migration.
        max_gap_ms: no write is held for longer.
    """

    def __init__(
        self,
        port: WriteThrottle,
        guest: GuestName,
        handover: HandoverId,
        bandwidth: Callable[[], BytesPerSecond],
        max_gap_ms: Milliseconds = MAX_GAP_MS,
    ) -> None:
        self._port = port
        self._guest = guest
        self._handover = handover
        self._bandwidth = bandwidth
        self._max_gap_ms = max_gap_ms

    async def begin(self, writes: int = FORTY) -> None:
        """Let each process write so many pages per slot from now on; again, it changes the number.

        Raises:
            Refused: another order is in force in the guest and stays so.
            TimedOut: the guest does not answer.
            Broken: its port is not there, or it closed.
        """
        budget = WriteBudget(self._bandwidth(), self._max_gap_ms, writes)
        await self._port.begin(self._guest, self._handover, budget)

    def hush(self) -> None:
        """Say nothing more to the guest: it stands still."""
        self._port.hush(self._handover)

    def seen(self) -> Throttled | None:
        """Return what it has done so far; None when it is not in force."""
        return self._port.seen(self._handover)

    async def end(self) -> None:
        """Let the guest run free; never raises, takes at most a second. Idempotent."""
        await self._port.end(self._handover)
