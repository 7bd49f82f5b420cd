"""What the domain's network cards are plugged into at the destination. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.rewrites.rewriting import checked, edited, replace_attribute

#: What this host made of a network for this card: nothing of it holds at another one.
_MADE_HERE = ("portid", "bridge")


def replace_bridges(xml: str, names: Mapping[str, str]) -> str:
    """Return the domain with other bridges; raises as `edited` and `checked`."""
    return _replace(xml, "bridge", "bridge", names)


def replace_cards(xml: str, names: Mapping[str, str]) -> str:
    """Return the domain with other cards of the host under its macvtaps; raises as `edited` and `checked`."""
    return _replace(xml, "direct", "dev", names)


def replace_networks(xml: str, names: Mapping[str, str]) -> str:
    """Return the domain in other networks of libvirt's; raises as `edited` and `checked`."""
    return _replace(xml, "network", "network", names)


def _replace(xml: str, kind: str, attribute: str, names: Mapping[str, str]) -> str:
    checked(names, kind)

    def edit(root: ET.Element) -> None:
        for interface in root.findall("devices/interface"):
            source = interface.find("source")
            if interface.get("type") != kind or source is None:
                continue
            old = source.get(attribute)
            if replace_attribute(source, attribute, names) and kind == "network" and source.get(attribute) != old:
                for name in _MADE_HERE:
                    source.attrib.pop(name, None)

    return edited(xml, edit)
