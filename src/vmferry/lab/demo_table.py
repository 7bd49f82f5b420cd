"""The table at the end of the demonstration: what was measured, both moves side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.table import Table

from vmferry.core.progress import Gap, Report
from vmferry.core.units import format_bytes, format_ms, format_rate

T = TypeVar("T")

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Move:
    """One move of the demonstration's guest: the agents' report, and what was measured from outside them."""

    report: Report
    network_outage: Gap | None  #: by the prober in the fabric; None without one
    oracle: str  #: the guest's own words about its memory after the move

    @property
    def is_clean(self) -> bool:
        """Whether the guest arrived with its memory whole."""
        return self.report.outcome == "moved" and self.oracle.startswith("oracle clean")


def moves_table(moves: Sequence[Move]) -> Table:
    """Return the table: one row per measure, one column per move; what nobody measured says so."""
    tags = ", ".join(dict.fromkeys(move.report.acceleration for move in moves))
    table = Table(title=f"Measured ({tags})", title_justify="left")
    table.add_column("")
    for move in moves:
        table.add_column(f"{move.report.source} → {move.report.destination}", justify="right")
    for name, value in ROWS:
        table.add_row(name, *(value(move) for move in moves))
    return table


def _said(value: T | None, text: Callable[[T], str]) -> str:
    return NOT_MEASURED if value is None else text(value)


def _optional(milliseconds: float | None) -> str:
    return _said(milliseconds, format_ms)


def _gap(gap: Gap | None) -> str:
    """Return the largest gap with its uncertainty."""
    return _said(gap, lambda found: f"{format_ms(found.largest_ms)} ± {format_ms(found.uncertainty_ms)}")


def _baseline(gap: Gap | None) -> str:
    """Return what the same guest shows without a migration."""
    return _optional(None if gap is None else gap.baseline_ms)


def _oracle(move: Move) -> str:
    return "clean" if move.oracle.startswith("oracle clean") else move.oracle


#: (what it is, how it is read); the words are the project's vocabulary
ROWS: tuple[tuple[str, Callable[[Move], str]], ...] = (
    ("outcome", lambda move: str(move.report.outcome)),
    ("total time", lambda move: _optional(move.report.total_ms)),
    ("to the first byte", lambda move: _optional(move.report.first_byte_ms)),
    ("rounds", lambda move: _said(move.report.rounds, str)),
    ("bytes sent", lambda move: _said(move.report.transferred_bytes, format_bytes)),
    ("bandwidth", lambda move: _said(move.report.bandwidth, format_rate)),
    ("encrypted", lambda move: "yes" if move.report.encrypted else "no"),
    ("downtime (QEMU)", lambda move: _optional(move.report.downtime_ms)),
    ("guest_gap (beats)", lambda move: _gap(move.report.guest_gap)),
    ("  without a move", lambda move: _baseline(move.report.guest_gap)),
    ("network_outage (UDP)", lambda move: _gap(move.network_outage)),
    ("  without a move", lambda move: _baseline(move.network_outage)),
    ("stall in the guest", lambda move: _optional(move.report.in_guest_stall_ms)),
    ("commit", lambda move: _optional(move.report.commit_ms)),
    ("memory after the move", _oracle),
)
