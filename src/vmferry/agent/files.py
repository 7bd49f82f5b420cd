"""A guest's files as this host sees them, so that two hosts can tell whether they mean the same one."""

from __future__ import annotations

import hashlib
import os
import stat
from functools import lru_cache
from pathlib import Path

from vmferry.core.guest import FrozenGuest, KernelBoot, UefiBoot
from vmferry.core.host import FileFacts
from vmferry.core.units import Bytes

#: Shared between kernels: the server's own numbers identify a file. Others belong to one kernel: its boot id says so.
_NETWORK = frozenset({"nfs", "nfs4", "ceph", "cifs", "smb3", "gfs2", "ocfs2", "fuse.glusterfs"})
_HASH_BLOCK = 1 << 20


def guest_files(guest: FrozenGuest) -> tuple[FileFacts, ...]:
    """Return the facts of every file that the guest needs on a host: disks, boot files, firmware. Never raises."""
    boot = guest.spec.boot
    hashed: list[str] = []
    plain = [disk.path for disk in guest.spec.disks]
    if isinstance(boot, KernelBoot):
        hashed = [path for path in (boot.kernel, boot.initrd) if path is not None]
    elif isinstance(boot, UefiBoot):
        hashed = [boot.code]
        plain.append(boot.nvram)
    return tuple([file_facts(path) for path in plain] + [file_facts(path, hashed=True) for path in hashed])


def file_facts(path: str, *, hashed: bool = False) -> FileFacts:
    """Return what this host knows of a file; what it cannot know stands in `error`."""
    try:
        found = Path(path).stat()
    except OSError as error:
        return _useless(path, exists=False, why=error.strerror or str(error))
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        return _useless(path, exists=True, why="neither a file nor a block device")
    return FileFacts(
        path,
        exists=True,
        readable=os.access(path, os.R_OK),
        writable=os.access(path, os.W_OK),
        size_bytes=Bytes(found.st_size),
        identity=_identity(path, found),
        sha256=_sha256(path, found.st_mtime_ns, found.st_size) if hashed else None,
    )


def _useless(path: str, *, exists: bool, why: str) -> FileFacts:
    return FileFacts(
        path,
        exists=exists,
        readable=False,
        writable=False,
        size_bytes=Bytes(0),
        identity=f"unknown: {why}",
        error=why,
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


@lru_cache(maxsize=256)
def _sha256(path: str, _mtime_ns: int, _size: int) -> str | None:
    """Return a file's hash; cached by modification time and size, since a check must not read kernels every time."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(_HASH_BLOCK):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
