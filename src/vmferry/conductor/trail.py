"""What is known of a steered migration: rounds for watchers, the trace, which rule fired and on how many pages."""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.conductor.brake import FORTY
from vmferry.conductor.plan import Asked
from vmferry.core.capabilities import FirstRound, restart_price
from vmferry.core.convergence import Facts, Observation, Throttle
from vmferry.core.convergence.orders import MAX_DOWNTIME_MS, Order, SetDowntimeLimit, SetThrottle, SwitchNow
from vmferry.core.convergence.recorder import Recorder
from vmferry.core.convergence.trace import Trace
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import Progress, RoundEnded
from vmferry.core.rounds import RoundTracker
from vmferry.core.units import Milliseconds, Pages, format_ms

_BY_HAND = "asked for: from the first round on"
_STANDS_STILL = (MigrationStatus.PRE_SWITCHOVER, MigrationStatus.DEVICE)


@dataclass(frozen=True, slots=True)
class Decision:
    """What fired the switchover, and what was left to send then."""

    rule: str
    pages: Pages | None


class Trail:
    """Keeps it for one hand-over, in bounded memory. No call raises.

    Args:
        asked: what was asked for.
    """

    def __init__(self, asked: Asked) -> None:
        self.left_out: tuple[str, ...] = ()
        self.last_sample: MigrationSample | None = None
        self.decision: Decision | None = None
        self.limit_ms = asked.first_limit_ms
        self.gave_up = False  #: the policy, or what it ordered, ended the migration
        self._asked = asked
        self._tracker = RoundTracker(self.limit_ms)
        self._recorder: Recorder | None = None
        self._first_round: FirstRound | None = None
        self._stopped: MigrationSample | None = None
        self._elapsed_ms = Milliseconds(0.0)

    def begin(self, facts: Facts) -> None:
        """Begin, or begin anew, with what the policy was told, and with what is in force whatever it orders."""
        self._recorder = Recorder(self._asked.choice.policy, facts, self._asked.goal)
        if self._asked.choice.throttle == Throttle.FORTY_WRITES:
            self.ordered(SetThrottle(Throttle.FORTY_WRITES, FORTY, _BY_HAND), Milliseconds(0.0))

    def ordered(self, order: Order, at_ms: Milliseconds) -> None:
        """Keep an order, carried out or not."""
        if self._recorder is not None:
            self._recorder.ordered(at_ms, (order,))

    def carried_out(self, order: Order, left: Pages | None) -> None:
        """Keep what an order has changed."""
        if isinstance(order, SwitchNow):
            self.decision = Decision(order.rule, left)
            self._set_limit(MAX_DOWNTIME_MS)
        elif isinstance(order, SetDowntimeLimit):
            self._set_limit(order.limit_ms)

    def _set_limit(self, limit_ms: Milliseconds) -> None:
        self.limit_ms = self._tracker.downtime_limit_ms = limit_ms

    def saw(self, seen: Observation) -> None:
        """Keep an observation."""
        self._elapsed_ms = seen.at_ms
        if self._recorder is not None:
            self._recorder.saw(seen)

    def remember(self, sample: MigrationSample) -> None:
        """Keep a reading for the report; QEMU forgets its figures when a migration failed or was cancelled."""
        if sample.total_bytes or self.last_sample is None:
            self.last_sample = sample

    def read(self, sample: MigrationSample, at_ms: Milliseconds) -> list[Progress | RoundEnded]:
        """Keep a reading and return what watchers are told of it."""
        self.remember(sample)
        events = self._tracker.feed(sample, at_ms)
        for event in events:
            if isinstance(event, RoundEnded) and event.round == event.covers == 1:
                self._first_round = FirstRound(event.sent_bytes, event.duration_ms)
        return events

    def stopped(self, sample: MigrationSample) -> None:
        """Keep the reading of the moment in which the guest stands still, at most the first ms of the last pages."""
        if sample.status not in _STANDS_STILL or not sample.total_bytes:
            return
        self._stopped = sample
        if self.decision is None:
            left = Pages(sample.remaining_bytes // max(sample.page_bytes, 1))
            self.decision = Decision(f"QEMU's own: the rest fits the limit of {format_ms(self.limit_ms)}", left)

    def finish(self, at_ms: Milliseconds) -> list[Progress | RoundEnded]:
        """Return the row of the last round."""
        return self._tracker.finish(at_ms)

    def pages_at_stop(self) -> Pages | None:
        """Return how many pages were sent while the guest stood still; None when that was not seen."""
        before, after = self._stopped, self.last_sample
        if before is None or after is None or after.status is not MigrationStatus.COMPLETED:
            return None
        return Pages(max(_pages(after) - _pages(before), 0))

    def restart_price(self) -> str | None:
        """Return what another attempt costs, where a policy gave this one up."""
        if not self.gave_up or self.last_sample is None:
            return None
        return restart_price(self.last_sample, self._first_round).text()

    def trace(self, how: str, downtime_ms: Milliseconds | None) -> Trace | None:
        """Return the trace with how it ended; None: the policy never began, or nothing was sent."""
        if self._recorder is None or self.last_sample is None:
            return None
        self._recorder.ended(self._elapsed_ms, how, downtime_ms)
        return self._recorder.trace()


def _pages(sample: MigrationSample) -> int:
    return sample.normal_pages + sample.duplicate_pages
