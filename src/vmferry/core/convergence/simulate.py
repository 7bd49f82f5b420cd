"""Plays pre-copy of a guest with a known dirty curve over a link of known speed, steered by a policy. Pure.

QEMU's part is its rule: a round is over when its rest is under the threshold (bandwidth x downtime limit), what was
dirtied meanwhile is added, and if that is under the threshold too, the guest is stopped. Left out on purpose: page
headers (0.2 %), empty pages, the cost of the dirty bitmap, device state. With auto-converge on, QEMU pulls the brake
at every second round (those of a second together) that dirtied over a share of what it sent: half of it, to 20 %, then
10 % more each time, up to 99 %; or share and level are what the policy ordered. 40-writes is not played: which of the
guest's programs it covers is nothing that a curve says.

Source: QEMU 10.0, migration_iteration_run in migration/migration.c, migration_trigger_throttle in migration/ram.c.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.core.convergence import throttle
from vmferry.core.convergence.facts import Facts, Throttle
from vmferry.core.convergence.guarded import Guarded
from vmferry.core.convergence.observations import Observation, Round, Sample
from vmferry.core.convergence.orders import (
    TRIGGER,
    Cancel,
    Order,
    Pause,
    SetBandwidth,
    SetDowntimeLimit,
    SetThrottle,
    StartPostcopy,
    SwitchNow,
    ThrottleOff,
)
from vmferry.core.convergence.policy import Policy
from vmferry.core.rounds.curve import ROUND_QUANTUM_MS
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds, Pages, Percent

_TICK_MS = 250.0
#: QEMU's throttle-trigger-threshold, cpu-throttle-initial and cpu-throttle-increment.
_INITIAL, _INCREMENT = 20, 10
#: Rounds are counted together until so much has passed.
_COUNTS_AFTER_MS = 1000.0
#: What `facts.link` is when nobody says: 1 Gbit/s.
GIGABIT = BytesPerSecond(125_000_000)

#: Unique bytes that one measured guest dirtied in a window: it saturates, so that no single rate describes it.
MEASURED_CURVE: tuple[tuple[float, float], ...] = tuple(
    (ms, mib * MIB)
    for ms, mib in ((125, 66), (500, 302), (1000, 472), (2000, 672), (10_000, 1796), (30_000, 3868), (60_000, 5916))
)


class Outcome(enum.StrEnum):
    """How a simulated migration ended."""

    QEMU = "QEMU's rule"
    FORCED = "forced"  #: SwitchNow
    PAUSED = "paused"  #: the guest was stopped while pages were sent
    POSTCOPY = "post-copy"
    CANCELLED = "cancelled"
    NEVER = "never"  #: not within the time that was played


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of it; what was not reached is None."""

    outcome: Outcome
    at_ms: Milliseconds  #: of the decision
    rounds: int  #: that ended before the decision
    left_bytes: Bytes  #: at the decision
    downtime_ms: Milliseconds | None  #: to send what was left; without the fixed cost
    stall_ms: Milliseconds  #: longest stall by the brake
    total_ms: Milliseconds | None  #: until all memory is over
    rule: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Unique bytes dirtied in a window: straight lines between measured points in log-log, and on beyond them."""

    points: Sequence[tuple[float, float]]

    def bytes_after(self, window_ms: float) -> float:
        """Return the bytes dirtied in a window; before the first point in proportion to time."""
        first = self.points[0]
        if window_ms <= first[0]:
            return first[1] * max(window_ms, 0.0) / first[0]
        pairs = list(itertools.pairwise(self.points))
        (t0, b0), (t1, b1) = next((pair for pair in pairs if window_ms <= pair[1][0]), pairs[-1])
        exponent = math.log(b1 / b0) / math.log(t1 / t0)
        return b0 * math.pow(window_ms / t0, exponent)


def simulate(policy: Policy, facts: Facts, curve: Curve, *, most_ms: float = 7_200_000.0) -> Simulation:
    """Play one migration to its end, or to `most_ms`."""
    return _Play(policy, facts, curve).run(most_ms)


class _Play:
    def __init__(self, policy: Policy, facts: Facts, curve: Curve) -> None:
        self.facts, self.curve, self.guarded = facts, curve, Guarded(policy)
        self.link = facts.link or GIGABIT
        self.by_qemu = policy.wishes(facts).auto_converge and Throttle.AUTO_CONVERGE in facts.throttles
        self.now = self.began = 0.0
        self.round, self.bad = 1, 0
        self.rest = self.size = float(facts.ram_bytes)
        self.sent = 0.0
        self.limit_ms, self.cap = 300.0, None  # type: float, int | None
        self.percent, self.worst = 0, 0
        self.ordered: SetThrottle | None = None
        self.newly = self.went = self.counted = 0.0  #: since QEMU counted last
        self.end: tuple[Outcome, str] | None = None

    @property
    def speed(self) -> float:
        """Return bytes per millisecond."""
        return min(self.link, self.cap or self.link) / 1000

    def run(self, most_ms: float) -> Simulation:
        self._obey(self.guarded.begin(self.facts))
        while self.end is None and self.now < most_ms:
            self._step()
        if self.end is None:
            return self._result(Outcome.NEVER, "")
        return self._result(*self.end)

    def _step(self) -> None:
        threshold = self.speed * self.limit_ms
        due = max(self.rest - threshold, 0.0) / self.speed
        least = min(ROUND_QUANTUM_MS, self.size / self.speed) - (self.now - self.began)
        step = max(min(_TICK_MS, due), 0.0)
        ends = due <= _TICK_MS
        if ends:
            step = max(step, least)
        went = min(self.speed * step, self.rest)
        self.rest -= went
        self.sent += went
        self.now += step
        if ends:
            self._sync()
        else:
            bandwidth = BytesPerSecond(int(self.speed * 1000))
            sent, rest = Bytes(int(self.sent)), Bytes(int(self.rest))
            self._tell(Sample(Milliseconds(self.now), self.round, sent, rest, bandwidth, Percent(self.percent)))

    def _sync(self) -> None:
        window = self.now - self.began
        newly = self._dirtied(window)
        sent = self.size - self.rest
        self.rest = min(self.rest + newly, float(self.facts.ram_bytes))
        page = self.facts.page_bytes
        ended = Round(
            at_ms=Milliseconds(self.now),
            round=self.round,
            duration_ms=Milliseconds(window),
            sent_pages=Pages(int(sent // page)),
            dirtied_pages=Pages(int(newly // page)),
            remaining_pages=Pages(int(self.rest // page)),
            bandwidth=BytesPerSecond(int(self.speed * 1000)),
        )
        if self.by_qemu:
            self._raise_brake(newly, sent)
        if self.rest <= self.speed * self.limit_ms:
            self.end = (Outcome.QEMU, f"the rest fits {self.limit_ms:g} ms")
        self.round, self.began, self.size = self.round + 1, self.now, self.rest
        if self.end is not None:
            return
        self._tell(ended)

    def _dirtied(self, window_ms: float) -> float:
        return min(self.curve.bytes_after(window_ms * (100 - self.percent) / 100), float(self.facts.ram_bytes))

    def _raise_brake(self, newly: float, sent: float) -> None:
        self.newly += newly
        self.went += sent
        if self.now - self.counted <= _COUNTS_AFTER_MS:
            return
        trigger = TRIGGER if self.ordered is None else self.ordered.trigger
        self.bad += self.newly > trigger / 100 * self.went
        self.newly, self.went, self.counted = 0.0, 0.0, self.now
        if self.bad >= 2:
            self.bad = 0
            by_itself = min(self.percent + _INCREMENT, throttle.MOST) if self.percent else _INITIAL
            self._brake(by_itself if self.ordered is None else self.ordered.level)

    def _brake(self, percent: int) -> None:
        self.percent = percent
        self.worst = max(self.worst, percent)

    def _tell(self, seen: Observation) -> None:
        self._obey(self.guarded.on(seen))

    def _obey(self, orders: Sequence[Order]) -> None:
        for order in orders:
            if isinstance(order, SetDowntimeLimit):
                self.limit_ms = order.limit_ms
            elif isinstance(order, SetBandwidth):
                self.cap = order.bandwidth
            elif isinstance(order, SetThrottle) and order.throttle is Throttle.AUTO_CONVERGE:
                self.ordered = order
            elif isinstance(order, ThrottleOff) and order.throttle is Throttle.AUTO_CONVERGE:
                self.ordered = SetThrottle(order.throttle, throttle.LEAST, order.rule)
            elif (outcome := _ENDS.get(type(order))) is not None:
                self.end = (outcome, order.rule)

    def _result(self, outcome: Outcome, rule: str) -> Simulation:
        left = self.rest
        if outcome not in {Outcome.NEVER, Outcome.CANCELLED, Outcome.QEMU}:
            left = min(left + self._dirtied(self.now - self.began), float(self.facts.ram_bytes))
        time_ms = left / self.speed
        arrives = outcome not in {Outcome.NEVER, Outcome.CANCELLED}
        downtime = 0.0 if outcome is Outcome.POSTCOPY else time_ms
        return Simulation(
            outcome=outcome,
            at_ms=Milliseconds(self.now),
            rounds=self.round - 1,
            left_bytes=Bytes(int(left)),
            downtime_ms=Milliseconds(downtime) if arrives else None,
            stall_ms=throttle.stall_ms(self.worst if self.worst > 1 else 0),
            total_ms=Milliseconds(self.now + time_ms) if arrives else None,
            rule=rule,
        )


_ENDS: dict[type, Outcome] = {
    SwitchNow: Outcome.FORCED,
    Pause: Outcome.PAUSED,
    StartPostcopy: Outcome.POSTCOPY,
    Cancel: Outcome.CANCELLED,
}
