"""Reads and writes on a bare socket that never take a byte too many: what follows belongs to QEMU."""

from __future__ import annotations

import asyncio
import socket


async def read_exactly(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes.

    Raises:
        ConnectionError: the other side closed before.
    """
    loop, read = asyncio.get_running_loop(), b""
    while len(read) < count:
        part = await loop.sock_recv(connection, count - len(read))
        if not part:
            raise ConnectionResetError("the other side closed the connection")
        read += part
    return read


async def write(connection: socket.socket, data: bytes) -> None:
    """Send everything."""
    await asyncio.get_running_loop().sock_sendall(connection, data)
