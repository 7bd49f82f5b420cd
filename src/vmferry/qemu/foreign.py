"""Files in a directory that belongs to somebody who runs a guest, and who may put anything there at any time.

Nothing here follows a link, waits for a pipe, reads without end, or gives away what it has not made itself.

Source: open(2), symlink(7).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def remove(path: Path) -> None:
    """Remove whatever is there, of a link the link itself. Idempotent; never raises."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def create_log(path: Path) -> int:
    """Return a descriptor of a new, private file to append to, in place of whatever is there.

    Raises:
        OSError: it cannot be made.
    """
    remove(path)
    return os.open(path, _NEW | os.O_APPEND | os.O_CLOEXEC, 0o600)


def read(path: Path, start: int, limit: int) -> tuple[int, bytes]:
    """Return a plain file's size and what stands from `start` on, at most `limit` bytes; (0, b"") when it is none.

    Args:
        path: the file.
        start: where to begin; negative: so far before its end. Behind the end it is taken for 0: the file was cut.
        limit: in bytes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | _SAFE)
    except OSError:
        return 0, b""
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return 0, b""
        size = found.st_size
        file.seek(max(0, size + start) if start < 0 else start if start <= size else 0)
        return size, file.read(limit)


def make_directory(where: Path, name: str, files: Mapping[str, str], uid: int | None) -> None:
    """Make a private directory with private files; whatever has its name goes first.

    Args:
        where: the foreign directory.
        name: of the new directory.
        files: names and contents.
        uid: whose they become; None: they stay ours.

    Raises:
        OSError: it cannot be made, or somebody interferes.
    """
    remove(where / name)
    with contextlib.ExitStack() as stack:
        above = stack.enter_context(_opened(where, _DIRECTORY))
        os.mkdir(name, 0o700, dir_fd=above)
        made = stack.enter_context(_opened(name, _DIRECTORY, above))
        for file_name, text in files.items():
            fd = stack.enter_context(_opened(file_name, _NEW, made))
            with os.fdopen(os.dup(fd), "w", encoding="ascii") as file:
                file.write(text)
            _give(fd, uid)
        _give(made, uid)


def _give(fd: int, uid: int | None) -> None:
    if uid is not None:
        os.fchown(fd, uid, uid)


@contextlib.contextmanager
def _opened(path: str | Path, flags: int, where: int | None = None) -> Iterator[int]:
    fd = os.open(path, flags | _SAFE, 0o600, dir_fd=where)
    try:
        yield fd
    finally:
        os.close(fd)
