"""A wire between two QEMUs that a test holds in its hands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

from vmferry.testing.conformance_hypervisor import ADDRESS


class Wire:
    """A TCP relay that can be cut: both ends then get a reset."""

    def __init__(self) -> None:
        self.connections = 0
        self.answer: list[bytes] = []  #: the first bytes that came back
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[int]:
        """Relay to a port as long as the block lasts; yields the port to connect to."""

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            onward, back = await asyncio.open_connection(ADDRESS, port)
            self._writers += [writer, back]
            await asyncio.gather(self._pump(reader, back), self._pump(onward, writer, self.answer))

        server = await asyncio.start_server(relay, ADDRESS, 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self.cut()
            server.close()
            await server.wait_closed()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            if (found := writer.get_extra_info("socket")) is not None and found.fileno() >= 0:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    @staticmethod
    async def _pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[bytes] | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if seen is not None and not seen:
                    seen.append(data)
                writer.write(data)
                await writer.drain()
        writer.close()
