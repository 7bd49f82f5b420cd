"""What a policy orders: imperative values, each with the rule that fired. Whoever drives QEMU carries them out.

Three of them are final: after `SwitchNow`, `StartPostcopy` and `Cancel` a policy has nothing more to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vmferry.core.convergence.facts import LEVELS, Throttle
from vmferry.core.units import BytesPerSecond, Milliseconds, Percent, format_ms, format_rate

#: What QEMU takes as `downtime-limit` at the most (MAX_MIGRATE_DOWNTIME); whatever is left fits.
MAX_DOWNTIME_MS = Milliseconds(2_000_000.0)
#: "QEMU shall not decide". Not 0: with 0 QEMU never looks what was dirtied (`ram_state_pending_exact` only does below
#: the threshold) and completes when the round's own pages are out, with all that was dirtied meanwhile still to send.
NEARLY_ZERO_MS = Milliseconds(1.0)
#: Faster than any link, and a number that QEMU can hold.
MOST_BANDWIDTH = BytesPerSecond(1_000_000_000_000)
#: QEMU's own throttle-trigger-threshold.
TRIGGER = Percent(50)


@dataclass(frozen=True, slots=True)
class SetDowntimeLimit:
    """Let QEMU switch over by itself when the rest takes no longer than this."""

    limit_ms: Milliseconds
    rule: str


@dataclass(frozen=True, slots=True)
class SetBandwidth:
    """Send no faster than this; None = as fast as the link goes."""

    bandwidth: BytesPerSecond | None
    rule: str


@dataclass(frozen=True, slots=True)
class SetThrottle:
    """Brake the guest's writing; `level` in the throttle's own unit.

    Auto-converge is QEMU's to pull, at the second round that dirtied more than `trigger` percent of what it sent.
    """

    throttle: Throttle
    level: int
    rule: str
    trigger: int = TRIGGER


@dataclass(frozen=True, slots=True)
class ThrottleOff:
    """Release the brake."""

    throttle: Throttle
    rule: str


@dataclass(frozen=True, slots=True)
class StartPostcopy:
    """Start the guest at the destination now and fetch the rest behind it: the commit point of post-copy."""

    rule: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop the vCPUs at the source; the rounds go on and end soon, since nothing is dirtied any more."""

    rule: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the vCPUs run on at the source after a `Pause`."""

    rule: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give the migration up; the guest stays at the source and `rule` is what the person is told."""

    rule: str


@dataclass(frozen=True, slots=True)
class SwitchNow:
    """Switch over whatever is left: the downtime limit is raised to `MAX_DOWNTIME_MS`."""

    rule: str


Order = (
    SetDowntimeLimit | SetBandwidth | SetThrottle | ThrottleOff | StartPostcopy | Pause | Resume | Cancel | SwitchNow
)
Orders = tuple[Order, ...]

_KINDS = (SetDowntimeLimit, SetBandwidth, SetThrottle, ThrottleOff, StartPostcopy, Pause, Resume, Cancel, SwitchNow)
_FINAL = (StartPostcopy, Cancel, SwitchNow)


def is_final(order: Order) -> bool:
    """Tell whether nothing may be ordered after this."""
    return isinstance(order, _FINAL)


def fault(order: object) -> str | None:
    """Return what is wrong with an order; None when it can be carried out."""
    if not isinstance(order, _KINDS):
        return f"{type(order).__name__} is no order"
    rule: object = order.rule
    if not isinstance(rule, str) or not rule:
        return f"{type(order).__name__} does not say which rule fired"
    return _out_of_range(order)


def _out_of_range(order: Order) -> str | None:
    if isinstance(order, SetDowntimeLimit) and not _within(order.limit_ms, NEARLY_ZERO_MS, MAX_DOWNTIME_MS):
        return f"downtime limit {order.limit_ms!r} ms is not within {NEARLY_ZERO_MS:g} to {MAX_DOWNTIME_MS:g} ms"
    if isinstance(order, SetBandwidth) and not (order.bandwidth is None or _within(order.bandwidth, 1, MOST_BANDWIDTH)):
        return f"bandwidth {order.bandwidth!r} B/s is not within 1 to {MOST_BANDWIDTH} B/s"
    if isinstance(order, SetThrottle | ThrottleOff) and not _is_throttle(order.throttle):
        return f"{order.throttle!r} is no throttle"
    if isinstance(order, SetThrottle):
        return _throttle_out_of_range(order)
    return None


def _throttle_out_of_range(order: SetThrottle) -> str | None:
    least, most = LEVELS[order.throttle]
    if not _within(order.level, least, most):
        return f"level {order.level!r} of {order.throttle} is not within {least} to {most}"
    if not _within(order.trigger, 1, 100):
        return f"trigger {order.trigger!r} of {order.throttle} is not within 1 to 100"
    return None


def order_text(order: Order) -> str:
    """Return what is ordered, without the rule, in a few words."""
    if isinstance(order, SetDowntimeLimit):
        return f"downtime limit {format_ms(order.limit_ms)}"
    if isinstance(order, SetBandwidth):
        return "bandwidth unlimited" if order.bandwidth is None else f"bandwidth {format_rate(order.bandwidth)}"
    if isinstance(order, SetThrottle):
        when = "" if order.trigger == TRIGGER else f" when {order.trigger} % are dirtied"
        return f"{order.throttle} {order.level}{when}"
    if isinstance(order, ThrottleOff):
        return f"{order.throttle} off"
    return _WORDS[type(order)]


_WORDS: dict[type, str] = {
    StartPostcopy: "start post-copy",
    Pause: "pause the guest",
    Resume: "resume the guest",
    Cancel: "cancel",
    SwitchNow: "switch now",
}


def _is_throttle(value: object) -> bool:
    return isinstance(value, Throttle)


def _within(value: object, least: float, most: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and least <= value <= most
