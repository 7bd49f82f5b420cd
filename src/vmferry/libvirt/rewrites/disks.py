"""Where the domain's images are at the destination. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.rewrites.rewriting import checked, edited, replace_attribute


def replace_disks(xml: str, paths: Mapping[str, str]) -> str:
    """Return the domain with its images, and those on which they stand, at other paths; raises as `edited`, `checked`.

    Args:
        xml: the domain.
        paths: of files and block devices, here -> there.
    """
    checked(paths, "image")

    def edit(root: ET.Element) -> None:
        for disk in root.findall("devices/disk"):
            for holder in (disk, *disk.iter("backingStore")):
                for attribute in ("file", "dev"):
                    replace_attribute(holder.find("source"), attribute, paths)

    return edited(xml, edit)
