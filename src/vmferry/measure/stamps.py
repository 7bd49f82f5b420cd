"""UDP sockets whose datagrams carry the kernel's receive stamp, so that a reader's own delay is not measured.

The kernel stamps with CLOCK_REALTIME; we keep CLOCK_MONOTONIC, which nobody sets: the stamp is moved when it is read.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: As on every Linux architecture that runs KVM guests today; Python's socket module does not name them.
SO_TIMESTAMPNS = 35
SO_RXQ_OVFL = 40
SO_RCVBUFFORCE = 33

_TIMESPEC = struct.Struct("@qq")
_UINT32 = struct.Struct("@I")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_UINT32.size)
#: Room for about five seconds of beats, in case the reading process is kept from running.
_BUFFER_BYTES = 4 << 20
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Datagram:
    """One received datagram.

    Attributes:
        data: Its payload.
        stamp_ns: When the kernel received it, CLOCK_MONOTONIC.
        dropped: How many datagrams the socket has lost so far for want of buffer space.
    """

    data: bytes
    stamp_ns: int
    dropped: int


def stamping_socket() -> socket.socket:
    """Return a non-blocking IPv4 UDP socket that asks the kernel for receive stamps and its count of losses.

    The first such socket of a machine makes the kernel switch its stamping on, some milliseconds later; until then
    a datagram is stamped when it is read. So open it before there is something to measure.

    Source: Linux Documentation/networking/timestamping.rst, 1.1; socket(7), SO_RXQ_OVFL.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
    except PermissionError:  # not root: as much as the system grants
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    return sock


def received(sock: socket.socket, size: int = 256, most: int | None = None) -> Iterator[Datagram]:
    """Yield what waits in a stamping socket, oldest first, until it is empty or so many were read.

    A pending ICMP error (nobody listens at a connected peer) is taken off the socket and passed over.

    Args:
        sock: From `stamping_socket`.
        size: Longer datagrams are cut to this many bytes.
        most: Reads at most; a sender that never pauses may keep the socket from ever being empty. None: no limit.
    """
    ahead = realtime_ahead_ns()
    for _ in itertools.count() if most is None else range(most):
        try:
            data, ancillary, _, _ = sock.recvmsg(size, _ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            if sock.fileno() < 0:
                return
            continue
        stamp, dropped = _meanings(ancillary)
        if stamp is not None:
            yield Datagram(data, stamp - ahead, dropped)


def realtime_ahead_ns() -> int:
    """Return CLOCK_REALTIME minus CLOCK_MONOTONIC, from the tightest of three readings."""
    readings = []
    for _ in range(3):
        before, real, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after - before, real - (before + after) // 2))
    return min(readings)[1]


def _meanings(ancillary: list[tuple[int, int, bytes]]) -> tuple[int | None, int]:
    stamp, dropped = None, 0
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            stamp = seconds * _NS_PER_S + nanoseconds
        elif kind == SO_RXQ_OVFL:
            (dropped,) = _UINT32.unpack(data)
    return stamp, dropped
