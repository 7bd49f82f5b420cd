"""What holds a guest, and what to do about it."""

from __future__ import annotations

from vmferry.core.ids import GuestName

#: Operations that may wait for the guest's own system: an order to end it at once may come in between.
STOPPING, ATTACHING, DETACHING = "guest stop", "guest attach", "guest detach"
WAIT_FOR_GUEST = frozenset({STOPPING, ATTACHING, DETACHING})


class Operation:
    """What holds a guest; given back at its end, unless somebody goes on with it."""

    is_kept = False

    def keep(self) -> None:
        """Leave it to somebody else to give it back (`Guests.unclaim`)."""
        self.is_kept = True


def way_out(name: GuestName, busy_with: str) -> str:
    """Return what to do about an operation that holds a guest."""
    if busy_with in WAIT_FOR_GUEST:
        return f"wait for it, or end the guest at once: `vmferry guest stop {name} --force`"
    if busy_with.startswith("hand-over"):
        return f"wait for it (`vmferry watch {name}`), or cancel it: `vmferry cancel {name}`"
    if busy_with.startswith("save"):
        return f"wait for it, or cancel it: `vmferry cancel {name}`"
    return "wait for it"
