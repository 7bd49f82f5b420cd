"""What is said to sanlock's daemon over its socket, and what it answers, as bytes.

The structures are those of the library's headers, which its daemon takes as they are, in the byte order of the host.
A daemon of another protocol says so in its answers.

Source: sanlock 3.8.5, src/{sanlock,sanlock_admin,sanlock_resource,sanlock_rv,sanlock_sock}.h; sanlock(8).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

MAGIC = 0x04282010
PROTOCOL = 1

#: magic, protocol, command, flags, length with this header, sequence, data, data2
HEADER = struct.Struct("=6IiI")
_DISK = struct.Struct("=1024sQ8x")
#: lockspace, name, version, data64, data32, unused, flags, disks
_RESOURCE = struct.Struct("=48s48sQQIIII")
_LOCKSPACE = struct.Struct("=48sQI4x")
_OPTIONS = struct.Struct("=48sII")
#: host id, generation, timestamp, its I/O time-out in seconds, flags
_HOST = struct.Struct("=QQQII")

#: A request names at most so many leases.
MOST_LEASES = 8
#: Longer is no name of a lockspace or a lease.
LONGEST_NAME = 48
#: What a lease takes on disk, with sectors of 512 bytes; also the most of hosts then.
LEASE_BYTES = 1 << 20
MOST_HOSTS = 2000

_OWN = 0xFFFF_FFFF  #: the leases are for whoever asks, not for another process


class Command(enum.IntEnum):
    """What is asked for."""

    REGISTER = 1
    ADD_LOCKSPACE = 2
    STATUS = 5
    ACQUIRE = 7
    RELEASE = 8
    INQUIRE = 9
    RESTRICT = 10
    INQ_LOCKSPACE = 16
    WRITE_RESOURCE = 19
    GET_HOSTS = 23
    READ_RESOURCE_OWNERS = 24


class Refusal(enum.IntEnum):
    """Answers below zero that are told apart; the others are errno's, or sanlock's own."""

    NO_LOCKSPACE = -28  #: ENOSPC: it is not joined, or being left
    NOT_REGISTERED = -3  #: ESRCH: no process of that number is
    HAS_ENDED = -116  #: ESTALE: it was, and is gone
    NOT_YET = -11  #: EAGAIN: another process here is taking it
    BUSY = -16  #: EBUSY: another order for this process is under way, or it is being killed
    ALREADY = -17  #: EEXIST: another process here has it
    OWNER_ALIVE = -243  #: SANLK_ACQUIRE_IDLIVE
    OWNED = -244  #: SANLK_ACQUIRE_OWNED: another host was quicker
    OTHER = -245  #: SANLK_ACQUIRE_OTHER: likewise
    OWNER_SILENT = -247  #: SANLK_ACQUIRE_OWNED_RETRY: its time is not over yet


_ASYNC = 1  #: SANLK_ADD_ASYNC: answer at once, and go on joining
_NOWAIT = 8  #: SANLK_ACQUIRE_OWNER_NOWAIT: answer at once while the owner's time runs out
_RESTRICT_ALL = 1  #: SANLK_RESTRICT_ALL: nothing more is taken from this connection
_ONLY_DAEMON = 1  #: SANLK_STATE_DAEMON
_STATUS_MASK = 0xF


class Life(enum.IntEnum):
    """How it is with a host, as this one has seen it (SANLK_HOST_...)."""

    UNKNOWN = 1  #: it was not watched for long enough
    FREE = 2  #: it has left
    LIVE = 3  #: its time was seen to go on
    FAIL = 4  #: it is silent, and should be ending its guests
    DEAD = 5  #: it is silent for so long that its watchdog has fired


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease: its name, and the file that it lies in, from the first byte on."""

    lockspace: str
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a lockspace, as the daemon sees it there."""

    host_id: int
    generation: int  #: how many times its id was taken
    io_timeout_s: int
    life: int  #: one of `Life`


def request(command: Command, body: bytes = b"", *, flags: int = 0, data: int = 0, data2: int = 0) -> bytes:
    """Return a request."""
    return HEADER.pack(MAGIC, PROTOCOL, command, flags, HEADER.size + len(body), 0, data, data2) + body


def register() -> bytes:
    """Return the request that makes whoever connected a process that may have leases; nothing is answered to it."""
    return request(Command.REGISTER)


def restrict() -> bytes:
    """Return the request after which nothing is taken from this connection any more."""
    return request(Command.RESTRICT, flags=_RESTRICT_ALL, data2=_OWN)


def acquire(leases: Sequence[Lease], owner: str, pid: int | None) -> bytes:
    """Return the request for at most `MOST_LEASES` leases, all or none.

    Args:
        leases: which.
        owner: how people find the process in `sanlock client status`.
        pid: for which registered process; None: the one that asks.
    """
    body = b"".join(_lease(each) for each in leases) + _OPTIONS.pack(owner[: LONGEST_NAME - 1].encode(), 0, 0)
    return request(Command.ACQUIRE, body, flags=_NOWAIT, data=len(leases), data2=_OWN if pid is None else pid)


def release(lockspace: str, names: Sequence[str], pid: int) -> bytes:
    """Return the request to take at most `MOST_LEASES` leases from a process."""
    body = b"".join(_resource(lockspace, name, disks=0) for name in names)
    return request(Command.RELEASE, body, data=len(names), data2=pid)


def inquire(pid: int) -> bytes:
    """Return the question which leases a process has."""
    return request(Command.INQUIRE, data2=pid)


def owners(lease: Lease) -> bytes:
    """Return the question who has a lease, as the disk says."""
    return request(Command.READ_RESOURCE_OWNERS, _lease(lease))


def write_lease(lease: Lease) -> bytes:
    """Return the request to write a new lease, which nobody has, over whatever is in its file."""
    return request(Command.WRITE_RESOURCE, _lease(lease), data=0, data2=0)


def add_lockspace(lockspace: str, host_id: int, path: str) -> bytes:
    """Return the request to join a lockspace, answered before that is done; `inquire_lockspace` tells when it is."""
    return request(Command.ADD_LOCKSPACE, _lockspace(lockspace, host_id, path), flags=_ASYNC)


def inquire_lockspace(lockspace: str, host_id: int, path: str) -> bytes:
    """Return the question whether a lockspace is joined."""
    return request(Command.INQ_LOCKSPACE, _lockspace(lockspace, host_id, path))


def hosts(lockspace: str) -> bytes:
    """Return the question which hosts were seen in a lockspace."""
    return request(Command.GET_HOSTS, _lockspace(lockspace, 0, ""))


def status() -> bytes:
    """Return the question how the daemon is set up; the connection ends with the answer."""
    return request(Command.STATUS, data=_ONLY_DAEMON)


def parse_header(header: bytes) -> tuple[int, int]:
    """Return the result in an answer's header, and how many bytes follow.

    Raises:
        ValueError: it is no answer of this protocol.
    """
    magic, protocol, _, _, length, _, result, _ = HEADER.unpack(header)
    if magic != MAGIC or protocol >> 16 != PROTOCOL >> 16 or length < HEADER.size:
        raise ValueError(f"no answer of sanlock's: magic {magic:#x}, protocol {protocol:#x}, {length} bytes")
    return result, length - HEADER.size


def parse_held(body: bytes, lockspace: str) -> frozenset[str]:
    """Return the names of a lockspace's leases in the answer to `inquire`."""
    texts = body.partition(b"\0")[0].decode("utf-8", "replace").split(" ")
    fields = [text.split(":", 2) for text in texts]
    return frozenset(each[1] for each in fields if len(each) > 2 and each[0] == lockspace)


def parse_owners(body: bytes) -> tuple[Host, ...]:
    """Return the hosts in the answer to `owners`; what is there of them says nothing about their life."""
    return parse_hosts(body[_RESOURCE.size :])


def parse_hosts(body: bytes) -> tuple[Host, ...]:
    """Return the hosts in the answer to `hosts`."""
    whole = body[: len(body) - len(body) % _HOST.size]
    return tuple(
        Host(host_id, generation, io_timeout, flags & _STATUS_MASK)
        for host_id, generation, _, io_timeout, flags in _HOST.iter_unpack(whole)
    )


def has_watchdog(body: bytes) -> bool:
    """Tell from the answer to `status` whether the host is reset when its guests cannot be ended in time."""
    return b"use_watchdog=1" in body


def _lease(lease: Lease) -> bytes:
    return _resource(lease.lockspace, lease.name, disks=1) + _DISK.pack(lease.path.encode(), 0)


def _resource(lockspace: str, name: str, *, disks: int) -> bytes:
    return _RESOURCE.pack(lockspace.encode(), name.encode(), 0, 0, 0, 0, 0, disks)


def _lockspace(lockspace: str, host_id: int, path: str) -> bytes:
    return _LOCKSPACE.pack(lockspace.encode(), host_id, 0) + _DISK.pack(path.encode(), 0)
