"""One guest's QEMU, driven over QMP: the reference implementation of `ports.hypervisor.GuestProcess`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import structlog

from vmferry.core.capabilities import Transport
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.guest import GuestSpec
from vmferry.core.migration import POSTCOPY, POSTCOPY_BROKEN
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import (
    GuestEvent,
    GuestEventKind,
    MigrationSample,
    MigrationSetup,
    ProcessRecord,
    RunState,
)
from vmferry.ports.state_file import StateFile
from vmferry.ports.stream import StreamConnection
from vmferry.qemu import emergency, given
from vmferry.qemu.breaking import Breaker
from vmferry.qemu.credentials import CertificateFiles, Credentials, no_certificates
from vmferry.qemu.disk_mirror import QemuDiskMirrors
from vmferry.qemu.events import EventHub, run_state, translate
from vmferry.qemu.forwards import forwards_of, open_forwards
from vmferry.qemu.guest_pages import sample_pages
from vmferry.qemu.hot_plug import QemuPlugs
from vmferry.qemu.migration import (
    NO_BANDWIDTH_LIMIT,
    changed_capabilities,
    check_parameters,
    check_setup,
    parameters,
    sample,
    uri,
)
from vmferry.qemu.process import Process
from vmferry.qemu.qmp import CONNECT_TIMEOUT_S, QmpSession, SaidNo
from vmferry.qemu.rdma import LockedMemory
from vmferry.qemu.reconnection import TELLS_CONNECTING, Reconnection
from vmferry.qemu.run_dir import LOCAL_URI, RunDir
from vmferry.qemu.sockets import connect
from vmferry.qemu.tpm import TpmWatch

QUIT_TIMEOUT_S = 10.0
#: A QEMU of an earlier agent that has not answered for so long may be waiting for a page.
_DEAF_AFTER_S = 3.0
_CONNECT_AGAIN_S = 0.5

_log = structlog.get_logger(__name__)

#: Everything is loaded, the vCPUs stand still, and no stream is open: only here does `cont` mean "start now".
#: At `inmigrate` QEMU 10.0 accepts an early `cont` and starts the guest when loading ends, before any commit.
STARTABLE = frozenset({RunState.PAUSED, RunState.PRELAUNCH, RunState.POSTMIGRATE, RunState.IO_ERROR})


class QemuGuestProcess:
    """One QEMU process that we started or re-adopted.

    Args:
        spec: of the guest.
        process: the process; owned from here on.
        run_dir: its directory.
        uid: its user, None for the agent's own.
        line: our end of its emergency line, if it is at hand; owned from here on.
        files: gives this host's certificates.
        tpm: watches and ends the emulator of its TPM; None: it has none, or nobody shall.

    Source: docs/interop/qmp-spec, qapi/{run-state,migration,misc}.json.
    """

    def __init__(
        self,
        spec: GuestSpec,
        process: Process,
        run_dir: RunDir,
        uid: int | None,
        line: emergency.Line | None = None,
        files: CertificateFiles = no_certificates,
        tpm: TpmWatch | None = None,
    ) -> None:
        self._name = spec.name
        self._tpm = tpm or TpmWatch(spec.name, None)
        self._memory_bytes = spec.memory_bytes
        self._forwards = forwards_of(spec)
        self._process = process
        self._run_dir = run_dir
        self._session = QmpSession(spec.name)
        self._session.on_event(self._publish)
        self._credentials = Credentials(self._session, run_dir, uid, files)
        self._emergency = QmpSession(spec.name)
        self._line = line
        self._connecting: asyncio.Task[None] | None = None  #: to a QEMU that does not answer yet
        self._hub = EventHub()
        self._reconnection = Reconnection(spec.name, run_dir.log)
        self._breaker = Breaker(spec.name, self._out_of_band, self.query_migration)
        self._locked_memory = LockedMemory(spec, process)
        self.plugs = QemuPlugs(self._session, self._locked_memory, spec.memory_bytes)
        self._sends_to: tuple[str, int] | None = None  #: the destination, once `migrate` was said by this object
        self._has_state_file = False  #: it was, or may have been, given a file
        self.mirrors = QemuDiskMirrors(spec.name, self._session, self._version, process, self._out_of_band)
        self._resumed_ns = 0  #: when the vCPUs were last started, by QEMU's stamp
        self._watcher: asyncio.Task[None] | None = None
        self._forwarder: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect to QMP and watch the process from now on.

        Raises:
            Broken: the process ended first.
            TimedOut: it does not answer.
        """
        try:
            await self._connect()
            if self._line is not None:
                await self._emergency.connect(self._line, self._process)
        except BaseException:
            await self._disconnect()
            raise
        self._begin_watching()

    async def reconnect(self) -> None:
        """Connect to a process that an earlier agent started, and watch it from now on.

        One whose emergency line works need not answer: it takes what goes out of band, its events come, and `connect`
        goes on in the background; `wait_answers` waits for that.

        Raises:
            Broken: the process ended first.
            TimedOut: it does not answer, and it has no emergency line.
        """
        self._has_state_file = True  # an earlier agent may have given it one
        try:
            if not await self._borrow_line():
                await self._connect()
            else:
                self._connecting = asyncio.create_task(self._connect_at_last(), name=f"connect-{self._name}")
                await asyncio.wait({self._connecting}, timeout=_DEAF_AFTER_S)
                if not self._connecting.done():
                    _log.warning("guest's QEMU answers no question yet", guest=self._name, pid=self.record.pid)
        except BaseException:
            await self._disconnect()
            raise
        self._begin_watching()

    def _begin_watching(self) -> None:
        self._watcher = asyncio.create_task(self._watch(), name=f"watch-{self._name}")
        self._tpm.start(self.query_run_state, self._hub.publish)

    async def wait_answers(self) -> None:
        """Wait until it answers questions, or is gone."""
        if self._connecting is not None:
            await asyncio.wait({self._connecting})

    async def _connect(self, timeout_s: float | None = CONNECT_TIMEOUT_S) -> None:
        await self._session.connect(self._run_dir.qmp, self._process, timeout_s)
        if await self.query_run_state() is RunState.RUNNING:
            self._start_forwarder()

    async def _connect_at_last(self) -> None:
        """Connect, however long that takes; returns when it is connected, or gone."""
        while not self._session.is_connected:
            try:
                await self._connect(None)
            except VmferryError as error:
                if not self.is_alive():
                    return
                _log.warning("guest's QEMU cannot be connected to yet", guest=self._name, error=str(error))
                await asyncio.sleep(_CONNECT_AGAIN_S)

    async def _borrow_line(self) -> bool:
        """Take the emergency line up where an earlier agent left it; tell whether it works."""
        line = None
        try:
            borrowed = await asyncio.to_thread(self._process.borrow_socket, emergency.is_ours)
            if borrowed is None:  # of an agent before there was one
                return False
            line = emergency.Line.of(borrowed)
            self._emergency.on_event(self._publish_early)
            await emergency.resume(line)
            await self._emergency.connect(line, self._process, negotiated=True)
        except (OSError, VmferryError) as error:  # TimeoutError is an OSError
            _log.warning("guest's QEMU has no emergency line that works", guest=self._name, error=str(error))
            if line is not None:
                line.close()
            return False
        self._line = line
        return True

    def _publish_early(self, message: Mapping[str, Any], at_ns: int) -> None:
        """Publish what comes over the emergency line, until the same events come over the other one."""
        if not self._session.is_connected:
            self._publish(message, at_ns)

    @property
    def record(self) -> ProcessRecord:
        """The process as the journal knows it."""
        return self._process.record

    @property
    def run_dir(self) -> RunDir:
        """The paths of the process: console log, QEMU's own log."""
        return self._run_dir

    @property
    def has_lost_tpm(self) -> bool:
        """Tell whether the emulator of its TPM has ended before QEMU."""
        return self._tpm.has_ended

    def is_alive(self) -> bool:
        """Tell whether the process exists now; False is proof."""
        return self._process.is_alive()

    def events(self) -> AsyncIterator[GuestEvent]:
        """Return a subscription that begins now, not at the first `anext`."""
        return self._hub.subscribe()

    async def query_run_state(self) -> RunState:
        """Ask for the run state."""
        answer = await self._session.execute("query-status")
        if not isinstance(answer, dict) or "status" not in answer:
            raise Broken(f"QEMU of guest {self._name} answered query-status with {answer!r:.80}, without a status")
        return run_state(str(answer["status"]))

    async def query_migration(self) -> MigrationSample:
        """Ask how the migration goes."""
        return sample(await self._session.execute("query-migrate"))

    async def cont(self, *, seen: RunState | None = None) -> int:
        """Start the vCPUs and return when that was; takes the image locks that a migration left open.

        Args:
            seen: the run state, from who has asked a moment ago.

        Raises:
            Broken: they run already, something is not loaded, or QEMU said no (an image is locked elsewhere).
        """
        state = await self.query_run_state() if seen is None else seen
        if state not in STARTABLE:
            raise Broken(
                f"vCPUs of guest {self._name} must not be started: "
                f"QEMU is in state {state}, expected one of {', '.join(sorted(STARTABLE))}"
            )
        asked_ns = time.monotonic_ns()
        await self._session.execute("cont")  # RESUME comes before the answer
        self._start_forwarder()
        return self._resumed_ns if self._resumed_ns >= asked_ns else time.monotonic_ns()

    async def stop(self) -> None:
        """Stop the vCPUs.

        Raises:
            Broken: they wait for pages of a broken post-copy. QEMU would wait with them and answer nothing any more.
        """
        status = (await self.query_migration()).status
        if status in POSTCOPY_BROKEN:
            raise Broken(
                f"vCPUs of guest {self._name} must not be stopped: they wait for pages, its migration is {status}",
                fix="recover the stream first",
            )
        await self._session.execute("stop")

    async def power_down(self) -> None:
        """Press the guest's power button (ACPI); POWERED_OFF comes when the guest obeys."""
        await self._session.execute("system_powerdown")

    async def prepare_migration(self, setup: MigrationSetup, *, incoming: bool) -> None:
        """Set capabilities, parameters and what it is encrypted with; on failure that is gone again.

        Raises:
            BadInput: this QEMU does not know, or cannot combine, what was asked for.
            Broken: QEMU said no.
        """
        rows, known, version = await asyncio.gather(
            self._session.execute("query-migrate-capabilities"),
            self._session.execute("query-migrate-parameters"),
            self._version(),
        )
        current = {row["capability"]: bool(row["state"]) for row in rows}
        check_setup(setup, frozenset(current), version)
        chosen = parameters(setup, frozenset(known), incoming=incoming)
        await self.cleanup_migration()
        self.mirrors.setup = setup
        try:
            await self._credentials.add(setup, incoming=incoming)
            # What is left of an earlier attempt goes first: QEMU refuses a capability beside a parameter that it
            # excludes (zero-copy-send beside zstd), and a parameter beside such a capability.
            changes = changed_capabilities(setup.capabilities, current)
            await self._set_capabilities([change for change in changes if not change["state"]])
            await self._session.execute("migrate-set-parameters", chosen)
            await self._set_capabilities([change for change in changes if change["state"]])
        except BaseException:
            with contextlib.suppress(VmferryError):
                await self.cleanup_migration()
            raise

    async def _set_capabilities(self, changes: list[dict[str, object]]) -> None:
        if changes:
            await self._session.execute("migrate-set-capabilities", {"capabilities": changes})

    async def cleanup_migration(self) -> None:
        """Remove what the last migration was encrypted with. Idempotent; call it when a migration has ended."""
        if self._has_state_file:
            await given.let_go_of_file(self._session)
            self._has_state_file = False
        self._locked_memory.restore()
        await self._credentials.remove()

    async def listen(self, address: str, port: int, by: Transport = Transport.TCP) -> None:
        """Listen for the stream, once: QEMU 10.0 does not listen again after a failure.

        Raises:
            Broken: the port is taken (end the process then), or it was not started to receive.
        """
        self._locked_memory.allow(by)
        await self._session.execute("migrate-incoming", {"uri": uri(address, port, by)})

    async def migrate(self, address: str, port: int, by: Transport = Transport.TCP) -> None:
        """Start sending."""
        self._locked_memory.allow(by)
        await self._session.execute("migrate", {"uri": uri(address, port, by)})
        self._sends_to = (address, port) if by is Transport.TCP else None

    async def take_stream(self, connection: StreamConnection) -> None:
        """Receive over a connection that is there, once.

        Raises:
            Broken: it was not started to receive, or receives already.
        """
        await given.over(self._session, connection, "migrate-incoming")

    async def migrate_over(self, connection: StreamConnection) -> None:
        """Start sending over a connection that is there."""
        peer = connection.getpeername()
        await given.over(self._session, connection, "migrate")
        self._sends_to = None if peer is None else (peer[0], peer[1])

    @property
    def local_socket(self) -> str:
        """Return where the local socket for a stream is."""
        return str(self._run_dir.stream)

    def count_refused(self) -> int:
        """Return how many connections QEMU has refused for want of the key, as its log has it."""
        return self._run_dir.count_refused()

    async def listen_locally(self) -> None:
        """Listen for the stream on the local socket, once.

        Raises:
            Broken: it was not started to receive.
        """
        await self._session.execute("migrate-incoming", {"uri": LOCAL_URI})

    async def migrate_locally(self) -> None:
        """Start sending to the local socket."""
        await self._session.execute("migrate", {"uri": LOCAL_URI})
        self._sends_to = None

    async def save_to(self, file: StateFile) -> None:
        """Start writing the guest's state into a file, from its offset on."""
        await self._with_file(file, "migrate")

    async def load_from(self, file: StateFile) -> None:
        """Receive from a file.

        Raises:
            Broken: it was not started to receive, or receives already.
        """
        await self._with_file(file, "migrate-incoming")

    async def _with_file(self, file: StateFile, command: str) -> None:
        self._has_state_file = True
        await given.with_file(self._session, file, command, await self._version())

    async def migrate_continue(self) -> None:
        """Leave pre-switchover."""
        await self._session.execute("migrate-continue", {"state": "pre-switchover"})

    async def migrate_cancel(self) -> None:
        """Ask QEMU to give the migration up.

        Raises:
            Broken: post-copy began. 10.0 refuses by itself; 7.2 would let the source start a second copy.
        """
        status = (await self.query_migration()).status
        if status in POSTCOPY:
            raise Broken(f"migration of guest {self._name} cannot be cancelled any more: it is {status}")
        await self._session.execute("migrate_cancel")

    async def start_postcopy(self) -> None:
        """End the rounds; the guest stops and waits in pre-switchover for `migrate_continue`.

        Raises:
            Broken: there is no migration yet, or postcopy-ram was not set.
        """
        await self._session.execute("migrate-start-postcopy")

    async def pause_postcopy(self) -> None:
        """Break the stream here, out of band; Broken: the status is neither postcopy-active nor postcopy-recover."""
        await self._breaker.break_off()

    async def recover_listen(self, address: str, port: int) -> None:
        """Listen for the recovered stream; out of band, since the main loop may wait for a page.

        Raises:
            Broken: the status is not postcopy-paused, or the port is taken.
        """
        await self._out_of_band("migrate-recover", {"uri": uri(address, port)})

    async def resume_stream(self, address: str, port: int) -> None:
        """Connect anew; a QEMU that does not tell whether it still tries is waited for.

        Raises:
            Broken: the status is not postcopy-paused.
            TimedOut: it still tries. Only another call of this may follow.
        """
        order = {"uri": uri(address, port), "resume": True}
        if await self._version() >= TELLS_CONNECTING:
            await self._session.execute("migrate", order)
            return
        await self._reconnection.settle()
        self._reconnection.begin()
        try:
            await self._session.execute("migrate", order)
        except SaidNo:
            self._reconnection.forget()
            raise
        await self._reconnection.settle()

    async def set_parameters(self, parameters: Mapping[str, bool | int | str]) -> None:
        """Change parameters of a running migration.

        Raises:
            BadInput: one is unknown, or fixed when a migration starts.
            Broken: QEMU does not take a value; in its own words.
        """
        known = frozenset(await self._session.execute("query-migrate-parameters"))
        await self._session.execute("migrate-set-parameters", check_parameters(parameters, known, live=True))

    async def set_bandwidth(self, bandwidth: BytesPerSecond) -> None:
        """Change the limit of a running migration; 0 = none."""
        limit = bandwidth or NO_BANDWIDTH_LIMIT
        await self._session.execute("migrate-set-parameters", {"max-bandwidth": limit})

    async def sample_memory(self, pages: int) -> bytes:
        """Return some pages of the guest's memory at random places.

        Raises:
            Broken: this process may not look into QEMU, or does not find them.
        """
        try:
            return await asyncio.to_thread(sample_pages, self.record.pid, self._memory_bytes, pages)
        except OSError as error:
            raise Broken(f"memory of guest {self._name} cannot be sampled: {error.strerror or error}") from error

    def bound_unsent(self, most: Bytes) -> None:
        """Let no more than this wait unsent in the kernel.

        Raises:
            Broken: it does not send, a driver before this one began it, or this process may not look into QEMU.
        """
        try:
            found = 0 if self._sends_to is None else self._process.bound_unsent(self._sends_to, most)
        except OSError as error:
            raise Broken(f"connections of guest {self._name} cannot be borrowed: {error.strerror}") from error
        if not found:
            raise Broken(f"QEMU of guest {self._name} has no connection to a destination that is known here")

    async def set_downtime_limit(self, limit_ms: Milliseconds) -> None:
        """Change the downtime limit of a running migration."""
        await self._session.execute("migrate-set-parameters", {"downtime-limit": round(limit_ms)})

    async def announce(self, cards: Collection[str] | None = None) -> None:
        """Send five announcements over 1.5 s, as QEMU does after a migration."""
        by = {} if cards is None else {"interfaces": sorted(cards)}
        await self._session.execute("announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100, **by})

    async def open_console(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the first serial port; QEMU serves one reader at a time, the log keeps everything.

        Raises:
            Broken: the process is gone.
        """
        return await self._open(self._run_dir.console, "console")

    async def open_control(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the control port (spec.control).

        Raises:
            Broken: the process is gone, or the guest has no such port.
        """
        return await self._open(self._run_dir.control, "control port")

    async def open_throttle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the port of the write throttle (spec.throttle).

        Raises:
            Broken: the process is gone, or the guest has no such port.
        """
        return await self._open(self._run_dir.throttle, "write throttle's port")

    async def quit(self) -> None:
        """End the process politely; kills it when it does not go in time. Idempotent."""
        if self.is_alive():
            with contextlib.suppress(VmferryError):
                await self._session.execute("quit", timeout_s=QUIT_TIMEOUT_S)
            if not await self._process.wait_exited(QUIT_TIMEOUT_S):
                await self._process.kill()
        await self._wait_cleaned()

    async def kill(self) -> None:
        """End the process at once and wait until it is proven dead. Idempotent."""
        await self._process.kill()
        await self._wait_cleaned()

    async def close(self) -> None:
        """Let go of the process without touching it. Idempotent."""
        if self._watcher is not None and not self._watcher.done():
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._stop_forwarder()
        self._hub.close()
        await self._tpm.close()
        await self._disconnect()
        self._process.close()

    def _publish(self, message: Mapping[str, Any], at_ns: int) -> None:
        try:
            event = translate(message, at_ns)
        except (TypeError, ValueError, AttributeError) as error:  # of no form that QEMU has
            _log.warning("event of QEMU is not understood", guest=self._name, error=str(error))
            return
        if event is not None:
            self._reconnection.saw(event)
            self._breaker.saw(event)
            if event.kind is GuestEventKind.RESUMED:
                self._resumed_ns = event.at_ns
            self._hub.publish(event)

    async def _watch(self) -> None:
        await self._process.wait_exited()
        tail = self._run_dir.log_tail()
        self._hub.publish(GuestEvent(GuestEventKind.EXITED, time.monotonic_ns(), detail=tail or None))
        self._run_dir.remove_sockets()
        await self._tpm.end()
        await self._stop_forwarder()
        await self._disconnect()
        self._process.close()

    async def _disconnect(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        try:
            await self._session.close()
            await self._emergency.close()
        finally:
            if self._line is not None:
                self._line.close()

    async def _out_of_band(self, command: str, arguments: Mapping[str, object] | None = None) -> None:
        session = self._emergency if self._emergency.is_connected else self._session
        await session.execute(command, arguments, oob=True)

    def _start_forwarder(self) -> None:
        if self._forwards and (self._forwarder is None or self._forwarder.done()):
            self._forwarder = asyncio.create_task(self._forward(), name=f"forward-{self._name}")

    async def _forward(self) -> None:
        with contextlib.suppress(VmferryError):  # the process ended: the watcher tells
            await open_forwards(self._session, self._forwards)

    async def _stop_forwarder(self) -> None:
        if self._forwarder is not None:
            self._forwarder.cancel()
            await asyncio.gather(self._forwarder, return_exceptions=True)

    async def _wait_cleaned(self) -> None:
        if self._watcher is not None:
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def _version(self) -> tuple[int, int, int]:
        qemu = (await self._session.execute("query-version"))["qemu"]
        return qemu["major"], qemu["minor"], qemu["micro"]

    async def _open(self, path: Path, role: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(sock=await connect(path, self.record.pid))
        except OSError as error:
            raise Broken(f"{role} of guest {self._name} cannot be opened: {error.strerror}") from error
