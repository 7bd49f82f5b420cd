"""On which address of the destination the domain's screens are served. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.rewrites.rewriting import checked, edited, replace_attribute


def replace_listen(xml: str, addresses: Mapping[str, str]) -> str:
    """Return the domain with its screens on other addresses; raises as `edited` and `checked`.

    libvirt writes an address twice, and refuses XML in which the two differ: both are replaced.
    """
    checked(addresses, "address")

    def edit(root: ET.Element) -> None:
        for graphics in root.findall("devices/graphics"):
            replace_attribute(graphics, "listen", addresses)
            for listen in graphics.findall("listen"):
                if listen.get("type") == "address":
                    replace_attribute(listen, "address", addresses)

    return edited(xml, edit)
