"""Runs one cell: brings a move to its phase, strikes, lets everything go on, recovers, and judges."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from vmferry.core.errors import TimedOut, VmferryError
from vmferry.lab.libvirt.faults.cells import EXPECTED, Cell, Expected, Fate, Fault, Phase, hold_of
from vmferry.lab.libvirt.faults.hold import holding
from vmferry.lab.libvirt.faults.stage import GUEST, HOSTS, NAMES, Stage

_HELD_WITHIN_S: Final = 60.0
#: After the fault: daemons notice a cut after 12 s, and the guest is sent within a few seconds.
_SETTLES_WITHIN_S: Final = 90.0
_MOST_RECOVERIES: Final = 4
_IN_DOUBT: Final = 9  #: the exit code of `recover` when a guest may be anybody's


@dataclass
class Result:
    """How a cell ended."""

    cell: Cell
    expected: Expected
    seen: str = ""
    recovered: str = ""  #: what recover did
    complaints: list[str] = field(default_factory=list)  #: why it is no pass
    history: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether everything was as it was expected."""
        return not self.complaints

    def record(self) -> dict[str, Any]:
        """Return it for the result file."""
        return {
            "phase": self.cell.row,
            "fault": str(self.cell.fault),
            "expected": self.expected.text,
            "seen": self.seen,
            "recovered": self.recovered,
            "verdict": "pass" if self.passed else "FAIL",
            "complaints": self.complaints,
            "history": [] if self.passed else self.history,
            "seconds": round(self.seconds, 1),
        }


async def run_cell(stage: Stage, cell: Cell) -> Result:
    """Run one cell; the stage is as before afterwards, unless the result did not pass."""
    result = Result(cell, EXPECTED[cell])
    began = time.monotonic()
    try:
        await stage.begin(with_disk=not cell.held)
        await _play(stage, cell, result)
        await _recover(stage, result)
        await _judge(stage, result)
    except (VmferryError, TimeoutError) as error:
        result.complaints.append(f"{type(error).__name__}: {error}")
    if not result.passed:
        result.history += [*stage.watch.spans(), f"migrate said: {stage.log.read_text('utf-8', 'replace')[-1500:]}"]
    await stage.clear()
    result.seconds = time.monotonic() - began
    return result


async def _play(stage: Stage, cell: Cell, result: Result) -> None:
    """Move, hold, strike, let go, and wait until libvirt has done what it does by itself."""
    note = result.history.append
    async with AsyncExitStack() as stack:
        hold = None
        if (where := hold_of(cell)) is not None:
            side, function, passing = where
            stage.holds += 1
            directory = stage.lab.directory / f"hold-{stage.holds}"
            pid = stage.daemons[HOSTS[side]].pid
            hold = await stack.enter_async_context(holding(pid, function, passing, directory))
        command = stage.migrate(*(["--postcopy"] if cell.phase is Phase.POSTCOPY else []))
        stack.callback(_end, command)
        if hold is not None:
            await hold.wait_held(_HELD_WITHIN_S)
        else:
            await _until_it_sends(stage)
        if cell.phase is Phase.POSTCOPY:
            await stage.leave()
        note(f"in {cell.phase}")
        killed = _strike(stage, cell.fault, command)
        note(f"{cell.fault} struck")
        if hold is not None:
            hold.let_go()
        await asyncio.sleep(1.0)
        if killed is not None:
            await stage.daemons[killed].start()
            note(f"libvirtd on {killed} started again")
        if cell.fault is not Fault.COMMAND:
            await _wait(command)
            note(f"migrate ended with {command.poll()}")
        if cell.fault is Fault.CUT:
            stage.network.heal()
            note("link healed")


def _strike(stage: Stage, fault: Fault, command: subprocess.Popen[bytes]) -> str | None:
    """Do the fault; returns the host whose daemon was killed."""
    match fault:
        case Fault.SOURCE_DAEMON | Fault.DESTINATION_DAEMON:
            host = HOSTS["source" if fault is Fault.SOURCE_DAEMON else "destination"]
            stage.daemons[host].kill()
            return host
        case Fault.SOURCE_QEMU | Fault.DESTINATION_QEMU:
            stage.kill_qemu("source" if fault is Fault.SOURCE_QEMU else "destination")
        case Fault.COMMAND:
            command.kill()
            command.wait()
        case Fault.CUT:
            stage.network.cut()
    return None


async def _until_it_sends(stage: Stage) -> None:
    deadline = time.monotonic() + _HELD_WITHIN_S
    while not await stage.sends():
        if time.monotonic() > deadline:
            raise TimedOut(f"{GUEST.name} does not send within {_HELD_WITHIN_S:g} s")
        await asyncio.sleep(0.1)


async def _wait(command: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SETTLES_WITHIN_S
    while command.poll() is None:
        if time.monotonic() > deadline:
            raise TimedOut(f"`vmferry migrate` does not end within {_SETTLES_WITHIN_S:g} s after the fault")
        await asyncio.sleep(0.1)


def _end(command: subprocess.Popen[bytes]) -> None:
    if command.poll() is None:
        command.kill()
    command.wait()


async def _recover(stage: Stage, result: Result) -> None:
    """Ask `recover` until it has nothing more to do."""
    done: list[str] = []
    for _ in range(_MOST_RECOVERIES):
        ran = await stage.recover()
        said = ran.stdout.strip()
        result.history.append(f"recover ({ran.exit_code}): {said} {ran.stderr.strip()}")
        at = said.find("done: ")
        did = said[at + 6 : said.rfind("; owner: ")] if at >= 0 else ""
        if did == "nothing" or not did:
            break
        done.append(did)
    else:
        result.complaints.append(f"recover always finds something to do: {done}")
    result.recovered = "; ".join(done) or "nothing"
    result.complaints += _wrong_words(await _fate(stage, result.cell), ran.exit_code, said)


def _wrong_words(fate: Fate | None, exit_code: int, said: str) -> Sequence[str]:
    """Return what recover said that is not so."""
    owner = said.rpartition("owner: ")[2].split("\n")[0]
    words = {
        Fate.SOURCE: NAMES[HOSTS["source"]],
        Fate.DESTINATION: NAMES[HOSTS["destination"]],
        Fate.OFF: "nobody",
        Fate.LOST: "nobody",
    }
    expected = words.get(fate or Fate.HELD, "not known")
    wrong = [] if owner == expected else [f"recover says owner {owner!r}, seen {expected!r}: {said}"]
    if (exit_code == _IN_DOUBT) != (fate in (Fate.HELD, None)):
        wrong.append(f"recover ended with {exit_code}, and the guest is {fate}")
    return wrong


async def _fate(stage: Stage, cell: Cell) -> Fate | None:
    """Return where the guest is; what stands after one of the two QEMUs of a post-copy died is lost, not held."""
    fate = await stage.fate()
    dead = cell.fault in (Fault.SOURCE_QEMU, Fault.DESTINATION_QEMU)
    return Fate.LOST if fate is Fate.HELD and dead and cell.phase is Phase.POSTCOPY else fate


async def _judge(stage: Stage, result: Result) -> None:
    fate = await _fate(stage, result.cell)
    result.seen = str(fate or "twice")
    if fate not in result.expected.fates:
        result.complaints.append(f"seen {result.seen}, expected {result.expected.text}: {result.expected.why}")
    twice = stage.watch.twice(HOSTS["source"], HOSTS["destination"])
    if twice is not None:
        result.complaints.append(f"two ran: {twice}")
    said = {host: await stage.says(host) for host in HOSTS.values()}
    result.history.append(f"in the end: {said}")
    defined = [side for side, host in HOSTS.items() if said[host][1]]
    if fate in (Fate.SOURCE, Fate.DESTINATION) and defined != [str(fate)]:
        result.complaints.append(f"it runs at the {fate}, and is defined at {defined}")
    if fate is Fate.OFF and len(defined) != 1:
        result.complaints.append(f"it is off, and defined at {defined}")
    if stage.watch.dropped:
        result.complaints.append(f"{stage.watch.dropped} beats were not seen")
