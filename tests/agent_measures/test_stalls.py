"""What guests say of their stalls, over a control port as QEMU has it: one client at a time, and nobody need answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from vmferry.agent.stalls import Stalls
from vmferry.conductor.guests import Guests
from vmferry.core.errors import Broken
from vmferry.core.guest import BiosBoot, GuestSpec
from vmferry.core.ids import GuestName
from vmferry.core.units import MIB, Bytes

WEB = GuestName("web-7")
GREETING = b"status ready mb=64\n"


@dataclass
class ControlPort:
    """A guest's control port: greets, answers each line from a table, says nothing to others."""

    path: Path
    answers: dict[bytes, bytes] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)
    clients: set[asyncio.Task[None]] = field(default_factory=set)

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        while line := await reader.readline():
            self.asked.append(line)
            writer.write(self.answers.get(line, b""))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Process:
    """A guest's process with a control port."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.writers: list[asyncio.StreamWriter] = []

    async def open_control(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self._path.exists():
            raise Broken("control port of guest web-7 cannot be opened: No such file or directory")
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        self.writers.append(writer)
        return reader, writer


def guests(process: object, *, control: bool = True, known: bool = True) -> Guests:
    """Return as much of a host's guests as `Stalls` may use; anything else fails."""
    spec = GuestSpec(WEB, Bytes(64 * MIB), BiosBoot(), control=control)

    class Row:
        guest = type("Frozen", (), {"spec": spec})

    class Journal:
        def guest(self, name: GuestName) -> type[Row] | None:
            assert name == WEB
            return Row if known else None

    class Here:
        journal = Journal()

        def process(self, name: GuestName) -> object:
            assert name == WEB
            return process

    return cast("Guests", Here())


@asynccontextmanager
async def _port(directory: Path, **answers: bytes) -> AsyncIterator[tuple[ControlPort, Process]]:
    port = ControlPort(directory / "control.sock", {f"{key}\n".encode(): value for key, value in answers.items()})
    server = await asyncio.start_unix_server(port.serve, port.path)
    process = Process(port.path)
    try:
        yield port, process
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*port.clients)


async def test_the_longest_stall_is_the_guests_own_word(tmp_path: Path) -> None:
    """Greeting and other lines are passed over; microseconds become milliseconds; the port is free again."""
    said = b"error unknown command\nstalls max_us=52986 since_reset\n"
    async with _port(tmp_path, stalls=said) as (port, process):
        assert await Stalls(guests(process)).longest(WEB) == 52.986
        assert port.asked == [b"stalls\n"]
        assert [writer.is_closing() for writer in process.writers] == [True]


async def test_a_meter_counts_as_reset_only_when_the_guest_says_so(tmp_path: Path) -> None:
    """`reset` is true with the guest's word, and false when the guest answers something else until the time is over."""
    async with _port(tmp_path, reset=b"reset\n") as (_, process):
        assert await Stalls(guests(process)).reset(WEB) is True
    other = tmp_path / "other"
    other.mkdir()
    async with _port(other, reset=b"error unknown command\n") as (_, process):
        assert await Stalls(guests(process), limit_s=0.1).reset(WEB) is False
        assert [writer.is_closing() for writer in process.writers] == [True]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"stalls max_us= since_reset\n",
        b"stalls max_us=-5 since_reset\n",
        b"stalls max_us=5\n",
        b"stalls max_us=1e9 since_reset\n",
        b"stalls max_us=1234567890123456 since_reset\n",
        b"x" * 100_000,
    ],
)
async def test_what_is_no_answer_is_not_measured(tmp_path: Path, said: bytes) -> None:
    """Silence, half an answer, a number that is none and a line without end are None, never an error."""
    async with _port(tmp_path, stalls=said) as (_, process):
        assert await Stalls(guests(process), limit_s=0.2).longest(WEB) is None


async def test_a_port_that_serves_somebody_else_is_waited_for_no_longer_than_the_limit(tmp_path: Path) -> None:
    """A connection that nobody takes up ends with the limit, and is closed."""
    path = tmp_path / "control.sock"
    never = asyncio.Event()

    async def busy(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.close()

    server = await asyncio.start_unix_server(busy, path)
    process = Process(path)
    assert await Stalls(guests(process), limit_s=0.05).longest(WEB) is None
    assert [writer.is_closing() for writer in process.writers] == [True]
    never.set()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)


def _no_process(_path: Path) -> Guests:
    return guests(None)


def _no_port(_path: Path) -> Guests:
    return guests(object())


def _gone(path: Path) -> Guests:
    return guests(Process(path / "none.sock"))


def _not_built_in(path: Path) -> Guests:
    return guests(Process(path / "none.sock"), control=False)


def _unknown(path: Path) -> Guests:
    return guests(Process(path / "none.sock"), known=False)


@pytest.mark.parametrize("make", [_no_process, _no_port, _gone, _not_built_in, _unknown])
async def test_a_guest_without_a_channel_is_not_measured(tmp_path: Path, make: Callable[[Path], Guests]) -> None:
    """No process, no port, a port that is gone, a guest without the channel, no guest: None, at once."""
    stalls = Stalls(make(tmp_path), limit_s=60)
    assert await stalls.longest(WEB) is None
    assert await stalls.reset(WEB) is False
