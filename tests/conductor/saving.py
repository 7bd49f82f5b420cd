"""What tests of saved guests share: files and agents that come to a halt, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.conductor.fakes import WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, wait_until

from vmferry.conductor.saving import GuestSaving, SavingCalls
from vmferry.core.errors import Broken
from vmferry.core.host import QemuFacts
from vmferry.core.saved import SavedGuest
from vmferry.core.units import Bytes
from vmferry.links.state_file import GuestStateFiles, OpenNewStateFile, OpenStateFile
from vmferry.ports.store import Saving
from vmferry.testing.fake_hypervisor import FAKE_FACTS


class HaltingFile:
    """A file that is sealed when the test lets it be."""

    def __init__(self, real: OpenNewStateFile, files: Halting) -> None:
        self._real = real
        self._files = files
        self.offset = real.offset

    def fileno(self) -> int:
        return self._real.fileno()

    def close(self) -> None:
        self._real.close()

    async def measure(self) -> tuple[Bytes, str]:
        return await self._real.measure()

    async def seal(self, saved: SavedGuest) -> str:
        await self._files.halt("seal", behind=False)
        digest = await self._real.seal(saved)
        await self._files.halt("seal", behind=True)
        return digest


class Halting(GuestStateFiles):
    """Files whose agent comes to a halt in a chosen step, before it is done or behind it.

    Args:
        step: which.
        behind: behind it.
    """

    def __init__(self, step: str, *, behind: bool) -> None:
        super().__init__(lambda _: None)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self._halt = (step, behind)

    async def halt(self, step: str, *, behind: bool) -> None:
        if self._halt == (step, behind) and not self.reached.is_set():
            self.reached.set()
            await self.go_on.wait()

    async def create(self, path: str, mark: str, needed: Bytes) -> HaltingFile:  # type: ignore[override]
        return HaltingFile(await super().create(path, mark, needed), self)

    async def publish(self, path: str, mark: str, digest: str) -> None:
        await self.halt("publish", behind=False)
        await super().publish(path, mark, digest)
        await self.halt("publish", behind=True)

    async def claim(self, path: str, mark: str, expected: SavedGuest) -> OpenStateFile:
        await self.halt("claim", behind=False)
        return await super().claim(path, mark, expected)

    async def consume(self, path: str, mark: str) -> None:
        await self.halt("consume", behind=False)
        await super().consume(path, mark)
        await self.halt("consume", behind=True)


class Agent(GuestSaving):
    """What saves and restores, in an agent that can be killed: then nothing is undone or finished."""

    killed = False

    async def _repeat(self, saving: Saving, work: Callable[[Saving], Awaitable[None]]) -> None:
        if not self.killed:
            await super()._repeat(saving, work)


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
    """Return what is in the directory, without ids."""
    return sorted(re.sub("-[0-9a-f]{16}$", "-ID", one.name) for one in Path(path).parent.iterdir())


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


class Slow(GuestStateFiles):
    """Files on storage that does not answer until the test lets it."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.reached, self.answers = threading.Event(), threading.Event()

    def _wait(self) -> None:
        self.reached.set()
        assert self.answers.wait(20)

    def _create(self, path: str, mark: str, needed: Bytes) -> OpenNewStateFile:
        self._wait()
        return super()._create(path, mark, needed)

    def _claim(self, path: str, mark: str, expected: SavedGuest) -> OpenStateFile:
        self._wait()
        return super()._claim(path, mark, expected)


async def kill(host: Host, saving: Agent, working: asyncio.Task[object]) -> None:
    """Have an agent die in the middle of something; the next one takes its processes over."""
    saving.killed = True
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError, Broken):
        await working
    await saving.close()
    await host.guests.close()
    host.build()
    await host.guests.adopt_all()


async def take_up(host: Host) -> None:
    """Have what an earlier agent left taken up to its end."""
    saving = saving_of(host)
    assert saving.recover() == [GUEST]
    await wait_until(lambda: host.guests.busy_with(GUEST) is None, "it is taken up")
