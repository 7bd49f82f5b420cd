"""What this operator's `migrate` asked of libvirt, kept until the move is known to be over: for `recover` and `cancel`.

A host of libvirt's has no journal of ours. So the process that steers a move writes down what it asks for before it
asks, and holds a lock on that file, which ends with the process however it dies. A record without a lock is a move that
nobody steers.

The lock is one of the open file (fcntl's OFD): who only asks whether it is held takes none, so that nobody who asks
keeps another from steering. A move that is over has its file removed, by whoever holds the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vmferry.cli.fleet import has_fleet, identity_directory
from vmferry.cli.libvirt_hosts import LibvirtHost, load_hosts
from vmferry.core.errors import BadInput, GuestBusy
from vmferry.core.ids import is_name

_FOLDER = "moves"
_MOST_BYTES = 1 << 20
#: Parameters that are domains with their passwords. Nobody needs them again: libvirt resumes a post-copy with the
#: domains that both hosts have (qemuMigrationDstPrepareResume).
_SECRET = frozenset({"destination_xml", "persistent_xml"})
#: struct flock: kind of lock, from where it counts, start, length (0: all), process (none: the open file's).
_FLOCK = "hhqqi4x"


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """One move as it was asked for.

    Attributes:
        guest: the domain.
        source: the host that it was to leave.
        destination: the other.
        options: as `migrate` took them: the policy, its goal, the stream.
        flags: what libvirt was told (without VIR_MIGRATE_).
        parameters: likewise; those with passwords are not written.
        was_defined_there: the destination had a definition of it before.
        begun_at: UNIX time.
        flow: the one that was asked for; None: whichever works.
        held: it is held at its arrival.
        images: those that were made at the destination for a copy, each as a person finds it.
    """

    guest: str
    source: str
    destination: str
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    was_defined_there: bool = True
    begun_at: float = 0.0
    flow: str | None = None
    held: bool = False
    images: tuple[str, ...] = ()


@contextlib.contextmanager
def steering(record: MoveRecord, directory: Path | None = None) -> Iterator[None]:
    """Keep a record, locked, while its move is steered; it stays after the block until `forget`.

    Raises:
        GuestBusy: another process steers a move of this domain.
    """
    path = _path(record.guest, directory)
    path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with _locked(path, record.guest, os.O_CREAT) as file:
        kept = {name: value for name, value in record.parameters.items() if name not in _SECRET}
        text = json.dumps(asdict(replace(record, parameters=kept))).encode()
        os.ftruncate(file, 0)
        os.pwrite(file, text, 0)
        os.fsync(file)
        yield


@contextlib.contextmanager
def holding(guest: str, directory: Path | None = None) -> Iterator[bool]:
    """Hold the record of a move that nobody steers, as it is; yield whether there is one: without, nothing is held.

    Raises:
        GuestBusy: another process steers it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(_path(guest, directory), guest))
        except FileNotFoundError:
            is_kept = False
        else:
            is_kept = True
        yield is_kept


def is_steered(guest: str, directory: Path | None = None) -> bool:
    """Tell whether a process steers a move of this domain; nobody is kept from it meanwhile."""
    try:
        file = os.open(_path(guest, directory), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        told = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock())
    finally:
        os.close(file)
    return bool(struct.unpack(_FLOCK, told)[0] != fcntl.F_UNLCK)


def find_record(guest: str, directory: Path | None = None) -> MoveRecord | None:
    """Return what is known of a domain's last move; None when it is over, or another operator's.

    Raises:
        BadInput: the record is spoilt.
    """
    path = _path(guest, directory)
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    if not text:  # its process died between making the file and asking anything
        return None
    try:
        found = json.loads(text)
        record = MoveRecord(**found)
        record = replace(
            record,
            flags=tuple(record.flags),
            images=tuple(record.images),
            parameters={k: tuple(v) if isinstance(v, list) else v for k, v in record.parameters.items()},
        )
        fits = record.guest == guest and all(map(is_name, (record.source, record.destination)))
    except (ValueError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise BadInput(
            f"record of the last move of {guest} in {path} is spoilt",
            fix="look at the domain on both hosts (virsh domstate --reason), then remove the file",
        )
    return record


def records(directory: Path | None = None) -> tuple[str, ...]:
    """Return the domains of which a record is kept, sorted."""
    folder = (directory or identity_directory()) / _FOLDER
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def hosts_that_move(guest: str) -> dict[str, LibvirtHost]:
    """Return the hosts of libvirt's when a domain's move is theirs to tell first; empty: ask the fleet.

    It is when a record of it is kept, or when there is no fleet that could know a guest of that name.

    Raises:
        BadInput: the record is spoilt, or names a host that is not known.
    """
    hosts = load_hosts()
    if "/" in guest or (not hosts and guest not in records()):
        return {}
    record = find_record(guest)
    if record is not None:
        check_hosts(record, hosts)
    return hosts if record is not None or not has_fleet() else {}


def check_hosts(record: MoveRecord, hosts: Mapping[str, LibvirtHost]) -> None:
    """Return if both hosts of a move are known.

    Raises:
        BadInput: one is not, so nobody can tell what became of the move.
    """
    if gone := [name for name in (record.source, record.destination) if name not in hosts]:
        raise BadInput(
            f"{record.guest} was to move from {record.source} to {record.destination}; {', '.join(gone)} is not known"
            " here, so where it runs is not known either",
            fix="add it again: vmferry host add NAME --libvirt URI; then `vmferry recover` tells",
        )


def moves_of(host: str, directory: Path | None = None) -> tuple[str, ...]:
    """Return the domains whose record names a host, sorted; one that is spoilt names none."""
    found = []
    for guest in records(directory):
        with contextlib.suppress(BadInput):
            record = find_record(guest, directory)
            if record is not None and host in (record.source, record.destination):
                found.append(guest)
    return tuple(found)


def forget(guest: str, directory: Path | None = None) -> None:
    """Forget a domain's move: it is known how it ended. For whoever holds its record. Idempotent."""
    _path(guest, directory).unlink(missing_ok=True)


def _path(guest: str, directory: Path | None) -> Path:
    if "/" in guest or guest.startswith("."):
        raise BadInput(f"domain name {guest!r} is none that is moved here")
    return (directory or identity_directory()) / _FOLDER / f"{guest}.json"


@contextlib.contextmanager
def _locked(path: Path, guest: str, flags: int = 0) -> Iterator[int]:
    """Yield the file at a path, open and locked: never one that was removed before it could be locked.

    Raises:
        FileNotFoundError: there is none, and it is not to be made.
        GuestBusy: another process has it locked.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        try:
            _lock(file, guest)
            if _is_at(file, path):
                yield file
                return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _flock() -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _lock(file: int, guest: str) -> None:
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock())
    except BlockingIOError:
        raise GuestBusy(
            f"another vmferry steers the move of {guest}",
            fix=f"see it with `vmferry watch {guest}`, or end it with `vmferry cancel {guest}`",
            retry=True,
        ) from None
