"""Guests that go into files and come back out of them: a hand-over whose other side is a file.

The file owns its guest from the moment on at which the journal says so, and until a host acquires it. Both moments are
one durable write, of the guest's token and of "committed" together: what is not committed is undone after a crash, what
is committed is finished.

    save     stop, write FILE.partial-ID, seal it  |  committed  |  QEMU ends, FILE gets its name, the row goes
    restore  claim FILE, load it in a QEMU that stands  |  committed  |  the guest runs, the file is used up

The claim is one rename: of two that restore at once one finds the file. A file is never restored twice, since a guest
that went on after it was saved must not run beside an older self on the same disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from vmferry.conductor.guests import Guests
from vmferry.conductor.plan import UNLIMITED
from vmferry.conductor.source_qemu import undo_migration
from vmferry.core.capabilities import Level, Transport, Wanted, Wish, choose
from vmferry.core.device_claims import addresses_of, attached_blocker
from vmferry.core.errors import BadInput, Blocked, Broken, GuestBusy, NotFound, Refused, TimedOut, VmferryError
from vmferry.core.guest import Desired
from vmferry.core.host import QemuFacts
from vmferry.core.ids import Epoch, GuestName
from vmferry.core.migration import MigrationStatus, RunState
from vmferry.core.saved import SAVED, SavedGuest
from vmferry.core.units import Bytes, Milliseconds
from vmferry.core.wanted_devices import wanted_devices
from vmferry.ports.hypervisor import GuestProcess, MigrationSetup
from vmferry.ports.state_file import StateFiles
from vmferry.ports.store import GuestRow, Saving, SavingKind, Token

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_LOOK_EVERY_S = 0.05
#: Begins what a guest is busy with while it is saved.
_SAVE = "save to "
_MAPPED = "mapped-ram"
_OVER = frozenset({MigrationStatus.FAILED, MigrationStatus.CANCELLED})
_SAVEABLE = frozenset({RunState.RUNNING, RunState.PAUSED})
#: So long a guest stands still for a file into which nothing goes any more.
_STALL_S = 60.0
#: Bytes per second; while it loads QEMU tells of no progress.
_SLOWEST_LOAD = 10 << 20
#: QEMU's run state follows its last status within milliseconds.
_SETTLES_S = 5.0
_UNDO_LIMIT_S = 60.0
_LONGEST_PAUSE_S = 10.0
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
        self._writing: dict[GuestName, asyncio.Task[Any]] = {}  #: saves before their commit
        self._recovering: set[asyncio.Task[None]] = set()

    # -- into a file ----------------------------------------------------------------------------------------------

    async def save(self, name: GuestName, path: str) -> SavedGuest:
        """Write a guest into a file and end it here; on failure it goes on as before, and no file is left.

        Args:
            name: a guest of this host that runs or is paused.
            path: a file that does not exist, below a directory that guests may use.

        Raises:
            NotFound: no such guest here.
            BadInput: it neither runs nor is paused, or the file cannot have that name.
            Blocked: it has a device of its host.
            GuestBusy: something else holds it.
            Refused: there is no room.
            Broken: QEMU could not write it, or wrote nothing for a minute.
        """
        await asyncio.to_thread(self._files.check_path, path)
        async with self._guests.operation(name, f"{_SAVE}{path}") as operation:
            row, process = self._guests.row(name), await self._saveable(name)
            setup = await self._setup()
            saving = Saving(secrets.token_hex(8), name, SavingKind.SAVE, path)
            self._journal.begin_saving(saving)
            try:
                saved, saving = await self._cancellable(name, self._write(row, process, saving, setup))
                await self._finish_save(saving)
            except BaseException:
                saving = self._noted(saving)
                if saving.committed:  # nothing leads back: somebody goes on with it, and with the guest
                    operation.keep()
                    self._begin(self._finish_later(saving, f"{_SAVE}{path}"))
                else:
                    await asyncio.shield(self._begin(self._repeat(saving, self._undo_save)))
                raise
            return saved

    def _noted(self, saving: Saving) -> Saving:
        return next((one for one in self._journal.savings() if one.id == saving.id), saving)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._recovering.add(task)
        task.add_done_callback(self._recovering.discard)
        return task

    async def _repeat(self, saving: Saving, work: Callable[[Saving], Awaitable[None]]) -> None:
        """Do what must be done until it is: QEMU may hang with its storage, which comes back."""
        pause = _LOOK_EVERY_S
        while True:
            try:
                await work(saving)
            except (VmferryError, TimeoutError, OSError) as error:
                _log.warning(
                    f"unfinished {saving.kind}, tried again", guest=saving.guest, file=saving.path, error=str(error)
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                return

    async def _finish_later(self, saving: Saving, claim: str) -> None:
        try:
            await self._repeat(saving, self._finish_save)
        finally:
            self._guests.unclaim(saving.guest, claim)

    async def _cancellable(self, name: GuestName, writing: Coroutine[Any, Any, _T]) -> _T:
        """Wait for what `cancel` may end.

        Raises:
            Refused: an operator ended it.
        """
        task = asyncio.create_task(writing, name=f"save:{name}")
        self._writing[name] = task
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            del self._writing[name]
        if task.cancelled():
            raise Refused(f"The save of guest {name} was cancelled by an operator", owner=self._guests.settings.name)
        return task.result()

    async def cancel(self, name: GuestName) -> None:
        """Give a save up before its commit, and wait until the guest goes on.

        Raises:
            NotFound: the guest is not being saved, or it is in its file already.
        """
        task = self._writing.get(name)
        if task is None or not task.cancel():
            raise NotFound(
                f"Guest {name} is not being saved on host {self._guests.settings.name}, or is in its file already",
                fix="see `vmferry guest list`; a guest in a file goes on with `vmferry restore`",
            )
        while (self._guests.busy_with(name) or "").startswith(_SAVE):  # noqa: ASYNC110 - rare, and soon over
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _saveable(self, name: GuestName) -> GuestProcess:
        process = self._guests.process(name)
        state = None if process is None else await process.query_run_state()
        if process is None or state not in _SAVEABLE:
            fixes = {None: "there is no memory to save", RunState.POSTMIGRATE: f"`vmferry guest resume {name}` first"}
            raise BadInput(
                f"Guest {name} is {state or 'stopped'}: what is saved runs, or is paused",
                owner=self._guests.settings.name,
                fix=fixes.get(state, "stop it: it has ended"),
            )
        wanted = tuple(str(one) for one in wanted_devices(self._guests.row(name).guest))
        if attached := wanted or addresses_of(name, self._journal.device_claims()):
            here = self._guests.settings.name
            blocker = attached_blocker(name, here, attached)
            if wanted:
                blocker = dataclasses.replace(blocker, fix="shut it down instead: as long as it runs it is to have it")
            raise Blocked(f"Guest {name} cannot be saved", owner=here, blockers=(blocker,))
        return process

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

    async def _write(
        self, row: GuestRow, process: GuestProcess, saving: Saving, setup: MigrationSetup
    ) -> tuple[SavedGuest, Saving]:
        """Have QEMU write the state, seal it, and commit; returns what the header says."""
        file = await self._files.create(saving.path, saving.id, row.guest.spec.memory_bytes)
        with contextlib.closing(file):
            await process.stop()
            if (state := await process.query_run_state()) is not RunState.PAUSED:
                raise Broken(f"Guest {saving.guest} has ended meanwhile: it is {state}")
            await process.prepare_migration(setup, incoming=False)
            await process.save_to(file)
            await _wait_over(process, RunState.POSTMIGRATE, _STALL_S)
            size, checksum = await file.measure()
            while True:
                saved = await self._describe(row, setup, size, checksum)
                digest = await file.seal(saved)
                if saved.running == self._shall_run(saving.guest):  # else an operator paused it meanwhile
                    # Nothing may come between the two: whoever pauses it from here on is told that it is gone.
                    token = Token(saved.epoch, SAVED, running=saved.running)
                    self._journal.commit_saving(saving.id, saving.guest, token, digest)
                    return saved, dataclasses.replace(saving, committed=True, digest=digest)

    async def _describe(self, row: GuestRow, setup: MigrationSetup, size: Bytes, checksum: str) -> SavedGuest:
        token = self._guests.row(row.guest.spec.name).token
        return SavedGuest(
            guest=row.guest,
            epoch=Epoch(token.epoch + 1),
            running=token.running,
            host=self._guests.settings.name,
            qemu=(await self._calls.qemu()).version,
            mapped=bool(setup.capabilities.get(_MAPPED)),
            saved_at=time.time(),
            state_bytes=size,
            sha256=checksum,
        )

    async def _undo_save(self, saving: Saving) -> None:
        """Let the guest go on as it was, and remove what there is of its file."""
        process = self._guests.process(saving.guest)
        if process is not None:
            async with asyncio.timeout(_UNDO_LIMIT_S):
                sample = await process.query_migration()
                await undo_migration(process, sample, lambda: self._shall_run(saving.guest), resumes=False)
        await self._files.discard(saving.path, saving.id)
        self._journal.end_saving(saving.id)

    def _shall_run(self, name: GuestName) -> bool:
        return self._guests.row(name).token.running

    async def _finish_save(self, saving: Saving) -> None:
        """End the guest here, then give the file its name: its QEMU, which could write to it, is dead by then."""
        await self._guests.kill(saving.guest)
        await self._files.publish(saving.path, saving.id, saving.digest or "")
        await self._guests.forget(saving.guest)
        self._journal.end_saving(saving.id)

    # -- out of it ------------------------------------------------------------------------------------------------

    async def restore(self, path: str) -> GuestName:
        """Have a guest go on here as it was when it was saved; on failure the file is as before, and nothing is left.

        Args:
            path: the file.

        Raises:
            NotFound: there is no such file, or it was restored, or somebody writes or restores it.
            BadInput: it is no such file, or the guest cannot run on this host; all reasons at once.
            Refused: there is a guest of that name here.
            Broken: it is damaged, or QEMU could not load it; or it is here now and could not be let run.
        """
        saved = await self._files.read(path)
        name = saved.guest.spec.name
        self._guests.check_free(name)
        await self._calls.check(saved)
        async with self._guests.operation(name, f"restore from {path}"):
            self._guests.check_free(name)  # the checks have taken their time
            saving = Saving(secrets.token_hex(8), name, SavingKind.RESTORE, path)
            self._journal.begin_saving(saving)
            try:
                await self._load(saved, saving)
                token = Token(Epoch(saved.epoch + 1), self._guests.settings.name, saved.running, saved.running)
                self._journal.commit_saving(saving.id, name, token)
            except BaseException:
                if not self._noted(saving).committed:
                    await asyncio.shield(self._begin(self._repeat(saving, self._undo_restore)))
                raise
            await self._finish_restore(saving)
            return name

    async def _load(self, saved: SavedGuest, saving: Saving) -> None:
        file = await self._files.claim(saving.path, saving.id, saved)
        with contextlib.closing(file):
            row = self._guests.arrival(saved.guest, saved.epoch, SAVED, running=saved.running)
            await self._guests.launch(row, incoming=True)
            process = self._guests.process(saving.guest)
            if process is None:
                raise Broken(f"QEMU of guest {saving.guest} ended before it loaded it")
            on = {"events": True, "late-block-activate": True, **({_MAPPED: True} if saved.mapped else {})}
            await process.prepare_migration(MigrationSetup(on, UNLIMITED, _LIMIT_MS), incoming=True)
            await process.load_from(file)
            await _wait_over(process, RunState.PAUSED, _STALL_S + saved.state_bytes / _SLOWEST_LOAD)

    async def _undo_restore(self, saving: Saving) -> None:
        """Leave nothing of this restore here, and give the file its name back."""
        row = self._journal.guest(saving.guest)
        if row is not None and row.token.owner == SAVED:
            await self._guests.kill(saving.guest)
            await self._guests.forget(saving.guest)
        await self._files.give_back(saving.path, saving.id)
        self._journal.end_saving(saving.id)

    async def _finish_restore(self, saving: Saving) -> None:
        """Let the guest run, then use the file up, which nobody else finds any more; a repeat starts nothing twice.

        Raises:
            Broken: QEMU does not start it (an image is locked elsewhere): it stays here, stopped.
        """
        row, process = self._journal.guest(saving.guest), self._guests.process(saving.guest)
        failure: VmferryError | None = None
        if row is not None and row.token.owner == self._guests.settings.name:
            self._guests.put(row, note=None, desired=Desired.RUNNING if row.token.running else Desired.PAUSED)
            try:
                if process is not None:
                    await self._guests.leases.take_patiently(saving.guest)
                    await self._let_run(saving.guest, process)
            except VmferryError as error:
                failure = error
        await self._guests.flush_tpm(saving.guest)
        try:
            await self._files.consume(saving.path, saving.id)
        except VmferryError as error:
            _log.warning("a file that was restored keeps a name of its own", guest=saving.guest, error=str(error))
        self._journal.end_saving(saving.id)  # not when this was cancelled: the next agent lets it run
        self._guests.on_changed(saving.guest)
        if failure is not None:
            raise failure

    async def _let_run(self, name: GuestName, process: GuestProcess) -> None:
        if self._shall_run(name) and await process.query_run_state() is RunState.PAUSED:
            try:
                await process.cont()
            except VmferryError as error:
                error.owner, error.fix = self._guests.settings.name, f"try again: `vmferry guest resume {name}`"
                raise
            with contextlib.suppress(VmferryError):
                await process.announce()
        with contextlib.suppress(VmferryError):
            await process.cleanup_migration()

    # -- either way -----------------------------------------------------------------------------------------------

    def recover(self) -> list[GuestName]:
        """Take up what an earlier agent left, each in the background; returns the guests concerned."""
        concerned = []
        for saving in self._journal.savings():
            concerned.append(saving.guest)
            try:
                self._guests.claim_again(saving.guest, _claim_of(saving))
            except GuestBusy as error:  # a hand-over goes first; this waits for the next start
                _log.warning("a save or restore is not taken up yet", guest=saving.guest, error=str(error))
                continue
            self._begin(self._recover(saving))
        return concerned

    async def _recover(self, saving: Saving) -> None:
        try:
            await self._guests.adopted(saving.guest)
            if not saving.committed:
                is_save = saving.kind is SavingKind.SAVE
                await self._repeat(saving, self._undo_save if is_save else self._undo_restore)
            elif saving.kind is SavingKind.SAVE:
                await self._repeat(saving, self._finish_save)
            else:
                await self._finish_restore(saving)
        except VmferryError as error:
            _log.error("a guest that was restored cannot be let run", guest=saving.guest, error=str(error))
        finally:
            self._guests.unclaim(saving.guest, _claim_of(saving))

    async def close(self) -> None:
        """Stop driving; what is noted is taken up by the next agent."""
        for task in self._recovering:
            task.cancel()
        await asyncio.gather(*self._recovering, return_exceptions=True)


def _claim_of(saving: Saving) -> str:
    return f"{saving.kind} {saving.path}"


async def _wait_over(process: GuestProcess, state: RunState, limit_s: float) -> None:
    """Wait until QEMU says that all is written, or loaded, and is in that state.

    QEMU may answer nothing while it loads: its main loop does that.

    Args:
        process: the guest's QEMU.
        state: in which it then is.
        limit_s: for nothing moving.

    Raises:
        Broken: it failed, in QEMU's words; nothing moves any more; or it ends in another state.
    """
    loop = asyncio.get_running_loop()
    moved, since = Bytes(-1), loop.time()
    while True:
        try:
            sample = await process.query_migration()
        except TimedOut:
            if not process.is_alive() or loop.time() - since > limit_s:
                raise
            await asyncio.sleep(_LOOK_EVERY_S)
            continue
        if sample.status in _OVER:
            raise Broken(f"QEMU says that it {sample.status}: {sample.error or 'it gave no reason'}")
        if sample.transferred_bytes != moved:
            moved, since = sample.transferred_bytes, loop.time()
        if sample.status is MigrationStatus.COMPLETED:
            if (seen := await process.query_run_state()) is state:
                return
            if loop.time() - since > _SETTLES_S:
                raise Broken(f"QEMU says that it completed, and is {seen}, not {state}")
        elif loop.time() - since > limit_s:
            raise Broken(f"QEMU has moved nothing for {limit_s:.0f} s (it says {sample.status})")
        await asyncio.sleep(_LOOK_EVERY_S)
