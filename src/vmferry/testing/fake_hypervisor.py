"""A `Hypervisor` in memory, stricter than QEMU: it refuses all that QEMU refuses, and what our rules forbid besides.

Several `FakeHypervisor` on one `FakeLink` are several hosts. Every call is recorded in order, with its host. An agent
that dies is a `FakeHypervisor` that is dropped: the processes live on in the link, and a new one adopts them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmferry.core.capabilities import Transport
from vmferry.core.errors import BadInput, Broken, TimedOut, VmferryError
from vmferry.core.guest import Acceleration, FrozenGuest, GuestSpec
from vmferry.core.host import QemuFacts
from vmferry.core.ids import GuestUuid
from vmferry.core.migration import POSTCOPY, POSTCOPY_BROKEN
from vmferry.core.pci_devices import VFIO
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import (
    GuestEvent,
    GuestEventKind,
    HostResources,
    MigrationSample,
    MigrationSetup,
    MigrationStatus,
    ProcessRecord,
    RunState,
)
from vmferry.ports.state_file import StateFile
from vmferry.ports.stream import StreamConnection
from vmferry.qemu.cpu import freeze_cpu, parse_cpu
from vmferry.qemu.freeze import Drawn, check_machine, freeze
from vmferry.qemu.guest_process import STARTABLE
from vmferry.qemu.migration import check_parameters, check_setup
from vmferry.testing.fake_mirrors import FakeMirrors
from vmferry.testing.fake_plugs import FakePlugs
from vmferry.testing.fake_qemu import ENDED, FILE, FakeLink, FakeQemu, FakeStream, Fault, FaultAction

__all__ = ["Call", "FakeGuestProcess", "FakeHypervisor", "FakeLink", "FakeQemu", "Fault", "FaultAction"]

FAKE_FACTS = QemuFacts(
    version=(10, 0, 2),
    machines=frozenset({"pc-q35-7.2", "pc-q35-10.0", "pc-i440fx-7.2"}),
    cpu_models=frozenset({"qemu64", "qemu64-v1", "EPYC", "EPYC-v1"}),
    capabilities=frozenset(
        {
            "auto-converge",
            "events",
            "late-block-activate",
            "multifd",
            "pause-before-switchover",
            "postcopy-ram",
            "return-path",
            "xbzrle",
        }
    ),
    parameters=frozenset(
        {
            "cpu-throttle-increment",
            "cpu-throttle-initial",
            "downtime-limit",
            "max-cpu-throttle",
            "max-bandwidth",
            "max-postcopy-bandwidth",
            "multifd-channels",
            "multifd-compression",
            "throttle-trigger-threshold",
            "tls-creds",
        }
    ),
    devices=frozenset({"virtio-net-pci", "virtio-blk-pci", "e1000", "isa-serial", "pcie-root-port", "ide-hd"}),
    compressions=frozenset({"zlib", "zstd"}),
)

#: What a QEMU takes that answers no question.
_OUT_OF_BAND = frozenset({"pause_postcopy", "recover_listen", "cut_mirrors"})

#: shared by all guests, so that MACs and uuids never repeat within a test run
_SERIALS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it was made, refused or not."""

    host: str
    name: str
    guest: str | None = None


class FakeHypervisor:
    """One host's hypervisor.

    Args:
        host: its name in the record of calls.
        link: what it shares with other hosts.
        facts: what its QEMU can do.
        missing_cpu_features: what `probe_cpu` answers.
        boot_id: of the host; another one means that it was rebooted.
    """

    def __init__(
        self,
        host: str = "host-a",
        link: FakeLink | None = None,
        *,
        facts: QemuFacts = FAKE_FACTS,
        missing_cpu_features: Sequence[str] = (),
        boot_id: str = "boot-1",
    ) -> None:
        self.host = host
        self.link = link or FakeLink()
        self.facts = facts
        self.missing_cpu_features = tuple(missing_cpu_features)
        self.boot_id = f"{host}:{boot_id}"
        self.calls: list[Call] = []
        self._refusals: dict[str, VmferryError] = {}

    def refuse_next(self, name: str, error: VmferryError) -> None:
        """Let the next call of that name fail with the error, before it has any effect."""
        self._refusals[name] = error

    def note(self, name: str, guest: str | None = None) -> None:
        """Record a call, and fail it when the script says so."""
        self.calls.append(Call(self.host, name, guest))
        if error := self._refusals.pop(name, None):
            raise error

    async def query_facts(self) -> QemuFacts:
        """Return what the test said."""
        self.note("query_facts")
        return self.facts

    async def freeze(self, spec: GuestSpec) -> FrozenGuest:
        """Freeze as the real driver does, with a CPU of two features."""
        self.note("freeze", spec.name)
        check_machine(spec.machine, self.facts.machines)
        request = parse_cpu(spec.cpu)
        if request.model not in self.facts.cpu_models:
            raise BadInput(f"CPU {spec.cpu!r} cannot be built: unable to find CPU model")
        serial = next(_SERIALS)
        drawn = Drawn(
            uuid=spec.uuid or GuestUuid(str(uuid.UUID(int=serial))),
            mac_bytes=tuple((serial * 16 + n).to_bytes(3, "big") for n, _ in enumerate(spec.nics)),
        )
        cpu = freeze_cpu(request, f"{request.model}-v1", {"fpu": True, "sse2": True}, self.missing_cpu_features)
        return freeze(spec, acceleration=Acceleration.TCG, cpu=cpu, drawn=drawn)

    async def probe_cpu(self, guest: FrozenGuest) -> Sequence[str]:
        """Return what the test said."""
        self.note("probe_cpu", guest.spec.name)
        return self.missing_cpu_features

    async def start(self, guest: FrozenGuest, resources: HostResources, *, incoming: bool) -> FakeGuestProcess:
        """Start a process in the link."""
        self.note("start", guest.spec.name)
        if guest.machine not in self.facts.machines:
            raise Broken(f"guest {guest.spec.name} did not start: unsupported machine type {guest.machine}")
        if self.missing_cpu_features:
            raise Broken(f"guest {guest.spec.name} did not start: host does not offer {self.missing_cpu_features[0]}")
        running = [q for q in self.link.processes.values() if q.alive and q.record.boot_id == self.boot_id]
        if any(q.guest.spec.name == guest.spec.name for q in running):
            raise Broken(f"guest {guest.spec.name} did not start: it has a process on {self.host} already")
        if guest.has_tpm:
            _begin_tpm(guest, resources, incoming=incoming)
        return FakeGuestProcess(self, self.link.spawn(guest, resources, self.boot_id, incoming=incoming))

    async def adopt(
        self, guest: FrozenGuest, resources: HostResources, record: ProcessRecord
    ) -> FakeGuestProcess | None:
        """Take a living process of this boot over; refuses one that was started in another directory."""
        self.note("adopt", guest.spec.name)
        qemu = self.link.processes.get(record.pid)
        if qemu is None or not qemu.alive or qemu.record != record or record.boot_id != self.boot_id:
            return None
        if qemu.resources.run_dir != resources.run_dir:
            raise Broken(f"guest {guest.spec.name}: no QMP socket in {resources.run_dir}")
        return FakeGuestProcess(self, qemu)

    async def end_unrecorded(self, guest: FrozenGuest, resources: HostResources) -> bool:
        """End what lives in the run directory; refuses one that was let run."""
        self.note("end_unrecorded", guest.spec.name)
        here = [qemu for qemu in self.link.processes.values() if qemu.record.boot_id == self.boot_id]
        alive = [qemu for qemu in here if qemu.alive and qemu.resources.run_dir == resources.run_dir]
        for qemu in alive:
            if qemu.state not in (RunState.PRELAUNCH, RunState.INMIGRATE):
                raise Broken(f"QEMU process {qemu.record.pid} is not in the journal and is in state {qemu.state}")
            self.link.die(qemu, "nobody recorded it")
        return bool(alive)


def _begin_tpm(guest: FrozenGuest, resources: HostResources, *, incoming: bool) -> None:
    """Leave a state, as an emulator does; the real one would take an old state that lies there without a word."""
    directory = None if resources.tpm_dir is None else Path(resources.tpm_dir)
    if directory is None or not directory.is_dir() or (incoming and list(directory.iterdir())):
        raise Broken(f"guest {guest.spec.name}: no directory, or no new one, for the state of its TPM: {directory}")
    (directory / "tpm2-00.permall").touch()


class FakeGuestProcess:
    """A handle on one process of the link.

    Args:
        hypervisor: of its host.
        qemu: the process.
    """

    def __init__(self, hypervisor: FakeHypervisor, qemu: FakeQemu) -> None:
        self._hypervisor = hypervisor
        self._link = hypervisor.link
        self._closed = False
        self.qemu = qemu
        self.mirrors = FakeMirrors(qemu, self._link, self._call)
        self.plugs = FakePlugs(qemu, self._link, self._call)

    @property
    def record(self) -> ProcessRecord:
        """The process as the journal knows it."""
        return self.qemu.record

    @property
    def has_lost_tpm(self) -> bool:
        """Return what the test said."""
        return self.qemu.has_lost_tpm

    def is_alive(self) -> bool:
        """Tell whether the process exists now."""
        return self.qemu.alive

    def events(self) -> AsyncIterator[GuestEvent]:
        """Return a subscription that begins now."""
        return self.qemu.hub.subscribe()

    async def wait_answers(self) -> None:
        """Wait until the test lets it answer, or it is gone."""
        self._hypervisor.note("wait_answers", self.qemu.guest.spec.name)
        while self.qemu.deaf and self.qemu.alive:  # noqa: ASYNC110 - a flag that tests set
            await asyncio.sleep(0.001)

    async def query_run_state(self) -> RunState:
        """Return the run state."""
        self._call("query_run_state")
        return self.qemu.state

    async def query_migration(self) -> MigrationSample:
        """Return how the migration goes; an outgoing one hides an earlier arrival."""
        self._call("query_migration")
        if self.qemu.stream is not None:
            return self.qemu.stream.sample()
        return MigrationSample(status=self.qemu.incoming_status, blocked_reasons=self._blocked())

    def _blocked(self) -> tuple[str, ...]:
        kinds = self._link.kinds_of(self.qemu)
        plain = [claim.address for claim in self.qemu.plugged.values() if kinds[claim.port][1] == VFIO]
        return tuple(f"{address}: VFIO migration is not supported in kernel" for address in plain)

    async def cont(self, *, seen: RunState | None = None) -> int:
        """Start the vCPUs, with all that the real driver refuses."""
        self._call("cont")
        if seen not in (None, self.qemu.state):
            raise AssertionError(f"cont by what was seen, {seen}, when QEMU is {self.qemu.state}")
        self._require(self.qemu.state in STARTABLE, "cont", f"QEMU is in state {self.qemu.state}")
        self._require(not self.qemu.exports, "cont", "others may still write its images")
        if self.qemu.empty:
            raise AssertionError(f"cont with images that are not whole: {self.qemu.empty}")
        self._link.take_locks(self.qemu)
        self.qemu.state = RunState.RUNNING
        self.qemu.emit(GuestEventKind.RESUMED)
        return time.monotonic_ns()

    async def stop(self) -> None:
        """Stop the vCPUs; nothing happens when they stand still, and it is refused while they wait for pages."""
        self._call("stop")
        self._require(self._status() not in POSTCOPY_BROKEN, "stop", f"vCPUs wait for pages ({self._status()})")
        if self.qemu.state is RunState.RUNNING:
            self.qemu.state = RunState.PAUSED
            self.qemu.emit(GuestEventKind.STOPPED)

    async def power_down(self) -> None:
        """Press the power button; a running guest obeys unless the test made it deaf."""
        self._call("power_down")
        if self.qemu.state is RunState.RUNNING and self.qemu.obeys_power_button:
            self.guest_powers_off()

    async def prepare_migration(self, setup: MigrationSetup, *, incoming: bool) -> None:
        """Keep the setup; refuses combinations as the real driver does, and a side that is the wrong way round."""
        self._call("prepare_migration")
        waits = self.qemu.state is RunState.INMIGRATE
        self._require(incoming == waits, "prepare_migration", f"incoming = {incoming} in state {self.qemu.state}")
        self._require(self.qemu.listening is None, "prepare_migration", "it listens already")
        self._require(not self._is_migrating(), "prepare_migration", "there is a migration in progress")
        check_setup(setup, self._hypervisor.facts.capabilities, self._hypervisor.facts.version)
        self.qemu.parameters |= check_parameters(setup.parameters, self._hypervisor.facts.parameters)
        self.qemu.setup = dataclasses.replace(setup, capabilities=dict(setup.capabilities))
        self.qemu.bandwidth = setup.max_bandwidth
        self.qemu.downtime_limit_ms = setup.downtime_limit_ms

    async def cleanup_migration(self) -> None:
        """Forget the key. Idempotent."""
        self._call("cleanup_migration")

    async def listen(self, address: str, port: int, by: Transport = Transport.TCP) -> None:
        """Listen, once, prepared and started to receive."""
        self._call("listen")
        self._check_rdma("migrate-incoming", by)
        await self._listen((address, port))

    async def _listen(self, address: tuple[str, int]) -> None:
        self._require(self.qemu.state is RunState.INMIGRATE, "listen", "'-incoming' was not specified")
        self._require(self.qemu.setup is not None, "listen", "it was not prepared")
        started = self.qemu.incoming_status is not MigrationStatus.NONE
        self._require(not started, "listen", "The incoming migration has already been started")
        self._link.listen(self.qemu, address)

    async def migrate(self, address: str, port: int, by: Transport = Transport.TCP) -> None:
        """Start sending, prepared and from a state that allows it."""
        self._call("migrate")
        self._check_rdma("migrate", by)
        await self._migrate((address, port))

    def _check_rdma(self, name: str, by: Transport) -> None:
        """Refuse what QEMU takes, and would hang or fail with later."""
        self._require(by in (Transport.TCP, Transport.RDMA), name, f"unknown migration protocol: {by}")
        if by is Transport.RDMA:
            wrong = [one for one in ("return-path", "multifd", "postcopy-ram", "xbzrle") if self._has(one)]
            clear = self.qemu.setup is not None and not self.qemu.setup.encrypted
            self._require(clear and not wrong, name, f"RDMA with {', '.join(wrong) or 'TLS'}")

    async def _migrate(self, address: tuple[str, int]) -> None:
        self._require(not self._is_migrating(), "migrate", "There's a migration process in progress")
        self._require(self.qemu.setup is not None, "migrate", "it was not prepared")
        wrong = self.qemu.state in {RunState.INMIGRATE, RunState.POSTMIGRATE, RunState.FINISH_MIGRATE}
        self._require(not wrong, "migrate", f"Guest is in state {self.qemu.state}")
        blocked = self._blocked()
        self._require(not blocked, "migrate", "; ".join(blocked))
        with_state = self.qemu.plugged and self._has("postcopy-ram")
        self._require(not with_state, "migrate", "VFIO migration is not supported with postcopy migration")
        self._link.open_stream(self.qemu, address)

    async def take_stream(self, connection: StreamConnection) -> None:
        """Receive over a connection, once, prepared and started to receive; one channel is all that it has."""
        self._call("take_stream")
        self._require(not self._has("multifd"), "migrate-incoming", "multifd requires multi-channel URIs")
        await self._listen(connection.getsockname())

    async def migrate_over(self, connection: StreamConnection) -> None:
        """Start sending over a connection; one channel is all that it has."""
        self._call("migrate_over")
        self._require(not self._has("multifd"), "migrate", "multifd requires multi-channel URIs")
        await self._migrate(connection.getpeername())

    @property
    def local_socket(self) -> str:
        """Return a path of its own."""
        return f"/run/{self._hypervisor.host}/{self.qemu.guest.spec.name}/stream.sock"

    def count_refused(self) -> int:
        """Return what the test says."""
        return self.qemu.refused

    async def listen_locally(self) -> None:
        """Listen, once, as `listen`; several channels are no matter."""
        self._call("listen_locally")
        await self._listen((self.local_socket, 0))

    async def migrate_locally(self) -> None:
        """Start sending to where somebody joined the local socket with."""
        self._call("migrate_locally")
        await self._migrate((self._link.local.get(self.local_socket, "nobody"), 0))

    async def save_to(self, file: StateFile) -> None:
        """Write into a file, prepared, while the vCPUs stand: a name instead of memory. Scripted: it fails or hangs."""
        self._call("save_to")
        self._require(self.qemu.setup is not None and not self._has("return-path"), "migrate", "it was not prepared")
        self._require(self.qemu.state is RunState.PAUSED, "migrate", f"the guest is in state {self.qemu.state}")
        self.qemu.stream = FakeStream(self.qemu, (FILE, file.fileno()), before=self.qemu.state)
        os.pwrite(file.fileno(), self.qemu.guest.uuid.encode(), file.offset)
        self._link.end_file(self.qemu.stream)

    async def load_from(self, file: StateFile) -> None:
        """Receive from a file, once, prepared and started to receive; it must be this guest's."""
        self._call("load_from")
        await self._listen((FILE, file.fileno()))
        mine = os.pread(file.fileno(), 100, file.offset) == self.qemu.guest.uuid.encode()
        self._link.end_load(self.qemu, is_whole=mine)

    async def migrate_continue(self) -> None:
        """Leave pre-switchover."""
        self._call("migrate_continue")
        stream = self.qemu.stream
        if stream is None or stream.status is not MigrationStatus.PRE_SWITCHOVER or stream.continued:
            status = MigrationStatus.NONE if stream is None else stream.status
            raise Broken(f"QEMU refused migrate-continue: Migration not in expected state: {status}")
        if self.qemu.mirrors:
            raise AssertionError("migrate-continue beside a mirror: QEMU would not refuse, and the copy not be whole")
        self._link.order_continue(stream)

    async def migrate_cancel(self) -> None:
        """Give the migration up; nothing happens when there is none, and it is refused once post-copy began."""
        self._call("migrate_cancel")
        self._require(self._status() not in POSTCOPY, "migrate_cancel", f"it is {self._status()}")
        if self.qemu.stream is not None and self.qemu.stream.address[0] == FILE:
            self._link.cancel_file(self.qemu.stream)
        elif self.qemu.stream is not None:
            self._link.order_cancel(self.qemu.stream)

    async def start_postcopy(self) -> None:
        """Order post-copy; before `device`, and set up for it."""
        self._call("start_postcopy")
        stream = self.qemu.stream
        self._require(stream and self._is_migrating(), "start_postcopy", "a migration must have been started")
        self._require(self._has("postcopy-ram"), "start_postcopy", "Enable postcopy with migrate_set_capability")
        if stream is not None and stream.status not in {*POSTCOPY, MigrationStatus.DEVICE}:
            self._link.order_postcopy(stream)

    async def pause_postcopy(self) -> None:
        """Break the stream on this side."""
        self._call("pause_postcopy")
        active = self._status() in {MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.POSTCOPY_RECOVER}
        self._require(active, "yank", f"only in postcopy-active or postcopy-recover, not {self._status()}")
        if self.qemu.stream is not None:
            self._link.break_postcopy(self.qemu.stream)
        else:
            self._link.pause_arrival(self.qemu)

    async def recover_listen(self, address: str, port: int) -> None:
        """Listen for the recovered stream, while it is paused here."""
        self._call("recover_listen")
        paused = self.qemu.stream is None and self._status() is MigrationStatus.POSTCOPY_PAUSED
        self._require(paused, "migrate-recover", "it can only be run when postcopy is paused")
        self._link.listen_again(self.qemu, (address, port))

    async def resume_stream(self, address: str, port: int) -> None:
        """Connect anew, while it is paused here."""
        self._call("resume_stream")
        stream = self.qemu.stream
        paused = stream is not None and stream.status is MigrationStatus.POSTCOPY_PAUSED
        self._require(paused, "migrate", "Cannot resume if there is no paused migration")
        if stream is not None:
            self._link.resume(stream, (address, port))

    async def set_parameters(self, parameters: Mapping[str, bool | int | str]) -> None:
        """Keep the values."""
        self._call("set_parameters")
        self.qemu.parameters |= check_parameters(parameters, self._hypervisor.facts.parameters, live=True)
        self._link.nudge()

    async def set_bandwidth(self, bandwidth: BytesPerSecond) -> None:
        """Keep the limit."""
        self._call("set_bandwidth")
        self.qemu.bandwidth = bandwidth

    async def sample_memory(self, pages: int) -> bytes:
        """Return pages that compress well."""
        self._call("sample_memory")
        return b"vmferry " * 512 * pages

    def bound_unsent(self, most: Bytes) -> None:
        """Keep it."""
        self._call("bound_unsent")
        self._require(self.qemu.stream is not None, "bound_unsent", "nothing is sent")
        self.qemu.most_unsent = most

    async def set_downtime_limit(self, limit_ms: Milliseconds) -> None:
        """Keep the limit."""
        self._call("set_downtime_limit")
        self.qemu.downtime_limit_ms = limit_ms

    async def announce(self, cards: Collection[str] | None = None) -> None:
        """Note the order; only a guest that runs announces itself, by cards that it has."""
        self._call("announce")
        has = {device.id for device in self.qemu.guest.devices}
        if cards is not None and not set(cards) <= has:
            raise AssertionError(f"announce by {cards}, of {has}")
        self.qemu.announced.append(None if cards is None else frozenset(cards))
        self._require(self.qemu.state is RunState.RUNNING, "announce", "the guest does not run here")

    async def quit(self) -> None:
        """End the process. Idempotent."""
        self._end("quit")

    async def kill(self) -> None:
        """End the process. Idempotent."""
        self._end("kill")

    async def close(self) -> None:
        """Let go of the process. Idempotent."""
        self._hypervisor.note("close", self.qemu.guest.spec.name)
        self._closed = True

    def guest_powers_off(self) -> None:
        """Let the guest shut itself down."""
        self.qemu.state = RunState.SHUTDOWN
        self.qemu.emit(GuestEventKind.POWERED_OFF, detail="guest-shutdown")
        self.qemu.emit(GuestEventKind.STOPPED)

    def guest_panics(self) -> None:
        """Let the guest's kernel panic."""
        self.qemu.state = RunState.PANICKED
        self.qemu.emit(GuestEventKind.PANICKED, detail="pause")
        self.qemu.emit(GuestEventKind.STOPPED)

    def die(self) -> None:
        """End the process as kill -9 from outside does; no call is recorded."""
        self._link.die(self.qemu, "killed from outside")

    def _call(self, name: str) -> None:
        guest = self.qemu.guest.spec.name
        self._hypervisor.note(name, guest)
        if not self.qemu.alive or self._closed:
            raise Broken(f"QMP connection to QEMU of guest {guest} is gone during {name}")
        if self.qemu.deaf and name not in _OUT_OF_BAND:
            raise TimedOut(f"QEMU of guest {guest} did not answer {name} in 15 s")

    def _require(self, holds: object, name: str, why: str) -> None:
        if not holds:
            raise Broken(f"QEMU of guest {self.qemu.guest.spec.name} refused {name}: {why}")

    def _status(self) -> MigrationStatus:
        return self.qemu.incoming_status if self.qemu.stream is None else self.qemu.stream.status

    def _has(self, capability: str) -> bool:
        return self.qemu.setup is not None and bool(self.qemu.setup.capabilities.get(capability))

    def _is_migrating(self) -> bool:
        return self.qemu.stream is not None and self.qemu.stream.status not in ENDED

    def _end(self, name: str) -> None:
        self._hypervisor.note(name, self.qemu.guest.spec.name)
        self._link.die(self.qemu)
