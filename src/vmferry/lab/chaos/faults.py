"""The faults as they are done to real processes and a real link.

A fault comes while the hand-over is held, so that it hits exactly there; then everything is let go. Supervisors are
held while their agent is killed, so that the next one starts after the holds are gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from vmferry.core.handover.states import FACTS, DestinationState, Side, SourceState
from vmferry.lab.chaos.cell import CUTS, LONG_CUT, Cell
from vmferry.lab.chaos.scene import HOSTS, Scene
from vmferry.lab.iproute import run
from vmferry.lab.processes import kill_all

#: What dies: whose agent, whose QEMU.
_DEATHS: Mapping[str, tuple[Side, bool, bool]] = {
    "source agent": (Side.SOURCE, True, False),
    "destination agent": (Side.DESTINATION, True, False),
    "source QEMU": (Side.SOURCE, False, True),
    "destination QEMU": (Side.DESTINATION, False, True),
    "source agent and QEMU": (Side.SOURCE, True, True),
    "destination agent and QEMU": (Side.DESTINATION, True, True),
}
_SHORT_CUT_S = 1.5
#: A long cut outlasts TCP's patience and every deadline of a guest that stands still: `switchover` has 30 s.
_LONG_CUT_S, _LONGEST_CUT_S = 5.0, 40.0
#: TCP gives up after three repetitions, about three seconds, in a long cut; the default is a quarter of an hour.
_IMPATIENT, _PATIENT = 3, 15
#: Nothing ends these but the other side.
_HELD = frozenset(
    map(
        str,
        (
            SourceState.COMMITTED,
            SourceState.ORPHANED,
            SourceState.POSTCOPY_CROSSING,
            SourceState.POSTCOPY_COMMITTED,
            SourceState.POSTCOPY_PAUSED,
        ),
    )
)


async def strike(scene: Scene, cell: Cell) -> str | None:
    """Do a cell's fault, let everything go on, and end the fault; return where the guest ran during a cut."""
    if cell.fault in CUTS:
        return await _cut(scene, long=cell.fault == LONG_CUT)
    side, agent, qemu = _DEATHS[cell.fault]
    if agent:
        await asyncio.to_thread(_kill_agent, scene, side, with_qemu=qemu)
    elif qemu:
        await asyncio.to_thread(scene.kill_qemu, side)
    scene.let_go()
    scene.agent(side).allow_restarts()
    return None


def _kill_agent(scene: Scene, side: Side, *, with_qemu: bool) -> None:
    """Kill -9 an agent's worker, and its QEMU in the same moment."""
    agent = scene.agent(side)
    agent.hold_restarts()
    worker, qemu = agent.worker, scene.qemu(side) if with_qemu else None
    if with_qemu and qemu is None:
        scene.remarks.append(f"no QEMU at the {side} to kill in this state")
    doomed = [process for process in (worker, qemu) if process is not None]
    scene.history.note(f"kill -9 of {side}: agent {worker}, QEMU {qemu}")
    kill_all(doomed)


async def _cut(scene: Scene, *, long: bool) -> str:
    """Cut the hosts off from each other, let everything go on, look, and heal."""
    network = scene.lab.network
    if network is None:
        raise RuntimeError("a cut needs network namespaces")
    if long:
        _set_patience(scene, _IMPATIENT)
    network.cut()
    scene.history.note("management link is down")
    scene.let_go()
    await _outlast(scene, long=long)
    meanwhile = _place(await asyncio.to_thread(scene.watch.runs_on))
    states = {str(side): scene.journal_state(side) for side in Side}
    scene.history.note(f"during the cut the guest runs at: {meanwhile}; journals: {states}")
    network.heal()
    _set_patience(scene, _PATIENT)
    scene.history.note("management link is up")
    return meanwhile


async def _outlast(scene: Scene, *, long: bool) -> None:
    """Wait as long as the cut shall last: a long one until the source has decided what it can decide alone."""
    began = time.monotonic()
    await asyncio.sleep(_LONG_CUT_S if long else _SHORT_CUT_S)
    while long and time.monotonic() - began < _LONGEST_CUT_S:
        state, _ = scene.journal_state(Side.SOURCE)
        if state in _HELD or FACTS[SourceState(state)].final or _has_arrived(scene):
            return
        await asyncio.sleep(0.1)


def _has_arrived(scene: Scene) -> bool:
    return scene.journal_state(Side.DESTINATION)[0] == str(DestinationState.RUNNING)


def _set_patience(scene: Scene, repetitions: int) -> None:
    """Say how often TCP repeats itself before it gives up, on both hosts.

    Source: Documentation/networking/ip-sysctl.rst, tcp_retries2.
    """
    for host in HOSTS.values():
        run(*scene.lab.inside(host), "sysctl", "-qw", f"net.ipv4.tcp_retries2={repetitions}")


def _place(hosts: list[str]) -> str:
    if not hosts:
        return "held"
    return " and ".join(str(side) for side in Side if HOSTS[side] in hosts)
