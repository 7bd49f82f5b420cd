"""What libvirt says of a host's PCI devices, as values. Pure.

Source: libvirt docs/formatnode.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.errors import BadInput, Broken
from vmferry.core.pci import PciAddress
from vmferry.libvirt.checks.case import below, first
from vmferry.libvirt.making import copy_of
from vmferry.libvirt.tree import Element, parse

#: The driver by which a device is kept for guests.
VFIO = "vfio-pci"
_NUMBER = re.compile("[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One PCI device of a host."""

    address: PciAddress
    vendor: str
    product: str
    driver: str | None  #: of the host; None: none has it
    iommu_group: int | None  #: None: it is in none, so no guest can have it
    group: tuple[PciAddress, ...] = ()  #: everything that is in its IOMMU group, itself too
    physical: PciAddress | None = None  #: it is a virtual function of this one
    functions: tuple[PciAddress, ...] = ()  #: its virtual functions
    is_bridge: bool = False
    net: str | None = None  #: the host's name of its network card
    guest: str | None = field(default=None)  #: the running domain that has it


def read_devices(pci: Iterable[str], nets: Iterable[str], domains: Mapping[str, str]) -> tuple[PciDevice, ...]:
    """Return a host's PCI devices in the order of their addresses.

    Args:
        pci: XML of each node device that is one.
        nets: XML of each node device that is a network card.
        domains: XML of the running domains by name.

    Raises:
        XmlRefused: a daemon said what is no XML.
    """
    cards = dict(filter(None, map(_net, map(parse, nets))))
    owners = {address: name for name, xml in domains.items() for address in held_by(xml)}
    found = (device for text in pci if (device := _device(parse(text))) is not None)
    told = (
        replace(device, net=cards.get(device.address.nodedev), guest=owners.get(device.address)) for device in found
    )
    return tuple(sorted(told, key=lambda device: device.address))


def held_by(domain_xml: str) -> dict[PciAddress, str]:
    """Return the host's PCI devices that a domain has for itself, with their elements; raises as `read_devices`."""
    root = parse(domain_xml)
    found: dict[PciAddress, str] = {}
    for device in (*below(root, "devices/hostdev"), *below(root, "devices/interface")):
        source = first(device, "source/address")
        is_pci = device.attributes.get("type") == ("pci" if device.tag == "hostdev" else "hostdev")
        if source is not None and is_pci and (address := _address(source)) is not None:
            found[address] = ET.tostring(copy_of(device), encoding="unicode")
    return found


def _device(root: Element) -> PciDevice | None:
    capability = next((each for each in below(root, "capability") if each.attributes.get("type") == "pci"), None)
    parts = {} if capability is None else {each.tag: each.text.strip() for each in capability.children}
    if capability is None or not {"bus", "slot", "function"} <= parts.keys():
        return None
    group = first(capability, "iommuGroup")
    nested = {each.attributes.get("type", ""): each for each in below(capability, "capability")}
    driver = first(root, "driver/name")
    physical = _addresses(nested.get("phys_function"))
    return PciDevice(
        address=_own_address(parts),
        vendor=_name(capability, "vendor"),
        product=_name(capability, "product"),
        driver=None if driver is None else driver.text,
        iommu_group=None if group is None else _group_number(group),
        group=_addresses(group),
        physical=physical[0] if physical else None,
        functions=_addresses(nested.get("virt_functions")),
        is_bridge=parts.get("class", "").lower().startswith("0x06") or "pci-bridge" in nested,
    )


def _own_address(parts: Mapping[str, str]) -> PciAddress:
    try:
        return PciAddress.of_attributes(parts)
    except BadInput as error:
        raise _odd(f"a PCI device whose address is none ({error.what})") from error


def _group_number(group: Element) -> int:
    number = group.attributes.get("number", "0")
    if not _NUMBER.fullmatch(number):
        raise _odd(f"IOMMU group {number[:200]!r}, which is no number")
    return int(number)


def _odd(what: str) -> Broken:
    return Broken(f"libvirt says {what}", fix="look at `virsh nodedev-dumpxml` of that host's devices")


def _addresses(parent: Element | None) -> tuple[PciAddress, ...]:
    children = () if parent is None else below(parent, "address")
    return tuple(address for each in children if (address := _address(each)) is not None)


def _address(element: Element) -> PciAddress | None:
    try:
        return PciAddress.of_attributes(element.attributes)
    except BadInput:  # none that libvirt writes
        return None


def _name(capability: Element, tag: str) -> str:
    """Return what libvirt calls the maker or the product, or its number."""
    found = first(capability, tag)
    return "" if found is None else found.text.strip() or found.attributes.get("id", "")


def _net(root: Element) -> tuple[str, str] | None:
    """Return the node device whose card it is, and the card's name."""
    parent, name = first(root, "parent"), first(root, "capability/interface")
    return None if parent is None or name is None else (parent.text, name.text)
