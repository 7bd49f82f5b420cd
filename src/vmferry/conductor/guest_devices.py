"""Devices of this host that its guests have: given to them while they run, and back.

That a guest's devices are its own, and the host's again when it has them no more, is a state that is brought about
whenever something ends: a process, an order, an agent. The journal has each device from before it is touched until it
is the host's again, so that no death in between loses one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

import structlog

from vmferry.conductor.guests import Guests
from vmferry.core.device_claims import DeviceClaim, check_unclaimed, find_devices, given_back, plan_claims
from vmferry.core.errors import BadInput, NotFound, Refused, TimedOut, VmferryError
from vmferry.core.ids import GuestName
from vmferry.core.migration import RunState
from vmferry.core.pci import PciAddress
from vmferry.ports.host_devices import HostDevices
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, GuestProcess

_log = structlog.get_logger(__name__)


class GuestDevices:
    """Gives devices to guests and takes them back.

    Args:
        guests: this host's guests.
        host: this host's devices.
    """

    def __init__(self, guests: Guests, host: HostDevices) -> None:
        self._guests = guests
        self._host = host
        self._locks: defaultdict[GuestName, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._settling: set[asyncio.Task[None]] = set()
        guests.on_gone = self._settle_later

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
        async with self._guests.operation(name, "guest attach"), self._locks[name]:
            process = self._guests.alive(name)
            await self._settle(name)
            check_unclaimed(addresses, self._guests.journal.device_claims())
            devices = find_devices(await self._host.look(), addresses)
            claims = plan_claims(row.guest, devices, self._guests.journal.device_claims())
            self._guests.journal.claim_devices(claims)
            try:
                for claim in claims:
                    await self._host.lend(claim, row.uid)
                for claim in claims:
                    await process.plugs.plug(claim)
            except BaseException:
                await asyncio.shield(self._undo(name, process, claims))
                raise
        _log.info("devices attached", guest=name, devices=[str(claim.address) for claim in claims])

    async def _undo(self, name: GuestName, process: GuestProcess, claims: Sequence[DeviceClaim]) -> None:
        with contextlib.suppress(VmferryError):  # what it keeps comes back when it lets go
            plugged = await process.plugs.plugged()
            for claim in claims:
                if claim.id in plugged:
                    await process.plugs.unplug(claim.id)
        with contextlib.suppress(VmferryError):  # logged; done again at the next end of anything
            await self._settle(name)

    async def detach(self, name: GuestName, address: PciAddress, within_s: float) -> None:
        """Have a guest let a device go, and give it back to the host's own driver.

        A device whose IOMMU group the guest has others of comes back with the last of them.

        Raises:
            NotFound: there is no such guest, or it has no such device.
            BadInput: the guest stands still: its system cannot let go.
            Refused: its system does not; it has the device still.
            TimedOut: likewise, without a word. If it lets go later, the host gets the device then.
            GuestBusy: something else holds the guest.
            Broken: the kernel or QEMU does not do it, in its words.
        """
        self._guests.row(name)
        async with self._guests.operation(name, "guest detach"), self._locks[name]:
            claim = self._find(name, address)
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

    def recover(self) -> None:
        """Begin to bring about what an earlier agent left: of guests whose processes have ended, for one."""
        for name in {claim.guest for claim in self._guests.journal.device_claims()}:
            self._settle_later(name)

    def _settle_later(self, name: GuestName) -> None:
        if self.of(name):
            task = asyncio.create_task(self._settle_alone(name), name=f"devices:{name}")
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)

    async def _settle_alone(self, name: GuestName) -> None:
        await self._guests.adopted(name)
        async with self._locks[name]:
            with contextlib.suppress(VmferryError):  # logged
                await self._settle(name)

    async def _settle(self, name: GuestName) -> None:
        """Give the host back what a guest has no more; when all was tried, raises the first of what failed."""
        failed: VmferryError | None = None
        process = self._guests.process(name)
        plugged = frozenset() if process is None else await process.plugs.plugged()
        for claim in given_back(self.of(name), plugged):
            try:
                await self._host.give_back(claim)
            except NotFound:
                _log.warning("a guest's device is no more", guest=name, device=str(claim.address))
            except VmferryError as error:
                _log.warning("device is not given back", guest=name, device=str(claim.address), error=str(error))
                failed = failed or error
                continue
            self._guests.journal.release_device(claim.address)
        if failed is not None:
            raise failed

    async def close(self) -> None:
        """Stop giving back; the next agent goes on."""
        for task in list(self._settling):
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)


async def _answer(events: AsyncIterator[GuestEvent], device: str) -> GuestEventKind:
    """Return how the guest answers about a device; the end of its process is an answer."""
    async for event in events:
        about_it = event.kind in {GuestEventKind.UNPLUGGED, GuestEventKind.UNPLUG_REFUSED} and event.detail == device
        if about_it or event.kind is GuestEventKind.EXITED:
            return event.kind
    return GuestEventKind.EXITED
