"""Real guests go into files and come out of them: with disks, on other hosts, on other QEMUs, through faults."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.api.models import SavedView
from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.lab.guest_plans import DiskPlan, linux_guest, micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import remove, started, wait_until
from vmferry.ports.hypervisor import RunState

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


def directory(lab: Lab) -> Path:
    """Return a directory that both hosts see."""
    made = lab.directory / "saved"
    made.mkdir(exist_ok=True)
    return made


def names(lab: Lab) -> list[str]:
    """Return what is in it."""
    return sorted(one.name for one in directory(lab).iterdir())


def run(*words: str) -> None:
    """Run a program; fails when it does."""
    subprocess.run(words, check=True, capture_output=True)


async def save(lab: Lab, guest: GuestRun, file: Path) -> SavedView:
    """Save a guest of the lab."""
    answer = await lab.hosts[guest.host].api.post(f"/v1/guests/{guest.name}/save", {"path": str(file)})
    return SavedView.model_validate(answer)


async def restore(lab: Lab, guest: GuestRun, file: Path, host: str) -> None:
    """Restore it on a host."""
    await lab.hosts[host].api.post("/v1/restore", {"path": str(file)})
    guest.moved_to(host)


async def assert_whole(guest: GuestRun) -> None:
    """It runs, and its memory is as it wrote it."""
    assert (await guest.view()).run_state == RunState.RUNNING
    assert (await guest.oracle()).startswith("oracle clean")


async def test_with_a_disk_to_another_host_and_back(lab: Lab) -> None:
    """A Linux guest under load goes on elsewhere with its memory and its disk whole; nobody holds the image between."""
    image = lab.directory / "saved.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M")
    plan = replace(linux_guest("web-7", memory_mib=256, rate=20, bridge=True), nics=(), disks=(DiskPlan(image),))
    guest = await started(lab, plan)
    for host in ("host-b", "host-a"):
        source, file = guest.host, directory(lab) / f"to-{host}.guest"
        view = await save(lab, guest, file)
        assert view.mapped
        assert file.stat().st_blocks * 512 < 256 << 20  # pages of zeros take no room
        assert await guest.list_on(source) == []
        run("qemu-img", "check", "-q", str(image))
        await restore(lab, guest, file, host)
        await assert_whole(guest)
        assert not file.exists()
    with pytest.raises(NotFound, match="must not run twice"):
        await restore(lab, guest, directory(lab) / "to-host-a.guest", "host-b")
    await remove(lab, guest)
    run("qemu-img", "check", "-q", str(image))


async def test_between_qemu_versions(mixed_lab: Lab) -> None:
    """What 7.2 wrote 10.0 reads; what 10.0 wrote 7.2 refuses before anything is touched, and 10.0 reads it then."""
    guest = await started(mixed_lab, micro_guest())
    file = directory(mixed_lab) / "old.guest"
    view = await save(mixed_lab, guest, file)
    assert (view.qemu[:2], view.mapped) == ((7, 2), False)
    await restore(mixed_lab, guest, file, "host-b")
    await assert_whole(guest)
    file = directory(mixed_lab) / "new.guest"
    assert (await save(mixed_lab, guest, file)).mapped
    with pytest.raises(BadInput, match="its pages are mapped, which QEMU reads from 9.0 on"):
        await restore(mixed_lab, guest, file, "host-a")
    await restore(mixed_lab, guest, file, "host-b")
    await assert_whole(guest)
    await remove(mixed_lab, guest)


async def test_old_qemus_own_file(mixed_lab: Lab) -> None:
    """7.2 reads what it wrote."""
    guest = await started(mixed_lab, micro_guest())
    file = directory(mixed_lab) / "same.guest"
    await save(mixed_lab, guest, file)
    await restore(mixed_lab, guest, file, "host-a")
    await assert_whole(guest)
    await remove(mixed_lab, guest)


async def test_a_full_file_system_is_told_before(lab: Lab) -> None:
    """With too little room nothing is begun; the guest never noticed."""
    small = lab.directory / "small"
    small.mkdir()
    agent = lab.hosts["host-a"].agent.worker
    assert agent is not None
    inside = ("nsenter", "--mount", "--target", str(agent.pid))  # a host of the lab has its own mounts
    run(*inside, "mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small))
    try:
        guest = await started(lab, micro_guest())
        with pytest.raises(Refused, match="has 16.0 MiB left"):
            await save(lab, guest, small / "web-7.guest")
        await assert_whole(guest)
        await remove(lab, guest)
        assert list(small.iterdir()) == []
    finally:
        run(*inside, "umount", str(small))


async def test_a_damaged_file_starts_nothing(lab: Lab) -> None:
    """One flipped byte is found before any QEMU starts; flipped back the guest goes on."""
    guest = await started(lab, micro_guest())
    file = directory(lab) / "damaged.guest"
    await save(lab, guest, file)
    flip(file)
    with pytest.raises(Broken, match="is damaged"):
        await restore(lab, guest, file, "host-b")
    flip(file)
    await restore(lab, guest, file, "host-b")
    await assert_whole(guest)
    await remove(lab, guest)


def flip(file: Path) -> None:
    """Flip a bit in the last byte."""
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))


def begin_save(lab: Lab, guest: GuestRun, file: Path) -> subprocess.Popen[bytes]:
    """Run the command and do not wait for it."""
    words = lab.command("host-a", "save", guest.name, str(file))
    return subprocess.Popen(words, env=lab.environment(), stderr=subprocess.DEVNULL)


async def test_an_agent_that_is_killed_while_it_saves(lab: Lab) -> None:
    """Its supervisor starts it again, and the guest is in the file or runs, never both."""
    guest = await started(lab, replace(linux_guest("web-7", memory_mib=512, rate=20, bridge=True), nics=()))
    file = directory(lab) / "killed.guest"
    host = lab.hosts["host-a"]
    saving = begin_save(lab, guest, file)
    await wait_until(lambda: _is_written(file), "it is being written")
    host.agent.kill_worker()
    await asyncio.to_thread(saving.wait, 60)

    async def decided() -> bool:
        return not await _is_written(file)

    await wait_until(decided, "the next agent has taken it up")
    await host.api.wait_answer()
    if file.exists():
        await restore(lab, guest, file, "host-b")

    async def runs() -> bool:
        return (await guest.view()).run_state == RunState.RUNNING

    await wait_until(runs, "it runs")
    await assert_whole(guest)
    await remove(lab, guest)


async def _is_written(file: Path) -> bool:
    return any(file.parent.glob(f"{file.name}.partial-*"))
