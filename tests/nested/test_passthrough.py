"""Devices of a host go into a running guest and back, over the real VFIO of a real kernel, through our own agent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from tests.qemus import find_or_skip

from vmferry.core.guest import Acceleration
from vmferry.core.pci import PciAddress
from vmferry.lab.guest_plans import linux_guest
from vmferry.lab.nested import NestedFleet, NestedLab
from vmferry.lab.nested.sriov import SriovHost
from vmferry.lab.scenarios import wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]

GUEST, OTHER = "web-7", "db-1"
PLAN = replace(linux_guest(GUEST, memory_mib=160, rate=1, bridge=False), working_set_mib=8)
#: The guest's own look at its devices: "seen 8086:10ca ...".
_SEEN = "echo seen $(for d in /sys/bus/pci/devices/*; do cat $d/vendor $d/device; done)"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(sriov_lab: NestedLab) -> AsyncIterator[NestedFleet]:
    """Agents on two hosts, and a guest on the first."""
    for host in sriov_lab.hosts.values():
        if not host.is_up:
            await host.start()
    qemus = dict.fromkeys(sriov_lab.hosts, find_or_skip((10, 0)))
    async with NestedFleet(sriov_lab.hosts, qemus, acceleration=Acceleration.KVM) as made:
        await made.run_guest(PLAN, "host-a")
        yield made


def host_of(fleet: NestedFleet) -> SriovHost:
    """Return the host on which the guest is."""
    host = fleet.hosts["host-a"]
    assert isinstance(host, SriovHost)
    return host


async def driver_of(fleet: NestedFleet, device: PciAddress, host: str = "host-a") -> str:
    """Return which driver of a host has a device; empty: none."""
    ran = await fleet.hosts[host].run("readlink", f"{device.sysfs}/driver")
    return ran.stdout.strip().rpartition("/")[2]


async def seen_by(fleet: NestedFleet, guest: str, ids: str, host: str = "host-a") -> int:
    """Return how many devices with these ids a guest's system sees."""
    words = (await fleet.ask_shell(guest, host, _SEEN, "seen 0x")).split()[1:]
    pairs = [f"{vendor[2:]}:{device[2:]}" for vendor, device in zip(words[::2], words[1::2], strict=True)]
    return pairs.count(ids)


async def wait_seen(fleet: NestedFleet, guest: str, ids: str, count: int, host: str = "host-a") -> None:
    """Wait until a guest's system has found as many."""

    async def is_so() -> bool:
        return await seen_by(fleet, guest, ids, host) == count

    await wait_until(is_so, f"{guest} sees {count} devices {ids}", timeout_s=120)


@pytest.mark.parametrize(
    ("what", "ids", "driver"),
    [("nvme", "1b36:0010", "nvme"), ("e1000e", "8086:10d3", "e1000e"), ("pf", "8086:10c9", "igb")],
)
async def test_a_whole_device_goes_in_and_back(fleet: NestedFleet, what: str, ids: str, driver: str) -> None:
    """A disk controller, a network card, a card that could make functions: the guest finds it, then the host has it."""
    host = host_of(fleet)
    device = host.cards[1] if what == "pf" else host.spares[what]
    await host.shell(f"for net in {device.sysfs}/net/*; do [ ! -e $net ] || ip link set ${{net##*/}} down; done")
    assert await driver_of(fleet, device) == driver
    await fleet.must("guest", "attach", GUEST, str(device))
    assert await driver_of(fleet, device) == "vfio-pci"
    await wait_seen(fleet, GUEST, ids, 1)
    view = json.loads(await fleet.must("guest", "show", GUEST, "--json"))
    assert view["devices"] == [str(device)]
    found = json.loads((await fleet.cli("check", GUEST, "host-b", "--json")).stdout)
    assert [row["code"] for row in found["blockers"]] == ["device.attached"]
    await fleet.must("guest", "detach", GUEST, str(device), "--within", "120s")
    assert await driver_of(fleet, device) == driver
    assert await seen_by(fleet, GUEST, ids) == 0
    assert (await fleet.oracle(GUEST, "host-a", 120)).startswith("oracle clean")


async def test_a_guest_that_is_to_have_a_disk_controller_moves(fleet: NestedFleet) -> None:
    """It has its host's, lets it go, moves, and has the other host's; each host has its own back afterwards."""
    plan = replace(PLAN, name=OTHER, extra={"host_device": [{"device": "1b36:0010", "may_detach": True}]})
    await fleet.run_guest(plan, "host-a")
    for source, destination in (("host-a", "host-b"), ("host-b", "host-a")):
        await wait_seen(fleet, OTHER, "1b36:0010", 1, source)
        assert (await driver_of(fleet, host_of(fleet).spares["nvme"], source)) == "vfio-pci"
        await fleet.must("migrate", OTHER, destination, "--plain", timeout_s=300)
        assert (await driver_of(fleet, host_of(fleet).spares["nvme"], source)) == "nvme"
    await wait_seen(fleet, OTHER, "1b36:0010", 1, "host-a")
    assert (await fleet.oracle(OTHER, "host-a", 120)).startswith("oracle clean")
