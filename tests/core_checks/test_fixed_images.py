"""Images that nobody writes: another file on each host is as good, if its content is the same."""

from __future__ import annotations

import dataclasses

import pytest
from tests.core_checks.conftest import DISK, with_spec
from tests.core_checks.test_copies import local

from vmferry.core.checks import Case, find_blockers, images_to_copy
from vmferry.core.guest import Backing, Disk, DiskFormat
from vmferry.core.host import FileFacts
from vmferry.core.units import GIB, Bytes

BASE = "/srv/vmferry/debian.qcow2"
#: What can stand against an image that nobody writes.
AGAINST = ("disk.fixed-not-seen", "disk.fixed-not-compared", "disk.fixed-differs", "disk.fixed-being-read")
AGAINST_COPIES = ("disk.copy-no-tool", "disk.copy-not-mirrored", "nvram.copy-not-mirrored")


def base_at(boot: str, sha256: str | None = "ab" * 32) -> FileFacts:
    """Return a backing file on the own file system of a host."""
    return FileFacts(BASE, True, True, False, Bytes(2 * GIB), f"ext4:{boot}:8:12", sha256)


def with_base(case: Case, here: FileFacts, there: FileFacts | None) -> Case:
    """Return the case with a disk on top of an image that each host has."""
    case = with_spec(case, disks=(Disk(DISK, backing=(Backing(BASE),)),))
    runtime = dataclasses.replace(case.runtime, source_files=(*case.runtime.source_files, here))
    there_too = () if there is None else (there,)
    probe = dataclasses.replace(case.probe, files=(*case.probe.files, *there_too))
    return dataclasses.replace(case, runtime=runtime, probe=probe)


def codes(case: Case) -> list[str]:
    """Return what blocks."""
    return [blocker.code for blocker in find_blockers(case)]


@pytest.mark.parametrize(
    ("there", "code", "words"),
    [
        (base_at("boot-2"), None, []),
        (base_at("boot-1", None), None, []),  # the same file: nobody has to read it
        (base_at("boot-2", "cd" * 32), AGAINST[2], ["host-b", "abababababab", "cdcdcdcdcdcd", DISK]),
        (base_at("boot-2", None), AGAINST[1], ["read on host-a", "2.0 GiB on ext4 on host-b"]),
        (
            dataclasses.replace(base_at("boot-2", None), read_bytes=Bytes(GIB)),
            "disk.fixed-being-read",
            ["1.0 GiB of 2.0 GiB on host-b"],
        ),
        (None, AGAINST[0], [BASE, "host-b"]),
        (dataclasses.replace(base_at("boot-2"), readable=False), AGAINST[0], [BASE]),
        (dataclasses.replace(base_at("boot-2"), exists=False, error="not found"), AGAINST[0], ["not found"]),
    ],
)
def test_a_backing_file_has_the_same_content(
    case: Case, there: FileFacts | None, code: str | None, words: list[str]
) -> None:
    """A golden image that was put on every host is what guests stand on; another one would be another disk."""
    found = list(find_blockers(with_base(case, base_at("boot-1"), there)))
    assert [blocker.code for blocker in found] == ([] if code is None else [code])
    for word in words:
        assert word in found[0].what


def test_a_read_only_disk_may_be_each_hosts_own(case: Case) -> None:
    """An installation medium; it is not copied, and its cache mode does not matter."""
    medium = Disk(BASE, DiskFormat.RAW, read_only=True)
    asked = with_spec(with_base(case, base_at("boot-1"), base_at("boot-2")), disks=(medium,))
    asked = dataclasses.replace(asked, copy_disks=True)
    assert (codes(asked), images_to_copy(asked)) == ([], ())
    other = with_spec(with_base(case, base_at("boot-1"), base_at("boot-2", "cd" * 32)), disks=(medium,))
    assert codes(other) == ["disk.fixed-differs"]


def test_what_a_copy_stands_on_is_not_copied(case: Case) -> None:
    """Its own clusters are; the image below has to be there."""
    asked = local(with_base(case, base_at("boot-1"), base_at("boot-2")))
    assert codes(asked) == []
    (image,) = images_to_copy(asked)
    assert (image.path, image.backing) == (DISK, (Backing(BASE),))


def test_what_stands_against_a_copy_is_told_beforehand(case: Case) -> None:
    """Internal snapshots at the source, and no tool at the destination."""
    asked = local(case)
    runtime = dataclasses.replace(asked.runtime, not_mirrored=((DISK, "it holds internal snapshots"),))
    assert codes(dataclasses.replace(asked, runtime=runtime)) == ["disk.copy-not-mirrored"]
    bare = dataclasses.replace(asked, destination=dataclasses.replace(asked.destination, makes_images=False))
    (blocker,) = find_blockers(bare)
    assert (blocker.code, "qemu-utils" in blocker.fix) == ("disk.copy-no-tool", True)
    raw = with_spec(bare, disks=(Disk(DISK, DiskFormat.RAW),))
    assert codes(raw) == []
