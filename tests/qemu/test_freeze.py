"""Freezing decides a guest's hardware once, and refuses what cannot be built alike on two hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.qemu.test_command_line import BIOS, LINUX, MICRO, make_frozen

from vmferry.core.errors import BadInput
from vmferry.core.guest import Backing, Disk, DiskFormat, GuestSpec, IoPath, KernelBoot, NetworkKind, Nic
from vmferry.core.units import Bytes
from vmferry.qemu.cpu import freeze_cpu, parse_cpu, without_enforce
from vmferry.qemu.freeze import MAX_DISKS, MAX_NICS, check_machine

MACHINES = frozenset({"pc-q35-7.2", "pc-i440fx-7.2"})


def test_ids_follow_the_specification() -> None:
    """Devices are named by kind and position, so that a person finds them again."""
    ids = [device.id for device in make_frozen(LINUX).devices]
    assert ids == [
        *("serial0", "pvpanic0", "rp0", "rp1", "rp2", "rp3"),
        *("vser0", "control0", "beat0", "disk0", "disk1", "disk2", "nic0", "nic1"),
    ]


def test_other_devices_do_not_move_it() -> None:
    """A NIC's address does not depend on how many disks or channels there are."""
    alone = replace(LINUX, disks=(), beat=False, control=False)
    address = {spec.beat: {d.id: d.addr for d in make_frozen(spec).devices} for spec in (LINUX, alone)}
    assert address[True]["nic0"] == address[False]["nic0"]


def test_drawn_macs_are_ours() -> None:
    """A MAC that was not given is QEMU's prefix and the drawn bytes."""
    assert make_frozen(LINUX).macs == ("52:54:00:01:02:00", "52:54:00:01:02:01")


def test_given_macs_stay() -> None:
    """A MAC that was given is kept, in lower case."""
    spec = replace(BIOS, nics=(Nic(mac="02:00:00:00:00:AB"),))
    assert make_frozen(spec).macs == ("02:00:00:00:00:ab",)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (replace(BIOS, nics=(Nic(mac="01:00:5e:00:00:01"),)), "not a unicast one"),
        (replace(BIOS, nics=(Nic(mac="52:54:00:00:01"),)), "six hex bytes"),
        (replace(BIOS, nics=(Nic(mac="52:54:00:00:00:01"),) * 2), "same MAC"),
        (replace(BIOS, nics=(Nic(network=NetworkKind.BRIDGE),)), "no bridge"),
        (replace(BIOS, nics=(Nic(),) * (MAX_NICS + 1)), "NICs"),
        (replace(BIOS, disks=(Disk("/a"),) * (MAX_DISKS + 1)), "disks"),
        (replace(BIOS, disks=(Disk("/a", io_path=IoPath.EMULATED),) * 7), "at most 6"),
        (replace(MICRO, disks=(Disk("/a", io_path=IoPath.EMULATED),) * 5), "at most 4"),
        (replace(BIOS, disks=(Disk("/a", DiskFormat.RAW, backing=(Backing("/b"),)),)), "raw stands on"),
        (replace(BIOS, disks=(Disk("/a", backing=(Backing("/b"),) * 17),)), "17 images"),
        (replace(BIOS, disks=(Disk("/a", cache="unsafe"),)), "unsafe"),
        (replace(BIOS, tpm="2.0", boot=KernelBoot("/kernel", "/initrd")), "a TPM beside an initrd"),
        (replace(BIOS, vcpus=0), "vcpus"),
        (replace(BIOS, memory_bytes=Bytes(0)), "memory"),
        (replace(BIOS, memory_bytes=Bytes((1 << 24) + 1)), "whole pages"),
    ],
)
def test_refuses_what_cannot_be_built(spec: GuestSpec, what: str) -> None:
    """Each impossible wish is bad input that names the guest and what was seen."""
    with pytest.raises(BadInput, match=what) as caught:
        make_frozen(spec)
    assert "web-7" in caught.value.what


@pytest.mark.parametrize("machine", ["q35", "pc", "microvm", "pc-q35", "pc-q35-9.9"])
def test_machine_must_be_versioned_and_known(machine: str) -> None:
    """The fix of a refused machine type lists those that exist."""
    with pytest.raises(BadInput) as caught:
        check_machine(machine, MACHINES)
    assert caught.value.fix == "take one of: pc-i440fx-7.2, pc-q35-7.2"


def test_cpu_names_every_feature() -> None:
    """The frozen CPU is the versioned model, all features of its expansion and those asked for, enforced."""
    request = parse_cpu("qemu64,+aes,-svm,sse4_2=on")
    expanded = {"svm": True, "fpu": True, "aes": False, "family": 15, "vendor": "AuthenticAMD"}
    frozen = freeze_cpu(request, "qemu64-v1", expanded, ())
    assert frozen == "qemu64-v1,aes=on,fpu=on,sse4-2=on,svm=off,enforce"
    assert without_enforce(frozen) == "qemu64-v1,aes=on,fpu=on,sse4-2=on,svm=off"


def test_frozen_cpu_is_asked_for_again_unchanged() -> None:
    """Freezing a frozen CPU gives the same text."""
    frozen = freeze_cpu(parse_cpu("qemu64"), "qemu64-v1", {"fpu": True, "sse2": True}, ())
    again = freeze_cpu(parse_cpu(without_enforce(frozen)), "qemu64-v1", {"fpu": True}, ())
    assert again == frozen


def test_missing_features_are_not_dropped_silently() -> None:
    """Features that the accelerator lacks are bad input, and the fix is the text to write instead."""
    with pytest.raises(BadInput, match="avx512f, hle") as caught:
        freeze_cpu(parse_cpu("Skylake-Server"), "Skylake-Server-v1", {"hle": True}, ("hle", "avx512f"))
    assert 'cpu = "Skylake-Server,-avx512f,-hle"' in str(caught.value.fix)


@pytest.mark.parametrize("text", ["host", "max", "base", "max,+aes", ""])
def test_unmigratable_models(text: str) -> None:
    """A model that is whatever the host is gets a reason and a fix."""
    with pytest.raises(BadInput, match="different on every host"):
        parse_cpu(text)


@pytest.mark.parametrize("word", ["aes", "aes=yes", "+", "=on", ""])
def test_malformed_features(word: str) -> None:
    """A feature in any other form is bad input that shows the word."""
    with pytest.raises(BadInput, match="feature=on"):
        parse_cpu(f"qemu64,{word}")
