"""Guests that go into a file and come out of it: exactly one owner, whatever fails on the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.conductor.fakes import WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, wait_until
from tests.conductor.saving import (
    Agent,
    Halting,
    assert_gone,
    assert_runs,
    names,
    path,
    qemu,
    saving_of,
)

from vmferry.conductor.saving import SavingCalls
from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import BadInput, Blocked, Broken, GuestBusy, NotFound, Refused
from vmferry.core.ids import GuestName
from vmferry.core.migration import RunState
from vmferry.core.pci import PciAddress
from vmferry.core.saved import SavedGuest
from vmferry.links.state_file import GuestStateFiles
from vmferry.testing.fake_hypervisor import FakeGuestProcess, FakeHypervisor
from vmferry.testing.fake_qemu import FaultAction

__all__ = ["path"]


async def test_a_guest_goes_into_a_file_and_comes_out_elsewhere(
    hosts: tuple[Host, Host], link: WatchedLink, path: str
) -> None:
    """Two epochs further it runs on another host; on the first nothing is left, and the file is used up."""
    here, there = hosts
    saved = await saving_of(here).save(GUEST, path)
    assert (saved.epoch, saved.running, saved.host) == (2, True, here.name)
    assert_gone(here, link)
    assert names(path) == ["web-7.guest"]
    assert await saving_of(there).restore(path) == GUEST
    assert_runs(there, link, 3)
    assert names(path) == ["web-7.guest.restored-ID"]


async def test_a_paused_guest_comes_out_paused(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """What an operator stopped stays stopped, until an operator says otherwise."""
    here, _ = hosts
    await here.guests.pause(GUEST)
    await saving_of(here).save(GUEST, path)
    await saving_of(here).restore(path)
    assert link.running() == []
    await here.guests.resume(GUEST)
    assert_runs(here, link, 3)


async def test_a_file_is_restored_once(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """Of two hosts that restore it at once one gets the guest; later nobody does."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    ends = await asyncio.gather(*(saving_of(host).restore(path) for host in hosts), return_exceptions=True)
    assert sorted(isinstance(end, NotFound) for end in ends) == [False, True]
    assert len(link.running()) == 1
    assert link.doubled == []
    owner = here if here.journal.guest(GUEST) else there
    await owner.guests.stop(GUEST)
    await owner.guests.remove(GUEST)
    with pytest.raises(NotFound, match="must not run twice"):
        await saving_of(here).restore(path)


async def test_a_guest_with_a_device_of_its_host_stays(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """It is told which, and no file is made."""
    here, _ = hosts
    here.journal.claim_devices([DeviceClaim(PciAddress.parse("01:10.0"), GUEST, 20, "rp0")])
    with pytest.raises(Blocked) as told:
        await saving_of(here).save(GUEST, path)
    assert [blocker.code for blocker in told.value.blockers] == ["device.attached"]
    assert names(path) == []
    assert_runs(here, link, 1)


@pytest.mark.parametrize("fault", [FaultAction.FAIL, FaultAction.DIE])
async def test_a_save_that_fails_leaves_no_file(
    hosts: tuple[Host, Host], link: WatchedLink, path: str, fault: FaultAction
) -> None:
    """The guest goes on where it was, unless its QEMU died."""
    here, _ = hosts
    link.file_fault = fault
    with pytest.raises(Broken):
        await saving_of(here).save(GUEST, path)
    assert names(path) == []
    if fault is FaultAction.FAIL:
        assert_runs(here, link, 1)
    else:
        assert here.guests.row(GUEST).note == "its QEMU process ended unexpectedly"


@pytest.mark.parametrize("fault", [FaultAction.FAIL, FaultAction.DIE])
async def test_a_restore_that_fails_leaves_the_file(
    hosts: tuple[Host, Host], link: WatchedLink, path: str, fault: FaultAction
) -> None:
    """Nothing of the guest is left on the host, and it can be restored again."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    link.file_fault = fault
    with pytest.raises(Broken):
        await saving_of(there).restore(path)
    assert_gone(there, link)
    link.file_fault = None
    await saving_of(there).restore(path)
    assert_runs(there, link, 3)


async def test_what_cannot_be_saved_is_told(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """No guest, one that does not run, one that moves, a file that exists: each as what it is, and it runs on."""
    here, there = hosts
    saving = saving_of(here)
    with pytest.raises(NotFound):
        await saving.save(GuestName("db-1"), path)
    Path(path).touch()
    with pytest.raises(BadInput, match="there is a file of that name"):
        await saving.save(GUEST, path)
    Path(path).unlink()
    async with here.guests.operation(GUEST, "hand-over h1"):
        with pytest.raises(GuestBusy):
            await saving.save(GUEST, path)
    assert_runs(here, link, 1)
    await here.guests.stop(GUEST)
    with pytest.raises(BadInput, match="is stopped: what is saved runs, or is paused"):
        await saving.save(GUEST, path)
    assert names(path) == []
    with pytest.raises(NotFound):
        await saving_of(there).restore(path)


async def test_a_name_that_is_taken_is_told(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """Before the file is claimed."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    await saving_of(there).restore(path)
    (used,) = Path(path).parent.iterdir()
    used.rename(path)  # as somebody who knows better
    with pytest.raises(Refused, match="is taken"):
        await saving_of(there).restore(path)
    assert names(path) == ["web-7.guest"]
    assert_runs(there, link, 3)


async def test_a_save_touches_no_file_but_its_own(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """A path that is refused, or taken by another save, is as it was, and so is what lies beside it."""
    here, _ = hosts
    other = Path(f"{path}.partial-0123456789abcdef")
    other.write_text("another guest")
    Path(path).write_bytes(b"vmferry writes 0123456789abcdef")
    for wrong in (
        path,
        f"{path}.partial-1",
        f"{path}.restored-1",
        f"{path}/x",
        "/nowhere/x",
        "x" * 300,
        "/srv/" + "x" * 240,
    ):
        with pytest.raises(BadInput):
            await saving_of(here).save(GUEST, wrong)
    assert other.read_text() == "another guest"
    assert Path(path).read_bytes() == b"vmferry writes 0123456789abcdef"
    assert_runs(here, link, 1)


async def test_a_guest_that_has_ended_is_not_saved(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """It would never come out: QEMU brings its state back as well."""
    here, _ = hosts
    qemu_process = qemu_of(here, link)
    assert qemu_process is not None
    for state in (RunState.IO_ERROR, RunState.PANICKED, RunState.SHUTDOWN):
        qemu_process.state = state
        with pytest.raises(BadInput, match=f"is {state}"):
            await saving_of(here).save(GUEST, path)
    assert names(path) == []


async def test_a_save_is_cancelled(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """While QEMU writes: the guest goes on before the answer comes, no file is left; afterwards there is nothing."""
    here, _ = hosts
    link.file_fault = FaultAction.HANG
    saving = saving_of(here)
    saves = asyncio.create_task(saving.save(GUEST, path))
    await wait_until(lambda: not link.running(), "it is written")
    with pytest.raises(GuestBusy, match="vmferry cancel web-7"):
        await here.guests.stop(GUEST)
    await saving.cancel(GUEST)
    with pytest.raises(Refused, match="cancelled by an operator"):
        await saves
    assert names(path) == []
    assert_runs(here, link, 1)
    with pytest.raises(NotFound, match="is not being saved"):
        await saving.cancel(GUEST)


async def test_a_pause_while_it_is_saved_counts(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """Whoever was told that the guest is paused finds it paused."""
    here, _ = hosts
    files = Halting("seal", behind=True)
    saves = asyncio.create_task(saving_of(here, files).save(GUEST, path))
    await files.reached.wait()
    await here.guests.pause(GUEST)
    files.go_on.set()
    assert not (await saves).running
    await saving_of(here).restore(path)
    assert link.running() == []


async def test_two_restores_on_one_host(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """The one that comes too late harms neither the guest of the first nor its row."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    release = asyncio.Event()

    async def slowly(saved: SavedGuest) -> None:
        await release.wait()

    late = asyncio.create_task(
        Agent(there.guests, GuestStateFiles(lambda _: None), SavingCalls(qemu, slowly)).restore(path)
    )
    await asyncio.sleep(0.05)
    await saving_of(there).restore(path)
    release.set()
    with pytest.raises(Refused, match="is taken"):
        await late
    assert_runs(there, link, 3)


async def test_another_file_than_was_checked(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """Restored and saved again by somebody else meanwhile: it is not taken for the old one, and stays as it is."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    files = Halting("claim", behind=False)
    late = asyncio.create_task(saving_of(there, files).restore(path))
    await files.reached.wait()
    await saving_of(here).restore(path)
    await saving_of(here).save(GUEST, path)
    files.go_on.set()
    with pytest.raises(NotFound, match="another file by now"):
        await late
    await saving_of(there).restore(path)
    assert_runs(there, link, 5)


async def test_a_file_that_cannot_be_used_up_is_not_restored_again(
    hosts: tuple[Host, Host], link: WatchedLink, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest runs; the file keeps its claimed name, also through the next agent's start."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    files = GuestStateFiles(lambda _: None)

    async def fails(path: str, mark: str) -> None:
        raise Broken("input/output error")

    monkeypatch.setattr(files, "consume", fails)
    await saving_of(there, files).restore(path)
    assert_runs(there, link, 3)
    await there.guests.stop(GUEST)
    await there.guests.remove(GUEST)
    assert saving_of(there).recover() == []
    with pytest.raises(NotFound, match="is being restored"):
        await saving_of(here).restore(path)


async def test_a_guest_that_cannot_be_let_run_stays_stopped(
    hosts: tuple[Host, Host], link: WatchedLink, path: str
) -> None:
    """An image that is locked elsewhere: it is here, the file is used up, and `resume` lets it go on."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    assert isinstance(there.hypervisor, FakeHypervisor)
    there.hypervisor.refuse_next("cont", Broken("Failed to get write lock"))
    with pytest.raises(Broken, match="Failed to get write lock"):
        await saving_of(there).restore(path)
    assert link.running() == []
    assert names(path) == ["web-7.guest.restored-ID"]
    await there.guests.resume(GUEST)
    assert_runs(there, link, 3)


async def test_a_guest_that_ends_before_it_is_stopped(
    hosts: tuple[Host, Host], link: WatchedLink, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end would be saved, and come out of the file again and again."""
    here, _ = hosts
    process = here.guests.process(GUEST)
    assert isinstance(process, FakeGuestProcess)

    async def ends() -> None:
        process.guest_powers_off()

    monkeypatch.setattr(process, "stop", ends)
    with pytest.raises(Broken, match="has ended meanwhile: it is shutdown"):
        await saving_of(here).save(GUEST, path)
    assert names(path) == []


async def test_a_header_that_somebody_has_changed_gets_no_name(
    hosts: tuple[Host, Host], link: WatchedLink, path: str
) -> None:
    """QEMU can write to the file until it is dead: what it writes over our header is found then."""
    here, _ = hosts
    files = Halting("publish", behind=False)
    saving = saving_of(here, files)
    saves = asyncio.create_task(saving.save(GUEST, path))
    await files.reached.wait()
    assert link.alive() == []
    (partial,) = Path(path).parent.glob("*.partial-*")
    with partial.open("r+b") as opened:
        opened.seek(100)
        opened.write(b"x")
    files.go_on.set()
    with pytest.raises(Broken, match="is not what was written"):
        await saves
    with pytest.raises(NotFound, match="is being written"):
        await saving_of(here).restore(path)
    await saving.close()
