"""What is true on both hosts when a cell has come to rest, and what of it is wrong.

Processes are found without agent or QMP; the beats tell where vCPUs run; the agents' word and the journals must agree
with both.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from vmferry.api.models import GuestView
from vmferry.core.errors import VmferryError
from vmferry.core.handover.states import Side
from vmferry.core.migration import RunState
from vmferry.lab.chaos.history import journals
from vmferry.lab.chaos.scene import HOSTS, Scene
from vmferry.lab.hosts import LabHost

#: Agents start again, deadlines pass, idle connections end: by then everything must be at rest.
_SETTLE_S = 75.0


@dataclass(frozen=True, slots=True)
class Reality:
    """Both hosts at rest."""

    running: tuple[Side, ...]  #: where vCPUs run, by their beats
    qemus: tuple[Side, ...]  #: where a QEMU process of the guest is
    views: dict[Side, GuestView]  #: what each agent says of the guest, where it knows it
    unfinished: tuple[str, ...]
    reservations: tuple[str, ...]

    @property
    def place(self) -> str:
        """Return where the guest is: "source", "destination", "held" by a QEMU that stands, or "lost"."""
        if self.running:
            return " and ".join(map(str, self.running))
        return "held" if self.qemus else "lost"


async def settled(scene: Scene) -> Reality:
    """Wait until both agents answer and no hand-over is open, then look; looks anyway when it takes too long."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        try:
            if not [line async for line in _open_matters(scene)]:
                break
        except VmferryError:
            pass
        await asyncio.sleep(0.05)
    scene.history.note("at rest" if time.monotonic() < deadline else f"NOT at rest after {_SETTLE_S:g} s")
    return await look(scene)


async def look(scene: Scene) -> Reality:
    """Return what is true now."""
    running = await asyncio.to_thread(scene.watch.runs_on)
    views = {}
    for side, host in HOSTS.items():
        for view in await scene.guest.list_on(host):
            views[side] = view
    reservations = [line for host in scene.lab.hosts.values() for line in _reservations(host)]
    return Reality(
        running=tuple(side for side in Side if HOSTS[side] in running),
        qemus=tuple(side for side in Side if scene.qemus(side)),
        views=views,
        unfinished=tuple([line async for line in _open_matters(scene)]),
        reservations=tuple(reservations),
    )


async def _open_matters(scene: Scene) -> Any:
    for host in HOSTS.values():
        for view in await scene.guest.handovers(host):
            if not view.finished:
                yield f"hand-over {view.handover} is in state {view.state} on {host}"


def _reservations(host: LabHost) -> Iterator[str]:
    for file in journals(host.state_dir):
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as journal:
            for (guest,) in journal.execute("SELECT guest FROM reservations"):
                yield f"reservation for guest {guest} on {host.name}"


def complaints(scene: Scene, found: Reality) -> Iterator[str]:
    """Yield what is wrong, whatever the outcome: two that run, journal against reality, leftovers."""
    twice = scene.watch.twice(HOSTS[Side.SOURCE], HOSTS[Side.DESTINATION])
    if twice is not None:
        yield f"THE GUEST RAN TWICE: {twice}"
    if scene.watch.dropped:
        yield f"the watch has holes: the kernel dropped {scene.watch.dropped} beats"
    yield from found.unfinished
    yield from found.reservations
    if len(found.views) != 1:
        yield f"{len(found.views)} hosts have the guest in their journal, expected 1"
    for side, view in found.views.items():
        yield from _against(side, view, found)


def _against(side: Side, view: GuestView, found: Reality) -> Iterator[str]:
    """Compare one journal with reality."""
    host = HOSTS[side]
    if view.owner != host:
        yield f"the journal of {host} says that {view.owner} owns the guest"
    if any(other is not side for other in found.qemus):
        yield f"a QEMU of the guest is left at the {', '.join(map(str, found.qemus))}, its journal is at the {side}"
    epochs = {Side.SOURCE: (1, 3), Side.DESTINATION: (2,)}[side]
    if view.epoch not in epochs:
        yield f"the token of {host} has epoch {view.epoch}, expected {' or '.join(map(str, epochs))}"
    expected = RunState.RUNNING if found.running else None
    if view.run_state is not expected:
        yield f"agent of {host} says that the guest is {view.run_state}, but it is {found.place}"
    if not found.qemus and not view.note:
        yield f"agent of {host} does not say why the guest has no process"


async def recovery_complaints(scene: Scene, found: Reality) -> list[str]:
    """Run `vmferry recover --json` and return what it should have said and did not."""
    ran = await scene.lab.cli(HOSTS[Side.SOURCE], "recover", scene.guest.name, "--json")
    scene.history.note(f"vmferry recover --json: exit code {ran.exit_code}: {ran.stdout.strip()}{ran.stderr.strip()}")
    if ran.exit_code:
        return [f"`vmferry recover` ended with {ran.exit_code}: {ran.stderr.strip() or ran.stdout.strip()}"]
    answer = json.loads(ran.stdout)
    wrong = [f"`vmferry recover`: {host} is silent: {why}" for host, why in answer["silent"].items()]
    told = [(finding["host"], finding["owner"]) for finding in answer["findings"]]
    expected = [(HOSTS[side], HOSTS[side]) for side in found.views]
    if told != expected:
        wrong.append(f"`vmferry recover` says (host, owner) {told}, expected {expected}")
    return [*wrong, *(line for finding in answer["findings"] for line in _finding_complaints(scene, finding, found))]


def _finding_complaints(scene: Scene, finding: dict[str, Any], found: Reality) -> Iterator[str]:
    words = "its vCPUs run" if found.running else "no QEMU process here"
    if words not in finding["found"]:
        yield f"`vmferry recover` does not say {words!r}: {finding['found']}"
    if finding["handover"] != scene.handover:
        yield f"`vmferry recover` does not name hand-over {scene.handover}: {finding['handover']}"


async def oracle_complaints(scene: Scene, found: Reality) -> list[str]:
    """Ask the guest for its memory where it runs."""
    if len(found.running) != 1:
        return []
    scene.guest.moved_to(HOSTS[found.running[0]])
    try:
        said = await scene.guest.oracle()
    except VmferryError as error:
        return [f"the oracle does not answer: {error}"]
    scene.history.note(said)
    return [] if said.startswith("oracle clean") else [f"memory is not whole: {said}"]


async def leftovers(scene: Scene, found: Reality) -> list[str]:
    """Remove the guest where it is and return what is left of it on either host."""
    for side in found.views:
        api = scene.lab.hosts[HOSTS[side]].api
        if found.qemus:
            await api.post(f"/v1/guests/{scene.guest.name}/stop", {"force": True})
        await api.delete(f"/v1/guests/{scene.guest.name}")
    left = [f"QEMU {qemu.pid} is left at the {side}" for side in Side for qemu in scene.qemus(side)]
    for host in scene.lab.hosts.values():
        left += [f"{host.name}: {name} is left" for name in _files(host, scene.guest.name)]
    return left


def _files(host: LabHost, guest: str) -> Iterator[str]:
    """Return the guest's files in the runtime directory; logs stay, they are for whoever asks why."""
    for folder, _, names in os.walk(host.run_dir):
        if folder.endswith(f"/{guest}"):
            yield from (f"{folder}/{name}" for name in names if not name.endswith(".log"))
