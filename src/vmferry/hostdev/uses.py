"""Who uses a device now, as the kernel tells in /proc: mounts and swap, and programs that hold a VFIO group."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_GROUP = re.compile(r"/dev/vfio/([0-9]{1,9})")


def disk_uses(proc: Path = Path("/proc")) -> dict[str, str]:
    """Return what disks are used for, by their numbers ("8:1"). Source: proc_pid_mountinfo(5), proc_swaps(5)."""
    found: dict[str, str] = {}
    for words in map(str.split, _lines(proc / "self/mountinfo")):
        if len(words) > 4:  # number, parent, major:minor, root, mount point, ...
            found.setdefault(words[2], f"mounted at {words[4]}")
    for words in map(str.split, _lines(proc / "swaps")[1:]):
        with contextlib.suppress(OSError):
            number = Path(words[0]).stat().st_rdev
            found.setdefault(f"{os.major(number)}:{os.minor(number)}", "used as swap")
    return found


def group_holders(proc: Path = Path("/proc")) -> dict[int, str]:
    """Return which program holds an IOMMU group for itself, by the group's number: "qemu-system-x86 (pid 4711)"."""
    found: dict[int, str] = {}
    for pid in _pids(proc):
        for target in _open_files(proc / pid / "fd"):
            if (match := _GROUP.fullmatch(target)) is not None:
                name = next(iter(_lines(proc / pid / "comm")), "a program")
                found[int(match[1])] = f"{name} (pid {pid})"
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
