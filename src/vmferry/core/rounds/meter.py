"""Speeds, measured from two counters over time: bytes on the wire, and guest memory dealt with.

The two differ: an empty page is 4096 bytes of memory and 8 or 9 on the wire. QEMU's threshold is made of the first, how
long a round takes depends on the second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vmferry.core.migration import MigrationSample
from vmferry.core.units import BytesPerSecond

#: Speeds are means over this long: QEMU's rate limit sends in bursts of 100 ms, so that less would be noise.
WINDOW_MS = 1000.0
#: Less than this is not measured at all: the first burst fills socket buffers and looks twice as fast as the link.
_ENOUGH_MS = 900.0
#: With neither enough time nor a figure of QEMU's, this much is better than nothing.
_BARELY_MS = 90.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one moment."""

    at_ms: float
    sent: int  #: bytes on the wire since the start
    memory: int  #: bytes of guest memory dealt with since the start
    remaining: int  #: bytes of guest memory that this round still has to send


def read(sample: MigrationSample, at_ms: float) -> Reading:
    """Take the counters out of a sample; where pages were not counted, bytes on the wire stand in for memory."""
    pages = max(sample.duplicate_pages, 0) + max(sample.normal_pages, 0)
    sent = max(sample.transferred_bytes, 0)
    remaining = max(sample.remaining_bytes, 0)
    if sample.total_bytes > 0:
        remaining = min(remaining, sample.total_bytes)
    return Reading(at_ms, sent, pages * max(sample.page_bytes, 1) if pages else sent, remaining)


#: A nanosecond: what lasts less has no rate.
_LEAST_SPAN_MS = 1e-6


def rate(count: int, span_ms: float) -> BytesPerSecond:
    """Return bytes per second; 0 without a span."""
    return BytesPerSecond(int(max(count, 0) * 1000 / span_ms)) if span_ms >= _LEAST_SPAN_MS else BytesPerSecond(0)


class Meter:
    """Measures the last second, across the borders of rounds."""

    def __init__(self) -> None:
        self._window: deque[Reading] = deque()
        self._claimed = BytesPerSecond(0)
        self._previous_drain = BytesPerSecond(0)

    def add(self, reading: Reading, claimed: BytesPerSecond) -> None:
        """Take a reading in, and the bandwidth that QEMU claims: it stands in until enough was measured."""
        self._claimed = BytesPerSecond(max(claimed, 0))
        self._window.append(reading)
        while len(self._window) > 2 and self._window[1].at_ms <= reading.at_ms - WINDOW_MS:
            self._window.popleft()

    def bandwidth(self) -> BytesPerSecond:
        """Return bytes per second on the wire over the last second."""
        if not self._window:
            return self._claimed
        first, last = self._window[0], self._window[-1]
        span = last.at_ms - first.at_ms
        if span >= _ENOUGH_MS or (span >= _BARELY_MS and not self._claimed):
            return rate(last.sent - first.sent, span)
        return self._claimed

    def drain(self, began: Reading, number: int) -> BytesPerSecond:
        """Return guest memory per second in this round: its mean or the last second, whichever is less.

        In a round's first moments the round before stands in; for the second the wire does, since what a guest dirtied
        is hardly ever empty, as most of what the first round sends may be.
        """
        if not self._window:
            return self._claimed
        last = self._window[-1]
        span = last.at_ms - began.at_ms
        if span < _ENOUGH_MS:
            return self._previous_drain if number > 2 and self._previous_drain else self.bandwidth()
        mean = rate(last.memory - began.memory, span)
        recent = next((r for r in self._window if r.at_ms >= began.at_ms), last)
        if last.at_ms - recent.at_ms >= _ENOUGH_MS:
            mean = min(mean, rate(last.memory - recent.memory, last.at_ms - recent.at_ms))
        self._previous_drain = mean
        return mean
