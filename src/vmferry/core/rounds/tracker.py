"""From readings to what people see: rounds, speeds, a verdict, the time left.

- A round ends when `dirty-sync-count` grows. Several may end between two readings: they become **one row** (`covers`),
  whose duration and bytes are their sum and whose dirtied bytes are the last one's: nothing is divided by guess.
- `Progress.bandwidth` is the wire over the last second, QEMU's own figure until that was measured;
  `RoundEnded.bandwidth` is the round's own mean (the last second's for rounds under 100 ms).
- "fits" is QEMU's rule: the rest is at most bandwidth x downtime limit. "not converging": the round dirtied about as
  much as it sent, or left no less than the rounds before it. Else "converging". It stands until the next round ends.
- `Progress.expected_downtime_ms` counts what the present round has dirtied by the forecast's curve, since `remaining`
  alone falls to nothing at the end of every round, also of a guest that never fits.
- In the first round nothing is known about what the guest writes: the time left is that round's alone, and grows, with
  the reason, when the round has shown what was dirtied.
"""

from __future__ import annotations

from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import Progress, RoundEnded
from vmferry.core.rounds.course import DECIDED, FITS, Course, time_for
from vmferry.core.rounds.meter import rate, read
from vmferry.core.rounds.time_left import TimeLeft
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, Percent

#: At most one progress event in each slot of this length: five a second.
PROGRESS_SLOT_MS = 200.0

_MEASURED = DECIDED | {MigrationStatus.ACTIVE}


class RoundTracker:
    """Follows one migration. Any reading is taken as it is: no call raises, and no clock is read.

    Args:
        downtime_limit_ms: as set in QEMU; set the attribute when the running migration's limit is changed.
    """

    def __init__(self, downtime_limit_ms: Milliseconds) -> None:
        self.downtime_limit_ms = downtime_limit_ms
        self._course: Course | None = None
        self._time_left = TimeLeft()
        self._slot: int | None = None
        self._reason: str | None = None  #: what happened since the last progress that may make it longer
        self._over = False

    def feed(self, sample: MigrationSample, at_ms: Milliseconds) -> list[Progress | RoundEnded]:
        """Take one reading in; return the row of the rounds that it shows to have ended, then at most one progress.

        Readings before the first round, of a migration that failed or was cancelled, and after `finish` give nothing.
        """
        if self._over or sample.status not in _MEASURED:
            return []
        course = self._take(sample, at_ms)
        told: list[Progress | RoundEnded] = []
        if course.seen > course.round and course.status is not MigrationStatus.COMPLETED:
            told.append(self._end_round(course, course.seen - 1, Bytes(course.last.remaining), at_ms))
        if (slot := int(at_ms // PROGRESS_SLOT_MS)) != self._slot:
            self._slot = slot
            told.append(self._progress(course, sample, at_ms))
        return told

    def finish(self, at_ms: Milliseconds) -> list[Progress | RoundEnded]:
        """Return the row of the last round if `completed` was fed (the guest was stopped: nothing was dirtied).

        A round of a migration that failed or was cancelled did not end and has no row. Called again: nothing.
        """
        course = self._course
        if self._over or course is None or course.status is not MigrationStatus.COMPLETED:
            return []
        self._over = True
        return [self._end_round(course, course.seen, Bytes(0), at_ms)]

    def _take(self, sample: MigrationSample, at_ms: Milliseconds) -> Course:
        reading, course = read(sample, at_ms), self._course
        if course is not None and course.started_over(sample, reading):
            course, self._reason = None, "QEMU's counters started over"
        if course is None:
            course = self._course = Course(sample, reading)
        course.add(sample, reading)
        return course

    def _end_round(self, course: Course, number: int, left: Bytes, at_ms: Milliseconds) -> RoundEnded:
        row, self._reason = course.end_round(number, left, at_ms, self.downtime_limit_ms)
        return row

    def _progress(self, course: Course, sample: MigrationSample, at_ms: Milliseconds) -> Progress:
        bandwidth, limit_ms = course.meter.bandwidth(), self.downtime_limit_ms
        dirtied = 0.0 if course.decided else course.curve().bytes_after(course.elapsed_ms())
        estimate = course.until_switchover(bandwidth, limit_ms)
        time_left, why_longer = self._time_left.tell(estimate, bandwidth, self._reason, _otherwise(course, estimate))
        self._reason = None
        return Progress(
            at_ms=at_ms,
            round=course.seen,
            transferred_bytes=Bytes(course.last.sent),
            remaining_bytes=Bytes(course.last.remaining),
            total_bytes=Bytes(max(sample.total_bytes, 0)),
            bandwidth=bandwidth,
            dirty_bytes_per_second=_dirty_rate(course, sample),
            expected_downtime_ms=time_for(course.last.remaining + dirtied, bandwidth),
            downtime_limit_ms=limit_ms,
            verdict=FITS if course.decided else course.verdict,
            time_left_ms=time_left,
            why_longer=why_longer,
        )


def _otherwise(course: Course, estimate: Milliseconds | None) -> str:
    """Return why the time left grew when no round ended and the bandwidth did not fall."""
    if estimate is None:
        return "at this pace the rounds do not get under the downtime limit"
    if course.round == 1:
        return "fewer of the pages that are left are empty than of those before"
    return f"round {course.round} takes longer than expected, and more is dirtied meanwhile"


def _dirty_rate(course: Course, sample: MigrationSample) -> BytesPerSecond:
    """Return what the last round with a row dirtied per second; before that, QEMU's figure."""
    if not course.points or course.points[-1].window_ms <= 0:
        return BytesPerSecond(max(sample.dirty_bytes_per_second, 0))
    return rate(int(course.points[-1].dirtied_bytes), course.points[-1].window_ms)


def memory_done_percent(progress: Progress) -> Percent:
    """Return how much of the guest's memory needs no more sending in this round, 0 to 100; 100 only without a rest."""
    if progress.total_bytes <= 0:
        return Percent(0)
    done = progress.total_bytes - min(max(progress.remaining_bytes, 0), progress.total_bytes)
    return Percent(100 * done // progress.total_bytes)
