"""One domain of a libvirt host that moves to another, as `ports.domains.MovingDomain`."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from vmferry.core.errors import Broken, TimedOut, VmferryError
from vmferry.core.migration import MigrationSample
from vmferry.core.units import MIB, BytesPerSecond, Milliseconds
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves import terms
from vmferry.libvirt.moves.flows import Carrier, EitherFlow
from vmferry.libvirt.moves.happenings import Happening, Lost
from vmferry.libvirt.moves.request import Request
from vmferry.libvirt.moves.standing import Job, Run

#: How long a new connection, and each call over it, may take.
_ANEW_S = 10.0


@dataclass(frozen=True, slots=True)
class LibvirtMove:
    """A move between two daemons; each call raises as the connection's does.

    Args:
        source: the daemon of the host that the domain leaves, for readings and orders.
        carrier: has it moved, over another connection, on which nothing else is asked (docs/design/libvirt.md).
        name: the domain.
        destination: the other daemon's address as the source's daemon reaches it.
        request: what libvirt is told, without blockers.
        heard: what the source's daemon tells by itself; None: it is only asked.
        held_at: the destination's daemon, where the domain is held at its arrival; None: libvirt lets it run.
    """

    source: LibvirtConnection
    carrier: Carrier
    name: str
    destination: str
    request: Request
    heard: asyncio.Queue[Happening] | None = None
    held_at: LibvirtConnection | None = None

    async def move(self) -> None:
        """Move it; returns when libvirt has finished, and so ended the source's process, and it may run."""
        await self.carrier.move(self.name, self.destination, self.request)
        if self.held_at is not None:
            await _let_run(self.held_at, self.name)

    async def sample(self) -> MigrationSample:
        """Return how the move stands."""
        return await self.source.job(self.name)

    async def wait_news(self, most_s: float) -> None:
        """Return when something happened to it, or after that time."""
        await wait_news(self.heard, most_s)

    async def abort(self) -> None:
        """Give the move up, over a new connection where the one for orders is lost; nothing else is begun then."""
        if isinstance(self.carrier, EitherFlow):
            self.carrier.give_up()
        try:
            await self.source.abort(self.name)
        except (Broken, TimedOut):
            await self._abort_anew()

    async def _abort_anew(self) -> None:
        another = await self.source.anew(time_limit_s=_ANEW_S)
        try:
            await another.abort(self.name)
        finally:
            await another.close()

    async def set_downtime_limit(self, limit_ms: Milliseconds) -> None:
        """Let QEMU switch over when the rest takes no longer than this."""
        await self.source.set_downtime_limit(self.name, limit_ms)

    async def set_bandwidth(self, bandwidth: BytesPerSecond | None) -> None:
        """Limit the stream; None: as much as the link gives."""
        await self.source.set_bandwidth(self.name, bandwidth)

    async def set_following(self, bandwidth: BytesPerSecond | None) -> None:
        """Limit pages that nobody waits for, where the others overtake them; never above what was asked for."""
        if not self.request.preempts:
            return
        asked = self.request.parameters.get(terms.BANDWIDTH_POSTCOPY.name)
        limits = [one for one in (bandwidth, None if asked is None else int(str(asked)) * MIB) if one is not None]
        await self.source.set_postcopy_bandwidth(self.name, BytesPerSecond(min(limits)) if limits else None)

    async def start_postcopy(self) -> None:
        """Have it started at the destination while its pages follow."""
        await self.source.start_postcopy(self.name)

    async def suspend(self) -> None:
        """Stop its vCPUs."""
        await self.source.suspend(self.name)

    async def resume(self) -> None:
        """Let its vCPUs run."""
        await self.source.resume(self.name)


async def _let_run(there: LibvirtConnection, name: str) -> None:
    """Resume a domain that was held at its arrival; one that somebody has resumed meanwhile runs already."""
    try:
        await there.resume(name)
    except VmferryError:
        if (await there.standing(name)).run is not Run.RUNS:
            raise


#: Between two looks whether a move of somebody else's is over.
_LOOK_EVERY_S = 0.2


class RunningMove(LibvirtMove):
    """A move that runs already, as somebody else asked for it: it is watched and steered, not begun."""

    async def move(self) -> None:
        """Wait for its end.

        Raises:
            Broken: it ended, and the domain is still at the source.
        """
        now = await self.source.standing(self.name)
        while now.job is Job.OUT:
            await asyncio.sleep(_LOOK_EVERY_S)
            now = await self.source.standing(self.name)
        if now.run not in (Run.ABSENT, Run.OFF):
            raise Broken(f"move of domain {self.name} ended without arriving: at the source it is {now.says}")


async def wait_news(heard: asyncio.Queue[Happening] | None, most_s: float) -> None:
    """Return when a daemon told of something, or after that time; what it told is taken out of the queue.

    A connection that is lost tells nothing more, so then it is the time alone.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(most_s):
            if heard is None or isinstance(await heard.get(), Lost):
                await asyncio.sleep(most_s)
    while heard is not None and not heard.empty():  # one look is enough for all of them
        heard.get_nowait()
