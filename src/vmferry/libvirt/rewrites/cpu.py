"""A CPU that another host can give. Pure.

A running domain keeps its CPU: these are for the domain as it starts next time, and libvirt refuses them in a move.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.rewrites.rewriting import edited

#: What belongs to the CPU that it was.
_OF_THE_MODEL = {"model", "feature", "vendor", "cache", "maxphysaddr"}


def name_model(xml: str, model: str) -> str:
    """Return the domain with a named CPU model; topology stays, features of the other CPU go; raises as `edited`."""

    def edit(root: ET.Element) -> None:
        cpu = root.find("cpu")
        if cpu is None:
            return
        for child in list(cpu):
            if child.tag in _OF_THE_MODEL:
                cpu.remove(child)
        cpu.attrib.clear()
        cpu.attrib.update({"mode": "custom", "match": "exact", "check": "partial"})
        named = ET.Element("model", {"fallback": "forbid"})
        named.text = model
        cpu.insert(0, named)

    return edited(xml, edit)


def disable_features(xml: str, names: Iterable[str]) -> str:
    """Return the domain without features of its CPU; raises as `edited`."""

    def edit(root: ET.Element) -> None:
        cpu = root.find("cpu")
        if cpu is None:
            return
        for name in names:
            same = [feature for feature in cpu.findall("feature") if feature.get("name") == name]
            for feature in same or [ET.SubElement(cpu, "feature", {"name": name})]:
                feature.set("policy", "disable")

    return edited(xml, edit)
