"""Carries a policy's orders out on a running migration, one after the other, over the hypervisor's port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from vmferry.conductor.plan import Asked, throttle_parameters
from vmferry.core.convergence.orders import (
    MAX_DOWNTIME_MS,
    Order,
    Pause,
    Resume,
    SetBandwidth,
    SetDowntimeLimit,
    SetThrottle,
    StartPostcopy,
    SwitchNow,
    ThrottleOff,
)
from vmferry.core.errors import Refused
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import GuestProcess

#: How much longer than foreseen the last pages may take before they count as stuck.
_PATIENCE = 3.0


class Helm:
    """Turns orders into calls.

    Args:
        asked: what was asked for: no order goes beyond it.
        allow_stop: told how long the guest may stand still for the last pages, so that nobody gives them up earlier.
    """

    def __init__(self, asked: Asked, allow_stop: Callable[[Milliseconds], None]) -> None:
        self._asked = asked
        self._allow_stop = allow_stop
        #: The seam to post-copy: begins it, by the rule that fired; None: this agent cannot.
        self.begin_postcopy: Callable[[str], Awaitable[None]] | None = None

    async def carry_out(self, process: GuestProcess, order: Order, rest_ms: Milliseconds | None) -> None:
        """Carry one order out; `Cancel` is none of QEMU's and does nothing here.

        Args:
            process: the guest's QEMU.
            order: what is ordered, within the bounds of what was asked for.
            rest_ms: what the rest would take if the guest were stopped now; None: not known.

        Raises:
            VmferryError: QEMU did not do it, or it cannot be done.
        """
        match order:
            case SetDowntimeLimit(limit_ms=limit_ms):
                self._allow_stop(Milliseconds(_PATIENCE * limit_ms))
                await process.set_downtime_limit(limit_ms)
            case SwitchNow():
                self._allow_stop(Milliseconds(_PATIENCE * (MAX_DOWNTIME_MS if rest_ms is None else rest_ms)))
                await process.set_downtime_limit(MAX_DOWNTIME_MS)
            case SetBandwidth(bandwidth=bandwidth):
                await process.set_bandwidth(self._asked.capped(bandwidth))
            case SetThrottle() | ThrottleOff():
                await process.set_parameters(throttle_parameters(order))
            case Pause():
                await process.stop()
            case Resume():
                await process.cont()
            case StartPostcopy(rule=rule):
                if self.begin_postcopy is None:
                    raise Refused("this agent cannot start post-copy yet", fix="take a policy that does not need it")
                await self.begin_postcopy(rule)
