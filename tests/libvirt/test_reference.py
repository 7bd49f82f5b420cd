"""The tables of docs/libvirt.md say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.libvirt.reference import generated, updated

PAGE = Path(__file__).parents[2] / "docs" / "libvirt.md"


def test_the_page_is_current() -> None:
    """Making the page anew changes nothing; if it does: python -m vmferry.libvirt.reference docs/libvirt.md."""
    text = PAGE.read_text()
    assert updated(text) == text


def test_every_part_stands_on_the_page() -> None:
    """No part is generated that nobody can read."""
    text = PAGE.read_text()
    assert [name for name in generated() if f"<!-- generated: {name} -->" not in text] == []


def test_every_name_to_accept_has_its_place_in_the_xml() -> None:
    """Who reads the table finds for each name what of a domain it is about."""
    rows = [line for line in generated()["accept"].splitlines()[2:] if line]
    assert [row for row in rows if not row.split(" | ")[-1].strip(" |")] == []


def test_an_unknown_mark_is_an_error() -> None:
    """A part that nothing is generated for is not left empty in silence."""
    with pytest.raises(KeyError, match="poem"):
        updated("<!-- generated: poem -->\n<!-- end -->\n")
