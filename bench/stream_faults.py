"""What becomes of a guest whose stream is spoilt, in every state of a hand-over that has one: foretold, then done.

    ./run bench stream_faults [--only 'precopy: reset, tcp']

A man in the middle (vmferry.lab.relay) resets, half closes, stalls or changes the stream, by each way that a stream can
take; what carries it is killed, and the server of copied disks. Two hosts in network namespaces, real agents and QEMU,
the micro guest; with disks the linux guest, which writes to its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _bench import conditions, conditions_text, table, write

from vmferry.core.errors import VmferryError
from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.relay import PORTS, STREAM_PORT, Harm, Relay, settings
from vmferry.lab.scenarios import empty, migrate, started, wait_finished, wait_state
from vmferry.ports.hypervisor import RunState

SOURCE, DESTINATION = "host-a", "host-b"
LINKS = ("tcp", "fd", "unix")
DISK = "copied disk"
CAT = {"send": ["cat"], "receive": ["cat"]}
STALL_S = 30.0
SLOW = 6 * MIB
BUSY = GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8)
#: In these nothing passes while the hand-over is held there: the harm is done to what is open, and the hold ends.
HELD = ("pre-switchover", "loaded")
DISK_BYTES = 48 * MIB
STAYS, ARRIVES, EITHER = ("source",), ("destination",), ("source", "destination")


#: What the page says.
LEGEND = """\
A cell shows where the guest runs afterwards. *reset*: both hosts get a reset. *half-closed*: the destination hears that
nothing more comes, the source hears nothing. *stalled*: nothing passes for 30 s, either way. *flipped bytes*: a bit in
each of twenty bytes of an encrypted stream; in the clear nothing could find that. *helper*: what carries the stream
beside QEMU, the program of `--link unix` or a pipeline's command. `pre-switchover` and `loaded` are held while the harm
is done; in `loaded` the stream has done its work. A cut link, and agents and QEMUs that die, stand in
[fault-matrix.md](../fault-matrix.md), a disk that is full in [disks.md](../disks.md)."""


@dataclass(frozen=True)
class Cell:
    """A fault in a state, and where the guest is to be afterwards."""

    state: str
    fault: str
    way: str  #: link, pipeline, or what is copied
    expected: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return how people call it."""
        return f"{self.state}: {self.fault}, {self.way}"


@dataclass
class Result:
    """How it ended."""

    name: str
    seen: str
    passed: bool
    why: str  #: the report's reason, or what is wrong
    seconds: float


def cells() -> Iterator[Cell]:
    """Yield all cells with what is foretold, which follows from the hand-over's rules (docs/handover.md).

    Before the commit the guest stays; a stream that stalls for 30 s is waited for while the guest runs, and given up by
    the deadline of `switchover` (30 s) at the latest while it stands still; once everything is loaded nobody needs the
    stream; post-copy is recovered.
    """
    for link in LINKS:
        for harm in (Harm.RESET, Harm.HALF_CLOSE, Harm.FLIP):
            yield Cell("precopy", harm.value, link, STAYS)
            yield Cell("pre-switchover", harm.value, link, STAYS)
            yield Cell("postcopy-running", harm.value, link, ARRIVES)
        yield Cell("precopy", Harm.STALL.value, link, ARRIVES)
        yield Cell("pre-switchover", Harm.STALL.value, link, EITHER)
        yield Cell("postcopy-running", Harm.STALL.value, link, ARRIVES)
        for harm in (Harm.RESET, Harm.HALF_CLOSE, Harm.STALL):
            yield Cell("loaded", harm.value, link, ARRIVES)
    for way in ("unix", "pipeline"):
        for side in ("source", "destination"):
            yield Cell("precopy", f"helper dies at the {side}", way, STAYS)
            yield Cell("pre-switchover", f"helper dies at the {side}", way, STAYS)
            yield Cell("loaded", f"helper dies at the {side}", way, ARRIVES)
    for state in ("copying-disks", "precopy", "pre-switchover"):
        yield Cell(state, "disk server killed", DISK, STAYS)
        yield Cell(state, Harm.RESET.value, DISK, STAYS)


class Wrong(Exception):
    """What is wrong with a guest, or could not be brought about."""


class Faults:
    """The lab, and one cell after the other in it."""

    def __init__(self, lab: Lab, relay: Relay) -> None:
        self._lab, self._relay = lab, relay

    async def run(self, cell: Cell) -> Result:
        """Do it; what cannot be done has not passed."""
        began = time.monotonic()
        try:
            seen, why = await self._do(cell)
        except (VmferryError, Wrong, TimeoutError, OSError) as error:
            seen, why = "unknown", f"{type(error).__name__}: {error}"
        finally:
            self._relay.let_go()
            await empty(self._lab)
        return Result(cell.name, seen, seen in cell.expected, why, round(time.monotonic() - began, 1))

    async def _do(self, cell: Cell) -> tuple[str, str]:
        guest = await started(self._lab, self._plan(cell))
        hold = self._lab.hosts[SOURCE].hold_dir / f"source.{cell.state}"
        try:
            if cell.state in HELD:
                hold.touch()
            handover = await migrate(self._lab, guest, DESTINATION, options(cell))
            await wait_state(self._lab, SOURCE, handover, cell.state)
            await self._strike(cell)
        finally:
            hold.unlink(missing_ok=True)
        if cell.fault == Harm.STALL.value:
            await asyncio.sleep(STALL_S)
            self._relay.let_go()
        view = await wait_finished(self._lab, SOURCE, handover)
        if view.report is None:
            raise Wrong("a finished hand-over has no report")
        if view.report.outcome is Outcome.MOVED:
            guest.moved_to(DESTINATION)
        return await self._place(guest, cell), str(view.report.reason or "")

    async def _place(self, guest: GuestRun, cell: Cell) -> str:
        """Return where the guest runs, whole, and nowhere else."""
        view = await guest.view()
        if view.run_state is not RunState.RUNNING:
            raise Wrong(f"the guest is {view.run_state}")
        qemus = [host for host in (SOURCE, DESTINATION) if qemus_of(self._lab, host)]
        if qemus != [guest.host]:
            raise Wrong(f"there are QEMUs on {qemus}")
        if not (oracle := await guest.oracle()).startswith("oracle clean"):
            raise Wrong(oracle)
        if cell.way == DISK:
            if not (disk := await guest.disk()).startswith("disk clean"):
                raise Wrong(disk)
            there = [path.name for path in self._lab.hosts[DESTINATION].local_dir.iterdir()]
            if any("arriving" in name for name in there):
                raise Wrong(f"half a copy stays: {there}")
        return "destination" if guest.host == DESTINATION else "source"

    def _plan(self, cell: Cell) -> GuestPlan:
        """Return the guest that the cell needs; its disk is full of random bytes."""
        if cell.way != DISK:
            return BUSY
        image = self._lab.local / f"web-7-{time.monotonic_ns()}.raw"
        (self._lab.hosts[SOURCE].local_dir / image.name).write_bytes(os.urandom(DISK_BYTES))
        disk = DiskPlan(image, "raw")
        return GuestPlan("linux", memory_mib=128, working_set_mib=16, rate=4, disk_rate=4, disks=(disk,))

    async def _strike(self, cell: Cell) -> None:
        """Do the harm to what is open, or to the first bytes that pass."""
        ports = PORTS[1:] if cell.way == DISK else (*PORTS, STREAM_PORT)
        if cell.fault in (harm.value for harm in Harm):
            harm = Harm(cell.fault)
            if cell.state not in HELD or harm is Harm.FLIP:
                self._relay.harm(harm, after_bytes=0 if cell.state in HELD else MIB, ports=ports)
            elif not self._relay.harm_now(harm, ports) and cell.state != "loaded":
                raise Wrong("there is no connection to harm")
            if cell.state not in HELD:
                await asyncio.wait_for(self._relay.done.wait(), 30)
            return
        side = DESTINATION if cell.way == DISK or cell.fault.endswith("destination") else SOURCE
        if cell.way == DISK and cell.state == "copying-disks":
            await self._half_copied()
        words = {"unix": b"links/carry.py", "pipeline": b"cat", DISK: b"qemu"}[cell.way]
        doomed = [each.pid for each in self._lab.processes_of(side) if has_word(each.pid, words)]
        if not doomed and cell.state != "loaded":
            raise Wrong("there is nothing to kill")
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _half_copied(self) -> None:
        """Wait until a third of the disk is at the destination."""
        while True:
            found = [path.stat().st_blocks * 512 for path in self._lab.hosts[DESTINATION].local_dir.iterdir()]
            if max(found, default=0) > DISK_BYTES // 3:
                return
            await asyncio.sleep(0.02)


def options(cell: Cell) -> dict[str, object]:
    """Return what is asked for; what shall last is slow."""
    asked: dict[str, object] = {} if cell.state in HELD else {"max_bandwidth": SLOW}
    if cell.way == "pipeline":
        asked |= {"pipeline": "cat", "plain": True}
    elif cell.way == DISK:
        asked |= {"copy_disks": True}
    else:
        asked |= {"link": cell.way}
    return asked | ({"postcopy_after": 1} if cell.state.startswith("postcopy") else {})


def has_word(pid: int, word: bytes) -> bool:
    """Return whether a process was started with such a word."""
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def qemus_of(lab: Lab, host: str) -> list[int]:
    """Return the QEMUs of a host."""
    return [each.pid for each in lab.processes_of(host) if has_word(each.pid, b"qemu-system")]


async def measure(wanted: Sequence[Cell]) -> list[Result]:
    """Run cells, and print each as it ends."""
    pipelines = {"pipelines": {"cat": CAT}}
    relayed: Any = settings(1)["migration"]
    both = {SOURCE: {"migration": pipelines}, DESTINATION: {"migration": relayed | pipelines}}
    results = []
    async with Lab(settings=both, local_dirs=True) as lab:
        if lab.network is None:
            raise Wrong("the lab has no network of its own")
        async with Relay(lab.network, SOURCE, DESTINATION) as relay:
            faults = Faults(lab, relay)
            for number, cell in enumerate(wanted, 1):
                result = await faults.run(cell)
                results.append(result)
                verdict = "pass" if result.passed else f"FAIL, expected {' or '.join(cell.expected)}"
                print(f"{number}/{len(wanted)} {verdict}: {result.name}: {result.seen} ({result.why})", flush=True)
    return results


def page(found: dict[str, Any], results: Sequence[Result], took: Sequence[Cell]) -> str:
    """Return the page."""
    passed = sum(result.passed for result in results)
    states = list(dict.fromkeys(cell.state for cell in took))
    rows = []
    seen = {result.name: result for result in results}
    for way, fault in dict.fromkeys((cell.way, cell.fault) for cell in took):
        row = [way, fault]
        for state in states:
            result = seen.get(Cell(state, fault, way, ()).name)
            row.append("" if result is None else result.seen if result.passed else f"**{result.seen}**")
        rows.append(row)
    reasons = [[r.name, r.seen, r.why or "-", f"{r.seconds:.0f}"] for r in results]
    return "\n".join(
        [
            "# Streams that are spoilt",
            "",
            conditions_text(found),
            "",
            f"**{passed} of {len(results)} cells ended where it was foretold** (`cells` in bench/stream_faults.py),",
            f"the guest whole, on one host, and nothing left on the other. {LEGEND}",
            "",
            table(["way", "fault", *(f"`{state}`" for state in states)], rows),
            "",
            "## What was said",
            "",
            table(["cell", "guest", "reason in the report", "s"], reasons),
            "",
        ]
    )


def main() -> int:
    """Run the cells and write the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="a cell by its name, or a part of it")
    asked = parser.parse_args()
    every = list(cells())
    wanted = [cell for cell in every if not asked.only or any(part in cell.name for part in asked.only)]
    began = time.monotonic()
    with page_faults_for_all():
        results = asyncio.run(measure(wanted))
    print(Counter("pass" if result.passed else "FAIL" for result in results))
    if not asked.only:
        found = conditions("./run bench stream_faults", "TCG", "10.0", time.monotonic() - began)
        rows = [asdict(result) for result in results]
        write("stream_faults", {"conditions": found, "cells": rows}, page(found, results, every))
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
