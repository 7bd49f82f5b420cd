"""What goes over the management link, read from the veth's own counters: the same outside figure for every mover."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmferry.core.units import KIB
from vmferry.lab.network import MANAGEMENT

EVERY_S = 0.01
#: The link's bucket (Network.limit) and the agents' own words: bytes at either end of a stream that say nothing.
SLACK = 256 * KIB


@dataclass(frozen=True, slots=True)
class Sample:
    """The link's counters at one moment, CLOCK_MONOTONIC."""

    at_ns: int
    sent: int  #: from host-a
    received: int  #: by host-a


@dataclass(frozen=True, slots=True)
class Wire:
    """What a window of samples says."""

    sent: int
    received: int
    first_ns: int | None  #: when the slack had gone over: the stream flows
    last_ns: int | None  #: when all but the slack had gone over: the stream has ended

    def efficiency(self, bytes_per_second: float | None) -> float | None:
        """Return bytes over the link's rate over the time of the transfer; None when there was none or no limit."""
        if self.first_ns is None or self.last_ns is None or not bytes_per_second or self.last_ns <= self.first_ns:
            return None
        between = self.sent - 2 * SLACK
        return between / bytes_per_second / ((self.last_ns - self.first_ns) / 1e9)


def wire_of(samples: Sequence[Sample]) -> Wire:
    """Return what samples in order say."""
    if not samples:
        return Wire(0, 0, None, None)
    start, end = samples[0], samples[-1]
    sent = end.sent - start.sent
    first = last = None
    if sent > 2 * SLACK:
        first = next(sample.at_ns for sample in samples if sample.sent - start.sent >= SLACK)
        last = next(sample.at_ns for sample in samples if end.sent - sample.sent <= SLACK)
    return Wire(sent, end.received - start.received, first, last)


class WireMeter:
    """Samples one host's end of the link from a thread; a context manager.

    Args:
        pid: any process of the host: /proc shows its network, not ours, and an open file stays with it.
    """

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/net/dev").open("r", encoding="ascii")  # noqa: SIM115  (closed at the exit)
        self._samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire-meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._file.close()

    def window(self, start_ns: int, end_ns: int) -> Wire:
        """Return what went over in a window."""
        return wire_of([sample for sample in list(self._samples) if start_ns <= sample.at_ns <= end_ns])

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._file.seek(0)
            self._samples.append(_read(self._file.read()))


def _read(text: str) -> Sample:
    """Return the link's counters. Source: proc(5), /proc/net/dev: received bytes are field 1, sent bytes field 9."""
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{MANAGEMENT}:"))
    fields = line.partition(":")[2].split()
    return Sample(time.monotonic_ns(), int(fields[8]), int(fields[0]))
