"""A domain's disks as a copy sees them: where each one's image is, and whether it can be copied. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from vmferry.libvirt.checks.case import below, first
from vmferry.libvirt.tree import Element

#: Formats that libvirt makes at the destination, and QEMU writes into.
FORMATS = ("qcow2", "raw")
#: What a disk's source may be for its bytes to be this host's own; everything else is storage that has its own network.
_LOCAL = {"file": "file", "block": "dev", "volume": "volume"}


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the domain."""

    target: str
    here: str  #: where its image is at the source, for messages
    place: str | None  #: its path at the destination; None: it is in `pool`
    pool: str | None
    volume: str
    format: str
    left_out: str | None  #: why a copy of all disks leaves it out; None: it is copied
    in_the_way: str | None  #: why it cannot be copied


def read_disks(here: Element, there: Element) -> tuple[Disk, ...]:
    """Return the disks of a domain in their order.

    Args:
        here: the running domain.
        there: the same as it shall be at the destination.
    """
    named = {_target(disk): disk for disk in below(there, "devices/disk")}
    return tuple(_disk(disk, named.get(_target(disk), disk)) for disk in below(here, "devices/disk"))


def _disk(here: Element, there: Element) -> Disk:
    source, kind = first(here, "source"), here.attributes.get("type", "")
    at = first(there, "source")
    attribute = _LOCAL.get(kind, "")
    in_volume = kind == "volume"
    path = "" if at is None else at.attributes.get(attribute, "")
    pool = at.attributes.get("pool", "") if at is not None and in_volume else None
    return Disk(
        target=_target(here),
        here="" if source is None else _said(source, kind),
        place=None if in_volume else path,
        pool=pool,
        volume=path if in_volume else PurePosixPath(path).name,
        format=_format(here),
        left_out=_left_out(here, kind),
        in_the_way=next(_reasons(here, kind), None),
    )


def _said(source: Element, kind: str) -> str:
    """Return where an image is, for people."""
    words = source.attributes
    if kind == "volume":
        return f"{words.get('volume', '')} in pool {words.get('pool', '')}"
    return words.get(_LOCAL.get(kind, ""), "") or f"{words.get('protocol', kind)}:{words.get('name', '')}"


def _left_out(disk: Element, kind: str) -> str | None:
    if first(disk, "source") is None or disk.attributes.get("device", "disk") not in {"disk", "lun"}:
        return "it is no disk"
    if first(disk, "readonly") is not None:
        return "nobody writes it"
    if kind not in _LOCAL:
        return f"its storage has a network of its own ({kind})"
    return "several guests write it" if first(disk, "shareable") is not None else None


def _reasons(disk: Element, kind: str) -> Iterator[str]:
    """Yield why libvirt, or a copy of ours, would fail or lose something."""
    source, backing = first(disk, "source"), first(disk, "backingStore")
    if source is None or disk.attributes.get("device", "disk") != "disk":
        yield "is no disk that can be copied"
        return
    if kind not in _LOCAL:
        yield f"is storage with a network of its own ({kind}): there is nothing to copy"
    if first(disk, "readonly") is not None:
        yield "is read-only: libvirt copies what is written"
    if first(disk, "shareable") is not None:
        yield "is written by several guests: a copy would part them"
    if first(disk, "encryption") is not None or first(source, "encryption") is not None:
        yield "is encrypted: no image can be made for it without its key"
    if backing is not None and backing.children:
        yield "stands on another image: the copy would be of both (`virsh blockpull` makes it one)"
    if first(disk, "mirror") is not None:
        yield "is being copied already"
    if _format(disk) not in FORMATS:
        yield f"is {_format(disk)}: images of {' and '.join(FORMATS)} can be made"


def _format(disk: Element) -> str:
    driver = first(disk, "driver")
    return "raw" if driver is None else driver.attributes.get("type", "raw")


def _target(disk: Element) -> str:
    target = first(disk, "target")
    return "" if target is None else target.attributes.get("dev", "")
