"""Whether a QEMU may catch the page faults of a post-copy's destination, and what is missing if not.

Up to 8.0 QEMU asks the kernel by the system call, which needs root's rights or a sysctl; later ones try
/dev/userfaultfd first, for which access to that file is enough.

Source: userfaultfd(2), Documentation/admin-guide/mm/userfaultfd.rst, QEMU util/userfaultfd.c; tried on 7.2 and 10.0.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

DEVICE = Path("/dev/userfaultfd")
SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")

#: QEMU versions from here on open the device.
OPENS_DEVICE = (8, 1)


def userfault_groups() -> list[int]:
    """Return the group that may open the device: an unprivileged QEMU needs it; empty when there is none but root."""
    try:
        found = DEVICE.stat()
    except OSError:
        return []
    may = stat.S_IRGRP | stat.S_IWGRP
    return [found.st_gid] if found.st_mode & may == may and found.st_gid else []


def why_no_userfault(uid: int | None, version: tuple[int, ...]) -> str | None:
    """Return why a QEMU of this host cannot be the destination of a post-copy, with the fix; None when it can.

    Args:
        uid: of the QEMU process; None = the agent's own user.
        version: of the QEMU.
    """
    user = os.geteuid() if uid is None else uid
    if user == 0 or _sysctl_allows():
        return None
    if version < OPENS_DEVICE:
        return (
            f"QEMU {'.'.join(map(str, version))} as uid {user} may not use userfaultfd on this host: "
            f"set vm.unprivileged_userfaultfd = 1 with sysctl, or take QEMU {'.'.join(map(str, OPENS_DEVICE))} or newer"
        )
    if _may_open(user, in_group=uid is not None):
        return None
    return (
        f"QEMU as uid {user} may not open {DEVICE} on this host: give the device to a group, for all to read and "
        'write in it, with the udev rule KERNEL=="userfaultfd", GROUP="kvm", MODE="0660"'
    )


def _sysctl_allows() -> bool:
    try:
        return SYSCTL.read_text("ascii").strip() == "1"
    except OSError:
        return False


def _may_open(user: int, *, in_group: bool) -> bool:
    own_groups = {os.getegid(), *os.getgroups()}
    if (groups := userfault_groups()) and (in_group or own_groups.issuperset(groups)):
        return True  # `spawn` puts a process with a user of its own into that group
    try:
        found = DEVICE.stat()
    except OSError:
        return False
    other, own = stat.S_IROTH | stat.S_IWOTH, stat.S_IRUSR | stat.S_IWUSR
    return found.st_mode & other == other or (found.st_uid == user and found.st_mode & own == own)
