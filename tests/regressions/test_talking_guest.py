"""A guest that talks without pause, or never listens, held the agent's event loop, or an order of its own, for ever."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from vmferry.agent.console import QemuConsole
from vmferry.agent.stalls import _exchange
from vmferry.core.errors import Broken
from vmferry.guest_throttle import ThrottleChannel, ThrottleOrder
from vmferry.measure import echo, receiver, stamps
from vmferry.measure.echo import EchoProber
from vmferry.measure.outage import ProbeLog
from vmferry.measure.receiver import BeatReceiver

FAR_TOO_OFTEN = 100_000
_STAMP = struct.pack("@qq", 5, 0)


class EndlessSocket:
    """A stamping socket that is never empty."""

    def __init__(self) -> None:
        self.reads = 0

    def fileno(self) -> int:
        return 3

    def recvmsg(self, _size: int, _ancillary: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        self.reads += 1
        assert self.reads < FAR_TOO_OFTEN, "the socket is read for ever"
        if self.reads % 2:
            raise ConnectionRefusedError  # a pending ICMP error is a read like any other
        return b"x", [(socket.SOL_SOCKET, stamps.SO_TIMESTAMPNS, _STAMP)], 0, None

    def close(self) -> None:
        """Do nothing."""


async def test_beats_without_pause_are_left_for_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look reads so many datagrams and no more; a window, at most what the socket's buffer holds."""
    beats, endless = BeatReceiver(), EndlessSocket()
    beats._sock.close()
    monkeypatch.setattr(beats, "_sock", endless)
    await beats.wait_for_beats(receiver._MOST_AT_ONCE // 2)
    assert endless.reads == receiver._MOST_AT_ONCE
    beats.stamps(0, 1)
    assert endless.reads == receiver._MOST_AT_ONCE + receiver._MOST_WAITING
    beats.window(0, 1)
    assert endless.reads == receiver._MOST_AT_ONCE + 2 * receiver._MOST_WAITING


def test_a_prober_whose_echo_never_stops_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers without end keep a prober neither from its next probe nor from its end."""
    prober, endless = EchoProber("127.0.0.1", 9), EndlessSocket()
    prober._sock.close()
    monkeypatch.setattr(prober, "_sock", endless)
    prober._take_answers()
    assert endless.reads == echo._MOST_AT_ONCE


def test_answers_that_come_again_without_end_are_not_all_kept() -> None:
    """Duplicates are bounded like the probes, and those of forgotten probes make room for new ones."""
    log = ProbeLog(capacity=10)
    first = log.add_sent(0)
    for stamp in range(100):
        log.add_answer(first, stamp + 1)
    assert (len(log._duplicates), log.duplicates(0, 0)) == (10, 10)
    later = [log.add_sent(stamp) for stamp in range(1, 20)]
    assert len(log._duplicates) == 0
    for stamp in (100, 101):
        log.add_answer(later[-1], stamp)
    assert log.duplicates(19, 19) == 1


class DeafWriter:
    """Takes what is written, and says nothing of it."""

    def write(self, data: bytes) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    async def wait_closed(self) -> None:
        """Return at once."""


class EndlessReader:
    """A stream whose buffer always holds a line: reading it never yields."""

    def __init__(self, line: bytes) -> None:
        self._line = line
        self.lines = 0

    async def readline(self) -> bytes:
        self.lines += 1
        assert self.lines < FAR_TOO_OFTEN, "lines are read for ever"
        return self._line

    async def readuntil(self, _end: bytes) -> bytes:
        return await self.readline()


async def test_other_lines_than_the_answer_are_counted() -> None:
    """A control port that says anything but the answer, without pause, is given up after 64 lines."""
    reader = EndlessReader(b"status ready mb=64\n")

    async def opener() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return cast("asyncio.StreamReader", reader), cast("asyncio.StreamWriter", DeafWriter())

    assert await _exchange(opener, b"stalls\n", re.compile(rb"stalls\n")) is None
    assert reader.lines == 64


async def test_a_helper_that_answers_something_else_without_pause_is_broken() -> None:
    """After 16 lines that answer other questions the throttle's port is given up, with a sentence."""
    figures = "processes=1 uncovered=0 covered_kib=8 faults=0 holds=0 overruns=0 errors=0 slots=0 longest_hold_us=0"
    reader = EndlessReader(f"1 status - {figures}\n".encode())
    async with _deaf_peer() as (_, writer):
        channel = ThrottleChannel(cast("asyncio.StreamReader", reader), writer)
        with pytest.raises(Broken, match="16 lines, none of which answers what was asked \\(begun\\)"):
            await channel.begin(ThrottleOrder("move-1"))
        assert reader.lines == 16
        await channel.close()


@asynccontextmanager
async def _deaf_peer() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Give one end of a connection whose other end reads nothing."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def _fill(writer: asyncio.StreamWriter) -> None:
    """Write more than the other end's kernel takes."""
    while not writer.transport.get_write_buffer_size():
        writer.write(bytes(1 << 16))


async def test_a_throttle_port_that_is_not_read_can_be_closed() -> None:
    """What a guest never takes does not keep its port open."""
    async with _deaf_peer() as (reader, writer):
        await _fill(writer)
        await asyncio.wait_for(ThrottleChannel(reader, writer).close(), 20)
        assert writer.transport.get_write_buffer_size() == 0


async def test_a_console_that_is_not_read_can_be_closed() -> None:
    """What a guest never takes does not keep its console open, which nobody else could open then."""
    async with _deaf_peer() as (reader, writer):
        await _fill(writer)
        await asyncio.wait_for(QemuConsole(reader, writer).close(), 20)
        assert writer.transport.get_write_buffer_size() == 0
