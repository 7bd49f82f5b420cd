"""Guests that move by RDMA (soft-RoCE), with agents, between hosts with kernels of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from tests.qemus import find_or_skip

from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.nested import NestedFleet, NestedHost, NestedLab
from vmferry.lab.nested.rdma import add_device, remove_device
from vmferry.lab.scenarios import wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,  # agents start on the one slow CPU of each host; beside other tests some do not answer in time
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]

GUEST = "web-7"
#: A guest that is always busy leaves the one slow CPU of its host to nobody else.
PLAN = replace(micro_guest(GUEST), working_set_mib=8, rate=1)
BY_RDMA = ("--link", "rdma", "--plain")
_LOCKS = """
import resource, sys
from pathlib import Path
(found,) = [p for p in Path("/proc").glob("[0-9]*/cmdline") if sys.argv[1].encode() in p.read_bytes()
            and b"qemu-system" in p.read_bytes()]
print(resource.prlimit(int(found.parent.name), resource.RLIMIT_MEMLOCK)[0])
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(lab: NestedLab) -> AsyncIterator[NestedFleet]:
    """Agents on two hosts with an RDMA device each, and a guest on the first, where each test leaves it."""
    for host in lab.hosts.values():
        if not host.is_up:
            await host.start()
        await add_device(host)
    newest = find_or_skip((10, 0))
    try:
        async with NestedFleet(lab.hosts, dict.fromkeys(lab.hosts, newest)) as made:
            await made.run_guest(PLAN, "host-a")
            yield made
    finally:
        for host in lab.hosts.values():
            await host.set_link(up=True)
            await remove_device(host)


async def sent_packets(host: NestedHost) -> int:
    """Return how many packets a host's RDMA device has sent."""
    return int(await host.must("cat", "/sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts"))


async def may_lock(host: NestedHost) -> int:
    """Return how many bytes the guest's QEMU on a host may lock."""
    return int(await host.python(_LOCKS, f"/{GUEST}/"))


async def blockers(fleet: NestedFleet, *options: str) -> list[str]:
    """Return what keeps the guest from moving to host-b, as `CODE: WHAT`."""
    ran = await fleet.cli("check", GUEST, "host-b", *options, "--json")
    assert ran.exit_code in (0, 3), ran
    return [f"{row['code']}: {row['what']}" for row in json.loads(ran.stdout)["blockers"]]


async def test_there_and_back(fleet: NestedFleet) -> None:
    """Its memory goes through the devices, arrives whole, and QEMU may lock no more than before when it is over."""
    before = await may_lock(fleet.hosts["host-a"])
    for source, destination in (("host-a", "host-b"), ("host-b", "host-a")):
        packets = await sent_packets(fleet.hosts[source])
        await fleet.must("migrate", GUEST, destination, *BY_RDMA)
        assert (await fleet.oracle(GUEST, destination)).startswith("oracle clean")
        assert await sent_packets(fleet.hosts[source]) - packets > (8 << 20) // 4096  # the workload's memory
        assert await may_lock(fleet.hosts[destination]) == before


async def test_what_is_missing_is_told_before(fleet: NestedFleet) -> None:
    """Each reason by itself and all at once, on the host that it is of; the guest stays untouched."""
    assert await blockers(fleet, *BY_RDMA) == []
    (clear,) = await blockers(fleet, "--link", "rdma")
    assert clear.startswith("stream.rdma-in-the-clear")
    both = await blockers(fleet, *BY_RDMA, "--postcopy")
    assert [row.partition(":")[0] for row in both] == ["postcopy.no-userfaultfd", "stream.required"]
    assert "rdma excludes postcopy-ram" in both[1]
    (channels,) = await blockers(fleet, *BY_RDMA, "--channels", "2")
    assert "rdma excludes multifd" in channels
    await remove_device(fleet.hosts["host-b"])
    try:
        (missing,) = await blockers(fleet, *BY_RDMA)
        assert missing.startswith("stream.rdma-missing")
        assert "of host-b, it has no RDMA device" in missing
        refused = await fleet.cli("migrate", GUEST, "host-b", *BY_RDMA)
    finally:
        await add_device(fleet.hosts["host-b"])
    assert refused.exit_code == 3
    assert (await fleet.oracle(GUEST, "host-a")).startswith("oracle clean")


async def test_a_link_that_breaks_costs_nothing(fleet: NestedFleet) -> None:
    """The devices give up after a while: the guest runs on at the source, and moves when the link is back."""
    host_a = fleet.hosts["host-a"]
    moving = asyncio.create_task(fleet.cli("migrate", GUEST, "host-b", *BY_RDMA, "--bandwidth", "1MiB/s"))
    packets = await sent_packets(host_a)

    async def it_sends() -> bool:
        return await sent_packets(host_a) > packets + 200

    await wait_until(it_sends, "memory is sent", timeout_s=60)
    await host_a.set_link(up=False)
    ran = await moving
    assert ran.exit_code != 0
    assert "runs on host-a" in ran.stderr + ran.stdout
    assert (await fleet.oracle(GUEST, "host-a")).startswith("oracle clean")
    await host_a.set_link(up=True)
    for destination in ("host-b", "host-a"):
        await fleet.must("migrate", GUEST, destination, *BY_RDMA)
        assert (await fleet.oracle(GUEST, destination)).startswith("oracle clean")
