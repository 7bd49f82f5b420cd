"""Writes ext4 file systems whose bytes depend on nothing but the tree they are made from."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from typing import TYPE_CHECKING, BinaryIO

from vmferry.lab.toolchain.command import output_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_EPOCH = 1_000_000_000
_FIX = "install e2fsprogs and free 3 GiB in the cache directory"
#: Where no inode of a file is: all below 11 are the file system's own.
_FIRST_INODE = 11
_ROOT_INODE = 2


def make_ext4(tree: Path, image: Path, *, size: int, uuid: str, label: str) -> None:
    """Write a tree as a file system into a new, sparse file.

    mke2fs takes over the times of the tree, and nobody can set a file's time of change: so all times are set in the
    image. (From 1.47.1 on mke2fs would do this by itself; Debian 12 has 1.47.0.)

    Args:
        tree: Owners, modes and links are taken as they are there.
        image: The file to write.
        size: Bytes, a multiple of 4 KiB.
        uuid: Of the file system; also the seed of its directories' hashes.
        label: Of the file system.

    Raises:
        Broken: When e2fsprogs is missing or the tree does not fit.
    """
    options = f"hash_seed={uuid},no_copy_xattrs"
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-U", uuid, "-L", label, "-m", "0", "-E", options]
    _run([*make, "-d", str(tree), str(image), f"{size // 1024}k"])
    with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
        for inode in [_ROOT_INODE, *_used_inodes(_run(["dumpe2fs", str(image)]))]:
            for field in ("atime", "ctime", "mtime"):
                script.write(f"set_inode_field <{inode}> {field} @{_EPOCH}\n")
                script.write(f"set_inode_field <{inode}> {field}_extra 0\n")
        script.flush()
        _run(["debugfs", "-w", "-f", script.name, str(image)])


def copy_sparse(source: BinaryIO, destination: BinaryIO, start: int) -> None:
    """Copy what is not a hole of one file into another, from byte `start` on, where that one holds zeros.

    Source: lseek(2), SEEK_DATA and SEEK_HOLE.
    """
    end = source.seek(0, os.SEEK_END)
    hole = 0
    while hole < end:
        try:
            data = source.seek(hole, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        hole = source.seek(data, os.SEEK_HOLE)
        source.seek(data)
        destination.seek(start + data)
        destination.write(source.read(hole - data))


def _used_inodes(listing: str) -> Iterator[int]:
    """Yield the numbers of all inodes in use, out of dumpe2fs' list of the free ones in each group."""
    found = re.search(r"^Inodes per group:\s+(\d+)$", listing, re.MULTILINE)
    per_group = int(found[1]) if found else 0
    for group, ranges in enumerate(re.findall(r"^  Free inodes: ?(.*)$", listing, re.MULTILINE)):
        free = {
            number
            for first, last in re.findall(r"(\d+)(?:-(\d+))?", ranges)
            for number in range(int(first), int(last or first) + 1)
        }
        everything = range(group * per_group + 1, (group + 1) * per_group + 1)
        yield from (number for number in everything if number >= _FIRST_INODE and number not in free)


def _run(command: list[str]) -> str:
    env = {"E2FSPROGS_FAKE_TIME": str(_EPOCH), "SOURCE_DATE_EPOCH": str(_EPOCH)}
    return output_of(command, env=env, fix=_FIX)
