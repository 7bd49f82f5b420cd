"""Watches from outside that a guest never runs twice: every beat of every host, stamped by the kernel.

The micro guest beats once per millisecond from its own timer interrupt; the write leaves QEMU in the vCPU's thread, as
a datagram on the host's loopback. A packet socket on that loopback sees it whoever else listens, so the watch needs
neither agent nor QMP, and it misses nothing between two samples: a vCPU that runs beats, one that stands cannot.

Ownership moves once at the most, from the source to the destination, and never back after the first beat there. So
"never two" is: no beat of the source comes after the first beat of the destination.
"""

from __future__ import annotations

import bisect
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from vmferry.lab.inside import socket_in
from vmferry.measure.stamps import SO_RCVBUFFORCE, SO_RXQ_OVFL, SO_TIMESTAMPNS, received

_ETH_P_IP = 0x0800  # include/uapi/linux/if_ether.h
_UDP = 17
_BUFFER_BYTES = 16 << 20
_LOOK_EVERY_S = 0.02
#: A host whose guest has not beaten for so long stands still: two hundred beats.
STILL_S = 0.2


@dataclass(frozen=True, slots=True)
class Twice:
    """A moment at which the guest ran on two hosts."""

    first_there_ns: int
    last_here_ns: int
    beats_here_after: int

    def __str__(self) -> str:
        """Say by how much."""
        late_ms = (self.last_here_ns - self.first_there_ns) / 1e6
        return f"{self.beats_here_after} beats at the source after the first at the destination, for {late_ms:.1f} ms"


class BeatWatch:
    """Collects the beats of all hosts in a thread of its own; a context manager.

    Args:
        namespaces: the network namespace of each host.
    """

    def __init__(self, namespaces: Mapping[str, str]) -> None:
        self._sockets = {host: _beat_socket(namespace) for host, namespace in namespaces.items()}
        self._beats: dict[str, list[int]] = {host: [] for host in namespaces}
        self.dropped = 0  #: beats that the kernel had no room for; not 0 = the watch has holes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="beat-watch", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        for watched in self._sockets.values():
            watched.close()

    def forget(self) -> None:
        """Begin anew: the next guest."""
        for beats in self._beats.values():
            beats.clear()

    def beats(self, host: str, since_ns: int = 0) -> int:
        """Return how many beats a host had since then (CLOCK_MONOTONIC)."""
        beats = self._beats[host]
        return len(beats) - bisect.bisect_left(beats, since_ns)

    def runs_on(self) -> list[str]:
        """Return the hosts whose guest beats from now on; looks for `STILL_S`, and waits until that was collected."""
        now = time.monotonic_ns()
        time.sleep(STILL_S + 2 * _LOOK_EVERY_S)
        return [host for host in self._beats if self.beats(host, now)]

    def twice(self, source: str, destination: str) -> Twice | None:
        """Return when the guest ran twice; None when it never did."""
        there = list(self._beats[destination])
        if not there:
            return None
        here = list(self._beats[source])
        after = len(here) - bisect.bisect_right(here, there[0])
        return Twice(there[0], here[-1], after) if after else None

    def spans(self) -> list[str]:
        """Return when each host's guest ran, in one line each: stretches without a pause longer than `STILL_S`."""
        return [f"{host}: {', '.join(_stretches(beats)) or 'never'}" for host, beats in self._beats.items()]

    def _collect(self) -> None:
        """Take beats until told to stop, and what is there then."""
        while not self._stop.is_set():
            select.select(list(self._sockets.values()), [], [], _LOOK_EVERY_S)
            for host, watched in self._sockets.items():
                for stamp_ns, dropped in _beats_in(watched):
                    self._beats[host].append(stamp_ns)
                    self.dropped = max(self.dropped, dropped)
            self._stop.wait(_LOOK_EVERY_S / 2)


def _beat_socket(namespace: str) -> socket.socket:
    """Return a packet socket that sees what arrives on a namespace's loopback.

    Source: packet(7): a socket of protocol ETH_P_IP does not see the outgoing copy.
    """
    made = socket_in(namespace, socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_IP))
    made.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    made.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
    made.bind(("lo", _ETH_P_IP))
    return made


def _beats_in(watched: socket.socket) -> Iterator[tuple[int, int]]:
    """Yield stamp and losses of each beat that waits: a datagram of one byte."""
    for packet in received(watched, 64):
        header = 4 * (packet.data[0] & 15)
        if packet.data[9] == _UDP and struct.unpack_from("!H", packet.data, header + 4)[0] == 8 + 1:
            yield packet.stamp_ns, packet.dropped


def _stretches(beats: list[int]) -> Iterator[str]:
    """Yield "from..to (count)" of each stretch, in seconds of CLOCK_MONOTONIC."""
    start = 0
    for index in range(1, len(beats) + 1):
        if index == len(beats) or beats[index] - beats[index - 1] > STILL_S * 1e9:
            yield f"{beats[start] / 1e9:.3f}..{beats[index - 1] / 1e9:.3f} ({index - start} beats)"
            start = index
