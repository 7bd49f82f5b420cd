"""The guest's files and the command line of a plain QEMU: the same machine, CPU and devices for every mover."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from grid.cells import Cell
from grid.compiling import compiler_disk

from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.guests import GuestImage, build
from vmferry.lab.guests.debian import personal_disk
from vmferry.lab.hosts import Lab
from vmferry.lab.toolchain import cache_dir

#: QEMU's plain 64-bit CPU: what the agent's own choice (`qemu64-v1` with its features named one by one) comes to.
CPU = "qemu64"
#: Where plain QEMUs and libvirt's send the beats; the agents choose a port of their own.
BEAT_PORT = 5507
MAC = "52:54:00:9d:5d:60"


async def guest_plan(cell: Cell) -> GuestPlan:
    """Return a cell's guest; one that compiles gets the disk with the compiler."""
    if not cell.compiles:
        return cell.plan()
    return replace(cell.plan(), disks=(DiskPlan(await asyncio.to_thread(compiler_disk, cache_dir())),))


async def guest_image(lab: Lab, plan: GuestPlan, owner: str) -> GuestImage:
    """Return the guest's files; the debian guest gets a disk and UEFI variables of its own."""
    image = await asyncio.to_thread(build, plan.kind, cache_dir())
    if plan.kind != "debian":
        return image
    disk, nvram = lab.directory / f"{owner}.qcow2", lab.directory / f"{owner}.fd"
    await asyncio.to_thread(personal_disk, image, disk, nvram, **plan.settings())
    return replace(image, disks=(disk,), nvram=nvram)


def plain_argv(plan: GuestPlan, image: GuestImage, folder: Path, tap: str) -> list[str]:
    """Return the options of a QEMU without any manager.

    Args:
        plan: the guest.
        image: its files.
        folder: of its sockets and log; short, for UNIX sockets.
        tap: its network interface, which exists.
    """
    disks = [(path, "qcow2") for path in image.disks] + [(disk.image, disk.format) for disk in plan.disks]
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-rtc", "base=utc"),
        *("-accel", "tcg,thread=multi", "-cpu", CPU, "-m", str(plan.memory_mib), "-smp", str(plan.vcpus)),
        *("-machine", _machine(plan, image)),
        *("-object", f"memory-backend-ram,id=pc.ram,size={plan.memory_mib}M"),
        *_boot(plan, image),
        *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
        *("-chardev", f"socket,id=console,path={folder}/console.sock,server=on,wait=off,logfile={folder}/console.log"),
        *("-device", "isa-serial,chardev=console"),
        *("-chardev", f"udp,id=beat,host=127.0.0.1,port={BEAT_PORT}"),
        *("-device", "isa-debugcon,chardev=beat,iobase=0xe9"),
        *("-device", "virtio-serial-pci,id=vser0"),
        *("-chardev", f"socket,id=control,path={folder}/control.sock,server=on,wait=off"),
        *("-device", "virtserialport,bus=vser0.0,nr=1,chardev=control,name=org.vmferry.control"),
        *("-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile="),
        *[word for index, (path, kind) in enumerate(disks) for word in _disk(index, path, kind)],
    ]


def _machine(plan: GuestPlan, image: GuestImage) -> str:
    machine = f"{plan.machine},usb=off,memory-backend=pc.ram"
    return machine if image.kernel else f"{machine},pflash0=uefi-code,pflash1=uefi-nvram"


def _boot(plan: GuestPlan, image: GuestImage) -> Sequence[str]:
    if image.kernel is not None:
        initrd = ("-initrd", str(image.initrd)) if image.initrd else ()
        return ("-kernel", str(image.kernel), *initrd, "-append", image.append(**plan.settings()))
    code = {"node-name": "uefi-code", "driver": "raw", "read-only": True, "file": _file(image.firmware)}
    nvram = {"node-name": "uefi-nvram", "driver": "raw", "file": _file(image.nvram)}
    return ("-blockdev", json.dumps(code), "-blockdev", json.dumps(nvram))


def _file(path: Path | None) -> dict[str, object]:
    return {"driver": "file", "filename": str(path)}


def _disk(index: int, path: Path, kind: str) -> Sequence[str]:
    file = {**_file(path), "cache": {"direct": True}}
    node = {"node-name": f"disk{index}", "driver": kind, "file": file, "cache": {"direct": True}}
    return ("-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive=disk{index}")
