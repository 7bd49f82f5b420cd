"""The emulator of one guest's TPM: a process beside its QEMU, of the guest's own user, in the directory of the state.

It is started before QEMU and has nothing but its end of a socket pair, its log and the locked directory, in which it
starts: no path of the host is walked. QEMU has the other end, so the two find each other whatever becomes of the agent.
The lock passes to the emulator as a run directory's passes to QEMU (run_lock.py): nobody else writes the state while
it lives, and an agent that comes later finds it.

`--terminate` ends it with QEMU, mostly: 0.7.1 ends when the channel of the TPM's commands does, and when it sees the
end of the control channel first it closes that and waits for ever. So whoever sees that a QEMU is gone ends what is
left of its emulator, and every start does.

Source: swtpm(8), QEMU docs/specs/tpm.rst; docs/design/tpm.md says what was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from vmferry.core.errors import Broken, TimedOut, VmferryError
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind
from vmferry.qemu import run_lock
from vmferry.qemu.binary import QemuBinaryConfig
from vmferry.qemu.process import Process, spawn

PROGRAM = "swtpm"
#: An emulator whose QEMU is gone ends within milliseconds, or never; what it writes is whole after that.
_GRACE_S = 1.0
_ASK_LIMIT_S = 10.0
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_FIX = "install swtpm (Debian), which must emulate a TPM 2.0"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Emulator:
    """One that was started."""

    process: Process
    connection: int  #: for QEMU to inherit


def query_version() -> tuple[int, int, int] | None:
    """Return the version of this host's emulator; None when there is none that has a TPM 2.0."""
    found = shutil.which(PROGRAM)
    if found is None:
        return None
    program = Path(found)
    with contextlib.suppress(OSError):
        return _version_of(program, program.stat().st_mtime_ns)
    return None


@functools.lru_cache(maxsize=4)
def _version_of(program: Path, _changed_ns: int) -> tuple[int, int, int] | None:
    words = [str(program), "socket", "--tpm2", "--print-capabilities"]
    try:
        told = subprocess.run(words, capture_output=True, check=True, timeout=_ASK_LIMIT_S).stdout
        told_of = json.loads(told)
        version = _VERSION.match(told_of["version"])
        can = "tpm-2.0" in told_of["features"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        _log.warning("this host's TPM emulator does not say what it can do", program=str(program), error=str(error))
        return None
    return (int(version[1]), int(version[2]), int(version[3])) if version is not None and can else None


@contextlib.contextmanager
def serving(directory: Path | None, log: Path, uid: int | None) -> Iterator[Emulator | None]:
    """Start an emulator for a QEMU that is started in the block; our copy of the connection is closed at its end.

    One that an earlier QEMU has left is ended first. When the block fails this one is ended too.

    Args:
        directory: of the state, which is the user's own; None: the guest has no TPM.
        log: where its own words go; made anew.
        uid: its user; None: the agent's own.

    Raises:
        Broken: there is no such program, it cannot be run, or somebody else has the directory.
    """
    if directory is None:
        yield None
        return
    end_left(directory)
    with contextlib.ExitStack() as stack:
        qemus, own = socket.socketpair()
        stack.enter_context(qemus)
        with own, run_lock.hold(directory) as lock:
            process = _spawn(directory, log, uid, own.fileno(), lock)
        try:
            yield Emulator(process, qemus.fileno())
        except BaseException:
            process.end_blocking(0.0)
            process.close()
            raise


def _spawn(directory: Path, log: Path, uid: int | None, connection: int, lock: int) -> Process:
    found = shutil.which(PROGRAM)
    if found is None:
        raise Broken(f"there is no {PROGRAM} on this host, which emulates the guest's TPM", fix=_FIX)
    argv = ["socket", "--tpm2", "--terminate", "--tpmstate", "dir=.,mode=0600"]
    argv += ["--ctrl", f"type=unixio,clientfd={connection}"]
    return spawn(QemuBinaryConfig((found,)), argv, directory=directory, log=log, fds=(connection, lock), uid=uid)


def end_left(directory: Path | None) -> None:
    """End the emulator that has a state's directory; its QEMU must be gone. Blocks; idempotent.

    Raises:
        Broken: the kernel does not end it, or it cannot be seen.
    """
    holder = None if directory is None else run_lock.find_holder(directory)
    if holder is not None:
        try:
            holder.end_blocking(_GRACE_S)
        finally:
            holder.close()


class TpmWatch:
    """Watches the emulator beside a QEMU that lives, and ends it after that.

    Args:
        guest: for the log.
        directory: of its state; None: the guest has no TPM, and nothing here does anything.
        process: the emulator, if it is at hand; owned from here on.
    """

    def __init__(self, guest: str, directory: Path | None, process: Process | None = None) -> None:
        self._guest = guest
        self._directory = directory
        self._process = process
        self._task: asyncio.Task[None] | None = None
        self._has_ended = False

    @property
    def has_ended(self) -> bool:
        """Tell whether the emulator has ended; of interest while its QEMU lives."""
        return self._has_ended or (self._process is not None and not self._process.is_alive())

    def start(self, asks_qemu: Callable[[], Awaitable[object]], publish: Callable[[GuestEvent], None]) -> None:
        """Watch from now on.

        Args:
            asks_qemu: a question to QEMU; one that ends takes its emulator along, and answers nothing any more.
            publish: is told when the emulator has ended by itself.
        """
        if self._directory is not None and self._task is None:
            self._task = asyncio.create_task(self._watch(asks_qemu, publish), name=f"watch-tpm-{self._guest}")

    async def _watch(self, asks_qemu: Callable[[], Awaitable[object]], publish: Callable[[GuestEvent], None]) -> None:
        try:
            if self._process is None and self._directory is not None:
                self._process = await asyncio.to_thread(run_lock.find_holder, self._directory)
            if self._process is not None:
                await self._process.wait_exited()
            with contextlib.suppress(TimedOut):
                await asks_qemu()
        except VmferryError as error:
            _log.debug("a TPM's emulator is not watched any more", guest=self._guest, error=str(error))
            return
        self._has_ended = True
        publish(GuestEvent(GuestEventKind.TPM_ENDED, time.monotonic_ns()))

    async def end(self) -> None:
        """End the emulator, whose QEMU is gone. Idempotent."""
        await self._stop_watching()
        if self._process is not None:
            if not await self._process.wait_exited(_GRACE_S):
                await self._process.kill()
            self._process.close()
            self._process = None
        await asyncio.to_thread(end_left, self._directory)

    async def close(self) -> None:
        """Let go of it without touching it. Idempotent."""
        await self._stop_watching()
        if self._process is not None:
            self._process.close()
            self._process = None

    async def _stop_watching(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
