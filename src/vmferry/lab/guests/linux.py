"""Builds the linux guest: Debian's kernel, busybox, the workload and the throttle helper in an initramfs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmferry.guest_throttle import program as throttle
from vmferry.lab.guests import cpio
from vmferry.lab.guests.compiler import compile_c
from vmferry.lab.guests.debs import unpacked
from vmferry.lab.guests.kernel import Module, find_kernel, modules_in_order, uncompressed
from vmferry.lab.guests.sources import WORKLOAD, read_all

if TYPE_CHECKING:
    from pathlib import Path

#: The full kernel, since the cloud one has no e1000 and no igbvf.
KERNEL_PACKAGE = "linux-image-amd64"
BUSYBOX_PACKAGE = "busybox-static"
#: Needed before the workload starts.
_EARLY = ("virtio_pci", "virtio_console", "virtio_net")
#: Loaded while it runs already: for other NICs, disks, hot-plugged VFs and a panic that QEMU notices.
_LATE = ("e1000", "virtio_blk", "igbvf", "pvpanic_mmio", "pvpanic_pci")

#: nokaslr: nothing random in a guest that is compared with itself; the rest keeps the boot short.
CMDLINE = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=nowatchdog"


def inputs(cache: Path) -> list[bytes]:
    """Return everything that the linux guest's bytes depend on."""
    packages = [unpacked(name, cache).name for name in (KERNEL_PACKAGE, BUSYBOX_PACKAGE)]
    return [
        *workload_inputs(),
        *read_all(throttle.HELPER_SOURCE),
        CMDLINE.encode(),
        *(name.encode() for name in packages),
    ]


def workload_inputs() -> list[bytes]:
    """Return everything that the workload program's bytes depend on, beside the compiler."""
    return read_all(WORKLOAD)


def make(folder: Path, cache: Path) -> None:
    """Write the kernel and the initramfs into a folder.

    Raises:
        Broken: When a package or the compiler is missing.
    """
    package = unpacked(KERNEL_PACKAGE, cache)
    (folder / "vmlinux").write_bytes(uncompressed(find_kernel(package).read_bytes()))
    print("compiling the workload", flush=True)
    program, helper = folder / "workload", folder / "throttle"
    compile_workload(program)
    compile_c(throttle.sources(), helper, throttle.FLAGS)
    busybox = next(unpacked(BUSYBOX_PACKAGE, cache).glob("**/bin/busybox"))
    early = modules_in_order(package, _EARLY)
    names = {module.name for module in early}
    late = [module for module in modules_in_order(package, _LATE) if module.name not in names]
    print("writing the initramfs", flush=True)
    programs = {"busybox": busybox, "workload": program, "vmferry-throttle": helper}
    entries = _entries({name: file.read_bytes() for name, file in programs.items()}, early, late)
    (folder / "initrd").write_bytes(cpio.archive(entries))
    program.unlink()
    helper.unlink()


def compile_workload(program: Path) -> None:
    """Compile the workload into one static program.

    Raises:
        Broken: When the compiler is missing or refuses.
    """
    compile_c(sorted(WORKLOAD.glob("*.c")), program, ["-O2", "-static", "-pthread"])


def _entries(programs: dict[str, bytes], early: list[Module], late: list[Module]) -> list[cpio.Entry]:
    folders = ["bin", "dev", "proc", "sys", "lib", "lib/modules"]
    return [
        *(cpio.directory(folder) for folder in folders),
        cpio.device("dev/console", 5, 1),
        cpio.regular("init", (WORKLOAD / "init.sh").read_bytes(), executable=True),
        *(cpio.regular(f"bin/{name}", data, executable=True) for name, data in programs.items()),
        *(cpio.regular(f"lib/modules/{module.name}", module.data) for module in [*early, *late]),
        cpio.regular("lib/modules/order", _lines(early)),
        cpio.regular("lib/modules/order-late", _lines(late)),
    ]


def _lines(modules: list[Module]) -> bytes:
    return "".join(f"{module.name}\n" for module in modules).encode()
