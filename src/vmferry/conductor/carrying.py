"""Whether the traffic of guests goes through the functions that they were given: seen at their bridges, not assumed.

A guest takes seconds to use a function (its driver, the card's link). Until then its bridge sends to the standby what
comes for it, and afterwards too, until it hears it from elsewhere: it is made to forget the standby meanwhile.
"""

from __future__ import annotations

import asyncio

import structlog

from vmferry.core.ids import GuestName
from vmferry.core.wanted_devices import WantedDevice
from vmferry.ports.host_devices import Carrier, Standbys

#: A card's link is there after some 3 s, and ten times later on an emulated host.
PATIENCE_S = 60.0
_LOOK_EVERY_S, _LOOK_LATER_S = 0.25, 5.0
_log = structlog.get_logger(__name__)


class Carrying:
    """Watches what carries the traffic of guests.

    Args:
        standbys: this host's bridges.
    """

    def __init__(self, standbys: Standbys) -> None:
        self._standbys = standbys
        self._given: dict[tuple[GuestName, str], None] = {}  #: in the order in which they were given
        self._seen: dict[tuple[GuestName, str], Carrier] = {}
        self._late: set[tuple[GuestName, str]] = set()
        self._watching: dict[tuple[GuestName, str], asyncio.Task[None]] = {}

    def of(self, guest: GuestName) -> dict[str, Carrier | None]:
        """Return, of each card that has its function, what carries its traffic; None: it has not been heard since."""
        return {device: self._seen.get((owner, device)) for owner, device in self._given if owner == guest}

    def why_late(self, guest: GuestName, wanted: WantedDevice) -> str | None:
        """Return why a guest does not use a function that it has; None: it does, or has said nothing yet."""
        if (guest, wanted.id) not in self._late:
            return None
        return (
            f"it has {wanted}, and sends through its standby still, after {PATIENCE_S:.0f} s: its system has no driver"
            " for the function, no net_failover, or the card no link"
        )

    def begin(self, guest: GuestName, wanted: WantedDevice) -> None:
        """Watch a card that has its function; nothing happens when it is watched already."""
        if (guest, wanted.id) in self._given:
            return
        if wanted.network is None:
            return
        self._given[guest, wanted.id] = None
        if wanted.bridge is not None and wanted.mac is not None:
            watch = self._watch((guest, wanted.id), wanted.bridge, wanted.mac)
            self._watching[guest, wanted.id] = asyncio.create_task(watch, name=f"carrying:{guest}:{wanted.id}")

    def end(self, guest: GuestName, device: str) -> None:
        """Watch a card no more: it has no function."""
        card = (guest, device)
        self._given.pop(card, None)
        if (task := self._watching.pop(card, None)) is not None:
            task.cancel()
        self._seen.pop(card, None)
        self._late.discard(card)

    async def close(self) -> None:
        """Watch nothing more."""
        tasks = [*self._watching.values()]
        for guest, device in [*self._given]:
            self.end(guest, device)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, card: tuple[GuestName, str], bridge: str, mac: str) -> None:
        clock = asyncio.get_running_loop().time
        began, last, since = clock(), clock(), None  #: since when it is heard from its standby alone, again and again
        while True:
            heard = await asyncio.to_thread(self._standbys.heard, bridge, mac)
            if heard is Carrier.FUNCTION:
                since = None
                self._is_used(card)
            elif heard is Carrier.STANDBY:
                since = clock() if since is None or clock() - last > PATIENCE_S else since
                last = clock()
                await self._is_not_used(card, bridge, mac, since)
            rests = self._seen.get(card) is Carrier.FUNCTION or clock() - began > PATIENCE_S
            await asyncio.sleep(_LOOK_LATER_S if rests else _LOOK_EVERY_S)

    def _is_used(self, card: tuple[GuestName, str]) -> None:
        if self._seen.get(card) is not Carrier.FUNCTION:
            _log.info("guest uses its function", guest=card[0], device=card[1])
        self._seen[card] = Carrier.FUNCTION
        self._late.discard(card)

    async def _is_not_used(self, card: tuple[GuestName, str], bridge: str, mac: str, since: float) -> None:
        self._seen[card] = Carrier.STANDBY
        await asyncio.to_thread(self._standbys.forget, bridge, mac)
        is_late = asyncio.get_running_loop().time() - since > PATIENCE_S
        if is_late and card not in self._late:
            self._late.add(card)
            _log.warning("guest does not use its function", guest=card[0], device=card[1])
