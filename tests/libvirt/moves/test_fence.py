"""What keeps a domain from running twice is told by its disks."""

from __future__ import annotations

import pytest

from vmferry.libvirt.moves.fence import LOCKED, UNLOCKED, fence_of
from vmferry.libvirt.tree import parse

FILE = "<disk type='file' device='disk'><source file='/srv/web-7.qcow2'/>{}</disk>"


@pytest.mark.parametrize(
    ("disks", "fence"),
    [
        ("", UNLOCKED),
        (FILE.format(""), LOCKED),
        ("<disk type='block' device='disk'><source dev='/dev/vg/web-7'/></disk>", LOCKED),
        (FILE.format("<readonly/>"), UNLOCKED),
        (FILE.format("<shareable/>"), UNLOCKED),
        (FILE.format("<readonly/>") + FILE.format(""), LOCKED),
        ("<disk type='file' device='cdrom'><readonly/></disk>", UNLOCKED),
        ("<disk type='network' device='disk'><source protocol='rbd' name='pool/web-7'/></disk>", UNLOCKED),
    ],
)
def test_only_an_image_that_one_qemu_writes_is_locked(disks: str, fence: str) -> None:
    """What is read only, shared or behind a network's protocol keeps nobody from running."""
    assert fence_of(parse(f"<domain type='kvm'><devices>{disks}</devices></domain>")) == fence
