"""The PCI devices of this host, for those who ask, and the virtual functions of its cards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from vmferry.api import device_models as d
from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import Broken, Refused, VmferryError
from vmferry.core.functions import FunctionSettings
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, PciDevice
from vmferry.hostdev import (
    Cards,
    DeviceLender,
    Known,
    Sysfs,
    read_inventory,
    read_settings,
    set_function,
    set_functions,
)
from vmferry.hostdev.names import name_of
from vmferry.hostdev.uses import disk_uses, holders


class HostDevices:
    """Looks anew each time: devices come and go.

    Args:
        sysfs: the kernel's files.
        cards: the kernel's network side.
        lender: gives devices to guests; what it does and what is done here go one after the other.
        claims: which devices are kept for guests.
    """

    def __init__(
        self, sysfs: Sysfs, cards: Cards, lender: DeviceLender, claims: Callable[[], Sequence[DeviceClaim]]
    ) -> None:
        self._sysfs = sysfs
        self._cards = cards
        self._lender = lender
        self._claims = claims

    async def list(self) -> d.PciList:
        """Return all PCI devices."""
        return await asyncio.to_thread(self._list, self._users())

    async def close(self) -> None:
        """Wait for the changes that were begun."""
        await self._lender.close()

    async def set_functions(self, body: d.SetFunctions) -> d.PciView:
        """Have a card make so many virtual functions; raises as `hostdev.set_functions`."""
        address = PciAddress.parse(body.card)
        return await self._change(
            address, lambda users: set_functions(self._sysfs, self._cards, address, body.count, {**holders(), **users})
        )

    async def set_function(self, body: d.SetFunction) -> d.PciView:
        """Tell a card of one of its virtual functions; raises as `hostdev.set_function`."""
        address = PciAddress.parse(body.function)
        wanted = FunctionSettings(body.mac, body.vlan, body.trust, body.spoofchk, body.max_rate_mbit)
        self._check_not_a_guests(address, wanted)
        return await self._change(address, lambda users: set_function(self._cards, self._look(users), address, wanted))

    def _check_not_a_guests(self, address: PciAddress, wanted: FunctionSettings) -> None:
        """Refuse what a guest's definition says of its function: it would be set back."""
        claim = next((claim for claim in self._claims() if claim.address == address and claim.wanted), None)
        if claim is not None and wanted.of_a_guest.given():
            raise Refused(
                f"Virtual function {address} is {claim.wanted} of guest {claim.guest}, which says its MAC and VLAN",
                fix="change them in the guest's file, and start it anew",
            )

    async def _change(self, address: PciAddress, change: Callable[[Mapping[str, str]], object]) -> d.PciView:
        """Make one change at a time, and return the device as it is then.

        A guest that is given a device has it noted before; it waits here, and then finds the device as it is.
        """

        def begin() -> Callable[[], object]:
            users = self._users()
            return lambda: change(users)

        await self._lender.alone(begin)
        found = next((one for one in (await self.list()).devices if one.address["lspci"] == str(address)), None)
        if found is None:
            raise Broken(f"PCI device {address} is gone", fix="see `dmesg`")
        return found

    def _users(self) -> dict[str, str]:
        """Return for which guest each IOMMU group is kept, also where nobody has it open yet."""
        return {str(claim.iommu_group): f"guest {claim.guest}" for claim in self._claims()}

    def _look(self, users: Mapping[str, str]) -> Inventory:
        return read_inventory(self._sysfs, Known(disk_uses(), {**holders(), **users}, name_of))

    def _list(self, users: Mapping[str, str]) -> d.PciList:
        found = self._look(users)
        return d.PciList(devices=tuple(self._view(found, one) for one in found.devices.values()))

    def _settings(self, found: Inventory, device: PciDevice) -> FunctionSettings | None:
        if device.physical is None:
            return None
        try:
            return read_settings(self._cards, found, device.address)
        except VmferryError:  # a card without an interface
            return None

    def _view(self, found: Inventory, device: PciDevice) -> d.PciView:
        sriov = device.sriov
        return d.PciView(
            address=device.address.forms,
            ids=device.ids,
            kind=device.kind,
            name=device.name,
            driver=device.driver,
            iommu_group=device.iommu_group,
            group=tuple(str(one.address) for one in found.companions(device)),
            numa_node=device.numa_node,
            is_bridge=device.is_bridge,
            nets=tuple(one.name for one in device.nets),
            disks=device.disks,
            user=device.user,
            physical=None if device.physical is None else str(device.physical),
            functions_most=0 if sriov is None else sriov.total,
            functions=() if sriov is None else tuple(map(str, sriov.functions)),
            settings=self._settings(found, device),
            blockers=found.why_not(device),
        )
