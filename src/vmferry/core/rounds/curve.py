"""How much a guest dirties in a window of time, and how long the rounds go on from there.

One dirty *rate* promises too much: a guest writes the same pages again and again, so that twice the time dirties less
than twice the bytes. Measured guests follow a power of the window, ``bytes(t) = scale * t ** exponent`` with an
exponent between 0 (the working set is written over and over) and 1 (every write hits a new page). Two rounds of
different length give both numbers; with one round the exponent is taken as 1: the plain geometric series.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.core.units import Milliseconds

#: QEMU looks whether it may end a round after so much sending, or with nothing left (MAX_WAIT in migration/ram.c).
ROUND_QUANTUM_MS = 50.0
#: Rounds of more alike length say nothing about the exponent: it would be made of noise.
_LENGTHS_DIFFER = 1.5
#: A guest that dirties this share of what is sent meanwhile leaves no forecast: a little more, and it never ends.
HOPELESS = 0.95
#: A forecast of more rounds than this is no forecast.
_ROUNDS_AT_MOST = 1000


@dataclass(frozen=True, slots=True)
class DirtyPoint:
    """One measured round: how long it was, and what was newly dirtied in it."""

    window_ms: float
    dirtied_bytes: float


@dataclass(frozen=True, slots=True)
class DirtyCurve:
    """Bytes that a guest dirties in a window of time; each page counts once."""

    scale: float
    exponent: float

    def bytes_after(self, window_ms: float) -> float:
        """Return the bytes dirtied in a window."""
        if window_ms <= 0 or self.scale <= 0:
            return 0.0
        return self.scale * math.pow(window_ms, self.exponent)


IDLE = DirtyCurve(0.0, 1.0)


def fit(points: Sequence[DirtyPoint], lengths_differ: float = _LENGTHS_DIFFER) -> DirtyCurve:
    """Return the curve through the last measured round, bent as those before it say; without any, an idle guest's.

    Args:
        points: the rounds so far, oldest first.
        lengths_differ: rounds whose lengths are more alike than this factor give no exponent.
    """
    if not points or points[-1].dirtied_bytes <= 0 or points[-1].window_ms <= 0:
        return IDLE
    last = points[-1]
    exponent = next((e for p in reversed(points[:-1]) if (e := _exponent(p, last, lengths_differ)) is not None), 1.0)
    return DirtyCurve(last.dirtied_bytes / math.pow(last.window_ms, exponent), exponent)


def _exponent(one: DirtyPoint, other: DirtyPoint, differ: float) -> float | None:
    """Return the exponent that two rounds tell, None when they are too alike."""
    if min(one.dirtied_bytes, other.dirtied_bytes, one.window_ms, other.window_ms) <= 0:
        return None
    longer = one.window_ms / other.window_ms
    if 1 / differ < longer < differ:
        return None
    # differences of logarithms: a quotient of the smallest numbers by large ones is 0, and has none
    dirtied = math.log(one.dirtied_bytes) - math.log(other.dirtied_bytes)
    return min(max(dirtied / (math.log(one.window_ms) - math.log(other.window_ms)), 0.0), 1.0)


def until_switchover(
    rest_bytes: float, elapsed_ms: float, bytes_per_ms: float, threshold_bytes: float, curve: DirtyCurve
) -> Milliseconds | None:
    """Return how long the rounds still go on; None when they do not get under the threshold.

    Plays QEMU's rule: a round is over when its rest is under the threshold; what was dirtied meanwhile is added, and if
    that is under the threshold too, the guest is paused, else the next round begins.

    Args:
        rest_bytes: what the present round still has to send.
        elapsed_ms: how long the present round has lasted.
        bytes_per_ms: guest memory sent per millisecond.
        threshold_bytes: bandwidth x downtime limit.
        curve: what the guest dirties.

    Source: QEMU 10.0, migration_iteration_run in migration/migration.c, ram_save_iterate in migration/ram.c.
    """
    if bytes_per_ms <= 0:
        return None
    step_ms = max(rest_bytes - threshold_bytes, 0.0) / bytes_per_ms
    rest_bytes, total_ms = _sync(rest_bytes, step_ms, step_ms + elapsed_ms, bytes_per_ms, curve), step_ms
    for _ in itertools.repeat(None, _ROUNDS_AT_MOST):
        if rest_bytes <= threshold_bytes:
            return Milliseconds(total_ms)
        least_ms = min(ROUND_QUANTUM_MS, rest_bytes / bytes_per_ms)
        step_ms = max((rest_bytes - threshold_bytes) / bytes_per_ms, least_ms)
        if curve.bytes_after(step_ms) >= HOPELESS * bytes_per_ms * step_ms:
            return None  # shorter rounds dirty relatively more: none that follows is better
        rest_bytes, total_ms = _sync(rest_bytes, step_ms, step_ms, bytes_per_ms, curve), total_ms + step_ms
    return None


def _sync(rest: float, step_ms: float, window_ms: float, bytes_per_ms: float, curve: DirtyCurve) -> float:
    """Return what is left to send after a round's last step: its own rest, and what was dirtied meanwhile."""
    return max(rest - bytes_per_ms * step_ms, 0.0) + curve.bytes_after(window_ms)
