"""Files with a guest in them, on a file system of this host (or one that several hosts share).

The first MiB is the header: a magic, the length of a JSON text, its checksum, the text, zeros. Behind it stands what
QEMU wrote. The file is the agent's alone (0600): it is the guest's memory in the clear.

Source: rename(2), fsync(2) of directories; QEMU docs/devel/migration/mapped-ram.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.core.saved import SavedGuest
from vmferry.core.units import MIB, Bytes, format_bytes
from vmferry.links.threads import abandon, finish

T = TypeVar("T")

#: mapped-ram wants its pages at multiples of 1 MiB of the file.
HEADER_BYTES = Bytes(MIB)
MAGIC = b"vmferry guest 1\n"
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
_TEXT_AT = len(MAGIC) + _LENGTH_BYTES + _DIGEST_BYTES
_BLOCK = 4 * MIB
#: Beside the guest's memory: devices, the header, what a busy guest's stream has more.
_SPARE = 64 * MIB
_PARTIAL, _RESTORING, _RESTORED = ".partial-", ".restoring-", ".restored-"
#: With an ID of 16 letters behind the longest of these words it is what a file system takes.
_LONGEST_NAME = 255 - len(_RESTORING) - 16
#: Begins what stands in FILE while it is written.
_MARK = b"vmferry writes "
_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_SAVED: TypeAdapter[tuple[SavedGuest]] = TypeAdapter(tuple[SavedGuest], config=ConfigDict(extra="forbid", strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class OpenStateFile:
    """A file that is read."""

    descriptor: int
    offset: Bytes = HEADER_BYTES

    def fileno(self) -> int:
        """Return its descriptor here."""
        return self.descriptor

    def close(self) -> None:
        """Close it here."""
        os.close(self.descriptor)


@dataclasses.dataclass(frozen=True, slots=True)
class OpenNewStateFile:
    """A file that is written: by QEMU through a descriptor that only writes, by us through one of our own."""

    path: str
    descriptor: int
    own: int
    offset: Bytes = HEADER_BYTES

    def fileno(self) -> int:
        """Return QEMU's descriptor, as it is here."""
        return self.descriptor

    def close(self) -> None:
        """Close both here."""
        os.close(self.descriptor)
        os.close(self.own)

    async def measure(self) -> tuple[Bytes, str]:
        """Return size and checksum of the state."""
        with _faults(self.path, "cannot be read again"):
            return await asyncio.to_thread(_with, os.dup(self.own), _measure)

    async def seal(self, saved: SavedGuest) -> str:
        """Write the header, and return its digest."""
        header = dump_header(saved)
        with _faults(self.path, "cannot be finished"):
            await asyncio.to_thread(_with, os.dup(self.own), lambda own: self._write(own, header))
        return hashlib.sha256(header).hexdigest()

    def _write(self, own: int, header: bytes) -> None:
        _write_all(own, header)
        os.fsync(own)
        _sync_directory(self.path)


def dump_header(saved: SavedGuest) -> bytes:
    """Return the header.

    Raises:
        Broken: it is too long.
    """
    text = _SAVED.dump_json((saved,))
    if len(text) > HEADER_BYTES - _TEXT_AT:
        raise Broken(f"What is to be said of guest {saved.guest.spec.name} has {len(text)} bytes, more than a header")
    length, digest = len(text).to_bytes(_LENGTH_BYTES, "big"), hashlib.sha256(text).digest()
    return (MAGIC + length + digest + text).ljust(HEADER_BYTES, b"\0")


def load_header(header: bytes, path: str) -> SavedGuest:
    """Return what a header says.

    Raises:
        BadInput: it is none, or damaged, or of a newer version.
    """
    fix = "name a file that `vmferry save` made"
    if not header.startswith(MAGIC):
        raise BadInput(f"{path} is not a file with a guest in it", fix=fix)
    length = int.from_bytes(header[len(MAGIC) :][:_LENGTH_BYTES], "big")
    text = header[_TEXT_AT:][:length]
    if hashlib.sha256(text).digest() != header[_TEXT_AT - _DIGEST_BYTES : _TEXT_AT]:
        raise BadInput(f"Header of {path} is damaged, or was never finished", fix=fix)
    try:
        return _SAVED.validate_json(text)[0]
    except ValidationError as error:
        raise BadInput(
            f"Header of {path} is not what this version reads", fix="use the version that wrote it"
        ) from error


class GuestStateFiles:
    """The files below directories that guests may use.

    Args:
        why_not: why a guest may not have a file of this host; None when it may.
    """

    def __init__(self, why_not: Callable[[str], str | None]) -> None:
        self._why_not = why_not

    def check_path(self, path: str) -> None:
        """Return if there can be such a file here."""
        place = Path(path)
        if not place.is_absolute() or place.name in {"", ".", ".."}:
            raise BadInput(f"{path!r} is not the absolute path of a file", fix="name one, e.g. /srv/saved/web-7.guest")
        if len(os.fsencode(place.name)) > _LONGEST_NAME:
            raise BadInput(f"The name of {path} has more than {_LONGEST_NAME} bytes", fix="take a shorter one")
        if any(word in place.name for word in (_PARTIAL, _RESTORING, _RESTORED)):
            raise BadInput(f"{path} has a name that vmferry gives to files itself", fix="take another one")
        if (why := self._why_not(path)) is not None:
            raise BadInput(f"{path} may not be used: {why}", fix="name a file below one of the host's image_dirs")
        if not place.parent.is_dir():
            raise BadInput(f"{place.parent} is not a directory of this host", fix="make it, or name another file")

    async def create(self, path: str, mark: str, needed: Bytes) -> OpenNewStateFile:
        """Mark FILE and open FILE.partial-ID for writing."""
        return await abandon(lambda: self._create(path, mark, needed), lambda made: self._take_back(made, mark))

    def _create(self, path: str, mark: str, needed: Bytes) -> OpenNewStateFile:
        self.check_path(path)
        if (there := _what_is_at(path)) is not None:
            raise BadInput(f"{path} cannot be written: {there}", fix="name another file, or remove that one")
        with _faults(path, "cannot be written"):
            _check_room(path, needed)
            with contextlib.ExitStack() as failed:
                own = os.open(_partial(path, mark), _NEW | os.O_RDWR, 0o600)
                failed.callback(os.close, own)
                failed.callback(os.unlink, _partial(path, mark))
                try:
                    place = os.open(path, _NEW | os.O_WRONLY, 0o600)
                except FileExistsError:
                    raise BadInput(f"{path} cannot be written: somebody was faster", fix="name another file") from None
                failed.callback(os.unlink, path)
                with os.fdopen(place, "wb") as marked:
                    marked.write(_mark(mark))
                    marked.flush()
                    os.fsync(marked.fileno())
                # QEMU looks for a descriptor that only writes.
                theirs = os.open(f"/proc/self/fd/{own}", os.O_WRONLY | os.O_CLOEXEC)
                failed.pop_all()
                return OpenNewStateFile(path, theirs, own)

    def _take_back(self, made: OpenNewStateFile, mark: str) -> None:
        made.close()
        self._discard(made.path, mark)

    async def publish(self, path: str, mark: str, digest: str) -> None:
        """Make FILE of FILE.partial-ID."""
        await asyncio.to_thread(self._publish, path, mark, digest)

    def _publish(self, path: str, mark: str, digest: str) -> None:
        partial = _partial(path, mark)
        with _faults(path, "cannot get its name"):
            if not Path(partial).exists():
                if (lost := _why_lost(path)) is not None:
                    raise Broken(lost, fix="nothing can bring it back; start the guest anew")
                return  # it was done before
            with _opened(partial) as descriptor:
                header = os.pread(descriptor, HEADER_BYTES, 0)
            if hashlib.sha256(header).hexdigest() != digest:
                raise Broken(
                    f"The header of {partial} is not what was written: QEMU, or somebody on this host, has changed it",
                    fix="do not restore it before you know by whom",
                )
            if Path(path).exists() and _read_start(path) not in (_mark(mark), b""):  # of a crash, the mark was lost
                raise Broken(f"{path} is another file by now", fix=f"move that one away; the guest is in {partial}")
            Path(partial).rename(path)
            _sync_directory(path)

    async def discard(self, path: str, mark: str) -> None:
        """Remove FILE.partial-ID and the mark."""
        await asyncio.to_thread(self._discard, path, mark)

    def _discard(self, path: str, mark: str) -> None:
        with _faults(path, "cannot be removed"):
            ours = (_mark(mark), b"") if Path(_partial(path, mark)).exists() else (_mark(mark),)
            if Path(path).is_file() and _read_start(path) in ours:
                Path(path).unlink()
            Path(_partial(path, mark)).unlink(missing_ok=True)

    async def read(self, path: str) -> SavedGuest:
        """Return what FILE says of its guest."""
        return await asyncio.to_thread(self._read, path)

    def _read(self, path: str) -> SavedGuest:
        self.check_path(path)
        if not Path(path).exists():
            raise _missing(path)
        with _faults(path, "cannot be read"), _opened(path) as descriptor:
            header = os.pread(descriptor, HEADER_BYTES, 0)
        if header.startswith(_MARK):
            raise NotFound(f"{path} is being written", fix="wait for that")
        return load_header(header, path)

    async def claim(self, path: str, mark: str, expected: SavedGuest) -> OpenStateFile:
        """Rename FILE so that nobody else finds it, and open it for reading."""

        def take_back(claimed: OpenStateFile) -> None:
            claimed.close()
            self._give_back(path, mark)

        return await finish(lambda: self._claim(path, mark, expected), take_back)

    def _claim(self, path: str, mark: str, expected: SavedGuest) -> OpenStateFile:
        mine = _claimed(path, mark)
        with _faults(path, "cannot be claimed"), contextlib.ExitStack() as failed:
            try:
                Path(path).rename(mine)
            except FileNotFoundError:
                raise _missing(path) from None
            failed.callback(self._give_back, path, mark)
            _sync_directory(path)
            descriptor = os.open(mine, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            failed.callback(os.close, descriptor)
            if load_header(os.pread(descriptor, HEADER_BYTES, 0), path) != expected:
                raise NotFound(f"{path} is another file by now", fix="look at it again")
            _check_whole(descriptor, path, expected)
            failed.pop_all()
            return OpenStateFile(descriptor)

    async def give_back(self, path: str, mark: str) -> None:
        """Undo a claim."""
        await asyncio.to_thread(self._give_back, path, mark)

    def _give_back(self, path: str, mark: str) -> None:
        if Path(_claimed(path, mark)).exists() and os.path.lexists(path):
            raise Broken(f"{path} is another file by now", fix=f"the guest is in {_claimed(path, mark)}: rename it")
        _rename(path, _claimed(path, mark), path)

    async def consume(self, path: str, mark: str) -> None:
        """Make FILE.restored-ID of a claimed one."""
        await asyncio.to_thread(_rename, path, _claimed(path, mark), f"{path}{_RESTORED}{mark}")


def _mark(mark: str) -> bytes:
    """Return what stands in FILE while it is written."""
    return _MARK + mark.encode("ascii")


def _partial(path: str, mark: str) -> str:
    return f"{path}{_PARTIAL}{mark}"


def _claimed(path: str, mark: str) -> str:
    return f"{path}{_RESTORING}{mark}"


def _check_room(path: str, needed: Bytes) -> None:
    found = os.statvfs(Path(path).parent)
    free = found.f_bavail * found.f_frsize
    if free < needed + _SPARE:
        raise Refused(
            f"The file system of {path} has {format_bytes(free)} left, {format_bytes(needed + _SPARE)} may be needed",
            fix="make room there, or name another directory",
        )


def _what_is_at(path: str) -> str | None:
    """Return why a new file of that name would be in the way of another; None: nothing is there."""
    if os.path.lexists(path):
        is_mark = Path(path).is_file() and _read_start(path).startswith(_MARK)
        return "it is being written" if is_mark else "there is a file of that name"
    return "it is being restored" if _siblings(path, _RESTORING) else None


def _why_lost(path: str) -> str | None:
    """Return why a file that was written cannot have got its name before; None: it can."""
    has_name = Path(path).is_file() and not _read_start(path).startswith(_MARK)
    if has_name or _siblings(path, _RESTORING) or _siblings(path, _RESTORED):
        return None
    return f"Somebody has removed {path} while it was written, with the guest in it"


def _read_start(path: str) -> bytes:
    with _opened(path) as descriptor:
        return os.read(descriptor, 64)


def _siblings(path: str, word: str) -> list[str]:
    place = Path(path)
    return [one.name for one in place.parent.glob(f"{_escaped(place.name)}{word}*")]


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _missing(path: str) -> NotFound:
    if _siblings(path, _RESTORING):
        return NotFound(f"{path} is being restored", fix="wait for that; its agent gives it back when it fails")
    if used := _siblings(path, _RESTORED):
        return NotFound(
            f"{path} was restored already: its guest has run since, and must not run twice",
            fix=f"remove {used[0]} beside it when it is not needed any more",
        )
    return NotFound(f"There is no file {path}", fix="name a file that `vmferry save` made, on the host where it is")


def _rename(path: str, old: str, new: str) -> None:
    with _faults(path, "cannot be renamed"):
        try:
            Path(old).rename(new)
        except FileNotFoundError:
            return  # it was done before
        _sync_directory(path)


@contextlib.contextmanager
def _faults(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Broken(f"{path} {what}: {error.strerror}", fix="look at the directory and its file system") from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _with(descriptor: int, work: Callable[[int], T]) -> T:
    """Work with a descriptor that is this thread's own: whoever waits for it may be gone before it ends."""
    try:
        return work(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: str) -> None:
    with _opened(str(Path(path).parent)) as directory:
        os.fsync(directory)


def _write_all(descriptor: int, data: bytes) -> None:
    at = 0
    while at < len(data):
        at += os.pwrite(descriptor, data[at:], at)


def _measure(descriptor: int) -> tuple[Bytes, str]:
    """Return size and checksum of the state behind the header."""
    digest, at = hashlib.sha256(), int(HEADER_BYTES)
    while block := os.pread(descriptor, _BLOCK, at):
        digest.update(block)
        at += len(block)
    return Bytes(at - HEADER_BYTES), digest.hexdigest()


def _check_whole(descriptor: int, path: str, saved: SavedGuest) -> None:
    size, digest = _measure(descriptor)
    if (size, digest) != (saved.state_bytes, saved.sha256):
        raise Broken(
            f"{path} is damaged: {format_bytes(size)} with checksum {digest[:12]}..., expected"
            f" {format_bytes(saved.state_bytes)} with {saved.sha256[:12]}...",
            fix="bring back an undamaged copy; this one cannot be restored",
        )
