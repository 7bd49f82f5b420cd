"""Time as the observations tell it, made safe: it never goes back, and a jump forwards is one step at the most."""

from __future__ import annotations

import math

from vmferry.core.units import Milliseconds

#: Readings come about five times a second; a longer step is a suspended host or a wrong stamp, and counts as this.
LONGEST_STEP_MS = 10_000.0


class Clock:
    """Adds up the plausible part of each step between two stamps."""

    def __init__(self) -> None:
        self.elapsed_ms = Milliseconds(0.0)
        self._stamp: float | None = None

    def advance(self, at_ms: object) -> None:
        """Take the next stamp in; one that is no number, or earlier than the last, takes no time."""
        if not isinstance(at_ms, int | float) or not math.isfinite(at_ms):
            return
        if self._stamp is not None:
            step = min(max(at_ms - self._stamp, 0.0), LONGEST_STEP_MS)
            self.elapsed_ms = Milliseconds(self.elapsed_ms + step)
        self._stamp = at_ms
