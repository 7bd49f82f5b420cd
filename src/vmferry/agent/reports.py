"""The report of a hand-over out of what was seen of it: pure, and None wherever something was not seen.

Figures need the agent to have lived through them: an agent that was restarted in the middle has no moment of the time
before (`opened`, `migrate`), and nothing is put in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.conductor.marks import Marks
from vmferry.conductor.source import CANCELLED, Source
from vmferry.core.handover.events import Happened, SourceEvent
from vmferry.core.handover.replay import from_json
from vmferry.core.handover.states import AnyState, Side, SourceState
from vmferry.core.ids import HostName
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import Gap, Outcome, Report
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.measure.gap import ClockOffset
from vmferry.ports.hypervisor import MigrationSetup
from vmferry.ports.peer import CommitReply
from vmferry.ports.store import EventRow

_NS_PER_MS = 1_000_000

_OUTCOMES: dict[AnyState, Outcome] = {
    SourceState.DONE: Outcome.MOVED,
    SourceState.ABORTED: Outcome.ABORTED,
    SourceState.RETURNED: Outcome.RETURNED,
    SourceState.CRASHED: Outcome.LOST,
    SourceState.LOST: Outcome.LOST,
}
#: Where a hand-over goes wrong; the first of these that was entered decides what it is called.
_WRONG = frozenset(
    str(state)
    for state in (
        SourceState.ORPHANED,
        SourceState.ABORTING,
        SourceState.ABORTED,
        SourceState.RETURNING,
        SourceState.RETURNED,
        SourceState.CRASHED,
        SourceState.LOST,
    )
)


@dataclass(frozen=True, slots=True)
class Observed:
    """What was observed of a guest that moved, beside its hypervisor's words."""

    offset: ClockOffset | None = None
    guest_gap: Gap | None = None
    ran_twice_ms: Milliseconds | None = None
    in_guest_stall_ms: Milliseconds | None = None
    network_outage: Gap | None = None
    network_moved_ms: Milliseconds | None = None
    announced: int | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a hand-over ended, and why if not as asked."""

    outcome: Outcome
    reason: str | None


def ending_of(source: Source, events: Sequence[EventRow]) -> Ending:
    """Return how a hand-over ended, from its journal: also for one that an earlier agent gave up or was told to."""
    state = source.runner.machine.state
    if state is SourceState.DONE:
        return Ending(Outcome.MOVED, None)
    wrong = _went_wrong(events)
    reason = next((each.why for each in wrong if each.why), None) or source.reason
    if source.blockers:
        return Ending(Outcome.BLOCKED, reason)
    if state is SourceState.ABORTED and wrong[:1] == [Happened(SourceEvent.CANCEL_REQUESTED, CANCELLED)]:
        return Ending(Outcome.CANCELLED, reason)
    return Ending(_OUTCOMES[state], reason)


def _went_wrong(events: Sequence[EventRow]) -> list[Happened]:
    """Return what went wrong, first things first: the first may come without a reason, as a guest that came back."""
    return [from_json(Side.SOURCE, event.event) for event in events if event.state in _WRONG]


def make_report(source: Source, ending: Ending, observed: Observed, here: HostName, acceleration_tag: str) -> Report:
    """Return the report; what each figure is and when it is None stands in docs/measures.md."""
    request, marks, trail = source.request, source.marks, source.steering.trail
    moved = ending.outcome is Outcome.MOVED
    sent = _sent(source, moved=moved)
    commit_ms, parts = _commit(marks, source.commit_reply, observed.offset)
    return Report(
        handover=request.handover,
        guest=request.guest,
        source=here,
        destination=request.destination,
        outcome=ending.outcome,
        reason=ending.reason,
        guarantee="" if source.guarantee is None else source.guarantee.sentence,
        acceleration=acceleration_tag,
        encrypted=request.encrypted,
        encryption=str(request.encryption) if request.stream.qemu_encrypts else None,
        total_ms=marks.between_ms("opened", _last_mark(marks) if moved else "finished"),
        rounds=sent.rounds,
        transferred_bytes=sent.transferred_bytes,
        ram_bytes=sent.ram_bytes,
        bandwidth=_bandwidth(sent.transferred_bytes, marks.between_ms("migrate", "source_completed")),
        downtime_limit_ms=trail.limit_ms,
        downtime_ms=sent.downtime_ms,
        guest_gap=observed.guest_gap,
        in_guest_stall_ms=observed.in_guest_stall_ms,
        network_outage=observed.network_outage,
        network_moved_ms=observed.network_moved_ms,
        announced_again=observed.announced,
        commit_ms=commit_ms,
        commit_parts_ms=parts,
        first_byte_ms=marks.between_ms("opened", "active"),
        timeline_ms=dict(source.timeline_ms),
        ran_twice_ms=observed.ran_twice_ms,
        write_throttle=source.throttled,
        policy=request.policy,
        switchover_rule=None if trail.decision is None else trail.decision.rule,
        pages_at_decision=None if trail.decision is None else trail.decision.pages,
        pages_at_stop=trail.pages_at_stop() if moved else None,
        left_out=trail.left_out,
        restart_price=None if moved else trail.restart_price(),
        link=str(request.stream.transport),
        pipeline=request.pipeline,
        channels=_channels(source.setup),
        compression=str(request.compression),
        compression_why=source.compression_why,
        disks=source.disks.paths,
        disk_bytes=source.disks.copied_bytes,
        disks_ms=marks.between_ms("disks_begun", "disks_mirrored"),
    )


def _channels(setup: MigrationSetup | None) -> int | None:
    """Return over how many channels pages went; None: an earlier agent knew."""
    if setup is None:
        return None
    if not setup.capabilities.get("multifd"):
        return 1
    return int(setup.parameters.get("multifd-channels", 1))


def _last_mark(marks: Marks) -> str:
    """Return when a move was over: the guest runs at the destination, and with post-copy misses no page any more."""
    return "commit_answered" if marks.at("postcopy_active") is None else "source_completed"


@dataclass(frozen=True, slots=True)
class _Sent:
    rounds: int | None = None
    transferred_bytes: Bytes | None = None
    ram_bytes: Bytes | None = None
    downtime_ms: Milliseconds | None = None


def _sent(source: Source, *, moved: bool) -> _Sent:
    """Return QEMU's figures: of the completed stream for a guest that moved, else the last that it gave."""
    sample = source.last_sample
    if source.marks.at("opened") is not None and source.marks.at("migrate") is None:
        return _Sent(rounds=0, transferred_bytes=Bytes(0))  # this agent lived through it, and nothing was sent
    if sample is None or not sample.total_bytes or (moved and sample.status is not MigrationStatus.COMPLETED):
        return _Sent()
    return _Sent(sample.rounds, sample.transferred_bytes, sample.total_bytes, _downtime(sample, moved=moved))


def _downtime(sample: MigrationSample, *, moved: bool) -> Milliseconds | None:
    return sample.downtime_ms if moved else None


def _bandwidth(transferred: Bytes | None, copy_ms: Milliseconds | None) -> BytesPerSecond | None:
    return BytesPerSecond(round(transferred / copy_ms * 1000)) if transferred and copy_ms else None


def _commit(
    marks: Marks, reply: CommitReply | None, offset: ClockOffset | None
) -> tuple[Milliseconds | None, dict[str, float]]:
    """Return our own share of the stopped time, by QEMU's own stamps: pre-switchover -> device, completed -> RESUME."""
    first, second = marks.between_ms("pre_switchover", "device"), _completed_to_resume(marks, reply, offset)
    measured = {
        "pause_to_continue": first,
        "mirrors_end": marks.between_ms("pre_switchover", "mirrors_ended"),
        "completed_to_resume": second,
        "completed_to_loaded_word": marks.between_ms("source_completed", "destination_loaded"),
        "completed_to_release": marks.between_ms(_crossing_mark(marks), "commit_sent"),
        "commit_round_trip": marks.between_ms("commit_sent", "commit_answered"),
        "clocks_uncertainty": None if offset is None else offset.uncertainty_ns / _NS_PER_MS,
    }
    parts = {} if reply is None else dict(reply.parts_ms)
    parts |= {name: value for name, value in measured.items() if value is not None}
    total = None if first is None or second is None else Milliseconds(first + second)
    return total, {name: round(value, 3) for name, value in parts.items()}


def _crossing_mark(marks: Marks) -> str:
    return "source_completed" if marks.at("postcopy_active") is None else "postcopy_active"


def _completed_to_resume(marks: Marks, reply: CommitReply | None, offset: ClockOffset | None) -> Milliseconds | None:
    completed = marks.at(_crossing_mark(marks))  # with post-copy it completes only when the last page is there
    if completed is None or reply is None or reply.resumed_at_ns is None or offset is None:
        return None
    return Milliseconds((reply.resumed_at_ns - offset.offset_ns - completed) / _NS_PER_MS)
