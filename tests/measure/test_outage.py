"""network_outage out of probes and answers: pure functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmferry.measure.outage import ProbeLog, outage_of

MS = 1_000_000
INTERVAL = 2 * MS


def _probes(answered: str, *, trip_ms: int = 1) -> list[tuple[int, int]]:
    """One probe every interval; '+' is answered, '-' is not."""
    return [
        (number * INTERVAL + MS, number * INTERVAL + MS + trip_ms * MS if mark == "+" else 0)
        for number, mark in enumerate(answered)
    ]


def test_without_a_loss_there_is_no_outage() -> None:
    """Every probe answered means an outage of zero."""
    stats = outage_of(_probes("++++"), INTERVAL)
    assert (stats.sent, stats.answered, stats.lost, stats.outage_ms, stats.outage_at_ns) == (4, 4, 0, 0.0, None)
    assert (stats.round_trip_median_ms, stats.round_trip_max_ms) == (1.0, 1.0)


def test_the_longest_run_of_losses_counts() -> None:
    """Five probes lost in a row at 2 ms are an outage of 10 ms; three others elsewhere do not add to it."""
    stats = outage_of(_probes("++---++-----++"), INTERVAL)
    assert (stats.outage_ms, stats.lost, stats.outage_at_ns) == (10.0, 8, 6 * INTERVAL + MS)
    assert stats.reply_gap_ms == 10.0


def test_a_sender_that_was_kept_from_running_makes_no_outage() -> None:
    """No probe sent and none lost: what is not asked is not unanswered, but the reader is told."""
    late = [(0, MS), (100 * MS, 101 * MS)]
    stats = outage_of(late, INTERVAL)
    assert (stats.outage_ms, stats.send_gap_ms) == (0.0, 100.0)


def test_probes_answered_late_show_as_a_gap_between_replies() -> None:
    """Datagrams that waited while the guest was paused are not lost, but the silence is seen."""
    waited = [(number * INTERVAL, max(number * INTERVAL, 50 * MS) + MS) for number in range(30)]
    stats = outage_of([(0, MS), *waited[1:]], INTERVAL)
    assert (stats.lost, stats.outage_ms, stats.reply_gap_ms) == (0, 0.0, 48.0)


def test_an_outage_that_never_ended_lasts_to_the_last_probe() -> None:
    """A guest that went away for good does not count as reachable."""
    stats = outage_of(_probes("++" + "-" * 10), INTERVAL)
    assert stats.outage_ms == 20.0


def test_a_guest_that_never_answered_was_away_all_the_time() -> None:
    """Without any answer the outage spans all probes."""
    stats = outage_of(_probes("-----"), INTERVAL)
    assert (stats.outage_ms, stats.answered, stats.round_trip_max_ms) == (8.0, 0, None)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_an_outage_is_as_long_as_its_lost_probes(answered: list[bool]) -> None:
    """Between two answered probes an outage is the number of lost probes times the interval."""
    framed = "+" + "".join("+" if ok else "-" for ok in answered) + "+"
    longest = max(len(run) for run in framed.split("+"))
    assert outage_of(_probes(framed), INTERVAL).outage_ms == longest * 2.0


def test_duplicates_and_strangers_are_told_apart() -> None:
    """A second answer to a probe counts as duplicate; one to a probe never sent is passed over."""
    log = ProbeLog()
    first = log.add_sent(0)
    log.add_answer(first, 10)
    log.add_answer(first, 20)
    log.add_answer(99, 30)
    assert (log.duplicates(0, 5), log.answered, log.probes(0, 5)) == (1, 1, [(0, 10)])


def test_forgotten_probes_keep_the_numbers_of_the_others_right() -> None:
    """After old probes were dropped, an answer still finds its probe."""
    log = ProbeLog(capacity=10)
    numbers = [log.add_sent(stamp) for stamp in range(25)]
    assert numbers == list(range(25))
    log.add_answer(24, 1000)
    log.add_answer(0, 1000)
    assert log.probes(24, 24) == [(24, 1000)]
    assert log.answered == 1
