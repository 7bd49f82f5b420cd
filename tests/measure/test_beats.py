"""The record of beats, without any socket."""

from __future__ import annotations

from vmferry.measure.beats import BeatLog


def _log_of(*stamps: int, capacity: int = 1000) -> BeatLog:
    log = BeatLog(capacity)
    for number, stamp in enumerate(stamps):
        log.add(stamp, number % 256)
    return log


def test_a_window_reports_its_largest_gap_and_where_it_began() -> None:
    """The largest gap is the one between two neighbouring beats, at the earlier one's stamp."""
    stats = _log_of(0, 10, 20, 95, 105).window(0, 200)
    assert (stats.count, stats.largest_gap_ns, stats.gap_at_ns) == (5, 75, 20)
    assert (stats.first_ns, stats.last_ns) == (0, 105)


def test_a_gap_that_began_before_the_window_is_not_cut_short() -> None:
    """A silence that ends inside the window counts from its true beginning."""
    stats = _log_of(0, 10, 200, 210).window(100, 300)
    assert (stats.count, stats.largest_gap_ns, stats.gap_at_ns) == (2, 190, 10)


def test_an_empty_window_has_no_figures() -> None:
    """Without beats nothing is measured, which is not the same as zero."""
    stats = _log_of().window(0, 100)
    assert (stats.count, stats.largest_gap_ns, stats.first_ns, stats.p99_gap_ns) == (0, None, None, None)


def test_old_beats_are_forgotten_and_the_latest_kept() -> None:
    """Memory is bounded by the capacity, however long a guest runs."""
    log = _log_of(*range(0, 100_000, 10), capacity=100)
    assert list(log.stamps(0, 10**9)) == list(range(99_000, 100_000, 10))
    assert log.total == 10_000


def test_missing_sequence_numbers_are_counted_across_the_wrap() -> None:
    """From 254 to 2 three beats are missing: 255, 0 and 1."""
    log = BeatLog()
    log.add(0, 254)
    log.add(1, 2)
    assert log.missed == 3


def test_a_stamp_from_the_past_makes_no_negative_gap() -> None:
    """Stamps never fall, even if the comparison of the clocks wavers."""
    stats = _log_of(0, 50, 49, 60).window(0, 100)
    assert stats.largest_gap_ns == 50
    assert list(_log_of(0, 50, 49, 60).stamps(0, 100)) == [0, 50, 50, 60]


def test_quantiles_of_gaps() -> None:
    """One long gap among many short ones is the maximum, not the median."""
    stamps = [*range(0, 1000, 10), 1500]
    stats = _log_of(*stamps).window(0, 2000)
    assert (stats.median_gap_ns, stats.largest_gap_ns) == (10, 510)
    assert stats.p99_gap_ns == 510
