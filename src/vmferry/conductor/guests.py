"""The guests of this host: what the journal says of each, and its process while there is one.

The journal's row is the truth about ownership; a process handle is only how we talk to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import structlog

from vmferry.conductor.busy import STOPPING, WAIT_FOR_GUEST, Operation, way_out
from vmferry.conductor.guest_leases import GuestLeases
from vmferry.conductor.tpm_states import TpmStates
from vmferry.core.device_claims import addresses_of
from vmferry.core.errors import BadInput, GuestBusy, NotFound, Refused, TimedOut, VmferryError
from vmferry.core.guest import Desired, FrozenGuest, GuestSpec
from vmferry.core.ids import Epoch, GuestName, HostName, is_name
from vmferry.ports.disk_leases import DiskLeases, NoDiskLeases
from vmferry.ports.hypervisor import (
    GuestEvent,
    GuestEventKind,
    GuestProcess,
    HostResources,
    Hypervisor,
    RunState,
)
from vmferry.ports.store import GuestRow, Journal, Token

_log = structlog.get_logger(__name__)

#: Why a guest stopped, by the event that says so; written into its row.
_NOTES = {
    GuestEventKind.POWERED_OFF: "powered off by the guest",
    GuestEventKind.PANICKED: "guest panicked",
    GuestEventKind.EXITED: "its QEMU process ended unexpectedly",
    GuestEventKind.TPM_ENDED: "its TPM's emulator ended: the TPM fails until the guest is stopped and started",
    GuestEventKind.IO_ERROR: "stopped on an I/O error of its disk",
}
#: Run states in which a guest's RAM is whole and its vCPUs stand: `cont` makes it go on.
_RESUMABLE = frozenset({RunState.PAUSED, RunState.PRELAUNCH, RunState.POSTMIGRATE, RunState.IO_ERROR})
#: Run states of a guest that has ended while its process stays.
_ENDED = frozenset({RunState.SHUTDOWN, RunState.PANICKED})
_STOPPED_SOON_S = 0.02
#: After which devices of the host may be free.
_GONE = frozenset({GuestEventKind.EXITED, GuestEventKind.UNPLUGGED})
#: The note of an arrival until it runs here.
ARRIVING = "arriving"
#: Pause before a process that lives but does not answer is asked again.
_ADOPT_AGAIN_S = 0.5
#: How long a starting agent waits for the processes that it takes over; the others follow in the background.
_ADOPT_FIRST_S = 1.0


class BeatBook(Protocol):
    """Receives the beats of this host's guests."""

    async def open(self, guest: GuestName, port: int | None) -> int:
        """Listen for a guest's beats and return the UDP port: the given one, or a new one. Idempotent."""

    async def close(self, guest: GuestName) -> None:
        """Stop listening; unknown guests are no error."""


@dataclasses.dataclass(frozen=True, slots=True)
class HostSettings:
    """What the agent's configuration says about running guests."""

    name: HostName
    run_dir: pathlib.Path
    uids: range | None  #: unprivileged uids, one per guest; None when the agent is not root
    tpm_dir: pathlib.Path  #: where the states of guests' TPMs are; survives a reboot of the host


class Guests:
    """Owns every guest of this host.

    Args:
        settings: this host.
        journal: where rows live.
        hypervisor: starts and adopts processes.
        beats: receives the guests' beats.
        leases: of their images; None: they have none.
    """

    def __init__(
        self,
        settings: HostSettings,
        journal: Journal,
        hypervisor: Hypervisor,
        beats: BeatBook,
        leases: DiskLeases | None = None,
    ) -> None:
        self.settings = settings
        self.journal = journal
        self._hypervisor = hypervisor
        self._beats = beats
        self.leases = GuestLeases(leases or NoDiskLeases(), journal.guest, self.process)
        self._tpm_states = TpmStates(settings.tpm_dir)
        self._adopting: dict[GuestName, asyncio.Task[None]] = {}
        self._reached: dict[GuestName, asyncio.Event] = {}  #: of those that are, or were, being adopted
        self._processes: dict[GuestName, GuestProcess] = {}
        self._watchers: dict[GuestName, asyncio.Task[None]] = {}
        self._busy: dict[GuestName, str] = {}
        #: why nobody may stop a guest's vCPUs now; None: anybody may
        self.why_held: Callable[[GuestName], str | None] = lambda _: None
        #: told when a guest runs here, or its process has ended, or a device of its is gone, or a hand-over is over
        self.on_changed: Callable[[GuestName], None] = lambda _: None

    # -- what there is -------------------------------------------------------------------------------------------

    def rows(self) -> list[GuestRow]:
        """Return the guests that this host owns."""
        return [row for row in self.journal.guests() if row.token.owner == self.settings.name]

    def row(self, name: GuestName) -> GuestRow:
        """Return a guest that this host owns.

        Raises:
            NotFound: there is none of that name.
        """
        row = self.journal.guest(name)
        if row is None or row.token.owner != self.settings.name:
            known = ", ".join(sorted(r.guest.spec.name for r in self.rows())) or "none"
            raise NotFound(f"Guest {name} is not on host {self.settings.name}; guests here: {known}")
        return row

    def process(self, name: GuestName) -> GuestProcess | None:
        """Return the live process of a guest or of an arrival; None when there is none."""
        process = self._processes.get(name)
        return process if process is not None and process.is_alive() else None

    def busy_with(self, name: GuestName) -> str | None:
        """Return what holds the guest's operation."""
        return self._busy.get(name)

    @contextlib.asynccontextmanager
    async def operation(self, name: GuestName, what: str) -> AsyncIterator[Operation]:
        """Hold the guest's operation.

        Raises:
            GuestBusy: somebody else holds it.
        """
        self.claim(name, what)
        operation = Operation()
        try:
            yield operation
        finally:
            if not operation.is_kept:
                self.unclaim(name, what)

    def claim(self, name: GuestName, what: str) -> None:
        """Take the guest's operation until `unclaim`.

        Raises:
            GuestBusy: somebody else holds it, or it is not certain yet whether the guest's process lives.
        """
        self._check_certain(name)
        self.claim_again(name, what)

    def claim_again(self, name: GuestName, what: str) -> None:
        """Take the operation over from an earlier agent, before anything is certain of the guest's process.

        Raises:
            GuestBusy: somebody else holds it.
        """
        if name in self._busy:
            raise GuestBusy(
                f"Guest {name} is busy with {self._busy[name]}",
                owner=self.settings.name,
                fix=way_out(name, self._busy[name]),
                retry=True,
            )
        self._busy[name] = what

    def unclaim(self, name: GuestName, what: str) -> None:
        """Give the guest's operation back; nothing happens when somebody else holds it by now. Idempotent."""
        if self._busy.get(name) == what:
            del self._busy[name]
            self._note_missed_death(name)

    def _note_missed_death(self, name: GuestName) -> None:
        """Note the end of a process that came while an operation held the guest and was none of its own."""
        process = self._processes.get(name)
        row = self.journal.guest(name)
        ours = row is not None and row.token.owner == self.settings.name and row.process is not None
        if row is not None and ours and process is not None and not process.is_alive():
            self.put(row, process=None, note=_NOTES[GuestEventKind.EXITED])

    def _check_certain(self, name: GuestName) -> None:
        """Refuse while an earlier agent's process may live without answering: a second one must never start."""
        task = self._adopting.get(name)
        if task is not None and not task.done():
            raise GuestBusy(
                f"Guest {name} has a QEMU process on host {self.settings.name} that does not answer",
                owner=self.settings.name,
                fix="wait until it answers, or kill that process",
                retry=True,
            )

    # -- starting and stopping -----------------------------------------------------------------------------------

    async def run(self, spec: GuestSpec) -> GuestRow:
        """Define a guest and start it here; on failure nothing is left of it."""
        self._directory(spec.name)
        async with self.operation(spec.name, "guest run"):
            if self.journal.guest(spec.name) is not None:
                raise BadInput(
                    f"Guest {spec.name} exists already on host {self.settings.name}",
                    fix=f"choose another name, or: vmferry guest start {spec.name}",
                )
            if spec.tpm is not None:
                self._tpm_states.check_free(spec.name)
            guest = await self._hypervisor.freeze(spec)
            token = Token(Epoch(1), self.settings.name, running=True)
            row = GuestRow(guest, token, Desired.RUNNING, None, None, self._free_uid())
            self.journal.put_guest(row)
            try:
                self._renew_tpm(row)
                return await self._start(row)
            except BaseException:
                await self.let_go(spec.name)
                raise

    async def start(self, name: GuestName) -> GuestRow:
        """Start a stopped guest that this host owns; on failure no process is left."""
        row = self.row(name)
        async with self.operation(name, "guest start"):
            if await self._lives(name):
                raise BadInput(f"Guest {name} is running already", owner=self.settings.name)
            if row.guest.has_tpm:
                self._tpm_states.check(name)
            await self._end_process(name)
            try:
                return await self._start(self.row(name))
            except BaseException:
                await self._end_process(name)
                self.put(self.row(name), process=None)
                raise

    async def _start(self, row: GuestRow) -> GuestRow:
        name = row.guest.spec.name
        row = await self.launch(row, incoming=False)
        row = self.put(row, token=dataclasses.replace(row.token, running=True, cont_intent=True), note=None)
        await self._processes[name].cont()
        row = self.put(row, desired=Desired.RUNNING)
        self.on_changed(name)
        return row

    async def launch(self, row: GuestRow, *, incoming: bool) -> GuestRow:
        """Start the process of a row (paused) and journal it; used by starts and arrivals alike."""
        name = row.guest.spec.name
        if incoming:
            self._renew_tpm(row)
        port = await self._beat_port(row)
        resources = self._resources(row, port)
        process = await self.leases.start(self._hypervisor, row.guest, resources, incoming=incoming)
        self._take(name, process)
        return self.put(row, process=process.record, beat_port=port)

    async def stop(self, name: GuestName, *, power_down_s: float | None = None) -> None:
        """End the guest's process; its name, disks and token stay here.

        Args:
            name: a guest of this host.
            power_down_s: ask the guest to power off and wait so long; None ends the process at once.

        Raises:
            TimedOut: the guest did not power off in time; it runs on.
        """
        row = self.row(name)
        process = self.process(name)
        if process is not None and power_down_s is None and self._busy.get(name) in WAIT_FOR_GUEST:
            await process.quit()  # whoever waits for its system sees that it has ended, and does the rest
            while self._busy.get(name) in WAIT_FOR_GUEST:  # noqa: ASYNC110 - rare, and over within milliseconds
                await asyncio.sleep(_STOPPED_SOON_S)
        async with self.operation(name, STOPPING):
            if process is not None and power_down_s is not None:
                await self._power_down(name, process, power_down_s)
            self.put(row, desired=Desired.STOPPED, token=dataclasses.replace(row.token, running=False))
            await self._end_process(name)
            self.put(self.row(name), process=None, note="stopped by an operator")

    async def _power_down(self, name: GuestName, process: GuestProcess, limit_s: float) -> None:
        events = process.events()
        if await process.query_run_state() is not RunState.RUNNING:
            return
        await process.power_down()
        try:
            async with asyncio.timeout(limit_s):
                async for event in events:
                    if event.kind in (GuestEventKind.POWERED_OFF, GuestEventKind.EXITED):
                        return
        except TimeoutError as error:
            raise TimedOut(
                f"Guest {name} did not power off within {limit_s:g} s",
                owner=self.settings.name,
                fix=f"give it more time, or end it at once: vmferry guest stop {name} --force",
            ) from error

    async def pause(self, name: GuestName) -> None:
        """Stop the vCPUs; allowed in mid-migration too: the guest then arrives paused.

        Journalled first and without a pause after it was seen whose the guest is: a commit comes before it or after it.

        Raises:
            GuestBusy: in the middle of a post-copy, where QEMU may hang with the vCPUs that it stops.
        """
        row = self.row(name)
        process = self.alive(name)
        if why := self.why_held(name):
            raise GuestBusy(why, owner=self.settings.name, fix=way_out(name, "hand-over"), retry=True)
        self.put(row, desired=Desired.PAUSED, token=dataclasses.replace(row.token, running=False))
        await process.stop()

    async def resume(self, name: GuestName) -> None:
        """Let the vCPUs go on."""
        self.row(name)
        async with self.operation(name, "guest resume"):  # a hand-over decides who may run
            process = self.alive(name)
            await self.leases.take_again(name)
            row = self.row(name)
            self.put(row, desired=Desired.RUNNING, token=dataclasses.replace(row.token, running=True))
            if await process.query_run_state() in _RESUMABLE:
                await process.cont()

    async def remove(self, name: GuestName) -> None:
        """Forget a stopped guest; its disks are not touched."""
        self.row(name)
        async with self.operation(name, "guest remove"):
            if await self._lives(name):
                raise BadInput(
                    f"Guest {name} is running",
                    owner=self.settings.name,
                    fix=f"stop it first: `vmferry guest stop {name}`",
                )
            if devices := addresses_of(name, self.journal.device_claims()):
                raise Refused(f"Guest {name} has had {', '.join(devices)}, not given back yet", retry=True)
            await self.let_go(name)

    async def let_go(self, name: GuestName) -> None:
        """End whatever process the name has here and forget the row. Idempotent."""
        await self._end_process(name)
        await self.forget(name)

    async def forget(self, name: GuestName) -> None:
        """Forget the row of a guest that has no process, and what is left of its runs here. Idempotent."""
        directory = self._directory(name)
        await self._beats.close(name)
        self._tpm_states.remove(name)
        self.journal.remove_guest(name)
        self.on_changed(name)
        # Another guest of this name gets another user, who could neither read nor write what is left.
        shutil.rmtree(directory, ignore_errors=True)

    async def kill(self, name: GuestName) -> None:
        """End the process at once and prove it dead; the row stays. Idempotent."""
        process = self._processes.get(name)
        if process is not None:
            await process.kill()
        await self._forget_process(name)

    # -- after an agent restart ----------------------------------------------------------------------------------

    async def adopt_all(self) -> None:
        """Take every process of the journal over again; returns when each was looked at once.

        A process that lives but does not answer (frozen, or too busy) is asked again in the background: it is neither
        adopted nor dead, and nobody may conclude anything from it; `adopted` waits for that.
        """
        for row in self.journal.guests():
            name = row.guest.spec.name
            self._reached[name] = asyncio.Event()
            self._adopting[name] = asyncio.create_task(self._adopt(row), name=f"adopt:{name}")
        if self._adopting:
            await asyncio.wait(self._adopting.values(), timeout=_ADOPT_FIRST_S)

    async def adopted(self, name: GuestName) -> None:
        """Wait until the guest's process is either taken over, and answers, or proven dead."""
        task = self._adopting.get(name)
        if task is not None:
            await asyncio.shield(task)

    async def reached(self, name: GuestName) -> None:
        """Wait until the guest's process can be given orders in an emergency, or is proven dead."""
        reached = self._reached.get(name)
        if reached is not None:
            await reached.wait()

    async def _adopt(self, row: GuestRow) -> None:
        name = row.guest.spec.name
        while True:
            try:
                await self._adopt_once(row)
            except VmferryError as error:
                _log.warning("guest's process does not answer yet", guest=name, error=str(error))
            except Exception:  # noqa: BLE001 - whatever it was, nothing is certain of the process yet
                _log.exception("guest's process cannot be looked at", guest=name)
            else:
                self._reached[name].set()
                return
            await asyncio.sleep(_ADOPT_AGAIN_S)

    async def _adopt_once(self, row: GuestRow) -> None:
        name = row.guest.spec.name
        process = await self._find_process(row)
        if process is not None:
            self._take(name, process)
            self._reached[name].set()
            await process.wait_answers()
        elif row.process is not None:
            _log.warning("guest's process is gone", guest=name)
            if row.token.owner == self.settings.name:
                self.put(row, process=None, note=_NOTES[GuestEventKind.EXITED])

    async def _find_process(self, row: GuestRow) -> GuestProcess | None:
        """Return the recorded process while it lives; one that was started and never recorded is ended."""
        resources = self._resources(row, None)
        if row.process is not None:
            resources = self._resources(row, await self._beat_port(row))
            if (process := await self._hypervisor.adopt(row.guest, resources, row.process)) is not None:
                return process
        if await self._hypervisor.end_unrecorded(row.guest, resources):
            _log.warning("a process that was started and never recorded was ended", guest=row.guest.spec.name)
        return None

    async def flush_tpm(self, name: GuestName) -> None:
        """Have the state of an arrived guest's TPM outlive a loss of power; whoever had it before then removes it."""
        row = self.journal.guest(name)
        if row is not None and row.guest.has_tpm:
            try:
                await asyncio.to_thread(self._tpm_states.flush, name)
            except OSError as error:
                _log.warning("state of a TPM is not flushed", guest=name, error=str(error))

    def note_of_tpm(self, name: GuestName) -> str | None:
        """Return what is to be told of a guest's TPM; None: nothing."""
        process = self.process(name)
        lost = process is not None and process.has_lost_tpm
        return _NOTES[GuestEventKind.TPM_ENDED] if lost else None

    def note_crash(self, name: GuestName, why: str) -> None:
        """Write into the row that the guest crashed here."""
        row = self.journal.guest(name)
        if row is not None:
            self.put(row, process=None, note=why, token=dataclasses.replace(row.token, running=False))

    async def close(self) -> None:
        """Let go of every process without touching it."""
        tasks = [*self._watchers.values(), *self._adopting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for process in self._processes.values():
            await process.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def put(self, row: GuestRow, **changes: object) -> GuestRow:
        """Journal a guest's row with changes and return it; whatever is not among them stays as the journal has it."""
        now = self.journal.guest(row.guest.spec.name) or row
        changed = dataclasses.replace(now, **changes)  # type: ignore[arg-type]
        self.journal.put_guest(changed)
        return changed

    def _take(self, name: GuestName, process: GuestProcess) -> None:
        self._processes[name] = process
        self._watchers[name] = asyncio.create_task(self._watch(name, process), name=f"watch:{name}")

    async def _watch(self, name: GuestName, process: GuestProcess) -> None:
        events = process.events()
        if process.has_lost_tpm:  # before anybody listened
            await self._note(name, GuestEvent(GuestEventKind.TPM_ENDED, 0))
        async for event in events:
            await self._note(name, event)

    async def _note(self, name: GuestName, event: GuestEvent) -> None:
        """Write into the row why a guest of ours stopped; the end of a process that an operation holds is its own."""
        if event.kind in _GONE:
            self.on_changed(name)
        note = _NOTES.get(event.kind)
        if note is None:
            return
        ended = event.kind is GuestEventKind.EXITED
        row = self.journal.guest(name)
        if row is None or row.token.owner != self.settings.name or (ended and name in self._busy):
            return
        what = "guest lost its TPM" if event.kind is GuestEventKind.TPM_ENDED else "guest stopped"
        _log.info(what, guest=name, why=note, detail=event.detail)
        self.put(row, note=note, process=None if ended else row.process)

    async def _end_process(self, name: GuestName) -> None:
        process = self._processes.get(name)
        if process is not None:
            await process.quit()
        await self._forget_process(name)

    async def _forget_process(self, name: GuestName) -> None:
        watcher = self._watchers.pop(name, None)
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        process = self._processes.pop(name, None)
        if process is not None:
            await process.close()
            self.on_changed(name)

    def alive(self, name: GuestName) -> GuestProcess:
        """Return the live process of a guest.

        Raises:
            BadInput: it has none.
            GuestBusy: it has one that does not answer.
        """
        self._check_certain(name)
        process = self.process(name)
        if process is None:
            raise BadInput(
                f"Guest {name} is not running on host {self.settings.name}, to which it belongs",
                fix=f"start it: `vmferry guest start {name}`",
            )
        return process

    async def _lives(self, name: GuestName) -> bool:
        process = self.process(name)
        return process is not None and await process.query_run_state() not in _ENDED

    def _resources(self, row: GuestRow, beat_port: int | None) -> HostResources:
        name = row.guest.spec.name
        tpm_dir = str(self._tpm_states.path(name)) if row.guest.has_tpm else None
        return HostResources(str(self._directory(name)), row.uid, beat_port, tpm_dir)

    def _renew_tpm(self, row: GuestRow) -> None:
        if row.guest.has_tpm:
            self._tpm_states.renew(row.guest.spec.name, row.uid)

    def _directory(self, name: GuestName) -> pathlib.Path:
        """Return where a guest's run is kept; never outside of the run directory, whoever named the guest.

        Raises:
            BadInput: that is no name.
        """
        if not is_name(name):
            raise BadInput(f"{name[:80]!r} cannot be the name of a guest", fix="names are 1 to 63 of a-z, 0-9 and -")
        return self.settings.run_dir / "guests" / name

    async def _beat_port(self, row: GuestRow) -> int | None:
        if not row.guest.spec.beat:
            return None
        return await self._beats.open(row.guest.spec.name, row.beat_port)

    def _free_uid(self) -> int | None:
        """Return the lowest uid that no guest has.

        Raises:
            Refused: all are taken; those behind the range belong to others.
        """
        uids = self.settings.uids
        if uids is None:
            return None
        taken = {row.uid for row in self.journal.guests()}
        for uid in uids:
            if uid not in taken:
                return uid
        raise Refused(
            f"All {len(uids)} user ids for guests of {self.settings.name} ({uids.start}-{uids.stop - 1}) are taken",
            fix="remove guests that are not needed there, or widen qemu.uids in its agent.toml",
        )

    def arrival(self, guest: FrozenGuest, epoch: Epoch, source: HostName, *, running: bool) -> GuestRow:
        """Write the row of a guest that comes; it is the source's until the commit."""
        self._directory(guest.spec.name)
        token = Token(epoch, source, running=running)
        desired = Desired.RUNNING if running else Desired.PAUSED
        row = GuestRow(guest, token, desired, None, None, self._free_uid(), note=ARRIVING)
        self.journal.put_guest(row)
        return row

    def check_free(self, name: GuestName) -> None:
        """Refuse an arrival whose name is taken here.

        Raises:
            Refused: a guest of that name is here, or arrives already.
            BadInput: that is no name.
        """
        self._directory(name)
        if self.journal.guest(name) is not None:
            raise Refused(f"Guest name {name} is taken on host {self.settings.name}", side="destination")
