"""The plots: one SVG for each figure, cells in rows, movers as bars; the same figures always give the same file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grid.cells import GOAL_GAP_MS
from grid.stats import Interval, Row

#: Figure, file, label, divisor, line of the goal.
_PLOTS = (
    ("total_ms", "total", "total time, s (nothing: did not arrive)", 1000.0, None),
    ("gap_ms", "gap", "guest_gap, ms", 1.0, GOAL_GAP_MS),
    ("lost_ms", "work-lost", "work lost, ms of undisturbed work", 1.0, None),
)
_BAR_INCH = 0.17


def draw(rows: Sequence[Row], cells: Sequence[str], movers: Sequence[str], folder: Path, prefix: str) -> list[str]:
    """Draw what there are figures for; returns the files' names.

    Args:
        rows: of the result.
        cells: in the order of the page.
        movers: in the order of the legend.
        folder: where the files go.
        prefix: of their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _draw(rows, cells, movers, folder / f"{prefix}-{plot[1]}.svg", plot)
        for plot in _PLOTS
        if any(row.figures[plot[0]] is not None for row in rows)
    ]


def _draw(
    rows: Sequence[Row],
    cells: Sequence[str],
    movers: Sequence[str],
    file: Path,
    plot: tuple[str, str, str, float, float | None],
) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "vmferry"  # the same ids in every run
    name, _, label, unit, goal = plot
    by_place = {(row.cell, row.mover): row for row in rows}
    shown = [cell for cell in cells if any((cell, mover) in by_place for mover in movers)]
    picture = Figure(figsize=(9, 1.2 + len(shown) * (len(movers) * _BAR_INCH + 0.25)), layout="constrained")
    axes = picture.subplots()
    colours = mpl.colormaps["tab20"]
    for index, mover in enumerate(movers):
        bars = [
            (_place(place, index, len(movers)), found)
            for place, cell in enumerate(shown)
            if (row := by_place.get((cell, mover))) and (found := row.figures[name])
        ]
        axes.barh(
            [place for place, _ in bars],
            [found.median / unit for _, found in bars],
            height=0.8 / len(movers),
            xerr=_errors([found for _, found in bars], unit),
            error_kw={"linewidth": 0.6},
            color=colours(index % 20),
            label=mover,
        )
    if goal is not None:
        axes.axvline(goal, color="black", linestyle=":", linewidth=1, label=f"goal: {goal:.0f} ms")
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_xscale("symlog", linthresh=1.0 if unit > 1 else 10.0)
    picture.legend(loc="outside lower center", ncols=3, fontsize=8)
    picture.savefig(file, metadata={"Date": None})
    return file.name


def _place(cell: int, mover: int, movers: int) -> float:
    return cell - 0.4 + 0.8 * (mover + 0.5) / movers


def _errors(found: Sequence[Interval], unit: float) -> list[list[float]]:
    """Return how far the intervals reach below and above the medians."""
    return [[(one.median - one.low) / unit for one in found], [(one.high - one.median) / unit for one in found]]
