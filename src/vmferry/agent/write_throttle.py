"""The write throttle of this host's guests: one channel to each helper, for as long as an order is in force."""

from __future__ import annotations

import asyncio

import structlog

from vmferry.conductor.guests import Guests
from vmferry.core.checks.throttle import check_port, helper_silent
from vmferry.core.errors import Blocker, Broken, Refused, VmferryError
from vmferry.core.ids import GuestName, HandoverId
from vmferry.core.migration import RunState
from vmferry.core.progress import Throttled
from vmferry.core.units import Milliseconds
from vmferry.guest_throttle import ThrottleChannel, order_for_link
from vmferry.ports.write_throttle import WriteBudget

_log = structlog.get_logger(__name__)

#: For a question before the move, and for letting go: the port's closing frees the guest as well.
_SHORT_S = 1.0
_QUESTIONS = 3
#: A helper says within a second what it has done; `begin` asks twice.
_ANSWER_S = 2.0
#: For the destination: the guest's first moments there are busy ones; its lease would have run out by then.
_ARRIVED_S = 5.0


class GuestThrottle:
    """Implements ports.write_throttle.WriteThrottle over the helpers in this host's guests.

    Args:
        guests: this host's guests.
        short_s: for a question before the move, and for letting go.
    """

    def __init__(self, guests: Guests, short_s: float = _SHORT_S) -> None:
        self._guests = guests
        self._short_s = short_s
        self._channels: dict[HandoverId, ThrottleChannel] = {}
        self._arrivals: dict[GuestName, asyncio.Task[None]] = {}

    async def blockers(self, guest: GuestName) -> tuple[Blocker, ...]:
        """Return why the guest cannot be slowed; one that stands still writes nothing and is not asked."""
        spec = self._guests.row(guest).guest.spec
        found = check_port(spec)
        process = self._guests.process(guest)
        if found or process is None or await process.query_run_state() is not RunState.RUNNING:
            return found
        await self._leave_arrival(guest)
        for _ in range(_QUESTIONS):
            try:
                async with asyncio.timeout(self._short_s), await self._open(guest) as channel:
                    await channel.status()
            except TimeoutError:  # what is said while a port changes hands may be lost
                continue
            except VmferryError as error:
                return (helper_silent(spec, error.what),)
            return ()
        return (helper_silent(spec, f"no answer within {_QUESTIONS * self._short_s:g} s"),)

    async def begin(self, guest: GuestName, handover: HandoverId, budget: WriteBudget) -> None:
        """Slow a guest's writes until `end`; again for the same hand-over it changes the budget.

        Raises:
            BadInput: the budget makes no sense.
            Refused: another order is in force and outlives its lease.
            TimedOut: the guest does not answer.
            Broken: the guest has no such port, or it closed.
        """
        order = order_for_link(handover, budget.bandwidth, budget.max_gap_ms, writes=budget.writes)
        await self._leave_arrival(guest)
        channel = self._channels.get(handover) or await self._open(guest)
        try:
            figures = await channel.begin(order)
        except BaseException:
            self._channels.pop(handover, None)
            await channel.close()
            raise
        self._channels[handover] = channel
        _log.info("write throttle in force", guest=guest, order=str(order), figures=str(figures))

    def hush(self, handover: HandoverId) -> None:
        """Say nothing more to a guest that was stopped for its last pages."""
        if (channel := self._channels.get(handover)) is not None:
            channel.hush()

    def seen(self, handover: HandoverId) -> Throttled | None:
        """Return what the order has done so far, as the helper said at its last renewal."""
        channel = self._channels.get(handover)
        if channel is None or channel.order is None or channel.last is None:
            return None
        order, last = channel.order, channel.last
        longest = Milliseconds(last.longest_hold_us / 1000)
        return Throttled(order.writes, order.slot_ms, last.processes, last.uncovered, last.holds, longest)

    async def end(self, handover: HandoverId) -> None:
        """Let a guest run free: by its helper's word, or by closing the port when that does not come at once."""
        channel = self._channels.pop(handover, None)
        if channel is None:
            return
        try:
            async with asyncio.timeout(self._short_s):
                figures = await channel.end()
            _log.info("write throttle ended", handover=handover, figures=str(figures))
        except (VmferryError, TimeoutError) as error:  # it moved away, or stands still
            last = str(channel.last)
            _log.info("write throttle ended by closing its port", handover=handover, last=last, why=repr(error))
        finally:
            await channel.close()

    def arrived(self, guest: GuestName, handover: HandoverId) -> None:
        """End what a guest carried over from its source; its lease does it too, a little later."""
        row = self._guests.journal.guest(guest)
        if row is None or not row.guest.spec.throttle:
            return
        task = asyncio.create_task(self._free_arrived(guest, handover), name=f"throttle:{guest}")
        self._arrivals[guest] = task
        task.add_done_callback(lambda ended: self._forget(guest, ended))

    async def close(self) -> None:
        """Close every port, which lets the guests go."""
        for guest in list(self._arrivals):
            await self._leave_arrival(guest)
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    async def _free_arrived(self, guest: GuestName, handover: HandoverId) -> None:
        try:
            async with asyncio.timeout(_ARRIVED_S), await self._open(guest) as channel:
                figures = await channel.end_carried(handover)
        except Refused:
            return  # none was in force any more: the usual case
        except (VmferryError, TimeoutError) as error:
            _log.info("write throttle is left to its lease: nobody answers", guest=guest, why=repr(error))
            return
        _log.info("write throttle ended after the move", guest=guest, figures=str(figures))

    async def _leave_arrival(self, guest: GuestName) -> None:
        """Give the port free: QEMU serves one client at a time."""
        task = self._arrivals.get(guest)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _forget(self, guest: GuestName, task: asyncio.Task[None]) -> None:
        if self._arrivals.get(guest) is task:
            del self._arrivals[guest]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("write throttle not ended after the move", guest=guest, error=repr(error))

    async def _open(self, guest: GuestName) -> ThrottleChannel:
        opener = getattr(self._guests.process(guest), "open_throttle", None)
        if opener is None:
            raise Broken(f"Guest {guest} has no process here whose write throttle's port could be opened")
        return await ThrottleChannel.over(opener, f"of guest {guest}", _ANSWER_S)
