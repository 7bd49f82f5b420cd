"""Making XML."""

from __future__ import annotations

from xml.etree import ElementTree as ET  # makes XML, reads none


def add(parent: ET.Element, tag: str, text: str | None = None, /, **attributes: str | None) -> ET.Element:
    """Add an element and return it; attributes that are None are left out."""
    given = {name: value for name, value in attributes.items() if value is not None}
    element = ET.SubElement(parent, tag, given)
    element.text = text
    return element
