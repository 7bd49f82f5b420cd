"""Private files that are there wholly or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from vmferry.core.errors import Broken, NotFound


def make_private_directory(path: Path) -> None:
    """Make a directory with mode 0700; an existing one is left as it is.

    Raises:
        Broken: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Broken(
            f"Directory {path} cannot be made: {error.strerror}", fix="check its owner and free space"
        ) from error


def write_private(path: Path, content: bytes) -> None:
    """Replace a file's content durably, mode 0600; on failure the old content stands.

    Raises:
        Broken: the file cannot be written, e.g. because the disk is full.
    """
    make_private_directory(path.parent)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise Broken(
            f"File {path} cannot be written: {error.strerror}", fix="free space or check its owner, then repeat"
        ) from error


def read_private(path: Path, what: str) -> bytes:
    """Return a file's content.

    Args:
        path: the file.
        what: what it is, for the error text.

    Raises:
        NotFound: there is no such file.
        Broken: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        fix = "run this where the CA directory is, or name it: --ca-dir DIR" if what.startswith("CA ") else None
        raise NotFound(f"There is no {what} at {path}", fix=fix) from error
    except OSError as error:
        raise Broken(f"{what} {path} cannot be read: {error.strerror}", fix="check its owner and mode") from error


def _sync_directory(path: Path) -> None:
    """Make a rename in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
