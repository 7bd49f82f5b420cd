"""What guests are to have of this host by their definition: found, kept for them, and plugged in.

A guest that has no function yet runs all the same, on its standby; it is told as degraded, and tried again.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Collection, Mapping, Sequence

import structlog

from vmferry.conductor.carrying import Carrying
from vmferry.core.device_claims import DeviceClaim, claim_wanted
from vmferry.core.errors import Blocked, Blocker, NotFound, Refused, VmferryError
from vmferry.core.functions import NOTHING_SAID, QUIET
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.states import FACTS, AnyState, DestinationState, Side, SourceState
from vmferry.core.ids import GuestName, HostName
from vmferry.core.migratable import MigratableDevice, kind_as, kind_of
from vmferry.core.pci import PciAddress
from vmferry.core.wanted_devices import Pools, WantedDevice, choose_devices, missing, wanted_devices
from vmferry.ports.host_devices import HostDevices
from vmferry.ports.hypervisor import GuestProcess
from vmferry.ports.store import GuestRow, HandoverRow, Journal

_log = structlog.get_logger(__name__)


class Holding(enum.Enum):
    """What becomes of the devices that a guest is to have."""

    GIVEN = "given"  #: it runs here: what it does not have is plugged in
    KEPT = "kept"  #: it comes, or leaves: what it does not have is kept for it, and plugged into nothing
    FREED = "freed"  #: it has no process here: the host has them again


def holding(
    row: GuestRow | None, process: GuestProcess | None, handover: HandoverRow | None, here: HostName
) -> Holding:
    """Return what becomes of a guest's devices now.

    Args:
        row: of the guest, in this host's journal.
        process: its own, while it lives.
        handover: of the guest, if one is not finished.
        here: this host.
    """
    moves = handover is not None and not FACTS[_state(handover)].final
    if moves and handover is not None and handover.side == str(Side.DESTINATION):
        return Holding.KEPT
    if process is None or row is None:
        return Holding.FREED
    return Holding.KEPT if moves or row.token.owner != here else Holding.GIVEN


def _state(row: HandoverRow) -> AnyState:
    return SourceState(row.state) if row.side == str(Side.SOURCE) else DestinationState(row.state)


class Wanting:
    """Has guests get what they are to have.

    Args:
        here: this host.
        journal: with the claims.
        host: its devices.
        networks: the cards of each physical network.
        carrying: watches whether guests use what they get.
    """

    def __init__(
        self,
        here: HostName,
        journal: Journal,
        host: HostDevices,
        networks: Mapping[str, Sequence[PciAddress]],
        carrying: Carrying,
    ) -> None:
        self._here = here
        self._journal = journal
        self._host = host
        self._networks = networks
        self._carrying = carrying

    async def why_not(self, guest: FrozenGuest) -> tuple[Blocker, ...]:
        """Return why a guest that may come could not have what it is to have; nothing is touched."""
        mine = {claim.wanted for claim in self._of(guest.spec.name)}  # it was here, and they are not given back yet
        wanted = [one for one in wanted_devices(guest) if one.id not in mine]
        return choose_devices(wanted, await self._pools())[1] if wanted else ()

    async def offers(self, guest: FrozenGuest) -> tuple[MigratableDevice, ...]:
        """Return which devices a guest would have that could have another one's state; nothing is touched."""
        wanted = wanted_devices(guest)
        if not wanted:
            return ()
        pools = await self._pools()
        kept = {claim.wanted: claim.address for claim in self._of(guest.spec.name)}
        chosen, _ = choose_devices([one for one in wanted if one.id not in kept], pools)
        would = [(one.id, device) for one, device in chosen]
        would += [(one, pools.found.devices[at]) for one, at in kept.items() if one and at in pools.found.devices]
        return tuple(kind for one, device in would if (kind := kind_as(one, device)) is not None)

    async def plug_before_load(self, row: GuestRow, process: GuestProcess, sent: Sequence[MigratableDevice]) -> None:
        """Plug in what comes with its state; their cards are told nothing before the guest runs here.

        Raises:
            Refused: what is kept for the guest is not of the same kind.
            Broken: the card or QEMU does not do it, in its words.
        """
        found = (await self._host.look()).devices
        claims = {claim.wanted: claim for claim in self._of(row.guest.spec.name)}
        for one in sent:
            claim = claims.get(one.wanted)
            has = None if claim is None else kind_of(claim, found.get(claim.address))
            if claim is None or has != one:
                device = None if claim is None else found.get(claim.address)
                seen = "none" if device is None else f"{device.address}, a {device.ids} with {device.driver or 'none'}"
                raise Refused(
                    f"{one.wanted} comes with the state of a {one.ids} with driver {one.driver}, and {self._here} has"
                    f" {seen} for it",
                    side="destination",
                    fix=f"give {self._here} such a device with that driver, or check again: it may be let go then",
                    retry=True,
                )
            await process.plugs.plug(claim)

    async def reserve(self, row: GuestRow) -> None:
        """Keep devices for a guest that comes, and take them from the host's drivers: all that it wants, or none.

        What was kept before a failure is given back when the arrival is over.

        Raises:
            Blocked: why some cannot be had.
            Broken: the journal or the kernel does not do it, in its words.
        """
        name = row.guest.spec.name
        mine = [claim for claim in self._of(name) if claim.wanted is not None]
        has = {claim.wanted for claim in mine}
        if new := [one for one in wanted_devices(row.guest) if one.id not in has]:
            mine += await self._claim(name, new)
        for claim in mine:
            await self._host.lend(claim, row.uid, frozenset({claim.address}))

    async def give(self, row: GuestRow, process: GuestProcess, plugged: Collection[str]) -> dict[str, str]:
        """Plug in what a guest does not have yet, and hold what it has; return what it does not get, and why.

        No card delivers to a function that the guest does not have in the end.
        """
        name = row.guest.spec.name
        failed: dict[str, str] = {}
        wanted = missing(wanted_devices(row.guest), self._of(name), plugged)
        await announce(process, wanted)
        for one in wanted:
            self._carrying.end(name, one.id)
            try:
                await self._give(row, process, one)
            except VmferryError as error:
                failed[one.id] = _why(error)
                _log.warning("guest has not all its devices", guest=name, device=str(one), error=str(error))
        if failed:
            with contextlib.suppress(VmferryError):  # tried again with the next attempt
                await self.quiet(self._of(name), await process.plugs.plugged())
        for one in wanted_devices(row.guest):
            if one not in wanted:
                self._carrying.begin(name, one)  # an earlier agent gave it
                if (why := await self._uphold(name, one)) is not None:
                    failed[one.id] = why
        return failed

    async def _uphold(self, name: GuestName, one: WantedDevice) -> str | None:
        """Tell a card again what others changed of a function that the guest has; return why it cannot be told."""
        claim = next((claim for claim in self._of(name) if claim.wanted == one.id), None)
        if claim is None or not one.settings.given():
            return None
        try:
            changed = (await self._host.tell_again(claim, one.settings)).given()
        except VmferryError as error:
            return f"{one} ({claim.address}) may get nothing: {_why(error)}"
        if changed:
            _log.warning("a guest's function was set otherwise by others", guest=name, device=str(one), seen=changed)
        return None

    async def _give(self, row: GuestRow, process: GuestProcess, one: WantedDevice) -> None:
        name = row.guest.spec.name
        claim = next((claim for claim in self._of(name) if claim.wanted == one.id), None)
        if claim is None:
            (claim,) = await self._claim(name, [one])
        try:
            await self._host.lend(claim, row.uid, frozenset({claim.address}))
            if one.settings.given():
                await self._host.tell(claim, one.settings)
        except NotFound:  # somebody made the card's functions anew, or took it out
            self._journal.release_device(claim.address)
            raise
        except Refused:  # it is not what it was when it was kept, or its card cannot do it: another one the next time
            await self._host.give_back(claim)
            self._journal.release_device(claim.address)
            raise
        await process.plugs.plug(claim)
        self._carrying.begin(name, one)
        _log.info("guest has its device", guest=name, device=str(one), address=str(claim.address))

    async def quiet(self, claims: Sequence[DeviceClaim], plugged: Collection[str]) -> None:
        """Have cards deliver nothing to functions that are kept for a guest and that it does not have."""
        for claim in claims:
            if claim.before.given() and claim.id not in plugged:
                await self._host.tell(claim, QUIET)

    async def _claim(self, name: GuestName, wanted: Sequence[WantedDevice]) -> tuple[DeviceClaim, ...]:
        chosen, blockers = choose_devices(wanted, await self._pools())
        if blockers:
            raise Blocked(f"Guest {name} cannot have all its devices on {self._here}", blockers=blockers)
        claims = []
        for one, device in chosen:
            told = NOTHING_SAID if one.network is None else await self._host.read(device.address)
            claims.append(claim_wanted(name, one.id, one.port, device, told.of_a_guest))
        self._journal.claim_devices(claims)
        return tuple(claims)

    async def _pools(self) -> Pools:
        return Pools(self._here, await self._host.look(), self._networks, self._journal.device_claims())

    def _of(self, name: GuestName) -> tuple[DeviceClaim, ...]:
        return tuple(claim for claim in self._journal.device_claims() if claim.guest == name)


async def announce(process: GuestProcess, wanted: Sequence[WantedDevice]) -> None:
    """Have the network send to the standbys what comes for cards without their functions."""
    if cards := [one.id for one in wanted if one.has_standby]:
        with contextlib.suppress(VmferryError):  # whatever the guest says next does the same
            await process.announce(cards)


def _why(error: VmferryError) -> str:
    if isinstance(error, Blocked) and error.blockers:
        return "; ".join(blocker.what for blocker in error.blockers)
    return error.what
