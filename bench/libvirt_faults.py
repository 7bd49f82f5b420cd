"""Faults in every phase of a libvirt domain's move, on two real daemons: expected beforehand and seen.

    ./run bench libvirt_faults [--only "finish: link cut"] [--resume]

Two hosts in network namespaces with a libvirtd each, the micro guest with a disk that both see. Needs root, gdb, a loop
device, and the packages libvirt-daemon and libvirt-daemon-driver-qemu. docs/libvirt-faults.md says what is done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from typing import Any

from _bench import RESULTS, ROOT, conditions, conditions_text, table

from vmferry.lab.libvirt.faults.cells import EXPECTED, Cell, cell_named
from vmferry.lab.libvirt.faults.page import page
from vmferry.lab.libvirt.faults.runner import Result, run_cell
from vmferry.lab.libvirt.faults.stage import Stage
from vmferry.lab.toolchain import find_qemus

FILE = RESULTS / "libvirt_faults.json"
PAGE = ROOT / "docs" / "libvirt-faults.md"


async def run(cells: Sequence[Cell], done: list[dict[str, Any]]) -> None:
    """Run cells, print each as it ends, and keep what was seen so far. After a cell that failed all is made anew."""
    left = list(enumerate(cells, 1))
    while left:
        async with Stage() as stage:
            while left:
                number, cell = left.pop(0)
                result = await run_cell(stage, cell)
                print(line(result, number, len(cells)), flush=True)
                done.append(result.record())
                keep(done)
                if not result.passed:
                    break


def line(result: Result, number: int, total: int) -> str:
    """Return a cell's line on the terminal, with its history when it did not pass."""
    word = "pass" if result.passed else "FAIL"
    text = f"{number}/{total} {word} {result.cell.name}: {result.seen} (recover: {result.recovered})"
    text += f" ({result.seconds:.1f} s)"
    return text if result.passed else "\n    ".join([text, *result.complaints, *result.history])


def keep(done: list[dict[str, Any]], found: dict[str, Any] | None = None) -> None:
    """Write the result file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps({"conditions": found, "cells": done}, indent=1) + "\n", "utf-8")


def libvirt_version() -> str:
    """Return which libvirt the daemons are."""
    ran = subprocess.run(["/usr/sbin/libvirtd", "--version"], capture_output=True, text=True, check=True)
    return ran.stdout.split()[-1]


def main() -> None:
    """Run the cells, print them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="a cell by its name; may be repeated")
    parser.add_argument("--resume", action="store_true", help="keep the cells of the result file that passed")
    asked = parser.parse_args()
    done: list[dict[str, Any]] = []
    if asked.resume and FILE.exists():
        done = [cell for cell in json.loads(FILE.read_text("utf-8"))["cells"] if cell["verdict"] == "pass"]
    passed = {f"{cell['phase']}: {cell['fault']}" for cell in done}
    cells = [cell for cell in [cell_named(name) for name in asked.only] or EXPECTED if cell.name not in passed]
    if cells:
        asyncio.run(run(cells, done))
    print(", ".join(f"{number} {verdict}" for verdict, number in Counter(cell["verdict"] for cell in done).items()))
    if not asked.only:
        version = f"{'.'.join(map(str, find_qemus()[0].version))}, libvirt {libvirt_version()}"
        command = "./run bench libvirt_faults" + " --resume" * asked.resume
        found = conditions(command, "TCG", version, sum(float(cell["seconds"]) for cell in done))
        keep(done, found)
        PAGE.write_text(page(conditions_text(found), done, table), "utf-8")
    bad = [cell for cell in done if cell["verdict"] != "pass"]
    if bad:
        raise SystemExit(f"{len(bad)} cells did not pass: their history is in {FILE}")


if __name__ == "__main__":
    main()
