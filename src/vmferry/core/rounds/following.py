"""How fast post-copy's pages follow a guest that has just started at the destination.

A guest touches a hundred or so pages before it can answer anybody: its kernel's, its programs', the buffers that a NIC
fills. It asks for one after the other, and each answer queues on the link behind what QEMU sends by itself. So QEMU
sends next to nothing by itself at first, and then more in steps, each as long as the link takes for a few MiB: a step
on a slow link is longer, as the queue on it is. Measured in docs/design/postcopy.md, "The first moments".
"""

from __future__ import annotations

from vmferry.core.units import KIB, MIB, Bytes, BytesPerSecond, Milliseconds

#: As slow as this until the guest has what it needs to run at all.
QUIET = BytesPerSecond(400 * KIB)
_QUIET_MS = Milliseconds(250.0)
_STEP_BYTES = Bytes(4 * MIB)
#: One reading of a link may be far too low.
_LONGEST_STEP_MS = Milliseconds(500.0)
#: Of the link, in each step.
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


def may_follow(since_ms: Milliseconds, link: BytesPerSecond) -> BytesPerSecond | None:
    """Return how fast QEMU may send pages that nobody waits for; None: as fast as it can.

    Args:
        since_ms: for how long the guest has been running at the destination.
        link: what the link was seen to carry; 0: not known, and there are no steps.
    """
    if since_ms < _QUIET_MS:
        return QUIET
    if link <= 0:
        return None
    step_ms = min(1000 * _STEP_BYTES / link, _LONGEST_STEP_MS)
    step = int((since_ms - _QUIET_MS) / step_ms)
    return BytesPerSecond(max(QUIET, int(link * _SHARES[step]))) if step < len(_SHARES) else None
