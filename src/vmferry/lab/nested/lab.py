"""Nested hosts on one wire, claimed as every lab is, and gone without a trace when the block is left.

async with NestedLab(packages=("nfs-kernel-server",)) as lab:
    await lab.hosts["host-a"].must("uname", "-r")
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from vmferry.core.errors import Broken
from vmferry.lab.nested import sriov
from vmferry.lab.nested.host import HostPlan, NestedHost, hub
from vmferry.lab.nested.image import host_image
from vmferry.lab.nested.packages import packages_layer
from vmferry.lab.processes import MARK
from vmferry.lab.registry import Claim, claim, destroy
from vmferry.lab.toolchain import QemuBinary, cache_dir, find_qemus

_MEMORY_MIB = 1024
MOST_HOSTS = 4
#: Hubs of QEMU's own: of the wire, and of the cards (`sriov`), which count from theirs on.
_WIRE_HUB = 6


class NestedLab:
    """Nested hosts, host-a and on; every wire hangs on the first, which is the hub where there are more than two.

    Args:
        count: how many hosts, 1 to MOST_HOSTS.
        packages: Debian packages that the hosts have beside what is installed here.
        memory_mib: of each host.
        qemu: the emulator; the newest on this machine by default.
        cards: how many cards that make virtual functions each host has, joined to the others'; 0: it has no IOMMU
            either, and no KVM.
        spares: devices that the hosts do not need (`sriov.SPARES`), where there are cards.
        shells: whether each host has a shell at a socket (`NestedHost.shell_socket`).
    """

    def __init__(
        self,
        *,
        count: int = 2,
        packages: Sequence[str] = (),
        memory_mib: int | None = None,
        qemu: QemuBinary | None = None,
        cards: int = 0,
        spares: Sequence[str] = (),
        shells: bool = False,
    ) -> None:
        self._count = count
        self._shells = shells
        self._packages = tuple(packages)
        self._memory_mib = memory_mib or (sriov.MEMORY_MIB if cards else _MEMORY_MIB)
        self._qemu = qemu
        self._cards = cards
        self._spares = tuple(spares)
        self._claim: Claim | None = None
        self.hosts: dict[str, NestedHost] = {}

    async def __aenter__(self) -> Self:
        """Start the hosts and wait until they are up; on failure nothing is left."""
        layers = await asyncio.to_thread(self._layers)
        self._claim = claim()
        try:
            for number in range(self._count):
                self._plan(number, self._claim, layers)
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove everything."""
        await self.close()

    async def close(self) -> None:
        """Power the hosts off and remove their files; idempotent."""
        if self._claim is not None:
            destroy(self._claim)
            self._claim = None
        for host in self.hosts.values():
            await host.power_off()
        self.hosts.clear()

    async def _start(self) -> None:
        """Start all at once; a failure is told when all have ended to start."""
        starts = (host.start() for host in self.hosts.values())
        for ended in await asyncio.gather(*starts, return_exceptions=True):
            if ended is not None:
                raise ended

    def _layers(self) -> tuple[Path, ...]:
        return (packages_layer(self._packages, cache_dir()),) if self._packages else ()

    def _plan(self, number: int, lab: Claim, layers: tuple[Path, ...]) -> None:
        name = f"host-{chr(ord('a') + number)}"
        directory = lab.directory / name
        directory.mkdir(mode=0o700)
        mac, address = f"52:54:00:7e:00:{number + 1:02x}", f"10.79.0.{number + 1}/24"
        plan = HostPlan(name, mac, address, self._memory_mib, layers, _free_port(), self._shells)
        env = {**os.environ, MARK: lab.id}
        others = [0] if number else range(1, self._count)

        def joined(what: str) -> list[str]:
            places = [(f"{what}{number}-{other}", f"{what}{other}-{number}") for other in others]
            return [_wire(lab.directory / here, lab.directory / there) for here, there in places]

        wire = hub("wire", _WIRE_HUB, joined("wire"))
        made = (plan, host_image(cache_dir()), self._emulator(), directory, env, wire)
        cards = [joined(f"card{one}-") for one in range(self._cards)]
        self.hosts[name] = sriov.SriovHost(*made, cards, self._spares) if cards else NestedHost(*made)

    def _emulator(self) -> QemuBinary:
        found = [self._qemu] if self._qemu else find_qemus()
        if not found:
            raise Broken("No QEMU on this machine starts", fix="run `./run setup`")
        return found[0]


def _free_port() -> int:
    """Return a port of the loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wire(here: Path, there: Path) -> str:
    """Return a back-end that is one end of a cable: frames are datagrams, and what nobody takes is lost.

    Source: QEMU 7.2, -netdev dgram.
    """
    return f"dgram,local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
