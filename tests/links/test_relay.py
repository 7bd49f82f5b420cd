"""QEMU's local connections and the agents' port, joined by the real program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
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
            await none_run(relays)
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


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection between hosts."""
    with socket.create_server((HERE, 0)) as server:
        outgoing = socket.create_connection(server.getsockname())
        arriving, _ = server.accept()
    return outgoing, arriving


async def none_run(relays: LocalRelays) -> None:
    """Wait until all that was started has been reaped."""
    async with asyncio.timeout(LIMIT_S):
        while relays._children._watchers:  # noqa: ASYNC110 - the kernel says when
            await asyncio.sleep(0.01)


def pid_of(relays: LocalRelays) -> int:
    """Return the program that carries."""
    return relays._programs[MOVE].result().pid


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
    """The ticket is good for three; QEMU would take the fourth for one that is there, so the stream is broken."""
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    here = [await way.channel() for _ in range(3)]
    for reader, writer in here:
        writer.write(b"x")
        assert await read((await way.arrived())[0], 1) == b"x"
        assert not reader.at_eof()
    with capture_logs() as logs:
        reader, _ = await way.channel()
        assert await read(reader) == b""
        for reader, _ in here:
            with contextlib.suppress(ConnectionError):
                assert await read(reader) == b""
    assert [each["event"] for each in logs].count("channel of a stream was not connected: the stream is broken") == 1
    assert not way.here.exists()


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
    assert any("local socket for a stream cannot be used" in str(each.get("error")) for each in logs), logs


async def test_streams_outlive_both_agents(way: Way) -> None:
    """What is carried goes on when the agents let go, and the programs end with it."""
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    reader, writer = await way.channel()
    writer.write(b"before")
    there, back = await way.arrived()
    assert await read(there, 6) == b"before"
    pids = [pid_of(relays) for relays in (way.source, way.destination)]
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
    os.kill(pid_of(relays), signal.SIGKILL)
    for end in (reader, there):
        with contextlib.suppress(ConnectionError):
            assert await read(end) == b""
    with contextlib.suppress(ConnectionError, FileNotFoundError):  # nobody listens any more
        late, _ = await way.channel()
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
    os.chown(way.here.parent, uid, uid)
    await way.source.out_of(str(way.here), way.dial, uid, MOVE)
    found = way.here.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (uid, 0o600)
    _, writer = await way.channel()
    writer.write(b"x")
    assert await read((await way.arrived())[0], 1) == b"x"
    status = Path(f"/proc/{pid_of(way.source)}/status").read_text("ascii")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == fields["Gid"].split() == [str(uid)] * 4
    assert fields["Groups"].split() == []
    assert fields["CapEff"] == "0" * 16


async def test_a_guest_that_broke_out_gets_nothing_by_a_link(way: Way) -> None:
    """In its own directory it leads the socket's name to a file, or to a socket, that is not its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    uid, home = 70001, way.here.parent
    os.chown(home, uid, uid)
    with tempfile.TemporaryDirectory() as secret, socket.socket(socket.AF_UNIX) as other:
        target = Path(secret) / "target"
        target.write_text("root's")
        target.chmod(0o640)
        way.here.symlink_to(target)
        await way.source.out_of(str(way.here), way.dial, uid, MOVE)
        assert (target.stat().st_uid, stat.S_IMODE(target.stat().st_mode)) == (0, 0o640)
        assert not way.here.is_symlink()
        way.source.end(MOVE)
        other.bind(str(Path(secret) / "root.sock"))
        other.listen()
        outgoing, arriving = tcp_pair()
        leads = home / "leads.sock"
        leads.symlink_to(Path(secret) / "root.sock")
        relays = LocalRelays()
        with outgoing, arriving, pytest.raises(Broken, match="Permission denied"):
            await relays.into(str(leads), arriving, uid, MOVE)
        relays.end(MOVE)
        await none_run(relays)
        await relays.close()


async def test_nothing_is_left_of_a_program_that_nobody_waits_for(way: Way) -> None:
    """The hand-over ends while the program is being started: by one who asks, and by several at once."""
    outgoing, arriving = tcp_pair()
    with outgoing, arriving:
        asking = [asyncio.ensure_future(way.destination.into(str(way.there), arriving, None, MOVE)) for _ in range(3)]
        await asyncio.sleep(0)
        way.destination.end(MOVE)
        ends = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(end, Broken) for end in ends), ends
    await none_run(way.destination)


async def test_what_is_in_the_way_of_the_socket(way: Way, home: Path) -> None:
    """A socket of an earlier attempt is replaced; a directory that is not there is told."""
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(way.here))
    stale.close()
    await way.source.out_of(str(way.here), way.dial, None, MOVE)
    await way.channel()
    way.source.end(MOVE)
    with pytest.raises(Broken, match="cannot be started: No such file"):
        await way.source.out_of(str(home / "nowhere" / "no.sock"), way.dial, None, MOVE)
