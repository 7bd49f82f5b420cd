"""Makes the file tree of the debian guest: debootstrap, our service, and nothing that differs from build to build."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from vmferry.core.errors import Broken
from vmferry.lab.guests.linux import compile_workload
from vmferry.lab.guests.sources import DEBIAN
from vmferry.lab.toolchain import machine_codename, machine_mirror
from vmferry.lab.toolchain.command import output_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What a minimal Debian needs to boot with systemd and to carry an address.
PACKAGES = ("systemd-sysv", "udev", "dbus", "iproute2", "kmod", "linux-image-cloud-amd64")
EPOCH = 1_000_000_000
_KEEP_NOTHING_OF = ("var/cache/apt", "var/lib/apt/lists", "var/log", "tmp", "run", "root/.cache")
_DROP = ("var/cache/ldconfig/aux-cache", "var/lib/systemd/random-seed", "etc/resolv.conf")
#: Two guests of one image share it: nothing here asks for an address by it.
_MACHINE_ID = "766d66657272790000000000deb1a000\n"
_FIXED = {
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 guest\n",
    "etc/fstab": "PARTLABEL=root / ext4 defaults 0 1\n",
    "etc/machine-id": _MACHINE_ID,
    "var/lib/dbus/machine-id": _MACHINE_ID,
    "etc/apt/sources.list": "",
}
_UNIT = "etc/systemd/system/vmferry-workload.service"


def suite() -> str:
    """Return the release of the guest: that of the machine that builds it."""
    return machine_codename()


def make_tree(root: Path) -> None:
    """Fill a folder with a Debian that starts our workload.

    Raises:
        Broken: When debootstrap is missing or fails, or when it does not run as root.
    """
    print(f"debootstrap {suite()}: about a minute", flush=True)
    output_of(
        ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite(), str(root), machine_mirror()],
        env={"SOURCE_DATE_EPOCH": str(EPOCH), "DEBIAN_FRONTEND": "noninteractive"},
        fix="run as root, with debootstrap installed",
    )
    _install(root)
    _make_even(root)


def boot_files(root: Path) -> dict[str, Path]:
    """Return kernel and initrd of a tree by the names that the boot loader uses.

    Raises:
        Broken: When the tree does not hold exactly one of each.
    """
    found = {}
    for name in ("vmlinuz", "initrd.img"):
        files = list((root / "boot").glob(f"{name}-*"))
        if len(files) != 1:
            raise Broken(f"the debian guest has {len(files)} files boot/{name}-*, expected one", fix="try again")
        found[name] = files[0]
    return found


def _install(root: Path) -> None:
    (root / "usr/local/lib/vmferry").mkdir(parents=True)
    shutil.copy(DEBIAN / "network", root / "usr/local/lib/vmferry/network")
    (root / "usr/local/lib/vmferry/network").chmod(0o755)
    compile_workload(root / "usr/local/bin/workload")
    shutil.copy(DEBIAN / "vmferry-workload.service", root / _UNIT)
    wants = root / "etc/systemd/system/multi-user.target.wants/vmferry-workload.service"
    wants.parent.mkdir(parents=True, exist_ok=True)
    wants.symlink_to(f"/{_UNIT}")
    getty = root / "etc/systemd/system/serial-getty@ttyS0.service.d"
    getty.mkdir(parents=True)
    shutil.copy(DEBIAN / "autologin.conf", getty / "autologin.conf")


def _make_even(root: Path) -> None:
    """Remove logs, caches and the traces of the building machine; give every file the same time."""
    for name in _KEEP_NOTHING_OF:
        for path in _children(root / name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in _DROP:
        (root / name).unlink(missing_ok=True)
    for path in root.glob("var/**/*-old"):
        path.unlink()
    for name, text in _FIXED.items():
        (root / name).unlink(missing_ok=True)
        (root / name).write_text(text)
    for path in [root, *root.rglob("*")]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def _children(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from folder.iterdir()
