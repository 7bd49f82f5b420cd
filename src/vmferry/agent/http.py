"""The agent's HTTP server: routes of the table, identity per request, problems for all errors.

aiohttp's low-level server is used without its application framework: the table is the router, and a request costs
only what is here. Each request goes: who asks (`gate`) -> which route (`dispatch`) -> read the body within its limits
-> call the service -> answer. When a handler's time limit passes, the caller is told; the handler goes on.

Source: https://docs.aiohttp.org/en/stable/web_lowlevel.html
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from aiohttp import web

from vmferry.agent import streams
from vmferry.agent.dispatch import Table, WrongMethod, load_body
from vmferry.agent.gate import Gate, Member
from vmferry.agent.responses import json_response, problem_response
from vmferry.agent.service_port import AgentService, FleetService
from vmferry.api.routes import ROUTES, Access, Route, Shape
from vmferry.core.errors import BadInput, TimedOut, VmferryError

T = TypeVar("T")

#: Larger bodies are refused: the largest real one, a guest with its frozen hardware, has a few KiB.
MOST_BODY_BYTES = 1 << 20
#: A body must have come within this time.
BODY_TIME_LIMIT_S = 10.0


class HttpServer:
    """Answers requests.

    Args:
        service: what the agent does.
        fleet: membership and certificates.
        gate: decides who may ask what.
        body_time_limit_s: how long a body may take.
    """

    def __init__(
        self,
        service: AgentService,
        fleet: FleetService,
        gate: Gate,
        *,
        body_time_limit_s: float = BODY_TIME_LIMIT_S,
    ) -> None:
        self._service = service
        self._fleet = fleet
        self._gate = gate
        self._body_time_limit_s = body_time_limit_s
        self._table = Table(ROUTES)
        self._running: set[asyncio.Task[Any]] = set()
        self._streams: set[asyncio.Task[Any]] = set()
        self._log = structlog.get_logger("vmferry.http")

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every error becomes a problem."""
        try:
            return await self._answer(request)
        except WrongMethod as error:
            return problem_response(error, 405, headers={"Allow": ", ".join(error.allowed)})
        except VmferryError as error:
            self._log.info("refused", path=request.path, code=error.code, what=error.what, remote=request.remote)
            return problem_response(error)
        except web.HTTPRequestEntityTooLarge:
            return too_large()
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - a bug in one handler ends that request, never the agent
            # Formatted here, without the variables that some renderers add: a body may hold a stream's key.
            told = traceback.format_exc()
            self._log.error("handler failed", path=request.path, method=request.method, exception=told)
            return problem_response(VmferryError("The agent failed on this request", fix="see the agent's log"))

    def end_streams(self) -> None:
        """Cut streams that are open: they have no end of their own to wait for."""
        for task in self._streams:
            task.cancel()

    async def close(self, grace_s: float = 5.0) -> None:
        """End open streams, and give handlers that still run a moment to end by themselves."""
        self.end_streams()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, *self._streams, return_exceptions=True)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, or raise."""
        member = self._identify(request, Access.MEMBER)
        route, arguments = self._table.match(request.method, request.path)
        member = self._identify(request, route.access)
        call = self._bind(route, member, arguments, await self._read(request, route))
        if route.shape is Shape.JSON:
            return self._reply(route, await self._limited(route, call()))
        opened = await self._limited(route, call())
        return await self._stream(request, route, opened)

    def _identify(self, request: web.BaseRequest, access: Access) -> Member:
        """Return who asks, if they may."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("The client is gone")
        return self._gate.check(transport.get_extra_info("peercert"), access)

    async def _read(self, request: web.BaseRequest, route: Route) -> list[object]:
        """Return the body as a list of one, empty for a route without.

        Raises:
            HTTPRequestEntityTooLarge: it is, or says that it will be, too large.
            BadInput: the body is not right.
            TimedOut: it did not come in time.
        """
        announced = request.content_length or 0
        if announced > MOST_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MOST_BODY_BYTES, announced)
        try:
            async with asyncio.timeout(self._body_time_limit_s):
                content = await request.read()
        except TimeoutError as error:
            limit = f"{self._body_time_limit_s:g} s"
            raise TimedOut(f"The body of {request.method} {request.path} did not come within {limit}") from error
        if route.request is not None:
            return [load_body(route.request, content)]
        if content.strip() not in {b"", b"{}"}:
            raise BadInput(f"{route.method} {route.path} takes no body")
        return []

    def _bind(
        self, route: Route, member: Member, arguments: list[str], body: list[object]
    ) -> Callable[[], Awaitable[Any]]:
        """Return the call of the service's method, its arguments in the documented order."""
        target: Any = self._fleet if route.fleet else self._service
        method = getattr(target, route.handler)
        caller: list[object] = []
        if route.access is Access.PEER:
            caller = [member.name]
        elif route.handler == "renew":
            caller = [member.identity]
        return lambda: method(*caller, *arguments, *body)

    async def _limited(self, route: Route, call: Awaitable[T]) -> T:
        """Wait for a handler for as long as its route allows; never cut it off.

        Raises:
            TimedOut: it takes longer; it goes on, and what comes of it is logged.
        """
        task = asyncio.ensure_future(call)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            done, _ = await asyncio.wait((task,), timeout=route.time_limit_s)
        except asyncio.CancelledError:  # the client has gone
            task.add_done_callback(lambda late: self._tell_late(route, late))
            raise
        if done:
            return task.result()
        task.add_done_callback(lambda late: self._tell_late(route, late))
        raise TimedOut(
            f"{route.method} {route.path} takes longer than {route.time_limit_s:g} s; it goes on",
            fix="ask for the state again before repeating it",
        )

    def _tell_late(self, route: Route, task: asyncio.Future[Any]) -> None:
        """Log how a handler ended that nobody waits for any more."""
        error = None if task.cancelled() else task.exception()
        self._log.warning("late handler ended", route=route.handler, error=None if error is None else str(error))

    def _reply(self, route: Route, result: object) -> web.Response:
        """Return the answer to a plain request."""
        if route.response is None:
            return web.Response(status=route.status)
        return json_response(self._table.dump(route, result), route.status)

    async def _stream(self, request: web.BaseRequest, route: Route, opened: Any) -> web.StreamResponse:
        """Send a stream until its end, or until its reader may no longer read."""
        task = asyncio.current_task()
        if task is not None:
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)

        def still_allowed() -> None:
            self._identify(request, route.access)

        if route.shape is Shape.SOCKET:
            return await streams.serve_console(request, opened, still_allowed)
        return await streams.serve_lines(request, opened, lambda event: self._table.dump(route, event), still_allowed)


def too_large() -> web.Response:
    """Return the answer to a body that is too large, and close the connection."""
    response = problem_response(BadInput(f"The body is larger than {MOST_BODY_BYTES} bytes"), 413)
    response.force_close()
    return response
