"""The command as a real process: Ctrl-C, a closed pipe, the console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from pydantic import TypeAdapter
from tests.cli.conftest import FakeFleet, guest_view, handover_view
from tests.cli.events import MOVE

from vmferry.pki.identity import IdentityDirectory

COMMAND = [sys.executable, "-m", "vmferry"]


def first_lines(fleet: FakeFleet) -> Iterator[dict[str, Any]]:
    """Yield the begin of a move, then stay silent until the fleet ends, as a long migration does."""
    for event in MOVE[:4]:
        yield TypeAdapter(type(event)).dump_python(event, mode="json")
    fleet.released.wait(60)


@pytest.fixture
def moving(fleet: FakeFleet) -> Iterator[FakeFleet]:
    """A move that goes on for as long as the test."""
    fleet.has_guests(host_a=[guest_view()])
    fleet.has_handovers(host_a=[handover_view()])
    fleet.answer("host-a", "POST", "/v1/guests/web-7/migrate", {"handover": "h-1"}, status=202)
    fleet.agents["host-a"].answers["GET", "/v1/handovers/h-1/watch"] = lambda _: (200, first_lines(fleet))
    yield fleet
    fleet.released.set()


def test_ctrl_c_ends_only_the_command(moving: FakeFleet) -> None:
    """A SIGINT in mid-migration exits with 130 and the two ways on; no agent was told anything else."""
    with subprocess.Popen(
        [*COMMAND, "migrate", "web-7", "host-b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while "precopy" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the migration of web-7 to host-b goes on" in err
    assert "vmferry watch h-1" in err
    assert "Traceback" not in err
    assert [path for _, path, _ in moving.agents["host-a"].orders()] == ["/v1/guests/web-7/migrate"]


def test_ctrl_c_on_a_terminal_leaves_the_last_view(moving: FakeFleet) -> None:
    """On a real terminal the live view is drawn, and Ctrl-C as a key detaches with the cursor shown again."""
    code, text = run_on_terminal([*COMMAND, "watch", "h-1"], {"precopy": b"\x03"})
    assert code == 130
    assert "[>] 2 copy all memory while the guest runs" in text
    assert "goes on" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["at-its-end", "in-the-middle"])
def test_a_closed_pipe_is_no_error(fleet: FakeFleet, options: tuple[str, ...]) -> None:
    """`vmferry guest list | head -0` ends without a word, as other commands do."""
    fleet.has_guests(host_a=[guest_view()])
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "guest", "list", *options]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, "")
    assert "BrokenPipe" not in err


async def test_the_console_joins_terminal_and_guest(fleet: FakeFleet, tmp_path: Path) -> None:
    """Keys reach the guest, Ctrl-C among them, its output reaches the terminal, and Ctrl-] leaves."""
    received = bytearray()
    fleet.has_guests(host_a=[guest_view()])
    async with _console_agent(IdentityDirectory(tmp_path / "host-a").server_context(), fleet, received):
        code, text = await asyncio.to_thread(
            run_on_terminal, [*COMMAND, "guest", "console", "web-7"], {"login:": b"root\x03", "hello root": b"\x1d"}
        )
    assert code == 0
    assert bytes(received) == b"root\x03"
    assert "left the console of web-7" in text


@contextlib.asynccontextmanager
async def _console_agent(context: ssl.SSLContext, fleet: FakeFleet, received: bytearray) -> AsyncIterator[None]:
    """Serve host-a's console on a port of its own, and put that port into the operator's fleet document."""

    async def console(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_bytes(b"login:")
        async for message in socket:
            if message.type == WSMsgType.BINARY:
                received.extend(message.data)
                if received.endswith(b"\x03"):
                    await socket.send_bytes(b"hello root")
        return socket

    async def guests(request: web.Request) -> web.Response:
        return web.json_response({"guests": [guest_view()]})

    app = web.Application()
    app.add_routes([web.get("/v1/guests/web-7/console", console), web.get("/v1/guests", guests)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    server = site._server
    assert isinstance(server, asyncio.Server)
    fleet.moved_to("host-a", server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        await runner.cleanup()


def run_on_terminal(argv: list[str], answers: dict[str, bytes]) -> tuple[int, str]:
    """Run a command on a terminal of its own; press keys when a text appears; return exit code and all output."""
    terminal, inside = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "110", "LINES": "50"}
    # setsid makes the terminal the command's own, so that ^C typed there becomes a signal
    process = subprocess.Popen(["setsid", "--ctty", *argv], stdin=inside, stdout=inside, stderr=inside, env=environment)
    os.close(inside)
    text, waiting = "", list(answers.items())
    try:
        while data := _read(terminal):
            text += data.decode("utf-8", "replace")
            if waiting and waiting[0][0] in text:
                os.write(terminal, waiting.pop(0)[1])
        return process.wait(timeout=30), text
    finally:
        os.close(terminal)
        process.kill()
        process.wait()


def _read(terminal: int) -> bytes:
    """Return what came, empty when the other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: that is how a terminal ends
        return b""
