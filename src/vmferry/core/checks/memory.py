"""Memory at the destination: the guest's RAM and what QEMU needs beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.errors import Blocker
from vmferry.core.guest import FrozenGuest
from vmferry.core.units import MIB, Bytes

#: QEMU itself, its threads and its buffers during a migration.
PROCESS_OVERHEAD = Bytes(64 * MIB)
#: Page tables and dirty bitmaps grow with RAM: 2 MiB of every 100.
PERCENT_OF_RAM = 2


def memory_needed(guest: FrozenGuest) -> Bytes:
    """Return what a host must have free for the guest: its RAM, 2 % of it, and 64 MiB for QEMU.

    The reservation holds this same number.
    """
    ram = guest.spec.memory_bytes
    return Bytes(ram + ram * PERCENT_OF_RAM // 100 + PROCESS_OVERHEAD)


def check_memory(case: Case) -> Iterator[Blocker]:
    """The destination has the memory free, after what other arrivals have reserved."""
    needed = memory_needed(case.guest)
    free = case.destination.memory_free_bytes
    if free >= needed:
        return
    ram = case.guest.spec.memory_bytes
    short = math.ceil((needed - free) / MIB)
    yield Blocker(
        "memory.not-enough",
        f"guest {case.guest.spec.name} needs {math.ceil(needed / MIB)} MiB on {case.destination.name}"
        f" ({ram // MIB} MiB RAM and {math.ceil((needed - ram) / MIB)} MiB for QEMU), {free // MIB} MiB of"
        f" {case.destination.memory_total_bytes // MIB} MiB are free",
        f"free {short} MiB there (move or stop a guest), or choose another host",
    )
