"""A guest with a virtual function of a card moves live, between two kernels and two cards, and has a function again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from tests.qemus import find_or_skip

from vmferry.core.guest import Acceleration
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

GUEST, NETWORK, COUNT = "web-7", "fabric", 2
MAC = "52:54:00:00:07:07"
CARD = NicPlan("sriov_vf", physical_network=NETWORK, mac=MAC)
PLAN = replace(linux_guest(GUEST, memory_mib=128, rate=1, bridge=True), working_set_mib=8, nics=(CARD,), echo=False)
#: The guest's own look: "seen eth0:net_failover eth1:virtio_net eth2:igbvf".
_SEEN = (
    "echo seen $(for net in /sys/class/net/eth*; do d=$(readlink $net/device/driver);"
    " echo ${net##*/}:${d##*/}:$(cat $net/address):$(cat $net/operstate); done)"
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
            for host in hosts:
                await made.must("vf", "release", host.plan.name, str(host.cards[0]))
    finally:
        for host in hosts:
            if host.is_up:
                await host.shell("ip link del br0")


async def view(fleet: NestedFleet) -> dict[str, object]:
    """Return the guest as its host's agent has it."""
    shown: dict[str, object] = json.loads(await fleet.must("guest", "show", GUEST, "--json"))
    return shown


async def wait_carried(fleet: NestedFleet, other: NestedHost) -> None:
    """Wait until the guest's traffic goes through its function, as its bridge hears it; it answers pings meanwhile."""

    async def is_carried() -> bool:
        await other.run("busybox", "ping", "-c", "3", "-W", "2", GUEST_ADDRESS)
        return (await view(fleet))["carriers"] == {"nic0": "function"}

    await wait_until(is_carried, "the guest's function carries its traffic", timeout_s=240)


async def test_there_and_back(fleet: NestedFleet) -> None:
    """Igbvf is in use before and after at both ends; the guest is whole, and reached all the time."""
    host_a, host_b = fleet.hosts.values()
    await wait_carried(fleet, host_b)
    for source, destination in ((host_a, host_b), (host_b, host_a)):
        before = await fleet.ask_shell(GUEST, source.plan.name, _SEEN, "seen eth")
        assert f"igbvf:{MAC}:up" in before
        await fleet.must("migrate", GUEST, destination.plan.name, timeout_s=300)
        await wait_carried(fleet, source)
        assert f"igbvf:{MAC}:up" in await fleet.ask_shell(GUEST, destination.plan.name, _SEEN, "seen eth")
        assert (await fleet.oracle(GUEST, destination.plan.name, 120)).startswith("oracle clean")
        pci = json.loads(await fleet.must("pci", "list", source.plan.name, "--json"))["devices"]
        functions = [one for one in pci if one["physical"] is not None]
        assert [(one["user"], one["settings"]["mac"]) for one in functions] == [(None, "00:00:00:00:00:00")] * COUNT
