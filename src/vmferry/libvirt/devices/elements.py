"""A host's device in a domain's XML. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.errors import BadInput
from vmferry.core.pci import PciAddress
from vmferry.libvirt.making import add

_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", re.IGNORECASE)
#: What a person may call a device, as libvirt has it.
_ALIAS = re.compile(r"ua-[A-Za-z0-9_-]{1,60}")


@dataclass(frozen=True, slots=True)
class Pairing:
    """What a network card needs that is not just any device.

    Attributes:
        mac: set by the host before the guest has it.
        partner: alias of the virtio card whose other half it is (`<teaming>`).
    """

    mac: str
    partner: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is none.

        Raises:
            BadInput: the MAC or the alias is none.
        """
        if not _MAC.fullmatch(self.mac):
            raise BadInput(f"MAC address {self.mac!r} is none", fix="write six bytes: 52:54:00:00:00:09")
        if self.partner is not None and not _ALIAS.fullmatch(self.partner):
            raise BadInput(f"alias {self.partner!r} is none that a person gives", fix="it begins with ua-")


def device_xml(address: PciAddress, pairing: Pairing | None = None) -> str:
    """Return the element that gives a domain a device: `<hostdev>`, or an `<interface>` where it is a network card.

    It is managed: libvirt takes it from the host's driver before, and gives it back afterwards.

    Args:
        address: on the host.
        pairing: for a virtual function of a network card.
    """
    if pairing is None:
        device = ET.Element("hostdev", {"mode": "subsystem", "type": "pci", "managed": "yes"})
        add(add(device, "source"), "address", **address.attributes)
        return ET.tostring(device, encoding="unicode")
    device = ET.Element("interface", {"type": "hostdev", "managed": "yes"})
    add(device, "mac", address=pairing.mac)
    add(add(device, "source"), "address", type="pci", **address.attributes)
    if pairing.partner is not None:
        add(device, "teaming", type="transient", persistent=pairing.partner)
    return ET.tostring(device, encoding="unicode")
