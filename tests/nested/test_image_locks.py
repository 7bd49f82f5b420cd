"""QEMU's image locks between two kernels: where they cross NFS, what is promised there, and when they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.core_checks.conftest import make_case, with_probe, with_runtime, with_spec
from tests.nested.qemus import Writer, end_qemus, facts, make_image, start_qemu, why_locked
from tests.qemus import find_or_skip

from vmferry.core.checks import guarantee
from vmferry.core.checks.guarantee import NFS, NONE
from vmferry.core.guest import Disk
from vmferry.lab.nested import NestedHost, NestedLab, nfs

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.slow,
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]

MOUNTED = "/srv/vmferry"
IMAGE = f"{MOUNTED}/web-7.raw"
OLD, NEW = (7, 2), (10, 0)
REFUSED = 'Failed to get "write" lock'


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(lab: NestedLab) -> NestedLab:
    """The same; host-b exports a folder."""
    if not lab.hosts["host-a"].is_up:
        await lab.hosts["host-a"].start()
    for host in lab.hosts.values():
        await nfs.prepare(host)
    await nfs.serve(lab.hosts["host-b"])
    return lab


@pytest_asyncio.fixture(loop_scope="session")
async def hosts(served: NestedLab) -> AsyncIterator[dict[str, NestedHost]]:
    """Both hosts, up and joined, with nothing mounted and no QEMU; the server is host-b."""
    yield served.hosts
    host_a, host_b = served.hosts.values()
    await host_a.set_link(up=True) if host_a.is_up else await host_a.start()
    for host in (host_a, host_b):
        await Writer(host, IMAGE).end()
        await end_qemus(host)
        await nfs.unmount(host, MOUNTED)


async def mount_everywhere(hosts: dict[str, NestedHost], options: str = "vers=4.2") -> None:
    """Mount the export on both hosts, and make an image there."""
    for host in hosts.values():
        await nfs.mount(host, hosts["host-b"], MOUNTED, options)
    await make_image(hosts["host-b"], IMAGE)


async def promised(hosts: dict[str, NestedHost]) -> str:
    """Return the disk fence that a check between the two promises for the image, with what both agents say of it."""
    here, there = await asyncio.gather(*(facts(host, IMAGE) for host in hosts.values()))
    case = with_spec(make_case(), disks=(Disk(IMAGE),))
    case = with_probe(with_runtime(case, source_files=(here,)), files=(there,))
    return guarantee(case.guest, case.runtime, case.probe).disk_fence


@pytest.mark.parametrize(
    ("holder", "asker", "held_by", "asked_by"),
    [("host-a", "host-b", OLD, NEW), ("host-b", "host-a", NEW, OLD)],
)
async def test_a_writer_on_another_host_is_seen(
    hosts: dict[str, NestedHost], holder: str, asker: str, held_by: tuple[int, int], asked_by: tuple[int, int]
) -> None:
    """QEMU is refused and vmferry sees why while it runs; when it has ended, the image is free for both."""
    await mount_everywhere(hosts)
    held = await start_qemu(hosts[holder], find_or_skip(held_by), IMAGE)
    assert held.exit_code == 0, held.stderr
    refused = await start_qemu(hosts[asker], find_or_skip(asked_by), IMAGE)
    assert refused.exit_code != 0
    assert REFUSED in refused.stderr
    assert await why_locked(hosts[asker], IMAGE) == f"image {IMAGE} is locked by another who writes to it"
    await end_qemus(hosts[holder])
    assert await why_locked(hosts[asker], IMAGE) == ""
    taken = await start_qemu(hosts[asker], find_or_skip(asked_by), IMAGE)
    assert taken.exit_code == 0, taken.stderr


@pytest.mark.parametrize(
    ("options", "crosses"),
    [
        ("vers=4.2", True),
        ("vers=4.1,local_lock=all", True),  # NFSv4 knows no local locks: these options are passed over
        ("vers=4.0,nolock", True),
        ("vers=3,nolock", False),
        ("vers=3", False),  # the server refuses a second lock, but says "free" to QEMU, which only asks
    ],
)
async def test_a_fence_is_promised_where_locks_cross(hosts: dict[str, NestedHost], options: str, crosses: bool) -> None:
    """With each way to mount it, the second QEMU is refused exactly where the check promises image locks."""
    await mount_everywhere(hosts, options)
    first, second = [await start_qemu(host, find_or_skip(OLD), IMAGE) for host in hosts.values()]
    assert first.exit_code == 0, first.stderr
    assert (REFUSED in second.stderr, second.exit_code != 0) == (crosses, crosses), second
    assert await promised(hosts) == (NFS if crosses else NONE)


async def refusals_until_free(host: NestedHost, since: float) -> int:
    """Start QEMUs until one gets the image; return how many did not. None that begins after three leases is refused."""
    refusals, began = 0, time.monotonic()
    while (await start_qemu(host, find_or_skip(OLD), IMAGE)).exit_code != 0:
        assert began - since < 3 * nfs.LEASE_S
        refusals += 1
        await asyncio.sleep(0.2)
        began = time.monotonic()
    return refusals


async def test_a_host_that_loses_its_power_keeps_its_lock_for_a_lease(hosts: dict[str, NestedHost]) -> None:
    """Nobody gets the image before the server's lease has run out, and a QEMU gets it soon afterwards."""
    await mount_everywhere(hosts)
    held = await start_qemu(hosts["host-a"], find_or_skip(OLD), IMAGE)
    assert held.exit_code == 0, held.stderr
    await hosts["host-a"].power_off()
    off = time.monotonic()
    refusals = await refusals_until_free(hosts["host-b"], off)
    took = time.monotonic() - off
    assert refusals > 0
    # An idle client renews its lease when two thirds of it have passed, so at least a third was left.
    assert took > nfs.LEASE_S / 3


async def test_a_host_that_was_cut_off_writes_no_more(hosts: dict[str, NestedHost]) -> None:
    """When another has its lock, what it wrote meanwhile and what it writes when it is back fails, on its own side."""
    await mount_everywhere(hosts)
    host_a, host_b = hosts.values()
    writer = Writer(host_a, IMAGE)
    await writer.start()
    await writer.write(1)
    assert "wrote" in (await writer.answers(1))[0]
    await host_a.set_link(up=False)
    await writer.write(2)
    cut = time.monotonic()
    await refusals_until_free(host_b, cut)
    await host_a.set_link(up=True)
    await writer.write(3)
    late = (await writer.answers(3))[1:]
    assert late == ["qemu-io> write failed: Input/output error"] * 2
    exported = f"{nfs.EXPORTED}/web-7.raw"
    assert (await host_b.must("od", "-An", "-tx1", "-N", "1", exported)).split() == ["01"]
