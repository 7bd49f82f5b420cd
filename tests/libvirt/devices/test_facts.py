"""What libvirt says of devices, and why one cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.core.pci import PciAddress
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.devices import HostDevices, Pairing, PciDevice, check_detach, check_plug
from vmferry.libvirt.devices.elements import device_xml
from vmferry.libvirt.devices.facts import held_by, read_devices

HOST = f"test://{Path(__file__).with_name('host.xml')}"
PORT, CARD, FIRST, SECOND = map(PciAddress.parse, ("00:02.0", "03:00.0", "03:10.0", "03:10.2"))
VF = PciDevice(FIRST, "Intel", "VF", "vfio-pci", 7, (FIRST,), CARD)
OTHER = replace(VF, address=SECOND, driver=None)


async def test_devices_of_a_libvirt_host() -> None:
    """In order, with group, functions and the host's card; libvirt's own imitation has them from a file."""
    connection = await LibvirtConnection.connect(HOST)
    host = HostDevices("host-a", connection)
    found = await host.devices()
    assert list(found) == [PORT, CARD, FIRST, SECOND]
    assert found[PORT].is_bridge
    assert (found[CARD].functions, found[CARD].net, found[CARD].is_bridge) == ((FIRST, SECOND), "enp3s0", False)
    assert (found[FIRST].physical, found[FIRST].iommu_group, found[FIRST].group) == (CARD, 7, (FIRST,))
    assert (found[FIRST].vendor, found[FIRST].product) == ("Intel Corporation", "82576 Virtual Function")
    assert (found[SECOND].iommu_group, found[SECOND].product) == (None, "0x10ca")
    assert await host.device(FIRST) == found[FIRST]
    with pytest.raises(NotFound, match="host-a has no PCI device 0000:09:00.0; see `vmferry device list host-a`"):
        await host.device(PciAddress.parse("09:00.0"))
    for call in (host.detach, host.reattach):
        with pytest.raises(Refused, match="0000:03:10.0"):  # what the imitation does not have
            await call(FIRST)
    assert await host.held("web-7") == {}
    await connection.close()


def test_which_guest_has_a_device() -> None:
    """As <hostdev> or as an <interface>; a USB device and the guest's own addresses are none of it."""
    xml = f"""<domain><devices>{device_xml(FIRST, Pairing("52:54:00:00:00:09", "ua-standby"))}{device_xml(SECOND)}
    <hostdev type='usb'><source><address bus='3' device='2'/></source></hostdev>
    <interface type='bridge'><source bridge='br0'/><address type='pci' bus='3' slot='1' function='0'/></interface>
    </devices></domain>"""
    held = held_by(xml)
    assert list(held) == [SECOND, FIRST]
    assert 'persistent="ua-standby"' in held[FIRST]
    pci = """<device><name>pci_0000_03_10_0</name><capability type='pci'><bus>3</bus><slot>16</slot>
    <function>0</function></capability></device>"""
    (device,) = read_devices([pci], [], {"web-7": xml})
    assert device.guest == "web-7"


def test_elements() -> None:
    """A device is one of the host's, managed; a card has its MAC and its partner."""
    assert device_xml(FIRST) == (
        '<hostdev mode="subsystem" type="pci" managed="yes"><source>'
        '<address domain="0x0000" bus="0x03" slot="0x10" function="0x0" /></source></hostdev>'
    )
    assert device_xml(FIRST, Pairing("52:54:00:00:00:09", "ua-standby")) == (
        '<interface type="hostdev" managed="yes"><mac address="52:54:00:00:00:09" /><source>'
        '<address type="pci" domain="0x0000" bus="0x03" slot="0x10" function="0x0" /></source>'
        '<teaming type="transient" persistent="ua-standby" /></interface>'
    )
    for mac, alias in (("52:54", None), ("52:54:00:00:00:09", "net0"), ("52:54:00:00:00:09'/>", None)):
        with pytest.raises(BadInput):
            Pairing(mac, alias)


#: what is wrong with a device -> (the device, code, words)
BAD: dict[str, tuple[PciDevice, str, str]] = {
    "a guest has it": (replace(VF, guest="db-1"), "device.in-use", "belongs to domain db-1, which runs"),
    "a bridge": (replace(VF, is_bridge=True), "device.bridge", "devices are behind it"),
    "no IOMMU": (replace(VF, iommu_group=None, group=()), "device.no-iommu", "in no IOMMU group"),
    "a card with functions": (replace(VF, functions=(SECOND,)), "device.has-functions", "has 1 virtual functions"),
}


@pytest.mark.parametrize("case", BAD)
def test_why_a_device_cannot_be_taken(case: str) -> None:
    """Each reason names the device and its host; a device that is fit has none."""
    device, code, words = BAD[case]
    (blocker,) = check_detach("host-a", device)
    assert blocker.code == code
    assert words in blocker.what
    assert "0000:03:10.0 of host-a" in blocker.what
    assert list(check_detach("host-a", VF)) == []


#: who else is in the group -> code; None: it does not matter
GROUPS: dict[str, tuple[PciDevice, str | None]] = {
    "nobody has it": (OTHER, None),
    "kept for guests": (replace(OTHER, driver="vfio-pci"), None),
    "a bridge": (replace(OTHER, driver="pcieport", is_bridge=True), None),
    "the same guest": (replace(OTHER, guest="web-7"), None),
    "another guest": (replace(OTHER, guest="db-1"), "device.group-shared"),
    "the host": (replace(OTHER, driver="igbvf"), "device.group-used"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_devices_of_one_group_never_go_to_different_guests(case: str) -> None:
    """Nor is one of them the host's while another one is a guest's."""
    other, code = GROUPS[case]
    device = replace(VF, group=(FIRST, SECOND))
    found = list(check_plug("host-a", "web-7", device, {FIRST: device, SECOND: other}))
    assert [blocker.code for blocker in found] == ([] if code is None else [code])
    assert all("group 7" in blocker.what and str(SECOND) in blocker.what for blocker in found)


@pytest.mark.parametrize(
    ("part", "odd", "word"),
    [
        ("<iommuGroup number='7'/>", "<iommuGroup number='seven'/>", "IOMMU group 'seven'"),
        ("<bus>3<", "<bus>x<", "none"),
    ],
)
def test_what_a_daemon_says_oddly_is_its_failure(part: str, odd: str, word: str) -> None:
    """Neither a traceback nor a mistake of whoever asked."""
    text = (
        "<device><name>pci_0000_03_10_0</name><capability type='pci'><domain>0</domain><bus>3</bus><slot>16</slot>"
        "<function>0</function><iommuGroup number='7'/></capability></device>"
    )
    assert len(read_devices([text], [], {})) == 1
    with pytest.raises(Broken, match=word):
        read_devices([text.replace(part, odd)], [], {})
