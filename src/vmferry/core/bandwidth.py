"""How fast a link is, from when how many bytes of a probe had arrived. Pure: the clock is the caller's.

What comes first says little: TCP begins slowly, and a shaper on the way lets a bucketful through at full speed. Both
end the same way: the bytes stop coming faster. So time is cut into windows, each a round trip at the least, and what
was before the third window in a row that was hardly faster than the best one is left out (the rule by which BBR knows
that a pipe is full). The windows behind that tell the link's bandwidth: the mean of their middle half. A lost packet
holds up what came behind it and lets it go at once, a host that has no CPU for us does the same: windows of nothing
and of twice the bandwidth, which are no news of the link. Where that goes on and on, more windows are waited for, and
all of them count.

Source: Cardwell et al., "BBR: congestion-based congestion control", ACM Queue 2016, "startup"; the numbers are measured
in docs/design/streams.md, "A probe".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.core.units import KIB, MIB, Bytes, BytesPerSecond, Milliseconds, Nanoseconds

#: Most that a probe sends: 0.5 s of 1 Gbit/s, 54 ms of 10 Gbit/s.
MOST_BYTES = Bytes(64 * MIB)
#: Faster than any link.
MOST_BANDWIDTH = BytesPerSecond(10**12)
#: A window that much faster than the best one: it still grows.
_GROWTH = 1.25
_FLAT_WINDOWS = 3
#: So long is a window at the least, and not longer on a link that carries a window's bytes in it: kernels hand over
#: 64 KiB at once, and less than some thirty of these are noise.
_LEAST_WINDOW_MS = Milliseconds(4.0)
_WINDOW_MS = Milliseconds(20.0)
_WINDOW_BYTES = Bytes(2 * MIB)
#: What is measured behind slow start. A slow link is given the longer one: by the bytes, as above.
_ENOUGH_MS = Milliseconds(200.0)
_ENOUGH_BYTES = Bytes(2 * MIB)
_LONG_ENOUGH_MS = Milliseconds(1000.0)
#: And in so many windows at the least; from so few, where the bytes are used up, something can still be told.
_ENOUGH_WINDOWS = 8
_LEAST_WINDOWS = 4
#: Or in so many, where the middle half of them differs by more than this part of their mean.
_MOST_WINDOWS = 24
_SPREAD = 0.25
#: Of the windows, at either end.
_LEFT_OUT = 0.25
#: A round trip that takes longer than this is no round trip.
_LONGEST_ROUND_TRIP_MS = Milliseconds(1000.0)
#: Without a byte for so long it is another measurement, or another time.
SILENCE_MS = Milliseconds(2000.0)
#: Less than this is not told: a few packets in no time may be any bandwidth.
_LEAST_BYTES = Bytes(256 * KIB)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What a link was seen to carry, as its receiver saw it."""

    bytes_per_second: BytesPerSecond
    is_least: bool = False  #: it was still getting faster, or too fast for what a probe may send: it is that or more


@dataclass(frozen=True, slots=True)
class _Mark:
    """A moment, and what had arrived until then."""

    at_ns: Nanoseconds
    total: Bytes


#: Bytes per ms, and for how many ms.
_Window = tuple[float, float]


class BandwidthMeter:
    """Is told what arrived, tells when it has seen enough, and what the link carried; keeps no samples.

    Args:
        round_trip_ms: of the link; 0: not known.
    """

    def __init__(self, round_trip_ms: Milliseconds) -> None:
        self._round_trip_ms = min(max(round_trip_ms, 0.0), _LONGEST_ROUND_TRIP_MS)
        self._last: _Mark | None = None
        self._begin_anew(None)

    def _begin_anew(self, mark: _Mark | None) -> None:
        self._window = mark  #: where the window began that is not over
        self._before = mark  #: where the one before it began
        self._best = 0.0  #: bytes per ms, of the window by which growth is judged
        self._flat = 0  #: windows since then
        self._settled: _Mark | None = None  #: where slow start had ended
        self._windows: list[_Window] = []  #: behind it
        self.has_enough = False  #: more bytes would not tell more

    def add(self, at_ns: Nanoseconds, total: Bytes) -> None:
        """Take a sample: at this moment so much had arrived, everything counted.

        A clock that went back, or leapt ahead by the length of a silence, makes it begin anew.
        """
        last, mark = self._last, _Mark(at_ns, total)
        self._last = mark
        if last is None or self._window is None or not 0 <= _ms(last, mark) < SILENCE_MS or total < last.total:
            self._begin_anew(mark)
        elif self._is_whole(mark):
            self._end_window(mark)

    def _is_whole(self, mark: _Mark) -> bool:
        """Tell whether a window ends here."""
        if self._window is None:
            return False
        lasted_ms, arrived = _ms(self._window, mark), mark.total - self._window.total
        if lasted_ms < max(self._round_trip_ms, _LEAST_WINDOW_MS):
            return False
        return arrived >= _WINDOW_BYTES or lasted_ms >= _WINDOW_MS

    def _end_window(self, mark: _Mark) -> None:
        start = self._window or mark
        rate = _rate(start, mark)
        self._before, self._window = start, mark
        if self._settled is not None:
            self._windows.append((rate, _ms(start, mark)))
            self.has_enough = self._is_enough(self._settled, mark)
            return
        if rate > _GROWTH * self._best:
            self._best, self._flat = rate, 0
            return
        self._flat += 1
        if self._flat == _FLAT_WINDOWS:
            self._settled = mark

    def _is_enough(self, since: _Mark, mark: _Mark) -> bool:
        """Tell whether so many windows, so long and so full, tell what there is to tell."""
        count, lasted_ms, arrived = len(self._windows), _ms(since, mark), mark.total - since.total
        if count < _ENOUGH_WINDOWS or (count < _MOST_WINDOWS and not _is_steady(self._windows)):
            return False
        return lasted_ms >= _LONG_ENOUGH_MS or (lasted_ms >= _ENOUGH_MS and arrived >= _ENOUGH_BYTES)

    @property
    def bandwidth(self) -> Bandwidth | None:
        """Return what the link carried, by what was seen so far; None: nothing can be said."""
        if self._last is None or self._before is None:
            return None
        if len(self._windows) >= _LEAST_WINDOWS:
            counted = _middle(self._windows) if _is_steady(self._windows) else self._windows
            return Bandwidth(_told(_mean(counted)))
        since = self._before  # the last two windows, as far as there are so many
        if _ms(since, self._last) <= 0 or self._last.total - since.total < _LEAST_BYTES:
            return None
        return Bandwidth(_told(_rate(since, self._last)), is_least=True)


def _ms(start: _Mark, end: _Mark) -> float:
    return (end.at_ns - start.at_ns) / 1e6


def _told(rate: float) -> BytesPerSecond:
    """Return bytes per ms as bytes per second, and never what no link is."""
    return BytesPerSecond(max(1, min(round(1000 * rate), MOST_BANDWIDTH)))


def _middle(windows: Sequence[_Window]) -> Sequence[_Window]:
    """Return the middle half of some windows, by their rate."""
    ordered, left_out = sorted(windows), int(_LEFT_OUT * len(windows))
    return ordered[left_out : len(ordered) - left_out]


def _is_steady(windows: Sequence[_Window]) -> bool:
    """Tell whether the middle half of some windows is of one rate."""
    middle = _middle(windows)
    return middle[-1][0] - middle[0][0] <= _SPREAD * _mean(middle)


def _mean(windows: Sequence[_Window]) -> float:
    """Return the mean rate of some windows, by the time that each lasted."""
    return sum(rate * lasted_ms for rate, lasted_ms in windows) / sum(lasted_ms for _, lasted_ms in windows)


def _rate(start: _Mark, end: _Mark) -> float:
    """Return bytes per ms."""
    return (end.total - start.total) / max(_ms(start, end), 1e-6)


def expect(limit: BytesPerSecond | None, measured: Bandwidth | None) -> BytesPerSecond | None:
    """Return what a stream can count on; None: nobody knows.

    The smaller is the truth: a device may be faster than the way behind it, and a limit holds whatever the way carries.
    What is only the least that a link carries takes nothing from a limit.

    Args:
        limit: what a stream may take: asked for, configured, or the speed of the device.
        measured: what a probe saw.
    """
    if measured is None or (limit is not None and measured.is_least):
        return limit
    return measured.bytes_per_second if limit is None else min(limit, measured.bytes_per_second)
