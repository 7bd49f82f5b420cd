"""A member of the fleet that is slow, or wants too much, takes nothing from the others."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmferry.agent.connection import Limits
from vmferry.pki.identity import IdentityDirectory
from vmferry.testing.fake_service import FakeService
from vmferry.testing.fleet_kit import FleetKit, Served, serve

GET = b"GET /v1/host HTTP/1.1\r\nHost: x\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Scene:
    """One served agent, two operators, and every connection that they opened."""

    def __init__(self, served: Served, admin: IdentityDirectory, other: IdentityDirectory) -> None:
        self.served, self.admin, self.other = served, admin, other
        self.opened: list[Stream] = []

    async def connect(self, identity: IdentityDirectory) -> Stream:
        """Open a TLS connection."""
        endpoint = self.served.endpoint
        stream = await asyncio.open_connection(
            endpoint.address, endpoint.port, ssl=identity.client_context(), server_hostname=endpoint.server_name
        )
        self.opened.append(stream)
        return stream


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Short limits."""
    kit = FleetKit(tmp_path)
    host, admin, other = kit.add_host("host-a"), kit.add_operator("admin"), kit.add_operator("other")
    kit.tell(host)
    limits = Limits(head_s=0.3, per_member=3)
    async with serve(host, FakeService("host-a"), tmp_path / "no-ca", limits=limits) as served:
        scene = Scene(served, admin, other)
        yield scene
        for _, writer in scene.opened:
            writer.close()
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await writer.wait_closed()


async def status_of(stream: Stream) -> bytes:
    """Ask for the host and return the answer's status; empty when the agent hung up."""
    reader, writer = stream
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        return head.split()[1]
    return b""


async def read_end(reader: asyncio.StreamReader) -> bytes:
    """Wait until the agent hangs up; return what it said before."""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            return await reader.read()
    return b""


@pytest.mark.parametrize("asked_before", [False, True])
async def test_half_a_header_has_its_time(scene: Scene, asked_before: bool) -> None:
    """A connection whose headers do not come to an end is closed, also when it was good before."""
    reader, writer = stream = await scene.connect(scene.admin)
    if asked_before:
        assert await status_of(stream) == b"200"
    writer.write(GET[:-2])
    assert await read_end(reader) == b""


async def test_drops_do_not_help(scene: Scene) -> None:
    """Sending another byte now and then gives the headers no more time."""
    reader, writer = await scene.connect(scene.admin)
    writer.write(b"GET /v1/host HTTP/1.1\r\nX: ")
    ended = asyncio.create_task(read_end(reader))
    with contextlib.suppress(ConnectionError):
        while not ended.done():
            writer.write(b"x")
            await writer.drain()
            await asyncio.wait((ended,), timeout=0.05)
    assert await ended == b""


async def test_an_idle_connection_stays(scene: Scene) -> None:
    """Between two requests nothing is half-sent: the connection outlasts the limit of a header."""
    idle = await scene.connect(scene.admin)
    assert await status_of(idle) == b"200"
    late = await scene.connect(scene.admin)
    late[1].write(GET[:-2])
    await read_end(late[0])  # the limit has passed
    assert await status_of(idle) == b"200"


async def test_one_member_leaves_room_for_others(scene: Scene) -> None:
    """A member has so many connections and no more; others do not notice, and closing one makes room."""
    held = [await scene.connect(scene.admin) for _ in range(3)]
    assert [await status_of(stream) for stream in held] == [b"200"] * 3
    assert await status_of(await scene.connect(scene.admin)) == b""
    assert await status_of(await scene.connect(scene.other)) == b"200"
    held[0][1].close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await held[0][1].wait_closed()
    async with asyncio.timeout(20):
        while await status_of(await scene.connect(scene.admin)) != b"200":
            pass
