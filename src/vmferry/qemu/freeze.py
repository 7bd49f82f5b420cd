"""Decide a guest's hardware once: ids, addresses, MACs. Pure; chance and hashes come in from outside.

Layout on q35 (pcie.0): 0x2.0-0x2.3 root ports for what is plugged in later, 0x3 virtio-serial, 0x4-0xf disks,
0x10-0x1e NICs. i440fx (pci.0) has no root ports. The serial port, pvpanic, debugcon and the TPM are ISA devices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmferry.core.disks import disk_node, wrong_chains
from vmferry.core.errors import BadInput
from vmferry.core.guest import (
    CONTROL_PORT,
    DIRECT_CACHES,
    THROTTLE_PORT,
    TPM_DRIVER,
    Acceleration,
    FrozenDevice,
    FrozenGuest,
    GuestSpec,
    IoPath,
    KernelBoot,
    NetworkKind,
)
from vmferry.core.ids import GuestUuid
from vmferry.core.wanted_devices import PORTS

ROOT_PORTS = len(PORTS)
ROOT_PORT_SLOT = 0x2
SERIAL_SLOT = 0x3
FIRST_DISK_SLOT = 0x4
FIRST_NIC_SLOT = 0x10
MAX_DISKS = FIRST_NIC_SLOT - FIRST_DISK_SLOT
MAX_NICS = 0x1F - FIRST_NIC_SLOT
#: Every driver that a frozen guest may have: what a host is asked for.
DRIVERS = frozenset(
    {
        "e1000",
        "ide-hd",
        "ide-cd",
        "isa-debugcon",
        "isa-serial",
        "pcie-root-port",
        "pvpanic",
        TPM_DRIVER,
        "virtio-blk-pci",
        "virtio-net-pci",
        "virtio-serial-pci",
        "virtserialport",
    }
)
#: Whether the guest is to join a virtio card with its virtual function (VIRTIO_NET_F_STANDBY).
_STANDBY: Mapping[bool, tuple[tuple[str, str | int | bool], ...]] = {True: (("failover", True),), False: ()}
MAX_IDE = {"q35": 6, "i440fx": 4}

#: Only these name the same hardware for ever; `pc` and `q35` follow the newest QEMU.
VERSIONED_MACHINE = re.compile(r"^pc-(q35|i440fx)-\d+\.\d+(\.\d+)?$")

CACHE_MODES = (*DIRECT_CACHES, "writeback")

_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What chance and the host's files gave: the impure half of freezing."""

    uuid: GuestUuid
    mac_bytes: tuple[bytes, ...]  #: three bytes per NIC
    boot_hashes: tuple[tuple[str, str], ...] = ()


def freeze(spec: GuestSpec, *, acceleration: Acceleration, cpu: str, drawn: Drawn) -> FrozenGuest:
    """Return the guest with its hardware fixed; the same input gives the same guest.

    Args:
        spec: what was asked for.
        acceleration: KVM or TCG, as decided on this host.
        cpu: the frozen CPU (`cpu.freeze_cpu`).
        drawn: uuid, MAC bytes and file hashes.

    Raises:
        BadInput: the specification asks for what cannot be built.
    """
    check_spec(spec)
    return FrozenGuest(
        spec=spec,
        uuid=drawn.uuid,
        acceleration=acceleration,
        cpu=cpu,
        machine=spec.machine,
        devices=tuple(_devices(spec, macs := _macs(spec, drawn.mac_bytes))),
        macs=macs,
        boot_hashes=drawn.boot_hashes,
    )


def check_machine(machine: str, known: Sequence[str] | frozenset[str]) -> None:
    """Check that the machine type is a versioned one that this QEMU has.

    Raises:
        BadInput: it is an alias, or unknown here; the text lists what there is.
    """
    there_are = ", ".join(sorted(known)) or "none"
    if not VERSIONED_MACHINE.fullmatch(machine):
        raise BadInput(
            f"machine type {machine!r} is not a versioned one: it stands for other hardware in each QEMU",
            fix=f"take one of: {there_are}",
        )
    if machine not in known:
        raise BadInput(f"machine type {machine!r} is unknown to this host's QEMU", fix=f"take one of: {there_are}")


def check_spec(spec: GuestSpec) -> None:
    """Check what no QEMU has to be asked for.

    Raises:
        BadInput: something cannot be built; names the guest, what was seen and what is expected.
    """
    family = _family(spec.machine)
    plugged = sum(nic.is_function for nic in spec.nics) + len(spec.host_devices)
    ide = sum(disk.io_path is IoPath.EMULATED for disk in spec.disks)
    problems = [
        (spec.vcpus < 1, f"vcpus = {spec.vcpus}, expected at least 1"),
        (spec.memory_bytes < 1 << 20, f"memory = {spec.memory_bytes} bytes, expected at least 1 MiB"),
        (spec.memory_bytes % 4096 != 0, f"memory = {spec.memory_bytes} bytes, expected whole pages of 4096 bytes"),
        (len(spec.disks) > MAX_DISKS, f"{len(spec.disks)} disks, expected at most {MAX_DISKS}"),
        (ide > MAX_IDE[family], f"{ide} emulated disks, expected at most {MAX_IDE[family]} on {family}"),
        (len(spec.nics) > MAX_NICS, f"{len(spec.nics)} NICs, expected at most {MAX_NICS}"),
        *((d.cache not in CACHE_MODES, f"cache = {d.cache!r}, expected one of {CACHE_MODES}") for d in spec.disks),
        *((True, what) for what in wrong_chains(spec)),
        # The log that the firmware keeps of a TPM (64 KiB) pushes its ACPI tables down to where QEMU loads an initrd:
        # seen on 7.2 and 10.0, Linux then comes up without ACPI and finds no TPM.
        (
            spec.tpm is not None and isinstance(spec.boot, KernelBoot) and spec.boot.initrd is not None,
            "a TPM beside an initrd, which QEMU loads over the firmware's tables; expected a boot from a disk",
        ),
        *((n.network is NetworkKind.BRIDGE and not n.bridge, "a NIC on a bridge has no bridge") for n in spec.nics),
        (plugged > 0 and family != "q35", "the host's devices are plugged into root ports, expected a type q35"),
        (plugged > ROOT_PORTS, f"{plugged} devices of the host, expected at most {ROOT_PORTS}"),
    ]
    for wrong, what in problems:
        if wrong:
            raise BadInput(f"guest {spec.name}: {what}")


def _family(machine: str) -> str:
    found = VERSIONED_MACHINE.fullmatch(machine)
    return found.group(1) if found else "q35"


def _macs(spec: GuestSpec, mac_bytes: tuple[bytes, ...]) -> tuple[str, ...]:
    macs = []
    for nic, drawn in zip(spec.nics, mac_bytes, strict=True):
        mac = nic.mac.lower() if nic.mac else "52:54:00:" + drawn[:3].hex(":")
        if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
            raise BadInput(
                f"guest {spec.name}: MAC {mac!r} is not a unicast one of six hex bytes",
                fix="write one such as 52:54:00:00:00:01, or leave mac out",
            )
        macs.append(mac)
    if len(set(macs)) != len(macs):
        raise BadInput(f"guest {spec.name}: two NICs have the same MAC", fix="give each its own, or leave mac out")
    return tuple(macs)


def _devices(spec: GuestSpec, macs: tuple[str, ...]) -> list[FrozenDevice]:
    q35 = _family(spec.machine) == "q35"
    bus = "pcie.0" if q35 else "pci.0"
    return [
        FrozenDevice("serial0", "isa-serial", "isa.0", "", (("index", 0),), "console"),
        FrozenDevice("pvpanic0", "pvpanic", "isa.0", ""),
        *([FrozenDevice("tpm0", TPM_DRIVER, "isa.0", "", (), "tpm")] if spec.tpm is not None else []),
        *(_root_ports() if q35 else ()),
        *_channels(spec, bus),
        *_disk_devices(spec, bus, q35=q35),
        *_nic_devices(spec, bus, macs),
    ]


def _root_ports() -> list[FrozenDevice]:
    return [
        FrozenDevice(
            PORTS[n],
            "pcie-root-port",
            "pcie.0",
            f"{ROOT_PORT_SLOT:#x}.{n:#x}",
            (("chassis", n + 1), ("port", n), ("multifunction", n == 0)),
        )
        for n in range(ROOT_PORTS)
    ]


def _channels(spec: GuestSpec, bus: str) -> list[FrozenDevice]:
    devices = []
    if spec.control or spec.throttle:
        devices.append(FrozenDevice("vser0", "virtio-serial-pci", bus, f"{SERIAL_SLOT:#x}", (("max_ports", 4),)))
    if spec.control:
        devices.append(_port("control0", 1, CONTROL_PORT, "control"))
    if spec.throttle:
        devices.append(_port("throttle0", 2, THROTTLE_PORT, "throttle"))
    if spec.beat:
        # Never a virtio-serial port: on a UDP chardev it does not open, and QEMU drops every beat.
        devices.append(FrozenDevice("beat0", "isa-debugcon", "isa.0", "", (("iobase", 0xE9),), "beat"))
    return devices


def _port(device_id: str, number: int, name: str, backend: str) -> FrozenDevice:
    return FrozenDevice(device_id, "virtserialport", "vser0.0", "", (("nr", number), ("name", name)), backend)


def _disk_devices(spec: GuestSpec, bus: str, *, q35: bool) -> list[FrozenDevice]:
    devices = []
    ide = 0
    for index, disk in enumerate(spec.disks):
        common: tuple[tuple[str, str | int | bool], ...] = (("bootindex", index + 1),)
        if disk.cache == "directsync" and not disk.is_cdrom:
            common = (*common, ("write-cache", "off"))
        if disk.io_path is IoPath.VIRTIO:
            place = f"{FIRST_DISK_SLOT + index:#x}"
            devices.append(FrozenDevice(f"disk{index}", "virtio-blk-pci", bus, place, common, disk_node(index)))
            continue
        # q35 has six AHCI ports of one unit, i440fx two IDE buses of two.
        ide_bus, unit = (ide, 0) if q35 else divmod(ide, 2)
        common = (*common, ("unit", unit))
        driver = "ide-cd" if disk.is_cdrom else "ide-hd"
        devices.append(FrozenDevice(f"disk{index}", driver, f"ide.{ide_bus}", "", common, disk_node(index)))
        ide += 1
    return devices


def _nic_devices(spec: GuestSpec, bus: str, macs: tuple[str, ...]) -> list[FrozenDevice]:
    return [
        FrozenDevice(
            f"nic{index}",
            "e1000" if nic.front_end is IoPath.EMULATED else "virtio-net-pci",
            bus,
            f"{FIRST_NIC_SLOT + index:#x}",
            # No option ROM: its size differs between QEMU packages and would stop the migration.
            (("mac", mac), ("romfile", ""), *_STANDBY[nic.has_standby]),
            f"net{index}",
        )
        for index, (nic, mac) in enumerate(zip(spec.nics, macs, strict=True))
        if nic.front_end is not None
    ]
