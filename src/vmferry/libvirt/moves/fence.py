"""What keeps a domain from running on two hosts at once when libvirt's move goes wrong at its very end. Pure.

libvirt's source takes a Finish that it got no answer to for a failure, and lets its own copy run again, also when the
destination's vCPUs had begun (docs/libvirt-faults.md). QEMU's lock of a writable image refuses that.

Source: QEMU block/file-posix.c (raw_handle_perm_lock): files and host devices are locked, unless they are shared.
"""

from __future__ import annotations

from typing import Final

from vmferry.libvirt.checks.case import below, first
from vmferry.libvirt.tree import Element

LOCKED: Final = "QEMU's locks of its images, where the storage has them; libvirt's lock manager, if the hosts have one"
UNLOCKED: Final = (
    "libvirt's lock manager, if the hosts have one, and else none: it has no disk that QEMU locks, and if the"
    " destination's libvirtd or the link dies as the move finishes, libvirt may run it on both hosts"
)


def fence_of(domain: Element) -> str:
    """Return what fences a domain's disks, by its live XML."""
    return LOCKED if any(_is_locked(disk) for disk in below(domain, "devices/disk")) else UNLOCKED


def _is_locked(disk: Element) -> bool:
    is_local = disk.attributes.get("type") in ("file", "block") and first(disk, "source") is not None
    return is_local and first(disk, "readonly") is None and first(disk, "shareable") is None
