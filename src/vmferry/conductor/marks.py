"""Moments of one hand-over on this agent's monotonic clock, from which the report is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmferry.core.units import Milliseconds, Nanoseconds


@dataclass
class Marks:
    """When what happened, by name; the first time counts unless `again` is said."""

    now_ns: Callable[[], int]
    stamps: dict[str, int] = field(default_factory=dict)
    parts_ms: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str, at_ns: int | None = None) -> None:
        """Remember a moment, the first time only."""
        self.stamps.setdefault(name, self.now_ns() if at_ns is None else at_ns)

    def since_start_ms(self, at_ns: int | None = None) -> Milliseconds:
        """Return the time since `start`."""
        now = self.now_ns() if at_ns is None else at_ns
        return Milliseconds((now - self.stamps.get("start", now)) / 1e6)

    def between_ms(self, first: str, second: str) -> Milliseconds | None:
        """Return the time between two moments; None when either was not seen."""
        if first not in self.stamps or second not in self.stamps:
            return None
        return Milliseconds((self.stamps[second] - self.stamps[first]) / 1e6)

    def at(self, name: str) -> Nanoseconds | None:
        """Return one moment."""
        stamp = self.stamps.get(name)
        return None if stamp is None else Nanoseconds(stamp)
