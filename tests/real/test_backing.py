"""Disks on top of other images, and images that nobody writes, on the way with real guests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.real.test_disks import COPY, assert_moved, files, plan, qemu_img

from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import DiskPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import empty, migrate, move, remove, started, wait_finished
from vmferry.lab.toolchain import find_qemu

#: More than a guest writes in a test: what it never wrote is as in the golden image.
SIZE_MIB = 256

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_lab() -> AsyncIterator[Lab]:
    """Two hosts with directories of their own, both with the newer QEMU."""
    qemu = find_qemu(10, 0)
    async with Lab(qemus={"host-a": qemu, "host-b": qemu}, local_dirs=True) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def older_lab() -> AsyncIterator[Lab]:
    """The same, with the older QEMU on host-a."""
    async with Lab(qemus={"host-a": find_qemu(7, 2), "host-b": find_qemu(10, 0)}, local_dirs=True) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def lab(module_lab: Lab) -> AsyncIterator[Lab]:
    """The same, empty again afterwards."""
    yield module_lab
    await empty(module_lab)


def there(lab: Lab, host: str, name: str) -> Path:
    """Return where a host's own file lies outside of the lab."""
    return lab.hosts[host].local_dir / name


def golden_image(lab: Lab) -> DiskPlan:
    """Put one image full of random bytes on both hosts: two files, one content."""
    first = there(lab, "host-a", "golden.raw")
    first.write_bytes(os.urandom(SIZE_MIB * MIB))
    shutil.copyfile(first, there(lab, "host-b", "golden.raw"))
    return DiskPlan(lab.local / "golden.raw", "raw")


def overlay(lab: Lab, host: str, name: str, below: DiskPlan) -> Path:
    """Make an image on a host that stands on another one."""
    path = there(lab, host, name)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", str(below.image), "-F", below.format, str(path), f"{SIZE_MIB}M")
    return lab.local / name


def header(path: Path) -> dict[str, object]:
    """Return what qemu-img says of an image, without what is below it."""
    told = subprocess.run(["qemu-img", "info", "-U", "--output=json", str(path)], check=True, capture_output=True)
    return dict(json.loads(told.stdout))


async def test_an_overlay_is_copied_and_what_it_stands_on_is_not(lab: Lab) -> None:
    """There and back: only its own clusters travel, the rest is each host's own golden image."""
    golden = golden_image(lab)
    middle = DiskPlan(overlay(lab, "host-a", "middle.qcow2", golden), backing=(golden,))
    shutil.copyfile(there(lab, "host-a", "middle.qcow2"), there(lab, "host-b", "middle.qcow2"))
    below = (DiskPlan(middle.image), golden)
    disk = DiskPlan(overlay(lab, "host-a", "web-7.qcow2", middle), backing=below)
    guest = await started(lab, replace(plan(disk), disk_rate=2))
    for host in ("host-b", "host-a"):
        leg = await move(lab, guest, host, COPY)
        assert_moved(leg)
        assert (await guest.disk()).startswith("disk clean chunks=")
        assert leg.report.disks == (str(disk.image),)
        assert leg.report.disk_bytes is not None
        assert leg.report.disk_bytes < SIZE_MIB * MIB // 2, "the golden image has travelled"
        told = header(there(lab, host, "web-7.qcow2"))
        assert (told["backing-filename"], told["backing-filename-format"]) == (str(middle.image), "qcow2")
    assert {"golden.raw", "middle.qcow2"} <= set(files(lab, "host-b"))
    await remove(lab, guest)
    expected = there(lab, "host-a", "golden.raw").read_bytes()[-MIB:]
    assert flattened(lab, "host-a", "web-7.qcow2", "middle.qcow2", "golden.raw")[-MIB:] == expected


def flattened(lab: Lab, host: str, top: str, middle: str, base: str) -> bytes:
    """Return what a guest would read; the images' own names for each other hold in their host only."""
    copies = {name: there(lab, host, f"{name}.copy") for name in (top, middle)}
    for name, copy in copies.items():
        shutil.copyfile(there(lab, host, name), copy)
    qemu_img("rebase", "-u", "-b", str(there(lab, host, base)), "-F", "raw", str(copies[middle]))
    qemu_img("rebase", "-u", "-b", str(copies[middle]), "-F", "qcow2", str(copies[top]))
    raw = there(lab, host, "flat.raw")
    qemu_img("convert", "-O", "raw", str(copies[top]), str(raw))
    content = raw.read_bytes()
    for path in (raw, *copies.values()):
        path.unlink()
    return content


async def test_the_older_qemu_copies_an_overlay(older_lab: Lab) -> None:
    """A guest of 7.2 that stands still, to 10.0: writes go to both from the start there."""
    lab = older_lab
    golden = golden_image(lab)
    disk = DiskPlan(overlay(lab, "host-a", "web-7.qcow2", golden), backing=(golden,))
    guest = await started(lab, replace(plan(disk), disk_rate=2))
    await lab.hosts["host-a"].api.post(f"/v1/guests/{guest.name}/pause")
    view = await wait_finished(lab, "host-a", await migrate(lab, guest, "host-b", COPY))
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED, view.report
    assert view.report.disk_bytes is not None
    assert view.report.disk_bytes < SIZE_MIB * MIB // 2
    guest.moved_to("host-b")
    await lab.hosts["host-b"].api.post(f"/v1/guests/{guest.name}/resume")
    assert (await guest.disk()).startswith("disk clean chunks=")
    await remove(lab, guest)


async def test_another_golden_image_is_told_beforehand(lab: Lab) -> None:
    """And a guest is not started on what its file does not say."""
    golden = golden_image(lab)
    disk = overlay(lab, "host-a", "web-7.qcow2", golden)
    unsaid = plan(DiskPlan(disk))
    with pytest.raises(Exception, match=rf'image = "{golden.image}", format = "raw"'):
        await started(lab, unsaid)
    guest = await started(lab, plan(DiskPlan(disk, backing=(golden,))))
    other = there(lab, "host-b", "golden.raw")
    there(lab, "host-b", "web-7.qcow2").unlink(missing_ok=True)
    with other.open("r+b") as file:
        file.seek(SIZE_MIB * MIB - 1)
        file.write(b"\0" if file.read(1) != b"\0" else b"\1")
    body = {"destination": "host-b", "options": COPY}
    answer = await lab.hosts["host-a"].api.post(f"/v1/guests/{guest.name}/check", body)
    assert [blocker["code"] for blocker in answer["blockers"]] == ["disk.fixed-differs"], answer
    await remove(lab, guest)


async def test_a_cdrom_moves_with_the_guest(lab: Lab) -> None:
    """Its medium is on both hosts, in two files."""
    for host in lab.hosts:
        there(lab, host, "install.iso").write_bytes(b"what is installed " * 4096)
    medium = DiskPlan(lab.local / "install.iso", "raw", cdrom=True)
    disk = lab.directory / "shared.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(disk), f"{SIZE_MIB}M")
    guest = await started(lab, plan(DiskPlan(disk), medium))
    for host in ("host-b", "host-a"):
        assert_moved(await move(lab, guest, host))
        assert (await guest.disk()).startswith("disk clean chunks=")
    await remove(lab, guest)
