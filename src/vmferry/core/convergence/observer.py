"""Turns readings of QEMU's counters into what policies are told. Any reading is taken as it is; no call raises."""

from __future__ import annotations

from vmferry.core.convergence.observations import Observation, Round, Sample
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.rounds.meter import Meter, Reading, rate, read
from vmferry.core.units import Bytes, Milliseconds, Pages, Percent

#: A shorter round has no bandwidth of its own: the last second's stands in.
_SHORT_ROUND_MS = 100.0


class Observer:
    """Follows one migration while QEMU says `active`: a round when one ended, then the sample.

    What a round left is QEMU's `remaining` at the first reading after its end; what was newly dirtied is the change of
    `remaining` and what was sent meanwhile, exact whenever it is read (see core/rounds/course.py).
    """

    def __init__(self) -> None:
        self._meter = Meter()
        self._began: Reading | None = None
        self._last: Reading | None = None
        self._round = 1

    def feed(self, sample: MigrationSample, at_ms: Milliseconds) -> tuple[Observation, ...]:
        """Take a reading in; readings before the first round and after the decision give nothing."""
        if sample.status is not MigrationStatus.ACTIVE:
            return ()
        reading = read(sample, at_ms)
        number = max(sample.rounds, 1)
        if self._began is None or number < self._round:  # the first, or QEMU's counters started over
            self._meter, self._round = Meter(), number
            self._began = Reading(at_ms, 0, 0, max(sample.total_bytes, 0)) if number == 1 else reading
        self._meter.add(reading, sample.bandwidth)
        self._last = reading
        told: list[Observation] = []
        if number > self._round:
            told.append(self._ended(reading, number, sample))
        throttle = Percent(sample.throttle_percent or 0)
        told.append(
            Sample(at_ms, number, Bytes(reading.sent), Bytes(reading.remaining), self._meter.bandwidth(), throttle),
        )
        return tuple(told)

    def _ended(self, reading: Reading, number: int, sample: MigrationSample) -> Round:
        began = self._began or reading
        page = max(sample.page_bytes, 1)
        duration_ms = max(reading.at_ms - began.at_ms, 0.0)
        memory = max(reading.memory - began.memory, 0)
        own = rate(reading.sent - began.sent, duration_ms)
        ended = Round(
            at_ms=Milliseconds(reading.at_ms),
            round=number - 1,
            duration_ms=Milliseconds(duration_ms),
            sent_pages=Pages(memory // page),
            dirtied_pages=Pages(max(reading.remaining - began.remaining + memory, 0) // page),
            remaining_pages=Pages(reading.remaining // page),
            bandwidth=own if duration_ms >= _SHORT_ROUND_MS else self._meter.bandwidth() or own,
            covers=number - self._round,
        )
        self._began, self._round = reading, number
        return ended
