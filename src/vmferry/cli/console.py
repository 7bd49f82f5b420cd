"""A guest's serial console in this terminal, over a WebSocket of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator

import aiohttp

from vmferry.cli.fleet import Fleet
from vmferry.cli.output import say
from vmferry.core.errors import Unreachable, VmferryError

#: Ctrl-], as in telnet and virsh.
LEAVE = b"\x1d"


def join_console(fleet: Fleet, host: str, guest: str) -> None:
    """Join terminal and console until either ends or Ctrl-] is pressed; the terminal is as before afterwards.

    Raises:
        Unreachable: the agent does not answer.
        VmferryError: it refuses the console.
    """
    say(f"console of {guest} on {host}; Ctrl-] leaves it")
    try:
        with raw_terminal():
            asyncio.run(_join(fleet, host, guest))
    except aiohttp.WSServerHandshakeError as error:
        raise _reason(fleet, host, guest) or _not_opened(host, guest, error) from error
    except aiohttp.ClientError as error:
        raise _not_opened(host, guest, error) from error
    say(f"\nleft the console of {guest}")


def _reason(fleet: Fleet, host: str, guest: str) -> VmferryError | None:
    """Return why the agent refuses the console: a plain request is told, a WebSocket only a number."""
    try:
        fleet.ask(host, "GET", f"/v1/guests/{guest}/console")
    except VmferryError as error:
        return None if "WebSocket" in error.what else error
    return None


def _not_opened(host: str, guest: str, error: aiohttp.ClientError) -> Unreachable:
    return Unreachable(
        f"console of guest {guest} on {host} cannot be opened: {error}", fix=f"see `vmferry guest show {guest}`"
    )


async def _join(fleet: Fleet, host: str, guest: str) -> None:
    endpoint, context = fleet.endpoint(host), fleet.context
    url = f"https://{endpoint.address}:{endpoint.port}/v1/guests/{guest}/console"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, ssl=context, server_hostname=endpoint.server_name, heartbeat=10) as socket,
    ):
        await _copy_both(socket)


async def _copy_both(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Copy keys to the guest and its output to the terminal until one side ends."""
    tasks = [asyncio.create_task(_copy_keys(socket)), asyncio.create_task(_copy_output(socket))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy_keys(socket: aiohttp.ClientWebSocketResponse) -> None:
    loop, keys = asyncio.get_running_loop(), asyncio.Queue[bytes]()
    number = sys.stdin.fileno()
    loop.add_reader(number, lambda: keys.put_nowait(os.read(number, 4096)))
    try:
        while data := await keys.get():
            before, leave, _ = data.partition(LEAVE)
            if before:
                await socket.send_bytes(before)
            if leave:
                return
    finally:
        loop.remove_reader(number)


async def _copy_output(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for message in socket:
        if message.type == aiohttp.WSMsgType.BINARY:
            sys.stdout.buffer.write(message.data)
            sys.stdout.buffer.flush()


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Pass every key on, Ctrl-C too; does nothing when the input is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
