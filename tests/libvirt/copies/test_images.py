"""Which disks are copied, to where, and what stands against it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.units import GIB, MIB, Bytes
from vmferry.libvirt.copies.calls import image_xml, list_pools
from vmferry.libvirt.copies.images import Answers, Copies, Image, Pool, Size, plan_copies
from vmferry.libvirt.copies.reading import read_disks
from vmferry.libvirt.rewrites import replace_disks
from vmferry.libvirt.tree import parse

SIZE = Size(Bytes(GIB), Bytes(100 * MIB))
POOL = Pool("images", "/var/lib/images", is_active=True, available=Bytes(GIB))
ANSWERS = Answers(
    "host-b",
    (POOL, Pool("vault", "/vault", is_active=False, available=Bytes(0)), Pool("lvm", "/dev/vg", True, Bytes(GIB))),
    {"images": frozenset({"old.qcow2"}), "lvm": frozenset()},
    {"vda": SIZE, "vdb": SIZE},
)
FILE = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/images/web-7.qcow2'/>
<backingStore/><target dev='vda'/></disk>"""
BLOCK = "<disk type='block'><driver type='raw'/><source dev='/dev/vg/web-7'/><target dev='vdb'/></disk>"


def plan(
    *disks: str,
    targets: tuple[str, ...] | None = None,
    answers: Answers = ANSWERS,
    paths: dict[str, str] | None = None,
) -> Copies:
    """Return what is copied of a domain with these disks."""
    xml = f"<domain><devices>{''.join(disks)}</devices></domain>"
    found = read_disks(parse(xml), parse(replace_disks(xml, paths or {})))
    return plan_copies("web-7", found, targets, answers)


def test_what_is_the_hosts_own_is_copied() -> None:
    """A file and a block device, each into the pool whose directory it is in."""
    copies = plan(FILE, BLOCK)
    assert copies.blockers == ()
    assert copies.images == (
        Image("vda", "images", "web-7.qcow2", "qcow2", SIZE, "/var/lib/images/web-7.qcow2"),
        Image("vdb", "lvm", "web-7", "raw", SIZE, "/dev/vg/web-7"),
    )
    assert copies.targets == ("vda", "vdb")
    assert copies.unseen == ()


def test_a_volume_stays_in_its_pool() -> None:
    """Its name is the same there."""
    volume = "<disk type='volume'><source pool='images' volume='web-7'/><target dev='vda'/></disk>"
    assert plan(volume).images == (Image("vda", "images", "web-7", "raw", SIZE, "web-7 in pool images"),)


def test_an_image_may_be_elsewhere_there() -> None:
    """The destination's XML says where."""
    moved = plan(FILE, paths={"/var/lib/images/web-7.qcow2": "/dev/vg/web-8"})
    assert moved.images == (Image("vda", "lvm", "web-8", "qcow2", SIZE, "/var/lib/images/web-7.qcow2"),)


#: what is not copied unless it is named -> why
LEFT_OUT = {
    "<disk type='network'><source protocol='rbd' name='pool/web-7'/><target dev='vda'/></disk>": "network of its own",
    "<disk type='file' device='cdrom'><source file='/iso'/><readonly/><target dev='vda'/></disk>": "no disk",
    "<disk type='file'><source file='/ro'/><readonly/><target dev='vda'/></disk>": "nobody writes it",
    "<disk type='file'><source file='/shared'/><shareable/><target dev='vda'/></disk>": "several guests",
}


@pytest.mark.parametrize("disk", LEFT_OUT)
def test_what_cannot_be_copied_is_left_out_and_refused_when_it_is_named(disk: str) -> None:
    """A copy of all disks does not mean these; whoever names one is told why it cannot be."""
    copies = plan(disk)
    assert (copies.images, copies.blockers) == ((), ())
    (blocker,) = plan(disk, targets=("vda",)).blockers
    assert blocker.code == "disk.not-copied"


def test_a_disk_that_could_be_copied_and_was_not_named_is_told() -> None:
    """Whether it is there already is not seen."""
    copies = plan(FILE, BLOCK, targets=("vda",))
    assert copies.targets == ("vda",)
    assert copies.unseen == ("whether host-b has /dev/vg/web-7 (vdb of web-7), which is not copied: it was not named",)


#: part of a disk -> what it becomes, words of the blocker
IN_THE_WAY = {
    "<backingStore/>": ("<backingStore type='file'><source file='/base'/></backingStore>", "blockpull"),
    "type='qcow2'": ("type='vmdk'", "is vmdk: images of qcow2 and raw"),
    "<target": ("<encryption format='luks'/><target", "encrypted"),
    "<target dev": ("<mirror type='file'/><target dev", "being copied already"),
}


@pytest.mark.parametrize("old", IN_THE_WAY)
def test_what_would_be_lost_blocks(old: str) -> None:
    """A copy that is not whole is none."""
    new, words = IN_THE_WAY[old]
    assert old in FILE
    (blocker,) = plan(FILE.replace(old, new, 1)).blockers
    assert blocker.code == "disk.not-copied"
    assert words in blocker.what
    assert "vda of domain web-7 (/var/lib/images/web-7.qcow2)" in blocker.what


def test_every_blocker_at_once() -> None:
    """No pool, a pool that is off, a disk that there is not."""
    away = FILE.replace("/var/lib/images", "/srv").replace("vda", "vdc")
    off = FILE.replace("/var/lib/images", "/vault")
    blockers = plan(off, away, BLOCK, targets=("vda", "vdb", "vdc", "vdx")).blockers
    assert [blocker.code for blocker in blockers] == ["disk.unknown", "disk.no-pool", "disk.no-pool"]
    assert "it has vda, vdc, vdb" in blockers[0].what
    assert "pool-start vault on host-b" in blockers[1].fix
    assert "pool-define-as NAME dir --target /srv" in blockers[2].fix


def test_an_image_that_is_there_is_never_written_over() -> None:
    """It is the same storage, or somebody's data: both must be left alone."""
    (blocker,) = plan(FILE.replace("web-7.qcow2", "old.qcow2")).blockers
    assert blocker.code == "disk.image-there"
    assert "old.qcow2 in pool images" in blocker.what
    assert "the hosts share it, or it is left over" in blocker.what


def test_room_for_all_of_them_together() -> None:
    """Each would fit, both do not."""
    two = (FILE, FILE.replace("vda", "vdb").replace("web-7.q", "data.q"))
    tight = replace(ANSWERS, pools=(replace(POOL, available=Bytes(150 * MIB)),))
    assert plan(two[0], answers=tight).blockers == ()
    (blocker,) = plan(*two, answers=tight).blockers
    assert (blocker.code, "150.0 MiB" in blocker.what, "200.0 MiB" in blocker.what) == ("disk.no-room", True, True)


def test_a_libvirt_without_storage() -> None:
    """It can make no image."""
    (blocker,) = plan(FILE, answers=replace(ANSWERS, pools=None)).blockers
    assert "no storage driver" in blocker.what


def test_an_image_as_libvirt_makes_it() -> None:
    """As large as the source's, and empty."""
    assert image_xml(Image("vda", "images", "web-7.qcow2", "qcow2", SIZE)) == (
        '<volume><name>web-7.qcow2</name><capacity unit="bytes">1073741824</capacity>'
        '<allocation unit="bytes">0</allocation><target><format type="qcow2" /><compat>1.1</compat></target></volume>'
    )


def test_an_image_in_lvm_is_made_whole() -> None:
    """A sparse volume there is a snapshot that breaks when it is full; so there must be room for all of it."""
    pools = (Pool("lvm", "/dev/vg", is_active=True, available=Bytes(GIB), is_logical=True),)
    answers = replace(ANSWERS, pools=pools, volumes={})
    (image,) = plan(BLOCK, answers=answers).images
    assert "allocation" not in image_xml(image)
    (blocker,) = plan(BLOCK, answers=replace(answers, pools=(replace(pools[0], available=Bytes(GIB - 1)),))).blockers
    assert (blocker.code, "1.0 GiB" in blocker.what) == ("disk.no-room", True)


async def test_a_pool_of_lvms_is_known_as_one() -> None:
    """By its type."""
    xml = "<pool type='{}'><name>vg</name><available>7</available><target><path>/dev/vg</path></target></pool>"

    class Daemon:
        """Says which pools it has."""

        async def call(self, _what: str, _function: object) -> list[tuple[str, bool]]:
            """Return them."""
            return [(xml.format("logical"), True), (xml.format("dir"), True)]

    found = await list_pools(Daemon())  # type: ignore[arg-type]  # a fake
    assert [pool.is_logical for pool in found or ()] == [True, False]
