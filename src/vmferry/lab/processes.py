"""Which processes belong to a lab, and how to end exactly those.

A pid alone is reused: every process is known by pid, start time and boot. Signals go through a pidfd that was
checked against that identity, so that a stranger is never hit.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Every process that a lab starts carries this variable; its value is the lab's id.
MARK = "VMFERRY_LAB"


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, recognisable after its pid was reused and after a reboot."""

    pid: int
    start_ticks: int
    boot_id: str


@cache
def boot_id() -> str:
    """Return what names this boot of the machine.

    Source: Documentation/admin-guide/sysctl/kernel.rst, random/boot_id.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def identify(pid: int) -> Identity | None:
    """Return the identity of a running process; None when it does not exist or is a zombie.

    Source: proc(5), /proc/pid/stat fields 3 and 22.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in "ZX" else Identity(pid, int(fields[19]), boot_id())


def is_alive(process: Identity) -> bool:
    """Tell whether exactly this process exists now."""
    return process.boot_id == boot_id() and identify(process.pid) == process


def send(process: Identity, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False when it is gone already."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def wait_gone(process: Identity, timeout_s: float) -> bool:
    """Wait until the process has exited with all its threads; False when it still runs after `timeout_s`.

    A first thread that is a zombie proves nothing: the others may still run, and memory is freed by the last of them.

    Source: pidfd_open(2): the descriptor becomes readable when the process ends.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        if _start_ticks(process.pid) != process.start_ticks or process.boot_id != boot_id():
            return True  # the pid is somebody else's by now
        return bool(select.select([pidfd], [], [], timeout_s)[0])
    finally:
        os.close(pidfd)


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, zombies included; None when there is none.

    Source: proc(5), /proc/pid/stat field 22.
    """
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[19]) if fields else None


def kill_all(processes: Iterable[Identity], timeout_s: float = 10.0) -> list[Identity]:
    """End these processes at once and wait for them; returns those that did not go (there should be none)."""
    found = list(processes)
    for process in found:
        send(process, signal.SIGKILL)
    deadline = time.monotonic() + timeout_s
    for process in found:
        wait_gone(process, max(0.0, deadline - time.monotonic()))
    return [process for process in found if is_alive(process)]


def find_lab_processes(lab: str, namespaces: Iterable[str] = (), directory: Path | None = None) -> list[Identity]:
    """Return every process of one lab: by its network namespaces, by its mark, by its directory.

    Three signs, because each misses some: a QEMU may have a cleaned environment, and without root
    there are no namespaces of ours. This process itself is never among them.
    """
    inodes = {inode for inode in map(_namespace_inode, namespaces) if inode is not None}
    mark = f"{MARK}={lab}".encode()
    return [
        process
        for process in _all_processes()
        if process.pid != os.getpid()
        and (_network_of(process.pid) in inodes or _is_marked(process.pid, mark) or _names(process.pid, directory))
    ]


def children(pid: int) -> list[Identity]:
    """Return the running child processes of a process.

    Source: proc(5), /proc/pid/stat field 4.
    """
    return [process for process in _all_processes() if _parent(process.pid) == pid]


def command_line(pid: int) -> str:
    """Return a process's command line for people; empty when it is gone."""
    return _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()


def _all_processes() -> Iterator[Identity]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (process := identify(int(path.name))) is not None:
            yield process


def _parent(pid: int) -> int | None:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else None


def _namespace_inode(name: str) -> int | None:
    try:
        return Path(f"/run/netns/{name}").stat().st_ino
    except OSError:
        return None


def _network_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


def _is_marked(pid: int, mark: bytes) -> bool:
    return mark in _read(f"/proc/{pid}/environ").split(b"\0")


def _names(pid: int, directory: Path | None) -> bool:
    """Tell whether the command line names a path inside the lab's directory."""
    return directory is not None and f"{directory}/".encode() in _read(f"/proc/{pid}/cmdline")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
