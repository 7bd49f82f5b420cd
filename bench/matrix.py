"""The fault matrix on real QEMU: every state of a hand-over, every fault, expected beforehand and seen.

    ./run bench matrix [--only "source.loaded: link cut"] [--resume]

Two hosts in network namespaces, an agent on each as a real process, real QEMU, the micro guest. Each cell has a guest
of its own; docs/fault-matrix.md says what is done and what is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from _bench import RESULTS, ROOT, conditions, conditions_text, table

from vmferry.lab.chaos.cell import Cell, Result, Verdict, all_cells, cell_named
from vmferry.lab.chaos.page import page
from vmferry.lab.chaos.runner import Chaos
from vmferry.lab.toolchain import find_qemus

FILE = RESULTS / "matrix.json"
PAGE = ROOT / "docs" / "fault-matrix.md"


async def run(cells: Sequence[Cell], done: list[dict[str, Any]]) -> None:
    """Run cells, print each as it ends, and keep what was seen so far."""
    async with Chaos() as chaos:
        for number, cell in enumerate(cells, 1):
            result = await chaos.run_one(cell)
            print(line(result, number, len(cells)), flush=True)
            done.append(result.record())
            keep(done)


def line(result: Result, number: int, total: int) -> str:
    """Return a cell's line on the terminal, with its history when it did not pass."""
    text = f"{number}/{total} {result.verdict.value:7} {result.cell.name}: {result.seen} ({result.seconds:.1f} s)"
    if result.verdict is Verdict.PASS:
        return text
    return "\n    ".join([text, f"expected: {' or '.join(result.expected)}", *result.complaints, *result.history])


def keep(done: list[dict[str, Any]], found: dict[str, Any] | None = None) -> None:
    """Write the result file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps({"conditions": found, "cells": done}, indent=1) + "\n", "utf-8")


def main() -> None:
    """Run the matrix, print it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="a cell by its name; may be repeated")
    parser.add_argument("--resume", action="store_true", help="keep the cells of the result file that passed")
    asked = parser.parse_args()
    cells = [cell_named(name) for name in asked.only] or list(all_cells())
    done: list[dict[str, Any]] = []
    if asked.resume and FILE.exists():
        done = [cell for cell in json.loads(FILE.read_text("utf-8"))["cells"] if cell["verdict"] == "pass"]
    passed = {(cell["side"], cell["state"], cell["fault"]) for cell in done}
    cells = [cell for cell in cells if (str(cell.place.side), str(cell.place), cell.fault) not in passed]
    if cells:
        asyncio.run(run(cells, done))
    finish(asked.only, done, resumed=asked.resume)


def finish(only: Sequence[str], done: list[dict[str, Any]], *, resumed: bool) -> None:
    """Print the verdicts and, for a whole matrix, write the page."""
    command = "./run bench matrix" + (" --resume" if resumed else "")
    duration_s = sum(float(cell["seconds"]) for cell in done)
    verdicts = Counter(cell["verdict"] for cell in done)
    print(", ".join(f"{number} {verdict}" for verdict, number in verdicts.items()))
    if not only:
        version = ".".join(map(str, find_qemus()[0].version))
        found = conditions(command, "TCG", version, duration_s)
        keep(done, found)
        text = page(conditions_text(found), done, table)
        PAGE.write_text(text, "utf-8")
        print(text)
    bad = [cell for cell in done if cell["verdict"] != "pass"]
    if bad:
        raise SystemExit(f"{len(bad)} cells did not pass: their history is in bench/results/matrix.json")


if __name__ == "__main__":
    main()
