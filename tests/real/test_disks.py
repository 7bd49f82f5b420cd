"""Disks that two hosts do not share, copied while real guests write to them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.real.test_streams import capture, seen

from vmferry.core.errors import NotFound
from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import DiskPlan, GuestPlan, debian_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.network import Cut
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.processes import Identity, command_line, kill_all
from vmferry.lab.scenarios import Leg, empty, migrate, move, remove, started, wait_finished, wait_state, wait_until
from vmferry.lab.toolchain import find_qemu
from vmferry.ports.hypervisor import RunState
from vmferry.qemu import userfault
from vmferry.qemu.image_locks import why_locked

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

COPY: dict[str, object] = {"copy_disks": True}
SIZE_MIB = 48
ON_ITS_DISK = b"the books of web-7 "


@pytest_asyncio.fixture(loop_scope="module")
async def lab(local_lab: Lab) -> AsyncIterator[Lab]:
    """The same, without guests; healed and empty again afterwards, also after a failure."""
    yield local_lab
    assert local_lab.network is not None
    local_lab.network.heal()
    await empty(local_lab)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixed_lab() -> AsyncIterator[Lab]:
    """The same, with the older QEMU on host-a and the newer on host-b."""
    try:
        qemus = {"host-a": find_qemu(7, 2), "host-b": find_qemu(10, 0)}
    except NotFound as error:
        pytest.skip(str(error))
    async with Lab(qemus=qemus, local_dirs=True) as made:
        yield made


def qemu_img(*words: str) -> None:
    """Run qemu-img."""
    subprocess.run(["qemu-img", *words], check=True)


def make_image(lab: Lab, kind: str, name: str = "web-7", host: str = "host-a", *, full: bool = False) -> DiskPlan:
    """Make an image that only one host has, empty or full of random bytes."""
    path = lab.local / f"{name}.{kind}"
    there = lab.hosts[host].local_dir / path.name
    qemu_img("create", "-q", "-f", kind, str(there), f"{SIZE_MIB}M")
    if full:
        raw = there.with_suffix(".random")
        raw.write_bytes(os.urandom(SIZE_MIB * MIB))
        qemu_img("convert", "-f", "raw", "-O", kind, str(raw), str(there))
        raw.unlink()
    return DiskPlan(path, kind)


def plan(*disks: DiskPlan, name: str = "web-7") -> GuestPlan:
    """Return a guest that writes to its first disk."""
    return GuestPlan("linux", name, memory_mib=128, working_set_mib=16, rate=8, disk_rate=8, disks=disks)


def files(lab: Lab, host: str) -> list[str]:
    """Return what a host has in its own directory."""
    return sorted(path.name for path in lab.hosts[host].local_dir.iterdir())


def assert_moved(leg: Leg) -> None:
    """A guest that runs at the destination, as it was."""
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert leg.oracle.startswith("oracle clean"), leg.oracle
    assert not leg.still_at_source


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_there_and_back(lab: Lab, kind: str) -> None:
    """What the guest wrote is there; the source's image is put aside, and so does not stand in the way back."""
    disk = make_image(lab, kind)
    guest = await started(lab, plan(disk))
    for number, host in enumerate(("host-b", "host-a")):
        leg = await move(lab, guest, host, COPY)
        assert_moved(leg)
        assert (await guest.disk()).startswith("disk clean chunks="), number
        assert leg.report.disks == (str(disk.image),)
        left = "host-a" if host == "host-b" else "host-b"
        assert f"{disk.image.name}.left-{leg.report.handover}" in files(lab, left)
        assert disk.image.name not in files(lab, left)
        assert disk.image.name in files(lab, host)

    async def named() -> bool:
        return not [name for host in lab.hosts for name in files(lab, host) if "arriving" in name]

    await wait_until(named, "no image has the name of one that arrives")  # they are named after the guest runs
    await remove(lab, guest)


async def test_a_shared_disk_that_a_stranger_locks_is_not_handed_over(lab: Lab) -> None:
    """He comes in the moment in which no QEMU holds it: seen before the commit; the guest goes on when he is gone."""
    image = lab.directory / "shared.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(image), f"{SIZE_MIB}M")
    guest = await started(lab, replace(plan(DiskPlan(image)), disk_rate=4))
    hold = lab.hosts["host-a"].hold_dir / "source.loaded"
    hold.touch()
    with contextlib.ExitStack() as undo:
        undo.callback(hold.unlink, missing_ok=True)
        handover = await migrate(lab, guest, "host-b")
        await wait_state(lab, "host-a", handover, "loaded")
        undo.enter_context(stranger_with(image))
        await wait_until(lambda: _is_held(image), "the stranger has it")
        hold.unlink()
        await wait_state(lab, "host-a", handover, "aborting")
        assert (await guest.view()).run_state != RunState.RUNNING
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.ABORTED, view.report
    assert view.report.reason == f"image {image} is locked by another who writes to it"
    assert (await guest.disk()).startswith("disk clean")
    assert_moved(await move(lab, guest, "host-b"))
    assert (await guest.disk()).startswith("disk clean")
    await remove(lab, guest)


@contextlib.contextmanager
def stranger_with(image: Path) -> Iterator[None]:
    """Have another process hold an image to write to it."""
    process = subprocess.Popen(["qemu-io", str(image)], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


async def _is_held(image: Path) -> bool:
    return why_locked(str(image)) is not None


@pytest.mark.parametrize("pair", [("host-a", "host-b"), ("host-b", "host-a")], ids=["7.2 to 10.0", "10.0 to 7.2"])
async def test_between_two_versions(mixed_lab: Lab, pair: tuple[str, str]) -> None:
    """The older mirrors through from the start, the newer one when the copy is in step."""
    source, destination = pair
    disk = make_image(mixed_lab, "qcow2", f"from-{source}", source)
    guest = await started(mixed_lab, plan(disk), source)
    leg = await move(mixed_lab, guest, destination, COPY)
    if source == "host-a":  # a running TCG guest of 7.2 is refused (docs/checks.md): one that stands still moves
        assert leg.report.outcome == Outcome.BLOCKED
        api = mixed_lab.hosts[source].api
        await api.post(f"/v1/guests/{guest.name}/pause")
        handover = await migrate(mixed_lab, guest, destination, COPY)
        view = await wait_finished(mixed_lab, source, handover)
        assert view.report is not None
        assert view.report.outcome == Outcome.MOVED, view.report
        guest.moved_to(destination)
        await mixed_lab.hosts[destination].api.post(f"/v1/guests/{guest.name}/resume")
    else:
        assert_moved(leg)
    assert (await guest.disk()).startswith("disk clean")
    assert (await guest.oracle()).startswith("oracle clean")
    await remove(mixed_lab, guest)


async def test_with_post_copy(lab: Lab) -> None:
    """The copy is whole before the guest runs there, although its memory is not."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    with page_faults_for_all():
        guest = await started(lab, plan(make_image(lab, "raw", "after")))
        leg = await move(lab, guest, "host-b", COPY | {"postcopy_after": 1, "max_bandwidth": 8 * MIB})
        assert_moved(leg)
        assert leg.report.timeline_ms["postcopy-running"] > 0
        assert (await guest.disk()).startswith("disk clean")
        await remove(lab, guest)


@pytest.mark.timeout(900)  # a whole distribution boots without KVM, and its disk is copied
async def test_a_stock_debian_with_its_firmware_variables(lab: Lab) -> None:
    """Its root disk and the variables of UEFI exist on one host only, and go where it goes."""
    guest = await started(lab, replace(debian_guest("web-9"), local=True, nics=()))
    leg = await move(lab, guest, "host-b", COPY)
    assert_moved(leg)
    assert {Path(path).name for path in leg.report.disks} == {"web-9.qcow2", "web-9.fd"}
    assert {"web-9.qcow2", "web-9.fd"} <= set(files(lab, "host-b"))
    assert await guest.shell("cat /proc/loadavg > /var/tmp/here && sync && wc -l < /var/tmp/here") == "1"
    await remove(lab, guest)


@pytest.mark.parametrize("plain", [False, True], ids=["encrypted", "plain"])
async def test_an_eavesdropper_sees_a_disk_in_the_clear_only(lab: Lab, tmp_path: Path, plain: bool) -> None:
    """What stands on the disk is read off the link with `--plain`, and not otherwise."""
    disk = make_image(lab, "raw", f"books-{plain}")
    with (lab.hosts["host-a"].local_dir / disk.image.name).open("r+b") as image:
        image.seek((SIZE_MIB - 1) * MIB)
        image.write(ON_ITS_DISK * 1000)
    guest = await started(lab, replace(plan(disk), disk_rate=1))
    file = tmp_path / "seen.pcapng"
    with capture(lab, file):
        assert_moved(await move(lab, guest, "host-b", COPY | {"plain": plain}))
    assert (lab.hosts["host-b"].local_dir / disk.image.name).stat().st_blocks * 512 < SIZE_MIB * MIB / 2  # holes stay
    assert seen(file, "tcp.len > 1000") > 100
    assert (seen(file, f'frame contains "{ON_ITS_DISK.decode()}"') > 0) is plain
    await remove(lab, guest)


# -- faults: the guest goes on at the source, its disk is as if nothing had happened, the half copy is removed ---------


async def assert_stays(lab: Lab, guest: GuestRun, handover: str, outcome: Outcome, *why: str) -> None:
    """It stayed, for one of these reasons, and nothing of it stays at the destination.

    The source is done as soon as its guest runs again; the destination hears of it at that moment and then cleans up.
    """
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == outcome, view.report
    assert any(each in str(view.report.reason) for each in why), view.report.reason
    assert (await guest.oracle()).startswith("oracle clean")
    assert (await guest.disk()).startswith("disk clean")
    name = guest.plan.disks[0].image.name
    await wait_removed(lab.hosts["host-b"].local_dir, guest.plan.disks[0])
    assert [found for found in files(lab, "host-a") if found.startswith(name)] == [name]


async def wait_removed(directory: Path, disk: DiskPlan) -> None:
    """Wait until nothing of a copy is in a directory."""

    async def gone() -> bool:
        return not list(directory.glob(f"{disk.image.name}*"))

    await wait_until(gone, "the half copy is removed")


async def moves_afterwards(lab: Lab, guest: GuestRun) -> None:
    """What went wrong is over: the guest moves, its disk with it."""
    assert_moved(await move(lab, guest, "host-b", COPY))
    assert (await guest.disk()).startswith("disk clean")
    await remove(lab, guest)


async def half_copied(lab: Lab, disk: DiskPlan, folder: str = "") -> None:
    """Wait until some of a copy is there."""
    there = lab.hosts["host-b"].local_dir / folder / disk.image.name

    async def some() -> bool:
        return there.exists() and there.stat().st_blocks * 512 > 2 * MIB

    await wait_until(some, "some of the disk is copied")


def is_qemu(process: Identity) -> bool:
    """Tell whether a process is a QEMU."""
    return "-uuid" in command_line(process.pid).split()


@pytest.mark.parametrize("state", ["copying-disks", "precopy"])
async def test_the_other_qemu_dies(lab: Lab, state: str) -> None:
    """With it dies what serves the images."""
    disk = make_image(lab, "raw", f"dies-{state}", full=True)
    guest = await started(lab, plan(disk))
    handover = await migrate(lab, guest, "host-b", COPY | {"max_bandwidth": 8 * MIB})
    await wait_state(lab, "host-a", handover, state)
    if state == "copying-disks":
        await half_copied(lab, disk)
    kill_all([each for each in lab.processes_of("host-b") if is_qemu(each)])
    await assert_stays(lab, guest, handover, Outcome.ABORTED, "image0", "migration failed", "died")
    await moves_afterwards(lab, guest)


async def test_a_link_that_is_cut_holds_no_write_for_long(lab: Lab) -> None:
    """Each write goes to both when memory is sent: after ten seconds of silence the guest writes to its own again."""
    assert lab.network is not None
    disk = make_image(lab, "raw", "cut")
    guest = await started(lab, plan(disk))
    try:
        handover = await migrate(lab, guest, "host-b", COPY | {"max_bandwidth": 8 * MIB})
        await wait_state(lab, "host-a", handover, "precopy")
        lab.network.cut(how=Cut.SILENT)
        view = await wait_finished(lab, "host-a", handover)
        assert view.report is not None
        assert view.report.outcome == Outcome.ABORTED, view.report
        assert "copy of image image0 failed" in str(view.report.reason)
        before = await guest.disk()
    finally:
        lab.network.heal()
    assert before.startswith("disk clean")
    await wait_removed(lab.hosts["host-b"].local_dir, disk)
    assert await guest.disk() != before  # it writes on
    await moves_afterwards(lab, guest)


async def test_a_destination_that_is_full(lab: Lab) -> None:
    """It was not when it was asked: QEMU's own words, and nothing is left there."""
    disk = make_image(lab, "raw", "full", full=True)
    guest = await started(lab, plan(disk))
    mounted = _limit_size(lab, "host-b", SIZE_MIB + 16)
    hold = lab.hosts["host-a"].hold_dir / "source.copying-disks"
    hold.touch()
    try:
        handover = await migrate(lab, guest, "host-b", COPY | {"max_bandwidth": 8 * MIB})
        await wait_state(lab, "host-a", handover, "copying-disks")
        (mounted / "filler").write_bytes(bytes(SIZE_MIB * MIB))
        hold.unlink()
        view = await wait_finished(lab, "host-a", handover)
        assert view.report is not None
        assert view.report.outcome == Outcome.ABORTED, view.report
        assert "No space left on device" in str(view.report.reason)
        await wait_removed(mounted, disk)
        assert (await guest.disk()).startswith("disk clean")
    finally:
        hold.unlink(missing_ok=True)
        _unlimit(lab, "host-b")
    await moves_afterwards(lab, guest)


async def test_a_cancel_while_disks_are_copied(lab: Lab) -> None:
    """It may be asked for at any time, and takes no longer than with memory."""
    disk = make_image(lab, "qcow2", "cancelled", full=True)
    guest = await started(lab, plan(disk))
    handover = await migrate(lab, guest, "host-b", COPY | {"max_bandwidth": 4 * MIB})
    await half_copied(lab, disk)
    await lab.hosts["host-a"].api.post(f"/v1/handovers/{handover}/cancel")
    await assert_stays(lab, guest, handover, Outcome.CANCELLED, "cancelled by an operator")
    await moves_afterwards(lab, guest)


async def test_what_cannot_be_copied_is_told_beforehand(lab: Lab) -> None:
    """Another file at that path is not written over, and without leave nothing is copied."""
    disk = make_image(lab, "raw", "taken")
    guest = await started(lab, plan(disk))
    taken = lab.hosts["host-b"].local_dir / disk.image.name
    leg = await move(lab, guest, "host-b")
    assert leg.report.outcome == Outcome.BLOCKED
    taken.write_text("somebody's")
    leg = await move(lab, guest, "host-b", COPY)
    assert leg.report.outcome == Outcome.BLOCKED
    ran = await lab.cli("host-a", "check", guest.name, "host-b", "--copy-disks")
    assert (ran.exit_code, "disk.copy-exists" in ran.stdout) == (3, True)
    assert taken.read_text() == "somebody's"
    taken.unlink()
    ran = await lab.cli("host-a", "check", guest.name, "host-b", "--copy-disks")
    assert "separate copies" in ran.stdout
    await moves_afterwards(lab, guest)


def _inside_mounts(lab: Lab, host: str, *words: str) -> None:
    worker = lab.hosts[host].agent.worker
    assert worker is not None
    subprocess.run(["nsenter", "--target", str(worker.pid), "--mount", *words], check=True)


def _limit_size(lab: Lab, host: str, mib: int) -> Path:
    """Put a file system of this size over a host's own directory; returns where it can be seen from here."""
    worker = lab.hosts[host].agent.worker
    assert worker is not None
    _inside_mounts(lab, host, "mount", "-t", "tmpfs", "-o", f"size={mib}m", "small", str(lab.local))
    return Path(f"/proc/{worker.pid}/root{lab.local}")


def _unlimit(lab: Lab, host: str) -> None:
    _inside_mounts(lab, host, "umount", "--lazy", str(lab.local))
