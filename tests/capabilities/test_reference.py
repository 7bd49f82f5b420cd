"""The page about capabilities is the table."""

from __future__ import annotations

from pathlib import Path

from vmferry.core.capabilities import EXCLUSIONS, FEATURES, REQUIREMENTS
from vmferry.qemu.reference import render

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"


def test_the_page_is_current() -> None:
    """Writing it anew changes nothing: python -m vmferry.qemu.reference > docs/capabilities.md."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_every_row_stands_on_the_page() -> None:
    """Nothing that decides is hidden."""
    text = PAGE.read_text(encoding="utf-8")
    assert [one.name for one in FEATURES if f"| `{one.name}` |" not in text] == []
    pairs = [(rule.one, rule.other) for rule in EXCLUSIONS] + [(rule.user, rule.needs) for rule in REQUIREMENTS]
    assert [pair for pair in pairs if f"| `{pair[0]}` | `{pair[1]}` |" not in text] == []
