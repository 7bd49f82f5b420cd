"""Commands between QEMU and the network: what goes in comes out at the other end, and what goes wrong is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vmferry.core.errors import BadInput, Broken
from vmferry.core.ids import HandoverId
from vmferry.links.pipeline import CommandPipelines, Pipeline

MOVE = HandoverId("move-1")
PIPELINES = {
    "cat": Pipeline(["cat"], ["cat"]),
    "gzip": Pipeline(["gzip", "-1", "-c"], ["gzip", "-d", "-c"]),
    "none": Pipeline(["vmferry-no-such-command"], ["vmferry-no-such-command"]),
    "fails": Pipeline(["sh", "-c", "cat >/dev/null; echo no key >&2; exit 3"], ["gzip", "-d", "-c"]),
    "hangs": Pipeline(["sleep", "1000"], ["sh", "-c", "sleep 1000 & sleep 1000"]),
    "who": Pipeline(["sh", "-c", "id -u; id -G; env; ls /proc/self/fd; cat >/dev/null"], ["cat"]),
}


@pytest.fixture
async def pipelines() -> AsyncIterator[CommandPipelines]:
    """This host's."""
    made = CommandPipelines(PIPELINES)
    yield made
    await made.close()


def connection() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection, as agents make them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        outgoing = socket.create_connection(server.getsockname())
        arriving, _ = server.accept()
    return outgoing, arriving


async def through(pipelines: CommandPipelines, name: str, data: bytes, uid: int | None = None) -> bytes:
    """Return what comes out of QEMU's end at the destination of what goes into it at the source."""
    outgoing, arriving = connection()
    with outgoing, arriving:
        into = await pipelines.send(name, outgoing, uid, MOVE)
        out = await pipelines.receive(name, arriving, uid, MOVE)
    reading = asyncio.to_thread(_read_all, out.fileno())
    writing = asyncio.to_thread(_write_all, into.fileno(), data)
    task = asyncio.create_task(reading)
    await writing
    into.close()
    read = await task
    out.close()
    return read


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


async def ended(logs: list[dict[str, object]], count: int) -> None:
    """Wait until so many commands have ended."""
    async with asyncio.timeout(20):
        while len(logs) < count:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ["cat", "gzip"])
async def test_what_goes_in_comes_out(pipelines: CommandPipelines, name: str) -> None:
    """Every byte in its order, and the end as well; both commands end by themselves."""
    data = os.urandom(1 << 16) * 20
    with capture_logs() as logs:
        assert await through(pipelines, name, data) == data
        await ended(logs, 2)  # type: ignore[arg-type]
    assert [line["code"] for line in logs] == [0, 0]


async def test_a_command_that_fails_is_told_with_its_last_words(pipelines: CommandPipelines) -> None:
    """The stream ends short, which QEMU notices; the log says whose fault it was."""
    with capture_logs() as logs:
        assert await through(pipelines, "fails", b"x" * 100) == b""
        await ended(logs, 2)  # type: ignore[arg-type]
    first = next(line for line in logs if line["command"] == "sh")
    assert (first["code"], first["said"], first["log_level"]) == (3, "no key", "warning")
    assert any(line["command"] == "gzip" and line["code"] for line in logs)


@pytest.mark.parametrize("half", ["send", "receive"])
async def test_a_command_that_is_not_there(pipelines: CommandPipelines, half: str) -> None:
    """Told by its name, and no descriptor is left."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    outgoing, arriving = connection()
    with outgoing, arriving, pytest.raises(Broken, match="vmferry-no-such-command of pipeline none cannot be started"):
        await getattr(pipelines, half)("none", outgoing, None, MOVE)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_an_unknown_pipeline_names_those_there_are(pipelines: CommandPipelines) -> None:
    """Nothing is started."""
    outgoing, arriving = connection()
    with outgoing, arriving, pytest.raises(BadInput, match="no pipeline xz on this host; it has cat, fails, gzip"):
        await pipelines.send("xz", outgoing, None, MOVE)


@pytest.mark.root
async def test_a_command_has_the_guests_rights_and_nothing_of_the_agent(pipelines: CommandPipelines) -> None:
    """Its user, no groups, no environment, three descriptors."""
    os.environ["VMFERRY_SECRET"] = "x"
    try:
        text = (await through(pipelines, "who", b"", uid=700_999)).decode()
    finally:
        del os.environ["VMFERRY_SECRET"]
    lines = text.split()
    assert lines[:2] == ["700999", "700999"]
    assert "VMFERRY_SECRET" not in text
    assert [line for line in lines if line.isdigit()][2:] == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


async def test_they_outlive_an_agent(pipelines: CommandPipelines) -> None:
    """Closing lets go of the commands; what they carry goes on."""
    outgoing, arriving = connection()
    with contextlib.ExitStack() as ours:
        into = await pipelines.send("cat", outgoing, None, MOVE)
        out = await pipelines.receive("cat", arriving, None, MOVE)
        ours.callback(out.close)
        outgoing.close()
        arriving.close()
        await pipelines.close()
        os.write(into.fileno(), b"still here")
        into.close()
        assert await asyncio.to_thread(_read_all, out.fileno()) == b"still here"


async def test_commands_that_hang_are_ended_with_their_hand_over(pipelines: CommandPipelines) -> None:
    """Both, and what they have started; others' commands go on, and a second time is no error."""
    outgoing, arriving = connection()
    with capture_logs() as logs, outgoing, arriving, contextlib.ExitStack() as ours:
        into = await pipelines.send("hangs", outgoing, None, MOVE)
        out = await pipelines.receive("hangs", arriving, None, MOVE)
        ours.callback(into.close)
        ours.callback(out.close)
        pipelines.end(HandoverId("another"))
        assert logs == []
        pipelines.end(MOVE)
        await ended(logs, 2)  # type: ignore[arg-type]
        assert await asyncio.to_thread(_read_all, out.fileno()) == b""  # nobody holds its other end
    assert [line["code"] for line in logs] == [137, 137]
    pipelines.end(MOVE)
