"""The record of a guest's beats: bounded, and read by windows of time."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vmferry.core.units import Nanoseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Two minutes at one beat per millisecond, 1 MiB.
DEFAULT_CAPACITY = 120_000
_SEQUENCES = 256


@dataclass(frozen=True, slots=True)
class BeatStats:
    """What the beats of one window say.

    Attributes:
        count: Beats in the window.
        first_ns: Stamp of the first, None without any.
        last_ns: Stamp of the last, None without any.
        largest_gap_ns: The longest time between a beat of the window and the one before it, which may lie
            before the window; None when there are not two beats.
        gap_at_ns: Stamp of the beat before that gap.
        median_gap_ns: The middle one of all gaps.
        p99_gap_ns: The gap that one in a hundred exceeds.
    """

    count: int
    first_ns: Nanoseconds | None
    last_ns: Nanoseconds | None
    largest_gap_ns: Nanoseconds | None
    gap_at_ns: Nanoseconds | None
    median_gap_ns: Nanoseconds | None
    p99_gap_ns: Nanoseconds | None


class BeatLog:
    """Keeps the stamps of the latest beats in constant memory.

    Attributes:
        missed: Beats that the sequence numbers say were sent but never came, as far as eight bits can tell.
        total: All beats that ever came.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self.missed = 0
        self.total = 0
        self._capacity = capacity
        self._stamps = array("q")
        self._sequence: int | None = None

    def add(self, stamp_ns: int, sequence: int) -> None:
        """Record one beat.

        Args:
            stamp_ns: When it came, CLOCK_MONOTONIC; one that is earlier than the last (the two clocks were compared
                anew in between) counts as the same instant.
            sequence: The low byte of its number.
        """
        if self._sequence is not None:
            self.missed += (sequence - self._sequence - 1) % _SEQUENCES
        self._sequence = sequence
        if self._stamps:
            stamp_ns = max(stamp_ns, self._stamps[-1])
        self._stamps.append(stamp_ns)
        self.total += 1
        if len(self._stamps) >= 2 * self._capacity:  # one move per `capacity` beats
            del self._stamps[: -self._capacity]

    def stamps(self, start_ns: int, end_ns: int) -> array[int]:
        """Return the stamps of a window, both ends included, preceded by the latest one before it if there is one."""
        kept = self._stamps[-self._capacity :]
        return kept[max(bisect_left(kept, start_ns) - 1, 0) : bisect_right(kept, end_ns)]

    def window(self, start_ns: int, end_ns: int) -> BeatStats:
        """Return what the beats of a window say, both ends included."""
        return stats_of(self.stamps(start_ns, end_ns), start_ns)


def stats_of(stamps: Sequence[int], start_ns: int) -> BeatStats:
    """Return the figures of stamps in rising order; those before the start only open the first gap."""
    inside = stamps[bisect_left(stamps, start_ns) :]
    gaps = [(after - before, before) for before, after in pairwise(stamps)]
    lengths = sorted(gap for gap, _ in gaps)
    largest = max(gaps, default=None)
    return BeatStats(
        count=len(inside),
        first_ns=Nanoseconds(inside[0]) if inside else None,
        last_ns=Nanoseconds(inside[-1]) if inside else None,
        largest_gap_ns=Nanoseconds(largest[0]) if largest else None,
        gap_at_ns=Nanoseconds(largest[1]) if largest else None,
        median_gap_ns=_quantile(lengths, 0.5),
        p99_gap_ns=_quantile(lengths, 0.99),
    )


def _quantile(rising: Sequence[int], share: float) -> Nanoseconds | None:
    return Nanoseconds(rising[min(int(len(rising) * share), len(rising) - 1)]) if rising else None
