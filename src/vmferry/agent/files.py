"""A guest's files as this host sees them, so that two hosts can tell whether they mean the same one."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmferry.agent.digests import Digests
from vmferry.core.guest import FrozenGuest, GuestSpec, KernelBoot, UefiBoot
from vmferry.core.host import FileFacts
from vmferry.core.units import GIB, Bytes
from vmferry.disks.files import is_of_devices

#: Images that nobody writes are read as a whole, so that a copy on each host is known to be one; of larger ones only
#: the file system tells. At 500 MB/s it takes a minute, once.
MOST_COMPARED = Bytes(32 * GIB)
#: So long an answer may wait for it; the next one goes on with the reading.
_COMPARES_S = 8.0
_DIGESTS = Digests()
#: Shared between kernels: the server's own numbers identify a file. Others belong to one kernel: its boot id says so.
_NETWORK = frozenset({"nfs", "nfs4", "ceph", "cifs", "smb3", "gfs2", "ocfs2", "fuse.glusterfs"})


#: Tells of a path why guests may not be given that file; None when they may.
WhyNot = Callable[[str], str | None]


def guest_files(guest: FrozenGuest, why_not: WhyNot) -> tuple[FileFacts, ...]:
    """Return the facts of every file that the guest needs on a host: disks, boot files, firmware. Never raises."""
    until = time.monotonic() + _COMPARES_S
    return tuple(
        file_facts(file.path, why_not, _hashed_up_to(file, guest), None if file.is_code else until)
        for file in files_of(guest.spec)
    )


def _hashed_up_to(file: GuestFile, guest: FrozenGuest) -> Bytes | None:
    if file.is_code:
        return guest.spec.memory_bytes
    return None if file.writable or is_on_network(file.path) else MOST_COMPARED


@dataclass(frozen=True, slots=True)
class GuestFile:
    """One file that a guest needs."""

    role: str
    path: str
    is_code: bool = False  #: the same content on every host, rather than one file that all see
    writable: bool = False


def files_of(spec: GuestSpec) -> list[GuestFile]:
    """Return every file that a guest needs on its host."""
    boot = spec.boot
    files = [GuestFile("disk image", disk.path, writable=not disk.read_only) for disk in spec.disks]
    files += [GuestFile("backing file", below.path) for disk in spec.disks for below in disk.backing]
    if isinstance(boot, KernelBoot):
        files.append(GuestFile("kernel", boot.kernel, is_code=True))
        if boot.initrd is not None:
            files.append(GuestFile("initrd", boot.initrd, is_code=True))
    elif isinstance(boot, UefiBoot):
        files.append(GuestFile("firmware variables", boot.nvram, writable=True))
        files.append(GuestFile("firmware", boot.code, is_code=True))
    return files


def complaints(spec: GuestSpec, why_not: WhyNot) -> list[str]:
    """Return what is wrong with the files of a guest that shall start here, all at once. Never raises."""
    found = []
    for file in files_of(spec):
        facts = file_facts(file.path, why_not)
        if facts.error is not None:
            found.append(f"{file.role} {file.path}: {facts.error}")
        elif not facts.readable or (file.writable and not facts.writable):
            access = "writable" if facts.readable else "readable"
            found.append(f"{file.role} {file.path} is not {access} for the agent")
    return found


def shared_variables(spec: GuestSpec, others: Sequence[GuestSpec]) -> list[str]:
    """Return which guests of this host have the firmware variables of a new one, however their paths are spelt."""
    if not isinstance(spec.boot, UefiBoot):
        return []
    path = spec.boot.nvram
    owners = [other.name for other in others if isinstance(other.boot, UefiBoot) and _is_same(other.boot.nvram, path)]
    return [f"firmware variables {path} are guest {owner}'s" for owner in owners]


def _is_same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def file_facts(path: str, why_not: WhyNot, hashed_up_to: Bytes | None = None, until: float | None = None) -> FileFacts:
    """Return what this host knows of a file; what it cannot know, or does not say of it, stands in `error`.

    Args:
        path: the file.
        why_not: asked first: of a file that guests may not have it is not even told whether it is there.
        hashed_up_to: hash it unless it is larger, in bytes; None: do not.
        until: the time (CLOCK_MONOTONIC) at which reading it pauses: asked again, it goes on; None: not before the end.
    """
    if (why := why_not(path)) is not None:
        return _useless(path, why)
    try:
        found = Path(path).stat()
    except FileNotFoundError as error:
        return _useless(path, error.strerror or "not found", _room(path))
    except (OSError, ValueError) as error:
        return _useless(path, getattr(error, "strerror", None) or str(error))
    is_hashed = hashed_up_to is not None and stat.S_ISREG(found.st_mode) and found.st_size <= hashed_up_to
    digest = _DIGESTS.of(path, until) if is_hashed else None
    return FileFacts(
        path,
        exists=True,
        readable=os.access(path, os.R_OK),
        writable=os.access(path, os.W_OK),
        size_bytes=Bytes(found.st_size),
        identity=_identity(path, found),
        sha256=None if digest is None else digest.sha256,
        read_bytes=Bytes(0) if digest is None else digest.read_bytes,
    )


def is_on_network(path: str) -> bool:
    """Return whether a file lies where several kernels see it; False when that cannot be told. Never raises."""
    try:
        return _mount_of(Path(path).stat().st_dev)[0] in _NETWORK
    except (OSError, ValueError):
        return False


def _room(path: str) -> Bytes | None:
    """Return what is free where a file would be made; None: it cannot be made."""
    directory = Path(path).parent
    try:
        may_be_made = directory.is_dir() and os.access(directory, os.W_OK | os.X_OK) and not Path(path).is_symlink()
        if not may_be_made or is_of_devices(directory.resolve()):
            return None
        return Bytes(shutil.disk_usage(directory).free)
    except OSError:
        return None


def _useless(path: str, why: str, room: Bytes | None = None) -> FileFacts:
    return FileFacts(
        path,
        exists=False,
        readable=False,
        writable=False,
        size_bytes=Bytes(0),
        identity=f"unknown: {why}",
        error=why,
        room_bytes=room,
    )


def _identity(path: str, found: os.stat_result) -> str:
    kind, source = _mount_of(found.st_dev)
    if kind in _NETWORK:
        return f"{kind}:{source}:{found.st_ino}"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{kind}:{boot_id}:{found.st_dev}:{found.st_ino}" if kind else f"unknown: file system of {path}"


def _mount_of(device: int) -> tuple[str, str]:
    """Return file system type and source of the mount with this device number. Source: proc_pid_mountinfo(5)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines():
        fields, _, after = line.partition(" - ")
        if fields.split()[2] == wanted:
            kind, source, *_ = after.split()
            return kind, source
    return "", ""
