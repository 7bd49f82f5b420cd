"""Guests in files through deaths of agents and storage that hangs: undone before the commit, finished behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.conductor.fakes import WatchedLink
from tests.conductor.pair import GUEST, Host, wait_until
from tests.conductor.saving import (
    Halting,
    Slow,
    assert_gone,
    assert_runs,
    kill,
    names,
    path,
    saving_of,
    take_up,
)

from vmferry.conductor import saving as saving_module
from vmferry.core.errors import BadInput, Broken, NotFound, Refused, TimedOut
from vmferry.testing.fake_hypervisor import FakeGuestProcess, FakeHypervisor
from vmferry.testing.fake_qemu import FaultAction

__all__ = ["path"]


async def test_a_restore_that_is_cut_off_behind_its_commit(
    hosts: tuple[Host, Host], link: WatchedLink, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that ends while `cont` is not answered yet leaves it to the next one."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    saving, reached = saving_of(there), asyncio.Event()

    async def hangs(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(saving, "_let_run", hangs)
    restores = asyncio.create_task(saving.restore(path))
    await reached.wait()
    await kill(there, saving, restores)
    await take_up(there)
    assert_runs(there, link, 3)


async def test_a_save_that_is_cancelled_while_its_storage_hangs(
    hosts: tuple[Host, Host], link: WatchedLink, path: str
) -> None:
    """The guest never stopped; what the storage makes later is removed again, and its descriptors are closed."""
    here, _ = hosts
    files = Slow()
    saving = saving_of(here, files)
    before = len(list(Path("/proc/self/fd").iterdir()))
    saves = asyncio.create_task(saving.save(GUEST, path))
    await asyncio.to_thread(files.reached.wait, 20)
    await saving.cancel(GUEST)
    with pytest.raises(Refused):
        await saves
    assert_runs(here, link, 1)
    files.answers.set()
    await wait_until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before, "nothing is open")
    await wait_until(lambda: names(path) == [], "nothing is left")


async def test_a_restore_that_is_cut_off_while_its_storage_hangs(
    hosts: tuple[Host, Host], link: WatchedLink, path: str
) -> None:
    """The file has its name again when the storage answers."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    files = Slow()
    restores = asyncio.create_task(saving_of(there, files).restore(path))
    await asyncio.to_thread(files.reached.wait, 20)
    restores.cancel()
    await asyncio.sleep(0.05)
    files.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await restores
    assert names(path) == ["web-7.guest"]
    assert_gone(there, link)


async def test_what_is_not_undone_is_tried_again(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """A QEMU that does not answer at first; nobody else gets the guest meanwhile."""
    here, _ = hosts
    link.file_fault = FaultAction.FAIL
    saving = saving_of(here)
    process = here.guests.process(GUEST)
    assert isinstance(process, FakeGuestProcess)
    assert isinstance(here.hypervisor, FakeHypervisor)
    saves = asyncio.create_task(saving.save(GUEST, path))
    await wait_until(lambda: process.qemu.stream is not None, "it is written")
    here.hypervisor.refuse_next("cont", Broken("not yet"))
    with pytest.raises(Broken):
        await saves
    assert names(path) == []
    assert_runs(here, link, 1)


async def test_a_file_that_gets_no_name_gets_it_later(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """Somebody is in the way: he is told, the guest stays held, and when he has gone it is in its file."""
    here, there = hosts
    files = Halting("publish", behind=False)
    saving = saving_of(here, files)
    saves = asyncio.create_task(saving.save(GUEST, path))
    await files.reached.wait()
    Path(path).unlink()
    Path(path).write_text("mine")
    files.go_on.set()
    with pytest.raises(Broken, match="another file by now"):
        await saves
    assert here.guests.busy_with(GUEST) == f"save to {path}"
    assert Path(path).read_text() == "mine"
    Path(path).unlink()
    await wait_until(lambda: here.guests.busy_with(GUEST) is None, "it is in its file")
    assert_gone(here, link)
    await saving_of(there).restore(path)
    assert_runs(there, link, 3)


@pytest.mark.parametrize("turns", range(12))
async def test_a_pause_around_the_commit(hosts: tuple[Host, Host], link: WatchedLink, path: str, turns: int) -> None:
    """Whoever is told that the guest is paused finds it paused; whoever comes later is told that it is gone."""
    here, _ = hosts
    files = Halting("seal", behind=True)
    saves = asyncio.create_task(saving_of(here, files).save(GUEST, path))
    await files.reached.wait()
    files.go_on.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    try:
        await here.guests.pause(GUEST)
    except (NotFound, BadInput):
        paused = False
    else:
        paused = True
    assert (await saves).running is not paused


async def test_a_qemu_that_answers_nothing_is_given_up_in_time(
    hosts: tuple[Host, Host], link: WatchedLink, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore ends, and the file has its name again."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    monkeypatch.setattr(saving_module, "_STALL_S", 0.2)
    link.file_fault = FaultAction.HANG
    restores = asyncio.create_task(saving_of(there).restore(path))
    await wait_until(lambda: bool(link.alive()) and link.alive()[0].incoming_status is not None, "a QEMU loads it")
    await asyncio.sleep(0.05)
    link.alive()[0].deaf = True
    with pytest.raises(TimedOut):
        await restores
    assert_gone(there, link)
    assert names(path) == ["web-7.guest"]


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("step", ["seal", "publish"])
async def test_an_agent_that_dies_while_it_saves(
    hosts: tuple[Host, Host], link: WatchedLink, path: str, step: str, behind: bool
) -> None:
    """Before the commit the guest goes on and the file goes; behind it the file is finished and the guest's end too."""
    here, there = hosts
    files = Halting(step, behind=behind)
    saving = saving_of(here, files)
    saves = asyncio.create_task(saving.save(GUEST, path))
    await files.reached.wait()
    await kill(here, saving, saves)
    await take_up(here)
    if step == "seal":
        assert names(path) == []
        assert_runs(here, link, 1)
    else:
        assert_gone(here, link)
        await saving_of(there).restore(path)
        assert_runs(there, link, 3)


async def test_an_agent_that_dies_while_qemu_writes(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """QEMU is told to give it up, and the guest goes on."""
    here, _ = hosts
    link.file_fault = FaultAction.HANG
    saving = saving_of(here)
    saves = asyncio.create_task(saving.save(GUEST, path))
    await wait_until(
        lambda: names(path) == ["web-7.guest", "web-7.guest.partial-ID"] and not link.running(), "it is written"
    )
    await kill(here, saving, saves)
    await take_up(here)
    assert names(path) == []
    assert_runs(here, link, 1)


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
async def test_an_agent_that_dies_when_it_has_restored(
    hosts: tuple[Host, Host], link: WatchedLink, path: str, behind: bool
) -> None:
    """The guest is its own by then: the next agent uses the file up and lets the guest run."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    files = Halting("consume", behind=behind)
    saving = saving_of(there, files)
    restores = asyncio.create_task(saving.restore(path))
    await files.reached.wait()
    await kill(there, saving, restores)
    await take_up(there)
    assert_runs(there, link, 3)
    assert names(path) == ["web-7.guest.restored-ID"]


async def test_an_agent_that_dies_while_qemu_loads(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """What was loaded is ended, and the file can be restored by anybody."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    link.file_fault = FaultAction.HANG
    saving = saving_of(there)
    restores = asyncio.create_task(saving.restore(path))
    await wait_until(lambda: len(link.alive()) == 1, "a QEMU loads it")
    await kill(there, saving, restores)
    await take_up(there)
    assert_gone(there, link)
    link.file_fault = None
    await saving_of(here).restore(path)
    assert_runs(here, link, 3)
