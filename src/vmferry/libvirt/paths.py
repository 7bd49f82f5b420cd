"""Paths: the same file on every host."""

from __future__ import annotations

from vmferry.libvirt.findings import Findings, short
from vmferry.libvirt.tree import Element


def read_path(element: Element, found: Findings, attribute: str | None = None) -> str:
    """Return the absolute path that an element's text or attribute is; "" and a finding when it is none."""
    path = element.text if attribute is None else element.get(attribute)
    if path is None or not path.startswith("/") or path.endswith("/") or any(ord(char) < 32 for char in path):
        found.refuse(element, short(path), "no absolute path", "name the file by its path, the same on every host")
        return ""
    return path
