"""Carries a policy's orders out on a running migration, one after the other: QEMU's over the hypervisor's port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from vmferry.conductor.brake import Brake
from vmferry.conductor.plan import ANY_THROTTLE, Asked, throttle_parameters
from vmferry.core.convergence.facts import Throttle
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
from vmferry.core.errors import Broken, Refused
from vmferry.core.migration import RunState
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import GuestProcess

#: How much longer than foreseen the last pages may take before they count as stuck.
_PATIENCE = 3.0


async def _nobody(rule: str) -> None:
    raise Broken(f"Nobody here can begin post-copy ({rule})", side="source")


class Helm:
    """Turns orders into calls.

    Args:
        asked: what was asked for: no order goes beyond it.
        allow_stop: told how long the guest may stand still for the last pages, so that nobody gives them up earlier.
        brake: slows the guest's writes from within.
    """

    def __init__(self, asked: Asked, allow_stop: Callable[[Milliseconds], None], brake: Brake) -> None:
        self.asked = asked
        self._allow_stop = allow_stop
        self._brake = brake
        #: Begins post-copy, by the rule that fired: the hand-over's source, which says who it is.
        self.begin_postcopy: Callable[[str], Awaitable[None]] = _nobody

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
                await process.set_bandwidth(self.asked.capped(bandwidth))
            case SetThrottle() | ThrottleOff():
                await self._brake_by(process, order)
            case Pause():
                await process.stop()
            case Resume():
                await process.cont()
            case StartPostcopy(rule=rule):
                await self.begin_postcopy(rule)

    async def _brake_by(self, process: GuestProcess, order: SetThrottle | ThrottleOff) -> None:
        if order.throttle is not Throttle.FORTY_WRITES:
            await process.set_parameters(throttle_parameters(order))
            return
        if not self.asked.may_hold_writes:
            raise Refused(
                f"{Throttle.FORTY_WRITES} is no order of a policy in this move",
                fix=f"allow it: migrate --throttle {ANY_THROTTLE}",
            )
        if isinstance(order, ThrottleOff):
            await self._brake.end()
        elif await process.query_run_state() is RunState.RUNNING:  # else it writes nothing, and would not answer
            await self._brake.begin(order.level)
