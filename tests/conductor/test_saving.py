"""Guests that go into a file and come out of it: exactly one owner, whatever fails or dies on the way."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from tests.conductor.fakes import WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, wait_until

from vmferry.conductor.saving import GuestSaving, SavingCalls
from vmferry.core.errors import BadInput, Broken, GuestBusy, NotFound, Refused
from vmferry.core.host import QemuFacts
from vmferry.core.ids import GuestName
from vmferry.core.saved import SavedGuest
from vmferry.links.state_file import GuestStateFiles
from vmferry.ports.store import Saving
from vmferry.testing.fake_hypervisor import FAKE_FACTS
from vmferry.testing.fake_qemu import FaultAction


class Halting(GuestStateFiles):
    """Files whose agent comes to a halt in a chosen step, before it is done or behind it.

    Args:
        step: which.
        behind: behind it.
    """

    def __init__(self, step: str, *, behind: bool) -> None:
        super().__init__(lambda _: None)
        self.reached = asyncio.Event()
        self._halt = (step, behind)

    async def _pass(self, step: str, *, behind: bool) -> None:
        if self._halt == (step, behind):
            self.reached.set()
            await asyncio.Event().wait()

    async def seal(self, path: str, saved: SavedGuest) -> SavedGuest:
        await self._pass("seal", behind=False)
        sealed = await super().seal(path, saved)
        await self._pass("seal", behind=True)
        return sealed

    async def publish(self, path: str) -> None:
        await self._pass("publish", behind=False)
        await super().publish(path)
        await self._pass("publish", behind=True)

    async def consume(self, path: str, claim: str) -> None:
        await self._pass("consume", behind=False)
        await super().consume(path, claim)
        await self._pass("consume", behind=True)


class Agent(GuestSaving):
    """What saves and restores, in an agent that can be killed: then nothing is undone."""

    killed = False

    async def _undo_save(self, saving: Saving) -> None:
        if self.killed:
            raise Broken("killed")
        await super()._undo_save(saving)

    async def _undo_restore(self, saving: Saving) -> None:
        if self.killed:
            raise Broken("killed")
        await super()._undo_restore(saving)


async def check_nothing(saved: SavedGuest) -> None:
    """Refuse nobody."""


async def qemu() -> QemuFacts:
    """Return what the fakes can do."""
    return FAKE_FACTS


def saving_of(host: Host, files: GuestStateFiles | None = None) -> Agent:
    """Return what saves and restores on a host."""
    return Agent(host.guests, files or GuestStateFiles(lambda _: None), SavingCalls(qemu, check_nothing))


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where nothing is yet."""
    directory = tmp_path / "saved"
    directory.mkdir()
    return str(directory / "web-7.guest")


def names(path: str) -> list[str]:
    """Return what is in the directory."""
    return sorted(one.name for one in Path(path).parent.iterdir())


def assert_runs(host: Host, link: WatchedLink, epoch: int) -> None:
    """The guest runs on this host and nowhere else, and never ran twice."""
    row = host.guests.row(GUEST)
    assert (row.token.owner, row.token.epoch, row.token.running) == (host.name, epoch, True)
    process = qemu_of(host, link)
    assert process is not None
    assert [process] == link.running()
    assert link.doubled == []
    assert host.guests.busy_with(GUEST) is None
    assert list(host.journal.savings()) == []


def assert_gone(host: Host, link: WatchedLink) -> None:
    """Nothing of the guest is on this host."""
    assert host.journal.guest(GUEST) is None
    assert link.alive() == []
    assert list(host.journal.savings()) == []


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
    assert names(path) == ["web-7.guest.restored"]


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
    with pytest.raises(BadInput, match="there is no memory to save"):
        await saving.save(GUEST, path)
    assert names(path) == []
    with pytest.raises(NotFound):
        await saving_of(there).restore(path)


async def test_a_name_that_is_taken_is_told(hosts: tuple[Host, Host], link: WatchedLink, path: str) -> None:
    """Before the file is claimed."""
    here, there = hosts
    await saving_of(here).save(GUEST, path)
    await saving_of(there).restore(path)
    Path(f"{path}.restored").rename(path)  # as somebody who knows better
    with pytest.raises(Refused, match="is taken"):
        await saving_of(there).restore(path)
    assert names(path) == ["web-7.guest"]
    assert_runs(there, link, 3)


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
    await wait_until(lambda: names(path) == ["web-7.guest.partial"] and not link.running(), "it is written")
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
    assert link.running() == []
    await kill(there, saving, restores)
    await take_up(there)
    assert_runs(there, link, 3)
    assert names(path) == ["web-7.guest.restored"]


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


async def kill(host: Host, saving: Agent, working: asyncio.Task[object]) -> None:
    """Have an agent die in the middle of something; the next one takes its processes over."""
    saving.killed = True
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError, Broken):
        await working
    await host.guests.close()
    host.build()
    await host.guests.adopt_all()


async def take_up(host: Host) -> None:
    """Have what an earlier agent left taken up to its end."""
    saving = saving_of(host)
    assert saving.recover() == [GUEST]
    await wait_until(lambda: host.guests.busy_with(GUEST) is None, "it is taken up")
