"""One domain of a libvirt host that moves to another, as `ports.domains.MovingDomain`."""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.migration import MigrationSample
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.flows import Carrier
from vmferry.libvirt.moves.request import Request


@dataclass(frozen=True, slots=True)
class LibvirtMove:
    """A move between two daemons; each call raises as the connection's does.

    Args:
        source: the daemon of the host that the domain leaves, for readings and orders.
        carrier: has it moved, over another connection, on which nothing else is asked while the move lasts.
        name: the domain.
        destination: the other daemon's address as the source's daemon reaches it.
        request: what libvirt is told, without blockers.
    """

    source: LibvirtConnection
    carrier: Carrier
    name: str
    destination: str
    request: Request

    async def move(self) -> None:
        """Move it; returns when libvirt has finished."""
        await self.carrier.move(self.name, self.destination, self.request)

    async def sample(self) -> MigrationSample:
        """Return how the move stands."""
        return await self.source.job(self.name)

    async def abort(self) -> None:
        """Give the move up."""
        await self.source.abort(self.name)

    async def set_downtime_limit(self, limit_ms: Milliseconds) -> None:
        """Let QEMU switch over when the rest takes no longer than this."""
        await self.source.set_downtime_limit(self.name, limit_ms)

    async def set_bandwidth(self, bandwidth: BytesPerSecond | None) -> None:
        """Limit the stream; None: as much as the link gives."""
        await self.source.set_bandwidth(self.name, bandwidth)

    async def start_postcopy(self) -> None:
        """Have it started at the destination while its pages follow."""
        await self.source.start_postcopy(self.name)

    async def suspend(self) -> None:
        """Stop its vCPUs."""
        await self.source.suspend(self.name)

    async def resume(self) -> None:
        """Let its vCPUs run."""
        await self.source.resume(self.name)
