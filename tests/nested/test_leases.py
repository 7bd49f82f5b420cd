"""Leases of sanlock between two kernels, on NFSv3, where no lock of QEMU's reaches from one host to the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.core_checks.conftest import make_case, with_spec
from tests.core_checks.test_leases import promised, with_leases
from tests.nested import sanlock
from tests.nested.qemus import make_image
from tests.nested.sanlock import DEAD_AFTER_S, MOUNTED, begin_qemu, facts
from tests.qemus import find_or_skip

from vmferry.core.checks import find_blockers
from vmferry.core.guest import Disk
from vmferry.lab.nested import NestedHost, NestedLab, nfs

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.slow,
    pytest.mark.xdist_group("nested"),
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="session"),
]

IMAGE = f"{MOUNTED}/web-7.raw"
#: Without a lock manager, as in the test of image locks that cross nothing.
OPTIONS = "vers=3,nolock"
IDS = {"host-a": 1, "host-b": 2}
REFUSED = "sanlock refused a lease of its disks (error -243)"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(lab: NestedLab) -> AsyncIterator[NestedLab]:
    """The same; host-b exports a folder with a lockspace, mounts it itself and has joined; both new afterwards."""
    host_b = lab.hosts["host-b"]
    await host_b.start()
    await nfs.prepare(host_b)
    await nfs.serve(host_b)
    await nfs.mount(host_b, host_b, MOUNTED, OPTIONS)
    await make_image(host_b, IMAGE)
    await sanlock.make_lockspace(host_b)
    await sanlock.start_daemon(host_b, IDS["host-b"], watchdog=True)
    yield lab
    for host in lab.hosts.values():
        await host.start()


@pytest_asyncio.fixture(loop_scope="session")
async def hosts(served: NestedLab) -> AsyncIterator[dict[str, NestedHost]]:
    """Both hosts in one lockspace, with watchdogs, each seen alive by the other; host-a is new."""
    host_a, host_b = served.hosts.values()
    await host_a.start()
    await nfs.prepare(host_a)
    await nfs.mount(host_a, host_b, MOUNTED, OPTIONS)
    await sanlock.start_daemon(host_a, IDS["host-a"], watchdog=True)
    await wait_seen(served.hosts)
    yield served.hosts
    await sanlock.end_qemu(host_b)


async def wait_seen(hosts: dict[str, NestedHost]) -> None:
    """Wait until each host sees both alive, in the same lives."""
    until = time.monotonic() + 120
    while True:
        here, there = [set((await facts(host, IDS[name])).alive) for name, host in hosts.items()]
        if here == there and len(here) == len(IDS):
            return
        assert time.monotonic() < until, (here, there)
        await asyncio.sleep(1)


async def test_one_qemu_at_a_time_on_nfs_3(hosts: dict[str, NestedHost]) -> None:
    """The second QEMU is refused while the first one lives and not when it has ended; a check promises it."""
    host_a, host_b = hosts.values()
    qemu = find_or_skip((7, 2))
    case = with_spec(make_case(), disks=(Disk(IMAGE),))
    case = with_leases(case, await facts(host_a, 1), await facts(host_b, 2))
    assert promised(case).disk_fence == "sanlock"
    assert [blocker.code for blocker in find_blockers(case) if "lease" in blocker.code] == []
    first = await begin_qemu(host_a, 1, qemu, IMAGE)
    assert first.pid is not None, first
    second = await begin_qemu(host_b, 2, qemu, IMAGE)
    assert REFUSED in str(second.error)
    assert second.why == f"image {IMAGE} is leased by host id 1 of lockspace {sanlock.LOCKSPACE}, which is alive"
    await host_a.must("kill", str(first.pid))
    await host_a.shell(f"while kill -0 {first.pid} 2>/dev/null; do sleep 0.05; done")
    third = await begin_qemu(host_b, 2, qemu, IMAGE)
    assert third.pid is not None, third


async def test_a_host_that_is_off_keeps_its_lease_for_its_time(hosts: dict[str, NestedHost]) -> None:
    """Nobody gets the image before the host must have been reset, and soon after that the other host does."""
    host_a, host_b = hosts.values()
    qemu = find_or_skip((7, 2))
    held = await begin_qemu(host_a, 1, qemu, IMAGE)
    assert held.pid is not None, held
    await host_a.power_off()
    off, whys = time.monotonic(), set()
    while (begun := await begin_qemu(host_b, 2, qemu, IMAGE)).pid is None:
        assert time.monotonic() - off < DEAD_AFTER_S + 60
        whys.add(str(begun.why).rpartition(", ")[2])
        await asyncio.sleep(0.5)
    # A host renews every two time-outs, so at least so much less was left.
    assert time.monotonic() - off > DEAD_AFTER_S - 3 * sanlock.IO_TIMEOUT_S
    assert f"which is silent: the lease can be taken {DEAD_AFTER_S} s after its last sign of life" in whys


async def test_a_host_whose_daemon_dies_is_reset_before_its_leases_are_anothers(hosts: dict[str, NestedHost]) -> None:
    """Nobody could end its QEMU any more: the watchdog ends the host, and only then another host has the image."""
    host_a, host_b = hosts.values()
    qemu = find_or_skip((7, 2))
    held = await begin_qemu(host_a, 1, qemu, IMAGE)
    assert held.pid is not None, held
    await host_a.shell("kill -9 $(cat /run/sanlock/sanlock.pid)")

    async def down_at() -> float:
        while host_a.is_up:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
        return time.monotonic()

    down = asyncio.create_task(down_at())
    begun = await begin_qemu(host_b, 2, qemu, IMAGE, patience_s=DEAD_AFTER_S + 60)
    now = time.monotonic()
    assert begun.pid is not None, begun
    assert begun.age_s is not None
    assert await asyncio.wait_for(down, 0.1) < now - begun.age_s


async def test_a_host_that_is_cut_off_ends_its_qemu(hosts: dict[str, NestedHost]) -> None:
    """Without its storage it cannot renew: QEMU is gone before anybody else has the image, and the host stays."""
    host_a, host_b = hosts.values()
    qemu = find_or_skip((7, 2))
    held = await begin_qemu(host_a, 1, qemu, IMAGE)
    assert held.pid is not None, held
    await host_a.set_link(up=False)
    cut = time.monotonic()
    begun = await begin_qemu(host_b, 2, qemu, IMAGE)
    ended_at: float | None = None
    while begun.pid is None:
        assert time.monotonic() - cut < DEAD_AFTER_S + 60
        if ended_at is None and host_a.is_up and (await host_a.run("kill", "-0", str(held.pid))).exit_code != 0:
            ended_at = time.monotonic() - cut
        begun = await begin_qemu(host_b, 2, qemu, IMAGE)
    assert ended_at is not None or not host_a.is_up
