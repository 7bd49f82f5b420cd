"""Real guests whose disks have leases of real sanlock daemons: one host's QEMU has them, whatever dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from vmferry.core.errors import NotFound, Refused
from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.disks.sanlock.leases import lease_name
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.processes import kill_all
from vmferry.lab.sanlock import IO_TIMEOUT_S, LOCKSPACE, SanlockDaemons
from vmferry.lab.scenarios import (
    Leg,
    empty,
    migrate,
    move,
    remove,
    started,
    wait_finished,
    wait_handover,
    wait_state,
    wait_until,
)
from vmferry.lab.toolchain import find_qemu
from vmferry.ports.hypervisor import RunState
from vmferry.qemu import userfault

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

IDS = {"host-a": 1, "host-b": 2}
DEAD_AFTER_S = 8 * IO_TIMEOUT_S + 60
#: A process that has, or waits for, a lease: `r LOCKSPACE:NAME:PATH:OFFSET:VERSION p PID`.
_HELD = re.compile(rf"^\s*r {LOCKSPACE}:(?P<name>\w+):\S+ p (?P<pid>\d+)", re.MULTILINE)


@pytest.fixture(scope="module")
def daemons() -> Iterator[SanlockDaemons]:
    """A daemon for each host."""
    with SanlockDaemons() as made:
        for host, number in IDS.items():
            made.start(host, number)
        yield made


def settings(daemons: SanlockDaemons) -> dict[str, dict[str, object]]:
    """Return what both agents are told: whatever a guest writes has a lease."""
    return {host: {"sanlock": daemons.settings(host, number, ["/"])} for host, number in IDS.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(daemons: SanlockDaemons) -> AsyncIterator[Lab]:
    """Two hosts that take leases, and see each other."""
    async with Lab(settings=settings(daemons)) as made:
        await see_each_other(made)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def calm(lab: Lab, daemons: SanlockDaemons) -> AsyncIterator[Lab]:
    """The lab, empty again afterwards, with every daemon there."""
    yield lab
    for host, number in IDS.items():
        if not daemons.runs(host):
            daemons.start(host, number)
    await see_each_other(lab)
    await empty(lab)


async def see_each_other(lab: Lab) -> None:
    """Wait until each host's daemon has watched the other one for long enough."""

    async def seen() -> bool:
        facts = [await host.api.get("/v1/host") for host in lab.hosts.values()]
        return all(len(each["disk_leases"]["alive"]) >= len(IDS) for each in facts)

    await wait_until(seen, "each sees the other in the lockspace")


def image_in(lab: Lab, name: str = "web-7") -> DiskPlan:
    """Make an image that both hosts see."""
    path = lab.directory / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "32M"], check=True)
    return DiskPlan(path)


def small(disk: DiskPlan, name: str = "web-7") -> GuestPlan:
    """Return a guest that is up at once and has a disk."""
    return GuestPlan("micro", name, memory_mib=64, working_set_mib=16, rate=8, disks=(disk,))


def lessees(daemons: SanlockDaemons, host: str, image: Path) -> list[int]:
    """Return the processes of a host that have an image's lease, by its daemon."""
    return [int(each["pid"]) for each in _HELD.finditer(daemons.status(host)) if each["name"] == lease_name(str(image))]


async def wait_given_back(daemons: SanlockDaemons, host: str, image: Path) -> None:
    """Wait until nobody on a host has an image's lease: the daemon gives it back after it has seen QEMU's end."""

    async def is_free() -> bool:
        return not lessees(daemons, host, image)

    await wait_until(is_free, f"nobody on {host} has the lease")


async def assert_leased_at(guest: GuestRun, daemons: SanlockDaemons, image: Path, host: str) -> None:
    """The guest is on a host; its QEMU has the lease, and nobody does on the other one."""
    view = await guest.view(host)
    assert {each: lessees(daemons, each, image) for each in IDS} == {
        each: [view.pid] if each == host else [] for each in IDS
    }


def assert_moved(leg: Leg) -> None:
    """A guest that runs at the destination, as it was."""
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert leg.oracle.startswith("oracle clean"), leg.oracle
    assert not leg.still_at_source


async def held_at(lab: Lab, guest: GuestRun, side: str, state: str, undo: ExitStack) -> tuple[str, Path]:
    """Return a hand-over to host-b that stands still in a state, and the file that holds it there."""
    hold = lab.hosts["host-a" if side == "source" else "host-b"].hold_dir / f"{side}.{state}"
    hold.touch()
    undo.callback(hold.unlink, missing_ok=True)
    handover = await migrate(lab, guest, "host-b")
    reached = hold.with_name(hold.name + ".reached")
    undo.callback(reached.unlink, missing_ok=True)

    async def is_there() -> bool:
        return reached.exists()

    await wait_until(is_there, f"the hand-over is held in {state}")
    return handover, hold


async def test_there_and_back(calm: Lab, daemons: SanlockDaemons) -> None:
    """The lease goes with the guest, which is promised beforehand and said in the report; its disk is whole."""
    disk = image_in(calm, "books")
    plan = GuestPlan("linux", memory_mib=128, working_set_mib=16, rate=8, disk_rate=8, disks=(disk,))
    guest = await started(calm, plan)
    await assert_leased_at(guest, daemons, disk.image, "host-a")
    for here, there in (("host-a", "host-b"), ("host-b", "host-a")):
        told = json.loads(await calm.must(here, "check", guest.name, there, "--json"))
        assert told["guarantee"]["disk_fence"] == "sanlock (no watchdog)"
        leg = await move(calm, guest, there)
        assert_moved(leg)
        assert "has a lease (sanlock)" in leg.report.guarantee
        await assert_leased_at(guest, daemons, disk.image, there)
        assert (await guest.disk()).startswith("disk clean")
    await remove(calm, guest)
    await wait_given_back(daemons, "host-a", disk.image)


async def test_with_post_copy(calm: Lab, daemons: SanlockDaemons) -> None:
    """The destination has the lease while its memory still follows, and the source has none."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    disk = image_in(calm)
    with page_faults_for_all():
        guest = await started(calm, small(disk))
        leg = await move(calm, guest, "host-b", {"postcopy_after": 1, "max_bandwidth": 4 * MIB})
        assert_moved(leg)
        assert leg.report.timeline_ms["postcopy-running"] > 0
        await assert_leased_at(guest, daemons, disk.image, "host-b")
        await remove(calm, guest)


@pytest.mark.parametrize(
    ("side", "state", "dying"),
    [
        ("source", "committed", "host-a"),
        ("destination", "acquired", "host-b"),
        ("destination", "starting", "host-b"),
    ],
)
async def test_an_agent_that_dies_around_the_commit(
    calm: Lab, daemons: SanlockDaemons, side: str, state: str, dying: str
) -> None:
    """The next agent gives back what is to be given, takes what is to be taken, and starts the guest."""
    disk = image_in(calm)
    guest = await started(calm, small(disk))
    with ExitStack() as undo:
        pid = (await guest.view()).pid
        handover, hold = await held_at(calm, guest, side, state, undo)
        assert lessees(daemons, "host-a", disk.image) == ([] if side == "destination" else [pid])
        calm.hosts[dying].agent.kill()
        calm.hosts[dying].agent.reap()
        hold.unlink()
        await calm.restart(dying)
        view = await wait_finished(calm, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED, view.report
    guest.moved_to("host-b")
    await assert_leased_at(guest, daemons, disk.image, "host-b")
    assert (await guest.oracle()).startswith("oracle clean")
    await remove(calm, guest)


async def test_a_destination_that_loses_its_daemon_gives_the_guest_back(calm: Lab, daemons: SanlockDaemons) -> None:
    """Without leases it starts nothing: the guest runs on at its source, with its lease."""
    disk = image_in(calm)
    guest = await started(calm, small(disk))
    with ExitStack() as undo:
        handover, hold = await held_at(calm, guest, "destination", "acquired", undo)
        daemons.kill("host-b")
        hold.unlink()
        view = await wait_finished(calm, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.RETURNED, view.report
    assert "sanlock's daemon does not answer" in str(view.report.reason)
    assert (await guest.view()).run_state == RunState.RUNNING
    assert lessees(daemons, "host-a", disk.image) == [(await guest.view()).pid]
    assert (await guest.oracle()).startswith("oracle clean")


async def test_a_source_that_loses_its_daemon_does_not_commit(calm: Lab, daemons: SanlockDaemons) -> None:
    """What was to be handed over is not there to be given any more: the guest runs on where it was, and is told of."""
    disk = image_in(calm)
    guest = await started(calm, small(disk))
    with ExitStack() as undo:
        handover, hold = await held_at(calm, guest, "source", "loaded", undo)
        daemons.kill("host-a")
        hold.unlink()
        view = await wait_finished(calm, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.ABORTED, view.report
    assert (await guest.oracle()).startswith("oracle clean")
    daemons.start("host-a", IDS["host-a"])
    ran = await calm.cli("host-a", "check", guest.name, "host-b")
    assert ran.exit_code == 3
    assert "disk.lease-not-held" in ran.stdout


async def test_a_stranger_is_waited_for(calm: Lab, daemons: SanlockDaemons) -> None:
    """Whoever took the lease in the moment between the two hosts keeps it; then the guest goes on at its source."""
    disk = image_in(calm)
    guest = await started(calm, small(disk))
    with ExitStack() as undo:
        daemons.start("host-c", 3)
        undo.callback(daemons.kill, "host-c")
        handover, hold = await held_at(calm, guest, "destination", "acquired", undo)
        stranger = undo.enter_context(daemons.process_with("host-c", lease_name(str(disk.image))))
        hold.unlink()
        await wait_state(calm, "host-a", handover, "returning")
        await asyncio.sleep(2.0)
        assert (await guest.view()).run_state != RunState.RUNNING
        assert (await wait_state(calm, "host-a", handover, "returning")).finished is False
        stranger.kill()
        view = await wait_finished(calm, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.RETURNED, view.report
    assert "leased by host id 3" in str(view.report.reason)
    await assert_leased_at(guest, daemons, disk.image, "host-a")
    assert (await guest.oracle()).startswith("oracle clean")
    await remove(calm, guest)


async def test_one_image_runs_once(calm: Lab, daemons: SanlockDaemons) -> None:
    """A second guest with the same disk is refused before its QEMU exists: who has the lease, and that it lives."""
    disk = image_in(calm)
    guest = await started(calm, small(disk))
    file = calm.directory / "web-8.toml"
    file.write_text((calm.directory / "web-7.toml").read_text().replace("web-7", "web-8", 1))
    ran = await calm.cli("host-b", "guest", "run", str(file), "--on", "host-b")
    assert ran.exit_code == Refused.exit_code
    assert f"image {disk.image} is leased by host id 1 of lockspace {LOCKSPACE}, which is alive" in ran.stderr
    await assert_leased_at(guest, daemons, disk.image, "host-a")
    await calm.must("host-a", "guest", "stop", guest.name, "--force")
    await wait_given_back(daemons, "host-a", disk.image)
    await calm.must("host-b", "guest", "run", str(file), "--on", "host-b")
    assert len(lessees(daemons, "host-b", disk.image)) == 1


async def test_a_qemu_that_was_killed_is_started_again(calm: Lab, daemons: SanlockDaemons) -> None:
    """Its lease ended with it: the guest starts again at once, here."""
    disk = image_in(calm)
    guest = await started(calm, small(disk))
    for _ in range(3):
        pid = (await guest.view()).pid
        assert pid is not None
        os.kill(pid, 9)

        async def is_gone() -> bool:
            return (await guest.view()).pid is None

        await wait_until(is_gone, "its end is seen")
        await calm.must("host-a", "guest", "start", guest.name)
        await assert_leased_at(guest, daemons, disk.image, "host-a")
    await remove(calm, guest)


async def test_a_saved_guest(calm: Lab, daemons: SanlockDaemons) -> None:
    """In a file it has no lease, out of it on the other host it has."""
    disk = image_in(calm)
    guest = await started(calm, small(disk))
    saved = calm.directory / "web-7.guest"
    await calm.must("host-a", "save", guest.name, str(saved))
    await wait_given_back(daemons, "host-a", disk.image)
    await calm.must("host-b", "restore", str(saved), "--on", "host-b")
    guest.moved_to("host-b")
    await assert_leased_at(guest, daemons, disk.image, "host-b")
    assert (await guest.oracle()).startswith("oracle clean")
    await remove(calm, guest)


async def test_a_host_that_takes_none_is_no_destination(calm: Lab, daemons: SanlockDaemons) -> None:
    """Leases at one host only are a blocker before anything is touched, and when the lock manager is gone, too."""
    disk = image_in(calm)
    guest = await started(calm, small(disk))
    there = calm.hosts["host-b"]
    daemons.kill("host-b")
    ran = await calm.cli("host-a", "check", guest.name, "host-b")
    assert (ran.exit_code, "disk.lease-unready" in ran.stdout) == (3, True)
    config = there.directory / "agent.toml"
    whole = config.read_text()
    try:
        config.write_text(whole[: whole.index("[sanlock]")] + _behind(whole, "[sanlock]"))
        there.agent.stop()
        there.agent.reap()
        await calm.restart("host-b")
        leg = await move(calm, guest, "host-b")
        assert leg.report.outcome == Outcome.BLOCKED
        assert "disk.lease-one-host" in str(leg.report.reason)
    finally:
        config.write_text(whole)
        there.agent.stop()
        there.agent.reap()
        await calm.restart("host-b")
    assert (await guest.oracle()).startswith("oracle clean")


def _behind(text: str, table: str) -> str:
    """Return what follows a table of a TOML text."""
    rest = text[text.index(table) + len(table) :]
    found = rest.find("\n[")
    return "" if found < 0 else rest[found + 1 :]


async def test_the_older_qemu(daemons: SanlockDaemons) -> None:
    """QEMU 7.2 is started through the same program, and hands its lease to 10.0."""
    try:
        qemus = {"host-a": find_qemu(7, 2), "host-b": find_qemu(10, 0)}
    except NotFound as error:
        pytest.skip(str(error))
    async with Lab(qemus=qemus, settings=settings(daemons)) as lab:
        await see_each_other(lab)
        disk = image_in(lab)
        guest = await started(lab, small(disk))
        await assert_leased_at(guest, daemons, disk.image, "host-a")
        await lab.must("host-a", "guest", "pause", guest.name)  # docs/checks.md: 7.2 loses a running guest's writes
        leg = await move(lab, guest, "host-b")
        assert leg.report.outcome == Outcome.MOVED, leg.report
        await assert_leased_at(guest, daemons, disk.image, "host-b")
        await lab.must("host-b", "guest", "resume", guest.name)
        assert (await guest.oracle()).startswith("oracle clean")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_host_that_is_off_keeps_its_leases_for_a_while() -> None:
    """`recover --fenced` gives the guest to its source, and says why it cannot be started there yet; then it can."""
    with SanlockDaemons() as own:
        for host, number in IDS.items():
            own.start(host, number)
        async with Lab(settings=settings(own)) as lab:
            await see_each_other(lab)
            disk = image_in(lab)
            guest = await started(lab, small(disk))
            with ExitStack() as undo:
                handover, _ = await held_at(lab, guest, "destination", "starting", undo)
                assert len(lessees(own, "host-b", disk.image)) == 1
                lab.hosts["host-b"].agent.kill()
                lab.hosts["host-b"].agent.reap()
                own.freeze("host-b")
                kill_all(lab.processes_of("host-b"))
                told = await lab.must("host-a", "recover", "--fenced", "host-b")
                assert "it cannot be started here before the lease has ended: image" in told
                assert "leased by host id 2" in told
                await wait_handover(lab, "host-a", handover, lambda view: view.finished)
            refused = await lab.cli("host-a", "guest", "start", guest.name)
            assert refused.exit_code == Refused.exit_code
            assert "leased by host id 2" in refused.stderr

            async def starts() -> bool:
                return (await lab.cli("host-a", "guest", "start", guest.name)).exit_code == 0

            await wait_until(starts, "the lease has ended", DEAD_AFTER_S + 60)
            assert len(lessees(own, "host-a", disk.image)) == 1


@pytest.mark.slow
async def test_a_host_that_loses_its_storage_ends_its_guests() -> None:
    """When its lockspace cannot be renewed sanlock ends QEMU, and the guest is not started again by itself."""
    with SanlockDaemons() as own:
        for host, number in IDS.items():
            own.start(host, number)
        async with Lab(settings=settings(own)) as lab:
            guest = await started(lab, small(image_in(lab)))
            os.truncate(own.leases / "lockspace", 0)

            async def has_ended() -> bool:
                return "ended unexpectedly" in str((await guest.view()).note)

            await wait_until(has_ended, "sanlock has ended it, and that is told")
            refused = await lab.cli("host-a", "guest", "start", guest.name)
            assert refused.exit_code != 0
