"""The fault matrix on real QEMU: every state of a hand-over, every fault, expected beforehand and seen.

    ./run bench matrix [--only "source.loaded: link cut"] [--link fd|unix] [--cuts] [--resume]

Two hosts in network namespaces, an agent on each as a real process, real QEMU, the micro guest. Each cell has a guest
of its own; docs/fault-matrix.md says what is done and looked at. `--cuts`: only the cells in which the hosts lose
sight of each other, which are the ones that a stream's own way has a part in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from _bench import RESULTS, ROOT, conditions, conditions_text, table

from vmferry.core.capabilities import Transport
from vmferry.lab.chaos.cell import CUTS, Cell, Result, Verdict, all_cells, cell_named
from vmferry.lab.chaos.page import page
from vmferry.lab.chaos.runner import Chaos
from vmferry.lab.toolchain import find_qemus

LINKS = (Transport.TCP, Transport.FD, Transport.UNIX)


@dataclass(frozen=True)
class Place:
    """Where a matrix is kept; that of TCP is the one that other pages name."""

    file: Path
    page: Path

    @classmethod
    def of(cls, link: Transport) -> Self:
        """Return it for a link."""
        own = "" if link is Transport.TCP else f"-{link}"
        return cls(RESULTS / f"matrix{own}.json", ROOT / "docs" / f"fault-matrix{own}.md")


async def run(cells: Sequence[Cell], link: Transport, done: list[dict[str, Any]]) -> None:
    """Run cells, print each as it ends, and keep what was seen so far."""
    async with Chaos(link) as chaos:
        for number, cell in enumerate(cells, 1):
            result = await chaos.run_one(cell)
            print(line(result, number, len(cells)), flush=True)
            done.append(result.record())
            keep(Place.of(link).file, done)


def line(result: Result, number: int, total: int) -> str:
    """Return a cell's line on the terminal, with its history when it did not pass."""
    text = f"{number}/{total} {result.verdict.value:7} {result.cell.name}: {result.seen} ({result.seconds:.1f} s)"
    if result.verdict is Verdict.PASS:
        return text
    return "\n    ".join([text, f"expected: {' or '.join(result.expected)}", *result.complaints, *result.history])


def keep(file: Path, done: list[dict[str, Any]], found: dict[str, Any] | None = None) -> None:
    """Write the result file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"conditions": found, "cells": done}, indent=1) + "\n", "utf-8")


def main() -> None:
    """Run the matrix, print it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="a cell by its name; may be repeated")
    parser.add_argument("--resume", action="store_true", help="keep the cells of the result file that passed")
    parser.add_argument("--link", type=Transport, choices=LINKS, default=Transport.TCP, help="how streams travel")
    parser.add_argument("--cuts", action="store_true", help="only cells in which the hosts lose sight of each other")
    asked = parser.parse_args()
    cells = [cell_named(name) for name in asked.only]
    cells = cells or [cell for cell in all_cells() if cell.fault in CUTS or not asked.cuts]
    done: list[dict[str, Any]] = []
    file = Place.of(asked.link).file
    if asked.resume and file.exists():
        done = [cell for cell in json.loads(file.read_text("utf-8"))["cells"] if cell["verdict"] == "pass"]
    passed = {(cell["side"], cell["state"], cell["fault"]) for cell in done}
    cells = [cell for cell in cells if (str(cell.place.side), str(cell.place), cell.fault) not in passed]
    if cells:
        asyncio.run(run(cells, asked.link, done))
    finish(asked, done)


def finish(asked: argparse.Namespace, done: list[dict[str, Any]]) -> None:
    """Print the verdicts and, for a whole matrix, write the page."""
    words = ["./run bench matrix"] if asked.link is Transport.TCP else [f"./run bench matrix --link {asked.link}"]
    command = " ".join([*words, *(f"--{name}" for name in ("cuts", "resume") if getattr(asked, name))])
    duration_s = sum(float(cell["seconds"]) for cell in done)
    verdicts = Counter(cell["verdict"] for cell in done)
    print(", ".join(f"{number} {verdict}" for verdict, number in verdicts.items()))
    place = Place.of(asked.link)
    if not asked.only:
        version = ".".join(map(str, find_qemus()[0].version))
        found = conditions(command, "TCG", version, duration_s)
        keep(place.file, done, found)
        text = page(conditions_text(found), done, table, link=asked.link)
        place.page.write_text(text, "utf-8")
        print(text)
    bad = [cell for cell in done if cell["verdict"] != "pass"]
    if bad:
        raise SystemExit(f"{len(bad)} cells did not pass: their history is in {place.file}")


if __name__ == "__main__":
    main()
