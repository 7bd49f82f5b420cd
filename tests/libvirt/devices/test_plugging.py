"""Giving a running guest a device, and taking it back, with a libvirt that takes devices as the real one does."""

from __future__ import annotations

from typing import Any

import pytest

from vmferry.core.errors import Blocked, NotFound, Refused, TimedOut
from vmferry.core.pci import PciAddress
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.devices import HostDevices, Pairing, plug, unplug
from vmferry.libvirt.devices.facts import held_by

VF = PciAddress.parse("03:10.0")
NODE = """<device><name>pci_0000_03_10_0</name><capability type='pci'><class>0x020000</class><domain>0</domain>
<bus>3</bus><slot>16</slot><function>0</function><iommuGroup number='{group}'>
<address domain='0' bus='3' slot='16' function='0'/></iommuGroup></capability></device>"""


class Named:
    """A node device."""

    def __init__(self, xml: str) -> None:
        self._xml = xml

    def XMLDesc(self, flags: int) -> str:  # noqa: N802  # libvirt's name
        """Return its XML."""
        return self._xml


class Domain:
    """A running domain; the guest lets go after some looks, or never.

    Args:
        looks: at its XML before it lets go; None: it never does.
        takes: whether a device that is plugged in gets there.
        persistent: it is defined.
    """

    def __init__(self, looks: int | None = 2, *, takes: bool = True, persistent: bool = False) -> None:
        self.calls: list[tuple[str, int]] = []
        self._devices: dict[PciAddress, str] = {}
        self._going: PciAddress | None = None
        self._looks, self._takes, self._persistent = looks, takes, persistent

    def name(self) -> str:
        """Return its name."""
        return "web-7"

    def isPersistent(self) -> int:  # noqa: N802  # libvirt's name
        """Tell whether it is defined."""
        return int(self._persistent)

    def UUIDString(self) -> str:  # noqa: N802  # libvirt's name
        """Return its UUID."""
        return "6695eb01-f6a4-8304-79aa-97f2502e193f"

    def state(self) -> list[int]:
        """Return that it runs."""
        return [1, 1]

    def XMLDesc(self, flags: int) -> str:  # noqa: N802  # libvirt's name
        """Return its XML; the guest gets a little further with each look."""
        if self._going is not None and self._looks is not None:
            self._looks -= 1
            if self._looks <= 0:
                del self._devices[self._going]
                self._going = None
        return f"<domain><devices>{''.join(self._devices.values())}</devices></domain>"

    def attachDeviceFlags(self, xml: str, flags: int) -> None:  # noqa: N802  # libvirt's name
        """Take a device; what it has already is a mistake of the caller's."""
        self.calls.append(("attach", flags))
        ((address, element),) = held_by(f"<domain><devices>{xml}</devices></domain>").items()
        assert address not in self._devices
        if self._takes:
            self._devices[address] = element

    def detachDeviceFlags(self, xml: str, flags: int) -> None:  # noqa: N802  # libvirt's name
        """Ask the guest; the element must be the one that is there."""
        self.calls.append(("detach", flags))
        ((address, element),) = held_by(f"<domain><devices>{xml}</devices></domain>").items()
        assert self._devices[address] == element
        self._going = address


class Daemon:
    """libvirt's connection to a host with one device and one domain."""

    def __init__(self, domain: Domain, group: int = 7) -> None:
        self._domain = domain
        self._node = Named(NODE.replace("{group}", str(group)))

    def lookupByName(self, name: str) -> Domain:  # noqa: N802  # libvirt's name
        """Return the domain."""
        assert name == "web-7"
        return self._domain

    def listAllDevices(self, flags: int) -> list[Any]:  # noqa: N802  # libvirt's name
        """Return the device, which is no network card."""
        return [self._node] if flags == 2 else []

    def listAllDomains(self, flags: int) -> list[Domain]:  # noqa: N802  # libvirt's name
        """Return those that run."""
        assert flags == 1
        return [self._domain]


def host(domain: Domain) -> HostDevices:
    """Return the host of a domain."""
    return HostDevices("host-a", LibvirtConnection("qemu:///system", Daemon(domain)))


async def test_a_device_goes_in_and_out() -> None:
    """The running domain alone is changed, and the guest's letting go is waited for."""
    domain = Domain()
    devices = host(domain)
    await plug(devices, "web-7", VF, Pairing("52:54:00:00:00:09", "ua-standby"))
    assert (await devices.device(VF)).guest == "web-7"
    took_s = await unplug(devices, "web-7", VF)
    assert 0.1 < took_s < 20  # one look was too early
    assert await devices.held("web-7") == {}
    assert domain.calls == [("attach", 1), ("detach", 1)]


async def test_a_guest_that_does_not_let_go_is_told() -> None:
    """It has the device still, and the daemon asked it once."""
    domain = Domain(looks=None)
    devices = host(domain)
    await plug(devices, "web-7", VF)
    with pytest.raises(
        TimedOut, match=r"web-7 does not let go of 0000:03:10.0 of host-a: it has it still, 0.3 s after"
    ) as caught:
        await unplug(devices, "web-7", VF, within_s=0.3)
    assert "PCI hot-plug" in str(caught.value.fix)
    assert VF in await devices.held("web-7")
    assert domain.calls == [("attach", 1), ("detach", 1)]


async def test_what_is_asked_twice_is_refused() -> None:
    """It has it already; it does not have it any more."""
    devices = host(Domain())
    with pytest.raises(NotFound, match="does not have 0000:03:10.0"):
        await unplug(devices, "web-7", VF)
    await plug(devices, "web-7", VF)
    with pytest.raises(Refused, match="has 0000:03:10.0 already"):
        await plug(devices, "web-7", VF)


async def test_a_device_that_did_not_arrive_is_not_called_plugged() -> None:
    """What libvirt says is looked at in the domain's XML."""
    with pytest.raises(Refused, match="its XML does not have it"):
        await plug(host(Domain(takes=False)), "web-7", VF)


async def test_its_definition_too() -> None:
    """Where it was asked for, and the domain has one."""
    domain = Domain(persistent=True)
    await plug(host(domain), "web-7", VF, define=True)
    assert domain.calls == [("attach", 3)]
    transient = Domain()
    with pytest.raises(Refused, match="transient"):
        await plug(host(transient), "web-7", VF, define=True)
    assert transient.calls == []


async def test_what_blocks_touches_nothing() -> None:
    """Every reason is in the error."""
    domain = Domain()
    daemon = Daemon(domain)
    daemon._node = Named(NODE.replace("<iommuGroup", "<none").replace("</iommuGroup>", "</none>"))
    with pytest.raises(Blocked) as caught:
        await plug(HostDevices("host-a", LibvirtConnection("qemu:///system", daemon)), "web-7", VF)
    assert [blocker.code for blocker in caught.value.blockers] == ["device.no-iommu"]
    assert domain.calls == []
