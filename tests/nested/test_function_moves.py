"""A guest with a virtual function of a card moves live, between two kernels and two cards, and has a function again."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.nested.functions import (
    COUNT,
    GUEST,
    MACS,
    OTHER,
    OTHERS,
    SECOND,
    fleet,
    functions_of,
    view,
    wait_carried,
    wait_seen,
    where,
)

from vmferry.core.functions import NO_MAC
from vmferry.core.pci import PciAddress
from vmferry.lab.nested import NestedFleet
from vmferry.lab.scenarios import wait_until

__all__ = ["fleet"]
pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]

ROUNDS = 3


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
