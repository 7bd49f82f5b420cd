"""The host's side against helpers that answer, stall, lie and hang up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from vmferry.core.errors import Broken, Refused, TimedOut
from vmferry.guest_throttle import ThrottleChannel, ThrottleOrder

ORDER = ThrottleOrder("move-1", lease_ms=100)
Peer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _answer(word: str, order_id: str = "move-1") -> bytes:
    return (
        f"1 {word} {order_id} processes=1 uncovered=0 covered_kib=8 faults=0 holds=0 overruns=0 errors=0 slots=0"
        " longest_hold_us=0\n"
    ).encode()


@asynccontextmanager
async def _talking_to(peer: Peer, folder: Path, timeout_s: float = 60.0) -> AsyncIterator[ThrottleChannel]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await peer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, folder / "port")
    async with server, await ThrottleChannel.open(folder / "port", timeout_s) as channel:
        yield channel


async def test_the_lease_is_renewed_until_the_end(tmp_path: Path) -> None:
    """After begin come renewals by themselves, each with the order's id, and after end nothing more."""
    seen: list[bytes] = []
    renewed = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = {b"begin": "begun", b"keep": "kept", b"end": "ended", b"status": "status"}
        while line := await reader.readline():
            seen.append(line)
            writer.write(_answer(words[line.split()[1]]))
            if seen.count(b"1 keep move-1\n") == 3:
                renewed.set()

    async with _talking_to(peer, tmp_path) as channel:
        assert (await channel.begin(ORDER)).processes == 1
        assert channel.order == ORDER
        await renewed.wait()
        await channel.end()
        assert channel.order is None
        await channel.status()
        with pytest.raises(Refused, match="not in force"):
            await channel.end()
    assert seen[0] == ORDER.begin_line()
    assert seen[-2:] == [b"1 end move-1\n", b"1 status\n"]


async def test_late_answers_of_others_are_passed_over(tmp_path: Path) -> None:
    """An answer to a question that was given up, or about another order, is not taken for this one's."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(_answer("kept") + _answer("begun", "move-0") + _answer("begun"))
        await reader.readline()

    async with _talking_to(peer, tmp_path) as channel:
        assert (await channel.begin(ThrottleOrder("move-1"))).order_id == "move-1"


async def test_a_guest_without_helper_times_out_with_the_fix(tmp_path: Path) -> None:
    """A port that nobody opened in the guest swallows what is sent."""

    async def peer(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with _talking_to(peer, tmp_path, timeout_s=0.05) as channel:
        with pytest.raises(TimedOut, match="'begin' within 0.05 s; start the guest's programs under vmferry-throttle"):
            await channel.begin(ORDER)
        assert channel.order is None


@pytest.mark.parametrize("garbage", [b"\xff\xfe\n", b"login: \n", b"x" * 200_000])
async def test_garbage_is_said_to_be_so(garbage: bytes, tmp_path: Path) -> None:
    """Neither a strange line nor an endless one is taken for an answer."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(garbage)
        await reader.read()

    async with _talking_to(peer, tmp_path) as channel:
        with pytest.raises(Broken, match="no answer|lines of more than"):
            await channel.begin(ORDER)


async def test_a_lost_word_is_said_again(tmp_path: Path) -> None:
    """What is said while the port changes hands may be lost: the guest is asked to begin once more."""
    asked: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked.append(line)
            if len(asked) == 2:
                writer.write(_answer("begun"))

    async with _talking_to(peer, tmp_path, timeout_s=0.2) as channel:
        assert (await channel.begin(ORDER)).order_id == "move-1"
    assert asked[:2] == [ORDER.begin_line()] * 2


async def test_a_port_that_closes_is_broken(tmp_path: Path) -> None:
    """QEMU that ends, or a socket that is not there, is told as what it is."""

    async def peer(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readline()

    async with _talking_to(peer, tmp_path) as channel:
        with pytest.raises(Broken, match="port has closed"):
            await channel.begin(ORDER)
    with pytest.raises(Broken, match="give the guest the port"):
        await ThrottleChannel.open(tmp_path / "nothing")


async def test_a_lost_order_is_noticed_between_questions(tmp_path: Path) -> None:
    """When a renewal is refused the channel says why, and nobody has to ask for it."""
    refused = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(_answer("begun"))
        await reader.readline()
        writer.write(b"1 error unknown no order of this id is in force\n")
        await writer.drain()
        refused.set()
        await reader.read()

    async with _talking_to(peer, tmp_path) as channel:
        await channel.begin(ORDER)
        await refused.wait()
        while channel.lost is None:  # noqa: ASYNC110  a property, read when it is needed
            await asyncio.sleep(0)
        assert isinstance(channel.lost, Refused)


async def test_a_helper_that_is_still_busy_is_asked_again(tmp_path: Path) -> None:
    """Who comes right after another host waits for that host's lease, and says so to nobody."""
    asked: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked.append(line)
            busy = len(asked) < 4
            writer.write(b"1 error busy another order is in force\n" if busy else _answer("begun"))

    async with _talking_to(peer, tmp_path) as channel:
        assert (await channel.begin(ORDER)).order_id == "move-1"
        assert channel.order == ORDER
    assert asked[:4] == [ORDER.begin_line()] * 4


async def test_a_helper_that_stays_busy_is_left_alone_after_a_lease(tmp_path: Path) -> None:
    """Another host that keeps its order is not fought: after one lease the refusal is told, and can be tried again."""
    asked: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked.append(line)
            writer.write(b"1 error busy another order is in force\n")

    async with _talking_to(peer, tmp_path) as channel:
        with pytest.raises(Refused, match="busy") as caught:
            await channel.begin(ORDER)
        assert caught.value.retry
        assert channel.order is None
    assert 2 < len(asked) < 50


async def test_any_other_refusal_is_told_at_once(tmp_path: Path) -> None:
    """What does not pass with a lease is not asked again."""
    asked: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked.append(line)
            writer.write(b"1 error range writes is out of its range\n")

    async with _talking_to(peer, tmp_path) as channel:
        with pytest.raises(Refused, match="range") as caught:
            await channel.begin(ORDER)
        assert not caught.value.retry
    assert asked == [ORDER.begin_line()]


async def test_an_order_whose_lease_ran_out_is_begun_again(tmp_path: Path) -> None:
    """A host that was held up for longer than a lease throttles again as soon as it can."""
    seen: list[bytes] = []
    kept = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            seen.append(line)
            if line == ORDER.begin_line():
                writer.write(_answer("begun"))
            elif seen.count(ORDER.keep_line()) == 1:
                writer.write(_answer("expired") + b"1 error unknown no order of this id is in force\n")
            else:
                writer.write(_answer("kept"))
                kept.set()

    async with _talking_to(peer, tmp_path) as channel:
        await channel.begin(ORDER)
        await kept.wait()
        assert seen[:4] == [ORDER.begin_line(), ORDER.keep_line(), ORDER.begin_line(), ORDER.keep_line()]
        assert channel.order == ORDER


async def test_a_hushed_channel_says_nothing_until_it_begins_or_ends(tmp_path: Path) -> None:
    """Nothing reaches a guest that stands still; the order can still be ended, and a repeated begin renews again."""
    seen: list[bytes] = []
    kept = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = {b"begin": "begun", b"keep": "kept", b"end": "ended", b"status": "status"}
        while line := await reader.readline():
            seen.append(line)
            writer.write(_answer(words[line.split()[1]]))
            if line == ORDER.keep_line():
                kept.set()

    async with _talking_to(peer, tmp_path) as channel:
        await channel.begin(ORDER)
        await kept.wait()
        channel.hush()
        before = seen.count(ORDER.keep_line())
        for _ in range(6):  # six renewals' worth
            await asyncio.sleep(ORDER.lease_ms / 4000)
        assert seen.count(ORDER.keep_line()) == before
        kept.clear()
        await channel.begin(ORDER)
        await kept.wait()
        channel.hush()
        await channel.end()
        assert seen[-1] == ORDER.end_line()


async def test_an_order_of_another_host_can_be_ended(tmp_path: Path) -> None:
    """The destination frees a guest that carried its source's order over; where there is none it is told so."""
    in_force = ["move-1"]

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            name = line.split()[2].decode()
            known = name in in_force
            in_force.clear()
            writer.write(_answer("ended", name) if known else b"1 error unknown no order of this id is in force\n")

    async with _talking_to(peer, tmp_path) as channel:
        assert (await channel.end_carried("move-1")).order_id == "move-1"
        with pytest.raises(Refused, match="unknown"):
            await channel.end_carried("move-1")
