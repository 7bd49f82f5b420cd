"""Pages of a running guest, read out of its QEMU."""

from __future__ import annotations

import mmap
import os

import pytest

from vmferry.core.units import MIB
from vmferry.qemu.guest_pages import PAGE_BYTES, guest_memory, sample_pages

MAPS = """\
7f0000000000-7f0000200000 ---p 00000000 00:00 0
7f0000200000-7f0000600000 r--p 00000000 00:00 0
7f0001200000-7f0001600000 rw-p 00000000 00:00 0
7f0001600000-7f0001601000 ---p 00000000 00:00 0
7f0002000000-7f0002800000 rw-s 00000000 00:0f 77 /memfd:x (deleted)
"""


@pytest.mark.parametrize(("mib", "start"), [(4, 0x7F0001200000), (8, 0x7F0002000000), (2, None), (16, None)])
def test_the_mapping_of_its_size_is_it(mib: int, start: int | None) -> None:
    """Guards and what cannot be written are none, shared memory is one."""
    assert guest_memory(MAPS, mib * MIB) == start


def test_pages_of_zeros_are_left_out() -> None:
    """Of a mapping with some written pages only these are found, and no more than asked for."""
    size = 37 * MIB  # of no other mapping of this process
    with mmap.mmap(-1, size) as memory:
        for page in range(0, size // PAGE_BYTES, 8):
            memory[page * PAGE_BYTES] = 7
        found = sample_pages(os.getpid(), size, 50)
    assert len(found) == 50 * PAGE_BYTES
    assert {found[at] for at in range(0, len(found), PAGE_BYTES)} == {7}


def test_an_empty_guest_has_none() -> None:
    """It ends, with nothing."""
    with mmap.mmap(-1, 41 * MIB):
        assert sample_pages(os.getpid(), 41 * MIB, 50) == b""


def test_what_is_not_there_is_told() -> None:
    """No such mapping, no such process."""
    with pytest.raises(OSError, match="no mapping"):
        sample_pages(os.getpid(), (1 << 47) - 4096, 1)  # all of an address space: nobody has that
    with pytest.raises(OSError, match="No such file"):
        sample_pages(2**22 + 1, MIB, 1)
