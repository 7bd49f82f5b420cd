"""Everybody side by side: ours with every policy, `virsh migrate`, and plain QEMU, in one run on one machine.

    ./run bench migrate --short                     about ten minutes
    ./run bench migrate [--rounds 5] [--minutes N] [--resume] [--cells A,B] [--movers X,Y] [--seed 1] [--limit 120]
                        [--name NAME] [--libvirt 11.3]
    ./run bench migrate --list

The full grid takes many hours: give it `--minutes`, and go on with `--resume` later, with the same or other cells; that
is refused when our code has changed since. What was measured is found in the result, too. A cell's movers take turns
within a round, in an order of their own; they are compared within rounds. What was not run is said. Observers, guest,
link and machine are the same for all; docs/bench/migrate.md has the conditions.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import signal
import time
from collections.abc import Sequence
from typing import Any

from _bench import RESULTS, ROOT, conditions
from grid import report
from grid.cells import BASE, Cell, all_cells, chosen
from grid.observe import Observers
from grid.rounds import Block, Budget, Record, schedule
from movers.base import Mover
from movers.registry import all_movers, chosen_movers
from movers.virsh import VirshMover

from vmferry.core.errors import VmferryError
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, libvirt_missing
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.registry import sweep
from vmferry.lab.toolchain import LibvirtBuild, cache_dir, find_libvirt, find_qemu
from vmferry.lab.toolchain.libvirt import find_libvirts

ROUNDS, SHORT_ROUNDS = 5, 2
LIMIT_S, SHORT_LIMIT_S = 120.0, 30.0
SHORT_MINUTES = 10.0
#: The first figures of a fresh lab pay for what is opened and cached once; they are thrown away.
WARM_UP_CELL = "1G/idle"


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few cells and movers, about ten minutes")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}")
    parser.add_argument("--minutes", type=float, help="begin nothing that would not end in this time")
    parser.add_argument(
        "--limit", type=float, help=f"s; a move that takes longer does not arrive; default {LIMIT_S:.0f}"
    )
    parser.add_argument("--resume", action="store_true", help="go on where the last run with the same options ended")
    parser.add_argument("--cells", type=lambda text: text.split(","), help="which, with commas between them")
    parser.add_argument("--movers", type=lambda text: text.split(","), help="which, with commas between them")
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--name", default=report.NAME, help="of the result and its page")
    parser.add_argument("--libvirt", help="which, as 11.3; default: the one that is installed")
    parser.add_argument("--list", action="store_true", help="print cells and movers")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (SHORT_ROUNDS if asked.short else ROUNDS)
    asked.limit = asked.limit or (SHORT_LIMIT_S if asked.short else LIMIT_S)
    if asked.short and asked.minutes is None:
        asked.minutes = SHORT_MINUTES
    return asked


async def measure(asked: argparse.Namespace, cells: Sequence[Cell]) -> tuple[Record, list[Mover], list[Block], float]:
    """Run what there is time for; returns the record, the movers, the blocks that were not run, and the time.

    Raises:
        VmferryError: the lab or a daemon cannot be built.
    """
    began, budget = time.monotonic(), Budget(asked.minutes)
    qemu, libvirt = find_qemu(10, 0), _libvirt(asked)
    async with Lab(qemus={"host-a": qemu, "host-b": qemu}) as lab:
        daemons = {host: LibvirtDaemon(lab, host, libvirt) for host in lab.hosts}
        try:
            movers = chosen_movers(all_movers(lab, daemons), asked.movers, short=asked.short)
            if any(isinstance(mover, VirshMover) for mover in movers):
                await asyncio.gather(*(daemon.start() for daemon in daemons.values()))
            record = Record.begin(
                _key(asked, movers),
                cache_dir() / "bench" / f"{asked.name}.jsonl",
                resume=asked.resume,
                result=RESULTS / f"{asked.name}.json",
            )
            runner = _Runner({mover.name: mover for mover in movers}, Observers(lab), record, asked.limit)
            await runner.warm_up()
            left: list[Block] = []
            for block in schedule(cells, list(runner.movers), asked.rounds, asked.seed):
                if not record.missing(block):
                    continue
                if left or not budget.allows(record.expected_s(block)):
                    left.append(block)
                    continue
                await runner.run(block)
        finally:
            lab.close()
            for daemon in daemons.values():
                daemon.reap()
    return record, movers, left, time.monotonic() - began


class _Runner:
    """Makes the moves of blocks and says how each went."""

    def __init__(self, movers: dict[str, Mover], observers: Observers, record: Record, limit_s: float) -> None:
        self.movers = movers
        self._observers = observers
        self._record = record
        self._limit_s = limit_s

    async def warm_up(self) -> None:
        """Make one move of each kind whose figures are thrown away."""
        cell = chosen([WARM_UP_CELL], short=False)[0]
        kinds = {type(mover).__module__: mover for mover in reversed(self.movers.values())}
        for mover in kinds.values():
            await mover.move(cell, self._observers, 0, self._limit_s)
            print(f"warm-up: {mover.name}", flush=True)

    async def run(self, block: Block) -> None:
        """Run what is missing of a block; a move that cannot be measured is recorded as such."""
        for name in self._record.missing(block):
            began = time.monotonic()
            try:
                figures = await self.movers[name].move(block.cell, self._observers, block.round, self._limit_s)
            except (VmferryError, TimeoutError) as error:
                self._record.add_failure(block, name, repr(error), time.monotonic() - began)
                print(f"round {block.round} {block.cell.id} {name}: NOT MEASURED: {error}", flush=True)
                continue
            self._record.add(figures)
            went = f"{figures.total_ms:.0f} ms" if figures.total_ms is not None else f"not there: {figures.reason}"
            gap = "-" if figures.gap_ms is None else f"{figures.gap_ms:.0f}"
            print(
                f"round {block.round} {block.cell.id} {name}: {went}, gap {gap} ms, stall {figures.stall_ms} ms,"
                f" {figures.wire_bytes / 2**20:.0f} MiB, {figures.oracle.partition(' pages')[0]},"
                f" {figures.took_s:.0f} s",
                flush=True,
            )


def _key(asked: argparse.Namespace, movers: Sequence[Mover]) -> dict[str, Any]:
    return {
        "seed": asked.seed,
        "limit_s": asked.limit,
        "movers": [mover.name for mover in movers],
        "libvirt": _version(_libvirt(asked)),
        "sources": _sources(),
    }


def _libvirt(asked: argparse.Namespace) -> LibvirtBuild:
    """Return the libvirt that was asked for, or the installed one."""
    if asked.libvirt:
        return find_libvirt(*map(int, asked.libvirt.split(".")))
    return next(build for build in find_libvirts() if build.root is None)


def _version(build: LibvirtBuild) -> str:
    return ".".join(map(str, build.version))


def _sources() -> str:
    """Return a sum over our own code: figures of another one are no figures of this one."""
    files = sorted((ROOT / "src").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


async def _until_signal(
    asked: argparse.Namespace, cells: Sequence[Cell]
) -> tuple[Record, list[Mover], list[Block], float]:
    """Measure, and end as Ctrl-C does when somebody asks politely: the lab is removed."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)  # type: ignore[union-attr]  # a coroutine runs in a task
    return await measure(asked, cells)


def main() -> int:
    """Measure and write the result; returns the exit code."""
    asked = parse()
    cells = chosen(asked.cells, short=asked.short)
    if asked.list:
        print("cells:", *(cell.id for cell in all_cells()), sep="\n  ")
        return 0
    if missing := libvirt_missing():
        print(f"migrate: {missing}")
        return 1
    for lab in sweep():
        print(f"(removed lab {lab}, which an interrupted run had left)")
    try:
        with page_faults_for_all():
            record, movers, left, took_s = asyncio.run(_until_signal(asked, cells))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nInterrupted. Everything that was started is gone; go on with --resume.")
        return 130
    found = conditions(_command(asked), "TCG", "10.0", took_s)
    measured = {move.cell for move in record.moves} | {cell.id for cell in cells}
    shown = [cell for cell in (*all_cells(), BASE) if cell.id in measured]
    report.write_all({**found, "libvirt": _version(_libvirt(asked))}, asked, shown, movers, record, left)
    return 0


def _command(asked: argparse.Namespace) -> str:
    words = ["./run bench migrate"]
    words += ["--short"] if asked.short else []
    words += [f"--rounds {asked.rounds}", f"--limit {asked.limit:g}", f"--seed {asked.seed}"]
    words += [f"--minutes {asked.minutes:g}"] if asked.minutes else []
    words += [f"--name {asked.name}"] if asked.name != report.NAME else []
    words += [f"--libvirt {asked.libvirt}"] if asked.libvirt else []
    words += ["--resume"] if asked.resume else []
    words += [f"--cells '{','.join(asked.cells)}'"] if asked.cells else []
    words += [f"--movers '{','.join(asked.movers)}'"] if asked.movers else []
    return " ".join(words)


if __name__ == "__main__":
    raise SystemExit(main())
