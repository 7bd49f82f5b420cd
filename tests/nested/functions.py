"""A guest with two virtual functions of a card, on the first of two nested hosts whose cards are on one network."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest_asyncio
from tests.qemus import find_or_skip

from vmferry.core.guest import Acceleration
from vmferry.lab.guest_plans import GUEST_ADDRESS, NicPlan, linux_guest
from vmferry.lab.nested import NestedFleet, NestedHost, NestedLab
from vmferry.lab.nested.sriov import SriovHost
from vmferry.lab.scenarios import wait_until

GUEST, OTHER, NETWORK, COUNT = "web-7", "db-1", "fabric", 3
MACS, OTHERS = ("52:54:00:00:07:07", "52:54:00:00:07:08"), "52:54:00:00:07:09"
CARDS = tuple(NicPlan("sriov_vf", physical_network=NETWORK, mac=mac) for mac in MACS)
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


async def where(fleet: NestedFleet, guest: str) -> str | None:
    """Return the host on which a guest runs; None: on none, on both, or not all hosts answer."""
    listed = json.loads(await fleet.must("guest", "list", "--json"))
    hosts = [one["host"] for one in listed["guests"] if one["name"] == guest and one["run_state"] == "running"]
    return hosts[0] if len(hosts) == 1 and not listed["silent"] else None
