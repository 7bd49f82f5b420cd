"""Fetches Debian packages and unpacks them without installing anything."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.lab.guests.cache import built_once
from vmferry.lab.toolchain.cache import held
from vmferry.lab.toolchain.command import output_of

_APT_FIX = "check the machine's apt sources and run: apt-get update"


def unpacked(package: str, cache: Path) -> Path:
    """Return the folder that holds the unpacked files of a package, downloaded at the first use.

    A version that is in the cache stays in use: the guests of one cache do not change under running tests.

    Args:
        package: A binary package, or one that only depends on the current version of another
            (`linux-image-amd64`): then that other one is unpacked.
        cache: The cache directory.

    Raises:
        Broken: When apt does not know the package or cannot download it.
    """
    shelf = cache / "debs" / package
    with held(cache / "debs" / f".{package}.lock"):
        ready = sorted(shelf.iterdir()) if shelf.is_dir() else []
        if ready:
            return ready[-1]
        shelf.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache / "debs", prefix=".download.") as name:
            deb = _download(_real_package(package), Path(name))
            print(f"unpacking {deb.name}", flush=True)
            return built_once(shelf / deb.stem, lambda folder: _unpack(deb, folder))


def _unpack(deb: Path, folder: Path) -> None:
    output_of(["dpkg-deb", "-x", str(deb), str(folder)], fix="remove the cache directory and try again")


def _download(package: str, folder: Path) -> Path:
    print(f"downloading {package}", flush=True)
    folder.chmod(0o755)
    output_of(["apt-get", "-q", "download", package], fix=_APT_FIX, cwd=str(folder))
    found = list(folder.glob("*.deb"))
    if len(found) != 1:
        raise Broken(f"apt-get download {package} left {len(found)} files, expected one", fix=_APT_FIX)
    return found[0]


def _real_package(package: str) -> str:
    """Follow a kernel metapackage to the package that holds the kernel."""
    if not package.startswith("linux-image-"):
        return package
    listing = output_of(["apt-cache", "depends", package], fix=_APT_FIX)
    found = re.search(r"^\s*Depends: (linux-image-\d\S+)", listing, re.MULTILINE)
    return found[1] if found else package
