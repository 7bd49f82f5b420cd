"""What QEMU wrote when it did not start, in terms of the guest file."""

from __future__ import annotations

import re

from vmferry.core.guest import GuestSpec
from vmferry.qemu.command_line import FIRST_DISK_SET

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z ")
_PROGRAM = re.compile(r"\S*qemu-system-\w+: ")
#: (what QEMU writes, what a person does about it)
_FIXES = (
    (
        re.compile(r"Failed to get .* lock"),
        "another process has this image open: stop the guest that uses it (`vmferry guest list`), here or elsewhere",
    ),
    (re.compile(r"kernel header|kernel.*too (old|big)"), "name a Linux or multiboot kernel as `kernel`"),
    (re.compile(r"[Cc]annot allocate memory"), "free memory on this host, or start the guest on another one"),
)


def told_by_qemu(spec: GuestSpec, log_tail: str) -> str:
    """Return QEMU's words without stamps, with the paths of the guest file in the place of descriptor sets."""
    text = _PROGRAM.sub("", _STAMP.sub("", log_tail))
    for index, disk in enumerate(spec.disks):
        text = text.replace(f"/dev/fdset/{FIRST_DISK_SET + index}", disk.path)
    return text


def fix_of(text: str) -> str:
    """Return what to do about what QEMU said."""
    return next((fix for pattern, fix in _FIXES if pattern.search(text)), "correct the guest file or the host")
