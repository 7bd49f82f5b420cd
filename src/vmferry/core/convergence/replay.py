"""A dry run: what a policy would have ordered on a recorded migration, and how far the record can tell.

A trace is the course that *its* policy gave the migration. Another policy that only watches sees the same course; from
the first order on that would have changed it, the rest of the trace is a story about another migration. The replay goes
on (a changed limit often changes nothing for long) and marks what is no longer certain.

QEMU's own rule is played too: a round that leaves at most bandwidth x downtime limit is where QEMU would have switched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmferry.core.convergence.facts import Throttle
from vmferry.core.convergence.guarded import Guarded
from vmferry.core.convergence.observations import Observation, Round, Sample
from vmferry.core.convergence.orders import (
    TRIGGER,
    Order,
    Orders,
    Pause,
    Resume,
    SetBandwidth,
    SetDowntimeLimit,
    SetThrottle,
    ThrottleOff,
    is_final,
    order_text,
)
from vmferry.core.convergence.policy import Policy
from vmferry.core.convergence.trace import Ended, Ordered, Trace, ordered
from vmferry.core.units import Milliseconds, format_ms, format_rate

#: QEMU's default, until somebody sets another.
_DEFAULT_LIMIT_MS = 300.0
#: A cap below this share of what the trace ran at would have made it another migration.
_CAPPED = 0.95


@dataclass(frozen=True, slots=True)
class Fired:
    """One order of the replay, or QEMU's decision."""

    line: int | None  #: of the trace; None = before the start
    at_ms: Milliseconds
    seen: str  #: start, sample or round
    round: int | None
    remaining_pages: int | None
    what: str
    rule: str
    certain: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """The outcome of a dry run."""

    policy: str
    recorded_policy: str
    fired: tuple[Fired, ...]
    decided: bool  #: a final order, or QEMU's rule
    end: str  #: one sentence
    uncertain_line: int | None  #: from here on the trace is another migration's; None = it never was
    uncertain_why: str | None


def replay(trace: Trace, policy: Policy) -> Replay:
    """Return what this policy would have ordered; a policy that fails is a `Cancel`, as live."""
    return _Run(trace, policy).play()


def is_decided(orders: Orders) -> bool:
    """Tell whether the policy has said its last word."""
    return any(is_final(order) for order in orders)


class _Run:
    def __init__(self, trace: Trace, policy: Policy) -> None:
        self.trace = trace
        self.guarded = Guarded(policy)
        self.limit_ms = _DEFAULT_LIMIT_MS
        self.recorded_limit_ms = _DEFAULT_LIMIT_MS
        self.fired: list[Fired] = []
        self.uncertain: tuple[int, str] | None = None
        self.armed: SetThrottle | None = None  #: a brake that QEMU pulls when a round is bad
        self.fastest = max((i.bandwidth for i in trace.items if isinstance(i, Sample | Round)), default=0)

    def play(self) -> Replay:
        self._start()
        for index, item in enumerate(self.trace.items):
            if self.guarded.is_over:
                break
            if isinstance(item, Ordered):
                self._note_recorded(item)
            elif isinstance(item, Sample | Round) and self._switches(item, index):
                return self._result(decided=True, end="QEMU switches over by its own rule")
        if self.guarded.is_over:
            return self._result(decided=True, end=f"the policy decides: {self.fired[-1].what}")
        how = next((i.how for i in reversed(self.trace.items) if isinstance(i, Ended)), "cut")
        why = f"the trace ends here ({how}, policy {self.trace.policy})"
        return self._result(decided=False, end=f"{why}; it cannot tell what this policy would have seen next")

    def _start(self) -> None:
        orders = self.guarded.begin(self.trace.facts)
        for order in orders:
            self._fire(order, None, None)
        for order in orders:
            self._doubt(order, 1)

    def _switches(self, seen: Observation, index: int) -> bool:
        """Tell whether QEMU switches: it looks at the round's end itself, and again when a limit was raised upon it."""
        if self._qemu_switches(seen, index):
            return True
        if self.armed is not None and isinstance(seen, Round) and _is_bad(seen, self.armed):
            self._set_uncertain(index + 2, "QEMU would have pulled the brake that was armed")
        orders, limit_ms = self.guarded.on(seen), self.limit_ms
        self._take(orders, index, seen)
        return self.limit_ms > limit_ms and not is_decided(orders) and self._qemu_switches(seen, index)

    def _take(self, orders: Orders, index: int, seen: Observation) -> None:
        recorded = set(self._recorded_after(index))
        for order in orders:
            self._fire(order, index + 2, seen)
            item = ordered(seen.at_ms, order)
            if (item.order, item.value) not in recorded:
                self._doubt(order, index + 2)

    def _recorded_after(self, index: int) -> Iterator[tuple[str, float | str | None]]:
        """Yield what the recording's own policy ordered upon this observation."""
        for item in self.trace.items[index + 1 :]:
            if not isinstance(item, Ordered):
                return
            yield item.order, item.value

    def _fire(self, order: Order, line: int | None, seen: Observation | None) -> None:
        if isinstance(order, SetDowntimeLimit):
            self.limit_ms = order.limit_ms
        self._add(line, seen, order_text(order), order.rule)

    def _add(self, line: int | None, seen: Observation | None, what: str, rule: str) -> None:
        page = max(self.trace.facts.page_bytes, 1)
        pages: int | None = None
        if isinstance(seen, Round):
            pages = seen.remaining_pages
        elif isinstance(seen, Sample):
            pages = seen.remaining_bytes // page
        kind = "start" if seen is None else type(seen).__name__.lower()
        at_ms = Milliseconds(0.0) if seen is None else seen.at_ms
        number = None if seen is None else seen.round
        self.fired.append(Fired(line, at_ms, kind, number, pages, what, rule, self.uncertain is None))

    def _doubt(self, order: Order, line: int) -> None:
        """Mark what follows as uncertain if the order would have changed the course."""
        if isinstance(order, SetThrottle) and order.trigger > TRIGGER:
            self.armed = order
            return
        why = self._changes_course(order)
        if why is not None:
            self._set_uncertain(line, why)

    def _changes_course(self, order: Order) -> str | None:
        """Return in which way the order would have made it another migration."""
        if isinstance(order, SetBandwidth):
            if order.bandwidth is None or order.bandwidth >= _CAPPED * self.fastest:
                return None
            return f"it would have run at {format_rate(order.bandwidth)}, not {format_rate(self.fastest)}"
        if isinstance(order, SetThrottle):
            at_rest = order.throttle is Throttle.AUTO_CONVERGE and order.level <= 1
            return None if at_rest else "the guest would have been throttled"
        if isinstance(order, ThrottleOff | Pause | Resume):
            return f"the guest would have gone another way ({order_text(order)})"
        return None

    def _set_uncertain(self, line: int, why: str) -> None:
        if self.uncertain is None:
            self.uncertain = (line, why)

    def _note_recorded(self, item: Ordered) -> None:
        if item.order == "SetDowntimeLimit" and isinstance(item.value, float):
            self.recorded_limit_ms = item.value

    def _qemu_switches(self, seen: Observation, index: int) -> bool:
        page = self.trace.facts.page_bytes
        left = seen.remaining_pages * page if isinstance(seen, Round) else seen.remaining_bytes
        threshold = seen.bandwidth * self.limit_ms / 1000
        if seen.bandwidth <= 0 or left > threshold:
            return False
        if isinstance(seen, Round):
            took = format_ms(left * 1000 / seen.bandwidth)
            rule = f"the rest takes {took}, limit {format_ms(self.limit_ms)}"
            self._add(index + 2, seen, "QEMU switches over", rule)
            return True
        if left > seen.bandwidth * self.recorded_limit_ms / 1000:
            self._set_uncertain(index + 2, "QEMU would have ended the round here, to see whether the rest fits")
        return False

    def _result(self, *, decided: bool, end: str) -> Replay:
        line, why = self.uncertain or (None, None)
        return Replay(self.guarded.name, self.trace.policy, tuple(self.fired), decided, end, line, why)


def _is_bad(ended: Round, brake: SetThrottle) -> bool:
    return ended.dirtied_pages * 100 > brake.trigger * ended.sent_pages
