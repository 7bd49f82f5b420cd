"""libvirt's daemons of 9.0 and 11.3 on one machine: the ones that are installed, the others unpacked beside them.

Bookworm has 9.0, bookworm-backports and trixie have 11.3. What is unpacked finds every library that it needs among
those of the installed daemons and of QEMU. It is built to lie below /usr: whoever runs it mounts it there (`mounts`),
in a mount namespace of its own. Nothing of the machine changes.

Source: Debian packages libvirt-daemon and those that it was split into.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmferry.core.errors import Broken, NotFound
from vmferry.lab.toolchain.apt import PrivateApt, machine_codename
from vmferry.lab.toolchain.cache import cache_dir, held
from vmferry.lab.toolchain.command import output_of
from vmferry.lab.toolchain.unpack import TRIPLET, unpack

#: (major, minor) of what is unpacked where it is not installed
WANTED_VERSION = (11, 3)
#: As bookworm-backports and trixie call them; no dependencies, no translations, and nothing that sets a service up.
PACKAGES = (
    "libvirt0",
    "libvirt-daemon",
    "libvirt-daemon-common",
    *(f"libvirt-daemon-{part}" for part in ("lock", "log", "plugin-lockd", "driver-qemu", "driver-network")),
    *(f"libvirt-daemon-driver-{part}" for part in ("nodedev", "nwfilter", "secret", "storage", "interface")),
)
INSTALLED = Path("/usr/sbin/libvirtd")
#: What of an unpacked libvirt takes the place of the installed one's, below /usr.
_PARTS = (
    *("sbin/libvirtd", "sbin/virtlockd", "sbin/virtlogd", "bin/virt-ssh-helper", "lib/libvirt", "share/libvirt"),
    f"lib/{TRIPLET}/libvirt",
    *(f"lib/{TRIPLET}/libvirt{library}.so.0" for library in ("", "-admin", "-lxc", "-qemu")),
)
FIX_INSTALL = "apt-get install libvirt-daemon libvirt-daemon-driver-qemu"


@dataclass(frozen=True, slots=True)
class LibvirtBuild:
    """One libvirt whose daemon was seen to start on this machine."""

    version: tuple[int, int, int]
    root: Path | None  #: below which it was unpacked; None: it is installed

    def mounts(self) -> Iterator[tuple[Path, Path]]:
        """Yield (what, where) to mount so that this libvirt lies where the installed one does."""
        if self.root is not None:
            for part in _PARTS:
                what, where = (root / "usr" / part for root in (self.root, Path("/")))
                if what.exists() and where.exists():
                    yield what.resolve(), where.resolve()


def find_libvirts() -> list[LibvirtBuild]:
    """Return every libvirt on this machine whose daemon starts, newest first; downloads nothing."""
    if not INSTALLED.exists():
        return []  # an unpacked one needs the libraries and the places of an installed one
    candidates = [_seen(None), *(_seen(home / "root") for home in _home().glob("*.*") if (home / "root").is_dir())]
    return sorted((found for found in candidates if found), key=lambda build: build.version, reverse=True)


def find_libvirt(major: int, minor: int) -> LibvirtBuild:
    """Return the libvirt of that version; the installed one if there are two.

    Raises:
        NotFound: there is none on this machine.
    """
    found = [build for build in find_libvirts() if build.version[:2] == (major, minor)]
    if not found:
        raise NotFound(f"no libvirt {major}.{minor} on this machine", fix="run `./run setup` on Debian 12 or 13")
    return min(found, key=lambda build: build.root is not None)


def ensure_libvirt(say: Callable[[str], None]) -> list[LibvirtBuild]:
    """Return all libvirts of this machine after unpacking the wanted version if it is missing.

    Args:
        say: called with a line for a person before anything that takes long.

    Raises:
        Broken: it cannot be fetched, unpacked or started.
    """
    if _is_missing():
        with held(_home() / "lock"):
            if _is_missing():
                major, minor = WANTED_VERSION
                say(f"unpacking libvirt {major}.{minor} beside the installed one (3 MB to fetch)")
                _fetch(_home() / f"{major}.{minor}")
    return find_libvirts()


def _is_missing() -> bool:
    return WANTED_VERSION not in {build.version[:2] for build in find_libvirts()}


def _home() -> Path:
    return cache_dir() / "libvirt"


def _fetch(final: Path) -> None:
    codename = machine_codename()
    suite = f"{codename}-backports" if codename == "bookworm" else "trixie"
    with tempfile.TemporaryDirectory(dir=final.parent, prefix="fetch-") as scratch:
        apt, root = PrivateApt(Path(scratch) / "apt", (suite,)), Path(scratch) / "root"
        apt.update()
        unpack(apt.download(PACKAGES, suite), root)
        version = _version(root)
        if version[:2] != WANTED_VERSION:
            seen, wanted = (".".join(map(str, each)) for each in (version, WANTED_VERSION))
            raise Broken(f"suite {suite} has libvirt {seen}, wanted {wanted}", fix="use Debian 12 or 13")
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        root.rename(final / "root")  # last: a directory without it is an attempt that was cut short


def _seen(root: Path | None) -> LibvirtBuild | None:
    try:
        return LibvirtBuild(_version(root), root)
    except Broken:
        return None


def _version(root: Path | None) -> tuple[int, int, int]:
    """Return what a daemon says of itself.

    Raises:
        Broken: it does not start, for example for want of a library.
    """
    program = INSTALLED if root is None else root / "usr/sbin/libvirtd"
    env = {} if root is None else {"LD_LIBRARY_PATH": str(root / "usr/lib" / TRIPLET)}
    text = output_of([str(program), "--version"], env=env, fix=FIX_INSTALL)
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise Broken(f"{program} --version said {text[:80]!r}", fix=FIX_INSTALL)
    return int(found[1]), int(found[2]), int(found[3])
