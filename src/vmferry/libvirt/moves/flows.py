"""How a move is carried: by the two daemons alone, or with this process between them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from vmferry.core.errors import Broken, Denied, VmferryError
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.request import Request
from vmferry.libvirt.moves.standing import Run
from vmferry.libvirt.moves.tuning import DIRECT

#: Where a daemon listens unless its address says otherwise.
_PORTS = {"qemu+tcp": 16509, "qemu+tls": 16514}
#: How the source's daemon says that it cannot reach the other one, beside what names the port of that one: before
#: anything else of a move, so nothing was touched. The stream fails in the same words as the connection between the
#: daemons (an address that is unknown, nobody at a port), but at another port: so there the port counts.
_UNREACHED = re.compile(
    "failed to connect to remote libvirt uri|host key verification failed"
    "|permission denied \\(|could not resolve hostname|ssh: connect to host|cannot find 'ssh'"
    "|cannot read ca certificate|authentication failed",
    re.IGNORECASE,
)


class Carrier(Protocol):
    """Whoever has the source's daemon move a domain."""

    async def move(self, name: str, destination: str, request: Request) -> None:
        """Move a domain; returns when libvirt has finished."""


def is_unreached(said: str, destination: str) -> bool:
    """Tell whether the source's daemon could not reach the destination's, by its words.

    Args:
        said: why a move from daemon to daemon failed.
        destination: the address of the destination's daemon, one that `checked_uri` lets through.
    """
    parts = urlsplit(destination)
    host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    at_its_port = (
        f"unable to connect to server at '{host}:{port}'",
        f"unable to resolve address '{host}' service '{port}'",
    )
    return any(words in said for words in at_its_port) or _UNREACHED.search(said) is not None


@dataclass(frozen=True, slots=True)
class EitherFlow:
    """From daemon to daemon where the source's reaches the destination's, else through this process.

    Args:
        source: a connection to the source's daemon on which nothing else is asked meanwhile.
        there: the same to the destination's.
        request: of the direct flow.
        flow: the one that was asked for; None: whichever works.
        tell: gets a sentence when this process has to stand between them.
        resumes: a post-copy that broke, so that the destination has a part of the domain already.
        given_up: set by `give_up`.
    """

    source: LibvirtConnection
    there: LibvirtConnection
    request: Request
    flow: str | None
    tell: Callable[[str], object]
    resumes: bool = False
    given_up: asyncio.Event = field(default_factory=asyncio.Event)

    def give_up(self) -> None:
        """Begin nothing any more; what was begun goes on."""
        self.given_up.set()

    async def move(self, name: str, destination: str, request: Request) -> None:
        """Move a domain; raises as `LibvirtConnection.move`."""
        if self.flow != DIRECT:
            try:
                await self.source.move(name, destination, request)
            except (Broken, Denied) as error:
                if self.flow is not None or not is_unreached(error.what, destination):
                    raise
                if not (self.resumes or await self._is_untouched(name)) or self.given_up.is_set():
                    raise
                self.tell(f"{error.what}; this process stands between the two daemons instead: keep it running")
            else:
                return
        await self.source.move(name, self.there, self.request)

    async def _is_untouched(self, name: str) -> bool:
        """Tell whether the destination has no process of the domain: not even half of a move that was begun."""
        with contextlib.suppress(VmferryError):
            return (await self.there.standing(name)).run in (Run.ABSENT, Run.OFF)
        return False
