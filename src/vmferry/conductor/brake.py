"""One hand-over's write throttle: the port with everything filled in that only the hand-over knows."""

from __future__ import annotations

from collections.abc import Callable

from vmferry.core.convergence.facts import MAX_GAP_MS
from vmferry.core.errors import Blocker
from vmferry.core.ids import GuestName, HandoverId
from vmferry.core.progress import Throttled
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.ports.write_throttle import WriteBudget, WriteThrottle

#: Of the article, and of its source (Clark et al., NSDI 2005).
FORTY = 40


class Brake:
    """Slows one guest while it moves: from the first round on, or when a policy orders it.

    Args:
        port: what slows guests of this host.
        guest: which.
        handover: on whose behalf.
        bandwidth: tells what the link gives to this migration.
        most_hold_ms: no write is held for longer.
    """

    def __init__(
        self,
        port: WriteThrottle,
        guest: GuestName,
        handover: HandoverId,
        bandwidth: Callable[[], BytesPerSecond],
        most_hold_ms: Milliseconds = MAX_GAP_MS,
    ) -> None:
        self._port = port
        self._guest = guest
        self._handover = handover
        self._bandwidth = bandwidth
        self._most_hold_ms = most_hold_ms
        self._last: Throttled | None = None  #: of an order that was ended

    async def blockers(self) -> tuple[Blocker, ...]:
        """Return why the guest cannot be slowed; empty when it can, or stands still. Takes at most seconds."""
        return await self._port.blockers(self._guest)

    async def begin(self, writes: int = FORTY) -> None:
        """Let each process write so many pages per slot from now on; again, it changes the number.

        Raises:
            BadInput: the budget makes no sense.
            Refused: another order is in force in the guest and stays so.
            TimedOut: the guest does not answer.
            Broken: its port is not there, or it closed.
        """
        budget = WriteBudget(self._bandwidth(), self._most_hold_ms, writes)
        await self._port.begin(self._guest, self._handover, budget)

    def hush(self) -> None:
        """Say nothing more to the guest: it stands still."""
        self._port.hush(self._handover)

    def seen(self) -> Throttled | None:
        """Return what it has done, as last heard; None when it never was in force."""
        return self._port.seen(self._handover) or self._last

    async def end(self) -> None:
        """Let the guest run free; never raises, takes at most a second. Idempotent."""
        self._last = self.seen()
        await self._port.end(self._handover)
