"""What this operator's `migrate` asked of libvirt, kept until the move is known to be over: for `recover` and `cancel`.

A host of libvirt's has no journal of ours. So the process that steers a move writes down what it asks for before it
asks, and holds a lock on that file, which ends with the process however it dies. A record without a lock is a move that
nobody steers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmferry.cli.fleet import has_fleet, identity_directory
from vmferry.cli.libvirt_hosts import LibvirtHost, load_hosts
from vmferry.core.errors import BadInput, GuestBusy
from vmferry.core.ids import is_name

_FOLDER = "moves"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """One move as it was asked for.

    Attributes:
        guest: the domain.
        source: the host that it was to leave.
        destination: the other.
        options: as `migrate` took them: the policy, its goal, the stream.
        flags: what libvirt was told (without VIR_MIGRATE_).
        parameters: likewise.
        was_defined_there: the destination had a definition of it before.
        begun_at: UNIX time.
    """

    guest: str
    source: str
    destination: str
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    was_defined_there: bool = True
    begun_at: float = 0.0


@contextlib.contextmanager
def steering(record: MoveRecord, directory: Path | None = None) -> Iterator[None]:
    """Keep a record, locked, while its move is steered; it stays after the block until `forget`.

    Raises:
        GuestBusy: another process steers a move of this domain.
    """
    path = _path(record.guest, directory)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(file, record.guest)
        text = json.dumps(asdict(record)).encode()
        os.ftruncate(file, 0)
        os.pwrite(file, text, 0)
        os.fsync(file)
        yield
    finally:
        os.close(file)


def is_steered(guest: str, directory: Path | None = None) -> bool:
    """Tell whether a process steers a move of this domain."""
    try:
        file = os.open(_path(guest, directory), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        _lock(file, guest)
    except GuestBusy:
        return True
    finally:
        os.close(file)
    return False


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
        record = MoveRecord(**{**found, "flags": tuple(found["flags"])})
        fits = record.guest == guest and all(map(is_name, (record.source, record.destination)))
    except (ValueError, TypeError, KeyError):
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
    """
    hosts = load_hosts()
    if not hosts or "/" in guest:
        return {}
    return hosts if find_record(guest) is not None or not has_fleet() else {}


def forget(guest: str, directory: Path | None = None) -> None:
    """Forget a domain's move: it is known how it ended. Idempotent."""
    _path(guest, directory).unlink(missing_ok=True)


def _path(guest: str, directory: Path | None) -> Path:
    if "/" in guest or guest.startswith("."):
        raise BadInput(f"domain name {guest!r} is none that is moved here")
    return (directory or identity_directory()) / _FOLDER / f"{guest}.json"


def _lock(file: int, guest: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise GuestBusy(
            f"another vmferry steers the move of {guest}",
            fix=f"see it with `vmferry watch {guest}`, or end it with `vmferry cancel {guest}`",
            retry=True,
        ) from None
