"""What every nested host starts from: Debian's full kernel, an initramfs that finds the root, its modules."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vmferry.lab.guests import cpio
from vmferry.lab.guests.cache import built_once, digest_of, forget_old
from vmferry.lab.guests.debs import unpacked
from vmferry.lab.guests.kernel import find_kernel, modules_in_order, uncompressed
from vmferry.lab.guests.linux import BUSYBOX_PACKAGE, KERNEL_PACKAGE
from vmferry.lab.toolchain.command import output_of

_INIT = Path(__file__).with_name("init.sh")
#: Needed to find the root and the control port; all others are loaded from the root.
_MODULES = ("virtio_pci", "virtio_console", "virtio_net", "9pnet_virtio", "9p", "overlay")
_FOLDERS = ("bin", "dev", "proc", "sys", "lib", "lib/modules", "machine", "layers", "scratch", "newroot")
#: Files of a kernel package from which depmod makes its index.
_INDEX_SOURCES = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
#: Hosts of an older checkout may still run from theirs.
_KEPT_BUILDS = 4


@dataclass(frozen=True, slots=True)
class HostImage:
    """What a nested host starts from."""

    kernel: Path
    initrd: Path
    layer: Path  #: files for the host's root: the kernel's modules with their index


def host_image(cache: Path) -> HostImage:
    """Return the image, built now or taken from the cache.

    Raises:
        Broken: a package cannot be had.
    """
    package, busybox = unpacked(KERNEL_PACKAGE, cache), unpacked(BUSYBOX_PACKAGE, cache)
    code = [_INIT.read_bytes(), Path(__file__).read_bytes()]
    key = digest_of([str(package).encode(), str(busybox).encode(), *code])
    shelf = cache / "nested"
    shelf.mkdir(exist_ok=True)
    folder = built_once(shelf / f"host-{key[:16]}", lambda work: _make(work, package, busybox))
    forget_old(shelf, "host-*", keep=_KEPT_BUILDS)
    return HostImage(folder / "vmlinux", folder / "initrd", folder / "layer")


def _make(folder: Path, package: Path, busybox: Path) -> None:
    (folder / "vmlinux").write_bytes(uncompressed(find_kernel(package).read_bytes()))
    program = next(busybox.glob("**/bin/busybox")).read_bytes()
    (folder / "initrd").write_bytes(cpio.archive(_entries(program, package)))
    _index_modules(folder / "layer", package)


def _entries(busybox: bytes, package: Path) -> list[cpio.Entry]:
    modules = modules_in_order(package, _MODULES)
    return [
        *(cpio.directory(name) for name in _FOLDERS),
        cpio.device("dev/console", 5, 1),
        cpio.regular("init", _INIT.read_bytes(), executable=True),
        cpio.regular("bin/busybox", busybox, executable=True),
        *(cpio.regular(f"lib/modules/{module.name}", module.data) for module in modules),
        cpio.regular("lib/modules/order", "".join(f"{module.name}\n" for module in modules).encode()),
    ]


def _index_modules(layer: Path, package: Path) -> None:
    """Make what modprobe reads; the modules themselves stay where the package was unpacked."""
    modules = next((package / "lib/modules").iterdir())
    target = layer / "usr/lib/modules" / modules.name
    target.mkdir(parents=True)
    (target / "kernel").symlink_to(modules / "kernel")
    for name in _INDEX_SOURCES:
        shutil.copy(modules / name, target / name)
    output_of(["depmod", "-b", str(layer / "usr"), modules.name], fix="apt-get install kmod")
