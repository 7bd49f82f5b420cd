"""Sockets in a guest's directory: whoever could put another one there is not taken for its QEMU.

Source: unix(7), SO_PEERCRED: of a listening socket, who called listen().
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from vmferry.core.errors import Broken

#: struct ucred: pid, uid, gid
_UCRED = struct.Struct("3i")


async def connect(path: Path, pid: int) -> socket.socket:
    """Return a connection to the process that listens at a path. Nothing is sent.

    Args:
        path: the socket.
        pid: of the process that must be at its other end.

    Raises:
        OSError: nobody listens there.
        Broken: another process does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(connection, str(path))
        connection.getpeername()  # with a full backlog connect() tells of no error and has not connected
        _check_server(connection, path, pid)
    except BaseException:
        connection.close()
        raise
    return connection


class Peer(NamedTuple):
    """Who made the other end of a connection."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """Return who listened at the other end; of a pair of sockets, who made them."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def _check_server(connection: socket.socket, path: Path, pid: int) -> None:
    seen = peer_of(connection).pid
    if seen != pid:
        raise Broken(
            f"socket {path} is served by process {seen}, expected QEMU, process {pid}",
            fix="find out what that process does in the guest's directory, and end it",
        )
