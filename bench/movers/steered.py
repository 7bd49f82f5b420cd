"""Guests of libvirt hosts under our policies: libvirt moves them, this process steers."""

from __future__ import annotations

import asyncio
import time

from grid.cells import GOAL_GAP_MS, GUEST, Cell
from grid.figures import Word
from grid.observe import DESTINATION, SOURCE

from movers.virsh import VirshMover
from vmferry.conductor.domain_move import DomainMove, Ended, Event, unattended_brake
from vmferry.conductor.plan import Asked, Choice
from vmferry.core.capabilities import StreamWish
from vmferry.core.errors import Broken
from vmferry.core.units import MIB, Bytes, Milliseconds
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.moving import LibvirtMove
from vmferry.libvirt.moves.request import Wish, make_request
from vmferry.libvirt.moves.tuning import Tuning

#: A move that was given up and does not end is a fault of the bench.
ENDS_WITHIN_S = 30.0


class SteeredMover(VirshMover):
    """What `vmferry migrate --libvirt held=no` does with a domain, with the connections that a library keeps open.

    The cells' guests have no disk, or none that QEMU locks, so without held=no they would be held at their arrival; no
    other mover of libvirt's guests holds them.
    """

    name = "vmferry on libvirt"

    def __init__(self, lab: Lab, daemons: dict[str, LibvirtDaemon]) -> None:
        super().__init__(lab, daemons)
        self._open: list[LibvirtConnection] = []
        self._memory = Bytes(0)

    async def boot(self, cell: Cell) -> None:
        """Create the domain on host-a, and connect."""
        await super().boot(cell)
        self._memory = Bytes(cell.memory_mib * MIB)
        for host in (SOURCE, SOURCE, DESTINATION):
            self._open.append(await LibvirtConnection.connect(self._daemons[host].socket_uri()))

    async def order(self, limit_s: float) -> Word:
        """Move the domain under our policy; a late one is given up."""
        source, carrier, there = self._open
        uri = self._daemons[DESTINATION].uri
        stream, choice = StreamWish(encrypted=False), Choice(max_gap_ms=Milliseconds(GOAL_GAP_MS))
        asked = Asked(choice, self._memory, None, None, postcopy=self.postcopy, stream=stream)
        brake = unattended_brake(asked)
        wish = Wish(
            stream,
            auto_converge=brake > 0,
            brake=brake,
            postcopy=self.postcopy,
            stream_uri=uri.replace("qemu+tcp", "tcp").removesuffix("/system"),
            tuning=Tuning(unsafe=bool(self._unsafe)),  # libvirt cannot know that both hosts see the same files
        )
        request = make_request(wish, min([await source.version(), await there.version()]))
        if request.blockers:
            raise Broken("; ".join(blocker.what for blocker in request.blockers))
        async with source.listening(GUEST) as heard:
            domain = LibvirtMove(source, carrier, GUEST, uri, request, heard)
            move = DomainMove(domain, asked, _ignore, bounded=brake > 0)
            running = asyncio.create_task(move.run())
            await asyncio.wait({running}, timeout=limit_s)
            if late := not running.done():
                await move.give_up("not there within the time limit")
                await asyncio.wait({running}, timeout=ENDS_WITHIN_S)
        if not running.done():
            raise Broken(f"Move of domain {GUEST} does not end; daemon: {self._daemons[SOURCE].tail(5)}")
        return _word(running.result(), time.monotonic_ns(), late=late)

    async def end(self) -> None:
        """Close the connections and destroy the domain on both hosts."""
        while self._open:
            await self._open.pop().close()
        await super().end()


class SteeredPostcopy(SteeredMover):
    """The same, and the policy may begin post-copy."""

    name = "vmferry on libvirt post-copy"
    postcopy = True


async def _ignore(event: Event) -> None:
    """Watch nothing."""


def _word(ended: Ended, ended_ns: int, *, late: bool) -> Word:
    last = ended.last
    return Word(
        ended.failure is None,
        ended_ns,
        None if ended.failure is None else "not there within the time limit" if late else ended.reason,
        None if last is None else last.transferred_bytes,
        None if last is None else last.total_ms,
        None if last is None else last.downtime_ms,
        None if last is None else last.rounds,
        {"limit_ms": ended.limit_ms},
    )
