"""What a move with the write throttle needs of its guest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vmferry.core.checks.throttle import check_port, helper_silent
from vmferry.core.guest import BiosBoot, GuestSpec
from vmferry.core.ids import GuestName
from vmferry.core.units import MIB, Bytes

SPEC = GuestSpec(GuestName("web-7"), Bytes(64 * MIB), BiosBoot())
PAGE = Path(__file__).parents[2] / "docs" / "checks.md"


def test_a_guest_needs_the_port() -> None:
    """A guest without it gets one blocker that names it and the line to write; one with it gets none."""
    (blocker,) = check_port(SPEC)
    assert "web-7" in blocker.what
    assert "throttle = true" in blocker.fix
    assert check_port(replace(SPEC, throttle=True)) == ()


def test_the_page_has_both_codes() -> None:
    """docs/checks.md explains what these blockers mean."""
    codes = {check_port(SPEC)[0].code, helper_silent(SPEC, "why").code}
    assert {code for code in codes if f"`{code}`" in PAGE.read_text("utf-8")} == codes
