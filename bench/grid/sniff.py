"""Beats seen from outside: one packet socket per host, the kernel's stamps, whoever runs the guest.

Every mover's QEMU sends the guest's beats as datagrams of one byte to some port of its host's loopback interface. A
packet socket sees them all without being their receiver, so agents, libvirt and plain QEMU are watched alike.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from array import array
from types import TracebackType
from typing import Self

from vmferry.lab.inside import socket_in
from vmferry.measure.beats import BeatLog
from vmferry.measure.stamps import SO_RCVBUFFORCE, SO_RXQ_OVFL, SO_TIMESTAMPNS, received

ETH_P_IP = 0x0800
SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
_DRAIN_EVERY_S = 0.05
_BUFFER = 16 << 20
#: Four minutes at a beat per millisecond.
_CAPACITY = 240_000
#: IPv4 without options, UDP, a length of 9: eight of header and one byte. Source: linux/filter.h (classic BPF).
_PROGRAM = (
    (0x30, 0, 0, 9),  # A = the protocol
    (0x15, 0, 3, 17),  # UDP?
    (0x28, 0, 0, 24),  # A = UDP's length
    (0x15, 0, 1, 9),  # one byte?
    (0x06, 0, 0, 64),  # take it
    (0x06, 0, 0, 0),  # pass it over
)


def beat_socket(namespace: str) -> socket.socket:
    """Return a socket that sees the beats on a namespace's loopback interface."""
    sock = socket_in(namespace, socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(ETH_P_IP))
    program = b"".join(struct.pack("=HBBI", *line) for line in _PROGRAM)
    memory = ctypes.create_string_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(_PROGRAM), ctypes.addressof(memory)))
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
    sock.bind(("lo", ETH_P_IP))
    return sock


class BeatTap:
    """The beats of whatever guest runs on one host; an async context manager."""

    def __init__(self, namespace: str) -> None:
        self._log = BeatLog(_CAPACITY)
        self._sock = beat_socket(namespace)
        self.dropped = 0  #: packets that the kernel could not keep for us: a gap might be ours
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._sock.close()

    def stamps(self, start_ns: int, end_ns: int) -> array[int]:
        """Return the stamps of a window, preceded by the latest one before it."""
        self._drain()
        return self._log.stamps(start_ns, end_ns)

    async def wait_beat(self, after_ns: int) -> None:
        """Return once a beat came after a moment."""
        while not any(stamp > after_ns for stamp in self.stamps(after_ns, 1 << 62)):  # noqa: ASYNC110  (a socket's)
            await asyncio.sleep(_DRAIN_EVERY_S / 5)

    async def _read(self) -> None:
        while True:
            self._drain()
            await asyncio.sleep(_DRAIN_EVERY_S)

    def _drain(self) -> None:
        for datagram in received(self._sock, size=64):
            self.dropped = max(self.dropped, datagram.dropped)
            self._log.add(datagram.stamp_ns, datagram.data[-1])
