"""Makers and models of PCI devices, from the list that distributions install (pci.ids); empty where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

_PLACES = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))
_Names = dict[tuple[int, int | None], str]


def name_of(vendor: int, device: int) -> str:
    """Return maker and model, or the maker alone, or nothing."""
    names = _installed()
    words = (names.get((vendor, None), ""), names.get((vendor, device), ""))
    return " ".join(word for word in words if word)


@cache
def _installed() -> _Names:
    for place in _PLACES:
        try:
            with place.open(encoding="utf-8", errors="replace") as file:
                return parse(file)
        except OSError:
            continue
    return {}


def parse(lines: Iterable[str]) -> _Names:
    """Return the names in such a list: a vendor's line, then a line with a tab for each of its devices."""
    names: _Names = {}
    vendor = None
    for line in lines:
        if not line.strip() or line.startswith(("#", "\t\t")):
            continue
        if line.startswith("C "):  # classes begin, and go on to the end
            break
        number, _, name = line.strip().partition("  ")
        try:
            value = int(number, 16)
        except ValueError:
            continue
        if not line.startswith("\t"):
            vendor = value
            names[vendor, None] = name
        elif vendor is not None:
            names[vendor, value] = name
    return names
