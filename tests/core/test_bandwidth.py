"""What a probe's receiver concludes from when how much had arrived."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.core.bandwidth import MOST_BANDWIDTH, MOST_BYTES, Bandwidth, BandwidthMeter, expect
from vmferry.core.units import KIB, MIB, Bytes, BytesPerSecond, Milliseconds, Nanoseconds

PROBES = sorted((Path(__file__).parent / "probes").glob("*.json"))
NEAR = Milliseconds(0.2)
FAST = BytesPerSecond(10 * MIB)


def feed(meter: BandwidthMeter, samples: Iterable[tuple[float, int]]) -> float | None:
    """Show samples (ms, bytes) until the meter has enough; return when that was."""
    for at_ms, total in samples:
        meter.add(Nanoseconds(int(at_ms * 1e6)), Bytes(total))
        if meter.has_enough:
            return at_ms
    return None


def steady(rate: float, end_ms: float, *, begin_ms: float = 0.0, total: int = 0) -> list[tuple[float, int]]:
    """Return a sample per ms at so many bytes per second."""
    return [(begin_ms + at, total + int(rate * at / 1000)) for at in range(1, int(end_ms) + 1)]


def seen(meter: BandwidthMeter) -> Bandwidth:
    """Return what it says; it says something."""
    bandwidth = meter.bandwidth
    assert bandwidth is not None
    return bandwidth


@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.stem)
def test_recorded_links(path: Path) -> None:
    """Real connections over links of a known rate: slow start, buckets, losses and all are left out."""
    recorded = json.loads(path.read_text())
    meter = BandwidthMeter(Milliseconds(recorded["round_trip_ms"]))
    assert feed(meter, recorded["samples"]) is not None
    carried = recorded["link_mbit"] * 125_000 * 0.96  # without TCP's and IP's headers
    assert seen(meter).bytes_per_second == pytest.approx(carried, rel=0.05)
    assert not seen(meter).is_least


def test_nothing_and_next_to_nothing_tell_nothing() -> None:
    """No sample, one, two at the same moment, and few bytes are no bandwidth."""
    meter = BandwidthMeter(NEAR)
    assert meter.bandwidth is None
    assert not meter.has_enough
    assert feed(meter, [(0.0, 1 * MIB)]) is None
    assert meter.bandwidth is None
    feed(meter, [(0.0, 2 * MIB)])
    assert meter.bandwidth is None
    feed(meter, [(1.0, 2 * MIB + 100 * KIB)])
    assert seen(meter).is_least
    assert BandwidthMeter(NEAR).bandwidth is None


def test_what_was_there_at_the_first_sample_counts_for_nothing() -> None:
    """Bytes that came before the clock ran are no speed."""
    meter = BandwidthMeter(NEAR)
    feed(meter, steady(FAST, 500, total=30 * MIB))
    assert seen(meter).bytes_per_second == pytest.approx(FAST, rel=0.01)


def test_a_probe_lasts_no_longer_than_it_must() -> None:
    """0.3 s on links of 10 MiB/s and more; below, 1.1 s are enough for the slowest."""
    for rate, least, most in ((100 * MIB, 250, 300), (FAST, 250, 300), (1 * MIB, 1000, 1150), (10_000, 1000, 1200)):
        ended = feed(BandwidthMeter(NEAR), steady(rate, 3000))
        assert ended is not None
        assert least <= ended <= most, rate


def test_a_faster_link_than_a_probe_may_fill_is_told_as_at_least() -> None:
    """64 MiB in 6 ms are over before anything has settled."""
    rate = 10_000 * MIB
    meter = BandwidthMeter(NEAR)
    assert feed(meter, [(at / 10, int(rate * at / 10_000)) for at in range(1, 65)]) is None
    assert seen(meter) == Bandwidth(BytesPerSecond(rate), is_least=True)


def test_a_stall_of_this_host_is_no_news_of_the_link() -> None:
    """Nothing for 30 ms, and all that has waited at once: the same as without."""
    stalled = [(at, total) for at, total in steady(FAST, 600) if not 150 < at < 180]
    meter = BandwidthMeter(NEAR)
    feed(meter, stalled)
    assert seen(meter).bytes_per_second == pytest.approx(FAST, rel=0.02)


def test_a_link_that_never_comes_to_rest_is_told_by_all_that_arrived() -> None:
    """Next to nothing for 60 ms, then all that was held up in 40, over and over: the mean of it, after more windows."""
    samples, total = [], 0
    for at in range(0, 4000, 10):
        total += 1000 if at % 100 < 60 else FAST // 40
        samples.append((float(at), total))
    meter = BandwidthMeter(Milliseconds(30.0))
    ended = feed(meter, samples)
    assert ended is not None
    assert ended > 700
    assert seen(meter).bytes_per_second == pytest.approx(FAST, rel=0.1)


def test_a_clock_that_goes_back_begins_it_anew() -> None:
    """What was before the jump is forgotten, and what comes behind it is measured from there."""
    meter = BandwidthMeter(NEAR)
    assert feed(meter, steady(20 * FAST, 200)) is None
    jumped = steady(FAST, 500, begin_ms=-3_600_000, total=20 * FAST)
    assert feed(meter, jumped) is not None
    assert seen(meter).bytes_per_second == pytest.approx(FAST, rel=0.01)


def test_a_leap_ahead_begins_it_anew() -> None:
    """An hour that nobody lived through is no second of a slow link."""
    meter = BandwidthMeter(NEAR)
    assert feed(meter, steady(FAST, 200)) is None
    assert feed(meter, steady(FAST, 500, begin_ms=3_600_000, total=FAST // 5)) is not None
    assert seen(meter).bytes_per_second == pytest.approx(FAST, rel=0.01)


def test_a_count_that_goes_back_begins_it_anew() -> None:
    """No rate is ever below nothing."""
    meter = BandwidthMeter(NEAR)
    feed(meter, steady(FAST, 200))
    assert feed(meter, steady(FAST, 500, begin_ms=200)) is not None
    assert seen(meter).bytes_per_second == pytest.approx(FAST, rel=0.01)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(10**6), 10**8), st.integers(-10, 3 * MIB)), max_size=200),
    st.floats(allow_nan=False, allow_infinity=True),
)
def test_whatever_it_is_shown_it_says_nothing_absurd(steps: list[tuple[int, int]], round_trip_ms: float) -> None:
    """Any clock, any counts, any round trip: nothing is raised, and no link carries less than nothing."""
    meter, at_ns, total = BandwidthMeter(Milliseconds(round_trip_ms)), 0, 0
    for nanoseconds, arrived in steps:
        at_ns, total = at_ns + nanoseconds, total + arrived
        meter.add(Nanoseconds(at_ns), Bytes(total))
        assert meter.bandwidth is None or 1 <= meter.bandwidth.bytes_per_second <= MOST_BANDWIDTH
    assert not meter.has_enough or not seen(meter).is_least


@settings(max_examples=60, deadline=None)
@given(st.integers(10_000, 2_000 * MIB), st.floats(0.0, 50.0))
def test_a_steady_link_is_told_as_it_is(rate: int, round_trip_ms: float) -> None:
    """Whatever its speed and length, when it settles within what a probe may send."""
    meter = BandwidthMeter(Milliseconds(round_trip_ms))
    feed(meter, (one for one in steady(rate, 4000) if one[1] <= MOST_BYTES))
    if (bandwidth := meter.bandwidth) is not None:
        assert bandwidth.bytes_per_second == pytest.approx(rate, rel=0.1)


LIMIT, LESS, MORE = BytesPerSecond(1000), BytesPerSecond(100), BytesPerSecond(5000)


@pytest.mark.parametrize(
    ("limit", "measured", "expected"),
    [
        (None, None, None),
        (LIMIT, None, LIMIT),
        (None, Bandwidth(LESS), LESS),
        (None, Bandwidth(LESS, is_least=True), LESS),
        (LIMIT, Bandwidth(LESS), LESS),
        (LIMIT, Bandwidth(MORE), LIMIT),
        (LIMIT, Bandwidth(LESS, is_least=True), LIMIT),
        (LIMIT, Bandwidth(MORE, is_least=True), LIMIT),
    ],
)
def test_the_smaller_is_the_truth(
    limit: BytesPerSecond | None, measured: Bandwidth | None, expected: BytesPerSecond | None
) -> None:
    """A limit holds whatever the way carries, and a way holds whatever the device says; "at least" takes nothing."""
    assert expect(limit, measured) == expected
