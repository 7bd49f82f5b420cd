"""Locks of open files on ranges of bytes. Source: fcntl(2), "Open file description locks"."""

from __future__ import annotations

import fcntl
import os
import struct

#: struct flock: type, whence, start, length, pid (0: the lock is the open file's)
_FLOCK = struct.Struct("hhqqi4x")


def share(fd: int, start: int, length: int) -> None:
    """Take a lock that others may share, for as long as a copy of the descriptor is open anywhere.

    Raises:
        OSError: another has it alone (BlockingIOError), or the file system knows no such locks.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, start, length, 0))


def is_locked(fd: int, start: int, length: int) -> bool:
    """Tell whether another open file has any lock in a range; no length is no range (to fcntl: up to the end).

    Raises:
        OSError: it cannot be asked.
    """
    if length == 0:
        return False
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK
