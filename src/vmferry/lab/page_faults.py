"""Lets the lab's unprivileged QEMUs catch page faults: without that no guest can come to them by post-copy."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vmferry.lab.toolchain import cache_dir
from vmferry.qemu.userfault import DEVICE

_EVERYBODY = 0o666
#: Held by everybody who needs the device open; what its mode was before stands in it.
_LOCK = "userfaultfd.lock"


@contextmanager
def page_faults_for_all(device: Path = DEVICE, lock: Path | None = None) -> Iterator[None]:
    """Open the device to everybody, as the udev rule of docs would; the last one out closes it again.

    Several may need it at once. Whoever is killed leaves it open for the next one to close. Without a device, nothing
    is done.

    Args:
        device: what is opened.
        lock: the file by which those who need it know of each other; None: the one that all on this machine share.
    """
    if not device.exists():
        yield
        return
    with (lock or cache_dir() / _LOCK).open("a+", encoding="ascii") as held:
        _enter(device, held)
        try:
            yield
        finally:
            _leave(device, held)


def _enter(device: Path, held: IO[str]) -> None:
    """Hold the lock together with others, and the device is open."""
    while True:
        fcntl.flock(held, fcntl.LOCK_SH)
        if _before(held):
            return
        fcntl.flock(held, fcntl.LOCK_EX)
        if not _before(held):
            held.write(f"{device.stat().st_mode & 0o777:o}")
            held.flush()
            device.chmod(_EVERYBODY)
        # and again: between the two locks somebody may leave, and close it


def _leave(device: Path, held: IO[str]) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    device.chmod(int(_before(held), 8))
    held.truncate(0)


def _before(held: IO[str]) -> str:
    held.seek(0)
    return held.read()
