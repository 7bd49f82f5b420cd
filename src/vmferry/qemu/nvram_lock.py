"""Firmware variables belong to one guest at a time: a lock that its QEMU holds, here or on another host.

QEMU locks the file too, but lets every other writer in: two guests on one file would ruin each other's variables. So
each process holds a shared lock on one byte far behind the file's end, chosen by its guest's UUID, and a start is
refused when any other byte of that range is locked. Source and destination of a hand-over are the same guest and pass.
The lock belongs to the open file that QEMU inherits: it outlives the agent, ends with QEMU, and two spellings of one
path are one file. On network file systems that pass locks on (NFSv4 does) it holds between hosts.

Source: fcntl(2), "Open file description locks"; the same idea as QEMU's block/file-posix.c, which locks bytes 100-207.
"""

from __future__ import annotations

import uuid

from vmferry.core.errors import Broken
from vmferry.core.ids import GuestUuid
from vmferry.qemu.file_locks import is_locked, share

_FIRST = 1 << 61
_BITS = 60
_LAST = _FIRST + (1 << _BITS) - 1


def lock(fd: int, owner: GuestUuid, path: str) -> None:
    """Lock the open file for a guest, for as long as a copy of the descriptor is open anywhere.

    Of two that try at once both may be refused; never do both pass.

    Args:
        fd: open to read and write.
        owner: whose variables they are.
        path: as the guest file names it, for the error.

    Raises:
        Broken: another guest has them, or the file system knows no such locks.
    """
    own = _FIRST + (uuid.UUID(owner).int & ((1 << _BITS) - 1))
    try:
        share(fd, own, 1)
        taken = is_locked(fd, _FIRST, own - _FIRST) or is_locked(fd, own + 1, _LAST - own)
    except BlockingIOError:
        taken = True
    except OSError as error:
        raise Broken(
            f"firmware variables {path} cannot be locked: {error.strerror}",
            fix="put them on a file system with locks (a local one, NFSv4)",
        ) from error
    if taken:
        raise Broken(
            f"firmware variables {path} are in use by another guest, here or on another host",
            fix="give each guest a copy of its own, made from the firmware's template",
        )
