"""Starts, freezes and re-adopts guests on this host: the reference implementation of `ports.hypervisor.Hypervisor`."""

from __future__ import annotations

import asyncio
import os
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vmferry.core.errors import BadInput, Broken, VmferryError
from vmferry.core.guest import Acceleration, FrozenGuest, GuestSpec
from vmferry.core.host import QemuFacts
from vmferry.core.ids import GuestUuid
from vmferry.ports.hypervisor import HostResources, ProcessRecord, RunState
from vmferry.qemu import emergency
from vmferry.qemu.arrival import check_cpu, check_frozen
from vmferry.qemu.binary import QemuBinaryConfig
from vmferry.qemu.command_line import command_line
from vmferry.qemu.cpu import freeze_cpu, parse_cpu, without_enforce
from vmferry.qemu.credentials import CertificateFiles, no_certificates
from vmferry.qemu.descriptors import ANYWHERE, hash_boot_files, opened_for
from vmferry.qemu.freeze import Drawn, check_machine, check_spec, freeze
from vmferry.qemu.guest_process import QemuGuestProcess
from vmferry.qemu.image_dirs import ImageDirs
from vmferry.qemu.probe import ProbeCache, Prober
from vmferry.qemu.process import Process, kvm_groups, spawn
from vmferry.qemu.run_dir import RunDir
from vmferry.qemu.start_fault import fix_of, told_by_qemu
from vmferry.qemu.tpm import TpmWatch, serving
from vmferry.qemu.userfault import userfault_groups

#: Run states before the first `cont` of a process that was started paused.
NEVER_RAN = frozenset({RunState.PRELAUNCH, RunState.INMIGRATE})


class QemuHypervisor:
    """QEMU on this host.

    Args:
        binary: which QEMU.
        acceleration: KVM or TCG, as `acceleration.decide` found out; never AUTO.
        state_dir: where answers of probes are kept.
        images: which files guests may be given.
        certificates: gives this host's certificates for streams.

    Raises:
        BadInput: there is no such QEMU, or the acceleration is not decided.
    """

    def __init__(
        self,
        binary: QemuBinaryConfig,
        acceleration: Acceleration,
        *,
        state_dir: Path,
        images: ImageDirs = ANYWHERE,
        certificates: CertificateFiles = no_certificates,
    ) -> None:
        if acceleration is Acceleration.AUTO:
            raise BadInput("acceleration of a hypervisor is auto", fix="decide it first (qemu.acceleration.decide)")
        self._binary = binary.resolved()
        self._acceleration = acceleration
        self._images = images
        self._certificates = certificates
        self._prober = Prober(self._binary, ProbeCache(state_dir / "qemu-probes"))

    @property
    def binary(self) -> QemuBinaryConfig:
        """Which QEMU it is."""
        return self._binary

    @staticmethod
    def runs_as(uid: int) -> int | None:
        """Return the user that a guest's process gets when this one is set aside for it.

        The same uid when the agent is root, else None: the agent's own user.
        """
        return uid if os.geteuid() == 0 else None

    async def query_facts(self) -> QemuFacts:
        """Return what this QEMU can do; asked once per program, accelerator and boot.

        Raises:
            Broken: QEMU does not start.
        """
        return await self._prober.query_facts(self._acceleration)

    async def freeze(self, spec: GuestSpec) -> FrozenGuest:
        """Decide and fix the hardware of a new guest.

        Raises:
            BadInput: an alias as machine type, a CPU that is whatever the host is, features that are not offered
                here, acceleration that does not work here, or a device that cannot be built.
            Broken: a boot file cannot be read.
            BadInput: a boot file may not be used.
        """
        check_spec(spec)
        acceleration = self._resolve(spec)
        facts = await self._prober.query_facts(acceleration)
        check_machine(spec.machine, facts.machines)
        request = parse_cpu(spec.cpu)
        try:
            answer = await self._prober.query_cpu(request.text(), spec.machine, acceleration)
        except Broken as error:
            raise BadInput(f"CPU {spec.cpu!r} cannot be built: {error.what}", fix="name another CPU model") from error
        drawn = Drawn(
            uuid=spec.uuid or GuestUuid(str(uuid.uuid4())),
            mac_bytes=tuple(secrets.token_bytes(3) for _ in spec.nics),
            boot_hashes=await asyncio.to_thread(hash_boot_files, spec, self._images),
        )
        cpu = freeze_cpu(request, answer.versioned_model, answer.expanded, answer.unavailable)
        return freeze(spec, acceleration=acceleration, cpu=cpu, drawn=drawn)

    async def probe_cpu(self, guest: FrozenGuest) -> Sequence[str]:
        """Return the guest's CPU features that this host does not offer; asked once per CPU and boot.

        Raises:
            Broken: QEMU refuses the CPU outright (unknown model or feature); in its own words.
            BadInput: this host does not know the machine type, or the CPU is none that `freeze` writes.
        """
        if guest.acceleration is Acceleration.KVM and self._acceleration is not Acceleration.KVM:
            raise Broken(
                f"guest {guest.spec.name} needs KVM, which does not work on this host",
                fix='`vmferry host show` says why; run it on another host, or with acceleration = "auto"',
            )
        check_machine(guest.machine, (await self._prober.query_facts(guest.acceleration)).machines)
        check_cpu(guest.cpu)
        cpu = without_enforce(guest.cpu)
        return (await self._prober.query_cpu(cpu, guest.machine, guest.acceleration)).unavailable

    async def start(self, guest: FrozenGuest, resources: HostResources, *, incoming: bool) -> QemuGuestProcess:
        """Start the guest's process, paused; on failure no process, tap, socket or key is left.

        Raises:
            BadInput: the run directory's path is too long, an image refers to other files, or the hardware is none
                that `freeze` writes.
            Broken: a file or tap cannot be opened, or QEMU refused; in its own words.
            TimedOut: QEMU does not answer.
        """
        run_dir = RunDir(Path(resources.run_dir))
        run_dir.check_length()
        check_frozen(guest, (await self._prober.query_facts(guest.acceleration)).machines)
        spawning = asyncio.ensure_future(asyncio.to_thread(self._spawn, guest, resources, run_dir, incoming=incoming))
        try:
            process, line, emulator = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            # The thread cannot be stopped: wait for what it makes, and undo that.
            (outcome,) = await asyncio.gather(spawning, return_exceptions=True)
            if not isinstance(outcome, BaseException):
                outcome[1].close()
                await _undo(outcome[0], run_dir, _tpm_watch(guest, resources, outcome[2]))
            raise
        tpm = _tpm_watch(guest, resources, emulator)
        started = QemuGuestProcess(guest.spec, process, run_dir, resources.uid, line, self._certificates, tpm)
        try:
            await started.connect()
        except VmferryError as error:
            await _undo(process, run_dir, tpm)
            told = told_by_qemu(guest.spec, run_dir.log_tail())
            error.what = f"guest {guest.spec.name} did not start: {told or error.what}"
            error.fix = error.fix or fix_of(told)
            raise
        except BaseException:
            await asyncio.shield(_undo(process, run_dir, tpm))
            raise
        return started

    async def adopt(
        self, guest: FrozenGuest, resources: HostResources, record: ProcessRecord
    ) -> QemuGuestProcess | None:
        """Take over a process that an earlier agent started; None when it is proven dead, and nothing of it is left.

        One that answers no question but has an emergency line is taken over too; `wait_answers` waits for its answers.

        Raises:
            Broken: it lives and its QMP connection broke.
            TimedOut: it lives and does not answer at all; it was not touched.
        """
        process = Process.of_record(record)
        run_dir, tpm = RunDir(Path(resources.run_dir)), _tpm_watch(guest, resources)
        if process is None:
            if not run_dir.is_served():  # it died while no agent watched: nobody else removes its sockets and its key
                run_dir.remove_sockets()
                await tpm.end()
            return None
        adopted = QemuGuestProcess(guest.spec, process, run_dir, resources.uid, None, self._certificates, tpm)
        try:
            await adopted.reconnect()
        except BaseException:
            gone = not process.is_alive()
            process.close()
            if gone:
                run_dir.remove_sockets()
                await tpm.end()
                return None
            raise
        return adopted

    async def end_unrecorded(self, guest: FrozenGuest, resources: HostResources) -> bool:
        """End the process that an agent started here and never recorded: killed in between, it never sent `cont`.

        Raises:
            Broken: there is one that was let run, or that cannot be seen; it was not touched.
            TimedOut: there is one, and it does not answer; it was not touched.
        """
        run_dir = RunDir(Path(resources.run_dir))
        process = await asyncio.to_thread(run_dir.find_holder)
        tpm = _tpm_watch(guest, resources)
        if process is None:
            await tpm.end()  # its agent may have been killed between the two
            return False
        try:
            if run_dir.is_served():  # else it has not come as far as a monitor through which `cont` could have come
                await _check_never_ran(guest, process, run_dir, resources.uid)
            await process.kill()
        finally:
            process.close()
        run_dir.remove_sockets()
        await tpm.end()
        return True

    def _spawn(
        self, guest: FrozenGuest, resources: HostResources, run_dir: RunDir, *, incoming: bool
    ) -> tuple[Process, emergency.Line, Process | None]:
        """Return the process, our end of its emergency line, and what emulates its TPM."""
        opened = opened_for(guest, resources.uid, self._images)
        with (
            run_dir.taken(resources.uid) as lock,
            opened as (opened_files, fds),
            emergency.pair() as (theirs, ours),
            serving(_tpm_dir(guest, resources), run_dir.tpm_log, resources.uid) as tpm,
        ):
            connected = () if tpm is None else (tpm.connection,)
            descriptors = replace(opened_files, emergency=theirs.fileno(), tpm=None if tpm is None else tpm.connection)
            argv = command_line(guest, resources, descriptors, incoming=incoming)
            process = spawn(
                self._binary,
                argv,
                directory=run_dir.path,
                log=run_dir.log,
                fds=(*fds, lock, theirs.fileno(), ours.fileno(), *connected),
                uid=resources.uid,
                groups=[*(kvm_groups() if guest.acceleration is Acceleration.KVM else ()), *userfault_groups()],
                through=resources.start_through,
            )
            return process, ours, None if tpm is None else tpm.process

    def _resolve(self, spec: GuestSpec) -> Acceleration:
        if spec.acceleration is Acceleration.AUTO:
            return self._acceleration
        if spec.acceleration is Acceleration.KVM and self._acceleration is not Acceleration.KVM:
            raise BadInput(
                f"guest {spec.name} asks for KVM, which does not work on this host",
                fix='set acceleration = "auto" or "tcg"',
            )
        return spec.acceleration


async def _check_never_ran(guest: FrozenGuest, process: Process, run_dir: RunDir, uid: int | None) -> None:
    """Hold that a process is as it was started: a journal that was lost or restored says nothing of one that ran.

    Raises:
        Broken: its vCPUs were started.
        TimedOut: it does not answer.
    """
    record = process.record
    looked = Process.of_record(record)
    if looked is None:
        return
    found = QemuGuestProcess(guest.spec, looked, run_dir, uid)
    try:
        await found.connect()
        state = await found.query_run_state()
    except Broken:
        if process.is_alive():
            raise
        return
    finally:
        await found.close()
    if state not in NEVER_RAN:
        raise Broken(
            f"QEMU process {record.pid} of guest {guest.spec.name} is not in the journal and is in state {state},"
            f" expected one of {', '.join(sorted(NEVER_RAN))}",
            fix="the journal is older than that process: bring the newer one back, or end the process yourself",
        )


async def _undo(process: Process, run_dir: RunDir, tpm: TpmWatch) -> None:
    await process.kill()
    process.close()
    run_dir.remove_sockets()
    await tpm.end()


def _tpm_dir(guest: FrozenGuest, resources: HostResources) -> Path | None:
    """Return where the state of the guest's TPM is; None when it has none.

    Raises:
        Broken: it has one, and nobody said where: a bug.
    """
    if not guest.has_tpm:
        return None
    if resources.tpm_dir is None:
        raise Broken(f"guest {guest.spec.name} has a TPM, and there is no directory for its state")
    return Path(resources.tpm_dir)


def _tpm_watch(guest: FrozenGuest, resources: HostResources, emulator: Process | None = None) -> TpmWatch:
    return TpmWatch(guest.spec.name, _tpm_dir(guest, resources), emulator)
