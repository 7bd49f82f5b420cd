"""A domain's memory.

Source: libvirt docs/formatdomain.rst (9.0), Memory Allocation; src/util/virutil.c, virScaleInteger; QEMU's memory is
rounded up to whole MiB by libvirt itself (src/qemu/qemu_domain.c, qemuDomainAlignMemorySizes).
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.guest import GuestSpec
from vmferry.core.units import MIB, Bytes, format_bytes
from vmferry.libvirt.findings import Findings, short
from vmferry.libvirt.making import add
from vmferry.libvirt.tree import Element

CARRIED: Final = (("memory", "`memory`, rounded up to whole MiB as libvirt does"),)

_LEAST = 2 * MIB
_MOST = 16 * 1024 * 1024 * MIB
_PREFIXES = "kmgtpe"
_UNIT = "KiB"


def read_memory(domain: Element, found: Findings) -> Bytes:
    """Return the guest's RAM; what the balloon had taken of it is given back, and that is told."""
    element, current = domain.one("memory"), domain.one("currentMemory")
    size, now = _size(element), _size(current)
    if element is None or size is None or not _LEAST <= size <= _MOST:
        seen = "missing" if element is None else f"{short(element.text)} {element.get('unit') or _UNIT}"
        found.refuse(element or domain, seen, "a guest has 2 MiB to 16 TiB of memory", "write it in MiB")
        return Bytes(_LEAST)
    whole = -(-size // MIB) * MIB
    if current is not None and now is not None and now < size:
        text = f"{format_bytes(Bytes(now))} of {format_bytes(Bytes(whole))}"
        found.tell(current, text, "the guest has all of its memory from the start")
    return Bytes(whole)


def scale(number: int, unit: str) -> int | None:
    """Return a number of bytes as libvirt understands it: `k` and `KiB` are 1024, `KB` is 1000; None for no unit."""
    lower = unit.lower()
    if lower in {"b", "byte", "bytes"}:
        return number
    prefix, rest = lower[:1], lower[1:]
    if prefix not in _PREFIXES or not prefix or rest not in {"", "ib", "b"}:
        return None
    base = 1000 if rest == "b" else 1024
    return int(number * base ** (_PREFIXES.index(prefix) + 1))


def write_memory(spec: GuestSpec, root: ET.Element) -> None:
    """Write it in KiB, as libvirt prints it."""
    add(root, "memory", str(spec.memory_bytes // 1024), unit=_UNIT)


def _size(element: Element | None) -> int | None:
    if element is None:
        return None
    unit = element.get("unit") or _UNIT
    number = element.text.strip()
    return scale(int(number), unit) if number.isascii() and number.isdigit() else None
