"""network_outage: what a run of sequence-numbered probes says about a network; bounded and pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vmferry.core.units import Milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Ten minutes at one probe every two milliseconds, 5 MiB.
DEFAULT_CAPACITY = 300_000
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class OutageStats:
    """What the probes of one window say.

    Attributes:
        sent: Probes sent in the window.
        answered: Those of them that were answered by now.
        lost: Those that were not.
        duplicates: Answers to probes that had been answered before.
        outage_ms: The longest run of lost probes: from the last answered probe before it to the first after it (as
            they were sent), less one interval. A sender that was kept from running makes no outage.
        outage_at_ns: When the last answered probe before that run was sent.
        outage_ended: Whether a probe after that run was answered; else it may have gone on after the window.
        reply_gap_ms: The longest time between two answers, as the kernel stamped them, less one interval. Longer
            than outage_ms when probes waited somewhere and were answered late.
        send_gap_ms: The longest time between two probes: an outage shorter than this could hide.
        round_trip_median_ms: Of the answered probes.
        round_trip_max_ms: As above.
    """

    sent: int
    answered: int
    lost: int
    duplicates: int
    outage_ms: Milliseconds
    outage_at_ns: int | None
    outage_ended: bool
    reply_gap_ms: Milliseconds
    send_gap_ms: Milliseconds
    round_trip_median_ms: Milliseconds | None
    round_trip_max_ms: Milliseconds | None


class ProbeLog:
    """Keeps when the latest probes were sent and answered, in constant memory."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._forgotten = 0
        self._sent = array("q")
        self._answered = array("q")  # 0: not yet
        self._duplicates = array("q")  # send times of the probes concerned, the first `capacity` of them
        self.answered = 0  #: answers that ever came, without duplicates

    def add_sent(self, sent_ns: int) -> int:
        """Record a probe and returns its sequence number.

        Args:
            sent_ns: CLOCK_MONOTONIC, not before the probe that was added last.
        """
        self._sent.append(sent_ns)
        self._answered.append(0)
        if len(self._sent) >= 2 * self._capacity:  # one move per `capacity` probes
            self._forgotten += len(self._sent) - self._capacity
            del self._sent[: -self._capacity], self._answered[: -self._capacity]
            self._duplicates = array("q", [sent for sent in self._duplicates if sent >= self._sent[0]])
        return self._forgotten + len(self._sent) - 1

    def add_answer(self, sequence: int, stamp_ns: int) -> None:
        """Record an answer; one to a probe that is unknown or forgotten is passed over.

        Args:
            sequence: The number from `add_sent`.
            stamp_ns: When the answer came.
        """
        index = sequence - self._forgotten
        if not 0 <= index < len(self._sent):
            return
        if self._answered[index]:
            if len(self._duplicates) < self._capacity:
                self._duplicates.append(self._sent[index])
        else:
            self._answered[index] = stamp_ns
            self.answered += 1

    def probes(self, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """Return (sent, answered) of the probes sent in a window, both ends included; answered is 0 for not yet."""
        inside = slice(bisect_left(self._sent, start_ns), bisect_right(self._sent, end_ns))
        return list(zip(self._sent[inside], self._answered[inside], strict=True))

    def duplicates(self, start_ns: int, end_ns: int) -> int:
        """Return how many answers came again for probes that were sent in a window."""
        return sum(start_ns <= sent <= end_ns for sent in self._duplicates)


def outage_of(probes: Sequence[tuple[int, int]], interval_ns: int, *, duplicates: int = 0) -> OutageStats:
    """Return the figures of a run of probes.

    Args:
        probes: (sent, answered) of each in the order of sending; answered is 0 when no answer came.
        interval_ns: How far apart they were meant to be.
        duplicates: Counted elsewhere.
    """
    answered = [answered for _, answered in probes if answered]
    trips = sorted(answered - sent for sent, answered in probes if answered)
    outage_ns, outage_at_ns, outage_ended = _longest_run(probes, interval_ns)
    return OutageStats(
        sent=len(probes),
        answered=len(answered),
        lost=len(probes) - len(answered),
        duplicates=duplicates,
        outage_ms=_ms(outage_ns),
        outage_at_ns=outage_at_ns,
        outage_ended=outage_ended,
        reply_gap_ms=_ms(max(_longest(sorted(answered)) - interval_ns, 0)),
        send_gap_ms=_ms(_longest([sent for sent, _ in probes])),
        round_trip_median_ms=_ms(trips[len(trips) // 2]) if trips else None,
        round_trip_max_ms=_ms(trips[-1]) if trips else None,
    )


def _longest_run(probes: Sequence[tuple[int, int]], interval_ns: int) -> tuple[int, int | None, bool]:
    """Return length and start of the longest run of lost probes, and whether it ended, else it lasts to the last."""
    longest, at = 0, None
    before: int | None = None  # send time of the last answered probe
    in_run = False
    for sent, answered in probes:
        if not answered:
            in_run = True
            continue
        if in_run:
            start = probes[0][0] if before is None else before
            length = sent - start - (0 if before is None else interval_ns)
            if length > longest:
                longest, at = length, start
        before, in_run = sent, False
    if in_run:
        start = probes[0][0] if before is None else before
        if probes[-1][0] - start > longest:
            return probes[-1][0] - start, start, False
    return longest, at, True


def _longest(rising: Sequence[int]) -> int:
    return max((after - before for before, after in pairwise(rising)), default=0)


def _ms(nanoseconds: int) -> Milliseconds:
    return Milliseconds(nanoseconds / _NS_PER_MS)
