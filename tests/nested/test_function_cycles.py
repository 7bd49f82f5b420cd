"""Functions of one card go to two running guests and back, hundreds of times, and the agent is killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio
from tests.qemus import find_or_skip

from vmferry.core.errors import VmferryError
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
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]
GUESTS, COUNT, MOST_OF_ONE = ("web-7", "db-1"), 4, 2
#: Functions that were given to a guest and taken from it again.
CYCLES = 200
#: They cost an emulated host little.
PLAN = replace(
    linux_guest("web-7", memory_mib=128, rate=1, bridge=False), working_set_mib=8, beat_us=50_000, echo=False
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(sriov_lab: NestedLab) -> AsyncIterator[NestedFleet]:
    """An agent on a host whose card has functions, and two guests."""
    name, host = next(iter(sriov_lab.hosts.items()))
    if not host.is_up:
        await host.start()
    qemus = {name: find_or_skip((10, 0))}
    try:
        async with NestedFleet({name: host}, qemus, acceleration=Acceleration.KVM) as made:
            for guest in GUESTS:
                await made.run_guest(replace(PLAN, name=guest), name)
            yield made
    finally:
        if host.is_up:
            await host.shell("echo 0 >/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs")


def host_of(fleet: NestedFleet) -> SriovHost:
    """Return the host."""
    (host,) = fleet.hosts.values()
    assert isinstance(host, SriovHost)
    return host


async def owners(fleet: NestedFleet) -> dict[str, str]:
    """Return which devices belong to which guest, as the host tells it of each device."""
    devices = json.loads(await fleet.must("pci", "list", host_of(fleet).plan.name, "--json"))["devices"]
    return {one["address"]["lspci"]: one["user"] for one in devices if one["user"] is not None}


async def attached(fleet: NestedFleet) -> dict[str, str]:
    """Return the same, as the guests have it; a device in two of them fails."""
    guests = json.loads(await fleet.must("guest", "list", "--json"))["guests"]
    pairs = [(device, f"guest {one['name']}") for one in guests for device in one["devices"]]
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


async def with_vfio(fleet: NestedFleet, functions: Sequence[str]) -> set[str]:
    """Return which functions VFIO has, by the kernel's word."""
    told = (await host_of(fleet).shell("ls /sys/bus/pci/drivers/vfio-pci")).split()
    return {one for one in functions if str(PciAddress.parse(one)) in told}


async def give_or_take(fleet: NestedFleet, guest: str, functions: Sequence[str], chance: random.Random) -> str:
    """Order that a guest gets a function, or lets one go; return what was done."""
    has = [device for device, owner in (await attached(fleet)).items() if owner == f"guest {guest}"]
    verb = "detach" if len(has) == MOST_OF_ONE or (has and chance.random() < 0.5) else "attach"
    ran = await fleet.cli("guest", verb, guest, chance.choice(has if verb == "detach" else functions))
    return verb if ran.exit_code == 0 else f"{verb} failed with {ran.exit_code}"


async def orders(fleet: NestedFleet, functions: Sequence[str], chance: random.Random, done: Counter[str]) -> None:
    """Give orders to all guests at once, for as long as the agent answers."""

    async def of(guest: str) -> None:
        with contextlib.suppress(VmferryError):  # it was asked while it died
            while True:
                done[await give_or_take(fleet, guest, functions, chance)] += 1

    await asyncio.gather(*map(of, GUESTS))


async def test_agents_that_are_killed_lose_no_function(fleet: NestedFleet) -> None:
    """After each death guests, journal and kernel agree, and each function is one guest's or the host's."""
    host, chance = host_of(fleet), random.Random(7)
    made = await fleet.must("vf", "create", host.plan.name, str(host.cards[0]), str(COUNT), "--json")
    functions, done = json.loads(made)["functions"], Counter[str]()

    async def agree() -> bool:
        guests = await attached(fleet)
        return await owners(fleet) == guests and await with_vfio(fleet, functions) == set(guests)

    while min(done["attach"], done["detach"]) < CYCLES:
        ordering = asyncio.create_task(orders(fleet, functions, chance, done))
        await asyncio.sleep(chance.uniform(20, 240))  # an order takes four seconds, and the next agent's start sixty
        await fleet.kill_agent(host.plan.name)
        await ordering
        done["deaths"] += 1
        await fleet.start_agent(host.plan.name)
        await wait_until(agree, "guests, journal and kernel agree", timeout_s=120)
        print(dict(done), flush=True)  # noqa: T201 - an hour's work is watched
    for guest in GUESTS:
        assert (await fleet.oracle(guest, host.plan.name, 120)).startswith("oracle clean")
