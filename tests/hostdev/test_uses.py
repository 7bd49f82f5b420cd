"""What /proc says of mounts, swap and VFIO groups, and the list of names."""

from __future__ import annotations

from pathlib import Path

from vmferry.hostdev.names import name_of, parse
from vmferry.hostdev.uses import disk_uses, holders

MOUNTS = """\
21 26 0:20 / /proc rw,nosuid - proc proc rw
26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
29 26 0:23 /root /data rw - btrfs /dev/null rw
30 26 8:1 /var /srv rw,relatime - ext4 /dev/sda1 rw
what is this
"""
IDS = """\
# a list
8086  Intel Corporation
\t10c9  82576 Gigabit Network Connection
\t\t8086 a03c  a card of theirs
1b36  Red Hat, Inc.
C 00  Unclassified device
\t00  Non-VGA unclassified device
"""


def test_mounts_by_number(tmp_path: Path) -> None:
    """The first of a disk's mounts; what is no line of this file is passed over."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(MOUNTS)
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n/dev/null file 1 0 -2\n/nowhere file 1 0 -2\n")
    assert disk_uses(tmp_path) == {
        "0:20": "mounted at /proc",
        "8:1": "mounted at /",
        "0:23": "mounted at /data",
        "1:3": "mounted at /data",
    }


def test_nothing_can_be_read(tmp_path: Path) -> None:
    """No answer is no error."""
    assert disk_uses(tmp_path) == {}
    assert holders(tmp_path / "none") == {}


def test_who_holds_a_group(tmp_path: Path) -> None:
    """By its open files; the container, which everybody may open, is none."""
    for pid, comm, links in (
        ("4711", "qemu-system-x86", ["/dev/vfio/17", "/dev/vfio/vfio"]),
        ("4712", "dpdk", ["/dev/vfio/noiommu-18", "/dev/vfio/devices/vfio0", "/dev/iommu"]),
        ("12", "sh", ["/dev/null"]),
    ):
        (tmp_path / pid / "fd").mkdir(parents=True)
        (tmp_path / pid / "comm").write_text(f"{comm}\n")
        for number, target in enumerate(links):
            (tmp_path / pid / "fd" / str(number)).symlink_to(target)
    (tmp_path / "ended").mkdir()
    assert holders(tmp_path) == {
        "17": "qemu-system-x86 (pid 4711)",
        "18": "dpdk (pid 4712)",
        "vfio0": "dpdk (pid 4712)",
    }


def test_names_of_makers_and_models() -> None:
    """Of vendors and devices; neither of subsystems nor of classes."""
    assert parse(IDS.splitlines()) == {
        (0x8086, None): "Intel Corporation",
        (0x8086, 0x10C9): "82576 Gigabit Network Connection",
        (0x1B36, None): "Red Hat, Inc.",
    }
    assert isinstance(name_of(0x8086, 0x10C9), str)
