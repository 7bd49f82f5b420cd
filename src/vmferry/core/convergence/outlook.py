"""Whether pre-copy can get under a downtime, as far as the rounds so far tell.

Pre-copy gets under a downtime T if what the guest dirties in T fits through the link in T (for a guest whose curve
bytes(t) is concave: shorter windows dirty relatively more, so that T itself is the worst window). What is known are
points of that curve: each round's length and what was dirtied in it. The power law through the last two bends into the
unknown short windows; the straight line from the last point to the origin is the least that a concave curve can have
there. So a last round that dirtied as much as it sent proves that there is no end; anything less is evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.core.rounds.curve import HOPELESS, DirtyCurve, DirtyPoint

#: Lengths more alike than this give no exponent.
_LENGTHS_DIFFER = 1.1
#: A round that dirtied less than this share of what it sent brings the end near, whatever the curve says.
NEAR_THE_END = 0.6


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the rounds so far say about one downtime."""

    curve: DirtyCurve
    proven: bool  #: no end, whatever the guest does between the points
    doubtful: bool  #: no end, if the power law holds
    share: float  #: dirtied / sent in the last round


def outlook(points: Sequence[DirtyPoint], share: float, window_ms: float, bytes_per_ms: float) -> Outlook:
    """Return the outlook for a downtime.

    Args:
        points: the rounds so far, oldest first.
        share: what the last round dirtied over what it sent.
        window_ms: the downtime to get under.
        bytes_per_ms: guest memory sent per millisecond.
    """
    curve = bent(points)
    fits = curve.bytes_after(window_ms) <= HOPELESS * bytes_per_ms * window_ms
    proven = share >= HOPELESS
    return Outlook(curve, proven, proven or (not fits and share >= NEAR_THE_END), share)


def bent(points: Sequence[DirtyPoint]) -> DirtyCurve:
    """Return the power law through the last point and the last one before it that is of another length."""
    if not points or points[-1].dirtied_bytes <= 0 or points[-1].window_ms <= 0:
        return DirtyCurve(0.0, 1.0)
    last = points[-1]
    exponent = next((e for p in reversed(points[:-1]) if (e := _exponent(p, last)) is not None), 1.0)
    return DirtyCurve(last.dirtied_bytes / math.pow(last.window_ms, exponent), exponent)


def _exponent(one: DirtyPoint, other: DirtyPoint) -> float | None:
    if min(one.dirtied_bytes, other.dirtied_bytes, one.window_ms, other.window_ms) <= 0:
        return None
    longer = one.window_ms / other.window_ms
    if 1 / _LENGTHS_DIFFER < longer < _LENGTHS_DIFFER:
        return None
    return min(max(math.log(one.dirtied_bytes / other.dirtied_bytes) / math.log(longer), 0.0), 1.0)
