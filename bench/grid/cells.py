"""The cells of the grid and the test that says beforehand which of them can be met; pure.

A cell is a guest with a workload on a link. What it dirties in a time is known from the workload itself: sequential
writes dirty a new page each until the working set is through; random writes hit pages again; the hot-spot sends nine
writes in ten to a tenth of its pages (lab/guests/workload/writer.c).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.guest_plans import GuestPlan, NicPlan

#: The longest pause that a move may cost.
GOAL_GAP_MS = 300.0
#: QEMU's header on the wire, beside each page. Source: migration/ram.c, save_page_header.
PAGE, HEADER = 4096, 8
#: What one plain stream sends here without any limit: the machine's CPUs are the limit then (measured, see the page).
UNLIMITED_MIB_S = 300.0
GUEST = "web-7"


@dataclass(frozen=True, slots=True)
class Link:
    """The link between the hosts."""

    name: str
    mbit: int | None  #: None: no limit

    @property
    def limit(self) -> BytesPerSecond | None:
        """What the link lets through, for `Network.limit`."""
        return None if self.mbit is None else BytesPerSecond(self.mbit * 1_000_000 // 8)

    @property
    def mib_s(self) -> float:
        """What the link lets through; without a limit what a stream was seen to send."""
        return UNLIMITED_MIB_S if self.limit is None else self.limit / MIB


LINKS = {link.name: link for link in (Link("100M", 100), Link("1G", 1000), Link("unlimited", None))}


@dataclass(frozen=True, slots=True)
class Cell:
    """One guest with its workload, on one link."""

    name: str
    link: Link
    memory_mib: int
    working_set_mib: int
    rate: int  #: MiB/s written
    pattern: str = "sequential"
    data: str = "random"
    kind: str = "linux"
    compiles: bool = False  #: the stock Debian guest with a compiler at work

    @property
    def id(self) -> str:
        """The cell's name in tables and files."""
        return f"{self.link.name}/{self.name}"

    def plan(self) -> GuestPlan:
        """Return the guest."""
        return GuestPlan(
            "debian" if self.kind == "debian" else "linux",
            GUEST,
            memory_mib=self.memory_mib,
            working_set_mib=self.working_set_mib,
            rate=self.rate,
            pattern=self.pattern,
            data=self.data,
            nics=(NicPlan(),),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the cell with its test."""
        return {"id": self.id, **asdict(self), "feasibility": asdict(feasibility(self))}


def dirtied_mib(cell: Cell, seconds: float) -> float:
    """Return how much of the memory a cell's writer dirties in a time, in MiB of distinct pages (expected value)."""
    written, whole = cell.rate * seconds, float(cell.working_set_mib)
    if cell.pattern == "sequential":
        return min(written, whole)
    if cell.pattern == "random":
        return _hit(written, whole)
    hot = whole / 10
    return _hit(0.9 * written + 0.1 * written * hot / whole, hot) + _hit(0.1 * written * 0.9, whole - hot)


def _hit(written: float, whole: float) -> float:
    """Return how much of `whole` is hit at least once by `written` at random places."""
    return whole * -math.expm1(-written / whole) if whole else 0.0


@dataclass(frozen=True, slots=True)
class Feasibility:
    """What can be said of a cell beforehand; None: the workload's writes are not known."""

    dirtied_mib: float | None  #: in the goal's gap
    fits_mib: float  #: through the link, in that gap
    by_precopy: bool | None
    by_postcopy: bool = True  #: where the user allows it, every guest can move

    def said(self) -> str:
        """Return it in words."""
        if self.by_precopy is None:
            return "by post-copy; its writes are not known beforehand"
        return "yes" if self.by_precopy else "by post-copy only"


def feasibility(cell: Cell) -> Feasibility:
    """Return whether what the guest dirties in the goal's gap fits through the link in that gap."""
    seconds = GOAL_GAP_MS / 1000
    fits = cell.link.mib_s * seconds * PAGE / (PAGE + HEADER)
    if cell.compiles:
        return Feasibility(None, round(fits, 2), None)
    dirtied = dirtied_mib(cell, seconds)
    return Feasibility(round(dirtied, 2), round(fits, 2), dirtied <= fits)


@dataclass(frozen=True, slots=True)
class _Size:
    """How large guests on a link are: the first round should take seconds, not minutes."""

    memory_mib: int
    working_set_mib: int
    rates: Sequence[tuple[str, int]] = field(default=())


#: Rates as whole MiB/s nearest to 0.3, 0.8, 1.5 and 3 times what the link sends; absolute ones without a limit.
_SIZES = {
    "100M": _Size(256, 64, (("0.3x", 4), ("0.8x", 10), ("1.5x", 18), ("3x", 36))),
    "1G": _Size(512, 256, (("0.3x", 36), ("0.8x", 95), ("1.5x", 179), ("3x", 358))),
    "unlimited": _Size(512, 256, (("50", 50), ("150", 150), ("300", 300), ("500", 500))),
}


def all_cells() -> list[Cell]:
    """Return the whole grid, in the order of the page."""
    return [cell for link in LINKS.values() for cell in _of(link, _SIZES[link.name])]


def _of(link: Link, size: _Size) -> list[Cell]:
    memory, whole = size.memory_mib, size.working_set_mib
    fast = size.rates[2][1]
    middle = size.rates[1][1]
    return [
        Cell("idle", link, memory, 16, 0),
        Cell("idle full", link, memory, whole, 0),
        *(Cell(f"writes {name}", link, memory, whole, rate) for name, rate in size.rates),
        Cell("hot-spot", link, memory, whole, fast, pattern="hotspot"),
        Cell("random pages", link, memory, whole, middle, pattern="random"),
        Cell("compressible", link, memory, whole, fast, data="compressible"),
        Cell("compiles", link, 512, 16, 0, kind="debian", compiles=True),
    ]


#: The base figures of facts seen by hand: 150 MiB/s over 256 MiB on 1 Gbit/s never ends with QEMU's own means.
BASE = Cell("base 150 over 256", LINKS["1G"], 512, 256, 150)

#: `--short`: what does not arrive costs its whole time limit, so there is one such cell.
SHORT = ("1G/idle", "1G/writes 0.3x", "1G/writes 1.5x")


def chosen(names: Sequence[str] | None, *, short: bool) -> list[Cell]:
    """Return the cells of a run: those named, or the short or the full grid.

    Raises:
        SystemExit: no cell has such a name.
    """
    known = {cell.id: cell for cell in (*all_cells(), BASE)}
    wanted = list(names or (SHORT if short else [cell.id for cell in all_cells()]))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"no cell {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in wanted]
