"""What a hypervisor must be able to do for us. `qemu/` is the reference; fakes in `testing/` are stricter.

A driver turns its own words into these facts and calls once, at its edge: run states, migration samples and events
carry our units. No method retries; each says how it fails.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vmferry.core.capabilities import Transport
from vmferry.core.guest import FrozenGuest, GuestSpec
from vmferry.core.host import QemuFacts
from vmferry.core.migration import MigrationSample, MigrationStatus, RunState
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.disks import DiskMirrors
from vmferry.ports.host_devices import DevicePlugs
from vmferry.ports.state_file import StateFile
from vmferry.ports.stream import StreamConnection

__all__ = [
    "Certificates",
    "GuestEvent",
    "GuestEventKind",
    "GuestProcess",
    "HostResources",
    "Hypervisor",
    "MigrationSample",
    "MigrationSetup",
    "MigrationStatus",
    "ProcessRecord",
    "RunState",
]


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One QEMU process, recognisable after an agent restart and after a host reboot (a pid alone is reused)."""

    pid: int
    start_ticks: int  #: field 22 of /proc/PID/stat
    boot_id: str


class GuestEventKind(enum.StrEnum):
    """What can happen to a guest's process; facts, past tense."""

    STOPPED = "stopped"  #: vCPUs stopped (QEMU's STOP)
    RESUMED = "resumed"  #: vCPUs run (QEMU's RESUME)
    RESET = "reset"  #: the guest rebooted itself
    POWERED_OFF = "powered-off"  #: the guest shut itself down; QEMU stays
    PANICKED = "panicked"
    MIGRATION = "migration"  #: the migration's status changed
    ROUND_ENDED = "round-ended"  #: MIGRATION_PASS
    EXITED = "exited"  #: the process is gone
    IO_ERROR = "io-error"
    TPM_ENDED = "tpm-ended"  #: the process that emulates its TPM is gone, QEMU is not: each TPM command fails
    MIRROR_FAILED = "mirror-failed"  #: the copy of an image ended before it was to
    UNPLUGGED = "unplugged"  #: the guest, or the host's kernel, has let a device go; `detail` is its id
    UNPLUG_REFUSED = "unplug-refused"  #: the guest keeps a device that it was to let go; `detail` is its id


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """One event of a guest's process; `at_ns` is CLOCK_MONOTONIC when it happened, by the hypervisor's own stamp."""

    kind: GuestEventKind
    at_ns: int
    status: MigrationStatus | None = None  #: with MIGRATION
    round: int | None = None  #: with ROUND_ENDED
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Certificates:
    """By which certificates both sides of a stream know each other; told by the agents, nothing secret is in it."""

    client: str  #: the source's, PEM
    client_name: str  #: its subject, as QEMU writes it: the destination lets nobody else in
    server: str  #: the destination's, PEM: the source sends to nobody else
    server_name: str  #: the host that it must be for


@dataclass(frozen=True, slots=True)
class MigrationSetup:
    """How a stream is set up; both sides get the same, before the destination listens.

    `capabilities` are QAPI names -> on/off, `parameters` QAPI names -> values in QAPI's units (levels, percents,
    bytes). `psk_key` (hex) switches TLS-PSK on, `certificates` TLS by certificates; never both.
    """

    capabilities: Mapping[str, bool]
    max_bandwidth: BytesPerSecond | None
    downtime_limit_ms: Milliseconds
    parameters: Mapping[str, bool | int | str] = field(default_factory=dict)
    psk_key: str | None = field(default=None, repr=False)  #: never printed, not even in a traceback
    certificates: Certificates | None = None

    @property
    def encrypted(self) -> bool:
        """Tell whether QEMU encrypts the stream."""
        return self.psk_key is not None or self.certificates is not None


@dataclass(frozen=True, slots=True)
class HostResources:
    """What the host gives to one guest's process: the host half of the command line's input."""

    run_dir: str  #: the guest's own directory: QMP socket, pid, logs, keys
    uid: int | None  #: unprivileged user of the process; None = the agent's own
    beat_port: int | None = None  #: UDP port on 127.0.0.1 to which beats go
    tpm_dir: str | None = None  #: directory of the state of its TPM; None: it has none
    #: a program that is started with the agent's rights and becomes QEMU, in the same process; empty: QEMU is started.
    #: It is given UID (`-`: none), GROUPS (joined by commas), NAME=VALUE of the environment, `--`, and what to become
    start_through: tuple[str, ...] = ()


class GuestProcess(Protocol):
    """One QEMU process that we started or re-adopted."""

    @property
    def record(self) -> ProcessRecord:
        """The process as the journal knows it."""

    @property
    def mirrors(self) -> DiskMirrors:
        """Mirrors of its images."""

    @property
    def plugs(self) -> DevicePlugs:
        """The host's devices that it has."""

    @property
    def has_lost_tpm(self) -> bool:
        """Tell whether what emulates the guest's TPM has ended while the guest lives."""

    def is_alive(self) -> bool:
        """Tell whether the process exists now; False is proof (same pid, start time and boot)."""

    def events(self) -> AsyncIterator[GuestEvent]:
        """Return a subscription that begins now; it ends after EXITED. Each call is an independent one."""

    async def wait_answers(self) -> None:
        """Wait until it answers questions, or is gone: one that was adopted may hang with a vCPU that lacks a page.

        Until then `pause_postcopy` and `recover_listen` work, events come, and questions end with TimedOut.
        """

    async def query_run_state(self) -> RunState:
        """Ask for the run state."""

    async def query_migration(self) -> MigrationSample:
        """Ask how the migration goes (either side)."""

    async def cont(self, *, seen: RunState | None = None) -> int:
        """Start the vCPUs and return when that was; refuses (Broken) unless they are stopped and everything is loaded.

        Args:
            seen: the run state, from who has asked a moment ago: it is not asked for again, a guest stands still.
        """

    async def stop(self) -> None:
        """Stop the vCPUs; refuses (Broken) while they wait for pages of a broken post-copy: QEMU would hang."""

    async def power_down(self) -> None:
        """Press the guest's power button (ACPI); the guest may take its time, or not listen."""

    async def prepare_migration(self, setup: MigrationSetup, *, incoming: bool) -> None:
        """Set capabilities, parameters and TLS credentials; the same call on both sides."""

    async def listen(self, address: str, port: int, by: Transport = Transport.TCP) -> None:
        """Listen for the stream (incoming side, started with -S -incoming defer); by TCP or RDMA."""

    async def migrate(self, address: str, port: int, by: Transport = Transport.TCP) -> None:
        """Start sending, by TCP or RDMA; returns when QEMU accepted the order."""

    async def take_stream(self, connection: StreamConnection) -> None:
        """Receive over a connection that is there (instead of `listen`); the caller closes its own end of it."""

    async def migrate_over(self, connection: StreamConnection) -> None:
        """Start sending over a connection that is there; the caller closes its own end of it."""

    @property
    def local_socket(self) -> str:
        """Return where QEMU's local socket for a stream is, on either side."""

    def count_refused(self) -> int:
        """Return how many connections QEMU has refused for want of the key or a certificate; may read a file."""

    async def listen_locally(self) -> None:
        """Listen for the stream on the local socket (instead of `listen`); each channel is a connection of its own."""

    async def migrate_locally(self) -> None:
        """Start sending to the local socket, on which somebody listens."""

    async def save_to(self, file: StateFile) -> None:
        """Start writing the guest's state into a file, from its offset on; the caller closes its own end of it."""

    async def load_from(self, file: StateFile) -> None:
        """Receive from a file (instead of `listen`), prepared as it was written; the caller closes its own end."""

    async def migrate_continue(self) -> None:
        """Leave pre-switchover: send the last pages and the device state."""

    async def migrate_cancel(self) -> None:
        """Ask QEMU to give the migration up; the status tells when it has. Refuses (Broken) once post-copy began."""

    async def start_postcopy(self) -> None:
        """End the rounds and go to pre-switchover now; `migrate_continue` then begins post-copy (source). Idempotent.

        Needs `migrate` before it. With pause-before-switchover nothing is lost yet: cancel still gives the guest back.
        """

    async def pause_postcopy(self) -> None:
        """Break the stream of a post-copy here, so that it can be recovered (either side).

        QEMU does not notice a silent cut by itself. The status then is postcopy-paused.
        """

    async def recover_listen(self, address: str, port: int) -> None:
        """Listen for the recovered stream (destination, in postcopy-paused); a further call replaces the address.

        The key and the capabilities are those of `prepare_migration`.
        """

    async def resume_stream(self, address: str, port: int) -> None:
        """Connect anew (source, in postcopy-paused); returns when QEMU accepted the order.

        The status leads to postcopy-active, or back to postcopy-paused with the reason in `error`.
        """

    async def set_parameters(self, parameters: Mapping[str, bool | int | str]) -> None:
        """Change parameters of a running migration (throttles, cache, post-copy bandwidth); QAPI names and units."""

    async def set_bandwidth(self, bandwidth: BytesPerSecond) -> None:
        """Change the limit of a running migration."""

    async def sample_memory(self, pages: int) -> bytes:
        """Return some pages of the guest's memory at random places, one behind the other, without those of zeros.

        Args:
            pages: at most so many; fewer, or none, when most are zero.

        Raises:
            Broken: this process may not look into QEMU, or does not find them.
        """

    def bound_unsent(self, most: Bytes) -> None:
        """Let no more of the stream than this wait unsent in the source's kernel: what waits is part of the gap.

        Raises:
            Broken: nothing is sent, or it cannot be done on this host; the stream goes on as it was.
        """

    async def set_downtime_limit(self, limit_ms: Milliseconds) -> None:
        """Change the downtime limit of a running migration."""

    async def cleanup_migration(self) -> None:
        """Remove the key of the last migration, here and in the process. Idempotent; for when a migration has ended."""

    async def announce(self, cards: Collection[str] | None = None) -> None:
        """Tell the network where the guest is now (announce-self): by all of its cards, or by these."""

    async def quit(self) -> None:
        """End the process politely and wait for it; kills it when it does not go in time. Idempotent."""

    async def kill(self) -> None:
        """End the process at once and wait until it is proven dead. Idempotent."""

    async def close(self) -> None:
        """Let go of the process without touching it (the agent stops, QEMU lives on)."""


class Hypervisor(Protocol):
    """Starts and re-adopts guests on this host."""

    async def query_facts(self) -> QemuFacts:
        """Ask a probe process what this QEMU can do; cached per binary."""

    async def freeze(self, spec: GuestSpec) -> FrozenGuest:
        """Decide and fix the hardware of a new guest (addresses, ids, MACs, CPU, acceleration)."""

    async def probe_cpu(self, guest: FrozenGuest) -> Sequence[str]:
        """Return the guest's CPU features that this host does not offer; empty = it can run here."""

    async def start(self, guest: FrozenGuest, resources: HostResources, *, incoming: bool) -> GuestProcess:
        """Start the guest's process, paused (-S); with `incoming`, ready for `listen`.

        On failure nothing is left: no process, no tap, no socket.
        """

    async def adopt(self, guest: FrozenGuest, resources: HostResources, record: ProcessRecord) -> GuestProcess | None:
        """Take over a process that an earlier agent started; None when it is proven dead.

        It need not answer questions yet (`GuestProcess.wait_answers`).
        """

    async def end_unrecorded(self, guest: FrozenGuest, resources: HostResources) -> bool:
        """End the process that was started with these resources and that no journal has; tell if there was one.

        Its agent was killed before it could journal the record, so it was never told to run. One that was is Broken,
        and not touched.
        """
