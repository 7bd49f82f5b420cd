"""The world behind `FakeHypervisor`: QEMU processes, image locks and streams in memory, moved on step by step.

Nothing here waits or tells the time. `FakeLink.step` moves every stream by one status; with `auto` the link does that
by itself whenever the event loop is free. Faults are scripted: a side dies, hangs or fails when the stream enters a
status. A cut link keeps streams where they are, as TCP does until somebody gives up.

A post-copy lasts as long as `max-postcopy-bandwidth` is under 1 MiB/s and not 0. Where post-copy began and the stream
breaks, nobody gets the guest back: the fake's QEMU is 10.0 at its worst, stuck in `device` or in `postcopy-paused`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import Broken
from vmferry.core.guest import FrozenGuest
from vmferry.core.migration import POSTCOPY
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import VFIO
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds
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
from vmferry.qemu.events import EventHub

if TYPE_CHECKING:
    from vmferry.testing.fake_mirrors import FakeMirror

#: where a stream has ended
ENDED = frozenset({MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED, MigrationStatus.NONE})

#: Stands where a stream that goes into a file, or comes out of one, has its peer's address.
FILE = "file"
FAKE_BANDWIDTH = BytesPerSecond(100 * MIB)
#: Slower than this, post-copy's last page never comes.
_CRAWL = BytesPerSecond(MIB)


class FaultAction(enum.StrEnum):
    """What goes wrong."""

    DIE = "die"  #: the side's process ends
    HANG = "hang"  #: the stream stays in the status until `FakeLink.release`
    FAIL = "fail"  #: the stream breaks; in pre-switchover QEMU tells the reason and waits all the same


@dataclass(frozen=True, slots=True)
class Fault:
    """One scripted failure, met once: when a stream enters `status` (as the source sees it)."""

    status: MigrationStatus
    action: FaultAction
    side: str = "destination"  #: which process dies


@dataclass(eq=False)
class FakeQemu:
    """One process: what is left of it when every handle is gone."""

    guest: FrozenGuest
    record: ProcessRecord
    incoming: bool
    now_ns: Callable[[], int]
    state: RunState
    resources: HostResources
    alive: bool = True
    hub: EventHub = field(default_factory=EventHub)
    setup: MigrationSetup | None = None
    refused: int = 0  #: connections without the key, as a test has it
    listening: tuple[str, int] | None = None
    stream: FakeStream | None = None
    incoming_status: MigrationStatus = MigrationStatus.NONE
    obeys_power_button: bool = True
    deaf: bool = False  #: it waits for a page with its lock held: no question is answered
    bandwidth: BytesPerSecond | None = None  #: last limit that was set
    most_unsent: Bytes | None = None  #: last bound of what waits in the kernel
    downtime_limit_ms: Milliseconds | None = None  #: last limit that was set
    parameters: dict[str, bool | int | str] = field(default_factory=dict)  #: last values that were set
    arrival: FakeStream | None = None  #: the stream that it receives
    mirrors: list[FakeMirror] = field(default_factory=list)  #: of its images
    exports: set[str] = field(default_factory=set)  #: images that others may write
    exports_at: tuple[str, int] | None = None
    exports_encrypted: bool = False
    writes_much: bool = False  #: to its images, as fast as they are copied
    disk_answers: bool = True  #: requests of the guest to its disk are answered
    disk_answered: int = 0
    hangs_for_a_mirror: bool = False  #: deaf until its mirrors are cut
    mirror_bandwidth: BytesPerSecond | None = None
    has_lost_tpm: bool = False  #: what emulates its TPM has ended
    empty: set[str] = field(default_factory=set)  #: images that it does not have, or not all of
    plugged: dict[str, DeviceClaim] = field(default_factory=dict)  #: those that it has, by their ids
    announced: list[frozenset[str] | None] = field(default_factory=list)  #: by which cards, each time; None: all
    obeys_unplug: bool = True
    refuses_unplug: bool = False  #: the guest says no, and tells so

    def emit(self, kind: GuestEventKind, *, round_: int | None = None, detail: str | None = None) -> None:
        """Tell every reader."""
        self.hub.publish(GuestEvent(kind, self.now_ns(), round=round_, detail=detail))

    def emit_status(self, status: MigrationStatus) -> None:
        """Tell every reader of a migration status, if that was asked for."""
        if self.setup is not None and self.setup.capabilities.get("events"):
            self.hub.publish(GuestEvent(GuestEventKind.MIGRATION, self.now_ns(), status=status))

    def writable_images(self) -> list[str]:
        """Return the images on which it takes a write lock."""
        return [disk.path for disk in self.guest.spec.disks if not disk.read_only]


@dataclass(eq=False)
class FakeStream:
    """One migration as its source sees it."""

    source: FakeQemu
    address: tuple[str, int]
    status: MigrationStatus = MigrationStatus.SETUP
    destination: FakeQemu | None = None
    rounds: int = 0
    before: RunState = RunState.RUNNING
    continued: bool = False
    hung: bool = False
    loaded: bool = False
    error: str | None = None
    broken: bool = False  #: the stream is cut, and QEMU has not acted on it yet
    postcopy: bool = False  #: post-copy was ordered
    endless: bool = False  #: each round dirties as much as it sends

    def is_over(self) -> bool:
        """Tell whether nothing will happen any more."""
        return self.status in ENDED and self.source.state is not RunState.FINISH_MIGRATE

    def sample(self) -> MigrationSample:
        """Return a reading; figures are made up and agree with each other."""
        total = self.source.guest.spec.memory_bytes
        left = 0 if self.status is MigrationStatus.COMPLETED else total >> min(self.rounds * 4, 40)
        sent = total - left if self.rounds else 0
        if self.endless and self.status is MigrationStatus.ACTIVE:
            left, sent = total, total * max(self.rounds - 1, 0)
        return MigrationSample(
            status=self.status,
            error=self.error,
            rounds=self.rounds,
            transferred_bytes=Bytes(sent),
            remaining_bytes=Bytes(left),
            total_bytes=total,
            bandwidth=FAKE_BANDWIDTH,
            dirty_bytes_per_second=BytesPerSecond(MIB),
            total_ms=Milliseconds(100.0 * self.rounds),
            expected_downtime_ms=Milliseconds(left * 1000 / FAKE_BANDWIDTH),
            downtime_ms=Milliseconds(10.0) if self.status is MigrationStatus.COMPLETED else None,
        )


class FakeLink:
    """What hosts share: the network between them, the storage with its locks, and the script of faults.

    Args:
        auto: move streams on by itself; else the test calls `step`.
        rounds: how many rounds a stream takes until it is ripe.
        now_ns: the clock for events; counts calls by default.
    """

    def __init__(self, *, auto: bool = True, rounds: int = 2, now_ns: Callable[[], int] | None = None) -> None:
        ticks = itertools.count(1)
        self.lent: set[tuple[str, DeviceClaim, int | None]] = set()  #: by each host, and to which user
        self.kinds: dict[tuple[str, PciAddress], tuple[str, str]] = {}  #: of what was lent: vendor:device, driver
        self.now_ns = now_ns or (lambda: next(ticks))
        self.rounds = rounds
        self.locks: dict[str, FakeQemu] = {}
        self.faults: list[Fault] = []
        self.processes: dict[int, FakeQemu] = {}
        self.taken_ports: set[tuple[str, int]] = set()  #: by somebody else
        self.is_cut = False
        self.local: dict[str, str] = {}  #: where what is sent to a local socket arrives: at which other one
        self.file_fault: FaultAction | None = None  #: what happens to every save and restore
        self._auto = auto
        self._pids = itertools.count(1001)
        self._streams: list[FakeStream] = []

    def script(self, *faults: Fault) -> None:
        """Add failures to come."""
        self.faults += faults

    def cut(self) -> None:
        """Cut the hosts off from each other: streams stay where they are, new ones fail."""
        self.is_cut = True

    def heal(self) -> None:
        """Join them again; streams go on."""
        self.is_cut = False
        self._kick()

    def release(self) -> None:
        """Let streams go on that hang."""
        for stream in self._streams:
            stream.hung = False
        self._kick()

    def nudge(self) -> None:
        """Let streams go on whose limits were changed."""
        self._kick()

    def step(self) -> None:
        """Move every stream by one status."""
        for stream in list(self._streams):
            self._step(stream)
            if stream.is_over() and stream in self._streams:
                self._streams.remove(stream)

    def spawn(self, guest: FrozenGuest, resources: HostResources, boot_id: str, *, incoming: bool) -> FakeQemu:
        """Start a process; a guest that does not arrive takes its locks now.

        Raises:
            Broken: an image is locked elsewhere.
        """
        pid = next(self._pids)
        state = RunState.INMIGRATE if incoming else RunState.PRELAUNCH
        qemu = FakeQemu(guest, ProcessRecord(pid, pid * 10, boot_id), incoming, self.now_ns, state, resources)
        if not incoming:
            self.take_locks(qemu)
        self.processes[pid] = qemu
        return qemu

    def kinds_of(self, qemu: FakeQemu) -> dict[str, tuple[str, str]]:
        """Return of what kind a process's devices of its host are, by their ports."""
        host = qemu.record.boot_id.partition(":")[0]
        return {claim.port: self.kinds.get((host, claim.address), ("", VFIO)) for claim in qemu.plugged.values()}

    def take_locks(self, qemu: FakeQemu) -> None:
        """Take the write lock of each image, all or none.

        Raises:
            Broken: one is held by another process.
        """
        for path in qemu.writable_images():
            if self.locks.get(path, qemu) is not qemu:
                raise Broken(f'Failed to get "write" lock on {path}: is another process using the image?')
        self.locks.update(dict.fromkeys(qemu.writable_images(), qemu))

    def drop_locks(self, qemu: FakeQemu) -> None:
        """Drop what it holds."""
        self.locks = {path: holder for path, holder in self.locks.items() if holder is not qemu}

    def die(self, qemu: FakeQemu, why: str | None = None) -> None:
        """End a process as kill -9 does: locks, ports and stream go with it."""
        if not qemu.alive:
            return
        qemu.alive = False
        qemu.listening = None
        self.drop_locks(qemu)
        qemu.emit(GuestEventKind.EXITED, detail=why)
        for stream in list(self._streams):
            if stream.source is qemu:
                self._streams.remove(stream)
                stream.broken = True
                self._pause_destination(stream)
        self._kick()

    def listen(self, qemu: FakeQemu, address: tuple[str, int]) -> None:
        """Occupy a port; as with QEMU 10.0, a process that failed here can never listen again.

        Raises:
            Broken: it is taken.
        """
        self._set_incoming(qemu, MigrationStatus.SETUP)
        if address in self.taken_ports or any(q.listening == address for q in self.processes.values()):
            raise Broken(f"Failed to find an available port: {address[0]}:{address[1]} Address already in use")
        qemu.listening = address

    def open_stream(self, source: FakeQemu, address: tuple[str, int]) -> None:
        """Begin to send; whether anybody listens shows later, as with QEMU."""
        source.stream = FakeStream(source, address, before=source.state)
        source.emit_status(MigrationStatus.SETUP)
        self._streams.append(source.stream)
        self._meet_faults(source.stream)
        self._kick()

    def end_file(self, stream: FakeStream) -> None:
        """Have a file written, unless the script says otherwise."""
        if self.file_fault is FaultAction.HANG:
            stream.status = MigrationStatus.ACTIVE
        elif self.file_fault is FaultAction.FAIL:
            stream.status, stream.error = MigrationStatus.FAILED, "No space left on device"
        elif self.file_fault is FaultAction.DIE:
            self.die(stream.source, "killed from outside")
        else:
            stream.status, stream.source.state = MigrationStatus.COMPLETED, RunState.POSTMIGRATE
            self.drop_locks(stream.source)

    def cancel_file(self, stream: FakeStream) -> None:
        """Give a file up that is being written."""
        if stream.status is MigrationStatus.ACTIVE:
            stream.status = MigrationStatus.CANCELLED

    def end_load(self, qemu: FakeQemu, *, is_whole: bool) -> None:
        """Have a file loaded, unless the script says otherwise."""
        qemu.listening = None
        if self.file_fault is FaultAction.DIE:
            self.die(qemu, "killed from outside")
        elif self.file_fault is FaultAction.HANG:
            self._set_incoming(qemu, MigrationStatus.ACTIVE)
        elif self.file_fault is FaultAction.FAIL or not is_whole:
            self._set_incoming(qemu, MigrationStatus.FAILED)
        else:
            self._set_incoming(qemu, MigrationStatus.COMPLETED)
            qemu.state = RunState.PAUSED

    def order_continue(self, stream: FakeStream) -> None:
        """Let a stream leave pre-switchover."""
        stream.continued = True
        self._kick()

    def order_postcopy(self, stream: FakeStream) -> None:
        """End the rounds of a stream and begin post-copy after pre-switchover."""
        stream.postcopy = True
        self._kick()

    def break_postcopy(self, stream: FakeStream) -> None:
        """Cut the stream of a post-copy for both sides; over a cut link only the source's side notices."""
        stream.broken = True
        self._pause_source(stream, "Channel error: Input/output error")
        if not self.is_cut:
            self._pause_destination(stream)

    def break_behind_last_page(self, stream: FakeStream) -> None:
        """Cut a post-copy whose last page is sent: the source fails, and runs again if it had stopped by itself."""
        stream.broken = True
        stream.error = "Unable to read from socket: Connection reset by peer"
        stream.status = MigrationStatus.FAILED
        stream.source.emit_status(MigrationStatus.FAILED)
        self._pause_destination(stream)
        with contextlib.suppress(Broken):  # 10.0 starts nothing whose image somebody else has locked
            self._restart(stream)

    def pause_arrival(self, qemu: FakeQemu) -> None:
        """Cut the stream of a post-copy at its destination; over a cut link the source does not notice."""
        if qemu.arrival is not None:
            qemu.arrival.broken = True
            self._pause_destination(qemu.arrival)
            if not self.is_cut:
                self._pause_source(qemu.arrival, "Unable to read from socket: Connection reset by peer")

    def listen_again(self, qemu: FakeQemu, address: tuple[str, int]) -> None:
        """Occupy a port for a recovered stream; gives up the one before.

        Raises:
            Broken: it is taken.
        """
        qemu.listening = None
        if address in self.taken_ports or any(q.listening == address for q in self.processes.values()):
            raise Broken(f"Failed to find an available port: {address[0]}:{address[1]} Address already in use")
        qemu.listening = address

    def resume(self, stream: FakeStream, address: tuple[str, int]) -> None:
        """Connect a paused post-copy anew; whether anybody listens shows later, as with QEMU."""
        stream.address = address
        stream.error = None
        self._enter(stream, MigrationStatus.POSTCOPY_RECOVER_SETUP)
        self._kick()

    def order_cancel(self, stream: FakeStream) -> None:
        """Give a stream up; in `device` it is too late and the stream goes on."""
        if stream.status in ENDED or stream.status is MigrationStatus.DEVICE:
            return
        stream.hung = False
        self._enter(stream, MigrationStatus.CANCELLING)
        self._kick()

    def _kick(self) -> None:
        if self._auto and self._streams:
            asyncio.get_running_loop().call_soon(self._auto_step)

    def _auto_step(self) -> None:
        before = self._progress()
        self.step()
        if before != self._progress():
            self._kick()

    def _progress(self) -> list[tuple[object, ...]]:
        return [
            (s.status, s.rounds, s.loaded, s.source.state, s.destination and (s.destination.incoming_status, s.broken))
            for s in self._streams
        ]

    def _step(self, stream: FakeStream) -> None:
        if stream.status is MigrationStatus.CANCELLING:
            self._give_back(stream, MigrationStatus.CANCELLED)
            return
        if stream.status in {MigrationStatus.FAILED, MigrationStatus.CANCELLED}:
            self._restart(stream)
            return
        if stream.status is MigrationStatus.POSTCOPY_RECOVER_SETUP:
            self._reconnect(stream)
            return
        if stream.hung or (self.is_cut and stream.destination is not None and stream.status not in ENDED):
            return
        if stream.status in POSTCOPY and stream.destination is not None:
            self._advance_postcopy(stream, stream.destination)
            return
        if self._waits_for_order(stream):
            return  # QEMU does not look at the stream here: a dead destination goes unseen
        if stream.status is MigrationStatus.SETUP:
            self._connect(stream)
        elif stream.status is not MigrationStatus.COMPLETED and not self._is_heard(stream):
            self._lose(stream, "Unable to write to socket: Broken pipe")
        elif stream.destination is not None:
            self._advance(stream, stream.destination)

    @staticmethod
    def _is_heard(stream: FakeStream) -> bool:
        return stream.destination is not None and stream.destination.alive and not stream.broken

    @staticmethod
    def _waits_for_order(stream: FakeStream) -> bool:
        return stream.status is MigrationStatus.PRE_SWITCHOVER and not stream.continued

    def _connect(self, stream: FakeStream) -> None:
        found = [q for q in self.processes.values() if q.alive and q.listening == stream.address]
        if self.is_cut or not found:
            self._fail(stream, f"Failed to connect to '{stream.address[0]}:{stream.address[1]}': Connection refused")
            return
        stream.destination = found[0]
        stream.destination.arrival = stream
        if stream.destination.setup != stream.source.setup:
            self._fail(stream, "the two sides are set up differently")
            return
        if self.kinds_of(stream.destination) != self.kinds_of(stream.source):
            self._fail(stream, "Unknown section or instance '0000:00:02.0:00.0/vfio' 0")
            return
        self._set_incoming(stream.destination, MigrationStatus.ACTIVE)
        self._enter(stream, MigrationStatus.ACTIVE)

    def _advance(self, stream: FakeStream, destination: FakeQemu) -> None:
        setup = stream.source.setup
        if stream.status is MigrationStatus.ACTIVE and stream.rounds < self.rounds and not stream.postcopy:
            stream.rounds += 1
            stream.source.emit(GuestEventKind.ROUND_ENDED, round_=stream.rounds)
        elif stream.status is MigrationStatus.ACTIVE:
            self._stop_source(stream)
            pauses = setup is not None and setup.capabilities.get("pause-before-switchover")
            self._enter(stream, MigrationStatus.PRE_SWITCHOVER if pauses else MigrationStatus.DEVICE)
        elif stream.status is MigrationStatus.PRE_SWITCHOVER:
            self._enter(stream, MigrationStatus.DEVICE)
        elif stream.postcopy and stream.status is MigrationStatus.DEVICE:
            self._enter(stream, MigrationStatus.POSTCOPY_ACTIVE)
        elif not stream.loaded:
            # The destination is done first; the source still waits for its word.
            stream.loaded = True
            destination.state = RunState.PAUSED if stream.before is RunState.RUNNING else stream.before
            destination.listening = None
            self._set_incoming(destination, MigrationStatus.COMPLETED)
        elif stream.status is MigrationStatus.DEVICE:
            self._enter(stream, MigrationStatus.COMPLETED)
        else:
            # As with QEMU 7.2: the status is there before the run state.
            stream.source.state = RunState.POSTMIGRATE

    def _advance_postcopy(self, stream: FakeStream, destination: FakeQemu) -> None:
        if stream.status is MigrationStatus.POSTCOPY_PAUSED:
            return
        if not self._is_heard(stream):
            self._pause_source(stream, "Unable to read from socket: Connection reset by peer")
            self._pause_destination(stream)
        elif stream.status is MigrationStatus.POSTCOPY_RECOVER:
            self._set_incoming(destination, MigrationStatus.POSTCOPY_ACTIVE)
            self._enter(stream, MigrationStatus.POSTCOPY_ACTIVE)
        elif destination.state is RunState.INMIGRATE:
            # The source is there first; the destination still loads what was sent.
            destination.state = RunState.PAUSED if stream.before is RunState.RUNNING else stream.before
            destination.listening = None
            self._set_incoming(destination, MigrationStatus.POSTCOPY_ACTIVE)
        elif 0 < int(stream.source.parameters.get("max-postcopy-bandwidth", 0)) < _CRAWL:
            return
        elif destination.incoming_status is not MigrationStatus.COMPLETED:
            self._set_incoming(destination, MigrationStatus.COMPLETED)
        else:
            stream.loaded = True
            self._enter(stream, MigrationStatus.COMPLETED)

    def _reconnect(self, stream: FakeStream) -> None:
        destination = stream.destination
        heard = destination is not None and destination.alive and destination.listening == stream.address
        if destination is None or self.is_cut or not heard:
            self._pause_source(stream, f"Failed to connect to '{stream.address[0]}:{stream.address[1]}'")
            return
        destination.listening = None
        stream.broken = False
        self._set_incoming(destination, MigrationStatus.POSTCOPY_RECOVER)
        self._enter(stream, MigrationStatus.POSTCOPY_RECOVER)

    def _lose(self, stream: FakeStream, why: str) -> None:
        """Meet a stream that broke unseen: before post-copy the source goes on, with it nobody does."""
        if stream.postcopy and stream.status is MigrationStatus.DEVICE:
            stream.error = why  # as with QEMU 10.0: `device` for ever, whatever one orders
        else:
            self._fail(stream, why)

    def _pause_source(self, stream: FakeStream, why: str) -> None:
        if stream.source.alive and stream.status in POSTCOPY - {MigrationStatus.POSTCOPY_PAUSED}:
            stream.error = why
            self._enter(stream, MigrationStatus.POSTCOPY_PAUSED)

    def _pause_destination(self, stream: FakeStream) -> None:
        destination = stream.destination
        if destination is None or not destination.alive:
            return
        if destination.incoming_status in {MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.POSTCOPY_RECOVER}:
            self._set_incoming(destination, MigrationStatus.POSTCOPY_PAUSED)
        else:
            self._abandon_destination(stream)

    def _enter(self, stream: FakeStream, status: MigrationStatus) -> None:
        stream.status = status
        if status is MigrationStatus.DEVICE:
            self.drop_locks(stream.source)
        stream.source.emit_status(status)
        self._meet_faults(stream)

    def _meet_faults(self, stream: FakeStream) -> None:
        for fault in [fault for fault in self.faults if fault.status is stream.status]:
            self.faults.remove(fault)
            if fault.action is FaultAction.HANG:
                stream.hung = True
            elif fault.action is FaultAction.FAIL:
                self._break(stream, "Unable to read from socket: Connection reset by peer")
            elif fault.side == "source":
                self.die(stream.source, "killed by the script")
            elif stream.destination is not None:
                self.die(stream.destination, "killed by the script")

    @staticmethod
    def _stop_source(stream: FakeStream) -> None:
        stream.before = stream.source.state
        stream.source.state = RunState.FINISH_MIGRATE
        if stream.before is RunState.RUNNING:
            stream.source.emit(GuestEventKind.STOPPED)

    def _break(self, stream: FakeStream, why: str) -> None:
        if stream.status is MigrationStatus.PRE_SWITCHOVER:
            stream.error, stream.broken = why, True
            self._abandon_destination(stream)
        elif stream.status in POSTCOPY:
            stream.broken = True  # both sides notice with the next step
        else:
            self._fail(stream, why)

    def _fail(self, stream: FakeStream, why: str) -> None:
        stream.error = why
        self._give_back(stream, MigrationStatus.FAILED)

    def _give_back(self, stream: FakeStream, status: MigrationStatus) -> None:
        """End a stream at the source; as with QEMU, the status is there a moment before the vCPUs run again."""
        self._abandon_destination(stream)
        stream.status = status
        stream.source.emit_status(status)

    def _restart(self, stream: FakeStream) -> None:
        """Let the source's vCPUs run again by themselves, if they ran before."""
        self.take_locks(stream.source)
        stream.source.state = stream.before
        if stream.before is RunState.RUNNING:
            stream.source.emit(GuestEventKind.RESUMED)

    def _abandon_destination(self, stream: FakeStream) -> None:
        # A QEMU whose incoming stream breaks exits, unless everything had arrived.
        if stream.destination is not None and stream.destination.state is RunState.INMIGRATE:
            self.die(stream.destination, "load of migration failed: Input/output error")

    @staticmethod
    def _set_incoming(qemu: FakeQemu, status: MigrationStatus) -> None:
        qemu.incoming_status = status
        qemu.emit_status(status)
