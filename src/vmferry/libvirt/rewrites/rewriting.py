"""What all rewrites have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.errors import BadInput
from vmferry.libvirt.making import copy_of
from vmferry.libvirt.tree import parse

T = TypeVar("T", bound=Hashable)


def edited(xml: str, edit: Callable[[ET.Element], None]) -> str:
    """Return what a change makes of XML; the very same text where it changes nothing.

    Args:
        xml: a domain.
        edit: makes the change in a copy.

    Raises:
        XmlRefused: it is no XML that is read here.
    """
    root = copy_of(parse(xml))
    before = ET.tostring(root, encoding="unicode")
    edit(root)
    after = ET.tostring(root, encoding="unicode")
    return xml if after == before else after


def checked(names: Mapping[T, T], what: str) -> Mapping[T, T]:
    """Return names that can be replaced in any order, and a second time without effect.

    Raises:
        BadInput: one that is put in is replaced as well, so that it would depend on the order.
    """
    for old, new in names.items():
        if new in names and names[new] != new:
            raise BadInput(
                f"{what} {old} becomes {new}, and {new} becomes {names[new]}: that depends on the order",
                fix="move in two steps, or choose other ones",
            )
    return names


def replace_attribute(element: ET.Element | None, name: str, names: Mapping[str, str]) -> bool:
    """Replace an attribute's value if it is among the names; tell whether it was."""
    value = None if element is None else element.get(name)
    if element is None or value is None or value not in names:
        return False
    element.set(name, names[value])
    return True
