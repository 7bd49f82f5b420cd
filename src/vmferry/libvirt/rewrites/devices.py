"""Which devices of the destination take the place of the source's. Pure.

A failover pair keeps its `<teaming>`, its alias and its MAC: only the host's end of it is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.errors import BadInput
from vmferry.core.pci import PciAddress
from vmferry.libvirt.rewrites.rewriting import checked, edited


def replace_devices(xml: str, addresses: Mapping[PciAddress, PciAddress]) -> str:
    """Return the domain with other PCI devices in its `<interface type='hostdev'>` and `<hostdev>`.

    What the guest sees (the address on its own bus, MAC, teaming) stays; raises as `edited` and `checked`.
    """
    checked(addresses, "device")

    def edit(root: ET.Element) -> None:
        for device in (*root.findall("devices/interface"), *root.findall("devices/hostdev")):
            source = device.find("source/address")
            if source is None or not _is_pci(device, source):
                continue
            try:
                there = addresses.get(PciAddress.of_attributes(source.attrib))
            except BadInput:  # no address that libvirt writes: it is nobody's
                continue
            if there is not None:
                source.attrib.update(there.attributes)

    return edited(xml, edit)


def _is_pci(device: ET.Element, source: ET.Element) -> bool:
    if device.tag == "interface":
        return device.get("type") == "hostdev" and source.get("type", "pci") == "pci"
    return device.get("type") == "pci"
