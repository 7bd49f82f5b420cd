"""The table of faults in libvirt's moves, and its page."""

from __future__ import annotations

from typing import Any

from vmferry.lab.libvirt.faults.cells import EXPECTED, Cell, Fate, Fault, Phase, cell_named, hold_of
from vmferry.lab.libvirt.faults.page import page


def test_every_fault_strikes_in_every_phase() -> None:
    """Only what is not there yet cannot die: the destination's QEMU in the first phase."""
    every = {Cell(phase, fault) for phase in Phase for fault in Fault}
    assert every - set(EXPECTED) == {Cell(Phase.BEGIN, Fault.DESTINATION_QEMU)}
    held = {Cell(phase, fault, held=True) for phase in (Phase.FINISH, Phase.FINISHED, Phase.CONFIRM) for fault in Fault}
    assert set(EXPECTED) - every == held
    assert all(cell_named(cell.name) == cell for cell in EXPECTED)


def test_a_guest_is_never_expected_where_its_only_qemu_died() -> None:
    """Before the destination runs it the source's QEMU has it, and afterwards the destination's."""
    for cell, expected in EXPECTED.items():
        before = cell.phase in (Phase.BEGIN, Phase.PREPARE, Phase.PERFORM)
        if before and cell.fault is Fault.SOURCE_QEMU:
            assert expected.fates == (Fate.OFF,)
        if cell.fault is Fault.COMMAND:
            assert expected.fates == (Fate.DESTINATION,)
        assert expected.why


def test_every_phase_but_the_long_ones_is_held() -> None:
    """A phase that lasts a moment cannot be hit by waiting."""
    assert {cell.phase for cell in EXPECTED if hold_of(cell) is None} == {Phase.PERFORM, Phase.POSTCOPY}


def test_nothing_is_held_for_a_person_where_the_move_holds_it() -> None:
    """Whether it ran at the destination is known then, whatever dies."""
    assert all(Fate.HELD not in expected.fates for cell, expected in EXPECTED.items() if cell.held)


def test_the_page_shows_what_did_not_pass() -> None:
    """A cell that failed, or was not run, is not taken for one that passed."""
    record: dict[str, Any] = {"phase": "perform", "fault": "vmferry", "seen": "twice", "recovered": "nothing"}
    text = page("Made somehow.", [{**record, "verdict": "FAIL", "complaints": ["two ran"]}], lambda *rows: str(rows))
    assert "**FAIL** (twice)" in text
    assert "- **perform: vmferry**: two ran" in text
    assert f"0 of {len(EXPECTED)} cells passed" in text
    assert "not run" in text
