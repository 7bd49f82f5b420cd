"""QEMU's local connections and the agents' port, joined by the real program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self

import pytest
from structlog.testing import capture_logs

from vmferry.core.errors import Broken, Refused, VmferryError
from vmferry.core.ids import HandoverId
from vmferry.links.dial import dial
from vmferry.links.door import StreamDoor
from vmferry.links.relay import LocalRelays
from vmferry.ports.stream import StreamConnection, Ticket

MOVE, HERE = HandoverId("move-1"), "127.0.0.1"
#: More than any buffer between the two ends holds.
MUCH = os.urandom(1 << 20) * 24
LIMIT_S = 30.0


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory whose sockets have short names."""
    with tempfile.TemporaryDirectory(prefix="vf-") as made:
        yield Path(made)


class Way:
    """Both hosts of a stream: local sockets, relays, and the door between them."""

    def __init__(self, home: Path, most: int) -> None:
        self.here, self.there = home / "here.sock", home / "there.sock"
        self.source, self.destination = LocalRelays(), LocalRelays()
        self.door = StreamDoor(HERE, 0)
        self.arrivals: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.most = most
        self.dialled = 0
        self.ticket: Ticket | None = None
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Listen as a destination's QEMU does, and let its connections in."""
        server = await asyncio.start_unix_server(self._arrive, self.there)
        self._open.callback(server.close)
        self.door.start()
        self.ticket = self.door.expect(MOVE, self._take, self.most)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        for relays in (self.source, self.destination):
            relays.end(MOVE)
            await relays.close()
        await self.door.close()
        await self._open.aclose()

    async def _arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.callback(writer.close)
        await self.arrivals.put((reader, writer))

    async def _take(self, connection: StreamConnection) -> None:
        await self.destination.into(str(self.there), connection, None, MOVE)

    async def dial(self) -> StreamConnection:
        """Connect to the other host."""
        assert self.ticket is not None
        self.dialled += 1
        return await dial(HERE, self.ticket, MOVE)

    async def channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as a source's QEMU does."""
        ends = await asyncio.open_unix_connection(self.here)
        self._open.callback(ends[1].close)
        return ends

    async def arrived(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the next channel at the destination."""
        async with asyncio.timeout(LIMIT_S):
            return await self.arrivals.get()


@pytest.fixture
async def way(home: Path) -> AsyncIterator[Way]:
    """Three channels at the most."""
    async with Way(home, 3) as made:
        yield made


async def read(reader: asyncio.StreamReader, count: int = -1) -> bytes:
    """Read so much, or all until the end."""
    async with asyncio.timeout(LIMIT_S):
        return await reader.read() if count < 0 else await reader.readexactly(count)


async def test_every_channel_goes_through_in_order(way: Way) -> None:
    """Much, both ways at once; the first channel at the source is the first at the destination."""
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    here = [await way.channel() for _ in range(3)]
    for number, (_, writer) in enumerate(here):
        writer.write(b"channel %d" % number)
    there = [await way.arrived() for _ in range(3)]
    for number, (reader, _) in enumerate(there):
        assert await read(reader, 9) == b"channel %d" % number
    here[1][1].write(MUCH)
    there[1][1].write(MUCH)
    got = await asyncio.gather(read(there[1][0], len(MUCH)), read(here[1][0], len(MUCH)))
    assert list(got) == [MUCH, MUCH]
    here[1][1].write_eof()
    assert await read(there[1][0]) == b""
    there[1][1].write(b"the other way is open still")
    there[1][1].write_eof()
    assert await read(here[1][0]) == b"the other way is open still"


async def test_a_channel_too_many_is_closed(way: Way) -> None:
    """The ticket is good for three; QEMU sees a channel that is closed."""
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    here = [await way.channel() for _ in range(3)]
    for reader, writer in here:
        writer.write(b"x")
        assert await read((await way.arrived())[0], 1) == b"x"
        assert not reader.at_eof()
    with capture_logs() as logs:
        reader, _ = await way.channel()
        assert await read(reader) == b""
    assert "channel of a stream was not connected" in [each["event"] for each in logs]


async def test_a_destination_that_refuses_is_told_before_qemu_is(way: Way) -> None:
    """Nothing is listened on, and no program stays."""
    way.door.forget(MOVE)
    with pytest.raises(Refused):
        await way.source.out_of(str(way.here), way.dial, None, MOVE)
    assert not way.here.exists()
    assert way.source._programs == {}


async def test_a_destination_without_a_qemu(way: Way) -> None:
    """The connection is refused with the reason in the destination's log."""
    way.there.unlink()
    with capture_logs() as logs, pytest.raises(VmferryError):
        await way.source.out_of(str(way.here), way.dial, None, MOVE)
    assert any("QEMU takes no connection" in str(each.get("error")) for each in logs), logs


async def test_streams_outlive_both_agents(way: Way) -> None:
    """What is carried goes on when the agents let go, and the programs end with it."""
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    reader, writer = await way.channel()
    writer.write(b"before")
    there, back = await way.arrived()
    assert await read(there, 6) == b"before"
    pids = [relays._programs[MOVE].pid for relays in (way.source, way.destination)]
    for relays in (way.source, way.destination):
        await relays.close()
    assert not way.here.exists()
    writer.write(b"after")
    assert await read(there, 5) == b"after"
    writer.write_eof()
    back.write_eof()
    assert await read(reader) == b""
    for pid in pids:
        assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_program_that_dies_ends_its_streams(way: Way, side: str) -> None:
    """Both QEMUs see it at once, and another channel is refused."""
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    reader, writer = await way.channel()
    writer.write(b"x")
    there, _ = await way.arrived()
    assert await read(there, 1) == b"x"
    relays: LocalRelays = getattr(way, side)
    os.kill(relays._programs[MOVE].pid, signal.SIGKILL)
    for end in (reader, there):
        with contextlib.suppress(ConnectionError):
            assert await read(end) == b""
    late, _ = await way.channel()
    with contextlib.suppress(ConnectionError):
        assert await read(late) == b""


async def test_ending_a_hand_over_breaks_what_is_carried(way: Way) -> None:
    """Also a channel whose other side reads nothing."""
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    reader, writer = await way.channel()
    await way.arrived()
    writer.write(MUCH)
    way.source.end(MOVE)
    way.source.end(MOVE)
    with contextlib.suppress(ConnectionError):
        assert await read(reader) == b""
    assert not way.here.exists()


async def test_the_program_has_no_rights_but_its_descriptors(way: Way) -> None:
    """It runs as the guest's user, without groups, once it has begun."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    uid = 70001
    await way.source.out_of(str(way.here), way.dial, uid, MOVE)
    os.chown(way.here, 0, 0)  # the test is QEMU
    _, writer = await way.channel()
    writer.write(b"x")
    assert await read((await way.arrived())[0], 1) == b"x"
    status = Path(f"/proc/{way.source._programs[MOVE].pid}/status").read_text("ascii")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == fields["Gid"].split() == [str(uid)] * 4
    assert fields["Groups"].split() == []
    assert fields["CapEff"] == "0" * 16


async def test_what_is_in_the_way_of_the_socket(way: Way, home: Path) -> None:
    """A socket of an earlier attempt is replaced; a directory that is not there is told."""
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(way.here))
    stale.close()
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    await way.channel()
    way.source.end(MOVE)
    with pytest.raises(Broken, match=r"no\.sock"):
        await way.source.out_of(str(home / "nowhere" / "no.sock"), way.dial, None, MOVE)
