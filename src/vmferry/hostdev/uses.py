"""Who uses a device now, as the kernel tells in /proc: mounts and swap, and programs that have VFIO's files open."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

#: A group, one without an IOMMU, or a device by itself (iommufd).
_OPEN = re.compile(r"/dev/vfio/(?:noiommu-)?([0-9]{1,9})|/dev/vfio/devices/(vfio[0-9]{1,9})")


def disk_uses(proc: Path = Path("/proc")) -> dict[str, str]:
    """Return what disks are used for, by their numbers ("8:1"). Source: proc_pid_mountinfo(5), proc_swaps(5)."""
    found: dict[str, str] = {}
    for words in map(str.split, _lines(proc / "self/mountinfo")):
        if len(words) > 4:  # number, parent, major:minor, root, mount point, ...
            found.setdefault(words[2], f"mounted at {words[4]}")
        if "-" in words[:-2]:  # ... - type, source: of some file systems the number is none of a disk
            source = words[words.index("-") + 2]
            if source.startswith("/dev/") and (number := _number_of(source)) is not None:
                found.setdefault(number, f"mounted at {words[4]}")
    for words in map(str.split, _lines(proc / "swaps")[1:]):
        if (number := _number_of(words[0])) is not None:
            found.setdefault(number, "used as swap")
    return found


def _number_of(path: str) -> str | None:
    """Return the number of a device file; None: it is none."""
    try:
        number = Path(path).stat().st_rdev
    except OSError:
        return None
    return f"{os.major(number)}:{os.minor(number)}" if number else None


def holders(proc: Path = Path("/proc")) -> dict[str, str]:
    """Return which program has what of VFIO: "qemu-system-x86 (pid 4711)".

    The key is an IOMMU group's number ("17"), or the kernel's name of a device that was opened by itself ("vfio0").
    """
    found: dict[str, str] = {}
    for pid in _pids(proc):
        for target in _open_files(proc / pid / "fd"):
            if (match := _OPEN.fullmatch(target)) is not None:
                name = next(iter(_lines(proc / pid / "comm")), "a program")
                found[match[1] or match[2]] = f"{name} (pid {pid})"
    return found


def _pids(proc: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from sorted(entry.name for entry in proc.iterdir() if entry.name.isdecimal())


def _open_files(folder: Path) -> Iterator[str]:
    """Yield where a process's descriptors lead to; it may end meanwhile."""
    try:
        links = list(folder.iterdir())
    except OSError:
        return
    for link in links:
        with contextlib.suppress(OSError):
            yield str(link.readlink())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
