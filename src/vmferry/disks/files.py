"""Files of images that arrive, and of those that were left behind.

A copy is made under a name that carries its hand-over, and linked to its path, which fails if anything is there. Both
names stay until the guest is here for good. So a file is ours to remove exactly if it is the same as one with our
name, whatever crashed in between, and no journal is needed for that.

Source: link(2), which never replaces; rename(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from vmferry.core.disks import ImageCopy
from vmferry.core.errors import Broken, Refused
from vmferry.core.guest import DiskFormat
from vmferry.core.ids import HandoverId
from vmferry.disks import image_locks

_log = structlog.get_logger(__name__)

#: For writing a header; nothing is allocated.
_MAKE_LIMIT_S = 30.0
_MODE = 0o600


class LocalDiskFiles:
    """Images on this host's file systems: the reference implementation of `ports.disks.DiskFiles`.

    Args:
        why_not: tells of a path why guests may not be given that file; None when they may.
    """

    def __init__(self, why_not: Callable[[str], str | None]) -> None:
        self._why_not = why_not

    def make(self, handover: HandoverId, copies: Sequence[ImageCopy]) -> None:
        """Make empty images, all of the guest's size and none of its content.

        Raises:
            Refused: a file is there already, or may not be made.
        """
        for copy in copies:
            path = copy.image.path
            if Path("/dev") in Path(path).resolve().parents:
                raise Refused(f"Image {path} cannot be made here: it would be a file among devices", side="destination")
            if (why := self._why_not(path)) is not None:
                raise Refused(f"Image {path} cannot be made here: {why}", side="destination")
            try:
                self._make_one(_arriving(path, handover), copy)
                os.link(_arriving(path, handover), path, follow_symlinks=False)
            except OSError as error:
                raise _refused(path, error) from error

    def _make_one(self, arriving: Path, copy: ImageCopy) -> None:
        descriptor = os.open(arriving, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            if copy.image.format is DiskFormat.RAW:
                os.truncate(descriptor, copy.size_bytes)
                return
        finally:
            os.close(descriptor)
        _format(arriving, copy)

    def keep(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Make images that arrived this host's own."""
        for path in paths:
            try:
                _arriving(path, handover).unlink(missing_ok=True)
            except OSError as error:  # the guest runs, and a second name does no harm
                _log.error("second name of an image is left", path=path, handover=handover, error=str(error))

    def drop(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Remove the images that were made for this hand-over, and nothing else."""
        for path in paths:
            arriving = _arriving(path, handover)
            try:
                if _is_same(Path(path), arriving):
                    Path(path).unlink()
                arriving.unlink(missing_ok=True)
            except OSError as error:  # a file system that went away
                _log.error("copy of an image is left", path=path, handover=handover, error=str(error))

    def why_locked(self, paths: Sequence[str]) -> str | None:
        """Return why a guest that nobody runs could not be given these images now; None when it could."""
        for path in paths:
            try:
                if (why := image_locks.why_locked(path)) is not None:
                    return why
            except OSError as error:
                _log.warning("locks of an image cannot be asked about", path=path, error=str(error))
        return None

    def put_aside(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Rename images whose guest has left."""
        for path in paths:
            aside = Path(f"{path}.left-{handover}")
            try:
                if not os.path.lexists(aside):
                    Path(path).rename(aside)
            except FileNotFoundError:
                continue
            except OSError as error:
                _log.error("image of a guest that left keeps its name", path=path, error=str(error))


def _arriving(path: str, handover: HandoverId) -> Path:
    return Path(f"{path}.arriving-{handover}")


def _is_same(path: Path, arriving: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), arriving.lstat())
    return False


def _format(path: Path, copy: ImageCopy) -> None:
    """Write the header of an image that is no raw one."""
    tool = shutil.which("qemu-img")
    if tool is None:
        raise Refused(
            f"Image {copy.image.path} of format {copy.image.format} cannot be made: there is no qemu-img here",
            fix="install qemu-utils (Debian), or convert the image to raw",
            side="destination",
        )
    argv = [tool, "create", "-q", "-f", str(copy.image.format), str(path), str(copy.size_bytes)]
    try:
        made = subprocess.run(argv, capture_output=True, check=False, timeout=_MAKE_LIMIT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise Broken(f"qemu-img took longer than {_MAKE_LIMIT_S:g} s for {path}", side="destination") from error
    if made.returncode:
        told = made.stderr.decode(errors="replace").strip()
        raise Refused(f"Image {copy.image.path} cannot be made: {told or made.returncode}", side="destination")


def _refused(path: str, error: OSError) -> Refused:
    if error.errno == errno.EEXIST:
        return Refused(
            f"Image {path} cannot be made: a file is there already",
            fix="move or remove it if nobody needs it",
            side="destination",
        )
    return Refused(f"Image {path} cannot be made: {error.strerror}", side="destination")
