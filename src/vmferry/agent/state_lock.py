"""One agent per state directory: a lock that the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.pki.files import make_private_directory

LOCK_FILE = "agent.lock"


@contextmanager
def hold_state(state_dir: Path) -> Iterator[None]:
    """Hold the state directory until the block ends.

    Raises:
        Broken: another agent holds it, or it cannot be written.
    """
    make_private_directory(state_dir)
    path = state_dir / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Broken(
            f"State directory {state_dir} cannot be used: {error.strerror}", fix="make it writable for this user"
        ) from error
    try:
        _lock(descriptor, state_dir)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, state_dir: Path) -> None:
    """Take the lock, or say who has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        raise Broken(
            f"State directory {state_dir} is in use by another agent (pid {holder or 'unknown'})",
            fix="end that agent first, or give this one another state_dir",
            retry=True,
        ) from error
