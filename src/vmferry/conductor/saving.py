"""Guests that go into files and come back out of them: a hand-over whose other side is a file.

The file owns its guest from the moment on at which the journal says so, and until a host acquires it. Both moments are
one durable write of the guest's token; everything before is undone after a crash, everything behind is finished.

    save     stop, write FILE.partial, seal it  |  token: the file's   |  FILE gets its name, QEMU ends, the row goes
    restore  claim FILE, load it in a QEMU that stands  |  token: ours  |  the guest runs, the file is used up

The claim is one rename: of two that restore at once one finds the file. A file is never restored twice, since a guest
that went on after it was saved must not run beside an older self on the same disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from vmferry.conductor.guests import Guests
from vmferry.conductor.plan import UNLIMITED
from vmferry.conductor.source_qemu import undo_migration
from vmferry.core.capabilities import Level, Transport, Wanted, Wish, choose
from vmferry.core.errors import BadInput, Broken, VmferryError
from vmferry.core.guest import Desired
from vmferry.core.host import QemuFacts
from vmferry.core.ids import Epoch, GuestName
from vmferry.core.migration import MigrationStatus, RunState
from vmferry.core.saved import SAVED, SavedGuest
from vmferry.core.units import Bytes, Milliseconds
from vmferry.ports.hypervisor import GuestProcess, MigrationSetup
from vmferry.ports.state_file import StateFile, StateFiles
from vmferry.ports.store import GuestRow, Saving, SavingKind, Token

_log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.05
_MAPPED = "mapped-ram"
_OVER = frozenset({MigrationStatus.FAILED, MigrationStatus.CANCELLED})
_LIMIT_MS = Milliseconds(300.0)  # of no use: the guest stands still already


@dataclasses.dataclass(frozen=True, slots=True)
class SavingCalls:
    """What saving and restoring need of the agent around.

    Args:
        qemu: what QEMU on this host can do.
        check: refuses a guest that cannot run on this host, all reasons at once, before anything is touched.
    """

    qemu: Callable[[], Awaitable[QemuFacts]]
    check: Callable[[SavedGuest], Awaitable[None]]


class GuestSaving:
    """Saves guests of this host and restores them here.

    Args:
        guests: this host's guests, with the journal.
        files: the files.
        calls: the agent around.
    """

    def __init__(self, guests: Guests, files: StateFiles, calls: SavingCalls) -> None:
        self._guests = guests
        self._journal = guests.journal
        self._files = files
        self._calls = calls
        self._recovering: set[asyncio.Task[None]] = set()

    # -- into a file ----------------------------------------------------------------------------------------------

    async def save(self, name: GuestName, path: str) -> SavedGuest:
        """Write a guest into a file and end it here; on failure it goes on as before, and no file is left.

        Args:
            name: a guest of this host; it may be paused.
            path: a file that does not exist, below a directory that guests may use.

        Raises:
            NotFound: no such guest here.
            BadInput: it does not run, or the file cannot have that name.
            GuestBusy: something else holds it.
            Refused: there is no room.
            Broken: QEMU could not write it.
        """
        async with self._guests.operation(name, f"save to {path}"):
            row, process = self._guests.row(name), self._guests.process(name)
            if process is None:
                raise BadInput(
                    f"Guest {name} does not run: there is no memory to save", fix="its disks are all there is"
                )
            saving = Saving(secrets.token_hex(8), name, SavingKind.SAVE, path)
            setup = await self._setup()
            async with self._noted(saving, lambda: self._undo_save(saving)):
                file = await self._files.create(path, row.guest.spec.memory_bytes)
                with contextlib.closing(file):
                    await self._write(process, file, setup)
                saved = await self._files.seal(path, await self._describe(row, setup))
                # The commit: from here on the file's.
                token = Token(saved.epoch, SAVED, running=saved.running)
                self._guests.put(row, token=token, note=f"saved in {path}")
            await self._finish_save(saving)
            return saved

    async def _setup(self) -> MigrationSetup:
        qemu = await self._calls.qemu()
        wanted = (Wanted("events", Level.REQUIRED), Wanted("late-block-activate", Level.REQUIRED))
        for wish in (
            Wish((*wanted, Wanted(_MAPPED, Level.REQUIRED)), Transport.FILE, encrypted=False),
            Wish(wanted, Transport.PIPE, encrypted=False),
        ):
            chosen = choose(wish, qemu, qemu, frozenset())
            if not chosen.blockers:
                return MigrationSetup(dict(chosen.capabilities), UNLIMITED, _LIMIT_MS, dict(chosen.parameters))
        raise Broken(
            f"QEMU on {self._guests.settings.name} cannot write a guest into a file: {chosen.blockers[0].what}"
        )

    async def _describe(self, row: GuestRow, setup: MigrationSetup) -> SavedGuest:
        now = self._guests.row(row.guest.spec.name).token  # an operator may have paused it meanwhile
        return SavedGuest(
            guest=row.guest,
            epoch=Epoch(now.epoch + 1),
            running=now.running,
            host=self._guests.settings.name,
            qemu=(await self._calls.qemu()).version,
            mapped=bool(setup.capabilities.get(_MAPPED)),
            saved_at=time.time(),
            state_bytes=Bytes(0),
            sha256="",
        )

    async def _write(self, process: GuestProcess, file: StateFile, setup: MigrationSetup) -> None:
        await process.stop()
        await process.prepare_migration(setup, incoming=False)
        await process.save_to(file)
        await self._wait_over(process, RunState.POSTMIGRATE)

    async def _wait_over(self, process: GuestProcess, state: RunState) -> None:
        """Wait until QEMU says that all is written, or loaded, and is in that state.

        Raises:
            Broken: it failed; in QEMU's words.
        """
        while True:
            sample = await process.query_migration()
            if sample.status in _OVER:
                raise Broken(f"QEMU says that it {sample.status}: {sample.error or 'it gave no reason'}")
            if sample.status is MigrationStatus.COMPLETED and await process.query_run_state() is state:
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _undo_save(self, saving: Saving) -> None:
        """Let the guest go on as it was, and remove what there is of its file; tried until QEMU answers or is dead."""
        while (process := self._guests.process(saving.guest)) is not None:
            try:
                sample = await process.query_migration()
                await undo_migration(process, sample, lambda: self._shall_run(saving.guest), resumes=False)
                break
            except VmferryError as error:
                _log.warning("guest does not go on yet after its save failed", guest=saving.guest, error=str(error))
                await asyncio.sleep(_LOOK_EVERY_S)
        await self._files.discard(saving.path)

    def _shall_run(self, name: GuestName) -> bool:
        return self._guests.row(name).token.running

    async def _finish_save(self, saving: Saving) -> None:
        """Give the file its name and end the guest here; a repeat changes nothing."""
        await self._files.publish(saving.path)
        await self._guests.let_go(saving.guest)
        self._journal.end_saving(saving.id)

    # -- out of it ------------------------------------------------------------------------------------------------

    async def restore(self, path: str) -> GuestName:
        """Have a guest go on here as it was when it was saved; on failure the file is as before, and nothing is left.

        Args:
            path: the file.

        Raises:
            NotFound: there is no such file, or it was restored, or somebody restores it.
            BadInput: it is no such file, or the guest cannot run on this host; all reasons at once.
            Broken: it is damaged, or QEMU could not load it.
        """
        saved = await self._files.read(path)
        name = saved.guest.spec.name
        self._guests.check_free(name)
        await self._calls.check(saved)
        async with self._guests.operation(name, f"restore from {path}"):
            saving = Saving(secrets.token_hex(8), name, SavingKind.RESTORE, path)
            async with self._noted(saving, lambda: self._undo_restore(saving)):
                file = await self._files.claim(path, saving.id)
                with contextlib.closing(file):
                    await self._load(saved, file)
                # The commit: from here on ours.
                token = Token(Epoch(saved.epoch + 1), self._guests.settings.name, saved.running, saved.running)
                desired = Desired.RUNNING if saved.running else Desired.PAUSED
                self._guests.put(self._row(name), token=token, desired=desired, note=None)
            await self._finish_restore(saving)
            return name

    async def _load(self, saved: SavedGuest, file: StateFile) -> None:
        row = self._guests.arrival(saved.guest, saved.epoch, SAVED, running=saved.running)
        await self._guests.launch(row, incoming=True)
        process = self._guests.process(row.guest.spec.name)
        if process is None:
            raise Broken(f"QEMU of guest {row.guest.spec.name} ended before it loaded it")
        on = {"events": True, "late-block-activate": True, **({_MAPPED: True} if saved.mapped else {})}
        await process.prepare_migration(MigrationSetup(on, UNLIMITED, _LIMIT_MS), incoming=True)
        await process.load_from(file)
        await self._wait_over(process, RunState.PAUSED)

    def _row(self, name: GuestName) -> GuestRow:
        row = self._journal.guest(name)
        if row is None:
            raise Broken(f"Guest {name} is not in the journal any more")
        return row

    async def _undo_restore(self, saving: Saving) -> None:
        """Leave nothing here, and give the file its name back."""
        await self._guests.kill(saving.guest)
        await self._guests.forget(saving.guest)
        await self._files.give_back(saving.path, saving.id)

    async def _finish_restore(self, saving: Saving) -> None:
        """Use the file up, then let the guest run; a repeat starts nothing twice.

        A guest that QEMU does not start (an image is locked elsewhere) stays here, stopped: `guest resume` tries again.
        """
        await self._files.consume(saving.path, saving.id)
        self._journal.end_saving(saving.id)
        process = self._guests.process(saving.guest)
        if process is None:
            return
        if self._shall_run(saving.guest) and await process.query_run_state() is RunState.PAUSED:
            await process.cont()
            await process.announce()
        await process.cleanup_migration()

    # -- either way -----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _noted(self, saving: Saving, undo: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Note what begins, and undo it when it fails."""
        self._journal.begin_saving(saving)
        try:
            yield
        except BaseException:
            await asyncio.shield(undo())
            self._journal.end_saving(saving.id)
            raise

    def recover(self) -> list[GuestName]:
        """Take up what an earlier agent left, each in the background; returns the guests concerned."""
        savings = self._journal.savings()
        for saving in savings:
            self._guests.claim_again(saving.guest, f"{saving.kind} {saving.path}")
            self._recovering.add(
                task := asyncio.create_task(self._recover(saving), name=f"{saving.kind}:{saving.guest}")
            )
            task.add_done_callback(self._recovering.discard)
        return [saving.guest for saving in savings]

    async def _recover(self, saving: Saving) -> None:
        await self._guests.adopted(saving.guest)
        row = self._journal.guest(saving.guest)
        owner = None if row is None else row.token.owner
        here = owner == self._guests.settings.name
        try:
            if saving.kind is SavingKind.SAVE:
                await (self._undo_save(saving) if here else self._finish_save(saving))
            else:
                await (self._finish_restore(saving) if here else self._undo_restore(saving))
            self._journal.end_saving(saving.id)
        except VmferryError as error:  # noted still: the next agent tries again, and so does a person who restarts it
            _log.error(
                "unfinished save or restore could not be taken up",
                guest=saving.guest,
                file=saving.path,
                error=str(error),
            )
        finally:
            self._guests.unclaim(saving.guest, f"{saving.kind} {saving.path}")

    async def close(self) -> None:
        """Stop driving; what is noted is taken up by the next agent."""
        for task in self._recovering:
            task.cancel()
        await asyncio.gather(*self._recovering, return_exceptions=True)
