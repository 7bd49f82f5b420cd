"""One cell of the fault matrix as a value: where, what, what is expected, and how it ended."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from vmferry.sim.matrix import CELLS, PLACES, Place, foretell

LONG_CUT, SHORT_CUT = "link cut", "link cut shortly"
CUTS = (LONG_CUT, SHORT_CUT)


class Verdict(enum.Enum):
    """Whether what was expected is what was seen."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    UNKNOWN = "unknown"  #: the fault could not be brought about, or nobody could tell


@dataclass(frozen=True, slots=True)
class Cell:
    """A fault in a state of one side."""

    place: Place
    fault: str

    @property
    def name(self) -> str:
        """Return how people call it."""
        return f"{self.place.side}.{self.place}: {self.fault}"

    def expected(self) -> tuple[str, ...]:
        """Return every outcome that is right, foretold by living through it in memory."""
        return tuple(foretell(self.place, self.fault).split(" or "))


@dataclass
class Result:
    """How a cell ended."""

    cell: Cell
    expected: tuple[str, ...]
    seen: str
    verdict: Verdict
    complaints: Sequence[str] = ()  #: why it is no pass
    remarks: Sequence[str] = ()
    seconds: float = 0.0
    history: Sequence[str] = field(default_factory=tuple)  #: kept unless it passed

    def record(self) -> dict[str, object]:
        """Return it as JSON has it."""
        found = asdict(self)
        del found["cell"]
        return {
            "side": str(self.cell.place.side),
            "state": str(self.cell.place),
            "fault": self.cell.fault,
            **found,
            "verdict": self.verdict.value,
            "seconds": round(self.seconds, 1),
        }


def all_cells() -> Iterator[Cell]:
    """Yield every cell: each state that a hand-over can be brought to, each fault."""
    for places in PLACES.values():
        for place in places:
            for fault in CELLS:
                yield Cell(place, fault)


def cell_named(name: str) -> Cell:
    """Return the cell of a name like "source.precopy: link cut".

    Raises:
        ValueError: there is none.
    """
    cells = {cell.name: cell for cell in all_cells()}
    if name not in cells:
        raise ValueError(f"no cell {name!r}; a cell is SIDE.STATE: FAULT, with a fault of: {', '.join(CELLS)}")
    return cells[name]
