"""Who else holds an image, asked without taking it: QEMU says with locks on bytes of the file what it does with it.

A QEMU that writes to an image and lets nobody else write (ours) is refused when another holds the lock of a writer, or
of somebody who lets nobody write. Between the source's letting go and the destination's taking none of ours holds any,
so that whatever is found is another's.

Source: QEMU block/file-posix.c (RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE), include/block/block-common.h
(BLK_PERM_WRITE). On NFSv4 the server is asked.
"""

from __future__ import annotations

import os

from vmferry.qemu.file_locks import is_locked

_WRITES = 100 + 1
_LETS_NOBODY_WRITE = 200 + 1


def why_locked(path: str) -> str | None:
    """Return why a QEMU could not write to an image now; None when it could.

    Raises:
        OSError: it cannot be asked.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if is_locked(fd, _WRITES, 1):
            return f"image {path} is locked by another who writes to it"
        if is_locked(fd, _LETS_NOBODY_WRITE, 1):
            return f"image {path} is locked by another who lets nobody write to it"
        return None
    finally:
        os.close(fd)
