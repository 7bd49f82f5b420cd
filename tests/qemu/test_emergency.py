"""The emergency line: what QEMU keeps of it is found again, and taken up behind what an earlier agent left unread."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from vmferry.core.errors import Broken
from vmferry.qemu import emergency
from vmferry.qemu.process import Process

Ends = tuple[socket.socket, emergency.Line]
EVENT = {"event": "MIGRATION", "data": {"status": "postcopy-paused"}}


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A line as QEMU and an agent have it: QEMU's end, ours."""
    with emergency.pair() as (theirs, ours):
        yield theirs, ours
        ours.close()


def say(theirs: socket.socket, *messages: object) -> None:
    """Have QEMU say something."""
    theirs.sendall(b"".join(json.dumps(message).encode("ascii") + b"\r\n" for message in messages))


def fill(ours: emergency.Line) -> None:
    """Send until there is no room."""
    while True:
        ours.send(b"x" * 4096)


async def resume(ends: Ends, answer: Mapping[str, Any], behind: bytes = b"") -> None:
    """Take the line up while QEMU answers, and says more right behind it."""
    theirs, ours = ends
    taking = asyncio.create_task(emergency.resume(ours))
    theirs.setblocking(False)
    asked = json.loads(await asyncio.get_running_loop().sock_recv(theirs, 4096))
    assert asked["exec-oob"] == "query-yank"
    theirs.setblocking(True)
    say(theirs, {**answer, "id": asked["id"]})
    theirs.sendall(behind)
    await taking


async def test_what_was_left_unread_is_passed_over(ends: Ends) -> None:
    """Half a message, events, stale answers and garbage are passed over; what comes behind is left for others."""
    theirs, ours = ends
    theirs.sendall(b'gone": 1}\r\n')
    say(theirs, EVENT, {"return": {}, "id": "__qmp#00001"})
    theirs.sendall(b"[" * 100_000 + b"\n")
    await resume(ends, {"return": []}, behind=b'{"event": "STOP"}\r\n')
    assert ours.recv(4096) == b'{"event": "STOP"}\r\n'


async def test_a_line_that_was_never_negotiated_is_of_no_use(ends: Ends) -> None:
    """QEMU refuses an order out of band before the negotiation."""
    with pytest.raises(Broken, match="of no use"):
        await resume(ends, {"error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation"}})


async def test_a_line_that_is_closed_is_of_no_use(ends: Ends) -> None:
    """QEMU is gone."""
    theirs, ours = ends
    taking = asyncio.create_task(emergency.resume(ours))
    await asyncio.sleep(0)
    theirs.close()
    with pytest.raises((Broken, ConnectionError)):
        await taking


async def test_a_message_without_an_end_is_of_no_use(ends: Ends) -> None:
    """A QEMU that sends and sends is not read for ever."""
    theirs, ours = ends
    theirs.setblocking(False)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(theirs, b"x" * (2 << 20)))
    with pytest.raises(Broken, match="no end"):
        await emergency.resume(ours)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


def test_our_end_never_waits(ends: Ends) -> None:
    """QEMU holds the same end and may let it wait for everybody: no call of ours does, and so no agent stands still."""
    _, ours = ends
    held = socket.socket(fileno=os.dup(ours.fileno()))
    held.setblocking(True)
    with held:
        assert os.get_blocking(ours.fileno())
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        with pytest.raises(BlockingIOError):
            ours.recv_into(bytearray(1))
        with pytest.raises(BlockingIOError):
            fill(ours)
        with pytest.raises(BlockingIOError):
            ours.sendmsg([b"x" * 4096])


def test_our_end_is_found_among_a_process_sockets(ends: Ends) -> None:
    """Of all sockets of a process only the agent's end of its line is borrowed; both ends of other pairs are not."""
    _, ours = ends
    process = Process.of_pid(os.getpid())
    assert process is not None
    try:
        borrowed = process.borrow_socket(emergency.is_ours)
        assert borrowed is not None
        with borrowed:
            assert borrowed.getsockname() == ours.getsockname()
        ours.close()
        assert process.borrow_socket(emergency.is_ours) is None
    finally:
        process.close()
