"""Which files a guest writes, and which of them are copied when it moves: those that its two hosts do not share."""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.guest import MOST_BACKING, Backing, DiskFormat, GuestSpec, UefiBoot
from vmferry.core.units import Bytes

#: How the variables of UEFI are called in QEMU's block layer.
NVRAM_NODE = "uefi-nvram"
#: Larger than any image that can be made: what a peer says is not believed beyond.
MOST_BYTES = Bytes(1 << 60)


@dataclass(frozen=True, slots=True)
class Image:
    """A file that a guest writes."""

    node: str  #: its name in QEMU's block layer, the same on both hosts
    path: str
    format: DiskFormat
    backing: tuple[Backing, ...] = ()  #: what it stands on; a copy stands on the same


@dataclass(frozen=True, slots=True)
class ImageCopy:
    """An image of which the destination gets a copy of its own, at the same path."""

    image: Image
    size_bytes: Bytes  #: as the guest sees it


def disk_node(index: int) -> str:
    """Return the name of the n-th disk of a guest in QEMU's block layer."""
    return f"image{index}"


def written_images(spec: GuestSpec) -> tuple[Image, ...]:
    """Return every file that a guest writes: its disks, and the variables of UEFI."""
    disks = tuple(
        Image(disk_node(index), disk.path, disk.format, disk.backing)
        for index, disk in enumerate(spec.disks)
        if not disk.read_only
    )
    if isinstance(spec.boot, UefiBoot):
        return (*disks, Image(NVRAM_NODE, spec.boot.nvram, DiskFormat.RAW))
    return disks


def wrong_chains(spec: GuestSpec) -> list[str]:
    """Return what is wrong with what a guest's disks stand on, and with images that it has twice."""
    found = []
    for disk in spec.disks:
        formats = [disk.format, *(below.format for below in disk.backing[:-1])]
        if disk.backing and DiskFormat.RAW in formats:
            found.append(f"{disk.path}: an image that is raw stands on another one")
        if len(disk.backing) > MOST_BACKING:
            found.append(f"{disk.path}: it stands on {len(disk.backing)} images, at most {MOST_BACKING}")
    own = [disk.path for disk in spec.disks]
    found += [f"{path}: it is two disks" for path in sorted({path for path in own if own.count(path) > 1})]
    below = {image.path for disk in spec.disks for image in disk.backing}
    return found + [f"{path}: it is a disk, and another image stands on it" for path in sorted(below & set(own))]


def why_not_copies(copies: tuple[ImageCopy, ...], spec: GuestSpec) -> str | None:
    """Return why what a peer wants to copy is none of the guest's images; None when it is in order."""
    known = set(written_images(spec))
    for one in copies:
        if one.image not in known:
            return f"{one.image.path} is no image that guest {spec.name} writes"
        if not 0 < one.size_bytes <= MOST_BYTES:
            return f"image {one.image.path} cannot have {one.size_bytes} bytes"
    if len({one.image.node for one in copies}) < len(copies):
        return "an image is to be copied twice"
    return None
