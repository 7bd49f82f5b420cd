"""The bytes of a bandwidth probe, on one bare connection: sent at one end, counted and thrown away at the other.

The blocking work is a thread's, beside the event loop: it waits in the kernel for nearly all of its time. The receiver
decides when it has seen enough, and closes; both are bounded in bytes, time and silence, whatever the other one does.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import time
from dataclasses import dataclass

from vmferry.core.bandwidth import MOST_BYTES, SILENCE_MS, Bandwidth, BandwidthMeter
from vmferry.core.errors import Broken, TimedOut
from vmferry.core.units import Bytes, Milliseconds, Nanoseconds, format_bytes
from vmferry.links.threads import finish
from vmferry.ports.stream import StreamConnection

#: Of a whole probe, whatever comes: one on a link of 100 Mbit/s and more takes 0.3 s.
TIME_LIMIT_S = 10.0
_SILENCE_S = SILENCE_MS / 1000
#: Random, and repeated from a changing place: what compresses on the way looks back some ten KiB.
_BLOCK_BYTES = 4 << 20
_CHUNK_BYTES = 256 << 10
_BUFFER_BYTES = 1 << 20
#: Where `tcpi_min_rtt` (us) stands in the kernel's struct tcp_info. Source: include/uapi/linux/tcp.h, since 4.9.
_MIN_RTT_AT = 148
_NO_RTT = 0xFFFFFFFF
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a receiver saw."""

    bandwidth: Bandwidth
    total: Bytes


def round_trip_ms(connection: socket.socket) -> Milliseconds:
    """Return the shortest round trip that the kernel has seen on a connection; 0: it does not say."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return Milliseconds(0.0)
    if len(info) < _MIN_RTT_AT + 4:
        return Milliseconds(0.0)
    (microseconds,) = struct.unpack_from("=I", info, _MIN_RTT_AT)
    return Milliseconds(0.0 if microseconds == _NO_RTT else microseconds / 1000)


def own(connection: StreamConnection) -> socket.socket:
    """Return a connection of our own to the same other end; the caller closes it."""
    return socket.socket(fileno=socket.dup(connection.fileno()))


async def send(connection: socket.socket, most: Bytes = MOST_BYTES) -> Bytes:
    """Send until the other end has seen enough, and return how much the kernel took; cancelled, it ends at once.

    Raises:
        TimedOut: the other end does not read, or takes longer than 10 s.
        Broken: the network is gone.
    """
    return await finish(lambda: _send(connection, most), lambda _: None, lambda: _shut(connection))


async def receive(connection: socket.socket, most: Bytes = MOST_BYTES) -> Arrived:
    """Count what comes until it is enough, and close; cancelled, it ends at once.

    Raises:
        TimedOut: nothing comes.
        Broken: it ended before it could tell anything.
    """
    with contextlib.closing(connection):
        return await finish(lambda: _receive(connection, most), lambda _: None, lambda: _shut(connection))


def close_at_once(connection: socket.socket) -> None:
    """Close a connection and throw away what was not sent yet."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    connection.close()


def _shut(connection: socket.socket) -> None:
    """Have a thread that waits for a connection go on."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _send(connection: socket.socket, most: Bytes) -> Bytes:
    block, sent = memoryview(secrets.token_bytes(_BLOCK_BYTES)), 0
    until = time.monotonic() + TIME_LIMIT_S
    connection.settimeout(_SILENCE_S)
    try:
        while sent < most:
            if time.monotonic() > until:
                raise TimedOut(f"Probe was not over in {TIME_LIMIT_S:.0f} s", side="destination", retry=True)
            start = sent % (_BLOCK_BYTES - _CHUNK_BYTES)
            sent += connection.send(block[start : start + min(_CHUNK_BYTES, most - sent)])
        connection.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        return Bytes(sent)  # it has seen enough: what it says of it is asked for elsewhere
    except TimeoutError as error:
        raise TimedOut(
            f"Destination read nothing of the probe for {_SILENCE_S:g} s, after {format_bytes(sent)}",
            side="destination",
            retry=True,
        ) from error
    except OSError as error:
        raise Broken(f"Probe broke after {format_bytes(sent)}: {error.strerror}", retry=True) from error
    return Bytes(sent)


def _receive(connection: socket.socket, most: Bytes) -> Arrived:
    meter, buffer, total = BandwidthMeter(round_trip_ms(connection)), bytearray(_BUFFER_BYTES), 0
    until = time.monotonic() + TIME_LIMIT_S
    connection.settimeout(_SILENCE_S)
    try:
        while total < most and not meter.has_enough and time.monotonic() < until:
            count = connection.recv_into(buffer, min(_BUFFER_BYTES, most - total))
            if not count:
                raise Broken(f"Source ended its probe after {format_bytes(total)}", side="source", retry=True)
            total += count
            meter.add(Nanoseconds(time.monotonic_ns()), Bytes(total))
    except TimeoutError as error:
        raise TimedOut(
            f"Nothing came of the probe for {_SILENCE_S:g} s, after {format_bytes(total)}", side="source", retry=True
        ) from error
    except OSError as error:
        raise Broken(f"Probe broke after {format_bytes(total)}: {error.strerror}", side="source", retry=True) from error
    bandwidth = meter.bandwidth
    if bandwidth is None:
        raise Broken(f"{format_bytes(total)} arrived of the probe: too few to tell a bandwidth", retry=True)
    return Arrived(bandwidth, Bytes(total))
