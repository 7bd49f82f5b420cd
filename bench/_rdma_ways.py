"""What comes of every way by RDMA: between two nested hosts, since soft-RoCE is a module of their kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from _ways import RDMA, Seen, Way, told_by, ways

from vmferry.core.errors import Blocker, Broken
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import DiskPlan, micro_guest
from vmferry.lab.nested import NestedFleet, NestedHost, NestedLab
from vmferry.lab.nested.fleet import FOLDER
from vmferry.lab.nested.rdma import PACKAGES, add_device
from vmferry.lab.toolchain import find_qemu

_GUESTS = {False: "web-7", True: "web-8"}  #: without a disk, and with one that only its host has
#: A file system of each host's own that knows O_DIRECT: their roots are in memory.
_DISKS = Path("/run/disks")
_DISK = _DISKS / "web-8.img"
_MAKE_DISKS = f"""
modprobe -a loop ext4
truncate -s 64M /run/disks.ext4
mkfs.ext4 -q /run/disks.ext4
mkdir -m 711 {_DISKS}
mount -o loop /run/disks.ext4 {_DISKS}
"""
_DISK_BYTES = 8 * MIB
#: Asks the agent of its host for all of them, one after the other: to check each, and to move what is refused.
_ASK_ALL = """
import asyncio, json, sys
from pathlib import Path
from vmferry.lab.api import Api

async def main():
    api = Api("host-a", Path(sys.argv[1]), None)
    async with api.kept_open():
        for guest, options in json.load(sys.stdin):
            body = {"destination": "host-b", "options": options}
            blockers = (await api.post(f"/v1/guests/{guest}/check", body))["blockers"]
            outcome = None
            if blockers:
                handover = (await api.post(f"/v1/guests/{guest}/migrate", body))["handover"]
                outcome = (await api.follow(f"/v1/handovers/{handover}/watch"))[-1]["outcome"]
            print(json.dumps([blockers, outcome]))

asyncio.run(main())
"""


async def measure(version: str) -> dict[Way, Seen]:
    """Return what came of every way by RDMA with one QEMU on both hosts.

    Raises:
        Broken: what was foretold is not what came of it, or the guest's memory or disk is not whole.
    """
    major, minor = map(int, version.split("."))
    async with NestedLab(packages=PACKAGES) as lab:
        for host in lab.hosts.values():
            await add_device(host)
            await host.shell(_MAKE_DISKS)
        async with NestedFleet(lab.hosts, dict.fromkeys(lab.hosts, find_qemu(major, minor)), (_DISKS,)) as fleet:
            await lab.hosts["host-a"].shell(f"head -c {_DISK_BYTES} /dev/urandom > {_DISK}")
            for name in _GUESTS.values():
                disks = (DiskPlan(_DISK, "raw"),) if name == _GUESTS[True] else ()
                await fleet.run_guest(replace(micro_guest(name), working_set_mib=8, rate=1, disks=disks), "host-a")
                await fleet.must("guest", "pause", name)  # so that the host's only CPU is the agent's while it is asked
            asked = [way for way in ways() if way.link == RDMA]
            found = await _ask_all(lab.hosts["host-a"], asked)
            seen = {}
            for way, (blockers, outcome) in zip(asked, found, strict=True):
                if blockers and outcome != "blocked":
                    raise Broken(f"{way}: check said {blockers}, and it {outcome}")
                if blockers:
                    seen[way] = Seen(works=False, told=told_by([Blocker(**row) for row in blockers], "host-b"))
                else:
                    seen[way] = await _move(fleet, way, live=(major, minor) >= (10, 0))
                print(version, *way.cells, "works" if seen[way].works else "refused", seen[way].told, flush=True)
            return seen


async def _ask_all(host: NestedHost, asked: list[Way]) -> list[list[Any]]:
    """Return the blockers of each way, and what came of the move if there are any."""
    questions = [(_GUESTS[way.disk], way.options) for way in asked]
    said = await host.python(_ASK_ALL, str(FOLDER / "operator"), text=json.dumps(questions), timeout_s=1800)
    return [json.loads(line) for line in said.splitlines()]


async def _move(fleet: NestedFleet, way: Way, *, live: bool) -> Seen:
    """Move its guest, which is paused, from host-a to host-b, and look at it there."""
    name = _GUESTS[way.disk]
    if live:  # QEMU 7.2 loses writes of a guest that runs under TCG
        await fleet.must("guest", "resume", name)
    await fleet.must("migrate", name, "host-b", "--link", RDMA, "--plain", *(("--copy-disks",) if way.disk else ()))
    if not live:
        await fleet.must("guest", "resume", name)
    oracle = await fleet.oracle(name, "host-b")
    if not oracle.startswith("oracle clean"):
        raise Broken(f"{way}: {oracle}")
    if way.disk:
        sums = [await host.shell(f"sha256sum < $(ls {_DISK}*)") for host in fleet.hosts.values()]
        if len(set(sums)) != 1:
            raise Broken(f"{way}: the copies of {_DISK} differ: {sums}")
    return Seen(works=True, told=oracle)
