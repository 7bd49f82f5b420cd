"""The files that leases lie in: made when they are first needed, and never again."""

from __future__ import annotations

import os
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.disks.sanlock.wire import LEASE_BYTES

#: Whoever owns the directory is who sanlock's daemon runs as.
_MODE = 0o660


def is_there(path: Path) -> bool:
    """Tell whether a lease's file is there.

    Raises:
        Broken: its directory cannot be looked at.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _broken(path, error) from error
    return True


def make_working(path: Path) -> Path:
    """Make a file of a lease's size beside the one that it is to become, and return it.

    Raises:
        Broken: the directory does not take it.
    """
    working = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        fd = os.open(working, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            _fit_out(fd, working.parent)
        finally:
            os.close(fd)
    except OSError as error:
        working.unlink(missing_ok=True)
        raise _broken(path, error) from error
    return working


def give_name(working: Path, path: Path) -> None:
    """Give a lease that was written its name, if none has it by now: of two hosts that make one the first one's stays.

    Raises:
        Broken: the directory does not take it.
    """
    try:
        path.hardlink_to(working)
    except FileExistsError:
        return
    except OSError as error:
        raise _broken(path, error) from error


def _fit_out(fd: int, directory: Path) -> None:
    os.fchmod(fd, _MODE)
    owner = directory.stat()
    if os.geteuid() == 0:
        os.fchown(fd, owner.st_uid, owner.st_gid)
    os.posix_fallocate(fd, 0, LEASE_BYTES)
    os.fsync(fd)


def _broken(path: Path, error: OSError) -> Broken:
    return Broken(
        f"lease file {path} cannot be made: {error.strerror}",
        fix=f"make {path.parent} on the shared storage: sanlock's user owns it, and the agent may write there",
    )
