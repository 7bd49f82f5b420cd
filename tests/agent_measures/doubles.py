"""A source's hand-over with only what the measures may read, and the agent around it, stricter than the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from vmferry.agent.beats import BeatBook
from vmferry.agent.measuring import Measuring
from vmferry.conductor.marks import Marks
from vmferry.conductor.plan import Asked, Choice
from vmferry.conductor.rows import Request
from vmferry.conductor.source import Source
from vmferry.conductor.trail import Trail
from vmferry.core.errors import Unreachable, VmferryError
from vmferry.core.guest import Acceleration, BiosBoot, FrozenGuest, GuestSpec
from vmferry.core.handover.events import Happened, SourceEvent
from vmferry.core.handover.machine import Machine
from vmferry.core.handover.replay import to_json
from vmferry.core.handover.states import Side, SourceState
from vmferry.core.ids import Epoch, GuestName, GuestUuid, HandoverId, HostName
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import Finished, Gap, Throttled
from vmferry.core.units import MIB, Bytes, Milliseconds, Nanoseconds
from vmferry.ports.hypervisor import MigrationSetup
from vmferry.ports.peer import ClockSample, CommitReply, Seen
from vmferry.ports.store import EventRow, Journal

MS = 1_000_000
WEB = GuestName("web-7")
MOVE = HandoverId("h-1")
#: The destination's clock is so far ahead of ours.
AHEAD = 7_000 * MS
START = 100_000 * MS
SENT = MigrationSample(
    MigrationStatus.COMPLETED,
    rounds=3,
    transferred_bytes=Bytes(200 * MIB),
    total_bytes=Bytes(256 * MIB),
    downtime_ms=Milliseconds(40.0),
)
#: ms after the opening, of a hand-over that went well
WELL = {
    "migrate": 180,
    "active": 200,
    "pre_switchover": 2000,
    "device": 2003,
    "source_completed": 2180,
    "destination_loaded": 2182,
    "commit_sent": 2184,
    "commit_answered": 2190,
    "tidied": 2250,
}


def at(ms: float) -> int:
    """Return a moment on our clock, in ms after the opening."""
    return START + int(ms * MS)


def there(ms: float) -> int:
    """Return the same moment on the destination's clock."""
    return at(ms) + AHEAD


def guest(**more: object) -> FrozenGuest:
    """Return a guest with an echo, a beat and a control channel unless said otherwise."""
    fields: dict[str, object] = {"beat": True, "control": True, "echo": "10.0.0.7:7007", **more}
    spec = GuestSpec(WEB, Bytes(256 * MIB), BiosBoot(), **fields)  # type: ignore[arg-type]
    return FrozenGuest(spec, GuestUuid("u"), Acceleration.TCG, "qemu64", "pc-q35-7.2", (), ())


@dataclass
class FakePeer:
    """The destination's agent: a clock that is ahead, beats, a stall."""

    seen: Seen = field(default_factory=Seen)
    away: bool = False
    calls: list[str] = field(default_factory=list)

    async def ping(self) -> ClockSample:
        self._call("ping")
        return ClockSample(Nanoseconds(at(5000)), Nanoseconds(there(5001)), Nanoseconds(at(5002)))

    async def beats(self, handover: HandoverId, start_ns: Nanoseconds, end_ns: Nanoseconds) -> Seen:
        assert handover == MOVE
        assert start_ns == at(0) + AHEAD
        assert end_ns > start_ns
        self._call("beats")
        return self.seen

    async def announce(self, handover: HandoverId) -> None:
        assert handover == MOVE
        self._call("announce")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise Unreachable("host host-b does not answer", retry=True)


@dataclass
class FakeBeats:
    """This host's beats, by moment in ms after the opening."""

    at_ms: Sequence[float] = ()
    lost_now: int = 0

    def stamps(self, name: GuestName, start_ns: int, end_ns: int) -> Sequence[int]:
        assert name == WEB
        before = [at(ms) for ms in self.at_ms if at(ms) < start_ns][-1:]
        return [*before, *(at(ms) for ms in self.at_ms if start_ns <= at(ms) <= end_ns)]

    def lost(self, name: GuestName) -> int:
        assert name == WEB
        return self.lost_now


@dataclass
class FakeProbe:
    """A prober; told once to begin, and never asked after its end."""

    found: Gap | None = None
    broken: bool = False
    calls: list[str] = field(default_factory=list)
    asked: tuple[int, int] | None = None

    def begin(self) -> None:
        assert self.calls == []
        self.calls.append("begin")

    async def gap(self, stopped_ns: int, ended_ns: int) -> Gap | None:
        assert self.calls == ["begin"]
        assert stopped_ns < ended_ns
        self.calls.append("gap")
        self.asked = (stopped_ns, ended_ns)
        if self.broken:
            raise ValueError("a bug of ours")
        return self.found

    async def close(self) -> None:
        self.calls.append("close")


@dataclass
class FakeStalls:
    """Guests' own meters."""

    obeys: bool = True
    asked: list[GuestName] = field(default_factory=list)

    async def reset(self, name: GuestName) -> bool:
        self.asked.append(name)
        return self.obeys


@dataclass
class FakeJournal:
    """As much of the journal as a report needs."""

    rows: list[EventRow] = field(default_factory=list)
    reports: list[dict[str, object]] = field(default_factory=list)
    error: VmferryError | None = None

    def events(self, handover: HandoverId, side: str) -> Sequence[EventRow]:
        assert (handover, side) == (MOVE, str(Side.SOURCE))
        return self.rows

    def put_report(self, handover: HandoverId, side: str, report: dict[str, object]) -> None:
        assert (handover, side) == (MOVE, str(Side.SOURCE))
        if self.error is not None:
            raise self.error
        self.reports.append(report)

    def happened(self, kind: SourceEvent, state: SourceState, why: str | None = None) -> None:
        """Add an event as the journal has it."""
        self.rows.append(EventRow(len(self.rows), MOVE, "source", to_json(Happened(kind, why)), str(state), 0.0))


@dataclass
class FakeFeed:
    """What watchers see."""

    events: list[object] = field(default_factory=list)

    async def publish(self, event: object) -> None:
        self.events.append(event)


@dataclass
class FakeRunner:
    """Where the machine stands."""

    machine: Machine
    failure: VmferryError | None = None


ASKED = Asked(Choice(), Bytes(256 * MIB), None, Milliseconds(100.0))


@dataclass
class FakeSteering:
    """What steering knows at the end."""

    trail: Trail = field(default_factory=lambda: Trail(ASKED))


@dataclass
class FakeDisks:
    """What was copied of disks."""

    copied_bytes: None = None
    paths: tuple[()] = ()


@dataclass
class FakeSource:
    """A hand-over at its source; an attribute that the measures must not read is not there."""

    runner: FakeRunner
    guest: FrozenGuest | None
    peer: FakePeer = field(default_factory=FakePeer)
    marks: Marks = field(default_factory=lambda: Marks(lambda: at(2300), {"start": START}))
    feed: FakeFeed = field(default_factory=FakeFeed)
    request: Request = field(
        default_factory=lambda: Request(MOVE, WEB, HostName("host-b"), Milliseconds(100.0), None, encrypted=True)
    )
    name: GuestName = WEB
    reason: str | None = None
    blockers: tuple[()] = ()
    guarantee: None = None
    setup: MigrationSetup | None = None
    compression_why: str | None = None
    disks: FakeDisks = field(default_factory=FakeDisks)
    last_sample: MigrationSample | None = SENT
    steering: FakeSteering = field(default_factory=FakeSteering)
    commit_reply: CommitReply | None = None
    timeline_ms: dict[str, float] = field(default_factory=dict)
    throttled: Throttled | None = None
    beats_before: Sequence[int] = ()
    beats_here: Sequence[int] = ()

    @property
    def real(self) -> Source:
        """Return it under the type that is asked for."""
        return cast("Source", self)

    @property
    def finished(self) -> Finished:
        """Return what watchers saw last."""
        last = self.feed.events[-1]
        assert isinstance(last, Finished)
        return last


def source(state: SourceState = SourceState.DONE, marks: Mapping[str, float] | None = None) -> FakeSource:
    """Return a hand-over in a state, with moments in ms after its opening."""
    made = FakeSource(FakeRunner(Machine(Side.SOURCE, state)), guest())
    for name, ms in (marks or {}).items():
        made.marks.mark(name, at(ms))
    if state is SourceState.DONE:
        made.commit_reply = CommitReply("running", Epoch(2), Nanoseconds(there(2188)), None, (("cont", 3.0),))
    return made


@dataclass
class Around:
    """The agent around."""

    beats: FakeBeats = field(default_factory=FakeBeats)
    stalls: FakeStalls = field(default_factory=FakeStalls)
    journal: FakeJournal = field(default_factory=FakeJournal)
    probe: FakeProbe = field(default_factory=FakeProbe)
    probed: list[tuple[str, int]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def measuring(self) -> Measuring:
        """Return the measures of host-a."""
        return Measuring(
            HostName("host-a"),
            cast("Journal", self.journal),
            cast("BeatBook", self.beats),
            self.stalls,
            "TCG",
            probe=self._probe,
            sleep=self._sleep,
        )

    def _probe(self, address: str, port: int) -> FakeProbe:
        self.probed.append((address, port))
        return self.probe

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
