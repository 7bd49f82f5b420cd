"""A change of a domain's XML, shown as a diff."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.making import copy_of
from vmferry.libvirt.tree import Element, parse

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
    return _diff(before, _lines(copy))


def diff_by(domain: Element, rewrite: Callable[[str], str]) -> str:
    """Return what a rewrite (`libvirt.rewrites`) does to a domain, as `diff_of` does."""
    text = ET.tostring(copy_of(domain), encoding="unicode")
    before, after = (_lines(copy_of(parse(xml))) for xml in (text, rewrite(text)))
    return _diff(before, after)


def _diff(before: list[str], after: list[str]) -> str:
    return "\n".join(difflib.unified_diff(before, after, "domain.xml", "domain.xml", n=1, lineterm=""))


def _lines(root: ET.Element) -> list[str]:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode").splitlines()
