"""Answers without a foreseeable end: progress lines and the console."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import pytest

from vmferry.agent import streams
from vmferry.api.client import Client
from vmferry.core.errors import BadInput, Denied, GuestBusy, NotFound, Unreachable, VmferryError
from vmferry.testing.fleet_kit import World

WATCH = "/v1/handovers/h1/watch"


def read_all(client: Client, path: str) -> list[dict[str, object]]:
    """Return all events of a stream."""
    return list(client.stream(path))


async def test_watch(world: World) -> None:
    """A watch sends every event as a line and ends after the last."""
    events = await asyncio.to_thread(read_all, world.served.client(world.reader), WATCH)
    assert [event["event"] for event in events] == ["state", "finished"]
    assert events[1]["outcome"] == "moved"


async def test_watch_of_nothing(world: World) -> None:
    """Watching an unknown hand-over is a plain 404 before anything is sent."""
    with pytest.raises(NotFound):
        await asyncio.to_thread(read_all, world.served.client(world.reader), "/v1/handovers/h9/watch")


async def test_watch_that_fails(world: World) -> None:
    """An error in the middle of a stream is raised by the client as what it is."""
    world.service.failures["watch"] = GuestBusy("web-7 is busy", retry=True)
    seen = []

    def read() -> None:
        for event in world.served.client(world.reader).stream(WATCH):
            seen.append(event["event"])  # noqa: PERF401 - what came before the error counts

    with pytest.raises(GuestBusy, match="busy"):
        await asyncio.to_thread(read)
    assert seen == ["state"]


async def test_silence_is_bridged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty lines keep a silent stream alive, and clients do not see them."""
    monkeypatch.setattr(streams, "SILENCE_S", 0.01)
    world.service.hold = asyncio.Event()
    lines = 0
    async with aiohttp.ClientSession() as session:
        base = f"https://127.0.0.1:{world.served.listener.port}"
        name = world.served.endpoint.server_name
        context = world.reader.client_context()
        async with session.get(base + WATCH, ssl=context, server_hostname=name) as response:
            async for line in response.content:
                lines += line == b"\n"
                if lines == 3:
                    world.service.hold.set()
    assert lines >= 3


async def test_removed_reader_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is removed while watching sees nothing more."""
    monkeypatch.setattr(streams, "SILENCE_S", 0.01)
    world.service.hold = asyncio.Event()
    seen = []

    def read() -> None:
        for event in world.served.client(world.reader).stream(WATCH):
            seen.append(event["event"])  # noqa: PERF401 - what came before the error counts

    task = asyncio.create_task(asyncio.to_thread(read))
    while not world.service.calls:  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0)
    world.kit.change(lambda membership: membership.without_operator("reader"))
    world.served.gate.accept_membership(world.kit.authority.signed_membership())
    with pytest.raises(Denied, match="not a member"):
        await task
    assert "finished" not in seen


async def test_reader_that_leaves(world: World) -> None:
    """A reader that goes away ends the stream at the agent too."""
    world.service.hold = asyncio.Event()
    stream = world.served.client(world.reader).stream(WATCH)
    assert (await asyncio.to_thread(next, stream))["event"] == "state"
    await asyncio.to_thread(stream.close)  # type: ignore[attr-defined]
    world.service.hold.set()
    await asyncio.gather(*world.served.server._streams, return_exceptions=True)
    assert not world.served.server._streams


async def test_agent_that_ends(world: World) -> None:
    """An agent that ends cuts open streams, and their readers are told that it does not answer any more."""
    world.service.hold = asyncio.Event()
    stream = world.served.client(world.reader).stream(WATCH)
    assert (await asyncio.to_thread(next, stream))["event"] == "state"
    world.served.server.end_streams()
    with pytest.raises(Unreachable, match="cut"):
        await asyncio.to_thread(list, stream)


async def open_console(world: World, session: aiohttp.ClientSession, context: ssl.SSLContext) -> None:
    """Type on the console and read it."""
    url = f"https://127.0.0.1:{world.served.listener.port}/v1/guests/web-7/console"
    name = world.served.endpoint.server_name
    async with session.ws_connect(url, ssl=context, server_hostname=name) as socket:
        await socket.send_bytes(b"hello")
        assert await socket.receive_bytes() == b"HELLO"
        await socket.send_bytes(b"bye")
        assert (await socket.receive()).type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}


async def test_console(world: World) -> None:
    """A console carries bytes both ways, ends when the guest's side ends, and is let go of."""
    async with aiohttp.ClientSession() as session:
        await open_console(world, session, world.admin.client_context())
    await asyncio.gather(*world.served.server._streams, return_exceptions=True)
    assert world.service.console.closed


async def test_console_needs_operate(world: World) -> None:
    """A reader may look at guests, not type on their consoles."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await open_console(world, session, world.reader.client_context())
    assert caught.value.status == 403
    assert world.service.calls == []


async def test_console_is_a_websocket(world: World) -> None:
    """A plain GET of the console is refused, and the console is let go of."""
    error: VmferryError | None = None
    try:
        with world.served.client(world.admin) as client:
            await asyncio.to_thread(client.request, "GET", "/v1/guests/web-7/console")
    except BadInput as caught:
        error = caught
    assert error is not None
    assert "WebSocket" in error.what
    assert world.service.console.closed
