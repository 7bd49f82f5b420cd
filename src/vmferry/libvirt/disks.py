"""Disks and CD-ROM drives with their images.

Source: libvirt docs/formatdomain.rst (9.0), Hard drives, floppy disks, CDROMs; a missing format is raw (libvirt never
probes), a missing cache mode is QEMU's writeback.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.guest import MOST_BACKING, Backing, Disk, DiskFormat, GuestSpec, IoPath
from vmferry.libvirt.findings import Findings, short
from vmferry.libvirt.making import add
from vmferry.libvirt.paths import read_path
from vmferry.libvirt.tree import Element

CARRIED: Final = (
    ("devices/disk/source (file, block)", "`image`"),
    ("devices/disk/driver/@type", "`format`; `raw` where nothing is said, as libvirt takes it"),
    ("devices/disk/driver/@cache", "`cache`: `directsync` where the guest waits with each write, else `none`"),
    ("devices/disk/target/@bus", "`io_path`: `virtio`, and `emulated` for `sata`"),
    ("devices/disk/readonly", "`read_only`"),
    ("devices/disk/backingStore", "`backing`"),
)

_BUSES = {"virtio": IoPath.VIRTIO, "sata": IoPath.EMULATED}
#: where a disk of that type has its path
_PATHS = {"file": "file", "block": "dev"}
_TYPES_REFUSED = {
    "dir": "a directory shown as a FAT disk",
    "network": "an image that QEMU fetches over the network",
    "volume": "a volume of a storage pool, whose path only libvirt knows",
    "nvme": "an NVMe device of the host",
    "vhostuser": "a disk served by another process over vhost-user",
    "vhostvdpa": "a vDPA device of the host",
}
#: (what the guest files have instead, what changes); the guest sees the same write cache as before
_CACHES = {
    None: ("none", None),
    "default": ("none", None),
    "none": ("none", None),
    "writeback": ("none", "images are opened past the host's page cache: the next host would not see what is in it"),
    "unsafe": ("none", "what the guest flushes is written"),
    "writethrough": ("directsync", "images are opened past the host's page cache, which goes stale on a move"),
    "directsync": ("directsync", None),
}


def read_disks(devices: Element, found: Findings) -> tuple[Disk, ...]:
    """Return the disks in the order of the XML."""
    read = [_read_disk(element, found) for element in devices.every("disk")]
    return tuple(disk for disk in read if disk is not None)


def write_disks(spec: GuestSpec, devices: ET.Element) -> None:
    """Write each disk with its whole chain, so that libvirt does not look into the images for it."""
    letters: dict[str, int] = {}
    for disk in spec.disks:
        bus, prefix = ("virtio", "vd") if disk.io_path is IoPath.VIRTIO else ("sata", "sd")
        letter = letters[prefix] = letters.get(prefix, -1) + 1
        kind = _type_of(disk.path)
        element = add(devices, "disk", type=kind, device="cdrom" if disk.is_cdrom else "disk")
        add(element, "driver", name="qemu", type=disk.format.value, cache=disk.cache, discard="unmap")
        add(element, "source", None, **{_PATHS[kind]: disk.path})
        _write_backing(element, disk)
        add(element, "target", dev=prefix + _letters(letter), bus=bus)
        if disk.read_only:
            add(element, "readonly")


def _type_of(path: str) -> str:
    """Return what libvirt calls it: what lies in /dev is a device."""
    return "block" if path.startswith("/dev/") else "file"


def _letters(number: int) -> str:
    """Return a, b, ... z, aa, ab, ... as Linux counts disks."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _write_backing(element: ET.Element, disk: Disk) -> None:
    for below in disk.backing:
        kind = _type_of(below.path)
        element = add(element, "backingStore", type=kind)
        add(element, "format", type=below.format.value)
        add(element, "source", None, **{_PATHS[kind]: below.path})
    if disk.format is DiskFormat.QCOW2:
        add(element, "backingStore")


def _read_disk(element: Element, found: Findings) -> Disk | None:
    """Return one disk; None for one that is not taken over, which is told."""
    device, kind = element.get("device") or "disk", element.get("type") or "file"
    source = element.one("source")
    if why := _why_not(element, device, kind):
        found.refuse(element, f"type={short(kind)} device={short(device)}", why, "give it another disk, or detach it")
        element.read_whole()
        return None
    if source is None or not source.attributes.keys() & set(_PATHS.values()):
        _tell_no_source(element, device, found)
        return None
    path = read_path(source, found, _PATHS[kind])
    driver = element.one("driver")
    image_format, cache = _read_driver(driver, found)
    io_path = _read_bus(element, found)
    read_only = element.one("readonly") is not None or device == "cdrom"
    if read_only and device == "disk" and io_path is IoPath.EMULATED:
        found.refuse(element, "a read-only SATA disk", "guests have such a one as a CD-ROM only", "bus='virtio'")
    return Disk(path, image_format, io_path, read_only, cache, _read_backing(element, found))


def _why_not(element: Element, device: str, kind: str) -> str | None:
    if device not in {"disk", "cdrom"}:
        return "only disks and CD-ROM drives are supported"
    if kind not in _PATHS:
        return _TYPES_REFUSED.get(kind, "where its image is is not known here")
    model = element.get("model")
    return None if model in {None, "virtio"} else f"model {short(model)}: the guest would see another device"


def _tell_no_source(element: Element, device: str, found: Findings) -> None:
    if device == "cdrom":
        found.ask(element, "no medium", "cdrom")
    else:
        found.refuse(element, "no <source>", "a disk without an image", "name its image, or detach it")
    element.read_whole()


def _read_driver(driver: Element | None, found: Findings) -> tuple[DiskFormat, str]:
    if driver is None:
        return DiskFormat.RAW, "none"
    name, kind, mode = driver.get("name") or "qemu", driver.get("type") or "raw", driver.get("cache")
    if name != "qemu" or kind not in set(DiskFormat):
        seen = f"name={short(name)} type={short(kind)}"
        found.refuse(driver, seen, "only raw and qcow2 of QEMU", "convert it (qemu-img convert -O qcow2)")
        return DiskFormat.RAW, "none"
    cache, change = _CACHES.get(mode, ("none", f"no cache mode known here: {short(mode)}"))
    if change is not None:
        found.tell(driver, f"cache={short(mode)}", f'{change}; here it is cache = "{cache}"')
    return DiskFormat(kind), cache


def _read_bus(element: Element, found: Findings) -> IoPath:
    target = element.one("target")
    bus = target.get("bus") if target is not None else None
    if target is not None:
        target.get("dev")  # a hint at the order, not what the guest calls it
    if bus not in _BUSES:
        fix = "bus='virtio' or bus='sata', when the guest has the driver"
        found.refuse(target or element, f"bus={short(bus)}", "guests have virtio and SATA disks", fix)
    return _BUSES.get(bus or "", IoPath.VIRTIO)


def _read_backing(element: Element, found: Findings) -> tuple[Backing, ...]:
    chain: list[Backing] = []
    store = element.one("backingStore")
    while store is not None and (store.children or store.attributes):
        kind, source, form = store.get("type") or "", store.one("source"), store.one("format")
        store.get("index")
        name = form.get("type") if form is not None else None
        if kind not in _PATHS or source is None or name not in set(DiskFormat):
            seen = f"type={short(kind)} format={short(name)}"
            found.refuse(store, seen, "only raw and qcow2 files below an image", "flatten it (virsh blockpull)")
            store.read_whole()
            break
        chain.append(Backing(read_path(source, found, _PATHS[kind]), DiskFormat(name or "")))
        store = store.one("backingStore")
    if len(chain) > MOST_BACKING:
        found.refuse(element, f"{len(chain)} images", f"at most {MOST_BACKING} below one", "commit some of them")
    return tuple(chain)
