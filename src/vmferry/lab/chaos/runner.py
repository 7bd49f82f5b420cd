"""Runs cells of the fault matrix, each on its own guest, and judges them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack
from typing import Self

from vmferry.core.capabilities import Transport
from vmferry.core.errors import VmferryError
from vmferry.lab.chaos import reality
from vmferry.lab.chaos.beat_watch import BeatWatch
from vmferry.lab.chaos.cell import Cell, Result, Verdict
from vmferry.lab.chaos.faults import strike
from vmferry.lab.chaos.history import History, journal_lines
from vmferry.lab.chaos.holds import Holds
from vmferry.lab.chaos.reality import Reality
from vmferry.lab.chaos.scene import HOSTS, Scene
from vmferry.lab.chaos.ways import bring_to
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.scenarios import started

#: Little memory and few writes: the last pages fit into the sockets' buffers, where `destination-loaded` needs them.
GUEST = GuestPlan("micro", memory_mib=64, working_set_mib=8, rate=1)
#: A supervisor waits twice as long after every death of its agent: after so many the lab is made anew.
_AGENT_DEATHS = 3


class Chaos:
    """A lab in which cells are run; an async context manager. A lab that is not as it was is replaced by a new one.

    Args:
        link: how streams travel.
    """

    def __init__(self, link: Transport = Transport.TCP) -> None:
        self._link = link
        self._stack = AsyncExitStack()
        self._machine = ExitStack()
        self._stage: tuple[Lab, BeatWatch] | None = None
        self._deaths = 0

    async def __aenter__(self) -> Self:
        """Make the first lab."""
        self._machine.enter_context(page_faults_for_all())
        await self._renew()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove the lab."""
        try:
            await self._stack.aclose()
        finally:
            self._machine.close()

    async def run(self, cells: Iterable[Cell]) -> AsyncIterator[Result]:
        """Run cells one after the other and yield how each ended."""
        for cell in cells:
            yield await self.run_one(cell)

    async def run_one(self, cell: Cell) -> Result:
        """Run one cell and judge it."""
        stage = self._stage
        if stage is None or self._deaths >= _AGENT_DEATHS:
            stage = await self._renew()
        self._deaths += "agent" in cell.fault
        began = time.monotonic()
        result = await _run(cell, self._link, *stage)
        result.seconds = time.monotonic() - began
        if result.verdict is not Verdict.PASS:
            self._stage = None
        return result

    async def _renew(self) -> tuple[Lab, BeatWatch]:
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        lab = await self._stack.enter_async_context(Lab(namespaces=True))
        network = lab.network
        if network is None:
            raise RuntimeError("the fault matrix needs network namespaces")
        spaces = {host: network.namespace(host) for host in HOSTS.values()}
        self._stage = lab, self._stack.enter_context(BeatWatch(spaces))
        self._deaths = 0
        return self._stage


async def _run(cell: Cell, link: Transport, lab: Lab, watch: BeatWatch) -> Result:
    """Start a guest, bring its hand-over to the state, strike, wait for rest, judge."""
    history = History()
    expected = cell.expected()
    holds = Holds(lab, *HOSTS.values())
    holds.release_all()
    scene = Scene(lab, await started(lab, GUEST), watch, history, holds, link)
    watch.forget()
    history.note("the guest runs at the source")
    try:
        await bring_to(scene, cell.place)
    except VmferryError as error:
        scene.let_go()
        return Result(cell, expected, "", Verdict.UNKNOWN, [str(error)], scene.remarks, history=_told(scene))
    try:
        meanwhile = await strike(scene, cell)
        return await _judge(scene, cell, expected, meanwhile)
    except VmferryError as error:
        return Result(cell, expected, "", Verdict.FAIL, [f"{error}"], scene.remarks, history=_told(scene))
    finally:
        scene.let_go()
        await asyncio.gather(*scene.asking)


async def _judge(scene: Scene, cell: Cell, expected: tuple[str, ...], meanwhile: str | None) -> Result:
    found = await reality.settled(scene)
    seen = _seen(found, meanwhile)
    wrong = [] if seen in expected else [f"seen {seen}, expected {' or '.join(expected)}"]
    wrong += reality.complaints(scene, found)
    wrong += await reality.oracle_complaints(scene, found)
    wrong += await reality.recovery_complaints(scene, found)
    # once more at the very end: whatever was asked meanwhile must not have moved anything
    wrong += [line for line in reality.complaints(scene, await reality.look(scene)) if line not in wrong]
    told = _told(scene) if wrong else ()
    wrong += await reality.leftovers(scene, found)
    verdict = Verdict.FAIL if wrong else Verdict.PASS
    return Result(cell, expected, seen, verdict, wrong, scene.remarks, history=told or (_told(scene) if wrong else ()))


def _seen(found: Reality, meanwhile: str | None) -> str:
    """Return the outcome as it was foretold: where the guest is, after where it was during a cut.

    During a cut only beats are looked at, and they do not tell held from lost.
    """
    same = {found.place, None} | ({"held"} if found.place == "lost" else set())
    return found.place if meanwhile in same else f"{meanwhile}, then {found.place}"


def _told(scene: Scene) -> tuple[str, ...]:
    """Return the whole history: what was done, when the guest ran where, both journals, the agents' logs."""
    lines = [*scene.history.lines, *scene.watch.spans()]
    for host in scene.lab.hosts.values():
        lines += journal_lines(host)
        lines += [f"{host.name} log: {line}" for line in host.agent.tail(25).splitlines()]
    return tuple(lines)
