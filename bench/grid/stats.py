"""Medians, intervals and the comparison of a cell: pure, and the same figures always give the same answer."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grid.cells import GOAL_GAP_MS, Cell, feasibility
from grid.figures import Figures

#: How much longer than the best of all movers ours may take.
FACTOR = 1.05
RESAMPLES = 4000
MIN_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and the 95 % interval in which it lies, by the bootstrap."""

    median: float
    low: float
    high: float
    count: int


def interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Return the median with its interval; None without values. With one value the interval says nothing."""
    if not values:
        return None
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]
    return Interval(statistics.median(values), low, high, len(values))


@dataclass(frozen=True, slots=True)
class Row:
    """One mover in one cell."""

    cell: str
    mover: str
    runs: int
    arrived: int
    dirty: int  #: runs whose oracle was not clean
    figures: dict[str, Interval | None]

    def median(self, name: str) -> float | None:
        """Return a figure's median."""
        found = self.figures[name]
        return None if found is None else found.median


#: Figures with a median in the table; bytes of runs that did not arrive count too.
FIGURES = (
    "total_ms", "gap_ms", "gap_before_ms", "stall_ms", "outage_ms", "wire_bytes", "qemu_bytes", "stream_ms",
    "downtime_ms", "rounds", "efficiency", "lost_ms", "lost_share",
)  # fmt: skip


def rows_of(moves: Sequence[Figures]) -> list[Row]:
    """Return a row per cell and mover, in the order in which they first appear."""
    grouped: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for move in moves:
        grouped[move.cell, move.mover].append(move)
    return [_row(cell, mover, group) for (cell, mover), group in grouped.items()]


def _row(cell: str, mover: str, group: Sequence[Figures]) -> Row:
    figures = {
        name: interval([value for move in group if (value := getattr(move, name)) is not None]) for name in FIGURES
    }
    arrived, dirty = sum(move.arrived for move in group), sum(not move.is_clean for move in group)
    return Row(cell, mover, len(group), arrived, dirty, figures)


@dataclass(frozen=True, slots=True)
class Contest:
    """Ours in one cell, against the least total time of all movers whose gap was within the goal."""

    cell: str
    ours: str
    rival: str | None  #: the best of the others; None: no other one met the goal
    ratio: Interval | None  #: ours over the rival's, of paired runs
    faster: int  #: pairs in which ours took at most FACTOR times as long
    pairs: int
    met: bool
    reason: str | None  #: why it is a miss
    enough: bool  #: whether there were enough rounds to say it
    like: str | None  #: the best of the others that are allowed no more: without post-copy and help, for one without
    like_ratio: Interval | None
    like_met: bool
    first_byte_ms: (
        float | None
    )  #: ours, from the order: checks, reservation, a QEMU that listens; alike for every guest

    def as_json(self) -> dict[str, Any]:
        """Return it for the result."""
        return asdict(self)


def contests(
    cells: Sequence[Cell],
    moves: Sequence[Figures],
    ours: Collection[str],
    postcopy: Collection[str] = (),
    helped: Collection[str] = (),
) -> list[Contest]:
    """Return a contest for each of ours in each cell that it can meet.

    Args:
        cells: of the run.
        moves: all of them.
        ours: the project's own movers that take part.
        postcopy: every mover that may use post-copy.
        helped: every mover that a helper in the guest helps.
    """
    found = []
    for cell in cells:
        here = [move for move in moves if move.cell == cell.id]
        for name in ours:
            if any(move.mover == name for move in here) and can_be_met(cell, postcopy=name in postcopy):
                more = {*(() if name in postcopy else postcopy), *(() if name in helped else helped)}
                found.append(_contest(cell.id, name, here, more))
    return found


def can_be_met(cell: Cell, *, postcopy: bool) -> bool:
    """Return whether a mover must meet the goal in a cell: by the test that was stated beforehand."""
    said = feasibility(cell)
    return bool(said.by_precopy) or (postcopy and said.by_postcopy)


def _contest(cell: str, ours: str, here: Sequence[Figures], more: Collection[str]) -> Contest:
    """Return one contest; `more` are the movers that are allowed what ours is not."""
    rows = {row.mover: row for row in rows_of(here)}
    mine = rows[ours]
    rivals = {row.mover: row.median("total_ms") or 0.0 for row in rows.values() if row.mover != ours and _meets(row)}
    rival = min(rivals, key=lambda name: rivals[name], default=None)
    like = min(rivals.keys() - set(more), key=lambda name: rivals[name], default=None)
    ratios = _ratios(here, ours, rival) if rival else []
    ratio, like_ratio = interval(ratios), interval(_ratios(here, ours, like) if like else [])
    reason = _why_not(mine, ratio, rival)
    return Contest(
        cell,
        ours,
        rival,
        ratio,
        sum(value <= FACTOR for value in ratios),
        len(ratios),
        reason is None,
        reason,
        mine.runs >= MIN_ROUNDS,
        like,
        like_ratio,
        _why_not(mine, like_ratio, like) is None,
        _first_byte_ms([move for move in here if move.mover == ours]),
    )


def _first_byte_ms(moves: Sequence[Figures]) -> float | None:
    seen = [float(str(value)) for move in moves if (value := move.more.get("first_byte_ms")) is not None]
    return statistics.median(seen) if seen else None


def _meets(row: Row) -> bool:
    gap = row.median("gap_ms")
    return row.arrived == row.runs and not row.dirty and gap is not None and gap <= GOAL_GAP_MS


def _ratios(here: Sequence[Figures], ours: str, rival: str) -> list[float]:
    """Return ours over the rival's total time, for the rounds in which both arrived."""
    return paired(here, ours, rival, "total_ms")


def paired(here: Sequence[Figures], ours: str, rival: str, figure: str) -> list[float]:
    """Return ours over the rival's, for the rounds in which both arrived.

    Args:
        here: moves of one cell.
        ours: a mover.
        rival: another one.
        figure: which of `FIGURES`.
    """
    arrived = [move for move in here if move.arrived and getattr(move, figure)]
    theirs = {move.round: getattr(move, figure) for move in arrived if move.mover == rival}
    mine = {move.round: getattr(move, figure) for move in arrived if move.mover == ours}
    return [mine[number] / theirs[number] for number in sorted(mine.keys() & theirs.keys())]


def _why_not(mine: Row, ratio: Interval | None, rival: str | None) -> str | None:
    gap = mine.median("gap_ms")
    if mine.arrived < mine.runs:
        return f"arrived in {mine.arrived} of {mine.runs} runs"
    if mine.dirty:
        return f"the memory was not whole in {mine.dirty} of {mine.runs} runs"
    if gap is None or gap > GOAL_GAP_MS:
        return f"gap {'not measured' if gap is None else f'{gap:.0f} ms'}"
    if ratio is not None and ratio.median > FACTOR:
        return f"{ratio.median:.2f} times as long as {rival}"
    return None
