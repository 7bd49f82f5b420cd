"""Each figure of a report is what its name says, or None."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tests.agent_measures.doubles import MS, WELL, FakeJournal, FakeSource, source

from vmferry.agent.reports import Observed, ending_of, make_report
from vmferry.conductor.source import CANCELLED
from vmferry.core.handover.events import SourceEvent
from vmferry.core.handover.states import SourceState
from vmferry.core.ids import HostName
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import Outcome, Report
from vmferry.core.units import MIB, Bytes, Nanoseconds
from vmferry.measure.gap import ClockOffset

OFFSET = ClockOffset(Nanoseconds(7_000 * MS), Nanoseconds(MS))
HERE = HostName("host-a")
ACTIVE = MigrationSample(MigrationStatus.ACTIVE, None, 1, Bytes(50 * MIB), Bytes(9 * MIB), Bytes(256 * MIB))
_E, _S = SourceEvent, SourceState


def report_of(seen: FakeSource, journal: FakeJournal | None = None, offset: ClockOffset | None = OFFSET) -> Report:
    """Return the report of a hand-over."""
    ending = ending_of(seen.real, (journal or FakeJournal()).rows)
    return make_report(seen.real, ending, Observed(offset=offset), HERE, "TCG")


def opened(state: SourceState = SourceState.DONE, marks: Mapping[str, float] | None = None) -> FakeSource:
    """Return a hand-over that this agent opened."""
    return source(state, {"opened": 0, **(marks or {})})


def test_a_move_has_every_figure() -> None:
    """Total until the guest runs there, bandwidth over the stream's time, first byte when memory flows, our share."""
    report = report_of(opened(marks=WELL))
    assert report.total_ms == pytest.approx(2190)
    assert report.first_byte_ms == pytest.approx(200)
    assert report.bandwidth == round(200 * MIB / 2.0)
    assert (report.rounds, report.transferred_bytes, report.ram_bytes) == (3, 200 * MIB, 256 * MIB)
    assert report.downtime_ms == 40.0
    assert report.commit_ms == pytest.approx(3 + 8)


def test_the_parts_of_the_commit_name_their_two_moments() -> None:
    """Each part is the time between two moments of one clock; beside the destination's own and the clocks' doubt."""
    assert report_of(opened(marks=WELL)).commit_parts_ms == {
        "cont": 3.0,
        "pause_to_continue": 3.0,
        "completed_to_resume": 8.0,
        "completed_to_loaded_word": 2.0,
        "completed_to_release": 4.0,
        "commit_round_trip": 6.0,
        "clocks_uncertainty": 1.0,
    }


def test_without_the_clocks_offset_the_commit_is_not_measured() -> None:
    """Two clocks that were not compared give no time between them."""
    report = report_of(opened(marks=WELL), offset=None)
    assert report.commit_ms is None
    assert "completed_to_resume" not in report.commit_parts_ms
    assert "clocks_uncertainty" not in report.commit_parts_ms


@pytest.mark.parametrize("missing", sorted(WELL))
def test_a_moment_that_was_not_seen_is_not_replaced(missing: str) -> None:
    """Whatever moment is missing, figures that need it are None and the others stay."""
    needs = {
        "total_ms": {"commit_answered"},
        "first_byte_ms": {"active"},
        "bandwidth": {"migrate", "source_completed"},
        "commit_ms": {"pre_switchover", "device", "source_completed"},
    }
    report = report_of(opened(marks={name: ms for name, ms in WELL.items() if name != missing}))
    for figure, moments in needs.items():
        assert (getattr(report, figure) is None) is (missing in moments), figure


def test_an_agent_that_came_back_has_neither_total_nor_first_byte() -> None:
    """A hand-over that was opened by an earlier agent has no beginning here; QEMU's own figures are still good."""
    report = report_of(source(marks=WELL))
    assert (report.total_ms, report.first_byte_ms) == (None, None)
    assert report.transferred_bytes == 200 * MIB


def test_a_move_whose_source_died_has_no_totals_of_its_stream() -> None:
    """A reading from the middle of the stream is not what was sent in the end."""
    moved = opened(marks=WELL)
    moved.last_sample = ACTIVE
    report = report_of(moved)
    assert (report.rounds, report.transferred_bytes, report.bandwidth, report.downtime_ms) == (None,) * 4


@pytest.mark.parametrize("state", [_S.ABORTED, _S.CRASHED, _S.LOST, _S.RETURNED])
def test_nothing_was_sent_before_the_order_to_send(state: SourceState) -> None:
    """Zero is a fact when this agent saw that no stream was begun."""
    ended = opened(state, {"finished": 150})
    ended.last_sample = None
    report = report_of(ended)
    assert (report.rounds, report.transferred_bytes, report.ram_bytes, report.bandwidth) == (0, 0, None, None)
    assert report.total_ms == pytest.approx(150)


def test_a_stream_that_was_given_up_has_what_was_sent_until_then() -> None:
    """The last reading stands; there is no downtime, and no bandwidth of a stream without an end."""
    ended = opened(_S.ABORTED, {"migrate": 180, "active": 200, "finished": 900})
    ended.last_sample = ACTIVE
    report = report_of(ended)
    assert (report.rounds, report.transferred_bytes, report.ram_bytes) == (1, 50 * MIB, 256 * MIB)
    assert (report.bandwidth, report.downtime_ms, report.commit_ms) == (None, None, None)
    assert report.total_ms == pytest.approx(900)


@pytest.mark.parametrize("sample", [None, MigrationSample(MigrationStatus.FAILED)])
def test_figures_that_qemu_forgot_are_not_zero(sample: MigrationSample | None) -> None:
    """No reading, or an empty one of a failed migration, is "not measured"."""
    ended = opened(_S.ABORTED, {"migrate": 180, "active": 200, "finished": 900})
    ended.last_sample = sample
    report = report_of(ended)
    assert (report.rounds, report.transferred_bytes, report.ram_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (_S.DONE, Outcome.MOVED),
        (_S.ABORTED, Outcome.ABORTED),
        (_S.RETURNED, Outcome.RETURNED),
        (_S.CRASHED, Outcome.LOST),
        (_S.LOST, Outcome.LOST),
    ],
)
def test_each_last_state_has_its_outcome(state: SourceState, outcome: Outcome) -> None:
    """The outcome follows from where the machine stands."""
    assert ending_of(source(state).real, ()).outcome == outcome


def test_what_ended_it_is_in_the_journal() -> None:
    """The reason is that of the event that went wrong, not an earlier restart; so an agent that came back knows it."""
    journal = FakeJournal()
    journal.happened(_E.AGENT_RESTARTED, _S.PRECOPY, "the source's agent was restarted")
    journal.happened(_E.STREAM_FAILED, _S.ABORTING, "the stream was cut")
    journal.happened(_E.SOURCE_RESUMED, _S.ABORTED)
    ended = source(_S.ABORTED)
    ended.reason = "the source's agent was restarted"
    assert ending_of(ended.real, journal.rows) == ending_of(source(_S.ABORTED).real, journal.rows)
    assert ending_of(ended.real, journal.rows).reason == "the stream was cut"


def test_a_person_who_cancels_is_told_from_a_time_limit_and_from_a_failure() -> None:
    """Cancelled is only what an operator's word ended: not a time limit, and not a failure that was there first."""
    found = []
    for kind, why in (
        (_E.CANCEL_REQUESTED, CANCELLED),
        (_E.CANCEL_REQUESTED, "pre-copy took longer than its time limit of 5 s"),
        (_E.STREAM_FAILED, "the stream was cut"),
    ):
        journal = FakeJournal()
        journal.happened(kind, _S.ABORTING, why)
        journal.happened(_E.SOURCE_RESUMED, _S.ABORTED)
        found.append(ending_of(source(_S.ABORTED).real, journal.rows).outcome)
    assert found == [Outcome.CANCELLED, Outcome.ABORTED, Outcome.ABORTED]


def test_a_guest_that_came_back_without_a_reason_has_that_of_what_followed() -> None:
    """A destination that was restarted gives the token back without a word; the report tells why it was no use."""
    journal = FakeJournal()
    journal.happened(_E.POSTCOPY_ORDERED, _S.POSTCOPY_ORDERED, "asked for after round 1")
    journal.happened(_E.DESTINATION_RETURNED, _S.RETURNING)
    journal.happened(_E.SOURCE_QEMU_DIED, _S.CRASHED, "guest web-7 came back in the middle of post-copy")
    ended = ending_of(source(_S.CRASHED).real, journal.rows)
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "guest web-7 came back in the middle of post-copy")


def test_a_guest_that_moved_after_all_has_no_reason() -> None:
    """A source that died and whose guest arrived all the same is a move."""
    journal = FakeJournal()
    journal.happened(_E.SOURCE_QEMU_DIED, _S.ORPHANED, "QEMU of guest web-7 at the source died")
    assert ending_of(source(_S.DONE).real, journal.rows).reason is None


def test_a_postcopy_is_over_with_its_last_page_and_its_commit_is_measured_as_ever() -> None:
    """The guest crosses first and the stream completes later: the total counts to the end, our share to RESUME."""
    crossed = {**WELL, "postcopy_active": WELL["source_completed"], "source_completed": 5000.0}
    report = report_of(opened(marks=crossed))
    assert report.total_ms == pytest.approx(5000)
    assert report.commit_ms == pytest.approx(3 + 8)
    assert report.commit_parts_ms["completed_to_release"] == 4.0
