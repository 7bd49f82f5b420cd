"""The PCI devices of this host, for those who ask, and how many virtual functions its cards have."""

from __future__ import annotations

import asyncio

from vmferry.api import models as m
from vmferry.core.errors import Broken
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, PciDevice
from vmferry.hostdev import Known, Sysfs, read_inventory, set_functions
from vmferry.hostdev.names import name_of
from vmferry.hostdev.uses import disk_uses, group_holders


class HostDevices:
    """Looks anew each time: devices come and go.

    Args:
        sysfs: the kernel's files.
    """

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._changing = asyncio.Lock()

    async def list(self) -> m.PciList:
        """Return all PCI devices."""
        return await asyncio.to_thread(self._list)

    async def set_functions(self, body: m.SetFunctions) -> m.PciView:
        """Have a card make so many virtual functions; raises as `hostdev.set_functions`."""
        address = PciAddress.parse(body.card)
        async with self._changing:
            await asyncio.to_thread(self._set_functions, address, body.count)
        found = {one.address["lspci"]: one for one in (await self.list()).devices}
        if str(address) not in found:
            raise Broken(f"PCI device {address} is gone", fix="see `dmesg`")
        return found[str(address)]

    def _list(self) -> m.PciList:
        found = read_inventory(self._sysfs, Known(disk_uses(), group_holders(), name_of))
        return m.PciList(devices=tuple(_view(found, one) for one in found.devices.values()))

    def _set_functions(self, address: PciAddress, count: int) -> None:
        set_functions(self._sysfs, address, count, group_holders())


def _view(found: Inventory, device: PciDevice) -> m.PciView:
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
        blockers=found.why_not(device),
    )
