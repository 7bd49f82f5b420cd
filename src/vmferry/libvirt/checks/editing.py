"""A change of a domain's XML, shown as a diff."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.tree import Element

#: From an element of the tree to the one that may be changed.
Lookup = Callable[[Element], ET.Element]


def diff_of(domain: Element, edit: Callable[[Lookup], None]) -> str:
    """Return what a change does to a domain, as a unified diff with one line around; "" when it does nothing.

    Args:
        domain: the domain; it is not changed.
        edit: makes the change in a copy, whose elements it gets by the domain's own.
    """
    copies: dict[int, ET.Element] = {}
    copy = copy_of(domain, copies)
    before = _lines(copy)
    edit(lambda element: copies[id(element)])
    lines = difflib.unified_diff(before, _lines(copy), "domain.xml", "domain.xml", n=1, lineterm="")
    return "\n".join(lines)


def copy_of(element: Element, copies: dict[int, ET.Element] | None = None) -> ET.Element:
    """Return an element as XML to be made; each part's copy is noted by the part's identity, where it is asked for."""
    copies = {} if copies is None else copies
    tag = f"{{{element.tag}" if "}" in element.tag else element.tag
    made = ET.Element(tag, dict(element.attributes))
    made.text = element.text or None
    made.extend(copy_of(child, copies) for child in element.children)
    copies[id(element)] = made
    return made


def _lines(root: ET.Element) -> list[str]:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode").splitlines()
