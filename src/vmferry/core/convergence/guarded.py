"""A policy that can do no harm: whatever it does, the outcome is an order that can be carried out, or a cancel.

A policy is foreign code to the hand-over: it may raise, answer nonsense, or not answer. It may be told garbage: a clock
that jumps, counters that are no numbers. None of that may move a guest or break the agent: the migration is cancelled
with the reason, and the guest stays at the source.

**What the caller must do**, since pure code cannot watch the time: make each call (`begin`, `on`) in a thread of its
own, and wait for at most `BUDGET_MS`. When it does not come back, call `overdue()` and carry its `Cancel` out. The late
answer, if one comes, is dropped here. Call one after the other, never two at once. After a final order every call
answers with nothing.
"""

from __future__ import annotations

from vmferry.core.convergence.facts import Facts, Wishes
from vmferry.core.convergence.observations import Observation, is_plausible
from vmferry.core.convergence.orders import Cancel, Order, Orders, fault, is_final
from vmferry.core.convergence.policy import Policy
from vmferry.core.errors import VmferryError
from vmferry.core.units import Milliseconds, format_ms

#: How long one call may take. A thousand times what the slowest of ours needs; a guest under post-copy cannot wait.
BUDGET_MS = Milliseconds(1000.0)
#: So many readings in a row that cannot be true: whoever reads is broken.
MOST_GARBAGE = 100
#: A policy that orders more than this at once is out of order.
MOST_ORDERS = 16


class Guarded:
    """Asks a policy and lets only orders through that can be carried out. No call raises.

    Args:
        policy: the one to be asked.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._over = False
        self._garbage = 0
        self.name = _name(policy)

    @property
    def is_over(self) -> bool:
        """Whether a final order was given; nothing more will come."""
        return self._over

    def wishes(self, facts: Facts) -> Wishes:
        """Return what the policy wishes; nothing special when it cannot say (`begin` will tell why)."""
        try:
            wishes: object = self._policy.wishes(facts)
        except Exception:  # noqa: BLE001 - foreign code; whatever it raises must not stop the set-up
            return Wishes()
        return wishes if isinstance(wishes, Wishes) else Wishes()

    def begin(self, facts: Facts) -> Orders:
        """Return the first orders; a goal that cannot be met is a `Cancel` that says so."""
        if self._over:
            return ()
        try:
            answer: object = self._policy.begin(facts)
        except Exception as error:  # noqa: BLE001 - foreign code
            return self._give_up(_why(error))
        return self._check(answer)

    def on(self, seen: Observation) -> Orders:
        """Return what is to be done about an observation; what cannot be true is not shown to the policy."""
        if self._over:
            return ()
        if not is_plausible(seen):
            self._garbage += 1
            return self._give_up(f"{MOST_GARBAGE} readings in a row made no sense") if self._is_garbage() else ()
        self._garbage = 0
        try:
            answer: object = self._policy.on(seen)
        except Exception as error:  # noqa: BLE001 - foreign code
            return self._give_up(_why(error))
        return self._check(answer)

    def overdue(self) -> Orders:
        """Give up on a policy that did not answer within `BUDGET_MS`."""
        return self._give_up(f"did not answer within {format_ms(BUDGET_MS)}")

    def _is_garbage(self) -> bool:
        return self._garbage >= MOST_GARBAGE

    def _check(self, answer: object) -> Orders:
        if self._over:
            return ()  # it was overdue: too late
        if not isinstance(answer, tuple | list):
            return self._give_up(f"answered {type(answer).__name__} instead of orders")
        if len(answer) > MOST_ORDERS:
            return self._give_up(f"gave {len(answer)} orders at once, more than {MOST_ORDERS}")
        orders: list[Order] = []
        for order in answer:
            if (wrong := fault(order)) is not None:
                return self._give_up(wrong)
            orders.append(order)
            if is_final(order):
                self._over = True
                break
        return tuple(orders)

    def _give_up(self, why: str) -> Orders:
        if self._over:
            return ()
        self._over = True
        return (Cancel(f"policy {self.name}: {why}; the guest stays at the source"),)


def _name(policy: Policy) -> str:
    name = getattr(getattr(policy, "description", None), "name", None)
    return name if isinstance(name, str) else type(policy).__name__


def _why(error: Exception) -> str:
    """Return what to tell; an error of ours speaks for itself."""
    if isinstance(error, VmferryError):
        return error.what if error.fix is None else f"{error.what} ({error.fix})"
    return f"failed with {type(error).__name__}: {error}"
