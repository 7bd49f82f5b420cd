"""The beats of this host's guests: one receiver each, open as long as the guest is here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from vmferry.core.ids import GuestName
from vmferry.measure.receiver import BeatReceiver
from vmferry.ports.peer import Seen

#: What one answer to another host carries; `ports.peer.Seen` names it too.
_MOST_STAMPS = 200_000


class BeatBook:
    """Implements conductor.guests.BeatBook."""

    def __init__(self) -> None:
        self._receivers: dict[GuestName, BeatReceiver] = {}
        self._stack = contextlib.AsyncExitStack()

    async def open(self, guest: GuestName, port: int | None) -> int:
        """Listen for a guest's beats; a port that was taken meanwhile is given up for a new one.

        A guest that runs already keeps sending to the old port: its beats are then not measured, which a report says.
        """
        known = self._receivers.get(guest)
        if known is not None:
            return known.port
        try:
            receiver = BeatReceiver(port or 0)
        except OSError:
            receiver = BeatReceiver()
        self._receivers[guest] = await self._stack.enter_async_context(receiver)
        return receiver.port

    async def close(self, guest: GuestName) -> None:
        """Stop listening."""
        receiver = self._receivers.pop(guest, None)
        if receiver is not None:
            await receiver.close()

    def stamps(self, guest: GuestName, start_ns: int, end_ns: int) -> Sequence[int]:
        """Return the stamps (CLOCK_MONOTONIC) of a window, after the latest one before it; empty without beats here."""
        receiver = self._receivers.get(guest)
        return () if receiver is None else tuple(receiver.stamps(start_ns, end_ns))

    def lost(self, guest: GuestName) -> int:
        """Return how many beats this host could not take so far: while this grows, a gap may be ours."""
        receiver = self._receivers.get(guest)
        return 0 if receiver is None else receiver.lost_by_kernel

    def seen(self, guest: GuestName, start_ns: int, end_ns: int) -> Seen:
        """Return the beats of a guest that arrived here, as another host asks for them."""
        stamps = self.stamps(guest, start_ns, end_ns)
        complete = len(stamps) <= _MOST_STAMPS and not self.lost(guest)
        return Seen(stamps[:_MOST_STAMPS], complete=complete)

    async def close_all(self) -> None:
        """Stop listening for everybody."""
        await self._stack.aclose()
        self._receivers.clear()
