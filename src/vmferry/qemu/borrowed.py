"""Sockets of a running QEMU, borrowed to set what QEMU has no option for.

Source: pidfd_getfd(2), which needs CAP_SYS_PTRACE for a QEMU of another user; tcp(7): TCP_NOTSENT_LOWAT,
TCP_USER_TIMEOUT, which keep-alive heeds too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
#: The same on every architecture.
_PIDFD_GETFD = 438
#: include/uapi/linux/tcp.h; the module socket names the first from Python 3.12 on.
TCP_NOTSENT_LOWAT = 25
#: How often a connection on which nothing happens is asked whether it lives, and when that begins, in seconds.
_KEEPALIVE_S = 2


def sockets_of(pid: int, pidfd: int, wanted: Callable[[socket.socket], bool]) -> Iterator[socket.socket]:
    """Yield those of a process's sockets that are wanted, each closed here when the next one is asked for.

    Args:
        pid: of the process; its pidfd keeps it from being another one.
        pidfd: the same one's.
        wanted: tells whether it is one of them.

    Raises:
        OSError: it is gone, or this process may not look into it.
    """
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with contextlib.closing(_borrow(pidfd, int(entry.name))) as borrowed:
                if wanted(borrowed):
                    yield borrowed


def bound_unsent(pid: int, pidfd: int, peer: tuple[str, int], most: int) -> int:
    """Let no more than so many bytes wait unsent on each connection to a peer; returns how many there are.

    Raises:
        OSError: the process is gone, or this one may not look into it.
    """
    found = 0
    for connection in sockets_of(pid, pidfd, lambda each: _is_connected(each, peer)):
        connection.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, most)
        found += 1
    return found


def end_silent(pid: int, pidfd: int, peer: tuple[str, int], silence_ms: int) -> int:
    """Have each connection to a peer end when that acknowledges nothing for so long; returns how many there are.

    Raises:
        OSError: the process is gone, or this one may not look into it.
    """
    found = 0
    for connection in sockets_of(pid, pidfd, lambda each: _is_connected(each, peer)):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms)
        found += 1
    return found


def _get(pidfd: int, number: int) -> int:
    descriptor = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if descriptor < 0:
        code = ctypes.get_errno()
        if code == errno.EBADF:  # closed meanwhile
            raise FileNotFoundError(code, os.strerror(code))
        raise OSError(code, os.strerror(code))
    return int(descriptor)


def _borrow(pidfd: int, number: int) -> socket.socket:
    descriptor = _get(pidfd, number)
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:  # of a family without addresses
        os.close(descriptor)
        raise FileNotFoundError(error.errno, error.strerror) from error


def _is_connected(connection: socket.socket, peer: tuple[str, int]) -> bool:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return False
    try:
        host, port, *_ = connection.getpeername()
        return (ip_address(host), port) == (ip_address(peer[0]), peer[1])
    except (OSError, ValueError):  # it listens, or is not connected yet; or the peer is known by a name
        return False
