"""What is asked of libvirt about a host's devices; a file of its own beside the adapter, and through its door."""

from __future__ import annotations

from typing import Any, Final

from vmferry.core.errors import NotFound
from vmferry.core.pci import PciAddress
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.devices.facts import PciDevice, held_by, read_devices

#: virConnectListAllNodeDeviceFlags
_PCI, _NET = 1 << 1, 1 << 4
#: virConnectListAllDomainsFlags
_ACTIVE = 1 << 0
#: virDomainDeviceModifyFlags
_LIVE, _CONFIG = 1, 2
#: Changing the running domain alone, or its definition as well.
_FLAGS: Final = {False: _LIVE, True: _LIVE | _CONFIG}


class HostDevices:
    """The devices of one libvirt host; each call raises as those of the connection.

    Args:
        name: the host's, for messages.
        connection: to its daemon.
    """

    def __init__(self, name: str, connection: LibvirtConnection) -> None:
        self.name = name
        self._connection = connection

    async def devices(self) -> dict[PciAddress, PciDevice]:
        """Return the PCI devices by address.

        Raises:
            Refused: this daemon does not look after devices.
        """

        def look(here: Any) -> tuple[list[str], list[str], dict[str, str]]:
            pci, nets = ([str(each.XMLDesc(0)) for each in here.listAllDevices(kind)] for kind in (_PCI, _NET))
            return pci, nets, {str(each.name()): str(each.XMLDesc(0)) for each in here.listAllDomains(_ACTIVE)}

        found = read_devices(*await self._connection.call("its PCI devices", look))
        return {device.address: device for device in found}

    async def device(self, address: PciAddress) -> PciDevice:
        """Return one device.

        Raises:
            NotFound: the host has none there.
        """
        found = await self.devices()
        if address not in found:
            raise NotFound(
                f"host {self.name} has no PCI device {address}", fix=f"see `vmferry device list {self.name}`"
            )
        return found[address]

    async def detach(self, address: PciAddress) -> None:
        """Take a device from its host's driver, for guests (VFIO).

        Raises:
            Refused: this daemon does not look after devices.
            Broken: libvirt cannot, in its words.
        """
        what = f"detaching {address} from its host's driver"
        await self._connection.call(
            what, lambda here: here.nodeDeviceLookupByName(address.nodedev).detachFlags(None, 0)
        )

    async def reattach(self, address: PciAddress) -> None:
        """Give a device back to its host's driver; raises as `detach`."""
        what = f"giving {address} back to its host's driver"
        await self._connection.call(what, lambda here: here.nodeDeviceLookupByName(address.nodedev).reAttach())

    async def held(self, guest: str) -> dict[PciAddress, str]:
        """Return which devices a running domain has, with their elements in its XML.

        Raises:
            NotFound: there is no such domain.
        """
        return held_by(await self._connection.domain_xml(guest))

    async def is_defined(self, guest: str) -> bool:
        """Tell whether a domain is there also when it does not run.

        Raises:
            NotFound: there is no such domain.
        """
        return (await self._connection.domain(guest)).is_persistent

    async def attach_to(self, guest: str, xml: str, *, defined: bool) -> None:
        """Give a running domain a device.

        Args:
            guest: the domain.
            xml: the device's element.
            defined: have it in its definition too.

        Raises:
            Broken: it does not get it, in libvirt's words.
        """
        what = f"plugging a device into domain {guest}"
        await self._connection.call(what, lambda here: here.lookupByName(guest).attachDeviceFlags(xml, _FLAGS[defined]))

    async def detach_from(self, guest: str, xml: str, *, defined: bool) -> None:
        """Ask a running domain for a device; whether it lets go shows in `held`. Arguments as those of `attach_to`.

        Raises:
            Broken: libvirt does not ask it, or the guest has refused, in libvirt's words.
        """
        what = f"unplugging a device from domain {guest}"
        await self._connection.call(what, lambda here: here.lookupByName(guest).detachDeviceFlags(xml, _FLAGS[defined]))
