"""What a policy sees of a running migration: readings, and rounds that ended. Times come in; nobody reads a clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, Pages, Percent

#: More than any machine has; what is above it is no reading but garbage.
_MOST_BYTES = 1 << 60
NO_THROTTLE = Percent(0)


@dataclass(frozen=True, slots=True)
class Sample:
    """A reading within a round."""

    at_ms: Milliseconds  #: since the stream began
    round: int  #: the round under way, 1 = all of RAM
    sent_bytes: Bytes  #: on the wire so far
    remaining_bytes: Bytes  #: of this round; what is dirtied meanwhile is only known at its end
    bandwidth: BytesPerSecond  #: on the wire, over about the last second
    throttle: Percent = NO_THROTTLE  #: auto-converge's, as it works now


@dataclass(frozen=True, slots=True)
class Round:
    """A round that ended; several in one when they passed between two readings (`covers`)."""

    at_ms: Milliseconds
    round: int  #: the round that ended
    duration_ms: Milliseconds
    sent_pages: Pages  #: of guest memory, empty ones too
    dirtied_pages: Pages  #: newly dirtied meanwhile
    remaining_pages: Pages  #: what the next round has to send
    bandwidth: BytesPerSecond  #: on the wire
    covers: int = 1


Observation = Sample | Round


def is_plausible(seen: object) -> bool:
    """Tell whether this is an observation whose numbers can be true, apart from its time."""
    counts: tuple[object, ...]
    if isinstance(seen, Sample):
        counts = (seen.round, seen.sent_bytes, seen.remaining_bytes, seen.bandwidth, seen.throttle)
    elif isinstance(seen, Round) and _is_time(seen.duration_ms):
        pages = (seen.sent_pages, seen.dirtied_pages, seen.remaining_pages)
        counts = (seen.round, *pages, seen.bandwidth, seen.covers)
        if not _is_count(seen.covers) or seen.covers < 1:
            return False
    else:
        return False
    return all(_is_count(count) for count in counts) and seen.round >= 1


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_BYTES


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
