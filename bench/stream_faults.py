"""What becomes of a guest whose stream or disk is spoilt, in every state of a hand-over: foretold, then done.

    ./run bench stream_faults [--only 'precopy: reset, tcp']

A man in the middle (vmferry.lab.relay) resets, half closes, stalls or changes the stream, by each way that a stream can
take; what carries it is killed, and the server of copied disks; a third process locks a shared disk as soon as it can;
the destination's file system is full. Two hosts in network namespaces, real agents and QEMU,
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
from _disk_faults import SmallDirectory, Stranger, small_directory, stops_for_want_of_room

from vmferry.core.errors import VmferryError
from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.relay import PORTS, STREAM_PORT, Harm, Relay, settings
from vmferry.lab.scenarios import empty, migrate, started, wait_finished, wait_state, wait_until
from vmferry.ports.hypervisor import RunState

SOURCE, DESTINATION = "host-a", "host-b"
LINKS = ("tcp", "fd", "unix")
DISK, SHARED = "copied disk", "shared disk"
LOCKED, FULL = "a stranger locks it", "no room at the destination"
CAT = {"send": ["cat"], "receive": ["cat"]}
STALL_S = 30.0
SLOW = 6 * MIB
BUSY = GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8)
#: In these nothing passes while the hand-over is held there: the harm is done to what is open, and the hold ends.
HELD = ("pre-switchover", "switchover", "loaded", "committed", "acquired", "starting")
#: These are states of the destination.
AT_DESTINATION = ("acquired", "starting")
#: In these the guest's disk belongs to a QEMU of ours, and a stranger is refused.
OURS = ("precopy", "pre-switchover")
#: The stranger goes again after this.
_STAYS_S = 3.0
DISK_BYTES = 48 * MIB
STAYS, ARRIVES, EITHER = ("source",), ("destination",), ("source", "destination")


#: What the page says.
LEGEND = """\
A cell shows where the guest runs afterwards. *reset*: both hosts get a reset. *half-closed*: the destination hears that
nothing more comes, the source hears nothing. *stalled*: nothing passes for 30 s, either way. *flipped bytes*: a bit in
each of twenty bytes of an encrypted stream; in the clear nothing could find that. *helper*: what carries the stream
beside QEMU, the program of `--link unix` or a pipeline's command. `pre-switchover` and `loaded` are held while the harm
is done; in `loaded` the stream has done its work. *A stranger locks it*: a third process opens the disk that both hosts
share as soon as that state is reached, and goes after 3 s; while a QEMU of ours has it, it is refused. *No room*: the
destination's file system is filled; a guest that arrived stands (QEMU stops it) until there is room and it is resumed.
A cut link, and agents and QEMUs that die, stand in [fault-matrix.md](../fault-matrix.md)."""


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
    yield Cell("copying-disks", FULL, DISK, STAYS)
    yield Cell("precopy", FULL, DISK, STAYS)
    for state in ("pre-switchover", "switchover", "loaded", "committed"):
        yield Cell(state, FULL, DISK, ARRIVES)
    for state in ("precopy", *HELD):
        yield Cell(state, LOCKED, SHARED, ARRIVES if state in OURS else STAYS)


class Wrong(Exception):
    """What is wrong with a guest, or could not be brought about."""


class Faults:
    """The lab, and one cell after the other in it."""

    def __init__(self, lab: Lab, relay: Relay) -> None:
        self._lab, self._relay = lab, relay
        self._image = Path()  #: of the cell's guest
        self._stranger: Stranger
        self._small: SmallDirectory | None = None

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
        async with contextlib.AsyncExitStack() as undo:
            if cell.fault == FULL:
                self._small = undo.enter_context(small_directory(self._lab, DESTINATION, DISK_BYTES))
                undo.callback(setattr, self, "_small", None)
            guest = await started(self._lab, self._plan(cell))
            handover = await self._struck(guest, cell)
            if cell.fault == Harm.STALL.value:
                await asyncio.sleep(STALL_S)
                self._relay.let_go()
            elif cell.fault == LOCKED:
                undo.push_async_callback(self._stranger.go)
                await asyncio.sleep(_STAYS_S)
                await self._stranger.go()
            view = await wait_finished(self._lab, SOURCE, handover)
            if view.report is None:
                raise Wrong("a finished hand-over has no report")
            if view.report.outcome is Outcome.MOVED:
                guest.moved_to(DESTINATION)
            if cell.fault == FULL and guest.host == DESTINATION:
                await self._goes_on_with_room(guest)
            try:
                return await self._place(guest, cell), str(view.report.reason or "")
            finally:
                await empty(self._lab)  # before the small file system goes

    async def _struck(self, guest: GuestRun, cell: Cell) -> str:
        """Begin the hand-over, do the harm in the cell's state, and return its id."""
        side = "destination" if cell.state in AT_DESTINATION else "source"
        hold = self._lab.hosts[DESTINATION if side == "destination" else SOURCE].hold_dir / f"{side}.{cell.state}"
        reached = hold.with_name(f"{hold.name}.reached")
        try:
            if cell.state in HELD:
                hold.touch()
            handover = await migrate(self._lab, guest, DESTINATION, options(cell))
            if cell.state in HELD:
                await wait_until(lambda: _exists(reached), f"the hand-over is {cell.state}")
            else:
                await wait_state(self._lab, SOURCE, handover, cell.state)
            await self._strike(cell)
        finally:
            hold.unlink(missing_ok=True)
            reached.unlink(missing_ok=True)
        return handover

    async def _goes_on_with_room(self, guest: GuestRun) -> None:
        """Hold that a guest without room stands, and give it room."""
        if not await stops_for_want_of_room(guest):
            raise Wrong("there is no room for what the guest writes, and it was not stopped")
        self._room().make_room()
        await self._lab.hosts[guest.host].api.post(f"/v1/guests/{guest.name}/resume")

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
        if cell.way in (DISK, SHARED):
            if not (disk := await guest.disk()).startswith("disk clean"):
                raise Wrong(disk)
            there = [path.name for path in self._destination_folder().iterdir()]
            if any("arriving" in name for name in there):
                raise Wrong(f"half a copy stays: {there}")
        return "destination" if guest.host == DESTINATION else "source"

    def _plan(self, cell: Cell) -> GuestPlan:
        """Return the guest that the cell needs; its disk is full of random bytes, or of holes that it fills."""
        if cell.way not in (DISK, SHARED):
            return BUSY
        name = f"web-7-{time.monotonic_ns()}.raw"
        folder = self._lab.directory if cell.way == SHARED else self._lab.hosts[SOURCE].local_dir
        if cell.fault in (LOCKED, FULL) and cell.state != "copying-disks":
            with (folder / name).open("wb") as empty_image:
                empty_image.truncate(DISK_BYTES)
        else:
            (folder / name).write_bytes(os.urandom(DISK_BYTES))
        self._image = (self._lab.directory if cell.way == SHARED else self._lab.local) / name
        disk = DiskPlan(self._image, "raw")
        return GuestPlan("linux", memory_mib=128, working_set_mib=16, rate=4, disk_rate=4, disks=(disk,))

    async def _strike(self, cell: Cell) -> None:
        """Do the harm."""
        if cell.fault == LOCKED:
            await self._have_it_locked(ours=cell.state in OURS)
        elif cell.fault == FULL:
            if cell.state == "copying-disks":
                await self._half_copied()
            self._room().fill()
        elif cell.fault in (harm.value for harm in Harm):
            await self._spoil(cell, Harm(cell.fault))
        else:
            await self._kill_helper(cell)

    async def _have_it_locked(self, *, ours: bool) -> None:
        self._stranger = Stranger(self._image)
        if await self._stranger.try_to_hold() is ours:
            raise Wrong(f"the stranger {'has' if ours else 'does not get'} the image")

    async def _spoil(self, cell: Cell, harm: Harm) -> None:
        """Do something to the connections that are open, or to the first bytes that pass."""
        ports = PORTS[1:] if cell.way == DISK else (*PORTS, STREAM_PORT)
        if cell.state not in HELD or harm is Harm.FLIP:
            self._relay.harm(harm, after_bytes=0 if cell.state in HELD else MIB, ports=ports)
        elif not self._relay.harm_now(harm, ports) and cell.state != "loaded":
            raise Wrong("there is no connection to harm")
        if cell.state not in HELD:
            await asyncio.wait_for(self._relay.done.wait(), 30)

    async def _kill_helper(self, cell: Cell) -> None:
        """Kill what carries the stream or serves the disk."""
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

    def _room(self) -> SmallDirectory:
        if self._small is None:
            raise Wrong("the destination's file system is not a small one")
        return self._small

    def _destination_folder(self) -> Path:
        return self._small.path if self._small else self._lab.hosts[DESTINATION].local_dir

    async def _half_copied(self) -> None:
        """Wait until a third of the disk is at the destination."""
        while True:
            found = [path.stat().st_blocks * 512 for path in self._destination_folder().iterdir()]
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
    elif cell.way == SHARED:
        asked = {} if cell.state in HELD else {"max_bandwidth": 6 * SLOW}
    else:
        asked |= {"link": cell.way}
    return asked | ({"postcopy_after": 1} if cell.state.startswith("postcopy") else {})


async def _exists(file: Path) -> bool:
    return file.exists()  # noqa: ASYNC240 - on a local file system


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
