"""One open connection to a guest's serial console."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import ClassVar, Protocol

from vmferry.core.errors import BadInput, Broken, GuestBusy
from vmferry.core.ids import GuestName
from vmferry.ports.hypervisor import GuestProcess

_CHUNK = 4096


class _Openable(Protocol):
    async def open_console(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


class QemuConsole:
    """Bytes both ways between a WebSocket and QEMU's console socket, which serves one reader at a time."""

    #: A second reader would wait in QEMU's socket without a word.
    _open: ClassVar[weakref.WeakValueDictionary[GuestName, QemuConsole]] = weakref.WeakValueDictionary()

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, process: GuestProcess | _Openable | None, name: GuestName) -> QemuConsole:
        """Open the console of a running guest.

        Raises:
            BadInput: the guest has no process, or its driver no console.
            GuestBusy: somebody has its console open.
            Broken: the console cannot be opened.
        """
        opener = getattr(process, "open_console", None)
        if opener is None:
            raise BadInput(
                f"Guest {name} is not running: it has no console", fix=f"start it: `vmferry guest start {name}`"
            )
        if name in cls._open:
            raise GuestBusy(
                f"The console of guest {name} is open already; it serves one reader at a time",
                fix="leave it there (Ctrl-]); what the guest printed is in console.log below the host's run directory",
                retry=True,
            )
        console = cls(*await opener())
        cls._open[name] = console
        return console

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
        for name, console in list(self._open.items()):
            if console is self:
                del self._open[name]
        self._writer.transport.abort()  # a guest that reads nothing would never take the rest
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
