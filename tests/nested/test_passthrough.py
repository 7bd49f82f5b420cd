"""Devices of a host go into a running guest and back, over the real VFIO of a real kernel, through our own agent."""

from __future__ import annotations

import asyncio
import json
import random
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
    """Agents on two hosts, and two guests on the first."""
    for host in sriov_lab.hosts.values():
        if not host.is_up:
            await host.start()
    qemus = dict.fromkeys(sriov_lab.hosts, find_or_skip((10, 0)))
    async with NestedFleet(sriov_lab.hosts, qemus, acceleration=Acceleration.KVM) as made:
        await made.run_guest(PLAN, "host-a")
        await made.run_guest(replace(PLAN, name=OTHER), "host-a")
        yield made


def host_of(fleet: NestedFleet) -> SriovHost:
    """Return the host on which the guests are."""
    host = fleet.hosts["host-a"]
    assert isinstance(host, SriovHost)
    return host


async def driver_of(fleet: NestedFleet, device: PciAddress) -> str:
    """Return which driver of the host has a device; empty: none."""
    ran = await fleet.hosts["host-a"].run("readlink", f"{device.sysfs}/driver")
    return ran.stdout.strip().rpartition("/")[2]


async def seen_by(fleet: NestedFleet, guest: str, ids: str) -> int:
    """Return how many devices with these ids a guest's system sees."""
    words = (await fleet.ask_shell(guest, "host-a", _SEEN, "seen 0x")).split()[1:]
    pairs = [f"{vendor[2:]}:{device[2:]}" for vendor, device in zip(words[::2], words[1::2], strict=True)]
    return pairs.count(ids)


async def owners(fleet: NestedFleet) -> dict[str, str]:
    """Return which devices belong to which guest, as the host tells it of each device."""
    devices = json.loads(await fleet.must("pci", "list", "host-a", "--json"))["devices"]
    return {one["address"]["lspci"]: one["user"] for one in devices if one["user"] is not None}


async def attached(fleet: NestedFleet) -> dict[str, str]:
    """Return the same, as the guests have it."""
    guests = json.loads(await fleet.must("guest", "list", "--json"))["guests"]
    return {device: f"guest {one['name']}" for one in guests for device in one["devices"]}


async def wait_seen(fleet: NestedFleet, guest: str, ids: str, count: int) -> None:
    """Wait until a guest's system has found as many."""

    async def is_so() -> bool:
        return await seen_by(fleet, guest, ids) == count

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


async def test_functions_of_one_card_with_two_guests(fleet: NestedFleet) -> None:
    """Two for one guest, one for the other: none is given twice, and their card keeps them while a guest has one."""
    card = host_of(fleet).cards[0]
    first, second, third, _ = json.loads(await fleet.must("vf", "create", "host-a", str(card), "4", "--json"))[
        "functions"
    ]
    await fleet.must("guest", "attach", GUEST, first, second)
    await fleet.must("guest", "attach", OTHER, third)
    for guest, count in ((GUEST, 2), (OTHER, 1)):
        await wait_seen(fleet, guest, "8086:10ca", count)
    assert await owners(fleet) == await attached(fleet)
    for words in (("guest", "attach", OTHER, first), ("vf", "release", "host-a", str(card))):
        ran = await fleet.cli(*words)
        assert (ran.exit_code, "guest web-7" in ran.stderr) == (6, True)
    await fleet.must("guest", "stop", OTHER, "--force")
    assert await owners(fleet) == {first: f"guest {GUEST}", second: f"guest {GUEST}"}
    await fleet.must("guest", "start", OTHER)


async def test_agents_that_are_killed_lose_no_function(fleet: NestedFleet) -> None:
    """At any moment of an order: afterwards each function is a guest's, or nobody's; the guests never notice."""
    card, chance = host_of(fleet).cards[0], random.Random(7)
    shown = json.loads(await fleet.must("pf", "show", "host-a", str(card), "--json"))["functions"]
    functions = [one["address"]["lspci"] for one in shown]
    for _ in range(6):
        have = await attached(fleet)
        device = chance.choice(functions)
        owner = have.get(device, "").removeprefix("guest ")
        verb = ("detach", owner) if owner else ("attach", chance.choice([GUEST, OTHER]))
        order = asyncio.create_task(fleet.cli("guest", *verb, device))
        await asyncio.sleep(chance.uniform(4, 12))  # a command takes some 5 s to begin here
        await fleet.kill_agent("host-a")
        await order
        await fleet.start_agent("host-a")

        async def agree() -> bool:
            guests = await attached(fleet)
            drivers = {one: await driver_of(fleet, PciAddress.parse(one)) for one in functions}
            kept = {one for one, driver in drivers.items() if driver == "vfio-pci"}
            return await owners(fleet) == guests and kept == guests.keys() & set(functions)

        await wait_until(agree, "guests, journal and kernel agree", timeout_s=120)
    for guest in (GUEST, OTHER):
        assert (await fleet.oracle(guest, "host-a", 120)).startswith("oracle clean")
