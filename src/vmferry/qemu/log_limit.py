"""Keeps a log that QEMU writes from growing without end: what is too much becomes `NAME.1`, and the log begins anew.

QEMU cannot rotate a character device's log and keeps the file open for ever; but it appends, so a file that is cut goes
on at its new end. Between the copy and the cut, some milliseconds, lines can be lost, as with any copy-and-truncate.

The directory belongs to the user of a process that runs a guest, who may put anything in it: only a plain file of one
name and of the owner of the directory is touched, and no link is followed.

Source: open(2) O_APPEND, logrotate(8) copytruncate; QEMU chardev/char.c, `logappend`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 20


def cut(directory: Path, name: str, limit_bytes: int) -> bool:
    """Move a log that is longer than the limit to `NAME.1`, its newest part at most; tell whether it was.

    Args:
        directory: where it is.
        name: of the log.
        limit_bytes: of each of the two files.

    Raises:
        OSError: it cannot be read or written; a log that is not there, or is none, is no error.
    """
    with contextlib.ExitStack() as stack:
        try:
            where = stack.enter_context(_opened(directory, os.O_RDONLY | os.O_DIRECTORY))
            log = stack.enter_context(_opened(name, os.O_RDWR, where))
        except (FileNotFoundError, NotADirectoryError):
            return False
        found = os.fstat(log)
        if found.st_size <= limit_bytes or not _is_plain(found, os.fstat(where)):
            return False
        _copy_end(log, found.st_size, limit_bytes, where, f"{name}.1")
        os.ftruncate(log, 0)
    return True


def _is_plain(found: os.stat_result, directory: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid in {directory.st_uid, os.geteuid()}


def _copy_end(log: int, size: int, limit_bytes: int, where: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=where)
    with _opened(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, where) as old:
        position = size - limit_bytes
        while position < size and (data := os.pread(log, min(_BLOCK, size - position), position)):
            os.write(old, data)
            position += len(data)


@contextlib.contextmanager
def _opened(path: str | Path, flags: int, where: int | None = None) -> Iterator[int]:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=where)
    try:
        yield fd
    finally:
        os.close(fd)
