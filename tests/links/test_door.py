"""The stream port against well-behaved agents, strangers, garbage, silence and crowds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from structlog.testing import capture_logs

from vmferry.core.errors import Broken, Refused, TimedOut, Unreachable
from vmferry.core.ids import HandoverId
from vmferry.links import dial as dialling
from vmferry.links import door as doors
from vmferry.links import preamble
from vmferry.links.dial import dial
from vmferry.links.door import StreamDoor
from vmferry.ports.stream import StreamConnection, Ticket

MOVE, HERE = HandoverId("move-1"), "127.0.0.1"


class Qemu:
    """Takes connections as QEMU does: with a descriptor of its own."""

    def __init__(self) -> None:
        self.taken: list[socket.socket] = []

    async def receive(self, connection: StreamConnection) -> None:
        """Keep a copy."""
        self.taken.append(socket.socket(fileno=socket.dup(connection.fileno())))


@pytest.fixture
async def door() -> AsyncIterator[StreamDoor]:
    """A door on a free port."""
    opened = StreamDoor(HERE, 0)
    opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def qemu() -> Iterator[Qemu]:
    """A destination's QEMU."""
    made = Qemu()
    yield made
    for each in made.taken:
        each.close()


async def hear_end(door: StreamDoor, said: bytes) -> bytes:
    """Return all that the door answers to some bytes until it closes."""
    reader, writer = await asyncio.open_connection(HERE, door.port)
    with contextlib.suppress(ConnectionError):
        writer.write(said)
        await writer.drain()
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_the_stream_behind_the_first_bytes_is_untouched(door: StreamDoor, qemu: Qemu) -> None:
    """What the source sends behind its proof is the first that QEMU reads, and the other way round."""
    ticket = door.expect(MOVE, qemu.receive)
    connection = await dial(HERE, ticket, MOVE)
    with contextlib.closing(connection):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, b"QEVM")
        (theirs,) = qemu.taken
        theirs.setblocking(False)
        assert await loop.sock_recv(theirs, 100) == b"QEVM"
        await loop.sock_sendall(theirs, b"return path")
        assert await loop.sock_recv(connection, 100) == b"return path"


async def test_a_ticket_is_good_once(door: StreamDoor, qemu: Qemu) -> None:
    """A second connection with it is closed, and the first one lives on."""
    ticket = door.expect(MOVE, qemu.receive)
    with contextlib.closing(await dial(HERE, ticket, MOVE)):
        with pytest.raises(Refused, match="does not expect this hand-over"):
            await dial(HERE, ticket, MOVE)
        assert len(qemu.taken) == 1


async def test_two_at_once_with_one_ticket(door: StreamDoor, qemu: Qemu) -> None:
    """Whoever proves it first gets in, the other one does not, whatever the order of their bytes."""
    ticket = door.expect(MOVE, qemu.receive)
    ends = await asyncio.gather(*(dial(HERE, ticket, MOVE) for _ in range(2)), return_exceptions=True)
    for each in ends:
        if isinstance(each, socket.socket):
            each.close()
    assert sorted(isinstance(each, Refused) for each in ends) == [False, True]
    assert len(qemu.taken) == 1


async def test_strangers_get_nothing(door: StreamDoor, qemu: Qemu) -> None:
    """A port scan, HTTP, TLS, a greeting for nobody and a wrong proof are closed; the ticket stays good."""
    ticket = door.expect(MOVE, qemu.receive)
    hello = preamble.greeting(MOVE, bytes(preamble.NONCE_BYTES))
    assert await hear_end(door, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    assert await hear_end(door, b"\x16\x03\x01\x02\x00" + bytes(600)) == b""
    assert await hear_end(door, preamble.greeting(HandoverId("other"), bytes(preamble.NONCE_BYTES))) == b""
    assert len(await hear_end(door, hello + bytes(preamble.PROOF_BYTES))) == preamble.ANSWER_BYTES
    with pytest.raises(Refused, match="who answers does not know the ticket"):
        await dial(HERE, Ticket(ticket.port, "0" * 64), MOVE)
    assert qemu.taken == []
    (await dial(HERE, ticket, MOVE)).close()
    assert len(qemu.taken) == 1


async def test_strangers_are_logged_once(door: StreamDoor, qemu: Qemu) -> None:
    """Fifty scans are one line a minute."""
    door.expect(MOVE, qemu.receive)
    with capture_logs() as logs:
        for _ in range(50):
            await hear_end(door, b"x" * 100)
    assert [line["why"] for line in logs] == ["what came is no greeting of a vmferry agent"]


async def test_forgotten_is_unknown(door: StreamDoor, qemu: Qemu) -> None:
    """A hand-over that was given up lets nobody in; forgetting twice is no error."""
    ticket = door.expect(MOVE, qemu.receive)
    door.forget(MOVE)
    door.forget(MOVE)
    with pytest.raises(Refused):
        await dial(HERE, ticket, MOVE)


async def test_qemu_that_does_not_take_it(door: StreamDoor) -> None:
    """The source hears that it was not taken, and the reason is in the destination's log."""

    async def receive(connection: StreamConnection) -> None:
        raise Broken("QEMU said no")

    ticket = door.expect(MOVE, receive)
    with capture_logs() as logs, pytest.raises(Refused):
        await dial(HERE, ticket, MOVE)
    assert [line["error"] for line in logs] == ["QEMU said no"]


async def test_silence_ends(door: StreamDoor, qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects and says nothing, or half of it, is closed after the limit."""
    monkeypatch.setattr(doors, "TIME_LIMIT_S", 0.1)
    door.expect(MOVE, qemu.receive)
    assert await hear_end(door, b"") == b""
    assert await hear_end(door, preamble.MAGIC[:7]) == b""


async def test_a_crowd_does_not_lock_others_out(door: StreamDoor, qemu: Qemu) -> None:
    """One address may hold so many connections that say nothing; another one still gets in."""
    ticket = door.expect(MOVE, qemu.receive)
    async with contextlib.AsyncExitStack() as crowd:
        for _ in range(doors.MOST_PER_ADDRESS + 20):
            _, writer = await asyncio.open_connection(HERE, door.port, local_addr=("127.0.0.9", 0))
            crowd.callback(writer.close)
        (await dial(HERE, ticket, MOVE)).close()
    assert len(qemu.taken) == 1


async def test_a_crowd_from_everywhere_does_not_lock_out_either(door: StreamDoor, qemu: Qemu) -> None:
    """The oldest that said nothing goes when there are too many."""
    ticket = door.expect(MOVE, qemu.receive)
    async with contextlib.AsyncExitStack() as crowd:
        for number in range(doors.MOST_WAITING + 20):
            _, writer = await asyncio.open_connection(HERE, door.port, local_addr=(f"127.0.0.{2 + number % 20}", 0))
            crowd.callback(writer.close)
        (await dial(HERE, ticket, MOVE)).close()
    assert len(qemu.taken) == 1


async def test_while_nobody_is_expected_nobody_waits(door: StreamDoor, qemu: Qemu) -> None:
    """Connections are closed at once, told of once, and take no place of those who come later."""
    with capture_logs() as logs:
        for _ in range(50):
            assert await hear_end(door, b"") == b""
    assert [line["why"] for line in logs] == ["nobody is expected"]
    ticket = door.expect(MOVE, qemu.receive)
    (await dial(HERE, ticket, MOVE)).close()


async def test_who_only_connects_is_logged_once(door: StreamDoor, qemu: Qemu) -> None:
    """A health check closes at once, again and again."""
    door.expect(MOVE, qemu.receive)
    with capture_logs() as logs:
        for _ in range(50):
            _, writer = await asyncio.open_connection(HERE, door.port)
            writer.close()
        async with asyncio.timeout(60):
            while not logs:  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # and no more
    assert len(logs) == 1


async def test_many_rightful_streams_of_one_host_at_once(door: StreamDoor, qemu: Qemu) -> None:
    """An evacuation: each has its ticket, and none pushes another out."""
    moves = [HandoverId(f"move-{number}") for number in range(3 * doors.MOST_PER_ADDRESS)]
    tickets = [door.expect(move, qemu.receive) for move in moves]
    ends = await asyncio.gather(*(dial(HERE, *both) for both in zip(tickets, moves, strict=True)))
    for end in ends:
        end.close()
    assert len(qemu.taken) == len(moves)


async def test_nobody_listens() -> None:
    """A closed port is told with what to do."""
    with socket.socket() as free:
        free.bind((HERE, 0))
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match=f"Stream port {port} of the agent at {HERE} cannot be reached"):
        await dial(HERE, Ticket(port, "0" * 64), MOVE)


async def test_somebody_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who answers nonsense is refused, one who answers nothing is given up."""
    monkeypatch.setattr(dialling, "TIME_LIMIT_S", 0.2)
    loop = asyncio.get_running_loop()
    for said, expected in ((b"SSH-2.0-x\r\n" * 20, Refused), (b"", TimedOut)):
        with socket.create_server((HERE, 0)) as server:
            server.setblocking(False)
            dialled = asyncio.create_task(dial(HERE, Ticket(server.getsockname()[1], "0" * 64), MOVE))
            connection, _ = await loop.sock_accept(server)
            with connection:
                await loop.sock_sendall(connection, said)
                with pytest.raises(expected):
                    await dialled


async def test_a_taken_port_is_told() -> None:
    """The agent does not start on a port that somebody has."""
    with socket.socket() as other:
        other.bind((HERE, 0))
        other.listen()
        with pytest.raises(Broken, match="migration.stream_port"):
            StreamDoor(HERE, other.getsockname()[1])
