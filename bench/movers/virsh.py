"""libvirt as shipped: `virsh migrate --live` between two real daemons."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from grid.cells import GUEST, Cell
from grid.figures import Word
from grid.observe import DESTINATION, SOURCE

from movers.base import Mover
from movers.guest_files import BEAT_PORT, CPU, guest_image, guest_plan
from movers.plain import beat_sink
from vmferry.core.errors import Broken
from vmferry.lab.hosts import HOSTS, Lab
from vmferry.lab.libvirt import LibvirtDaemon, domain_xml, write_emulator

#: What `virsh domjobinfo` says, and how many of ours one of its units is.
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_LINE = re.compile(r"^(?P<key>[^:]+):\s+(?P<value>[\d.]+)\s*(?P<unit>\S*)", re.MULTILINE)
#: A daemon that does not answer is a fault of the bench, not a slow migration.
GRACE_S = 30.0


class VirshMover(Mover):
    """`virsh migrate --live` with nothing else."""

    name = "virsh"
    options: ClassVar[Sequence[str]] = ()

    def __init__(self, lab: Lab, daemons: dict[str, LibvirtDaemon]) -> None:
        super().__init__(lab)
        self._daemons = daemons
        self._sinks: list[socket.socket] = []
        self._unsafe: tuple[str, ...] = ()

    async def boot(self, cell: Cell) -> None:
        """Create the domain on host-a."""
        plan = await guest_plan(cell)
        image = await guest_image(self.lab, plan, "virsh")
        for host in HOSTS:
            if self.lab.network:
                self._sinks.append(beat_sink(self.lab.network.namespace(host)))
        # libvirt cannot know that both hosts see the same files, and refuses to move a guest with disks.
        self._unsafe = ("--unsafe",) if image.disks else ()
        emulator = write_emulator(self.lab.hosts[SOURCE].qemu, self.lab.directory / "emulator")
        text = domain_xml(plan, image, emulator=str(emulator), cpu=CPU, beat_port=BEAT_PORT)
        file = self.lab.directory / "domain.xml"
        file.write_text(text, "utf-8")
        await self._daemons[SOURCE].must("create", str(file))

    async def order(self, limit_s: float) -> Word:
        """Run the command; a late one is called back with `domjobabort`."""
        to = self._daemons[DESTINATION].uri, f"tcp://{self.lab.hosts[DESTINATION].address}"
        command = self._daemons[SOURCE].virsh_argv("migrate", "--live", *self.options, *self._unsafe, GUEST, *to)
        running = asyncio.create_task(self.lab.run(command, limit_s + GRACE_S))
        done, _ = await asyncio.wait([running], timeout=limit_s)
        info: dict[str, float] = {}
        if not done:
            info = await self._info(SOURCE)
            await self._daemons[SOURCE].virsh("domjobabort", GUEST)
        ran = await running
        ended_ns, arrived = time.monotonic_ns(), ran.exit_code == 0
        if arrived:
            info = await self._info(DESTINATION, "--completed")
        reason = None if arrived else (ran.stderr.strip() if done else "not there within the time limit")
        return _word(info, ended_ns, reason, arrived=arrived)

    def control(self, host: str) -> Path:
        """Return the guest's control socket on a host."""
        return self._daemons[host].control

    def console(self, host: str) -> Path:
        """Return the guest's console socket on a host."""
        return self._daemons[host].console

    async def end(self) -> None:
        """Destroy the domain on both hosts."""
        for host in HOSTS:
            ran = await self._daemons[host].virsh("destroy", GUEST)
            if ran.exit_code and "no domain" not in ran.stderr and "failed to get domain" not in ran.stderr:
                raise Broken(f"`virsh destroy {GUEST}` on {host} failed: {ran.stderr.strip()}")
        for sink in self._sinks:
            sink.close()
        self._sinks.clear()

    async def _info(self, host: str, *options: str) -> dict[str, float]:
        return job_info(await self._daemons[host].must("domjobinfo", GUEST, *options))


class VirshAutoConverge(VirshMover):
    """libvirt with QEMU's automatic brake."""

    name = "virsh auto-converge"
    options: ClassVar[Sequence[str]] = ("--auto-converge",)


class VirshPostcopy(VirshMover):
    """libvirt with post-copy after the first pass."""

    name = "virsh post-copy"
    postcopy = True
    options: ClassVar[Sequence[str]] = ("--postcopy", "--postcopy-after-precopy")


def job_info(text: str) -> dict[str, float]:
    """Return what `virsh domjobinfo` prints, in bytes and ms."""
    return {
        found["key"].strip(): float(found["value"]) * _UNITS.get(found["unit"], 1) for found in _LINE.finditer(text)
    }


def _word(info: dict[str, float], ended_ns: int, reason: str | None, *, arrived: bool) -> Word:
    moved, rounds = info.get("Memory processed"), info.get("Iteration")
    return Word(
        arrived,
        ended_ns,
        reason,
        None if moved is None else int(moved),
        info.get("Time elapsed"),
        info.get("Total downtime"),
        None if rounds is None else int(rounds),
        {"throttle_percent": info["Auto converge throttle"]} if "Auto converge throttle" in info else {},
    )
