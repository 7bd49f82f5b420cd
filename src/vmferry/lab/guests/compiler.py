"""Compiles the guests' C sources so that the same compiler gives the same bytes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vmferry.lab.toolchain.command import output_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FIX = "install gcc, binutils and libc6-dev"
_COMMON = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g0", "-fno-ident", "-frandom-seed=vmferry")


@cache
def compiler_version() -> bytes:
    """Return what identifies the compiler among a guest's inputs.

    Raises:
        Broken: When there is no compiler.
    """
    return output_of(["gcc", "--version"], fix=_FIX).encode()


def compile_c(sources: Sequence[Path], output: Path, flags: Sequence[str]) -> None:
    """Compile and links sources into one stripped program without build id, time stamp or path.

    Args:
        sources: All in one folder.
        output: The program to write.
        flags: For the compiler and the linker, beside the fixed ones.

    Raises:
        Broken: When the compiler is missing or refuses; its last lines are in the text.
    """
    folder = sources[0].parent
    names = [source.name for source in sorted(sources)]
    fixed = [*_COMMON, f"-ffile-prefix-map={folder}=.", "-s", "-Wl,--build-id=none"]
    output_of(["gcc", *fixed, *flags, "-o", str(output), *names], fix=_FIX, cwd=str(folder))
