"""Debian packages that only nested hosts have: unpacked beside the machine's files, nothing is installed on it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from vmferry.lab.guests.cache import built_once, digest_of, forget_old
from vmferry.lab.guests.debs import unpacked
from vmferry.lab.toolchain.command import output_of

_APT_FIX = "check the machine's apt sources and run: apt-get update"
#: Folders that are symbolic links into /usr on the machine, and must not be hidden by real ones.
_IN_USR = ("bin", "sbin", "lib", "lib64")
_KEPT_BUILDS = 4


def packages_layer(packages: Sequence[str], cache: Path) -> Path:
    """Return a folder of files that, laid over the machine's root, give it the packages and what they depend on.

    Their maintainers' scripts have not run.

    Raises:
        Broken: apt does not know a package or cannot download it.
    """
    trees = [unpacked(name, cache) for name in _missing(packages)]
    shelf = cache / "nested"
    shelf.mkdir(exist_ok=True)
    key = digest_of([Path(__file__).read_bytes(), *(str(tree).encode() for tree in trees)])
    folder = built_once(shelf / f"packages-{key[:16]}", lambda work: _merge(trees, work))
    forget_old(shelf, "packages-*", keep=_KEPT_BUILDS)
    return folder


def _missing(packages: Sequence[str]) -> list[str]:
    """Return the names of what apt would install, dependencies included."""
    if not packages:
        return []
    plan = output_of(["apt-get", "install", "--simulate", "--no-install-recommends", *packages], fix=_APT_FIX)
    return sorted(re.findall(r"^Inst (\S+)", plan, re.MULTILINE))


def _merge(trees: Sequence[Path], work: Path) -> None:
    for tree in trees:
        for top in tree.iterdir():
            place = work / "usr" / top.name if top.name in _IN_USR else work / top.name
            shutil.copytree(top, place, symlinks=True, dirs_exist_ok=True)
