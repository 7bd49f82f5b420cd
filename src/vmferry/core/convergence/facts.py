"""What a policy is told before the start: the goal, the guest and its link; and what it wants of the set-up."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from vmferry.core.errors import BadInput
from vmferry.core.units import GIB, KIB, Bytes, BytesPerSecond, Milliseconds, format_ms

#: Every stop costs this beyond the last pages (device state, commit, load), as long as nobody knows it better: the
#: median guest_gap of 20 idle moves was 34 ms (docs/bench/commit.md).
TYPICAL_FIXED_COST_MS = Milliseconds(50.0)
#: What QEMU may plan with: it goes by the bandwidth of the last 0.1 s, and the guest writes on meanwhile. With a limit
#: of 225 ms QEMU 10.0 took up to 240. And a guest that has stood for long has more to catch up on before it beats: one
#: that writes all the time over a hot spot was silent for 50 to 104 ms more than QEMU's downtime of 221 to 234.
_KEPT = 0.75
#: The same where our measure says that the rest fits.
_KEPT_BY_US = 0.8
MAX_GAP_MS = Milliseconds(300.0)
PAGE_BYTES = Bytes(4 * KIB)
#: QEMU counts its downtime limit in whole milliseconds.
_LEAST_LIMIT_MS = Milliseconds(1.0)


class Throttle(enum.StrEnum):
    """A brake on what the guest writes; beside each is the unit of its level."""

    AUTO_CONVERGE = "auto-converge"  #: percent of each vCPU's time taken away, 1 to 99
    FORTY_WRITES = "40-writes"  #: writes per slot that a process may do; needs a helper in the guest


#: The least and the most that each throttle's level may be.
LEVELS = {Throttle.AUTO_CONVERGE: (1, 99), Throttle.FORTY_WRITES: (1, 4096)}


class AtDeadline(enum.StrEnum):
    """What happens when the deadline has come and the guest still runs at the source."""

    CANCEL = "cancel"  #: it stays there, and the reason is told
    SWITCH = "switch"  #: it is moved whatever the gap


@dataclass(frozen=True, slots=True)
class Goal:
    """What the person asked for."""

    max_gap_ms: Milliseconds = MAX_GAP_MS  #: the longest pause that the guest may see
    deadline_ms: Milliseconds | None = None  #: from the start of the stream to the switchover; None = none
    at_deadline: AtDeadline = AtDeadline.CANCEL
    allow_postcopy: bool = False  #: a host or link lost during post-copy is a lost or paused guest: only when asked for
    throttles: frozenset[Throttle] = field(default_factory=lambda: frozenset({Throttle.AUTO_CONVERGE}))  #: allowed ones


@dataclass(frozen=True, slots=True)
class Facts:
    """The guest, its link, and what both QEMUs can do for this migration."""

    ram_bytes: Bytes
    page_bytes: Bytes = PAGE_BYTES
    link: BytesPerSecond | None = None  #: what the link can carry; None = not known
    fixed_cost_ms: Milliseconds = TYPICAL_FIXED_COST_MS  #: part of every gap, however little is left to send
    postcopy: bool = False  #: whether both sides could do it
    throttles: frozenset[Throttle] = frozenset()  #: which could be used
    compressed: bool = False  #: the stream is: QEMU's brake compares what is dirtied with the bytes that are left of it

    @property
    def ram_gib(self) -> float:
        """Return the guest's memory in GiB, which several managers scale their times with."""
        return self.ram_bytes / GIB


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a policy wants of the set-up; the capability chooser decides what of it this pair of QEMUs can do."""

    max_bandwidth: BytesPerSecond | None = None  #: None: as much as the link carries
    auto_converge: bool = False  #: the capability; without SetThrottle QEMU raises the brake by itself
    postcopy: bool = False
    xbzrle: bool = False
    tls: bool = False
    multifd_channels: int = 0  #: 0: one stream


@dataclass(frozen=True, slots=True)
class Description:
    """A policy for people: `vmferry policy show`."""

    name: str
    what: str  #: one sentence
    rules: tuple[str, ...]
    qemu: str  #: what QEMU's own rule does meanwhile
    source: str
    parameters: tuple[tuple[str, str], ...] = ()
    forces: bool = False  #: whether it may switch over whatever the downtime


def limit_within(gap_ms: Milliseconds, fixed_cost_ms: Milliseconds = TYPICAL_FIXED_COST_MS) -> Milliseconds:
    """Return the downtime limit with which a switchover stays within a gap; 0 or less: none does."""
    return Milliseconds(_KEPT * (gap_ms - fixed_cost_ms))


def raised_limit_within(gap_ms: Milliseconds, fixed_cost_ms: Milliseconds = TYPICAL_FIXED_COST_MS) -> Milliseconds:
    """Return the longest limit for a round whose rest fits by our measure, when QEMU has not seen it."""
    return Milliseconds(_KEPT_BY_US * (gap_ms - fixed_cost_ms))


def gap_with(limit_ms: Milliseconds, fixed_cost_ms: Milliseconds = TYPICAL_FIXED_COST_MS) -> Milliseconds:
    """Return the gap that a downtime limit makes: the inverse of `limit_within`."""
    return Milliseconds(limit_ms / _KEPT + fixed_cost_ms)


def check_goal(goal: Goal, facts: Facts) -> None:
    """Return if the goal can be met at all by a switchover.

    Raises:
        BadInput: the gap is below what every switchover costs (the least possible is told), or a number makes no sense.
    """
    if not math.isfinite(goal.max_gap_ms) or goal.max_gap_ms <= 0:
        raise BadInput(f"a largest gap of {goal.max_gap_ms} ms makes no sense", fix="give a duration above 0")
    if goal.deadline_ms is not None and not 0 < goal.deadline_ms < math.inf:
        raise BadInput(f"a deadline of {goal.deadline_ms} ms makes no sense", fix="give a duration above 0")
    least = math.ceil(gap_with(_LEAST_LIMIT_MS, facts.fixed_cost_ms))
    if goal.max_gap_ms < least:
        raise BadInput(
            f"a largest gap of {format_ms(goal.max_gap_ms)} cannot be met: every switchover of this guest costs"
            f" {format_ms(facts.fixed_cost_ms)} however little is left to send",
            fix=f"allow at least {least} ms",
        )
