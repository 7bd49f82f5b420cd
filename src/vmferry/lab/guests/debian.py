"""Builds the debian guest: a stock Debian with systemd on a qcow2 disk that boots by UEFI."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.core.units import MIB
from vmferry.lab.guests.debian_tree import EPOCH, PACKAGES, boot_files, make_tree, suite
from vmferry.lab.guests.debs import unpacked
from vmferry.lab.guests.ext4 import copy_sparse, make_ext4
from vmferry.lab.guests.gpt import ESP_TYPE, LINUX_TYPE, Partition, tables
from vmferry.lab.guests.image import GuestImage
from vmferry.lab.guests.linux import workload_inputs
from vmferry.lab.guests.sources import DEBIAN, read_all
from vmferry.lab.toolchain.command import output_of

_DISK_BYTES = 2048 * MIB
_ESP = Partition("esp", ESP_TYPE, 1 * MIB, 96 * MIB)
_SETTINGS = Partition("settings", LINUX_TYPE, 97 * MIB, 1 * MIB)
_ROOT = Partition("root", LINUX_TYPE, 98 * MIB, _DISK_BYTES - 99 * MIB)
_ROOT_UUID = "766d6665-7272-7900-0000-000000000001"
_DEFAULT_SETTINGS = "mb=64 rate=20"
_SETTINGS_BYTES = 4096
_BOOT_LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
_FIRMWARE = {"code.fd": "OVMF_CODE_4M.fd", "vars.fd": "OVMF_VARS_4M.fd"}
_FIX_SPACE = "free 3 GiB in the cache directory and try again"
_FIX_QEMU_IMG = "install qemu-utils"


def inputs(_cache: Path) -> list[bytes]:
    """Return everything that decides which debian guest this is; a newer package in the mirror does not."""
    return [*workload_inputs(), *read_all(DEBIAN), *(name.encode() for name in (suite(), *PACKAGES))]


def make(folder: Path, cache: Path) -> None:
    """Write the disk and the firmware's two files into a folder.

    Raises:
        Broken: When it does not run as root, or a tool or package is missing.
    """
    if os.geteuid() != 0:
        raise Broken("debootstrap needs root to build the debian guest", fix="run as root")
    firmware = unpacked("ovmf", cache) / "usr/share/OVMF"
    for name, source in _FIRMWARE.items():
        shutil.copyfile(firmware / source, folder / name)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".debian.") as name:
        tree, raw = Path(name) / "root", Path(name) / "disk.raw"
        make_tree(tree)
        print("writing the disk", flush=True)
        _write_disk(raw, tree, cache)
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]
        output_of([*convert, str(raw), str(folder / "disk.qcow2")], fix=_FIX_QEMU_IMG)


def personal_disk(image: GuestImage, disk: Path, nvram: Path, **settings: object) -> None:
    """Make one guest's own disk and UEFI variables out of the built ones, with the workload's settings on it.

    Args:
        image: From `build("debian", ...)`.
        disk: The qcow2 file to write; it needs no other file.
        nvram: The variables file to write.
        **settings: As `GuestImage.append` takes them.

    Raises:
        Broken: When the settings are too long or the disk cannot be written.
    """
    if image.nvram is None or not image.disks:
        raise Broken(f"the {image.kind} guest has no disk", fix="take the debian guest")
    shutil.copyfile(image.disks[0], disk)
    shutil.copyfile(image.nvram, nvram)
    text = _settings_block(" ".join(f"{key}={value}" for key, value in settings.items()))
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        write = f"write -q -s {file.name} {_SETTINGS.start} {_SETTINGS_BYTES}"
        output_of(["qemu-io", "-f", "qcow2", "-c", write, str(disk)], fix=_FIX_QEMU_IMG)


def _settings_block(settings: str) -> bytes:
    block = f"{settings}\n".encode()
    if len(block) > _SETTINGS_BYTES:
        raise Broken(f"settings of {len(block)} bytes, at most {_SETTINGS_BYTES} fit", fix="give fewer settings")
    return block.ljust(_SETTINGS_BYTES, b"\n")


def _write_disk(raw: Path, tree: Path, cache: Path) -> None:
    start, end = tables([_ESP, _SETTINGS, _ROOT], _DISK_BYTES)
    with raw.open("wb") as disk:
        disk.truncate(_DISK_BYTES)
        disk.write(start)
        disk.seek(_SETTINGS.start)
        disk.write(_settings_block(_DEFAULT_SETTINGS))
        disk.seek(_DISK_BYTES - len(end))
        disk.write(end)
    _fill_esp(raw, tree, cache)
    _fill_root(raw, tree)


def _fill_esp(raw: Path, tree: Path, cache: Path) -> None:
    tools = unpacked("mtools", cache) / "usr/bin"
    at = f"{raw}@@{_ESP.start}"
    files = {
        "EFI/BOOT/BOOTX64.EFI": unpacked("systemd-boot-efi", cache) / _BOOT_LOADER,
        "loader/loader.conf": DEBIAN / "loader.conf",
        "loader/entries/debian.conf": DEBIAN / "debian.conf",
        **boot_files(tree),
    }

    def mtool(name: str, *arguments: str) -> None:
        env = {"SOURCE_DATE_EPOCH": str(EPOCH), "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"}
        output_of([str(tools / "mtools"), "-c", name, "-i", at, *arguments], env=env, fix=_FIX_SPACE)

    mtool("mformat", "-F", "-N", "766d6665", "-v", "ESP", "-T", str(_ESP.size // 512), "::")
    mtool("mmd", "::EFI", "::EFI/BOOT", "::loader", "::loader/entries")
    for name, file in files.items():
        mtool("mcopy", str(file), f"::{name}")


def _fill_root(raw: Path, tree: Path) -> None:
    print("writing the root file system", flush=True)
    part = raw.with_suffix(".ext4")
    make_ext4(tree, part, size=_ROOT.size, uuid=_ROOT_UUID, label="root")
    with part.open("rb") as source, raw.open("r+b") as disk:
        copy_sparse(source, disk, _ROOT.start)
    part.unlink()
