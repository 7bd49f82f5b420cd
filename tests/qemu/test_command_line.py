"""The command line is a pure function: golden files show every argument of every kind of guest."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.guest import (
    DIRECT_CACHES,
    Acceleration,
    Backing,
    BiosBoot,
    Disk,
    DiskFormat,
    FrozenGuest,
    GuestSpec,
    IoPath,
    KernelBoot,
    NetworkKind,
    Nic,
    UefiBoot,
)
from vmferry.core.ids import GuestName, GuestUuid
from vmferry.core.units import MIB, Bytes
from vmferry.ports.hypervisor import HostResources
from vmferry.qemu.command_line import SANDBOX, Descriptors, command_line, device_options
from vmferry.qemu.freeze import Drawn, freeze

GOLDEN = Path(__file__).parent / "golden"

BIOS = GuestSpec(name=GuestName("web-7"), memory_bytes=Bytes(64 * MIB), boot=BiosBoot())

LINUX = replace(
    BIOS,
    memory_bytes=Bytes(512 * MIB),
    vcpus=2,
    boot=KernelBoot("/images/vmlinuz", "/images/initrd", "console=ttyS0 a=b,c"),
    disks=(
        Disk("/shared/root.qcow2"),
        Disk("/shared/data,1.raw", DiskFormat.RAW, IoPath.VIRTIO, read_only=True, cache="writeback"),
        Disk("/shared/old.raw", DiskFormat.RAW, IoPath.EMULATED),
    ),
    nics=(
        Nic(IoPath.VIRTIO, NetworkKind.BRIDGE, bridge="br0"),
        Nic(IoPath.EMULATED, NetworkKind.USER, forward_udp=((5007, 7), (5008, 8))),
    ),
    beat=True,
    control=True,
)

#: The second of two cards on bridges is served by the kernel.
VHOST = replace(
    LINUX, nics=(LINUX.nics[0], Nic(IoPath.VHOST, NetworkKind.BRIDGE, bridge="br1")), beat=False, control=False
)

UEFI = replace(
    BIOS,
    boot=UefiBoot("/firmware/code.fd", "/shared/vars.fd"),
    disks=(Disk("/shared/root.qcow2"),),
    acceleration=Acceleration.KVM,
)

MICRO = replace(
    BIOS,
    machine="pc-i440fx-7.2",
    boot=KernelBoot("/images/micro.elf"),
    disks=tuple(Disk(f"/shared/{name}.raw", DiskFormat.RAW, IoPath.EMULATED) for name in "abc"),
    beat=True,
)

#: Two overlays, one of which stands on two images, and a CD-ROM drive.
CHAINS = replace(
    BIOS,
    disks=(
        Disk("/shared/top.qcow2", backing=(Backing("/shared/mid.qcow2"), Backing("/base.raw", DiskFormat.RAW))),
        Disk("/shared/data.qcow2", backing=(Backing("/base.raw", DiskFormat.RAW),)),
        Disk("/media/install.iso", DiskFormat.RAW, IoPath.EMULATED, read_only=True),
    ),
)

THROTTLED = replace(LINUX, throttle=True)
THROTTLE_ALONE = replace(BIOS, throttle=True)

#: On both families: the TPM is an ISA device.
TPM = replace(UEFI, tpm="2.0")
TPM_I440FX = replace(BIOS, machine="pc-i440fx-7.2", tpm="2.0")

RESOURCES = HostResources("/run/vmferry/guests/web-7", 70001, 40001)
CASES = {
    "bios": (BIOS, Descriptors(), False),
    "linux": (LINUX, Descriptors((7, 8, 6), (9, None), kernel=10, initrd=11, emergency=12), False),
    "linux-incoming": (LINUX, Descriptors((7, 8, 6), (9, None), kernel=10, initrd=11, emergency=12), True),
    "vhost": (VHOST, Descriptors((7, 8, 6), (9, 13), kernel=10, initrd=11, vhosts={1: 14}), False),
    "throttle": (THROTTLED, Descriptors((7, 8, 6), (9, None), kernel=10, initrd=11, emergency=12), False),
    "throttle-alone": (THROTTLE_ALONE, Descriptors(), False),
    "uefi-kvm": (UEFI, Descriptors((7,), uefi_code=8, uefi_nvram=9), False),
    "tpm": (TPM, Descriptors((7,), uefi_code=8, uefi_nvram=9, emergency=10, tpm=11), False),
    "tpm-i440fx-incoming": (TPM_I440FX, Descriptors(tpm=7), True),
    "chains": (CHAINS, Descriptors((7, 8, 9), backing=((10, 11), (12,), ())), False),
    "micro-i440fx": (MICRO, Descriptors((7, 8, 9), kernel=10), False),
}


def make_frozen(spec: GuestSpec) -> FrozenGuest:
    """Freeze with chance taken out."""
    drawn = Drawn(
        GuestUuid("6f1b9e1a-2f2e-4f0e-9b2e-0d6b6a3c1d11"), tuple(bytes([1, 2, n]) for n, _ in enumerate(spec.nics))
    )
    acceleration = Acceleration.KVM if spec.acceleration is Acceleration.KVM else Acceleration.TCG
    return freeze(spec, acceleration=acceleration, cpu="qemu64-v1,fpu=on,enforce", drawn=drawn)


def make_argv(name: str, port: int | None = 40001) -> list[str]:
    """Return a case's arguments."""
    spec, descriptors, incoming = CASES[name]
    return command_line(make_frozen(spec), replace(RESOURCES, beat_port=port), descriptors, incoming=incoming)


def values_of(argv: list[str], option: str) -> list[str]:
    """Return each value of an option."""
    return [value for name, value in itertools.pairwise(argv) if name == option]


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    """The arguments are those that a person has read and committed."""
    assert make_argv(name) == (GOLDEN / f"{name}.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", CASES)
def test_same_on_both_hosts(name: str) -> None:
    """Source and destination differ in `-incoming` and in forwards of host ports, in nothing else."""
    spec, descriptors, _ = CASES[name]
    guest = make_frozen(spec)
    source = command_line(guest, HostResources("/a", None, 1), descriptors, incoming=False)
    destination = command_line(guest, HostResources("/b", 7, 1), descriptors, incoming=True)
    without_forwards = [value.split(",hostfwd=")[0] for value in source]
    assert destination == [*without_forwards, "-incoming", "defer"]


@pytest.mark.parametrize("name", CASES)
def test_starts_nothing_by_itself(name: str) -> None:
    """Each guest starts stopped, in the sandbox, without default devices, and keeps its QEMU at power-off."""
    argv = make_argv(name)
    assert {"-S", "-nodefaults", "-no-user-config", "-no-shutdown"} <= set(argv)
    assert values_of(argv, "-sandbox") == [SANDBOX]


@pytest.mark.parametrize("name", CASES)
def test_every_device_has_a_place(name: str) -> None:
    """Every device names its id and bus, a PCI device its address too, and no place is given twice."""
    devices = [json.loads(value) for value in values_of(make_argv(name), "-device")]
    assert all(device["id"] and device["bus"] for device in devices)
    pci = [device for device in devices if device["bus"] in {"pcie.0", "pci.0"}]
    assert all(device.get("addr") for device in pci)
    places = [(device["bus"], device["addr"]) for device in pci]
    assert len(set(places)) == len(places)
    assert len({device["id"] for device in devices}) == len(devices)


def test_nics_have_no_option_rom() -> None:
    """A NIC's ROM is empty: its size differs between packages."""
    devices = [device_options(device) for device in make_frozen(LINUX).devices]
    assert [device["romfile"] for device in devices if "mac" in device] == ["", ""]


def test_beat_without_a_port_keeps_the_device() -> None:
    """A host that gives no port for beats changes the back-end, not the guest's hardware."""
    with_port, without = make_argv("linux"), make_argv("linux", None)
    assert values_of(with_port, "-device") == values_of(without, "-device")
    assert "null,id=beat" in without


def test_the_throttle_adds_its_port_and_nothing_else() -> None:
    """A guest with the throttle has one chardev and one device more, on the bus that the control channel is on."""
    without, with_port = make_argv("linux"), make_argv("throttle")
    added = [value for value in with_port if value not in without]
    chardev, device = added
    assert chardev == "socket,id=throttle,path=throttle.sock,server=on,wait=off"
    assert json.loads(device)["name"] == "org.vmferry.throttle.0"
    assert [value for value in with_port if value not in added and value not in {"-chardev", "-device"}] == [
        value for value in without if value not in {"-chardev", "-device"}
    ]


@pytest.mark.parametrize("path", list(IoPath))
def test_every_cache_mode_of_a_guest_file_can_be_built(path: IoPath) -> None:
    """`directsync` is `none` whose writes the guest waits for; the host's page cache is in neither."""
    lines = {}
    for mode in DIRECT_CACHES:
        guest = make_frozen(replace(BIOS, disks=(Disk("/shared/a.raw", DiskFormat.RAW, path, cache=mode),)))
        lines[mode] = command_line(guest, RESOURCES, Descriptors((7,)), incoming=False)
        assert all(json.loads(node)["cache"]["direct"] for node in values_of(lines[mode], "-blockdev"))
    changed = [value for value in lines["directsync"] if value not in lines["none"]]
    assert [json.loads(device).pop("write-cache") for device in changed] == ["off"]


def test_host_paths_stay_out() -> None:
    """No path of the host is in the arguments: files are descriptors, sockets are relative."""
    assert not [value for value in make_argv("linux") if "/run/" in value or "/shared/" in value or "/images/" in value]
