"""Machine type, firmware, kernel and boot order.

Source: libvirt docs/formatdomain.rst (9.0), Operating system booting.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.guest import BiosBoot, Boot, GuestSpec, KernelBoot, UefiBoot
from vmferry.libvirt.findings import STAY, Findings, short
from vmferry.libvirt.making import add
from vmferry.libvirt.paths import read_path
from vmferry.libvirt.tree import Element

CARRIED: Final = (
    ("os/type/@machine", "`machine`, a versioned `pc-q35-`"),
    ("os/kernel, os/initrd, os/cmdline", "`boot.kernel`, `boot.initrd`, `boot.cmdline`"),
    ("os/loader, os/nvram", '`boot.firmware = "uefi"`, `boot.code`, `boot.nvram`; without them `"bios"`'),
    ("os/boot, devices/*/boot", "the first disk comes first, as every guest has it"),
)

ARCHITECTURE = "x86_64"
_MACHINE = re.compile(r"pc-q35-\d+\.\d+(\.\d+)?")
_ALIASES = {"q35", "pc-q35"}
_DEFINE = "let libvirt define it (virsh define, then virsh dumpxml): its XML then says which one it is"
#: os/boot in these orders is what a guest does anyway
_USUAL: tuple[list[str], ...] = (["hd"], ["hd", "cdrom"], [])


def read_machine(domain: Element, found: Findings) -> tuple[Element, str]:
    """Return the <os> element and the machine type."""
    os = domain.one("os") or domain
    kind = os.one("type")
    if kind is None or kind.text != "hvm":
        seen = short(None if kind is None else kind.text)
        found.refuse(kind or os, seen, "only whole machines (hvm) are supported", STAY)
        if kind is not None:
            kind.read_whole()
        return os, ""
    arch, machine = kind.get("arch"), kind.get("machine") or ""
    if arch != ARCHITECTURE:
        found.refuse(kind, f"arch={short(arch)}", f"only {ARCHITECTURE} is supported", STAY if arch else _DEFINE)
    if not _MACHINE.fullmatch(machine):
        named = machine in _ALIASES or not machine
        why = "it stands for another machine in each QEMU" if named else "a guest's frozen hardware is a q35 one"
        fix = _DEFINE if named else f"{STAY}, or install it anew on pc-q35"
        found.refuse(kind, f"machine={short(machine or None)}", why, fix)
    return os, machine


def read_boot(os: Element, found: Findings) -> Boot:
    """Return what the guest boots from."""
    os.get("firmware")  # which one libvirt chose is in <loader>
    kernel, loader = os.one("kernel"), os.one("loader")
    if kernel is not None:
        return _read_kernel(os, kernel, loader, found)
    for tag in ("initrd", "cmdline"):
        for each in os.every(tag):
            found.refuse(each, short(each.text), f"{tag} without a kernel", "name the kernel, or take it out")
    if loader is None:
        if os.attributes.get("firmware") == "efi":
            found.refuse(os, "firmware='efi' without a <loader>", "which UEFI it is only libvirt knows", _DEFINE)
        return BiosBoot()
    return _read_uefi(os, loader, found)


def read_order(os: Element, devices: Element, boot: Boot, found: Findings) -> None:
    """Ask when the guest boots from something else than its first disk; a kernel comes from the host anyway."""
    devs = list(os.every("boot"))
    order = [dev.get("dev") or "" for dev in devs]
    ordered = [(each, device) for device in devices.children for each in device.every("boot")]
    if isinstance(boot, KernelBoot):
        for each, _ in ordered:
            each.get("order")
        return
    if order not in _USUAL:
        found.ask(devs[0], ", ".join(map(short, order)), "boot")
    first = next((child for child in devices.children if child.tag == "disk"), None)
    ranked = sorted(ordered, key=lambda pair: _rank(pair[0]))
    if ranked and (ranked[0][1] is not first or any(device.tag != "disk" for _, device in ranked)):
        places = ", ".join(device.where.rpartition("/")[2] for _, device in ranked)
        found.ask(ranked[0][0], places, "boot")


def write_boot(spec: GuestSpec, root: ET.Element) -> None:
    """Write the machine type and what it boots from."""
    os = add(root, "os")
    add(os, "type", "hvm", arch=ARCHITECTURE, machine=spec.machine)
    boot = spec.boot
    if isinstance(boot, KernelBoot):
        add(os, "kernel", boot.kernel)
        if boot.initrd is not None:
            add(os, "initrd", boot.initrd)
        if boot.cmdline:
            add(os, "cmdline", boot.cmdline)
        return
    if isinstance(boot, UefiBoot):
        add(os, "loader", boot.code, readonly="yes", type="pflash")
        add(os, "nvram", boot.nvram)


def _rank(boot: Element) -> int:
    order = boot.get("order") or ""
    return int(order) if order.isascii() and order.isdigit() else 0


def _read_kernel(os: Element, kernel: Element, loader: Element | None, found: Findings) -> Boot:
    if loader is not None:
        found.refuse(loader, short(loader.text), "firmware beside a kernel", "take one of the two out")
        loader.read_whole()
        for nvram in os.every("nvram"):
            nvram.read_whole()
    initrd, cmdline = os.one("initrd"), os.one("cmdline")
    return KernelBoot(
        read_path(kernel, found),
        None if initrd is None else read_path(initrd, found),
        "" if cmdline is None else cmdline.text,
    )


def _read_uefi(os: Element, loader: Element, found: Findings) -> Boot:
    kind, form = loader.get("type"), loader.get("format") or "raw"
    loader.get("readonly")
    if kind != "pflash" or form != "raw":
        seen = f"type={short(kind)} format={short(form)}"
        found.refuse(loader, seen, "firmware of the guest's own that is no raw UEFI flash", STAY)
    if loader.get("secure") == "yes":
        found.refuse(loader, "secure='yes'", "variables that only the firmware may write: not yet", STAY)
    if loader.get("stateless") == "yes":
        found.refuse(loader, "stateless='yes'", "UEFI without variables of its own", STAY)
    return UefiBoot(read_path(loader, found), _read_nvram(os, loader, found))


def _read_nvram(os: Element, loader: Element, found: Findings) -> str:
    nvram = os.one("nvram")
    if nvram is None:
        found.refuse(loader, "no <nvram>", "where the guest's UEFI variables are only libvirt knows", _DEFINE)
        return ""
    kind, form, source = nvram.get("type") or "file", nvram.get("format") or "raw", nvram.one("source")
    if kind != "file" or form != "raw":
        seen = f"type={short(kind)} format={short(form)}"
        found.refuse(nvram, seen, "UEFI variables that are no raw file", "bring them into a file (qemu-img convert)")
        return ""
    return read_path(nvram, found) if source is None else read_path(source, found, "file")
