"""One connection to the agent: how long a request may take to come, and how many connections one member may have.

aiohttp limits the size of headers, not the time that they take: a member that sends half a header, or opens one
connection after the other, would hold memory and descriptors that others need.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from vmferry.agent.responses import problem_response
from vmferry.core.errors import BadInput, VmferryError

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_TELL_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection, and one member, may take.

    Args:
        head_s: from the first byte of a request to the end of its headers.
        keep_alive_s: an idle connection is closed after this time; peers close theirs a little before.
        per_member: open connections of one certificate's holder; an agent needs a few, an operator one per command.
    """

    head_s: float = 10.0
    keep_alive_s: float = 300.0
    per_member: int = 100


DEFAULT_LIMITS = Limits()


class _Connection(web.RequestHandler):
    """aiohttp's connection, with limits, and with our problems for what is not even HTTP."""

    __slots__ = ("_head_timer", "_member", "_protocol")

    def __init__(self, protocol: _Protocol, *, loop: asyncio.AbstractEventLoop, **keywords: Any) -> None:
        super().__init__(protocol, loop=loop, **keywords)
        self._protocol = protocol
        self._member: str | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless the member has too many connections already."""
        super().connection_made(transport)
        self._member = _member(transport.get_extra_info("peercert"))
        if not self._protocol.enter(self._member):
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._stop_timer()
        self._protocol.leave(self._member)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; from the first byte of a request on its headers have a limit."""
        before = self._request_count
        super().data_received(data)
        if self._request_count != before or self._current_request is not None:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(self._protocol.limits.head_s, self.force_close)

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 - aiohttp's signature
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature
    ) -> web.StreamResponse:
        """Return a problem and close the connection."""
        if status < 500 or isinstance(exc, HttpProcessingError):
            response = problem_response(BadInput("The request is not HTTP as this agent understands it"), status)
        else:
            response = problem_response(VmferryError("The agent failed on this request", fix="see the agent's log"))
        response.force_close()
        return response

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Protocol(web.Server):
    """aiohttp's server, making our connections and counting them by member.

    Args:
        handle: answers a request.
        limits: what a connection and a member may take.
    """

    def __init__(self, handle: Handle, limits: Limits, **keywords: Any) -> None:
        super().__init__(handle, keepalive_timeout=limits.keep_alive_s, **keywords)
        self.limits = limits
        self._open: Counter[str | None] = Counter()
        self._told_at = float("-inf")

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of one new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)

    def enter(self, member: str | None) -> bool:
        """Count a connection; tell whether it may stay. Those of nobody are limited by address only."""
        self._open[member] += 1
        if member is None or self._open[member] <= self.limits.per_member:
            return True
        if time.monotonic() - self._told_at > _TELL_EVERY_S:
            self._told_at = time.monotonic()
            structlog.get_logger("vmferry.listener").warning(
                "too many connections of one member, closing new ones", of=member, limit=self.limits.per_member
            )
        return False

    def leave(self, member: str | None) -> None:
        """Count a connection no more."""
        self._open[member] -= 1
        if not self._open[member]:
            del self._open[member]


def make_protocol(handle: Handle, limits: Limits = DEFAULT_LIMITS) -> web.Server:
    """Return the protocol factory for `loop.create_server`.

    Bodies are never decompressed: a small one could become a huge one. A client that goes away ends its stream at once;
    what the service does for it goes on (`HttpServer`).
    """
    return _Protocol(handle, limits, access_log=None, auto_decompress=False, handler_cancellation=True)


def _member(peercert: Mapping[str, Any] | None) -> str | None:
    """Return whose certificate it is, as the certificate says; whether they may ask is asked with every request."""
    names = (peercert or {}).get("subjectAltName", ())
    return next((value for kind, value in names if kind == "URI"), None)
