"""Where a PCI device is: one address, and every form in which people and programs write it. Pure.

Source: lspci(8); Linux drivers/pci/probe.c (names in sysfs); libvirt src/util/virpci.c, src/node_device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vmferry.core.errors import BadInput

_LSPCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE)
_NODEDEV = re.compile(r"pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-7])", re.IGNORECASE)
_XML = re.compile(r"<address\b[^<>]*/?>")
_ATTRIBUTE = re.compile(r"""\b(domain|bus|slot|function)\s*=\s*["']([^"']*)["']""")
_NUMBER = re.compile(r"0x[0-9a-f]{1,8}|[0-9]{1,10}", re.IGNORECASE)
#: The most that each part may be; libvirt and Linux know domains of 32 bits.
_MOST = {"domain": 0xFFFFFFFF, "bus": 0xFF, "slot": 0x1F, "function": 7}


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """One function of one device."""

    domain: int
    bus: int
    slot: int
    function: int

    def __post_init__(self) -> None:
        """Refuse an address that no device can have.

        Raises:
            BadInput: a part is too large.
        """
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise BadInput(f"PCI address: {name} {value:#x} is none", fix=f"it is 0 to {most:#x}")

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """Return the address out of any of its forms.

        Args:
            text: `0000:03:00.1` or `03:00.1` (lspci), a path in sysfs that ends in it, `pci_0000_03_00_1` (nodedev), or
                libvirt's `<address domain= bus= slot= function=>`.

        Raises:
            BadInput: it is none of them.
        """
        words = text.strip()
        if words.startswith("<"):
            found = dict(_ATTRIBUTE.findall(words)) if _XML.fullmatch(words) else {}
            return cls.of_attributes(found, text)
        name = words.rstrip("/").rpartition("/")[2] if words.startswith("/sys/") else words
        match = _LSPCI.fullmatch(name) or _NODEDEV.fullmatch(name)
        if match is None:
            raise _none(text)
        domain, bus, slot, function = (int(part or "0", 16) for part in match.groups())
        return cls(domain, bus, slot, function)

    @classmethod
    def of_attributes(cls, attributes: Mapping[str, str], text: str = "<address>") -> PciAddress:
        """Return the address out of the attributes of libvirt's element; a domain that is left out is 0.

        Raises:
            BadInput: a part is missing, or is no number.
        """
        given = {"domain": "0", **attributes}
        numbers = [given.get(name, "") for name in _MOST]
        if not all(_NUMBER.fullmatch(number) for number in numbers):
            raise _none(text)
        return cls(*(int(number, 16 if number[:2].lower() == "0x" else 10) for number in numbers))

    def __str__(self) -> str:
        """Return what lspci -D writes."""
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"

    @property
    def sysfs(self) -> str:
        """Its directory in sysfs."""
        return f"/sys/bus/pci/devices/{self}"

    @property
    def nodedev(self) -> str:
        """What `virsh nodedev-list` calls it."""
        return f"pci_{self.domain:04x}_{self.bus:02x}_{self.slot:02x}_{self.function:x}"

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of libvirt's element."""
        return {
            "domain": f"0x{self.domain:04x}",
            "bus": f"0x{self.bus:02x}",
            "slot": f"0x{self.slot:02x}",
            "function": f"0x{self.function:x}",
        }

    @property
    def xml(self) -> str:
        """What stands in a domain's XML."""
        parts = " ".join(f"{name}='{value}'" for name, value in self.attributes.items())
        return f"<address {parts}/>"

    @property
    def forms(self) -> dict[str, str]:
        """Every form by its name."""
        return {"lspci": str(self), "sysfs": self.sysfs, "nodedev": self.nodedev, "xml": self.xml}


def _none(text: str) -> BadInput:
    return BadInput(
        f"PCI address {text.strip()[:200]!r} is none",
        fix="write 0000:03:00.1, its path in sysfs, pci_0000_03_00_1, or <address domain= bus= slot= function=>",
    )
