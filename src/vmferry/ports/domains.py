"""What whoever steers the move of a libvirt domain must be able to ask and order. Libvirt itself commits the move."""

from __future__ import annotations

from typing import Protocol

from vmferry.core.migration import MigrationSample
from vmferry.core.units import BytesPerSecond, Milliseconds


class MovingDomain(Protocol):
    """One domain that is to move, or moves."""

    @property
    def name(self) -> str:
        """The domain's name."""

    async def move(self) -> None:
        """Move it; returns when libvirt has finished.

        Raises:
            VmferryError: it failed, in libvirt's words.
        """

    async def sample(self) -> MigrationSample:
        """Return how the move stands; status `none` while there is none."""

    async def wait_news(self, most_s: float) -> None:
        """Return when something happened to it (a round ended, its state changed), or after that time at the latest."""

    async def abort(self) -> None:
        """Give the move up.

        Raises:
            Refused: there is none, or it cannot be given up any more.
        """

    async def set_downtime_limit(self, limit_ms: Milliseconds) -> None:
        """Let QEMU switch over when the rest takes no longer than this."""

    async def set_bandwidth(self, bandwidth: BytesPerSecond | None) -> None:
        """Limit the stream; None: as much as the link gives."""

    async def set_following(self, bandwidth: BytesPerSecond | None) -> None:
        """Limit what is sent in post-copy beside the pages that the guest waits for; None: as asked for at the start.

        Without effect where those wait in the queue behind the others: then it would only take longer.
        """

    async def start_postcopy(self) -> None:
        """Have it started at the destination while its pages follow."""

    async def suspend(self) -> None:
        """Stop its vCPUs."""

    async def resume(self) -> None:
        """Let its vCPUs run."""
