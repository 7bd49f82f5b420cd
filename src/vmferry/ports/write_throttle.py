"""What must be able to slow the writes of a guest's programs, whoever does it: a helper in the guest today."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vmferry.core.errors import Blocker
from vmferry.core.ids import GuestName, HandoverId
from vmferry.core.progress import Throttled
from vmferry.core.units import BytesPerSecond, Milliseconds


@dataclass(frozen=True, slots=True)
class WriteBudget:
    """How much a guest's programs may write while it moves, in the terms of whoever moves it.

    Attributes:
        bandwidth: what the link gives to this migration.
        max_gap_ms: no write is held for longer.
        writes: pages per slot and process; the length of a slot follows from the others.
    """

    bandwidth: BytesPerSecond
    max_gap_ms: Milliseconds
    writes: int


class WriteThrottle(Protocol):
    """Slows the writes of guests of this host. Whatever breaks, a guest runs free soon."""

    async def blockers(self, guest: GuestName) -> tuple[Blocker, ...]:
        """Return why the guest cannot be slowed; empty when it can, or stands still. Takes at most seconds."""

    async def begin(self, guest: GuestName, handover: HandoverId, budget: WriteBudget) -> None:
        """Slow a guest's writes until `end`; again for the same hand-over it changes the budget.

        Raises:
            Refused: somebody else slows it, or the budget makes no sense to the guest.
            TimedOut: the guest does not answer.
            Broken: the guest has no such port, or it closed.
        """

    def hush(self, handover: HandoverId) -> None:
        """Say nothing more to a guest that was stopped for its last pages; `begin` or `end` follow, or its end."""

    def seen(self, handover: HandoverId) -> Throttled | None:
        """Return what the order has done so far, as last heard; None when none is in force."""

    async def end(self, handover: HandoverId) -> None:
        """Let the guest of a hand-over run free; never raises, takes at most a second. Idempotent."""

    def arrived(self, guest: GuestName, handover: HandoverId) -> None:
        """End what a guest carried over from its source, beside everything else; returns at once, never raises."""

    async def close(self) -> None:
        """Let every guest run free. Idempotent."""
