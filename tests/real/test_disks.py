"""Disks that two hosts do not share, copied while real guests write to them."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from vmferry.core.progress import Outcome
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import Leg, move, remove, started

pytestmark = [pytest.mark.real, pytest.mark.root]

COPY: dict[str, object] = {"copy_disks": True}
SIZE_MIB = 48


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts, each with a directory of its own at the same path."""
    async with Lab(local_dirs=True) as made:
        yield made


def make_image(lab: Lab, kind: str, name: str = "web-7") -> DiskPlan:
    """Make an image that only host-a has."""
    path = lab.local / f"{name}.{kind}"
    there = lab.hosts["host-a"].local_dir / path.name
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(there), f"{SIZE_MIB}M"], check=True)
    return DiskPlan(path, kind)


def plan(*disks: DiskPlan, name: str = "web-7") -> GuestPlan:
    """Return a guest that writes to its first disk."""
    return GuestPlan("linux", name, memory_mib=128, working_set_mib=16, rate=8, disk_rate=8, disks=disks)


def files(lab: Lab, host: str) -> list[str]:
    """Return what a host has in its own directory."""
    return sorted(path.name for path in lab.hosts[host].local_dir.iterdir())


def assert_moved(leg: Leg) -> None:
    """A guest that runs at the destination, as it was."""
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert leg.oracle.startswith("oracle clean"), leg.oracle
    assert not leg.still_at_source


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_there_and_back(lab: Lab, kind: str) -> None:
    """What the guest wrote is there; the source's image is put aside, and so does not stand in the way back."""
    disk = make_image(lab, kind)
    guest = await started(lab, plan(disk))
    for number, host in enumerate(("host-b", "host-a")):
        leg = await move(lab, guest, host, COPY)
        assert_moved(leg)
        assert (await guest.disk()).startswith("disk clean chunks="), number
        assert leg.report.disks == (str(disk.image),)
        left = "host-a" if host == "host-b" else "host-b"
        assert f"{disk.image.name}.left-{leg.report.handover}" in files(lab, left)
        assert disk.image.name not in files(lab, left)
        assert disk.image.name in files(lab, host)
    assert not [name for host in lab.hosts for name in files(lab, host) if "arriving" in name]
    await remove(lab, guest)
