"""Files and taps of a guest, opened by the agent for a process that may not open them itself.

The agent must close its copies as soon as the process has them: an image lock belongs to the open file, and one that is
still open here would hold the lock after QEMU gave it up. `opened_for` is a context manager for that reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from vmferry.core.errors import BadInput
from vmferry.core.guest import (
    DIRECT_CACHES,
    Disk,
    DiskFormat,
    FrozenGuest,
    GuestSpec,
    KernelBoot,
    NetworkKind,
    UefiBoot,
)
from vmferry.core.units import Bytes, format_bytes
from vmferry.qemu import nvram_lock
from vmferry.qemu.command_line import Descriptors
from vmferry.qemu.image_dirs import ImageDirs
from vmferry.qemu.tap import open_tap

QCOW2_MAGIC = b"QFI\xfb"
#: offsets in the header: backing file's name, and incompatible features with bit 2 for an external data file
_QCOW2_HEADER = struct.Struct(">4sIQ56xQ")
_EXTERNAL_DATA = 1 << 2
_BLOCK = 1 << 20
#: No limit but that it is a file or a block device.
ANYWHERE = ImageDirs()


@contextlib.contextmanager
def opened_for(
    guest: FrozenGuest, uid: int | None, images: ImageDirs = ANYWHERE
) -> Iterator[tuple[Descriptors, tuple[int, ...]]]:
    """Open everything that the guest's process inherits; yields the numbers, by use and as one list.

    All are closed when the block ends, however it ends; taps go away with their last descriptor.

    Args:
        guest: whose disks, NICs and boot files.
        uid: the user of the process, None for the agent's own.
        images: which files it may be given.

    Raises:
        Broken: a file or tap cannot be opened, or another guest has the firmware variables.
        BadInput: an image refers to other files, a file may not be used, or a boot file does not fit into the
            guest's memory.
    """
    with contextlib.ExitStack() as stack:
        fds: list[int] = []

        def keep(fd: int) -> int:
            stack.callback(os.close, fd)
            fds.append(fd)
            return fd

        spec = guest.spec
        disks = tuple(keep(open_disk(disk, images)) for disk in spec.disks)
        taps = tuple(
            keep(open_tap(nic.bridge)) if nic.network is NetworkKind.BRIDGE and nic.bridge else None
            for nic in spec.nics
        )
        boot = spec.boot
        kernel = initrd = code = nvram = None
        if isinstance(boot, KernelBoot):
            kernel = keep(_open_for(boot.kernel, spec, uid, images))
            initrd = keep(_open_for(boot.initrd, spec, uid, images)) if boot.initrd else None
        elif isinstance(boot, UefiBoot):
            code = keep(images.open(boot.code, os.O_RDONLY, "firmware"))
            nvram = keep(images.open(boot.nvram, os.O_RDWR, "firmware variables"))
            nvram_lock.lock(nvram, guest.uuid, boot.nvram)
        yield Descriptors(disks, taps, kernel, initrd, code, nvram), tuple(fds)


def open_disk(disk: Disk, images: ImageDirs = ANYWHERE) -> int:
    """Return a descriptor of the image with the access and cache mode that QEMU will look for in its set.

    QEMU takes from a set only a descriptor whose access mode, and from 9.1 also O_DIRECT, is what it wants.

    Raises:
        Broken: it cannot be opened.
        BadInput: it is a qcow2 image with a backing or data file, or may not be used.
    """
    access = os.O_RDONLY if disk.read_only else os.O_RDWR
    direct = os.O_DIRECT if disk.cache in DIRECT_CACHES else 0
    if disk.format is DiskFormat.QCOW2:
        _check_alone(disk.path, images)
    return images.open(disk.path, access | direct, "disk image")


def hash_boot_files(spec: GuestSpec, images: ImageDirs = ANYWHERE) -> tuple[tuple[str, str], ...]:
    """Return (path, sha256) of the kernel, initrd and firmware code.

    Raises:
        Broken: one cannot be read.
        BadInput: one may not be used, or is no file that fits into the guest's memory.
    """
    boot = spec.boot
    paths: list[str] = []
    if isinstance(boot, KernelBoot):
        paths = [boot.kernel, *([boot.initrd] if boot.initrd else [])]
    elif isinstance(boot, UefiBoot):
        paths = [boot.code]
    return tuple((path, _sha256(path, spec, images)) for path in paths)


def _sha256(path: str, spec: GuestSpec, images: ImageDirs) -> str:
    with os.fdopen(_open_boot_file(path, spec, images), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_alone(path: str, images: ImageDirs) -> None:
    with os.fdopen(images.open(path, os.O_RDONLY, "disk image"), "rb") as file:
        header = file.read(_QCOW2_HEADER.size)
    if len(header) < _QCOW2_HEADER.size or header[:4] != QCOW2_MAGIC:
        raise BadInput(f"disk image {path} is not qcow2", fix='set format = "raw", or convert it')
    _, version, backing, incompatible = _QCOW2_HEADER.unpack(header)
    if backing:
        raise BadInput(f"disk image {path} has a backing file", fix=f"flatten it: qemu-img rebase -b '' {path}")
    if version >= 3 and incompatible & _EXTERNAL_DATA:
        raise BadInput(f"disk image {path} keeps its data in another file", fix="convert it with qemu-img convert")


def _open_boot_file(path: str, spec: GuestSpec, images: ImageDirs) -> int:
    """Return a descriptor of a file that the agent may read as a whole: one that the guest could load.

    Raises:
        Broken: it cannot be opened.
        BadInput: it is a device, larger than the guest's memory, or may not be used.
    """
    fd = images.open(path, os.O_RDONLY, "boot file")
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_size <= spec.memory_bytes:
        return fd
    os.close(fd)
    seen = format_bytes(Bytes(found.st_size)) if stat.S_ISREG(found.st_mode) else "a device"
    raise BadInput(
        f"guest {spec.name}: boot file {path} is {seen}, expected a file that fits into the guest's memory of"
        f" {format_bytes(spec.memory_bytes)}",
        fix="name the kernel, initrd or firmware, not a disk image",
    )


def _open_for(path: str, spec: GuestSpec, uid: int | None, images: ImageDirs) -> int:
    """Return a descriptor that the process can open again as /dev/fd/N, which checks the file's permissions anew."""
    fd = _open_boot_file(path, spec, images)
    if uid is None or os.fstat(fd).st_mode & stat.S_IROTH:
        return fd
    try:
        copy = os.memfd_create(Path(path).name[:200], os.MFD_CLOEXEC)
        size = os.fstat(fd).st_size  # not more than that, however it grows meanwhile
        while size > 0 and (sent := os.sendfile(copy, fd, None, min(size, _BLOCK))):
            size -= sent
    finally:
        os.close(fd)
    os.fchmod(copy, 0o444)
    os.lseek(copy, 0, os.SEEK_SET)
    return copy
