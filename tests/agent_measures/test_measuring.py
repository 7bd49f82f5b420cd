"""What is measured of a hand-over, what is not, and that no measure can harm it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.agent_measures.doubles import (
    MS,
    WELL,
    Around,
    FakeBeats,
    FakePeer,
    FakeProbe,
    FakeSource,
    FakeStalls,
    at,
    guest,
    source,
    there,
)

from vmferry.core.errors import Broken
from vmferry.core.handover.states import SourceState
from vmferry.core.progress import Gap, Outcome, Report
from vmferry.core.units import Milliseconds
from vmferry.ports.peer import Seen

OUTAGE = Gap(Milliseconds(80.0), Milliseconds(2.0), Milliseconds(0.0), Milliseconds(1500.0))
#: Beats from 5 s before the opening until the stop, one every 10 ms.
HERE = [float(ms) for ms in range(-5000, 2000, 10)]
#: And from the start at the destination on.
ARRIVED = Seen([there(ms) for ms in range(2190, 3200, 10)], in_guest_stall_ms=Milliseconds(12.5))


def moving(beats: Sequence[float] = HERE, seen: Seen = ARRIVED) -> tuple[Around, FakeSource]:
    """Return a guest that has moved, and the agent around."""
    around = Around(beats=FakeBeats(beats), probe=FakeProbe(OUTAGE))
    moved = source(marks=WELL)
    moved.peer = FakePeer(seen)
    return around, moved


async def measured(around: Around, moved: FakeSource, *, opened: bool = True, passed: bool = True) -> Report:
    """Live through a hand-over's measures and return its report."""
    measuring = around.measuring()
    if opened:
        measuring.opened(moved.real)
    if passed:
        measuring.passed(moved.real)
    await asyncio.sleep(0)
    measuring.leaving(moved.real)
    await measuring.report(moved.real)
    await measuring.close()
    report = moved.finished.report
    assert report is not None
    return report


async def test_a_guest_that_moved_is_measured_in_every_way() -> None:
    """The pause across the hosts, the stall in its own words, the outage; each with its baseline and window."""
    around, moved = moving()
    report = await measured(around, moved)
    assert report.outcome == Outcome.MOVED
    assert report.guest_gap is not None
    assert report.guest_gap.largest_ms == pytest.approx(200.0)
    assert report.guest_gap.uncertainty_ms == pytest.approx(1.0)
    assert report.guest_gap.baseline_ms == pytest.approx(10.0)
    assert report.guest_gap.baseline_window_ms == pytest.approx(3000.0)
    assert report.guest_gap.window_ms == pytest.approx(3190 + 10)
    assert report.in_guest_stall_ms == 12.5
    assert report.network_outage == OUTAGE
    assert report.ran_twice_ms == 0.0
    assert around.journal.reports[0]["in_guest_stall_ms"] == 12.5


async def test_the_prober_lives_from_the_opening_to_the_report() -> None:
    """It is begun when the hand-over is opened, asked once with the moment of the stop, and closed."""
    around, moved = moving()
    await measured(around, moved)
    assert around.probed == [("10.0.0.7", 7007)]
    assert around.probe.calls == ["begin", "gap", "close"]
    assert around.probe.asked is not None
    assert around.probe.asked[0] == at(2000)


async def test_a_guest_that_just_started_has_a_shorter_baseline() -> None:
    """A guest that had beaten for half a second is compared with just that, and the report says so."""
    report = await measured(*moving([ms for ms in HERE if ms >= -500]))
    assert report.guest_gap is not None
    assert report.guest_gap.baseline_window_ms == pytest.approx(500.0)


async def test_a_guest_that_started_with_the_hand_over_has_no_baseline() -> None:
    """No beat before the opening: no baseline, and the gap stands alone."""
    report = await measured(*moving([ms for ms in HERE if ms > 0]))
    assert report.guest_gap is not None
    assert report.guest_gap.baseline_ms is None
    assert report.guest_gap.baseline_window_ms is None


async def test_an_old_pause_is_not_the_hand_overs() -> None:
    """A guest that stood still for an hour before is not charged with it, neither in the gap nor in the baseline."""
    report = await measured(*moving([-3_600_000.0, *(ms for ms in HERE if ms >= -100)]))
    assert report.guest_gap is not None
    assert report.guest_gap.largest_ms == pytest.approx(200.0)
    assert report.guest_gap.baseline_ms == pytest.approx(10.0)


async def test_a_guest_that_ran_twice_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Beats at the destination before the last one at the source are in the report and in the log as an error."""
    around, moved = moving(seen=Seen([there(ms) for ms in range(1890, 3200, 10)]))
    report = await measured(around, moved)
    assert report.ran_twice_ms == pytest.approx(99.0)  # 100 ms, less what the clocks explain
    said = capsys.readouterr().out
    assert "error" in said
    assert "ran on both hosts" in said


@pytest.mark.parametrize(
    ("beats", "seen"),
    [
        ([], ARRIVED),
        ([-3000.0, -2990.0], ARRIVED),
        (HERE, Seen()),
        (HERE, Seen(ARRIVED.stamps_ns, complete=False)),
    ],
    ids=["no beat here", "no beat since the opening", "no beat there", "beats missing there"],
)
async def test_half_a_gap_is_no_gap(beats: Sequence[float], seen: Seen) -> None:
    """Unless both hosts saw every beat, neither the gap nor running twice is measured."""
    report = await measured(*moving(beats, seen))
    assert report.guest_gap is None
    assert report.ran_twice_ms is None


async def test_beats_that_this_host_lost_make_no_gap() -> None:
    """When the kernel dropped beats during the move a gap may be ours: not measured."""
    around, moved = moving()
    measuring = around.measuring()
    measuring.opened(moved.real)
    around.beats.lost_now = 1
    measuring.leaving(moved.real)
    await measuring.report(moved.real)
    assert moved.finished.report is not None
    assert moved.finished.report.guest_gap is None


async def test_beats_lost_before_the_hand_over_do_not_matter() -> None:
    """Only what is lost while it is measured counts."""
    around, moved = moving()
    around.beats.lost_now = 5
    assert (await measured(around, moved)).guest_gap is not None


async def test_a_stall_counts_only_from_a_reset() -> None:
    """A meter that did not say that it began anew shows older stalls: not measured."""
    around, moved = moving()
    around.stalls = FakeStalls(obeys=False)
    assert (await measured(around, moved)).in_guest_stall_ms is None
    around, moved = moving()
    assert (await measured(around, moved, passed=False)).in_guest_stall_ms is None
    assert around.stalls.asked == []


async def test_a_guest_without_keys_is_not_asked() -> None:
    """No echo, no control, no beat: nothing is begun, nothing waited for, nothing asked, and all is None."""
    around, moved = moving()
    moved.guest = guest(echo=None, control=False, beat=False)
    report = await measured(around, moved)
    assert around.probed == []
    assert around.stalls.asked == []
    assert around.slept == []
    assert set(moved.peer.calls) == {"ping"}
    found = (report.guest_gap, report.ran_twice_ms, report.in_guest_stall_ms, report.network_outage)
    assert found == (None, None, None, None)


async def test_an_echo_that_is_no_address_is_not_probed() -> None:
    """A guest that came with a bad address over the API is not measured, and moves all the same."""
    around, moved = moving()
    moved.guest = guest(echo="--help:7")
    report = await measured(around, moved)
    assert around.probed == []
    assert report.network_outage is None
    assert report.outcome == Outcome.MOVED


async def test_a_destination_that_does_not_answer_costs_its_figures_only() -> None:
    """Without its clock and its beats there is no gap and no commit; the network's outage is ours."""
    around, moved = moving()
    moved.peer.away = True
    report = await measured(around, moved)
    assert (report.guest_gap, report.in_guest_stall_ms, report.commit_ms) == (None, None, None)
    assert report.network_outage == OUTAGE


async def test_a_restarted_agent_measures_nothing_that_it_did_not_see() -> None:
    """Without the opening there is no total, no first byte, no gap, no outage; the journal still gets a report."""
    around, moved = moving()
    report = await measured(around, moved, opened=False)
    assert (report.total_ms, report.first_byte_ms, report.guest_gap, report.network_outage) == (None,) * 4
    assert report.outcome == Outcome.MOVED
    assert len(around.journal.reports) == 1


@pytest.mark.parametrize("state", [SourceState.ABORTED, SourceState.RETURNED, SourceState.CRASHED, SourceState.LOST])
async def test_a_guest_that_did_not_move_ends_its_measures_at_once(state: SourceState) -> None:
    """The prober is closed unasked, nobody waits, and there is no figure of a move that was not."""
    around, moved = moving()
    moved.runner = source(state).runner
    report = await measured(around, moved)
    assert around.probe.calls == ["begin", "close"]
    assert around.slept == []
    assert (report.guest_gap, report.network_outage, report.in_guest_stall_ms) == (None, None, None)
    assert report.downtime_ms is None


async def test_a_bug_in_a_measure_does_not_keep_the_end_from_watchers() -> None:
    """What breaks while measuring costs the measures; report and end are told, and the prober is closed."""
    around, moved = moving()
    around.probe.broken = True
    report = await measured(around, moved)
    assert report.outcome == Outcome.MOVED
    assert report.network_outage is None
    assert around.probe.calls[-1] == "close"


async def test_a_full_disk_does_not_keep_the_end_from_watchers() -> None:
    """A report that cannot be journalled is still told."""
    around, moved = moving()
    around.journal.error = Broken("journal cannot be written: no space left on device")
    assert (await measured(around, moved)).outcome == Outcome.MOVED


async def test_an_agent_that_stops_ends_what_it_measures_with() -> None:
    """`close` ends the probers of hand-overs that go on with the next agent."""
    around, moved = moving()
    measuring = around.measuring()
    measuring.opened(moved.real)
    measuring.passed(moved.real)
    await measuring.close()
    assert around.probe.calls == ["begin", "close"]


async def test_the_guest_is_watched_for_a_second_after_it_runs() -> None:
    """The wait counts from the destination's word, not from when the source was tidied up."""
    around, moved = moving()
    moved.marks.stamps["commit_answered"] = 2**62  # in the future of any real clock
    await measured(around, moved)
    assert around.slept[0] > 1.0
    around, moved = moving()
    moved.marks.stamps["commit_answered"] = 1 * MS
    await measured(around, moved)
    assert around.slept == [0.0]
