"""Whether the network knows where a guest is now: seen at the source's own bridge, and announced again if it does not.

QEMU announces a guest when it runs at the destination, which may be lost. The source's bridge is the last to send
frames to the wrong place, and the only one that we can look into: it has heard of the new place when the address
is behind another port than a tap of ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from vmferry.core.errors import VmferryError
from vmferry.core.guest import FrozenGuest, NetworkKind
from vmferry.measure.learned import learned_port
from vmferry.qemu.tap import NAME_PATTERN

_log = structlog.get_logger(__name__)

_TAP = NAME_PATTERN.decode("ascii").removesuffix("%d")
_LOOK_S = 0.01
#: After so many seconds without a sign the destination is asked to announce the guest again; not after the last.
PATIENCE_S = (0.3, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a guest's addresses at a bridge."""

    seen_ns: int | None  #: CLOCK_MONOTONIC when all of them were seen behind another port; None: they were not
    announced: int  #: so many times more than QEMU does by itself


async def wait_moved(
    guest: FrozenGuest,
    announce: Callable[[], Awaitable[None]],
    *,
    learned: Callable[[str, str], str | None] = learned_port,
) -> Moved | None:
    """Wait until this host's bridges know that a guest has left; None: it is on none of them.

    Args:
        guest: that runs at the destination.
        announce: has the destination announce it again.
        learned: behind which port a bridge believes an address to be.
    """
    places = [
        (nic.bridge, mac)
        for nic, mac in zip(guest.spec.nics, guest.macs, strict=True)
        if nic.network is NetworkKind.BRIDGE and nic.bridge is not None
    ]
    if not places:
        return None
    for announced, patience in enumerate(PATIENCE_S):
        if await _seen_within(patience, lambda: all(_has_left(learned, *place) for place in places)):
            return Moved(time.monotonic_ns(), announced)
        if announced + 1 < len(PATIENCE_S):
            _log.info("network has not heard of the guest's new place; announced again", guest=guest.spec.name)
            try:
                await announce()
            except VmferryError as error:
                _log.warning("guest cannot be announced again", guest=guest.spec.name, error=str(error))
    return Moved(None, len(PATIENCE_S) - 1)


def _has_left(learned: Callable[[str, str], str | None], bridge: str, mac: str) -> bool:
    try:
        port = learned(bridge, mac)
    except OSError:
        return False
    return port is not None and not port.startswith(_TAP)


async def _seen_within(limit_s: float, true: Callable[[], bool]) -> bool:
    end = asyncio.get_running_loop().time() + limit_s
    while not true():
        if asyncio.get_running_loop().time() > end:
            return False
        await asyncio.sleep(_LOOK_S)
    return True
