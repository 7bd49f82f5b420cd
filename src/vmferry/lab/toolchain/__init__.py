"""The tools that the lab runs: QEMU 7.2 and 10.0 side by side, from the machine's own Debian mirror.

Standard library only, so that `./run` can use it before anything else is imported.
"""

from vmferry.lab.toolchain.apt import PrivateApt, machine_codename, machine_mirror
from vmferry.lab.toolchain.cache import cache_dir
from vmferry.lab.toolchain.qemu import (
    WANTED_VERSIONS,
    QemuBinary,
    ensure_qemus,
    find_qemu,
    find_qemus,
)

__all__ = [
    "WANTED_VERSIONS",
    "PrivateApt",
    "QemuBinary",
    "cache_dir",
    "ensure_qemus",
    "find_qemu",
    "find_qemus",
    "machine_codename",
    "machine_mirror",
]
