"""One cell of the fault matrix as a value: where, what, what is expected, and how it ended."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from vmferry.core.handover.states import AnyState, DestinationState, Side, SourceState
from vmferry.sim.matrix import CELLS, WAYS, foretell

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

    side: Side
    state: AnyState
    fault: str

    @property
    def name(self) -> str:
        """Return how people call it."""
        return f"{self.side}.{self.state}: {self.fault}"

    def expected(self) -> tuple[str, ...]:
        """Return every outcome that is right, foretold by living through it in memory."""
        return tuple(foretell(self.side, self.state, self.fault).split(" or "))


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
            "side": str(self.cell.side),
            "state": str(self.cell.state),
            "fault": self.cell.fault,
            **found,
            "verdict": self.verdict.value,
            "seconds": round(self.seconds, 1),
        }


def all_cells() -> Iterator[Cell]:
    """Yield every cell: each state that a hand-over can be brought to, each fault."""
    for side, states in WAYS.items():
        for state in states:
            for fault in CELLS:
                yield Cell(side, state, fault)


def cell_named(name: str) -> Cell:
    """Return the cell of a name like "source.precopy: link cut".

    Raises:
        ValueError: there is none.
    """
    place, _, fault = name.partition(": ")
    side, _, state = place.partition(".")
    if fault not in CELLS:
        raise ValueError(f"no fault {fault!r}; there are: {', '.join(CELLS)}")
    kind: type[SourceState | DestinationState] = SourceState if side == "source" else DestinationState
    return Cell(Side(side), kind(state), fault)
