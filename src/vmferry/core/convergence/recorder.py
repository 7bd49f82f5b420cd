"""Collects the trace of one migration in bounded memory: rounds and orders as they are, samples thinned when many."""

from __future__ import annotations

from collections.abc import Iterable

from vmferry.core.convergence.facts import Facts, Goal
from vmferry.core.convergence.observations import Observation, Sample
from vmferry.core.convergence.orders import Order
from vmferry.core.convergence.trace import Ended, Item, Trace, ordered
from vmferry.core.units import Milliseconds

#: Every sample up to so many; then every second one of those there are goes, and from then on every second is taken.
MOST_SAMPLES = 20_000
#: Rounds and orders are what matters, and yet memory has an end: past this many the rest is left out.
MOST_OTHERS = 60_000
#: A rule may quote a whole error.
_MOST_RULE = 1000


class Recorder:
    """What the conductor feeds beside the policy.

    Args:
        policy: the name of the policy that steers.
        facts: as it was told.
        goal: as it was told.
        note: what this was, for people.
    """

    def __init__(self, policy: str, facts: Facts, goal: Goal, note: str = "") -> None:
        self._header = (policy, facts, goal, note[:_MOST_RULE])
        self._items: list[Item] = []
        self._samples = 0
        self._others = 0
        self._stride = 1
        self._seen = 0

    def saw(self, seen: Observation) -> None:
        """Keep an observation."""
        if not isinstance(seen, Sample):
            self._keep(seen)
            return
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return
        self._items.append(seen)
        self._samples += 1
        if self._samples > MOST_SAMPLES:
            self._thin_out()

    def ordered(self, at_ms: Milliseconds, orders: Iterable[Order]) -> None:
        """Keep what was ordered after the last observation."""
        for order in orders:
            item = ordered(at_ms, order)
            self._keep(type(item)(item.at_ms, item.order, item.value, item.rule[:_MOST_RULE]))

    def ended(self, at_ms: Milliseconds, how: str, downtime_ms: Milliseconds | None = None) -> None:
        """Keep how it ended; always."""
        self._items.append(Ended(at_ms, how[:_MOST_RULE], downtime_ms))

    def trace(self) -> Trace:
        """Return what was kept so far."""
        policy, facts, goal, note = self._header
        return Trace(policy, facts, goal, tuple(self._items), note)

    def _keep(self, item: Item) -> None:
        if self._others < MOST_OTHERS:
            self._items.append(item)
            self._others += 1

    def _thin_out(self) -> None:
        self._stride *= 2
        kept: list[Item] = []
        number = 0
        for item in self._items:
            number += isinstance(item, Sample)
            if not isinstance(item, Sample) or number % 2:
                kept.append(item)
        self._samples = (self._samples + 1) // 2
        self._items = kept
