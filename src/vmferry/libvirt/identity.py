"""Name, UUID and hypervisor of a domain.

Source: libvirt docs/formatdomain.rst (9.0), General metadata; docs/drvqemu.rst.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.guest import Acceleration, GuestSpec
from vmferry.core.ids import GuestName, GuestUuid, is_name
from vmferry.libvirt.findings import Findings, short
from vmferry.libvirt.making import add
from vmferry.libvirt.tree import Element

CARRIED: Final = (
    ("domain/@type", "`acceleration`: `kvm`, and `tcg` for `qemu`"),
    ("name", "`name`, if it is a DNS label in lower case; else `--name` gives one"),
    ("uuid", "`uuid`"),
)

_ACCELERATION = {"kvm": Acceleration.KVM, "qemu": Acceleration.TCG}
_UUID = re.compile(r"[0-9a-f]{32}")


def read_name(domain: Element, found: Findings, wished: str | None) -> GuestName:
    """Return the guest's name: the one that is wished, else the domain's."""
    element = domain.one("name")
    name = wished if wished is not None else element.text if element is not None else ""
    if not is_name(name):
        found.refuse(
            element or domain,
            short(name),
            "a guest's name is a DNS label in lower case: 1 to 63 of a-z, 0-9 and -, not - at either end",
            "--name NAME",
        )
    return GuestName(name)


def read_uuid(domain: Element, found: Findings) -> GuestUuid | None:
    """Return the UUID in the form that a guest file has; libvirt takes it with and without hyphens."""
    element = domain.one("uuid")
    if element is None:
        return None
    digits = element.text.strip().lower().replace("-", "")
    if not _UUID.fullmatch(digits):
        found.refuse(element, short(element.text), "it is no UUID", "take it out, and the guest gets a new one")
        return None
    return GuestUuid("-".join([digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]]))


def read_acceleration(domain: Element, found: Findings) -> Acceleration:
    """Return what runs the guest's instructions."""
    kind = domain.get("type")
    if kind not in _ACCELERATION:
        found.refuse(
            domain, f"type={short(kind)}", "another hypervisor's guest sees other hardware", "only kvm and qemu"
        )
    return _ACCELERATION.get(kind or "", Acceleration.AUTO)


def write_identity(spec: GuestSpec, root: ET.Element) -> None:
    """Write name, UUID and hypervisor; `auto` becomes `kvm`."""
    root.set("type", "qemu" if spec.acceleration is Acceleration.TCG else "kvm")
    add(root, "name", spec.name)
    if spec.uuid is not None:
        add(root, "uuid", spec.uuid)
