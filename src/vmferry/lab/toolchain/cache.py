"""Where the lab keeps what it fetched and built: unpacked QEMUs, guest images."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmferry.core.errors import Broken


def cache_dir() -> Path:
    """Return the cache directory, made if missing and readable by every user.

    `$VMFERRY_CACHE` when set; /var/cache/vmferry for root, because guests run under other uids
    and root's home is closed to them; else ~/.cache/vmferry.

    Raises:
        Broken: it cannot be made.
    """
    named = os.environ.get("VMFERRY_CACHE")
    if named:
        path = Path(named).absolute()
    elif os.geteuid() == 0:
        path = Path("/var/cache/vmferry")
    else:
        path = Path.home() / ".cache" / "vmferry"
    if not path.is_dir():
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o755)  # whatever the umask
        except OSError as error:
            fix = "set VMFERRY_CACHE to a directory that you may write"
            raise Broken(f"cannot make the cache directory {path}: {error.strerror}", fix=fix) from error
    return path


@contextmanager
def held(lock_file: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, so that of two runs one does the work and the other finds it done.

    Raises:
        Broken: the file cannot be written.
    """
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        handle = lock_file.open("w")
    except OSError as error:
        fix = "set VMFERRY_CACHE to a directory that you may write"
        raise Broken(f"cannot write {lock_file}: {error.strerror}", fix=fix) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
