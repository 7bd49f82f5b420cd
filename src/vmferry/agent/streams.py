"""Answers without a foreseeable end: progress as JSON lines, the console as a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import WSMsgType, web

from vmferry.agent.service_port import ConsoleLink
from vmferry.api.problems import to_problem
from vmferry.core.errors import BadInput, VmferryError

#: After this much silence an empty line is sent, so that both ends notice a dead connection.
SILENCE_S = 5.0
_MOST_CONSOLE_BYTES = 65536


async def serve_lines(
    request: web.BaseRequest,
    events: AsyncIterator[Any],
    dump: Callable[[Any], bytes],
    still_allowed: Callable[[], None],
) -> web.StreamResponse:
    """Send one JSON line per event; an error in the middle becomes a last line `{"event": "problem", ...}`.

    Args:
        request: who asked.
        events: what to send; closed at the end.
        dump: makes JSON of an event.
        still_allowed: raises Denied once the reader may no longer read; asked before every line.
    """
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    try:
        async for event in _with_silence(events):
            still_allowed()
            await response.write(b"\n" if event is None else dump(event) + b"\n")
    except VmferryError as error:
        await response.write(json.dumps({"event": "problem", **to_problem(error)}).encode() + b"\n")
    finally:
        await _close(events)
    await response.write_eof()
    return response


async def serve_console(
    request: web.BaseRequest, console: ConsoleLink, still_allowed: Callable[[], None]
) -> web.StreamResponse:
    """Join a WebSocket and a console until either ends; lets go of the console in every case.

    Raises:
        BadInput: the request is no WebSocket handshake.
    """
    socket = web.WebSocketResponse(heartbeat=30.0, max_msg_size=_MOST_CONSOLE_BYTES)
    try:
        if not socket.can_prepare(request):
            raise BadInput("The console is a WebSocket, this was a plain request", fix="use `vmferry guest console`")
        await socket.prepare(request)
        output = asyncio.create_task(_copy_output(console, socket, still_allowed))
        try:
            await _copy_input(socket, console, still_allowed)
        finally:
            output.cancel()
            await asyncio.gather(output, return_exceptions=True)
    finally:
        await console.close()
    await socket.close()
    return socket


async def _copy_output(console: ConsoleLink, socket: web.WebSocketResponse, still_allowed: Callable[[], None]) -> None:
    """Send what the guest prints; closes the socket at the end."""
    with contextlib.suppress(VmferryError, ConnectionError):
        while data := await console.read():
            still_allowed()
            await socket.send_bytes(data)
    await socket.close()


async def _copy_input(socket: web.WebSocketResponse, console: ConsoleLink, still_allowed: Callable[[], None]) -> None:
    """Send what is typed to the guest, until the socket is closed."""
    with contextlib.suppress(VmferryError):
        async for message in socket:
            still_allowed()
            if message.type in {WSMsgType.BINARY, WSMsgType.TEXT}:
                data = message.data
                await console.write(data.encode() if isinstance(data, str) else data)


async def _with_silence(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield events, and None after every `SILENCE_S` without one."""
    pending = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait((pending,), timeout=SILENCE_S)
            if not done:
                yield None
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            yield event
            pending = asyncio.ensure_future(anext(events))
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)


async def _close(events: AsyncIterator[Any]) -> None:
    """Close an iterator that can be closed."""
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
