"""Devices of this host that its guests have: given to them while they run, and back.

Some they are given by hand, others they are to have by their definition, wherever they run (wanting.py). That a
guest's devices are its own, and the host's again when it has them no more, is a state that is brought about whenever
something ends: a process, an order, a hand-over, an agent. The journal has each device from before it is touched until
it is the host's again, so that no death in between loses one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

import structlog

from vmferry.conductor.busy import ATTACHING, DETACHING
from vmferry.conductor.carrying import Carrying
from vmferry.conductor.guests import Guests
from vmferry.conductor.wanting import Holding, Wanting, announce, holding
from vmferry.core.device_claims import DeviceClaim, check_unclaimed, find_devices, given_back, plan_claims
from vmferry.core.errors import BadInput, Blocker, Broken, NotFound, Refused, TimedOut, VmferryError
from vmferry.core.guest import FrozenGuest, GuestSpec
from vmferry.core.ids import GuestName
from vmferry.core.migratable import MigratableDevice, is_blocked, kind_of
from vmferry.core.migration import RunState
from vmferry.core.pci import PciAddress
from vmferry.core.wanted_devices import wanted_devices
from vmferry.ports.host_devices import Carrier, HostDevices, Standbys
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, GuestProcess
from vmferry.ports.store import GuestRow, HandoverRow

#: Within which a guest that leaves lets its devices go: ACPI takes 0.3 to 1.5 s, native hot-plug some 6.5 s.
LET_GO_WITHIN_S = 30.0
#: Pauses of what is tried until it is done.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
#: How often it is seen whether a guest's functions are still what it was given: others may change their cards.
_LOOK_AGAIN_S = 10.0
_log = structlog.get_logger(__name__)


class GuestDevices:
    """Gives devices to guests and takes them back.

    Args:
        guests: this host's guests.
        host: this host's devices.
        networks: the cards of each physical network.
        standbys: this host's bridges.
    """

    def __init__(
        self,
        guests: Guests,
        host: HostDevices,
        networks: Mapping[str, Sequence[PciAddress]],
        standbys: Standbys,
    ) -> None:
        self._guests = guests
        self._host = host
        self._networks = networks
        self._carrying = Carrying(standbys)
        self._wanting = Wanting(guests.settings.name, guests.journal, host, networks, self._carrying)
        self._missing: dict[GuestName, dict[str, str]] = {}  #: what guests are to have and have not, and why
        self._locks: defaultdict[GuestName, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._settling: dict[GuestName, asyncio.Task[None]] = {}
        self._unwanted: set[str] = set()  #: ids of devices of attempts that failed: who has one is asked to let it go
        guests.on_changed = self.settle_later

    def of(self, name: GuestName) -> tuple[DeviceClaim, ...]:
        """Return the devices that are kept for a guest, in the order of their addresses."""
        return tuple(claim for claim in self._guests.journal.device_claims() if claim.guest == name)

    async def attach(self, name: GuestName, addresses: Sequence[PciAddress]) -> None:
        """Give a running guest devices of this host, all or none: those of one IOMMU group go together.

        On failure the host has them again. One that the guest got before the next one failed comes back as soon as the
        guest lets it go.

        Raises:
            NotFound: there is no such guest, or no such device.
            BadInput: the guest does not run.
            Blocked: why the devices cannot be given to a guest.
            Refused: one is kept for a guest already, or the guest has no room for them.
            GuestBusy: something else holds the guest.
            Broken: the kernel or QEMU does not do it, in its words.
        """
        row = self._guests.row(name)
        async with self._guests.operation(name, ATTACHING), self._locks[name]:
            process = self._guests.alive(name)
            await self._settle(name)
            waiting = await self._waiting(name, process, addresses)
            rest = [address for address in addresses if address not in {claim.address for claim in waiting}]
            check_unclaimed(rest, self._guests.journal.device_claims())
            new = await self._claim(row.guest, rest) if rest or not addresses else ()
            claims = (*waiting, *new)
            try:
                for claim in new:
                    await self._host.lend(claim, row.uid, frozenset(rest))
                for claim in claims:
                    await process.plugs.plug(claim)
            except BaseException:
                self._unwanted |= {claim.id for claim in claims}
                with contextlib.suppress(VmferryError):  # tried again by what comes then
                    await self._settle(name)
                self.settle_later(name)
                raise
        _log.info("devices attached", guest=name, devices=[str(claim.address) for claim in claims])

    async def _waiting(
        self, name: GuestName, process: GuestProcess, addresses: Sequence[PciAddress]
    ) -> tuple[DeviceClaim, ...]:
        """Return those that the guest has let go and that wait for others of their group: it can have them again."""
        plugged = await process.plugs.plugged()
        given = [claim for claim in self.of(name) if claim.wanted is None]
        return tuple(claim for claim in given if claim.address in addresses and claim.id not in plugged)

    async def _claim(self, guest: FrozenGuest, addresses: Sequence[PciAddress]) -> tuple[DeviceClaim, ...]:
        devices = find_devices(await self._host.look(), addresses)
        ports = [one.port for one in wanted_devices(guest)]
        claims = plan_claims(guest, devices, self._guests.journal.device_claims(), ports)
        self._guests.journal.claim_devices(claims)
        return claims

    async def detach(self, name: GuestName, address: PciAddress, within_s: float) -> None:
        """Have a guest let a device go, and give it back to the host's own driver.

        A device whose IOMMU group the guest has others of comes back with the last of them.

        Raises:
            NotFound: there is no such guest, or it has no such device.
            BadInput: the guest stands still: its system cannot let go.
            Refused: its system does not, or it is to have it by its definition; it has the device still.
            TimedOut: likewise, without a word. If it lets go later, the host gets the device then.
            GuestBusy: something else holds the guest.
            Broken: the kernel or QEMU does not do it, in its words.
        """
        self._guests.row(name)
        async with self._guests.operation(name, DETACHING), self._locks[name]:
            claim = self._find(name, address)
            if claim.wanted is not None:
                raise Refused(
                    f"PCI device {address} is {claim.wanted} of guest {name}, which is to have it wherever it runs",
                    owner=self._guests.settings.name,
                    fix="stop the guest, or move it: its host gets the device then",
                )
            process = self._guests.process(name)
            if process is not None and claim.id in await process.plugs.plugged():
                await self._unplug(process, claim, within_s)
            await self._settle(name)
        _log.info("device detached", guest=name, device=str(address))

    def _find(self, name: GuestName, address: PciAddress) -> DeviceClaim:
        claims = self.of(name)
        for claim in claims:
            if claim.address == address:
                return claim
        has = ", ".join(str(claim.address) for claim in claims) or "none"
        raise NotFound(f"Guest {name} has no device {address} of its host; it has {has}")

    async def _unplug(self, process: GuestProcess, claim: DeviceClaim, within_s: float) -> None:
        owner = self._guests.settings.name
        events = process.events()
        state = await process.query_run_state()
        if state is not RunState.RUNNING:
            raise BadInput(
                f"Guest {claim.guest} stands still ({state}), and its system must let {claim.address} go",
                owner=owner,
                fix=f"`vmferry guest resume {claim.guest}`, or stop the guest: its host gets the device then",
            )
        await process.plugs.unplug(claim.id)
        try:
            async with asyncio.timeout(within_s):
                kind = await _answer(events, claim.id)
        except TimeoutError:
            raise TimedOut(
                f"Guest {claim.guest} has not let {claim.address} go in {within_s:g} s, and has it still",
                owner=owner,
                fix="its system needs drivers for ACPI hot-plug (acpiphp), and may still do it: then the host gets the"
                " device back by itself",
            ) from None
        if kind is GuestEventKind.UNPLUG_REFUSED:
            raise Refused(
                f"Guest {claim.guest} does not let {claim.address} go, and has it still",
                owner=owner,
                fix="end what uses the device in the guest, and try again",
            )

    # -- what guests are to have by their definition --------------------------------------------------------------

    async def why_not(self, guest: FrozenGuest) -> tuple[Blocker, ...]:
        """Return why a guest that may come could not have here what it is to have; nothing is touched."""
        return await self._wanting.why_not(guest)

    def why_not_run(self, spec: GuestSpec) -> list[str]:
        """Return which cards of a guest can be no function of this host, whatever is free: it has no such network."""
        return [
            f"network card {index} is a virtual function of {nic.physical_network}, which this host does not have"
            f" (its agent.toml has {', '.join(sorted(self._networks)) or 'none'})"
            for index, nic in enumerate(spec.nics)
            if nic.is_function and nic.physical_network not in self._networks
        ]

    async def reserve(self, name: GuestName) -> None:
        """Keep for a guest that comes what it is to have; raises as `Wanting.reserve`."""
        row = self._guests.journal.guest(name)
        if row is not None:
            async with self._locks[name]:
                await self._wanting.reserve(row)

    def degraded(self, name: GuestName) -> Mapping[str, str]:
        """Return which of a guest's cards do not run through the functions they are to have, and why."""
        row = self._guests.journal.guest(name)
        late = (
            [] if row is None else [(one.id, self._carrying.why_late(name, one)) for one in wanted_devices(row.guest)]
        )
        return {**{card: why for card, why in late if why is not None}, **self._missing.get(name, {})}

    def carriers(self, name: GuestName) -> Mapping[str, Carrier | None]:
        """Return, of each card that has its function, what carries its traffic; None: it has not been heard since."""
        return self._carrying.of(name)

    async def migratable(self, claims: Sequence[DeviceClaim], reasons: Sequence[str]) -> tuple[MigratableDevice, ...]:
        """Return of which devices QEMU can move the state.

        Args:
            claims: what the guest's process has.
            reasons: QEMU's own against a migration.
        """
        free = [claim for claim in claims if not is_blocked(claim, reasons)]
        found = (await self._host.look()).devices if free else {}
        kinds = (kind_of(claim, found.get(claim.address)) for claim in free)
        return tuple(kind for kind in kinds if kind is not None)

    async def offers(self, guest: FrozenGuest) -> tuple[MigratableDevice, ...]:
        """Return which devices a guest that may come would have here that could have another one's state."""
        return await self._wanting.offers(guest)

    async def plug_before_load(self, row: GuestRow, process: GuestProcess, sent: Sequence[MigratableDevice]) -> None:
        """Give a guest that comes the devices whose state comes with it.

        Raises:
            Refused: what is kept for it is not of the same kind.
            Broken: the card or QEMU does not do it, in its words.
        """
        if not sent:
            return
        async with self._locks[row.guest.spec.name]:
            await self._wanting.plug_before_load(row, process, sent)

    async def plugged(self, name: GuestName, but: Collection[str] = ()) -> tuple[DeviceClaim, ...]:
        """Return what of its wanted devices a guest's process has, but for some.

        Raises:
            Broken: it does not have all of those (any more).
        """
        async with self._locks[name]:
            return await self._plugged(name, but)

    async def why_not_along(self, name: GuestName, go_along: Collection[str]) -> str | None:
        """Return why not all devices that are to go with a guest can; None: it has them."""
        if not go_along:  # whoever asks is not to wait until others are let go
            return None
        try:
            await self.plugged(name, go_along)
        except VmferryError as error:
            return error.what
        return None

    async def _plugged(self, name: GuestName, but: Collection[str]) -> tuple[DeviceClaim, ...]:
        process = self._guests.process(name)
        claims = [claim for claim in self.of(name) if claim.wanted is not None]
        plugged = await process.plugs.plugged() if process is not None and claims else ()
        has = {claim.wanted: claim for claim in claims if claim.id in plugged}
        if lost := sorted(set(but) - has.keys()):
            raise Broken(
                f"Guest {name} has {', '.join(lost)} no more, which was to go along",
                owner=self._guests.settings.name,
                fix=f"see `vmferry guest show {name}`; the next check finds how it can move",
                retry=True,
            )
        return tuple(claim for wanted, claim in has.items() if wanted not in but)

    async def take_away(self, name: GuestName, but: Collection[str] = ()) -> None:
        """Have a guest that leaves let its wanted devices go; they are kept for it, and their cards are silent.

        Those that go with it stay (`but`).

        On failure it has them, or gets them again when its hand-over is over.

        Raises:
            BadInput: the guest stands still: its system cannot let go.
            Refused: its system does not.
            TimedOut: likewise, without a word.
            Broken: the kernel or QEMU does not do it, in its words.
        """
        async with self._locks[name]:
            process = self._guests.alive(name)
            claims = await self._plugged(name, but)
            asked = (self._unplug(process, claim, LET_GO_WITHIN_S) for claim in claims)
            for ended in await asyncio.gather(*asked, return_exceptions=True):
                if ended is not None:
                    raise ended
            # first: until its network hears of it, what comes for the guest is lost
            taken = {claim.wanted for claim in claims}
            wanted = wanted_devices(self._guests.row(name).guest)
            await announce(process, [one for one in wanted if one.id in taken])
            for claim in claims:
                self._carrying.end(name, claim.wanted or "")
            await self._settle(name)
        _log.info("devices taken away", guest=name, devices=[str(claim.address) for claim in claims])

    # -- what is brought about ------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Begin to bring about what an earlier agent left: of guests whose processes have ended, for one."""
        journal = self._guests.journal
        wanting = {row.guest.spec.name for row in journal.guests() if wanted_devices(row.guest)}
        for name in wanting | {claim.guest for claim in journal.device_claims()}:
            self.settle_later(name)

    def settle_later(self, name: GuestName) -> None:
        """Have it settled soon, and again until it is; what is under way begins anew with what is so by then."""
        row = self._guests.journal.guest(name)
        if not self.of(name) and (row is None or not wanted_devices(row.guest)):
            self._missing.pop(name, None)
            return
        if (before := self._settling.get(name)) is not None:
            before.cancel()
        self._settling[name] = asyncio.create_task(self._settle_at_last(name), name=f"devices:{name}")

    async def _settle_at_last(self, name: GuestName) -> None:
        await self._guests.adopted(name)
        pause_s = _FIRST_PAUSE_S
        while True:
            is_settled = await self._is_settled(name)
            if is_settled and not any(claim.before.given() for claim in self.of(name)):
                return
            await asyncio.sleep(_LOOK_AGAIN_S if is_settled else pause_s)
            pause_s = _FIRST_PAUSE_S if is_settled else min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _is_settled(self, name: GuestName) -> bool:
        """Settle it; tell whether the guest has what it is to have, and the host the rest."""
        try:
            async with self._locks[name]:
                await self._settle(name)
                return self._unwanted.isdisjoint(claim.id for claim in self.of(name)) and not self._missing.get(name)
        except VmferryError as error:
            _log.warning("a guest's devices are not as they are to be yet", guest=name, error=str(error))
        except Exception:  # noqa: BLE001 - whatever it was, what is kept for the guest is not forgotten
            _log.exception("a guest's devices cannot be looked after", guest=name)
        return False

    async def _settle(self, name: GuestName) -> None:
        """Give the host back what a guest has no more, and the guest what it is to have.

        When all was tried, raises the first of what was not given back.
        """
        process = self._guests.process(name)
        row = self._guests.journal.guest(name)
        held = holding(row, process, self._handover(name), self._guests.settings.name)
        plugged = frozenset() if process is None else await process.plugs.plugged()
        await self._ask_back(process, [claim for claim in self.of(name) if claim.id in self._unwanted], plugged)
        failed = await self._give_back(name, plugged, kept=held is not Holding.FREED)
        if held is Holding.GIVEN and row is not None and process is not None:
            self._missing[name] = await self._wanting.give(row, process, plugged)
        else:
            self._missing.pop(name, None)
        if held is Holding.KEPT:
            await self._wanting.quiet(self.of(name), plugged)
        if failed is not None:
            raise failed

    async def _ask_back(
        self, process: GuestProcess | None, unwanted: Sequence[DeviceClaim], plugged: Collection[str]
    ) -> None:
        """Ask for what a failed attempt has left with a guest."""
        for claim in unwanted:
            if claim.id not in plugged:
                self._unwanted.discard(claim.id)
            elif process is not None:
                with contextlib.suppress(VmferryError):  # it stays unwanted
                    await process.plugs.unplug(claim.id)

    async def _give_back(self, name: GuestName, plugged: Collection[str], *, kept: bool) -> VmferryError | None:
        """Give the host what the guest does not have, but for what is kept for it; return the first failure."""
        failed: VmferryError | None = None
        for claim in given_back(self.of(name), plugged):
            if kept and claim.wanted is not None:
                continue
            try:
                await self._host.give_back(claim)
            except NotFound:
                _log.warning("a guest's device is no more", guest=name, device=str(claim.address))
            except VmferryError as error:
                failed = failed or error
                continue
            self._guests.journal.release_device(claim.address)
            self._carrying.end(name, claim.wanted or "")
        return failed

    def _handover(self, name: GuestName) -> HandoverRow | None:
        """Return the guest's hand-over that is not finished."""
        rows = self._guests.journal.handovers(unfinished_only=True)
        return next((row for row in rows if row.guest == name), None)

    async def close(self) -> None:
        """Stop giving back; the next agent goes on."""
        for task in self._settling.values():
            task.cancel()
        await asyncio.gather(*self._settling.values(), return_exceptions=True)
        await self._carrying.close()


async def _answer(events: AsyncIterator[GuestEvent], device: str) -> GuestEventKind:
    """Return how the guest answers about a device; the end of its process is an answer."""
    async for event in events:
        about_it = event.kind in {GuestEventKind.UNPLUGGED, GuestEventKind.UNPLUG_REFUSED} and event.detail == device
        if about_it or event.kind is GuestEventKind.EXITED:
            return event.kind
    return GuestEventKind.EXITED
