"""What a guest's disks may stand on: the same rules for a guest file, the API and a peer."""

from __future__ import annotations

import pytest

from vmferry.core.disks import wrong_chains
from vmferry.core.guest import Backing, BiosBoot, Disk, DiskFormat, GuestSpec
from vmferry.core.ids import GuestName
from vmferry.core.units import MIB, Bytes

RAW = DiskFormat.RAW


@pytest.mark.parametrize(
    ("disks", "words"),
    [
        ((Disk("/a", backing=(Backing("/b"), Backing("/c", RAW))), Disk("/d", backing=(Backing("/c", RAW),))), []),
        ((Disk("/a", RAW, backing=(Backing("/b"),)),), ["/a: an image that is raw stands on"]),
        ((Disk("/a", backing=(Backing("/b", RAW), Backing("/c"))),), ["/a: an image that is raw stands on"]),
        ((Disk("/a", backing=(Backing("/b"),) * 17),), ["17 images, at most 16"]),
        ((Disk("/a"), Disk("/a")), ["/a: it is two disks"]),
        ((Disk("/a", backing=(Backing("/a"),)),), ["/a: it is a disk, and another"]),
        ((Disk("/a", backing=(Backing("/b"),)), Disk("/b")), ["/b: it is a disk, and another"]),
    ],
)
def test_what_is_wrong_with_a_chain(disks: tuple[Disk, ...], words: list[str]) -> None:
    """Everything at once."""
    told = wrong_chains(GuestSpec(GuestName("web-7"), Bytes(MIB), BiosBoot(), disks=disks))
    assert len(told) == len(words)
    for text, word in zip(told, words, strict=True):
        assert word in text
