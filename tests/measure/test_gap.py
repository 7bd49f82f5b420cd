"""guest_gap and the clocks' offset: pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.core.units import Milliseconds, Nanoseconds
from vmferry.measure.gap import SAME_CLOCK, ClockOffset, clock_offset, guest_gap
from vmferry.ports.peer import ClockSample

MS = 1_000_000


def _beats(start_ms: int, end_ms: int) -> list[int]:
    return [ms * MS for ms in range(start_ms, end_ms)]


def _sample(sent: int, theirs: int, received: int) -> ClockSample:
    return ClockSample(Nanoseconds(sent), Nanoseconds(theirs), Nanoseconds(received))


def test_the_gap_lies_between_the_last_beat_here_and_the_first_there() -> None:
    """A plain switchover of 40 ms is measured as 40 ms."""
    gap = guest_gap(_beats(0, 101), _beats(140, 200), SAME_CLOCK, baseline_gap_ms=Milliseconds(3.0))
    assert gap is not None
    assert (gap.gap_ms, gap.across_hosts, gap.switchover_gap_ms, gap.overlap_ms) == (40.0, True, 40.0, 0.0)
    assert gap.baseline_gap_ms == 3.0


def test_a_stall_on_one_host_may_be_longer_than_the_switchover() -> None:
    """Throttling and post-copy stalls count too, and carry no uncertainty of the clocks."""
    source = [*_beats(0, 50), *_beats(300, 310)]
    gap = guest_gap(source, _beats(320, 400), ClockOffset(Nanoseconds(0), Nanoseconds(2 * MS)))
    assert gap is not None
    assert (gap.gap_ms, gap.across_hosts, gap.uncertainty_ms, gap.switchover_gap_ms) == (251.0, False, 0.0, 11.0)


def test_the_destinations_clock_is_moved_to_the_sources() -> None:
    """An offset of an hour changes nothing but the uncertainty."""
    hour = 3600 * 1000
    offset = ClockOffset(Nanoseconds(hour * MS), Nanoseconds(MS // 2))
    gap = guest_gap(_beats(0, 101), _beats(hour + 140, hour + 200), offset)
    assert gap is not None
    assert (gap.gap_ms, gap.uncertainty_ms) == (40.0, 0.5)


def test_beats_on_both_hosts_at_once_are_reported_as_overlap() -> None:
    """A guest that runs twice shows, unless the clocks' uncertainty explains it."""
    offset = ClockOffset(Nanoseconds(0), Nanoseconds(2 * MS))
    twice = guest_gap(_beats(0, 101), _beats(90, 200), offset)
    assert twice is not None
    assert (twice.overlap_ms, twice.switchover_gap_ms) == (8.0, 0.0)
    explained = guest_gap(_beats(0, 101), _beats(99, 200), offset)
    assert explained is not None
    assert explained.overlap_ms == 0.0


def test_a_host_without_beats_means_not_measured() -> None:
    """Nothing seen is None, never zero."""
    assert guest_gap([], _beats(0, 10), SAME_CLOCK) is None
    assert guest_gap(_beats(0, 10), [], SAME_CLOCK) is None


def test_the_sample_with_the_shortest_round_trip_decides() -> None:
    """A slow ping says less about the clocks than a fast one."""
    slow, fast = _sample(0, 9_000, 10_000), _sample(20_000, 25_500, 21_000)
    assert clock_offset([slow, fast]) == ClockOffset(Nanoseconds(5_000), Nanoseconds(500))


def test_no_sample_is_an_error() -> None:
    """Without a ping nothing is known about the clocks."""
    with pytest.raises(ValueError, match="empty"):
        clock_offset([])


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**8)), min_size=1, max_size=8),
)
def test_the_true_offset_lies_within_the_uncertainty(true_offset: int, ways: list[tuple[int, int]]) -> None:
    """However uneven the way there and back, the estimate is no further off than it says."""
    samples = [_sample(0, there + true_offset, there + back) for there, back in ways]
    estimate = clock_offset(samples)
    assert abs(estimate.offset_ns - true_offset) <= estimate.uncertainty_ns + 1
