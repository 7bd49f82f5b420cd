"""A lock on a run directory that its process holds from before it exists until it is gone.

The agent locks the directory and hands the open descriptor to QEMU: the lock belongs to the open file, so it passes
over fork and exec without a gap, survives the agent and ends with the last process that has it. A process that was
started and never journalled, because the agent was killed in between, is found by it.

Source: flock(2), proc_pid_fdinfo(5).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.qemu.process import Process


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[int]:
    """Lock the directory and yield the descriptor that its process shall inherit; ours is closed at the end.

    Raises:
        Broken: a process has it already, or it cannot be locked.
    """
    try:
        fd = _open(directory)
    except OSError as error:
        raise Broken(f"run directory {directory} cannot be opened: {error.strerror}") from error
    try:
        _lock(fd, directory)
        yield fd
    finally:
        os.close(fd)


def find_holder(directory: Path) -> Process | None:
    """Return the process that has the directory's lock, None when none has or there is no such directory.

    Raises:
        Broken: the lock is held and its holder cannot be seen.
    """
    try:
        fd = _open(directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Broken(f"run directory {directory} cannot be opened: {error.strerror}") from error
    try:
        holder = _holder(os.fstat(fd)) if _is_taken(fd) else None
        if holder is None and _is_taken(fd):  # else it ended while it was looked for
            raise Broken(
                f"run directory {directory} belongs to a process that this agent cannot see",
                fix=f"find it with `fuser -v {directory}` and end it",
                retry=True,
            )
    except OSError as error:
        raise Broken(f"run directory {directory} cannot be locked: {error.strerror}") from error
    finally:
        os.close(fd)
    return holder


def _is_taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _lock(fd: int, directory: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Broken(
            f"run directory {directory} belongs to a process that lives", fix="restart the agent: it ends or adopts it"
        ) from error
    except OSError as error:
        raise Broken(f"run directory {directory} cannot be locked: {error.strerror}") from error


def _holder(directory: os.stat_result) -> Process | None:
    """Return the process that has the locked description; others that have the directory open do not count."""
    for pid in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
        if pid == os.getpid() or not _has_lock(pid, directory):
            continue
        process = Process.of_pid(pid)
        if process is not None and _has_lock(pid, directory):  # still the same one, now that we hold it
            return process
        if process is not None:
            process.close()
    return None


def _has_lock(pid: int, directory: os.stat_result) -> bool:
    """Tell whether one of a process's descriptors carries the lock. A process that is gone has none."""
    with contextlib.suppress(OSError):
        for info in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                if _is_locked(info, directory.st_ino) and _is_same(f"/proc/{pid}/fd/{info.name}", directory):
                    return True
    return False


def _is_locked(info: Path, inode: int) -> bool:
    lines = info.read_text("ascii", errors="replace").splitlines()
    return any(line.startswith("lock:") and " FLOCK " in line and f":{inode} " in line for line in lines)


def _is_same(link: str, directory: os.stat_result) -> bool:
    return os.path.samestat(os.stat(link), directory)  # noqa: PTH116 - a magic link, not a path
