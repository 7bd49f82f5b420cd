"""The tools that the lab runs: two QEMUs and two libvirts side by side, from the machine's own Debian mirror.

Standard library only, so that `./run` can use it before anything else is imported.
"""

from vmferry.lab.toolchain.apt import PrivateApt, machine_codename, machine_mirror
from vmferry.lab.toolchain.cache import cache_dir
from vmferry.lab.toolchain.libvirt import LibvirtBuild, ensure_libvirt, find_libvirt, find_libvirts
from vmferry.lab.toolchain.qemu import (
    WANTED_VERSIONS,
    QemuBinary,
    ensure_qemus,
    find_qemu,
    find_qemus,
)

__all__ = [
    "WANTED_VERSIONS",
    "LibvirtBuild",
    "PrivateApt",
    "QemuBinary",
    "cache_dir",
    "ensure_libvirt",
    "ensure_qemus",
    "find_libvirt",
    "find_libvirts",
    "find_qemu",
    "find_qemus",
    "machine_codename",
    "machine_mirror",
]
