"""Sockets inside a host's network namespace, opened from this process.

A socket stays in the namespace in which it was made, whatever its maker does later: a thread enters the
namespace, makes the socket and ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from pathlib import Path

from vmferry.core.errors import Broken

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def socket_in(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Return a new socket that belongs to a network namespace; this process stays where it is.

    Raises:
        Broken: the namespace does not exist, or this process may not enter it.

    Source: setns(2): a thread's network namespace is its own; ip-netns(8): /run/netns/NAME.
    """
    made: list[socket.socket | OSError] = []

    def enter_and_make() -> None:
        try:
            _enter(namespace)
            made.append(socket.socket(family, kind, protocol))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=enter_and_make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise Broken(f"No socket in network namespace {namespace}: {made[0]}") from made[0]
    return made[0]


def _enter(namespace: str) -> None:
    descriptor = os.open(Path("/run/netns") / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
