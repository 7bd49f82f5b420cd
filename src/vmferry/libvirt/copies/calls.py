"""What is asked of libvirt's storage; a file of its own beside the adapter, and through its door."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.errors import Refused
from vmferry.core.units import Bytes
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.checks.case import first
from vmferry.libvirt.copies.images import Image, Pool, Size
from vmferry.libvirt.making import add
from vmferry.libvirt.tree import parse


async def list_pools(connection: LibvirtConnection) -> tuple[Pool, ...] | None:
    """Return the pools by name; None from a daemon without a storage driver. Raises as every call of the adapter."""
    try:
        texts = await connection.call(
            "its storage pools", lambda here: [(p.XMLDesc(0), bool(p.isActive())) for p in here.listAllStoragePools(0)]
        )
    except Refused:
        return None
    return tuple(sorted((_pool(xml, is_active=active) for xml, active in texts), key=lambda pool: pool.name))


async def list_volumes(connection: LibvirtConnection, pool: str) -> frozenset[str]:
    """Return what is in an active pool; libvirt looks anew.

    Raises:
        Broken: there is no such pool, or it is not active.
    """

    def look(here: Any) -> list[str]:
        found = here.storagePoolLookupByName(pool)
        found.refresh(0)
        return [str(volume.name()) for volume in found.listAllVolumes(0)]

    return frozenset(await connection.call(f"what is in pool {pool}", look))


async def image_size(connection: LibvirtConnection, domain: str, target: str) -> Size:
    """Return how large the image of a running domain's disk is.

    Raises:
        NotFound: there is no such domain.
        BadInput: it has no such disk.
    """
    info = await connection.call(
        f"size of {target} of domain {domain}", lambda here: here.lookupByName(domain).blockInfo(target, 0)
    )
    return Size(Bytes(int(info[0])), Bytes(int(info[1])))


async def make_image(connection: LibvirtConnection, image: Image) -> None:
    """Make an empty image.

    Raises:
        Broken: it is there already, or cannot be made; nothing was made.
    """
    xml = image_xml(image)
    await connection.call(
        f"image {image.where}", lambda here: here.storagePoolLookupByName(image.pool).createXML(xml, 0)
    )


async def remove_image(connection: LibvirtConnection, image: Image) -> None:
    """Remove an image; one that is not there is removed.

    Raises:
        Broken: libvirt cannot.
    """

    def remove(here: Any) -> None:
        pool = here.storagePoolLookupByName(image.pool)
        pool.refresh(0)
        for volume in pool.listAllVolumes(0):
            if volume.name() == image.volume:
                volume.delete(0)

    await connection.call(f"removal of image {image.where}", remove)


def image_xml(image: Image) -> str:
    """Return an image as libvirt makes it: no space is taken before something is written. Pure.

    In LVM that would be a sparse volume, a snapshot that breaks when it is full: there the whole of it is taken.
    """
    volume = ET.Element("volume")
    add(volume, "name", image.volume)
    add(volume, "capacity", str(image.size.capacity), unit="bytes")
    if not image.is_logical:
        add(volume, "allocation", "0", unit="bytes")
    target = add(volume, "target")
    add(target, "format", type=image.format)
    if image.format == "qcow2":
        add(target, "compat", "1.1")  # libvirt's own default is that of 2012
    return ET.tostring(volume, encoding="unicode")


def _pool(xml: str, *, is_active: bool) -> Pool:
    root = parse(xml)
    name, path, available = (first(root, where) for where in ("name", "target/path", "available"))
    return Pool(
        "" if name is None else name.text,
        "" if path is None else path.text,
        is_active,
        Bytes(0 if available is None else int(available.text)),
        is_logical=root.attributes.get("type") == "logical",
    )
