"""Files and taps of a guest, opened by the agent for a process that may not open them itself.

The agent must close its copies as soon as the process has them: an image lock belongs to the open file, and one that is
still open here would hold the lock after QEMU gave it up. `opened_for` is a context manager for that reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vmferry.core.errors import BadInput
from vmferry.core.guest import (
    DIRECT_CACHES,
    Disk,
    DiskFormat,
    FrozenGuest,
    GuestSpec,
    IoPath,
    KernelBoot,
    NetworkKind,
    UefiBoot,
)
from vmferry.core.units import Bytes, format_bytes
from vmferry.qemu import nvram_lock, qcow2
from vmferry.qemu.command_line import Descriptors
from vmferry.qemu.image_dirs import ImageDirs
from vmferry.qemu.tap import open_tap
from vmferry.qemu.vhost_net import open_vhost

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
        below = tuple(tuple(keep(fd) for fd in open_backing(disk, images)) for disk in spec.disks)
        taps = tuple(
            keep(open_tap(nic.bridge)) if nic.network is NetworkKind.BRIDGE and nic.bridge else None
            for nic in spec.nics
        )
        vhosts = {index: keep(open_vhost()) for index, nic in enumerate(spec.nics) if nic.front_end is IoPath.VHOST}
        boot = spec.boot
        kernel = initrd = code = nvram = None
        if isinstance(boot, KernelBoot):
            kernel = keep(_open_for(boot.kernel, spec, uid, images))
            initrd = keep(_open_for(boot.initrd, spec, uid, images)) if boot.initrd else None
        elif isinstance(boot, UefiBoot):
            code = keep(images.open(boot.code, os.O_RDONLY, "firmware"))
            nvram = keep(images.open(boot.nvram, os.O_RDWR, "firmware variables"))
            nvram_lock.lock(nvram, guest.uuid, boot.nvram)
        yield Descriptors(disks, taps, kernel, initrd, code, nvram, backing=below, vhosts=vhosts), tuple(fds)


def open_disk(disk: Disk, images: ImageDirs = ANYWHERE) -> int:
    """Return a descriptor of the image with the access and cache mode that QEMU will look for in its set.

    QEMU takes from a set only a descriptor whose access mode, and from 9.1 also O_DIRECT, is what it wants.

    Raises:
        Broken: it cannot be opened.
        BadInput: it is a qcow2 image on top of others than the guest's, or with a data file, or may not be used.
    """
    access = os.O_RDONLY if disk.read_only else os.O_RDWR
    if disk.format is DiskFormat.QCOW2:
        qcow2.check_header(disk.path, disk.backing[:1], images)
    return images.open(disk.path, access | _direct(disk), "disk image")


def open_backing(disk: Disk, images: ImageDirs = ANYWHERE) -> Iterator[int]:
    """Yield a descriptor of each image that a disk stands on, opened for reading as QEMU will look for it.

    Raises:
        Broken, BadInput: as `open_disk`.
    """
    for number, image in enumerate(disk.backing):
        under = disk.backing[number + 1 : number + 2]
        if image.format is DiskFormat.QCOW2:
            qcow2.check_header(image.path, under, images)
        elif under:
            raise BadInput(f"backing file {image.path} is raw and cannot stand on {under[0].path}")
        yield images.open(image.path, os.O_RDONLY | _direct(disk), "backing file")


def _direct(disk: Disk) -> int:
    return os.O_DIRECT if disk.cache in DIRECT_CACHES else 0


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
