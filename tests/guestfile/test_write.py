"""A guest written as a guest file is the same guest when it is read."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.core.guest import (
    Acceleration,
    Backing,
    BiosBoot,
    Disk,
    DiskFormat,
    GuestSpec,
    HostDevice,
    IoPath,
    KernelBoot,
    NetworkKind,
    Nic,
    UefiBoot,
)
from vmferry.core.ids import GuestName, GuestUuid
from vmferry.core.units import MIB, Bytes
from vmferry.guestfile import dump_guest_file, load_guest_file, parse_guest_file
from vmferry.guestfile.words import DISK_PATHS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
#: what an absolute path may hold, also what TOML must escape
_PATH_TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1, max_size=8)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


_ALONE = st.builds(
    Nic,
    st.just(IoPath.SRIOV_VF),
    st.just(NetworkKind.NONE),
    physical_network=st.just("fabric"),
    vlan=st.integers(0, 4094),
    may_detach=st.booleans(),
)
_WITH_STANDBY = st.builds(
    Nic,
    st.just(IoPath.SRIOV_VF),
    st.just(NetworkKind.BRIDGE),
    st.just("br0"),
    physical_network=st.just("lan-7"),
    standby=st.sampled_from([IoPath.VIRTIO, IoPath.VHOST]),
)
_FUNCTIONS = st.one_of(_ALONE, _WITH_STANDBY)


@st.composite
def specs(draw: st.DrawFn) -> GuestSpec:
    """Guests of every kind that a guest file can describe."""
    paths = iter([f"/srv/{name}" for name in draw(st.lists(_PATH_TEXT, min_size=12, max_size=12, unique=True))])
    formats = st.sampled_from(DiskFormat)

    def disk() -> Disk:
        below = tuple(Backing(next(paths), draw(formats)) for _ in range(draw(st.integers(0, 2))))
        image_format = DiskFormat.QCOW2 if below else draw(formats)
        io_path, cache = draw(st.sampled_from(DISK_PATHS)), draw(st.sampled_from(["none", "directsync"]))
        return Disk(next(paths), image_format, io_path, draw(st.booleans()), cache, below)

    def nic(number: int) -> Nic:
        if number == 0 and draw(st.booleans()):
            return draw(_FUNCTIONS)
        plain = [path for path in IoPath if path is not IoPath.SRIOV_VF]
        io_path, mac = draw(st.sampled_from(plain)), draw(st.sampled_from([None, f"52:54:00:00:00:{number:02x}"]))
        if draw(st.booleans()):
            return Nic(io_path, NetworkKind.BRIDGE, draw(st.sampled_from(["br0", "br-lan.7"])), mac)
        ports = draw(st.lists(st.integers(1, 9999), max_size=2, unique=True))
        io_path = IoPath.VIRTIO if io_path is IoPath.VHOST else io_path
        return Nic(io_path, mac=mac, forward_udp=tuple((port + number * 20000, port) for port in ports))

    kernel = KernelBoot(next(paths), None, draw(_TEXT))
    boots: list[BiosBoot | UefiBoot | KernelBoot] = [BiosBoot(), UefiBoot(next(paths), next(paths)), kernel]
    boot = draw(st.sampled_from(boots))
    disks = tuple(disk() for _ in range(draw(st.integers(1 if boot == BiosBoot() else 0, 2))))
    nics = tuple(nic(number) for number in range(draw(st.integers(0, 3))))
    return GuestSpec(
        name=GuestName(draw(st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=63))),
        memory_bytes=Bytes(draw(st.integers(2, 2**24)) * MIB),
        boot=boot,
        vcpus=draw(st.integers(1, 255)),
        cpu=draw(st.sampled_from(["qemu64", "EPYC,-svm", "Nehalem,avx=on,+aes"])),
        machine=draw(st.sampled_from(["pc-q35-7.2", "pc-q35-10.0"])),
        acceleration=draw(st.sampled_from(Acceleration)),
        disks=disks,
        nics=nics,
        host_devices=draw(
            st.sampled_from([(), (HostDevice("8086:10d3"), HostDevice("0000:03:00.0", may_detach=True))])
        ),
        beat=draw(st.booleans()),
        control=draw(st.booleans()),
        tpm=draw(st.sampled_from([None, "2.0"])),
        echo=draw(st.sampled_from([None, "10.0.0.7:7007"])) if nics else None,
        throttle=draw(st.booleans()),
        uuid=draw(st.sampled_from([None, GuestUuid("6f1c1a1e-0000-4000-8000-000000000007")])),
    )


@given(specs())
def test_what_is_written_is_read_as_the_same_guest(spec: GuestSpec) -> None:
    """Every guest comes back from its own file unchanged, whatever its paths and command line hold."""
    assert parse_guest_file(dump_guest_file(spec)) == spec


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_come_back(path: Path) -> None:
    """The examples are guests that can be written."""
    spec = load_guest_file(str(path))
    assert parse_guest_file(dump_guest_file(spec)) == spec


def test_the_text_is_what_a_person_writes() -> None:
    """Defaults are left out; the machine type and what a device hangs on are said, sizes have their unit."""
    disk = Disk("/srv/web-7.qcow2", backing=(Backing("/srv/base.qcow2"),))
    nics = (Nic(network=NetworkKind.BRIDGE, bridge="br0"), Nic(forward_udp=((15007, 7), (15008, 8))))
    spec = GuestSpec(GuestName("web-7"), Bytes(1536 * MIB), BiosBoot(), disks=(disk,), nics=nics)
    assert dump_guest_file(spec) == (
        'name = "web-7"\n'
        'memory = "1536 MiB"\n'
        'machine = "pc-q35-7.2"\n'
        "\n[boot]\n"
        'firmware = "bios"\n'
        "\n[[disk]]\n"
        'image = "/srv/web-7.qcow2"\n'
        'format = "qcow2"\n'
        "\n[[disk.backing]]\n"
        'image = "/srv/base.qcow2"\n'
        'format = "qcow2"\n'
        "\n[[nic]]\n"
        'network = "bridge"\n'
        'bridge = "br0"\n'
        "\n[[nic]]\n"
        'network = "user"\n'
        "forward_udp = [[15007, 7], [15008, 8]]\n"
    )
