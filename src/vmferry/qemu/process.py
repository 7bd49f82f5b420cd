"""One QEMU process: started in its own session, watched through a pidfd, never waited for by name.

A pid is reused; a pid with its start time and boot is not. The pidfd works for our children and for processes that an
earlier agent started alike.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.ports.hypervisor import ProcessRecord
from vmferry.qemu import borrowed, foreign
from vmferry.qemu.binary import QemuBinaryConfig

#: how long the kernel may take to end a killed process: it frees all of its memory first
KILL_TIMEOUT_S = 30.0


def read_boot_id() -> str:
    """Return what names this boot of the host. Source: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def read_start_ticks(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat, None when there is no such process. Source: proc_pid_stat(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything, so count from its end.
    return int(text.rpartition(")")[2].split()[19])


def spawn(
    binary: QemuBinaryConfig,
    argv: Sequence[str],
    *,
    directory: Path,
    log: Path,
    fds: Sequence[int] = (),
    uid: int | None = None,
    groups: Sequence[int] = (),
    through: Sequence[str] = (),
) -> Process:
    """Start a program in its own session; returns after exec. Its descriptors are `fds` and its log, nothing else.

    Args:
        binary: which QEMU, or what it needs beside it.
        argv: its arguments.
        directory: where it starts; entered with the agent's rights.
        log: where its own words go; made anew.
        fds: descriptors that it inherits under the same numbers.
        uid: its user and group; None = the agent's own.
        groups: further groups of that user.
        through: what becomes the program, with the agent's rights until then (`HostResources.start_through`).

    Raises:
        Broken: the program cannot be run.
    """
    command, environment, user = [*binary.argv, *argv], binary.environment(), uid
    if through:  # it changes the user itself, and runs without what QEMU's libraries need
        variables = [f"{name}={value}" for name, value in environment.items()]
        numbers = ",".join(map(str, groups))
        command = [*through, "-" if uid is None else str(uid), numbers, *variables, "--", *command]
        environment, user = {"PATH": os.defpath, "LC_ALL": "C"}, None
    try:
        with os.fdopen(foreign.create_log(log), "ab") as output:  # appending: one that is cut goes on at its new end
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=directory,
                pass_fds=tuple(fds),
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else groups,
            )
    except OSError as error:
        raise Broken(
            f"{binary.argv[0]} cannot be started{f' as uid {uid}' if uid is not None else ''}: {error.strerror}",
            fix="check that the program is there and that this user may run it",
        ) from error
    process = Process.of_pid(child.pid)
    # From here the pidfd reaps it; Popen must neither warn nor wait for a guest that outlives the agent.
    child.returncode = 0
    if process is None:
        raise Broken(f"QEMU process {child.pid} was gone before it could be watched")
    return process


def kvm_groups() -> list[int]:
    """Return the group that may open /dev/kvm: an unprivileged QEMU needs it."""
    try:
        return [Path("/dev/kvm").stat().st_gid]
    except OSError:
        return []


class Process:
    """A process held by its pidfd.

    Args:
        record: which process.
        pidfd: owned by this object until `close`.
    """

    def __init__(self, record: ProcessRecord, pidfd: int) -> None:
        self.record = record
        self._pidfd = pidfd
        self._dead = False
        #: how our own child ended: its status, or minus the signal; None while it lives and for others' children
        self.exit_status: int | None = None

    @classmethod
    def of_pid(cls, pid: int) -> Process | None:
        """Return the process that has this pid now, None when there is none."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        ticks = read_start_ticks(pid)
        if ticks is None:
            os.close(pidfd)
            return None
        return cls(ProcessRecord(pid, ticks, read_boot_id()), pidfd)

    @classmethod
    def of_record(cls, record: ProcessRecord) -> Process | None:
        """Return the recorded process, None when it is proven dead: another boot, no such pid, or a reused one."""
        if record.boot_id != read_boot_id():
            return None
        found = cls.of_pid(record.pid)
        if found is not None and (found.record != record or not found.is_alive()):
            found.close()
            return None
        return found

    def is_alive(self) -> bool:
        """Tell whether it exists now; False is proof."""
        if not self._dead and self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(0):
                self._reap()
        elif not self._dead:
            return Process.of_record_alive(self.record)
        return not self._dead

    @staticmethod
    def of_record_alive(record: ProcessRecord) -> bool:
        """Tell whether the recorded process exists, without holding it."""
        found = Process.of_record(record)
        if found is None:
            return False
        found.close()
        return True

    async def wait_exited(self, timeout_s: float | None = None) -> bool:
        """Wait until it is gone; returns False when it is not in time."""
        if not self.is_alive():
            return True
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        # A descriptor of its own: an event loop keeps one reader per descriptor, and several may wait.
        watched = os.dup(self._pidfd)
        loop.add_reader(watched, gone.set)
        try:
            await asyncio.wait_for(gone.wait(), timeout_s)
        except TimeoutError:
            return not self.is_alive()
        finally:
            loop.remove_reader(watched)
            os.close(watched)
        return not self.is_alive()

    async def kill(self) -> None:
        """End it at once and wait until it is proven dead. Idempotent.

        Raises:
            Broken: the kernel does not end it in time.
        """
        if self.is_alive():
            self._signal(signal.SIGKILL)
        if not await self.wait_exited(KILL_TIMEOUT_S):
            raise Broken(
                f"QEMU process {self.record.pid} is still there {KILL_TIMEOUT_S:.0f} s after SIGKILL",
                fix="it hangs in the kernel: look at its storage, then reboot the host",
            )

    def end_blocking(self, grace_s: float) -> None:
        """Wait so long for its end, then end it; returns when it is proven dead. For threads; idempotent.

        Raises:
            Broken: the kernel does not end it in time.
        """
        if self._ends_within(grace_s):
            return
        self._signal(signal.SIGKILL)
        if not self._ends_within(KILL_TIMEOUT_S):
            raise Broken(f"process {self.record.pid} is still there {KILL_TIMEOUT_S:.0f} s after SIGKILL")

    def _ends_within(self, limit_s: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(limit_s * 1000)
        return not self.is_alive()

    def bound_unsent(self, peer: tuple[str, int], most: int) -> int:
        """Let no more than so many bytes wait unsent on each of its connections to a peer; returns how many there are.

        Raises:
            OSError: it is gone, or this process may not look into it.
        """
        return borrowed.bound_unsent(self.record.pid, self._pidfd, peer, most)

    def end_silent(self, peer: tuple[str, int], silence_ms: int) -> int:
        """Have each of its connections to a peer end when that stays silent for so long; returns how many there are.

        Raises:
            OSError: it is gone, or this process may not look into it.
        """
        return borrowed.end_silent(self.record.pid, self._pidfd, peer, silence_ms)

    def borrow_socket(self, wanted: Callable[[socket.socket], bool]) -> socket.socket | None:
        """Return one of its sockets, for the caller to close; None when it has none that is wanted.

        Raises:
            OSError: it is gone, or this process may not look into it.
        """
        for found in borrowed.sockets_of(self.record.pid, self._pidfd, wanted):
            return found.dup()
        return None

    def close(self) -> None:
        """Let go of it without touching it. Idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd < 0:
            raise Broken(f"QEMU process {self.record.pid} was let go of; adopt it again")
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            self._reap()

    def _reap(self) -> None:
        self._dead = True
        try:
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return  # an earlier agent's child: its new parent reaps it
        if ended is not None:
            self.exit_status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
