"""The PCI devices of this host, for those who ask, and the virtual functions of its cards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmferry.api import models as m
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.functions import FunctionSettings
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, PciDevice
from vmferry.hostdev import Cards, Known, Sysfs, read_inventory, read_settings, set_function, set_functions
from vmferry.hostdev.names import name_of
from vmferry.hostdev.uses import disk_uses, holders


class HostDevices:
    """Looks anew each time: devices come and go.

    Args:
        sysfs: the kernel's files.
        cards: the kernel's network side.
    """

    def __init__(self, sysfs: Sysfs, cards: Cards) -> None:
        self._sysfs = sysfs
        self._cards = cards
        self._changing = asyncio.Lock()

    async def list(self) -> m.PciList:
        """Return all PCI devices."""
        return await asyncio.to_thread(self._list)

    async def set_functions(self, body: m.SetFunctions) -> m.PciView:
        """Have a card make so many virtual functions; raises as `hostdev.set_functions`."""
        address = PciAddress.parse(body.card)
        return await self._change(
            address, lambda: set_functions(self._sysfs, self._cards, address, body.count, holders())
        )

    async def set_function(self, body: m.SetFunction) -> m.PciView:
        """Tell a card of one of its virtual functions; raises as `hostdev.set_function`."""
        address = PciAddress.parse(body.function)
        wanted = FunctionSettings(body.mac, body.vlan, body.trust, body.spoofchk, body.max_rate_mbit)
        return await self._change(address, lambda: set_function(self._cards, self._look(), address, wanted))

    async def _change(self, address: PciAddress, change: Callable[[], object]) -> m.PciView:
        """Make one change at a time, and return the device as it is then."""
        async with self._changing:
            await asyncio.to_thread(change)
        found = next((one for one in (await self.list()).devices if one.address["lspci"] == str(address)), None)
        if found is None:
            raise Broken(f"PCI device {address} is gone", fix="see `dmesg`")
        return found

    def _look(self) -> Inventory:
        return read_inventory(self._sysfs, Known(disk_uses(), holders(), name_of))

    def _list(self) -> m.PciList:
        found = self._look()
        return m.PciList(devices=tuple(self._view(found, one) for one in found.devices.values()))

    def _settings(self, found: Inventory, device: PciDevice) -> FunctionSettings | None:
        if device.physical is None:
            return None
        try:
            return read_settings(self._cards, found, device.address)
        except VmferryError:  # a card without an interface
            return None

    def _view(self, found: Inventory, device: PciDevice) -> m.PciView:
        sriov = device.sriov
        return m.PciView(
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
