"""Streams with a man in the middle: cut off, half closed, stalled, changed. The guest is whole on exactly one host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.relay import PORTS, Harm, Relay, settings
from vmferry.lab.scenarios import empty, migrate, move, started, wait_finished, wait_state
from vmferry.ports.hypervisor import RunState
from vmferry.qemu import userfault

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

BUSY = GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8)
SLOW: dict[str, object] = {"max_bandwidth": 8 * MIB}
STALL_S = 30.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relayed_lab() -> AsyncIterator[Lab]:
    """Two hosts; what is sent to host-b can go through a relay only."""
    async with Lab(settings={"host-b": settings(1)}, local_dirs=True) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def lab(relayed_lab: Lab) -> AsyncIterator[Lab]:
    """The same, empty again afterwards, also after a failure."""
    yield relayed_lab
    await empty(relayed_lab)


@pytest_asyncio.fixture(loop_scope="module")
async def relay(lab: Lab) -> AsyncIterator[Relay]:
    """The man in the middle."""
    assert lab.network is not None
    async with Relay(lab.network, "host-a", "host-b") as made:
        yield made


def make_image(lab: Lab, name: str) -> DiskPlan:
    """Make an empty image that only host-a has."""
    with (lab.hosts["host-a"].local_dir / name).open("xb") as image:
        image.truncate(32 * MIB)
    return DiskPlan(lab.local / name, "raw")


async def assert_stays(lab: Lab, guest: GuestRun, handover: str) -> str:
    """The move was given up, and the guest runs on at the source, whole; returns why."""
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.ABORTED, view.report
    assert (await guest.view()).run_state == RunState.RUNNING
    assert (await guest.oracle()).startswith("oracle clean")
    return str(view.report.reason)


async def assert_moves(lab: Lab, guest: GuestRun, handover: str) -> None:
    """It arrives all the same, whole."""
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED, view.report
    guest.moved_to("host-b")
    assert (await guest.oracle()).startswith("oracle clean")


@pytest.mark.parametrize("link", ["tcp", "fd", "unix"])
@pytest.mark.parametrize("harm", [Harm.RESET, Harm.HALF_CLOSE, Harm.FLIP], ids=lambda harm: harm.value)
async def test_a_stream_that_is_spoilt_ends_the_move(lab: Lab, relay: Relay, harm: Harm, link: str) -> None:
    """In mid-pre-copy; a changed byte is found by TLS. Then it moves."""
    guest = await started(lab, BUSY)
    handover = await migrate(lab, guest, "host-b", SLOW | {"link": link})
    await wait_state(lab, "host-a", handover, "precopy")
    relay.harm(harm, after_bytes=MIB)
    await assert_stays(lab, guest, handover)
    assert relay.done.is_set()
    leg = await move(lab, guest, "host-b", {"link": link})
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert leg.oracle.startswith("oracle clean")


@pytest.mark.parametrize("kind", ["pre-copy", "post-copy"])
async def test_a_stream_that_stalls_goes_on(lab: Lab, relay: Relay, kind: str) -> None:
    """Half a minute, in either kind: nobody gives up, and the guest is whole."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    with page_faults_for_all():
        guest = await started(lab, BUSY if kind == "post-copy" else replace(BUSY, rate=2))
        after: dict[str, object] = {"postcopy_after": 1} if kind == "post-copy" else {}
        handover = await migrate(lab, guest, "host-b", {"max_bandwidth": 4 * MIB} | after)
        await wait_state(lab, "host-a", handover, "postcopy-running" if after else "precopy")
        relay.harm(Harm.STALL, after_bytes=MIB)
        await asyncio.wait_for(relay.done.wait(), 30)
        await asyncio.sleep(STALL_S)
        relay.let_go()
        await assert_moves(lab, guest, handover)


@pytest.mark.parametrize("harm", [Harm.RESET, Harm.FLIP], ids=lambda harm: harm.value)
async def test_a_post_copy_that_is_spoilt_is_recovered(lab: Lab, relay: Relay, harm: Harm) -> None:
    """There is no way back: the stream is made anew, and a page that did not come whole comes again."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    with page_faults_for_all():
        guest = await started(lab, BUSY)
        handover = await migrate(lab, guest, "host-b", {"max_bandwidth": 4 * MIB, "postcopy_after": 1})
        await wait_state(lab, "host-a", handover, "postcopy-running")
        relay.harm(harm, after_bytes=MIB)
        await asyncio.wait_for(relay.done.wait(), 30)
        await assert_moves(lab, guest, handover)


@pytest.mark.parametrize("harm", [Harm.RESET, Harm.FLIP, Harm.STALL], ids=lambda harm: harm.value)
async def test_a_mirror_that_is_spoilt_ends_the_move(lab: Lab, relay: Relay, harm: Harm) -> None:
    """The guest writes to its own disk again, and what it wrote is there; a mirror that stalls is not waited for."""
    disk = make_image(lab, f"mirror-{harm.name.lower()}.raw")
    plan = GuestPlan("linux", memory_mib=128, working_set_mib=16, rate=4, disk_rate=4, disks=(disk,))
    guest = await started(lab, plan)
    handover = await migrate(lab, guest, "host-b", SLOW | {"copy_disks": True})
    await wait_state(lab, "host-a", handover, "precopy")
    relay.harm(harm, after_bytes=MIB, ports=PORTS[1:])
    why = await assert_stays(lab, guest, handover)
    assert ("has waited for a disk" if harm is Harm.STALL else "copy of image image0 failed") in why
    relay.let_go()
    assert (await guest.disk()).startswith("disk clean")
    leg = await move(lab, guest, "host-b", {"copy_disks": True})
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert (await guest.disk()).startswith("disk clean")
