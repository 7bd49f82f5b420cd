"""How long QEMU's auto-converge lets a vCPU sleep, and the strongest brake whose stalls stay within a bound.

At p percent the throttle lets a vCPU run for a slice of 10 ms and then sleep for slice x p / (100 - p), in one piece:
90 ms at 90 %, 990 ms at 99 %. No figure of QEMU's shows these stalls; the guest sees each of them. So a bound on the
stall is a bound on the percentage: p <= 100 x stall / (stall + 10 ms).

Source: QEMU 10.0, cpu_throttle_thread and cpu_throttle_timer_tick in migration/cpu-throttle.c.
"""

from __future__ import annotations

from vmferry.core.units import Milliseconds, Percent

SLICE_MS = 10.0
LEAST, MOST = Percent(1), Percent(99)


def stall_ms(percent: int) -> Milliseconds:
    """Return how long each vCPU sleeps in one piece; 0 for none."""
    percent = min(max(percent, 0), MOST)
    return Milliseconds(SLICE_MS * percent / (100 - percent))


def strongest(most_stall_ms: float) -> Percent:
    """Return the highest percentage whose stalls are no longer than this; 0 when even 1 % is too much."""
    percent = Percent(MOST)
    while percent >= LEAST and stall_ms(percent) > most_stall_ms:
        percent = Percent(percent - 1)
    return percent
