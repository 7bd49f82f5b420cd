"""Whether pre-copy can get under a downtime, as far as the rounds so far tell.

Pre-copy gets under a downtime T if what the guest dirties in T fits through the link in T (for a guest whose curve
bytes(t) is concave: shorter windows dirty relatively more, so that T itself is the worst window). What is known are
points of that curve: each round's length and what was dirtied in it. The power law through the last two bends into the
unknown short windows; the straight line from the last point to the origin is the least that a concave curve can have
there. So a last round that dirtied as much as it sent proves that there is no end; anything less is evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.core.rounds.curve import HOPELESS, DirtyCurve, DirtyPoint, fit

#: Two rounds are enough to decide by, so even lengths that are much alike have to give an exponent.
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
    curve = fit(points, _LENGTHS_DIFFER)
    fits = curve.bytes_after(window_ms) <= HOPELESS * bytes_per_ms * window_ms
    proven = share >= HOPELESS
    return Outlook(curve, proven, proven or (not fits and share >= NEAR_THE_END), share)
