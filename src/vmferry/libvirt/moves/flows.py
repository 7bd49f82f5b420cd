"""How a move is carried: by the two daemons alone, or with this process between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vmferry.core.errors import Broken
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.request import Request
from vmferry.libvirt.moves.tuning import DIRECT

#: How the source's daemon says that it cannot reach the other one (qemu_migration.c, libvirt 9.0 and 11.3): before
#: anything else of a move, so nothing was touched.
_UNREACHED = "Failed to connect to remote libvirt URI"


class Carrier(Protocol):
    """Whoever has the source's daemon move a domain."""

    async def move(self, name: str, destination: str, request: Request) -> None:
        """Move a domain; returns when libvirt has finished."""


@dataclass(frozen=True, slots=True)
class EitherFlow:
    """From daemon to daemon where the source's reaches the destination's, else through this process.

    Args:
        source: a connection to the source's daemon on which nothing else is asked meanwhile.
        there: the same to the destination's.
        request: of the direct flow.
        flow: the one that was asked for; None: whichever works.
        tell: gets a sentence when this process has to stand between them.
    """

    source: LibvirtConnection
    there: LibvirtConnection
    request: Request
    flow: str | None
    tell: Callable[[str], object]

    async def move(self, name: str, destination: str, request: Request) -> None:
        """Move a domain; raises as `LibvirtConnection.move`."""
        if self.flow != DIRECT:
            try:
                await self.source.move(name, destination, request)
            except Broken as error:
                if _UNREACHED not in error.what or self.flow is not None:
                    raise
                self.tell(f"{error.what}; this process stands between the two daemons instead: keep it running")
            else:
                return
        await self.source.move(name, self.there, self.request)
