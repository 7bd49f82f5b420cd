"""Writes initramfs archives whose bytes depend on nothing but their content."""

from __future__ import annotations

import stat
from dataclasses import dataclass

_FIXED_MTIME = 1_000_000_000
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or character device of an archive.

    Attributes:
        path: Without a leading slash.
        mode: File type and permission bits, as in stat(2).
        data: The content of a regular file.
        rdev: Major and minor number of a device.
    """

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    """Return a directory that everyone may read."""
    return Entry(path, stat.S_IFDIR | 0o755)


def regular(path: str, data: bytes, *, executable: bool = False) -> Entry:
    """Return a regular file owned by root."""
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def device(path: str, major: int, minor: int) -> Entry:
    """Return a character device that only root may use."""
    return Entry(path, stat.S_IFCHR | 0o600, rdev=(major, minor))


def archive(entries: list[Entry]) -> bytes:
    """Return the entries as an uncompressed "newc" archive, in the order given.

    Inode numbers count up from 1, owner is root and the time is fixed: the same entries give the same bytes.

    Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    parts = [_record(inode, entry) for inode, entry in enumerate(entries, start=1)]
    parts.append(_record(0, Entry(_TRAILER, 0)))
    return b"".join(parts)


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, _FIXED_MTIME, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
