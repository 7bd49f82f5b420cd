"""The prober as a program, against an echo that we can silence."""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

PROBE_BYTES = struct.calcsize("!4sIQ")


class Echo(asyncio.DatagramProtocol):
    """An echo that drops, delays nothing, and can answer twice."""

    def __init__(self) -> None:
        self.silent = False
        self.twice = False
        self.seen = 0
        self.waiting: dict[int, asyncio.Event] = {}
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.seen += 1
        if self.seen in self.waiting:
            self.waiting.pop(self.seen).set()
        assert self.transport is not None
        assert len(data) == PROBE_BYTES
        for _ in range(0 if self.silent else 2 if self.twice else 1):
            self.transport.sendto(data, addr)

    async def wait_seen(self, more: int) -> None:
        """Return when so many more probes have come, before any later one is looked at."""
        event = self.waiting[self.seen + more] = asyncio.Event()
        await asyncio.wait_for(event.wait(), 20)


@asynccontextmanager
async def _echoing() -> AsyncIterator[tuple[Echo, int]]:
    loop = asyncio.get_running_loop()
    transport, echo = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    try:
        yield echo, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
        await asyncio.sleep(0)  # the transport closes its socket in the loop's next round


class Prober:
    """The program, its lines and its input."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    async def next(self, event: str) -> dict[str, Any]:
        while line := await asyncio.wait_for(self.stdout.readline(), 20):
            fields: dict[str, Any] = json.loads(line)
            if fields["event"] == event:
                return fields
        raise AssertionError(f"the prober ended without {event}")

    def mark(self, name: str) -> None:
        self.stdin.write(f"mark {name}\n".encode())


@asynccontextmanager
async def _probing(port: int, *options: str) -> AsyncIterator[Prober]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmferry.measure.prober", "127.0.0.1", "--port", str(port), "--json-lines"),
        *("--interval-ms", "2", "--grace-ms", "200", *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    prober = Prober(process)
    try:
        yield prober
    finally:
        if process.returncode is None:
            process.kill()
        prober.stdin.close()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


async def test_a_silence_of_the_echo_is_measured_in_its_own_window() -> None:
    """Losses show in the window in which they were sent, and in the summary over all."""
    async with _echoing() as (echo, port), _probing(port) as prober:
        await prober.next("answered")
        prober.mark("quiet")
        await prober.next("window")
        await echo.wait_seen(50)
        prober.mark("move")
        quiet = await prober.next("window")
        echo.silent = True
        await echo.wait_seen(50)
        echo.silent = False
        await echo.wait_seen(50)
        prober.mark("after")
        moved = await prober.next("window")
        prober.process.send_signal(signal.SIGTERM)
        summary = await prober.next("summary")
        assert await prober.process.wait() == 0
    assert (quiet["name"], quiet["lost"], quiet["outage_ms"]) == ("quiet", 0, 0)
    assert moved["name"] == "move"
    assert moved["lost"] == summary["lost"] >= 50
    assert moved["outage_ms"] == summary["outage_ms"] >= 50 * 2 * 0.9


async def test_answers_that_come_twice_are_counted_as_duplicates() -> None:
    """A duplicate is not a second answered probe."""
    async with _echoing() as (echo, port), _probing(port) as prober:
        echo.twice = True
        await prober.next("answered")
        await echo.wait_seen(20)
        prober.process.send_signal(signal.SIGINT)
        summary = await prober.next("summary")
    assert summary["answered"] == summary["sent"] == summary["duplicates"]


async def test_nobody_there_is_an_outage_and_not_an_error() -> None:
    """Probes to a closed port are all lost; the program goes on and ends with its input."""
    async with _echoing() as (_, port):
        pass
    async with _probing(port) as prober:
        prober.mark("closed")
        await prober.next("window")
        prober.stdin.close()
        summary = await prober.next("summary")
        assert await prober.process.wait() == 0
    assert summary["sent"] == summary["lost"] > 0


async def test_an_address_that_makes_no_sense_is_a_clear_error() -> None:
    """A bad address ends the program with its name and what to check."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmferry.measure.prober", "no.such.address.invalid"),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, text = await process.communicate()
    assert process.returncode == 1
    assert b"no.such.address.invalid" in text
    assert b"check the address" in text
