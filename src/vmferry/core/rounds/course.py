"""The rounds of one migration as they were measured: what each sent and left, and what that means.

Bytes belong to the round in which they were first seen: what was sent between a round's end and the next reading (a
few ms with MIGRATION_PASS) is counted in the round that ended, so that the rows' sums are exactly what was transferred.

What a round leaves is QEMU's `remaining` at the first reading after the sync: newly dirtied pages, and those that the
round itself did not send (QEMU ends it when its rest is under the threshold). What was *newly* dirtied, which verdict
and forecast need, is the change of `remaining` plus the memory sent meanwhile: exact, whenever it is read.
"""

from __future__ import annotations

from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import RoundEnded
from vmferry.core.rounds.curve import HOPELESS, DirtyCurve, DirtyPoint, fit, until_switchover
from vmferry.core.rounds.meter import Meter, Reading, rate
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, format_bytes

FIRST = "first round"
CONVERGING = "converging"
STUCK = "not converging"
FITS = "fits"

#: QEMU decided that the rest fits; the guest is stopped or runs at the destination.
DECIDED = frozenset(
    {
        MigrationStatus.PRE_SWITCHOVER,
        MigrationStatus.DEVICE,
        MigrationStatus.COMPLETED,
        MigrationStatus.POSTCOPY_ACTIVE,
        MigrationStatus.POSTCOPY_PAUSED,
    }
)

#: A shorter round has no bandwidth of its own: the last second's stands in.
_SHORT_ROUND_MS = 100.0
#: A round must leave less than the least of so many before it.
_LOOK_BACK = 3


class Course:
    """Everything measured since QEMU's counters began to count.

    Args:
        sample: the first reading; what it says was sent before belongs to round 1.
        reading: its counters.
    """

    def __init__(self, sample: MigrationSample, reading: Reading) -> None:
        since_start_ms = (sample.total_ms or 0.0) - (sample.setup_ms or 0.0)
        memory = max(sample.total_bytes, reading.remaining, 0)
        self.began = Reading(reading.at_ms - max(since_start_ms, 0.0), 0, 0, memory)
        self.last = self.began
        self.status = MigrationStatus.SETUP
        self.round = 1  #: the first round that has no row yet
        self.seen = 1  #: QEMU's count at the last reading
        self.verdict = FIRST
        self.meter = Meter()
        self.points: list[DirtyPoint] = []
        self._left: list[int] = []  #: what each row left
        self._hopeless = False  #: this round was once found not to lead to an end
        self.meter.add(self.began, sample.bandwidth)

    def started_over(self, sample: MigrationSample, reading: Reading) -> bool:
        """Tell whether the counters went back: another migration, or another QEMU."""
        return max(sample.rounds, 1) < self.seen or reading.sent < self.last.sent

    def add(self, sample: MigrationSample, reading: Reading) -> None:
        """Take a reading in; those after the first `completed` change nothing."""
        if self.status is MigrationStatus.COMPLETED:
            return
        self.status, self.seen, self.last = sample.status, max(sample.rounds, 1), reading
        self.meter.add(reading, sample.bandwidth)

    @property
    def decided(self) -> bool:
        """Whether QEMU itself found that the rest fits."""
        return self.status in DECIDED

    def curve(self) -> DirtyCurve:
        """Return what the guest dirties in a window, as far as it was measured."""
        return fit(self.points)

    def elapsed_ms(self) -> float:
        """Return how long the present round has lasted."""
        return max(self.last.at_ms - self.began.at_ms, 0.0)

    def end_round(
        self, number: int, left: Bytes, at_ms: Milliseconds, limit_ms: Milliseconds
    ) -> tuple[RoundEnded, str]:
        """Close the round (or rounds) up to this number; return its row, and one sentence on what it dirtied."""
        sent, memory = self.last.sent - self.began.sent, self.last.memory - self.began.memory
        newly = max(left - self.began.remaining + memory, 0)
        covers, duration_ms = number - self.round + 1, self.elapsed_ms()
        own = rate(sent, duration_ms)
        bandwidth = own if duration_ms >= _SHORT_ROUND_MS else self.meter.bandwidth() or own
        self.points.append(DirtyPoint(duration_ms / covers, newly / covers))
        basis = sent if self.round == 1 else memory
        self.verdict = self._judge(left, newly, basis, bandwidth * limit_ms / 1000)
        self._left.append(left)
        row = RoundEnded(
            at_ms=at_ms,
            round=number,
            duration_ms=Milliseconds(duration_ms),
            sent_bytes=Bytes(sent),
            dirtied_bytes=left,
            bandwidth=bandwidth,
            expected_downtime_ms=time_for(left, bandwidth),
            downtime_limit_ms=limit_ms,
            verdict=self.verdict,
            covers=covers,
        )
        self.round, self.began, self._hopeless = number + 1, self.last, False
        return row, f"round {number} dirtied {format_bytes(newly)} while it sent {format_bytes(basis)}"

    def until_switchover(self, bandwidth: BytesPerSecond, limit_ms: Milliseconds) -> Milliseconds | None:
        """Return the time left; None when it cannot be said, and then not again before the round has ended."""
        if self.decided or self.verdict == FITS:
            return Milliseconds(0.0)
        if self.verdict == STUCK or self._hopeless:
            return None
        drain = self.meter.drain(self.began, self.round) / 1000
        threshold = bandwidth * limit_ms / 1000
        estimate = until_switchover(self.last.remaining, self.elapsed_ms(), drain, threshold, self.curve())
        self._hopeless = estimate is None and drain > 0
        return estimate

    def _judge(self, left: int, newly: int, basis: int, threshold: float) -> str:
        """Return the verdict on a round; `basis` is what it sent: on the wire in round 1, else in guest memory.

        In round 1 the wire counts, since its empty pages cost next to no time: the next round is shorter only when
        less was dirtied than went over the wire.
        """
        if self.decided or left <= threshold:
            return FITS
        if newly >= HOPELESS * basis or left >= min(self._left[-_LOOK_BACK:], default=left + 1):
            return STUCK
        return CONVERGING


def time_for(rest_bytes: float, bandwidth: BytesPerSecond) -> Milliseconds | None:
    """Return how long a rest takes; None when nothing is known to move."""
    if rest_bytes <= 0:
        return Milliseconds(0.0)
    return Milliseconds(rest_bytes * 1000 / bandwidth) if bandwidth > 0 else None
