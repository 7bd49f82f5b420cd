"""A guest and its host's descriptors in, QEMU's command line out: a pure function.

Nothing is left to QEMU's defaults that could differ between versions or hosts: no default devices, every device with
its id, bus and address, no option ROMs. No host path appears: files come as descriptors, sockets and logs are relative
to the run directory, in which the process starts (it could not walk there: the directories above are the agent's).

Source: QEMU docs/system/invocation, qapi/block-core.json (fdset), docs/devel/migration/best-practices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmferry.core.disks import NVRAM_NODE, disk_node
from vmferry.core.guest import (
    DIRECT_CACHES,
    TPM_DRIVER,
    Acceleration,
    Disk,
    DiskFormat,
    FrozenDevice,
    FrozenGuest,
    KernelBoot,
    Nic,
    UefiBoot,
)
from vmferry.core.guest import NetworkKind as Network
from vmferry.core.ids import GuestName
from vmferry.ports.hypervisor import HostResources
from vmferry.qemu.run_dir import CONSOLE_LOG, CONSOLE_SOCKET, CONTROL_SOCKET, QMP_SOCKET, THROTTLE_SOCKET

#: QEMU never needs to start a program, to regain privileges or to change its limits.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

CODE_SET = 1
NVRAM_SET = 2
FIRST_DISK_SET = 10
#: of the images below disks, counted through; far above the disks' own
FIRST_BACKING_SET = 1000

#: how a device names what it hangs on
_BACKEND_PROPERTY = {
    **dict.fromkeys(("virtio-blk-pci", "ide-hd", "ide-cd"), "drive"),
    **dict.fromkeys(("virtio-net-pci", "e1000"), "netdev"),
    TPM_DRIVER: "tpmdev",
}


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Numbers of the descriptors that the process inherits."""

    disks: tuple[int, ...] = ()  #: one per disk of the specification
    taps: tuple[int | None, ...] = ()  #: one per NIC; None where it needs none
    kernel: int | None = None
    initrd: int | None = None
    uefi_code: int | None = None
    uefi_nvram: int | None = None
    emergency: int | None = None  #: the emergency line's end that QEMU serves
    backing: tuple[tuple[int, ...], ...] = ()  #: of the images below each disk; empty: below none
    tpm: int | None = None  #: the connection to the TPM's emulator
    vhosts: Mapping[int, int] = field(default_factory=dict)  #: by the number of the NIC that the kernel serves


def command_line(
    guest: FrozenGuest,
    resources: HostResources,
    descriptors: Descriptors,
    *,
    incoming: bool,
) -> list[str]:
    """Return the arguments after the program's name; the same input always gives the same list."""
    argv = [
        *_identity(guest),
        *_machine(guest),
        *_boot(guest, descriptors),
        *_monitors(guest, resources, descriptors.emergency),
        *_disks(guest.spec.disks, descriptors),
        *_nics(guest.spec.nics, descriptors, incoming=incoming),
        *_tpm(descriptors.tpm),
    ]
    for device in guest.devices:
        argv += ["-device", _json(device_options(device))]
    if incoming:
        argv += ["-incoming", "defer"]
    return argv


def process_name(name: GuestName) -> str:
    """Return the name that ps and top show."""
    return f"qemu:{name}"


def device_options(device: FrozenDevice) -> dict[str, str | int | bool]:
    """Return a device as `-device` and `device_add` take it."""
    options: dict[str, str | int | bool] = {"driver": device.driver, "id": device.id, "bus": device.bus}
    if device.addr:
        options["addr"] = device.addr
    if device.backend is not None:
        options[_BACKEND_PROPERTY.get(device.driver, "chardev")] = device.backend
    return {**options, **dict(device.properties)}


def _identity(guest: FrozenGuest) -> list[str]:
    name = guest.spec.name
    return [
        "-name",
        f"guest={name},process={process_name(name)},debug-threads=on",
        "-uuid",
        guest.uuid,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-S",
        "-sandbox",
        SANDBOX,
        "-msg",
        "timestamp=on",
    ]


def _machine(guest: FrozenGuest) -> list[str]:
    spec = guest.spec
    machine = f"{guest.machine},usb=off,dump-guest-core=off,memory-backend=pc.ram"
    if isinstance(spec.boot, UefiBoot):
        machine += f",pflash0=uefi-code,pflash1={NVRAM_NODE}"
    accel = "kvm" if guest.acceleration is Acceleration.KVM else "tcg,thread=multi"
    memory = {"qom-type": "memory-backend-ram", "id": "pc.ram", "size": spec.memory_bytes}
    return [
        "-accel",
        accel,
        "-machine",
        machine,
        "-cpu",
        guest.cpu,
        "-m",
        f"size={spec.memory_bytes // 1024}k",
        "-object",
        _json(memory),
        "-smp",
        f"cpus={spec.vcpus},sockets=1,cores={spec.vcpus},threads=1",
        "-rtc",
        "base=utc",
        # A guest that powers itself off or panics stops and stays, so that it is told apart from a crash.
        "-no-shutdown",
        "-action",
        "panic=pause",
        "-boot",
        "strict=on",
    ]


def _boot(guest: FrozenGuest, descriptors: Descriptors) -> list[str]:
    boot = guest.spec.boot
    if isinstance(boot, KernelBoot):
        argv = ["-kernel", f"/dev/fd/{descriptors.kernel}"]
        if boot.initrd is not None:
            argv += ["-initrd", f"/dev/fd/{descriptors.initrd}"]
        return [*argv, "-append", boot.cmdline] if boot.cmdline else argv
    if isinstance(boot, UefiBoot):
        return [
            *_file_node("uefi-code", descriptors.uefi_code, CODE_SET, read_only=True),
            *_file_node(NVRAM_NODE, descriptors.uefi_nvram, NVRAM_SET, read_only=False),
        ]
    return []


def _monitors(guest: FrozenGuest, resources: HostResources, emergency: int | None) -> list[str]:
    argv = [
        "-chardev",
        f"socket,id=qmp,path={QMP_SOCKET},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
    ]
    if emergency is not None:
        argv += ["-chardev", f"socket,id=emergency,fd={emergency}", "-mon", "chardev=emergency,mode=control"]
    argv += [
        "-chardev",
        f"socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off,logfile={CONSOLE_LOG},logappend=on",
    ]
    if guest.spec.beat:
        port = resources.beat_port
        beat = "null,id=beat" if port is None else f"udp,id=beat,host=127.0.0.1,port={port}"
        argv += ["-chardev", beat]
    if guest.spec.control:
        argv += ["-chardev", f"socket,id=control,path={CONTROL_SOCKET},server=on,wait=off"]
    if guest.spec.throttle:
        argv += ["-chardev", f"socket,id=throttle,path={THROTTLE_SOCKET},server=on,wait=off"]
    return argv


def _disks(disks: tuple[Disk, ...], descriptors: Descriptors) -> list[str]:
    argv: list[str] = []
    backing_set = FIRST_BACKING_SET
    below = descriptors.backing or ((),) * len(disks)
    for index, (disk, fd, fds_below) in enumerate(zip(disks, descriptors.disks, below, strict=True)):
        node: str | None = None
        for depth, (image, fd_below) in reversed(list(enumerate(zip(disk.backing, fds_below, strict=True)))):
            under, node = node, f"image{index}-backing{depth}"
            name = f"file{index}-backing{depth}"
            argv += _image(_Open(node, name, fd_below, backing_set, read_only=True), image.format, disk.cache, under)
            backing_set += 1
        opened = _Open(disk_node(index), f"file{index}", fd, FIRST_DISK_SET + index, disk.read_only)
        argv += _image(opened, disk.format, disk.cache, node)
    return argv


@dataclass(frozen=True, slots=True)
class _Open:
    """An image that QEMU gets by its descriptor: how it and its file are called in the block layer."""

    node: str
    file: str
    fd: int
    set: int
    read_only: bool


def _image(opened: _Open, image_format: DiskFormat, cache_mode: str, backing: str | None) -> list[str]:
    """Return an image and its file, on top of another one."""
    cache = {"direct": cache_mode in DIRECT_CACHES, "no-flush": False}
    file = {
        "node-name": opened.file,
        "driver": "file",
        "filename": f"/dev/fdset/{opened.set}",
        "read-only": opened.read_only,
        "cache": cache,
        # Not "auto": a file system without locks must be an error, not a guest without a fence.
        "locking": "on",
        "discard": "unmap",
    }
    image: dict[str, object] = {
        "node-name": opened.node,
        "driver": image_format.value,
        "read-only": opened.read_only,
        "cache": cache,
        "discard": "unmap",
        "file": opened.file,
    }
    if image_format is DiskFormat.QCOW2:
        image["backing"] = backing  # None: none, whatever its header says by now
    argv = ["-add-fd", f"fd={opened.fd},set={opened.set},opaque={opened.node}"]
    return [*argv, "-blockdev", _json(file), "-blockdev", _json(image)]


def _nics(nics: tuple[Nic, ...], descriptors: Descriptors, *, incoming: bool) -> list[str]:
    argv: list[str] = []
    for index, (nic, tap) in enumerate(zip(nics, descriptors.taps, strict=True)):
        if nic.network is Network.BRIDGE:
            vhost = descriptors.vhosts.get(index)
            served = "" if vhost is None else f",vhost=on,vhostfd={vhost}"
            argv += ["-netdev", f"tap,id=net{index},fd={tap}{served}"]
        elif nic.network is Network.USER:
            forwards = "".join(f",hostfwd=udp:127.0.0.1:{host}-:{guest}" for host, guest in nic.forward_udp)
            # An arrival gets its forwards when it runs (forwards.py): the ports may still be the source's.
            argv += ["-netdev", f"user,id=net{index}{'' if incoming else forwards}"]
    return argv


def _tpm(fd: int | None) -> list[str]:
    if fd is None:
        return []
    return ["-chardev", f"socket,id=tpm-emulator,fd={fd}", "-tpmdev", "emulator,id=tpm,chardev=tpm-emulator"]


def _file_node(name: str, fd: int | None, number: int, *, read_only: bool) -> list[str]:
    node = {
        "node-name": name,
        "driver": "raw",
        "read-only": read_only,
        "file": {"driver": "file", "filename": f"/dev/fdset/{number}", "read-only": read_only, "locking": "on"},
    }
    return ["-add-fd", f"fd={fd},set={number},opaque={name}", "-blockdev", _json(node)]


def _json(options: Mapping[str, object]) -> str:
    return json.dumps(options, separators=(",", ":"))
