from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import Progress, RoundEnded
from vmferry.core.rounds import RoundTracker, memory_done_percent
from vmferry.core.rounds.curve import DirtyCurve, DirtyPoint, fit, until_switchover
from vmferry.core.rounds.meter import rate
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds

TRACES = Path(__file__).parent / "traces"
PAGE = 4096
TICK_MS = 10.0

Feed = Iterable[tuple[MigrationSample, float]]
A = MigrationStatus.ACTIVE


@dataclass
class Told:
    """What a tracker said about one migration."""

    events: list[Progress | RoundEnded] = field(default_factory=list)

    @property
    def progress(self) -> list[Progress]:
        return [e for e in self.events if isinstance(e, Progress)]

    @property
    def rounds(self) -> list[RoundEnded]:
        return [e for e in self.events if isinstance(e, RoundEnded)]


def play(feed: Feed, limit_ms: float = 300.0) -> Told:
    """Feed a whole migration and finish it."""
    tracker, told, at_ms = RoundTracker(Milliseconds(limit_ms)), Told(), 0.0
    for sample, moment in feed:
        at_ms = moment
        told.events += tracker.feed(sample, Milliseconds(at_ms))
    told.events += tracker.finish(Milliseconds(at_ms))
    assert tracker.finish(Milliseconds(at_ms)) == []
    return told


def recorded(name: str) -> Iterator[tuple[MigrationSample, float]]:
    """Read a migration recorded from a real QEMU."""
    trace = json.loads((TRACES / f"{name}.json").read_text("utf-8"))
    for values in trace["rows"]:
        row = dict(zip(trace["columns"], values, strict=True))
        at_ms = row.pop("at_ms")
        yield MigrationSample(**{**row, "status": MigrationStatus(row["status"])}), at_ms


@dataclass(frozen=True)
class Guest:
    """A guest and its link, which migrate by QEMU's rule in steps of 10 ms."""

    ram_mib: int = 256
    empty_mib: int = 0  #: pages at the end of memory that are sent as 9 bytes each
    working_set_mib: int = 0
    dirty_mib_s: int = 0
    link_mib_s: int = 100
    limit_ms: float = 300.0
    read_every: int = 10  #: ticks between two readings
    passes_seen: bool = True  #: whether there is a reading at each MIGRATION_PASS
    link_falls_to: int | None = None  #: after half a second

    def migrate(self, at_most_ms: float = 20_000) -> Iterator[tuple[MigrationSample, float]]:
        """Yield the readings of the migration, up to its end or the time limit."""
        remaining, sent, pages = self.ram_mib * MIB, 0, 0
        rounds, began, tick = 1, 0.0, 0
        while (at_ms := tick * TICK_MS) < at_most_ms:
            if tick % self.read_every == 0:
                yield self._sample(rounds, sent, remaining, pages), at_ms
            tick += 1
            link = self._link(at_ms)
            step = min(link, remaining)
            if rounds == 1 and remaining - step < self.empty_mib * MIB:
                step = min(remaining, 40 * link)
                sent += step // PAGE * 9
            else:
                sent += step
            remaining, pages = remaining - step, pages + step // PAGE
            threshold = link * self.limit_ms / TICK_MS
            if remaining <= threshold:
                remaining += self._dirtied(at_ms + TICK_MS - began)
                rounds, began = rounds + 1, at_ms + TICK_MS
                if self.passes_seen:
                    yield self._sample(rounds, sent, remaining, pages), began
                if remaining <= threshold:
                    break
        else:
            return
        pages += remaining // PAGE
        over = self._sample(rounds + 1, sent + remaining, 0, pages, MigrationStatus.COMPLETED)
        yield over, began + self.limit_ms

    def _link(self, at_ms: float) -> int:
        """Return the bytes that one tick sends."""
        rate = self.link_falls_to if self.link_falls_to is not None and at_ms >= 500 else self.link_mib_s
        return int(rate * MIB * TICK_MS / 1000) // PAGE * PAGE

    def _dirtied(self, window_ms: float) -> int:
        return int(min(self.dirty_mib_s * window_ms / 1000, self.working_set_mib) * MIB) // PAGE * PAGE

    def _sample(
        self, rounds: int, sent: int, remaining: int, pages: int, status: MigrationStatus = A
    ) -> MigrationSample:
        return MigrationSample(
            status,
            rounds=rounds,
            transferred_bytes=Bytes(sent),
            remaining_bytes=Bytes(remaining),
            total_bytes=Bytes(self.ram_mib * MIB),
            normal_pages=pages,
        )


def growths(told: Told) -> list[Progress]:
    """Return each progress whose time left is longer than what was told before it, or was known and no longer is."""
    grown, last, known = [], None, False
    for event in told.progress:
        now = event.time_left_ms
        if (now is None and known) or (now is not None and last is not None and now > last):
            grown.append(event)
        known, last = now is not None, last if now is None else now
    return grown


def check(told: Told) -> None:
    """Whatever was fed: nothing grows silently, numbers have a meaning, at most five progress events a second."""
    assert all(event.why_longer for event in growths(told))
    for event in told.progress:
        assert 0 <= memory_done_percent(event) <= 100
        assert (event.time_left_ms or 0) >= 0
        assert (event.expected_downtime_ms or 0) >= 0
        assert event.verdict in {"first round", "converging", "not converging", "fits"}
        assert not (event.verdict == "not converging" and event.time_left_ms is not None)
    for row in told.rounds:
        assert row.covers >= 1
        assert min(row.duration_ms, row.sent_bytes, row.bandwidth) >= 0


GUESTS = st.builds(
    Guest,
    ram_mib=st.integers(8, 512),
    empty_mib=st.integers(0, 512),
    working_set_mib=st.integers(0, 300),
    dirty_mib_s=st.integers(0, 200),
    link_mib_s=st.integers(1, 400),
    limit_ms=st.floats(0, 2000),
    read_every=st.integers(1, 60),
    passes_seen=st.booleans(),
    link_falls_to=st.none() | st.integers(1, 100),
)
COUNTS = st.integers(-1, 2**62) | st.integers(0, 3)
SAMPLES = st.builds(
    MigrationSample,
    status=st.sampled_from(MigrationStatus),
    rounds=st.integers(-1, 6) | COUNTS,
    transferred_bytes=COUNTS,
    remaining_bytes=COUNTS,
    total_bytes=COUNTS,
    page_bytes=st.integers(-1, 65536),
    duplicate_pages=COUNTS,
    normal_pages=COUNTS,
    dirty_bytes_per_second=COUNTS,
    bandwidth=COUNTS,
    total_ms=st.none() | st.floats(0, 1e9),
    setup_ms=st.none() | st.floats(0, 1e9),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(SAMPLES, st.floats(-1e9, 1e9))), st.floats(0, 2e6))
def test_no_reading_raises_and_nothing_grows_silently(
    readings: list[tuple[MigrationSample, float]], limit: float
) -> None:
    """Garbage, resets and clocks that go back give numbers with a meaning, and a reason for whatever got longer."""
    check(play(readings, limit))


@settings(deadline=None, max_examples=100)
@given(GUESTS)
def test_rows_add_up_and_time_left_never_grows_silently(guest: Guest) -> None:
    """The rows' bytes sum up to what was transferred, their rounds are counted once each, and growth has a reason."""
    readings = list(guest.migrate(6_000))
    told = play(readings, guest.limit_ms)
    check(told)
    last = readings[-1][0]
    if last.status is MigrationStatus.COMPLETED:
        assert sum(row.sent_bytes for row in told.rounds) == last.transferred_bytes
        assert sum(row.covers for row in told.rounds) == last.rounds
        assert told.rounds[-1].dirtied_bytes == 0
    else:
        assert sum(row.sent_bytes for row in told.rounds) <= last.transferred_bytes
    assert [row.round for row in told.rounds] == sorted({row.round for row in told.rounds})
    seconds = [int(event.at_ms // 1000) for event in told.progress]
    assert max(map(seconds.count, seconds)) <= 5


@pytest.mark.parametrize(
    ("name", "limit", "verdicts"),
    [
        ("idle", 300, ["fits"] * 3),
        ("tiny", 300, ["fits"] * 2),
        ("converging", 100, ["converging"] * 2 + ["fits"] * 5),
        ("faster", 100, ["not converging"] * 3),
    ],
)
def test_real_migrations_are_judged_as_they_went(name: str, limit: float, verdicts: list[str]) -> None:
    """Recorded migrations of QEMU 10.0: each round has its row, and the verdicts fit what came of them."""
    told = play(recorded(name), limit)
    check(told)
    assert [row.verdict for row in told.rounds] == verdicts
    assert [row.round for row in told.rounds] == list(range(1, len(verdicts) + 1))
    assert all(row.covers == 1 for row in told.rounds)


def test_a_real_forecast_comes_true() -> None:
    """After its first round, the recorded busy guest's time left is within a quarter of the time that it took."""
    told = play(recorded("converging"), 100)
    paused_ms = next(at for sample, at in recorded("converging") if sample.status is MigrationStatus.PRE_SWITCHOVER)
    first = next(event for event in told.progress if event.round == 2)
    assert first.time_left_ms == pytest.approx(paused_ms - first.at_ms, rel=0.25)


def test_a_real_guest_as_fast_as_the_link_gets_no_time_and_the_reason() -> None:
    """When the first round dirtied about as much as it sent, the time left ends with that sentence."""
    told = play(recorded("faster"), 100)
    ended = [event for event in told.progress if event.why_longer]
    assert [event.why_longer for event in ended] == ["round 1 dirtied 96.2 MiB while it sent 100.2 MiB"]
    assert {event.time_left_ms for event in told.progress if event.round > 1} == {None}


def test_expected_downtime_counts_what_the_round_dirties() -> None:
    """At the end of a round that changes nothing, the expected downtime is still far over the limit."""
    told = play(recorded("faster"), 100)
    late = [event for event in told.progress if event.round == 2 and event.remaining_bytes < 20 * MIB]
    assert late
    assert min(event.expected_downtime_ms or 0 for event in late) > 2000


def test_an_idle_guest_takes_one_round() -> None:
    """An idle guest: one round, then the rest fits."""
    told = play(Guest(ram_mib=256, limit_ms=300).migrate())
    assert [(row.round, row.verdict) for row in told.rounds[:1]] == [(1, "fits")]
    assert not growths(told)


def test_empty_pages_shorten_the_estimate_and_do_not_count_as_sent() -> None:
    """A guest that is mostly empty: its round's bytes are what went over the wire, and time left never grows."""
    told = play(Guest(ram_mib=512, empty_mib=400, link_mib_s=50).migrate())
    assert told.rounds[0].sent_bytes < 130 * MIB
    assert not growths(told)


def test_several_rounds_between_two_readings_are_one_row() -> None:
    """Rounds 1 to 3 that were not seen to end are one row that says so; nothing is divided by guess."""
    seen = [
        (MigrationSample(A, rounds=1, total_bytes=Bytes(100 * MIB), remaining_bytes=Bytes(100 * MIB)), 0.0),
        (_active(4, 150 * MIB, 8 * MIB, pages=(150 * MIB) // PAGE), 1500.0),
    ]
    (row,) = play(seen, 10).rounds
    assert (row.round, row.covers, row.duration_ms, row.sent_bytes) == (3, 3, Milliseconds(1500), Bytes(150 * MIB))
    assert row.dirtied_bytes == 8 * MIB


def test_a_migration_that_is_over_at_the_first_reading_has_one_row() -> None:
    """A tiny guest: all rounds and bytes in one row, over the time that QEMU tells."""
    only = MigrationSample(
        MigrationStatus.COMPLETED,
        rounds=3,
        transferred_bytes=Bytes(4 * MIB),
        total_bytes=Bytes(48 * MIB),
        total_ms=Milliseconds(50.0),
        setup_ms=Milliseconds(10.0),
    )
    told = play([(only, 60.0), (only, 900.0)])
    assert [(r.round, r.covers, r.sent_bytes, r.duration_ms) for r in told.rounds] == [(3, 3, 4 * MIB, 40.0)]
    assert told.progress[0].time_left_ms == Milliseconds(0)


def test_nothing_is_told_before_the_first_round_nor_of_a_failure() -> None:
    """Set-up, failure and cancellation are not progress, and a round that failed did not end."""
    others = set(MigrationStatus) - {
        A,
        MigrationStatus.PRE_SWITCHOVER,
        MigrationStatus.DEVICE,
        MigrationStatus.COMPLETED,
        MigrationStatus.POSTCOPY_ACTIVE,
        MigrationStatus.POSTCOPY_PAUSED,
    }
    assert len(others) == 10
    assert play([(MigrationSample(status), 0.0) for status in others]).events == []
    told = play([(_active(1, MIB, 9 * MIB), 0.0), (MigrationSample(MigrationStatus.FAILED), 300.0)])
    assert told.rounds == []


def test_counters_that_start_over_start_the_rounds_over() -> None:
    """When QEMU's counters go back the rounds are counted from 1 again, and longer times have that reason."""
    tracker = RoundTracker(Milliseconds(10.0))
    for at_ms in range(0, 2001, 100):
        tracker.feed(_active(1, at_ms * 50_000, 100 * MIB - at_ms * 50_000), Milliseconds(at_ms))
    told = tracker.feed(_active(1, 10, 100 * MIB - 10), Milliseconds(2200.0))
    assert [(e.time_left_ms, e.why_longer) for e in told if isinstance(e, Progress)] == [
        (None, "QEMU's counters started over")
    ]


def test_a_link_that_gets_slower_is_the_reason() -> None:
    """When the bandwidth falls the time left grows with both figures."""
    told = play(Guest(ram_mib=512, link_mib_s=100, link_falls_to=20).migrate())
    reasons = [event.why_longer for event in growths(told)]
    assert reasons
    assert all(reason and reason.startswith("bandwidth fell from ") for reason in reasons)


def test_a_link_that_stands_still_is_told() -> None:
    """When nothing is sent any more there is no time left to tell, and no downtime to expect."""
    moving = [(_active(1, at * 50_000, 200 * MIB - at * 50_000), float(at)) for at in range(0, 2001, 100)]
    stuck = [(_active(1, 100_000_000, 200 * MIB - 100_000_000), float(at)) for at in range(2100, 4001, 100)]
    told = play(moving + stuck)
    assert told.progress[-1].time_left_ms is None
    assert told.progress[-1].expected_downtime_ms is None
    assert growths(told)[-1].why_longer == "nothing was sent in the last second"


def test_a_raised_limit_makes_it_fit() -> None:
    """A limit raised during the migration counts from the next reading on."""
    tracker = RoundTracker(Milliseconds(10.0))
    tracker.feed(_active(1, 0, 100 * MIB), Milliseconds(0.0))
    tracker.feed(_active(2, 100 * MIB, 30 * MIB), Milliseconds(1000.0))
    tracker.downtime_limit_ms = Milliseconds(500.0)
    (row, progress) = tracker.feed(_active(3, 130 * MIB, 20 * MIB), Milliseconds(1400.0))
    assert (row.verdict, row.downtime_limit_ms, progress.verdict) == ("fits", 500.0, "fits")


@pytest.mark.parametrize(
    ("points", "exponent"),
    [
        ([(1000, 50)], 1.0),
        ([(1000, 100), (250, 50)], 0.5),
        ([(1000, 100), (500, 100)], 0.0),
        ([(1000, 100), (500, 20)], 1.0),
        ([(4000, 200), (1000, 50), (1000, 100)], 0.5),
        ([(1000, 100), (900, 90)], 1.0),
    ],
)
def test_the_curve_bends_as_the_rounds_say(points: list[tuple[float, float]], exponent: float) -> None:
    """The curve goes through the last round; rounds of like length do not bend it, and it is never convex."""
    curve = fit([DirtyPoint(*point) for point in points])
    assert curve.exponent == pytest.approx(exponent)
    assert curve.bytes_after(points[-1][0]) == pytest.approx(points[-1][1])


@pytest.mark.parametrize(
    ("rest", "curve", "expected"),
    [
        (1000.0, DirtyCurve(0.0, 1.0), 90.0),  # idle: the round's own time
        (100.0, DirtyCurve(0.0, 1.0), 0.0),  # under the threshold already
        (1000.0, DirtyCurve(5.0, 1.0), 90.0 + 50.0 + 30.0 + 15.0),  # leaves 550, 300, 150, 75
        (1000.0, DirtyCurve(9.8, 1.0), None),  # as fast as the link, nearly
        (1000.0, DirtyCurve(500.0, 0.0), None),  # the same 500 bytes, again and again
    ],
)
def test_the_forecast_plays_the_rule(rest: float, curve: DirtyCurve, expected: float | None) -> None:
    """With 10 bytes/ms and a threshold of 100 bytes, the rounds take as long as worked out by hand, or have no end."""
    assert until_switchover(rest, 0.0, 10.0, 100.0, curve) == expected


def _active(rounds: int, sent: int, remaining: int, pages: int = 0) -> MigrationSample:
    return MigrationSample(
        A,
        rounds=rounds,
        transferred_bytes=Bytes(sent),
        remaining_bytes=Bytes(remaining),
        total_bytes=Bytes(256 * MIB),
        normal_pages=pages,
        bandwidth=BytesPerSecond(0),
    )


@pytest.mark.parametrize(("span_ms", "expected"), [(0.0, 0), (-1.0, 0), (2.2e-309, 0), (1e-6, 10**9), (1000.0, 1)])
def test_a_span_that_no_clock_can_tell_has_no_rate(span_ms: float, expected: int) -> None:
    """A denormal span would make an endless rate, which is no number of bytes."""
    assert rate(1, span_ms) == expected
