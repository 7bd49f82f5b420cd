"""Images that the hosts do not share: copied where that is allowed and possible, else every reason why not."""

from __future__ import annotations

import dataclasses

import pytest
from tests.core_checks.conftest import DISK, with_file_there, with_spec

from vmferry.core.capabilities import StreamWish, Transport
from vmferry.core.checks import Case, find_blockers, guarantee, images_to_copy
from vmferry.core.disks import Image, ImageCopy, why_not_copies, written_images
from vmferry.core.guest import Disk, DiskFormat, UefiBoot
from vmferry.core.units import GIB, MIB, Bytes

#: What can stand against a copy, of a disk or of the variables of UEFI.
AGAINST = ("copy-exists", "copy-no-room", "copy-impossible", "copy-unreadable")
BESIDE_PIPELINE = "disk.copy-beside-pipeline"


def local(case: Case, *, room: int | None = GIB) -> Case:
    """Return the case with a disk that the destination does not have, and may copy."""
    there = with_file_there(
        case,
        DISK,
        exists=False,
        readable=False,
        writable=False,
        identity="unknown: No such file or directory",
        error="No such file or directory",
        room_bytes=None if room is None else Bytes(room),
    )
    return dataclasses.replace(there, copy_disks=True)


def codes(case: Case) -> list[str]:
    """Return what blocks."""
    return [blocker.code for blocker in find_blockers(case)]


def test_a_disk_that_is_not_there_is_copied(case: Case) -> None:
    """Only when it is asked for; the guarantee says what then keeps two hosts apart."""
    asked = local(case)
    assert codes(asked) == []
    assert [image.path for image in images_to_copy(asked)] == [DISK]
    promise = guarantee(asked.guest, asked.runtime, asked.probe, copied=[DISK])
    assert promise.disk_fence == "separate copies"
    unasked = dataclasses.replace(asked, copy_disks=False)
    (blocker,) = find_blockers(unasked)
    assert (blocker.code, images_to_copy(unasked)) == ("disk.not-seen", ())
    assert "--copy-disks" in blocker.fix


def test_a_disk_that_both_see_is_not_copied(case: Case) -> None:
    """Whoever always asks for copies gets none where the storage is shared."""
    asked = dataclasses.replace(case, copy_disks=True)
    assert (codes(asked), images_to_copy(asked)) == ([], ())


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (10 * MIB, []),
        (10 * MIB - 1, ["disk.copy-no-room"]),
        (0, ["disk.copy-no-room"]),
        (None, ["disk.copy-impossible"]),
    ],
)
def test_a_copy_needs_room(case: Case, room: int | None, expected: list[str]) -> None:
    """A disk of 10 MiB needs 10 MiB, in a directory in which the agent may make it."""
    assert codes(local(case, room=room)) == expected


def test_nothing_is_written_over(case: Case) -> None:
    """Another file at that path is somebody's, and a person decides about it."""
    other = dataclasses.replace(with_file_there(case, DISK, identity="ext4:boot-2:8:7"), copy_disks=True)
    (blocker,) = find_blockers(other)
    assert blocker.code == "disk.copy-exists"
    assert DISK in blocker.fix


def test_an_image_that_the_source_does_not_see_cannot_be_copied(case: Case) -> None:
    """Its agent would not know what it copies."""
    blind = local(case)
    files = tuple(dataclasses.replace(file, exists=False) for file in blind.runtime.source_files)
    blind = dataclasses.replace(blind, runtime=dataclasses.replace(blind.runtime, source_files=files))
    assert codes(blind) == ["disk.copy-unreadable"]


def test_a_pipeline_carries_no_disk(case: Case) -> None:
    """It would go beside it in the clear."""
    asked = local(case)
    hosts = {
        side: dataclasses.replace(getattr(asked, side), pipelines={"age": True}) for side in ("source", "destination")
    }
    asked = dataclasses.replace(asked, **hosts, stream=StreamWish(Transport.PIPE, pipeline="age"))
    assert codes(asked) == [BESIDE_PIPELINE]


def test_what_a_guest_writes(case: Case) -> None:
    """Disks that it may write to, and the variables of UEFI; by their place among all disks."""
    boot = UefiBoot("/usr/share/OVMF/code.fd", "/srv/vmferry/web-7.fd")
    spec = with_spec(case, disks=(Disk("/a", read_only=True), Disk("/b", DiskFormat.RAW)), boot=boot).guest.spec
    assert written_images(spec) == (
        Image("image1", "/b", DiskFormat.RAW),
        Image("uefi-nvram", "/srv/vmferry/web-7.fd", DiskFormat.RAW),
    )


@pytest.mark.parametrize(
    ("copies", "why"),
    [
        ((), None),
        ((ImageCopy(Image("image0", DISK, DiskFormat.QCOW2), Bytes(MIB)),), None),
        (
            (ImageCopy(Image("image0", "/etc/passwd", DiskFormat.QCOW2), Bytes(MIB)),),
            "no image that guest web-7 writes",
        ),
        ((ImageCopy(Image("image1", DISK, DiskFormat.QCOW2), Bytes(MIB)),), "no image that guest web-7 writes"),
        ((ImageCopy(Image("image0", DISK, DiskFormat.RAW), Bytes(MIB)),), "no image that guest web-7 writes"),
        ((ImageCopy(Image("image0", DISK, DiskFormat.QCOW2), Bytes(0)),), "cannot have 0 bytes"),
        ((ImageCopy(Image("image0", DISK, DiskFormat.QCOW2), Bytes(1 << 61)),), "cannot have"),
        ((ImageCopy(Image("image0", DISK, DiskFormat.QCOW2), Bytes(MIB)),) * 2, "copied twice"),
    ],
)
def test_a_peer_may_copy_only_what_the_guest_writes(case: Case, copies: tuple[ImageCopy, ...], why: str | None) -> None:
    """Its request names paths of this host."""
    told = why_not_copies(copies, case.guest.spec)
    assert told is None if why is None else why in str(told)
