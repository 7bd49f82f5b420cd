"""Builds a guest once per set of inputs and describes what was built."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmferry.core.errors import NotFound
from vmferry.lab.guests import debian, linux, micro
from vmferry.lab.guests.cache import built_once, digest_of, files_digest, forget_old
from vmferry.lab.guests.compiler import compiler_version
from vmferry.lab.guests.image import GuestImage, GuestKind
from vmferry.lab.guests.sources import builder_code

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class _Recipe(NamedTuple):
    inputs: Callable[[Path], list[bytes]]
    make: Callable[[Path, Path], None]
    cmdline: str
    #: Outputs by what QEMU does with them.
    kernel: str | None = None
    initrd: str | None = None
    disk: str | None = None
    firmware: str | None = None
    nvram: str | None = None


_RECIPES: dict[GuestKind, _Recipe] = {
    "linux": _Recipe(linux.inputs, linux.make, linux.CMDLINE, kernel="vmlinux", initrd="initrd"),
    "micro": _Recipe(micro.inputs, micro.make, "", kernel="micro.elf"),
    "debian": _Recipe(debian.inputs, debian.make, "", disk="disk.qcow2", firmware="code.fd", nvram="vars.fd"),
}
KINDS: tuple[GuestKind, ...] = tuple(_RECIPES)
_HASH = "content-hash"
#: Builds of one kind that stay in the cache: guests of an older checkout may still run from theirs.
_KEPT_BUILDS = 4


def build(kind: GuestKind, cache: Path) -> GuestImage:
    """Return a built-in guest, built now or taken from the cache; both are the same bytes.

    Several processes may ask at once: one builds, the others wait for it. On failure nothing is left behind.

    Args:
        kind: Which guest.
        cache: The cache directory; made when it does not exist.

    Raises:
        NotFound: When there is no such kind.
        Broken: When a package cannot be had, or a tool is missing or fails.
    """
    recipe = _RECIPES.get(kind)
    if recipe is None:
        raise NotFound(f"there is no built-in guest {kind!r}", fix=f"take one of: {', '.join(KINDS)}")
    (cache / "guests").mkdir(parents=True, exist_ok=True)
    (cache / "guests").chmod(0o755)  # whatever the umask: guests run under other uids
    key = digest_of([kind.encode(), compiler_version(), *builder_code(), *recipe.inputs(cache)])
    folder = cache / "guests" / f"{kind}-{key[:16]}"
    if not folder.is_dir():
        built_once(folder, lambda work: _make(recipe, work, cache))
        forget_old(cache / "guests", f"{kind}-*", keep=_KEPT_BUILDS)
    return _describe(kind, recipe, folder)


def _make(recipe: _Recipe, work: Path, cache: Path) -> None:
    recipe.make(work, cache)
    content_hash = files_digest(work)
    for file in work.iterdir():
        file.chmod(0o444)
    (work / _HASH).write_text(content_hash)


def _describe(kind: GuestKind, recipe: _Recipe, folder: Path) -> GuestImage:
    def path(name: str | None) -> Path | None:
        return folder / name if name else None

    return GuestImage(
        kind=kind,
        kernel=path(recipe.kernel),
        initrd=path(recipe.initrd),
        cmdline=recipe.cmdline,
        disks=(folder / recipe.disk,) if recipe.disk else (),
        firmware=path(recipe.firmware),
        nvram=path(recipe.nvram),
        content_hash=(folder / _HASH).read_text(),
    )
