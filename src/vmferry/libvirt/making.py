"""Making XML."""

from __future__ import annotations

from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.tree import Element


def add(parent: ET.Element, tag: str, text: str | None = None, /, **attributes: str | None) -> ET.Element:
    """Add an element and return it; attributes that are None are left out."""
    given = {name: value for name, value in attributes.items() if value is not None}
    element = ET.SubElement(parent, tag, given)
    element.text = text
    return element


def copy_of(element: Element, copies: dict[int, ET.Element] | None = None) -> ET.Element:
    """Return an element as XML to be made; each part's copy is noted by the part's identity, where it is asked for."""
    copies = {} if copies is None else copies
    made = ET.Element(_named(element.tag), {_named(name): value for name, value in element.attributes.items()})
    made.text = element.text or None
    made.extend(copy_of(child, copies) for child in element.children)
    copies[id(element)] = made
    return made


def _named(name: str) -> str:
    """Return a name as ElementTree has it; one with a namespace ends it by a brace here, and begins with one there."""
    return f"{{{name}" if "}" in name else name
