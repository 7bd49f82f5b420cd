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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import structlog

from vmferry.core.disks import ImageCopy
from vmferry.core.errors import Broken, Refused
from vmferry.core.guest import DiskFormat
from vmferry.core.ids import HandoverId

_log = structlog.get_logger(__name__)

#: For writing a header; nothing is allocated.
_MAKE_LIMIT_S = 30.0
_MODE = 0o600


class LocalDiskFiles:
    """Images on this host's file systems: the reference implementation of `ports.disks.DiskFiles`.

    Args:
        why_not: tells of a path why guests may not be given that file; None when they may.
        why_locked: tells of a path why nobody could write to that image now; None when one could; may raise OSError.
    """

    def __init__(self, why_not: Callable[[str], str | None], why_locked: Callable[[str], str | None]) -> None:
        self._why_not = why_not
        self._why_locked = why_locked

    def make(self, handover: HandoverId, copies: Sequence[ImageCopy]) -> None:
        """Make empty images, all of the guest's size and none of its content.

        Raises:
            Refused: a file is there already, or may not be made.
        """
        for copy in copies:
            path = copy.image.path
            try:
                with self._folder(path) as (folder, name):
                    _make_one(folder, _arriving(name, handover), copy)
                    os.link(
                        _arriving(name, handover), name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False
                    )
            except OSError as error:
                raise _refused(path, error) from error

    def keep(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Make images that arrived this host's own."""
        for path in paths:
            with self._told_only(path, handover), self._folder(path) as (folder, name):
                _unlink(folder, _arriving(name, handover))

    def drop(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Remove the images that were made for this hand-over, and nothing else."""
        self.leave(handover, paths)
        for path in paths:
            with self._told_only(path, handover), self._folder(path) as (folder, name):
                _unlink(folder, _arriving(name, handover))

    def leave(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Give up the names of images that were made for this hand-over; what came of them keeps its second name."""
        for path in paths:
            with self._told_only(path, handover), self._folder(path) as (folder, name):
                if _is_same(folder, name, _arriving(name, handover)):
                    _unlink(folder, name)

    def why_locked(self, paths: Sequence[str]) -> str | None:
        """Return why a guest that nobody runs could not be given these images now; None when it could."""
        for path in paths:
            try:
                if (why := self._why_locked(path)) is not None:
                    return why
            except OSError as error:
                _log.warning("locks of an image cannot be asked about", path=path, error=str(error))
        return None

    def put_aside(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Rename images whose guest has left."""
        for path in paths:
            with self._told_only(path, handover), self._folder(path) as (folder, name):
                aside = f"{name}.left-{handover}"
                if not _exists(folder, aside) and _exists(folder, name):
                    os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)

    @contextlib.contextmanager
    def _folder(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield the directory of an image, opened, and the image's name in it: its path may lead elsewhere soon.

        Raises:
            Refused: guests may not use files there, or it holds devices.
            OSError: there is no such directory.
        """
        parent = Path(path).parent.resolve(strict=True)
        folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            real = Path(f"/proc/self/fd/{folder}").readlink()
            why = self._why_not(str(real / Path(path).name))
            if is_of_devices(real):
                why = "it would be a file among devices"
            if why is not None:
                raise Refused(f"Image {path} cannot be made here: {why}", side="destination")
            yield folder, Path(path).name
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _told_only(self, path: str, handover: HandoverId) -> Iterator[None]:
        """Log what goes wrong with one image: the others are seen to all the same."""
        try:
            yield
        except FileNotFoundError:
            pass
        except (OSError, Refused) as error:  # a file system that went away, a directory that was swapped
            _log.error("image is left as it is", path=path, handover=handover, error=str(error))


def is_of_devices(directory: Path) -> bool:
    """Tell whether a directory holds devices: a file in it would be memory, and gone with the next start."""
    return Path("/dev") in (directory, *directory.parents)


def image_tool() -> str | None:
    """Return where the program is that makes images of other formats than raw; None: there is none."""
    return shutil.which("qemu-img")


def _make_one(folder: int, name: str, copy: ImageCopy) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(name, flags, _MODE, dir_fd=folder)
    try:
        if copy.image.format is DiskFormat.RAW:
            os.truncate(descriptor, copy.size_bytes)
        else:
            _format(descriptor, copy)
    finally:
        os.close(descriptor)


def _arriving(name: str, handover: HandoverId) -> str:
    return f"{name}.arriving-{handover}"


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_same(folder: int, name: str, other: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(
            os.stat(name, dir_fd=folder, follow_symlinks=False), os.stat(other, dir_fd=folder, follow_symlinks=False)
        )
    return False


def _unlink(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _format(descriptor: int, copy: ImageCopy) -> None:
    """Write the header of an image that is no raw one; by its descriptor, since another may get its name meanwhile."""
    tool = image_tool()
    if tool is None:
        raise Refused(
            f"Image {copy.image.path} of format {copy.image.format} cannot be made: there is no qemu-img here",
            fix="install qemu-utils (Debian), or convert the image to raw",
            side="destination",
        )
    argv = [tool, "create", "-q", "-f", str(copy.image.format)]
    if copy.image.backing:  # told to who looks at the file; -u: not opened
        argv += ["-u", "-b", copy.image.backing[0].path, "-F", str(copy.image.backing[0].format)]
    argv += [f"/dev/fd/{descriptor}", str(copy.size_bytes)]
    try:
        made = subprocess.run(
            argv,
            capture_output=True,
            check=False,
            timeout=_MAKE_LIMIT_S,
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
        )
    except subprocess.TimeoutExpired as error:
        raise Broken(
            f"qemu-img took longer than {_MAKE_LIMIT_S:g} s for {copy.image.path}", side="destination"
        ) from error
    if made.returncode:
        told = made.stderr.decode(errors="replace").strip()
        raise Refused(f"Image {copy.image.path} cannot be made: {told or made.returncode}", side="destination")


def _refused(path: str, error: OSError) -> Refused:
    if error.errno == errno.EEXIST:
        return Refused(
            f"Image {path} cannot be made: a file is there already",
            fix="move it away if nobody needs it",
            side="destination",
        )
    if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
        return Refused(
            f"Image {path} cannot be made: {error.strerror} (its file system may have no hard links)",
            fix="use a file system that has them",
            side="destination",
        )
    return Refused(f"Image {path} cannot be made: {error.strerror}", side="destination")
