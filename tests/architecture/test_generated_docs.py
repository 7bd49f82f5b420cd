"""The generated parts of docs/handover.md say what the tables say."""

from pathlib import Path

import pytest

from vmferry.core.handover.states import FACTS, Side
from vmferry.sim.reference import generated, meanings, updated

PAGE = Path(__file__).resolve().parents[2] / "docs/handover.md"


def test_handover_page_is_current() -> None:
    """Making the page anew changes nothing; if it does: python -m vmferry.sim.reference docs/handover.md."""
    text = PAGE.read_text(encoding="utf-8")
    assert updated(text) == text


def test_every_generated_part_stands_on_the_page() -> None:
    """No part is generated that nobody can read."""
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in generated() if f"<!-- generated: {name} -->" not in text] == []


def test_every_state_has_a_meaning() -> None:
    """Each state of both sides has a sentence beside it in states.py, and the page shows it."""
    text = PAGE.read_text(encoding="utf-8")
    told = {state: sentence for side in Side for state, sentence in meanings(side).items()}
    assert set(told) == set(FACTS)
    assert [state for state, sentence in told.items() if not sentence.endswith(".") or sentence not in text] == []


def test_an_unknown_mark_is_an_error() -> None:
    """A part that nothing is generated for is not left empty in silence."""
    with pytest.raises(KeyError, match="poem"):
        updated("<!-- generated: poem -->\n<!-- end -->\n")
