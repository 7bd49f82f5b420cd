"""A guest whose network card the kernel serves (vhost-net) moves between two kernels, and stays reachable."""

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

GUEST = "web-7"
PLAN = replace(
    linux_guest(GUEST, memory_mib=128, rate=1, bridge=True), working_set_mib=8, nics=(NicPlan("vhost"),), echo=False
)
#: The hosts' guests are on one network: a bridge each, joined by VXLAN.
_NETWORK = """
modprobe -a vhost_net tun vxlan bridge
ip link add br0 type bridge forward_delay 0 mcast_snooping 0
ip link add vx0 type vxlan id 7 dstport 4789 local {here} remote {there} dev eth0
ip link set vx0 master br0
ip link set vx0 up
ip addr add {on_bridge}/24 dev br0
ip link set br0 up
"""
_HELD = """
import os, sys
from pathlib import Path
found = set()
for fd in Path("/proc").glob("[0-9]*/fd/*"):
    try:
        if os.readlink(fd) == "/dev/vhost-net":
            found.add((fd.parents[1] / "comm").read_text().strip())
    except OSError:
        pass
print(*sorted(found))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(sriov_lab: NestedLab) -> AsyncIterator[NestedFleet]:
    """Agents on two hosts with bridges of one network, and a guest on the first."""
    hosts = list(sriov_lab.hosts.values())
    for number, host in enumerate(hosts):
        if not host.is_up:
            await host.start()
        ips = {"here": host.plan.ip, "there": hosts[1 - number].plan.ip, "on_bridge": f"10.78.0.{1 + number}"}
        await host.shell(_NETWORK.format(**ips))
    newest = find_or_skip((10, 0))
    try:
        qemus = dict.fromkeys(sriov_lab.hosts, newest)
        async with NestedFleet(sriov_lab.hosts, qemus, acceleration=Acceleration.KVM) as made:
            await made.run_guest(PLAN, "host-a")
            yield made
    finally:
        for host in hosts:
            if host.is_up:
                await host.shell("ip link del vx0; ip link del br0; modprobe -r vhost_net")


async def wait_reached(host: NestedHost) -> None:
    """Wait until the guest answers a host that it is not on."""

    async def answers() -> bool:
        return (await host.run("busybox", "ping", "-c", "1", "-W", "2", GUEST_ADDRESS)).exit_code == 0

    await wait_until(answers, f"the guest answers {host.plan.name}", timeout_s=60)


async def test_there_and_back(fleet: NestedFleet) -> None:
    """Each kernel in turn serves the card; the guest is whole, and reached from the other host, both times."""
    host_a, host_b = fleet.hosts.values()
    await wait_reached(host_b)
    for source, destination in ((host_a, host_b), (host_b, host_a)):
        assert (await source.python(_HELD)).split() != []
        await fleet.must("migrate", GUEST, destination.plan.name, timeout_s=300)
        assert (await fleet.oracle(GUEST, destination.plan.name, 120)).startswith("oracle clean")
        await wait_reached(source)
        assert (await source.python(_HELD)).split() == []
        assert (await destination.python(_HELD)).split() != []


async def test_a_kernel_that_cannot_is_told_before(fleet: NestedFleet) -> None:
    """The guest stays where it is; nothing was touched."""
    host_b = fleet.hosts["host-b"]
    await host_b.shell("rm /dev/vhost-net")
    try:
        ran = await fleet.cli("check", GUEST, "host-b", "--json")
        assert ran.exit_code == 3
        assert [row["code"] for row in json.loads(ran.stdout)["blockers"]] == ["network.no-vhost"]
    finally:
        await host_b.shell("modprobe -r vhost_net; modprobe vhost_net")
