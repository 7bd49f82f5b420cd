"""One open connection to a guest's serial console."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from vmferry.core.errors import BadInput, Broken
from vmferry.core.ids import GuestName
from vmferry.ports.hypervisor import GuestProcess

_CHUNK = 4096


class _Openable(Protocol):
    async def open_console(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


class QemuConsole:
    """Bytes both ways between a WebSocket and QEMU's console socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, process: GuestProcess | _Openable | None, name: GuestName) -> QemuConsole:
        """Open the console of a running guest.

        Raises:
            BadInput: the guest has no process, or its driver no console.
            Broken: the console cannot be opened.
        """
        opener = getattr(process, "open_console", None)
        if opener is None:
            raise BadInput(f"Guest {name} is not running: it has no console", fix=f"vmferry guest start {name}")
        return cls(*await opener())

    async def read(self) -> bytes:
        """Wait for output; empty at the end."""
        try:
            return await self._reader.read(_CHUNK)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """Send input.

        Raises:
            Broken: the console is gone.
        """
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Broken(f"The console is gone: {error.strerror}") from error

    async def close(self) -> None:
        """Let go of the console. Idempotent."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
