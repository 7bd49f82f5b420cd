"""The bytes of a bandwidth probe on real connections: counted, bounded, cut, and never waited for without an end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from vmferry.core.errors import Broken, TimedOut
from vmferry.core.units import MIB, Bytes
from vmferry.links import probe

Pair = tuple[socket.socket, socket.socket]
_LINGER_NOT = struct.pack("ii", 1, 0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connection over loopback: the source's end and the destination's, as the agents have them."""
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as ends:
        source = ends.enter_context(socket.create_connection(listening.getsockname()))
        destination = ends.enter_context(listening.accept()[0])
        source.setblocking(False)
        destination.setblocking(False)
        yield source, destination


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence is over at once."""
    monkeypatch.setattr(probe, "_SILENCE_S", 0.1)


async def read_all(connection: socket.socket) -> None:
    """Read until the other end closes, in small pieces."""
    while await asyncio.get_running_loop().sock_recv(connection, 1 << 16):  # noqa: ASYNC110 - it waits for bytes
        await asyncio.sleep(0)  # others go on while there is something to read


async def test_what_arrives_is_counted_and_the_receiver_ends_it(pair: Pair) -> None:
    """Both ends agree: no more arrived than was sent, no more was sent than may be, and the sender hears the end."""
    source, destination = pair
    sent, arrived = await asyncio.gather(probe.send(source), probe.receive(destination))
    assert 0 < arrived.total <= sent <= 64 * MIB
    assert arrived.bandwidth.bytes_per_second > MIB
    assert destination.fileno() == -1


async def test_the_round_trip_is_the_kernels(pair: Pair) -> None:
    """Over loopback it is there, and below a second."""
    assert 0 < probe.round_trip_ms(pair[0]) < 1000
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as no_tcp:
        assert probe.round_trip_ms(no_tcp) == 0.0


async def test_a_source_that_sends_without_an_end_is_cut_at_the_bound(pair: Pair) -> None:
    """Behind what was agreed nothing more is read, and the source's own socket says so."""
    source, destination = pair
    arrived, most = asyncio.create_task(probe.receive(destination, Bytes(MIB))), Bytes(64 * MIB)
    sent = await probe.send(source, most)
    assert (await arrived).total == MIB
    assert sent < most


async def test_a_small_probe_that_was_sent_whole_is_enough(pair: Pair) -> None:
    """The volume is the end, too: what it tells is the least that the link carries."""
    source, destination = pair
    sent, arrived = await asyncio.gather(probe.send(source, Bytes(MIB)), probe.receive(destination, Bytes(MIB)))
    assert sent == arrived.total == MIB
    assert arrived.bandwidth.is_least


async def test_a_destination_that_never_reads(pair: Pair, short: None) -> None:
    """The source gives up when nothing has moved for a while, and says how far it came."""
    with pytest.raises(TimedOut, match=r"read nothing of the probe for 0.1 s, after .* MiB"):
        await probe.send(pair[0])


async def test_a_destination_that_reads_in_sips(pair: Pair, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never falls silent, and still the probe ends in its time."""
    monkeypatch.setattr(probe, "TIME_LIMIT_S", 0.3)
    source, destination = pair
    sending = asyncio.create_task(probe.send(source, Bytes(1 << 40)))
    sipping = asyncio.create_task(read_all(destination))
    with pytest.raises(TimedOut, match="was not over in 0 s"):
        await sending
    sipping.cancel()


async def test_a_source_that_says_nothing(pair: Pair, short: None) -> None:
    """The destination gives up."""
    with pytest.raises(TimedOut, match="Nothing came of the probe for 0.1 s, after 0 B"):
        await probe.receive(pair[1])


async def test_a_source_that_falls_silent(pair: Pair, short: None) -> None:
    """Half a probe is none."""
    source, destination = pair
    await asyncio.get_running_loop().sock_sendall(source, b"garbage" * 1000)
    with pytest.raises(TimedOut, match="Nothing came of the probe for 0.1 s, after 6.8 KiB"):
        await probe.receive(destination)


@pytest.mark.parametrize("rudely", [False, True])
async def test_a_source_that_goes_away(pair: Pair, rudely: bool) -> None:
    """Closed or reset in the middle: said with how much there was."""
    source, destination = pair
    await asyncio.get_running_loop().sock_sendall(source, bytes(7000))
    if rudely:
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    source.close()
    with pytest.raises(Broken, match=r"(ended its probe|Probe broke) after"):
        await probe.receive(destination)


async def test_a_destination_that_goes_away_ends_the_sender(pair: Pair) -> None:
    """What came of it is asked for elsewhere."""
    source, destination = pair
    sending = asyncio.create_task(probe.send(source))
    await asyncio.get_running_loop().sock_recv(destination, 1000)
    destination.close()
    assert 0 < await sending < 64 * MIB


@pytest.mark.parametrize("end", [0, 1], ids=["source", "destination"])
async def test_cancelled_it_is_over_at_once(pair: Pair, end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits in the kernel is woken, and is gone when the cancel has come through."""
    monkeypatch.setattr(probe, "_SILENCE_S", 3600.0)  # nothing else would end it
    monkeypatch.setattr(probe, "TIME_LIMIT_S", 3600.0)
    work = probe.send(pair[0]) if end == 0 else probe.receive(pair[1])
    task = asyncio.create_task(work)
    await asyncio.sleep(0.05)  # it waits: for a reader that there is not, or for bytes
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_closing_at_once_throws_away_what_waits(pair: Pair) -> None:
    """A probe that is given up goes on in no queue of the kernel: the other end hears a reset."""
    source, destination = pair
    source.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            source.send(bytes(1 << 16))
    probe.close_at_once(source)
    with pytest.raises(ConnectionResetError):
        await read_all(destination)
