"""Reads some pages of a running guest's memory out of its QEMU: to see what they are like, not to keep them.

Source: proc_pid_maps(5), proc_pid_mem(5), which needs CAP_SYS_PTRACE for a QEMU of another user.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

PAGE_BYTES = 4096
#: Of a guest that is mostly empty, so many pages are looked at for one that is not zero.
_LOOKED_AT = 16
_ZERO = bytes(PAGE_BYTES)


def guest_memory(maps: str, size: int) -> int | None:
    """Return where a guest's memory begins in its QEMU; None when no mapping has its size.

    Args:
        maps: the text of /proc/PID/maps.
        size: of the guest's memory, which is one mapping that nothing can be joined to (QEMU keeps guards around it).
    """
    for line in maps.splitlines():
        span, rights, *_ = line.split()
        first, _, last = span.partition("-")
        if rights.startswith("rw") and int(last, 16) - int(first, 16) == size:
            return int(first, 16)
    return None


def sample_pages(pid: int, size: int, count: int) -> bytes:
    """Return pages at random places of a guest's memory, without those of zeros; fewer when most are.

    Args:
        pid: of its QEMU.
        size: of the guest's memory, bytes.
        count: at most so many pages.

    Raises:
        OSError: the process is gone, its memory is not found, or this process may not look into it.
    """
    start = guest_memory(Path(f"/proc/{pid}/maps").read_text("ascii", "replace"), size)
    if start is None:
        raise FileNotFoundError(f"no mapping of {size} bytes in process {pid}")
    pages: list[bytes] = []
    draw = random.Random(f"{pid}/{start}")
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(count * _LOOKED_AT):
            page = os.pread(memory, PAGE_BYTES, start + draw.randrange(size // PAGE_BYTES) * PAGE_BYTES)
            if page != _ZERO:
                pages.append(page)
            if len(pages) == count:
                break
    finally:
        os.close(memory)
    return b"".join(pages)
