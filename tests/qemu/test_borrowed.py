"""Sockets borrowed from another process: the right ones are set, everything else is left alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.qemu.borrowed import TCP_NOTSENT_LOWAT, bound_unsent

MOST = 200_000
#: include/linux/socket.h; the module socket has no name for it.
AF_XDP = 44


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


def test_an_address_may_be_written_otherwise() -> None:
    """The configuration keeps an address as it was written; a name is nobody's address, and no error."""
    pidfd = os.pidfd_open(os.getpid())
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("::1", port)):
            assert bound_unsent(os.getpid(), pidfd, ("0:0:0:0:0:0:0:1", port), MOST) == 1
            assert bound_unsent(os.getpid(), pidfd, ("host-b", port), MOST) == 0
    os.close(pidfd)


def test_sockets_without_addresses_are_passed_over(listener: socket.socket) -> None:
    """Sockets of AF_XDP have none; they are not closed for their owner, and end nothing."""
    try:
        other = socket.socket(AF_XDP, socket.SOCK_RAW)
    except OSError as error:
        pytest.skip(f"no AF_XDP socket ({error.strerror}): needs root and a kernel with CONFIG_XDP_SOCKETS")
    pidfd = os.pidfd_open(os.getpid())
    with other, socket.create_connection(listener.getsockname()):
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert bound_unsent(os.getpid(), pidfd, listener.getsockname(), MOST) == 1
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert other.fileno() >= 0
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
