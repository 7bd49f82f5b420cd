"""One listening socket, and what is behind it: first enrolment, then normal work, without closing it between."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
import weakref
from typing import Any

import structlog
from aiohttp import web

from vmferry.links.listening import listening_socket

_HANDSHAKE_TIME_LIMIT_S = 10.0
_BACKLOG = 128
#: TLS buffers take a quarter of a MiB per connection, before anybody has shown a certificate.
MOST_CONNECTIONS = 1000
#: One peer that runs wild must not lock the others out.
MOST_PER_ADDRESS = 250
_TELL_EVERY_S = 60.0


class _Doorkeeper(socket.socket):
    """A listening socket that closes connections beyond the limits at once."""

    __slots__ = ("_accepted", "_told_at")

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._accepted: weakref.WeakKeyDictionary[socket.socket, str] = weakref.WeakKeyDictionary()
        self._told_at = float("-inf")

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection.

        Raises:
            BlockingIOError: there is none, or it was one too many.
        """
        connection, address = super().accept()
        host = str(address[0])
        held = [known for one, known in self._accepted.items() if one.fileno() >= 0]
        if len(held) < MOST_CONNECTIONS and held.count(host) < MOST_PER_ADDRESS:
            self._accepted[connection] = host
            return connection, address
        connection.close()
        if time.monotonic() - self._told_at > _TELL_EVERY_S:
            self._told_at = time.monotonic()
            structlog.get_logger("vmferry.listener").warning(
                "too many connections, closing new ones", of=host, open=len(held), open_of_this_one=held.count(host)
            )
        raise BlockingIOError


class Listener:
    """Listens on one address.

    Args:
        address: IP address.
        port: TCP port; 0 takes a free one.

    Raises:
        Broken: the port is taken, or the address is not one of this host.
    """

    def __init__(self, address: str, port: int) -> None:
        self._socket = listening_socket(
            _Doorkeeper, address, port, _BACKLOG, what="listen", setting="listen address or port"
        )
        self.port = int(self._socket.getsockname()[1])  #: the port that is listened on
        self._server: asyncio.Server | None = None
        self._protocol: web.Server | None = None

    async def serve(self, protocol: web.Server, context: ssl.SSLContext) -> None:
        """Answer new connections with this protocol; what was behind the socket before is closed."""
        await self.pause()
        self._protocol = protocol
        self._server = await asyncio.get_running_loop().create_server(
            protocol,
            sock=self._socket.dup(),
            ssl=context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=_HANDSHAKE_TIME_LIMIT_S,
        )

    async def pause(self, grace_s: float = 5.0) -> None:
        """Stop answering: open connections get `grace_s` to end, new ones wait in the backlog."""
        if self._server is not None:
            self._server.close()
        if self._protocol is not None:
            self._protocol.pre_shutdown()
            await self._protocol.shutdown(grace_s)
        self._server = self._protocol = None

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        await self.pause()
        with contextlib.suppress(OSError):
            self._socket.close()
