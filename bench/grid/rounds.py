"""Which moves are made in which order, what is left out and why, and the file from which a run goes on.

The atom of a run is a block: one cell in one round with all its movers, in an order of its own. Figures are compared
within a block only, so a run that ends early has fewer blocks and no half ones.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grid.cells import GOAL_GAP_MS, Cell
from grid.figures import Figures

#: Who is not likely to win a cell is not run there again, by this rule, which is older than the figures. Others' movers
#: are out after one round in which they did not arrive (each try costs the whole limit), and after this many rounds if
#: in all of them the gap was over the goal, or they took so many times as long as the quickest of ours that risks no
#: more. Ours never are, but for not arriving in so many rounds.
RACE_ROUNDS = 2
RACE_FACTOR = 1.5
#: Of others' movers that are so many times beyond either bound one round is enough.
FAR = 2
OURS = "vmferry"
#: Before anything was measured: boot, quiet window, move, oracle.
FIRST_GUESS_S = 25.0


@dataclass(frozen=True, slots=True)
class Block:
    """One cell in one round."""

    round: int
    cell: Cell
    movers: tuple[str, ...]  #: in the order in which they take their turns


def schedule(cells: Sequence[Cell], movers: Sequence[str], rounds: int, seed: int) -> Iterator[Block]:
    """Yield the blocks, rounds in order; cells and movers are shuffled anew in each. The same seed, the same order."""
    for number in range(1, rounds + 1):
        order = random.Random(f"{seed}/{number}")
        for cell in order.sample(list(cells), len(cells)):
            yield Block(number, cell, tuple(order.sample(list(movers), len(movers))))


@dataclass
class Record:
    """All moves so far, and what was not run.

    Attributes:
        key: What must be alike for a run to go on with these figures.
        file: Where each move is written at once; None: nowhere.
    """

    key: dict[str, Any]
    file: Path | None = None
    moves: list[Figures] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    measured_s: float = 0.0

    @classmethod
    def begin(cls, key: dict[str, Any], file: Path, *, resume: bool, result: Path | None = None) -> Record:
        """Begin a record, or go on with the one in the file; without a file, with the one in a result of the same run.

        Raises:
            SystemExit: what there is is of a run with other settings.
        """
        record = cls(key, file)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not resume or not file.exists():
            file.write_text(json.dumps({"key": key}) + "\n", "utf-8")
            if resume and result is not None and result.exists():
                record._take_over(json.loads(result.read_text("utf-8")), result)
        record._load()
        return record

    def _take_over(self, result: dict[str, Any], file: Path) -> None:
        self._check_key(result.get("key"), file)
        for name, line in (("moves", "move"), ("not_measured", "failed")):
            for row in result[name]:
                self._append({line: row})

    def add(self, figures: Figures) -> None:
        """Keep one move."""
        self.moves.append(figures)
        self.measured_s += figures.took_s
        self._append({"move": figures.as_json()})

    def add_failure(self, block: Block, mover: str, why: str, took_s: float) -> None:
        """Keep a move that could not be measured."""
        failure = {"cell": block.cell.id, "mover": mover, "round": block.round, "why": why, "took_s": round(took_s, 1)}
        self.failed.append(failure)
        self.measured_s += took_s
        self._append({"failed": failure})

    def missing(self, block: Block) -> list[str]:
        """Return the movers of a block that are still to be run, in its order."""
        done = {(move.mover, move.round) for move in self.moves if move.cell == block.cell.id}
        done |= {(row["mover"], row["round"]) for row in self.failed if row["cell"] == block.cell.id}
        return [mover for mover in block.movers if (mover, block.round) not in done and not self.is_out(block, mover)]

    def is_out(self, block: Block, mover: str) -> bool:
        """Return whether a mover is not likely to win this cell, by what the rounds before this one showed."""
        before = [move for move in self.moves if move.cell == block.cell.id and move.round < block.round]
        tries = [move for move in before if move.mover == mover]
        if mover.startswith(OURS):
            return len(tries) >= RACE_ROUNDS and not any(move.arrived for move in tries)
        if not all(move.arrived for move in tries):
            return True
        beyond = 1 if len(tries) >= RACE_ROUNDS else FAR
        return bool(tries) and (
            all(move.gap_ms is None or move.gap_ms > beyond * GOAL_GAP_MS for move in tries)
            or all(_took_longer(move, before, beyond * RACE_FACTOR) for move in tries)
        )

    def expected_s(self, block: Block) -> float:
        """Return how long the rest of a block will take, as far as earlier moves tell."""
        return sum(self._expected_s(block.cell.id, mover) for mover in self.missing(block))

    def _expected_s(self, cell: str, mover: str) -> float:
        same = [move.took_s for move in self.moves if (move.cell, move.mover) == (cell, mover)]
        alike = same or [move.took_s for move in self.moves if move.cell == cell] or [FIRST_GUESS_S]
        return max(same) if same else sum(alike) / len(alike)

    def _load(self) -> None:
        assert self.file is not None  # noqa: S101  (begin gave it)
        head, *lines = [json.loads(line) for line in self.file.read_text("utf-8").splitlines() if line]
        self._check_key(head["key"], self.file)
        self.moves = [Figures(**line["move"]) for line in lines if "move" in line]
        self.failed = [line["failed"] for line in lines if "failed" in line]
        self.measured_s = sum(move.took_s for move in self.moves) + sum(row["took_s"] for row in self.failed)

    def _check_key(self, found: object, file: Path) -> None:
        if found != self.key:
            raise SystemExit(f"{file} is of another run: {found}, asked: {self.key}; run without --resume")

    def _append(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _took_longer(move: Figures, before: Sequence[Figures], factor: float) -> bool:
    """Return whether a move took so many times as long as the quickest of ours that risks no more, in its round."""
    here = [each for each in before if each.round == move.round and each.mover.startswith(OURS)]
    ours = [each.total_ms for each in here if _risks(move.mover) or not _risks(each.mover)]
    quickest = min((total for total in ours if total is not None), default=None)
    return quickest is not None and move.total_ms is not None and move.total_ms > factor * quickest


def _risks(mover: str) -> bool:
    """Return whether a mover may use post-copy; its name says so."""
    return "post-copy" in mover or "postcopy" in mover


class Budget:
    """The time that a run may take; None: as long as it needs."""

    def __init__(self, minutes: float | None) -> None:
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes

    def allows(self, seconds: float) -> bool:
        """Return whether so much time is left."""
        return self._ends is None or time.monotonic() + seconds <= self._ends
