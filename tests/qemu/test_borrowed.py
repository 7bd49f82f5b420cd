"""Sockets borrowed from another process: the right ones are set, everything else is left alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.qemu.borrowed import TCP_NOTSENT_LOWAT, bound_unsent

MOST = 200_000


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def unsent(connection: socket.socket) -> int:
    """Return the bound of a connection."""
    return connection.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT)


def test_only_connections_to_the_peer_are_set(listener: socket.socket) -> None:
    """Two connections to the peer get it; one to somebody else, the listener and a UNIX socket do not."""
    peer, pidfd = listener.getsockname(), os.pidfd_open(os.getpid())
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(peer) as first,
        socket.create_connection(peer) as second,
        socket.create_connection(other.getsockname()) as elsewhere,
        socket.socket(socket.AF_UNIX),
    ):
        before = unsent(elsewhere)
        assert bound_unsent(os.getpid(), pidfd, peer, MOST) == len((first, second))
        assert (unsent(first), unsent(second)) == (MOST, MOST)
        assert unsent(elsewhere) == unsent(listener) == before
        first.sendall(b"still mine")
    os.close(pidfd)


def test_nothing_is_left_open(listener: socket.socket) -> None:
    """What was borrowed is given back."""
    pidfd = os.pidfd_open(os.getpid())
    with socket.create_connection(listener.getsockname()):
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            bound_unsent(os.getpid(), pidfd, listener.getsockname(), MOST)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(pidfd)


def test_a_process_that_is_gone() -> None:
    """It is told, not ignored."""
    with pytest.raises(OSError, match="No such"):
        bound_unsent(2**22 + 1, -1, ("127.0.0.1", 1), MOST)
