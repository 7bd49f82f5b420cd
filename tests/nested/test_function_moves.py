"""A guest with a virtual function of a card moves live, between two kernels and two cards, and has a function again."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from tests.qemus import find_or_skip

from vmferry.core.functions import NO_MAC
from vmferry.core.guest import Acceleration
from vmferry.core.pci import PciAddress
from vmferry.lab.guest_plans import GUEST_ADDRESS, NicPlan, linux_guest
from vmferry.lab.nested import NestedFleet, NestedHost, NestedLab
from vmferry.lab.nested.sriov import SriovHost
from vmferry.lab.scenarios import wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]

GUEST, OTHER, NETWORK, COUNT = "web-7", "db-1", "fabric", 3
MACS, OTHERS = ("52:54:00:00:07:07", "52:54:00:00:07:08"), "52:54:00:00:07:09"
CARDS = tuple(NicPlan("sriov_vf", physical_network=NETWORK, mac=mac) for mac in MACS)
ROUNDS = 3
#: Two functions; beats that cost an emulated host little.
PLAN = replace(
    linux_guest(GUEST, memory_mib=128, rate=1, bridge=True), working_set_mib=8, beat_us=5000, nics=CARDS, echo=False
)
#: One, of the same card as the others'.
SECOND = replace(
    linux_guest(OTHER, memory_mib=128, rate=1, bridge=False),
    working_set_mib=8,
    beat_us=5000,
    nics=(NicPlan("sriov_vf", bridge=False, physical_network=NETWORK, mac=OTHERS),),
    echo=False,
)
#: The guest's own look: "seen virtio_net:52:54:00:00:07:07:up igbvf:52:54:00:00:07:07:up"; a card that came after its
#: start, and that no standby has joined, is brought up first.
_SEEN = (
    "for net in /sys/class/net/eth*; do /bin/busybox ip link set ${net##*/} up; done;"
    " echo seen $(for net in /sys/class/net/eth*; do d=$(readlink $net/device/driver);"
    " echo ${d##*/}:$(cat $net/address):$(cat $net/operstate); done)"
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(sriov_lab: NestedLab) -> AsyncIterator[NestedFleet]:
    """Agents on two hosts whose cards are on one network, and a guest with a function on the first."""
    hosts = [host for host in sriov_lab.hosts.values() if isinstance(host, SriovHost)]
    for number, host in enumerate(hosts, 1):
        if not host.is_up:
            await host.start()
        await host.make_bridge(f"10.78.0.{number}/24")
    networks = {NETWORK: hosts[0].cards[:1]}
    qemus = dict.fromkeys(sriov_lab.hosts, find_or_skip((10, 0)))
    try:
        async with NestedFleet(sriov_lab.hosts, qemus, acceleration=Acceleration.KVM, networks=networks) as made:
            for host in hosts:
                await made.must("vf", "create", host.plan.name, str(host.cards[0]), str(COUNT))
            await made.run_guest(PLAN, "host-a")
            yield made
    finally:
        for host in hosts:
            if host.is_up:
                await host.shell("ip link del br0; echo 0 >/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs")


async def view(fleet: NestedFleet, guest: str = GUEST) -> dict[str, Any]:
    """Return a guest as its host's agent has it."""
    shown: dict[str, Any] = json.loads(await fleet.must("guest", "show", guest, "--json"))
    return shown


async def functions_of(fleet: NestedFleet, host: str) -> list[tuple[str | None, str]]:
    """Return, of each function of a host, who has it and which MAC its card delivers to it."""
    pci = json.loads(await fleet.must("pci", "list", host, "--json"))["devices"]
    return [(one["user"], one["settings"]["mac"]) for one in pci if one["physical"] is not None]


async def wait_carried(fleet: NestedFleet, other: NestedHost) -> None:
    """Wait until the guest's traffic goes through its function, as its bridge hears it; it answers pings meanwhile."""

    async def is_carried() -> bool:
        await other.run("busybox", "ping", "-c", "3", "-W", "2", GUEST_ADDRESS)
        shown = await view(fleet)
        return shown["degraded"] == {} and len(shown["carriers"]) == 2 and shown["carriers"]["nic0"] == "function"

    await wait_until(is_carried, "the guest's functions are there, and the first carries its traffic", timeout_s=240)


async def seen(fleet: NestedFleet, guest: str, host: str) -> list[str]:
    """Return the cards that a guest's system has, by driver, MAC and state."""
    return (await fleet.ask_shell(guest, host, _SEEN, "seen ")).split()[1:]


async def wait_seen(fleet: NestedFleet, guest: str, host: str, macs: Sequence[str]) -> None:
    """Wait until a guest's own system has functions with these MACs in use."""
    wanted = {f"igbvf:{mac}:up" for mac in macs}

    async def are_up() -> bool:
        return wanted <= set(await seen(fleet, guest, host))

    await wait_until(are_up, f"{guest} on {host} has {wanted} in use", timeout_s=240)


async def test_two_functions_there_and_back(fleet: NestedFleet) -> None:
    """Igbvf is in use before and after at both ends; the guest is whole, and reached; the source has its own back."""
    host_a, host_b = fleet.hosts.values()
    await wait_carried(fleet, host_b)
    for source, destination in ((host_a, host_b), (host_b, host_a)):
        await wait_seen(fleet, GUEST, source.plan.name, MACS)
        await fleet.must("migrate", GUEST, destination.plan.name, timeout_s=300)
        await wait_carried(fleet, source)
        await wait_seen(fleet, GUEST, destination.plan.name, MACS)
        assert (await fleet.oracle(GUEST, destination.plan.name, 120)).startswith("oracle clean")
        assert await functions_of(fleet, source.plan.name) == [(None, NO_MAC)] * COUNT


async def test_two_guests_on_one_card(fleet: NestedFleet) -> None:
    """The second has the third function; the move of the first to a host without enough is refused beforehand."""
    await fleet.run_guest(SECOND, "host-b")

    await wait_seen(fleet, OTHER, "host-b", [OTHERS])
    await fleet.must("migrate", GUEST, "host-b", timeout_s=300)
    await wait_carried(fleet, fleet.hosts["host-a"])
    users = await functions_of(fleet, "host-b")
    assert sorted(mac for _, mac in users) == sorted([*MACS, OTHERS])
    assert sorted(user or "" for user, _ in users) == ["guest db-1", "guest web-7", "guest web-7"]
    await fleet.must("migrate", OTHER, "host-a", timeout_s=300)  # without a standby, as its file allows
    await wait_seen(fleet, OTHER, "host-a", [OTHERS])
    assert (await fleet.oracle(OTHER, "host-a", 120)).startswith("oracle clean")
    assert (await fleet.cli("vf", "release", "host-b", str(PciAddress(0, 1, 0, 0)))).exit_code != 0


async def where(fleet: NestedFleet, guest: str) -> str | None:
    """Return the host on which a guest runs; None: on none, on both, or not all hosts answer."""
    listed = json.loads(await fleet.must("guest", "list", "--json"))
    hosts = [one["host"] for one in listed["guests"] if one["name"] == guest and one["run_state"] == "running"]
    return hosts[0] if len(hosts) == 1 and not listed["silent"] else None


async def test_agents_that_are_killed(fleet: NestedFleet) -> None:
    """Either one, at any moment of a move: the guest has its functions on one host, and the other host has its own."""
    chance = random.Random(7)
    for _ in range(ROUNDS):
        source = await where(fleet, GUEST)
        assert source is not None
        other = next(name for name in fleet.hosts if name != source)
        order = asyncio.create_task(fleet.cli("migrate", GUEST, other, "--plain", timeout_s=300))
        await asyncio.sleep(chance.uniform(1, 12))
        struck = chance.choice([source, other])
        await fleet.kill_agent(struck)
        await asyncio.sleep(1)
        await fleet.start_agent(struck)
        await order

        async def is_settled() -> bool:
            here = await where(fleet, GUEST)
            if here is None or (await view(fleet))["degraded"]:
                return False
            users = {name: [user for user, _ in await functions_of(fleet, name)] for name in fleet.hosts}
            there = next(name for name in fleet.hosts if name != here)
            return users[here].count(f"guest {GUEST}") == 2 and f"guest {GUEST}" not in users[there]

        await wait_until(is_settled, "the guest has both functions, on one host", timeout_s=240)
        here = await where(fleet, GUEST)
        assert here is not None
        await wait_seen(fleet, GUEST, here, MACS)
        assert (await fleet.oracle(GUEST, here, 120)).startswith("oracle clean")
