"""The base of all policies: a small class that is told what happens and answers with orders.

Write one by giving it a `description` and overriding what it cares for: `started`, `on_round`, `on_sample`. State is
set in `started`, so that `begin` starts a policy over. Time is `elapsed_ms`: it never goes back, and grows by no more
than `clock.LONGEST_STEP_MS` from one observation to the next.
"""

from __future__ import annotations

from typing import ClassVar

from vmferry.core.convergence.clock import Clock
from vmferry.core.convergence.facts import Description, Facts, Goal, Wishes
from vmferry.core.convergence.observations import Observation, Round, Sample
from vmferry.core.convergence.orders import Orders, is_final
from vmferry.core.units import Bytes, Milliseconds


class Policy:
    """Decides when to switch over. Pure: the same observations give the same orders.

    Args:
        goal: what the person asked for; most policies have their own idea of it and do not look.
    """

    description: ClassVar[Description]
    #: Whether it looks at the goal; one that does not has its own idea of when to switch over.
    heeds_goal: ClassVar[bool] = False

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.facts = Facts(Bytes(0))
        self._clock = Clock()
        self._over = False

    @property
    def elapsed_ms(self) -> Milliseconds:
        """Return the time since the first observation, without jumps."""
        return self._clock.elapsed_ms

    def wishes(self, facts: Facts) -> Wishes:  # noqa: ARG002 - most policies wish the same for every guest
        """Return what the set-up shall be; asked before `begin`."""
        return Wishes()

    def begin(self, facts: Facts) -> Orders:
        """Start (over) with this guest; return the orders that hold from the start.

        Raises:
            BadInput: the goal cannot be met with this guest.
        """
        self.facts, self._clock, self._over = facts, Clock(), False
        return self._answer(self.started())

    def on(self, seen: Observation) -> Orders:
        """Take an observation in; return what is to be done about it, in order. After a final order: nothing."""
        if self._over:
            return ()
        self._clock.advance(seen.at_ms)
        return self._answer(self.on_round(seen) if isinstance(seen, Round) else self.on_sample(seen))

    def started(self) -> Orders:
        """Set the initial state and return the first orders."""
        return ()

    def on_round(self, ended: Round) -> Orders:  # noqa: ARG002 - for overriding
        """Answer to a round that ended."""
        return ()

    def on_sample(self, sample: Sample) -> Orders:  # noqa: ARG002 - for overriding
        """Answer to a reading."""
        return ()

    def _answer(self, orders: Orders) -> Orders:
        self._over = any(is_final(order) for order in orders)
        return orders
