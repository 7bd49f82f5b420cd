"""Builds into a cache directory once per set of inputs, safely under parallel use."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmferry.lab.toolchain.cache import held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def digest_of(parts: Iterable[bytes]) -> str:
    """Return a SHA-256 over the parts, in which no two different lists of parts look alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def files_digest(folder: Path) -> str:
    """Return a SHA-256 over names and bytes of all files directly in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def built_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder, filled by `make` if it does not exist yet; it appears whole or not at all.

    Args:
        folder: Its name holds a hash of all inputs, so that what exists is what would be built.
        make: Fills the empty folder it gets, on the same file system.

    Raises:
        Exception: Whatever `make` raises; nothing is left behind then.
    """
    if folder.is_dir():
        return folder
    with held(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            make(work)
            work.chmod(0o755)
            work.rename(folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return folder


def forget_old(shelf: Path, pattern: str, *, keep: int) -> None:
    """Remove all but the latest builds that match a pattern, so that a cache does not grow for ever."""
    builds = sorted(shelf.glob(pattern), key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
    for folder in builds[keep:]:
        shutil.rmtree(folder, ignore_errors=True)
        (shelf / f".{folder.name}.lock").unlink(missing_ok=True)
