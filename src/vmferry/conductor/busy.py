"""What holds a guest, and what to do about it."""

from __future__ import annotations

from vmferry.core.ids import GuestName

#: The operation that waits for a guest to power off; an order to end it at once may come in between.
STOPPING = "guest stop"


def way_out(name: GuestName, busy_with: str) -> str:
    """Return what to do about an operation that holds a guest."""
    if busy_with == STOPPING:
        return f"wait for it, or end the guest at once: `vmferry guest stop {name} --force`"
    if busy_with.startswith("hand-over"):
        return f"wait for it (`vmferry watch {name}`), or cancel it: `vmferry cancel {name}`"
    if busy_with.startswith("save"):
        return f"wait for it, or cancel it: `vmferry cancel {name}`"
    return "wait for it"
