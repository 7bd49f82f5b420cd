"""Post-copy's first moments: how long a guest is silent, by how its pages follow. Plain QEMU, none of our own agents.

    ./run bench postcopy [--rounds 3] [--cells A,B]

Each variant starts post-copy when the second round has begun. They take turns; guest, link and observers are those of
`./run bench migrate`, whose page explains the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from _bench import conditions, conditions_text, table, write
from grid.cells import Cell, chosen
from grid.figures import Figures
from grid.observe import Observers
from movers.plain import PlainMover
from qemu.qmp import QMPClient

from vmferry.core.rounds.following import QUIET, may_follow
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.lab.hosts import Lab
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.toolchain import find_qemu

CELLS = ("1G/random pages", "100M/writes 1.5x")
LIMIT_S = 60.0
_LIMIT = "max-postcopy-bandwidth"
#: "Quiet, then freely" is our rule for a link that nobody knows.
_UNKNOWN = BytesPerSecond(0)


@dataclass(frozen=True)
class Variant:
    """How pages follow."""

    name: str
    preempt: bool
    quiet: bool = False
    steps: bool = False
    stops_first: bool = False  #: by QMP, as ours do


VARIANTS = (
    Variant("freely", preempt=False),
    Variant("quiet, then in steps", preempt=False, quiet=True, steps=True),
    Variant("freely", preempt=True),
    Variant("quiet, then freely", preempt=True, quiet=True),
    Variant("quiet, then in steps", preempt=True, quiet=True, steps=True),
    Variant("quiet, then in steps; stopped first", preempt=True, quiet=True, steps=True, stops_first=True),
)


class VariantMover(PlainMover):
    """Plain QEMU with one way in which pages follow."""

    postcopy = True
    postcopy_after_round = 2

    def __init__(self, lab: Lab, variant: Variant, cell: Cell) -> None:
        super().__init__(lab)
        self.variant = variant
        self.name = f"{variant.name}, {'preempt' if variant.preempt else 'one channel'}"
        self.capabilities = {"postcopy-ram": True, "postcopy-preempt": variant.preempt}  # type: ignore[misc]
        self.parameters = {_LIMIT: QUIET} if variant.quiet else {}  # type: ignore[misc]
        self.stops_first = variant.stops_first  # type: ignore[misc]
        self._link = (cell.link.limit or _UNKNOWN) if variant.steps else _UNKNOWN
        self._since: float | None = None
        self._set: int | None = None

    async def follow(self, source: QMPClient, status: str) -> None:
        """Let pages follow as fast as the variant has it."""
        if not self.variant.quiet or status != "postcopy-active":
            return
        now = time.monotonic()
        self._since = self._since or now
        limit = may_follow(Milliseconds(1000 * (now - self._since)), self._link) or 0
        if limit != self._set:
            self._set = limit
            await source.execute("migrate-set-parameters", {_LIMIT: limit})


async def measure(cells: Sequence[Cell], rounds: int) -> dict[tuple[str, str], list[Figures]]:
    """Make the moves; returns them by cell and variant."""
    seen: dict[tuple[str, str], list[Figures]] = {}
    qemu = find_qemu(10, 0)
    async with Lab(qemus={"host-a": qemu, "host-b": qemu}) as lab:
        observers = Observers(lab)
        for number in range(1, rounds + 1):
            for cell in cells:
                for variant in VARIANTS:
                    mover = VariantMover(lab, variant, cell)
                    figures = await mover.move(cell, observers, number, LIMIT_S)
                    seen.setdefault((cell.id, mover.name), []).append(figures)
                    print(cell.id, mover.name, figures.total_ms, figures.gap_ms, figures.oracle[:12], flush=True)
        lab.close()
    return seen


def row(cell: str, name: str, moves: Sequence[Figures]) -> tuple[object, ...]:
    """Return a variant's line: every gap, since there are few."""
    gaps = sorted(round(move.gap_ms) for move in moves if move.gap_ms is not None)
    stalls = [move.stall_ms for move in moves if move.stall_ms is not None]
    outages = [move.outage_ms for move in moves if move.outage_ms is not None]
    totals = [move.total_ms / 1000 for move in moves if move.total_ms is not None]
    clean = sum(move.oracle.startswith("oracle clean") for move in moves)
    return (
        *(cell, name, f"{clean}/{len(moves)}", ", ".join(map(str, gaps))),
        statistics.median(stalls) if stalls else None,
        statistics.median(outages) if outages else None,
        f"{statistics.median(totals):.2f}" if totals else None,
    )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=lambda text: text.split(","), default=list(CELLS))
    asked = parser.parse_args()
    began = time.monotonic()
    with page_faults_for_all():
        seen = asyncio.run(measure(chosen(asked.cells, short=False), asked.rounds))
    command = f"./run bench postcopy --rounds {asked.rounds} --cells '{','.join(asked.cells)}'"
    found = conditions(command, "TCG", "10.0", time.monotonic() - began)
    header = ("cell", "pages follow", "clean", "gaps, ms", "stall, ms", "outage, ms", "total, s")
    rows = [row(*key, moves) for key, moves in sorted(seen.items())]
    page = (
        "# Post-copy's first moments\n\n"
        + conditions_text(found)
        + "\nPlain QEMU, in the clear, post-copy when the second round has begun; the figures are those of"
        " [Everybody side by side](migrate.md). *Quiet* is 400 KiB/s for 250 ms from `postcopy-active` on, *steps* are"
        " 1/16, 1/8, 1/4 and 1/2 of the link, each for as long as the link takes for 4 MiB; stall, outage and total are"
        ' medians (core/rounds/following.py). What it means: docs/design/postcopy.md, "The first moments".\n\n'
        + table(header, rows)
    )
    write("postcopy", {"conditions": found, "rows": [dict(zip(header, line, strict=True)) for line in rows]}, page)


if __name__ == "__main__":
    main()
