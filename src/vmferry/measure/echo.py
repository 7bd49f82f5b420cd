"""Probes a guest's UDP echo at a steady pace from a thread of its own."""

from __future__ import annotations

import secrets
import struct
import threading
import time
from typing import TYPE_CHECKING, Self

from vmferry.measure.outage import OutageStats, ProbeLog, outage_of
from vmferry.measure.stamps import received, stamping_socket

if TYPE_CHECKING:
    from types import TracebackType

#: Where the built-in guests echo.
ECHO_PORT = 7007
#: Magic, a number of this prober, the sequence number; all in network order.
_PROBE = struct.Struct("!4sIQ")
_MAGIC = b"VFEP"
#: Read at one go: an echo that never stops must not keep the prober from sending and from ending.
_MOST_AT_ONCE = 2000
_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000


class EchoProber:
    """Sends a numbered datagram every interval and keeps which of them came back; a context manager.

    A datagram that cannot be sent (no route, nobody there) counts as sent and lost: that is what an outage is.
    """

    def __init__(self, address: str, port: int = ECHO_PORT, *, interval_ms: float = 2.0) -> None:
        """Open the socket; nothing is sent yet.

        Args:
            address: IPv4 address of the guest.
            port: UDP port of its echo.
            interval_ms: Time between probes, at least 0.1.

        Raises:
            OSError: When there is no such address to send to.
        """
        self.interval_ns = max(int(interval_ms * _NS_PER_MS), _NS_PER_MS // 10)
        self._log = ProbeLog()
        self._lock = threading.Lock()
        self._number = secrets.randbits(32)
        self._stop = threading.Event()
        self._sending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="echo-prober", daemon=True)
        self._sock = stamping_socket()
        try:
            self._sock.connect((address, port))
        except OSError:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        """Start to send."""
        self._sending.set()
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        """Stop and closes the socket."""
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def pause(self) -> None:
        """Send no more, but still takes answers: the last ones are on their way."""
        self._sending.clear()

    def window(self, start_ns: int, end_ns: int) -> OutageStats:
        """Return what the probes sent in a window say, up to the answers that have come by now.

        Args:
            start_ns: CLOCK_MONOTONIC, included.
            end_ns: As start_ns.
        """
        with self._lock:
            probes = self._log.probes(start_ns, end_ns)
            duplicates = self._log.duplicates(start_ns, end_ns)
        return outage_of(probes, self.interval_ns, duplicates=duplicates)

    @property
    def answered(self) -> int:
        """Probe that were answered so far."""
        return self._log.answered

    def _run(self) -> None:
        due = time.monotonic_ns()
        while not self._stop.is_set():
            if self._sending.is_set():
                self._send()
            self._take_answers()
            due += self.interval_ns
            wait = due - time.monotonic_ns()
            if wait > 0:
                time.sleep(wait / _NS_PER_S)
            else:  # kept from running: go on from here instead of catching up in a burst
                due -= wait

    def _send(self) -> None:
        with self._lock:
            sequence = self._log.add_sent(time.monotonic_ns())
        try:
            self._sock.send(_PROBE.pack(_MAGIC, self._number, sequence))
        except OSError:
            return  # it counts as lost

    def _take_answers(self) -> None:
        for datagram in received(self._sock, most=_MOST_AT_ONCE):
            if len(datagram.data) != _PROBE.size:
                continue
            magic, number, sequence = _PROBE.unpack(datagram.data)
            if magic == _MAGIC and number == self._number:
                with self._lock:
                    self._log.add_answer(sequence, datagram.stamp_ns)
