"""Unpacks Debian's QEMU of another version into a directory and finds out what it needs to run.

Source: Debian packages qemu-system-x86, qemu-system-common, qemu-system-data, seabios, ipxe-qemu; ldd(1).
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from vmferry.lab.toolchain.apt import PrivateApt
from vmferry.lab.toolchain.command import output_of

TRIPLET = "x86_64-linux-gnu"
PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "ipxe-qemu")

#: never taken from the other Debian: the running system's loader goes with the running system's libc
LIBC_PACKAGES = ("libc6_", "libc-bin_", "libc6-")

FIX_UNPACK = "free some space in the cache directory and try again"


def unpack(debs: Iterable[Path], root: Path) -> None:
    """Unpack package files below a directory, readable by every user (QEMU runs under other uids)."""
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        output_of(["dpkg-deb", "--extract", str(deb), str(root)], fix=FIX_UNPACK)
    output_of(["chmod", "-R", "a+rX", str(root)], fix=FIX_UNPACK)


def missing_libraries(root: Path, env: dict[str, str]) -> list[str]:
    """Return the names of the shared libraries that QEMU and its TCG module would not find."""
    files = [root / "usr/bin/qemu-system-x86_64", *module_dir(root).glob("accel-*.so")]
    report = output_of(["ldd", *map(str, files)], env=env, fix="install libc-bin, which brings ldd")
    return sorted({line.split()[0] for line in report.splitlines() if line.rstrip().endswith("not found")})


def module_dir(root: Path) -> Path:
    """Return where this QEMU's loadable modules are."""
    return root / "usr/lib" / TRIPLET / "qemu"


def library_env(root: Path) -> dict[str, str]:
    """Return the environment that makes one process take its libraries from the unpacked packages first."""
    directories = [root / "usr/lib" / TRIPLET, root / "lib" / TRIPLET, *library_subdirectories(root)]
    return {"LD_LIBRARY_PATH": ":".join(str(path) for path in directories if path.is_dir())}


def library_subdirectories(root: Path) -> list[Path]:
    """Return the directories that ld.so.conf would have added, such as pulseaudio's."""
    return sorted((root / "usr/lib" / TRIPLET).glob("pulseaudio"))


def fetch_qemu(apt: PrivateApt, suite: str, root: Path) -> bool:
    """Unpack the suite's QEMU below root; return whether it needs libraries from there too.

    On failure the directory is removed.

    Raises:
        Broken: a package cannot be fetched or unpacked.
    """
    try:
        unpack(apt.download(PACKAGES, suite), root)
        if not missing_libraries(root, {}):
            return False
        closure = apt.download_with_dependencies(PACKAGES, suite)
        unpack((deb for deb in closure if not deb.name.startswith(LIBC_PACKAGES)), root)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return True
