"""guest_gap: the longest silence of a guest across two hosts, on one clock; pure functions.

Each host stamps the beats that its own QEMU sends, with its own clock. The destination's stamps are moved to the
source's clock by an offset that is known to within half a round trip; the result says how sure it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vmferry.core.units import Milliseconds, Nanoseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmferry.ports.peer import ClockSample

_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far the destination's clock is ahead of the source's.

    Attributes:
        offset_ns: Destination minus source.
        uncertainty_ns: The true offset is at most this far away, whichever way was the slower one.
    """

    offset_ns: Nanoseconds
    uncertainty_ns: Nanoseconds


#: Both hosts are the same machine, or share its clock.
SAME_CLOCK = ClockOffset(Nanoseconds(0), Nanoseconds(0))


def clock_offset(samples: Iterable[ClockSample]) -> ClockOffset:
    """Return the offset by the sample with the shortest round trip: the least room for an uneven way.

    Raises:
        ValueError: Without any sample.

    Source: RFC 5905, section 8 (offset, delay) and section 10 (the clock filter's minimum delay).
    """
    best = min(samples, key=lambda sample: sample.received_ns - sample.sent_ns)
    half = (best.received_ns - best.sent_ns + 1) // 2
    return ClockOffset(Nanoseconds(best.theirs_ns - best.sent_ns - half), Nanoseconds(half))


@dataclass(frozen=True, slots=True)
class GapMeasure:
    """The longest pause in a guest's beats during a migration.

    Attributes:
        gap_ms: guest_gap itself.
        uncertainty_ms: How far off it may be: that of the clocks' offset when the gap lies across the hosts, else 0.
        baseline_gap_ms: The same guest's longest pause without a migration; None when it was not measured.
        across_hosts: Whether the longest pause is the one from the last beat at the source to the first at the
            destination; else the guest was stalled on one host for longer than that.
        switchover_gap_ms: That pause, the longest or not.
        overlap_ms: For how long both hosts saw beats, beyond what the clocks explain; above 0 the guest ran twice.
    """

    gap_ms: Milliseconds
    uncertainty_ms: Milliseconds
    baseline_gap_ms: Milliseconds | None
    across_hosts: bool
    switchover_gap_ms: Milliseconds
    overlap_ms: Milliseconds


def guest_gap(
    source: Sequence[int],
    destination: Sequence[int],
    offset: ClockOffset,
    *,
    baseline_gap_ms: Milliseconds | None = None,
) -> GapMeasure | None:
    """Return the longest pause, or None when one host saw no beat: not measured is not zero.

    Args:
        source: Stamps of the source's receiver, rising, from before the migration on.
        destination: Stamps of the destination's receiver, rising, until after it.
        offset: From `clock_offset`; `SAME_CLOCK` for two hosts on one machine.
        baseline_gap_ms: The guest's longest pause in a quiet window of like length.
    """
    if not source or not destination:
        return None
    there = [stamp - offset.offset_ns for stamp in destination]
    switchover = there[0] - source[-1]
    on_one_host = max(_longest(source), _longest(there))
    across = switchover >= on_one_host
    return GapMeasure(
        gap_ms=_ms(max(switchover, on_one_host)),
        uncertainty_ms=_ms(offset.uncertainty_ns if across else 0),
        baseline_gap_ms=baseline_gap_ms,
        across_hosts=across,
        switchover_gap_ms=_ms(max(switchover, 0)),
        overlap_ms=_ms(max(-switchover - offset.uncertainty_ns, 0)),
    )


def _longest(stamps: Sequence[int]) -> int:
    return max((after - before for before, after in pairwise(stamps)), default=0)


def _ms(nanoseconds: int) -> Milliseconds:
    return Milliseconds(nanoseconds / _NS_PER_MS)
