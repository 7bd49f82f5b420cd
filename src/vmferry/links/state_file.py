"""Files with a guest in them, on a file system of this host (or one that several hosts share).

The first MiB is the header: a magic, the length of a JSON text, its checksum, the text, zeros. Behind it stands what
QEMU wrote. The file is the agent's alone (0600): it is the guest's memory in the clear.

Source: rename(2), link(2) (which never replaces a file), fsync(2) of directories; QEMU docs/devel/migration/mapped-ram.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.core.saved import SavedGuest
from vmferry.core.units import MIB, Bytes, format_bytes

#: mapped-ram wants its pages at multiples of 1 MiB of the file.
HEADER_BYTES = Bytes(MIB)
MAGIC = b"vmferry guest 1\n"
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
_TEXT_AT = len(MAGIC) + _LENGTH_BYTES + _DIGEST_BYTES
_BLOCK = 4 * MIB
#: Beside the guest's memory: devices, the header, what a busy guest's stream has more.
_SPARE = 64 * MIB

_SAVED: TypeAdapter[tuple[SavedGuest]] = TypeAdapter(tuple[SavedGuest], config=ConfigDict(extra="forbid", strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class OpenStateFile:
    """An open file."""

    descriptor: int
    offset: Bytes = HEADER_BYTES

    def fileno(self) -> int:
        """Return its descriptor here."""
        return self.descriptor

    def close(self) -> None:
        """Close it here."""
        os.close(self.descriptor)


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

    async def create(self, path: str, needed: Bytes) -> OpenStateFile:
        """Open FILE.partial for writing."""
        return await asyncio.to_thread(self._create, path, needed)

    def _create(self, path: str, needed: Bytes) -> OpenStateFile:
        self._check(path)
        if (there := _what_is_at(path)) is not None:
            raise BadInput(f"{path} cannot be written: {there}", fix="name another file, or remove that one")
        with _faults(path, "cannot be written"):
            found = os.statvfs(Path(path).parent)
            if found.f_bavail * found.f_frsize < needed + _SPARE:
                free = format_bytes(found.f_bavail * found.f_frsize)
                raise Refused(
                    f"The file system of {path} has {free} left, {format_bytes(needed + _SPARE)} may be needed",
                    fix="make room there, or name another directory",
                )
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return OpenStateFile(os.open(_partial(path), flags, 0o600))

    async def seal(self, path: str, saved: SavedGuest) -> SavedGuest:
        """Write the header of FILE.partial."""
        return await asyncio.to_thread(self._seal, path, saved)

    def _seal(self, path: str, saved: SavedGuest) -> SavedGuest:
        with _faults(path, "cannot be finished"), Path(_partial(path)).open("r+b", buffering=0) as file:
            size, digest = _measure(file.fileno())
            sealed = dataclasses.replace(saved, state_bytes=size, sha256=digest)
            _write_all(file.fileno(), dump_header(sealed))
            os.fsync(file.fileno())
            _sync_directory(path)
            return sealed

    async def publish(self, path: str) -> None:
        """Make FILE of FILE.partial."""
        await asyncio.to_thread(self._publish, path)

    def _publish(self, path: str) -> None:
        partial = Path(_partial(path))
        if not partial.exists():
            return
        with _faults(path, "cannot get its name"):
            if not (Path(path).exists() and partial.samefile(path)):
                os.link(partial, path)  # unlike a rename it never replaces a file
                _sync_directory(path)
            partial.unlink()
            _sync_directory(path)

    async def discard(self, path: str) -> None:
        """Remove FILE.partial."""
        await asyncio.to_thread(Path(_partial(path)).unlink, missing_ok=True)

    async def read(self, path: str) -> SavedGuest:
        """Return what FILE says of its guest."""
        return await asyncio.to_thread(self._read, path)

    def _read(self, path: str) -> SavedGuest:
        self._check(path)
        if not Path(path).exists():
            raise _missing(path)
        with _faults(path, "cannot be read"), _opened(path) as descriptor:
            return load_header(os.pread(descriptor, HEADER_BYTES, 0), path)

    async def claim(self, path: str, claim: str) -> OpenStateFile:
        """Rename FILE so that nobody else finds it, and open it for reading."""
        return await asyncio.to_thread(self._claim, path, claim)

    def _claim(self, path: str, claim: str) -> OpenStateFile:
        mine = _claimed(path, claim)
        with _faults(path, "cannot be claimed"), contextlib.ExitStack() as failed:
            try:
                Path(path).rename(mine)
            except FileNotFoundError:
                raise _missing(path) from None
            failed.callback(self._give_back, path, claim)
            _sync_directory(path)
            descriptor = os.open(mine, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            failed.callback(os.close, descriptor)
            _check_whole(descriptor, path)
            failed.pop_all()
            return OpenStateFile(descriptor)

    async def give_back(self, path: str, claim: str) -> None:
        """Undo a claim."""
        await asyncio.to_thread(self._give_back, path, claim)

    def _give_back(self, path: str, claim: str) -> None:
        _rename(path, _claimed(path, claim), path)

    async def consume(self, path: str, claim: str) -> None:
        """Make FILE.restored of a claimed one."""
        await asyncio.to_thread(_rename, path, _claimed(path, claim), _restored(path))

    def _check(self, path: str) -> None:
        if not Path(path).is_absolute() or Path(path).name in {"", ".", ".."}:
            raise BadInput(f"{path!r} is not the absolute path of a file", fix="name one, e.g. /srv/saved/web-7.guest")
        for name in (path, _partial(path)):
            if (why := self._why_not(name)) is not None:
                raise BadInput(f"{path} may not be used: {why}", fix="name a file below one of the host's image_dirs")


def _partial(path: str) -> str:
    return f"{path}.partial"


def _claimed(path: str, claim: str) -> str:
    return f"{path}.restoring-{claim}"


def _restored(path: str) -> str:
    return f"{path}.restored"


def _what_is_at(path: str) -> str | None:
    """Return why a new file of that name would be in the way of another; None: nothing is there."""
    if os.path.lexists(path):
        return "there is a file of that name"
    if os.path.lexists(_partial(path)):
        return "it is being written"
    return "it is being restored" if _claims(path) else None


def _claims(path: str) -> list[str]:
    place = Path(path)
    return [one.name for one in place.parent.glob(f"{_escaped(place.name)}.restoring-*")]


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _missing(path: str) -> NotFound:
    if _claims(path):
        return NotFound(f"{path} is being restored", fix="wait for that; its agent gives it back when it fails")
    if Path(_restored(path)).exists():
        return NotFound(
            f"{path} was restored already: its guest has run since, and must not run twice",
            fix=f"remove {_restored(path)} when it is not needed any more",
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


def _check_whole(descriptor: int, path: str) -> None:
    saved = load_header(os.pread(descriptor, HEADER_BYTES, 0), path)
    size, digest = _measure(descriptor)
    if (size, digest) != (saved.state_bytes, saved.sha256):
        raise Broken(
            f"{path} is damaged: {format_bytes(size)} with checksum {digest[:12]}..., expected"
            f" {format_bytes(saved.state_bytes)} with {saved.sha256[:12]}...",
            fix="bring back an undamaged copy; this one cannot be restored",
        )
