"""A real guest moves between two real agents: each scenario is one value, run by one runner."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from vmferry.core.progress import Outcome
from vmferry.lab.guest_plans import DiskPlan, NicPlan, linux_guest, micro_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.iproute import batch
from vmferry.lab.leaks import assert_no_leaks, snapshot_leaks
from vmferry.lab.scenarios import (
    THERE_AND_BACK,
    Leg,
    Scenario,
    move,
    remove,
    run_scenario,
    started,
)
from vmferry.ports.hypervisor import RunState

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]

LINUX = linux_guest("web-7", memory_mib=256, rate=20, bridge=True)


def qemu_img(*arguments: str) -> None:
    """Run qemu-img; fails when it does."""
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def assert_arrived(legs: list[Leg], moves: int = 2) -> None:
    """Every move arrived with its memory whole, runs there, and left nothing at its source."""
    assert len(legs) == moves
    for leg in legs:
        assert leg.report.outcome == Outcome.MOVED, leg.report
        assert leg.oracle.startswith("oracle clean"), leg.oracle
        assert leg.run_state_there == RunState.RUNNING
        assert not leg.still_at_source


@pytest.mark.parametrize("plain", [False, True], ids=["encrypted", "plain"])
async def test_the_micro_guest_moves_there_and_back(lab: Lab, plain: bool) -> None:
    """A guest that writes memory arrives whole, by an encrypted and by a plain stream, and the report says which."""
    legs = await run_scenario(lab, Scenario(micro_guest(), options={"plain": plain}))
    assert_arrived(legs)
    assert [leg.report.encrypted for leg in legs] == [not plain, not plain]


async def test_the_report_measures_what_the_guest_saw(lab: Lab) -> None:
    """Gap by beats with its baseline, QEMU's downtime, the commit and the rounds are all measured, none guessed."""
    (leg,) = await run_scenario(lab, Scenario(micro_guest(), moves=THERE_AND_BACK[:1]))
    report = leg.report
    assert report.guest_gap is not None
    assert report.guest_gap.largest_ms > 0
    assert report.downtime_ms is not None
    assert report.commit_ms is not None
    assert report.rounds is not None
    assert report.rounds >= 1
    assert report.transferred_bytes is not None
    assert report.transferred_bytes > 0
    assert report.acceleration in {"TCG", "nested KVM", "bare-metal KVM"}
    assert report.network_outage is None  # it has no echo: not measured, never an estimate


@pytest.mark.root
async def test_a_linux_guest_writing_20_mib_per_second_arrives_whole(lab: Lab) -> None:
    """A guest under load on a bridge arrives with no page lost or stale, and every measure of it is there."""
    legs = await run_scenario(lab, Scenario(LINUX))
    assert_arrived(legs)
    for leg in legs:
        assert leg.report.guest_gap is not None
        assert leg.report.network_outage is not None
        assert leg.report.in_guest_stall_ms is not None


@pytest.mark.root
async def test_emulated_and_virtio_nics_move(lab: Lab) -> None:
    """A guest with an e1000 and a virtio NIC moves there and back."""
    nics = (NicPlan(), NicPlan("emulated"), NicPlan("emulated", bridge=False))
    legs = await run_scenario(lab, Scenario(replace(LINUX, nics=nics)))
    assert_arrived(legs)
    for leg in legs:  # both bridges sent the guest's frames after it at once
        assert leg.report.network_moved_ms is not None
        assert leg.report.announced_again == 0


async def test_a_network_that_does_not_hear_is_told_again(lab: Lab) -> None:
    """The destination's cable is out: the guest is announced again, and the report says that nobody heard."""
    assert lab.network is not None
    guest = await started(lab, replace(LINUX, nics=(NicPlan(),)))
    batch(lab.network.namespace("host-b"), ["link set uplink0 down"])
    try:
        leg = await move(lab, guest, "host-b")
    finally:
        batch(lab.network.namespace("host-b"), ["link set uplink0 up"])
    assert leg.report.outcome == Outcome.MOVED
    assert (leg.report.network_moved_ms, leg.report.announced_again) == (None, 2)
    back = await move(lab, guest, "host-a")
    assert back.report.network_moved_ms is not None
    await remove(lab, guest)


async def test_a_guest_moves_with_a_shared_disk(lab: Lab) -> None:
    """A qcow2 image that both hosts see changes hands: no lock conflict, nothing of it is left open at the source."""
    image = lab.directory / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", str(image), "64M")
    plan = replace(LINUX, nics=(), disks=(DiskPlan(image),))
    assert_arrived(await run_scenario(lab, Scenario(plan)))
    qemu_img("check", str(image))


@pytest.mark.slow
async def test_twenty_moves_leak_nothing(lab: Lab) -> None:
    """After twenty moves processes, sockets, descriptors, ports, reservations and files are what they were."""
    await run_scenario(lab, Scenario(micro_guest("first")))  # what an agent keeps open once is no leak
    before = snapshot_leaks(lab)
    assert_arrived(await run_scenario(lab, Scenario(micro_guest("first"), moves=THERE_AND_BACK * 10)), moves=20)
    await assert_no_leaks(lab, before)


async def test_a_guest_moves_between_qemu_versions(mixed_lab: Lab) -> None:
    """7.2 to 10.0 and back with a common machine type: paused on the way there, live and under load on the way back.

    Paused, because QEMU 7.2 under TCG forgets pages that a running guest writes (docs/design/lab.md).
    """
    versions = [mixed_lab.hosts[name].qemu.version[:2] for name in ("host-a", "host-b")]
    assert versions == [(7, 2), (10, 0)]
    guest = await started(mixed_lab, replace(LINUX, nics=()))
    await mixed_lab.hosts["host-a"].api.post(f"/v1/guests/{guest.name}/pause")
    there = await move(mixed_lab, guest, "host-b")
    assert there.run_state_there == RunState.PAUSED
    await mixed_lab.hosts["host-b"].api.post(f"/v1/guests/{guest.name}/resume")
    assert (await guest.oracle()).startswith("oracle clean")
    back = await move(mixed_lab, guest, "host-a")
    assert_arrived([back], moves=1)
    assert (await guest.oracle()).startswith("oracle clean")
