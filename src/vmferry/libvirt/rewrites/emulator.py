"""Which program runs the domain at the destination. Pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.rewrites.rewriting import edited


def set_emulator(xml: str, path: str) -> str:
    """Return the domain with another emulator, where its XML names one; raises as `edited`."""

    def edit(root: ET.Element) -> None:
        emulator = root.find("devices/emulator")
        if emulator is not None:
            emulator.text = path

    return edited(xml, edit)
