"""How long a brake may hold anything in a guest, and the strongest auto-converge that stays within it.

The guest may be stopped for its last pages in the moment in which a brake holds something of it: both together are what
it sees, so a brake may take half of the downtime limit that there would be without it, and the limit shrinks by that.

Auto-converge: at p percent the throttle lets a vCPU run for a slice of 10 ms and then sleep for slice x p / (100 - p),
in one piece: 90 ms at 90 %, 990 ms at 99 %. No figure of QEMU's shows these stalls; the guest sees each of them. So a
bound on the stall is a bound on the percentage: p <= 100 x stall / (stall + 10 ms).

Source: QEMU 10.0, cpu_throttle_thread and cpu_throttle_timer_tick in migration/cpu-throttle.c.
"""

from __future__ import annotations

from vmferry.core.convergence.facts import limit_within, raised_limit_within
from vmferry.core.units import Milliseconds, Percent

SLICE_MS = 10.0
#: 40-writes holds a write until the next slot; a shorter slot costs the helper more than it gives the guest.
SHORTEST_SLOT_MS = 5.0
NONE, LEAST, MOST = Percent(0), Percent(1), Percent(99)


def most_stall_ms(limit_ms: float) -> Milliseconds:
    """Return how long a brake may hold a vCPU or a write in one piece, for the downtime limit without a brake."""
    return Milliseconds(limit_ms / 2)


def stall_ms(percent: int) -> Milliseconds:
    """Return how long each vCPU sleeps in one piece; 0 for none."""
    percent = min(max(percent, 0), MOST)
    return Milliseconds(SLICE_MS * percent / (100 - percent))


def unattended(gap_ms: Milliseconds, fixed_cost_ms: Milliseconds) -> Percent:
    """Return the strongest brake that QEMU may pull without a word of ours; 0 when even 1 % is too much.

    Its stalls fit into what the downtime limit, also a raised one, keeps back of the goal's gap: the limit need not
    shrink first.
    """
    kept_back_ms = gap_ms - fixed_cost_ms - raised_limit_within(gap_ms, fixed_cost_ms)
    return strongest(min(kept_back_ms, most_stall_ms(limit_within(gap_ms, fixed_cost_ms))))


def strongest(most_stall_ms: float) -> Percent:
    """Return the highest percentage whose stalls are no longer than this; 0 when even 1 % is too much."""
    percent = Percent(MOST)
    while percent >= LEAST and stall_ms(percent) > most_stall_ms:
        percent = Percent(percent - 1)
    return percent
