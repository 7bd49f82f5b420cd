"""Makes the report of a hand-over at its source: what was measured, on which clock, and what was not.

guest_gap: each host stamps the beats that arrive there with its own clock; the destination's stamps are moved to ours
by an offset measured with pings, known to within half the shortest round trip. The commit's own cost uses the same
offset for the one stamp that is the destination's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from itertools import pairwise

from vmferry.agent.beats import BeatBook
from vmferry.conductor.source import Source
from vmferry.core.errors import VmferryError
from vmferry.core.handover.states import FACTS, AnyState, Owner, SourceState
from vmferry.core.ids import HostName
from vmferry.core.progress import Finished, Gap, Outcome, Report
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, Nanoseconds
from vmferry.measure.gap import ClockOffset, clock_offset, guest_gap
from vmferry.ports.peer import ClockSample
from vmferry.ports.store import Journal

#: How long the guest is watched before and after the move; the window before is its baseline.
_BEFORE_MS = 3000
_AFTER_MS = 1000
_PINGS = 7
_NS_PER_MS = 1_000_000

_OUTCOMES: dict[AnyState, Outcome] = {
    SourceState.DONE: Outcome.MOVED,
    SourceState.ABORTED: Outcome.ABORTED,
    SourceState.RETURNED: Outcome.RETURNED,
    SourceState.CRASHED: Outcome.LOST,
    SourceState.LOST: Outcome.LOST,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Measuring:
    """Measures at the end of a hand-over.

    Args:
        host: this host.
        journal: where reports go.
        beats: this host's beats.
        acceleration_tag: what every figure is tagged with.
    """

    host: HostName
    journal: Journal
    beats: BeatBook
    acceleration_tag: str

    def leaving(self, source: Source) -> None:
        """Take the source's beats before their receiver goes."""
        start = source.marks.at("start")
        if start is None:
            return
        source.beats_before = self.beats.stamps(source.name, start - _BEFORE_MS * _NS_PER_MS, start)
        source.beats_here = self.beats.stamps(source.name, start, time.monotonic_ns())

    async def report(self, source: Source) -> None:
        """Measure, journal the report and publish the end."""
        source.marks.mark("finished")
        outcome = self._outcome(source)
        report = await self._measure(source, outcome)
        self.journal.put_report(source.request.handover, "source", dataclasses.asdict(report))
        await source.feed.publish(self._finished(source, outcome, report))

    def _outcome(self, source: Source) -> Outcome:
        if source.blockers:
            return Outcome.BLOCKED
        if source.cancelled and source.runner.machine.state is SourceState.ABORTED:
            return Outcome.CANCELLED
        return _OUTCOMES[source.runner.machine.state]

    def _finished(self, source: Source, outcome: Outcome, report: Report) -> Finished:
        facts = FACTS[source.runner.machine.state]
        owner = self.host if facts.owner is Owner.SOURCE else source.request.destination
        failure = source.runner.failure
        return Finished(
            at_ms=source.marks.since_start_ms(),
            outcome=outcome,
            owner=None if outcome is Outcome.LOST else owner,
            reason=report.reason,
            fix=None if failure is None else failure.fix,
            blockers=source.blockers,
            report=report,
        )

    async def _measure(self, source: Source, outcome: Outcome) -> Report:
        request, marks, sample = source.request, source.marks, source.last_sample
        offset = await self._offset(source) if outcome is Outcome.MOVED else None
        total = marks.since_start_ms(marks.at("commit_answered" if outcome is Outcome.MOVED else "finished"))
        transferred = 0 if sample is None else sample.transferred_bytes
        copy_ms = marks.between_ms("migrate", "source_completed")
        commit_ms, parts = self._commit(source, offset)
        return Report(
            handover=request.handover,
            guest=request.guest,
            source=self.host,
            destination=request.destination,
            outcome=outcome,
            reason=None if outcome is Outcome.MOVED else source.reason,
            guarantee="" if source.guarantee is None else source.guarantee.sentence,
            acceleration=self.acceleration_tag,
            encrypted=request.encrypted,
            total_ms=total,
            rounds=0 if sample is None else sample.rounds,
            transferred_bytes=Bytes(transferred),
            ram_bytes=Bytes(0 if sample is None else sample.total_bytes),
            bandwidth=BytesPerSecond(round(transferred / copy_ms * 1000) if copy_ms else 0),
            downtime_limit_ms=request.downtime_limit_ms,
            downtime_ms=sample.downtime_ms if sample is not None and outcome is Outcome.MOVED else None,
            guest_gap=await self._gap(source, offset),
            in_guest_stall_ms=None,
            network_outage=None,
            commit_ms=commit_ms,
            commit_parts_ms=parts,
            first_byte_ms=marks.between_ms("start", "migrate"),
            timeline_ms=dict(source.timeline_ms),
        )

    async def _offset(self, source: Source) -> ClockOffset | None:
        samples: list[ClockSample] = []
        for _ in range(_PINGS):
            try:
                samples.append(await source.peer.ping())
            except VmferryError:
                break
        return clock_offset(samples) if samples else None

    def _commit(self, source: Source, offset: ClockOffset | None) -> tuple[Milliseconds | None, dict[str, float]]:
        """Return our own share of the stopped time: pre-switchover -> continue, and completed -> RESUME there."""
        marks = source.marks
        first = marks.between_ms("pre_switchover", "continue")
        second = self._completed_to_resume(source, offset)
        parts = dict(source.commit_reply.parts_ms) if source.commit_reply is not None else {}
        parts |= {
            name: value
            for name, value in {
                "pause_to_continue": first,
                "completed_to_resume": second,
                "completed_to_loaded_word": marks.between_ms("source_completed", "destination_loaded"),
                "completed_to_release": marks.between_ms("source_completed", "commit_sent"),
                "commit_round_trip": marks.between_ms("commit_sent", "commit_answered"),
            }.items()
            if value is not None
        }
        total = None if first is None or second is None else Milliseconds(first + second)
        return total, {name: round(value, 3) for name, value in parts.items()}

    @staticmethod
    def _completed_to_resume(source: Source, offset: ClockOffset | None) -> Milliseconds | None:
        completed, reply = source.marks.at("source_completed"), source.commit_reply
        if completed is None or reply is None or reply.resumed_at_ns is None or offset is None:
            return None
        resumed_here = reply.resumed_at_ns - offset.offset_ns
        return Milliseconds((resumed_here - completed) / _NS_PER_MS)

    async def _gap(self, source: Source, offset: ClockOffset | None) -> Gap | None:
        """Return guest_gap, None when it was not measured: no beat, or the guest did not move."""
        start = source.marks.at("start")
        if offset is None or start is None or source.guest is None or not source.guest.spec.beat:
            return None
        await asyncio.sleep(_AFTER_MS / 1000)  # the time after the move belongs to the measure
        began, ended = start, time.monotonic_ns()
        there = await self._beats_there(source, began + offset.offset_ns, ended + offset.offset_ns)
        measured = guest_gap(source.beats_here, there, offset, baseline_gap_ms=_largest(source.beats_before))
        if measured is None:
            return None
        return Gap(measured.gap_ms, measured.uncertainty_ms, measured.baseline_gap_ms, Milliseconds(float(_BEFORE_MS)))

    @staticmethod
    async def _beats_there(source: Source, start: int, end: int) -> Sequence[int]:
        try:
            return await source.peer.beats(source.request.handover, Nanoseconds(start), Nanoseconds(end))
        except VmferryError:
            return ()


def _largest(stamps: Sequence[int]) -> Milliseconds | None:
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    return Milliseconds(max(gaps) / _NS_PER_MS) if gaps else None
