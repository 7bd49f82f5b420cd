"""A write throttle that records what it is asked, in order, and fails when told to."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmferry.core.errors import Blocker, Broken, VmferryError
from vmferry.core.ids import GuestName, HandoverId
from vmferry.core.progress import Throttled
from vmferry.core.units import Milliseconds
from vmferry.ports.write_throttle import WriteBudget


@dataclass
class FakeThrottle:
    """Implements ports.write_throttle.WriteThrottle, stricter than a helper: nothing is ended twice or unasked.

    Attributes:
        calls: what was ordered, in order.
        in_force: budgets by hand-over.
        found: what `blockers` answers.
        refuses: what the next `begin` raises.
    """

    calls: list[str] = field(default_factory=list)
    in_force: dict[HandoverId, WriteBudget] = field(default_factory=dict)
    found: tuple[Blocker, ...] = ()
    refuses: VmferryError | None = None

    async def blockers(self, guest: GuestName) -> tuple[Blocker, ...]:  # noqa: ARG002 - the port's
        """Return what a test has put there."""
        self.calls.append("blockers")
        return self.found

    async def begin(self, guest: GuestName, handover: HandoverId, budget: WriteBudget) -> None:
        """Note the budget, or fail."""
        self.calls.append("begin")
        refusal, self.refuses = self.refuses, None
        if refusal is not None:
            raise refusal
        if self.in_force.keys() - {handover}:
            raise Broken(f"two hand-overs slow guest {guest}: {handover} and {', '.join(self.in_force)}")
        self.in_force[handover] = budget

    def hush(self, handover: HandoverId) -> None:
        """Note it."""
        if handover in self.in_force:
            self.calls.append("hush")

    def seen(self, handover: HandoverId) -> Throttled | None:
        """Return the budget, and that nothing was held."""
        budget = self.in_force.get(handover)
        return None if budget is None else Throttled(budget.writes, 20, 1, 0, 0, Milliseconds(0.0))

    async def end(self, handover: HandoverId) -> None:
        """Forget the budget."""
        if self.in_force.pop(handover, None) is not None:
            self.calls.append("end")

    def arrived(self, guest: GuestName, handover: HandoverId) -> None:  # noqa: ARG002 - as above
        """Note it."""
        self.calls.append(f"arrived {handover}")

    async def close(self) -> None:
        """Forget every budget."""
        self.in_force.clear()
